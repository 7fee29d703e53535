"""Rules about ``process`` of config.json (config.md#process)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..process import Capability
from .findings import Findings

if TYPE_CHECKING:
    from ..config import RuntimeSpec
    from ..process import Capabilities, Process, Scheduler, User

_LINUX: Final = "config.md#linux-process"
_MIN_RUNTIME: Final = 1024
_NO_ID: Final = 0xFFFFFFFF
_MAX_GROUPS: Final = 65536
_MAX_SIZE: Final = 65535
"""Maximum of a terminal's rows and columns: struct winsize has 16 bits for each."""


def check_process(findings: Findings, spec: RuntimeSpec, process: Process) -> None:
    """Check the process of a config, or an exec process of its container."""
    _check_program(findings, process, posix=spec.windows is None)
    _check_terminal(findings, process)
    _check_rlimits(findings, process, linux=spec.linux is not None)
    if process.capabilities is not None:
        _check_capabilities(findings, process.capabilities)
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        findings.error("$.process.oomScoreAdj", f"{process.oom_score_adj} is not -1000 to 1000", _LINUX)
    if process.scheduler is not None:
        _check_scheduler(findings, process.scheduler)
    if process.io_priority is not None:
        if process.io_priority.priority is None:
            findings.warn("$.process.ioPriority.priority", "is required; 0 is used", _LINUX)
        elif not 0 <= process.io_priority.priority <= 7:
            findings.error("$.process.ioPriority.priority", f"{process.io_priority.priority} is not 0 to 7", _LINUX)
    if process.exec_cpu_affinity is not None:
        findings.check_ranges("$.process.execCPUAffinity.initial", process.exec_cpu_affinity.initial, _LINUX)
        findings.check_ranges("$.process.execCPUAffinity.final", process.exec_cpu_affinity.final, _LINUX)


def _check_program(findings: Findings, process: Process, *, posix: bool) -> None:
    section = "config.md#process"
    if posix:
        findings.check_absolute("$.process.cwd", process.cwd, section)
        if not process.args:
            findings.error("$.process.args", "at least the program to run is required", section)
        elif not process.args[0]:
            findings.error("$.process.args[0]", "the program to run is empty", section)
        if process.user is None or process.user.uid is None or process.user.gid is None:
            findings.warn("$.process.user", "uid and gid are required; 0 is used", "config.md#user")
    if process.user is not None:
        _check_user(findings, process.user)
    findings.check_text("$.process.args", process.args, section)
    findings.check_text("$.process.env", process.env, section)
    findings.check_text("$.process.cwd", process.cwd, section)
    findings.check_text("$.process.apparmorProfile", process.apparmor_profile, _LINUX)
    findings.check_text("$.process.selinuxLabel", process.selinux_label, _LINUX)
    findings.check_environment("$.process.env", process.env or (), section)


def _check_terminal(findings: Findings, process: Process) -> None:
    section = "config.md#process"
    if process.console_size is not None and not process.terminal:
        findings.warn("$.process.consoleSize", "is ignored without a terminal", section)
    for name, size in (
        (("height", process.console_size.height), ("width", process.console_size.width)) if process.console_size else ()
    ):
        if not 0 <= size <= _MAX_SIZE:
            findings.error(f"$.process.consoleSize.{name}", f"{size} is not 0 to {_MAX_SIZE}", section)


def _check_rlimits(findings: Findings, process: Process, *, linux: bool) -> None:
    section = "config.md#posix-process"
    seen: set[str] = set()
    for index, limit in enumerate(process.rlimits or ()):
        where = f"$.process.rlimits[{index}]"
        if limit.type in seen:
            findings.error(where, f"{limit.type} appears twice", section)
        seen.add(limit.type)
        if linux and not limit.type.known:
            findings.error(f"{where}.type", f"{str(limit.type)!r} is not a resource limit of Linux", section)
        if limit.soft > limit.hard:
            findings.error(where, f"the soft limit {limit.soft} is above the hard limit {limit.hard}", section)


def _check_user(findings: Findings, user: User) -> None:
    section, groups = "config.md#user", user.additional_gids or ()
    if user.umask is not None and user.umask > 0o777:
        findings.warn("$.process.user.umask", f"{user.umask:#o} has more than permission bits", section)
    if len(groups) > _MAX_GROUPS:
        findings.error(
            "$.process.user.additionalGids", f"{len(groups)} groups are more than the {_MAX_GROUPS} that Linux allows", section
        )
        return
    for name, number in (("uid", user.uid), ("gid", user.gid), *((f"additionalGids[{n}]", gid) for n, gid in enumerate(groups))):
        if number is not None and not 0 <= number < _NO_ID:
            findings.error(f"$.process.user.{name}", f'{number} is not a valid id: it means "unchanged" to the kernel', section)


def _check_capabilities(findings: Findings, caps: Capabilities) -> None:
    path = "$.process.capabilities"
    sets = {name: frozenset(getattr(caps, name) or ()) for name in ("bounding", "effective", "inheritable", "permitted", "ambient")}
    known = {member.value for member in Capability}
    for name in sorted(frozenset[str]().union(*sets.values()) - known):
        where = next(member for member, names in sets.items() if name in names)
        hint = f"; did you mean CAP_{name.upper()}?" if f"CAP_{name.upper()}" in known else ""
        findings.warn(f"{path}.{where}", f"{name!r} is not a capability, so it is not granted{hint}", _LINUX)
    above = (("effective", "permitted"), ("inheritable", "bounding"), ("ambient", "permitted"), ("ambient", "inheritable"))
    for inner, outer in above:
        missing = (sets[inner] - sets[outer]) & known
        if missing:
            text = f"{', '.join(sorted(missing))} is not {outer}, so it is not granted"
            findings.warn(f"{path}.{inner}", text, _LINUX)
    lost = ", ".join(sorted((sets["permitted"] - sets["bounding"]) & known))
    if lost:
        findings.warn(f"{path}.permitted", f"{lost} is not in the bounding set, so execve(2) drops it", _LINUX)


def _check_scheduler(findings: Findings, scheduler: Scheduler) -> None:
    path, policy = "$.process.scheduler", scheduler.policy
    if scheduler.nice is not None:
        if not -20 <= scheduler.nice <= 19:
            findings.error(f"{path}.nice", f"{scheduler.nice} is not -20 to 19", _LINUX)
        elif scheduler.nice and policy not in ("SCHED_OTHER", "SCHED_BATCH"):
            findings.warn(f"{path}.nice", f"has no effect with {policy}", _LINUX)
    if policy in ("SCHED_FIFO", "SCHED_RR"):
        if not 1 <= (scheduler.priority or 0) <= 99:
            findings.error(f"{path}.priority", f"{policy} requires a priority of 1 to 99", _LINUX)
    elif scheduler.priority:
        findings.error(f"{path}.priority", f"{policy} does not use a priority", _LINUX)
    times = {"runtime": scheduler.runtime or 0, "deadline": scheduler.deadline or 0, "period": scheduler.period or 0}
    if policy != "SCHED_DEADLINE":
        for name, time in times.items():
            if time:
                findings.error(f"{path}.{name}", f"requires SCHED_DEADLINE, not {policy}", _LINUX)
        return
    # sched_setattr(2) refuses these with EINVAL alone.
    if times["runtime"] < _MIN_RUNTIME:
        text = f"SCHED_DEADLINE requires a runtime of at least {_MIN_RUNTIME} ns, not {times['runtime']}"
        findings.error(f"{path}.runtime", text, _LINUX)
    if not times["deadline"]:
        findings.error(f"{path}.deadline", "SCHED_DEADLINE requires a deadline", _LINUX)
    elif times["deadline"] < times["runtime"]:
        findings.error(f"{path}.deadline", f"{times['deadline']} ns is less than the runtime {times['runtime']}", _LINUX)
    if 0 < times["period"] < times["deadline"]:
        findings.error(f"{path}.period", f"{times['period']} ns is less than the deadline {times['deadline']}", _LINUX)
    for name in ("deadline", "period"):
        if times[name] >= 1 << 63:
            findings.error(f"{path}.{name}", f"{times[name]} ns exceeds the range of the kernel", _LINUX)
