"""Loop devices (loop(4)): read-only, for a part of a file, gone by themselves with their last user."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..errors import UnsupportedError

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
