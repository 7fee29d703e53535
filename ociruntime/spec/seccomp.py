"""``linux.seccomp`` of config.json (config-linux.md#seccomp)."""

from __future__ import annotations

import attrs

from .base import Model, OpenEnum


class SeccompAction(OpenEnum):
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
    """config-linux.md#seccomp, architectures."""

    X86 = "SCMP_ARCH_X86"
    X86_64 = "SCMP_ARCH_X86_64"
    X32 = "SCMP_ARCH_X32"
    ARM = "SCMP_ARCH_ARM"
    AARCH64 = "SCMP_ARCH_AARCH64"
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
    PARISC = "SCMP_ARCH_PARISC"
    PARISC64 = "SCMP_ARCH_PARISC64"
    RISCV64 = "SCMP_ARCH_RISCV64"
    LOONGARCH64 = "SCMP_ARCH_LOONGARCH64"
    M68K = "SCMP_ARCH_M68K"
    SH = "SCMP_ARCH_SH"
    SHEB = "SCMP_ARCH_SHEB"


class SeccompOperator(OpenEnum):
    NE = "SCMP_CMP_NE"
    LT = "SCMP_CMP_LT"
    LE = "SCMP_CMP_LE"
    EQ = "SCMP_CMP_EQ"
    GE = "SCMP_CMP_GE"
    GT = "SCMP_CMP_GT"
    MASKED_EQ = "SCMP_CMP_MASKED_EQ"


@attrs.frozen(kw_only=True, repr=False)
class SyscallArg(Model):
    """A condition on one argument, 0 to 5."""

    index: int
    value: int
    value_two: int | None = None
    op: SeccompOperator


@attrs.frozen(kw_only=True, repr=False)
class Syscall(Model):
    """What happens on these system calls."""

    names: tuple[str, ...]
    action: SeccompAction
    errno_ret: int | None = None
    args: tuple[SyscallArg, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Seccomp(Model):
    """A filter of system calls."""

    default_action: SeccompAction
    default_errno_ret: int | None = None
    architectures: tuple[SeccompArch, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[Syscall, ...] | None = None
