"""Cache and memory bandwidth through resctrl (config-linux.md#intelrdt)."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.rules.linux import RESERVED_GROUPS
from .model import Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import IntelRdt, Linux

_SECTION: Final = "config-linux.md#intelrdt"


def _lines(rdt: IntelRdt) -> tuple[str, ...]:
    """What goes to the schemata file, in the order that the spec says."""
    wanted = (rdt.l3_cache_schema, rdt.mem_bw_schema, *(rdt.schemata or ()))
    return tuple([line for line in wanted if line is not None])


def _group(rdt: IntelRdt, host: Host, container_id: str) -> str:
    """The directory of the class of service."""
    if not host.resctrl:
        raise UnsupportedError(
            "$.linux.intelRdt: no resctrl filesystem is mounted here; where the processor has resource control, "
            "mount -t resctrl resctrl /sys/fs/resctrl"
        )
    name = container_id if rdt.clos_id is None else rdt.clos_id
    if name in RESERVED_GROUPS:
        raise SpecError([Problem("$.linux.intelRdt.closID", f"{name!r} is a name of resctrl's own", _SECTION)])
    return host.resctrl if rdt.clos_id == "/" else posixpath.join(host.resctrl, name)


def compile_rdt(b: Builder, linux: Linux | None, host: Host, container_id: str) -> tuple[str, ...]:
    """Make the container's group, and its monitoring group; gives the directories that its process joins.

    Raises:
        SpecError: a bad name or line.
        UnsupportedError: no resctrl filesystem is mounted.
    """
    rdt = linux.intel_rdt if linux else None
    if rdt is None:
        return ()
    lines = _lines(rdt)
    group = _group(rdt, host, container_id)
    if rdt.clos_id is None:
        b.host("rdt_make", group, text=f"{group}, removed with the container")
        if lines:
            b.host("rdt_schemata", group, lines, text=f"{', '.join(lines)} > {group}/schemata")
    else:
        shown = f"{group}, made where missing with {', '.join(lines)}" if lines else f"{group}, which must exist"
        b.host("rdt_class", group, lines, text=shown)
    if not rdt.enable_monitoring:
        return (group,)
    monitor = posixpath.join(group, "mon_groups", container_id)
    b.host("rdt_make", monitor, text=f"{monitor}, for monitoring")
    return (group, monitor)


def compile_rdt_change(b: Builder, linux: Linux, host: Host, container_id: str, schemas: Collection[str]) -> None:
    """Write the schemas that changed, ``l3_cache_schema`` or ``mem_bw_schema``, to the group. Raises as `compile_rdt`."""
    rdt = linux.intel_rdt
    if rdt is None or not schemas:
        return
    given = {"l3_cache_schema": rdt.l3_cache_schema, "mem_bw_schema": rdt.mem_bw_schema}
    lines = tuple(line for name, line in given.items() if name in schemas and line is not None)
    group = _group(rdt, host, container_id)
    b.host("rdt_schemata", group, lines, text=f"{', '.join(lines)} > {group}/schemata")


def compile_rdt_join(b: Builder, groups: tuple[str, ...]) -> None:
    """Put the process into its groups."""
    for group in groups:
        b.host("rdt_join", group, text=f"the process > {group}/tasks")
