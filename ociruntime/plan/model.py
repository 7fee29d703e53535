"""`Plan` and `Step`, the builder that the compiling modules share, and the encoding of a plan for the init."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import attrs

from .._lazy import HtmlRepr
from ..arguments import check_indent
from ..errors import UnsupportedError
from .ops import CLONE_NEW, MAGIC, MAX_SLOTS, NO_SLOT, OPS

if TYPE_CHECKING:
    from ..spec import Seccomp
    from .process import HookProgram

__all__ = [
    "HOST_OPS",
    "NO_SLOT",
    "Input",
    "Plan",
    "PlanBuilder",
    "Side",
    "Step",
    "UncompiledFilter",
]


class Side(StrEnum):
    """The process that executes a step."""

    HOST = "host"
    """The calling process, in the runtime namespace."""
    INIT = "init"
    """The init process."""


class Step(NamedTuple):
    """One kernel operation."""

    side: Side
    op: str
    values: tuple[object, ...]
    text: str
    """What the operation applies to, for people; an error message begins with it."""
    phase: str
    """The heading that the step belongs to."""
    location: str = ""
    """The JSON path of the member of the config that it carries out, where an error message names it."""

    def arguments(self) -> dict[str, object]:
        """Return the values by the names of the operation's fields."""
        names: Iterable[str] = (name for name, _ in OPS[self.op].fields) if self.side is Side.INIT else HOST_OPS[self.op]
        return dict(zip(names, self.values, strict=True))


HOST_OPS: Final[Mapping[str, tuple[str, ...]]] = {
    "cgroup_mkdir": ("path", "cpuset", "given"),
    "cgroup_write": ("path", "file", "value", "member"),
    "cgroup_write_first": ("path", "choices", "optional", "member"),
    "cgroup_write_lines": ("path", "file", "lines"),
    "cgroup_write_set": ("path", "values"),
    "cgroup_enable": ("path", "mountpoint", "required", "optional"),
    "cgroup_check": ("path", "memory", "swap"),
    "cgroup_realtime": ("path", "mountpoint", "runtime", "period"),
    "cgroup_delegate": ("path", "uid"),
    "cgroup_devices": ("path", "program"),
    "systemd_attach": ("unit", "below", "user"),
    "systemd_set": ("unit", "properties", "user"),
    "systemd_scope": ("unit", "properties", "path", "directories", "user"),
    "clone3": ("flags", "cgroup"),
    "hook": ("kind", "path", "args", "env", "timeout", "position"),
    "hook_state": (),
    "idmap": ("file", "text", "helper"),
    "proc_write": ("file", "text"),
    "netdev_move": ("name", "new_name"),
    "network": ("program", "ports", "forwards_dns"),
    "rdt_make": ("group",),
    "rdt_schemata": ("group", "lines"),
    "rdt_class": ("group", "lines"),
    "rdt_join": ("group",),
}
"""The operations of the calling process, and the names of their values."""


class Input(NamedTuple):
    """A descriptor that the calling process opens and the init inherits; its slot is its index in `Plan.inputs`."""

    kind: str
    """``path`` (opened with O_PATH), ``write`` (opened for writing), ``namespace`` (of the type in ``bit``), ``changed`` (a
    namespace that the plan changes, so it must not be the caller's), ``userns`` (a user namespace with ``maps`` and without
    processes), ``gate`` (the start socket), ``pidfd`` (of the container), ``parent`` (the caller's pidfd), ``state`` and ``output``
    (of hooks), ``image`` (a detached mount of an image, which ``path`` describes)."""
    name: str
    path: str
    bit: int = 0
    maps: tuple[str, str] = ("", "")


@attrs.frozen(repr=False)
class Plan(HtmlRepr):
    """Every kernel operation of a launch, in order, before any of them runs. Immutable and comparable."""

    title: str
    steps: tuple[Step, ...]
    inputs: tuple[Input, ...]
    clone_flags: int
    cgroups: tuple[str, ...] = ()
    """The cgroup directories that the launch creates, deepest last."""
    namespaces: int = 0
    """The CLONE_NEW* bits of the namespaces that are not the caller's."""
    terminal: bool = False
    hooks: Mapping[str, Sequence[HookProgram]] = attrs.field(factory=dict)
    """The hooks that run after create, by their kinds."""
    warnings: tuple[str, ...] = ()
    """What cannot be granted, where the runtime spec asks for a warning instead of an error."""
    notes: tuple[str, ...] = ()
    """What was chosen for this host, and why."""
    _variation: Variation | None = attrs.field(default=None, eq=False)
    """How to encode the plan, if it was made from a pattern."""

    def command(self) -> tuple[str, ...]:
        """Return the arguments of the program; empty if the container has none, and its init process only waits."""
        args = next((step.arguments()["argv"] for step in self.steps if step.op == "exec"), ())
        return tuple(cast("Sequence[str]", args))

    def explain(self) -> str:
        """Return the plan as text: numbered steps, under a heading for each phase."""
        lines = [f"{self.title}: {len(self.steps)} steps", *self.notes]
        width = max((len(step.op) for step in self.steps), default=0)
        phase = ""
        for number, step in enumerate(self.steps, 1):
            if step.phase != phase:
                phase = step.phase
                lines += ["", phase]
            lines.append(f"  {number:>3}  {step.op:<{width}}  {step.text}")
        if self.warnings:
            lines += ["", "Warnings", *(f"  {warning}" for warning in self.warnings)]
        later = [(kind, program) for kind in ("poststart", "poststop") for program in self.hooks.get(kind, ())]
        if later:
            lines += ["", "After start, and after delete"]
            lines += [f"       {'hook':<{width}}  {program.describe(kind)}" for kind, program in later]
        return "\n".join(lines) + "\n"

    def to_json(self, indent: int | None = None) -> str:
        """Return the plan as a JSON document: title, inputs and steps with named arguments."""
        check_indent(indent)
        document = {
            "title": self.title,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "inputs": [entry._asdict() for entry in self.inputs],
            "hooks": {kind: [program._asdict() for program in programs] for kind, programs in self.hooks.items()},
            "steps": [
                {
                    "step": number,
                    "side": str(step.side),
                    "op": step.op,
                    "text": step.text,
                    "phase": step.phase,
                    "location": step.location,
                    "arguments": {name: _plain(value) for name, value in step.arguments().items()},
                }
                for number, step in enumerate(self.steps, 1)
            ],
        }
        return json.dumps(document, indent=indent)

    def profiled(self) -> Plan:
        """Return the plan with a step by which the init notes when each of the steps behind it begins.

        The init asks the kernel for the time. Behind a seccomp filter that may forbid that, and behind a change of its time
        namespace, in which the time is another one, the steps get no times.
        """
        at = next(number for number, step in enumerate(self.steps) if step.op == "clone3") + 1
        steps = [*self.steps[:at], Step(Side.INIT, "profile", (0,), "note when each step begins", "Profile"), *self.steps[at:]]
        ends = (number for number, step in enumerate(steps, 1) if _hides_time(step))
        steps[at] = steps[at]._replace(values=(next(ends, len(steps)) + 1,))
        return attrs.evolve(self, steps=tuple(steps))

    @property
    def timed_steps(self) -> int:
        """The number above those of the steps whose beginning the init notes; 0 without a profile."""
        return next((cast("int", step.values[0]) for step in self.steps if step.op == "profile"), 0)

    def init_steps(self) -> list[tuple[int, Step]]:
        """Return the steps of the init with their numbers, which count all steps from 1."""
        return [(number, step) for number, step in enumerate(self.steps, 1) if step.side is Side.INIT]

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        return f"<Plan {self.title!r}: {len(self.steps)} steps>"


@attrs.define(eq=False)
class Pattern:
    """A plan whose encoded steps become those of other plans when texts in it are replaced by texts of the same length."""

    plan: Plan
    encoded: bytes | None = None
    """Its encoded steps, from the first launch on."""


class Variation(NamedTuple):
    """How the encoded steps of a plan are made from those of a pattern."""

    steps: tuple[Step, ...]
    """The steps of the plan. A plan with other ones is not a variation of the pattern."""
    pattern: Pattern
    texts: tuple[tuple[bytes, bytes], ...]
    """Texts of the pattern, and what the plan has in their place."""

    def encode(self, encoded: bytes) -> bytes:
        """Return the encoded steps of the plan, given those of the pattern."""
        for text, replacement in self.texts:
            encoded = encoded.replace(text, replacement)
        return encoded


def _hides_time(step: Step) -> bool:
    """Return whether the init cannot note the time of the steps behind this one."""
    if step.op == "seccomp":
        uncompiled = step.values[1]
        assert isinstance(uncompiled, UncompiledFilter)
        profile = uncompiled.profile
        rules = [rule for rule in profile.syscalls or () if "clock_gettime" in rule.names]
        actions = {rule.action for rule in rules} or {profile.default_action}
        return not actions <= {"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"} or any(rule.args for rule in rules)
    flags = {"unshare": "flags", "setns": "flags", "join": "type"}
    return step.op in flags and bool(cast("int", step.arguments()[flags[step.op]]) & CLONE_NEW["time"])


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, tuple) and type(value) is not tuple:
        return repr(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class UncompiledFilter(NamedTuple):
    """A seccomp filter in a step, which is compiled when the plan is sent to the init."""

    profile: Seccomp

    def __repr__(self) -> str:
        rules = sum(len(rule.names) for rule in self.profile.syscalls or ())
        return f"<seccomp filter: {self.profile.default_action}, {rules} system calls named>"


class PlanBuilder:
    """Collects the steps of one plan."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.inputs: list[Input] = []
        self.phase = ""
        self.location = ""
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._free = MAX_SLOTS

    def add(self, op: str, *values: object, text: str) -> None:
        """Add a step of the init."""
        self.steps.append(Step(Side.INIT, op, values, text, self.phase, self.location))

    def add_host(self, op: str, *values: object, text: str) -> None:
        """Add a step of the calling process."""
        self.steps.append(Step(Side.HOST, op, values, text, self.phase, self.location))

    @contextmanager
    def at(self, location: str) -> Iterator[None]:
        """Give the steps of a block the JSON path of what they carry out."""
        before, self.location = self.location, location
        yield
        self.location = before

    def warn(self, text: str) -> None:
        """Add a warning, where the spec asks for one instead of an error."""
        self.warnings.append(text)

    def note(self, text: str) -> None:
        """Add what was chosen for this host, and why."""
        self.notes.append(text)

    def new_slot(self) -> int:
        """Return a free slot for a descriptor that the init opens: the highest one, as inputs fill the table from 0."""
        self._free -= 1
        if self._free <= len(self.inputs):
            raise UnsupportedError(f"$.mounts: the plan needs more than {MAX_SLOTS} file descriptors; use fewer mounts")
        return self._free

    def add_input(self, kind: str, name: str, path: str = "", bit: int = 0, maps: tuple[str, str] = ("", "")) -> int:
        """Add an input and return its slot."""
        self.inputs.append(Input(kind, name, path, bit, maps))
        return len(self.inputs) - 1

    def build(self, title: str, **more: object) -> Plan:
        """Return the plan; ``more`` are attributes of `Plan`."""
        found = {"warnings": tuple(self.warnings), "notes": tuple(self.notes)}
        return Plan(title, tuple(self.steps), tuple(self.inputs), **found, **more)  # type: ignore[arg-type]


_HEADER: Final = struct.Struct("=IIII")
_HEAD: Final = struct.Struct("=HHI")
_U64: Final = struct.Struct("=Q")
_REF: Final = struct.Struct("=II")
_LIST: Final = struct.Struct("=IIQ")
_SIZE: Final = {"slot": 8, "num": 8, "str": 8, "data": 8, "list": 16}
_OP_SIZES: Final = {op.name: _HEAD.size + sum(_SIZE[kind] for _, kind in op.fields) for op in OPS.values()}
MAX_PROGRAM: Final = 64 << 20


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    raise TypeError(f"text or bytes expected, not {type(value).__name__}")


def _text(value: object, field: str) -> bytes:
    raw = _bytes(value)
    if b"\0" in raw:
        raise ValueError(f"{field}: {raw!r} contains NUL")
    return raw + b"\0"


def encode(steps: Sequence[tuple[int, str, Sequence[object]]], inputs: int) -> bytes:
    """Encode steps as the init reads them.

    Args:
        steps: number, operation and values of each step.
        inputs: the number of slots that the caller fills at launch.

    Raises:
        TypeError: a step has the wrong number of values.
        ValueError: text contains NUL, a slot or number is out of range, or the result is above 64 MiB.
    """
    base = _HEADER.size + sum(_OP_SIZES[name] for _, name, _ in steps)
    ops: list[bytes] = []
    tail = bytearray()

    def place(raw: bytes) -> tuple[int, int]:
        at = base + len(tail)
        tail.extend(raw)
        return at, len(raw)

    for number, name, values in steps:
        op = OPS[name]
        if len(values) != len(op.fields):
            raise TypeError(f"step {number} {name}: {len(values)} values for {len(op.fields)} fields")
        parts = [_HEAD.pack(_OP_SIZES[name], op.code, number)]
        for (field, kind), value in zip(op.fields, values, strict=True):
            location = f"step {number} {name}.{field}"
            if kind in ("slot", "num"):
                assert isinstance(value, int)
                if kind == "slot" and value != NO_SLOT and not 0 <= value < MAX_SLOTS:
                    raise ValueError(f"{location}: slot {value} is out of range")
                if not -(1 << 63) <= value < 1 << 64:
                    raise ValueError(f"{location}: {value} does not fit in 64 bits")
                parts.append(_U64.pack(value & 0xFFFFFFFFFFFFFFFF))
            elif kind == "str":
                parts.append(_REF.pack(*place(_text(value, location))))
            elif kind == "data":
                parts.append(_REF.pack(*place(_bytes(value))))
            else:
                assert isinstance(value, Sequence)
                at, size = place(b"".join(_text(item, location) for item in value))
                parts.append(_LIST.pack(at, size, len(value)))
        ops.append(b"".join(parts))
    total = base + len(tail)
    if total > MAX_PROGRAM:
        raise ValueError(f"the program of {total} bytes is larger than {MAX_PROGRAM}")
    return _HEADER.pack(MAGIC, total, len(steps), inputs) + b"".join(ops) + bytes(tail)
