"""The cgroups of a container: where they are and what is written to them (config-linux.md#control-groups)."""

from __future__ import annotations

from .compile import (
    cgroup_to_attach,
    changed_members,
    compile_attach,
    compile_cgroups,
    compile_scope,
    compile_update,
    member_names,
)
from .placement import MANAGERS, Manager, Place, Placement, compile_join, compile_owner, existing_placement, inner_cgroups

__all__ = [
    "MANAGERS",
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
]
