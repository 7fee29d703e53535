"""The native module of the calling process: its results as Python has them, and the call that starts an init process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ._host import ffi, lib

__all__ = ["check", "clone", "ffi", "lib"]


def check(result: int, path: str = "") -> int:
    """Return the result of a native call. Raises the OSError that a negative one stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *([path] if path else []))
    return result


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
