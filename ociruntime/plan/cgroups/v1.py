"""linux.resources as files of the v1 controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .writes import Write, Writes, given, rdma, throttles

if TYPE_CHECKING:
    from ...spec import CPU, BlockIO, Memory, Resources


def v1_writes(resources: Resources) -> tuple[Write, ...]:
    """Return everything except device rules, in an order that the kernel accepts if it does not depend on the current values."""
    w = Writes()
    if resources.memory:
        _memory(w, resources.memory)
    if resources.cpu:
        _cpu(w, resources.cpu)
    if resources.pids and resources.pids.limit is not None:
        w.put("pids", "pids.max", "max" if resources.pids.limit < 0 else resources.pids.limit, "pids.limit")
    if resources.block_io:
        _blkio(w, resources.block_io)
    for index, huge in enumerate(resources.hugepage_limits or ()):
        for kind in ("", ".rsvd"):
            file = f"hugetlb.{huge.page_size}{kind}.limit_in_bytes"
            w.put("hugetlb", file, huge.limit, f"hugepageLimits[{index}]")
    if network := resources.network:
        w.put("net_cls", "net_cls.classid", network.class_id, "network.classID")
        for index, priority in enumerate(network.priorities or ()):
            w.put("net_prio", "net_prio.ifpriomap", f"{priority.name} {priority.priority}", f"network.priorities[{index}]")
    rdma(w, resources)
    return tuple(w.all)


def _memory(w: Writes, memory: Memory) -> None:
    limit, swap = given(memory.limit), given(memory.swap)
    if limit == -1 and swap is None:
        # memsw.limit must not be below the memory limit, so an unlimited memory needs both unlimited.
        w.put("memory", "memory.memsw.limit_in_bytes", -1, "memory.limit", group="memory", optional=True)
    w.put("memory", "memory.limit_in_bytes", limit, "memory.limit", group="memory")
    w.put("memory", "memory.memsw.limit_in_bytes", swap, "memory.swap", group="memory", optional=swap == -1)
    w.put("memory", "memory.soft_limit_in_bytes", given(memory.reservation), "memory.reservation")
    w.put("memory", "memory.kmem.limit_in_bytes", given(memory.kernel), "memory.kernel", optional=memory.kernel == -1)
    tcp = given(memory.kernel_tcp)
    w.put("memory", "memory.kmem.tcp.limit_in_bytes", tcp, "memory.kernelTCP", optional=tcp == -1)
    w.put("memory", "memory.swappiness", memory.swappiness, "memory.swappiness")
    w.put("memory", "memory.use_hierarchy", memory.use_hierarchy, "memory.useHierarchy")
    w.put("memory", "memory.oom_control", memory.disable_oom_killer, "memory.disableOOMKiller")


def _cpu(w: Writes, cpu: CPU) -> None:
    w.put("cpu", "cpu.idle", cpu.idle, "cpu.idle")
    if cpu.idle != 1:  # an idle cgroup has no weight
        w.put("cpu", "cpu.shares", given(cpu.shares), "cpu.shares", "cpu.idle")
    w.put("cpu", "cpu.cfs_period_us", given(cpu.period), "cpu.period", group="cpu.cfs")
    w.put("cpu", "cpu.cfs_quota_us", given(cpu.quota), "cpu.quota", group="cpu.cfs")
    w.put("cpu", "cpu.cfs_burst_us", cpu.burst, "cpu.burst", group="cpu.cfs")
    w.put("cpu", "cpu.rt_period_us", given(cpu.realtime_period), "cpu.realtimePeriod", group="cpu.rt")
    w.put("cpu", "cpu.rt_runtime_us", given(cpu.realtime_runtime), "cpu.realtimeRuntime", group="cpu.rt")
    w.put("cpuset", "cpuset.cpus", cpu.cpus or None, "cpu.cpus")
    w.put("cpuset", "cpuset.mems", cpu.mems or None, "cpu.mems")


def _blkio(w: Writes, block: BlockIO) -> None:
    def put(file: str, value: object, member: str, bfq: str = "") -> None:
        w.put("blkio", file, value, f"blockIO.{member}", other=(bfq, str(value)) if bfq else None)

    put("blkio.weight", given(block.weight), "weight", "blkio.bfq.weight")
    put("blkio.leaf_weight", given(block.leaf_weight), "leafWeight")
    for index, device in enumerate(block.weight_device or ()):
        number, member = f"{device.major}:{device.minor}", f"weightDevice[{index}]"
        if device.weight:
            put("blkio.weight_device", f"{number} {device.weight}", member, "blkio.bfq.weight_device")
        if device.leaf_weight:
            put("blkio.leaf_weight_device", f"{number} {device.leaf_weight}", member)
    for name, member, rates in throttles(block):
        for index, rate in enumerate(rates):
            put(f"blkio.throttle.{name}_device", f"{rate.major}:{rate.minor} {rate.rate}", f"{member}[{index}]")
