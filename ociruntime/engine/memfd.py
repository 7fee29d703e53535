"""Sealed memfds: files in memory that nobody can change any more, and the init in one of them."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from typing import Final

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


_INIT: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native/init")
_inits: dict[int, int] = {}
"""The init's program by the process that made it: in a fork the descriptor may be closed."""
_lock = threading.Lock()


def init_memfd() -> int:
    """The init's program, once a process."""
    with _lock:
        fd = _inits.get(os.getpid())
        if fd is None:
            with open(_INIT, "rb") as program:
                fd = _inits[os.getpid()] = sealed_memfd("oci-init", program.read(), executable=True)
    return fd
