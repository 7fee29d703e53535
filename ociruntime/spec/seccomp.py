"""``linux.seccomp`` of config.json (config-linux.md#seccomp)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import OpenEnum
from .bases import SeccompBase, SyscallArgBase, SyscallBase

if TYPE_CHECKING:
    from .scalars import Uint32, Uint64


class SeccompAction(OpenEnum):
    """What the kernel does with a system call (config-linux.md#seccomp)."""

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
    """Machines, as libseccomp names them (config-linux.md#seccomp)."""

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
    """How an argument is compared (config-linux.md#seccomp)."""

    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


class SyscallArg(SyscallArgBase):
    """A condition on one argument of a system call (config-linux.md#seccomp)."""

    SECTION: ClassVar[str] = "config-linux.md#seccomp"

    index: Uint32
    """Which argument: 0 to 5."""
    value: Uint64
    """What it is compared with; for ``SCMP_CMP_MASKED_EQ`` the mask."""
    value_two: Uint64 | None = None
    """For ``SCMP_CMP_MASKED_EQ`` the value under the mask. Default: 0."""
    op: SeccompOperator
    """How it is compared."""


class Syscall(SyscallBase):
    """What happens on these system calls (config-linux.md#seccomp)."""

    SECTION: ClassVar[str] = "config-linux.md#seccomp"

    names: tuple[str, ...]
    """At least one."""
    action: SeccompAction
    """What the kernel does."""
    errno_ret: Uint32 | None = None
    """The errno of ``SCMP_ACT_ERRNO`` and ``SCMP_ACT_TRACE``. Default: EPERM."""
    args: tuple[SyscallArg, ...] | None = None
    """Conditions that must all hold. Default: none."""


class Seccomp(SeccompBase):
    """A filter of system calls (config-linux.md#seccomp)."""

    SECTION: ClassVar[str] = "config-linux.md#seccomp"

    default_action: SeccompAction
    """What happens on a system call without a rule."""
    default_errno_ret: Uint32 | None = None
    """The errno of a default action of ``SCMP_ACT_ERRNO`` or ``SCMP_ACT_TRACE``. Default: EPERM."""
    architectures: tuple[SeccompArch, ...] | None = None
    """Machines beyond the native one whose system calls are filtered too. Default: none."""
    flags: tuple[SeccompFlag, ...] | None = None
    """Flags of seccomp(2). Default: the runtime's choice."""
    listener_path: str | None = None
    """Unix socket of the agent that decides on ``SCMP_ACT_NOTIFY``. Default: none."""
    listener_metadata: str | None = None
    """Opaque text for the agent. Default: none."""
    syscalls: tuple[Syscall, ...] | None = None
    """Rules. Default: none."""
