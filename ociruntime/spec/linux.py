"""``linux`` of config.json (config-linux.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import FrozenMap, OpenEnum
from .bases import (
    DeviceBase,
    IntelRdtBase,
    LinuxBase,
    MemoryPolicyBase,
    NamespaceBase,
    NetDeviceBase,
    PersonalityBase,
    TimeOffsetBase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .mounts import IDMapping
    from .resources import Resources
    from .scalars import FileMode, Int64, MemoryBandwidth, Uint32
    from .seccomp import Seccomp


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


class Namespace(NamespaceBase):
    """A namespace of the container; of a type that is not listed, it has the runtime's (config-linux.md#namespaces)."""

    SECTION: ClassVar[str] = "config-linux.md#namespaces"

    type: NamespaceType
    """Each type may come once."""
    path: str | None = None
    """Absolute path of an existing namespace to join. Default: a new one."""


class TimeOffset(TimeOffsetBase):
    """How far a clock of the container is ahead of the host's (config-linux.md#offset-for-time-namespace)."""

    SECTION: ClassVar[str] = "config-linux.md#offset-for-time-namespace"

    secs: Int64 | None = None
    """Unit: seconds. Default: 0."""
    nanosecs: Uint32 | None = None
    """Unit: nanoseconds. Default: 0."""


class Device(DeviceBase):
    """A device file to make, beyond the default ones (config-linux.md#devices)."""

    SECTION: ClassVar[str] = "config-linux.md#devices"

    type: DeviceType
    """Character, block or FIFO."""
    path: str
    """Absolute path in the container."""
    major: Int64 | None = None
    """Major number; needed unless it is a FIFO."""
    minor: Int64 | None = None
    """Minor number; needed unless it is a FIFO."""
    file_mode: FileMode | None = None
    """Permission bits, decimal in JSON. Default: 438."""
    uid: Uint32 | None = None
    """Owner, in the container's user namespace. Default: 0."""
    gid: Uint32 | None = None
    """Group, in the container's user namespace. Default: 0."""


class NetDevice(NetDeviceBase):
    """A network device of the host that moves into the container (config-linux.md#network-devices)."""

    SECTION: ClassVar[str] = "config-linux.md#network-devices"

    name: str | None = None
    """Its name there; ``%d`` in it becomes a free number. Default: that on the host."""


class IntelRdt(IntelRdtBase):
    """Cache and memory bandwidth through resctrl (config-linux.md#intelrdt)."""

    SECTION: ClassVar[str] = "config-linux.md#intelrdt"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"clos_id": "closID"})

    clos_id: str | None = None
    """Class of service: a directory of resctrl, ``/`` for its root. Default: the container's id."""
    schemata: tuple[str, ...] | None = None
    """Lines for the schemata file, written last. Default: none."""
    l3_cache_schema: str | None = None
    """A line ``L3:...`` for the schemata file, written first. Default: none."""
    mem_bw_schema: MemoryBandwidth | None = None
    """A line ``MB:...`` for the schemata file. Default: none."""
    enable_monitoring: bool | None = None
    """Whether the container has a monitoring group of its own. Default: false."""


class Personality(PersonalityBase):
    """What personality(2) sets (config-linux.md#personality)."""

    SECTION: ClassVar[str] = "config-linux.md#personality"

    domain: PersonalityDomain
    """``LINUX32`` makes uname(2) name a 32-bit machine."""
    flags: tuple[str, ...] | None = None
    """No flag is defined. Default: none."""


class MemoryPolicy(MemoryPolicyBase):
    """NUMA policy, by set_mempolicy(2) (config-linux.md#memory-policy)."""

    SECTION: ClassVar[str] = "config-linux.md#memory-policy"

    mode: MemoryPolicyMode
    """Where memory comes from."""
    nodes: str | None = None
    """Memory nodes, as ``0-3,7``; some modes need them, some refuse them. Default: none."""
    flags: tuple[MemoryPolicyFlag, ...] | None = None
    """Default: none."""


class Linux(LinuxBase):
    """The Linux part of a config (config-linux.md#linux-container-configuration)."""

    SECTION: ClassVar[str] = "config-linux.md#linux-container-configuration"

    devices: tuple[Device, ...] | None = None
    """Device files beyond the default ones. Default: none (config-linux.md#devices)."""
    net_devices: Mapping[str, NetDevice] | None = None
    """Network devices that move into the container, by their name on the host. Default: none (config-linux.md#network-devices)."""
    uid_mappings: tuple[IDMapping, ...] | None = None
    """User ids of the user namespace. Default: the runtime's choice (config-linux.md#user-namespace-mappings)."""
    gid_mappings: tuple[IDMapping, ...] | None = None
    """Group ids of the user namespace. Default: the runtime's choice (config-linux.md#user-namespace-mappings)."""
    time_offsets: Mapping[str, TimeOffset] | None = None
    """Clocks of the time namespace: ``monotonic`` and ``boottime``. Default: none (config-linux.md#offset-for-time-namespace)."""
    namespaces: tuple[Namespace, ...] | None = None
    """Namespaces of the container, each type once. Default: all of the runtime (config-linux.md#namespaces)."""
    resources: Resources | None = None
    """Limits of the container's cgroup. Default: no limits (config-linux.md#control-groups)."""
    cgroups_path: str | None = None
    """The cgroup; an absolute path is one below the hierarchies. Default: the runtime's choice (config-linux.md#cgroups-path)."""
    rootfs_propagation: RootfsPropagation | None = None
    """Mount propagation of the root. Default: private (config-linux.md#rootfs-mount-propagation)."""
    seccomp: Seccomp | None = None
    """Filter of system calls. Default: none (config-linux.md#seccomp)."""
    sysctl: Mapping[str, str] | None = None
    """Kernel parameters of the container's namespaces. Default: unchanged (config-linux.md#sysctl)."""
    masked_paths: tuple[str, ...] | None = None
    """Absolute paths in the container that cannot be read. Default: none (config-linux.md#masked-paths)."""
    readonly_paths: tuple[str, ...] | None = None
    """Absolute paths in the container that cannot be written. Default: none (config-linux.md#readonly-paths)."""
    mount_label: str | None = None
    """SELinux context of the mounts. Default: none (config-linux.md#mount-label)."""
    intel_rdt: IntelRdt | None = None
    """Cache and memory bandwidth. Default: unchanged (config-linux.md#intelrdt)."""
    memory_policy: MemoryPolicy | None = None
    """NUMA policy. Default: unchanged (config-linux.md#memory-policy)."""
    personality: Personality | None = None
    """Execution domain. Default: unchanged (config-linux.md#personality)."""
