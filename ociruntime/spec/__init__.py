"""The typed object model of config.json (OCI runtime spec 1.3.0): immutable values, read and written exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import FrozenMap as FrozenMap
    from .base import Model as Model
    from .config import Hook as Hook
    from .config import Hooks as Hooks
    from .config import Mount as Mount
    from .config import Root as Root
    from .config import RuntimeSpec as RuntimeSpec
    from .linux import Device as Device
    from .linux import IDMapping as IDMapping
    from .linux import IntelRdt as IntelRdt
    from .linux import Linux as Linux
    from .linux import MemoryPolicy as MemoryPolicy
    from .linux import Namespace as Namespace
    from .linux import NamespaceType as NamespaceType
    from .linux import NetDevice as NetDevice
    from .linux import Personality as Personality
    from .linux import TimeOffset as TimeOffset
    from .process import Capabilities as Capabilities
    from .process import ConsoleSize as ConsoleSize
    from .process import ExecCPUAffinity as ExecCPUAffinity
    from .process import IOPriority as IOPriority
    from .process import Process as Process
    from .process import Rlimit as Rlimit
    from .process import Scheduler as Scheduler
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
    from .seccomp import SeccompOperator as SeccompOperator
    from .seccomp import Syscall as Syscall
    from .seccomp import SyscallArg as SyscallArg

_MODULES = {
    "base": "FrozenMap Model",
    "config": "Hook Hooks Mount Root RuntimeSpec",
    "linux": "Device IDMapping IntelRdt Linux MemoryPolicy Namespace NamespaceType NetDevice Personality TimeOffset",
    "process": "Capabilities ConsoleSize ExecCPUAffinity IOPriority Process Rlimit Scheduler SchedulerPolicy User",
    "resources": "CPU BlockIO DeviceCgroup HugepageLimit InterfacePriority Memory Network Pids Rdma Resources ThrottleDevice "
    "WeightDevice",
    "seccomp": "Seccomp SeccompAction SeccompArch SeccompOperator Syscall SyscallArg",
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
