"""The typed object model of the OCI runtime spec 1.3.0: config.json, the features document and the state.

Values are immutable, equal and hashable by value, and read and written exactly. `RuntimeSpec` is where to start. Names are imported
when they are first used, so that the classes of other platforms cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import FrozenJson as FrozenJson
    from .base import FrozenMap as FrozenMap
    from .base import Json as Json
    from .base import Model as Model
    from .base import OpenEnum as OpenEnum
    from .capabilities import Capability as Capability
    from .codec import converter as converter
    from .compare import Change as Change
    from .compare import diff as diff
    from .config import RuntimeSpec as RuntimeSpec
    from .features import CgroupFeatures as CgroupFeatures
    from .features import EnabledFeature as EnabledFeature
    from .features import Features as Features
    from .features import IntelRdtFeatures as IntelRdtFeatures
    from .features import LinuxFeatures as LinuxFeatures
    from .features import MemoryPolicyFeatures as MemoryPolicyFeatures
    from .features import MountExtensions as MountExtensions
    from .features import SeccompFeatures as SeccompFeatures
    from .freebsd import FreeBSD as FreeBSD
    from .freebsd import FreeBSDDevice as FreeBSDDevice
    from .freebsd import FreeBSDJail as FreeBSDJail
    from .freebsd import FreeBSDJailAllow as FreeBSDJailAllow
    from .freebsd import FreeBSDSharing as FreeBSDSharing
    from .freebsd import FreeBSDSharingNoDisable as FreeBSDSharingNoDisable
    from .hooks import Hook as Hook
    from .hooks import Hooks as Hooks
    from .linux import Device as Device
    from .linux import DeviceType as DeviceType
    from .linux import IntelRdt as IntelRdt
    from .linux import Linux as Linux
    from .linux import MemoryPolicy as MemoryPolicy
    from .linux import MemoryPolicyFlag as MemoryPolicyFlag
    from .linux import MemoryPolicyMode as MemoryPolicyMode
    from .linux import Namespace as Namespace
    from .linux import NamespaceType as NamespaceType
    from .linux import NetDevice as NetDevice
    from .linux import Personality as Personality
    from .linux import PersonalityDomain as PersonalityDomain
    from .linux import RootfsPropagation as RootfsPropagation
    from .linux import TimeOffset as TimeOffset
    from .mounts import IDMapping as IDMapping
    from .mounts import Mount as Mount
    from .mounts import Root as Root
    from .overlay import merge as merge
    from .paths import At as At
    from .process import UNLIMITED as UNLIMITED
    from .process import Capabilities as Capabilities
    from .process import ConsoleSize as ConsoleSize
    from .process import ExecCPUAffinity as ExecCPUAffinity
    from .process import IOPriority as IOPriority
    from .process import IOPriorityClass as IOPriorityClass
    from .process import Process as Process
    from .process import Rlimit as Rlimit
    from .process import RlimitType as RlimitType
    from .process import Scheduler as Scheduler
    from .process import SchedulerFlag as SchedulerFlag
    from .process import SchedulerPolicy as SchedulerPolicy
    from .process import User as User
    from .resources import CPU as CPU
    from .resources import BlockIO as BlockIO
    from .resources import DeviceCgroup as DeviceCgroup
    from .resources import HugepageLimit as HugepageLimit
    from .resources import InterfacePriority as InterfacePriority
    from .resources import Memory as Memory
    from .resources import Network as Network
    from .resources import Pids as Pids
    from .resources import Rdma as Rdma
    from .resources import Resources as Resources
    from .resources import ThrottleDevice as ThrottleDevice
    from .resources import WeightDevice as WeightDevice
    from .seccomp import Seccomp as Seccomp
    from .seccomp import SeccompAction as SeccompAction
    from .seccomp import SeccompArch as SeccompArch
    from .seccomp import SeccompFlag as SeccompFlag
    from .seccomp import SeccompOperator as SeccompOperator
    from .seccomp import Syscall as Syscall
    from .seccomp import SyscallArg as SyscallArg
    from .solaris import Solaris as Solaris
    from .solaris import SolarisAnet as SolarisAnet
    from .solaris import SolarisCappedCPU as SolarisCappedCPU
    from .solaris import SolarisCappedMemory as SolarisCappedMemory
    from .state import ContainerProcessState as ContainerProcessState
    from .state import ContainerStatus as ContainerStatus
    from .state import StateDocument as StateDocument
    from .vm import VM as VM
    from .vm import IOMem as IOMem
    from .vm import VMHardware as VMHardware
    from .vm import VMHypervisor as VMHypervisor
    from .vm import VMImage as VMImage
    from .vm import VMImageFormat as VMImageFormat
    from .vm import VMKernel as VMKernel
    from .windows import Windows as Windows
    from .windows import WindowsCPU as WindowsCPU
    from .windows import WindowsCPUGroupAffinity as WindowsCPUGroupAffinity
    from .windows import WindowsDevice as WindowsDevice
    from .windows import WindowsDeviceIDType as WindowsDeviceIDType
    from .windows import WindowsHyperV as WindowsHyperV
    from .windows import WindowsMemory as WindowsMemory
    from .windows import WindowsNetwork as WindowsNetwork
    from .windows import WindowsResources as WindowsResources
    from .windows import WindowsStorage as WindowsStorage
    from .zos import ZOS as ZOS
    from .zos import ZOSNamespace as ZOSNamespace
    from .zos import ZOSNamespaceType as ZOSNamespaceType

_MODULES = {
    "base": "FrozenMap Json FrozenJson Model OpenEnum",
    "capabilities": "Capability",
    "codec": "converter",
    "config": "RuntimeSpec",
    "compare": "Change diff",
    "features": "CgroupFeatures EnabledFeature Features IntelRdtFeatures LinuxFeatures MemoryPolicyFeatures MountExtensions "
    "SeccompFeatures",
    "freebsd": "FreeBSD FreeBSDDevice FreeBSDJail FreeBSDJailAllow FreeBSDSharing FreeBSDSharingNoDisable",
    "hooks": "Hook Hooks",
    "linux": "Device DeviceType IntelRdt Linux MemoryPolicy MemoryPolicyFlag MemoryPolicyMode Namespace NamespaceType NetDevice "
    "Personality PersonalityDomain RootfsPropagation TimeOffset",
    "overlay": "merge",
    "mounts": "IDMapping Mount Root",
    "paths": "At",
    "process": "UNLIMITED Capabilities ConsoleSize ExecCPUAffinity IOPriority IOPriorityClass Process Rlimit RlimitType "
    "Scheduler SchedulerFlag SchedulerPolicy User",
    "resources": "CPU BlockIO DeviceCgroup HugepageLimit InterfacePriority Memory Network Pids Rdma Resources ThrottleDevice "
    "WeightDevice",
    "seccomp": "Seccomp SeccompAction SeccompArch SeccompFlag SeccompOperator Syscall SyscallArg",
    "solaris": "Solaris SolarisAnet SolarisCappedCPU SolarisCappedMemory",
    "state": "ContainerProcessState ContainerStatus StateDocument",
    "vm": "VM IOMem VMHardware VMHypervisor VMImage VMImageFormat VMKernel",
    "windows": "Windows WindowsCPU WindowsCPUGroupAffinity WindowsDevice WindowsDeviceIDType WindowsHyperV WindowsMemory "
    "WindowsNetwork WindowsResources WindowsStorage",
    "zos": "ZOS ZOSNamespace ZOSNamespaceType",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
