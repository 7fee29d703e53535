"""Nothing waits for ever: filters that deny what the init process needs, launches that stall, processes that are stopped or traced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import Hooks, Seccomp

from ..conftest import SLOWER

pytestmark = pytest.mark.root
MakeBundle = Callable[..., oci.Bundle]
Until = Callable[[Callable[[], object], str], None]
LATE_RAW = ("sh", "-c", "sleep 0.3; exec sh -i")
"""A shell that changes the terminal's mode after its input has ended, which discards the key for the end of file."""
SOON = 20 * SLOWER
"""Seconds that no call here may take, on a busy machine either."""


def filtered(
    make_bundle: MakeBundle, profile: dict[str, Any], *, no_new_privileges: bool, args: tuple[str, ...] = ("true",)
) -> oci.Bundle:
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    assert spec.linux is not None
    process = spec.process.evolve(args=args, no_new_privileges=no_new_privileges)
    return make_bundle(spec.evolve(process=process, linux=spec.linux.evolve(seccomp=Seccomp.load(profile))))


DENY_ALL = [
    {"defaultAction": "SCMP_ACT_ERRNO", **more}
    for more in ({}, {"defaultErrnoRet": 0}, {"defaultErrnoRet": 4}, {"defaultErrnoRet": 38})
]


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize(
    "profile", [*DENY_ALL, {"defaultAction": "SCMP_ACT_TRACE"}], ids=["EPERM", "0", "EINTR", "ENOSYS", "trace"]
)
def test_a_filter_that_denies_everything(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: dict[str, Any], no_new_privileges: bool
) -> None:
    bundle, began = filtered(make_bundle, profile, no_new_privileges=no_new_privileges), time.monotonic()
    with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
        oci.run(bundle, root=state_root, container_id=prefix)
    with oci.Container.create(prefix, bundle, root=state_root) as container:
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
            container.start()
        assert container.status is oci.Status.STOPPED
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_a_filter_that_kills(make_bundle: MakeBundle, state_root: Path, prefix: str, action: str) -> None:
    bundle, began = filtered(make_bundle, {"defaultAction": action}, no_new_privileges=True), time.monotonic()
    assert oci.run(bundle, root=state_root, container_id=prefix).returncode == -31
    assert time.monotonic() - began < SOON


@pytest.mark.parametrize(
    "denied", [["exit_group"], ["exit_group", "exit"], ["exit_group", "exit", "sendmsg", "write", "read", "kill"]]
)
def test_an_init_that_cannot_exit(make_bundle: MakeBundle, state_root: Path, prefix: str, denied: list[str]) -> None:
    """The exec fails, and the init process has to end by itself although the filter denies it."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [*denied, "execve"], "action": "SCMP_ACT_ERRNO"}]}
    bundle, began = filtered(make_bundle, profile, no_new_privileges=True), time.monotonic()
    with pytest.raises(oci.StepError, match="the seccomp filter denies execve") as caught:
        oci.run(bundle, root=state_root, container_id=prefix)
    assert caught.value.op == "exec"
    with oci.Container.create(prefix, bundle, root=state_root) as container:
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
            container.start()
    assert time.monotonic() - began < SOON


def test_an_init_that_is_killed(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The error says by which signal, and in which step, although the init process reports nothing."""
    spec = oci.RuntimeSpec.default()
    text = "kill -9 $(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/')"
    hooks = Hooks.load({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", text]}]})
    with pytest.raises(oci.StepError, match="the init process was killed by SIGKILL") as caught:
        oci.run(make_bundle(spec.evolve(hooks=hooks)), root=state_root, container_id=prefix)
    assert caught.value.op == "sync"


@pytest.mark.parametrize("profile", DENY_ALL, ids=["EPERM", "0", "EINTR", "ENOSYS"])
def test_a_pod_whose_filter_denies_the_wait(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: dict[str, Any]
) -> None:
    bundle = filtered(make_bundle, profile, no_new_privileges=True)
    with oci.Container.run(prefix, bundle, root=state_root, empty_process=True) as container:
        assert container.wait(SOON) is not None


# ---- terminals ----


def write(bundle: oci.Bundle) -> Path:
    (bundle.path / "config.json").write_text(bundle.spec.to_json())
    return bundle.path


def with_terminal(make_bundle: MakeBundle, *args: str) -> oci.Bundle:
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    return make_bundle(spec.evolve(process=spec.process.evolve(args=args, terminal=True)))


def test_the_end_of_input_reaches_a_shell_that_changes_the_terminal(
    make_bundle: MakeBundle, prefix: str, command: Callable[..., list[str]]
) -> None:
    bundle = with_terminal(make_bundle, *LATE_RAW)
    done = subprocess.run(
        command("run", "--bundle", bundle.path, prefix), stdin=subprocess.DEVNULL, capture_output=True, timeout=SOON, check=False
    )
    assert done.returncode == 0, done


@pytest.mark.slow
def test_fifty_shells_without_input(make_bundle: MakeBundle, prefix: str, command: Callable[..., list[str]]) -> None:
    bundle = with_terminal(make_bundle, "sh")
    for number in range(50):
        words = command("run", "--bundle", bundle.path, f"{prefix}-{number}")
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SOON, check=False)
        assert done.returncode == 0, done


def test_the_end_of_typed_input(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, root=state_root) as container:
        result = container.exec(LATE_RAW, terminal=True, capture_output=True, input=b"", timeout=SOON)
        assert (result.returncode, result.timed_out) == (0, False)

    async def twin() -> oci.Result[bytes]:
        async with oci.aio.Container.run(prefix, bundle, root=state_root) as container:
            return await container.exec(LATE_RAW, terminal=True, capture_output=True, input=b"", timeout=SOON)

    import ociruntime.aio  # noqa: F401

    result = asyncio.run(twin())
    assert (result.returncode, result.timed_out) == (0, False)


# ---- signals ----

STUBBORN = ("sh", "-c", "trap '' INT TERM; echo ready; while :; do sleep 0.1; done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["run", "terminal", "supervise", "exec"])
def test_the_second_signal_ends_the_command(
    make_bundle: MakeBundle, state_root: Path, prefix: str, command: Callable[..., list[str]], until: Until, number: int, how: str
) -> None:
    bundle = with_terminal(make_bundle, *STUBBORN) if how == "terminal" else make_bundle().with_args(STUBBORN)
    words = ["run", "--bundle", write(bundle), *(["--supervise"] if how == "supervise" else []), prefix]
    if how == "exec":
        oci.Container.run(prefix, make_bundle(), root=state_root)
        words = ["exec", prefix, *STUBBORN]
    reader, writer = os.pipe()  # an input that does not end
    process = subprocess.Popen(command(*words), stdin=reader, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(SOON) == 128 + number
        process.stdout.close()
        if how == "exec":
            container = oci.Container.load(prefix, root=state_root)
            until(lambda: container.processes() == (container.pid,), "the end of the exec process")
            container.delete(force=True)
        assert oci.Container.list(root=state_root) == []
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_launch(
    make_bundle: MakeBundle, state_root: Path, tmp_path: Path, prefix: str, command: Callable[..., list[str]], number: int
) -> None:
    """A hook of the container that never ends keeps the init process from going on."""
    mark = tmp_path / "mark"
    hooks = Hooks.load({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {mark}; exec sleep 1000"]}]})
    bundle = make_bundle(oci.RuntimeSpec.default().evolve(hooks=hooks))
    process = subprocess.Popen(command("run", "--bundle", bundle.path, prefix))
    try:
        deadline = time.monotonic() + SOON
        while not mark.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(SOON) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert oci.Container.list(root=state_root) == []
