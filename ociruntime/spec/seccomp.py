"""``linux.seccomp`` of config.json (config-linux.md#seccomp)."""

from typing import TYPE_CHECKING

import attrs

from .base import OpenEnum, Uint32, Uint64
from .model import Model

if TYPE_CHECKING:
    from . import places as places


class SeccompAction(OpenEnum):
    """Actions of a filter on a system call (config-linux.md#seccomp)."""

    KILL = "SCMP_ACT_KILL"
    KILL_PROCESS = "SCMP_ACT_KILL_PROCESS"
    KILL_THREAD = "SCMP_ACT_KILL_THREAD"
    TRAP = "SCMP_ACT_TRAP"
    ERRNO = "SCMP_ACT_ERRNO"
    TRACE = "SCMP_ACT_TRACE"
    ALLOW = "SCMP_ACT_ALLOW"
    LOG = "SCMP_ACT_LOG"
    NOTIFY = "SCMP_ACT_NOTIFY"


class SeccompArch(OpenEnum):
    """Architectures, by their names in libseccomp (config-linux.md#seccomp)."""

    X86 = "SCMP_ARCH_X86"
    X86_64 = "SCMP_ARCH_X86_64"
    X32 = "SCMP_ARCH_X32"
    ARM = "SCMP_ARCH_ARM"
    AARCH64 = "SCMP_ARCH_AARCH64"
    LOONGARCH64 = "SCMP_ARCH_LOONGARCH64"
    M68K = "SCMP_ARCH_M68K"
    MIPS = "SCMP_ARCH_MIPS"
    MIPS64 = "SCMP_ARCH_MIPS64"
    MIPS64N32 = "SCMP_ARCH_MIPS64N32"
    MIPSEL = "SCMP_ARCH_MIPSEL"
    MIPSEL64 = "SCMP_ARCH_MIPSEL64"
    MIPSEL64N32 = "SCMP_ARCH_MIPSEL64N32"
    PPC = "SCMP_ARCH_PPC"
    PPC64 = "SCMP_ARCH_PPC64"
    PPC64LE = "SCMP_ARCH_PPC64LE"
    S390 = "SCMP_ARCH_S390"
    S390X = "SCMP_ARCH_S390X"
    SH = "SCMP_ARCH_SH"
    SHEB = "SCMP_ARCH_SHEB"
    PARISC = "SCMP_ARCH_PARISC"
    PARISC64 = "SCMP_ARCH_PARISC64"
    RISCV64 = "SCMP_ARCH_RISCV64"


class SeccompFlag(OpenEnum):
    """Flags of seccomp(2) (config-linux.md#seccomp)."""

    TSYNC = "SECCOMP_FILTER_FLAG_TSYNC"
    LOG = "SECCOMP_FILTER_FLAG_LOG"
    SPEC_ALLOW = "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
    WAIT_KILLABLE_RECV = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"


class SeccompOperator(OpenEnum):
    """Comparisons of an argument (config-linux.md#seccomp)."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SyscallArg(Model["places.SyscallArgAt"]):
    """A condition on one argument of a system call (config-linux.md#seccomp)."""

    index: Uint32
    """Index of the argument, from 0 to 5."""
    value: Uint64
    """Value to compare with; the mask for ``SCMP_CMP_MASKED_EQ``."""
    value_two: Uint64 | None = None
    """Value of the masked argument, for ``SCMP_CMP_MASKED_EQ``. Default: 0."""
    op: SeccompOperator
    """Comparison."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Syscall(Model["places.SyscallAt"]):
    """A rule: the action on some system calls (config-linux.md#seccomp)."""

    names: tuple[str, ...]
    """Names of the system calls, at least one."""
    action: SeccompAction
    """Action on the system calls."""
    errno_ret: Uint32 | None = None
    """Error number of ``SCMP_ACT_ERRNO`` and ``SCMP_ACT_TRACE``. Default: EPERM."""
    args: tuple[SyscallArg, ...] | None = None
    """Conditions on the arguments, all of which must hold. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Seccomp(Model["places.SeccompAt"]):
    """A system call filter (config-linux.md#seccomp)."""

    default_action: SeccompAction
    """Action on a system call without a matching rule."""
    default_errno_ret: Uint32 | None = None
    """Error number of the default action, if that is ``SCMP_ACT_ERRNO`` or ``SCMP_ACT_TRACE``. Default: EPERM."""
    architectures: tuple[SeccompArch, ...] | None = None
    """Architectures in addition to the native one. Default: none."""
    flags: tuple[SeccompFlag, ...] | None = None
    """Flags of seccomp(2). Default: the runtime's choice."""
    listener_path: str | None = None
    """Path of the Unix socket of the agent that handles ``SCMP_ACT_NOTIFY``. Default: none."""
    listener_metadata: str | None = None
    """Opaque data for the agent. Default: none."""
    syscalls: tuple[Syscall, ...] | None = None
    """Rules of the filter. Default: none."""
