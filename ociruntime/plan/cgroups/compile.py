"""The steps that make, limit, join and change the cgroups of a container (config-linux.md#control-groups)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from ...errors import UnsupportedError
from ...spec import Resources
from ..model import Builder, Plan
from ..ops import Sync
from ..rdt import compile_rdt_change
from .limits import compile_limits, compile_writes
from .placement import DISABLED, Manager, Place, Placement, compile_follow, compile_places, place
from .systemd import CONTROLLERS, limits_of, properties, scope, words

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Linux, RuntimeSpec
    from ...spec.base import Json
    from .writes import Write


class Setup(NamedTuple):
    """What the steps before the clone made, and what is left for later."""

    placement: Placement
    late: list[tuple[Place, Write]]


def compile_cgroups(b: Builder, linux: Linux | None, container_id: str, host: Host, manager: Manager = "cgroupfs") -> Setup:
    """The steps before the clone that make the container's cgroups and set their limits.

    Raises:
        SpecError: ``linux.cgroupsPath`` or a limit contradicts itself.
        UnsupportedError: a limit needs a controller or a manager that this host does not have.
    """
    if manager == "systemd":
        return Setup(_in_scope(linux, container_id, host), [])
    placement = DISABLED if manager == "disabled" else place(linux.cgroups_path if linux else None, container_id, host)
    compile_places(b, placement.places)
    return Setup(placement, compile_limits(b, linux.resources if linux else None, placement, host))


def compile_late(b: Builder, setup: Setup) -> None:
    """The limits under which the init could not have been started: no further process at all."""
    compile_writes(b, setup.late)


def _in_scope(linux: Linux | None, container_id: str, host: Host) -> Placement:
    if host.systemd is None:
        raise UnsupportedError(
            f"the systemd cgroup manager: no systemd runs here that user {host.euid} can ask: use --cgroup-manager cgroupfs; "
            "a user's own is started by a login, or by 'loginctl enable-linger'"
        )
    user, hierarchy = host.systemd
    if user and host.cgroup_mode != "v2":
        raise UnsupportedError(
            "the systemd cgroup manager: a user's own systemd has controllers on cgroup v2 only, and this host has "
            f"{host.cgroup_mode}: use --cgroup-manager cgroupfs, or boot with systemd.unified_cgroup_hierarchy=1"
        )
    made = scope(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    # On v1 the same path in every hierarchy, as systemd itself has it in some.
    others = [h for h in host.hierarchies if h.mountpoint != hierarchy.mountpoint and h.base is not None]
    return Placement(tuple(Place(h.mountpoint + made.path, h) for h in (*others, hierarchy)), scope=made.unit)


def attached(unit: tuple[str, bool, str] | None, placement: Placement, host: Host) -> str:
    """The cgroup, as UNIT/PATH, that only systemd may move a further process to, or ``""``: that of a user who comes from outside
    of what his own systemd has, as users log in."""
    place, own = placement.unified, next((h.base for h in host.hierarchies if h.version == 2), None)
    if unit is None or not unit[1] or place is None or host.systemd is None or (own and host.systemd.hierarchy.holds(own)):
        return ""
    return unit[0] + place.directory.removeprefix(unit[2])


def compile_attach(b: Builder, attach: str) -> None:
    """The init waits while the user's systemd moves it to where `attached` says, if anywhere."""
    if attach:
        unit, slash, below = attach.partition("/")
        b.init("sync", Sync.HOST, text="the user's systemd takes the init into the container's cgroup")
        b.host("systemd_attach", unit, slash + below, True, text=attach)


def compile_scope(b: Builder, setup: Setup, spec: RuntimeSpec, container_id: str, host: Host) -> None:
    """With the manager systemd: the init waits while systemd makes a scope around it, and what systemd has no property for is set.

    Raises:
        SpecError, UnsupportedError: as for `compile_cgroups`.
    """
    assert host.systemd is not None, "who has a scope has asked it"
    linux, (user, hierarchy) = spec.linux, host.systemd
    resources = linux.resources if linux else None
    made = scope(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    asked = properties(made, limits_of(resources, host, user=user), spec.annotations or {}, container_id=container_id)
    whose = "the user's" if user else "the system's"
    b.init("sync", Sync.HOST, text=f"{whose} systemd makes a scope around the init")
    values = (made.unit, tuple(map(tuple, asked)), made.path, setup.placement.directories[::-1], user)
    b.host("systemd_scope", *values, text=words(made, asked))
    *others, _ = setup.placement.places
    compile_places(b, [place for place in others if not CONTROLLERS & place.hierarchy.controllers])
    setup.late.extend(compile_limits(b, resources, setup.placement, host))
    compile_follow(b, others)


_UNSET: Final = {
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP"),
    "cpu": ("shares", "quota", "period", "realtimeRuntime", "realtimePeriod", "cpus", "mems"),
    "blockIO": ("weight", "leafWeight"),
}
"""Members that engines send as 0 or "" when they mean: unchanged."""


def meant(changes: Resources) -> dict[str, Json]:
    """The members that are really given."""
    document = changes.to_dict()
    memory = document.get("memory")
    if isinstance(memory, dict) and memory.get("limit") == -1 and not memory.get("swap"):
        memory["swap"] = -1  # it cannot have less of both than of one
    for name, members in _UNSET.items():
        part = document.get(name)
        if isinstance(part, dict):
            document[name] = {key: value for key, value in part.items() if value or key not in members}
    return {key: value for key, value in document.items() if value not in ({}, None)}


def members(changes: dict[str, Json]) -> frozenset[str]:
    """Their names, as `Write.members` has them: ``memory.limit``, ``unified['memory.high']``."""
    names = set()
    for key, part in changes.items():
        if isinstance(part, dict):
            names |= {f"{key}[{name!r}]" if key in ("unified", "rdma") else f"{key}.{name}" for name in part}
        else:
            names.add(key)
    return frozenset(names)


def compile_update(
    linux: Linux,
    changed: frozenset[str],
    placement: Placement,
    host: Host,
    container_id: str = "ID",
    *,
    unit: tuple[str, bool, str] | None = None,
    schemas: Collection[str] = (),
) -> Plan:
    """The steps that bring a container's cgroups from some limits to others.

    Args:
        linux: with all limits that are to hold.
        changed: the members that change.
        unit: the systemd unit of the cgroup, whether the user's own systemd has it, and its directory.

    Raises:
        SpecError, UnsupportedError: as for `compile_limits`.
    """
    b = Builder()
    b.phase = "On the host"
    resources = linux.resources or Resources()
    compile_limits(b, resources, placement, host, only=changed)
    if unit is not None and (found := limits_of(resources, host, user=unit[1], only=changed)):
        b.host("systemd_set", unit[0], tuple(map(tuple, found)), unit[1], text=f"{unit[0]}: {', '.join(map(str, found))}")
        compile_limits(b, resources, placement, host, only=changed - {"devices"})  # once more: systemd rounds what it writes
    compile_rdt_change(b, linux, host, container_id, schemas)
    return b.plan(f"update {container_id}", clone_flags=0, cgroups=placement.directories)
