"""``linux.resources`` of config.json (config-linux.md#control-groups)."""

from __future__ import annotations

import attrs

from .base import FrozenMap, Model


@attrs.frozen(kw_only=True, repr=False)
class DeviceCgroup(Model):
    """A rule about access to devices; later rules win."""

    allow: bool
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Memory(Model):
    """Bytes; -1 for no limit. ``swap`` is memory and swap together."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = attrs.field(default=None, metadata={"key": "kernelTCP"})
    swappiness: int | None = None
    disable_oom_killer: bool | None = attrs.field(default=None, metadata={"key": "disableOOMKiller"})
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


@attrs.frozen(kw_only=True, repr=False)
class CPU(Model):
    """Microseconds for quota, burst, period and the realtime members; lists such as ``0-3,7`` for cpus and mems."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class Pids(Model):
    """The number of tasks; 0 or less for no limit."""

    limit: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class WeightDevice(Model):
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class ThrottleDevice(Model):
    """``rate`` in bytes or operations a second."""

    major: int
    minor: int
    rate: int


@attrs.frozen(kw_only=True, repr=False)
class BlockIO(Model):
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] | None = None
    throttle_read_bps_device: tuple[ThrottleDevice, ...] | None = None
    throttle_write_bps_device: tuple[ThrottleDevice, ...] | None = None
    throttle_read_iops_device: tuple[ThrottleDevice, ...] | None = attrs.field(
        default=None, metadata={"key": "throttleReadIOPSDevice"}
    )
    throttle_write_iops_device: tuple[ThrottleDevice, ...] | None = attrs.field(
        default=None, metadata={"key": "throttleWriteIOPSDevice"}
    )


@attrs.frozen(kw_only=True, repr=False)
class HugepageLimit(Model):
    """``page_size`` such as ``2MB``; ``limit`` in bytes."""

    page_size: str
    limit: int


@attrs.frozen(kw_only=True, repr=False)
class InterfacePriority(Model):
    name: str
    priority: int


@attrs.frozen(kw_only=True, repr=False)
class Network(Model):
    class_id: int | None = attrs.field(default=None, metadata={"key": "classID"})
    priorities: tuple[InterfacePriority, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Rdma(Model):
    hca_handles: int | None = None
    hca_objects: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class Resources(Model):
    """Limits and weights of the container's cgroup."""

    devices: tuple[DeviceCgroup, ...] | None = None
    memory: Memory | None = None
    cpu: CPU | None = None
    pids: Pids | None = None
    block_io: BlockIO | None = attrs.field(default=None, metadata={"key": "blockIO"})
    hugepage_limits: tuple[HugepageLimit, ...] | None = None
    network: Network | None = None
    rdma: FrozenMap[Rdma] | None = None
    unified: FrozenMap[str] | None = None
