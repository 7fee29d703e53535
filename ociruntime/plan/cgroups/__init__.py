"""Cgroups: where a container's are, and what is written into them (config-linux.md#control-groups). Names and values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from .limits import compile_limits
from .placement import MANAGERS, Manager, Place, Placement, compile_join, compile_places, place, placed

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Linux
    from ..model import Builder

__all__ = ["MANAGERS", "Manager", "Place", "Placement", "compile_cgroups", "compile_join", "placed"]


def compile_cgroups(b: Builder, linux: Linux | None, container_id: str, host: Host, manager: Manager = "cgroupfs") -> Placement:
    """The steps before the clone that make the container's cgroups and set their limits.

    Raises:
        SpecError: ``linux.cgroupsPath`` or a limit contradicts itself.
        UnsupportedError: a limit needs a controller or a manager that this host does not have.
    """
    if manager == "systemd":
        raise UnsupportedError("the systemd cgroup manager is not supported yet: use --cgroup-manager cgroupfs")
    placement = place(linux.cgroups_path if linux else None, container_id, host, manager)
    compile_places(b, placement)
    if linux and linux.resources is not None:
        compile_limits(b, linux.resources, placement, host)
    return placement
