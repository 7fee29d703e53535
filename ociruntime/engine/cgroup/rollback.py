"""Taking back a change of limits that fails half-way: the values of the files before the change."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from .tree import read, read_if_exists, write, write_set

if TYPE_CHECKING:
    from ...plan.model import Step

_BY_KEY: Final = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.weight": "default",
    "io.bfq.weight": "default",
    "blkio.weight_device": "default",
    "blkio.leaf_weight_device": "default",
    "blkio.bfq.weight_device": "default",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.write_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
    "blkio.throttle.write_iops_device": "0",
    "net_prio.ifpriomap": "0",
    "rdma.max": "hca_handle=max hca_object=max",
}
"""Files with a line for each device, and the value of a device that has no line."""


class Rollback:
    """Records the values that steps are about to change. `restore` writes them back, the last change first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._fds: list[int] = []

    def record(self, step: Step) -> None:
        """Record what a step of the host will change. Raises OSError."""
        if step.op == "cgroup_devices":
            self._undo.append(self._program(str(step.values[0])))
        elif step.op in _RECORDERS:
            self._undo.append(_RECORDERS[step.op](*step.values))

    def _program(self, path: str) -> Callable[[], None]:
        from . import devices

        fd = devices.current(path)
        if fd is None:
            return lambda: devices.detach(path)
        self._fds.append(fd)
        return lambda: devices.attach_fd(path, fd)

    def restore(self) -> list[OSError]:
        """Restore everything that was recorded. Return the errors of what could not be restored."""
        failures = []
        for undo in reversed(self._undo):
            try:
                undo()
            except OSError as error:
                failures.append(error)
        self._undo.clear()
        return failures

    def close(self) -> None:
        """Discard what was recorded."""
        for fd in self._fds:
            os.close(fd)
        self._undo, self._fds = [], []


def current_lines(path: str, file: str, value: str) -> list[str]:
    """Return the lines that restore the present content of a file after ``value`` has been written to it."""
    text = read(path, file)
    if file == "memory.oom_control":
        return [next(line.split()[1] for line in text.splitlines() if line.startswith("oom_kill_disable"))]
    key, _, rest = value.partition(" ")
    if file not in _BY_KEY:
        return [line for line in text.splitlines() if line] or ["\n"]
    if not rest:
        return [next(line.split()[-1] for line in text.splitlines() if line.startswith("default") or " " not in line)]
    line = next((line for line in text.splitlines() if line.startswith(key + " ")), None)
    return [line or f"{key} {_BY_KEY[file]}"]


def _one(path: str, file: str, value: str, member: str) -> Callable[[], None]:
    if not os.path.exists(f"{path}/{file}"):
        return lambda: None  # the step will report it
    lines = current_lines(path, file, value)
    inherited = read_if_exists(path, f"{file}.effective") if lines == ["\n"] else None

    def restore() -> None:
        try:
            write(path, file, *lines)
        except OSError as error:
            if error.errno != errno.ENOSPC or inherited is None:
                raise
            # A v2 cpuset with processes in it cannot be emptied: write what was in effect.
            write(path, file, inherited)

    return restore


def _first(path: str, choices: Iterable[tuple[str, str]], optional: bool, member: str) -> Callable[[], None]:
    return next((_one(path, file, value, member) for file, value in choices if os.path.exists(f"{path}/{file}")), lambda: None)


def _set(path: str, values: Iterable[tuple[str, str, bool, str]]) -> Callable[[], None]:
    there = [(file, member) for file, _, _, member in values if os.path.exists(f"{path}/{file}")]
    old = [(file, line, False, member) for file, member in there for line in current_lines(path, file, "")]
    return lambda: write_set(path, old)


def _lines(path: str, file: str, lines: Iterable[str]) -> Callable[[], None]:
    old = read(path, "devices.list").splitlines()

    def restore() -> None:
        write(path, "devices.deny", "a")
        write(path, "devices.allow", *("a" if line.startswith("a") else line for line in old))

    return restore


def _schemata(group: str, lines: Iterable[str]) -> Callable[[], None]:
    names = {line.partition(":")[0].strip() for line in lines}
    # The kernel pads the values with blanks, which it does not accept.
    there = ["".join(line.split()) for line in read(group, "schemata").splitlines()]
    old = [line for line in there if line.partition(":")[0] in names]
    return lambda: write(group, "schemata", *(f"{line}\n" for line in old))


_RECORDERS: Final[dict[str, Callable[..., Callable[[], None]]]] = {
    "cgroup_write": _one,
    "cgroup_write_first": _first,
    "cgroup_write_set": _set,
    "cgroup_write_lines": _lines,
    "rdt_schemata": _schemata,
}
