"""The asyncio twin: the same results, waiting in the loop, cancelling that leaves nothing, and many at once."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import resource
import subprocess
import threading
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.processes import start_lasting_thread
from ..support.waiting import SLOWER, TIME_LIMIT, run_async, timed_out_with_output, wait_until_async

pytestmark = pytest.mark.root
PIPE, STDOUT, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_run(bundle: oci.Bundle, state_root: Path, prefix: str, busybox_rootfs: Path) -> None:
    async def main() -> None:
        script = ["sh", "-c", "cat; echo err >&2; exit 3"]
        result = await aio.run(
            bundle, script, input="in", capture_output=True, text=True, state_root=state_root, container_id=prefix
        )
        assert (result.args, result.returncode, result.stdout, result.stderr) == (tuple(script), 3, "in", "err\n")
        assert result.usage.total > 0
        raw = await aio.run(bundle, ["sh", "-c", "echo $X"], stdout=PIPE, env={"X": "y"}, state_root=state_root)
        assert (raw.stdout, raw.stderr) == (b"y\n", None)
        big = "0123456789abcde\n" * 100_000
        assert (await aio.run(bundle, ["cat"], input=big, capture_output=True, text=True, state_root=state_root)).stdout == big
        assert (await aio.run(busybox_rootfs, ["true"], state_root=state_root)).returncode == 0
        with pytest.raises(oci.ProcessError, match="ended with 1"):
            await aio.run(bundle, ["false"], check=True, state_root=state_root)
        with pytest.raises(oci.StepError, match="not found"):
            await aio.run(bundle, ["no-such-program"], state_root=state_root)
        with pytest.raises(TypeError, match="shlex"):
            await aio.run(bundle, "true", state_root=state_root)
        with pytest.raises(TypeError, match="memroy"):
            await aio.run(bundle, ["true"], memroy="1M")  # type: ignore[arg-type]

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []
    assert set(inspect.signature(aio.run).parameters) == set(inspect.signature(oci.run).parameters)


def test_a_timeout(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = ["sh", "-c", "echo early; sleep 1000 & sleep 1000"]
    options: dict[str, Any] = {"capture_output": True, "state_root": state_root}
    result = timed_out_with_output(lambda limit: run_async(aio.run(bundle, script, timeout=limit, **options)))
    assert (result.returncode, result.stdout) == (-9, b"early\n")
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.parametrize("after", [0.0, 0.001, 0.003, 0.01, 0.03, 0.2])
def test_cancelling_at_any_time_leaves_nothing(bundle: oci.Bundle, state_root: Path, prefix: str, after: float) -> None:
    async def main() -> None:
        for turn in range(4):
            name = f"{prefix}-{turn}"
            task = asyncio.create_task(
                aio.run(bundle, ["sleep", "1000"], capture_output=True, state_root=state_root, container_id=name)
            )
            await asyncio.sleep(after)
            task.cancel()
            if turn % 2:
                await asyncio.sleep(0.001)
                task.cancel()  # while it cleans up
            with pytest.raises(asyncio.CancelledError):
                await task
            assert oci.Container.list(state_root=state_root) == []

    run_async(main())


def cancelled_at(step: int, inner: Coroutine[Any, Any, Any], seen: list[int]) -> Coroutine[Any, Any, Any]:
    """A coroutine that is cancelled while it waits for the ``step``-th time; how often it waits goes to ``seen``."""

    class Steps:
        def __await__(self) -> Generator[Any, None, Any]:
            task = asyncio.current_task()
            failure: BaseException | None = None
            while True:
                try:
                    future = inner.throw(failure) if failure else inner.send(None)
                except StopIteration as stop:
                    return stop.value
                seen.append(step)
                if len(seen) == step and task is not None:
                    asyncio.get_running_loop().call_soon(task.cancel)
                failure = None
                try:
                    yield future
                except BaseException as error:
                    failure = error

    async def drive() -> Any:
        return await Steps()

    return drive()


@pytest.mark.parametrize("what", ["run", "create", "popen", "exec", "wait", "events", "communicate"])
def test_cancelling_at_any_await_leaves_nothing(bundle: oci.Bundle, state_root: Path, prefix: str, what: str) -> None:
    script = ["sh", "-c", "cat; sleep 0.02"]

    async def outside() -> None:
        if what == "run":
            result = await aio.run(bundle, script, input=b"x", capture_output=True, timeout=TIME_LIMIT, state_root=state_root)
            assert result.stdout == b"x"
            return
        created = aio.Container.create(
            f"{prefix}-made", bundle.with_args(script), state_root=state_root, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        async with created as container:
            container.stdin.write(b"x")
            container.stdin.close()
            await container.start()
            assert await container.stdout.read() == b"x"

    async def inside(container: aio.Container) -> None:
        if what == "exec":
            assert (await container.exec(script, input="x", capture_output=True, text=True, timeout=TIME_LIMIT)).stdout == "x"
        elif what == "wait":
            await container.wait(0.05)
        elif what == "events":
            async for _ in container.events(0.02):
                break
        else:
            async with container.popen(script, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
                if what == "communicate":
                    assert await process.communicate(b"x", timeout=TIME_LIMIT) == (b"x", b"")
                else:
                    process.stdin.write(b"x")
                    process.stdin.close()
                    assert await process.stdout.readline() == b"x"

    async def main() -> None:
        kept = None if what in ("run", "create") else await aio.Container.run(f"{prefix}-kept", bundle, state_root=state_root)
        expected = [] if kept is None else [kept.id]
        fds = 0
        for step in range(1, 80):
            seen: list[int] = []
            task = asyncio.create_task(cancelled_at(step, outside() if kept is None else inside(kept), seen))
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if len(seen) >= step:
                assert isinstance(outcome, asyncio.CancelledError), (step, outcome)
            else:
                assert outcome is None or (what == "wait" and isinstance(outcome, TimeoutError)), outcome
            assert [c.id for c in oci.Container.list(state_root=state_root)] == expected, step
            if kept is not None:
                await wait_until_async(lambda: kept.processes() == (kept.pid,), "the end of the others")
            await asyncio.sleep(0.01)  # transports close in the loop
            gc.collect()
            now = len(os.listdir("/proc/self/fd"))
            fds = fds or now
            assert now <= fds, step
            if len(seen) < step:
                break
        assert len(seen) < step
        assert step > 1
        if kept is not None:
            await kept.delete(force=True)

    run_async(main())


def test_what_waits_for_a_thread_is_not_begun_when_it_is_cancelled(bundle: oci.Bundle, state_root: Path) -> None:
    async def main() -> None:
        loop, gate = asyncio.get_running_loop(), threading.Event()
        busy = [loop.run_in_executor(None, gate.wait) for _ in range(40)]
        tasks = [asyncio.create_task(aio.run(bundle, ["true"], state_root=state_root)) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        assert {type(e) for e in await asyncio.gather(*tasks, return_exceptions=True)} == {asyncio.CancelledError}
        assert not state_root.exists()
        await asyncio.gather(*busy)

    run_async(main())


def test_communicate_again_after_a_timeout(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            text = "in\n" + "rest\n" * 50_000
            script = ["sh", "-c", "mkfifo /tmp/go; read x; echo first $x; read y </tmp/go; cat"]
            async with container.popen(script, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
                with pytest.raises(TimeoutError):
                    await process.communicate(text, timeout=0.2)
                await container.exec(["sh", "-c", "echo >/tmp/go"])
                assert await process.communicate(timeout=TIME_LIMIT) == ("first " + text, "")

    run_async(main())


def test_text_is_what_text_files_make_of_it(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            script = r"printf 'a\r\nb\rc\n'; printf '\303'; sleep 0.2; printf '\244\377'"
            expected = ["a\n", "b\n", "c\n", "\u00e4\udcff"]
            async with container.popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
                assert [line async for line in process] == expected
            async with container.popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
                parts = []
                while part := await process.stdout.read(1):
                    parts.append(part)
                assert "".join(parts) == "".join(expected)
            with container._sync.popen(["sh", "-c", script], stdout=PIPE, text=True) as same:
                assert list(same) == expected

    run_async(main())


def test_prune(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    created = oci.Container.run(prefix, bundle.with_args(["true"]), state_root=state_root)
    created.wait(TIME_LIMIT)
    assert run_async(aio.prune(state_root=state_root)) == (prefix,)
    created._close()


def test_the_whole_life(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Container.create(prefix, bundle, state_root=state_root) as container:
            assert (container.id, container.status) == (prefix, oci.Status.CREATED)
            await container.start()
            assert container.status is oci.Status.RUNNING
            assert aio.Container.load(prefix, state_root=state_root).pid == container.pid
            result = await container.exec(["sh", "-c", "echo $X; exit 4"], env=["X=y"], capture_output=True, text=True)
            assert (result.returncode, result.stdout) == (4, "y\n")
            await container.pause()
            with pytest.raises(oci.WrongStatus, match="paused"):
                await container.exec(["true"])
            await container.resume()
            with pytest.raises(TimeoutError):
                await container.wait(0.05)
            waits = [asyncio.create_task(container.wait()) for _ in range(5)]
            await container.kill("KILL")
            assert await asyncio.gather(*waits) == [-9] * 5
            assert container.status is oci.Status.STOPPED
        assert aio.Container.list(state_root=state_root) == []
        created = await aio.Container.run(prefix, bundle, state_root=state_root)
        await created.delete(force=True)

    run_async(main())


def test_lines_come_live(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = "for i in 1 2 3; do echo line $i; read answer; done; printf 'got %s' \"$answer\"; yes | head -c 300000 | tr -d '\\n'"

    async def main() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            for text in (True, False):
                lines: list[Any] = []
                process: aio.Process[Any]
                async with container.popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE, text=text) as process:
                    async for line in process:
                        lines.append(line)
                        if len(lines) < 4:
                            process.stdin.write("answer\n" if text else b"answer\n")
                            await process.stdin.drain()
                assert process.returncode == 0
                expected = ["line 1\n", "line 2\n", "line 3\n", "got answer" + "y" * 150_000]
                assert [line if text else line.decode() for line in lines] == expected

    run_async(main())


def test_a_process(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            process = await container.popen(
                ["sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done"], stdout=PIPE
            )
            assert await process.stdout.readline() == b"ready\n"
            with pytest.raises(TimeoutError):
                await process.wait(0.05)
            process.terminate()
            assert await asyncio.gather(process.wait(), process.wait()) == [4, 4]
            process.close()
            both = await container.popen(["sh", "-c", "cat; echo e >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
            assert await both.communicate("in" * 100_000) == ("in" * 100_000, "e\n")
            both.close()
            with pytest.raises(ZeroDivisionError):
                async with container.popen(["sleep", "1000"]) as sleeper:
                    raise ZeroDivisionError
            assert sleeper.returncode == -9
            async with container.popen(["sh", "-c", "tty; stty size"], terminal=True) as shell:
                shell.resize(11, 22)
                printed = await shell.stdout.read()
            assert b"/dev/pts/" in printed
            task = asyncio.create_task(container.exec(["sh", "-c", "sleep 1000 & sleep 1000"], capture_output=True))
            await wait_until_async(lambda: len(container.processes()) > 2, "the start")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await wait_until_async(lambda: container.processes() == (container.pid,), "the end of the others")
            script = ["sh", "-c", "echo early; sleep 1000 & sleep 1000"]
            with pytest.raises(oci.ProcessTimeout) as caught:
                await container.exec(script, capture_output=True, timeout=2 * SLOWER)
            assert caught.value.stdout == b"early\n"

    run_async(main())


def test_streams_of_a_created_container(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        created = aio.Container.create(prefix, bundle.with_args(["cat"]), state_root=state_root, stdin=PIPE, stdout=PIPE)
        async with created as container:
            await container.start()
            container.stdin.write(b"hello\n")
            container.stdin.close()
            assert await container.stdout.read() == b"hello\n"
            assert await container.wait(TIME_LIMIT) == 0

    run_async(main())


def test_the_loop_goes_on_meanwhile(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """Nothing that only waits has a thread of its own."""

    async def main() -> None:
        before = threading.active_count()
        async with aio.Container.run(prefix, bundle, state_root=state_root) as container:
            waits: list[Awaitable[Any]] = [asyncio.create_task(container.wait()) for _ in range(50)]
            execs = [asyncio.create_task(container.exec(["sleep", "1000"])) for _ in range(10)]
            await wait_until_async(lambda: sum(comm(pid) == "sleep" for pid in container.processes()) == 11, "eleven processes")
            limit = min(32, (os.cpu_count() or 1) + 4)
            assert threading.active_count() <= before + limit
            await container.kill("KILL")
            assert {result.returncode for result in await asyncio.gather(*execs)} == {-9}
            assert set(await asyncio.gather(*waits)) == {-9}

    run_async(main())


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("many_files")
def test_two_hundred_at_once(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def one(number: int) -> oci.Result[str]:
        return await aio.run(
            bundle, ["sh", "-c", f"cat; sleep 1; exit {number % 256}"], input=f"{number}\n" * 50, capture_output=True, text=True,
            state_root=state_root, container_id=f"{prefix}-{number}", timeout=300 * SLOWER,
        )  # fmt: skip

    async def main() -> None:
        tasks = [asyncio.create_task(one(number)) for number in range(200)]
        results = await asyncio.gather(*tasks)
        assert [result.returncode for result in results] == [number % 256 for number in range(200)]
        assert [result.stdout for result in results] == [f"{number}\n" * 50 for number in range(200)]
        cancelled = [asyncio.create_task(aio.run(bundle, ["sleep", "1000"], state_root=state_root)) for _ in range(40)]
        await wait_until_async(lambda: len(oci.Container.list(state_root=state_root)) > 5, "the start of six containers")
        for task in cancelled:
            task.cancel()
        assert {type(e) for e in await asyncio.gather(*cancelled, return_exceptions=True)} == {asyncio.CancelledError}

    start_lasting_thread(lambda: oci.run(bundle, ["true"], state_root=state_root, container_id=prefix))
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    run_async(main(), timeout=400)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert oci.Container.list(state_root=state_root) == []
