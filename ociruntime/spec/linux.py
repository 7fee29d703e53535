"""``root``, ``mounts`` and ``linux`` of config.json (config.md, config-linux.md)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from .base import FileMode, Int64, MemoryBandwidth, OpenEnum, Uint32, split_option
from .model import Model
from .resources import Resources
from .seccomp import Seccomp

if TYPE_CHECKING:
    from . import places as places


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
