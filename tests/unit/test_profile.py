"""Profiles: how times become entries, and how these are shown."""

from __future__ import annotations

import json
import pickle
from html.parser import HTMLParser
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.plan.model import Side, Step
from ociruntime.stats import Recorder

from ..support.plans import HYBRID, Change, compiled, config

TITLE, TEXT = "create <b> & 'c'", "mount <script>alert(1)</script> \udcff\n\x1b[31m"


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A call at time 100 that waits from 130 on. The init process notes 2 of its 4 steps, one of them before the wait begins."""
    times = iter((100, 110, 120, 130, 170, 200))
    monkeypatch.setattr("time.monotonic_ns", lambda: next(times))
    steps = [(Side.HOST, "clone3"), *((Side.INIT, f"op{number}") for number in range(2, 6))]
    found = Recorder("run")
    found.use(oci.Plan(TITLE, tuple(Step(side, op, (), TEXT, "Phase") for side, op in steps), (), 0))
    found.mark("compile", "the plan")
    found.step(1)
    found.wait()
    found.mark("program", "runs")
    found.times = {2: 128, 3: 150}
    return found


def test_entries(recorder: Recorder) -> None:
    profile = recorder.profile()
    entries = [(step.number, step.side, step.op, step.start, step.duration) for step in profile.steps]
    assert entries == [
        (None, "host", "prepare", 0, 10),
        (None, "host", "compile", 10, 10),
        (1, "host", "clone3", 20, 8),
        (2, "init", "op2", 28, 22),  # goes on while the caller waits
        (3, "init", "op3", 50, 20),
        (4, "init", "op4", None, None),
        (5, "init", "op5", None, None),
        (None, "host", "program", 70, 30),
    ]
    assert profile.duration == 100


def test_a_wait_for_a_step_of_the_caller_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((0, 10, 30))
    monkeypatch.setattr("time.monotonic_ns", lambda: next(times))
    recorder = Recorder("run")
    recorder.wait()
    assert [(step.op, step.duration) for step in recorder.profile().steps] == [("prepare", 10), ("wait", 20)]


def test_forms(recorder: Recorder) -> None:
    profile = recorder.profile()
    document = json.loads(profile.to_json())
    assert (document["title"], document["duration"], document["steps"][2]["op"]) == (TITLE, 100, "clone3")
    assert len(str(profile).splitlines()) == 3 + len(profile.steps)  # no text breaks its line
    assert "\x1b" not in str(profile)
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert {oci.Profile, oci.ProfileStep} <= {type(profile), type(profile.steps[0])}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.data += data


def test_html_is_escaped_and_loads_nothing(recorder: Recorder) -> None:
    profile = recorder.profile()
    page = _Page()
    page.feed(profile.to_html())
    assert set(page.tags) <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "div",
    }
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick"}
    assert TITLE in page.data
    assert "mount <script>alert(1)</script>" in page.data
    assert page.tags.count("tr") == 1 + len(profile.steps)
    assert profile._repr_html_() in profile.to_html()
    assert "url(" not in profile.to_html()
    profile.to_html().encode()  # text that is not UTF-8 is shown, and can be written


def _deny_time(document: dict[str, Any]) -> None:
    document["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clock_gettime"], "action": "SCMP_ACT_ERRNO"}],
    }


def _new_time(document: dict[str, Any]) -> None:
    document["linux"]["namespaces"].append({"type": "time"})


@pytest.mark.parametrize(("change", "last"), [(_deny_time, "seccomp"), (_new_time, "unshare"), (None, "exec")])
def test_the_end_of_the_times(change: Change | None, last: str) -> None:
    """Behind a filter that may forbid to ask for the time, or in another time namespace, the steps have none."""
    plan = compiled(config(change), HYBRID).profiled()
    assert plan.steps[plan.timed_steps - 2].op == last


def test_the_step_of_the_profile() -> None:
    plain = compiled(config())
    ops = [step.op for step in plain.profiled().steps]
    assert plain.timed_steps == 0
    assert ops[ops.index("clone3") + 1] == "profile"
    assert [op for op in ops if op != "profile"] == [step.op for step in plain.steps]
