"""Mounting on the host, for a bundle's rootfs: squashfs and overlay through the new mount API, by descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from ..engine.native import check, ffi, lib

NOSUID: Final = 2
NODEV: Final = 4
RDONLY: Final = 1
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CREATE: Final = 6
_F_EMPTY_PATH: Final = 4
_MNT_DETACH: Final = 2


def mount(fstype: str, source: str, target: str | os.PathLike[str], options: Iterable[tuple[str, str | None]], attrs: int) -> None:
    """Mount a filesystem. Raises OSError with the kernel's own words where it has some."""
    fs = check(lib.oci_fsopen(fstype.encode()), fstype)
    try:
        for key, value in (("source", source), *options):
            command = _SET_FLAG if value is None else _SET_STRING
            _checked(fs, lib.oci_fsconfig(fs, command, key.encode(), ffi.NULL if value is None else os.fsencode(value)), target)
        _checked(fs, lib.oci_fsconfig(fs, _CREATE, ffi.NULL, ffi.NULL), target)
        detached = _checked(fs, lib.oci_fsmount(fs, attrs), target)
        try:
            check(lib.oci_move_mount(detached, b"", -100, os.fsencode(target), _F_EMPTY_PATH), os.fspath(target))
        finally:
            os.close(detached)
    finally:
        os.close(fs)


def _checked(fs: int, result: int, target: str | os.PathLike[str]) -> int:
    if result >= 0:
        return result
    try:
        words = os.read(fs, 512).decode("utf-8", "replace").strip()
    except OSError:
        words = ""  # the kernel has nothing to add
    raise OSError(-result, f"{os.strerror(-result)}{f' [kernel: {words}]' if words else ''}", os.fspath(target))


def unmount(target: str | os.PathLike[str], *, detach: bool = False) -> None:
    """Unmount what was mounted last on a path. Raises OSError."""
    check(lib.oci_umount(os.fsencode(target), _MNT_DETACH if detach else 0), os.fspath(target))


def mounts_on(target: Path) -> list[str]:
    """The filesystem types mounted exactly here, the topmost last (proc(5), mountinfo)."""
    wanted = os.fspath(target)
    return [fstype for point, fstype in _mounts() if point == wanted]


def mounts_below(path: Path) -> list[str]:
    """The mount points at and below a directory, in the order in which they were mounted."""
    wanted = os.fspath(path)
    return [point for point, _ in _mounts() if point == wanted or point.startswith(wanted + "/")]


def _mounts() -> Iterator[tuple[str, str]]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields = line.split(" ")
            point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
            yield point, fields[fields.index("-") + 1]
