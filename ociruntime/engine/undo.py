"""What a launch makes outside of its own processes, and how it goes away again.

A record is plain strings, kept in state.json: it is written before the first step, so that ``delete --force`` can undo
what a crash at any point left behind. Every action is content with what is not there (any more).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from . import cgroup, rdt

if TYPE_CHECKING:
    from ..plan.model import Plan, Step

Record = Sequence[Sequence[str]]


def _cgroup(path: str) -> None:
    cgroup.kill([path])
    cgroup.remove([path])


def _cgroup_parent(path: str) -> None:
    cgroup.remove_parents([path])


_ACTIONS: Final[dict[str, Callable[..., None]]] = {
    "cgroup": _cgroup,
    "cgroup_parent": _cgroup_parent,
    "rdt": rdt.remove,
}


def of_step(step: Step) -> list[str] | None:
    """What undoes a step of the host, if anything must."""
    if step.op == "cgroup_mkdir":
        return ["cgroup", str(step.values[0])]
    if step.op == "rdt_make":
        return ["rdt", str(step.values[0])]
    return None


def parents(plan: Plan) -> list[list[str]]:
    """What undoes the parents of cgroups, which no step names. Raises FileExistsError when one of the plan's cgroups is in use."""
    return [["cgroup_parent", path] for path in cgroup.survey(plan.cgroups)]


def of_plan(plan: Plan) -> list[list[str]]:
    """What undoes the steps of a plan, in their order."""
    return [entry for step in plan.steps if step.where == "host" and (entry := of_step(step)) is not None]


def perform(record: Record) -> None:
    """Undo, the last first. Every action is tried; the first error is raised at the end."""
    failure: Exception | None = None
    for action, *values in reversed(record):
        try:
            _ACTIONS[action](*values)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
