"""What an exec process has started ends with it when it is killed, wherever it has moved, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.cli import main
from ociruntime.engine.cgroup import tasks
from ociruntime.engine.cgroup.tasks import MarkedGroup
from ociruntime.plan.cgroups import Place

from ..support.cgroups import V2, directory, own_cgroups
from ..support.fixture_types import MakeBundle, Script, UserBundle
from ..support.places import REPO
from ..support.users import UID, run_tests_as_user
from ..support.waiting import SLOWER, TIME_LIMIT, run_async, timed_out, timed_out_with_output, wait_until, wait_until_async, within

needs_root = pytest.mark.root
ESCAPES = {
    "setsid": "setsid sleep {0} & sleep {0}",
    "double fork": "(setsid sh -c '(setsid sleep {0} &) & sleep {0}' &); sleep {0}",
    "ends first": "setsid sleep {0} & exit 0",
    "another mark": "(ulimit -S -m 12345; setsid sleep {0}) & sleep {0}",
    "no environment": "env -i /bin/setsid /bin/sleep {0} & sleep {0}",
}
PIPE = subprocess.PIPE
WITHOUT_CGROUPS = """
import os, resource, sys, time
import ociruntime as oci
path, root, prefix, uid, limit = sys.argv[1:]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_RSS, (int(limit), int(limit)))
become(int(uid))
with oci.Container.run(prefix, oci.Bundle.load(path), state_root=root) as container:
    with open(f"/proc/{container.pid}/cgroup") as theirs, open("/proc/self/cgroup") as ours:
        assert theirs.read() == ours.read()
    with container.popen(["sleep", "1009"]) as other:
        began = time.monotonic()
        try:
            script = "setsid sleep 1007 & (ulimit -S -m 12345; setsid sleep 1007) & sleep 1007"
            container.exec(["sh", "-c", script], timeout=0.3, capture_output=True)
        except oci.ProcessTimeout as error:
            assert error.result.returncode == -9, error
        else:
            raise AssertionError("not timed out")
        took = time.monotonic() - began
        left = [open(f"/proc/{pid}/cmdline").read() for pid in container.processes()]
        assert not [line for line in left if "1007" in line] and other.poll() is None, left
        other.kill()
print(took)
"""


@pytest.fixture(params=[pytest.param("cgroupfs", marks=pytest.mark.vm), "disabled"])
def container(request: pytest.FixtureRequest, make_bundle: MakeBundle, state_root: Path, prefix: str) -> Iterator[oci.Container]:
    """A container of either kind: with cgroups as this user has them, and with none."""
    rootless = os.geteuid() != 0
    spec = oci.RuntimeSpec.default(rootless=rootless)
    assert spec.process is not None
    # A shell, which reaps what it is left.
    spec = spec.evolve(process=spec.process.evolve(args=("sh", "-c", "while :; do sleep 0.1; done")))
    assert spec.linux is not None
    if request.param == "disabled":
        spec = spec.evolve(linux=spec.linux.evolve(resources=None))
    with oci.Container.run(prefix, make_bundle(spec), state_root=state_root, cgroup_manager=request.param) as running:
        yield running


def sleepers(container: oci.Container, seconds: int) -> list[int]:
    """The processes of the container that run ``sleep SECONDS``."""
    found = []
    for pid in container.processes():
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2] == [b"%d" % seconds]:
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
    return found


def left(container: oci.Container) -> list[str]:
    """The cgroups of exec processes."""
    return sorted(entry.name for path in own_cgroups(container) for entry in path.iterdir() if entry.is_dir())


@pytest.mark.parametrize("way", ESCAPES)
def test_a_timeout_ends_all_that_was_started(container: oci.Container, way: str) -> None:
    with container.popen(["sh", "-c", "setsid sleep 1009 & sleep 1009"]) as other:
        wait_until(lambda: len(sleepers(container, 1009)) == 2, "the other's start")
        script = ["sh", "-c", ESCAPES[way].format(1007)]
        with within(20):
            result = timed_out(lambda: container.exec(script, timeout=0.5 * SLOWER, capture_output=True))
        assert result.returncode == (0 if way == "ends first" else -9)
        assert sleepers(container, 1007) == []
        assert len(sleepers(container, 1009)) == 2
        assert container.status is oci.Status.RUNNING
        assert len(left(container)) == bool(own_cgroups(container))
        other.kill(all=True)
        assert sleepers(container, 1009) == []
    assert left(container) == []


def test_more_processes_than_the_caller_may_open_files(container: oci.Container) -> None:
    script = "i=0; while [ $i -lt 200 ]; do setsid sleep 1007 & i=$((i+1)); done; sleep 1007"
    with container.popen(["sh", "-c", script]) as process:
        wait_until(lambda: len(sleepers(container, 1007)) == 201, "the start")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 140, hard))
        try:
            process.kill(all=True)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert sleepers(container, 1007) == []


def test_a_process_that_forks_again_and_again(container: oci.Container) -> None:
    """It ends within a limit of processes, in sessions of their own and continued when they are stopped."""
    if os.geteuid() == 0 and not own_cgroups(container):
        pytest.skip("nothing limits the processes of root without cgroups")
    script = "echo 'kill -CONT -1; setsid sh /tmp/b & setsid sh /tmp/b & exec sleep 1007' > /tmp/b; setsid sh /tmp/b & sleep 1007"
    result = timed_out(lambda: container.exec(["sh", "-c", f"ulimit -u 300; {script}"], timeout=SLOWER, capture_output=True))
    assert result.returncode == -9
    assert sleepers(container, 1007) == []
    time.sleep(0.2)
    assert sleepers(container, 1007) == []


CHAINS = "f() { : >/tmp/alive; f & }; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do f; done; exec sleep 1007"
"""Starts chains of processes, each of which forks the next one and ends: no list of all processes need have one of them."""


@contextlib.contextmanager
def chains(container: oci.Container) -> Iterator[oci.Process[bytes]]:
    """Start the chains, and expect that they have ended afterwards."""
    alive = Path(f"/proc/{container.pid}/root/tmp/alive")
    with container.popen(["sh", "-c", CHAINS]) as process:
        wait_until(alive.exists, "the start")
        yield process
    alive.unlink()
    time.sleep(0.2)
    assert not alive.exists()


def test_processes_that_fork_and_end(container: oci.Container) -> None:
    with chains(container) as process:
        process.kill(all=True)


def test_processes_that_no_list_has(container: oci.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def outdated() -> list[int]:
        pids = all_pids()
        time.sleep(0.02)
        return pids

    all_pids = tasks._all_pids
    monkeypatch.setattr(tasks, "_all_pids", outdated)
    with chains(container) as process:
        process.kill(all=True)


def test_processes_that_are_not_caught_in_time(container: oci.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    if own_cgroups(container):
        pytest.skip("its cgroup has them all")
    with chains(container) as process:
        message = r"fork faster than they can be killed.*end the container"
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "_KILL_TIMEOUT", 0)
            with pytest.raises(TimeoutError, match=message):
                process.kill(all=True)
        process.kill(all=True)


def test_other_programs_that_fork_all_the_time(container: oci.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    if own_cgroups(container):
        pytest.skip("its cgroup has them all")
    last = tasks._last_pid()
    monkeypatch.setattr(tasks, "_last_pid", itertools.count(last + 10, 500).__next__)
    process = container.popen(["sh", "-c", "setsid sleep 1007 & sleep 1007"])
    wait_until(lambda: len(sleepers(container, 1007)) == 2, "the start")
    process.kill(all=True)
    process.wait()
    assert sleepers(container, 1007) == []


def test_kill_takes_one_or_all(container: oci.Container) -> None:
    process = container.popen(["sh", "-c", "setsid sleep 1007 & sleep 1007"])
    wait_until(lambda: len(sleepers(container, 1007)) == 2, "the start")
    process.kill()
    assert process.wait(TIME_LIMIT) == -9
    wait_until(lambda: len(sleepers(container, 1007)) >= 1, "what goes on")
    process.kill(all=True)
    wait_until(lambda: not sleepers(container, 1007), "the end of the others")
    process.close()
    assert left(container) == []


def test_a_block_that_raises_ends_all(container: oci.Container) -> None:
    def fail() -> None:
        with container.popen(["sh", "-c", "setsid sleep 1007 & exit 0"]) as process:
            process.wait(TIME_LIMIT)
            wait_until(lambda: len(sleepers(container, 1007)) == 1, "the start")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sleepers(container, 1007) == []
    assert left(container) == []


def test_a_daemon_outlives_what_ends_by_itself(container: oci.Container, state_root: Path) -> None:
    script = "setsid sleep 1007 >/dev/null 2>&1 </dev/null & exit 0"
    assert container.exec(["sh", "-c", script], check=True).returncode == 0
    with container.popen(["sh", "-c", script]) as process:
        assert process.wait(TIME_LIMIT) == 0
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), "exec", container.id, "sh", "-c", script]
    assert subprocess.run(command, cwd=REPO, check=False).returncode == 0
    wait_until(lambda: len(sleepers(container, 1007)) == 3, "three daemons")
    cgroups = own_cgroups(container)
    assert len(left(container)) == (2 if cgroups else 0)  # the command makes none
    if cgroups:
        # All of the container is what its cgroups hold.
        pids = container.stats().pids
        assert pids is None or pids.current >= 4
        try:
            container.pause()
        except oci.UnsupportedError:
            pass  # this user has no freezer
        else:
            container.resume()
        container.kill("KILL", all=True)
        assert container.wait(TIME_LIMIT) == -9
        assert sleepers(container, 1007) == []


def test_a_pause_freezes_what_exec_has_started(container: oci.Container) -> None:
    if not own_cgroups(container):
        pytest.skip("no cgroups")
    count = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; done"
    with container.popen(["sh", "-c", f"setsid sh -c '{count}' & sleep 1007"]) as process:
        file = Path(f"/proc/{container.pid}/root/tmp/count")
        wait_until(file.exists, "the count")
        try:
            container.pause()
        except oci.UnsupportedError:
            pytest.skip("no freezer")
        before = file.read_text()
        time.sleep(0.3)
        assert file.read_text() == before
        container.resume()
        process.kill(all=True)
    assert left(container) == []


def test_what_a_killed_caller_leaves_goes_with_the_next_exec(container: oci.Container, state_root: Path) -> None:
    text = "import sys, time, ociruntime as oci\nc = oci.Container.load(sys.argv[1], state_root=sys.argv[2])\nc.popen(['sleep', '1007']); print(1, flush=True); time.sleep(1000)"
    caller = subprocess.Popen([sys.executable, "-P", "-c", text, container.id, state_root], cwd=REPO, stdout=PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"1\n"
    caller.kill()
    caller.wait()
    caller.stdout.close()
    [sleeper] = sleepers(container, 1007)
    container.exec(["true"], check=True)
    assert sleepers(container, 1007) == [sleeper]  # it has not been asked to end
    os.kill(sleeper, signal.SIGKILL)
    wait_until(lambda: not sleepers(container, 1007), "its end")
    container.exec(["true"], check=True)
    wait_until(lambda: container.exec(["true"]).returncode == 0 and left(container) == [], "the removal")


def test_in_an_event_loop(container: oci.Container, state_root: Path) -> None:
    async def fail(same: aio.Container) -> None:
        async with same.popen(["sh", "-c", "setsid sleep 1007 & sleep 1007"]):
            await wait_until_async(lambda: len(sleepers(container, 1007)) == 2, "the start")
            raise ZeroDivisionError

    async def go() -> None:
        same = aio.Container.load(container.id, state_root=state_root)
        script = ["sh", "-c", "setsid sleep 1007 & sleep 1007"]
        with pytest.raises(oci.ProcessTimeout) as caught:
            await same.exec(script, timeout=0.5 * SLOWER, capture_output=True)
        assert caught.value.result is not None
        assert caught.value.result.returncode == -9
        assert sleepers(container, 1007) == []
        task = asyncio.ensure_future(same.exec(["sh", "-c", "setsid sleep 1007 & exit 0"], capture_output=True))
        await wait_until_async(lambda: sleepers(container, 1007), "the start")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sleepers(container, 1007) == []
        with pytest.raises(ZeroDivisionError):
            await fail(same)
        assert sleepers(container, 1007) == []
        async with same.popen(["sh", "-c", "setsid sleep 1009 & exit 0"]) as process:
            assert await process.wait() == 0
        await wait_until_async(lambda: sleepers(container, 1009), "the start")

    run_async(go())


def test_without_a_cgroup_of_its_own(container: oci.Container) -> None:
    own = Path(f"/proc/{container.pid}/cgroup").read_text()
    rlimit = next(line for line in Path(f"/proc/{container.pid}/limits").read_text().splitlines() if "resident" in line)
    with container.popen(["sh", "-c", "setsid sleep 1007 & sleep 1007"], own_cgroup=False) as process:
        wait_until(lambda: len(sleepers(container, 1007)) == 2, "the start")
        assert Path(f"/proc/{process.pid}/cgroup").read_text() == own
        assert rlimit in Path(f"/proc/{process.pid}/limits").read_text().splitlines()
        process.kill(all=True)
    assert len(sleepers(container, 1007)) == 1


def test_a_failed_launch_leaves_no_cgroup(container: oci.Container) -> None:
    with pytest.raises(oci.StepError):
        container.exec(["no-such-program"])
    assert left(container) == []


@needs_root
def test_in_a_chosen_cgroup(container: oci.Container, state_root: Path) -> None:
    cgroups = own_cgroups(container)
    if not cgroups:
        pytest.skip("no cgroups")
    for path in cgroups:
        Path(path, "inner").mkdir()
        if "cpuset" in path.parts:
            for file in ("cpuset.cpus", "cpuset.mems"):
                Path(path, "inner", file).write_text(Path(path, file).read_text())
    script = "setsid sleep 1007 & sleep 1007"
    timed_out(lambda: container.exec(["sh", "-c", script], cgroup="inner", timeout=0.5 * SLOWER, capture_output=True))
    assert sleepers(container, 1007) == []
    assert left(container) == ["inner"] * len(cgroups)
    assert main(["--root", str(state_root), "exec", "--cgroup", "inner", container.id, "true"]) == 0
    assert [entry for path in cgroups for entry in Path(path, "inner").iterdir() if entry.is_dir()] == []


@needs_root
@pytest.mark.skipif(oci.Host.probe().cgroup_mode != "hybrid", reason="needs cgroup v1 and v2")
@pytest.mark.parametrize("kind", ["freezer", "pids", "name=systemd", ""])
def test_every_hierarchy_serves(container: oci.Container, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if not own_cgroups(container):
        pytest.skip("no cgroups")

    def only(place: Place) -> bool:
        return kind in place.hierarchy.controllers if kind else place.hierarchy.version == 2

    monkeypatch.setattr(tasks, "_is_suitable", only)
    own = container.exec(["cat", "/proc/self/cgroup"], capture_output=True, text=True).stdout.splitlines()
    assert [line.split(":")[1] for line in own if "ociruntime@exec-" in line] == [kind]
    births = "while :; do setsid sleep 1007 & done"
    script = ["sh", "-c", f"ulimit -u 50; (setsid sh -c '{births}' &); sleep 1007"]
    timed_out(lambda: container.exec(script, timeout=0.5 * SLOWER, capture_output=True))
    assert sleepers(container, 1007) == []
    assert left(container) == []


@needs_root
@pytest.mark.skipif(oci.Host.probe().cgroup_mode != "hybrid", reason="needs cgroup v1")
def test_nothing_forks_while_it_is_killed_where_pids_are_limited(container: oci.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    if not own_cgroups(container):
        pytest.skip("no cgroups")
    signal_all, limits = tasks.signal_all, list[str]()

    def look(paths: Sequence[str], number: int) -> None:
        limits.extend(Path(path, "pids.max").read_text() for path in paths if os.path.exists(path))
        signal_all(paths, number)

    monkeypatch.setattr(tasks, "_is_suitable", lambda place: "pids" in place.hierarchy.controllers)
    monkeypatch.setattr(tasks, "signal_all", look)
    with chains(container) as process:
        process.kill(all=True)
        process.kill(all=True)  # its cgroup has been removed
    assert limits == ["0\n"]


@needs_root
@pytest.mark.skipif(V2 is None, reason="needs cgroup v2")
@pytest.mark.parametrize("why", ["descendants", "threaded"])
def test_where_no_cgroup_can_be_made(container: oci.Container, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if not own_cgroups(container):
        pytest.skip("no cgroups")
    monkeypatch.setattr(tasks, "_is_suitable", lambda place: place.hierarchy.version == 2)
    own = directory(container, "")
    if why == "descendants":
        (own / "cgroup.max.descendants").write_text("0")
    else:
        (own / "inner").mkdir()
        (own / "inner/cgroup.type").write_text("threaded")
    script = f"cat /proc/self/cgroup; {ESCAPES['setsid'].format(1007)}"
    options: dict[str, Any] = {"capture_output": True, "text": True}
    result = timed_out_with_output(lambda limit: container.exec(["sh", "-c", script], timeout=limit, **options))
    assert "@exec-" not in result.stdout
    assert sleepers(container, 1007) == []


def test_a_mark_stays_below_the_hard_limit() -> None:
    for limit in (1 << 64) - 1, 1 << 63, 1 << 40, 1 << 30:
        marks = {MarkedGroup(limit).mark for _ in range(100)}
        assert all(mark is not None and min(limit, 1 << 63) // 2 - 1 <= mark < limit for mark in marks)
        assert len(marks) == 100 or limit == 1 << 30
    few = MarkedGroup(1 << 29)
    assert few.mark is None
    assert few.processes() == set()  # and not those of every process with that limit


@needs_root
@pytest.mark.skipif("VMTEST" in os.environ, reason="a user runs all tests there")
def test_as_a_user(user_python: str, prefix: str) -> None:
    run_tests_as_user(
        user_python, prefix, "kernel/test_exec_groups.py", "-k", "all_that_was_started or more_processes or again_and"
    )


@needs_root
@pytest.mark.skipif("VMTEST" in os.environ, reason="the user there has cgroups")
@pytest.mark.parametrize("hard", [0, 4 << 30])
def test_a_user_without_cgroups(user_bundle: UserBundle, prefix: str, user_script: Script, hard: int) -> None:
    spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).with_args(["sleep", "1000"])
    assert float(user_script(WITHOUT_CGROUPS, *user_bundle(spec), prefix, UID, hard).stdout) < 20 * SLOWER
