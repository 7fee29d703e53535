"""Mounting on the host, for a bundle's rootfs: squashfs in a file through a loop device, and overlays, by descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from .._native import check, ffi, lib
from ..errors import UnsupportedError
from ..procfs import MountEntry, read_mounts

NOSUID: Final = 2
NODEV: Final = 4
RDONLY: Final = 1
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_CREATE: Final = 6
_F_EMPTY_PATH: Final = 4
_OPEN_TREE_CLONE: Final = 1
_AT_FDCWD: Final = -100
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


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
            attach(detached, target)
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


def attach(mount: int, target: str | os.PathLike[str]) -> None:
    """Mount what a descriptor of a detached mount stands for. Raises OSError."""
    check(lib.oci_move_mount(mount, b"", _AT_FDCWD, os.fsencode(target), _F_EMPTY_PATH), os.fspath(target))


@contextmanager
def clone(target: str) -> Iterator[int]:
    """A detached copy of the topmost mount on a path, as a descriptor. Raises OSError."""
    copy = check(lib.oci_open_tree(_AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE | os.O_CLOEXEC), target)
    try:
        yield copy
    finally:
        os.close(copy)


def unmount(target: str | os.PathLike[str], *, detach: bool = False) -> None:
    """Unmount what was mounted last on a path, which is not followed when it is a symbolic link.

    Args:
        detach: unmount also what is in use: who uses it keeps it until they let go.

    Raises:
        OSError: the kernel refuses.
    """
    check(lib.oci_umount(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)), os.fspath(target))


def mounts_on(target: str) -> list[MountEntry]:
    """Return what is mounted exactly on a path that the kernel has resolved, the topmost last."""
    return [mount for mount in read_mounts() if mount.point == target]


def mounts_below(path: str) -> list[MountEntry]:
    """Return what is mounted below a directory that the kernel has resolved, in the order in which it was mounted."""
    return [mount for mount in read_mounts() if mount.point.startswith(path.rstrip("/") + "/")]


_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CLR_FD: Final = 0x4C01
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_BLKRASET: Final = 0x1262
_BLOCK_SIZE: Final = 512
_READ_AHEAD: Final = 256
"""Blocks to read ahead, the kernel's own default of 128 KiB. Some hosts set megabytes: a container with a smaller memory limit
would evict each page before it is used, and read for ever."""


@contextmanager
def attached(image: int, offset: int, size: int) -> Iterator[str]:
    """The path of a loop device over ``size`` bytes at ``offset`` of an open file.

    The device goes away when nothing uses it any more: mount it inside the ``with`` block, and the mount keeps it.

    Raises:
        UnsupportedError: no loop device can be had.
    """
    path, fd = _configure(image, offset, size)
    try:
        yield path
    finally:
        os.close(fd)  # autoclear: from here on only a mount holds it


def _configure(image: int, offset: int, size: int) -> tuple[str, int]:
    # struct loop_config: fd, block_size, struct loop_info64, reserved
    info = struct.pack("=QQQQQIIII64s64s32s16x", 0, 0, 0, offset, size, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, b"ociruntime", b"", b"")
    config = struct.pack("=II", image, _BLOCK_SIZE) + info + bytes(64)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnsupportedError("this host has no loop devices (/dev/loop-control is missing)") from None
    try:
        for _ in range(64):  # somebody else may take the free one before we do
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                fcntl.ioctl(fd, _BLKRASET, _READ_AHEAD)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, fd
    finally:
        os.close(control)
    raise UnsupportedError("no loop device stayed free for long enough to be taken")
