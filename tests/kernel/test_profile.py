"""``profile=True`` and ``plan --profile``: each step of the plan once and in order, and times that add up. No durations are compared."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.fixture_types import Command, MakeBundle
from ..support.mounts import Runner
from ..support.users import User
from ..support.waiting import SLOWER, TIME_LIMIT

pytestmark = pytest.mark.root


def numbered(profile: oci.Profile) -> list[oci.ProfileStep]:
    """Return the steps of the plan, after a check that the entries follow each other without a gap from the beginning on."""
    timed = [step for step in profile.steps if step.start is not None and step.duration is not None]
    at = 0
    for step in timed:
        assert step.start == at
        assert step.duration is not None
        assert step.duration >= 0
        at += step.duration
    assert profile.duration == at
    steps = [step for step in profile.steps if step.number is not None]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    return steps


def whole(profile: oci.Profile) -> list[str]:
    """Return the operations of a profile of a run that has executed all steps."""
    steps = numbered(profile)
    assert all(step.duration is not None for step in steps)
    between = {step.op for step in profile.steps if step.number is None}
    assert between >= {"prepare", "compile", "record", "encode", "program", "collect", "clean-up"}
    return [step.op for step in steps]


@pytest.fixture
def options(state_root: Path, prefix: str) -> dict[str, Any]:
    return {"state_root": state_root, "container_id": prefix, "profile": True}


def test_a_run(either: Runner, options: dict[str, Any]) -> None:
    bundle = either.bundle().with_args(["true"])
    profile = oci.run(bundle, **options).profile
    assert profile is not None
    ops = whole(profile)
    plan = bundle.plan(container_id=options["container_id"], gate=False, die_with_parent=None)
    assert [op for op in ops if op != "profile"] == [step.op for step in plan.steps]
    assert ops[ops.index("clone3") + 1] == "profile"


def test_a_user(user: User) -> None:
    code = """if True:
    import sys, ociruntime as oci
    profile = oci.run(sys.argv[1], ["true"], state_root=sys.argv[2], profile=True).profile
    print([step.op for step in profile.steps if step.number is not None and step.duration is not None])
    print(len(profile.steps), sum(step.duration for step in profile.steps) == profile.duration)
    """
    ops, total = user.script(code, user.bundle, user.state).splitlines()
    assert "'profile'" in ops
    assert ops.endswith("'exec']")
    assert total.endswith("True")


def test_an_image(busybox_sif: Path, options: dict[str, Any]) -> None:
    profile = oci.run(busybox_sif, ["true"], **options).profile
    assert profile is not None
    assert whole(profile)[-1] == "exec"


def test_in_an_event_loop(bundle: oci.Bundle, options: dict[str, Any]) -> None:
    profile = asyncio.run(aio.run(bundle, ["true"], **options)).profile
    assert profile is not None
    assert whole(profile)[-1] == "exec"


def test_hooks_are_steps(make_bundle: MakeBundle, options: dict[str, Any]) -> None:
    hooks = {kind: [{"path": "/bin/true"}] for kind in ("createRuntime", "createContainer", "startContainer")}
    document = oci.RuntimeSpec.default().to_dict() | {"hooks": hooks}
    profile = oci.run(make_bundle(oci.RuntimeSpec.load(document)), ["true"], **options).profile
    assert profile is not None
    assert whole(profile).count("hook") == 3


def test_no_profile(bundle: oci.Bundle, options: dict[str, Any]) -> None:
    assert oci.run(bundle, ["true"], **{**options, "profile": False}).profile is None


def test_a_program_that_fails(bundle: oci.Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(oci.ProcessError) as caught:
        oci.run(bundle, ["false"], check=True, **options)
    assert caught.value.result.profile is not None
    assert whole(caught.value.result.profile)[-1] == "exec"


def test_a_program_that_takes_too_long(bundle: oci.Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(oci.ProcessTimeout) as caught:
        oci.run(bundle, ["sleep", "1000"], timeout=1 * SLOWER, **options)
    assert caught.value.result is not None
    assert caught.value.result.profile is not None
    numbered(caught.value.result.profile)


def test_a_step_that_fails(bundle: oci.Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(oci.StepError) as caught:
        oci.run(bundle, ["/missing"], **options)
    assert caught.value.profile is not None
    steps = numbered(caught.value.profile)
    assert len(steps) == caught.value.total
    reached = [step.number for step in steps if step.duration is not None]
    assert reached == list(range(1, caught.value.step + 1))


def test_an_error_before_the_plan(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        oci.run(tmp_path / "missing", ["true"], **options)
    profile = caught.value.__dict__["profile"]
    assert [step.op for step in profile.steps] == ["prepare"]


def test_a_filter_that_kills_for_asking_the_time(make_bundle: MakeBundle, options: dict[str, Any]) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    document["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["clock_gettime"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    result = oci.run(make_bundle(oci.RuntimeSpec.load(document)), ["true"], **options)
    assert (result.returncode, result.profile is not None) == (0, True)
    assert result.profile is not None
    steps = numbered(result.profile)
    at = [step.op for step in steps].index("seccomp") + 1
    assert [step.duration is None for step in steps] == [False] * at + [True] * (len(steps) - at)


def test_another_time_namespace(make_bundle: MakeBundle, options: dict[str, Any]) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    document["linux"]["namespaces"].append({"type": "time"})
    document["linux"]["timeOffsets"] = {"monotonic": {"secs": 1000000}}
    profile = oci.run(make_bundle(oci.RuntimeSpec.load(document)), ["true"], **options).profile
    assert profile is not None
    assert profile.duration < 1000000 * 10**9
    steps = numbered(profile)
    assert steps[-1].duration is None


# ---- the command ----


def test_the_command(bundle: oci.Bundle, command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    spec = bundle.spec.with_args(["sh", "-c", "cat; exit 3"])
    spec.save(bundle.path / "config.json")
    words = command("plan", "--bundle", bundle.path, "--profile", "--json", "--html", page)
    done = subprocess.run(words, input="from the command", capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (done.returncode, done.stderr) == (3, "from the command")
    document = json.loads(done.stdout)
    assert document["duration"] == sum(step["duration"] or 0 for step in document["steps"])
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_command_when_a_step_fails(bundle: oci.Bundle, command: Command, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    bundle.spec.with_args(["/missing"]).save(bundle.path / "config.json")
    words = command("plan", "--bundle", bundle.path, "--profile", "--html", page)
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 127
    assert "cannot run '/missing'" in done.stderr
    assert "lookup" in done.stdout
    assert page.exists()


def test_html_needs_a_profile(bundle: oci.Bundle, command: Command, tmp_path: Path) -> None:
    words = command("plan", "--bundle", bundle.path, "--html", tmp_path / "page.html")
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert (done.returncode, "--html needs --profile" in done.stderr) == (1, True)
    assert not (tmp_path / "page.html").exists()
