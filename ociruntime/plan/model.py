"""`Plan`, `Step` and the builder that the compiling modules share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from .ops import MAX_SLOTS, NO_SLOT, OPS

if TYPE_CHECKING:
    from ..spec import Seccomp


class Where(StrEnum):
    """Who carries a step out."""

    HOST = "host"
    INIT = "init"


class Step(NamedTuple):
    """One kernel operation."""

    where: Where
    op: str
    values: tuple[object, ...]
    text: str
    """What it is done to, for people."""
    phase: str
    """The part of the story that it belongs to."""

    def arguments(self) -> dict[str, object]:
        """The values by the names of the operation's fields."""
        names: Iterable[str] = (name for name, _ in OPS[self.op].fields) if self.where is Where.INIT else HOST_OPS[self.op]
        return dict(zip(names, self.values, strict=True))


HOST_OPS: Final[Mapping[str, tuple[str, ...]]] = {
    "cgroup_mkdir": ("path", "inherit"),
    "cgroup_write": ("path", "file", "value", "member"),
    "cgroup_write_first": ("path", "choices", "optional", "member"),
    "cgroup_write_lines": ("path", "file", "lines"),
    "cgroup_write_set": ("path", "values"),
    "cgroup_enable": ("path", "mountpoint", "needed", "wanted"),
    "cgroup_check": ("path", "memory", "swap"),
    "cgroup_realtime": ("path", "mountpoint", "runtime", "period"),
    "cgroup_delegate": ("path", "uid"),
    "cgroup_devices": ("path", "program"),
    "systemd_attach": ("unit", "below", "user"),
    "systemd_set": ("unit", "properties", "user"),
    "systemd_scope": ("unit", "properties", "path", "directories", "user"),
    "clone3": ("flags", "into"),
    "hook": ("kind", "path", "args", "env", "timeout"),
    "hook_state": (),
    "idmap": ("file", "text", "helper"),
    "proc_write": ("file", "text"),
    "netdev_move": ("name", "new"),
    "rdt_make": ("group",),
    "rdt_schemata": ("group", "lines"),
    "rdt_class": ("group", "lines"),
    "rdt_join": ("group",),
}
"""The operations of the calling process, with the names of their values."""


class Input(NamedTuple):
    """A descriptor that the calling process opens and the init inherits; its slot is its place in `Plan.inputs`."""

    kind: str
    """``path`` (opened O_PATH), ``write`` (opened for writing), ``namespace`` (of the type that ``bit`` says), ``changed`` (one
    that is not the caller's, as it will be changed), ``userns`` (a user namespace with ``maps``, and nobody in it), ``gate`` (the
    listening socket of start), ``pidfd`` (the container's), ``parent`` (our own pidfd), ``state`` and ``output`` (of hooks)."""
    name: str
    path: str
    bit: int = 0
    maps: tuple[str, str] = ("", "")


class Plan(NamedTuple):
    """Every kernel operation of a launch, in order, before anything runs. Immutable and comparable."""

    title: str
    steps: tuple[Step, ...]
    inputs: tuple[Input, ...]
    clone_flags: int
    cgroups: tuple[str, ...] = ()
    """The cgroup directories that the launch makes, deepest last."""
    namespaces: int = 0
    """The CLONE_NEW* bits of the namespaces that differ from the caller's."""
    terminal: bool = False
    hooks: Mapping[str, list[tuple[str, Sequence[str], Sequence[str], int]]] = {}
    """The hooks of start and delete, as plain values by their kinds: they must outlive create."""
    warnings: tuple[str, ...] = ()
    """What of the config cannot be granted and does not matter enough for an error, by the runtime spec."""

    def explain(self) -> str:
        """The plan as a story for people: numbered steps, under a heading where a new part begins."""
        from .explain import explain

        return explain(self)

    def to_json(self, indent: int | None = None) -> str:
        """The plan as a JSON document: title, inputs and steps with named arguments."""
        from .explain import to_json

        return to_json(self, indent)

    def init_steps(self) -> list[tuple[int, Step]]:
        """The steps of the init with their numbers, which count from 1 over all steps."""
        return [(number, step) for number, step in enumerate(self.steps, 1) if step.where is Where.INIT]

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        return f"<Plan {self.title!r}: {len(self.steps)} steps>"


class Filter(NamedTuple):
    """Stands for a seccomp filter in a step: compiled from the profile only when the plan is sent to the init."""

    profile: Seccomp

    def __repr__(self) -> str:
        rules = sum(len(rule.names) for rule in self.profile.syscalls or ())
        return f"<seccomp filter: {self.profile.default_action}, {rules} system calls named>"


class Builder:
    """Collects the steps of one plan."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.inputs: list[Input] = []
        self.phase = ""
        self.warnings: list[str] = []
        self._free = MAX_SLOTS

    def init(self, op: str, *values: object, text: str) -> None:
        self.steps.append(Step(Where.INIT, op, values, text, self.phase))

    def host(self, op: str, *values: object, text: str) -> None:
        self.steps.append(Step(Where.HOST, op, values, text, self.phase))

    def warn(self, text: str) -> None:
        """Note something that the spec wants a warning for."""
        self.warnings.append(text)

    def slot(self) -> int:
        """A free slot for a descriptor that the init opens: from the top, as inputs fill the table from the bottom."""
        self._free -= 1
        if self._free <= len(self.inputs):
            raise UnsupportedError(f"the plan needs more than {MAX_SLOTS} open descriptors: too many mounts")
        return self._free

    def input(self, kind: str, name: str, path: str = "", bit: int = 0, maps: tuple[str, str] = ("", "")) -> int:
        self.inputs.append(Input(kind, name, path, bit, maps))
        return len(self.inputs) - 1

    def plan(self, title: str, **more: object) -> Plan:
        return Plan(title, tuple(self.steps), tuple(self.inputs), warnings=tuple(self.warnings), **more)  # type: ignore[arg-type]


def strings(values: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(values or ())


__all__ = ["HOST_OPS", "NO_SLOT", "Builder", "Filter", "Input", "Plan", "Step", "Where", "strings"]
