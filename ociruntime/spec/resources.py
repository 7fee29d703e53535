"""``linux.resources`` of config.json (config-linux.md#control-groups)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import FrozenMap
from .bases import (
    BlockIOBase,
    CPUBase,
    DeviceCgroupBase,
    HugepageLimitBase,
    InterfacePriorityBase,
    MemoryBase,
    NetworkBase,
    PidsBase,
    RdmaBase,
    ResourcesBase,
    ThrottleDeviceBase,
    WeightDeviceBase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .scalars import Int64, PageSize, Uint16, Uint32, Uint64


class DeviceCgroup(DeviceCgroupBase):
    """A rule about access to devices; rules apply in their order (config-linux.md#allowed-device-list)."""

    SECTION: ClassVar[str] = "config-linux.md#allowed-device-list"

    allow: bool
    """Whether it allows or denies."""
    type: str | None = None
    """``a`` (all), ``c`` (character) or ``b`` (block). Default: a."""
    major: Int64 | None = None
    """Major number. Default: all."""
    minor: Int64 | None = None
    """Minor number. Default: all."""
    access: str | None = None
    """Any of ``r`` (read), ``w`` (write), ``m`` (mknod). Default: none of them."""


class Memory(MemoryBase):
    """The memory controller; -1 is no limit (config-linux.md#memory)."""

    SECTION: ClassVar[str] = "config-linux.md#memory"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"kernel_tcp": "kernelTCP", "disable_oom_killer": "disableOOMKiller"})

    limit: Int64 | None = None
    """Limit of memory. Unit: bytes. Default: unchanged."""
    reservation: Int64 | None = None
    """Soft limit of memory. Unit: bytes. Default: unchanged."""
    swap: Int64 | None = None
    """Limit of memory and swap together. Unit: bytes. Default: unchanged."""
    kernel: Int64 | None = None
    """Not recommended: limit of kernel memory. Unit: bytes. Default: unchanged."""
    kernel_tcp: Int64 | None = None
    """Not recommended: limit of TCP buffers. Unit: bytes. Default: unchanged."""
    swappiness: Uint64 | None = None
    """0 to 100 (swaps most). Default: unchanged."""
    disable_oom_killer: bool | None = None
    """Whether the OOM killer is off. Default: false."""
    use_hierarchy: bool | None = None
    """Whether child cgroups share the limits. Default: unchanged."""
    check_before_update: bool | None = None
    """Whether a limit below what is in use is refused. Default: false."""


class CPU(CPUBase):
    """The cpu and cpuset controllers (config-linux.md#cpu)."""

    SECTION: ClassVar[str] = "config-linux.md#cpu"

    shares: Uint64 | None = None
    """Weight against other cgroups, 1024 being usual. Default: unchanged."""
    quota: Int64 | None = None
    """CPU time in each period; -1 for no limit. Unit: microseconds. Default: unchanged."""
    burst: Uint64 | None = None
    """Unused quota that may be used later, at most the quota. Unit: microseconds. Default: unchanged."""
    period: Uint64 | None = None
    """Unit: microseconds. Default: unchanged."""
    realtime_runtime: Int64 | None = None
    """CPU time of realtime tasks in each realtime period. Unit: microseconds. Default: unchanged."""
    realtime_period: Uint64 | None = None
    """Unit: microseconds. Default: unchanged."""
    cpus: str | None = None
    """CPUs, as ``0-3,7``. Default: unchanged."""
    mems: str | None = None
    """Memory nodes, as ``0-3,7``. Default: unchanged."""
    idle: Int64 | None = None
    """1 makes the cgroup SCHED_IDLE. Default: 0."""


class Pids(PidsBase):
    """The pids controller (config-linux.md#pids)."""

    SECTION: ClassVar[str] = "config-linux.md#pids"

    limit: Int64 | None = None
    """Number of tasks; -1 for no limit. Default: unchanged."""


class WeightDevice(WeightDeviceBase):
    """I/O weight on one device; at least one of the weights is needed (config-linux.md#block-io)."""

    SECTION: ClassVar[str] = "config-linux.md#block-io"

    major: Int64
    """Major number."""
    minor: Int64
    """Minor number."""
    weight: Uint16 | None = None
    """Weight against other cgroups. Default: unchanged."""
    leaf_weight: Uint16 | None = None
    """Weight of the cgroup's tasks against its child cgroups. Default: unchanged."""


class ThrottleDevice(ThrottleDeviceBase):
    """I/O limit on one device (config-linux.md#block-io)."""

    SECTION: ClassVar[str] = "config-linux.md#block-io"

    major: Int64
    """Major number."""
    minor: Int64
    """Minor number."""
    rate: Uint64
    """Unit: bytes or operations per second."""


class BlockIO(BlockIOBase):
    """The blkio or io controller (config-linux.md#block-io)."""

    SECTION: ClassVar[str] = "config-linux.md#block-io"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap(
        {"throttle_read_iops_device": "throttleReadIOPSDevice", "throttle_write_iops_device": "throttleWriteIOPSDevice"}
    )

    weight: Uint16 | None = None
    """Weight against other cgroups, 10 to 1000. Default: unchanged."""
    leaf_weight: Uint16 | None = None
    """Weight of the cgroup's tasks against its child cgroups. Default: unchanged."""
    weight_device: tuple[WeightDevice, ...] | None = None
    """Weights of single devices. Default: none."""
    throttle_read_bps_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of reading. Unit: bytes per second. Default: none."""
    throttle_write_bps_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of writing. Unit: bytes per second. Default: none."""
    throttle_read_iops_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of reading. Unit: operations per second. Default: none."""
    throttle_write_iops_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of writing. Unit: operations per second. Default: none."""


class HugepageLimit(HugepageLimitBase):
    """The hugetlb controller for one size of pages (config-linux.md#huge-page-limits)."""

    SECTION: ClassVar[str] = "config-linux.md#huge-page-limits"

    page_size: PageSize
    """As ``2MB``, ``1GB``; a KB has 1024 bytes."""
    limit: Uint64
    """Unit: bytes."""


class InterfacePriority(InterfacePriorityBase):
    """Priority of traffic on one interface (config-linux.md#network)."""

    SECTION: ClassVar[str] = "config-linux.md#network"

    name: str
    """The interface, in the runtime's network namespace."""
    priority: Uint32
    """Higher goes first."""


class Network(NetworkBase):
    """The net_cls and net_prio controllers (config-linux.md#network)."""

    SECTION: ClassVar[str] = "config-linux.md#network"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"class_id": "classID"})

    class_id: Uint32 | None = None
    """Tag of the cgroup's packets. Default: unchanged."""
    priorities: tuple[InterfacePriority, ...] | None = None
    """Default: none."""


class Rdma(RdmaBase):
    """The rdma controller for one device; at least one limit is needed (config-linux.md#rdma)."""

    SECTION: ClassVar[str] = "config-linux.md#rdma"

    hca_handles: Uint32 | None = None
    """Number of handles. Default: unchanged."""
    hca_objects: Uint32 | None = None
    """Number of objects. Default: unchanged."""


class Resources(ResourcesBase):
    """Limits and weights of the container's cgroup (config-linux.md#control-groups)."""

    SECTION: ClassVar[str] = "config-linux.md#control-groups"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"block_io": "blockIO"})

    devices: tuple[DeviceCgroup, ...] | None = None
    """Which devices may be used. Default: unchanged (config-linux.md#allowed-device-list)."""
    memory: Memory | None = None
    """Memory and swap. Default: unchanged (config-linux.md#memory)."""
    cpu: CPU | None = None
    """CPU time, CPUs and memory nodes. Default: unchanged (config-linux.md#cpu)."""
    pids: Pids | None = None
    """Number of tasks. Default: unchanged (config-linux.md#pids)."""
    block_io: BlockIO | None = None
    """Disk bandwidth. Default: unchanged (config-linux.md#block-io)."""
    hugepage_limits: tuple[HugepageLimit, ...] | None = None
    """Huge pages, by their size. Default: none (config-linux.md#huge-page-limits)."""
    network: Network | None = None
    """Tags and priorities of packets, of cgroup v1. Default: unchanged (config-linux.md#network)."""
    rdma: Mapping[str, Rdma] | None = None
    """RDMA resources, by device. Default: none (config-linux.md#rdma)."""
    unified: Mapping[str, str] | None = None
    """Files of cgroup v2 and what is written to them. Default: none (config-linux.md#unified)."""
