"""Rules about config.json, its process and the other platforms, and about the features and state documents.

They are what the text of the runtime spec says beyond types and the schema.
"""

from __future__ import annotations

from pathlib import PureWindowsPath
from typing import TYPE_CHECKING, Final

from ...arguments import shown
from ..base import Problem, json_path
from ..process import Capability
from . import Findings, version_numbers
from .linux import check_linux, check_mount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Hook, RuntimeSpec
    from ..features import Features, StateDocument
    from ..linux import Mount
    from ..platforms import VM, ZOS, FreeBSD, Windows
    from ..process import Capabilities, ProcessSpec, Scheduler, User


_LINUX: Final = "config.md#linux-process"
_MIN_RUNTIME: Final = 1024
_NO_ID: Final = 0xFFFFFFFF
_MAX_GROUPS: Final = 65536
_MAX_SIZE: Final = 65535
"""Maximum of a terminal's rows and columns: struct winsize has 16 bits for each."""


def check_process(findings: Findings, spec: RuntimeSpec, process: ProcessSpec) -> None:
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


def _check_program(findings: Findings, process: ProcessSpec, *, posix: bool) -> None:
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


def _check_terminal(findings: Findings, process: ProcessSpec) -> None:
    section = "config.md#process"
    if process.console_size is not None and not process.terminal:
        findings.warn("$.process.consoleSize", "is ignored without a terminal", section)
    for name, size in (
        (("height", process.console_size.height), ("width", process.console_size.width)) if process.console_size else ()
    ):
        if not 0 <= size <= _MAX_SIZE:
            findings.error(f"$.process.consoleSize.{name}", f"{size} is not 0 to {_MAX_SIZE}", section)


def _check_rlimits(findings: Findings, process: ProcessSpec, *, linux: bool) -> None:
    section = "config.md#posix-process"
    seen: set[str] = set()
    for index, limit in enumerate(process.rlimits or ()):
        where = f"$.process.rlimits[{index}]"
        if limit.type in seen:
            findings.error(where, f"{limit.type} appears twice", section)
        seen.add(limit.type)
        if linux and not limit.type.known:
            findings.error(f"{where}.type", f"{shown(str(limit.type))} is not a resource limit of Linux", section)
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
        findings.warn(f"{path}.{where}", f"{shown(name)} is not a capability, so it is not granted{hint}", _LINUX)
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


_ANNOTATIONS: Final = frozenset(
    f"org.opencontainers.image.{name}"
    for name in "os os.version os.features architecture variant author created stopSignal exposedPorts".split()
)
_MAX_HOSTNAME: Final = 64
_MAX_TIMEOUT: Final = (1 << 31) // 1000
"""Maximum of poll(2): 24 days."""


def config_problems(spec: RuntimeSpec) -> list[Problem]:
    """Return every problem of a config that its schema does not find."""
    findings = Findings()
    _check_version(findings, spec.oci_version)
    _check_root_and_names(findings, spec)
    if spec.process is not None:
        check_process(findings, spec, spec.process)
    for index, mount in enumerate(spec.mounts or ()):
        check_mount(findings, spec, mount, f"$.mounts[{index}]")
    _check_hooks(findings, spec)
    for key in spec.annotations or ():
        _check_annotation(findings, key)
    if spec.linux is not None:
        check_linux(findings, spec, spec.linux)
    if any((spec.windows, spec.zos, spec.vm, spec.freebsd)):
        check_platforms(findings, spec)
    return findings.problems


def process_problems(spec: RuntimeSpec, process: ProcessSpec) -> list[Problem]:
    """Return every problem of an exec process of a config's container."""
    findings = Findings()
    check_process(findings, spec, process)
    return findings.problems


def _check_version(findings: Findings, version: str) -> None:
    section = "config.md#specification-version"
    numbers = version_numbers(version)
    if numbers is None:
        findings.error("$.ociVersion", f"{shown(version)} is not a version such as 1.3.0", section)
    elif numbers[0] != 1:
        findings.error("$.ociVersion", f"version {version} is not one of 1.x", section)
    elif numbers[1] > 3:
        findings.warn("$.ociVersion", f"version {version} is newer than 1.3.0: its additions are kept, and ignored", section)


def _check_root_and_names(findings: Findings, spec: RuntimeSpec) -> None:
    on_linux = spec.linux is not None
    hyperv = spec.windows is not None and spec.windows.hyperv is not None
    if spec.root is None and not hyperv and (on_linux or spec.windows is not None):
        findings.error("$.root", "is required on this platform", "config.md#root")
    if spec.root is not None and not spec.root.path:
        findings.error("$.root.path", "is empty", "config.md#root")
    findings.check_text("$.root.path", spec.root.path if spec.root else None, "config.md#root")
    namespaces = {namespace.type for namespace in (spec.linux.namespaces if spec.linux else None) or ()}
    for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
        if not value:
            continue
        if on_linux and "uts" not in namespaces:
            findings.error(f"$.{name}", "would change the host: add a uts namespace", f"config.md#{name}")
        if on_linux and len(value.encode("utf-8", "surrogatepass")) > _MAX_HOSTNAME:
            findings.error(f"$.{name}", f"has more than {_MAX_HOSTNAME} bytes", f"config.md#{name}")
        findings.check_text(f"$.{name}", value, f"config.md#{name}")


def _check_hooks(findings: Findings, spec: RuntimeSpec) -> None:
    if spec.hooks is None:
        return
    section = "config.md#posix-platform-hooks"
    if spec.hooks.prestart:
        findings.warn("$.hooks.prestart", "is deprecated: use createRuntime, createContainer or startContainer", section)
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
            findings.check_absolute(f"{where}.path", hook.path, section)
            findings.check_text(f"{where}.path", hook.path, section)
            findings.check_text(f"{where}.args", hook.args, section)
            findings.check_text(f"{where}.env", hook.env, section)
            if hook.timeout is not None and not 0 < hook.timeout <= _MAX_TIMEOUT:
                findings.error(f"{where}.timeout", f"{hook.timeout} is not a number of seconds from 1 to {_MAX_TIMEOUT}", section)
            findings.check_environment(f"{where}.env", hook.env or (), section)


def _check_annotation(findings: Findings, key: str) -> None:
    section = "config.md#annotations"
    if not key:
        findings.error("$.annotations['']", "the name of the annotation is empty", section)
    elif key.startswith("org.opencontainers.") and key not in _ANNOTATIONS:
        findings.warn(json_path("$.annotations", key), "is in the namespace that is reserved for the spec", section)


def features_problems(features: Features) -> list[Problem]:
    """Return every problem of a features document that its schema does not find."""
    findings = Findings()
    section = "features.md#specification-version"
    versions = []
    for name, text in (("ociVersionMin", features.oci_version_min), ("ociVersionMax", features.oci_version_max)):
        numbers = version_numbers(text)
        if numbers is None:
            findings.error(f"$.{name}", f"{shown(text)} is not a version such as 1.3.0", section)
        else:
            versions.append(numbers)
    if len(versions) == 2 and versions[1] < versions[0]:
        findings.error("$.ociVersionMax", f"{features.oci_version_max} is less than {features.oci_version_min}", section)
    seccomp = features.linux.seccomp if features.linux else None
    if seccomp is not None and seccomp.known_flags is not None:
        unknown = [flag for flag in seccomp.supported_flags or () if flag not in seccomp.known_flags]
        if unknown:
            text = f"{', '.join(unknown)} is not in knownFlags"
            findings.error("$.linux.seccomp.supportedFlags", text, "features-linux.md#seccomp")
    return findings.problems


def state_problems(state: StateDocument, path: str = "$") -> list[Problem]:
    """Return every problem of a state at a JSON path that its schema does not find."""
    findings = Findings()
    section = "runtime.md#state"
    if not state.id:
        findings.error(f"{path}.id", "is empty", section)
    findings.check_absolute(f"{path}.bundle", state.bundle, section)
    if state.status in ("created", "running") and not state.pid:
        findings.error(f"{path}.pid", f"is required on Linux if the status is {state.status}", section)
    return findings.problems


def check_platforms(findings: Findings, spec: RuntimeSpec) -> None:
    """Check the parts of a config for platforms other than Linux."""
    if spec.windows is not None:
        _check_windows(findings, spec, spec.windows)
    if spec.zos is not None:
        _check_zos(findings, spec.zos)
    if spec.vm is not None:
        _check_vm(findings, spec.vm)
    if spec.freebsd is not None:
        _check_freebsd(findings, spec.freebsd)


def _check_windows(findings: Findings, spec: RuntimeSpec, windows: Windows) -> None:
    if spec.root is not None:
        if windows.hyperv is not None:
            findings.error("$.root", "must not be set with Hyper-V isolation", "config.md#root")
        if spec.root.readonly:
            findings.error("$.root.readonly", "is not supported on Windows", "config.md#root")
    if spec.process is not None and not spec.process.args and not spec.process.command_line:
        findings.error("$.process.commandLine", "is required without args", "config.md#process")
    _check_windows_mounts(findings, spec.mounts or ())
    cpu = windows.resources.cpu if windows.resources else None
    if cpu is not None and sum(value is not None for value in (cpu.count, cpu.shares, cpu.maximum)) > 1:
        findings.error("$.windows.resources.cpu", "count, shares and maximum are mutually exclusive", "config-windows.md#cpu")
    for name, value in (("shares", cpu.shares), ("maximum", cpu.maximum)) if cpu else ():
        if value is not None and value > 10000:
            findings.error(f"$.windows.resources.cpu.{name}", f"{value} is not 0 to 10000", "config-windows.md#cpu")
    network = windows.network
    if network is not None and network.network_namespace:
        others = [network.endpoint_list, network.allow_unqualified_dns_query, network.dns_search_list]
        if any(value is not None for value in (*others, network.network_shared_container_name)):
            findings.error("$.windows.network.networkNamespace", "excludes the other members", "config-windows.md#network")


def _check_windows_mounts(findings: Findings, mounts: Sequence[Mount]) -> None:
    section = "config.md#mounts"
    places = [PureWindowsPath(mount.destination) for mount in mounts]
    for index, place in enumerate(places):
        where = f"$.mounts[{index}].destination"
        if not place.is_absolute():
            findings.error(where, f"{shown(str(place))} is not an absolute path", section)
        outer = next((other for other in places if other in place.parents), None)
        if outer is not None:
            findings.error(where, f"{shown(str(place))} is nested within {shown(str(outer))}", section)


def _check_zos(findings: Findings, zos: ZOS) -> None:
    section = "config-zos.md#namespaces"
    seen: set[str] = set()
    for index, namespace in enumerate(zos.namespaces or ()):
        where = f"$.zos.namespaces[{index}]"
        if namespace.type in seen:
            findings.error(where, f"{namespace.type} appears twice", section)
        seen.add(namespace.type)
        findings.check_absolute(f"{where}.path", namespace.path or None, section)


def _check_vm(findings: Findings, vm: VM) -> None:
    findings.check_absolute("$.vm.kernel.path", vm.kernel.path, "config-vm.md#kernel-object")
    findings.check_absolute("$.vm.kernel.initrd", vm.kernel.initrd, "config-vm.md#kernel-object")
    if vm.hypervisor is not None:
        findings.check_absolute("$.vm.hypervisor.path", vm.hypervisor.path, "config-vm.md#hypervisor-object")
    if vm.image is not None:
        findings.check_absolute("$.vm.image.path", vm.image.path, "config-vm.md#image-object")


def _check_freebsd(findings: Findings, freebsd: FreeBSD) -> None:
    section = "config-freebsd.md#devices"
    for index, device in enumerate(freebsd.devices or ()):
        if device.path.startswith("/"):
            findings.error(f"$.freebsd.devices[{index}].path", f"{shown(device.path)} is not relative to /dev", section)
    level = freebsd.jail.enforce_statfs if freebsd.jail else None
    if level is not None and level > 2:
        findings.error("$.freebsd.jail.enforceStatfs", f"{level} is not 0 to 2", "config-freebsd.md#jail")
