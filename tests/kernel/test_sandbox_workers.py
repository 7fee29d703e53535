"""Sandboxes in threads, forked children, worker processes and tasks that are cancelled: each has its own, and nothing is left."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.fixture_types import MakeSandbox
from ..support.processes import is_running
from ..support.users import run_tests_as_user
from ..support.waiting import TIME_LIMIT, run_async, wait_until

CONTEXTS = ("fork", "forkserver", "spawn")


def nothing_is_left(image: Path, state_root: Path) -> None:
    """The next sandbox removes what processes that were killed have left; then the state directory is empty."""
    oci.Sandbox(image, state_root=state_root).close()
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []


def run_program(tmp_path: Path, text: str, *args: object, timeout: float = 4 * TIME_LIMIT) -> str:
    """Run a program in a file, which workers can import, and return its output."""
    file = tmp_path / "program.py"
    file.write_text(text)
    command = [sys.executable, file, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---- threads ----


def test_a_sandbox_outlives_the_thread_that_made_it(busybox_rootfs: Path, state_root: Path) -> None:
    """The kernel kills it with its process, and not with the thread."""
    created: list[oci.Sandbox] = []
    thread = threading.Thread(target=lambda: created.append(oci.Sandbox(busybox_rootfs, state_root=state_root)))
    thread.start()
    thread.join()
    with created[0] as sandbox:
        process = sandbox.popen(["sleep", "1000"])
        other = threading.Thread(target=lambda: sandbox.shell("sleep 1000 > /dev/null 2>&1 &"))
        other.start()
        other.join()
        assert len(sandbox.processes()) == 2
    assert process.wait() == -signal.SIGKILL
    process.close()
    nothing_is_left(busybox_rootfs, state_root)


def test_threads_make_and_use_their_own(busybox_rootfs: Path, state_root: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with oci.Sandbox(busybox_rootfs, disk="1M", state_root=state_root) as sandbox:
                for round_number in range(3):
                    sandbox.write_text("/tmp/file", f"{number}-{round_number}")
                    assert sandbox.shell("cat /tmp/file", text=True).stdout == f"{number}-{round_number}"
                    sandbox.reset()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    nothing_is_left(busybox_rootfs, state_root)


# ---- forked children ----


def in_child(work: Callable[[], None]) -> int:
    """Fork, run a function in the child, leave it by ``sys.exit``, and return its exit code."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            sys.exit(7)
        except SystemExit as error:
            status = 7 if error.code == 7 else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_uses_its_own(make_sandbox: MakeSandbox, busybox_rootfs: Path, state_root: Path) -> None:
    sandbox = make_sandbox()
    sandbox.shell("echo parent > /tmp/file; sleep 1000 > /dev/null 2>&1 &", check=True)

    def work() -> None:
        assert not sandbox.owned
        with oci.Sandbox(busybox_rootfs, state_root=state_root) as own:
            assert own.owned
            own.write_text("/tmp/file", "child")
            assert own.shell("cat /tmp/file").stdout == b"child"
            assert sandbox.read_text("/tmp/file") == "parent\n"
        sandbox.close()

    for _ in range(3):
        assert in_child(work) == 7
    assert sandbox.shell("cat /tmp/file").stdout == b"parent\n"
    assert len(sandbox.processes()) == 1
    assert len(oci.Container.list(state_root=state_root)) == 1


def test_a_reset_in_a_forked_child_makes_one_of_its_own(busybox_rootfs: Path, state_root: Path) -> None:
    with oci.Sandbox(busybox_rootfs, state_root=state_root) as sandbox:
        sandbox.write_text("/tmp/file", "parent")
        name = sandbox.name

        def work() -> None:
            with sandbox:
                sandbox.reset()
                assert sandbox.owned
                assert sandbox.name != name
                assert not sandbox.exists("/tmp/file")

        assert in_child(work) == 7
        assert sandbox.read_text("/tmp/file") == "parent"
    nothing_is_left(busybox_rootfs, state_root)


FORKING = """
import os, sys, threading, time
import ociruntime as oci

image, root, how = sys.argv[1:]
sandbox = oci.Sandbox(image, state_root=root)
sandbox.shell("sleep 1000 > /dev/null 2>&1 &", check=True)
stop = threading.Event()


def use():
    while not stop.is_set():
        with oci.Sandbox(image, disk="1M", state_root=root) as other:
            other.run(["true"], check=True)


threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for number in range(12):
    time.sleep(0.02)
    pid = os.fork()
    if not pid:  # at any point of what the threads do
        with oci.Sandbox(image, disk="1M", state_root=root) as own:
            assert own.shell("echo child").stdout == b"child\\n"
        if number % 3 == 0:
            sys.exit()  # with the functions of atexit
        if number % 3 == 1:
            os.abort()
        os._exit(0)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop.set()
for thread in threads:
    thread.join()
assert codes == [0, -6, 0] * 4, codes
assert len(sandbox.processes()) == 1
assert sandbox.shell("echo alive").stdout == b"alive\\n"
print("done")
"""


def test_forks_beside_threads_that_make_sandboxes(tmp_path: Path, busybox_rootfs: Path, state_root: Path) -> None:
    assert run_program(tmp_path, FORKING, busybox_rootfs, state_root, "").endswith("done\n")
    nothing_is_left(busybox_rootfs, state_root)


LINGERING = """
import os, sys, time
import ociruntime as oci

sandbox = oci.Sandbox(sys.argv[1], state_root=sys.argv[2])
child = os.fork()
if not child:
    time.sleep(1000)
print(child, sandbox.container.pid, flush=True)
time.sleep(1000)
"""


def test_a_child_that_lives_on_keeps_nothing(busybox_rootfs: Path, state_root: Path) -> None:
    """The parent is killed, and a child that it has forked is not: the sandbox ends, and its records can be removed."""
    command = [sys.executable, "-P", "-c", LINGERING, str(busybox_rootfs), str(state_root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child, pid = map(int, parent.stdout.readline().split())
        try:
            parent.kill()
            wait_until(lambda: not is_running(pid), "the end of the sandbox")
            assert is_running(child)
            nothing_is_left(busybox_rootfs, state_root)
        finally:
            os.kill(child, signal.SIGKILL)


# ---- worker processes ----

WORKERS = """
import multiprocessing, os, pickle, sys
from concurrent.futures import ProcessPoolExecutor

import ociruntime as oci

sandbox = None


def begin(image, root):
    global sandbox
    sandbox = oci.Sandbox(image, state_root=root)


def work(number):
    sandbox.write_text("/tmp/number", str(number))
    return os.getpid(), sandbox.name, int(sandbox.shell("cat /tmp/number", check=True).stdout)


def own(image, root, number):
    with oci.Sandbox(image, state_root=root) as one:
        return one.run(["echo", str(number)])


if __name__ == "__main__":
    image, root, method = sys.argv[1:]
    context = multiprocessing.get_context(method)
    with oci.Sandbox(image, state_root=root) as parent:
        parent.shell("sleep 1000 > /dev/null 2>&1 &", check=True)
        with ProcessPoolExecutor(3, mp_context=context, initializer=begin, initargs=(image, root)) as executor:
            found = list(executor.map(work, range(30)))
        assert [number for _, _, number in found] == list(range(30))
        assert len({pid for pid, _, _ in found}) == len({name for _, name, _ in found}) >= 1
        assert os.getpid() not in {pid for pid, _, _ in found}
        with context.Pool(2) as pool:
            results = pool.starmap(own, [(image, root, number) for number in range(8)])
            assert [result.stdout for result in results] == [b"%d\\n" % number for number in range(8)]
            try:
                pool.apply(own, [image, parent, 1])
            except TypeError as error:
                print(error)
        assert parent.shell("echo alive").stdout == b"alive\\n"
        assert len(parent.processes()) == 1
    process = context.Process(target=begin, args=(image, root))
    process.start()
    process.join()
    assert process.exitcode == 0
    print("done")
"""


@pytest.mark.parametrize("method", CONTEXTS)
def test_workers_have_their_own(tmp_path: Path, busybox_rootfs: Path, state_root: Path, method: str) -> None:
    lines = run_program(tmp_path, WORKERS, busybox_rootfs, state_root, method).splitlines()
    assert lines[0].startswith("cannot pickle or copy 'Sandbox' object: ")
    assert lines[0].endswith("; make a Sandbox in the process that uses it")
    assert lines[1:] == ["done"]
    nothing_is_left(busybox_rootfs, state_root)


DASK = """
import sys

import distributed
import ociruntime as oci


def work(image, root, number):
    worker = distributed.get_worker()
    pool = getattr(worker, "sandboxes", None)
    if pool is None:  # one for each worker, which its tasks share
        pool = worker.sandboxes = oci.SandboxPool(image, size=2, state_root=root)
    with pool.get() as sandbox:
        sandbox.write_text("/tmp/number", str(number))
        return worker.address, int(sandbox.shell("cat /tmp/number", check=True).stdout)


def use(sandbox):
    return sandbox.name


if __name__ == "__main__":
    image, root = sys.argv[1:]
    options = {"processes": True, "dashboard_address": None, "host": "127.0.0.1"}
    with oci.Sandbox(image, state_root=root) as own:
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=2, **options)
        with cluster, distributed.Client(cluster) as client:
            found = client.gather([client.submit(work, image, root, number, pure=False) for number in range(24)])
            assert [number for _, number in found] == list(range(24))
            assert len({address for address, _ in found}) == 2
            try:
                client.submit(use, own).result()
            except TypeError as error:
                causes = [error]
                while causes[-1].__cause__ or causes[-1].__context__:
                    causes.append(causes[-1].__cause__ or causes[-1].__context__)
                print(any("make a Sandbox in the process that uses it" in str(cause) for cause in causes))
        assert own.shell("echo alive").stdout == b"alive\\n"
    print("done")
"""


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="no Dask (pip install distributed)")
def test_workers_of_dask_have_their_own(tmp_path: Path, busybox_rootfs: Path, state_root: Path) -> None:
    assert run_program(tmp_path, DASK, busybox_rootfs, state_root).splitlines() == ["True", "done"]
    nothing_is_left(busybox_rootfs, state_root)


# ---- tasks that are cancelled ----


@types.coroutine
def cancelled_at(coroutine: Coroutine[Any, Any, None], step: int, steps: list[int]) -> Generator[Any, Any, None]:
    """Await a coroutine, and cancel the task when it is suspended for the given time. The number of suspensions is appended."""
    resume: Callable[[], Any] = partial(coroutine.send, None)
    for number in itertools.count():
        try:
            future = resume()
        except StopIteration:
            steps.append(number)
            return
        if number == step:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            yield future
            resume = partial(coroutine.send, None)
        except BaseException as error:
            resume = partial(coroutine.throw, error)


async def use(image: Path, state_root: Path) -> None:
    """Use most of what a sandbox has."""
    async with aio.Sandbox(image, disk="1M", state_root=state_root) as sandbox:
        await sandbox.write_text("/tmp/file", "text")
        assert (await sandbox.shell("cat /tmp/file", text=True)).stdout == "text"
        async with sandbox.popen(["sh", "-c", "echo line; exec sleep 1000"], text=True) as process:
            assert await anext(aiter(process)) == "line\n"
            process.kill()
        with suppress(oci.ProcessTimeout):
            await sandbox.shell("sleep 1000", timeout=0.05)
        await sandbox.changes()
        async with await sandbox.fork() as other:
            await other.read_text("/tmp/file")
        await sandbox.shell("setsid sleep 1000 > /dev/null 2>&1 &")
        await sandbox.reset()
        await sandbox.stop(0.1)


async def cancel(image: Path, state_root: Path, step: int, steps: list[int]) -> bool:
    """Use a sandbox in a task that is cancelled at a step, and return whether it was. Other errors are raised."""

    async def run() -> None:
        await cancelled_at(use(image, state_root), step, steps)

    try:
        await asyncio.create_task(run())
    except asyncio.CancelledError:
        return True
    return False


def test_a_task_is_cancelled_at_every_await(busybox_rootfs: Path, state_root: Path) -> None:
    async def main() -> None:
        steps: list[int] = []
        assert not await cancel(busybox_rootfs, state_root, -1, steps)
        for step in range(steps[0]):
            await asyncio.wait_for(cancel(busybox_rootfs, state_root, step, []), TIME_LIMIT)
            assert oci.Container.list(state_root=state_root) == [], step
        assert steps[0] > 10

    run_async(main())
    assert os.listdir(state_root / ".runs") == []


def test_two_hundred_tasks_are_cancelled_at_random(busybox_rootfs: Path, state_root: Path) -> None:
    chance = random.Random(14)

    async def main() -> None:
        steps: list[int] = []
        await cancel(busybox_rootfs, state_root, -1, steps)
        tasks = [cancel(busybox_rootfs, state_root, chance.randrange(steps[0]), []) for _ in range(200)]
        assert sum(await asyncio.gather(*tasks)) > 150  # not all: some suspensions are waits for what has ended already

    nothing_is_left(busybox_rootfs, state_root)
    oci.close_images()
    before = len(os.listdir("/proc/self/fd"))
    run_async(main())
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []
    oci.close_images()
    assert len(os.listdir("/proc/self/fd")) <= before


# ---- as a user ----


@pytest.mark.root
def test_as_a_user(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "kernel/test_sandbox_workers.py")
