"""linux.resources as files of the v1 controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .files import Write

if TYPE_CHECKING:
    from ...spec import Resources


def v1_writes(resources: Resources) -> tuple[Write, ...]:
    """linux.resources as files of the v1 controllers, in the order in which the kernel takes them."""
    writes: list[Write] = []
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids

    def put(controller: str, file: str, value: object) -> None:
        if value is not None:
            writes.append(Write(controller, file, str(int(value) if isinstance(value, bool) else value)))

    if memory:
        put("memory", "memory.limit_in_bytes", memory.limit)
        put("memory", "memory.soft_limit_in_bytes", memory.reservation)
        put("memory", "memory.memsw.limit_in_bytes", memory.swap)
        put("memory", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp)
        put("memory", "memory.swappiness", memory.swappiness)
        put("memory", "memory.use_hierarchy", memory.use_hierarchy)
        put("memory", "memory.oom_control", 1 if memory.disable_oom_killer else None)
    if cpu:
        put("cpu", "cpu.shares", cpu.shares)
        put("cpu", "cpu.cfs_period_us", cpu.period)
        put("cpu", "cpu.cfs_quota_us", cpu.quota)
        put("cpu", "cpu.cfs_burst_us", cpu.burst)
        put("cpu", "cpu.rt_period_us", cpu.realtime_period)
        put("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime)
        put("cpu", "cpu.idle", cpu.idle)
        put("cpuset", "cpuset.cpus", cpu.cpus)
        put("cpuset", "cpuset.mems", cpu.mems)
    if pids and pids.limit is not None:
        put("pids", "pids.max", "max" if pids.limit <= 0 else pids.limit)
    for device in resources.devices or ():
        kind = str(device.type or "a")
        major = "*" if device.major is None or device.major < 0 else device.major
        minor = "*" if device.minor is None or device.minor < 0 else device.minor
        rule = "a" if kind == "a" and major == minor == "*" else f"{kind} {major}:{minor} {device.access or 'rwm'}"
        put("devices", "devices.allow" if device.allow else "devices.deny", rule)
    return tuple(writes)
