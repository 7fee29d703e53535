"""OpenTelemetry spans of containers (extra ``otel``).

::

    from ociruntime.integrations import otel

    otel.instrument()

Each operation becomes a span below the current one, with the spans of its parts below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from .. import __version__
from ..errors import StepError, add_tracer, remove_tracer

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer, TracerProvider

    from ..stats import ProfileStep, Trace

__all__ = ["instrument", "uninstrument"]

_LAUNCH: Final = frozenset({"encode", "wait", "report"})
"""What is between the steps of a launch."""
_active: _Spans | None = None


def instrument(tracer_provider: TracerProvider | None = None, *, steps: bool = False) -> None:
    """Make spans of each `run`, `create`, `start` and `exec` of this process, until `uninstrument`.

    The span ``ociruntime.run`` (or another operation) is a child of the current span. It has the attributes ``container.id`` and
    ``ociruntime.plan``, and the exception of an operation that failed. Below it there are ``prepare``, ``compile``, ``record``,
    ``launch``, ``program``, ``collect`` and ``clean-up``. A second call replaces the first one.

    Args:
        tracer_provider: makes the spans. Default: the global one.
        steps: whether ``launch`` has a span for each step of the plan: about a hundred for a container.
    """
    global _active
    uninstrument()
    _active = _Spans(trace.get_tracer("ociruntime", __version__, tracer_provider), steps)
    add_tracer(_active)


def uninstrument() -> None:
    """Make no more spans. No effect without `instrument`."""
    global _active
    if _active is not None:
        remove_tracer(_active)
        _active = None


class _Spans:
    """Makes the spans of a trace, when the operation has ended."""

    def __init__(self, tracer: Tracer, steps: bool) -> None:
        self._tracer, self._steps = tracer, steps

    def __call__(self, found: Trace) -> None:
        attributes = {"container.id": found.container_id, "ociruntime.plan": found.profile.title}
        span = self._tracer.start_span(
            f"ociruntime.{found.operation}", kind=SpanKind.INTERNAL, attributes=attributes, start_time=found.began
        )
        if (error := found.error) is not None:
            if isinstance(error, StepError):
                span.set_attribute("ociruntime.step", error.step)
                span.set_attribute("ociruntime.step.op", error.op)
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, str(error)))
        if span.is_recording():
            context = trace.set_span_in_context(span)
            for name, entries in _parts(found):
                began, ended = found.began + (entries[0].start or 0), found.began + _end(entries[-1])
                part = self._tracer.start_span(name, context, start_time=began)
                if self._steps and name == "launch":
                    self._add_steps(trace.set_span_in_context(part), found.began, entries)
                part.end(ended)
        span.end(found.began + found.profile.duration)

    def _add_steps(self, context: Context, began: int, entries: list[ProfileStep]) -> None:
        for entry in entries:
            attributes: dict[str, str | int] = {"ociruntime.step.side": entry.side, "ociruntime.step.text": entry.text}
            if entry.number is not None:
                attributes["ociruntime.step"] = entry.number
            step = self._tracer.start_span(entry.op, context, attributes=attributes, start_time=began + (entry.start or 0))
            step.end(began + _end(entry))


def _parts(found: Trace) -> Iterator[tuple[str, list[ProfileStep]]]:
    """Return the parts of an operation: all that belongs to the launch is one."""
    timed = [entry for entry in found.profile.steps if entry.duration is not None]
    for name, entries in groupby(timed, lambda entry: "launch" if entry.number or entry.op in _LAUNCH else entry.op):
        yield name, list(entries)


def _end(entry: ProfileStep) -> int:
    return (entry.start or 0) + (entry.duration or 0)
