"""The log of the steps, and the functions of `add_tracer`."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, Script
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root

LINE = re.compile(r"(?P<operation>\w+) (?P<id>\S+): step (?P<number>\d+)/(?P<total>\d+) (host|init) \w+: .+ \(\d+\.\d{3} ms\)")


@pytest.fixture
def traces() -> Iterator[list[oci.Trace]]:
    found: list[oci.Trace] = []
    oci.add_tracer(found.append)
    yield found
    oci.remove_tracer(found.append)


def steps(caplog: pytest.LogCaptureFixture, operation: str, container_id: str) -> list[int]:
    """Return the numbers of the steps that are in the log of an operation, in order."""
    found = [match for record in caplog.records if (match := LINE.fullmatch(record.getMessage()))]
    return [int(match["number"]) for match in found if (match["operation"], match["id"]) == (operation, container_id)]


def test_the_log_has_each_step_once(bundle: oci.Bundle, state_root: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    bundle = bundle.with_args(["true"])
    with caplog.at_level(logging.DEBUG, "ociruntime"):
        oci.run(bundle, state_root=state_root, container_id=prefix)
    total = len(bundle.plan(container_id=prefix, gate=False, die_with_parent=None).steps) + 1  # the one that notes the times
    found = steps(caplog, "run", prefix)
    assert found == list(range(1, total + 1))
    assert caplog.messages[-1].startswith(f"run {prefix}: done in ")
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert {(vars(record)["operation"], vars(record)["container_id"]) for record in caplog.records} == {("run", prefix)}


def test_start_goes_on_where_create_has_stopped(
    bundle: oci.Bundle, state_root: Path, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "ociruntime"):
        container = oci.Container.create(prefix, bundle, state_root=state_root)
        try:
            container.start()
            container.exec(["true"])
        finally:
            container.delete(force=True)
    created, started = steps(caplog, "create", prefix), steps(caplog, "start", prefix)
    assert created == list(range(1, len(created) + 1))
    assert started == list(range(len(created) + 1, started[-1] + 1))
    assert steps(caplog, "exec", prefix)[:3] == [1, 2, 3]


def test_a_failure(bundle: oci.Bundle, state_root: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "ociruntime"), pytest.raises(oci.StepError) as caught:
        oci.run(bundle, ["/missing"], state_root=state_root, container_id=prefix)
    assert steps(caplog, "run", prefix)[-1] == caught.value.step
    assert caplog.messages[-1].startswith(f"run {prefix}: failed: StepError in ")


def test_nothing_is_measured_without_a_reader(
    bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ociruntime.stats.Recorder.__init__", None)  # cannot be called
    assert oci.run(bundle, ["true"], state_root=state_root, container_id=prefix).returncode == 0
    with pytest.raises(TypeError):
        oci.run(bundle, ["true"], state_root=state_root, container_id=prefix, profile=True)


def test_traces(bundle: oci.Bundle, state_root: Path, prefix: str, traces: list[oci.Trace]) -> None:
    with pytest.raises(oci.StepError) as caught:
        oci.run(bundle, ["/missing"], state_root=state_root, container_id=prefix)
    with oci.Sandbox(bundle.rootfs, name=prefix, state_root=state_root) as sandbox:
        sandbox.run(["true"])
    assert [(trace.operation, trace.container_id) for trace in traces] == [("run", prefix), ("create", prefix), ("exec", prefix)]
    assert [trace.error for trace in traces] == [caught.value, None, None]
    assert caught.value.profile is None  # only ``profile=True`` gives it to the caller
    ends = [trace.began + trace.profile.duration for trace in traces]
    assert all(before <= after.began for before, after in zip(ends, traces[1:], strict=False))


def test_a_tracer_that_fails(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def broken(trace: oci.Trace) -> None:
        raise LookupError(f"nowhere to put {trace.container_id}")

    oci.add_tracer(broken)
    oci.add_tracer(broken)
    try:
        with pytest.warns(oci.OCIRuntimeWarning, match=f"LookupError: nowhere to put {prefix}") as warned:
            assert oci.run(bundle, ["true"], state_root=state_root, container_id=prefix).returncode == 0
    finally:
        oci.remove_tracer(broken)
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_a_tracer_is_a_function() -> None:
    with pytest.raises(TypeError, match=r"^tracer: not a function, but str$"):
        oci.add_tracer("print")  # type: ignore[arg-type]


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_the_log(
    value: str, shown: bool, bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCIRUNTIME_DEBUG", value)
    text = "import sys, ociruntime\nociruntime.run(sys.argv[1], ['true'], state_root=sys.argv[2], container_id=sys.argv[3])"
    lines = script(text, bundle.path, state_root, prefix).stderr.splitlines()
    assert bool(lines) == shown
    assert all(re.match(rf"\d{{4}}-\S+ \S+ ociruntime: (run {prefix}|seccomp filter flags): ", line) for line in lines)


def test_the_environment_of_the_command(bundle: oci.Bundle, command: Command, prefix: str, tmp_path: Path) -> None:
    bundle.spec.with_args(["true"]).save(bundle.path / "config.json")
    words = command("--log", tmp_path / "log", "run", "--bundle", bundle.path, prefix)
    environment = {**os.environ, "OCIRUNTIME_DEBUG": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=True)
    assert done.stderr == ""
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) > 100
    assert all(re.search(rf'level=debug msg="((create|start) {prefix}|seccomp filter flags): ', line) for line in lines)


def test_a_program_without_a_configuration_of_logging_prints_nothing(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: Script
) -> None:
    text = """
import logging, sys, ociruntime
logging.getLogger("ociruntime").setLevel(logging.DEBUG)
ociruntime.run(sys.argv[1], ["true"], state_root=sys.argv[2], container_id=sys.argv[3])
"""
    done = script(text, bundle.path, state_root, prefix)
    assert (done.stdout, done.stderr) == ("", "")
