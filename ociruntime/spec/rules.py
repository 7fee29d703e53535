"""What the text of the runtime spec says beyond types and the schema: rules about single values and across members.

An error is what the spec forbids, or what no kernel can do; a warning is what the spec advises against or what is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import Problem
from .explain import step
from .lists import ranges

if TYPE_CHECKING:
    from .config import RuntimeSpec
    from .hooks import Hook
    from .process import Capabilities, Process, Scheduler, User

_CAPABILITIES: Final = "config.md#linux-process"
_ANNOTATIONS: Final = frozenset(
    f"org.opencontainers.image.{name}"
    for name in "os os.version os.features architecture variant author created stopSignal exposedPorts".split()
)
_MAX_HOSTNAME: Final = 64
_LEAST_RUNTIME: Final = 1024
_NO_ID: Final = 0xFFFFFFFF
_MAX_GROUPS: Final = 65536
_MAX_SIZE: Final = 65535
"""Of a terminal: winsize has 16 bits."""
_LONGEST_TIMEOUT: Final = (1 << 31) // 1000
"""What poll(2) takes: 24 days."""


class Report:
    """Problems, as they are found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, path: str, message: str, section: str) -> None:
        self.problems.append(Problem(path, message, section))

    def warn(self, path: str, message: str, section: str) -> None:
        self.problems.append(Problem(path, message, section, "warning"))

    def absolute(self, path: str, value: str | None, section: str) -> None:
        """An error unless the value is an absolute path, or absent."""
        if value is not None and not value.startswith("/"):
            self.error(path, f"{value!r} is not an absolute path", section)

    def passable(self, path: str, value: str | Sequence[str] | None, section: str) -> None:
        """An error for a text, or for each of several, that no system call can take."""
        for where, text in [(path, value)] if isinstance(value, str) else [(f"{path}[{i}]", t) for i, t in enumerate(value or ())]:
            if "\0" in text:
                self.error(where, "a NUL byte cannot be passed to the kernel", section)
            if not text.isascii() and any("\ud800" <= c < "\udc80" or "\udd00" <= c <= "\udfff" for c in text):
                self.error(where, "half of a surrogate pair stands for no bytes", section)


def rules(spec: RuntimeSpec) -> list[Problem]:
    """Everything that is wrong with a config beyond its shape."""
    from .rules_linux import linux_rules
    from .rules_mounts import mount_rules

    report = Report()
    _version(report, spec.oci_version)
    _top(report, spec)
    if spec.process is not None:
        process_rules(report, spec, spec.process)
    for index, mount in enumerate(spec.mounts or ()):
        mount_rules(report, spec, mount, f"$.mounts[{index}]")
    _hooks(report, spec)
    for key in spec.annotations or ():
        _annotation(report, key)
    if spec.linux is not None:
        linux_rules(report, spec, spec.linux)
    if any((spec.windows, spec.zos, spec.vm, spec.freebsd)):
        from .rules_platforms import platform_rules

        platform_rules(report, spec)
    return report.problems


def version_numbers(version: str) -> tuple[int, int, int] | None:
    """Major, minor and patch of a version of SemVer 2.0.0; None for anything else."""
    numbers = version.partition("+")[0].partition("-")[0].split(".")
    if len(numbers) != 3 or not all(n.isascii() and n.isdigit() and (n == "0" or n[0] != "0") for n in numbers):
        return None
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _version(report: Report, version: str) -> None:
    section = "config.md#specification-version"
    numbers = version_numbers(version)
    if numbers is None:
        report.error("$.ociVersion", f"{version!r} is not a version such as 1.3.0", section)
    elif numbers[0] != 1:
        report.error("$.ociVersion", f"version {version} is not one of 1.x", section)
    elif numbers[1] > 3:
        report.warn("$.ociVersion", f"version {version} is newer than 1.3.0: what it adds is kept and not acted on", section)


def _top(report: Report, spec: RuntimeSpec) -> None:
    on_linux = spec.linux is not None
    hyperv = spec.windows is not None and spec.windows.hyperv is not None
    if spec.root is None and not hyperv and (on_linux or spec.windows is not None):
        report.error("$.root", "is needed on this platform", "config.md#root")
    if spec.root is not None and not spec.root.path:
        report.error("$.root.path", "is empty", "config.md#root")
    report.passable("$.root.path", spec.root.path if spec.root else None, "config.md#root")
    namespaces = {namespace.type for namespace in (spec.linux.namespaces if spec.linux else None) or ()}
    for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if not value:
            continue
        if on_linux and "uts" not in namespaces:
            report.error(f"$.{name}", "would change the host's: it needs a uts namespace", f"config.md#{name}")
        if on_linux and len(value.encode("utf-8", "surrogatepass")) > _MAX_HOSTNAME:
            report.error(f"$.{name}", f"has more than {_MAX_HOSTNAME} bytes", f"config.md#{name}")
        report.passable(f"$.{name}", value, f"config.md#{name}")


def process_rules(report: Report, spec: RuntimeSpec, process: Process) -> None:
    """Everything about the process of a config, or a further one of its container."""
    section, posix = "config.md#process", spec.windows is None
    if posix:
        report.absolute("$.process.cwd", process.cwd, section)
        if not process.args:
            report.error("$.process.args", "at least the program to run is needed", section)
        elif not process.args[0]:
            report.error("$.process.args[0]", "the program to run is empty", section)
        if process.user is None or process.user.uid is None or process.user.gid is None:
            report.warn("$.process.user", "uid and gid are needed; 0 is taken", "config.md#user")
    if process.user is not None:
        _user(report, process.user)
    report.passable("$.process.args", process.args, section)
    report.passable("$.process.env", process.env, section)
    report.passable("$.process.cwd", process.cwd, section)
    report.passable("$.process.apparmorProfile", process.apparmor_profile, _CAPABILITIES)
    report.passable("$.process.selinuxLabel", process.selinux_label, _CAPABILITIES)
    _environment(report, "$.process.env", process.env or (), section)
    if process.console_size is not None and not process.terminal:
        report.warn("$.process.consoleSize", "is ignored without a terminal", section)
    for name, size in (
        (("height", process.console_size.height), ("width", process.console_size.width)) if process.console_size else ()
    ):
        if not 0 <= size <= _MAX_SIZE:
            report.error(f"$.process.consoleSize.{name}", f"{size} is not 0 to {_MAX_SIZE}", section)
    seen: set[str] = set()
    for index, limit in enumerate(process.rlimits or ()):
        where = f"$.process.rlimits[{index}]"
        if limit.type in seen:
            report.error(where, f"{limit.type} comes twice", "config.md#posix-process")
        seen.add(limit.type)
        if spec.linux is not None and not limit.type.known:
            report.error(f"{where}.type", f"{str(limit.type)!r} is not a resource limit of Linux", "config.md#posix-process")
        if limit.soft > limit.hard:
            report.error(where, f"the soft limit {limit.soft} is above the hard limit {limit.hard}", "config.md#posix-process")
    if process.capabilities is not None:
        _capabilities(report, process.capabilities)
    if process.oom_score_adj is not None and not -1000 <= process.oom_score_adj <= 1000:
        report.error("$.process.oomScoreAdj", f"{process.oom_score_adj} is not -1000 to 1000", _CAPABILITIES)
    if process.scheduler is not None:
        _scheduler(report, process.scheduler)
    if process.io_priority is not None:
        if process.io_priority.priority is None:
            report.warn("$.process.ioPriority.priority", "is needed; 0 is taken", _CAPABILITIES)
        elif not 0 <= process.io_priority.priority <= 7:
            report.error("$.process.ioPriority.priority", f"{process.io_priority.priority} is not 0 to 7", _CAPABILITIES)
    if process.exec_cpu_affinity is not None:
        for name, text in (("initial", process.exec_cpu_affinity.initial), ("final", process.exec_cpu_affinity.final)):
            number_list(report, f"$.process.execCPUAffinity.{name}", text, _CAPABILITIES)


def _user(report: Report, user: User) -> None:
    section, groups = "config.md#user", user.additional_gids or ()
    if user.umask is not None and user.umask > 0o777:
        report.warn("$.process.user.umask", f"{user.umask:#o} has more than permission bits", section)
    if len(groups) > _MAX_GROUPS:
        report.error(
            "$.process.user.additionalGids", f"{len(groups)} groups are more than {_MAX_GROUPS}, which Linux takes", section
        )
        return
    for name, number in (("uid", user.uid), ("gid", user.gid), *((f"additionalGids[{n}]", gid) for n, gid in enumerate(groups))):
        if number is not None and not 0 <= number < _NO_ID:
            report.error(f"$.process.user.{name}", f"{number} is no id: the kernel takes it for «leave it as it is»", section)


def _environment(report: Report, path: str, env: Sequence[str], section: str) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(env):
        name, equals, _ = entry.partition("=")
        if not equals or not name:
            report.warn(f"{path}[{index}]", f"{entry[:40]!r} is not NAME=value", section)
        elif name in seen:
            report.warn(f"{path}[{index}]", f"{name} comes twice: the last one counts", section)
        seen.add(name)


def _capabilities(report: Report, caps: Capabilities) -> None:
    from .capabilities import Capability

    path = "$.process.capabilities"
    sets = {name: frozenset(getattr(caps, name) or ()) for name in ("bounding", "effective", "inheritable", "permitted", "ambient")}
    known = {member.value for member in Capability}
    for name in sorted(frozenset[str]().union(*sets.values()) - known):
        where = next(member for member, names in sets.items() if name in names)
        hint = f"; did you mean CAP_{name.upper()}?" if f"CAP_{name.upper()}" in known else ""
        report.warn(f"{path}.{where}", f"{name!r} is not a capability, so it is not granted{hint}", _CAPABILITIES)
    above = (("effective", "permitted"), ("inheritable", "bounding"), ("ambient", "permitted"), ("ambient", "inheritable"))
    for inner, outer in above:
        missing = (sets[inner] - sets[outer]) & known
        if missing:
            text = f"{', '.join(sorted(missing))} is not {outer} as well, so it is not granted"
            report.warn(f"{path}.{inner}", text, _CAPABILITIES)
    lost = ", ".join(sorted((sets["permitted"] - sets["bounding"]) & known))
    if lost:
        report.warn(f"{path}.permitted", f"{lost} is not in the bounding set: execve(2) loses it", _CAPABILITIES)


def _scheduler(report: Report, scheduler: Scheduler) -> None:
    path, policy = "$.process.scheduler", scheduler.policy
    if scheduler.nice is not None:
        if not -20 <= scheduler.nice <= 19:
            report.error(f"{path}.nice", f"{scheduler.nice} is not -20 to 19", _CAPABILITIES)
        elif scheduler.nice and policy not in ("SCHED_OTHER", "SCHED_BATCH"):
            report.warn(f"{path}.nice", f"means nothing to {policy}", _CAPABILITIES)
    if policy in ("SCHED_FIFO", "SCHED_RR"):
        if not 1 <= (scheduler.priority or 0) <= 99:
            report.error(f"{path}.priority", f"{policy} needs a priority of 1 to 99", _CAPABILITIES)
    elif scheduler.priority:
        report.error(f"{path}.priority", f"{policy} has no priorities", _CAPABILITIES)
    times = {"runtime": scheduler.runtime or 0, "deadline": scheduler.deadline or 0, "period": scheduler.period or 0}
    if policy != "SCHED_DEADLINE":
        for name, time in times.items():
            if time:
                report.error(f"{path}.{name}", f"is for SCHED_DEADLINE, not {policy}", _CAPABILITIES)
        return
    # What sched_setattr(2) refuses with a bare EINVAL.
    if times["runtime"] < _LEAST_RUNTIME:
        text = f"SCHED_DEADLINE needs a runtime of {_LEAST_RUNTIME} ns at least, not {times['runtime']}"
        report.error(f"{path}.runtime", text, _CAPABILITIES)
    if not times["deadline"]:
        report.error(f"{path}.deadline", "SCHED_DEADLINE needs a deadline", _CAPABILITIES)
    elif times["deadline"] < times["runtime"]:
        report.error(f"{path}.deadline", f"{times['deadline']} ns is less than the runtime {times['runtime']}", _CAPABILITIES)
    if 0 < times["period"] < times["deadline"]:
        report.error(f"{path}.period", f"{times['period']} ns is less than the deadline {times['deadline']}", _CAPABILITIES)
    for name in ("deadline", "period"):
        if times[name] >= 1 << 63:
            report.error(f"{path}.{name}", f"{times[name]} ns is more than the kernel counts", _CAPABILITIES)


def number_list(report: Report, path: str, text: str | None, section: str) -> None:
    """An error unless it is a list such as ``0-3,7``, or absent or empty."""
    if text and text.strip():
        try:
            ranges(text)
        except ValueError as error:
            report.error(path, str(error), section)


def _hooks(report: Report, spec: RuntimeSpec) -> None:
    if spec.hooks is None:
        return
    section = "config.md#posix-platform-hooks"
    if spec.hooks.prestart:
        report.warn("$.hooks.prestart", "is deprecated: createRuntime, createContainer and startContainer take its place", section)
    kinds: dict[str, tuple[Hook, ...] | None] = {
        "prestart": spec.hooks.prestart,
        "createRuntime": spec.hooks.create_runtime,
        "createContainer": spec.hooks.create_container,
        "startContainer": spec.hooks.start_container,
        "poststart": spec.hooks.poststart,
        "poststop": spec.hooks.poststop,
    }
    for kind, hooks in kinds.items():
        for index, hook in enumerate(hooks or ()):
            where = f"$.hooks.{kind}[{index}]"
            report.absolute(f"{where}.path", hook.path, section)
            report.passable(f"{where}.path", hook.path, section)
            report.passable(f"{where}.args", hook.args, section)
            report.passable(f"{where}.env", hook.env, section)
            if hook.timeout is not None and not 0 < hook.timeout <= _LONGEST_TIMEOUT:
                report.error(f"{where}.timeout", f"{hook.timeout} is not a number of seconds from 1 to {_LONGEST_TIMEOUT}", section)
            _environment(report, f"{where}.env", hook.env or (), section)


def _annotation(report: Report, key: str) -> None:
    section = "config.md#annotations"
    if not key:
        report.error("$.annotations['']", "an annotation needs a name", section)
    elif key.startswith("org.opencontainers.") and key not in _ANNOTATIONS:
        report.warn(step("$.annotations", key), "is in the namespace that the spec reserves for itself", section)
