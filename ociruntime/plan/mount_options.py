"""Mount options: the tables of those that we know, and their parsing (config.md, Linux mount options).

What a table does not name goes to the filesystem. `KNOWN_OPTIONS` is what the `features` document lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from ..spec.syntax import split_option
from . import kernel as k

if TYPE_CHECKING:
    from ..host import Host


ATTRIBUTES: Final[dict[str, tuple[int, int]]] = {
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
"""Attributes of one mount."""
RECURSIVE: Final = {f"r{name}": bits for name, bits in ATTRIBUTES.items()}
"""The same for a mount and all below it."""
_KINDS: Final = {"private": k.MS_PRIVATE, "slave": k.MS_SLAVE, "shared": k.MS_SHARED, "unbindable": k.MS_UNBINDABLE}
PROPAGATION: Final[dict[str, tuple[int, bool]]] = {
    **{name: (bits, False) for name, bits in _KINDS.items()},
    **{f"r{name}": (bits, True) for name, bits in _KINDS.items()},
}
"""Option -> the kernel's propagation type, and whether it holds for all mounts below as well."""
SUPERBLOCK: Final[dict[str, tuple[str, bool]]] = {
    # option: what it is about, and whether it switches that on; the words are the kernel's own
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
"""What the whole filesystem must hear."""
LINKS: Final = ("copy-symlink", "src-nofollow", "dest-nofollow")
"""Of a bind mount, by crun's names: a source that is a symbolic link is made anew; mounted itself; mounted over a link."""
ACTIONS: Final = ("bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap", *LINKS)
"""What is to be done, instead of how."""
WITHOUT_EFFECT: Final = ("defaults", "silent", "loud", "iversion", "noiversion")
"""No message of the kernel is silenced, and every filesystem that has inode versions keeps them always (Linux 6.0)."""
_FSTAB: Final = frozenset({"auto", "noauto", "nofail", "_netdev", "comment"})
# Words of fstab(5) that mount(8) keeps for itself.

KNOWN_OPTIONS: Final = tuple(sorted({*ATTRIBUTES, *RECURSIVE, *PROPAGATION, *SUPERBLOCK, *ACTIONS, *WITHOUT_EFFECT}))


class Options(NamedTuple):
    """The options of one mount, sorted by who must hear them."""

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
    """Those of `LINKS`."""
    superblock: tuple[str, ...] = ()
    """The last word on each matter of the superblock, by the names in `SUPERBLOCK`."""
    data: tuple[tuple[str, str | None], ...] = ()
    """What remains goes to the filesystem: (key, value), the value None for a flag."""

    @property
    def follow(self) -> bool:
        """Whether a source that is a symbolic link stands for what it names."""
        return not self.links & {"copy-symlink", "src-nofollow"}

    def unheard(self) -> tuple[str, ...]:
        """The options that a bind mount has nobody to tell: it changes no filesystem."""
        words = (word for word in self.superblock if SUPERBLOCK[word][1] and word not in ATTRIBUTES)
        return (*words, *(key for key, _ in self.data))

    def of_one_mount(self) -> Options:
        """The same for a mount that has none below it: what holds for all holds for it."""
        bits = self.set & ~self.recursive_clear | self.recursive_set
        return self._replace(set=bits, recursive_set=0, recursive_clear=0)


def parse_options(options: Iterable[str]) -> Options:
    """Sort mount options (config.md, Linux mount options); of those that contradict each other the last one counts."""
    plain, recursive = _Bits(), _Bits()
    propagation: list[str] = []
    superblock: dict[str, str] = {}
    data: list[tuple[str, str | None]] = []
    actions: frozenset[str] = frozenset()
    for option in (part for whole in options for part in split_option(whole)):
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
    return Options(
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
        # The times are one field with several bits: to set one of its values, all of them are cleared first.
        self.clear = (self.clear | off) & ~(on & ~k.MOUNT_ATTR_ATIME)


def names(bits: int) -> str:
    """Attributes as options, for people."""
    return ",".join(name for name, (on, _) in ATTRIBUTES.items() if on and bits & on == on)


Data = Sequence[tuple[str, str | None]]
_LONGEST: Final = 255
_LONGEST_OF_ALL: Final = 4095
# What fsconfig(2) takes for one value, and mount(2) for all of them.
_LAYERS: Final = (6, 7)
# Since when an overlay takes its layers one by one.
_FLAGS: Final = {"ro": 1, "sync": 16, "mand": 64, "dirsync": 128, "lazytime": 1 << 25}


def _size(value: str) -> int:
    return len(value.encode("utf-8", "surrogateescape"))


def too_long(data: Data) -> str:
    """The first key whose value fsconfig does not take; empty where there is none."""
    return next((key for key, value in data if value is not None and _size(value) > _LONGEST), "")


def one_by_one(fstype: str, data: Data, host: Host) -> Data:
    """The same options with the layers of an overlay each on its own, where they are too long together and the kernel knows how."""
    if fstype != "overlay" or host.kernel < _LAYERS or too_long(data) != "lowerdir":
        return data
    found: list[tuple[str, str | None]] = []
    for key, value in data:
        if key != "lowerdir" or value is None:
            found.append((key, value))
            continue
        lower, *only_data = re.split(r"(?<!\\)::", value)
        for name, layers in (("lowerdir+", re.split(r"(?<!\\):", lower)), ("datadir+", only_data)):
            found += [(name, re.sub(r"\\(.)", r"\1", layer)) for layer in layers]
    return found


def flags_of(superblock: Sequence[str]) -> int:
    """What the whole filesystem must hear, as mount(2) takes it."""
    return sum(_FLAGS[word] for word in superblock if SUPERBLOCK[word][1])


def text_of(data: Data, where: str) -> str:
    """All options as mount(2) takes them. Raises UnsupportedError when they are too long for that, too."""
    text = ",".join(key if value is None else f"{key}={_quoted(value)}" for key, value in data)
    if _size(text) > _LONGEST_OF_ALL:
        raise UnsupportedError(
            f"{where}.options: the kernel takes {_LONGEST_OF_ALL} bytes of options, and these have {_size(text)}"
        )
    return text


def _quoted(value: str) -> str:
    return f'"{value}"' if re.search(r"(?<!\\),", value) else value
