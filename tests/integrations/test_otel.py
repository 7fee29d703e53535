"""Spans of OpenTelemetry, as an exporter gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.fixture_types import MakeSandbox

pytest.importorskip("opentelemetry.sdk", reason="no opentelemetry-sdk; run the session integrations")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from ociruntime.integrations import otel

pytestmark = pytest.mark.root


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    otel.uninstrument()
    provider.shutdown()


def parents(exporter: InMemorySpanExporter) -> list[tuple[str, str]]:
    """Return the name of each span and that of its parent, in order of time."""
    spans = sorted(exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, -(span.end_time or 0)))
    names = {span.context.span_id: span.name for span in spans}
    return [(span.name, names.get(span.parent.span_id, "?") if span.parent else "") for span in spans]


def test_a_run(provider: TracerProvider, exporter: InMemorySpanExporter, bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    otel.instrument(provider)
    with provider.get_tracer("test").start_as_current_span("mine"):
        oci.run(bundle, ["true"], state_root=state_root, container_id=prefix)
    parts = ["prepare", "compile", "record", "launch", "program", "collect", "clean-up"]
    found = parents(exporter)
    assert found[:2] == [("mine", ""), ("ociruntime.run", "mine")]
    assert found[2:] == [(part, "ociruntime.run") for part in parts]
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["ociruntime.run"].attributes == {
        "container.id": prefix,
        "ociruntime.plan": f"create {prefix} from {bundle.path}",
    }
    whole, mine = spans["ociruntime.run"], spans["mine"]
    assert mine.start_time <= whole.start_time < whole.end_time <= mine.end_time
    assert whole.start_time == spans["prepare"].start_time
    assert whole.end_time == spans["clean-up"].end_time
    assert all(spans[a].end_time == spans[b].start_time for a, b in pairwise(parts))


def test_each_step(provider: TracerProvider, exporter: InMemorySpanExporter, bundle: oci.Bundle, state_root: Path) -> None:
    otel.instrument(provider, steps=True)
    traces: list[oci.Trace] = []
    oci.add_tracer(traces.append)
    try:
        oci.run(bundle, ["true"], state_root=state_root)
    finally:
        oci.remove_tracer(traces.append)
    spans = [span for span in exporter.get_finished_spans() if "ociruntime.step" in (span.attributes or {})]
    timed = [step for step in traces[0].profile.steps if step.number is not None and step.duration is not None]
    assert [(span.name, (span.attributes or {})["ociruntime.step"]) for span in spans] == [(s.op, s.number) for s in timed]
    assert {parent for name, parent in parents(exporter) if name == "clone3"} == {"launch"}


def test_a_failure(
    provider: TracerProvider, exporter: InMemorySpanExporter, bundle: oci.Bundle, state_root: Path, prefix: str
) -> None:
    otel.instrument(provider)
    with pytest.raises(oci.StepError) as caught:
        oci.run(bundle, ["/missing"], state_root=state_root, container_id=prefix)
    (span,) = (span for span in exporter.get_finished_spans() if span.name == "ociruntime.run")
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(caught.value)
    assert (span.attributes or {})["ociruntime.step.op"] == "lookup"
    assert [event.name for event in span.events] == ["exception"]


def test_a_sandbox(provider: TracerProvider, exporter: InMemorySpanExporter, make_sandbox: MakeSandbox) -> None:
    otel.instrument(provider)
    otel.instrument(provider)  # replaces the first
    make_sandbox().run(["true"])
    roots = [name for name, parent in parents(exporter) if not parent]
    assert roots == ["ociruntime.create", "ociruntime.exec"]
    otel.uninstrument()
    exporter.clear()
    make_sandbox().run(["true"])
    assert exporter.get_finished_spans() == ()


def test_in_an_event_loop(
    provider: TracerProvider, exporter: InMemorySpanExporter, bundle: oci.Bundle, state_root: Path, prefix: str
) -> None:
    """The spans of coroutines belong to the span of their task."""
    otel.instrument(provider)

    async def main() -> None:
        with provider.get_tracer("test").start_as_current_span("mine"):
            await aio.run(bundle, ["true"], state_root=state_root)
            async with aio.Sandbox(bundle.rootfs, name=prefix, state_root=state_root) as sandbox:
                await sandbox.run(["true"])

    asyncio.run(main())
    found = [(name, parent) for name, parent in parents(exporter) if name.startswith("ociruntime.")]
    assert found == [("ociruntime.run", "mine"), ("ociruntime.create", "mine"), ("ociruntime.exec", "mine")]
