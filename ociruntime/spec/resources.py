"""``linux.resources`` of config.json (config-linux.md#control-groups)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from .base import Int64, PageSize, Uint16, Uint32, Uint64
from .model import Model

if TYPE_CHECKING:
    from . import places as places


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class DeviceCgroup(Model["places.DeviceCgroupAt"]):
    """A device rule. Rules apply in their order (config-linux.md#allowed-device-list)."""

    allow: bool
    """Whether the rule allows access or denies it."""
    type: str | None = None
    """Type of device: ``a`` (all), ``c`` (character) or ``b`` (block). Default: a."""
    major: Int64 | None = None
    """Major number. Default: all."""
    minor: Int64 | None = None
    """Minor number. Default: all."""
    access: str | None = None
    """Kinds of access, composed of ``r`` (read), ``w`` (write) and ``m`` (mknod). Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Memory(Model["places.MemoryAt"]):
    """The memory controller. -1 means no limit (config-linux.md#memory)."""

    limit: Int64 | None = None
    """Limit of memory. Unit: bytes. Default: unchanged."""
    reservation: Int64 | None = None
    """Soft limit of memory. Unit: bytes. Default: unchanged."""
    swap: Int64 | None = None
    """Limit of memory and swap together. Unit: bytes. Default: unchanged."""
    kernel: Int64 | None = None
    """Limit of kernel memory. Not recommended. Unit: bytes. Default: unchanged."""
    kernel_tcp: Int64 | None = attrs.field(default=None, metadata={"key": "kernelTCP"})
    """Limit of TCP buffers. Not recommended. Unit: bytes. Default: unchanged."""
    swappiness: Uint64 | None = None
    """Tendency to swap, from 0 to 100 (highest). Default: unchanged."""
    disable_oom_killer: bool | None = attrs.field(default=None, metadata={"key": "disableOOMKiller"})
    """Whether the OOM killer is disabled. Default: false."""
    use_hierarchy: bool | None = None
    """Whether child cgroups share the limits. Default: unchanged."""
    check_before_update: bool | None = None
    """Whether a limit below the present usage is refused. Default: false."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class CPU(Model["places.CPUAt"]):
    """The cpu and cpuset controllers (config-linux.md#cpu)."""

    shares: Uint64 | None = None
    """Weight relative to other cgroups; 1024 is the kernel's default. Default: unchanged."""
    quota: Int64 | None = None
    """CPU time in each period; -1 means no limit. Unit: microseconds. Default: unchanged."""
    burst: Uint64 | None = None
    """Unused quota that may be used later, up to the quota. Unit: microseconds. Default: unchanged."""
    period: Uint64 | None = None
    """Length of a period. Unit: microseconds. Default: unchanged."""
    realtime_runtime: Int64 | None = None
    """CPU time of realtime tasks in each realtime period. Unit: microseconds. Default: unchanged."""
    realtime_period: Uint64 | None = None
    """Length of a realtime period. Unit: microseconds. Default: unchanged."""
    cpus: str | None = None
    """CPUs, as ``0-3,7``. Default: unchanged."""
    mems: str | None = None
    """Memory nodes, as ``0-3,7``. Default: unchanged."""
    idle: Int64 | None = None
    """1 schedules the cgroup as SCHED_IDLE. Default: 0."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Pids(Model["places.PidsAt"]):
    """The pids controller (config-linux.md#pids)."""

    limit: Int64 | None = None
    """Maximum number of tasks; -1 means no limit. Default: unchanged."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WeightDevice(Model["places.WeightDeviceAt"]):
    """I/O weight on one device. At least one of the weights is required (config-linux.md#block-io)."""

    major: Int64
    """Major number."""
    minor: Int64
    """Minor number."""
    weight: Uint16 | None = None
    """Weight relative to other cgroups. Default: unchanged."""
    leaf_weight: Uint16 | None = None
    """Weight of the cgroup's tasks relative to its child cgroups. Default: unchanged."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ThrottleDevice(Model["places.ThrottleDeviceAt"]):
    """I/O limit on one device (config-linux.md#block-io)."""

    major: Int64
    """Major number."""
    minor: Int64
    """Minor number."""
    rate: Uint64
    """Limit. Unit: bytes or operations per second."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class BlockIO(Model["places.BlockIOAt"]):
    """The blkio or io controller (config-linux.md#block-io)."""

    weight: Uint16 | None = None
    """Weight relative to other cgroups, from 10 to 1000. Default: unchanged."""
    leaf_weight: Uint16 | None = None
    """Weight of the cgroup's tasks relative to its child cgroups. Default: unchanged."""
    weight_device: tuple[WeightDevice, ...] | None = None
    """Weights on single devices. Default: none."""
    throttle_read_bps_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of reads. Unit: bytes per second. Default: none."""
    throttle_write_bps_device: tuple[ThrottleDevice, ...] | None = None
    """Limits of writes. Unit: bytes per second. Default: none."""
    throttle_read_iops_device: tuple[ThrottleDevice, ...] | None = attrs.field(
        default=None, metadata={"key": "throttleReadIOPSDevice"}
    )
    """Limits of reads. Unit: operations per second. Default: none."""
    throttle_write_iops_device: tuple[ThrottleDevice, ...] | None = attrs.field(
        default=None, metadata={"key": "throttleWriteIOPSDevice"}
    )
    """Limits of writes. Unit: operations per second. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class HugepageLimit(Model["places.HugepageLimitAt"]):
    """The hugetlb controller, for one page size (config-linux.md#huge-page-limits)."""

    page_size: PageSize
    """Page size: ``2MB``, ``1GB``. A KB is 1024 bytes."""
    limit: Uint64
    """Limit of huge pages. Unit: bytes."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class InterfacePriority(Model["places.InterfacePriorityAt"]):
    """Priority of traffic on one interface (config-linux.md#network)."""

    name: str
    """Name of the interface in the runtime namespace."""
    priority: Uint32
    """Priority. Higher values are sent first."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Network(Model["places.NetworkAt"]):
    """The net_cls and net_prio controllers (config-linux.md#network)."""

    class_id: Uint32 | None = attrs.field(default=None, metadata={"key": "classID"})
    """Class of the cgroup's packets. Default: unchanged."""
    priorities: tuple[InterfacePriority, ...] | None = None
    """Priorities on interfaces. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Rdma(Model["places.RdmaAt"]):
    """The rdma controller, for one device. At least one limit is required (config-linux.md#rdma)."""

    hca_handles: Uint32 | None = None
    """Maximum number of handles. Default: unchanged."""
    hca_objects: Uint32 | None = None
    """Maximum number of objects. Default: unchanged."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Resources(Model["places.ResourcesAt"]):
    """Limits and weights of the container's cgroup (config-linux.md#control-groups)."""

    devices: tuple[DeviceCgroup, ...] | None = None
    """Device rules. Default: unchanged (config-linux.md#allowed-device-list)."""
    memory: Memory | None = None
    """Memory and swap. Default: unchanged (config-linux.md#memory)."""
    cpu: CPU | None = None
    """CPU time, CPUs and memory nodes. Default: unchanged (config-linux.md#cpu)."""
    pids: Pids | None = None
    """Number of tasks. Default: unchanged (config-linux.md#pids)."""
    block_io: BlockIO | None = attrs.field(default=None, metadata={"key": "blockIO"})
    """Disk bandwidth. Default: unchanged (config-linux.md#block-io)."""
    hugepage_limits: tuple[HugepageLimit, ...] | None = None
    """Limits of huge pages, by page size. Default: none (config-linux.md#huge-page-limits)."""
    network: Network | None = None
    """Class and priorities of packets, on cgroup v1. Default: unchanged (config-linux.md#network)."""
    rdma: Mapping[str, Rdma] | None = None
    """RDMA limits, by device. Default: none (config-linux.md#rdma)."""
    unified: Mapping[str, str] | None = None
    """Files of cgroup v2 and their contents. Default: none (config-linux.md#unified)."""
