"""The documents of the OCI runtime spec 1.3.0 as typed, immutable objects: config.json, the features document and the state.

`RuntimeSpec` is the class of config.json. Names are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import FrozenJson as FrozenJson
    from .base import FrozenMap as FrozenMap
    from .base import Json as Json
    from .base import OpenEnum as OpenEnum
    from .base import Problem as Problem
    from .base import Problems as Problems
    from .codec import converter as converter
    from .config import Hook as Hook
    from .config import Hooks as Hooks
    from .config import RuntimeSpec as RuntimeSpec
    from .edit import Change as Change
    from .edit import Diff as Diff
    from .edit import diff as diff
    from .edit import merge as merge
    from .features import CgroupFeatures as CgroupFeatures
    from .features import ContainerProcessState as ContainerProcessState
    from .features import ContainerStatus as ContainerStatus
    from .features import EnabledFeature as EnabledFeature
    from .features import Features as Features
    from .features import IntelRdtFeatures as IntelRdtFeatures
    from .features import LinuxFeatures as LinuxFeatures
    from .features import MemoryPolicyFeatures as MemoryPolicyFeatures
    from .features import MountExtensions as MountExtensions
    from .features import SeccompFeatures as SeccompFeatures
    from .features import StateDocument as StateDocument
    from .linux import CPU as CPU
    from .linux import BlockIO as BlockIO
    from .linux import Device as Device
    from .linux import DeviceCgroup as DeviceCgroup
    from .linux import DeviceType as DeviceType
    from .linux import HugepageLimit as HugepageLimit
    from .linux import IDMapping as IDMapping
    from .linux import IntelRdt as IntelRdt
    from .linux import InterfacePriority as InterfacePriority
    from .linux import Linux as Linux
    from .linux import Memory as Memory
    from .linux import MemoryPolicy as MemoryPolicy
    from .linux import MemoryPolicyFlag as MemoryPolicyFlag
    from .linux import MemoryPolicyMode as MemoryPolicyMode
    from .linux import Mount as Mount
    from .linux import Namespace as Namespace
    from .linux import NamespaceType as NamespaceType
    from .linux import NetDevice as NetDevice
    from .linux import Network as Network
    from .linux import Personality as Personality
    from .linux import PersonalityDomain as PersonalityDomain
    from .linux import Pids as Pids
    from .linux import Rdma as Rdma
    from .linux import Resources as Resources
    from .linux import Root as Root
    from .linux import RootfsPropagation as RootfsPropagation
    from .linux import ThrottleDevice as ThrottleDevice
    from .linux import TimeOffset as TimeOffset
    from .linux import WeightDevice as WeightDevice
    from .model import Model as Model
    from .places import At as At
    from .platforms import VM as VM
    from .platforms import ZOS as ZOS
    from .platforms import FreeBSD as FreeBSD
    from .platforms import FreeBSDDevice as FreeBSDDevice
    from .platforms import FreeBSDJail as FreeBSDJail
    from .platforms import FreeBSDJailAllow as FreeBSDJailAllow
    from .platforms import FreeBSDSharing as FreeBSDSharing
    from .platforms import FreeBSDSharingNoDisable as FreeBSDSharingNoDisable
    from .platforms import IOMem as IOMem
    from .platforms import Solaris as Solaris
    from .platforms import SolarisAnet as SolarisAnet
    from .platforms import SolarisCappedCPU as SolarisCappedCPU
    from .platforms import SolarisCappedMemory as SolarisCappedMemory
    from .platforms import VMHardware as VMHardware
    from .platforms import VMHypervisor as VMHypervisor
    from .platforms import VMImage as VMImage
    from .platforms import VMImageFormat as VMImageFormat
    from .platforms import VMKernel as VMKernel
    from .platforms import Windows as Windows
    from .platforms import WindowsCPU as WindowsCPU
    from .platforms import WindowsCPUGroupAffinity as WindowsCPUGroupAffinity
    from .platforms import WindowsDevice as WindowsDevice
    from .platforms import WindowsDeviceIDType as WindowsDeviceIDType
    from .platforms import WindowsHyperV as WindowsHyperV
    from .platforms import WindowsMemory as WindowsMemory
    from .platforms import WindowsNetwork as WindowsNetwork
    from .platforms import WindowsResources as WindowsResources
    from .platforms import WindowsStorage as WindowsStorage
    from .platforms import ZOSNamespace as ZOSNamespace
    from .platforms import ZOSNamespaceType as ZOSNamespaceType
    from .process import UNLIMITED as UNLIMITED
    from .process import Capabilities as Capabilities
    from .process import Capability as Capability
    from .process import ConsoleSize as ConsoleSize
    from .process import ExecCPUAffinity as ExecCPUAffinity
    from .process import IOPriority as IOPriority
    from .process import IOPriorityClass as IOPriorityClass
    from .process import ProcessSpec as ProcessSpec
    from .process import Rlimit as Rlimit
    from .process import RlimitType as RlimitType
    from .process import Scheduler as Scheduler
    from .process import SchedulerFlag as SchedulerFlag
    from .process import SchedulerPolicy as SchedulerPolicy
    from .process import User as User
    from .seccomp import Seccomp as Seccomp
    from .seccomp import SeccompAction as SeccompAction
    from .seccomp import SeccompArch as SeccompArch
    from .seccomp import SeccompFlag as SeccompFlag
    from .seccomp import SeccompOperator as SeccompOperator
    from .seccomp import Syscall as Syscall
    from .seccomp import SyscallArg as SyscallArg

_MODULES = {
    "base": "FrozenJson FrozenMap Json OpenEnum Problem Problems",
    "codec": "converter",
    "config": "Hook Hooks RuntimeSpec",
    "edit": "At Change Diff diff merge",
    "features": "CgroupFeatures ContainerProcessState ContainerStatus EnabledFeature Features "
    "IntelRdtFeatures LinuxFeatures MemoryPolicyFeatures MountExtensions SeccompFeatures StateDocument",
    "linux": "BlockIO CPU Device DeviceCgroup DeviceType HugepageLimit IDMapping IntelRdt InterfacePriority Linux Memory "
    "MemoryPolicy MemoryPolicyFlag MemoryPolicyMode Mount Namespace NamespaceType NetDevice Network Personality PersonalityDomain "
    "Pids Rdma Resources Root RootfsPropagation ThrottleDevice TimeOffset WeightDevice",
    "model": "Model",
    "platforms": "FreeBSD FreeBSDDevice FreeBSDJail FreeBSDJailAllow FreeBSDSharing FreeBSDSharingNoDisable IOMem Solaris "
    "SolarisAnet SolarisCappedCPU SolarisCappedMemory VM VMHardware VMHypervisor VMImage VMImageFormat "
    "VMKernel Windows WindowsCPU WindowsCPUGroupAffinity WindowsDevice WindowsDeviceIDType WindowsHyperV "
    "WindowsMemory WindowsNetwork WindowsResources WindowsStorage ZOS ZOSNamespace ZOSNamespaceType",
    "process": "UNLIMITED Capabilities Capability ConsoleSize ExecCPUAffinity IOPriority IOPriorityClass ProcessSpec Rlimit "
    "RlimitType Scheduler SchedulerFlag SchedulerPolicy User",
    "seccomp": "Seccomp SeccompAction SeccompArch SeccompFlag SeccompOperator Syscall SyscallArg",
}
__getattr__: Callable[[str], object]
__dir__: Callable[[], list[str]]
__getattr__, __dir__, __all__ = lazy_names(__name__, _MODULES)  # pyright: ignore[reportUnsupportedDunderAll]
