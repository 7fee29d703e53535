"""The parts of config.json for platforms other than Linux. They are imported when a document has one of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from .base import FileMode, FrozenJson, OpenEnum, Uint8, Uint16, Uint32, Uint64
from .model import Model

if TYPE_CHECKING:
    from . import places as places

# ---- Solaris (config-solaris.md) ----


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SolarisCappedCPU(Model["places.SolarisCappedCPUAt"]):
    """Limit of CPU time (config-solaris.md#cappedcpu)."""

    ncpus: str | None = None
    """Number of CPUs, as a decimal number. Unit: CPUs. Default: no limit."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SolarisCappedMemory(Model["places.SolarisCappedMemoryAt"]):
    """Limits of memory, with a scale such as ``512m`` (config-solaris.md#cappedmemory)."""

    physical: str | None = None
    """Physical memory. Default: no limit."""
    swap: str | None = None
    """Swap. Default: no limit."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SolarisAnet(Model["places.SolarisAnetAt"]):
    """A network interface that is created for the container (config-solaris.md#automatic-network-anet)."""

    linkname: str | None = None
    """Name of the VNIC. Default: the platform's."""
    lower_link: str | None = None
    """Link over which the VNIC is created. Default: the platform's."""
    allowed_address: str | None = None
    """Addresses that the container may use. Default: any."""
    configure_allowed_address: str | None = None
    """``true`` to configure the allowed addresses at each start. Default: the platform's."""
    defrouter: str | None = None
    """Default router. Default: none."""
    mac_address: str | None = None
    """MAC address, or a keyword of zonecfg(1M). Default: the platform's."""
    link_protection: str | None = None
    """Kinds of link protection, separated by commas. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Solaris(Model["places.SolarisAt"]):
    """The Solaris part of a config (config-solaris.md#solaris-application-container-configuration)."""

    milestone: str | None = None
    """Service that must be online before the process starts. Default: none (config-solaris.md#milestone)."""
    limitpriv: str | None = None
    """Upper bound of the privileges of a process, separated by commas. Default: the platform's (config-solaris.md#limitpriv)."""
    max_shm_memory: str | None = None
    """Maximum of shared memory, with a scale such as ``512m``. Default: no limit (config-solaris.md#maxshmmemory)."""
    capped_cpu: SolarisCappedCPU | None = attrs.field(default=None, metadata={"key": "cappedCPU"})
    """Limit of CPU time. Default: no limit (config-solaris.md#cappedcpu)."""
    capped_memory: SolarisCappedMemory | None = None
    """Limits of memory. Default: no limits (config-solaris.md#cappedmemory)."""
    anet: tuple[SolarisAnet, ...] | None = None
    """Network interfaces. Default: none (config-solaris.md#automatic-network-anet)."""


# ---- Windows (config-windows.md) ----


class WindowsDeviceIDType(OpenEnum):
    """Kinds of device identifiers (config-windows.md#devices)."""

    CLASS = "class"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsDevice(Model["places.WindowsDeviceAt"]):
    """A device that the container can use (config-windows.md#devices)."""

    id: str
    """Identifier of the device."""
    id_type: WindowsDeviceIDType
    """Kind of the identifier: a device interface class GUID."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsMemory(Model["places.WindowsMemoryAt"]):
    """Memory of a Windows container (config-windows.md#memory)."""

    limit: Uint64 | None = None
    """Limit of memory. Unit: bytes. Default: no limit."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsCPUGroupAffinity(Model["places.WindowsCPUGroupAffinityAt"]):
    """CPUs of one processor group (config-windows.md#cpu)."""

    mask: Uint64
    """One bit for each CPU of the group."""
    group: Uint32
    """The processor group."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsCPU(Model["places.WindowsCPUAt"]):
    """CPU time of a Windows container. ``count``, ``shares`` and ``maximum`` are mutually exclusive (config-windows.md#cpu)."""

    count: Uint64 | None = None
    """Number of CPUs. Default: no limit."""
    shares: Uint16 | None = None
    """Weight relative to other containers, from 0 to 10000. Default: unchanged."""
    maximum: Uint16 | None = None
    """Share of the processor time. Unit: hundredths of a percent. Default: no limit."""
    affinity: tuple[WindowsCPUGroupAffinity, ...] | None = None
    """CPUs to run on. Default: all."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsStorage(Model["places.WindowsStorageAt"]):
    """The system drive of a Windows container (config-windows.md#storage)."""

    iops: Uint64 | None = None
    """Unit: operations per second. Default: no limit."""
    bps: Uint64 | None = None
    """Unit: bytes per second. Default: no limit."""
    sandbox_size: Uint64 | None = None
    """Minimum size. Unit: bytes. Default: the platform's."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsResources(Model["places.WindowsResourcesAt"]):
    """Limits of a Windows container (config-windows.md#resources)."""

    memory: WindowsMemory | None = None
    """Memory. Default: no limit (config-windows.md#memory)."""
    cpu: WindowsCPU | None = None
    """CPU time. Default: no limit (config-windows.md#cpu)."""
    storage: WindowsStorage | None = None
    """The system drive. Default: no limits (config-windows.md#storage)."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsNetwork(Model["places.WindowsNetworkAt"]):
    """Network of a Windows container (config-windows.md#network)."""

    endpoint_list: tuple[str, ...] | None = None
    """Endpoints of the Host Network Service to connect to. Default: none."""
    allow_unqualified_dns_query: bool | None = attrs.field(default=None, metadata={"key": "allowUnqualifiedDNSQuery"})
    """Whether unqualified names are resolved. Default: false."""
    dns_search_list: tuple[str, ...] | None = attrs.field(default=None, metadata={"key": "DNSSearchList"})
    """DNS suffixes. Default: none."""
    network_shared_container_name: str | None = None
    """Container whose network stack is shared. Default: none."""
    network_namespace: str | None = None
    """Network namespace. Excludes the other members. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class WindowsHyperV(Model["places.WindowsHyperVAt"]):
    """Hyper-V isolation (config-windows.md#hyperv)."""

    utility_vm_path: str | None = attrs.field(default=None, metadata={"key": "utilityVMPath"})
    """Path of the image of the utility VM. Default: searched in the layers."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Windows(Model["places.WindowsAt"]):
    """The Windows part of a config (config-windows.md#windows-specific-container-configuration)."""

    layer_folders: tuple[str, ...]
    """Layer folders, the topmost first and the scratch space last, at least one (config-windows.md#layerfolders)."""
    devices: tuple[WindowsDevice, ...] | None = None
    """Devices that the container can use. Default: none (config-windows.md#devices)."""
    resources: WindowsResources | None = None
    """Limits. Default: no limits (config-windows.md#resources)."""
    network: WindowsNetwork | None = None
    """Network settings. Default: the platform's (config-windows.md#network)."""
    credential_spec: Mapping[str, FrozenJson] | None = None
    """Group Managed Service Account, with any members. Default: none (config-windows.md#credential-spec)."""
    servicing: bool | None = None
    """Whether pending servicing operations are applied. Default: false (config-windows.md#servicing)."""
    ignore_flushes_during_boot: bool | None = None
    """Whether disk flushes are skipped during boot. Default: false (config-windows.md#ignoreflushesduringboot)."""
    hyperv: WindowsHyperV | None = None
    """Hyper-V isolation. Default: a Windows Server container (config-windows.md#hyperv)."""


# ---- virtual machines (config-vm.md) ----


class VMImageFormat(OpenEnum):
    """Formats of a disk image (config-vm.md#image-object)."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VDI = "vdi"
    VMDK = "vmdk"
    VHD = "vhd"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class VMHypervisor(Model["places.VMHypervisorAt"]):
    """Hypervisor of the virtual machine (config-vm.md#hypervisor-object)."""

    path: str
    """Absolute path of the program on the host."""
    parameters: tuple[str, ...] | None = None
    """Parameters of the program. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class VMKernel(Model["places.VMKernelAt"]):
    """Kernel of the virtual machine (config-vm.md#kernel-object)."""

    path: str
    """Absolute path of the kernel on the host."""
    parameters: tuple[str, ...] | None = None
    """Parameters of the kernel. Default: none."""
    initrd: str | None = None
    """Absolute path of the initial ramdisk on the host. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class VMImage(Model["places.VMImageAt"]):
    """The root image of the virtual machine, not of the container (config-vm.md#image-object)."""

    path: str
    """Absolute path of the image on the host."""
    format: VMImageFormat
    """Format of the image."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class IOMem(Model["places.IOMemAt"]):
    """A range of hardware memory that the virtual machine may use (config-vm.md#hwconfig-object)."""

    first_gfn: Uint64 | None = attrs.field(default=None, metadata={"key": "firstGFN"})
    """First guest frame. Default: ``first_mfn``."""
    first_mfn: Uint64 = attrs.field(metadata={"key": "firstMFN"})
    """First physical page."""
    nr_mfns: Uint64 = attrs.field(metadata={"key": "nrMFNs"})
    """Number of pages. Unit: pages."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class VMHardware(Model["places.VMHardwareAt"]):
    """The hardware of the virtual machine (config-vm.md#hwconfig-object)."""

    device_tree: str | None = None
    """Path of the device tree. Default: none."""
    vcpus: Uint32 | None = None
    """Number of virtual CPUs. Default: the hypervisor's."""
    memory: Uint64 | None = None
    """Maximum of memory. Unit: bytes. Default: the hypervisor's."""
    dtdevs: tuple[str, ...] | None = None
    """Nodes of the host's device tree to pass through. Default: none."""
    iomems: tuple[IOMem, ...] | None = None
    """Hardware memory to pass through. Default: none."""
    irqs: tuple[Uint32, ...] | None = None
    """Interrupts to pass through. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class VM(Model["places.VMAt"]):
    """The container's virtual machine (config-vm.md#virtual-machine-specific-container-configuration)."""

    kernel: VMKernel
    """Kernel (config-vm.md#kernel-object)."""
    hypervisor: VMHypervisor | None = None
    """Hypervisor. Default: the runtime's choice (config-vm.md#hypervisor-object)."""
    image: VMImage | None = None
    """Root image. Default: the runtime's choice (config-vm.md#image-object)."""
    hw_config: VMHardware | None = None
    """Hardware. Default: the hypervisor's (config-vm.md#hwconfig-object)."""


# ---- z/OS (config-zos.md) ----


class ZOSNamespaceType(OpenEnum):
    """The namespaces of z/OS (config-zos.md#namespaces)."""

    MOUNT = "mount"
    PID = "pid"
    UTS = "uts"
    IPC = "ipc"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ZOSNamespace(Model["places.ZOSNamespaceAt"]):
    """A namespace of the container (config-zos.md#namespaces)."""

    type: ZOSNamespaceType
    """Type of the namespace. Each may appear once."""
    path: str | None = None
    """Absolute path of an existing namespace to join. Default: a new one."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ZOS(Model["places.ZOSAt"]):
    """The z/OS part of a config (config-zos.md#zos-container-configuration)."""

    namespaces: tuple[ZOSNamespace, ...] | None = None
    """Namespaces of the container, each type once. Default: the runtime namespaces (config-zos.md#namespaces)."""


# ---- FreeBSD (config-freebsd.md) ----


class FreeBSDSharing(OpenEnum):
    """Ways in which a jail shares a resource with its parent (config-freebsd.md#jail)."""

    DISABLE = "disable"
    NEW = "new"
    INHERIT = "inherit"


class FreeBSDSharingNoDisable(OpenEnum):
    """Ways in which a jail shares a resource that cannot be disabled (config-freebsd.md#jail)."""

    NEW = "new"
    INHERIT = "inherit"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class FreeBSDDevice(Model["places.FreeBSDDeviceAt"]):
    """A device of devfs that the container can use (config-freebsd.md#devices)."""

    path: str
    """Path relative to /dev."""
    mode: FileMode | None = None
    """Permission bits, decimal in JSON. Default: unchanged."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class FreeBSDJailAllow(Model["places.FreeBSDJailAllowAt"]):
    """Permissions of a jail (config-freebsd.md#jail)."""

    set_hostname: bool | None = None
    """Whether the hostname may be changed. Default: false."""
    raw_sockets: bool | None = None
    """Whether raw sockets may be used, as ping does. Default: false."""
    chflags: bool | None = None
    """Whether system file flags may be changed. Default: false."""
    mount: tuple[str, ...] | None = None
    """Filesystems that may be mounted. Default: none."""
    quotas: bool | None = None
    """Whether quotas may be changed. Default: false."""
    socket_af: bool | None = None
    """Whether sockets other than IPv4, IPv6 and Unix may be used. Default: false."""
    mlock: bool | None = None
    """Whether mlock(2) may be used. Default: false."""
    reserved_ports: bool | None = None
    """Whether ports below 1024 may be bound. Default: false."""
    suser: bool | None = None
    """Whether the jail has a super-user. Default: true."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class FreeBSDJail(Model["places.FreeBSDJailAt"]):
    """The jail(2) of the container (config-freebsd.md#jail)."""

    parent: str | None = None
    """Parent jail. Default: the host."""
    host: FreeBSDSharingNoDisable | None = None
    """Hostname, domainname, hostuuid and hostid. Default: the platform's."""
    ip4: FreeBSDSharing | None = None
    """IPv4. Must be absent if the jail has its own vnet. Default: the platform's."""
    ip4_addr: tuple[str, ...] | None = None
    """IPv4 addresses that may be used. Default: any."""
    ip6: FreeBSDSharing | None = None
    """IPv6. Must be absent if the jail has its own vnet. Default: the platform's."""
    ip6_addr: tuple[str, ...] | None = None
    """IPv6 addresses that may be used. Default: any."""
    vnet: FreeBSDSharingNoDisable | None = None
    """Network stack. Default: the platform's."""
    interface: str | None = None
    """Interface that gets the addresses as aliases. Default: none."""
    vnet_interfaces: tuple[str, ...] | None = None
    """Interfaces that are moved to the jail's vnet. Default: none."""
    sysvmsg: FreeBSDSharing | None = None
    """SysV message queues. Default: new."""
    sysvsem: FreeBSDSharing | None = None
    """SysV semaphores. Default: new."""
    sysvshm: FreeBSDSharing | None = None
    """SysV shared memory. Default: new."""
    enforce_statfs: Uint8 | None = None
    """Visible mounts: 0 all, 1 those below the root, 2 the root alone. Default: 2."""
    allow: FreeBSDJailAllow | None = None
    """Permissions. Default: the platform's."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class FreeBSD(Model["places.FreeBSDAt"]):
    """The FreeBSD part of a config (config-freebsd.md#freebsd-container-configuration)."""

    devices: tuple[FreeBSDDevice, ...] | None = None
    """Devices in addition to those of the devfs ruleset. Default: none (config-freebsd.md#devices)."""
    jail: FreeBSDJail | None = None
    """Parameters of the jail. Default: the platform's (config-freebsd.md#jail)."""
