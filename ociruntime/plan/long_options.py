"""Options of a filesystem that are too long for fsconfig(2), as the layers of an overlay can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from .mount_options import SUPERBLOCK

if TYPE_CHECKING:
    from ..host import Host

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
