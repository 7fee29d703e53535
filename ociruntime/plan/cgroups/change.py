"""A change of the limits of a container that exists: only what is given changes, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ...spec import Resources
from ..model import Builder, Plan
from ..rdt import compile_rdt_change
from .limits import compile_limits
from .placement import Placement
from .systemd import limits_of

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Linux
    from ...spec.base import Json

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
