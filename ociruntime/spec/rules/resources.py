"""Rules about ``linux.resources`` of config.json (config-linux.md#control-groups)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..base import json_path
from .findings import Findings

if TYPE_CHECKING:
    from ..resources import CPU, BlockIO, DeviceCgroup, Memory, Resources

_PATH: Final = "$.linux.resources"


def check_resources(findings: Findings, resources: Resources) -> None:
    """Check the resources of a config or an update."""
    for index, rule in enumerate(resources.devices or ()):
        _check_device(findings, rule, f"{_PATH}.devices[{index}]")
    if resources.memory is not None:
        _check_memory(findings, resources.memory)
    if resources.cpu is not None:
        _check_cpu(findings, resources.cpu)
    if resources.pids is not None and resources.pids.limit is not None and resources.pids.limit < -1:
        findings.error(
            f"{_PATH}.pids.limit", f"{resources.pids.limit} is less than -1, which means no limit", "config-linux.md#pids"
        )
    if resources.block_io is not None:
        _check_block_io(findings, resources.block_io)
    sizes: set[str] = set()
    for index, limit in enumerate(resources.hugepage_limits or ()):
        if limit.page_size in sizes:
            findings.error(
                f"{_PATH}.hugepageLimits[{index}]", f"{limit.page_size} appears twice", "config-linux.md#huge-page-limits"
            )
        sizes.add(limit.page_size)
    names: set[str] = set()
    for index, priority in enumerate((resources.network.priorities if resources.network else None) or ()):
        if priority.name in names:
            findings.error(f"{_PATH}.network.priorities[{index}]", f"{priority.name} appears twice", "config-linux.md#network")
        names.add(priority.name)
    for name, rdma in (resources.rdma or {}).items():
        if rdma.hca_handles is None and rdma.hca_objects is None:
            findings.error(json_path(f"{_PATH}.rdma", name), "hcaHandles or hcaObjects is required", "config-linux.md#rdma")
    for file, value in (resources.unified or {}).items():
        if "/" in file or "." not in file.strip("."):
            findings.error(
                json_path(f"{_PATH}.unified", file), f"{file!r} is not a file of a controller", "config-linux.md#unified"
            )
        if "\0" in value:
            findings.error(
                json_path(f"{_PATH}.unified", file), "a NUL byte cannot be passed to the kernel", "config-linux.md#unified"
            )


def _check_device(findings: Findings, rule: DeviceCgroup, where: str) -> None:
    section = "config-linux.md#allowed-device-list"
    if rule.type is not None and rule.type not in ("a", "b", "c", ""):
        findings.error(f"{where}.type", f"{rule.type!r} is none of a, b, c", section)
    if rule.access is not None and not set(rule.access) <= set("rwm"):
        findings.error(f"{where}.access", f"{rule.access!r} is not composed of r, w and m", section)
    for name, number in (("major", rule.major), ("minor", rule.minor)):
        if number is not None and number < -1:
            findings.error(f"{where}.{name}", f"{number} is negative", section)


def _check_memory(findings: Findings, memory: Memory) -> None:
    path, section = f"{_PATH}.memory", "config-linux.md#memory"
    members = ("limit", "reservation", "swap", "kernel", "kernelTCP")
    values = (memory.limit, memory.reservation, memory.swap, memory.kernel, memory.kernel_tcp)
    for name, value in zip(members, values, strict=True):
        if value is not None and value < -1:
            findings.error(f"{path}.{name}", f"{value} is less than -1, which means no limit", section)
    limit, swap, reservation = memory.limit or 0, memory.swap or 0, memory.reservation or 0
    if swap > 0 and limit > swap:
        findings.error(f"{path}.swap", f"{swap} is below the memory limit {limit}, which is part of it", section)
    if swap > 0 and limit <= 0:
        findings.error(f"{path}.swap", "a limit of memory and swap together requires a memory limit", section)
    if 0 < limit < reservation:
        findings.warn(f"{path}.reservation", f"{reservation} is above the memory limit {limit}", section)
    if memory.swappiness is not None and memory.swappiness > 100:
        findings.error(f"{path}.swappiness", f"{memory.swappiness} is not 0 to 100", section)
    for name, value in (("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)):
        if value is not None:
            findings.warn(f"{path}.{name}", "is not recommended, and recent kernels ignore it", section)


def _check_cpu(findings: Findings, cpu: CPU) -> None:
    path, section = f"{_PATH}.cpu", "config-linux.md#cpu"
    if cpu.quota is not None and cpu.quota < -1:
        findings.error(f"{path}.quota", f"{cpu.quota} is less than -1, which means no limit", section)
    if cpu.quota is not None and 0 < cpu.quota < 1000:
        findings.error(f"{path}.quota", f"{cpu.quota} is less than the kernel's minimum of 1000 microseconds", section)
    if cpu.burst is not None and cpu.quota is not None and 0 < cpu.quota < cpu.burst:
        findings.error(f"{path}.burst", f"{cpu.burst} is more than the quota {cpu.quota}", section)
    # Engines send 0 for "unchanged".
    if cpu.period and not 1000 <= cpu.period <= 1_000_000:
        findings.error(f"{path}.period", f"{cpu.period} is not 1000 to 1000000 microseconds", section)
    if cpu.realtime_runtime is not None and cpu.realtime_period and cpu.realtime_runtime > cpu.realtime_period:
        findings.error(f"{path}.realtimeRuntime", f"{cpu.realtime_runtime} is more than the period {cpu.realtime_period}", section)
    if cpu.shares == 1:
        findings.warn(f"{path}.shares", "the kernel's minimum is 2", section)
    if cpu.idle is not None and cpu.idle not in (0, 1):
        findings.error(f"{path}.idle", f"{cpu.idle} is not 0 or 1", section)
    findings.check_ranges(f"{path}.cpus", cpu.cpus, section)
    findings.check_ranges(f"{path}.mems", cpu.mems, section)


def _check_block_io(findings: Findings, block_io: BlockIO) -> None:
    path, section = f"{_PATH}.blockIO", "config-linux.md#block-io"
    weights = [(f"{path}.weight", block_io.weight), (f"{path}.leafWeight", block_io.leaf_weight)]
    for index, device in enumerate(block_io.weight_device or ()):
        where = f"{path}.weightDevice[{index}]"
        if device.weight is None and device.leaf_weight is None:
            findings.error(where, "weight or leafWeight is required", section)
        weights += [(f"{where}.weight", device.weight), (f"{where}.leafWeight", device.leaf_weight)]
    for where, weight in weights:
        if weight and not 10 <= weight <= 1000:
            findings.error(where, f"{weight} is not 10 to 1000", section)
