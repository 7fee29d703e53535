"""Rules about what one host supports: kernel version, cgroup controllers, security modules, capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from ...arguments import check_host
from ..base import Problem
from ..process import Capability
from . import Findings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ..config import RuntimeSpec
    from ..linux import IDMapping, Linux, Resources
    from ..process import Capabilities, ProcessSpec

_NAMESPACES: Final = {"cgroup": (4, 6), "time": (5, 6)}
"""Namespaces and the kernel versions that introduced them."""
_RECURSIVE: Final = frozenset(
    "ratime rdev rdiratime rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow rrelatime rro "
    "rrw rstrictatime rsuid rsymfollow idmap ridmap".split()
)
_MODES: Final = {"MPOL_PREFERRED_MANY": (5, 15), "MPOL_WEIGHTED_INTERLEAVE": (6, 9)}
_32_BIT: Final = frozenset({"x86_64", "aarch64", "ppc64", "ppc64le", "s390x", "mips64", "sparc64", "parisc64"})


class HierarchyLike(Protocol):
    """Properties of a mounted cgroup hierarchy that the rules use."""

    @property
    def version(self) -> int: ...
    @property
    def controllers(self) -> Collection[str]: ...


class HostLike(Protocol):
    """Properties of a host that the rules and the default config use. `ociruntime.host.Host` has them."""

    @property
    def kernel(self) -> tuple[int, int]: ...
    @property
    def machine(self) -> str: ...
    @property
    def euid(self) -> int: ...
    @property
    def last_cap(self) -> int: ...
    @property
    def hierarchies(self) -> Iterable[HierarchyLike]: ...
    @property
    def lsms(self) -> Collection[str]: ...
    @property
    def seccomp(self) -> bool: ...
    @property
    def capabilities(self) -> int: ...
    @property
    def resctrl(self) -> str: ...
    @property
    def egid(self) -> int: ...
    @property
    def privileged(self) -> bool: ...
    @property
    def initial(self) -> bool: ...
    def rules_devices(self, version: int) -> bool: ...
    @property
    def idmap_helpers(self) -> tuple[str, str] | None: ...
    @property
    def subuids(self) -> Iterable[tuple[int, int]]: ...
    @property
    def subgids(self) -> Iterable[tuple[int, int]]: ...


def host_problems(spec: RuntimeSpec, host: HostLike) -> list[Problem]:
    """Return what a host does not support of a config. It is a warning where the spec requires the runtime to continue."""
    check_host(host)
    findings = Findings()
    if spec.linux is None:
        platforms = [name for name in ("windows", "solaris", "zos", "freebsd") if getattr(spec, name) is not None]
        for name in platforms:
            findings.error(f"$.{name}", "this host runs Linux", "config.md#platform-specific-configuration")
    if spec.vm is not None:
        findings.error("$.vm", "virtual machines are not supported", "config.md#platform-specific-configuration")
    if spec.process is not None:
        _check_process(findings, spec, spec.process, host)
    _check_mounts(findings, spec, host)
    if spec.linux is not None:
        _check_linux(findings, spec.linux, host)
    return findings.problems


def _older(host: HostLike, version: tuple[int, int]) -> str:
    """Return a message if the kernel is older than a version, or an empty string."""
    if tuple(host.kernel) >= version:
        return ""
    return f"needs Linux {version[0]}.{version[1]}, and this is {host.kernel[0]}.{host.kernel[1]}"


def _check_process(findings: Findings, spec: RuntimeSpec, process: ProcessSpec, host: HostLike) -> None:
    section = "config.md#linux-process"
    if process.apparmor_profile and "apparmor" not in host.lsms:
        findings.error("$.process.apparmorProfile", "AppArmor is not active on this host", section)
    if process.selinux_label and "selinux" not in host.lsms:
        findings.error("$.process.selinuxLabel", "SELinux is not active on this host", section)
    if process.capabilities is not None:
        _check_capabilities(findings, spec, process.capabilities, host)


def _check_capabilities(findings: Findings, spec: RuntimeSpec, caps: Capabilities, host: HostLike) -> None:
    newer = {member.value for number, member in enumerate(Capability) if number > host.last_cap}
    # A process has every capability in a user namespace of its own.
    own = any(namespace.type == "user" for namespace in (spec.linux.namespaces if spec.linux else None) or ())
    lacking = {member.value for number, member in enumerate(Capability) if not own and not host.capabilities >> number & 1} - newer
    for name in ("bounding", "effective", "inheritable", "permitted", "ambient"):
        names = frozenset[str](getattr(caps, name) or ())
        for missing, lacker in ((names & newer, "this kernel"), (names & lacking, "the runtime")):
            if missing:
                text = f"{lacker} does not have {', '.join(sorted(missing))}, so it is not granted"
                findings.warn(f"$.process.capabilities.{name}", text, "config.md#linux-process")


def _check_mounts(findings: Findings, spec: RuntimeSpec, host: HostLike) -> None:
    too_old = _older(host, (5, 12))
    for index, mount in enumerate(spec.mounts or ()):
        recursive = sorted(_RECURSIVE.intersection(mount.options or ()))
        if too_old and recursive:
            findings.error(f"$.mounts[{index}].options", f"{', '.join(recursive)} {too_old}", "config.md#linux-mount-options")
        if too_old and mount.uid_mappings:
            findings.error(f"$.mounts[{index}].uidMappings", too_old, "config.md#posix-platform-mounts")


def _check_linux(findings: Findings, linux: Linux, host: HostLike) -> None:
    kinds = {str(namespace.type) for namespace in linux.namespaces or ()}
    for index, namespace in enumerate(linux.namespaces or ()):
        too_old = _older(host, _NAMESPACES.get(str(namespace.type), (0, 0)))
        if too_old:
            findings.error(f"$.linux.namespaces[{index}]", too_old, "config-linux.md#namespaces")
    if "user" in kinds and not host.privileged:
        _check_mappings(findings, "uidMappings", linux.uid_mappings or (), host.euid, host.subuids, host.idmap_helpers)
        _check_mappings(findings, "gidMappings", linux.gid_mappings or (), host.egid, host.subgids, host.idmap_helpers)
    if host.euid != 0 and "user" not in kinds:
        text = f"user {host.euid} is not privileged: add a user namespace"
        findings.error("$.linux.namespaces", text, "config-linux.md#namespaces")
    if linux.mount_label and "selinux" not in host.lsms:
        findings.warn(
            "$.linux.mountLabel", "SELinux is not active on this host, so mounts are not labelled", "config-linux.md#mount-label"
        )
    if linux.seccomp is not None:
        section = "config-linux.md#seccomp"
        if not host.seccomp:
            findings.error("$.linux.seccomp", "this kernel does not support seccomp filters", section)
        too_old = _older(host, (5, 19))
        if too_old and "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (linux.seccomp.flags or ()):
            findings.error("$.linux.seccomp.flags", f"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV {too_old}", section)
    policy = linux.memory_policy
    too_old = _older(host, _MODES.get(str(policy.mode), (0, 0))) if policy else ""
    if policy is not None and too_old:
        findings.error("$.linux.memoryPolicy.mode", f"{policy.mode} {too_old}", "config-linux.md#memory-policy")
    if linux.personality is not None and linux.personality.domain == "LINUX32" and host.machine not in _32_BIT:
        text = f"{host.machine} has no 32-bit personality"
        findings.error("$.linux.personality.domain", text, "config-linux.md#personality")
    if linux.intel_rdt is not None and not host.resctrl:
        findings.error("$.linux.intelRdt", "no resctrl filesystem is mounted on this host", "config-linux.md#intelrdt")
    if linux.resources is not None:
        _check_resources(findings, linux.resources, host)


def _check_mappings(
    findings: Findings,
    name: str,
    ranges: Sequence[IDMapping],
    own: int,
    given: Iterable[tuple[int, int]],
    helpers: tuple[str, str] | None,
) -> None:
    """Check the mappings of a user without privileges: the own id and, with the helpers, subordinate ids."""
    section = "config-linux.md#user-namespace-mappings"
    if len(ranges) == 1 and (ranges[0].host_id, ranges[0].size) == (own, 1):
        return
    allowed = ((own, 1), *given)
    for index, mapping in enumerate(ranges):
        last = mapping.host_id + mapping.size - 1
        if not any(first <= mapping.host_id and last < first + count for first, count in allowed):
            text = f"ids {mapping.host_id} to {last} of the host are not subordinate ids of this user"
            findings.error(f"$.linux.{name}[{index}]", text, section)
    if ranges and helpers is None:
        findings.error(f"$.linux.{name}", "newuidmap and newgidmap are required to map more than the own id", section)


def _check_resources(findings: Findings, resources: Resources, host: HostLike) -> None:
    path = "$.linux.resources"
    v1 = frozenset[str]().union(*(h.controllers for h in host.hierarchies if h.version == 1))
    v2 = frozenset[str]().union(*(h.controllers for h in host.hierarchies if h.version == 2))
    unified = any(h.version == 2 for h in host.hierarchies)
    cpu = resources.cpu
    if resources.devices and not (("devices" in v1 or unified) and host.rules_devices(1 if "devices" in v1 else 2)):
        text = "ignored: they require cgroups, and CAP_SYS_ADMIN in the initial user namespace"
        findings.warn(f"{path}.devices", text, "config-linux.md#allowed-device-list")
    # member, present, v1 controller, v2 controller, section
    settings: list[tuple[str, object, str, str | None, str]] = [
        ("memory", resources.memory, "memory", "memory", "config-linux.md#memory"),
        ("pids", resources.pids, "pids", "pids", "config-linux.md#pids"),
        ("blockIO", resources.block_io, "blkio", "io", "config-linux.md#block-io"),
        ("hugepageLimits", resources.hugepage_limits, "hugetlb", "hugetlb", "config-linux.md#huge-page-limits"),
        ("rdma", resources.rdma, "rdma", "rdma", "config-linux.md#rdma"),
    ]
    if cpu is not None:
        section = "config-linux.md#cpu"
        times = (cpu.shares, cpu.quota, cpu.burst, cpu.period, cpu.idle)
        settings.append(("cpu", any(value is not None for value in times), "cpu", "cpu", section))
        realtime = cpu.realtime_runtime is not None or cpu.realtime_period is not None
        settings.append(("cpu.realtimeRuntime", realtime, "cpu", None, section))
        settings.append(("cpu.cpus", cpu.cpus or cpu.mems, "cpuset", "cpuset", section))
    if resources.network is not None:
        section = "config-linux.md#network"
        settings.append(("network.classID", resources.network.class_id is not None, "net_cls", None, section))
        settings.append(("network.priorities", resources.network.priorities, "net_prio", None, section))
    if resources.memory is not None:
        section = "config-linux.md#memory"
        settings.append(("memory.swappiness", resources.memory.swappiness is not None, "memory", None, section))
        settings.append(("memory.disableOOMKiller", resources.memory.disable_oom_killer, "memory", None, section))
    for member, present, old, new, section in settings:
        if present and old not in v1 and not (new is not None and new in v2):
            where = " of cgroup v1, which it requires" if new is None else ", which it requires"
            findings.error(f"{path}.{member}", f"this host does not have the controller {old}{where}", section)
    if resources.unified:
        if not unified:
            findings.error(f"{path}.unified", "this host does not have cgroup v2", "config-linux.md#unified")
        for file in resources.unified:
            controller = file.partition(".")[0]
            if unified and controller not in v2 and controller != "cgroup":
                text = f"this host does not have the controller {controller} of cgroup v2"
                findings.error(f"{path}.unified[{file!r}]", text, "config-linux.md#unified")
