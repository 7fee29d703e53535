"""The default config, and the config of an image by its OCI image config."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..arguments import check_bool, check_host, check_int, optional, shown, wrong_type
from ..errors import SpecError
from .base import Problem, destination_in_root, json_path, json_text
from .codec import read_source
from .linux import DeviceCgroup, IDMapping, Linux, Mount, Namespace, NamespaceType, Resources, Root
from .process import Capabilities, ProcessSpec, Rlimit, RlimitType, User
from .seccomp import DEFAULT_CAPABILITIES, default_profile

if TYPE_CHECKING:
    from .base import Json
    from .config import RuntimeSpec
    from .rules.host import HostLike


S = TypeVar("S", bound="RuntimeSpec")

DEFAULT_NAMESPACES: Final = (
    NamespaceType.PID,
    NamespaceType.NETWORK,
    NamespaceType.IPC,
    NamespaceType.UTS,
    NamespaceType.MOUNT,
)
DEFAULT_ENV: Final = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm")
MASKED_PATHS: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def _mount(destination: str, kind: str, *options: str, source: str | None = None) -> Mount:
    return Mount(destination=destination, type=kind, source=source or kind, options=options or None)


def default_mounts() -> tuple[Mount, ...]:
    """Return the default filesystems (config-linux.md#default-filesystems), and mqueue."""
    return (
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k", source="shm"),
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    )


def default_devices() -> tuple[DeviceCgroup, ...]:
    """Return device rules that deny everything except mknod, the standard devices and pseudo-terminals."""
    allowed = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
    return (
        DeviceCgroup(allow=False, access="rwm"),
        DeviceCgroup(allow=True, type="c", access="m"),
        DeviceCgroup(allow=True, type="b", access="m"),
        *(DeviceCgroup(allow=True, type="c", major=major, minor=minor, access="rwm") for major, minor in allowed),
    )


_MAX_ID: Final = (1 << 32) - 2


def default_spec(
    cls: type[S],
    *,
    rootless: bool = False,
    seccomp: bool = True,
    uid: int | None = None,
    gid: int | None = None,
    host: HostLike | None = None,
) -> S:
    """See `RuntimeSpec.default`."""
    check_bool("rootless", rootless)
    check_bool("seccomp", seccomp)
    if host is not None:
        check_host(host)
    optional(check_int, "uid", uid, 0, _MAX_ID)
    optional(check_int, "gid", gid, 0, _MAX_ID)
    if not rootless and (uid is not None or gid is not None):
        raise TypeError("uid and gid require rootless=True")
    if rootless and host is not None:
        raise TypeError("rootless=True contradicts host, which decides that")
    profile = None
    if seccomp:
        profile = default_profile()
    caps = DEFAULT_CAPABILITIES
    spec = cls(
        oci_version="1.3.0",
        process=ProcessSpec(
            cwd="/",
            user=User(uid=0, gid=0),
            args=("/.singularity.d/actions/run",),
            env=DEFAULT_ENV,
            capabilities=Capabilities(bounding=caps, effective=caps, permitted=caps),
            rlimits=(Rlimit(type=RlimitType.NOFILE, hard=1024, soft=1024),),
            no_new_privileges=True,
        ),
        root=Root(path="rootfs"),
        hostname="ociruntime",
        mounts=default_mounts(),
        linux=Linux(
            namespaces=tuple(Namespace(type=kind) for kind in DEFAULT_NAMESPACES),
            resources=Resources(devices=default_devices()),
            seccomp=profile,
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
        ),
    )
    if host is not None and not host.privileged:
        return _in_user_namespace(spec)
    if host is not None and not host.initial:
        return _for_user_namespace(spec)
    if not rootless:
        return spec
    uids = (IDMapping(container_id=0, host_id=os.geteuid() if uid is None else uid, size=1),)
    gids = (IDMapping(container_id=0, host_id=os.getegid() if gid is None else gid, size=1),)
    spec = _in_user_namespace(spec)
    assert spec.linux is not None
    return spec.at.evolve(linux=spec.linux.evolve(uid_mappings=uids, gid_mappings=gids))


def _in_user_namespace(spec: S) -> S:
    return _for_user_namespace(spec.with_namespace(NamespaceType.USER))


def _for_user_namespace(spec: S) -> S:
    # A user can map only the own user and group id without helpers, so the mapping may lack gid=5 of pseudo-terminals. The devices
    # controller is not delegated to users.
    assert spec.linux is not None
    mounts = tuple(
        mount.evolve(options=tuple(o for o in mount.options or () if not o.startswith("gid="))) for mount in spec.mounts or ()
    )
    return spec.at.evolve(mounts=mounts, linux=spec.linux.evolve(resources=None))


# ---- the OCI image config (image-spec, Conversion to OCI Runtime Configuration) ----

_ANNOTATIONS: Final = {
    # member of the image config: annotation
    "os": "org.opencontainers.image.os",
    "os.version": "org.opencontainers.image.os.version",
    "architecture": "org.opencontainers.image.architecture",
    "variant": "org.opencontainers.image.variant",
    "author": "org.opencontainers.image.author",
    "created": "org.opencontainers.image.created",
}
_ID_DIGITS: Final = 10
_SECTION: Final = "config.md#annotations"


class _Members:
    """Reads members of a JSON object by type. Absent or null members are empty, members of another type are problems."""

    def __init__(self, document: dict[str, Json], path: str, found: list[Problem]) -> None:
        self._document, self._path, self._found = document, path, found

    def _wrong(self, key: str, expected: str) -> None:
        self._found.append(Problem(json_path(self._path, key), f"{expected} expected, not {json_text(self._document[key])}"))

    def text(self, key: str) -> str:
        value = self._document.get(key)
        if value is None or isinstance(value, str):
            return value or ""
        self._wrong(key, "a string")
        return ""

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._document.get(key)
        if value is None:
            return ()
        if isinstance(value, list):
            texts = tuple(item for item in value if isinstance(item, str))
            if len(texts) == len(value):
                return texts
        self._wrong(key, "an array of strings")
        return ()

    def mapping(self, key: str) -> dict[str, Json]:
        value = self._document.get(key)
        if value is None or isinstance(value, dict):
            return value or {}
        self._wrong(key, "an object")
        return {}

    def labels(self, key: str) -> dict[str, str]:
        value = self.mapping(key)
        texts = {name: text for name, text in value.items() if isinstance(text, str)}
        if len(texts) != len(value):
            self._wrong(key, "an object of strings")
        return texts


def is_whole(document: Mapping[str, Json]) -> bool:
    """Return whether a document is a whole image configuration, not only its ``config`` object.

    Some programs write the inner object alone. Its keys are capitalised, those of the outer one are not.
    """
    return "config" in document or not any(key[:1].isupper() for key in document)


def apply_image_config(
    source: str | os.PathLike[str] | bytes | Mapping[str, Json],
    base: S,
    *,
    keep_env: bool,
    user: User | Callable[[str], User] | None,
    volumes: Mapping[str, str] | Callable[[str], str] | None,
) -> S:
    """See `RuntimeSpec.from_image_config`."""
    if user is not None and not isinstance(user, User) and not callable(user):
        raise wrong_type("user", user, "a User or a function that returns one")
    if volumes is not None and not isinstance(volumes, Mapping) and not callable(volumes):
        raise wrong_type("volumes", volumes, "a mapping or a function that returns a path")
    document, name = read_source(source)
    if not isinstance(document, dict):
        raise SpecError([Problem("$", f"an object expected, not {json_text(document)}")], name)
    found: list[Problem] = []
    image = _Members(document, "$", found)
    config = _Members(image.mapping("config"), "$.config", found) if is_whole(document) else image
    process = base.process or ProcessSpec(cwd="/")

    changes: dict[str, Any] = {"env": _env(process.env or (), config.texts("Env"), keep=keep_env)}
    entrypoint = config.texts("Entrypoint")
    args = (*(() if entrypoint == ("",) else entrypoint), *config.texts("Cmd"))  # [""] removes the entrypoint of a base image
    if args:
        changes["args"] = args
    directory = config.text("WorkingDir")
    if directory and process.cwd in ("", "/"):
        changes["cwd"] = directory
    image_user = config.text("User")
    if isinstance(user, User):
        changes["user"] = user
    elif image_user:
        changes["user"] = user(image_user) if user is not None else _numeric(image_user, found)
    annotations = {**_annotations(image, config), **config.labels("Labels"), **(base.annotations or {})}
    paths = sorted(config.mapping("Volumes"), key=lambda path: destination_in_root(path).count("/"))  # outer ones first
    if found:
        raise SpecError(found, name)
    spec = base.at.evolve(process=process.evolve(**changes), annotations=annotations or base.annotations)
    if volumes is not None:
        place = volumes if callable(volumes) else volumes.__getitem__
        for path in paths:
            options = ("rbind", "rw", "nosuid", "nodev")
            spec = spec.with_mount(Mount(destination=path, type="bind", source=place(path), options=options))
    return spec


def _env(base: tuple[str, ...], image: tuple[str, ...], *, keep: bool) -> tuple[str, ...]:
    """Return the entries of both, each name once, in order of appearance. With ``keep`` the values of ``base`` take precedence."""
    first, second = (image, base) if keep else (base, image)
    values = {entry.partition("=")[0]: entry for entry in (*first, *second)}
    return tuple(values[name] for name in dict.fromkeys(entry.partition("=")[0] for entry in (*base, *image)))


def _numeric(text: str, found: list[Problem]) -> User | None:
    uid, colon, gid = text.partition(":")
    ids = (uid, gid) if colon else (uid,)
    if all(part.isascii() and part.isdigit() and len(part) <= _ID_DIGITS and int(part) <= _MAX_ID for part in ids):
        return User(uid=int(uid), gid=int(gid or 0)).in_primary_group()
    message = f"{shown(text)} is not numeric, and names are in the image's files: pass user="
    found.append(Problem("$.config.User", message, "config.md#user"))
    return None


def _annotations(image: _Members, config: _Members) -> dict[str, str]:
    found = {annotation: image.text(member) for member, annotation in _ANNOTATIONS.items()}
    found["org.opencontainers.image.os.features"] = ",".join(image.texts("os.features"))
    found["org.opencontainers.image.stopSignal"] = config.text("StopSignal")
    found["org.opencontainers.image.exposedPorts"] = ",".join(config.mapping("ExposedPorts"))
    return {key: value for key, value in found.items() if value}
