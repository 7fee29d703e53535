"""Rules about ``linux`` of config.json, but for its resources (config-linux.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .explain import step
from .places import destination_in_root
from .rules import Report, number_list
from .rules_mounts import mappings
from .rules_resources import resource_rules
from .sysctls import sysctl_namespace, sysctl_path

if TYPE_CHECKING:
    from .config import RuntimeSpec
    from .linux import IntelRdt, Linux, MemoryPolicy
    from .process import User

_MAX_INTERFACE: Final = 15
_OF_NODES: Final = frozenset({"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"})
RESERVED_GROUPS: Final = frozenset({"", ".", "..", "info", "mon_data", "mon_groups"})
"""What a class of service of resctrl cannot be called."""


def linux_rules(report: Report, spec: RuntimeSpec, linux: Linux) -> None:
    """Everything about the Linux part."""
    kinds = _namespaces(report, linux)
    _user_namespace(report, linux, kinds)
    if spec.process is not None and spec.process.user is not None and "user" in kinds and not kinds["user"]:
        _mapped(report, linux, spec.process.user)
    _time_offsets(report, linux, kinds)
    _devices(report, linux, kinds)
    _net_devices(report, linux, kinds)
    for key, value in (linux.sysctl or {}).items():
        _sysctl(report, key, value, kinds)
        if sysctl_path(key) == "kernel/domainname" and spec.domainname not in (None, "", value):
            message = f"is {spec.domainname!r}, and $.linux.sysctl[{key!r}] says something else"
            report.error("$.domainname", message, "config.md#domainname")
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        section = f"config-linux.md#{'masked-paths' if name == 'maskedPaths' else 'readonly-paths'}"
        for index, path in enumerate(paths or ()):
            report.absolute(f"$.linux.{name}[{index}]", path, section)
            report.passable(f"$.linux.{name}[{index}]", path, section)
    if linux.cgroups_path and ".." in linux.cgroups_path.split("/"):
        report.error("$.linux.cgroupsPath", "'..' leads out of the cgroup", "config-linux.md#cgroups-path")
    if linux.seccomp is not None:
        from .rules_seccomp import seccomp_rules

        seccomp_rules(report, linux.seccomp)
    if linux.intel_rdt is not None:
        rdt_rules(report, linux.intel_rdt)
    if linux.memory_policy is not None:
        _memory_policy(report, linux.memory_policy)
    if linux.personality is not None and linux.personality.flags:
        report.error("$.linux.personality.flags", "no flag is defined", "config-linux.md#personality")
    report.passable("$.linux.mountLabel", linux.mount_label, "config-linux.md#mount-label")
    if linux.resources is not None:
        resource_rules(report, linux.resources)


def _namespaces(report: Report, linux: Linux) -> dict[str, str | None]:
    section = "config-linux.md#namespaces"
    kinds: dict[str, str | None] = {}
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"$.linux.namespaces[{index}]"
        if not namespace.type.known:
            report.error(f"{where}.type", f"{str(namespace.type)!r} is not a namespace of Linux", section)
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


def _devices(report: Report, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#devices"
    paths: set[str] = set()
    numbers: set[tuple[str, int | None, int | None]] = set()
    for index, device in enumerate(linux.devices or ()):
        where = f"$.linux.devices[{index}]"
        report.absolute(f"{where}.path", device.path, section)
        report.passable(f"{where}.path", device.path, section)
        if destination_in_root(device.path) == "/":
            report.error(f"{where}.path", "is the root", section)
        if "user" in kinds and not kinds["user"]:
            for name, wanted, maps in (("uid", device.uid, linux.uid_mappings), ("gid", device.gid, linux.gid_mappings)):
                if wanted and maps and not any(0 <= wanted - mapping.container_id < mapping.size for mapping in maps):
                    report.error(f"{where}.{name}", f"{wanted} is not mapped in the user namespace", section)
        if not device.type.known:
            report.error(f"{where}.type", f"{str(device.type)!r} is no type of device", section)
        if device.type == "p" or not device.type.known:
            continue
        for name, number, end in (("major", device.major, 1 << 12), ("minor", device.minor, 1 << 20)):
            if number is None:
                report.error(f"{where}.{name}", f"is needed by type {device.type}", section)
            elif not 0 <= number < end:
                report.error(f"{where}.{name}", f"{number} is not between 0 and {end - 1}", section)
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
        for text, place in ((host, where), *([(name, f"{where}.name")] if device.name else ())):
            plain = text.replace("%d", "", 1) if place != where else text  # the kernel puts a free number there
            bad = text in ("", ".", "..") or any(c in "/:%" or c.isspace() or not c.isprintable() for c in plain)
            if bad or len(text.encode("utf-8", "surrogatepass")) > _MAX_INTERFACE:
                report.error(place, f"{text!r} cannot be the name of a network device", section)
        if name in names and "%d" not in name:
            report.error(f"{where}.name", f"{name!r} comes twice", section)
        names.add(name)


def _sysctl(report: Report, key: str, value: str, kinds: dict[str, str | None]) -> None:
    section, where = "config-linux.md#sysctl", step("$.linux.sysctl", key)
    path, kind = sysctl_path(key), sysctl_namespace(key)
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        report.error(where, f"{key!r} is not the name of a sysctl", section)
    elif kind is None:
        report.error(where, "belongs to no namespace, so it would change the host", section)
    elif kind not in kinds:
        report.error(where, f"would change the host: it needs a namespace of type {kind}", section)
    elif path == "kernel/hostname":
        report.error(where, "is what hostname is for", section)
    elif not value or not value.replace("\t", " ").isprintable():
        report.error(where, f"{value!r} is not the value of a sysctl", section)


def rdt_rules(report: Report, rdt: IntelRdt) -> None:
    """Everything about resctrl."""
    path, section = "$.linux.intelRdt", "config-linux.md#intelrdt"
    name = rdt.clos_id
    if name is not None and name != "/" and (name in RESERVED_GROUPS or "/" in name or not name.isprintable()):
        report.error(f"{path}.closID", f"{name!r} cannot be the name of a group", section)
    if rdt.l3_cache_schema is not None and not rdt.l3_cache_schema.startswith("L3:"):
        report.warn(f"{path}.l3CacheSchema", "does not start with L3:", section)
    if rdt.mem_bw_schema is not None and not rdt.mem_bw_schema.startswith("MB:"):
        report.error(f"{path}.memBwSchema", "does not start with MB:", section)
    lines = [("l3CacheSchema", rdt.l3_cache_schema), ("memBwSchema", rdt.mem_bw_schema)]
    for member, line in [*lines, *((f"schemata[{index}]", line) for index, line in enumerate(rdt.schemata or ()))]:
        if line is not None and (not line or not line.isprintable()):
            report.error(f"{path}.{member}", "is not one line of text", section)


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
    if policy.mode == "MPOL_PREFERRED" and not policy.nodes and _OF_NODES.intersection(flags):
        report.error(f"{path}.flags", "MPOL_PREFERRED without nodes takes no flags about them", section)
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        report.error(f"{path}.flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other", section)
    if "MPOL_F_NUMA_BALANCING" in flags and policy.mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        report.error(f"{path}.flags", f"MPOL_F_NUMA_BALANCING is not for {policy.mode}", section)
