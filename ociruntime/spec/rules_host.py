"""What one host cannot do of a config: the kernel's version, cgroup controllers, security modules, capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import Problem
from .rules import Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .check import HostLike
    from .config import RuntimeSpec
    from .linux import Linux
    from .mounts import IDMapping
    from .process import Capabilities, Process
    from .resources import Resources

_NAMESPACES: Final = {"cgroup": (4, 6), "time": (5, 6)}
"""Namespaces that are younger than the oldest kernels in use."""
_RECURSIVE: Final = frozenset(
    "ratime rdev rdiratime rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow rrelatime rro "
    "rrw rstrictatime rsuid rsymfollow idmap ridmap".split()
)
_MODES: Final = {"MPOL_PREFERRED_MANY": (5, 15), "MPOL_WEIGHTED_INTERLEAVE": (6, 9)}
_32_BIT: Final = frozenset({"x86_64", "aarch64", "ppc64", "ppc64le", "s390x", "mips64", "sparc64", "parisc64"})


def host_rules(spec: RuntimeSpec, host: HostLike) -> list[Problem]:
    """What ``host`` cannot do of a config; a warning where the spec wants the runtime to go on."""
    report = Report()
    if spec.linux is None:
        platforms = [name for name in ("windows", "solaris", "zos", "freebsd") if getattr(spec, name) is not None]
        for name in platforms:
            report.error(f"$.{name}", "this host runs Linux", "config.md#platform-specific-configuration")
    if spec.vm is not None:
        report.error("$.vm", "virtual machines are not supported", "config.md#platform-specific-configuration")
    if spec.process is not None:
        _process(report, spec, spec.process, host)
    _mounts(report, spec, host)
    if spec.linux is not None:
        _linux(report, spec.linux, host)
    return report.problems


def _older(host: HostLike, version: tuple[int, int]) -> str:
    """A sentence about a kernel that is too old, or nothing."""
    if tuple(host.kernel) >= version:
        return ""
    return f"needs Linux {version[0]}.{version[1]}, and this is {host.kernel[0]}.{host.kernel[1]}"


def _process(report: Report, spec: RuntimeSpec, process: Process, host: HostLike) -> None:
    section = "config.md#linux-process"
    if process.apparmor_profile and "apparmor" not in host.lsms:
        report.error("$.process.apparmorProfile", "AppArmor is not active on this host", section)
    if process.selinux_label and "selinux" not in host.lsms:
        report.error("$.process.selinuxLabel", "SELinux is not active on this host", section)
    if process.capabilities is not None:
        _capabilities(report, spec, process.capabilities, host)


def _capabilities(report: Report, spec: RuntimeSpec, caps: Capabilities, host: HostLike) -> None:
    from .capabilities import Capability

    newer = {member.value for number, member in enumerate(Capability) if number > host.last_cap}
    # In a user namespace of its own a process has every capability.
    own = any(namespace.type == "user" for namespace in (spec.linux.namespaces if spec.linux else None) or ())
    lacking = {member.value for number, member in enumerate(Capability) if not own and not host.capabilities >> number & 1} - newer
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        wanted = frozenset[str](getattr(caps, name) or ())
        for missing, who in ((wanted & newer, "this kernel has"), (wanted & lacking, "the runtime itself has")):
            if missing:
                text = f"{who} no {', '.join(sorted(missing))}, so it is not granted"
                report.warn(f"$.process.capabilities.{name}", text, "config.md#linux-process")


def _mounts(report: Report, spec: RuntimeSpec, host: HostLike) -> None:
    too_old = _older(host, (5, 12))
    for index, mount in enumerate(spec.mounts or ()):
        wanted = sorted(_RECURSIVE.intersection(mount.options or ()))
        if too_old and wanted:
            report.error(f"$.mounts[{index}].options", f"{', '.join(wanted)} {too_old}", "config.md#linux-mount-options")
        if too_old and mount.uid_mappings:
            report.error(f"$.mounts[{index}].uidMappings", too_old, "config.md#posix-platform-mounts")


def _linux(report: Report, linux: Linux, host: HostLike) -> None:
    kinds = {str(namespace.type) for namespace in linux.namespaces or ()}
    for index, namespace in enumerate(linux.namespaces or ()):
        too_old = _older(host, _NAMESPACES.get(str(namespace.type), (0, 0)))
        if too_old:
            report.error(f"$.linux.namespaces[{index}]", too_old, "config-linux.md#namespaces")
    if "user" in kinds and not host.privileged:
        _mappings(report, "uidMappings", linux.uid_mappings or (), host.euid, host.subuids, host.idmap_helpers)
        _mappings(report, "gidMappings", linux.gid_mappings or (), host.egid, host.subgids, host.idmap_helpers)
    if host.euid != 0 and "user" not in kinds:
        text = f"user {host.euid} can have a container with a user namespace only"
        report.error("$.linux.namespaces", text, "config-linux.md#namespaces")
    if linux.mount_label and "selinux" not in host.lsms:
        report.warn(
            "$.linux.mountLabel", "SELinux is not active on this host, so mounts have no labels", "config-linux.md#mount-label"
        )
    if linux.seccomp is not None:
        section = "config-linux.md#seccomp"
        if not host.seccomp:
            report.error("$.linux.seccomp", "this kernel has no seccomp filters", section)
        too_old = _older(host, (5, 19))
        if too_old and "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (linux.seccomp.flags or ()):
            report.error("$.linux.seccomp.flags", f"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV {too_old}", section)
    policy = linux.memory_policy
    too_old = _older(host, _MODES.get(str(policy.mode), (0, 0))) if policy else ""
    if policy is not None and too_old:
        report.error("$.linux.memoryPolicy.mode", f"{policy.mode} {too_old}", "config-linux.md#memory-policy")
    if linux.personality is not None and linux.personality.domain == "LINUX32" and host.machine not in _32_BIT:
        text = f"{host.machine} has no 32-bit personality"
        report.error("$.linux.personality.domain", text, "config-linux.md#personality")
    if linux.intel_rdt is not None and not host.resctrl:
        report.error("$.linux.intelRdt", "no resctrl filesystem is mounted on this host", "config-linux.md#intelrdt")
    if linux.resources is not None:
        _resources(report, linux.resources, host)


def _mappings(
    report: Report,
    name: str,
    ranges: Sequence[IDMapping],
    own: int,
    given: Iterable[tuple[int, int]],
    helpers: tuple[str, str] | None,
) -> None:
    """What a user without privileges may map: the own id, and with the helpers those that /etc/subuid and /etc/subgid give."""
    section = "config-linux.md#user-namespace-mappings"
    if len(ranges) == 1 and (ranges[0].host_id, ranges[0].size) == (own, 1):
        return
    allowed = ((own, 1), *given)
    for index, mapping in enumerate(ranges):
        last = mapping.host_id + mapping.size - 1
        if not any(first <= mapping.host_id and last < first + count for first, count in allowed):
            text = f"ids {mapping.host_id} to {last} of the host are not given to this user"
            report.error(f"$.linux.{name}[{index}]", text, section)
    if ranges and helpers is None:
        report.error(f"$.linux.{name}", "newuidmap and newgidmap are needed for more than the own id", section)


def _resources(report: Report, resources: Resources, host: HostLike) -> None:
    path = "$.linux.resources"
    v1 = frozenset[str]().union(*(h.controllers for h in host.hierarchies if h.version == 1))
    v2 = frozenset[str]().union(*(h.controllers for h in host.hierarchies if h.version == 2))
    unified = any(h.version == 2 for h in host.hierarchies)
    cpu = resources.cpu
    if resources.devices and not (("devices" in v1 or unified) and host.rules_devices(1 if "devices" in v1 else 2)):
        text = "they need cgroups, and CAP_SYS_ADMIN in the first user namespace; without them the container goes on"
        report.warn(f"{path}.devices", text, "config-linux.md#allowed-device-list")
    # member, present, v1 controller, v2 controller, section
    wanted: list[tuple[str, object, str, str | None, str]] = [
        ("memory", resources.memory, "memory", "memory", "config-linux.md#memory"),
        ("pids", resources.pids, "pids", "pids", "config-linux.md#pids"),
        ("blockIO", resources.block_io, "blkio", "io", "config-linux.md#block-io"),
        ("hugepageLimits", resources.hugepage_limits, "hugetlb", "hugetlb", "config-linux.md#huge-page-limits"),
        ("rdma", resources.rdma, "rdma", "rdma", "config-linux.md#rdma"),
    ]
    if cpu is not None:
        section = "config-linux.md#cpu"
        times = (cpu.shares, cpu.quota, cpu.burst, cpu.period, cpu.idle)
        wanted.append(("cpu", any(value is not None for value in times), "cpu", "cpu", section))
        realtime = cpu.realtime_runtime is not None or cpu.realtime_period is not None
        wanted.append(("cpu.realtimeRuntime", realtime, "cpu", None, section))
        wanted.append(("cpu.cpus", cpu.cpus or cpu.mems, "cpuset", "cpuset", section))
    if resources.network is not None:
        section = "config-linux.md#network"
        wanted.append(("network.classID", resources.network.class_id is not None, "net_cls", None, section))
        wanted.append(("network.priorities", resources.network.priorities, "net_prio", None, section))
    if resources.memory is not None:
        section = "config-linux.md#memory"
        wanted.append(("memory.swappiness", resources.memory.swappiness is not None, "memory", None, section))
        wanted.append(("memory.disableOOMKiller", resources.memory.disable_oom_killer, "memory", None, section))
    for member, present, old, new, section in wanted:
        if present and old not in v1 and not (new is not None and new in v2):
            where = "of cgroup v1 that it needs" if new is None else "that it needs"
            report.error(f"{path}.{member}", f"this host has no controller {old} {where}", section)
    if resources.unified:
        if not unified:
            report.error(f"{path}.unified", "this host has no cgroup v2", "config-linux.md#unified")
        for file in resources.unified:
            controller = file.partition(".")[0]
            if unified and controller not in v2 and controller != "cgroup":
                text = f"this host has no controller {controller} of cgroup v2"
                report.error(f"{path}.unified[{file!r}]", text, "config-linux.md#unified")
