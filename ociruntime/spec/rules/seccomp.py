"""Rules about ``linux.seccomp`` of config.json (config-linux.md#seccomp), which `ociruntime.seccomp` also applies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .findings import Findings

if TYPE_CHECKING:
    from ..seccomp import Seccomp, SeccompAction, Syscall, SyscallArg

_PATH: Final = "$.linux.seccomp"
_SECTION: Final = "config-linux.md#seccomp"
_ERRNO_LIMITS: Final = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}
"""The actions that return a number, and the maximum that libseccomp accepts."""
_HANDSHAKE: Final = ("read", "sendmsg")
"""Calls of the init between loading the filter and sending the listener, when no agent can answer a notification yet."""


def check_seccomp(findings: Findings, seccomp: Seccomp) -> None:
    """Check a filter, unknown names included, so that every checked filter can be compiled."""
    _check_action(findings, f"{_PATH}.defaultAction", f"{_PATH}.defaultErrnoRet", seccomp.default_action, seccomp.default_errno_ret)
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        findings.error(
            f"{_PATH}.defaultAction",
            "SCMP_ACT_NOTIFY cannot be the default: the init would wait for an agent that is not connected yet",
            _SECTION,
        )
    for index, arch in enumerate(seccomp.architectures or ()):
        if not arch.known:
            findings.error(f"{_PATH}.architectures[{index}]", f"{str(arch)!r} is not an architecture of libseccomp", _SECTION)
    for index, flag in enumerate(seccomp.flags or ()):
        if not flag.known:
            findings.error(f"{_PATH}.flags[{index}]", f"{str(flag)!r} is not a flag of seccomp(2)", _SECTION)
    notify = False
    for index, rule in enumerate(seccomp.syscalls or ()):
        _check_syscall(findings, rule, f"{_PATH}.syscalls[{index}]")
        notify = notify or rule.action == "SCMP_ACT_NOTIFY"
    if notify and not seccomp.listener_path:
        findings.error(f"{_PATH}.listenerPath", "is required by SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_path and not notify:
        findings.warn(f"{_PATH}.listenerPath", "is ignored without SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_metadata and not seccomp.listener_path:
        findings.error(f"{_PATH}.listenerMetadata", "requires listenerPath", _SECTION)
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (seccomp.flags or ()) and not notify:
        findings.warn(f"{_PATH}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is ignored without SCMP_ACT_NOTIFY", _SECTION)
    findings.check_text(f"{_PATH}.listenerPath", seccomp.listener_path, _SECTION)


def _check_syscall(findings: Findings, rule: Syscall, where: str) -> None:
    _check_action(findings, f"{where}.action", f"{where}.errnoRet", rule.action, rule.errno_ret)
    if not rule.names or not all(name and name.isprintable() for name in rule.names):
        findings.error(f"{where}.names", "must be names of system calls, at least one", _SECTION)
    if rule.action == "SCMP_ACT_NOTIFY":
        for name in sorted({*rule.names} & {*_HANDSHAKE}):
            text = f"SCMP_ACT_NOTIFY cannot be used for {name}: the init would wait for an agent that is not connected yet"
            findings.error(f"{where}.names", text, _SECTION)
        if "write" in rule.names:
            findings.warn(f"{where}.names", "other runtimes refuse SCMP_ACT_NOTIFY for write", _SECTION)
    for position, arg in enumerate(rule.args or ()):
        _check_argument(findings, arg, f"{where}.args[{position}]")


def _check_argument(findings: Findings, arg: SyscallArg, where: str) -> None:
    if not 0 <= arg.index <= 5:
        findings.error(f"{where}.index", f"{arg.index} is not 0 to 5: a system call has six arguments", _SECTION)
    if not arg.op.known:
        findings.error(f"{where}.op", f"{str(arg.op)!r} is not an operator", _SECTION)
    elif arg.value_two and arg.op != "SCMP_CMP_MASKED_EQ":
        findings.warn(f"{where}.valueTwo", f"is ignored by {arg.op}", _SECTION)


def _check_action(findings: Findings, place: str, errno_place: str, action: SeccompAction, errno: int | None) -> None:
    if not action.known:
        findings.error(place, f"{str(action)!r} is not an action of seccomp", _SECTION)
    elif errno is not None:
        limit = _ERRNO_LIMITS.get(action)
        if limit is None:
            findings.error(errno_place, f"{action} does not accept an errno; only {' and '.join(_ERRNO_LIMITS)} do", _SECTION)
        elif not 0 <= errno <= limit:
            findings.error(errno_place, f"{errno} is not 0 to {limit}", _SECTION)
