"""linux.resources, the device rules and linux.intelRdt as steps: each value is written to the hierarchy with its controller."""

from __future__ import annotations

import posixpath
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from ...arguments import shown
from ...errors import SpecError, UnsupportedError
from ...spec.base import Problem
from ...spec.rules.linux import RESERVED_GROUPS
from ..model import PlanBuilder
from .placement import DISABLED, Place, Placement, no_cgroups
from .writes import ROOT, Write, refuse_unsupported, unified_writes, v1_writes, v2_writes

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import DeviceCgroup, IntelRdt, Linux, Resources


MKNOD, READ, WRITE = 1, 2, 4
"""BPF_DEVCG_ACC_*."""
_BITS: Final = {"r": READ, "w": WRITE, "m": MKNOD}
_ALL: Final = READ | WRITE | MKNOD


class DeviceRule(NamedTuple):
    """One rule for one type of device; None matches all numbers."""

    allow: bool
    type: str
    """``a``, ``b`` or ``c``."""
    major: int | None
    minor: int | None
    access: int

    def __str__(self) -> str:
        numbers = ":".join("*" if number is None else str(number) for number in (self.major, self.minor))
        return f"{self.type} {numbers} {''.join(letter for letter, bit in _BITS.items() if self.access & bit)}"

    def overlaps(self, other: DeviceRule) -> bool:
        """Return whether some device matches both rules."""
        return all(
            first == second or wildcard in (first, second)
            for first, second, wildcard in zip(self[1:4], other[1:4], ("a", None, None), strict=True)
        )


def _default_rules() -> tuple[DeviceRule, ...]:
    numbers = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)]
    return (
        DeviceRule(True, "c", None, None, MKNOD),
        DeviceRule(True, "b", None, None, MKNOD),
        *(DeviceRule(True, "c", major, minor, _ALL) for major, minor in numbers),
    )


DEFAULT_RULES: Final = _default_rules()
"""Rules after those of the config: any node may be created, and the default devices and terminals may be used."""


def rules_of(devices: Sequence[DeviceCgroup]) -> tuple[DeviceRule, ...]:
    """Return the config's rules and those for the default devices; without any in the config everything stays allowed."""
    rules = []
    for device in devices:
        major, minor = (None if number is None or number < 0 else number for number in (device.major, device.minor))
        access = sum(bit for letter, bit in _BITS.items() if letter in (device.access or "rwm"))
        rules.append(DeviceRule(device.allow, device.type or "a", major, minor, access))
    denied = max((index for index, rule in enumerate(rules) if not rule.allow), default=-1)
    return (*rules, *(rule for rule in DEFAULT_RULES if rule not in rules[denied + 1 :])) if rules else ()


def v1_rules(rules: Sequence[DeviceRule]) -> tuple[DeviceRule, ...]:
    """Return the rules as they are written to devices.allow and devices.deny, one after the other.

    The kernel keeps a default and a list of exceptions, from which only an exception for the same devices can be removed.

    Raises:
        UnsupportedError: v1 cannot express a rule.
    """
    allows_all, exceptions = True, list[tuple[int, DeviceRule]]()
    lines = []
    for number, rule in enumerate(rules):
        if rule.type == "a" and rule.major is None and rule.minor is None and rule.access == _ALL:
            allows_all, exceptions = rule.allow, []
            lines.append(rule)
            continue
        # The kernel reads "a" as all devices and ignores the rest of the line.
        for kind in ("b", "c") if rule.type == "a" else (rule.type,):
            single = rule._replace(type=kind)
            lines.append(single)
            if rule.allow != allows_all:
                exceptions.append((number, single))
            else:
                exceptions = _without(exceptions, single)
    return tuple(lines)


def _without(exceptions: list[tuple[int, DeviceRule]], rule: DeviceRule) -> list[tuple[int, DeviceRule]]:
    """Return the exceptions after a rule that restores the default for some devices."""
    remaining = []
    for number, exception in exceptions:
        if rule.access & exception.access and rule.overlaps(exception) and rule[1:4] != exception[1:4]:
            raise UnsupportedError(
                f"{ROOT}.devices[{number}]: cgroup v1 cannot exclude '{rule}' from '{exception}'; "
                "deny all devices first and allow the others, or use cgroup v2"
            )
        kept = exception.access & ~rule.access if rule[1:4] == exception[1:4] else exception.access
        remaining.append((number, exception._replace(access=kept)))
    return [(number, exception) for number, exception in remaining if exception.access]


# ---- the BPF program ----

_R0, _R1, _R2, _R3, _R4, _R5 = range(6)
_LDX_W, _EXIT, _JA = 0x61, 0x95, 0x05
_MOV64_K, _MOV64_X, _AND64_K, _RSH64_K = 0xB7, 0xBF, 0x57, 0x77
_JNE_K, _JEQ_K, _JSET_K = 0x55, 0x15, 0x45
_TYPES: Final = {"b": 1, "c": 2}


def _op(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, target | source << 4, offset, value)


def compile_program(rules: Sequence[DeviceRule]) -> bytes:
    """Return a BPF_PROG_TYPE_CGROUP_DEVICE program.

    It checks the rules from the last to the first, and keeps in r3 the kinds of access that no rule has allowed yet. A rule that
    denies one of them returns 0; if none is left, the program returns 1. Access that no rule matches is allowed.
    """
    code = [
        _op(_LDX_W, _R2, _R1, 0),  # r2 = type, r3 = access: halves of one word
        _op(_MOV64_X, _R3, _R2),
        _op(_AND64_K, _R2, value=0xFFFF),
        _op(_RSH64_K, _R3, value=16),
        _op(_LDX_W, _R4, _R1, 4),  # r4 = major
        _op(_LDX_W, _R5, _R1, 8),  # r5 = minor
    ]
    for rule in reversed(rules):
        if rule.type == "a" and rule.major is None and rule.minor is None and rule.access == _ALL:
            # This rule decides the rest; the verifier refuses unreachable instructions.
            code += [_op(_MOV64_K, _R0, value=int(rule.allow)), _op(_EXIT)]
            break
        if rule.allow:
            then = [_op(_AND64_K, _R3, value=~rule.access), _op(_JNE_K, _R3, offset=2), _op(_MOV64_K, _R0, value=1), _op(_EXIT)]
        else:
            # Skip the jump if the rule denies an access that is still undecided.
            then = [_op(_JSET_K, _R3, offset=1, value=rule.access), _op(_JA, offset=2), _op(_MOV64_K, _R0), _op(_EXIT)]
        tests = []
        if rule.type != "a":
            tests.append((_R2, _TYPES[rule.type]))
        tests += [(register, number) for register, number in ((_R4, rule.major), (_R5, rule.minor)) if number is not None]
        for index, (register, number) in enumerate(tests):
            code.append(_op(_JNE_K, register, offset=len(tests) - index - 1 + len(then), value=_number(number)))
        code += then
    else:
        code += [_op(_MOV64_K, _R0, value=1), _op(_EXIT)]
    return b"".join(code)


def _number(number: int) -> int:
    # The comparison sign-extends to 64 bits. Numbers above 31 bits match no device, and neither does -1.
    return number if number < 1 << 31 else -1


def describe_rules(rules: Sequence[DeviceRule]) -> str:
    """Return the rules as text, those for the default devices as one."""
    parts = [f"{'allow' if rule.allow else 'deny'} {rule}" for rule in rules if rule not in DEFAULT_RULES]
    return ", ".join([*parts, "allow the default devices"] if set(DEFAULT_RULES) <= set(rules) else parts)


_COUNTING: Final = ("cpu", "io", "memory", "pids")
"""The v2 controllers that are enabled if possible, even without a limit: `Container.stats` reads them."""
_V1_NAMES: Final = {"io": "blkio"}
_PIDS_LIMIT: Final = "org.ociruntime.pids-limit"
_IF_POSSIBLE: Final = "if possible"
PIDS_IF_POSSIBLE: Final = {_PIDS_LIMIT: _IF_POSSIBLE}
"""The annotation of a container whose ``pids.limit`` is left out where no cgroup can enforce it."""


def compile_limits(
    builder: PlanBuilder,
    resources: Resources | None,
    placement: Placement,
    host: Host,
    *,
    annotations: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    enable: bool = True,
) -> None:
    """Write the limits.

    Args:
        annotations: those of the container, for `PIDS_IF_POSSIBLE`.
        only: the members of linux.resources, such as ``memory.limit``, whose values are written. Default: all.
        enable: whether to enable the controllers that the values need.

    Raises:
        SpecError: values contradict each other.
        UnsupportedError: this host cannot apply a limit.
    """
    unified = placement.unified
    omissible = {"pids"} if (annotations or {}).get(_PIDS_LIMIT) == _IF_POSSIBLE else set[str]()
    if resources is not None and omissible and placement.of("pids") is None:
        resources = resources.evolve(pids=None)
    writes = [] if resources is None else _placed(resources, placement, host, only)
    writes = [(place, write._replace(optional=True) if write.controller in omissible else write) for place, write in writes]
    needed = {write.controller for place, write in writes if place is unified and write.controller != "cgroup"}
    required = sorted(needed - omissible)
    if enable and unified and (only is None or required):
        counting = _COUNTING if only is None else ()
        optional = [name for name in counting if name in unified.hierarchy.controllers and name not in required]
        if required or optional:
            parts = (", ".join(required), f"if possible {', '.join(optional)}" if optional else "")
            values = (unified.directory, unified.hierarchy.mountpoint, tuple(required), tuple(optional))
            text = f"controllers for {unified.directory}: {'; '.join(filter(None, parts))}"
            builder.add_host("cgroup_enable", *values, text=text)
    if resources is not None:
        _check_update(builder, resources, placement, only)
    _compile_writes(builder, writes)
    if resources is not None and resources.devices and (only is None or "devices" in only):
        _devices(builder, resources, placement, host, required=only is not None)


def _compile_writes(builder: PlanBuilder, writes: Iterable[tuple[Place, Write]]) -> None:
    """Write values; those that depend on each other are one step."""
    for (place, group), entries in groupby(writes, key=lambda entry: (entry[0], entry[1].group)):
        members = [write for _, write in entries]
        if group and len(members) > 1:
            choices = tuple((write.file, write.value, write.optional, write.members[0]) for write in members)
            description = ", ".join(f"{write.value} > {write.file}" for write in members)
            text = f"{description} in {place.directory}, in the order that the kernel accepts"
            with builder.at(f"{ROOT}.{members[0].members[0]}"):
                builder.add_host("cgroup_write_set", place.directory, choices, text=text)
            continue
        for write in members:
            with builder.at(f"{ROOT}.{write.members[0]}"):
                _write(builder, place, write)


def _write(builder: PlanBuilder, place: Place, write: Write) -> None:
    description = f"{write.value} > {place.directory}/{write.file}"
    if write.other is None and not write.optional:
        builder.add_host("cgroup_write", place.directory, write.file, write.value, write.members[0], text=description)
        return
    choices = ((write.file, write.value), *([write.other] if write.other else []))
    if write.other:
        description += f", or {write.other[1]} > {write.other[0]}"
    description += ", if it exists" if write.optional else ""
    builder.add_host("cgroup_write_first", place.directory, choices, write.optional, write.members[0], text=description)


def _placed(resources: Resources, placement: Placement, host: Host, only: Collection[str] | None) -> list[tuple[Place, Write]]:
    """Return every write with its cgroup; a v1 hierarchy with the controller comes first."""
    assigned = []
    writes = [write for write in v1_writes(resources) if is_selected(write, only)]
    for write in writes:
        place = placement.of(write.controller)
        if place and place.hierarchy.version == 1:
            assigned.append((place, write))
    rest = [write for write in writes if not any(write is taken for _, taken in assigned)]
    unified = placement.unified
    served = {name for place in placement.places if place.hierarchy.version == 1 for name in place.hierarchy.controllers}
    if rest and unified:
        refuse_unsupported(resources, served)
    v2 = [
        write
        for write in v2_writes(resources)
        if is_selected(write, only) and _V1_NAMES.get(write.controller, write.controller) not in served
    ]
    for write in v2:
        if unified and write.controller in unified.hierarchy.controllers:
            assigned.append((unified, write))
        else:
            raise _missing(write, placement, host)
    for write in rest:
        if write.controller in ("net_cls", "net_prio") or not unified:
            raise _missing(write, placement, host)
    for write in unified_writes(resources):
        if not is_selected(write, only):
            continue
        if not unified or write.controller not in unified.hierarchy.controllers | {"cgroup"}:
            raise _missing(write, placement, host, " v2")
        assigned.append((unified, write))
    return assigned


def is_selected(write: Write, only: Collection[str] | None) -> bool:
    """Return whether a value follows from one of these members; None selects every value."""
    return only is None or any(member.partition("[")[0] in only or member in only for member in write.members)


def _missing(write: Write, placement: Placement, host: Host, version: str = "") -> UnsupportedError:
    location = f"{ROOT}.{write.members[0]}"
    if placement is DISABLED:
        more = "; use --cgroup-manager cgroupfs" if host.may_create_cgroups else f", and {no_cgroups(host)}"
        return UnsupportedError(f"{location}: needs a cgroup: {placement.lack}{more}")
    if not placement.places:
        return UnsupportedError(f"{location}: needs a cgroup: {placement.lack}")
    if write.controller in ("net_cls", "net_prio"):
        return UnsupportedError(f"{location}: this host does not have the controller {write.controller}, which cgroup v1 alone has")
    if host.euid:
        problem = f"no cgroup{version} of user {host.euid} has the controller {write.controller}"
        return UnsupportedError(f"{location}: {problem}; if the kernel has it, let root delegate it (docs/cgroups.md)")
    problem = f"no cgroup{version} hierarchy of this host has the controller {write.controller}"
    return UnsupportedError(f"{location}: invalid configuration for this host: {problem}")


def _check_update(builder: PlanBuilder, resources: Resources, placement: Placement, only: Collection[str] | None) -> None:
    memory = resources.memory if only is None or "memory.limit" in only else None
    cpu = resources.cpu if only is None or "cpu.realtimeRuntime" in only else None
    place = placement.of("memory")
    # v1 refuses a limit below the usage by itself; v2 would kill processes.
    if memory and memory.check_before_update and memory.limit and memory.limit > 0 and place and place.hierarchy.version == 2:
        swap = memory.swap if memory.swap and memory.swap > 0 else -1
        text = f"memory limit of {memory.limit} bytes against the usage of {place.directory}"
        builder.add_host("cgroup_check", place.directory, memory.limit, swap, text=text)
    place = placement.of("cpu")
    if cpu and cpu.realtime_runtime and cpu.realtime_runtime > 0 and place and place.hierarchy.version == 1:
        time = (cpu.realtime_runtime, cpu.realtime_period or 1_000_000)
        description = f"realtime of {time[0]} in {time[1]} microseconds for the parents of {place.directory}"
        builder.add_host("cgroup_realtime", place.directory, place.hierarchy.mountpoint, *time, text=description)


def _devices(builder: PlanBuilder, resources: Resources, placement: Placement, host: Host, *, required: bool) -> None:
    rules = rules_of(resources.devices or ())
    place = placement.of("devices")
    cgroup = place or placement.unified
    if placement is DISABLED:
        return
    versions = (1, 2) if cgroup is None else (cgroup.hierarchy.version,)
    if cgroup is None or not host.rules_devices(versions[0]):
        # Other runtimes omit the rules, and engines write them into configs of unprivileged users too.
        reason = "CAP_SYS_ADMIN in the initial user namespace"
        if any(host.rules_devices(version) for version in versions):
            reason = f"a cgroup: {placement.lack or 'the container has none with the devices controller'}"
        elif required:
            reason += "; run as root of the host"
        message = f"{ROOT}.devices: device rules need {reason}"
        if required:
            raise UnsupportedError(message)
        builder.warn(f"{message}; without them the owners and modes of device files alone decide about access")
        return
    if place:
        for allow, same in groupby(v1_rules(rules), key=lambda rule: rule.allow):
            file = "devices.allow" if allow else "devices.deny"
            lines = tuple("a" if rule.type == "a" else str(rule) for rule in same)
            builder.add_host(
                "cgroup_write_lines", place.directory, file, lines, text=f"{', '.join(lines)} > {place.directory}/{file}"
            )
    else:
        code = compile_program(rules)
        description = f"{describe_rules(rules)}: {len(code) // 8} BPF instructions for {cgroup.directory}"
        builder.add_host("cgroup_devices", cgroup.directory, code, text=description)


# ---- cache and memory bandwidth through resctrl (config-linux.md#intelrdt) ----

_SECTION: Final = "config-linux.md#intelrdt"


def _lines(rdt: IntelRdt) -> tuple[str, ...]:
    """Return the lines for the schemata file, in the order of the spec."""
    lines = (rdt.l3_cache_schema, rdt.mem_bw_schema, *(rdt.schemata or ()))
    return tuple([line for line in lines if line is not None])


def _group(rdt: IntelRdt, host: Host, container_id: str) -> str:
    """Return the directory of the class of service."""
    if not host.resctrl:
        raise UnsupportedError(
            "$.linux.intelRdt: no resctrl filesystem is mounted; if the processor has resource control, "
            f"{'let root run' if host.euid else 'run'} mount -t resctrl resctrl /sys/fs/resctrl"
        )
    name = container_id if rdt.clos_id is None else rdt.clos_id
    if name in RESERVED_GROUPS:
        raise SpecError([Problem("$.linux.intelRdt.closID", f"{shown(name)} is reserved by resctrl", _SECTION)])
    return host.resctrl if rdt.clos_id == "/" else posixpath.join(host.resctrl, name)


def compile_rdt(builder: PlanBuilder, linux: Linux | None, host: Host, container_id: str) -> tuple[str, ...]:
    """Create the container's resctrl group and its monitoring group, and return the directories that its process joins.

    Raises:
        SpecError: the name is reserved.
        UnsupportedError: no resctrl filesystem is mounted.
    """
    rdt = linux.intel_rdt if linux else None
    if rdt is None:
        return ()
    lines = _lines(rdt)
    group = _group(rdt, host, container_id)
    if rdt.clos_id is None:
        builder.add_host("rdt_make", group, text=f"resctrl group {group}, removed with the container")
        if lines:
            builder.add_host("rdt_schemata", group, lines, text=f"{', '.join(lines)} > {group}/schemata")
    else:
        description = f"resctrl group {group}" + (
            f", created with {', '.join(lines)} if it does not exist" if lines else ", which must exist"
        )
        builder.add_host("rdt_class", group, lines, text=description)
    if not rdt.enable_monitoring:
        return (group,)
    monitor = posixpath.join(group, "mon_groups", container_id)
    builder.add_host("rdt_make", monitor, text=f"resctrl monitoring group {monitor}")
    return (group, monitor)


def compile_rdt_change(builder: PlanBuilder, linux: Linux, host: Host, container_id: str, schemas: Collection[str]) -> None:
    """Write the changed schemas, ``l3_cache_schema`` or ``mem_bw_schema``, to the group. Raises as `compile_rdt` does."""
    rdt = linux.intel_rdt
    if rdt is None or not schemas:
        return
    values = {"l3_cache_schema": rdt.l3_cache_schema, "mem_bw_schema": rdt.mem_bw_schema}
    lines = tuple(line for name, line in values.items() if name in schemas and line is not None)
    group = _group(rdt, host, container_id)
    builder.add_host("rdt_schemata", group, lines, text=f"{', '.join(lines)} > {group}/schemata")


def compile_rdt_join(builder: PlanBuilder, groups: tuple[str, ...]) -> None:
    """Move the process into its groups."""
    for group in groups:
        builder.add_host("rdt_join", group, text=f"process > {group}/tasks")
