"""What a container has used up, and whether it ran out of memory: read at its end, before its cgroups go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .files import below, flat, read_if_there


class Usage(NamedTuple):
    """What everything in a container has used so far; None where no controller counts it."""

    cpu: float | None
    """Seconds of CPU time, user and system together."""
    peak: int | None
    """The most memory at one time, in bytes (v1, or v2 since Linux 5.19)."""


def oom_kills(paths: Sequence[str]) -> int:
    """How many processes the kernel killed in these cgroups, and below them, for want of memory."""
    for path in paths:
        text = read_if_there(path, "memory.events")  # v2: counts what is below it too
        if text is not None:
            return flat(text).get("oom_kill", 0)
        if read_if_there(path, "memory.oom_control") is not None:
            return sum(flat(read_if_there(each, "memory.oom_control")).get("oom_kill", 0) for each in below(path))
    return 0


def usage(paths: Sequence[str]) -> Usage:
    """CPU time and peak memory of these cgroups."""
    cpu: float | None = None
    peak: int | None = None
    for path in paths:
        if (text := read_if_there(path, "cpuacct.usage")) is not None:
            cpu = int(text) / 1e9
        elif cpu is None and (spent := flat(read_if_there(path, "cpu.stat")).get("usage_usec")) is not None:
            cpu = spent / 1e6
        for file in ("memory.max_usage_in_bytes", "memory.peak"):
            if peak is None and (text := read_if_there(path, file)) is not None:
                peak = int(text)
    return Usage(cpu, peak)
