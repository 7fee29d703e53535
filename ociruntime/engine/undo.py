"""What a launch makes outside of its own processes, and how it goes away again.

A record is plain strings, kept in state.json: it is written before the first step, so that ``delete --force`` can undo
what a crash at any point left behind. Every action is content with what is not there (any more).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..errors import UnsupportedError
from . import cgroup, rdt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from ..plan.model import Plan, Step

Record = Sequence[Sequence[str]]


def _cgroup(path: str) -> None:
    cgroup.remove(path)


def _cgroup_parent(path: str) -> None:
    cgroup.remove_parents([path])


def _systemd_scope(unit: str, whose: str, directory: str, *others: str) -> None:
    from . import systemd

    cgroup.kill([directory, *others])
    try:
        systemd.stop(unit, user=whose == "user")
    except UnsupportedError:
        if os.path.exists(directory):
            raise  # where the cgroup is gone, it went with the systemd of a user who logged out


def _bundle(path: str) -> None:
    from ..rootfs.temporary import discard

    discard(path)


_ACTIONS: Final[dict[str, Callable[..., None]]] = {
    "cgroup": _cgroup,
    "cgroup_parent": _cgroup_parent,
    "rdt": rdt.remove,
    "systemd_scope": _systemd_scope,
    "bundle": _bundle,
}


def of_step(step: Step) -> list[str] | None:
    """What undoes a step of the host, if anything must."""
    if step.op == "cgroup_mkdir":
        return ["cgroup", str(step.values[0])]
    if step.op == "systemd_scope":
        unit, _, _, directories, user = step.values
        assert isinstance(directories, tuple)
        return ["systemd_scope", str(unit), "user" if user else "system", *directories]
    if step.op == "rdt_make":
        return ["rdt", str(step.values[0])]
    return None


def parents(plan: Plan) -> list[list[str]]:
    """What undoes the parents of cgroups, which no step names. Raises FileExistsError when one of the plan's cgroups is in use."""
    made = [str(step.values[0]) for step in plan.steps if step.op == "cgroup_mkdir"]
    return [["cgroup_parent", path] for path in cgroup.survey(made)]


def of_plan(plan: Plan) -> list[list[str]]:
    """What undoes the steps of a plan, in their order."""
    return [entry for step in plan.steps if step.where == "host" and (entry := of_step(step)) is not None]


def unit(record: Record) -> tuple[str, bool, str] | None:
    """The unit that systemd made for a container, if it did: its name, whether the user's own systemd has it, and its cgroup."""
    for action, *values in record:
        if action == "systemd_scope":
            return values[0], values[1] == "user", values[2]
    return None


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
