"""Per-call overrides of a container's configuration: program, environment, user, mounts and limits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeAlias, cast

import attrs
from typing_extensions import TypeVar

from .arguments import (
    check_bool,
    check_str,
    check_type,
    encodable,
    parse_args,
    parse_count,
    parse_cpus,
    parse_limit,
    parse_size,
    shown,
    wrong_type,
)
from .engine.networks import parse_ports
from .engine.systemd import is_reachable
from .files import absolute_path
from .host import Host
from .plan.cgroups import PIDS_IF_POSSIBLE, Manager, why_unlimited
from .plan.mount_options import KNOWN_OPTIONS
from .plan.namespaces import KEEP_GROUPS, Port, maps_own_id_alone
from .plan.rootfs import Tmpfs
from .rootfs.users import CALLER, Caller, is_shown, resolve, working_directory
from .spec import CPU, IDMapping, Linux, Memory, Mount, NamespaceType, Pids, ProcessSpec, Resources, Rlimit, RlimitType, User
from .spec.base import members_of

if TYPE_CHECKING:
    from pathlib import Path

    from .cdi import Gpus, Requested
    from .rootfs.users import ContainerRoot
    from .spec import RuntimeSpec

__all__ = ["Args", "Env", "MountLike", "Mounts", "Network", "Overlays", "Overrides", "Ports", "StrPath", "UserLike"]

StrPath: TypeAlias = str | os.PathLike[str]
"""A path."""


_Member = TypeVar("_Member", contravariant=True, default=object)
"""Lets mypy report a str for `Args` alone, without all overloads of the call: without its parameters, the type fits."""


class Args(Protocol[_Member]):
    """A program and its arguments: a list, tuple or other sequence of str and paths.

    A type checker refuses a single str, which is a sequence of its letters: unlike here, only a str can be in a str.
    """

    def __contains__(self, value: _Member, /) -> bool: ...
    def __getitem__(self, index: int, /) -> StrPath: ...
    def __iter__(self) -> Iterator[StrPath]: ...
    def __len__(self) -> int: ...


Overlays: TypeAlias = StrPath | Sequence[StrPath]
"""Where writes go, and which layers are below, as for `Bundle.fresh`."""
Env: TypeAlias = Mapping[str, str | None] | Sequence[str]
"""A mapping of names to values, where None removes a variable; or ``NAME=value`` strings."""
UserLike: TypeAlias = "str | int | tuple[int, int] | User"
"""``"name"``, ``"name:group"``, ``"uid:gid"``, a uid, (uid, gid), or a `User`. Names are looked up in the container.
``"caller"`` is the caller."""
MountLike: TypeAlias = "str | tuple[StrPath, StrPath] | tuple[StrPath, StrPath, str] | Mapping[str, Any] | Mount"
"""``"source:destination"`` or ``"source:destination:ro"``, a tuple of these parts, a mount as in config.json, or a `Mount`.

A mount as in config.json that has a source and no type is a bind mount. A relative source of a bind mount counts from the
working directory of the caller.
"""
Mounts: TypeAlias = "Iterable[MountLike] | Mapping[str, StrPath] | Mapping[Path, StrPath]"
"""Mounts, or a mapping of sources to destinations: ``{"data": "/data:ro"}``."""
Network: TypeAlias = "Literal['none', 'host', 'private', False] | StrPath"
"""``"none"`` or False, ``"host"``, ``"private"``, or the path of a network namespace."""
Ports: TypeAlias = "Mapping[int, int] | Mapping[str, int] | Mapping[int | str, int | str] | Iterable[str]"
"""``{8080: 80}``, ``{"0.0.0.0:8080": 80, "5353/udp": 53}``: ports of the host and of the container; or ``["8080:80"]``."""

_PERIOD: Final = 100_000
"""Period of the CPU quota in microseconds: the kernel's default."""
_HOST_NAME_MAX: Final = 64
_LEAST_PIDS: Final = 2048
_PIDS_FOR_EACH_CPU: Final = 64
_MAX_ID: Final = 0xFFFFFFFE
Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


def parse_mounts(mounts: Mounts | None) -> tuple[Mount, ...] | None:
    """Return the mounts of a call. Raises TypeError, ValueError, and SpecError for a mapping that is not a mount."""
    if mounts is None:
        return None
    if isinstance(mounts, Mapping):
        return tuple(map(parse_mount, cast("Mapping[StrPath, StrPath]", mounts).items()))
    if isinstance(mounts, str | bytes) or not isinstance(mounts, Iterable):
        raise wrong_type("mounts", mounts, "a sequence of mounts, or a mapping of sources to destinations,")
    return tuple(map(parse_mount, mounts))


def validated_by(check: Callable[..., object], *limits: object) -> Validator:
    """Return a validator for an attribute: a check of `ociruntime.arguments`, or None where the annotation allows that."""

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None or "None" not in str(attribute.type):
            check(attribute.name, value, *limits)

    return validate


def instance_of(*kinds: type, what: str) -> Validator:
    """Return a validator for an attribute that is None or an instance of one of these types. A bool does not count as an int.

    Args:
        what: describes a valid value, for the message of the TypeError.
    """
    return validated_by(check_type, kinds, what)


def _check_cwd(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and not value.startswith("/"):
        raise ValueError(f"{attribute.name} is {shown(value)}: an absolute path in the container is needed")


def _check_hostname(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None and not 0 < len(os.fsencode(value)) <= _HOST_NAME_MAX:
        raise ValueError(f"{attribute.name} is {shown(value)}: 1 to {_HOST_NAME_MAX} bytes are needed")


def _parse_network(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value in ("none", "host", "private")):
        return value
    if value is False:
        return "none"
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path.startswith("/"):
        raise ValueError(
            f"network is {shown(value)}: 'none' or False (an empty network), 'host', 'private', or the absolute path of a network "
            "namespace is needed"
        )
    return path


def _check_groups(_: object, attribute: attrs.Attribute[Any], value: Sequence[int] | None) -> None:
    for group in value or ():
        if type(group) is not int or not 0 <= group <= _MAX_ID:
            raise ValueError(f"{attribute.name} contains {shown(group)}: ids are from 0 to {_MAX_ID}")


def _parse_memory(value: int | str | None) -> int | None:
    return None if value is None else parse_limit("memory", parse_size, value)


def _parse_cpus(value: float | None) -> float | None:
    return None if value is None else parse_limit("cpus", parse_cpus, value)


def _parse_pids(value: int | None) -> int | None:
    return None if value is None else parse_limit("pids", parse_count, value)


def _parse_devices(values: Iterable[StrPath] | None) -> tuple[Requested, ...] | None:
    return None if values is None else _cdi().parse_devices(values)


def _parse_gpus(value: str | int | None) -> Gpus | None:
    return None if value is None else _cdi().parse_gpus(value)


def _cdi() -> ModuleType:
    from . import cdi  # imported here for its cost, which few calls need

    return cdi


def _path(value: StrPath | None) -> str | None:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


is_bool: Final = validated_by(check_bool)
is_str: Final = validated_by(check_str)


def parse_mount(mount: MountLike) -> Mount:
    """Return a mount; for a string, a tuple or a mapping without a type a recursive bind mount, in which ``ro`` includes submounts.

    The source of a bind mount becomes absolute: in a call, a relative path counts from the working directory of the caller.

    Raises:
        TypeError, ValueError: it is not a mount.
        SpecError: it is a mapping that is not a mount of config.json.
    """
    if isinstance(mount, Mount):
        return mount.evolve(source=absolute_path(mount.source)) if mount.is_bind and mount.source else mount
    if isinstance(mount, Mapping):
        known = [member.key for member in members_of(Mount).values()]
        if foreign := [key for key in mount if key not in known]:
            raise ValueError(f"mounts contains {shown(mount)}: a mount has no member {foreign[0]!r}; it has {', '.join(known)}")
        loaded = Mount.load(mount)
        options = loaded.options or ()
        if not loaded.source or mount.keys() - {"source", "destination", "options"} or not {"bind", "rbind"}.isdisjoint(options):
            return parse_mount(loaded)
        mount = (loaded.source, loaded.destination, ",".join(options))
    if isinstance(mount, tuple):
        parts = [os.fspath(part) if isinstance(part, os.PathLike) else part for part in mount]
        if not 2 <= len(parts) <= 3 or not all(isinstance(part, str) for part in parts):
            raise TypeError(f"mounts contains {shown(mount)}: {_MOUNTS} is needed")
        source, rest = parts[0], ":".join(parts[1:])
    elif isinstance(mount, str):
        source, _, rest = mount.partition(":")
    else:
        raise TypeError(f"mounts contains {shown(mount)}: {_MOUNTS} is needed")
    destination, _, text = rest.partition(":")
    if not source or not destination.startswith("/"):
        raise ValueError(f"mounts contains {shown(mount)}: {_MOUNTS} is needed")
    given = [option for option in text.split(",") if option]

    if unknown := set(given) - set(KNOWN_OPTIONS):
        raise ValueError(f"mounts contains {shown(mount)}: {min(unknown)!r} is not an option of a bind mount")
    options = ("rbind", *("rro" if option == "ro" else option for option in given))
    return Mount(destination=destination, type="bind", source=absolute_path(source), options=options)


_MOUNTS: Final = "'source:/destination', 'source:/destination:ro', a tuple of these parts, or a Mount"


def _without_sysfs(mount: Mount) -> Mount:
    """Return the host's /sys for a sysfs: in a user namespace the kernel mounts one only with a network namespace of its own."""
    if mount.type != "sysfs":
        return mount
    options = ("rro" if option == "ro" else option for option in mount.options or ())
    return Mount(destination=mount.destination, type="bind", source="/sys", options=("rbind", *options))


def parse_env(env: Env) -> dict[str, str | None]:
    """Return variables by their names. Raises TypeError, ValueError."""
    if isinstance(env, str | bytes):
        raise TypeError(f"env is a mapping, or a sequence of 'NAME=value', not {type(env).__name__}")
    changes: dict[str, str | None] = {}
    if isinstance(env, Mapping):
        changes.update(env)
    else:
        for entry in env:
            name, equals, value = entry.partition("=") if isinstance(entry, str) else ("", "", "")
            if not equals:
                raise ValueError(f"env: {shown(entry)} is not NAME=value")
            changes[name] = value
    for name, new in changes.items():
        if not isinstance(name, str) or not isinstance(new, str | None):
            raise TypeError(
                f"env: {shown(name)}: {shown(new)} is not a variable: a name and a value, or None to remove it, are needed"
            )
        encodable(f"env: {name}", f"{name}={new}")
    return changes


def _with_default_env(process: ProcessSpec, env: Mapping[str, str]) -> ProcessSpec:
    """Return a process with those variables that it does not have."""
    names = {entry.partition("=")[0] for entry in process.env or ()}
    return process.with_env({name: value for name, value in env.items() if name not in names})


def _with_user(process: ProcessSpec, user: UserLike, root: ContainerRoot) -> ProcessSpec:
    """Return a process with another user. Names and groups are looked up in ``root``. Raises ValueError, BundleError."""

    if isinstance(user, User):
        return process.evolve(user=user)
    if isinstance(user, str | int) and not isinstance(user, bool):
        if not str(user):
            raise ValueError("user is empty: give a name, 'name:group', 'uid:gid' or numbers")
        resolved = resolve(str(user), root)
    else:
        ids: Sequence[object] = () if isinstance(user, int | str) or not isinstance(user, Sequence) else user
        uid, gid = ids if len(ids) == 2 else (None, None)
        if type(uid) is not int or type(gid) is not int:
            raise TypeError(f"user is {shown(user)}: give a name, 'name:group', 'uid:gid', a uid or (uid, gid)")
        if not all(0 <= number <= _MAX_ID for number in (uid, gid)):
            raise ValueError(f"user is {shown(user)}: ids are from 0 to {_MAX_ID}")
        resolved = User(uid=uid, gid=gid).in_primary_group()
    if process.user is not None and process.user.umask is not None:
        resolved = resolved.evolve(umask=process.user.umask)
    return process.evolve(user=resolved)


def _as_caller(spec: RuntimeSpec) -> RuntimeSpec:
    """Return a configuration whose process has the ids, groups and home directory of the caller.

    Its working directory is that of the caller, if the container has this directory. The ids are the same on the host, also in a
    new user namespace.
    """
    caller, host = Caller.current(), Host.probe()
    user = User(uid=caller.uid, gid=caller.gid, additional_gids=caller.groups if host.privileged else ())
    process = (spec.process or ProcessSpec(cwd="/")).evolve(user=user.in_primary_group())
    cwd = working_directory()
    if cwd is not None and is_shown(cwd, spec.mounts or ()):
        process = process.evolve(cwd=cwd)
    spec = spec.evolve(process=process.with_env(HOME=caller.home))
    if host.privileged:
        return spec
    linux = spec.linux or Linux()
    uids, gids = _with_own_id(linux.uid_mappings, caller.uid), _with_own_id(linux.gid_mappings, caller.gid)
    spec = spec.at.evolve(linux=linux.evolve(uid_mappings=uids, gid_mappings=gids))
    return spec.with_annotations({KEEP_GROUPS: "1"})  # the user may not map them, and must not lose them


def _with_own_id(mappings: Sequence[IDMapping] | None, own: int) -> tuple[IDMapping, ...] | None:
    """Return mappings by which an id of the caller is the same in the container; None for the default ones."""
    if mappings and maps_own_id_alone(mappings, own):
        return (IDMapping(container_id=own, host_id=own, size=1),)
    return None


def _has_own(spec: RuntimeSpec, kind: NamespaceType) -> bool:
    """Return whether a container has a new namespace of a type."""
    return any(space.type == kind and not space.path for space in (spec.linux.namespaces if spec.linux else None) or ())


class Arguments:
    """Base class of the arguments of a call, which are equal if all their members are.

    To generate that for each class would double the time of its definition, which each command spends.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Overrides(Arguments):
    """Changes that a call makes to a configuration. None changes nothing.

    Raises:
        TypeError, ValueError: a value is of the wrong type or out of range. The message begins with the argument.
    """

    args: tuple[str, ...] = attrs.field(default=(), converter=parse_args)
    env: Env | None = attrs.field(
        default=None, validator=instance_of(Mapping, Sequence, what="a mapping or a sequence of 'NAME=value'")
    )
    cwd: str | None = attrs.field(
        default=None,
        converter=_path,
        validator=[instance_of(str, what="an absolute path in the container"), _check_cwd, is_str],
    )
    user: UserLike | None = None
    mounts: tuple[Mount, ...] | None = attrs.field(default=None, converter=parse_mounts)
    memory: int | None = attrs.field(default=None, converter=_parse_memory)
    cpus: float | None = attrs.field(default=None, converter=_parse_cpus)
    pids: int | None = attrs.field(default=None, converter=_parse_pids)
    no_swap: bool = False
    """Whether ``memory`` limits memory and swap together. Otherwise swap is not limited."""
    network: str | None = attrs.field(default=None, converter=_parse_network)
    ports: tuple[Port, ...] = attrs.field(default=(), converter=parse_ports)
    devices: tuple[Requested, ...] | None = attrs.field(default=None, converter=_parse_devices)
    gpus: Gpus | None = attrs.field(default=None, converter=_parse_gpus)
    read_only: bool | None = attrs.field(default=None, validator=is_bool)
    hostname: str | None = attrs.field(default=None, validator=[is_str, _check_hostname])
    default_env: Mapping[str, str] | None = None
    """Variables for a process that does not have them."""
    default_hostname: str | None = None
    """The hostname without `hostname`, for a container with a UTS namespace of its own."""
    terminal: bool | None = attrs.field(default=None, validator=is_bool)
    groups: Sequence[int] | None = attrs.field(
        default=None, validator=[instance_of(Sequence, what="a sequence of ids"), _check_groups]
    )
    no_new_privileges: bool | None = attrs.field(default=None, validator=is_bool)
    apparmor_profile: str | None = attrs.field(default=None, validator=is_str)
    selinux_label: str | None = attrs.field(default=None, validator=is_str)
    rlimits: tuple[Rlimit, ...] = ()
    """Resource limits of the process, each instead of the one of its type."""
    default_rlimits: tuple[Rlimit, ...] = ()
    """Resource limits for a process that has none of their types."""
    default_tmpfs_size: int | None = None
    """The size of each tmpfs that has none, or 0 for that of the kernel. Its number of files is then limited too."""

    def __attrs_post_init__(self) -> None:
        if self.ports and self.network != "private":
            raise ValueError(f"ports needs network='private', and network is {shown(self.network)}")

    def key(self) -> tuple[object, ...]:
        """Return a key that is equal for equal overrides. It is hashable if the values are."""
        env = self.env
        variables = tuple(env.items() if isinstance(env, Mapping) else env or ())
        return _members_but_env(self), variables, tuple((self.default_env or {}).items())

    def apply(self, spec: RuntimeSpec, root: Callable[[RuntimeSpec], ContainerRoot]) -> RuntimeSpec:
        """Return the configuration with the overrides applied.

        Args:
            spec: the configuration.
            root: returns the files of the container with a configuration: the overrides can mount others over them.

        Raises:
            ValueError, TypeError, BundleError: an override cannot be applied.
            UnsupportedError: this host does not have a device.
        """
        if self == _NOTHING:
            return spec
        changes: dict[str, Any] = {}
        if self.hostname is not None:
            changes["hostname"] = self.hostname
        elif self.default_hostname is not None and _has_own(spec, NamespaceType.UTS):
            changes["hostname"] = self.default_hostname
        if self.read_only is not None and spec.root is not None:
            changes["root"] = spec.root.evolve(readonly=self.read_only)
        changed = spec.evolve(**changes) if changes else spec
        for mount in self.mounts or ():
            changed = changed.with_mount(mount)
        if self.user == CALLER:
            changed = _as_caller(changed)
        if self.default_tmpfs_size is not None:
            bounded = [_bounded(mount, self.default_tmpfs_size) for mount in changed.mounts or ()]
            changed = changed.evolve(mounts=tuple(bounded))
        changed = changed.evolve(process=self._process(changed, root))
        return self._devices(self._limits(self._network(changed)))

    def _devices(self, spec: RuntimeSpec) -> RuntimeSpec:
        if not (self.devices or self.gpus):
            return spec
        changed: RuntimeSpec = _cdi().inject(spec, self.devices or (), self.gpus)
        return changed

    def _process(self, spec: RuntimeSpec, root: Callable[[RuntimeSpec], ContainerRoot]) -> ProcessSpec:
        process = spec.process or ProcessSpec(cwd="/")
        changes: dict[str, Any] = {"args": self.args or None, **{name: getattr(self, name) for name in _MEMBERS}}
        given = {name: value for name, value in changes.items() if value is not None}
        if given:
            process = process.evolve(**given)
        if self.rlimits:
            types = {limit.type for limit in self.rlimits}
            kept = tuple(limit for limit in process.rlimits or () if limit.type not in types)
            process = process.evolve(rlimits=(*kept, *self.rlimits))
        if self.default_rlimits:
            types = {limit.type for limit in process.rlimits or ()}
            added = (limit for limit in self.default_rlimits if limit.type not in types)
            process = process.evolve(rlimits=(*(process.rlimits or ()), *added))
        if self.default_env:
            process = _with_default_env(process, self.default_env)
        if self.env:
            process = process.with_env(parse_env(self.env))
        if self.user not in (None, CALLER):
            process = _with_user(process, self.user, root(spec))
        if self.groups is not None:
            user = (process.user or User(uid=0, gid=0)).evolve(additional_gids=tuple(self.groups))
            process = process.evolve(user=user.in_primary_group())
        return process

    def _network(self, spec: RuntimeSpec) -> RuntimeSpec:
        if self.network is None:
            return spec
        kind = NamespaceType.NETWORK
        if self.network != "host":
            return spec.with_namespace(kind, self.network if self.network.startswith("/") else None)
        own = {namespace.type for namespace in (spec.linux.namespaces if spec.linux else None) or ()}
        if kind not in own:
            return spec
        if NamespaceType.USER in own:
            spec = spec.at.evolve(mounts=tuple(map(_without_sysfs, spec.mounts or ())))
        return spec.without_namespace(kind)

    def _limits(self, spec: RuntimeSpec) -> RuntimeSpec:
        if (self.memory, self.cpus, self.pids) == (None, None, None):
            return spec
        linux = spec.linux or Linux()
        if self.pids is not None and self.pids > 0:
            spec = spec.with_annotations(dict.fromkeys(PIDS_IF_POSSIBLE))  # the limit of a call is not left out
        return spec.evolve(linux=linux.evolve(resources=self.limit(linux.resources or Resources())))

    def limit(self, resources: Resources) -> Resources:
        """Return resources with the limits of the overrides."""
        changes: dict[str, Any] = {}
        if self.memory is not None:
            memory = (resources.memory or Memory()).evolve(limit=self.memory)
            changes["memory"] = memory.evolve(swap=self.memory) if self.no_swap else memory
        if self.cpus is not None:
            changes["cpu"] = (resources.cpu or CPU()).evolve(quota=round(self.cpus * _PERIOD), period=_PERIOD)
        if self.pids is not None:
            changes["pids"] = (resources.pids or Pids()).evolve(limit=self.pids)
        return resources.evolve(**changes)


def with_default_limits(spec: RuntimeSpec) -> RuntimeSpec:
    """Return the configuration of an image with the limit that `ociruntime.run` sets where a cgroup can enforce it.

    A process that starts others without end would otherwise take every pid of the host. A machine with many CPUs runs programs with
    that many threads.
    """
    linux = spec.linux or Linux()
    limit = max(_LEAST_PIDS, _PIDS_FOR_EACH_CPU * (os.cpu_count() or 1))
    resources = (linux.resources or Resources()).evolve(pids=Pids(limit=limit))
    return spec.with_annotations(PIDS_IF_POSSIBLE).evolve(linux=linux.evolve(resources=resources))


def _bounded(mount: Mount, size: int) -> Mount:
    """Return a mount, and a tmpfs with limits of its size and of its files where it has none."""
    parts = (option.partition("=") for option in mount.options or ())
    given = {name: value for name, _, value in parts}
    if mount.type != "tmpfs" or not given.keys().isdisjoint(("bind", "rbind", "remount")):
        return mount
    if size and given.keys().isdisjoint(("size", "nr_blocks")):
        given["size"] = str(size)
        mount = mount.evolve(options=(*(mount.options or ()), f"size={size}"))
    try:
        files = Tmpfs(parse_size(given.get("size", ""))).files
    except ValueError:
        return mount  # a part of the memory, in percent
    return mount if "nr_inodes" in given else mount.evolve(options=(*(mount.options or ()), f"nr_inodes={files}"))


class Enforcement(NamedTuple):
    """What enforces a limit of a container."""

    by: str
    """``cgroup``, ``rlimit`` or ``none``."""
    reason: str = ""
    """Why it is not a cgroup, and what helps."""
    rlimit: Rlimit | None = None


def find_enforcement(name: str, value: float, host: Host, manager: Manager = "cgroupfs") -> Enforcement:
    """Return what enforces a limit: a cgroup, or the resource limit that comes closest.

    Args:
        name: ``memory``, ``cpus`` or ``pids``.
        value: its value; negative for no limit.
    """
    given: dict[str, Any] = {name: value}
    reason = why_unlimited(Overrides(**given).limit(Resources()), host, manager)
    if not reason:
        return Enforcement("cgroup")
    limited = {"memory": RlimitType.DATA}
    if host.euid:  # the kernel does not enforce it for root
        limited["pids"] = RlimitType.NPROC
    if name not in limited or value < 0:
        return Enforcement("none", reason)
    return Enforcement("rlimit", reason, Rlimit(type=limited[name], soft=int(value), hard=int(value)))


def may_use_systemd(host: Host) -> bool:
    """Return whether systemd can make cgroups for this user: its own one, for a user."""
    return host.systemd is not None and is_reachable(user=host.systemd.user)


_NOTHING: Final = Overrides()
_MEMBERS: Final = ("cwd", "terminal", "no_new_privileges", "apparmor_profile", "selinux_label")
"""Overrides that are members of the process object under the same names."""
_members_but_env: Final = attrgetter(*(field.name for field in attrs.fields(Overrides) if field.name not in ("env", "default_env")))
