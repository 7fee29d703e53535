"""Rules about ``linux`` of config.json, except its resources (config-linux.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..base import json_path
from ..syntax import destination_in_root, sysctl_namespace, sysctl_path
from .findings import Findings
from .mounts import check_mappings
from .resources import check_resources
from .seccomp import check_seccomp

if TYPE_CHECKING:
    from ..config import RuntimeSpec
    from ..linux import IntelRdt, Linux, MemoryPolicy
    from ..process import User

_MAX_INTERFACE: Final = 15
_OF_NODES: Final = frozenset({"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"})
RESERVED_GROUPS: Final = frozenset({"", ".", "..", "info", "mon_data", "mon_groups"})
"""Names that a class of service of resctrl cannot have."""


def check_linux(findings: Findings, spec: RuntimeSpec, linux: Linux) -> None:
    """Check the Linux part of a config."""
    kinds = _check_namespaces(findings, linux)
    _check_user_namespace(findings, linux, kinds)
    if spec.process is not None and spec.process.user is not None and "user" in kinds and not kinds["user"]:
        _check_mapped(findings, linux, spec.process.user)
    _check_time_offsets(findings, linux, kinds)
    _check_devices(findings, linux, kinds)
    _check_net_devices(findings, linux, kinds)
    for key, value in (linux.sysctl or {}).items():
        _check_sysctl(findings, key, value, kinds)
        if sysctl_path(key) == "kernel/domainname" and spec.domainname not in (None, "", value):
            message = f"is {spec.domainname!r}, which conflicts with $.linux.sysctl[{key!r}]"
            findings.error("$.domainname", message, "config.md#domainname")
    for name, paths in (("maskedPaths", linux.masked_paths), ("readonlyPaths", linux.readonly_paths)):
        section = f"config-linux.md#{'masked-paths' if name == 'maskedPaths' else 'readonly-paths'}"
        for index, path in enumerate(paths or ()):
            findings.check_absolute(f"$.linux.{name}[{index}]", path, section)
            findings.check_text(f"$.linux.{name}[{index}]", path, section)
    if linux.cgroups_path and ".." in linux.cgroups_path.split("/"):
        findings.error("$.linux.cgroupsPath", "'..' leads out of the hierarchy", "config-linux.md#cgroups-path")
    if linux.seccomp is not None:
        check_seccomp(findings, linux.seccomp)
    if linux.intel_rdt is not None:
        check_intel_rdt(findings, linux.intel_rdt)
    if linux.memory_policy is not None:
        _check_memory_policy(findings, linux.memory_policy)
    if linux.personality is not None and linux.personality.flags:
        findings.error("$.linux.personality.flags", "the spec does not define any flag", "config-linux.md#personality")
    findings.check_text("$.linux.mountLabel", linux.mount_label, "config-linux.md#mount-label")
    if linux.resources is not None:
        check_resources(findings, linux.resources)


def _check_namespaces(findings: Findings, linux: Linux) -> dict[str, str | None]:
    section = "config-linux.md#namespaces"
    kinds: dict[str, str | None] = {}
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"$.linux.namespaces[{index}]"
        if not namespace.type.known:
            findings.error(f"{where}.type", f"{str(namespace.type)!r} is not a namespace of Linux", section)
        if namespace.type in kinds:
            findings.error(where, f"{namespace.type} appears twice", section)
        # Programs in Go write an empty path for none.
        findings.check_absolute(f"{where}.path", namespace.path or None, section)
        kinds[str(namespace.type)] = namespace.path
    return kinds


def _check_user_namespace(findings: Findings, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#user-namespace-mappings"
    for name, ranges in (("uidMappings", linux.uid_mappings), ("gidMappings", linux.gid_mappings)):
        path = f"$.linux.{name}"
        if ranges and "user" not in kinds:
            findings.error(path, "requires a user namespace", section)
        elif ranges and kinds["user"]:
            findings.warn(path, "an existing user namespace keeps its own mappings", section)
        check_mappings(findings, path, ranges, section)


def _check_mapped(findings: Findings, linux: Linux, user: User) -> None:
    """Check that ids have a mapping; setuid(2) refuses others."""
    groups = [("gid", user.gid), *((f"additionalGids[{index}]", gid) for index, gid in enumerate(user.additional_gids or ()))]
    for ranges, ids in ((linux.uid_mappings, [("uid", user.uid)]), (linux.gid_mappings, groups)):
        for name, wanted in ids:
            if ranges and not any(0 <= (wanted or 0) - mapping.container_id < mapping.size for mapping in ranges):
                findings.error(f"$.process.user.{name}", f"{wanted or 0} has no mapping in the user namespace", "config.md#user")


def _check_time_offsets(findings: Findings, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#offset-for-time-namespace"
    if not linux.time_offsets:
        return
    if "time" not in kinds or kinds["time"]:
        findings.error("$.linux.timeOffsets", "requires a new time namespace", section)
    for clock, offset in linux.time_offsets.items():
        where = json_path("$.linux.timeOffsets", clock)
        if clock not in ("monotonic", "boottime"):
            findings.error(where, f"{clock!r} is not monotonic or boottime", section)
        if offset.nanosecs is not None and offset.nanosecs >= 1_000_000_000:
            findings.error(f"{where}.nanosecs", f"{offset.nanosecs} is a second or more", section)


def _check_devices(findings: Findings, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#devices"
    paths: set[str] = set()
    numbers: set[tuple[str, int | None, int | None]] = set()
    for index, device in enumerate(linux.devices or ()):
        where = f"$.linux.devices[{index}]"
        findings.check_absolute(f"{where}.path", device.path, section)
        findings.check_text(f"{where}.path", device.path, section)
        if destination_in_root(device.path) == "/":
            findings.error(f"{where}.path", "is the root directory", section)
        if "user" in kinds and not kinds["user"]:
            for name, wanted, maps in (("uid", device.uid, linux.uid_mappings), ("gid", device.gid, linux.gid_mappings)):
                if wanted and maps and not any(0 <= wanted - mapping.container_id < mapping.size for mapping in maps):
                    findings.error(f"{where}.{name}", f"{wanted} is not mapped in the user namespace", section)
        if not device.type.known:
            findings.error(f"{where}.type", f"{str(device.type)!r} is not a type of device", section)
        if device.type == "p" or not device.type.known:
            continue
        for name, number, end in (("major", device.major, 1 << 12), ("minor", device.minor, 1 << 20)):
            if number is None:
                findings.error(f"{where}.{name}", f"is required by type {device.type}", section)
            elif not 0 <= number < end:
                findings.error(f"{where}.{name}", f"{number} is not between 0 and {end - 1}", section)
        if device.path in paths:
            findings.warn(where, f"{device.path} appears twice", section)
        kind = ("c" if device.type == "u" else str(device.type), device.major, device.minor)
        if kind in numbers:
            findings.warn(where, f"{device.type} {device.major}:{device.minor} appears twice", section)
        paths.add(device.path)
        numbers.add(kind)


def _check_net_devices(findings: Findings, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#network-devices"
    if linux.net_devices and "network" not in kinds:
        findings.error("$.linux.netDevices", "requires a network namespace", section)
    names: set[str] = set()
    for host, device in (linux.net_devices or {}).items():
        where = json_path("$.linux.netDevices", host)
        name = device.name or host
        for text, place in ((host, where), *([(name, f"{where}.name")] if device.name else ())):
            plain = text.replace("%d", "", 1) if place != where else text  # the kernel replaces it by a free number
            bad = text in ("", ".", "..") or any(c in "/:%" or c.isspace() or not c.isprintable() for c in plain)
            if bad or len(text.encode("utf-8", "surrogatepass")) > _MAX_INTERFACE:
                findings.error(place, f"{text!r} cannot be the name of a network device", section)
        if name in names and "%d" not in name:
            findings.error(f"{where}.name", f"{name!r} appears twice", section)
        names.add(name)


def _check_sysctl(findings: Findings, key: str, value: str, kinds: dict[str, str | None]) -> None:
    section, where = "config-linux.md#sysctl", json_path("$.linux.sysctl", key)
    path, kind = sysctl_path(key), sysctl_namespace(key)
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        findings.error(where, f"{key!r} is not the name of a sysctl", section)
    elif kind is None:
        findings.error(where, "does not belong to a namespace, so it would change the host", section)
    elif kind not in kinds:
        findings.error(where, f"would change the host: add a namespace of type {kind}", section)
    elif path == "kernel/hostname":
        findings.error(where, "is set by hostname: use that member", section)
    elif not value or not value.replace("\t", " ").isprintable():
        findings.error(where, f"{value!r} is not the value of a sysctl", section)


def check_intel_rdt(findings: Findings, rdt: IntelRdt) -> None:
    """Check the allocation by resctrl, of a config or an update."""
    path, section = "$.linux.intelRdt", "config-linux.md#intelrdt"
    name = rdt.clos_id
    if name is not None and name != "/" and (name in RESERVED_GROUPS or "/" in name or not name.isprintable()):
        findings.error(f"{path}.closID", f"{name!r} cannot be the name of a group", section)
    if rdt.l3_cache_schema is not None and not rdt.l3_cache_schema.startswith("L3:"):
        findings.warn(f"{path}.l3CacheSchema", "does not start with L3:", section)
    if rdt.mem_bw_schema is not None and not rdt.mem_bw_schema.startswith("MB:"):
        findings.error(f"{path}.memBwSchema", "does not start with MB:", section)
    lines = [("l3CacheSchema", rdt.l3_cache_schema), ("memBwSchema", rdt.mem_bw_schema)]
    for member, line in [*lines, *((f"schemata[{index}]", line) for index, line in enumerate(rdt.schemata or ()))]:
        if line is not None and (not line or not line.isprintable()):
            findings.error(f"{path}.{member}", "is not one line of text", section)


def _check_memory_policy(findings: Findings, policy: MemoryPolicy) -> None:
    path, section, flags = "$.linux.memoryPolicy", "config-linux.md#memory-policy", policy.flags or ()
    if policy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        if policy.nodes:
            findings.error(f"{path}.nodes", f"{policy.mode} does not accept nodes", section)
        if flags:
            findings.error(f"{path}.flags", f"{policy.mode} does not accept flags", section)
    elif policy.mode != "MPOL_PREFERRED" and policy.mode.known and not policy.nodes:
        findings.error(f"{path}.nodes", f"{policy.mode} requires at least one node", section)
    findings.check_ranges(f"{path}.nodes", policy.nodes, section)
    if policy.mode == "MPOL_PREFERRED" and not policy.nodes and _OF_NODES.intersection(flags):
        findings.error(f"{path}.flags", "MPOL_PREFERRED without nodes does not accept flags about nodes", section)
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        findings.error(f"{path}.flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES are mutually exclusive", section)
    if "MPOL_F_NUMA_BALANCING" in flags and policy.mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        findings.error(f"{path}.flags", f"{policy.mode} does not accept MPOL_F_NUMA_BALANCING", section)
