"""Mount options: the tables of the known ones, and how options are parsed (config.md, Linux mount options).

An option that no table names is passed to the filesystem. `KNOWN_OPTIONS` is what the `features` document lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from ..spec.base import destination_in_root, split_option
from . import ops

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Mount

Data = Sequence[tuple[str, str | None]]
"""Options for a filesystem: (key, value), the value None for a flag."""

ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
    # option: (attributes to set, attributes to clear)
    "ro": (ops.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, ops.MOUNT_ATTR_RDONLY),
    "nosuid": (ops.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, ops.MOUNT_ATTR_NOSUID),
    "nodev": (ops.MOUNT_ATTR_NODEV, 0),
    "dev": (0, ops.MOUNT_ATTR_NODEV),
    "noexec": (ops.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, ops.MOUNT_ATTR_NOEXEC),
    "noatime": (ops.MOUNT_ATTR_NOATIME, ops.MOUNT_ATTR_ATIME),
    "atime": (0, ops.MOUNT_ATTR_ATIME),
    "relatime": (0, ops.MOUNT_ATTR_ATIME),
    "norelatime": (0, ops.MOUNT_ATTR_ATIME),
    "strictatime": (ops.MOUNT_ATTR_STRICTATIME, ops.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, ops.MOUNT_ATTR_ATIME),
    "nodiratime": (ops.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, ops.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (ops.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, ops.MOUNT_ATTR_NOSYMFOLLOW),
}
"""Attributes of one mount."""
RECURSIVE: Final = {f"r{name}": bits for name, bits in ATTRIBUTES.items()}
"""The same for a mount and all below it."""
_KINDS: Final = {
    "private": ops.MS_PRIVATE,
    "slave": ops.MS_SLAVE,
    "shared": ops.MS_SHARED,
    "unbindable": ops.MS_UNBINDABLE,
}
PROPAGATION: Final[dict[str, tuple[int, bool]]] = {
    **{name: (bits, False) for name, bits in _KINDS.items()},
    **{f"r{name}": (bits, True) for name, bits in _KINDS.items()},
}
"""Option -> the kernel's propagation type, and whether it applies to all mounts below too."""
SUPERBLOCK: Final[dict[str, tuple[str, bool]]] = {
    # option: the property it changes, and whether it switches that on; the names are the kernel's
    "ro": ("ro", True),
    "rw": ("ro", False),
    "sync": ("sync", True),
    "async": ("sync", False),
    "dirsync": ("dirsync", True),
    "lazytime": ("lazytime", True),
    "nolazytime": ("lazytime", False),
    "mand": ("mand", True),
    "nomand": ("mand", False),
}
"""Options of a whole filesystem (its superblock)."""
LINKS: Final = ("copy-symlink", "src-nofollow", "dest-nofollow")
"""Options of a bind mount, with crun's names: copy a source that is a symbolic link; mount the link itself; mount over a link."""
ACTIONS: Final = ("bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap", *LINKS)
"""Options that select an operation."""
WITHOUT_EFFECT: Final = ("defaults", "silent", "loud", "iversion", "noiversion")
"""Options that change nothing: kernel messages are not silenced, and inode versions are always kept (Linux 6.0)."""
_FSTAB: Final = frozenset({"auto", "noauto", "nofail", "_netdev", "comment"})
# Options of fstab(5) that are for mount(8) alone.

KNOWN_OPTIONS: Final = tuple(sorted({*ATTRIBUTES, *RECURSIVE, *PROPAGATION, *SUPERBLOCK, *ACTIONS, *WITHOUT_EFFECT}))


class MountOptions(NamedTuple):
    """The options of one mount, sorted by the call that applies them."""

    set: int = 0
    clear: int = 0
    recursive_set: int = 0
    recursive_clear: int = 0
    propagation: tuple[str, ...] = ()
    bind: bool = False
    recursive_bind: bool = False
    remount: bool = False
    copy_up: bool = False
    idmap: str = ""
    """``idmap``, ``ridmap`` or neither."""
    links: frozenset[str] = frozenset()
    """The options from `LINKS`."""
    superblock: tuple[str, ...] = ()
    """The options from `SUPERBLOCK`, the last one for each property."""
    data: tuple[tuple[str, str | None], ...] = ()
    """The remaining options, which are passed to the filesystem."""

    @property
    def follow(self) -> bool:
        """Whether a source that is a symbolic link is followed."""
        return not self.links & {"copy-symlink", "src-nofollow"}

    def without_effect_on_binds(self) -> tuple[str, ...]:
        """Return the options that have no effect on a bind mount, because they belong to the filesystem."""
        options = (option for option in self.superblock if SUPERBLOCK[option][1] and option not in ATTRIBUTES)
        return (*options, *(key for key, _ in self.data))

    def of_one_mount(self) -> MountOptions:
        """Return the options for a mount that has no mounts below it: the recursive attributes apply to it alone."""
        on = self.set & ~self.recursive_clear | self.recursive_set
        off = self.clear & ~self.recursive_set | self.recursive_clear
        return self._replace(set=on, clear=off, recursive_set=0, recursive_clear=0)


def parse_options(options: Iterable[str]) -> MountOptions:
    """Sort mount options (config.md, Linux mount options). Of options that contradict each other the last one wins."""
    plain, recursive = _Bits(), _Bits()
    propagation: list[str] = []
    superblock: dict[str, str] = {}
    data: list[tuple[str, str | None]] = []
    actions: frozenset[str] = frozenset()
    for option in (part for item in options for part in split_option(item)):
        name, eq, value = option.partition("=")
        if eq:
            if name not in _FSTAB and not name.startswith("x-"):
                data.append((name, value.replace('"', "") if value.startswith('"') else value))
            continue
        if name in ATTRIBUTES:
            plain.add(*ATTRIBUTES[name])
        if name in SUPERBLOCK:
            superblock[SUPERBLOCK[name][0]] = name
        elif name in ATTRIBUTES:
            pass
        elif name in RECURSIVE:
            recursive.add(*RECURSIVE[name])
        elif name in PROPAGATION:
            propagation.append(name)
        elif name in ACTIONS:
            actions |= {name}
        elif name not in WITHOUT_EFFECT and name not in _FSTAB and not name.startswith("x-"):
            data.append((name, None))
    return MountOptions(
        plain.set,
        plain.clear,
        recursive.set,
        recursive.clear,
        tuple(propagation),
        bind=bool(actions & {"bind", "rbind"}),
        recursive_bind="rbind" in actions,
        remount="remount" in actions,
        copy_up="tmpcopyup" in actions,
        idmap="ridmap" if "ridmap" in actions else "idmap" if "idmap" in actions else "",
        links=actions.intersection(LINKS),
        superblock=tuple(superblock.values()),
        data=tuple(data),
    )


class _Bits:
    """Attributes to set and to clear, as mount_setattr(2) takes them."""

    def __init__(self) -> None:
        self.set = self.clear = 0

    def add(self, on: int, off: int) -> None:
        self.set = self.set & ~off | on
        # The access time attributes are one field of several bits, which is cleared before it is set.
        self.clear = (self.clear | off) & ~(on & ~ops.MOUNT_ATTR_ATIME)


_CLEARED: Final = ("rw", "suid", "dev", "exec", "relatime", "diratime", "symfollow")


def attribute_names(on: int, off: int = 0) -> str:
    """Return the attributes that a call sets and clears as a list of options."""
    cleared = off & ~(on | (ops.MOUNT_ATTR_ATIME if on & ops.MOUNT_ATTR_ATIME else 0))
    names = [name for name, (bits, _) in ATTRIBUTES.items() if bits and on & bits == bits]
    return ",".join((*names, *(name for name in _CLEARED if cleared & ATTRIBUTES[name][1])))


class MountEntry(NamedTuple):
    """An entry of ``mounts`` with its options parsed."""

    mount: Mount
    location: str
    """Its JSON path."""
    destination: str
    fstype: str
    options: MountOptions

    @property
    def is_change(self) -> bool:
        """Whether it changes an existing mount: ``remount``, or propagation types alone."""
        propagation = MountOptions(propagation=self.options.propagation)
        return self.options.remount or (not self.fstype and bool(propagation.propagation) and self.options == propagation)

    @property
    def is_bind(self) -> bool:
        """Whether it makes a bind mount."""
        return self.options.bind and not self.is_change


def parse_entry(mount: Mount, location: str) -> MountEntry:
    """Return an entry of ``mounts`` with its options parsed."""
    options = parse_options(mount.options or ())
    fstype = "" if mount.type in (None, "none") else str(mount.type)
    if fstype == "bind":
        options = options._replace(bind=True)
    return MountEntry(mount, location, destination_in_root(mount.destination), fstype, options)


# ---- options that are too long for fsconfig(2) ----

_FSCONFIG_MAX: Final = 255
"""Bytes of one value that fsconfig(2) accepts."""
_MOUNT_MAX: Final = 4095
"""Bytes of all options together that mount(2) accepts."""
_SINGLE_LAYERS: Final = (6, 7)
"""The first kernel in which an overlay accepts its layers one at a time."""
_MS_FLAGS: Final = {"ro": 1, "sync": 16, "mand": 64, "dirsync": 128, "lazytime": 1 << 25}


def _length(value: str) -> int:
    return len(value.encode("utf-8", "surrogateescape"))


def too_long(data: Data) -> str:
    """Return the first key whose value is too long for fsconfig(2), or an empty string."""
    return next((key for key, value in data if value is not None and _length(value) > _FSCONFIG_MAX), "")


def split_layers(fstype: str, data: Data, host: Host) -> Data:
    """Return the options with each layer of an overlay on its own, if ``lowerdir`` is too long and the kernel supports that."""
    if fstype != "overlay" or host.kernel < _SINGLE_LAYERS or too_long(data) != "lowerdir":
        return data
    options: list[tuple[str, str | None]] = []
    for key, value in data:
        if key != "lowerdir" or value is None:
            options.append((key, value))
            continue
        lower, *only_data = re.split(r"(?<!\\)::", value)
        for name, layers in (("lowerdir+", re.split(r"(?<!\\):", lower)), ("datadir+", only_data)):
            options += [(name, re.sub(r"\\(.)", r"\1", layer)) for layer in layers]
    return options


def superblock_flags(superblock: Sequence[str]) -> int:
    """Return the options of a superblock as flags of mount(2)."""
    return sum(_MS_FLAGS[option] for option in superblock if SUPERBLOCK[option][1])


def mount_data(data: Data, location: str) -> str:
    """Return all options as mount(2) accepts them. Raises UnsupportedError if they are too long for it."""
    text = ",".join(key if value is None else f"{key}={_quoted(value)}" for key, value in data)
    if _length(text) > _MOUNT_MAX:
        raise UnsupportedError(f"{location}.options: {_length(text)} bytes of options are more than the kernel's {_MOUNT_MAX}")
    return text


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"(?<!\\),", value) else value
