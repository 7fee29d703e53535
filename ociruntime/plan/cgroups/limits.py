"""linux.resources as steps: each value for the hierarchy that has its controller."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedError
from .devices import program, rules_of, v1_rules, words
from .placement import DISABLED, Place, Placement
from .v1 import v1_writes
from .v2 import unified_writes, v2_refuse, v2_writes
from .writes import ROOT, Write

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Resources
    from ..model import Builder

_COUNTING: Final = ("cpu", "io", "memory", "pids")
"""The v2 controllers that are enabled where that is possible, whether or not they limit something: `Container.stats` reads them."""
_V1_NAMES: Final = {"io": "blkio"}


def compile_limits(
    b: Builder, resources: Resources | None, placement: Placement, host: Host, *, only: Collection[str] | None = None
) -> list[tuple[Place, Write]]:
    """The steps that write the limits; gives those that must wait until the init is inside.

    Args:
        only: members of linux.resources, as ``memory.limit``; what follows from none of them is not written.

    Raises:
        SpecError: values that contradict each other.
        UnsupportedError: this host cannot keep a limit that is asked for.
    """
    unified = placement.unified
    writes = [] if resources is None else _placed(resources, placement, only)
    needed = sorted({write.controller for place, write in writes if place is unified and write.controller != "cgroup"})
    if unified and only is None:
        wanted = [name for name in _COUNTING if name in unified.hierarchy.controllers and name not in needed]
        if needed or wanted:
            shown = "; if possible ".join(filter(None, (", ".join(needed) or "nothing that must be", ", ".join(wanted))))
            values = (unified.directory, unified.hierarchy.mountpoint, tuple(needed), tuple(wanted))
            b.host("cgroup_enable", *values, text=f"down to {unified.directory}: {shown}")
    late = [entry for entry in writes if only is None and (entry[1].file, entry[1].value) == ("pids.max", "0")]
    if resources is not None:
        _before(b, resources, placement, only)
    compile_writes(b, [entry for entry in writes if entry not in late])
    if resources is not None and resources.devices and (only is None or "devices" in only):
        _devices(b, resources, placement, host, asked_for=only is not None)
    return late


def compile_writes(b: Builder, writes: Iterable[tuple[Place, Write]]) -> None:
    """The steps of these writes, values that depend on each other as one."""
    for (place, group), entries in groupby(writes, key=lambda entry: (entry[0], entry[1].group)):
        members = [write for _, write in entries]
        if group and len(members) > 1:
            choices = tuple((write.file, write.value, write.optional, write.members[0]) for write in members)
            shown = ", ".join(f"{write.value} > {write.file}" for write in members)
            b.host("cgroup_write_set", place.directory, choices, text=f"{shown}, as the kernel takes them, in {place.directory}")
            continue
        for write in members:
            _write(b, place, write)


def _write(b: Builder, place: Place, write: Write) -> None:
    shown = f"{write.value} > {place.directory}/{write.file}"
    if write.other is None and not write.optional:
        b.host("cgroup_write", place.directory, write.file, write.value, write.members[0], text=shown)
        return
    choices = ((write.file, write.value), *([write.other] if write.other else []))
    if write.other:
        shown += f", or {write.other[1]} > {write.other[0]}"
    shown += ", if there" if write.optional else ""
    b.host("cgroup_write_first", place.directory, choices, write.optional, write.members[0], text=shown)


def _placed(resources: Resources, placement: Placement, only: Collection[str] | None) -> list[tuple[Place, Write]]:
    """Every write with the cgroup that it goes to: v1 where a v1 hierarchy has the controller."""
    found = []
    ours = [write for write in v1_writes(resources) if asked(write, only)]
    for write in ours:
        place = placement.of(write.controller)
        if place and place.hierarchy.version == 1:
            found.append((place, write))
    rest = [write for write in ours if not any(write is taken for _, taken in found)]
    unified = placement.unified
    served = {name for place in placement.places if place.hierarchy.version == 1 for name in place.hierarchy.controllers}
    if rest and unified:
        v2_refuse(resources, served)
    v2 = [
        write
        for write in v2_writes(resources)
        if asked(write, only) and _V1_NAMES.get(write.controller, write.controller) not in served
    ]
    for write in v2:
        if unified and write.controller in unified.hierarchy.controllers:
            found.append((unified, write))
        else:
            raise _missing(write, placement)
    for write in rest:
        if write.controller in ("net_cls", "net_prio") or not unified:
            raise _missing(write, placement)
    for write in unified_writes(resources):
        if not asked(write, only):
            continue
        if not unified or write.controller not in unified.hierarchy.controllers | {"cgroup"}:
            raise _missing(write, placement, " of version 2")
        found.append((unified, write))
    return found


def asked(write: Write, only: Collection[str] | None) -> bool:
    return only is None or any(member.partition("[")[0] in only or member in only for member in write.members)


def _missing(write: Write, placement: Placement, version: str = "") -> UnsupportedError:
    where = f"{ROOT}.{write.members[0]}"
    if not placement.places:
        return UnsupportedError(f"{where}: limits need cgroups, {placement.lack}")
    controller = {"net_cls": "net_cls, which only v1 has,", "net_prio": "net_prio, which only v1 has,"}
    name = controller.get(write.controller, write.controller)
    return UnsupportedError(f"{where}: no cgroup hierarchy{version} that this user may use has the controller {name}")


def _before(b: Builder, resources: Resources, placement: Placement, only: Collection[str] | None) -> None:
    memory = resources.memory if only is None or "memory.limit" in only else None
    cpu = resources.cpu if only is None or "cpu.realtimeRuntime" in only else None
    place = placement.of("memory")
    # v1 refuses a limit below what is in use by itself, whereas v2 kills.
    if memory and memory.check_before_update and memory.limit and memory.limit > 0 and place and place.hierarchy.version == 2:
        swap = memory.swap if memory.swap and memory.swap > 0 else -1
        b.host(
            "cgroup_check", place.directory, memory.limit, swap, text=f"{memory.limit} bytes suffice for {place.directory} as it is"
        )
    place = placement.of("cpu")
    if cpu and cpu.realtime_runtime and cpu.realtime_runtime > 0 and place and place.hierarchy.version == 1:
        time = (cpu.realtime_runtime, cpu.realtime_period or 1_000_000)
        shown = f"{time[0]} of {time[1]} us for the parents of {place.directory} that have no realtime"
        b.host("cgroup_realtime", place.directory, place.hierarchy.mountpoint, *time, text=shown)


def _devices(b: Builder, resources: Resources, placement: Placement, host: Host, *, asked_for: bool) -> None:
    rules = rules_of(resources.devices or ())
    place = placement.of("devices")
    at = place or placement.unified
    if placement is DISABLED:
        return
    if at is None or not host.rules_devices(at.hierarchy.version):
        # The peers leave the rules out, and configs for users have some: engines write the same for everybody.
        need = "CAP_SYS_ADMIN in the first user namespace"
        if at is None:
            need = f"cgroups, {placement.lack or 'of which the container has none for them'}"
        lost = f"{ROOT}.devices: device rules need {need}"
        if asked_for:
            raise UnsupportedError(lost)
        b.warn(f"{lost}; without them the container's user may use every device that its files and their modes give")
        return
    if place:
        for allow, same in groupby(v1_rules(rules), key=lambda rule: rule.allow):
            file = "devices.allow" if allow else "devices.deny"
            lines = tuple("a" if rule.type == "a" else str(rule) for rule in same)
            b.host("cgroup_write_lines", place.directory, file, lines, text=f"{', '.join(lines)} > {place.directory}/{file}")
    else:
        code = program(rules)
        shown = f"{words(rules)}: {len(code) // 8} BPF instructions for {at.directory}"
        b.host("cgroup_devices", at.directory, code, text=shown)
