"""``vm`` of config.json (config-vm.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import FrozenMap, OpenEnum
from .bases import IOMemBase, VMBase, VMHardwareBase, VMHypervisorBase, VMImageBase, VMKernelBase

if TYPE_CHECKING:
    from .scalars import Uint32, Uint64


class VMImageFormat(OpenEnum):
    """Formats of a disk image (config-vm.md#image-object)."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VDI = "vdi"
    VMDK = "vmdk"
    VHD = "vhd"


class VMHypervisor(VMHypervisorBase):
    """What manages the virtual machine (config-vm.md#hypervisor-object)."""

    SECTION: ClassVar[str] = "config-vm.md#hypervisor-object"

    path: str
    """Absolute path of the program on the host."""
    parameters: tuple[str, ...] | None = None
    """Its parameters. Default: none."""


class VMKernel(VMKernelBase):
    """What the virtual machine boots (config-vm.md#kernel-object)."""

    SECTION: ClassVar[str] = "config-vm.md#kernel-object"

    path: str
    """Absolute path of the kernel on the host."""
    parameters: tuple[str, ...] | None = None
    """Its parameters. Default: none."""
    initrd: str | None = None
    """Absolute path of the initial ramdisk on the host. Default: none."""


class VMImage(VMImageBase):
    """The root image of the virtual machine, not of the container (config-vm.md#image-object)."""

    SECTION: ClassVar[str] = "config-vm.md#image-object"

    path: str
    """Absolute path of the image on the host."""
    format: VMImageFormat
    """Its format."""


class IOMem(IOMemBase):
    """A range of hardware memory that the virtual machine may use (config-vm.md#hwconfig-object)."""

    SECTION: ClassVar[str] = "config-vm.md#hwconfig-object"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"first_gfn": "firstGFN", "first_mfn": "firstMFN", "nr_mfns": "nrMFNs"})

    first_gfn: Uint64 | None = None
    """First guest frame. Default: ``first_mfn``."""
    first_mfn: Uint64
    """First physical page."""
    nr_mfns: Uint64
    """Unit: pages."""


class VMHardware(VMHardwareBase):
    """The hardware of the virtual machine (config-vm.md#hwconfig-object)."""

    SECTION: ClassVar[str] = "config-vm.md#hwconfig-object"

    device_tree: str | None = None
    """Path of the device tree. Default: none."""
    vcpus: Uint32 | None = None
    """Number of virtual CPUs. Default: the hypervisor's."""
    memory: Uint64 | None = None
    """Memory at most. Unit: bytes. Default: the hypervisor's."""
    dtdevs: tuple[str, ...] | None = None
    """Nodes of the host's device tree to pass through. Default: none."""
    iomems: tuple[IOMem, ...] | None = None
    """Hardware memory to pass through. Default: none."""
    irqs: tuple[Uint32, ...] | None = None
    """Interrupts to pass through. Default: none."""


class VM(VMBase):
    """The container's virtual machine (config-vm.md#virtual-machine-specific-container-configuration)."""

    SECTION: ClassVar[str] = "config-vm.md#virtual-machine-specific-container-configuration"

    kernel: VMKernel
    """What it boots (config-vm.md#kernel-object)."""
    hypervisor: VMHypervisor | None = None
    """What manages it. Default: the runtime's choice (config-vm.md#hypervisor-object)."""
    image: VMImage | None = None
    """Its root image. Default: the runtime's choice (config-vm.md#image-object)."""
    hw_config: VMHardware | None = None
    """Its hardware. Default: the hypervisor's (config-vm.md#hwconfig-object)."""
