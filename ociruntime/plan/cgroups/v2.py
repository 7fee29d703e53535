"""linux.resources as files of the v2 controllers, with the conversions that this takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...errors import Problem, SpecError
from .files import Write

if TYPE_CHECKING:
    from ...spec import Resources

SECTION: Final = "config-linux.md#control-groups"


def v2_writes(resources: Resources) -> tuple[Write, ...]:
    """linux.resources as files of the v2 controllers."""
    writes: list[Write] = []
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids

    def limit(value: int) -> str:
        return "max" if value < 0 else str(value)

    if memory:
        if memory.limit is not None:
            writes.append(Write("memory", "memory.max", limit(memory.limit)))
        if memory.swap is not None:
            writes.append(Write("memory", "memory.swap.max", v2_swap(memory.limit, memory.swap)))
        if memory.reservation is not None:
            writes.append(Write("memory", "memory.low", limit(memory.reservation)))
    if cpu:
        if cpu.shares:
            writes.append(Write("cpu", "cpu.weight", str(shares_to_weight(cpu.shares))))
        if cpu.quota is not None or cpu.period is not None:
            quota = "max" if cpu.quota is None or cpu.quota <= 0 else str(cpu.quota)
            writes.append(Write("cpu", "cpu.max", f"{quota} {cpu.period or 100000}"))
        if cpu.burst is not None:
            writes.append(Write("cpu", "cpu.max.burst", str(cpu.burst)))
        if cpu.idle is not None:
            writes.append(Write("cpu", "cpu.idle", str(cpu.idle)))
        if cpu.cpus:
            writes.append(Write("cpuset", "cpuset.cpus", cpu.cpus))
        if cpu.mems:
            writes.append(Write("cpuset", "cpuset.mems", cpu.mems))
    if pids and pids.limit is not None:
        writes.append(Write("pids", "pids.max", "max" if pids.limit <= 0 else str(pids.limit)))
    for huge in resources.hugepage_limits or ():
        writes.append(Write("hugetlb", f"hugetlb.{huge.page_size}.max", str(huge.limit)))
    for file, value in (resources.unified or {}).items():
        if "/" in file or file.startswith("cgroup.") or "." not in file:
            raise SpecError([Problem(f"$.linux.resources.unified[{file!r}]", "not a file of a controller", SECTION)])
        writes.append(Write(file.partition(".")[0], file, value))
    return tuple(writes)


def v2_swap(limit: int | None, swap: int) -> str:
    """memory.swap counts memory and swap together on v1, swap alone on v2."""
    if swap < 0:
        return "max"
    if limit is None or limit < 0:
        raise SpecError([Problem("$.linux.resources.memory.swap", "a swap limit needs a memory limit", "config-linux.md#memory")])
    if swap < limit:
        raise SpecError(
            [Problem("$.linux.resources.memory.swap", "is below the memory limit that it includes", "config-linux.md#memory")]
        )
    return str(swap - limit)


def shares_to_weight(shares: int) -> int:
    """cpu.shares 2..262144 to cpu.weight 1..10000, linearly as the peers do it."""
    clamped = min(max(shares, 2), 262144)
    return 1 + (clamped - 2) * 9999 // 262142
