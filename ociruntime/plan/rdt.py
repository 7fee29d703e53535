"""Cache and memory bandwidth through resctrl (config-linux.md#intelrdt)."""

from __future__ import annotations

import posixpath
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from ..errors import SpecError, UnsupportedError
from ..spec.base import Problem
from ..spec.rules.linux import RESERVED_GROUPS
from .model import PlanBuilder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import IntelRdt, Linux

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
        raise SpecError([Problem("$.linux.intelRdt.closID", f"{name!r} is reserved by resctrl", _SECTION)])
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
