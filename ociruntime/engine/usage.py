"""What a program or a whole container has used, as callers see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from . import cgroup


class Usage(NamedTuple):
    """Resources used: by the whole container for `run`, by the program and the children that it waited for with exec.

    Where the cgroups count nothing, `run` tells of the first process and the children that it waited for. Where the kernel told
    nobody, as with SIGCHLD ignored, there are zeros.
    """

    user: float = 0.0
    """Seconds of CPU time in user space."""
    system: float = 0.0
    """Seconds of CPU time in the kernel."""
    total: float = 0.0
    """Seconds of CPU time."""
    peak_memory: int = 0
    """The most memory in use at one time, in bytes; of a single program its resident set."""

    @classmethod
    def of_cgroups(cls, cgroups: Sequence[str], first: Usage) -> Usage:
        """The usage of a container; that of its ``first`` process stands in where no cgroup keeps account."""
        used = cgroup.usage(cgroups)
        peak = first.peak_memory if used.peak is None else used.peak
        if used.cpu is None:
            return first._replace(peak_memory=peak)
        return cls(used.user or 0.0, used.system or 0.0, used.cpu, peak)
