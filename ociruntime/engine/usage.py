"""`Usage`: the resources that a program or a whole container has used."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from . import cgroup


@attrs.frozen
class Usage:
    """Resources that were used: of `run`, by the whole container; of `exec`, by the program and the children that it waited for.

    Without cgroups that count them, those of `run` are of the init process and the children that it waited for. All are 0 if the
    kernel did not report them, as when SIGCHLD is ignored.
    """

    user: float = 0.0
    """Seconds of CPU time in user space."""
    system: float = 0.0
    """Seconds of CPU time in the kernel."""
    total: float = 0.0
    """Seconds of CPU time."""
    peak_memory: int = 0
    """The maximum of memory in use, in bytes; of a single program, the maximum of its resident set."""

    @classmethod
    def of_cgroups(cls, cgroups: Sequence[str], first: Usage) -> Usage:
        """Return the usage of a container, or that of its ``first`` process where no cgroup counts it."""
        used = cgroup.usage(cgroups)
        peak = first.peak_memory if used.peak is None else used.peak
        if used.cpu is None:
            return attrs.evolve(first, peak_memory=peak)
        return cls(used.user or 0.0, used.system or 0.0, used.cpu, peak)
