"""The native module, and what is kept of it in this process."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from functools import cache
from pathlib import Path
from typing import Final

from .._native._host import ffi, lib

MFD_EXEC: Final = 0x10
F_ADD_SEALS: Final = 1033
SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE."""


def sealed_memfd(name: str, content: bytes, *, executable: bool = False) -> int:
    """A memfd that nobody can change any more, open read-only."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | (MFD_EXEC if executable else 0))
    except OSError as error:
        if error.errno != errno.EINVAL or not executable:
            raise
        fd = os.memfd_create(name, flags)  # before Linux 6.3 every memfd is executable
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
        # A file that is open for writing cannot be executed.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


@cache
def _init() -> dict[int, int]:
    return {}


_lock = threading.Lock()


def init_memfd() -> int:
    """The init's program, once a process (a fork makes its own: the descriptor may be closed there)."""
    known = _init()
    with _lock:
        fd = known.get(os.getpid())
        if fd is None:
            program = Path(__file__).parent.parent / "_native" / "init"
            fd = known[os.getpid()] = sealed_memfd("oci-init", program.read_bytes(), executable=True)
    return fd


def check(result: int, path: str = "") -> int:
    """A native result, or the OSError that it stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *([path] if path else []))
    return result


__all__ = ["check", "ffi", "init_memfd", "lib", "sealed_memfd"]
