"""attach and logs in the event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.processes import parent_process
from ..support.waiting import run_async, wait_until_async

pytestmark = pytest.mark.root


def create(name: str, bundle: oci.Bundle, root: Path, script: str, **more: Any) -> Any:
    return aio.Container.create(name, bundle.with_args(["sh", "-c", script]), state_root=root, supervise=True, **more)


def test_the_same_names() -> None:
    for name in ("attach", "logs", "reopen_log"):
        ours, theirs = getattr(aio.Container, name), getattr(oci.Container, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
    missing = {name for name in vars(oci.Attachment) if not name.startswith("_")} - set(dir(aio.Attachment))
    assert missing == {"fileno", "readable", "writable", "readinto"}  # of a file


def test_attaching(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with create(
            prefix, bundle, state_root, "echo out; while read x; do echo got $x; done; echo err >&2; exit 3"
        ) as container:
            async with container.attach(stderr=True) as two, container.attach() as one:
                await container.start()
                assert await two.readline() == b"out\n"
                two.write(b"1\n")
                await two.drain()
                assert await two.readline() == b"got 1\n"
                with pytest.raises(oci.StateError, match="did not read fast enough"):
                    _ = two.returncode
                with pytest.raises(oci.StateError, match="no terminal"):
                    await two.resize(3, 4)
                async with await container.attach() as third:
                    third.write(b"2\n" * 10_000)
                    third.end_input()
                    merged = await third.read()  # of two streams, whose order among each other is not kept
                    assert merged.count(b"err\n") == 1
                    assert merged.replace(b"err\n", b"") == b"got 2\n" * 10_000
                assert await two.read() == b"got 2\n" * 10_000
                assert await two.stderr.read() == b"err\n"
                assert two.returncode == 3
                assert [line async for line in one if line != b"err\n"][:3] == [b"out\n", b"got 1\n", b"got 2\n"]
            assert await container.wait() == 3
            with pytest.raises(oci.WrongStatus):
                await container.attach()

    fds = len(os.listdir("/proc/self/fd"))
    run_async(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"
        async with create(prefix, bundle, state_root, script, terminal=True) as container, container.attach() as attachment:
            assert attachment.terminal
            await container.start()
            assert await attachment.readline() == b"ready\r\n"
            await attachment.resize(21, 43)
            assert await attachment.readline() == b"21 43\r\n"
            await container.kill("KILL")
            assert await attachment.read() == b""
            assert attachment.returncode == await container.wait() == -signal.SIGKILL

    run_async(main())


def test_cancelling_leaves_the_container_alone(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with create(prefix, bundle, state_root, "echo out; read x; exit $x") as container:
            await container.start()

            async def listen() -> None:
                async with container.attach() as attachment:
                    await attachment.read()

            async def follow() -> None:
                async for _ in container.logs(follow=True):
                    pass

            tasks = [asyncio.create_task(work()) for work in (listen, follow) for _ in range(20)]
            for delay in (0, 0.001, 0.01, 0.1):
                await asyncio.sleep(delay)
                for _ in range(10):
                    tasks.pop().cancel()
            await asyncio.sleep(0.1)
            async with container.attach() as attachment:
                attachment.write(b"7\n")
                await attachment.read()
                assert attachment.returncode == 7

    fds = len(os.listdir("/proc/self/fd"))
    run_async(main())
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_logs(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    async def main() -> None:
        log = tmp_path / "log"
        async with create(prefix, bundle, state_root, "seq 2000; while read x; do echo got $x; done", log_path=log) as container:
            follower = container.logs(follow=True, tail=1)
            async with container.attach() as attachment:
                await container.start()
                while b"2000" not in await attachment.readline():
                    pass
                assert [record.text async for record in container.logs(tail=2)] == ["1999", "2000"]
                assert (await anext(follower)).text == "2000"
                for number in range(3):
                    attachment.write(b"%d\n" % number)
                    assert (await anext(follower)).text == f"got {number}"
                    log.rename(tmp_path / f"log.{number}")
                    await container.reopen_log()
                attachment.end_input()
                assert [record async for record in follower] == []
            assert [record async for record in container.logs(since=time.time_ns())] == []
        async with aio.Container.create(f"{prefix}-b", bundle, state_root=state_root) as other:
            with pytest.raises(oci.StateError, match="has no log"):
                await anext(other.logs())

    run_async(main())


def test_many_at_once_without_threads(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with create(prefix, bundle, state_root, "read x; seq 500; echo end >&2; exit 4") as container:
            await container.start()

            async def attached() -> int:
                async with container.attach(stderr=True) as attachment:
                    out, err = await asyncio.gather(attachment.read(), attachment.stderr.read())
                    assert (len(out.splitlines()), err) == (500, b"end\n")
                    return int(attachment.returncode)

            async def followed() -> int:
                return len([record async for record in container.logs(follow=True)])

            attaching = [asyncio.create_task(attached()) for _ in range(100)]
            following = [asyncio.create_task(followed()) for _ in range(100)]
            descriptors = f"/proc/{parent_process(container.pid)}/fd"
            await wait_until_async(lambda: len(os.listdir(descriptors)) >= 200, "200 connections")
            threads = threading.active_count()
            async with container.attach() as attachment:
                attachment.write(b"\n")
                await attachment.read()
            assert threading.active_count() <= threads
            assert set(await asyncio.gather(*attaching)) == {4}
            assert set(await asyncio.gather(*following)) == {501}

    run_async(main())


def test_the_loop_goes_on_while_a_long_log_is_read(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with create(prefix, bundle, state_root, "seq 50000") as container:
            await container.start()
            await container.wait()
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            assert len([record async for record in container.logs()]) == 50_000
            task.cancel()
            assert turns >= 50

    run_async(main())


def test_exec_that_captures_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            result = await container.exec(["sh", "-c", "cat; exit 3"], terminal=True, capture_output=True, input=b"in")
            assert (result.returncode, result.stdout, result.stderr) == (3, b"inin", b"")  # with its echo
            with pytest.raises(ValueError, match="event loop"):
                await container.exec(["true"], terminal=True)

    run_async(main())
