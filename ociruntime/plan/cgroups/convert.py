"""Values of cgroup v1, in which config.json speaks, as those of v2."""

from __future__ import annotations

import math

from ...errors import Problem, SpecError

MAX_SHARES = 262144


def shares_to_weight(shares: int) -> int:
    """cpu.shares (2 to 262144, 1024 by default) to cpu.weight (1 to 10000, 100 by default).

    10 to the power of a quadratic function of log2(shares) meets all three, as in runc and crun now.
    The straight line of before made 39 of the default.
    """
    if shares <= 2:
        return 1
    if shares >= MAX_SHARES:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def blkio_to_io_weight(weight: int) -> int:
    """blkio.weight (10 to 1000) to io.weight (1 to 10000), linearly."""
    return 1 + (weight - 10) * 9999 // 990


def limit(value: int) -> str:
    """A limit, of which -1 is none."""
    return "max" if value < 0 else str(value)


def swap_limit(memory: int | None, swap: int | None) -> str | None:
    """memory.swap counts memory and swap together on v1, and memory.swap.max swap alone; None when nothing is asked for.

    Raises:
        SpecError: a limit of both without one of memory, or below it.
    """
    where, section = "$.linux.resources.memory.swap", "config-linux.md#memory"
    if not swap:
        # No limit of memory is no limit of swap either, as on v1, where the one cannot be above the other.
        return "max" if memory == -1 else None
    if swap < 0:
        return "max"
    if not memory:
        raise SpecError([Problem(where, "a limit of memory and swap together needs a memory limit", section)])
    if memory < 0:
        return str(swap)
    if swap < memory:
        raise SpecError([Problem(where, f"{swap} is below the memory limit {memory}, which it includes", section)])
    return str(swap - memory)


def cpu_max(quota: int | None, period: int | None) -> str | None:
    """cpu.max holds quota and period; None when neither is given."""
    if not quota and not period:
        return None
    return f"{quota if quota and quota > 0 else 'max'} {period or 100000}"
