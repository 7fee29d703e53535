"""The mount table of a process (proc(5), /proc/pid/mountinfo)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple


class Mount(NamedTuple):
    """One line of a mount table."""

    device: str
    """The filesystem, as ``major:minor``; the same in every mount namespace."""
    root: str
    """The directory of the filesystem that is mounted."""
    point: str
    """Where it is mounted, as the kernel resolves it: without symbolic links, relative to the root of the process."""
    fstype: str
    options: str
    """Those of the filesystem itself."""


def read_mounts(pid: int | str = "self") -> Iterator[Mount]:
    """Yield what a process has mounted; of several mounts on one mount point the topmost comes last. Raises OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        lines = table.read().split(b"\n")
    for line in filter(None, lines):
        fields = line.split(b" ")
        fstype, _, options = fields[fields.index(b"-", 6) + 1 :][:3]
        yield Mount(fields[2].decode(), _unescaped(fields[3]), _unescaped(fields[4]), fstype.decode(), _unescaped(options))


def _unescaped(field: bytes) -> str:
    r"""Undo the kernel's ``\ooo`` for blanks, newlines and backslashes."""
    first, *escaped = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(piece[:3], 8)]) + piece[3:] for piece in escaped))
