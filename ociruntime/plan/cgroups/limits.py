"""linux.resources as steps: each value for the hierarchy that has its controller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import UnsupportedError
from .placement import Place, Placement
from .v1 import v1_writes
from .v2 import v2_writes

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Resources
    from ..model import Builder
    from .files import Write


def compile_limits(b: Builder, resources: Resources, placement: Placement, host: Host) -> None:
    """The steps that write the limits. Raises UnsupportedError when a controller is missing."""
    _refuse(resources)
    served: set[str] = set()
    for write in v1_writes(resources):
        place = placement.of(write.controller)
        if place and place.hierarchy.version == 1:
            served.add(write.controller)
            _write(b, place, write)
    unified = next((place for place in placement.places if place.hierarchy.version == 2), None)
    v2 = [write for write in v2_writes(resources) if write.controller not in served]
    ours = [write for write in v2 if unified and write.controller in unified.hierarchy.controllers]
    if ours and unified:
        needed = tuple(sorted({write.controller for write in ours}))
        b.host("cgroup_enable", unified.directory, needed, text=f"{', '.join(needed)} down to {unified.directory}")
        for write in ours:
            _write(b, unified, write)
    wanted = {w.controller for w in (*v1_writes(resources), *v2)} - served - {w.controller for w in ours}
    if "devices" in wanted and unified and not host.has_controller("devices"):
        raise UnsupportedError("$.linux.resources.devices: device rules on cgroup v2 are not supported yet")
    if wanted and placement.places:
        raise UnsupportedError(f"$.linux.resources: no mounted cgroup hierarchy has the controller {', '.join(sorted(wanted))}")
    if wanted - {"devices"}:
        why = "which are disabled" if placement.manager == "disabled" else "and none are mounted on this host"
        raise UnsupportedError(f"$.linux.resources: limits need cgroups, {why}")


def _refuse(resources: Resources) -> None:
    # Silence would be a limit that somebody relies on and that is not there.
    for name in ("block_io", "network", "rdma"):
        if getattr(resources, name):
            raise UnsupportedError(f"$.linux.resources.{name}: not supported yet")


def _write(b: Builder, place: Place, write: Write) -> None:
    b.host("cgroup_write", place.directory, write.file, write.value, text=f"{write.value} > {place.directory}/{write.file}")
