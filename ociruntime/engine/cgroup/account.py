"""What a container has used up, and whether it ran out of memory: read at its end, before its cgroups go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .files import below, flat, likely, read_if_there

_V1_CPU = ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")


class Usage(NamedTuple):
    """What everything in a container has used so far; None where no controller counts it."""

    cpu: float | None = None
    """Seconds of CPU time, user and system together."""
    peak: int | None = None
    """The most memory at one time, in bytes (v1, or v2 since Linux 5.19)."""
    user: float | None = None
    """Seconds of CPU time in user space."""
    system: float | None = None
    """Seconds of CPU time in the kernel."""


def oom_kills(paths: Sequence[str]) -> int:
    """How many processes the kernel killed in these cgroups, and below them, for want of memory."""
    for path in likely(paths, "memory"):
        text = read_if_there(path, "memory.events")  # v2: counts what is below it too
        if text is not None:
            return flat(text).get("oom_kill", 0)
        if (text := read_if_there(path, "memory.oom_control")) is not None:
            _, *others = below(path)
            return sum(flat(each).get("oom_kill", 0) for each in (text, *(read_if_there(o, "memory.oom_control") for o in others)))
    return 0


def usage(paths: Sequence[str]) -> Usage:
    """CPU time and peak memory of these cgroups."""
    times: tuple[float, ...] | None = None
    peak: int | None = None
    # The unified one is the last, and its one file says all about CPU time.
    for path in (*paths[-1:], *likely(paths[:-1], "memory")):
        if times is None and (spent := flat(read_if_there(path, "cpu.stat"))).get("usage_usec"):
            times = tuple(spent.get(name, 0) / 1e6 for name in ("usage_usec", "user_usec", "system_usec"))
        elif times is None and read_if_there(path, _V1_CPU[0]) is not None:
            times = tuple(int(read_if_there(path, file) or 0) / 1e9 for file in _V1_CPU)
        for file in ("memory.peak", "memory.max_usage_in_bytes"):
            if peak is None and (text := read_if_there(path, file)) is not None:
                peak = int(text)
        if times is not None and peak is not None:
            break
    cpu, user, system = times or (None, None, None)
    return Usage(cpu, peak, user, system)
