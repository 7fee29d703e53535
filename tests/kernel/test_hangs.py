"""Nothing waits for ever: filters that deny what the init process needs, launches that stall, processes that are stopped or traced."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
import ociruntime.aio
from ociruntime.engine.processes import reap_abandoned
from ociruntime.spec import Hooks, ProcessSpec, Seccomp

from ..support.cgroups import has
from ..support.fixture_types import Command, MakeBundle
from ..support.waiting import SLOWER, TIME_LIMIT, timed_out, wait_until, within

pytestmark = pytest.mark.root
LATE_RAW = ("sh", "-c", "sleep 0.3; exec sh -i")
"""A shell that changes the terminal's mode after its input has ended, which discards the key for the end of file."""


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
    bundle = filtered(make_bundle, profile, no_new_privileges=no_new_privileges)
    with within(20):
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
            oci.run(bundle, state_root=state_root, container_id=prefix)
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
                container.start()
            assert container.status is oci.Status.STOPPED


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"])
def test_a_filter_that_kills(make_bundle: MakeBundle, state_root: Path, prefix: str, action: str) -> None:
    bundle = filtered(make_bundle, {"defaultAction": action}, no_new_privileges=True)
    with within(20):
        assert oci.run(bundle, state_root=state_root, container_id=prefix).returncode == -31


@pytest.mark.parametrize(
    "denied", [["exit_group"], ["exit_group", "exit"], ["exit_group", "exit", "sendmsg", "write", "read", "kill"]]
)
def test_an_init_that_cannot_exit(make_bundle: MakeBundle, state_root: Path, prefix: str, denied: list[str]) -> None:
    """The exec fails, and the init process has to end by itself although the filter denies it."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [*denied, "execve"], "action": "SCMP_ACT_ERRNO"}]}
    bundle = filtered(make_bundle, profile, no_new_privileges=True)
    with within(20):
        with pytest.raises(oci.StepError, match="the seccomp filter denies execve") as caught:
            oci.run(bundle, state_root=state_root, container_id=prefix)
        assert caught.value.op == "exec"
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            with pytest.raises(oci.StepError, match="the seccomp filter denies execve"):
                container.start()


def test_an_init_that_is_killed(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The error says by which signal, and in which step, although the init process reports nothing."""
    spec = oci.RuntimeSpec.default()
    text = "kill -9 $(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/')"
    hooks = Hooks.load({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", text]}]})
    with pytest.raises(oci.StepError, match="the init process was killed by SIGKILL") as caught:
        oci.run(make_bundle(spec.evolve(hooks=hooks)), state_root=state_root, container_id=prefix)
    assert caught.value.op == "sync"


@pytest.mark.parametrize("profile", DENY_ALL, ids=["EPERM", "0", "EINTR", "ENOSYS"])
def test_a_pod_whose_filter_denies_the_wait(
    make_bundle: MakeBundle, state_root: Path, prefix: str, profile: dict[str, Any]
) -> None:
    bundle = filtered(make_bundle, profile, no_new_privileges=True)
    with oci.Container.run(prefix, bundle, state_root=state_root, empty_process=True) as container:
        assert container.wait(TIME_LIMIT) is not None


# ---- terminals ----


def write(bundle: oci.Bundle) -> Path:
    (bundle.path / "config.json").write_text(bundle.spec.to_json())
    return bundle.path


def with_terminal(make_bundle: MakeBundle, *args: str) -> oci.Bundle:
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    return make_bundle(spec.evolve(process=spec.process.evolve(args=args, terminal=True)))


def test_the_end_of_input_reaches_a_shell_that_changes_the_terminal(make_bundle: MakeBundle, prefix: str, command: Command) -> None:
    bundle = with_terminal(make_bundle, *LATE_RAW)
    done = subprocess.run(
        command("run", "--bundle", bundle.path, prefix),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIME_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done


@pytest.mark.slow
def test_fifty_shells_without_input(make_bundle: MakeBundle, prefix: str, command: Command) -> None:
    bundle = with_terminal(make_bundle, "sh")
    for number in range(50):
        words = command("run", "--bundle", bundle.path, f"{prefix}-{number}")
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == 0, done


def test_the_end_of_typed_input(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        result = container.exec(LATE_RAW, terminal=True, capture_output=True, input=b"", timeout=TIME_LIMIT)
        assert result.returncode == 0

    async def twin() -> oci.Result[bytes]:
        async with oci.aio.Container.run(prefix, bundle, state_root=state_root) as container:
            return await container.exec(LATE_RAW, terminal=True, capture_output=True, input=b"", timeout=TIME_LIMIT)

    result = asyncio.run(twin())
    assert result.returncode == 0


# ---- signals ----

STUBBORN = ("sh", "-c", "trap '' INT TERM; echo ready; while :; do sleep 0.1; done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["run", "terminal", "supervise", "exec"])
def test_the_second_signal_ends_the_command(
    make_bundle: MakeBundle, state_root: Path, prefix: str, command: Command, number: int, how: str
) -> None:
    bundle = with_terminal(make_bundle, *STUBBORN) if how == "terminal" else make_bundle().with_args(STUBBORN)
    words = ["run", "--bundle", write(bundle), *(["--supervise"] if how == "supervise" else []), prefix]
    if how == "exec":
        oci.Container.run(prefix, make_bundle(), state_root=state_root)
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
        assert process.wait(TIME_LIMIT) == 128 + number
        process.stdout.close()
        if how == "exec":
            container = oci.Container.load(prefix, state_root=state_root)
            wait_until(lambda: container.processes() == (container.pid,), "the end of the exec process")
            container.delete(force=True)
        assert oci.Container.list(state_root=state_root) == []
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_a_launch(
    make_bundle: MakeBundle, state_root: Path, tmp_path: Path, prefix: str, command: Command, number: int
) -> None:
    """A hook of the container that never ends keeps the init process from going on."""
    mark = tmp_path / "mark"
    hooks = Hooks.load({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {mark}; exec sleep 1000"]}]})
    bundle = make_bundle(oci.RuntimeSpec.default().evolve(hooks=hooks))
    process = subprocess.Popen(command("run", "--bundle", bundle.path, prefix))
    try:
        wait_until(mark.exists, "the start of the hook")
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(number)
        assert process.wait(TIME_LIMIT) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert oci.Container.list(state_root=state_root) == []


# ---- time limits ----

SLOW_HOOKS = ["createRuntime", "createContainer"]


def slow(make_bundle: MakeBundle, kind: str) -> oci.Bundle:
    """A bundle whose hook never ends: in the runtime namespace, or run by the init process in the container's."""
    words = {"path": "/bin/sleep", "args": ["sleep", "1000"]}
    return make_bundle(oci.RuntimeSpec.default().evolve(hooks=Hooks.load({kind: [words]})))


@pytest.mark.parametrize("kind", SLOW_HOOKS)
def test_the_timeout_of_run_covers_the_launch(make_bundle: MakeBundle, state_root: Path, prefix: str, kind: str) -> None:
    bundle = slow(make_bundle, kind)
    with within(20):
        options: dict[str, Any] = {"timeout": 0.3, "state_root": state_root, "container_id": prefix}
        result = timed_out(lambda: oci.run(bundle, ["true"], capture_output=True, text=True, **options))
        assert (result.args, result.returncode, result.stdout) == (("true",), -9, "")
        assert timed_out(lambda: asyncio.run(oci.aio.run(bundle, ["true"], **options))).returncode == -9
        with pytest.raises(oci.ProcessTimeout, match=r"'true' took longer than 0.3 s and was killed"):
            oci.run(bundle, ["true"], check=True, **options)
        with pytest.raises(oci.ProcessTimeout, match=r"'/.singularity.d/actions/run' took longer than 0.3 s and was killed"):
            oci.run(bundle, **options)  # the program of the configuration


def test_the_timeout_of_exec_covers_the_launch(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The init process of an exec waits for a seccomp agent that takes its time."""
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_NOTIFY"}]}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(state_root.parent / "agent"))
        agent.listen()
        profile["listenerPath"] = str(state_root.parent / "agent")
        bundle = filtered(make_bundle, profile, no_new_privileges=True)
        with oci.Container.run(prefix, bundle, state_root=state_root, empty_process=True) as container:
            with within(20):
                result = timed_out(lambda: container.exec(["true"], timeout=0.3))
                assert (result.args, result.returncode) == (("true",), -9)


def test_a_step_that_does_not_end(make_bundle: MakeBundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time limit of the call, an init process that does not go on is given up, in create and in start."""
    monkeypatch.setattr("ociruntime.engine.launch.STALL", 1.0 * SLOWER)
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_NOTIFY"}]}
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(state_root.parent / "agent"))
        agent.listen()
        profile["listenerPath"] = str(state_root.parent / "agent")
        bundle = filtered(make_bundle, profile, no_new_privileges=True)
        with pytest.raises(oci.LaunchTimeout, match=r"^true: the init process made no progress.*ETIMEDOUT"):
            oci.Container.run(prefix, bundle, state_root=state_root)
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            with pytest.raises(TimeoutError, match=r"^true: the init process made no progress.*ETIMEDOUT"):
                container.start()


# ---- kill and delete ----


@pytest.mark.parametrize("created", [True, False])
def test_deleting_what_is_stopped_or_traced(bundle: oci.Bundle, state_root: Path, prefix: str, created: bool) -> None:
    make = oci.Container.create if created else oci.Container.run
    for trace in (False, True):
        container = make(prefix, bundle, state_root=state_root)
        tracer = subprocess.Popen([sys.executable, "-c", TRACER, str(container.pid)], stdout=subprocess.PIPE) if trace else None
        try:
            if tracer is not None:
                assert tracer.stdout is not None
                assert tracer.stdout.readline() == b"attached\n"
                tracer.stdout.close()
            else:
                os.kill(container.pid, signal.SIGSTOP)
            with within(20):
                container.delete(force=True)
        finally:
            if tracer is not None:
                tracer.kill()
                tracer.wait()
                reap_abandoned()  # as the next launch does: before its tracer ended nothing could
        assert oci.Container.list(state_root=state_root) == []


TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0, ctypes.get_errno()  # PTRACE_SEIZE
assert libc.ptrace(0x4207, int(sys.argv[1]), 0, 0) == 0  # PTRACE_INTERRUPT
print("attached", flush=True)
time.sleep(1000)  # a tracer that waits for nothing
"""

HELD = """
import sys, time, ociruntime as oci
oci.Container.create(sys.argv[1], sys.argv[2], state_root=sys.argv[3])
"""


@pytest.mark.parametrize("stop", [False, True])
def test_deleting_by_force_during_a_launch(
    make_bundle: MakeBundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch, stop: bool
) -> None:
    """The operation that has the lock ends when its container is killed; one that does not is named."""
    monkeypatch.setattr("ociruntime.lifecycle.delete._LOCK_TIMEOUT", 0.2 * SLOWER)
    if stop:
        monkeypatch.setattr("ociruntime.lifecycle.delete.KILL_TIMEOUT", 2 * SLOWER)
    bundle = slow(make_bundle, "createContainer")
    creator = subprocess.Popen([sys.executable, "-P", "-c", HELD, prefix, bundle.path, state_root])
    try:
        wait_until(lambda: (state_root / prefix / "recovery").exists(), "the container")
        container = oci.Container.load(prefix, state_root=state_root)
        wait_until(container.processes, "the init process")
        if stop:
            os.kill(creator.pid, signal.SIGSTOP)
            with pytest.raises(TimeoutError, match=rf"is locked by process {creator.pid}, which is stopped: end that process"):
                container.delete(force=True)
            os.kill(creator.pid, signal.SIGKILL)
        container.delete(force=True)
        assert creator.wait(TIME_LIMIT) != 0
    finally:
        creator.kill()
        creator.wait()
    assert oci.Container.list(state_root=state_root) == []


# ---- memory ----


@pytest.mark.skipif(not has("memory"), reason="no memory controller")
@pytest.mark.parametrize("limit", [1000, 4096, 50_000])
def test_a_memory_limit_that_is_too_small(busybox_rootfs: Path, state_root: Path, prefix: str, limit: int) -> None:
    with within(20):
        with pytest.raises(
            oci.StepError, match=f"^memory limit of {limit} bytes is too small to start the container; it needs more"
        ) as caught:
            oci.run(busybox_rootfs, ["true"], memory=limit, state_root=state_root, container_id=prefix)
        needed = int(str(caught.value).partition("more than ")[2].split()[0])
        assert limit < needed < 64 << 20
        assert oci.run(busybox_rootfs, ["true"], memory=8 * needed, state_root=state_root, container_id=prefix).returncode == 0


TOO_SMALL = r"memory limit of \d+ bytes is too small to "
SMALL = [300_000, 400_000, 500_000, 987_654]
"""Memory limits that hold the kernel's own data for a process, and not the pages of its program."""


def message(call: Callable[[], object]) -> str:
    """Return the message of the StepError that a call raises, or an empty string."""
    try:
        call()
    except oci.StepError as error:
        return str(error)
    return ""


@pytest.mark.skipif(not has("memory"), reason="no memory controller")
@pytest.mark.parametrize("twin", [False, True])
def test_a_program_that_cannot_begin(busybox_sif: Path, state_root: Path, prefix: str, twin: bool) -> None:
    """Pages of a program that was just mounted are not in memory: the kernel reads and drops them, and does not kill."""

    def run(limit: int) -> None:
        options: Any = {"memory": limit, "timeout": TIME_LIMIT, "state_root": state_root, "container_id": prefix}
        run = oci.aio.run(busybox_sif, ["true"], **options) if twin else None
        result = oci.run(busybox_sif, ["true"], **options) if run is None else asyncio.run(run)
        assert result.returncode == 0 or result.oom_killed

    for limit in SMALL:
        error = message(lambda limit=limit: run(limit))  # type: ignore[misc]
        if error:
            found = re.match(TOO_SMALL + r".*(?:use|more than) (\d+) bytes", error)
            assert found is not None, error
            run(max(int(found[1]), 2 << 20))
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.skipif(not has("memory"), reason="no memory controller")
def test_a_wait_for_a_program_that_cannot_begin(busybox_sif: Path, state_root: Path, prefix: str, command: Command) -> None:
    """Waits say so too, and leave the container as it is; the command `run` removes it."""
    with oci.Bundle.from_sif(busybox_sif, state_root.parent / "mounted") as bundle:
        limits = oci.RuntimeSpec.default().with_args(["true"]).at.linux.resources.memory.evolve(limit=SMALL[1])
        bundle.spec = bundle.spec.evolve(process=limits.process, linux=limits.linux)
        with oci.Container.run(prefix, bundle, state_root=state_root) as container:
            if error := message(lambda: container.wait(TIME_LIMIT)):
                assert re.match(TOO_SMALL + f"run container '{prefix}'", error)
                assert container.status == "running"
        words = command("run", "--bundle", bundle.path, prefix)
        ended = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert ended.returncode in (0, 137) or re.search(TOO_SMALL, ended.stderr), ended.stderr
        assert oci.Container.list(state_root=state_root) == []


@pytest.mark.skipif(not has("memory"), reason="no memory controller")
def test_a_start_without_memory(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The kernel kills the init process before or after the gate."""

    def start(limit: int) -> None:
        spec = oci.RuntimeSpec.default().with_args(["true"]).at.linux.resources.memory.evolve(limit=limit)
        with oci.Container.create(prefix, make_bundle(spec), state_root=state_root) as container:
            container.start()

    errors = [message(lambda limit=limit: start(limit)) for limit in range(60_000, 120_000, 8192)]  # type: ignore[misc]
    assert any(errors)
    wrong = [error for error in errors if error and not re.match(TOO_SMALL + "start the container; it needs more than", error)]
    assert wrong == []


@pytest.mark.skipif(not has("memory"), reason="no memory controller")
def test_an_exec_without_memory(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """As the limit is lowered, the exec process is killed at the end of its launch or before, or the init process is.

    In every second container the kernel prefers the exec process. It kills the other one in most containers all the same.
    """
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1k count=1000 2>/dev/null; echo full; exec sleep 1000"
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sh", "-c", fill]).at.linux.resources.memory.evolve(limit=4 << 20))

    def squeeze(container: oci.Container, process: ProcessSpec) -> None:
        usage = container.stats().memory
        assert usage is not None
        for limit in range(usage.usage + 65536, 1 << 20, -16384):
            container.update(memory=limit)
            if error := message(lambda: container.exec(process=process, timeout=TIME_LIMIT)):
                errors.append(error)
                return

    errors: list[str] = []
    for number in range(300):
        with oci.Container.run(f"{prefix}-{number}", bundle, stdout=subprocess.PIPE, state_root=state_root) as container:
            container.stdout.readline()
            process = bundle.spec.process.evolve(args=("true",), oom_score_adj=1000 if number % 2 else None)
            with suppress(oci.WrongStatus, oci.StepError):  # it was killed, or uses more
                squeeze(container, process)
        if errors:
            break
    assert re.match(TOO_SMALL + "execute a process; it needs more than", errors[0])
