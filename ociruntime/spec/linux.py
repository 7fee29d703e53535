"""``root``, ``mounts`` and ``linux`` of config.json (config.md, config-linux.md)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import attrs

from .base import FileMode, Int64, MemoryBandwidth, OpenEnum, PageSize, Uint16, Uint32, Uint64, split_option
from .model import Model
from .seccomp import Seccomp

if TYPE_CHECKING:
    from . import places as places


# ---- resources ----


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

    page_size: PageSize = attrs.field(metadata={"alias": "pagesize"})
    """Page size: ``2MB``, ``1GB``. A KB is 1024 bytes. Read from ``pagesize`` too, as programs in Go accept it."""
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


# ---- linux, root and mounts ----


class NamespaceType(OpenEnum):
    """The namespaces of Linux (config-linux.md#namespaces)."""

    PID = "pid"
    NETWORK = "network"
    MOUNT = "mount"
    IPC = "ipc"
    UTS = "uts"
    USER = "user"
    CGROUP = "cgroup"
    TIME = "time"


class RootfsPropagation(OpenEnum):
    """Mount propagation of the root (config-linux.md#rootfs-mount-propagation)."""

    PRIVATE = "private"
    SHARED = "shared"
    SLAVE = "slave"
    UNBINDABLE = "unbindable"


class DeviceType(OpenEnum):
    """Types of mknod(1) (config-linux.md#devices)."""

    CHAR = "c"
    BLOCK = "b"
    UNBUFFERED = "u"
    """A character device."""
    FIFO = "p"


class MemoryPolicyMode(OpenEnum):
    """Modes of set_mempolicy(2) (config-linux.md#memory-policy)."""

    DEFAULT = "MPOL_DEFAULT"
    BIND = "MPOL_BIND"
    INTERLEAVE = "MPOL_INTERLEAVE"
    WEIGHTED_INTERLEAVE = "MPOL_WEIGHTED_INTERLEAVE"
    PREFERRED = "MPOL_PREFERRED"
    PREFERRED_MANY = "MPOL_PREFERRED_MANY"
    LOCAL = "MPOL_LOCAL"


class MemoryPolicyFlag(OpenEnum):
    """Flags of set_mempolicy(2) (config-linux.md#memory-policy)."""

    NUMA_BALANCING = "MPOL_F_NUMA_BALANCING"
    RELATIVE_NODES = "MPOL_F_RELATIVE_NODES"
    STATIC_NODES = "MPOL_F_STATIC_NODES"


class PersonalityDomain(OpenEnum):
    """Execution domains of personality(2) (config-linux.md#personality)."""

    LINUX = "LINUX"
    LINUX32 = "LINUX32"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class IDMapping(Model["places.IDMappingAt"]):
    """An id mapping: a range of ids of a user namespace and their ids on the host (config-linux.md#user-namespace-mappings)."""

    container_id: Uint32 = attrs.field(metadata={"key": "containerID"})
    """First id in the container."""
    host_id: Uint32 = attrs.field(metadata={"key": "hostID"})
    """First id on the host."""
    size: Uint32
    """Number of ids."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Namespace(Model["places.NamespaceAt"]):
    """A namespace of the container. The runtime namespace is used for each type that is not listed (config-linux.md#namespaces)."""

    type: NamespaceType
    """Type of the namespace. Each may appear once."""
    path: str | None = None
    """Absolute path of an existing namespace to join. Default: a new one."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class TimeOffset(Model["places.TimeOffsetAt"]):
    """Offset of a clock of the container from the host's (config-linux.md#offset-for-time-namespace)."""

    secs: Int64 | None = None
    """Whole seconds. Unit: seconds. Default: 0."""
    nanosecs: Uint32 | None = None
    """Nanoseconds in addition to ``secs``. Unit: nanoseconds. Default: 0."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Device(Model["places.DeviceAt"]):
    """A device file in addition to the default ones (config-linux.md#devices)."""

    type: DeviceType
    """Character, block or FIFO."""
    path: str
    """Absolute path in the container."""
    major: Int64 | None = None
    """Major number. Required unless the type is FIFO."""
    minor: Int64 | None = None
    """Minor number. Required unless the type is FIFO."""
    file_mode: FileMode | None = None
    """Permission bits, decimal in JSON. Default: 438."""
    uid: Uint32 | None = None
    """Owner, in the container's user namespace. Default: 0."""
    gid: Uint32 | None = None
    """Group, in the container's user namespace. Default: 0."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class NetDevice(Model["places.NetDeviceAt"]):
    """A network device that is moved from the runtime namespace to the container (config-linux.md#network-devices)."""

    name: str | None = None
    """Name in the container. ``%d`` in it is replaced by a free number. Default: the name on the host."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class IntelRdt(Model["places.IntelRdtAt"]):
    """Cache and memory bandwidth allocation by resctrl (config-linux.md#intelrdt)."""

    clos_id: str | None = attrs.field(default=None, metadata={"key": "closID"})
    """Class of service: a directory of resctrl, or ``/`` for its root. Default: the container's id."""
    schemata: tuple[str, ...] | None = None
    """Lines for the schemata file, written after the other two members. Default: none."""
    l3_cache_schema: str | None = None
    """A line ``L3:...`` for the schemata file. Default: none."""
    mem_bw_schema: MemoryBandwidth | None = None
    """A line ``MB:...`` for the schemata file. Default: none."""
    enable_monitoring: bool | None = None
    """Whether a monitoring group is made for the container. Default: false."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Personality(Model["places.PersonalityAt"]):
    """Execution domain, as in personality(2) (config-linux.md#personality)."""

    domain: PersonalityDomain
    """Domain. With ``LINUX32`` uname(2) reports a 32-bit machine."""
    flags: tuple[str, ...] | None = None
    """Flags. The spec defines none. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class MemoryPolicy(Model["places.MemoryPolicyAt"]):
    """NUMA memory policy, as in set_mempolicy(2) (config-linux.md#memory-policy)."""

    MISSING: ClassVar[str] = "invalid memory policy mode: it is missing and required"

    mode: MemoryPolicyMode
    """Mode, which selects the nodes that memory is allocated from."""
    nodes: str | None = None
    """Memory nodes, as ``0-3,7``. Some modes require them, others do not accept them. Default: none."""
    flags: tuple[MemoryPolicyFlag, ...] | None = None
    """Flags. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Linux(Model["places.LinuxAt"]):
    """The Linux part of a config (config-linux.md#linux-container-configuration)."""

    devices: tuple[Device, ...] | None = None
    """Device files in addition to the default ones. Default: none (config-linux.md#devices)."""
    net_devices: Mapping[str, NetDevice] | None = None
    """Network devices that are moved to the container, by name on the host. Default: none (config-linux.md#network-devices)."""
    uid_mappings: tuple[IDMapping, ...] | None = None
    """User id mappings of the user namespace. Default: the runtime's choice (config-linux.md#user-namespace-mappings)."""
    gid_mappings: tuple[IDMapping, ...] | None = None
    """Group id mappings of the user namespace. Default: the runtime's choice (config-linux.md#user-namespace-mappings)."""
    time_offsets: Mapping[str, TimeOffset] | None = None
    """Offsets of ``monotonic`` and ``boottime`` in a time namespace. Default: none (config-linux.md#offset-for-time-namespace)."""
    namespaces: tuple[Namespace, ...] | None = None
    """Namespaces of the container, each type once. Default: the runtime namespaces (config-linux.md#namespaces)."""
    resources: Resources | None = None
    """Limits of the container's cgroup. Default: no limits (config-linux.md#control-groups)."""
    cgroups_path: str | None = None
    """Path of the cgroup; an absolute one starts at a hierarchy's root. Default: the runtime's (config-linux.md#cgroups-path)."""
    rootfs_propagation: RootfsPropagation | None = None
    """Mount propagation of the root. Default: private (config-linux.md#rootfs-mount-propagation)."""
    seccomp: Seccomp | None = None
    """System call filter. Default: none (config-linux.md#seccomp)."""
    sysctl: Mapping[str, str] | None = None
    """Kernel parameters of the container namespaces. Default: unchanged (config-linux.md#sysctl)."""
    masked_paths: tuple[str, ...] | None = None
    """Masked paths: absolute paths in the container that cannot be read. Default: none (config-linux.md#masked-paths)."""
    readonly_paths: tuple[str, ...] | None = None
    """Read-only paths: absolute paths in the container that cannot be written. Default: none (config-linux.md#readonly-paths)."""
    mount_label: str | None = None
    """SELinux context of the mounts. Default: none (config-linux.md#mount-label)."""
    intel_rdt: IntelRdt | None = None
    """Cache and memory bandwidth allocation. Default: unchanged (config-linux.md#intelrdt)."""
    memory_policy: MemoryPolicy | None = None
    """NUMA memory policy. Default: unchanged (config-linux.md#memory-policy)."""
    personality: Personality | None = None
    """Execution domain. Default: unchanged (config-linux.md#personality)."""


MOUNT_OPTIONS: Final = tuple(
    """
    acl async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noacl noatime nodev nodiratime
    noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime
    relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro
    rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime
    suid symfollow sync tmpcopyup unbindable
""".split()
)
"""The options that the text defines (config.md#linux-mount-options). Any other is passed to the filesystem."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Root(Model["places.RootAt"]):
    """The root filesystem (config.md#root)."""

    path: str
    """Directory of the root filesystem. A relative path is relative to the bundle."""
    readonly: bool | None = None
    """Whether the root is read-only in the container. Default: false."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Mount(Model["places.MountAt"]):
    """A mount in addition to the root. Mounts are made in their order (config.md#mounts)."""

    destination: str
    """Absolute path of the mount point in the container."""
    type: str | None = None
    """Filesystem type, as in /proc/filesystems. Ignored for a bind mount. Default: none."""
    source: str | None = None
    """Device, or for a bind mount the file or directory. A relative path is relative to the bundle. Default: none."""
    options: tuple[str, ...] | None = None
    """Options of mount(8). ``bind`` or ``rbind`` makes a bind mount; unknown ones are passed to the filesystem. Default: none."""
    uid_mappings: tuple[IDMapping, ...] | None = None
    """User id mappings of an id-mapped mount. Requires ``gid_mappings`` and the option ``idmap`` or ``ridmap``. Default: none."""
    gid_mappings: tuple[IDMapping, ...] | None = None
    """Group id mappings of an id-mapped mount. Requires ``uid_mappings``. Default: none."""

    @property
    def is_bind(self) -> bool:
        """Whether this is a bind mount."""
        return self.type == "bind" or any(
            word in ("bind", "rbind") for option in self.options or () for word in split_option(option)
        )
