"""linux.resources as files of the v1 controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .writes import Write, Writes, nonzero, rdma, throttles

if TYPE_CHECKING:
    from ...spec import CPU, BlockIO, Memory, Resources


def v1_writes(resources: Resources) -> tuple[Write, ...]:
    """Return everything except device rules, in an order that the kernel accepts if it does not depend on the current values."""
    writes = Writes()
    if resources.memory:
        _memory(writes, resources.memory)
    if resources.cpu:
        _cpu(writes, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        writes.put("pids", "pids.max", "max" if resources.pids.limit < 0 else resources.pids.limit, "pids.limit")
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
