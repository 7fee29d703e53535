"""The launch itself: one native call, made by whoever is to be the parent. It imports next to nothing, for the supervisor."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._native._host import ffi, lib


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
