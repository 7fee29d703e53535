"""Mount tables and states of processes, read from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

_PF_EXITING: Final = 4


class MountInfo(NamedTuple):
    """One line of a mount table."""

    device: str
    """Device number of the filesystem, as ``major:minor``; the same in every mount namespace."""
    root: str
    """The directory of the filesystem that is mounted."""
    point: str
    """The mount point as the kernel resolves it: without symbolic links, relative to the root of the process."""
    fstype: str
    options: str
    """Options of the filesystem itself."""


def read_mounts(pid: int | str = "self") -> Iterator[MountInfo]:
    """Yield the mounts that a process sees. Of several on one mount point, the topmost comes last. Raises OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        lines = table.read().split(b"\n")
    for line in filter(None, lines):
        fields = line.split(b" ")
        fstype, _, options = fields[fields.index(b"-", 6) + 1 :][:3]
        yield MountInfo(fields[2].decode(), _unescape(fields[3]), _unescape(fields[4]), fstype.decode(), _unescape(options))


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\ooo`` for blanks, newlines and backslashes."""
    first, *escaped = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(piece[:3], 8)]) + piece[3:] for piece in escaped))


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if it does not exist or has exited."""
    return 0 if (fields := read_stat(pid)) is None or is_over(fields) else int(fields[19])


def read_stat(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the third on, the state (proc(5)); None if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # an object, which an interrupt before the block closes too
            return os.read(file.fileno(), 4096).rpartition(b")")[2].split() or None
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_over(fields: list[bytes]) -> bool:
    """Return whether a process has exited: it is a zombie, or the init of a pid namespace that waits for the others to end."""
    if int(fields[17]) > 1:
        return False  # its first thread may have ended, but others have not
    return fields[0] in (b"Z", b"X") or (fields[0] == b"S" and bool(int(fields[6]) & _PF_EXITING))


def outer_uid() -> int:
    """Return the effective uid in the initial user namespace; it differs for root in a user's own user namespace."""
    uid = os.geteuid()
    with open("/proc/self/uid_map", encoding="ascii") as table:
        for inside, outside, count in (map(int, line.split()) for line in table):
            if inside <= uid < inside + count:
                return outside + uid - inside
    return uid
