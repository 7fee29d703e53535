"""Rules about ``linux.seccomp`` of config.json (config-linux.md#seccomp), which `ociruntime.seccomp` compiles by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .rules import Report

if TYPE_CHECKING:
    from .seccomp import Seccomp, SeccompAction, Syscall, SyscallArg

_PATH: Final = "$.linux.seccomp"
_SECTION: Final = "config-linux.md#seccomp"
_ERRNO_LIMITS: Final = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}
"""The actions that return a number, and the highest that libseccomp takes."""
_HANDSHAKE: Final = ("read", "sendmsg")
"""Calls of the init itself between loading the filter and handing the listener out: nobody could answer a notification yet."""


def seccomp_rules(report: Report, seccomp: Seccomp) -> None:
    """Everything about the filter, unknown names included: compiling has nothing else to refuse."""
    _action(report, f"{_PATH}.defaultAction", f"{_PATH}.defaultErrnoRet", seccomp.default_action, seccomp.default_errno_ret)
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        report.error(f"{_PATH}.defaultAction", "the runtime itself would wait for the agent before it is there", _SECTION)
    for index, arch in enumerate(seccomp.architectures or ()):
        if not arch.known:
            report.error(f"{_PATH}.architectures[{index}]", f"{str(arch)!r} is no architecture that libseccomp knows", _SECTION)
    for index, flag in enumerate(seccomp.flags or ()):
        if not flag.known:
            report.error(f"{_PATH}.flags[{index}]", f"{str(flag)!r} is no flag of seccomp(2)", _SECTION)
    notify = False
    for index, rule in enumerate(seccomp.syscalls or ()):
        _syscall(report, rule, f"{_PATH}.syscalls[{index}]")
        notify = notify or rule.action == "SCMP_ACT_NOTIFY"
    if notify and not seccomp.listener_path:
        report.error(f"{_PATH}.listenerPath", "is needed by SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_path and not notify:
        report.warn(f"{_PATH}.listenerPath", "is ignored without SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_metadata and not seccomp.listener_path:
        report.error(f"{_PATH}.listenerMetadata", "comes with listenerPath only", _SECTION)
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (seccomp.flags or ()) and not notify:
        report.warn(f"{_PATH}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is ignored without SCMP_ACT_NOTIFY", _SECTION)
    report.passable(f"{_PATH}.listenerPath", seccomp.listener_path, _SECTION)


def _syscall(report: Report, rule: Syscall, where: str) -> None:
    _action(report, f"{where}.action", f"{where}.errnoRet", rule.action, rule.errno_ret)
    if not rule.names or not all(name and name.isprintable() for name in rule.names):
        report.error(f"{where}.names", "must hold names of system calls, at least one", _SECTION)
    if rule.action == "SCMP_ACT_NOTIFY":
        for name in sorted({*rule.names} & {*_HANDSHAKE}):
            text = f"SCMP_ACT_NOTIFY cannot be used for {name}: the runtime itself would wait for the agent"
            report.error(f"{where}.names", text, _SECTION)
        if "write" in rule.names:
            report.warn(f"{where}.names", "other runtimes refuse SCMP_ACT_NOTIFY for write: they need it themselves", _SECTION)
    for position, arg in enumerate(rule.args or ()):
        _argument(report, arg, f"{where}.args[{position}]")


def _argument(report: Report, arg: SyscallArg, where: str) -> None:
    if not 0 <= arg.index <= 5:
        report.error(f"{where}.index", f"{arg.index} is not 0 to 5: a system call has six arguments", _SECTION)
    if not arg.op.known:
        report.error(f"{where}.op", f"{str(arg.op)!r} is no operator", _SECTION)
    elif arg.value_two and arg.op != "SCMP_CMP_MASKED_EQ":
        report.warn(f"{where}.valueTwo", f"is ignored by {arg.op}", _SECTION)


def _action(report: Report, place: str, errno_place: str, action: SeccompAction, errno: int | None) -> None:
    if not action.known:
        report.error(place, f"{str(action)!r} is no seccomp action", _SECTION)
    elif errno is not None:
        limit = _ERRNO_LIMITS.get(action)
        if limit is None:
            report.error(errno_place, f"{action} has no errno; only {' and '.join(_ERRNO_LIMITS)} have", _SECTION)
        elif not 0 <= errno <= limit:
            report.error(errno_place, f"{errno} is not 0 to {limit}", _SECTION)
