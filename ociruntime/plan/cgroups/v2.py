"""linux.resources as files of the v2 controllers, with conversions from the values of v1, which config.json uses."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ...errors import Problem, SpecError, UnsupportedError
from .writes import ROOT, SECTION, Write, Writes, nonzero, rdma, throttles

if TYPE_CHECKING:
    from ...spec import CPU, BlockIO, Memory, Resources


MAX_SHARES = 262144


def shares_to_weight(shares: int) -> int:
    """Convert cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100).

    Ten to the power of a quadratic function of log2(shares) maps both bounds and the default, as in runc and crun.
    """
    if shares <= 2:
        return 1
    if shares >= MAX_SHARES:
        return 10000
    log = math.log2(shares)
    return math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34))


def blkio_to_io_weight(weight: int) -> int:
    """Convert blkio.weight (10 to 1000) to io.weight (1 to 10000), linearly."""
    return 1 + (weight - 10) * 9999 // 990


def limit_value(value: int) -> str:
    """Return a limit as v2 writes it; -1 is unlimited."""
    return "max" if value < 0 else str(value)


def swap_limit(memory: int | None, swap: int | None) -> str | None:
    """Return memory.swap.max, which limits swap alone, for a limit of memory and swap together; None if there is none.

    Raises:
        SpecError: the limit of both has no memory limit, or is below it.
    """
    location, section = "$.linux.resources.memory.swap", "config-linux.md#memory"
    if not swap:
        # Unlimited memory implies unlimited swap, as on v1, where the memory limit cannot be above the limit of both.
        return "max" if memory == -1 else None
    if swap < 0:
        return "max"
    if not memory:
        raise SpecError([Problem(location, "a limit of memory and swap needs a memory limit", section)])
    if memory < 0:
        return str(swap)
    if swap < memory:
        raise SpecError([Problem(location, f"{swap} is below the memory limit {memory}, which it includes", section)])
    return str(swap - memory)


def cpu_max(quota: int | None, period: int | None) -> str | None:
    """Return cpu.max from quota and period, or None if neither is given."""
    if not quota and not period:
        return None
    return f"{quota if quota and quota > 0 else 'max'} {period or 100000}"


_MAX: Final = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
_CORE: Final = frozenset({"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"})
"""Files without a controller that set a limit; the other ones move, kill and delegate."""


def v2_writes(resources: Resources) -> tuple[Write, ...]:
    """Return everything except device rules, in the order of writing. `refuse_unsupported` refuses what v2 cannot express.

    Raises:
        SpecError: values contradict each other.
    """
    writes = Writes()
    if resources.memory:
        _memory(writes, resources.memory)
    if resources.cpu:
        _cpu(writes, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        writes.put("pids", "pids.max", limit_value(resources.pids.limit), "pids.limit")
    if resources.block_io:
        _io(writes, resources.block_io)
    for index, huge in enumerate(resources.hugepage_limits or ()):
        for kind in ("", ".rsvd"):
            writes.put("hugetlb", f"hugetlb.{huge.page_size}{kind}.max", huge.limit, f"hugepageLimits[{index}]")
    rdma(writes, resources)
    return tuple(writes.all)


def _memory(writes: Writes, memory: Memory) -> None:
    limit = nonzero(memory.limit)
    swap = swap_limit(limit, memory.swap)
    # A kernel without swap accounting has no file; 0 and unlimited need none.
    writes.put("memory", "memory.swap.max", swap, "memory.swap", "memory.limit", optional=swap in ("0", "max"))
    writes.put("memory", "memory.max", None if limit is None else limit_value(limit), "memory.limit")
    low = nonzero(memory.reservation)
    writes.put("memory", "memory.low", None if low is None else limit_value(low), "memory.reservation")


def _cpu(writes: Writes, cpu: CPU) -> None:
    writes.put("cpu", "cpu.idle", cpu.idle, "cpu.idle")
    if cpu.shares and cpu.idle != 1:  # an idle cgroup has no weight
        writes.put("cpu", "cpu.weight", shares_to_weight(cpu.shares), "cpu.shares", "cpu.idle")
    writes.put("cpu", "cpu.max", cpu_max(cpu.quota, cpu.period), "cpu.quota", "cpu.period", group="cpu.max")
    writes.put("cpu", "cpu.max.burst", cpu.burst, "cpu.burst", group="cpu.max")
    writes.put("cpuset", "cpuset.cpus", cpu.cpus or None, "cpu.cpus")
    writes.put("cpuset", "cpuset.mems", cpu.mems or None, "cpu.mems")


def _io(writes: Writes, block: BlockIO) -> None:
    def put(weight: int, device: str, member: str) -> None:
        # BFQ's own file comes first: where that scheduler runs, io.weight has no effect.
        other = ("io.weight", f"{device}{blkio_to_io_weight(weight)}")
        writes.put("io", "io.bfq.weight", f"{device}{weight}", f"blockIO.{member}", other=other)

    if block.weight:
        put(block.weight, "", "weight")
    for index, device in enumerate(block.weight_device or ()):
        if device.weight:
            put(device.weight, f"{device.major}:{device.minor} ", f"weightDevice[{index}]")
    for name, member, rates in throttles(block):
        for index, rate in enumerate(rates):
            value = f"{rate.major}:{rate.minor} {_MAX[name]}={rate.rate or 'max'}"
            writes.put("io", "io.max", value, f"blockIO.{member}[{index}]")


def unified_writes(resources: Resources) -> tuple[Write, ...]:
    """Return linux.resources.unified as one write for each line, as files of devices accept one at a time.

    Raises:
        SpecError: a key is not the file of a limit.
    """
    writes = Writes()
    for file, value in (resources.unified or {}).items():
        location = f"unified[{file!r}]"
        controller, dot, rest = file.partition(".")
        if "/" in file or not dot or not controller or not rest or (controller == "cgroup" and file not in _CORE):
            message = "is not the file of a controller, such as memory.high"
            raise SpecError([Problem(f"{ROOT}.{location}", message, "config-linux.md#unified")])
        lines = value.split("\n") if controller != "cpuset" or value else ["\n"]
        for line in lines:
            writes.put(controller, file, line or None, location)
    return tuple(writes.all)


def refuse_unsupported(resources: Resources, served: Collection[str]) -> None:
    """Refuse what v2 cannot express, unless a v1 hierarchy has the controller. Raises UnsupportedError."""
    memory, cpu, block = resources.memory, resources.cpu, resources.block_io
    unsupported = {
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
        unsupported[f"blockIO.weightDevice[{index}].leafWeight"] = bool(device.leaf_weight)
    for member, is_set in unsupported.items():
        if is_set and member.partition(".")[0].replace("blockIO", "blkio") not in served:
            raise UnsupportedError(f"{ROOT}.{member}: not supported by cgroup v2 ({SECTION})")
