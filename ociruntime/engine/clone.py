"""Starting the init process: its program in a sealed memfd, and the one native call that clones it.

The supervisor imports this module, so it imports next to nothing itself.
"""

from __future__ import annotations

import errno
import fcntl
import os
from _thread import allocate_lock
from collections.abc import Sequence
from typing import Final

from .._native import ffi, lib


def clone(
    *, flags: int, cgroup: int, init: int, control: int, preserve: int, kept: Sequence[int], fds: Sequence[int]
) -> tuple[int, int]:
    """Start the init; gives its pid and pidfd. Raises OSError when clone3 is refused.

    Args:
        flags: CLONE_NEW* bits.
        cgroup: the directory of a v2 cgroup to start in, or -1.
        init: the sealed memfd that holds the init.
        control: the init's end of its control socket, which is one of ``fds`` too.
        preserve: how many descriptors from 3 on are the process's own.
        kept: those of them that it inherits.
        fds: stdin, stdout, stderr, control socket, program, inputs.
    """
    args = ffi.new("struct oci_launch *")
    places, inherited = ffi.new("int[]", list(fds)), ffi.new("int[]", list(kept))
    args.flags, args.cgroup, args.init, args.control = flags, cgroup, init, control
    args.n_inputs, args.fds = len(fds) - 5, places
    args.preserve, args.kept, args.n_kept = preserve, inherited, len(kept)
    failed = lib.oci_launch(args)
    if failed < 0:
        raise OSError(-failed, os.strerror(-failed))
    return args.pid, args.pidfd


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
_lock = allocate_lock()


def init_memfd() -> int:
    """The init's program, once a process."""
    with _lock:
        fd = _inits.get(os.getpid())
        if fd is None:
            with open(_INIT, "rb") as program:
                fd = _inits[os.getpid()] = sealed_memfd("oci-init", program.read(), executable=True)
    return fd
