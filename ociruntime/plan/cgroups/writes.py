"""linux.resources as values for the files of controllers, of cgroup v1 and v2."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from ...arguments import shown
from ...errors import SpecError, UnsupportedError
from ...spec.base import Problem

if TYPE_CHECKING:
    from ...spec import CPU, BlockIO, Memory, Resources, ThrottleDevice


SECTION: Final = "config-linux.md#control-groups"
ROOT: Final = "$.linux.resources"


class Write(NamedTuple):
    """One value for one file of one controller."""

    controller: str
    file: str
    value: str
    members: tuple[str, ...]
    """The members of linux.resources that it follows from, such as ``memory.limit``; errors name the first one."""
    group: str = ""
    """Values of one group depend on each other: the current ones decide in which order the kernel accepts them."""
    other: tuple[str, str] | None = None
    """A file and a value for kernels without ``file``."""
    optional: bool = False
    """Whether a kernel without the files behaves as the value asks for."""


class Writes:
    """Collects writes in the order in which they are written."""

    def __init__(self) -> None:
        self.all: list[Write] = []

    def put(self, controller: str, file: str, value: object, *members: str, group: str = "", **more: object) -> None:
        """Add a value, unless it is None. Raises SpecError: the file is not in the cgroup's directory."""
        if value is not None:
            if "/" in file:
                raise SpecError([Problem(f"{ROOT}.{members[0]}", f"{shown(file)} is not a file of a cgroup", SECTION)])
            text = str(int(value) if isinstance(value, bool) else value)
            self.all.append(Write(controller, file, text, members, group, **more))  # type: ignore[arg-type]


def nonzero(value: int | None) -> int | None:
    """Return a number that asks for something: engines send 0 to leave a value unchanged that cannot be 0."""
    return value or None


def throttles(block: BlockIO) -> tuple[tuple[str, str, tuple[ThrottleDevice, ...]], ...]:
    """Return the four lists of rates, each with its name on v1 and in the config."""
    return (
        ("read_bps", "throttleReadBpsDevice", block.throttle_read_bps_device or ()),
        ("write_bps", "throttleWriteBpsDevice", block.throttle_write_bps_device or ()),
        ("read_iops", "throttleReadIOPSDevice", block.throttle_read_iops_device or ()),
        ("write_iops", "throttleWriteIOPSDevice", block.throttle_write_iops_device or ()),
    )


def pids_max(limit: int) -> str:
    """Return pids.max; -1 is unlimited. 0 becomes 1, as systemd cannot set 0; either way no further task can start."""
    return "max" if limit < 0 else str(max(limit, 1))


def rdma(writes: Writes, resources: Resources) -> None:
    """Add the limits of rdma, which has the same file on both versions."""
    for name, device in (resources.rdma or {}).items():
        pairs = (("hca_handle", device.hca_handles), ("hca_object", device.hca_objects))
        text = " ".join(f"{key}={value}" for key, value in pairs if value is not None)
        writes.put("rdma", "rdma.max", f"{name} {text}", f"rdma[{name!r}]")


# ---- cgroup v1 ----


def v1_writes(resources: Resources) -> tuple[Write, ...]:
    """Return everything except device rules, in an order that the kernel accepts if it does not depend on the current values."""
    writes = Writes()
    if resources.memory:
        _memory(writes, resources.memory)
    if resources.cpu:
        _cpu(writes, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        writes.put("pids", "pids.max", pids_max(resources.pids.limit), "pids.limit")
    if resources.block_io:
        _blkio(writes, resources.block_io)
    for index, huge in enumerate(resources.hugepage_limits or ()):
        for kind in ("", ".rsvd"):
            file = f"hugetlb.{huge.page_size}{kind}.limit_in_bytes"
            writes.put("hugetlb", file, huge.limit, f"hugepageLimits[{index}]")
    if network := resources.network:
        writes.put("net_cls", "net_cls.classid", network.class_id, "network.classID")
        for index, priority in enumerate(network.priorities or ()):
            writes.put("net_prio", "net_prio.ifpriomap", f"{priority.name} {priority.priority}", f"network.priorities[{index}]")
    rdma(writes, resources)
    return tuple(writes.all)


def _memory(writes: Writes, memory: Memory) -> None:
    limit, swap = nonzero(memory.limit), nonzero(memory.swap)
    if limit == -1 and swap is None:
        # memsw.limit must not be below the memory limit, so an unlimited memory needs both unlimited.
        writes.put("memory", "memory.memsw.limit_in_bytes", -1, "memory.limit", group="memory", optional=True)
    writes.put("memory", "memory.limit_in_bytes", limit, "memory.limit", group="memory")
    writes.put("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap", group="memory", optional=swap == -1)
    writes.put("memory", "memory.soft_limit_in_bytes", nonzero(memory.reservation), "memory.reservation")
    writes.put("memory", "memory.kmem.limit_in_bytes", nonzero(memory.kernel), "memory.kernel", optional=memory.kernel == -1)
    tcp = nonzero(memory.kernel_tcp)
    writes.put("memory", "memory.kmem.tcp.limit_in_bytes", tcp, "memory.kernelTCP", optional=tcp == -1)
    writes.put("memory", "memory.swappiness", memory.swappiness, "memory.swappiness")
    writes.put("memory", "memory.use_hierarchy", memory.use_hierarchy, "memory.useHierarchy")
    writes.put("memory", "memory.oom_control", memory.disable_oom_killer, "memory.disableOOMKiller")


def _cpu(writes: Writes, cpu: CPU) -> None:
    writes.put("cpu", "cpu.idle", cpu.idle, "cpu.idle")
    if cpu.idle != 1:  # an idle cgroup has no weight
        writes.put("cpu", "cpu.shares", nonzero(cpu.shares), "cpu.shares", "cpu.idle")
    writes.put("cpu", "cpu.cfs_period_us", nonzero(cpu.period), "cpu.period", group="cpu.cfs")
    writes.put("cpu", "cpu.cfs_quota_us", nonzero(cpu.quota), "cpu.quota", group="cpu.cfs")
    writes.put("cpu", "cpu.cfs_burst_us", cpu.burst, "cpu.burst", group="cpu.cfs")
    writes.put("cpu", "cpu.rt_period_us", nonzero(cpu.realtime_period), "cpu.realtimePeriod", group="cpu.rt")
    writes.put("cpu", "cpu.rt_runtime_us", nonzero(cpu.realtime_runtime), "cpu.realtimeRuntime", group="cpu.rt")
    writes.put("cpuset", "cpuset.cpus", cpu.cpus or None, "cpu.cpus")
    writes.put("cpuset", "cpuset.mems", cpu.mems or None, "cpu.mems")


def _blkio(writes: Writes, block: BlockIO) -> None:
    def put(file: str, value: object, member: str, bfq: str = "") -> None:
        writes.put("blkio", file, value, f"blockIO.{member}", other=(bfq, str(value)) if bfq else None)

    put("blkio.weight", nonzero(block.weight), "weight", "blkio.bfq.weight")
    put("blkio.leaf_weight", nonzero(block.leaf_weight), "leafWeight")
    for index, device in enumerate(block.weight_device or ()):
        number, member = f"{device.major}:{device.minor}", f"weightDevice[{index}]"
        if device.weight:
            put("blkio.weight_device", f"{number} {device.weight}", member, "blkio.bfq.weight_device")
        if device.leaf_weight:
            put("blkio.leaf_weight_device", f"{number} {device.leaf_weight}", member)
    for name, member, rates in throttles(block):
        for index, rate in enumerate(rates):
            put(f"blkio.throttle.{name}_device", f"{rate.major}:{rate.minor} {rate.rate}", f"{member}[{index}]")


# ---- cgroup v2 ----


def v2_writes(resources: Resources) -> tuple[Write, ...]:
    """Return everything except device rules, in the order of writing. `refuse_unsupported` refuses what v2 cannot express.

    Raises:
        SpecError: values contradict each other.
    """
    writes = Writes()
    if resources.memory:
        _v2_memory(writes, resources.memory)
    if resources.cpu:
        _v2_cpu(writes, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        writes.put("pids", "pids.max", pids_max(resources.pids.limit), "pids.limit")
    if resources.block_io:
        _io(writes, resources.block_io)
    for index, huge in enumerate(resources.hugepage_limits or ()):
        for kind in ("", ".rsvd"):
            writes.put("hugetlb", f"hugetlb.{huge.page_size}{kind}.max", huge.limit, f"hugepageLimits[{index}]")
    rdma(writes, resources)
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


_RATE_KEYS: Final = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}
"""The rates of v1 in io.max."""


def _v2_memory(writes: Writes, memory: Memory) -> None:
    limit = nonzero(memory.limit)
    swap = swap_limit(limit, memory.swap)
    # A kernel without swap accounting has no file; 0 and unlimited need none.
    writes.put("memory", "memory.swap.max", swap, "memory.swap", "memory.limit", optional=swap in ("0", "max"))
    writes.put("memory", "memory.max", None if limit is None else limit_value(limit), "memory.limit")
    low = nonzero(memory.reservation)
    writes.put("memory", "memory.low", None if low is None else limit_value(low), "memory.reservation")


def _v2_cpu(writes: Writes, cpu: CPU) -> None:
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
            value = f"{rate.major}:{rate.minor} {_RATE_KEYS[name]}={rate.rate or 'max'}"
            writes.put("io", "io.max", value, f"blockIO.{member}[{index}]")


MAX_SHARES: Final = 262144


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


# ---- unified ----

_CORE: Final = frozenset({"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"})
"""Files without a controller that set a limit; the other ones move, kill and delegate."""


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
