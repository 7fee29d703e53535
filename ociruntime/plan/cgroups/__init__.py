"""The cgroups of a container: the steps that create, limit, join and update them (config-linux.md#control-groups)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from ...errors import UnsupportedError
from ...spec import Linux, Resources
from ..model import Plan, PlanBuilder
from ..ops import Sync
from .limits import PIDS_IF_POSSIBLE, compile_limits, compile_rdt_change
from .placement import (
    DISABLED,
    MANAGERS,
    Manager,
    Place,
    Placement,
    compile_follow,
    compile_join,
    compile_owner,
    compile_places,
    existing_placement,
    inner_cgroups,
    new_placement,
    privileged_remedy,
)
from .systemd import CONTROLLERS, describe_scope, resource_properties, scope_of, scope_properties

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import RuntimeSpec
    from ...spec.base import Json

__all__ = [
    "MANAGERS",
    "PIDS_IF_POSSIBLE",
    "Manager",
    "Place",
    "Placement",
    "cgroup_to_attach",
    "changed_members",
    "compile_attach",
    "compile_cgroups",
    "compile_join",
    "compile_owner",
    "compile_scope",
    "compile_update",
    "existing_placement",
    "inner_cgroups",
    "member_names",
    "why_unlimited",
]


def compile_cgroups(
    builder: PlanBuilder,
    linux: Linux | None,
    container_id: str,
    host: Host,
    manager: Manager = "cgroupfs",
    annotations: Mapping[str, str] | None = None,
) -> Placement:
    """Create the container's cgroups and set their limits, before the clone. The cgroups of a systemd scope come later.

    Args:
        annotations: those of the container, for `PIDS_IF_POSSIBLE`.

    Raises:
        SpecError: ``linux.cgroupsPath`` or a limit contradicts itself.
        UnsupportedError: a limit needs a controller or a manager that this host does not have.
    """
    if manager == "systemd":
        return _in_scope(linux, container_id, host, annotations or {})
    placement = DISABLED if manager == "disabled" else new_placement(linux.cgroups_path if linux else None, container_id, host)
    resources = linux.resources if linux else None
    compile_places(builder, placement.places, resources)
    compile_limits(builder, resources, placement, host, annotations=annotations)
    return placement


def why_unlimited(resources: Resources, host: Host, manager: Manager = "cgroupfs") -> str:
    """Return why limits of a new container cannot be enforced; an empty string if they can. Raises SpecError."""
    try:
        compile_cgroups(PlanBuilder(), Linux(resources=resources), "ID", host, manager)
    except UnsupportedError as error:
        return str(error)
    return ""


def _in_scope(linux: Linux | None, container_id: str, host: Host, annotations: Mapping[str, str]) -> Placement:
    if host.systemd is None:
        reason, remedy = "systemd is not running", _without_systemd(linux, host, annotations)
        if host.booted:
            reason = f"user {host.euid} has no systemd of its own"
            remedy = f"let root run 'loginctl enable-linger {host.euid}', or {remedy}"
        raise UnsupportedError(f"systemd cgroup manager: {reason}; {remedy}")
    user, hierarchy = host.systemd.user, host.systemd.hierarchy
    if user and host.cgroup_mode != "v2":
        reason = f"the user's systemd has controllers on cgroup v2 only, and this host uses {host.cgroup_mode}"
        remedy = f"{_without_systemd(linux, host, annotations)}, or boot with systemd.unified_cgroup_hierarchy=1"
        raise UnsupportedError(f"systemd cgroup manager: {reason}; {remedy}")
    target = scope_of(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    # The same path in every v1 hierarchy; systemd itself creates it in some of them.
    others = [h for h in host.hierarchies if h.mountpoint != hierarchy.mountpoint and h.base is not None]
    return Placement(tuple(Place(h.mountpoint + target.path, h) for h in (*others, hierarchy)), scope=target.unit)


def _without_systemd(linux: Linux | None, host: Host, annotations: Mapping[str, str]) -> str:
    """Return what helps where there is no systemd for a container: the other manager, if its limits can be set by that."""
    without = {"devices"} | ({"pids"} if PIDS_IF_POSSIBLE.items() <= annotations.items() else set())
    limited = changed_members(linux.resources).keys() - without if linux and linux.resources else None
    if host.may_create_cgroups or not limited:
        return "use --cgroup-manager cgroupfs"
    return privileged_remedy(host)


def cgroup_to_attach(unit: tuple[str, bool, str] | None, placement: Placement, host: Host) -> str:
    """Return the cgroup, as UNIT/PATH, into which only the user's systemd can move an exec process, or an empty string.

    A process outside of the cgroup of its user's systemd, as after a login, cannot move others into it.
    """
    place, own = placement.unified, next((h.base for h in host.hierarchies if h.version == 2), None)
    if unit is None or not unit[1] or place is None or host.systemd is None or (own and host.systemd.hierarchy.holds(own)):
        return ""
    return unit[0] + place.directory.removeprefix(unit[2])


def compile_attach(builder: PlanBuilder, attach: str) -> None:
    """Let the user's systemd move the init into the cgroup that `cgroup_to_attach` returned, if any."""
    if attach:
        unit, slash, below = attach.partition("/")
        builder.add("sync", Sync.HOST, text="wait until the user's systemd has moved the init process")
        builder.add_host("systemd_attach", unit, slash + below, True, text=f"init process -> {attach}")


def compile_scope(builder: PlanBuilder, placement: Placement, spec: RuntimeSpec, container_id: str, host: Host) -> None:
    """Let systemd create the scope of the init, and set the limits for which systemd has no property.

    Raises:
        SpecError, UnsupportedError: as for `compile_cgroups`.
    """
    assert host.systemd is not None, "a placement in a scope requires systemd"
    linux, user, hierarchy = spec.linux, host.systemd.user, host.systemd.hierarchy
    resources = linux.resources if linux else None
    target = scope_of(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    properties = scope_properties(
        target, resource_properties(resources, host, user=user), spec.annotations or {}, container_id=container_id
    )
    owner = "user's" if user else "system's"
    builder.add("sync", Sync.HOST, text=f"wait until the {owner} systemd has created the scope")
    values = (target.unit, tuple(map(tuple, properties)), target.path, placement.directories[::-1], user)
    builder.add_host("systemd_scope", *values, text=describe_scope(target, properties))
    *others, _ = placement.places
    compile_places(builder, [place for place in others if not CONTROLLERS & place.hierarchy.controllers], resources)
    compile_limits(builder, resources, placement, host, annotations=spec.annotations)
    compile_follow(builder, others)


_UNSET: Final = {
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP"),
    "cpu": ("shares", "quota", "period", "realtimeRuntime", "realtimePeriod", "cpus", "mems"),
    "blockIO": ("weight", "leafWeight"),
}
"""Members that container engines send as 0 or "" to leave them unchanged."""


def changed_members(changes: Resources) -> dict[str, Json]:
    """Return the members of an update that change something."""
    document = changes.to_dict()
    memory = document.get("memory")
    if isinstance(memory, dict) and memory.get("limit") == -1 and not memory.get("swap"):
        memory["swap"] = -1  # the limit of both together cannot be below that of memory
    for name, members in _UNSET.items():
        part = document.get(name)
        if isinstance(part, dict):
            document[name] = {key: value for key, value in part.items() if value or key not in members}
    return {key: value for key, value in document.items() if value not in ({}, None)}


def member_names(changes: dict[str, Json]) -> frozenset[str]:
    """Return the names of members as in `Write.members`: ``memory.limit``, ``unified['memory.high']``."""
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
    """Compile the plan that updates the limits of a container's cgroups.

    Args:
        linux: with all limits after the update.
        changed: the names of the members that change.
        unit: the systemd unit of the cgroup, whether it belongs to the user's own systemd, and its directory.
        schemas: the resctrl schemas that change, ``l3_cache_schema`` or ``mem_bw_schema``.

    Raises:
        SpecError, UnsupportedError: as for `compile_limits`.
    """
    builder = PlanBuilder()
    builder.phase = "On the host"
    resources = linux.resources or Resources()
    compile_limits(builder, resources, placement, host, only=changed)
    if unit is not None and (properties := resource_properties(resources, host, user=unit[1], only=changed)):
        text = f"{unit[0]}: {', '.join(map(str, properties))}"
        builder.add_host("systemd_set", unit[0], tuple(map(tuple, properties)), unit[1], text=text)
        compile_limits(
            builder, resources, placement, host, only=changed - {"devices"}, enable=False
        )  # again, as systemd rounds what it writes
    compile_rdt_change(builder, linux, host, container_id, schemas)
    return builder.build(f"update {container_id}", clone_flags=0, cgroups=placement.directories)
