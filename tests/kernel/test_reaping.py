"""Children in a container that are not reaped hold its init process back in the kernel. No call waits for them in vain."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.engine import processes
from ociruntime.files import start_time

from ..support.fixture_types import Command
from ..support.places import REPO
from ..support.processes import is_running
from ..support.waiting import SLOWER, TIME_LIMIT, wait_until

pytestmark = pytest.mark.root
PIPE = subprocess.PIPE


def a_zombie(container: oci.Container) -> oci.Process[bytes]:
    """A program in the container that has ended and is not reaped."""
    process = container.popen(["sh", "-c", "exit 5"])
    wait_until(lambda: not start_time(process.pid), "its end")
    return process


HOLDER = """
import sys, time
import ociruntime as oci
process = oci.Container.load(sys.argv[1], state_root=sys.argv[2]).popen(["true"])
print(process.pid, flush=True)
time.sleep(1000)
"""


@contextmanager
def held_by_another(container_id: str, root: Path) -> Iterator[None]:
    """Another process has a zombie in the container, and goes on."""
    command = [sys.executable, "-P", "-c", HOLDER, container_id, str(root)]
    with subprocess.Popen(command, stdout=PIPE, text=True, cwd=REPO) as holder:
        try:
            assert holder.stdout is not None
            pid = int(holder.stdout.readline())
            wait_until(lambda: not start_time(pid), "its end")
            yield
        finally:
            holder.kill()


def test_a_child_of_this_process(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        process = a_zombie(container)
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9
        assert container.status is oci.Status.STOPPED
        assert (process.returncode, process.wait(TIME_LIMIT), process.poll()) == (None, 5, 5)
        process.close()


@pytest.mark.parametrize("how", ["wait", "events", "aio wait", "aio events", "delete", "prune"])
def test_however_one_waits(bundle: oci.Bundle, state_root: Path, prefix: str, how: str) -> None:
    script = bundle.with_args(["sh", "-c", "read x; exit 7"])
    with oci.Container.run(prefix, script, state_root=state_root, stdin=PIPE) as container:
        process = a_zombie(container)
        running = container.popen(["sleep", "1000"])  # of which we hear only after the wait has begun
        threading.Timer(0.1, container.stdin.close).start()

        async def events() -> list[str]:
            return [event.kind async for event in aio.Container(container).events()]

        if how == "wait":
            assert container.wait(TIME_LIMIT) == 7
        elif how == "events":
            assert [event.kind for event in container.events()] == ["exit"]
        elif how == "aio wait":
            assert asyncio.run(aio.Container(container).wait(TIME_LIMIT)) == 7
        elif how == "aio events":
            assert asyncio.run(events()) == ["exit"]
        elif how == "delete":
            container.delete(force=True)
        else:
            container.wait(TIME_LIMIT)
            assert oci.prune(state_root=state_root) == (prefix,)
        assert (process.poll(), running.wait(TIME_LIMIT)) == (5, -9)
        process.close()
        running.close()


def test_children_that_were_dropped(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        pids = [container.popen(["sleep", "1000"]).pid for _ in range(3)]
        container.popen(["sleep", "1000"]).close()
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9
        assert [start_time(pid) for pid in pids] == [0, 0, 0]


def test_a_child_of_another_process(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    """It cannot be reaped from here; the container is stopped all the same, and can be removed."""
    for turn, how in enumerate(("wait", "delete", "prune", "command")):
        name = f"{prefix}-{turn}"
        container = oci.Container.run(name, bundle, state_root=state_root)
        with held_by_another(name, state_root):
            began = time.monotonic()
            if how in ("wait", "prune"):
                container.kill("KILL")
                wait_until(lambda container=container: container.status is oci.Status.STOPPED, "the end")
            if how == "wait":
                assert container.wait(TIME_LIMIT) == -9
            elif how == "prune":
                assert oci.prune(state_root=state_root) == (name,)
            elif how == "command":
                subprocess.run(command("delete", "--force", name), check=True)
            if how in ("wait", "delete"):
                container.delete(force=True)
            assert time.monotonic() - began < 60 * SLOWER  # no call waits for the end of the other process
        container._close()
        assert oci.Container.list(state_root=state_root) == []
    reap_with_a_launch(bundle, state_root)


@pytest.mark.parametrize(("script", "timeout", "code"), [("read x; exit 7", None, 7), ("sleep 1000", 5 * SLOWER, -9)])
def test_a_run_with_a_child_of_another_process(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: str, timeout: float | None, code: int
) -> None:
    results: list[oci.Result[Any] | None] = []
    ours, theirs = os.pipe()

    def work() -> None:
        args = ["sh", "-c", script]
        try:
            results.append(
                oci.run(bundle, args, stdin=ours, stdout=PIPE, timeout=timeout, state_root=state_root, container_id=prefix)
            )
        except oci.ProcessTimeout as error:
            results.append(error.result)

    runner = threading.Thread(target=work)
    runner.start()
    wait_until(lambda: any(c.status is oci.Status.RUNNING for c in oci.Container.list(state_root=state_root)), "the run")
    with held_by_another(prefix, state_root):
        os.close(theirs)
        runner.join(TIME_LIMIT)
        assert not runner.is_alive()
    os.close(ours)
    assert [result and result.returncode for result in results] == [code]
    assert oci.Container.list(state_root=state_root) == []
    reap_with_a_launch(bundle, state_root)


def reap_with_a_launch(bundle: oci.Bundle, state_root: Path) -> None:
    """What was held back is reaped with one of the launches behind its end."""

    def reaped() -> bool:
        oci.run(bundle, ["true"], state_root=state_root)
        return processes._abandoned == []

    wait_until(reaped, "the reaping")


THREADS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_lives_as_long_as_one_of_its_threads() -> None:
    with subprocess.Popen([sys.executable, "-c", THREADS], stdout=PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            wait_until(lambda: not is_running(process.pid), "the end of the first thread")
            assert start_time(process.pid) > 0
        finally:
            process.kill()
    assert start_time(process.pid) == 0
