"""linux.resources as files of the v2 controllers, with the conversions that this takes."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ...errors import Problem, SpecError, UnsupportedError
from .writes import ROOT, SECTION, Write, Writes, given, rdma, throttles

if TYPE_CHECKING:
    from ...spec import CPU, BlockIO, Memory, Resources


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


def limit_value(value: int) -> str:
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


_MAX: Final = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
_CORE: Final = frozenset({"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"})
"""The files of no controller that set a limit; the others move, kill and delegate."""


def v2_writes(resources: Resources) -> tuple[Write, ...]:
    """Everything but device rules, in the order of writing; what v2 has no equal of is left to `v2_refuse`.

    Raises:
        SpecError: values that contradict each other.
    """
    w = Writes()
    if resources.memory:
        _memory(w, resources.memory)
    if resources.cpu:
        _cpu(w, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        w.put("pids", "pids.max", limit_value(resources.pids.limit), "pids.limit")
    if resources.block_io:
        _io(w, resources.block_io)
    for index, huge in enumerate(resources.hugepage_limits or ()):
        for kind in ("", ".rsvd"):
            w.put("hugetlb", f"hugetlb.{huge.page_size}{kind}.max", huge.limit, f"hugepageLimits[{index}]")
    rdma(w, resources)
    return tuple(w.all)


def _memory(w: Writes, memory: Memory) -> None:
    limit = given(memory.limit)
    swap = swap_limit(limit, memory.swap)
    # A kernel that counts no swap has none to limit: "none" and "no limit" need nothing there.
    w.put("memory", "memory.swap.max", swap, "memory.swap", "memory.limit", optional=swap in ("0", "max"))
    w.put("memory", "memory.max", None if limit is None else limit_value(limit), "memory.limit")
    low = given(memory.reservation)
    w.put("memory", "memory.low", None if low is None else limit_value(low), "memory.reservation")


def _cpu(w: Writes, cpu: CPU) -> None:
    w.put("cpu", "cpu.idle", cpu.idle, "cpu.idle")
    if cpu.shares and cpu.idle != 1:  # whoever is idle has no weight, and gets it back afterwards
        w.put("cpu", "cpu.weight", shares_to_weight(cpu.shares), "cpu.shares", "cpu.idle")
    w.put("cpu", "cpu.max", cpu_max(cpu.quota, cpu.period), "cpu.quota", "cpu.period", group="cpu.max")
    w.put("cpu", "cpu.max.burst", cpu.burst, "cpu.burst", group="cpu.max")
    w.put("cpuset", "cpuset.cpus", cpu.cpus or None, "cpu.cpus")
    w.put("cpuset", "cpuset.mems", cpu.mems or None, "cpu.mems")


def _io(w: Writes, block: BlockIO) -> None:
    def put(weight: int, device: str, member: str) -> None:
        # BFQ's own file comes first: where that scheduler runs, io.weight has no effect.
        other = ("io.weight", f"{device}{blkio_to_io_weight(weight)}")
        w.put("io", "io.bfq.weight", f"{device}{weight}", f"blockIO.{member}", other=other)

    if block.weight:
        put(block.weight, "", "weight")
    for index, device in enumerate(block.weight_device or ()):
        if device.weight:
            put(device.weight, f"{device.major}:{device.minor} ", f"weightDevice[{index}]")
    for name, member, rates in throttles(block):
        for index, rate in enumerate(rates):
            value = f"{rate.major}:{rate.minor} {_MAX[name]}={rate.rate or 'max'}"
            w.put("io", "io.max", value, f"blockIO.{member}[{index}]")


def unified_writes(resources: Resources) -> tuple[Write, ...]:
    """linux.resources.unified, a write for each line: a file of devices takes one at a time.

    Raises:
        SpecError: a key that is not the file of a limit.
    """
    w = Writes()
    for file, value in (resources.unified or {}).items():
        where = f"unified[{file!r}]"
        controller, dot, rest = file.partition(".")
        if "/" in file or not dot or not controller or not rest or (controller == "cgroup" and file not in _CORE):
            message = "is not a file of a controller, as memory.high is"
            raise SpecError([Problem(f"{ROOT}.{where}", message, "config-linux.md#unified")])
        lines = value.split("\n") if controller != "cpuset" or value else ["\n"]
        for line in lines:
            w.put(controller, file, line or None, where)
    return tuple(w.all)


def v2_refuse(resources: Resources, served: Collection[str]) -> None:
    """Refuse what v2 has no equal of, but for what v1 controllers serve. Raises UnsupportedError."""
    memory, cpu, block = resources.memory, resources.cpu, resources.block_io
    lost = {
        "memory.kernel": memory and memory.kernel is not None and memory.kernel > 0,
        "memory.kernelTCP": memory and memory.kernel_tcp is not None and memory.kernel_tcp > 0,
        "memory.swappiness": memory and memory.swappiness is not None,
        "memory.disableOOMKiller": memory and memory.disable_oom_killer,
        "memory.useHierarchy": memory and memory.use_hierarchy is False,
        "cpu.realtimeRuntime": cpu and cpu.realtime_runtime,
        "cpu.realtimePeriod": cpu and cpu.realtime_period,
        "blockIO.leafWeight": block and block.leaf_weight,
    }
    for index, device in enumerate((block.weight_device if block else None) or ()):
        lost[f"blockIO.weightDevice[{index}].leafWeight"] = bool(device.leaf_weight)
    for member, asked in lost.items():
        if asked and member.partition(".")[0].replace("blockIO", "blkio") not in served:
            raise UnsupportedError(f"{ROOT}.{member}: cgroup v2 has nothing like it ({SECTION})")
