"""The steps of a plan that the calling process carries out, each by its function (see `ociruntime.plan.model.HOST_OPS`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from . import cgroup, rdt

if TYPE_CHECKING:
    from ..plan.model import Step
    from .launch import Init


def _cgroup_mkdir(init: Init | None, path: str, inherit: bool) -> None:
    cgroup.make(path, inherit)


def _cgroup_write(init: Init | None, path: str, file: str, value: str) -> None:
    cgroup.write(path, file, value)


def _cgroup_enable(init: Init | None, path: str, controllers: Sequence[str]) -> None:
    cgroup.enable(path, controllers)


def _proc_write(init: Init | None, file: str, text: str) -> None:
    assert init is not None, "a step behind the clone"
    with open(f"/proc/{init.pid}/{file}", "w", encoding="ascii") as opened:
        opened.write(text)


def _netdev_move(init: Init | None, name: str, new: str) -> Callable[[], None]:
    from .netdev import move

    return move(init, name, new)


_FUNCTIONS: Final[dict[str, Callable[..., Callable[[], None] | None]]] = {
    "cgroup_mkdir": _cgroup_mkdir,
    "cgroup_write": _cgroup_write,
    "cgroup_enable": _cgroup_enable,
    "proc_write": _proc_write,
    "netdev_move": _netdev_move,
    "rdt_make": rdt.make,
    "rdt_schemata": rdt.write,
    "rdt_class": rdt.settle,
    "rdt_join": rdt.join,
}


def carry_out(step: Step, init: Init | None) -> Callable[[], None] | None:
    """Carry one step out; ``init`` is there from the clone on. Raises OSError or UnsupportedError.

    Returns:
        What takes it back while this process still can, for a step that no record in the state can undo.
    """
    return _FUNCTIONS[step.op](init, *step.values)
