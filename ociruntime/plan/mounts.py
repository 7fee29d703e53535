"""Mounts: options, and the steps that make each mount detached and attach it in the root (config.md, Mounts)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .model import NO_SLOT, Builder

if TYPE_CHECKING:
    from ..spec import Mount

_ATTRS: Final[dict[str, tuple[int, int]]] = {
    # option: (attributes to set, attributes to clear)
    "ro": (k.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0),
    "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "noatime": (k.MOUNT_ATTR_NOATIME, k.MOUNT_ATTR_ATIME),
    "atime": (0, k.MOUNT_ATTR_ATIME),
    "relatime": (0, k.MOUNT_ATTR_ATIME),
    "norelatime": (0, k.MOUNT_ATTR_ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, k.MOUNT_ATTR_ATIME),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
}
_PROPAGATION: Final = {"private": k.MS_PRIVATE, "slave": k.MS_SLAVE, "shared": k.MS_SHARED, "unbindable": k.MS_UNBINDABLE}
# What the superblock must hear as well, by the kernel's own names of these parameters.
_SUPERBLOCK: Final = {"ro": "ro", "sync": "sync", "dirsync": "dirsync", "lazytime": "lazytime", "mand": "mand"}
_IGNORED: Final = frozenset({"defaults", "rw", "async", "nolazytime", "nomand", "silent", "loud", "iversion", "noiversion"})
_NOT_YET: Final = frozenset({"idmap", "ridmap"})


class Options(NamedTuple):
    """The options of one mount, sorted by who must hear them."""

    set: int = 0
    clear: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0
    propagation: tuple[tuple[int, bool], ...] = ()
    bind: bool = False
    recursive_bind: bool = False
    copy_up: bool = False
    data: tuple[tuple[str, str | None], ...] = ()
    """What remains goes to the filesystem: (key, value), the value None for a flag."""


def parse_options(options: Iterable[str], where: str) -> Options:
    """Sort mount options (config.md, Linux mount options).

    Raises:
        UnsupportedError: for an option that this version does not carry out.
    """
    bits = {"set": 0, "clear": 0, "rset": 0, "rclear": 0}
    propagation: list[tuple[int, bool]] = []
    data: list[tuple[str, str | None]] = []
    bind = recursive_bind = copy_up = False
    for option in options:
        name, eq, value = option.partition("=")
        recursive = name[1:] if name.startswith("r") and name[1:] in _ATTRS and name not in _ATTRS else ""
        if name in _NOT_YET:
            raise UnsupportedError(f"{where}: the option {option!r} is not supported yet")
        if name in ("bind", "rbind") and not eq:
            bind, recursive_bind = True, recursive_bind or name == "rbind"
        elif name == "tmpcopyup" and not eq:
            copy_up = True
        elif not eq and name in _ATTRS:
            on, off = _ATTRS[name]
            bits["set"] = bits["set"] & ~off | on
            bits["clear"] |= off
            if name in _SUPERBLOCK:
                data.append((_SUPERBLOCK[name], None))
            elif name == "rw":
                data = [entry for entry in data if entry != ("ro", None)]
        elif not eq and recursive:
            on, off = _ATTRS[recursive]
            bits["rset"] = bits["rset"] & ~off | on
            bits["rclear"] |= off
        elif not eq and name in _PROPAGATION:
            propagation.append((_PROPAGATION[name], False))
        elif not eq and name[:1] == "r" and name[1:] in _PROPAGATION:
            propagation.append((_PROPAGATION[name[1:]], True))
        elif not eq and name in _SUPERBLOCK:
            data.append((_SUPERBLOCK[name], None))
        elif not eq and name in _IGNORED:
            continue
        else:
            data.append((name, value if eq else None))
    clear = bits["clear"] & ~bits["set"] | (k.MOUNT_ATTR_ATIME if bits["clear"] & k.MOUNT_ATTR_ATIME else 0)
    rclear = bits["rclear"] & ~bits["rset"] | (k.MOUNT_ATTR_ATIME if bits["rclear"] & k.MOUNT_ATTR_ATIME else 0)
    return Options(bits["set"], clear, bits["rset"], rclear, tuple(propagation), bind, recursive_bind, copy_up, tuple(data))


class Prepared(NamedTuple):
    """A mount that exists and is not attached yet."""

    slot: int
    destination: str
    options: Options
    fstype: str
    like_source: bool


def destination_in_root(path: str) -> str:
    """A destination as seen from the root: absolute and without dots; a relative one counts from ``/`` (config.md, Mounts)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def prepare(b: Builder, mount: Mount, index: int, bundle: str) -> Prepared:
    """The steps that make one mount, detached, while the host's tree is still in sight."""
    where = f"$.mounts[{index}]"
    options = parse_options(mount.options or (), f"{where}.options")
    destination = destination_in_root(mount.destination)
    fstype = mount.type or ("bind" if options.bind else "")
    source = mount.source or fstype or "none"
    if options.bind or fstype == "bind":
        if not mount.source:
            raise SpecError([Problem(f"{where}.source", "a bind mount needs a source", "config.md#mounts")])
        path = source if source.startswith("/") else posixpath.join(bundle, source)
        return _bind(b, path, destination, options)
    if not fstype:
        raise SpecError([Problem(f"{where}.type", "a mount that is no bind mount needs a type", "config.md#mounts")])
    if fstype in ("cgroup", "cgroup2"):
        raise UnsupportedError(f"{where}: cgroup mounts in a container are not supported yet")
    if fstype == "proc" and destination != "/proc" and destination.startswith("/proc/"):
        raise SpecError(
            [Problem(f"{where}.destination", "a procfs belongs on /proc, not below it", "config-linux.md#default-filesystems")]
        )
    if (destination == "/proc" or destination.startswith("/proc/")) and fstype != "proc":
        raise SpecError(
            [Problem(f"{where}.destination", "only procfs may be mounted on /proc", "config-linux.md#default-filesystems")]
        )
    return _filesystem(b, fstype, source, destination, options)


def _bind(b: Builder, source: str, destination: str, options: Options) -> Prepared:
    slot = b.slot()
    flags = k.OPEN_TREE_CLONE | (k.AT_RECURSIVE if options.recursive_bind else 0)
    b.init(
        "open_tree",
        NO_SLOT,
        source,
        flags,
        slot,
        text=f"{source}{' with all below it' if options.recursive_bind else ''}, for {destination}",
    )
    _attributes(b, slot, options, destination, bind=True)
    return Prepared(slot, destination, options, "bind", like_source=True)


def _filesystem(b: Builder, fstype: str, source: str, destination: str, options: Options) -> Prepared:
    fs, slot = b.slot(), b.slot()
    b.init("fsopen", fstype, fs, text=f"{fstype}, for {destination}")
    b.init("fsconfig", fs, k.FSCONFIG_SET_STRING, "source", source, text=f"source={source}")
    for key, value in options.data:
        flag = value is None
        b.init(
            "fsconfig",
            fs,
            k.FSCONFIG_SET_FLAG if flag else k.FSCONFIG_SET_STRING,
            key,
            value or "",
            text=key if flag else f"{key}={value}",
        )
    b.init("fsconfig", fs, k.FSCONFIG_CMD_CREATE, "", "", text=f"create the {fstype}")
    b.init(
        "fsmount",
        fs,
        options.set & ~k.MOUNT_ATTR_IDMAP,
        slot,
        text=f"{fstype}, not attached yet ({_names(options.set) or 'no flags'})",
    )
    _attributes(b, slot, options, destination, bind=False)
    return Prepared(slot, destination, options, fstype, like_source=False)


def _names(bits: int) -> str:
    return ",".join(name for name, (on, _) in _ATTRS.items() if on and bits & on == on)


def _attributes(b: Builder, slot: int, options: Options, destination: str, *, bind: bool) -> None:
    if bind and (options.set or options.clear):
        b.init(
            "mount_setattr", slot, 0, options.set, options.clear & ~options.set | (options.clear & k.MOUNT_ATTR_ATIME), 0, NO_SLOT,
            text=f"{_names(options.set) or 'flags'} on what goes to {destination}",
        )  # fmt: skip
    if options.recursive_set or options.recursive_clear:
        b.init(
            "mount_setattr", slot, k.AT_RECURSIVE, options.recursive_set, options.recursive_clear, 0, NO_SLOT,
            text=f"{_names(options.recursive_set) or 'flags'} on what goes to {destination} and all below it",
        )  # fmt: skip
    # No spec word about propagation means private: what happens on the host's side of a bind mount stays there.
    for bits, recursive in options.propagation:
        name = next(n for n, v in _PROPAGATION.items() if v == bits)
        b.init(
            "mount_setattr", slot, k.AT_RECURSIVE if recursive else 0, 0, 0, bits, NO_SLOT,
            text=f"propagation {'r' if recursive else ''}{name} on what goes to {destination}",
        )  # fmt: skip


def attach(b: Builder, mount: Prepared, root: int) -> int:
    """The steps that find or make the mount point in the root and attach; gives the slot of the mount."""
    target = b.slot()
    like = mount.slot if mount.like_source else NO_SLOT
    b.init("target", root, mount.destination, 0, 0o755, like, target, text=f"{mount.destination}, made where missing")
    if mount.options.copy_up:
        b.init("copyup", target, mount.slot, text=f"the image's {mount.destination} into the {mount.fstype}")
    b.init("move_mount", mount.slot, target, text=f"{mount.fstype} -> {mount.destination}")
    return mount.slot
