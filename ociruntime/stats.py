"""`Usage`: what a container has used; `Event`: what happens to it, with the JSON of ``runc events``.

`Profile` and `Trace`: how long the steps of a run, and of other operations, took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, Self

import attrs

from ._lazy import HtmlRepr
from .arguments import check_indent, check_str, printable
from .errors import call_tracers, debug, debugs

if TYPE_CHECKING:
    from .engine.cgroup.stats import Stats
    from .plan import Plan

__all__ = ["Event", "EventKind", "Profile", "ProfileStep", "Trace", "Usage"]

EventKind = Literal["exit", "oom", "pressure", "paused", "resumed", "stats"]


@attrs.frozen
class Event:
    """An event of a container."""

    kind: EventKind
    """``exit``: the init process has ended, and no event follows; ``oom``: the container ran out of memory; ``pressure``: its
    tasks wait for memory; ``paused`` and ``resumed``; ``stats``: an interval has passed."""
    time: int
    """Unix nanoseconds."""
    kills: int = 0
    """oom: the number of processes that have been killed so far because memory ran out."""
    stats: Stats | None = None
    """stats: what the container uses now."""

    def to_dict(self, container_id: str) -> dict[str, object]:
        """Return the event as ``runc events`` prints it: type, id and, for stats, data."""
        check_str("container_id", container_id)
        document: dict[str, object] = {"type": self.kind, "id": container_id}
        if self.stats is not None:
            document["data"] = self.stats.to_dict()
        return document


@attrs.frozen
class Usage:
    """Resources that were used: of `run`, by the whole container; of `exec`, by the program and the children that it waited for.

    Without cgroups that count them, those of `run` are of the init process and the children that it waited for. All are 0 if the
    kernel did not report them, as when SIGCHLD is ignored.
    """

    user: float = 0.0
    """Seconds of CPU time in user space."""
    system: float = 0.0
    """Seconds of CPU time in the kernel."""
    total: float = 0.0
    """Seconds of CPU time."""
    peak_memory: int = 0
    """The maximum of memory in use, in bytes; of a single program, the maximum of its resident set."""


# ---- profiles ----


@attrs.frozen
class ProfileStep:
    """A step of a plan with its time, or the time between steps."""

    number: int | None
    """The number of the step in the plan, from 1 on; None for what is not a step."""
    side: str
    """``host`` for the calling process, ``init`` for the init process."""
    op: str
    """The operation. Between steps: ``prepare``, ``compile``, ``record``, ``encode``, ``wait``, ``report``, ``program``,
    ``collect`` or ``clean-up``."""
    text: str
    """What the operation applies to."""
    phase: str
    """The heading that the step belongs to in the plan; empty between steps."""
    start: int | None
    """Nanoseconds from the call to the beginning; None for a step that was not reached or that has no time of its own."""
    duration: int | None
    """Nanoseconds; None as ``start``."""


@attrs.frozen(repr=False)
class Profile(HtmlRepr):
    """The time of every step of a run, and of what is between the steps, from the call to the end of the clean-up.

    Each moment belongs to one entry: while the calling process works, to what it does; while it waits, to the step of the init
    process. So the durations add up to the whole. The end of ``exec`` is when the calling process learns that the program runs.
    A step of the init process behind a seccomp filter that does not allow clock_gettime, or behind a change of the time namespace,
    has no time of its own: the last step before it has its time too.
    """

    title: str
    """The title of the plan; empty if the call failed before there was one."""
    steps: tuple[ProfileStep, ...]
    """Each step of the plan once, in the order of the plan, and between them the rest of the time."""

    @property
    def duration(self) -> int:
        """Nanoseconds of the whole call."""
        return sum(step.duration or 0 for step in self.steps)

    def to_json(self, indent: int | None = None) -> str:
        """Return the profile as a JSON document: title, duration and steps. Times are in nanoseconds."""
        check_indent(indent)
        steps = [attrs.asdict(step) for step in self.steps]
        return json.dumps({"title": self.title, "duration": self.duration, "steps": steps}, indent=indent)

    def explain(self) -> str:
        """Return the profile as a table: start and duration in milliseconds, the share of the whole, and the step."""
        whole, width = self.duration, max((len(step.op) for step in self.steps), default=0)
        lines = [f"{self.title or 'no plan'}: {_milliseconds(whole)} ms", "", "   start ms         ms      %  step"]
        for step in self.steps:
            times = f"{_milliseconds(step.start):>11}{_milliseconds(step.duration):>11}{_share(step.duration, whole):>7}"
            number = "" if step.number is None else str(step.number)
            lines.append(f"{times}  {number:>4} {step.side:<4} {step.op:<{width}}  {printable(step.text)}")
        return "\n".join(lines) + "\n"

    def to_html(self) -> str:
        """Return the profile as a page of HTML with a waterfall of the steps. It loads nothing from elsewhere."""
        from .integrations.html import page

        return page(self, f"Profile: {self.title or 'no plan'}")

    def __str__(self) -> str:
        return self.explain()

    def __repr__(self) -> str:
        return f"<Profile {self.title!r}: {len(self.steps)} entries, {_milliseconds(self.duration)} ms>"


def _milliseconds(nanoseconds: int | None) -> str:
    return "" if nanoseconds is None else f"{nanoseconds / 1e6:.3f}"


def _share(nanoseconds: int | None, whole: int) -> str:
    return "" if nanoseconds is None or not whole else f"{100 * nanoseconds / whole:.1f}"


@attrs.frozen(kw_only=True)
class Trace:
    """An operation that has ended, with the time of every step: what the functions of `add_tracer` get."""

    operation: Literal["run", "create", "start", "exec"]
    """The operation. A `Sandbox` is a ``create``, and what runs in it an ``exec``."""
    container_id: str
    """The id of the container; empty for a run that failed before it had one."""
    began: int
    """When the operation began: nanoseconds since the epoch."""
    profile: Profile
    """Its steps. Those of ``start`` are the steps after the creation."""
    error: BaseException | None
    """The exception with which it has failed; None if it has succeeded."""


class Recorder:
    """Notes when the steps of an operation begin, and what is done between them. Times are nanoseconds of CLOCK_MONOTONIC.

    The block of an operation ends with its trace. What is known before goes to the log at once.
    """

    def __init__(self, operation: Literal["run", "create", "start", "exec"], container_id: str = "") -> None:
        self.container_id = container_id
        self.times: dict[int, int] = {}
        """When the init process began its steps, by number."""
        self._operation: Final = operation
        self._title = ""
        self._steps: dict[int, ProfileStep] = {}
        self._began = time.time_ns()
        self._logged = 0
        self._marks: list[_Mark] = []
        self.mark("prepare", "read the configuration and the image" if operation in ("run", "create") else "read the state")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        profile = self.profile()
        self._log(profile.steps)
        outcome = "done" if error is None else f"failed: {type(error).__name__}"
        self.log("%s in %s ms", outcome, _milliseconds(profile.duration))
        call_tracers(
            Trace(operation=self._operation, container_id=self.container_id, began=self._began, profile=profile, error=error)
        )

    def use(self, plan: Plan) -> None:
        """Note the plan, which is compiled now."""
        self._title = plan.title
        self._steps = {
            number: ProfileStep(number, str(step.side), step.op, step.text, step.phase, None, None)
            for number, step in enumerate(plan.steps, 1)
        }

    def use_recorded(self, title: str, steps: Sequence[Sequence[object]]) -> None:
        """Note the steps behind the creation as they are recorded: number, operation and text."""
        self._title = title
        numbered = ((int(str(number)), str(op), str(text)) for number, op, text in steps)
        self._steps = {number: ProfileStep(number, "init", op, text, "", None, None) for number, op, text in numbered}

    def mark(self, op: str, text: str) -> None:
        """Note that something begins which is not a step."""
        self._marks.append(_Mark(time.monotonic_ns(), op=op, text=text))

    def step(self, number: int) -> None:
        """Note that the calling process begins a step."""
        self._marks.append(_Mark(time.monotonic_ns(), number))

    def wait(self) -> None:
        """Note that the calling process waits for the init process."""
        self._marks.append(_Mark(time.monotonic_ns(), op="wait", text="for the init process", waits=True))

    def log(self, text: str, *values: object, whole: bool = False) -> None:
        """Log a message about the operation, which it begins with unless the text is the whole message."""
        if not whole:
            text, values = f"%s: {text}", (f"{self._operation} {self.container_id}".rstrip(), *values)
        debug(text, *values, operation=self._operation, container_id=self.container_id)

    def flush(self) -> None:
        """Log the steps that are done. The init process must not work meanwhile."""
        if debugs():
            self._log(self.profile().steps, ended=False)

    def _log(self, entries: Sequence[ProfileStep], ended: bool = True) -> None:
        """Log the entries that are not logged yet, without the last one if it has not ended."""
        timed = [entry for entry in entries if entry.duration is not None]
        timed = timed if ended else timed[:-1]
        for entry in timed[self._logged :]:
            place = "" if entry.number is None else f"step {entry.number}/{max(self._steps)} "
            self.log("%s%s %s: %s (%s ms)", place, entry.side, entry.op, printable(entry.text), _milliseconds(entry.duration))
        self._logged = max(self._logged, len(timed))

    def profile(self) -> Profile:
        """Return the profile of the operation, which ends now."""
        end, steps = time.monotonic_ns(), self._steps
        init = [_Mark(at, number) for number, at in self.times.items()]
        marks = _in_effect(sorted([*self._marks, *init], key=lambda mark: mark.at), set(self.times))
        timed = {mark.number for mark in marks}
        began, entries, last = marks[0].at, list[ProfileStep](), min(steps, default=1) - 1

        for mark, until in zip(marks, [*(mark.at for mark in marks[1:]), end], strict=True):
            if mark.number is None:
                entries.append(ProfileStep(None, "host", mark.op, mark.text, "", mark.at - began, until - mark.at))
                continue
            entries.append(attrs.evolve(steps[mark.number], start=mark.at - began, duration=until - mark.at))
            last = mark.number
            while last + 1 in steps and last + 1 not in timed:
                last += 1
                entries.append(steps[last])
        if not timed & steps.keys():
            entries += steps.values()
        return Profile(self._title, tuple(entries))


@attrs.frozen
class _Mark:
    """The beginning of a step, or of what is between steps."""

    at: int
    number: int | None = None
    op: str = ""
    text: str = ""
    waits: bool = False


def _in_effect(marks: list[_Mark], of_init: set[int]) -> list[_Mark]:
    """Return marks in order of time without those of waits during which a step of the init process is already under way."""
    found: list[_Mark] = []
    for mark in marks:
        if not (mark.waits and found and found[-1].number in of_init):
            found.append(mark)
    return found
