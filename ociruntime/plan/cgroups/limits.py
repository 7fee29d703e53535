"""linux.resources as steps: each value is written to the hierarchy with its controller."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedError
from .devices import compile_program, describe_rules, rules_of, v1_rules
from .placement import DISABLED, Place, Placement
from .v1 import v1_writes
from .v2 import refuse_unsupported, unified_writes, v2_writes
from .writes import ROOT, Write

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Resources
    from ..model import PlanBuilder

_COUNTING: Final = ("cpu", "io", "memory", "pids")
"""The v2 controllers that are enabled if possible, even without a limit: `Container.stats` reads them."""
_V1_NAMES: Final = {"io": "blkio"}


def compile_limits(
    builder: PlanBuilder, resources: Resources | None, placement: Placement, host: Host, *, only: Collection[str] | None = None
) -> list[tuple[Place, Write]]:
    """Write the limits, and return those that must wait until the init has joined the cgroup.

    Args:
        only: the members of linux.resources, such as ``memory.limit``, whose values are written. Default: all.

    Raises:
        SpecError: values contradict each other.
        UnsupportedError: this host cannot apply a limit.
    """
    unified = placement.unified
    writes = [] if resources is None else _placed(resources, placement, only)
    required = sorted({write.controller for place, write in writes if place is unified and write.controller != "cgroup"})
    if unified and only is None:
        optional = [name for name in _COUNTING if name in unified.hierarchy.controllers and name not in required]
        if required or optional:
            parts = (", ".join(required), f"if possible {', '.join(optional)}" if optional else "")
            values = (unified.directory, unified.hierarchy.mountpoint, tuple(required), tuple(optional))
            text = f"controllers for {unified.directory}: {'; '.join(filter(None, parts))}"
            builder.add_host("cgroup_enable", *values, text=text)
    late = [entry for entry in writes if only is None and (entry[1].file, entry[1].value) == ("pids.max", "0")]
    if resources is not None:
        _check_update(builder, resources, placement, only)
    compile_writes(builder, [entry for entry in writes if entry not in late])
    if resources is not None and resources.devices and (only is None or "devices" in only):
        _devices(builder, resources, placement, host, required=only is not None)
    return late


def compile_writes(builder: PlanBuilder, writes: Iterable[tuple[Place, Write]]) -> None:
    """Write values; those that depend on each other are one step."""
    for (place, group), entries in groupby(writes, key=lambda entry: (entry[0], entry[1].group)):
        members = [write for _, write in entries]
        if group and len(members) > 1:
            choices = tuple((write.file, write.value, write.optional, write.members[0]) for write in members)
            description = ", ".join(f"{write.value} > {write.file}" for write in members)
            text = f"{description} in {place.directory}, in the order that the kernel accepts"
            builder.add_host("cgroup_write_set", place.directory, choices, text=text)
            continue
        for write in members:
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


def _placed(resources: Resources, placement: Placement, only: Collection[str] | None) -> list[tuple[Place, Write]]:
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
            raise _missing(write, placement)
    for write in rest:
        if write.controller in ("net_cls", "net_prio") or not unified:
            raise _missing(write, placement)
    for write in unified_writes(resources):
        if not is_selected(write, only):
            continue
        if not unified or write.controller not in unified.hierarchy.controllers | {"cgroup"}:
            raise _missing(write, placement, " of version 2")
        assigned.append((unified, write))
    return assigned


def is_selected(write: Write, only: Collection[str] | None) -> bool:
    """Return whether a value follows from one of these members; None selects every value."""
    return only is None or any(member.partition("[")[0] in only or member in only for member in write.members)


def _missing(write: Write, placement: Placement, version: str = "") -> UnsupportedError:
    location = f"{ROOT}.{write.members[0]}"
    if not placement.places:
        return UnsupportedError(f"{location}: needs a cgroup: {placement.lack}")
    note = " (cgroup v1 only)" if write.controller in ("net_cls", "net_prio") else ""
    return UnsupportedError(
        f"{location}: no cgroup hierarchy{version} that this user may use has the controller {write.controller}{note}"
    )


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
    if cgroup is None or not host.rules_devices(cgroup.hierarchy.version):
        # Other runtimes omit the rules, and engines write them into configs of unprivileged users too.
        reason = "CAP_SYS_ADMIN in the initial user namespace"
        if cgroup is None:
            reason = f"a cgroup: {placement.lack or 'the container has none with the devices controller'}"
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
