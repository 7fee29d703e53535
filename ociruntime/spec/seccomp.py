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
    architectures: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[Syscall, ...] | None = None
