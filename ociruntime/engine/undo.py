"""Undo records: what a launch creates outside of its own processes, and how to remove that.

A record is a list of actions with their arguments, all strings, which is part of the state of the container. It is written before
the first step, so that ``delete --force`` can undo what a crash at any point left behind. An action ignores what does not exist,
and refuses what cannot belong to a container, such as a directory that is not a cgroup.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import StateError, UnsupportedError
from ..files import read_mounts
from . import cgroup

if TYPE_CHECKING:
    from ..plan.model import Plan, Step

Record = Sequence[Sequence[str]]

_filesystems: Final[dict[int, str]] = {}
"""Types of filesystems by device number. Reading the mount table takes longer than removing a cgroup, so it is read once."""


def refusal(what: str, why: str) -> StateError:
    """Return the error for a recorded object that cannot belong to a container."""
    return StateError(
        f"cannot remove {what}, which is recorded as part of a container: {why}; correct 'undo' in the container's record"
    )


def _is_plain(path: object) -> bool:
    if not isinstance(path, str) or "\0" in path:
        return False
    first, *parts = path.split("/")
    return not first and bool(parts) and {"", ".", ".."}.isdisjoint(parts)


def _check_path(path: str) -> None:
    if not _is_plain(path):
        raise refusal(path, "it is not an absolute path without '..' and NUL")


def _check_below(path: str, *filesystems: str) -> None:
    """Check that a path does not exist, or is below the mount point of a filesystem of one of these types. Raises StateError."""
    _check_path(path)
    try:
        device, above = os.lstat(path).st_dev, os.lstat(os.path.dirname(path)).st_dev
    except FileNotFoundError:
        return  # systemd may also have removed both between the two looks
    if _filesystems.get(device) not in filesystems:
        _filesystems.update(_mounted())
    if _filesystems.get(device) not in filesystems:
        raise refusal(path, f"it is not on a filesystem of type {filesystems[0]}")
    if above != device:
        raise refusal(path, "it is a mount point")


def _mounted() -> Iterator[tuple[int, str]]:
    for mount in read_mounts():
        major, minor = map(int, mount.device.split(":"))
        yield os.makedev(major, minor), mount.fstype


def _check_cgroups(*paths: str) -> None:
    for path in paths:
        _check_below(path, "cgroup", "cgroup2")


def _cgroup(path: str) -> None:
    _check_cgroups(path)
    cgroup.remove(path)


def _remove_cgroups(record: Record) -> int:
    """Remove the cgroups at the end of a record in one call, up to one that has processes. Return how many actions that were."""
    paths: list[str] = []
    for action, *values in reversed(record):
        if action != "cgroup" or len(values) != 1 or not _is_plain(values[0]):
            break
        paths += values
    return cgroup.remove_unused(paths)


def _cgroup_parent(path: str) -> None:
    _check_cgroups(path)
    cgroup.remove_parents([path])


def _rdt(path: str) -> None:
    _check_below(path, "resctrl")
    remove_group(path)


def remove_group(path: str) -> None:
    """Remove a resctrl group, if it exists. Its processes move to the parent group. Raises OSError."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return


def _systemd_scope(unit: str, manager: str, directory: str, *others: str) -> None:
    from . import systemd

    if not unit.endswith(".scope"):
        raise refusal(unit, "it is not a scope of systemd")
    _check_cgroups(directory, *others)
    cgroup.kill([directory, *others])
    try:
        systemd.stop(unit, user=manager == "user")
    except UnsupportedError:
        if os.path.exists(directory):
            raise  # otherwise the systemd of the user has ended, and its cgroups with it


_actions: Final[dict[str, Callable[..., None]]] = {
    "cgroup": _cgroup,
    "cgroup_parent": _cgroup_parent,
    "rdt": _rdt,
    "systemd_scope": _systemd_scope,
}


def register(action: str, function: Callable[..., None]) -> None:
    """Register an action that a module above the engine implements.

    Args:
        action: its name in records.
        function: undoes it, given the recorded arguments. It ignores what does not exist.
    """
    _actions[action] = function


_UNDONE: Final = frozenset({"cgroup_mkdir", "systemd_scope", "rdt_make"})
"""Operations of the host that `of_step` knows."""


def of_step(step: Step) -> list[str] | None:
    """Return the action that undoes a step of the host; None if nothing has to be undone."""
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
    """Return the actions for the missing parents of cgroups, which no step names. Raises FileExistsError: a cgroup is in use."""
    directories = [str(step.values[0]) for step in plan.steps if step.op == "cgroup_mkdir"]
    return [["cgroup_parent", path] for path in cgroup.missing_parents(directories)]


def of_steps(steps: Iterable[Step]) -> list[list[str]]:
    """Return the actions that undo the host steps of a plan, in their order."""
    return [entry for step in steps if step.op in _UNDONE and (entry := of_step(step)) is not None]


def unit(record: Record) -> tuple[str, bool, str] | None:
    """Return the systemd unit of a container, if it has one: its name, whether the user's systemd has it, and its cgroup."""
    for action, *values in record:
        if action == "systemd_scope":
            return values[0], values[1] == "user", values[2]
    return None


def undo_all(record: Record) -> None:
    """Execute the actions of a record, the last one first.

    Raises:
        StateError: an object in the record cannot belong to a container.
        Exception: the first error of an action. The other actions are executed in any case.
    """
    failure: Exception | None = None
    pending = list(record)
    while pending:
        if (removed := _remove_cgroups(pending)) > 0:
            del pending[-removed:]
            continue
        action, *values = pending.pop()
        try:
            if action not in _actions:
                raise refusal(" ".join(values), f"{action!r} is not an action of this version")
            _actions[action](*values)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
