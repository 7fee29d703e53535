"""Joining the pid namespace of a running container, after which its processes see the init.

In a container without a user namespace a process with CAP_SYS_PTRACE can open the memory and the descriptors of every process that
it sees, dumpable or not (CVE-2016-9962). So the init forks into the pid namespace after it has given up everything that the program
does not get, and has loaded the seccomp filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..spec.process import UNLIMITED
from . import kernel
from .process import CAP_SYS_RESOURCE, compile_oom_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..host import Host
    from ..spec import ProcessSpec, Rlimit, Seccomp, SyscallArg
    from .model import PlanBuilder

_ALLOWED: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_NPROC: Final = "RLIMIT_NPROC"
_ROOM: Final = 2
"""The processes of the user when the init forks: itself and its child. The change of user is allowed up to the limit."""


def forks_last(process: ProcessSpec, profile: Seccomp | None, host: Host, *, user: bool) -> bool:
    """Return whether the init can fork after all other steps.

    It cannot if a scheduling attribute does not survive the fork, if the filter denies a later step, or if the limit of processes
    has no room for the init.

    Args:
        user: whether the init is in the container's user namespace, where it cannot raise limits.
    """
    limit = _process_limit(process)
    may_raise = host.privileged and not user and host.capabilities & CAP_SYS_RESOURCE
    if limit is not None and limit.hard - limit.soft < _ROOM and not may_raise:
        return False
    scheduler = process.scheduler
    if scheduler is not None and (scheduler.policy == "SCHED_DEADLINE" or "SCHED_FLAG_RESET_ON_FORK" in (scheduler.flags or ())):
        return False
    if profile is None:
        return True
    calls: dict[str, tuple[int | None, ...]] = {
        "clone": (kernel.CLONE_PARENT | kernel.CLONE_PARENT_SETTID, 0, None, 0, 0),
        "sendmsg": (None, None, kernel.MSG_NOSIGNAL),
        "read": (None, None, 1),
        "setsid": (),
    }
    if not process.no_new_privileges:
        calls["capset"] = (None, None)
    if any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        calls["close"] = (None,)
    if process.terminal:
        calls["ioctl"] = (0, kernel.TIOCSCTTY, 0)
    if limit is not None:
        calls["prlimit64"] = (0, kernel.RLIMITS[_NPROC], None, 0)
    return permits(profile, calls)


def permits(profile: Seccomp, calls: Mapping[str, Sequence[int | None]]) -> bool:
    """Return whether a filter certainly allows these system calls.

    Args:
        calls: the arguments by the name of the call; None for an unknown one.
    """
    return all(_permits(profile, name, arguments) for name, arguments in calls.items())


def _permits(profile: Seccomp, name: str, arguments: Sequence[int | None]) -> bool:
    rules = [rule for rule in profile.syscalls or () if name in rule.names]
    unconditional = [rule for rule in rules if not rule.args]
    if unconditional:  # they override all others; two that contradict each other are not trusted
        return all(rule.action in _ALLOWED for rule in unconditional)
    for rule in rules:
        conditions = rule.args or ()
        outcomes = [_holds(condition, arguments) for condition in conditions]
        any_holds = len({condition.index for condition in conditions}) < len(outcomes)  # if an argument occurs twice, as in runc
        decisive = any_holds in outcomes
        if None in outcomes and not decisive:
            return False
        if decisive is any_holds:
            return rule.action in _ALLOWED
    return profile.default_action in _ALLOWED


def _holds(condition: SyscallArg, arguments: Sequence[int | None]) -> bool | None:
    """Return whether a condition holds, or None if that is unknown."""
    argument = arguments[condition.index] if condition.index < len(arguments) else None
    if argument is None:
        return None
    value, other = condition.value, condition.value_two or 0
    return {
        "SCMP_CMP_NE": argument != value,
        "SCMP_CMP_LT": argument < value,
        "SCMP_CMP_LE": argument <= value,
        "SCMP_CMP_EQ": argument == value,
        "SCMP_CMP_GE": argument >= value,
        "SCMP_CMP_GT": argument > value,
        "SCMP_CMP_MASKED_EQ": argument & value == other,
    }.get(condition.op)


def _process_limit(process: ProcessSpec) -> Rlimit | None:
    """Return the limit of the user's processes, if there is one."""
    return next((limit for limit in process.rlimits or () if limit.type == _NPROC and limit.soft != UNLIMITED), None)


def allow_fork(builder: PlanBuilder, process: ProcessSpec) -> None:
    """Set the limit of the user's processes, with room for the fork."""
    limit = _process_limit(process)
    if limit is not None:
        soft = min(limit.soft + _ROOM, UNLIMITED)
        hard = max(soft, limit.hard)
        builder.add("rlimit", kernel.RLIMITS[_NPROC], soft, hard, text=f"{_NPROC} soft={soft} hard={hard}, with room for the fork")


def close_unneeded(builder: PlanBuilder) -> None:
    """Close the file descriptors that the program does not get."""
    builder.add("close_all", text="file descriptors that the program does not get, except for the control socket")


def hide_progress(builder: PlanBuilder) -> None:
    """Keep the progress page out of the child, whose memory the container can write; after the filter, madvise may be denied."""
    builder.add("keep_page", text="progress page, kept out of the child process")


def compile_last_fork(builder: PlanBuilder, process: ProcessSpec, host: Host) -> None:
    """Fork into the pid namespace, and set what only the child can set."""
    builder.add("fork_last", text="child process in the pid namespace that was joined")
    compile_oom_score(builder, process, host)
    limit = _process_limit(process)
    if limit is not None:
        builder.add("rlimit", kernel.RLIMITS[_NPROC], limit.soft, limit.hard, text=f"{_NPROC} soft={limit.soft} hard={limit.hard}")
