"""``windows`` of config.json (config-windows.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import FrozenMap, OpenEnum
from .bases import (
    WindowsBase,
    WindowsCPUBase,
    WindowsCPUGroupAffinityBase,
    WindowsDeviceBase,
    WindowsHyperVBase,
    WindowsMemoryBase,
    WindowsNetworkBase,
    WindowsResourcesBase,
    WindowsStorageBase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .base import FrozenJson
    from .scalars import Uint16, Uint32, Uint64


class WindowsDeviceIDType(OpenEnum):
    """How a device is named (config-windows.md#devices)."""

    CLASS = "class"


class WindowsDevice(WindowsDeviceBase):
    """A device that the container can use (config-windows.md#devices)."""

    SECTION: ClassVar[str] = "config-windows.md#devices"

    id: str
    """The device."""
    id_type: WindowsDeviceIDType
    """How it is named: a device interface class GUID."""


class WindowsMemory(WindowsMemoryBase):
    """Memory of a Windows container (config-windows.md#memory)."""

    SECTION: ClassVar[str] = "config-windows.md#memory"

    limit: Uint64 | None = None
    """Unit: bytes. Default: no limit."""


class WindowsCPUGroupAffinity(WindowsCPUGroupAffinityBase):
    """CPUs of one processor group (config-windows.md#cpu)."""

    SECTION: ClassVar[str] = "config-windows.md#cpu"

    mask: Uint64
    """One bit for each CPU of the group."""
    group: Uint32
    """The processor group."""


class WindowsCPU(WindowsCPUBase):
    """CPU time of a Windows container; count, shares and maximum exclude each other (config-windows.md#cpu)."""

    SECTION: ClassVar[str] = "config-windows.md#cpu"

    count: Uint64 | None = None
    """Number of CPUs. Default: no limit."""
    shares: Uint16 | None = None
    """Weight against others, 0 to 10000. Default: unchanged."""
    maximum: Uint16 | None = None
    """Part of the processor time. Unit: hundredths of a percent. Default: no limit."""
    affinity: tuple[WindowsCPUGroupAffinity, ...] | None = None
    """CPUs to run on. Default: all."""


class WindowsStorage(WindowsStorageBase):
    """The system drive of a Windows container (config-windows.md#storage)."""

    SECTION: ClassVar[str] = "config-windows.md#storage"

    iops: Uint64 | None = None
    """Unit: operations per second. Default: no limit."""
    bps: Uint64 | None = None
    """Unit: bytes per second. Default: no limit."""
    sandbox_size: Uint64 | None = None
    """Size at least. Unit: bytes. Default: the platform's."""


class WindowsResources(WindowsResourcesBase):
    """Limits of a Windows container (config-windows.md#resources)."""

    SECTION: ClassVar[str] = "config-windows.md#resources"

    memory: WindowsMemory | None = None
    """Memory. Default: no limit (config-windows.md#memory)."""
    cpu: WindowsCPU | None = None
    """CPU time. Default: no limit (config-windows.md#cpu)."""
    storage: WindowsStorage | None = None
    """The system drive. Default: no limits (config-windows.md#storage)."""


class WindowsNetwork(WindowsNetworkBase):
    """Network of a Windows container (config-windows.md#network)."""

    SECTION: ClassVar[str] = "config-windows.md#network"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap(
        {"allow_unqualified_dns_query": "allowUnqualifiedDNSQuery", "dns_search_list": "DNSSearchList"}
    )

    endpoint_list: tuple[str, ...] | None = None
    """Endpoints of the Host Network Service to connect to. Default: none."""
    allow_unqualified_dns_query: bool | None = None
    """Whether unqualified names are resolved. Default: false."""
    dns_search_list: tuple[str, ...] | None = None
    """DNS suffixes. Default: none."""
    network_shared_container_name: str | None = None
    """Container whose network stack is shared. Default: none."""
    network_namespace: str | None = None
    """Network namespace; excludes the other members. Default: none."""


class WindowsHyperV(WindowsHyperVBase):
    """Hyper-V isolation (config-windows.md#hyperv)."""

    SECTION: ClassVar[str] = "config-windows.md#hyperv"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"utility_vm_path": "utilityVMPath"})

    utility_vm_path: str | None = None
    """Image of the utility VM. Default: looked for in the layers."""


class Windows(WindowsBase):
    """The Windows part of a config (config-windows.md#windows-specific-container-configuration)."""

    SECTION: ClassVar[str] = "config-windows.md#windows-specific-container-configuration"

    layer_folders: tuple[str, ...]
    """Layers, topmost first and the scratch space last; at least one (config-windows.md#layerfolders)."""
    devices: tuple[WindowsDevice, ...] | None = None
    """Devices that the container can use. Default: none (config-windows.md#devices)."""
    resources: WindowsResources | None = None
    """Limits. Default: no limits (config-windows.md#resources)."""
    network: WindowsNetwork | None = None
    """Network. Default: the platform's (config-windows.md#network)."""
    credential_spec: Mapping[str, FrozenJson] | None = None
    """Group Managed Service Account; its members are free. Default: none (config-windows.md#credential-spec)."""
    servicing: bool | None = None
    """Whether pending servicing operations are applied. Default: false (config-windows.md#servicing)."""
    ignore_flushes_during_boot: bool | None = None
    """Whether disk flushes are skipped during boot. Default: false (config-windows.md#ignoreflushesduringboot)."""
    hyperv: WindowsHyperV | None = None
    """Hyper-V isolation. Default: a Windows Server container (config-windows.md#hyperv)."""
