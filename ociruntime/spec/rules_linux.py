"""Rules about ``linux`` of config.json, but for its resources (config-linux.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .explain import step
from .rules import Report, mappings, number_list
from .rules_resources import resource_rules

if TYPE_CHECKING:
    from .config import RuntimeSpec
    from .linux import IntelRdt, Linux, MemoryPolicy
    from .process import User
    from .seccomp import Seccomp, SeccompAction, Syscall, SyscallArg

_IPC: Final = "msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced"
_IPC_SYSCTLS: Final = frozenset(f"kernel.{name}" for name in _IPC.split())
_UTS_SYSCTLS: Final = frozenset({"kernel.domainname", "kernel.hostname"})
_SWAP: Final = str.maketrans("./", "/.")
_MAX_ERRNO: Final = 4095
_MAX_INTERFACE: Final = 15
_WITH_ERRNO: Final = frozenset({"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"})
_SECCOMP: Final = "config-linux.md#seccomp"


def linux_rules(report: Report, spec: RuntimeSpec, linux: Linux) -> None:
    """Everything about the Linux part."""
    kinds = _namespaces(report, linux)
    _user_namespace(report, linux, kinds)
    if spec.process is not None and spec.process.user is not None and "user" in kinds and not kinds["user"]:
        _mapped(report, linux, spec.process.user)
    _time_offsets(report, linux, kinds)
    _devices(report, linux)
    _net_devices(report, linux, kinds)
    for key in linux.sysctl or ():
        _sysctl(report, key, kinds)
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        section = f"config-linux.md#{'masked-paths' if name == 'maskedPaths' else 'readonly-paths'}"
        if paths and "mount" not in kinds:
            report.error(f"$.linux.{name}", "would hide the host's own files: it needs a mount namespace", section)
        for index, path in enumerate(paths or ()):
            report.absolute(f"$.linux.{name}[{index}]", path, section)
    if linux.cgroups_path and ".." in linux.cgroups_path.split("/"):
        report.error("$.linux.cgroupsPath", "'..' leads out of the cgroup", "config-linux.md#cgroups-path")
    if linux.seccomp is not None:
        _seccomp(report, linux.seccomp)
    if linux.intel_rdt is not None:
        _intel_rdt(report, linux.intel_rdt)
    if linux.memory_policy is not None:
        _memory_policy(report, linux.memory_policy)
    if linux.personality is not None and linux.personality.flags:
        report.error("$.linux.personality.flags", "no flag is defined", "config-linux.md#personality")
    if linux.resources is not None:
        resource_rules(report, linux.resources)


def _namespaces(report: Report, linux: Linux) -> dict[str, str | None]:
    section = "config-linux.md#namespaces"
    kinds: dict[str, str | None] = {}
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"$.linux.namespaces[{index}]"
        if namespace.type in kinds:
            report.error(where, f"{namespace.type} comes twice", section)
        # An empty path is what a program in Go writes for none.
        report.absolute(f"{where}.path", namespace.path or None, section)
        kinds[str(namespace.type)] = namespace.path
    return kinds


def _user_namespace(report: Report, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#user-namespace-mappings"
    for name, ranges in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
        path = f"$.linux.{name}"
        if ranges and "user" not in kinds:
            report.error(path, "needs a user namespace", section)
        elif ranges and kinds["user"]:
            report.warn(path, "an existing user namespace keeps its own mappings", section)
        mappings(report, path, ranges, section)


def _mapped(report: Report, linux: Linux, user: User) -> None:
    """Ids without a mapping are invalid in the namespace: setuid(2) refuses them."""
    groups = [("gid", user.gid), *((f"additionalGids[{index}]", gid) for index, gid in enumerate(user.additional_gids or ()))]
    for ranges, ids in ((linux.uid_mappings, [("uid", user.uid)]), (linux.gid_mappings, groups)):
        for name, wanted in ids:
            if ranges and not any(0 <= (wanted or 0) - mapping.container_id < mapping.size for mapping in ranges):
                report.error(f"$.process.user.{name}", f"{wanted or 0} has no mapping in the user namespace", "config.md#user")


def _time_offsets(report: Report, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#offset-for-time-namespace"
    if not linux.time_offsets:
        return
    if "time" not in kinds or kinds["time"]:
        report.error("$.linux.timeOffsets", "needs a new time namespace", section)
    for clock, offset in linux.time_offsets.items():
        where = step("$.linux.timeOffsets", clock)
        if clock not in ("monotonic", "boottime"):
            report.error(where, f"{clock!r} is not monotonic or boottime", section)
        if offset.nanosecs is not None and offset.nanosecs >= 1_000_000_000:
            report.error(f"{where}.nanosecs", f"{offset.nanosecs} is a second or more", section)


def _devices(report: Report, linux: Linux) -> None:
    section = "config-linux.md#devices"
    paths: set[str] = set()
    numbers: set[tuple[str, int | None, int | None]] = set()
    for index, device in enumerate(linux.devices or ()):
        where = f"$.linux.devices[{index}]"
        report.absolute(f"{where}.path", device.path, section)
        if device.type == "p":
            continue
        for name, number in (("major", device.major), ("minor", device.minor)):
            if number is None:
                report.error(f"{where}.{name}", f"is needed by type {device.type}", section)
            elif number < 0:
                report.error(f"{where}.{name}", f"{number} is negative", section)
        if device.path in paths:
            report.warn(where, f"{device.path} comes twice", section)
        kind = ("c" if device.type == "u" else str(device.type), device.major, device.minor)
        if kind in numbers:
            report.warn(where, f"{device.type} {device.major}:{device.minor} comes twice", section)
        paths.add(device.path)
        numbers.add(kind)


def _net_devices(report: Report, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#network-devices"
    if linux.net_devices and "network" not in kinds:
        report.error("$.linux.netDevices", "needs a network namespace", section)
    names: set[str] = set()
    for host, device in (linux.net_devices or {}).items():
        where = step("$.linux.netDevices", host)
        name = device.name or host
        for text, place in ((host, where), (name, f"{where}.name")):
            bad = text in ("", ".", "..") or any(c in "/:" or c.isspace() for c in text)
            if bad or len(text.encode("utf-8", "surrogatepass")) > _MAX_INTERFACE:
                report.error(place, f"{text!r} cannot be the name of a network device", section)
        if name in names and "%d" not in name:
            report.error(f"{where}.name", f"{name!r} comes twice", section)
        names.add(name)


def _sysctl(report: Report, key: str, kinds: dict[str, str | None]) -> None:
    section, where = "config-linux.md#sysctl", step("$.linux.sysctl", key)
    # Dotted as in sysctl(8), where a slash stands for a dot in a name, or a path below /proc/sys.
    path = key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)
    name = path.translate(_SWAP)
    if not key or path.startswith("/") or ".." in path.split("/"):
        report.error(where, f"{key!r} is not the name of a sysctl", section)
    elif name in _UTS_SYSCTLS:
        if "uts" not in kinds:
            report.error(where, "would change the host: it needs a uts namespace", section)
        elif name == "kernel.hostname":
            report.error(where, "is what hostname is for", section)
    elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        if "ipc" not in kinds:
            report.error(where, "would change the host: it needs an ipc namespace", section)
    elif name.startswith("net."):
        if "network" not in kinds:
            report.error(where, "would change the host: it needs a network namespace", section)
    else:
        report.error(where, "belongs to no namespace, so it would change the host", section)


def _seccomp(report: Report, seccomp: Seccomp) -> None:
    path = "$.linux.seccomp"
    _errno(report, f"{path}.defaultErrnoRet", seccomp.default_errno_ret, seccomp.default_action)
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        report.error(f"{path}.defaultAction", "the runtime itself would wait for the agent before it is there", _SECCOMP)
    notify = False
    for index, rule in enumerate(seccomp.syscalls or ()):
        where = f"{path}.syscalls[{index}]"
        _errno(report, f"{where}.errnoRet", rule.errno_ret, rule.action)
        _syscall(report, rule, where)
        notify = notify or rule.action == "SCMP_ACT_NOTIFY"
    if notify and not seccomp.listener_path:
        report.error(f"{path}.listenerPath", "is needed by SCMP_ACT_NOTIFY", _SECCOMP)
    if seccomp.listener_path and not notify:
        report.warn(f"{path}.listenerPath", "is ignored without SCMP_ACT_NOTIFY", _SECCOMP)
    if seccomp.listener_metadata and not seccomp.listener_path:
        report.error(f"{path}.listenerMetadata", "comes with listenerPath only", _SECCOMP)
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (seccomp.flags or ()) and not notify:
        report.error(f"{path}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs SCMP_ACT_NOTIFY", _SECCOMP)


def _syscall(report: Report, rule: Syscall, where: str) -> None:
    if rule.action == "SCMP_ACT_NOTIFY" and "write" in rule.names:
        report.error(f"{where}.names", "write with SCMP_ACT_NOTIFY: the runtime itself would wait for the agent", _SECCOMP)
    for position, arg in enumerate(rule.args or ()):
        _argument(report, arg, f"{where}.args[{position}]")


def _argument(report: Report, arg: SyscallArg, where: str) -> None:
    if arg.index > 5:
        report.error(f"{where}.index", f"{arg.index} is not 0 to 5", _SECCOMP)
    if arg.value_two and arg.op != "SCMP_CMP_MASKED_EQ":
        report.warn(f"{where}.valueTwo", f"is ignored by {arg.op}", _SECCOMP)


def _errno(report: Report, path: str, errno: int | None, action: SeccompAction) -> None:
    if errno is None or not action.known:
        return
    if action not in _WITH_ERRNO:
        report.error(path, f"{action} has no errno", _SECCOMP)
    elif errno > _MAX_ERRNO and action == "SCMP_ACT_ERRNO":
        report.error(path, f"{errno} is more than {_MAX_ERRNO}, the last errno", _SECCOMP)


def _intel_rdt(report: Report, rdt: IntelRdt) -> None:
    path, section = "$.linux.intelRdt", "config-linux.md#intelrdt"
    if rdt.clos_id is not None and rdt.clos_id != "/" and (rdt.clos_id in ("", ".", "..") or "/" in rdt.clos_id):
        report.error(f"{path}.closID", f"{rdt.clos_id!r} is not the name of a directory", section)
    if rdt.l3_cache_schema is not None:
        if "\n" in rdt.l3_cache_schema:
            report.warn(f"{path}.l3CacheSchema", "has more than one line", section)
        if not rdt.l3_cache_schema.startswith("L3:"):
            report.warn(f"{path}.l3CacheSchema", "does not start with L3:", section)
    for index, line in enumerate(rdt.schemata or ()):
        if "\n" in line:
            report.error(f"{path}.schemata[{index}]", "has more than one line", section)


def _memory_policy(report: Report, policy: MemoryPolicy) -> None:
    path, section, flags = "$.linux.memoryPolicy", "config-linux.md#memory-policy", policy.flags or ()
    if policy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        if policy.nodes:
            report.error(f"{path}.nodes", f"{policy.mode} takes no nodes", section)
        if flags:
            report.error(f"{path}.flags", f"{policy.mode} takes no flags", section)
    elif policy.mode != "MPOL_PREFERRED" and policy.mode.known and not policy.nodes:
        report.error(f"{path}.nodes", f"{policy.mode} needs at least one node", section)
    number_list(report, f"{path}.nodes", policy.nodes, section)
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        report.error(f"{path}.flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other", section)
    if "MPOL_F_NUMA_BALANCING" in flags and policy.mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        report.error(f"{path}.flags", f"MPOL_F_NUMA_BALANCING is not for {policy.mode}", section)
