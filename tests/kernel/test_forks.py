"""Forked children that leave the blocks of their parent, and handles that other processes get by pickle."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.engine import launch

from ..support.fixture_types import Script
from ..support.waiting import TIME_LIMIT, run_async, wait_until_async

pytestmark = pytest.mark.root


class Left(Exception):
    """Takes a forked child out of a block."""


def fork_within() -> None:
    """Fork; the child raises, and so leaves every block on its way."""
    pid = os.fork()
    if pid == 0:
        raise Left
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def outlived(block: Callable[[], None]) -> None:
    """Run a block in which `fork_within` is called: the child ends well, and at once."""
    parent = os.getpid()
    try:
        block()
    except Left:
        assert os.getpid() != parent
        os._exit(0)
    except BaseException:
        if os.getpid() != parent:
            os._exit(1)
        raise
    if os.getpid() != parent:
        os._exit(2)


def test_a_forked_child_leaves_the_container(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def block() -> None:
        with oci.Container.run(prefix, bundle, state_root=state_root) as container:
            fork_within()
            assert container.status is oci.Status.RUNNING
            assert container.exec(["true"]).returncode == 0
        assert oci.Container.list(state_root=state_root) == []

    outlived(block)


def test_a_block_that_the_child_enters_itself_is_its_own(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    container = oci.Container.run(prefix, bundle, state_root=state_root)
    pid = os.fork()
    if pid == 0:
        try:
            with container:
                pass
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert oci.Container.list(state_root=state_root) == []
    container._close()


def test_a_forked_child_leaves_the_process(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def block() -> None:
        with (
            oci.Container.run(prefix, bundle, state_root=state_root) as container,
            container.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
        ):
            fork_within()
            assert process.poll() is None
            assert process.communicate("still here") == ("still here", None)
            assert process.returncode == 0

    outlived(block)


def test_a_forked_child_leaves_the_image_and_its_mount(busybox_sif: Path, tmp_path: Path) -> None:
    def block() -> None:
        with (
            oci.SifImage.open(busybox_sif) as image,
            oci.Bundle.from_sif(busybox_sif, tmp_path / "mounted") as bundle,
        ):
            fork_within()
            assert (bundle.rootfs / "bin/busybox").exists()
            assert image.primary_partition is not None
            assert image.reader(image.primary_partition).read(4) == b"hsqs"
        assert not bundle.path.exists()

    outlived(block)


def test_children_that_live_on_keep_nothing_open(
    bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children that other code forks during a launch have copies of no end of a socket or pipe that is waited for."""
    children, real = [], launch.init_memfd

    def forks() -> int:
        pid = os.fork()
        if not pid:
            signal.pause()
            os._exit(0)
        children.append(pid)
        return real()

    monkeypatch.setattr(launch, "init_memfd", forks)
    try:
        with oci.Container.run(prefix, bundle, state_root=state_root) as container:
            assert container.exec(["cat"], input=b"exec", capture_output=True, timeout=TIME_LIMIT).stdout == b"exec"
        result = oci.run(bundle, ["cat"], input=b"run", capture_output=True, timeout=TIME_LIMIT, state_root=state_root)
        assert result.stdout == b"run"
        with oci.Sandbox(bundle.rootfs, state_root=state_root) as sandbox:
            sandbox.write_text("/tmp/file", "sandbox")
            assert sandbox.run(["cat"], input=b"sandbox").stdout == b"sandbox"
        with oci.Container.run(prefix, bundle, state_root=state_root, supervise=True) as container:
            assert container.exec(["true"]).returncode == 0
        assert len(children) >= 6
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("call", ["run", "exec"])
def test_a_handler_that_forks_during_a_call(bundle: oci.Bundle, state_root: Path, prefix: str, call: str) -> None:
    """The child leaves `run` and `exec` by an exception; the parent's program goes on, and none of its output is lost."""
    before = signal.signal(signal.SIGALRM, lambda *_: fork_within())
    args = ["sh", "-c", "echo one; sleep 1.5; echo two"]

    def block() -> None:
        try:
            if call == "run":
                signal.setitimer(signal.ITIMER_REAL, 0.7)
                result = oci.run(bundle, args, capture_output=True, state_root=state_root, container_id=prefix)
            else:
                with oci.Container.run(prefix, bundle, state_root=state_root) as container:
                    signal.setitimer(signal.ITIMER_REAL, 0.7)
                    result = container.exec(args, capture_output=True)
            assert (result.returncode, result.stdout) == (0, b"one\ntwo\n")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        outlived(block)
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["container", "process"])
def test_a_forked_child_leaves_a_block_of_the_event_loop(bundle: oci.Bundle, state_root: Path, prefix: str, what: str) -> None:
    async def block() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            if what == "container":
                fork_within()
            else:
                async with container.popen(["sleep", "1000"]) as process:
                    fork_within()
                    assert process.poll() is None
                    process.kill()
            assert container.status is oci.Status.RUNNING

    async def main() -> None:
        try:
            await block()
        except Left:
            os._exit(0)  # a child cannot go on with the loop of its parent

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []


def test_a_forked_child_leaves_a_run_of_the_event_loop(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """The coroutine is left by an exception, in the child, without the loop."""

    async def main() -> None:
        running = aio.run(bundle, ["sleep", "1000"], state_root=state_root, container_id=prefix)
        task = asyncio.ensure_future(running)
        await wait_until_async(
            lambda: any(container.status is oci.Status.RUNNING for container in oci.Container.list(state_root=state_root)),
            "the start",
        )
        await asyncio.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            try:
                running.throw(Left())
            except Left:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        (container,) = oci.Container.list(state_root=state_root)
        assert container.status is oci.Status.RUNNING
        task.cancel()  # the child has changed what the loop of its parent waits for: they share it
        with pytest.raises(asyncio.CancelledError):
            await task

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []


def test_a_container_in_a_pool(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """What a worker of a pool gets is a handle to the same container; what it returns comes back as it is."""
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            result = pool.apply_async(container.exec, [["echo", "hello"]], {"capture_output": True}).get(TIME_LIMIT)
            assert result.stdout == b"hello\n"
            changed = bundle.with_args(["echo", "from a worker"])
            options = {"capture_output": True, "state_root": state_root, "container_id": f"{prefix}-worker"}
            assert pool.apply_async(oci.run, [changed], options).get(TIME_LIMIT).stdout == b"from a worker\n"
        assert container.status is oci.Status.RUNNING
        with container.popen(["true"]) as process, pytest.raises(TypeError, match="cannot pickle or copy 'Process' object"):
            pickle.dumps(process)


def test_a_container_in_another_interpreter(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = "import pickle, sys\ncontainer = pickle.loads(bytes.fromhex(sys.argv[1]))\nprint(container.pid)\ncontainer.kill('KILL')"
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        pid = container.pid
        assert script(text, pickle.dumps(container).hex()).stdout.split() == [str(pid)]
        assert container.wait(TIME_LIMIT) == -9
