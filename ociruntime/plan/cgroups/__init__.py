"""Cgroups: where a container's are, and what is written into them (config-linux.md#control-groups). Names and values only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import UnsupportedError
from .limits import compile_limits, compile_writes
from .placement import DISABLED, MANAGERS, Manager, Place, Placement, compile_join, compile_places, place, placed

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Linux
    from ..model import Builder
    from .files import Write

__all__ = ["MANAGERS", "Manager", "Place", "Placement", "Setup", "compile_cgroups", "compile_join", "compile_late", "placed"]


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
        raise UnsupportedError("the systemd cgroup manager is not supported yet: use --cgroup-manager cgroupfs")
    placement = DISABLED if manager == "disabled" else place(linux.cgroups_path if linux else None, container_id, host)
    compile_places(b, placement)
    return Setup(placement, compile_limits(b, linux.resources if linux else None, placement, host))


def compile_late(b: Builder, setup: Setup) -> None:
    """The limits under which the init could not have been started: no further process at all."""
    compile_writes(b, setup.late)
