"""Starting an init process: its program in a sealed memfd, and the native call that clones it.

The supervisor imports this module, so it imports little itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _thread import allocate_lock
from collections.abc import Sequence
from typing import Final

from .._native import check, ffi, lib
from ..files import write_all


def clone(
    *, flags: int, cgroup: int, init: int, control: int, preserve: int, kept: Sequence[int], fds: Sequence[int]
) -> tuple[int, int]:
    """Start an init process. Return its pid and its pidfd.

    Args:
        flags: CLONE_NEW* bits.
        cgroup: descriptor of the v2 cgroup to start in, or -1.
        init: the sealed memfd with its program.
        control: its end of the control socket, which is one of ``fds`` too.
        preserve: number of descriptors from 3 on that are reserved for the container's process.
        kept: those of them that the process inherits.
        fds: stdin, stdout, stderr, control socket, program, inputs.

    Raises:
        OSError: clone3(2) failed.
    """
    args = ffi.new("struct oci_launch *")
    places, inherited = ffi.new("int[]", list(fds)), ffi.new("int[]", list(kept))
    args.flags, args.cgroup, args.init, args.control = flags, cgroup, init, control
    args.n_inputs, args.fds = len(fds) - 5, places
    args.preserve, args.kept, args.n_kept = preserve, inherited, len(kept)
    check(lib.oci_launch(args))
    return args.pid, args.pidfd


MFD_EXEC: Final = 0x10
F_ADD_SEALS: Final = 1033
SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE."""


def sealed_memfd(name: str, content: bytes, *, executable: bool = False) -> int:
    """Return a descriptor, open for reading, of a file in memory that cannot be changed. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | (MFD_EXEC if executable else 0))
    except OSError as error:
        if error.errno != errno.EINVAL or not executable:
            raise
        fd = os.memfd_create(name, flags)  # before Linux 6.3 every memfd is executable
    try:
        write_all(fd, content)
        fcntl.fcntl(fd, F_ADD_SEALS, SEALS)
        # A file that is open for writing cannot be executed.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


_INIT: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native/init")
_inits: dict[int, int] = {}
"""Descriptors of the program of the init, by pid of the process that opened them: a forked child may have closed its copy."""
_lock = allocate_lock()


def init_memfd() -> int:
    """Return the sealed memfd with the program of the init. It is created once in each process. Raises OSError."""
    with _lock:
        fd = _inits.get(os.getpid())
        if fd is None:
            with open(_INIT, "rb") as program:
                fd = _inits[os.getpid()] = sealed_memfd("oci-init", program.read(), executable=True)
    return fd
