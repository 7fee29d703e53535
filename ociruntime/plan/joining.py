"""Entering the pid namespace of a running container: from then on the container's processes see the new one.

A process in a container without a user namespace may, with CAP_SYS_PTRACE, open the memory and the descriptors of every process
that it sees, dumpable or not (CVE-2016-9962). So the init forks into the pid namespace when it has given up everything that the
program will not have, and has loaded the filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..spec.process import UNLIMITED
from . import kernel as k
from .credentials import CAP_SYS_RESOURCE
from .process import compile_oom_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..host import Host
    from ..spec import Process, Rlimit, Seccomp, SyscallArg
    from .model import Builder

_ALLOWED: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_NPROC: Final = "RLIMIT_NPROC"
_ROOM: Final = 2
"""Processes of the user when the init forks: itself, and its child. A change of the user is allowed up to the limit."""


def forks_last(process: Process, profile: Seccomp | None, host: Host, *, user: bool) -> bool:
    """Return whether the init can fork when all else is done.

    It cannot with scheduling attributes that do not outlive a fork, under a filter that denies what comes behind it, or with a
    limit of processes in which it has no room itself.

    Args:
        user: whether the init is in the container's user namespace, where it may raise no limits.
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
        "clone": (k.CLONE_PARENT | k.CLONE_PARENT_SETTID, 0, None, 0, 0),
        "sendmsg": (None, None, k.MSG_NOSIGNAL),
        "read": (None, None, 1),
        "setsid": (),
    }
    if not process.no_new_privileges:
        calls["capset"] = (None, None)
    if any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        calls["close"] = (None,)
    if process.terminal:
        calls["ioctl"] = (0, k.TIOCSCTTY, 0)
    if limit is not None:
        calls["prlimit64"] = (0, k.RLIMITS[_NPROC], None, 0)
    return permits(profile, calls)


def permits(profile: Seccomp, calls: Mapping[str, Sequence[int | None]]) -> bool:
    """Return whether a filter certainly lets these system calls through.

    Args:
        calls: the arguments by the name of the call; None for one that is not known.
    """
    return all(_permits(profile, name, arguments) for name, arguments in calls.items())


def _permits(profile: Seccomp, name: str, arguments: Sequence[int | None]) -> bool:
    rules = [rule for rule in profile.syscalls or () if name in rule.names]
    whole = [rule for rule in rules if not rule.args]
    if whole:  # a rule without conditions beats all others; two that contradict each other are not trusted
        return all(rule.action in _ALLOWED for rule in whole)
    for rule in rules:
        conditions = rule.args or ()
        found = [_holds(condition, arguments) for condition in conditions]
        any_holds = len({condition.index for condition in conditions}) < len(found)  # where an argument comes up twice, as in runc
        decisive = any_holds in found
        if None in found and not decisive:
            return False
        if decisive is any_holds:
            return rule.action in _ALLOWED
    return profile.default_action in _ALLOWED


def _holds(condition: SyscallArg, arguments: Sequence[int | None]) -> bool | None:
    """Return whether a condition holds; None where that is not known."""
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


def _process_limit(process: Process) -> Rlimit | None:
    """Return the limit of the user's processes, if the process has one."""
    return next((limit for limit in process.rlimits or () if limit.type == _NPROC and limit.soft != UNLIMITED), None)


def allow_fork(b: Builder, process: Process) -> None:
    """Set the limit of the user's processes so that it leaves room for the fork."""
    limit = _process_limit(process)
    if limit is not None:
        soft = min(limit.soft + _ROOM, UNLIMITED)
        hard = max(soft, limit.hard)
        b.init("rlimit", k.RLIMITS[_NPROC], soft, hard, text=f"{_NPROC} soft={soft} hard={hard}: room for the fork")


def close_all(b: Builder) -> None:
    """Close what the program does not have."""
    b.init("close_all", text="all that the process does not have, but for the control socket")


def hide_page(b: Builder) -> None:
    """Keep the page that the caller reads from a child whose memory the container can write. The filter may deny it later."""
    b.init("keep_page", text="the page of the progress is not for the child")


def compile_fork(b: Builder, process: Process, host: Host) -> None:
    """Fork into the pid namespace, and do what only the new process can do."""
    b.init("fork_last", text="a pid namespace holds for children only")
    compile_oom_score(b, process, host)
    limit = _process_limit(process)
    if limit is not None:
        b.init("rlimit", k.RLIMITS[_NPROC], limit.soft, limit.hard, text=f"{_NPROC} soft={limit.soft} hard={limit.hard}")
