"""Rules about ``linux`` of config.json and about ``mounts`` (config-linux.md).

First the parts that are checked on their own too, then the whole: `check_linux`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ...arguments import shown
from ..base import destination_in_root, is_below, json_path, parse_ranges, split_option, sysctl_namespace, sysctl_path
from . import Findings

if TYPE_CHECKING:
    from ..config import RuntimeSpec
    from ..linux import CPU, BlockIO, DeviceCgroup, IDMapping, IntelRdt, Linux, Memory, MemoryPolicy, Mount, Resources
    from ..process import User
    from ..seccomp import Seccomp, SeccompAction, Syscall, SyscallArg


# ---- seccomp ----

_SECCOMP: Final = "$.linux.seccomp"
_SECTION: Final = "config-linux.md#seccomp"
_ERRNO_LIMITS: Final = {"SCMP_ACT_ERRNO": 4094, "SCMP_ACT_TRACE": 0xFFFF}
"""The actions that return a number, and the maximum that libseccomp accepts."""
_HANDSHAKE: Final = ("read", "sendmsg")
"""Calls of the init between loading the filter and sending the listener, when no agent can answer a notification yet."""


def check_seccomp(findings: Findings, seccomp: Seccomp) -> None:
    """Check a filter, unknown names included, so that every checked filter can be compiled."""
    _check_action(
        findings, f"{_SECCOMP}.defaultAction", f"{_SECCOMP}.defaultErrnoRet", seccomp.default_action, seccomp.default_errno_ret
    )
    if seccomp.default_action == "SCMP_ACT_NOTIFY":
        findings.error(
            f"{_SECCOMP}.defaultAction",
            "SCMP_ACT_NOTIFY cannot be the default: the init would wait for an agent that is not connected yet",
            _SECTION,
        )
    for index, arch in enumerate(seccomp.architectures or ()):
        if not arch.known:
            findings.error(
                f"{_SECCOMP}.architectures[{index}]", f"{shown(str(arch))} is not an architecture of libseccomp", _SECTION
            )
    for index, flag in enumerate(seccomp.flags or ()):
        if not flag.known:
            findings.error(f"{_SECCOMP}.flags[{index}]", f"{shown(str(flag))} is not a flag of seccomp(2)", _SECTION)
    notify = False
    for index, rule in enumerate(seccomp.syscalls or ()):
        _check_syscall(findings, rule, f"{_SECCOMP}.syscalls[{index}]")
        notify = notify or rule.action == "SCMP_ACT_NOTIFY"
    if notify and not seccomp.listener_path:
        findings.error(f"{_SECCOMP}.listenerPath", "is required by SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_path and not notify:
        findings.warn(f"{_SECCOMP}.listenerPath", "is ignored without SCMP_ACT_NOTIFY", _SECTION)
    if seccomp.listener_metadata and not seccomp.listener_path:
        findings.error(f"{_SECCOMP}.listenerMetadata", "requires listenerPath", _SECTION)
    if "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in (seccomp.flags or ()) and not notify:
        findings.warn(f"{_SECCOMP}.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is ignored without SCMP_ACT_NOTIFY", _SECTION)
    findings.check_text(f"{_SECCOMP}.listenerPath", seccomp.listener_path, _SECTION)


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
        findings.error(f"{where}.op", f"{shown(str(arg.op))} is not an operator", _SECTION)
    elif arg.value_two and arg.op != "SCMP_CMP_MASKED_EQ":
        findings.warn(f"{where}.valueTwo", f"is ignored by {arg.op}", _SECTION)


def _check_action(findings: Findings, place: str, errno_place: str, action: SeccompAction, errno: int | None) -> None:
    if not action.known:
        findings.error(place, f"{shown(str(action))} is not an action of seccomp", _SECTION)
    elif errno is not None:
        limit = _ERRNO_LIMITS.get(action)
        if limit is None:
            findings.error(errno_place, f"{action} does not accept an errno; only {' and '.join(_ERRNO_LIMITS)} do", _SECTION)
        elif not 0 <= errno <= limit:
            findings.error(errno_place, f"{errno} is not 0 to {limit}", _SECTION)


# ---- resources ----

_PATH: Final = "$.linux.resources"


def check_resources(findings: Findings, resources: Resources) -> None:
    """Check the resources of a config or an update."""
    for index, rule in enumerate(resources.devices or ()):
        _check_device(findings, rule, f"{_PATH}.devices[{index}]")
    if resources.memory is not None:
        _check_memory(findings, resources.memory)
    if resources.cpu is not None:
        _check_cpu(findings, resources.cpu)
    if resources.pids is not None and resources.pids.limit is not None and resources.pids.limit < -1:
        findings.error(
            f"{_PATH}.pids.limit", f"{resources.pids.limit} is less than -1, which means no limit", "config-linux.md#pids"
        )
    if resources.block_io is not None:
        _check_block_io(findings, resources.block_io)
    sizes: set[str] = set()
    for index, limit in enumerate(resources.hugepage_limits or ()):
        if limit.page_size in sizes:
            findings.error(
                f"{_PATH}.hugepageLimits[{index}]", f"{limit.page_size} appears twice", "config-linux.md#huge-page-limits"
            )
        sizes.add(limit.page_size)
    names: set[str] = set()
    for index, priority in enumerate((resources.network.priorities if resources.network else None) or ()):
        if priority.name in names:
            findings.error(f"{_PATH}.network.priorities[{index}]", f"{priority.name} appears twice", "config-linux.md#network")
        names.add(priority.name)
    for name, rdma in (resources.rdma or {}).items():
        if rdma.hca_handles is None and rdma.hca_objects is None:
            findings.error(json_path(f"{_PATH}.rdma", name), "hcaHandles or hcaObjects is required", "config-linux.md#rdma")
    for file, value in (resources.unified or {}).items():
        if "/" in file or "." not in file.strip("."):
            findings.error(
                json_path(f"{_PATH}.unified", file), f"{shown(file)} is not a file of a controller", "config-linux.md#unified"
            )
        if "\0" in value:
            findings.error(
                json_path(f"{_PATH}.unified", file), "a NUL byte cannot be passed to the kernel", "config-linux.md#unified"
            )


def _check_device(findings: Findings, rule: DeviceCgroup, where: str) -> None:
    section = "config-linux.md#allowed-device-list"
    if rule.type is not None and rule.type not in ("a", "b", "c", ""):
        findings.error(f"{where}.type", f"{shown(rule.type)} is none of a, b, c", section)
    if rule.access is not None and not set(rule.access) <= set("rwm"):
        if not set(rule.access) <= set("rwma") or rule.access == "a":
            findings.error(f"{where}.access", f"{shown(rule.access)} is not composed of r, w and m", section)
        else:
            findings.warn(f"{where}.access", "the letter a is ignored: access is composed of r, w and m", section)
    for name, number in (("major", rule.major), ("minor", rule.minor)):
        if number is not None and number < -1:
            findings.error(f"{where}.{name}", f"{number} is negative", section)


def _check_memory(findings: Findings, memory: Memory) -> None:
    path, section = f"{_PATH}.memory", "config-linux.md#memory"
    members = ("limit", "reservation", "swap", "kernel", "kernelTCP")
    values = (memory.limit, memory.reservation, memory.swap, memory.kernel, memory.kernel_tcp)
    for name, value in zip(members, values, strict=True):
        if value is not None and value < -1:
            findings.error(f"{path}.{name}", f"{value} is less than -1, which means no limit", section)
    limit, swap, reservation = memory.limit or 0, memory.swap or 0, memory.reservation or 0
    if swap > 0 and limit > swap:
        findings.error(f"{path}.swap", f"{swap} is below the memory limit {limit}, which is part of it", section)
    if swap > 0 and limit <= 0:
        findings.error(f"{path}.swap", "a limit of memory and swap together requires a memory limit", section)
    if 0 < limit < reservation:
        findings.warn(f"{path}.reservation", f"{reservation} is above the memory limit {limit}", section)
    if memory.swappiness is not None and memory.swappiness > 100:
        findings.error(f"{path}.swappiness", f"{memory.swappiness} is not 0 to 100", section)
    for name, value in (("kernel", memory.kernel), ("kernelTCP", memory.kernel_tcp)):
        if value is not None:
            findings.warn(f"{path}.{name}", "is not recommended, and recent kernels ignore it", section)


def _check_cpu(findings: Findings, cpu: CPU) -> None:
    path, section = f"{_PATH}.cpu", "config-linux.md#cpu"
    if cpu.quota is not None and cpu.quota < -1:
        findings.error(f"{path}.quota", f"{cpu.quota} is less than -1, which means no limit", section)
    if cpu.quota is not None and 0 < cpu.quota < 1000:
        findings.error(f"{path}.quota", f"{cpu.quota} is less than the kernel's minimum of 1000 microseconds", section)
    if cpu.burst is not None and cpu.quota is not None and 0 < cpu.quota < cpu.burst:
        findings.error(f"{path}.burst", f"{cpu.burst} is more than the quota {cpu.quota}", section)
    # Engines send 0 for "unchanged".
    if cpu.period and not 1000 <= cpu.period <= 1_000_000:
        findings.error(f"{path}.period", f"{cpu.period} is not 1000 to 1000000 microseconds", section)
    if cpu.realtime_runtime is not None and cpu.realtime_period and cpu.realtime_runtime > cpu.realtime_period:
        findings.error(f"{path}.realtimeRuntime", f"{cpu.realtime_runtime} is more than the period {cpu.realtime_period}", section)
    if cpu.shares == 1:
        findings.warn(f"{path}.shares", "the kernel's minimum is 2", section)
    if cpu.idle is not None and cpu.idle not in (0, 1):
        findings.error(f"{path}.idle", f"{cpu.idle} is not 0 or 1", section)
    findings.check_ranges(f"{path}.cpus", cpu.cpus, section)
    findings.check_ranges(f"{path}.mems", cpu.mems, section)


def _check_block_io(findings: Findings, block_io: BlockIO) -> None:
    path, section = f"{_PATH}.blockIO", "config-linux.md#block-io"
    weights = [(f"{path}.weight", block_io.weight), (f"{path}.leafWeight", block_io.leaf_weight)]
    for index, device in enumerate(block_io.weight_device or ()):
        where = f"{path}.weightDevice[{index}]"
        if device.weight is None and device.leaf_weight is None:
            findings.error(where, "weight or leafWeight is required", section)
        weights += [(f"{where}.weight", device.weight), (f"{where}.leafWeight", device.leaf_weight)]
    for where, weight in weights:
        if weight and not 10 <= weight <= 1000:
            findings.error(where, f"{weight} is not 10 to 1000", section)


# ---- mounts and id mappings ----

MAX_MAPPINGS: Final = 340
_MOUNTS: Final = "config.md#mounts"
_POSIX: Final = "config.md#posix-platform-mounts"
_OPTIONS: Final = "config.md#linux-mount-options"
_LINKS: Final = ("copy-symlink", "src-nofollow", "dest-nofollow")
_PROPAGATION: Final = frozenset("private rprivate shared rshared slave rslave unbindable runbindable".split())


def check_mount(findings: Findings, spec: RuntimeSpec, mount: Mount, path: str) -> None:
    """Check one mount."""
    for name, value in (("destination", mount.destination), ("source", mount.source), ("type", mount.type)):
        findings.check_text(f"{path}.{name}", value, _MOUNTS)
    findings.check_text(f"{path}.options", mount.options or (), _MOUNTS)
    if not mount.destination:
        findings.error(f"{path}.destination", "is empty", _MOUNTS)
    elif spec.linux is not None and not mount.destination.startswith("/"):
        findings.warn(
            f"{path}.destination",
            f"{shown(mount.destination)} is relative, which is deprecated; it is taken as relative to /",
            _MOUNTS,
        )
    elif spec.linux is None and spec.windows is None:
        findings.check_absolute(f"{path}.destination", mount.destination, _MOUNTS)
    if spec.windows is not None:
        return
    words = [word for option in mount.options or () for word in split_option(option)]
    _check_kind(findings, mount, words, path)
    _check_ids(findings, spec, mount, words, path)


def _check_kind(findings: Findings, mount: Mount, words: Sequence[str], path: str) -> None:
    bind, typeless, remount = mount.is_bind, mount.type in (None, "", "none"), "remount" in words
    change = remount or (typeless and words and _PROPAGATION.issuperset(words))
    if bind and not mount.source and not remount:
        findings.error(f"{path}.source", "a bind mount requires the file or directory to bind", _MOUNTS)
    if typeless and not bind and not change:
        findings.error(f"{path}.type", "is required unless the mount is a bind mount", _POSIX)
    if "tmpcopyup" in words and (bind or mount.type != "tmpfs"):
        findings.error(f"{path}.options", "tmpcopyup requires a tmpfs", _OPTIONS)
    links = [word for word in _LINKS if word in words]
    if links and (not bind or remount):
        findings.error(f"{path}.options", f"{', '.join(links)} requires a bind mount", _OPTIONS)
    if "copy-symlink" in links and len(links) > 1:
        findings.error(f"{path}.options", "copy-symlink conflicts with src-nofollow and dest-nofollow", _OPTIONS)
    # Programs rely on the files below /proc to be the kernel's.
    destination = destination_in_root(mount.destination)
    if is_below(destination, "/proc") and not change and not bind:
        section = "config-linux.md#default-filesystems"
        if destination != "/proc":
            findings.error(f"{path}.destination", "only single files may be bound below /proc", section)
        elif mount.type != "proc":
            findings.error(f"{path}.destination", "only procfs may be mounted on /proc", section)


def _check_ids(findings: Findings, spec: RuntimeSpec, mount: Mount, words: Sequence[str], path: str) -> None:
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        findings.error(path, "uidMappings and gidMappings require each other", _POSIX)
    own = any(namespace.type == "user" for namespace in (spec.linux.namespaces if spec.linux else None) or ())
    idmapped = "idmap" in words or "ridmap" in words
    if mount.uid_mappings and not idmapped:
        findings.warn(f"{path}.options", "add idmap or ridmap: without it older runtimes ignore uidMappings", _POSIX)
    if idmapped and not mount.uid_mappings and not own:
        findings.error(f"{path}.options", "idmap requires uidMappings and gidMappings, or a user namespace", _OPTIONS)
    if any(word.startswith(("idmap=", "ridmap=")) for word in words):
        findings.error(f"{path}.options", "idmap and ridmap take no value: use uidMappings and gidMappings", _OPTIONS)
    check_mappings(findings, f"{path}.uidMappings", mount.uid_mappings, _POSIX)
    check_mappings(findings, f"{path}.gidMappings", mount.gid_mappings, _POSIX)


def check_mappings(findings: Findings, path: str, ranges: Sequence[IDMapping] | None, section: str) -> None:
    """Check id mappings as the kernel does (user_namespaces(7))."""
    ranges = ranges or ()
    if len(ranges) > MAX_MAPPINGS:
        findings.error(path, f"more than the {MAX_MAPPINGS} ranges that the kernel accepts", section)
        return
    for index, mapping in enumerate(ranges):
        where = f"{path}[{index}]"
        if not mapping.size:
            findings.error(f"{where}.size", "an empty range maps nothing", section)
        for name, first in (("containerID", mapping.container_id), ("hostID", mapping.host_id)):
            if first + mapping.size > 0xFFFFFFFF:
                findings.error(f"{where}.{name}", f"{first} + {mapping.size} exceeds the last id, 4294967294", section)
        for other, before in enumerate(ranges[:index]):
            if _overlap(mapping.container_id, before.container_id, mapping.size, before.size):
                findings.error(where, f"ids in the container overlap those of [{other}]", section)
            if _overlap(mapping.host_id, before.host_id, mapping.size, before.size):
                findings.error(where, f"ids on the host overlap those of [{other}]", section)


def _overlap(a: int, b: int, a_size: int, b_size: int) -> bool:
    return a < b + b_size and b < a + a_size


# ---- linux ----

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
            message = f"is {shown(spec.domainname)}, which conflicts with $.linux.sysctl[{key!r}]"
            findings.error("$.domainname", message, "config.md#domainname")
    _check_hidden(findings, linux)
    findings.check_text("$.linux.cgroupsPath", linux.cgroups_path, "config-linux.md#cgroups-path")
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


_PER_PROCESS: Final = ("/proc/self", "/proc/thread-self", "/proc/mounts", "/proc/net")
"""Links of a procfs to the directory of the process that follows them."""


def _check_hidden(findings: Findings, linux: Linux) -> None:
    for name, paths, section in (
        ("maskedPaths", linux.masked_paths, "config-linux.md#masked-paths"),
        ("readonlyPaths", linux.readonly_paths, "config-linux.md#readonly-paths"),
    ):
        for index, path in enumerate(paths or ()):
            where = f"$.linux.{name}[{index}]"
            findings.check_absolute(where, path, section)
            findings.check_text(where, path, section)
            place = destination_in_root(path)
            if place == "/" and name == "maskedPaths":
                findings.error(where, "the whole container cannot be hidden: name the paths below /", section)
            if any(is_below(place, link) for link in _PER_PROCESS):
                message = f"{path} is another file for each process, and only that of the first process would be covered: remove it"
                findings.error(where, message, section)


def _check_namespaces(findings: Findings, linux: Linux) -> dict[str, str | None]:
    section = "config-linux.md#namespaces"
    kinds: dict[str, str | None] = {}
    for index, namespace in enumerate(linux.namespaces or ()):
        where = f"$.linux.namespaces[{index}]"
        if not namespace.type.known:
            findings.error(f"{where}.type", f"{shown(str(namespace.type))} is not a namespace of Linux", section)
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
        for name, number in ids:
            if ranges and not any(0 <= (number or 0) - mapping.container_id < mapping.size for mapping in ranges):
                findings.error(f"$.process.user.{name}", f"{number or 0} has no mapping in the user namespace", "config.md#user")


def _check_time_offsets(findings: Findings, linux: Linux, kinds: dict[str, str | None]) -> None:
    section = "config-linux.md#offset-for-time-namespace"
    if not linux.time_offsets:
        return
    if "time" not in kinds or kinds["time"]:
        findings.error("$.linux.timeOffsets", "requires a new time namespace", section)
    for clock, offset in linux.time_offsets.items():
        where = json_path("$.linux.timeOffsets", clock)
        if clock not in ("monotonic", "boottime"):
            findings.error(where, f"{shown(clock)} is not monotonic or boottime", section)
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
            for name, number, maps in (("uid", device.uid, linux.uid_mappings), ("gid", device.gid, linux.gid_mappings)):
                if number and maps and not any(0 <= number - mapping.container_id < mapping.size for mapping in maps):
                    findings.error(f"{where}.{name}", f"{number} is not mapped in the user namespace", section)
        if not device.type.known:
            findings.error(f"{where}.type", f"{shown(str(device.type))} is not a type of device", section)
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
                findings.error(place, f"{shown(text)} cannot be the name of a network device", section)
        if name in names and "%d" not in name:
            findings.error(f"{where}.name", f"{shown(name)} appears twice", section)
        names.add(name)


def _check_sysctl(findings: Findings, key: str, value: str, kinds: dict[str, str | None]) -> None:
    section, where = "config-linux.md#sysctl", json_path("$.linux.sysctl", key)
    path, kind = sysctl_path(key), sysctl_namespace(key)
    if not path.isprintable() or any(part in ("", ".", "..") for part in path.split("/")):
        findings.error(where, f"{shown(key)} is not the name of a sysctl", section)
    elif kind is None:
        findings.error(where, "does not belong to a namespace, so it would change the host", section)
    elif kind not in kinds:
        findings.error(where, f"would change the host: add a namespace of type {kind}", section)
    elif path == "kernel/hostname":
        findings.error(where, "is set by hostname: use that member", section)
    elif not value or not value.replace("\t", " ").isprintable():
        findings.error(where, f"{shown(value)} is not the value of a sysctl", section)


def check_intel_rdt(findings: Findings, rdt: IntelRdt) -> None:
    """Check the allocation by resctrl, of a config or an update."""
    path, section = "$.linux.intelRdt", "config-linux.md#intelrdt"
    name = rdt.clos_id
    if name is not None and name != "/" and (name in RESERVED_GROUPS or "/" in name or not name.isprintable()):
        findings.error(f"{path}.closID", f"{shown(name)} cannot be the name of a group", section)
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
            with suppress(ValueError):  # reported below
                count = sum(last - first + 1 for first, last in parse_ranges(policy.nodes))
                findings.error(f"{path}.nodes", f"{policy.mode} mode requires 0 nodes but got {count}", section)
        if flags:
            findings.error(f"{path}.flags", f"{policy.mode} does not accept flags", section)
    elif policy.mode != "MPOL_PREFERRED" and policy.mode.known and not policy.nodes:
        findings.error(f"{path}.nodes", f"{policy.mode} requires at least one node", section)
    findings.check_ranges(f"{path}.nodes", policy.nodes, section, "invalid memory policy nodes: ")
    if policy.mode == "MPOL_PREFERRED" and not policy.nodes and _OF_NODES.intersection(flags):
        findings.error(f"{path}.flags", "MPOL_PREFERRED without nodes does not accept flags about nodes", section)
    if "MPOL_F_STATIC_NODES" in flags and "MPOL_F_RELATIVE_NODES" in flags:
        findings.error(f"{path}.flags", "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES are mutually exclusive", section)
    if "MPOL_F_NUMA_BALANCING" in flags and policy.mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        findings.error(f"{path}.flags", f"{policy.mode} does not accept MPOL_F_NUMA_BALANCING", section)
