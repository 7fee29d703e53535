"""A template of plans: a config is compiled once, and each container's id is inserted. Pure, like the compilers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from .compile import compile_create
from .model import Input

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import RuntimeSpec
    from .cgroups import Manager
    from .model import Plan

_ID: Final = "idX6f1c8e4b9d27a35"
"""A placeholder for the container's id, which does not occur in a config."""


class Template:
    """A compiled config whose plans differ in the container's id alone (see `is_usable`).

    Arguments and errors are those of `compile_create`.
    """

    def __init__(
        self, spec: RuntimeSpec, host: Host, *, bundle: str, gate: bool, manager: Manager, die_with_parent: bool | None
    ) -> None:
        self._plan = plan = compile_create(
            spec, host, bundle=bundle, container_id=_ID, gate=gate, manager=manager, die_with_parent=die_with_parent
        )
        self._steps = [(index, _ID in repr(step.values)) for index, step in enumerate(plan.steps) if _ID in repr(step)]
        self._inputs = [index for index, entry in enumerate(plan.inputs) if _ID in repr(entry)]

    def plan(self, container_id: str) -> Plan:
        """Return the plan of one container."""
        steps, inputs = list(self._plan.steps), list(self._plan.inputs)
        for index, in_values in self._steps:
            step = steps[index]
            values = tuple([_value(value, container_id) for value in step.values]) if in_values else step.values
            text = step.text.replace(_ID, container_id)
            steps[index] = attrs.evolve(step, values=values, text=text)
        for index in self._inputs:
            inputs[index] = _input(inputs[index], container_id)
        return attrs.evolve(
            self._plan,
            title=self._plan.title.replace(_ID, container_id),
            steps=tuple(steps),
            inputs=tuple(inputs),
            cgroups=tuple([path.replace(_ID, container_id) for path in self._plan.cgroups]),
        )


def is_usable(spec: RuntimeSpec, manager: Manager) -> bool:
    """Return whether the plans of a config differ in the id alone: systemd's names escape it, and resctrl checks it."""
    return manager != "systemd" and (spec.linux is None or spec.linux.intel_rdt is None)


def _value(value: object, container_id: str) -> object:
    if isinstance(value, str):
        return value.replace(_ID, container_id)
    if isinstance(value, bytes):
        return value.replace(_ID.encode(), container_id.encode())
    if isinstance(value, tuple):
        return tuple([_value(item, container_id) for item in value])
    return value


def _input(entry: Input, container_id: str) -> Input:
    kind, name, path, bit, maps = entry
    return Input(kind, name.replace(_ID, container_id), path.replace(_ID, container_id), bit, maps)
