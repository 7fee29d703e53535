"""Devices of the host for containers: by their paths, and by CDI, the Container Device Interface 1.1.

A CDI spec is a JSON or YAML file, in which a vendor names devices as ``vendor.com/class=name`` and describes what a configuration
needs for each: device nodes, mounts, variables, hooks and groups.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, NoReturn, TypeAlias

import attrs

from .arguments import check_int, check_str, encodable, parse_path, shown, wrong_type
from .errors import SpecError, UnsupportedError, warn
from .files import read_file
from .host import Host
from .plan.devices import creates_nodes
from .plan.namespaces import KEEP_GROUPS, namespaces_of
from .spec import Device, DeviceCgroup, DeviceType, Hook, Hooks, IntelRdt, Linux, Mount, NetDevice, ProcessSpec, RuntimeSpec, User
from .spec.base import Constraint, Json, Problem, Record, Uint32, camel_case, is_below, json_path, members_of
from .spec.codec import parse, structure

__all__ = ["CdiDevice", "devices"]

StrPath: TypeAlias = str | os.PathLike[str]

SYSTEM: Final = ("/etc/cdi", "/var/run/cdi")
"""The directories of specs for all users. A later one takes precedence."""
VERSIONS: Final = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
_MAX_SIZE: Final = 4 << 20
"""Largest spec, in bytes."""
_MAX_DEPTH: Final = 32
"""Levels of a YAML document. A valid spec has 7."""
_MAX_NODES: Final = 1000
"""Most device nodes that are taken from a directory."""


# ---- the members of a spec ----

Major = Annotated[int, Constraint(range=(0, (1 << 12) - 1))]
Minor = Annotated[int, Constraint(range=(0, (1 << 20) - 1))]


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class NodeEdit(Record):
    """A device node in the container."""

    path: str
    host_path: str | None = None
    type: str | None = None
    major: Major | None = None
    minor: Minor | None = None
    file_mode: Uint32 | None = None
    permissions: str | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class MountEdit(Record):
    """A mount. Without a type it is a bind mount."""

    host_path: str
    container_path: str
    type: str | None = None
    options: tuple[str, ...] | None = None

    @property
    def binds(self) -> bool:
        """Whether a path of the host is mounted, and not a new filesystem."""
        return self.type in (None, "", "bind", "none") or not {"bind", "rbind"}.isdisjoint(self.options or ())


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class HookEdit(Record):
    """A hook."""

    hook_name: str
    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    timeout: Uint32 | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class RdtEdit(Record):
    """Settings of resctrl."""

    clos_id: str | None = attrs.field(default=None, metadata={"key": "closID"})
    l3_cache_schema: str | None = None
    mem_bw_schema: str | None = None
    schemata: tuple[str, ...] | None = None
    enable_monitoring: bool | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class NetEdit(Record):
    """A network interface that is moved to the container."""

    host_interface_name: str
    name: str


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Edits(Record):
    """What a configuration gets for a device, or for any device of a spec."""

    env: tuple[str, ...] | None = None
    device_nodes: tuple[NodeEdit, ...] | None = None
    net_devices: tuple[NetEdit, ...] | None = None
    hooks: tuple[HookEdit, ...] | None = None
    mounts: tuple[MountEdit, ...] | None = None
    intel_rdt: RdtEdit | None = None
    additional_gids: tuple[Uint32, ...] | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class DeviceEntry(Record):
    """A device of a spec."""

    name: str
    container_edits: Edits
    annotations: Mapping[str, str] | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class CdiSpec(Record):
    """A CDI spec."""

    cdi_version: str
    kind: str
    devices: tuple[DeviceEntry, ...]
    annotations: Mapping[str, str] | None = None
    container_edits: Edits | None = None

    @property
    def edits(self) -> Iterator[tuple[str, Edits]]:
        """All edits with their JSON paths."""
        if self.container_edits is not None:
            yield "$.containerEdits", self.container_edits
        for index, device in enumerate(self.devices):
            yield f"$.devices[{index}].containerEdits", device.container_edits


# ---- the rules of a spec ----

_KIND: Final = re.compile(r"[A-Za-z](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?/[A-Za-z](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_HOOKS: Final = {camel_case(name): name for name in members_of(Hooks)}
"""The members of `Hooks` by the names of hooks."""
_TYPES: Final = ("b", "c", "u", "p")


def _rule_problems(spec: CdiSpec) -> Iterator[Problem]:
    """Yield what is wrong with a spec whose members have the right types."""
    yield from _unknown_members(spec, "$")
    if not _KIND.fullmatch(spec.kind):
        yield Problem("$.kind", f"{shown(spec.kind)} is not a kind such as vendor.com/class")
    if not spec.devices:
        yield Problem("$.devices", "at least one device is needed")
    names: set[str] = set()
    for index, device in enumerate(spec.devices):
        place = f"$.devices[{index}]"
        if not _NAME.fullmatch(device.name):
            yield Problem(f"{place}.name", f"{shown(device.name)} is not a name of letters, digits and inner characters of '-_.:'")
        if device.name in names:
            yield Problem(f"{place}.name", f"{shown(device.name)} is the name of another device, too")
        names.add(device.name)
        if device.container_edits == Edits():
            yield Problem(f"{place}.containerEdits", "at least one edit is needed")
    for place, edits in spec.edits:
        yield from _edit_problems(edits, place)
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        yield Problem("$.cdiVersion", f"{shown(spec.cdi_version)} is not a supported version: {VERSIONS[0]} to {VERSIONS[-1]}")
        return
    for place, oldest in _newer_members(spec):
        if VERSIONS.index(oldest) > VERSIONS.index(version):
            yield Problem(place, f"it needs cdiVersion {oldest}, and the spec says {spec.cdi_version}")


def _unknown_members(record: Record, path: str) -> Iterator[Problem]:
    for key in record.extensions:
        yield Problem(json_path(path, key), f"CDI {VERSIONS[-1]} has no such member")
    for name, member in members_of(type(record)).items():
        value = getattr(record, name)
        if isinstance(value, Record):
            yield from _unknown_members(value, f"{path}.{member.key}")
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Record):
                    yield from _unknown_members(item, f"{path}.{member.key}[{index}]")


def _edit_problems(edits: Edits, path: str) -> Iterator[Problem]:
    yield from _env_problems(edits.env, f"{path}.env")
    for index, node in enumerate(edits.device_nodes or ()):
        place = f"{path}.deviceNodes[{index}]"
        yield from _path_problems(f"{place}.path", node.path)
        if node.host_path:
            yield from _path_problems(f"{place}.hostPath", node.host_path)
        if node.type and node.type not in _TYPES:
            yield Problem(f"{place}.type", f"{shown(node.type)} is not one of {', '.join(_TYPES)}")
        if node.permissions and node.permissions != "none" and not set(node.permissions) <= set("rwm"):
            yield Problem(f"{place}.permissions", f"{shown(node.permissions)} is neither 'none' nor letters of 'rwm'")
    for index, mount in enumerate(edits.mounts or ()):
        yield from _path_problems(f"{path}.mounts[{index}].containerPath", mount.container_path)
        if mount.binds:
            yield from _path_problems(f"{path}.mounts[{index}].hostPath", mount.host_path)
    for index, hook in enumerate(edits.hooks or ()):
        place = f"{path}.hooks[{index}]"
        if hook.hook_name not in _HOOKS:
            yield Problem(f"{place}.hookName", f"{shown(hook.hook_name)} is not one of {', '.join(_HOOKS)}")
        yield from _path_problems(f"{place}.path", hook.path)
        yield from _env_problems(hook.env, f"{place}.env")
        if hook.timeout == 0:
            yield Problem(f"{place}.timeout", "it must be greater than 0")
    identity = (edits.intel_rdt.clos_id if edits.intel_rdt else None) or "/"
    if identity != "/" and (identity in (".", "..") or len(identity) >= 4096 or not {"/", "\n", "\0"}.isdisjoint(identity)):
        yield Problem(f"{path}.intelRdt.closID", f"{shown(identity)} is not the name of a directory")
    for key in ("host_interface_name", "name"):
        used: set[str] = set()
        for index, net in enumerate(edits.net_devices or ()):
            value = getattr(net, key)
            if not value or value in used:
                yield Problem(f"{path}.netDevices[{index}].{camel_case(key)}", "it is empty" if not value else "it appears twice")
            used.add(value)


def _env_problems(env: Iterable[str] | None, path: str) -> Iterator[Problem]:
    for index, entry in enumerate(env or ()):
        if not entry.partition("=")[0] or "=" not in entry or "\0" in entry:
            yield Problem(f"{path}[{index}]", f"{shown(entry)} is not NAME=value")


def _path_problems(place: str, path: str) -> Iterator[Problem]:
    if not _is_absolute(path):
        yield Problem(place, f"{shown(path)} is not an absolute path without '..'")


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def _newer_members(spec: CdiSpec) -> Iterator[tuple[str, str]]:
    """Yield the JSON paths of what the first version did not have, and the version that added it."""
    if spec.annotations:
        yield "$.annotations", "0.6.0"
    if "." in spec.kind.partition("/")[2]:
        yield "$.kind", "0.6.0"
    for index, device in enumerate(spec.devices):
        if device.annotations:
            yield f"$.devices[{index}].annotations", "0.6.0"
        if device.name[:1].isdigit():
            yield f"$.devices[{index}].name", "0.5.0"
    for path, edits in spec.edits:
        yield from ((f"{path}.mounts[{i}].type", "0.4.0") for i, mount in enumerate(edits.mounts or ()) if mount.type)
        yield from (
            (f"{path}.deviceNodes[{i}].hostPath", "0.5.0") for i, node in enumerate(edits.device_nodes or ()) if node.host_path
        )
        if edits.additional_gids:
            yield f"{path}.additionalGids", "0.7.0"
        if edits.intel_rdt is not None:
            newer = edits.intel_rdt.schemata is not None or edits.intel_rdt.enable_monitoring
            yield f"{path}.intelRdt", "1.1.0" if newer else "0.7.0"
        if edits.net_devices:
            yield f"{path}.netDevices", "1.1.0"


# ---- YAML ----

_CONSTANTS: Final[dict[str, Json]] = {"": None, "~": None, "null": None, "true": True, "false": False}
_NUMBERS: Final = (
    (re.compile(r"0o?([0-7]{1,20})"), 8),
    (re.compile(r"0x([0-9a-fA-F]{1,16})"), 16),
    (re.compile(r"([-+]?\d{1,20})"), 10),
)
_FLOAT: Final = re.compile(r"[-+]?\d{1,20}\.\d{0,20}(?:[eE][-+]?\d{1,3})?")


def _parse_yaml(text: bytes, source: str) -> Json:
    """Return a YAML document as JSON values. It has no aliases, which can stand for any amount of data, and no tags.

    Raises:
        SpecError: it is not such a document.
        UnsupportedError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise UnsupportedError(f"{source}: PyYAML is needed to read YAML; install ociruntime[cdi]") from None
    events = yaml.parse(text, Loader=getattr(yaml, "CLoader", yaml.Loader))

    def refuse(message: str, event: Any) -> NoReturn:
        raise SpecError([Problem("$", f"line {event.start_mark.line + 1}: {message}")], source)

    def read(event: Any, depth: int) -> Json:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            refuse("anchors and aliases are not allowed", event)
        if event.tag is not None:
            refuse("tags are not allowed", event)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else str(event.value)
        if not depth:
            refuse("nested too deeply", event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Json] = []
            while not isinstance(item := next(events), yaml.SequenceEndEvent):
                items.append(read(item, depth - 1))
            return items
        found: dict[str, Json] = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                refuse("a key is not a string", key)
            if key.value in found:
                refuse(f"the member {shown(key.value)} appears twice in one object", key)
            found[key.value] = read(next(events), depth - 1)
        return found

    try:
        document: Json = None
        for event in events:
            if isinstance(event, yaml.NodeEvent):
                if document is not None:
                    refuse("a second document is not allowed", event)
                document = read(event, _MAX_DEPTH)
        return document
    except yaml.YAMLError as error:
        raise SpecError([Problem("$", f"not YAML: {' '.join(str(error).split())}")], source) from None


def _scalar(text: str) -> Json:
    """Return the value of a plain scalar (YAML 1.2, Core Schema). Octal numbers may begin with 0 alone, as in YAML 1.1."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    for pattern, base in _NUMBERS:
        if match := pattern.fullmatch(text):
            return int(match[1], base)
    return float(text) if _FLOAT.fullmatch(text) else text


# ---- the specs of this host ----


@attrs.frozen
class CdiDevice:
    """A device that a CDI spec of this host offers."""

    name: str
    """The name by which it is requested, as ``vendor.com/class=name``."""
    path: str
    """The file of the spec."""
    nodes: tuple[str, ...]
    """The paths in the container of its device nodes, without those that the spec adds for all of its devices."""
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    """What the spec says of the device, by name."""

    def to_dict(self) -> dict[str, Any]:
        """Return the device as JSON values, as ``ociruntime devices --format json`` prints it."""
        return {**attrs.asdict(self), "nodes": list(self.nodes), "annotations": dict(self.annotations)}


def devices() -> tuple[CdiDevice, ...]:
    """Return the devices that the CDI specs of this host offer this user, by name.

    A spec that cannot be used is left out with an `OCIRuntimeWarning`, and so is a device that two specs of one directory define.
    """
    offers = _Offers.read()
    offers.warn()
    return tuple(
        CdiDevice(
            name,
            offer.path,
            tuple(node.path for node in offer.edits.device_nodes or ()),
            dict(offer.annotations),
        )
        for name, offer in sorted(offers.devices.items())
    )


def directories() -> tuple[str, ...]:
    """Return the directories of CDI specs. A later one takes precedence; those of a user come last."""
    if os.geteuid() == 0 and Host.probe().initial:
        return SYSTEM
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    own = (config, os.environ.get("XDG_RUNTIME_DIR", ""))
    return (*SYSTEM, *(f"{base}/cdi" for base in own if os.path.isabs(base)))


class _Offer(NamedTuple):
    """A device of a spec."""

    path: str
    """The file of the spec."""
    common: Edits | None
    """The edits for every device of the spec."""
    edits: Edits
    annotations: Mapping[str, str]


class _Offers(NamedTuple):
    """The devices of all specs."""

    devices: Mapping[str, _Offer]
    errors: tuple[str, ...]
    """Why files and devices are left out."""

    @classmethod
    def read(cls) -> "_Offers":
        """Read the specs of all directories."""
        found: dict[str, _Offer] = {}
        errors: list[str] = []
        for directory in directories():
            here: dict[str, list[_Offer]] = {}
            for path in _spec_files(directory, errors):
                try:
                    spec = _load(path)
                except (SpecError, UnsupportedError, OSError) as error:
                    errors.append(_one_line(error, path))
                    continue
                for device in spec.devices:
                    offer = _Offer(path, spec.container_edits, device.container_edits, device.annotations or {})
                    here.setdefault(f"{spec.kind}={device.name}", []).append(offer)
            for name, offers in here.items():
                found[name] = offers[0]
                if len(offers) > 1:
                    del found[name]
                    errors.append(f"{name} is defined by both {offers[0].path} and {offers[1].path}: remove one of them")
        return cls(found, tuple(errors))

    def warn(self) -> None:
        """Issue a warning for everything that is left out."""
        warn([f"left out of the CDI devices: {error}" for error in self.errors])

    def find(self, what: str, name: str) -> _Offer:
        """Return a device. Raises UnsupportedError."""
        if name in self.devices:
            return self.devices[name]
        kind = name.partition("=")[0]
        same = sorted(other for other in self.devices if other.startswith(f"{kind}="))
        if same:
            raise UnsupportedError(f"{what}: no device {name}: the specs of this host offer {', '.join(same[:20])}{self.failures}")
        raise UnsupportedError(f"{what}: no device {name}: no CDI spec of {kind}{self.searched}{_remedy(kind)}{self.failures}")

    @property
    def searched(self) -> str:
        return f" in {', '.join(directories())}"

    @property
    def failures(self) -> str:
        return "".join(f"; left out: {error}" for error in self.errors)


def _spec_files(directory: str, errors: list[str]) -> list[str]:
    """Return the paths of the specs in a directory."""
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        errors.append(f"{directory}: {(error.strerror or '').lower()}")
        return []
    if names and os.stat(directory).st_mode & stat.S_IWOTH:
        errors.append(f"{directory}: every user can write to it; remove this permission")
        return []
    return [f"{directory}/{name}" for name in names if name.endswith((".json", ".yaml"))]


_loaded: Final[dict[str, tuple[object, CdiSpec]]] = {}
"""The specs of this process by their paths, with the identities of the files."""


def _load(path: str) -> CdiSpec:
    """Return a spec. Raises SpecError, UnsupportedError, OSError."""
    info = os.stat(path)
    identity = info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
    known, spec = _loaded.get(path, (None, None))
    if spec is not None and known == identity:
        return spec
    if info.st_mode & stat.S_IWOTH:
        raise SpecError([Problem("$", "every user can write to the file; remove this permission")], path)
    text = read_file(path, _MAX_SIZE, regular=True)
    spec = structure(CdiSpec, _parse_yaml(text, path) if path.endswith(".yaml") else parse(text, path), path)
    if problems := tuple(_rule_problems(spec)):
        raise SpecError(problems, path)
    _loaded[path] = identity, spec
    return spec


def _one_line(error: Exception, path: str) -> str:
    if isinstance(error, SpecError):
        first, *others = error.problems
        return f"{path}: {first}" + (f" (and {len(others)} more)" if others else "")
    return f"{path}: {(error.strerror or '').lower()}" if isinstance(error, OSError) else str(error)


# ---- what a call requests ----


class HostDevice(NamedTuple):
    """A device node of the host, or a directory of device nodes."""

    source: str
    target: str
    permissions: str


Requested: TypeAlias = HostDevice | str
"""A device by its path, or by its CDI name."""
Gpus: TypeAlias = int | tuple[str, ...]
"""A number of GPUs, or their names in their class."""
GPU_KINDS: Final = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu")
_GENERATORS: Final = {
    "nvidia.com/gpu": "nvidia-ctk cdi generate --output={}/nvidia.yaml",
    "amd.com/gpu": "amd-ctk cdi generate --output={}/amd.json",
}
"""The commands that write the specs of GPUs to a directory."""


def parse_devices(values: Iterable[StrPath | HostDevice]) -> tuple[Requested, ...]:
    """Return devices as callers write them: CDI names, and paths as podman takes them. Raises TypeError, ValueError."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise wrong_type("devices", values, "a sequence of devices")
    return tuple(value if isinstance(value, HostDevice) else _parse_device(value) for value in values)


def _parse_device(value: StrPath) -> Requested:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    check_str("devices", text)
    if text.startswith("/"):
        return _parse_host_device(text)
    kind, _, name = text.partition("=")
    if not (_KIND.fullmatch(kind) and _NAME.fullmatch(name)):
        raise ValueError(f"devices contains {shown(text)}: 'vendor.com/class=name' or '/dev/NAME[:/dev/NAME][:rwm]' is needed")
    return text


def _parse_host_device(text: str) -> HostDevice:
    source, *rest = text.split(":")
    parse_path("devices", source)
    permissions = rest.pop() if rest and rest[-1] and set(rest[-1]) <= set("rwm") else "rwm"
    target = rest.pop(0) if rest else source
    if rest or not _is_absolute(target) or target == "/":
        raise ValueError(
            f"devices contains {shown(text)}: '/dev/NAME', '/dev/NAME:/dev/OTHER' or '/dev/NAME:/dev/OTHER:rwm' is needed"
        )
    return HostDevice(source, target, permissions)


def parse_gpus(value: str | Gpus) -> Gpus:
    """Return GPUs as callers write them: a number, or names such as ``"all"``, ``"0,1"``; also ``"count=2"``, ``"device=0,1"``.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if isinstance(value, tuple) and all(isinstance(name, str) for name in value):
        value = ",".join(value)
    if isinstance(value, int) and not isinstance(value, bool):
        check_int("gpus", value, 0)
        return value
    if not isinstance(value, str):
        raise wrong_type("gpus", value, "'all', names such as '0,1', or a number of GPUs")
    text = encodable("gpus", value)
    if text.startswith("count=") and text[6:].isascii() and text[6:].isdigit() and len(text) < 16:
        return int(text[6:])
    names = tuple(text.removeprefix("device=").split(","))
    if not all(map(_NAME.fullmatch, names)):
        raise ValueError(f"gpus is {shown(value)}: 'all', names such as '0,1', or a number of GPUs is needed")
    return names


def _remedy(*kinds: str) -> str:
    """Return how to make a spec of one of these kinds, for the end of a message; an empty string if that is not known."""
    place = next(iter(directories()[len(SYSTEM) :]), SYSTEM[0])
    commands = [f"'{_GENERATORS[kind].format(place)}'" for kind in kinds if kind in _GENERATORS]
    return f"; generate one with {' or '.join(commands)}" if commands else ""


def _gpu_names(gpus: Gpus, offers: _Offers) -> list[str]:
    """Return the CDI names of GPUs. Raises UnsupportedError."""
    if gpus == 0:
        return []
    by_kind = {kind: [name for name in offers.devices if name.startswith(f"{kind}=")] for kind in GPU_KINDS}
    kinds = [kind for kind in GPU_KINDS if by_kind[kind]]
    if not kinds:
        raise UnsupportedError(f"gpus: no CDI spec of a GPU{offers.searched}{_remedy(*_GENERATORS)}{offers.failures}")
    if len(kinds) > 1:
        raise UnsupportedError(
            f"gpus: this host has {' and '.join(kinds)}; name the devices, as with devices=['{by_kind[kinds[0]][0]}']"
        )
    kind = kinds[0]
    if isinstance(gpus, tuple):
        if gpus == ("all",) and f"{kind}=all" not in offers.devices:
            return by_kind[kind]
        return [f"{kind}={name}" for name in gpus]
    numbers = sorted(int(name) for name in (full.partition("=")[2] for full in by_kind[kind]) if name.isdigit() and len(name) < 6)
    if gpus > len(numbers):
        raise UnsupportedError(f"gpus is {gpus}: the specs of {kind} offer {len(numbers)} numbered devices")
    return [f"{kind}={number}" for number in numbers[:gpus]]


# ---- changing a configuration ----


def inject(spec: RuntimeSpec, requested: Sequence[Requested], gpus: Gpus | None = None) -> RuntimeSpec:
    """Return a configuration with devices. The edits of a CDI spec for all its devices are made once, before those of its devices.

    Raises:
        UnsupportedError: a device does not exist on this host, or more than one spec defines it.
    """
    names = [item for item in requested if isinstance(item, str)]
    if names or gpus:
        offers = _Offers.read()
        found = [("devices", name) for name in names] + [("gpus", name) for name in _gpu_names(gpus or 0, offers)]
        chosen = {name: offers.find(what, name) for what, name in found}
        offers.warn()
        begun: set[str] = set()
        for name, offer in chosen.items():
            if offer.common is not None and offer.path not in begun:
                spec = _with_edits(spec, offer.common, name)
            begun.add(offer.path)
            spec = _with_edits(spec, offer.edits, name)
    for item in requested:
        if isinstance(item, HostDevice):
            for node in _host_nodes(item):
                spec = _with_node(spec, node, f"devices: {item.source}")
    return spec


def _with_edits(spec: RuntimeSpec, edits: Edits, name: str) -> RuntimeSpec:
    what = f"devices: {name}"
    if edits.env:
        spec = spec.with_env(dict(entry.split("=", 1) for entry in edits.env))
    for node in edits.device_nodes or ():
        spec = _with_node(spec, node, what)
    for net in edits.net_devices or ():
        moved = spec.at.linux.net_devices.get() or {}
        spec = spec.at.linux.net_devices.set({**moved, net.host_interface_name: NetDevice(name=net.name)})
    for mount in edits.mounts or ():
        spec = _with_mount(spec, _mount_of(mount))
    for hook in edits.hooks or ():
        spec = _with_hook(spec, hook)
    if edits.intel_rdt is not None:
        settings = {name: getattr(edits.intel_rdt, name) for name in members_of(RdtEdit)}
        spec = spec.at.linux.intel_rdt.set(IntelRdt(**settings))
    return _with_groups(spec, edits.additional_gids or ())


def _with_mount(spec: RuntimeSpec, mount: Mount) -> RuntimeSpec:
    """Return a configuration with a mount in place of one at its destination, and before the mounts below it."""
    mounts = [other for other in spec.mounts or () if other.destination != mount.destination]
    below = (index for index, other in enumerate(mounts) if is_below(other.destination, mount.destination))
    mounts.insert(next(below, len(mounts)), mount)
    return spec.evolve(mounts=tuple(mounts))


def _mount_of(edit: MountEdit) -> Mount:
    options = edit.options or ()
    if edit.binds and {"bind", "rbind"}.isdisjoint(options):
        options = ("rbind", *options)
    kind = "bind" if edit.binds else edit.type
    return Mount(destination=edit.container_path, type=kind, source=edit.host_path, options=options)


def _with_hook(spec: RuntimeSpec, edit: HookEdit) -> RuntimeSpec:
    hook = Hook(path=edit.path, args=edit.args, env=edit.env, timeout=edit.timeout)
    changed: RuntimeSpec = getattr(spec.at.hooks, _HOOKS[edit.hook_name]).append(hook)
    return changed


def _with_groups(spec: RuntimeSpec, gids: Iterable[int]) -> RuntimeSpec:
    """Return a configuration whose process has more groups. A process that keeps the groups of the caller has those already."""
    kept = frozenset(os.getgroups()) if (spec.annotations or {}).get(KEEP_GROUPS) == "1" else frozenset[int]()
    process = spec.process or ProcessSpec(cwd="/")
    user = process.user or User(uid=0, gid=0)
    present = user.additional_gids or ()
    added = tuple(gid for gid in dict.fromkeys(gids) if gid and gid not in present and gid not in kept)
    if not added:
        return spec
    return spec.evolve(process=process.evolve(user=user.evolve(additional_gids=(*present, *added))))


# ---- device nodes ----


class _Found(NamedTuple):
    """A device node of the host."""

    type: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


_FORMATS: Final = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p"}


def _find_node(path: str, what: str) -> _Found:
    """Return a device node of the host, which is not opened. Raises UnsupportedError."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UnsupportedError(f"{what}: {path}: {(error.strerror or '').lower()}") from error
    try:
        info = os.fstat(fd)
    finally:
        os.close(fd)
    kind = _FORMATS.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        raise UnsupportedError(f"{what}: {path}: not a device node")
    return _Found(kind, os.major(info.st_rdev), os.minor(info.st_rdev), info.st_mode & 0o777, info.st_uid, info.st_gid)


def _host_nodes(device: HostDevice) -> Iterator[NodeEdit]:
    """Yield the device node at a path, or those in a directory. Raises UnsupportedError."""
    what = f"devices: {device.source}"
    if not os.path.isdir(device.source):
        yield NodeEdit(path=device.target, host_path=device.source, permissions=device.permissions)
        return
    count = 0
    for directory, names, files in os.walk(device.source):
        names[:] = sorted(set(names) - {"fd", "mqueue", "pts", "shm"})
        for name in sorted(files):
            path = f"{directory.rstrip('/')}/{name}"
            if name == "console" or stat.S_IFMT(os.lstat(path).st_mode) not in (stat.S_IFCHR, stat.S_IFBLK):
                continue
            count += 1
            if count > _MAX_NODES:
                raise UnsupportedError(f"{what}: more than {_MAX_NODES} device nodes; name those that are needed")
            target = device.target + path.removeprefix(device.source)
            yield NodeEdit(path=target, host_path=path, permissions=device.permissions)
    if not count:
        raise UnsupportedError(f"{what}: the directory has no device nodes")


def _with_node(spec: RuntimeSpec, edit: NodeEdit, what: str) -> RuntimeSpec:
    """Return a configuration with a device node: a new one, or the host's, bound, where no new one would work.

    Raises:
        UnsupportedError: the node of the host is needed and does not exist, or is of another type.
    """
    linux, path = spec.linux or Linux(), edit.host_path or edit.path
    others = tuple(device for device in linux.devices or () if device.path != edit.path)
    creates = edit.type == "p" or creates_nodes(Host.probe(), namespaces_of(linux))
    whole = edit.type == "p" or (bool(edit.type) and bool(edit.major))
    found = None if creates and whole and not os.path.exists(path) else _find_node(path, what)
    if found is not None and edit.type and edit.type.replace("u", "c") != found.type:
        raise UnsupportedError(f"{what}: {path} is a device of type {found.type}, not {edit.type}")
    if not creates:
        assert found is not None
        _warn_of_differences(edit, found, what)
        spec = spec.evolve(linux=linux.evolve(devices=others)) if linux.devices else spec
        return _with_mount(spec, Mount(destination=edit.path, type="bind", source=path, options=("bind", "nosuid")))
    kind = edit.type or (found.type if found else "")
    numbers = (edit.major, edit.minor or 0) if edit.major else (found.major, found.minor) if found else (None, None)
    mode = edit.file_mode if edit.file_mode is not None else found.mode if found else None
    owner = spec.process.user if spec.process else None
    device = Device(
        type=DeviceType(kind),
        path=edit.path,
        major=None if kind == "p" else numbers[0],
        minor=None if kind == "p" else numbers[1],
        file_mode=None if mode is None else mode & 0o777,
        uid=edit.uid if edit.uid is not None else (owner.uid or None) if owner else None,
        gid=edit.gid if edit.gid is not None else (owner.gid or None) if owner else None,
    )
    return _with_rule(spec.evolve(linux=linux.evolve(devices=(*others, device))), device, edit.permissions or "rwm")


def _warn_of_differences(edit: NodeEdit, found: _Found, what: str) -> None:
    """Warn of what is requested and not carried out for a device node of the host."""
    lost = [
        name
        for name, expected, real in (
            ("mode", edit.file_mode, found.mode),
            ("uid", edit.uid, found.uid),
            ("gid", edit.gid, found.gid),
        )
        if expected is not None and (expected & 0o777 if name == "mode" else expected) != real
    ]
    if lost:
        warn([f"{what}: {edit.path} keeps {' and '.join(lost)} of the host's node, which this user cannot change"])
    if edit.permissions and not set("rw") <= set(edit.permissions):
        warn([f"{what}: {edit.path} is not limited to the permissions {edit.permissions!r}, as device rules need root"])


def _with_rule(spec: RuntimeSpec, device: Device, permissions: str) -> RuntimeSpec:
    """Return a configuration whose device rules, if it has any, allow a device."""
    resources = spec.linux.resources if spec.linux else None
    if resources is None or not resources.devices or device.type == "p" or permissions == "none":
        return spec
    kind = "b" if device.type == "b" else "c"
    rule = DeviceCgroup(allow=True, type=kind, major=device.major, minor=device.minor, access=permissions)
    return spec.at.linux.resources.devices.append(rule)
