"""Statistics, events and OOM kills."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.cli import main
from ociruntime.engine.cgroup.stats import PidsStats

from ..support.cgroups import Limited, on_v2, own_cgroups
from ..support.places import MiB
from ..support.waiting import SLOWER, TIME_LIMIT, wait_until

pytestmark = [pytest.mark.root, pytest.mark.vm]
GLUTTON = ["sh", "-c", "read x; tail /dev/zero; true"]
SMALL = {"memory": {"limit": 20 * MiB, "swap": 20 * MiB}}


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        try:
            os.close(fd)
        except OSError:
            continue  # the test did


def test_what_it_uses(limited: Limited, pipe: tuple[int, int]) -> None:
    hold = ["sh", "-c", "x=$(head -c 8000000 /dev/zero | tr '\\0' x); sleep 100 & echo ready; wait; echo $x"]
    resources = {"memory": {"limit": 64 * MiB, "swap": 96 * MiB}, "pids": {"limit": 30}, "cpu": {"quota": 50000}}
    with limited(resources, hold, start=True, stdout=pipe[1]) as container:
        assert os.read(pipe[0], 6) == b"ready\n"
        # The program may have taken less than one period, of 100 ms. The kernel counts it at its end.
        wait_until(lambda: (cpu := container.stats().cpu) and cpu.periods, "the end of a period of the quota")
        before = time.time_ns()
        stats = container.stats()
        assert before <= stats.time <= time.time_ns()
        assert stats.memory is not None
        assert stats.pids is not None
        assert 8 * 10**6 < stats.memory.usage < 64 * MiB
        assert stats.memory.limit == 64 * MiB
        assert stats.memory.swap is not None
        assert stats.memory.swap.limit == 96 * MiB
        assert stats.memory.peak is None or stats.memory.peak >= stats.memory.usage
        assert stats.memory.oom_kills == 0
        assert stats.memory.stat
        assert stats.pids == PidsStats(current=2, limit=30)
        assert stats.cpu is not None
        assert stats.cpu.usage is not None
        assert stats.cpu.periods is not None
        assert 0 < stats.cpu.usage < 60 * 10**9
        assert stats.cpu.periods > 0
        assert [interface.name for interface in stats.interfaces] == ["lo"]
        again = container.stats().cpu
        assert again is not None
        assert again.usage is not None
        assert again.usage >= stats.cpu.usage


@pytest.mark.skipif(not all(map(shutil.which, ("ip", "nsenter"))), reason="needs ip and nsenter (Debian: iproute2, util-linux)")
def test_an_interface_with_a_name_of_other_letters(limited: Limited) -> None:
    """The kernel takes almost any bytes; those that are not UTF-8 are kept as in names of files."""
    with limited({}, start=True) as container:
        for name in ("lö", os.fsdecode(b"l\xff")):
            [old] = container.stats().interfaces
            command = ["nsenter", "-n", "-t", str(container.pid), "ip", "link", "set"]
            subprocess.run([*command, old.name, "down"], check=True)  # before Linux 6.2, an interface that is up keeps its name
            subprocess.run([*command, old.name, "name", name], check=True)
            subprocess.run([*command, name, "up"], check=True)
            assert [interface.name for interface in container.stats().interfaces] == [name]


def test_it_is_quick(limited: Limited, pipe: tuple[int, int]) -> None:
    """A bound that only a change of kind would break: this machine may be busy, or emulated."""
    with limited({}, start=True) as container:
        times = []
        for _ in range(30):
            began = time.perf_counter()
            container.stats()
            times.append(time.perf_counter() - began)
        assert statistics.median(times) < 0.05 * SLOWER


def test_statistics_as_the_peers_print_them(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    with limited({"memory": {"limit": 64 * MiB}, "pids": {"limit": 30}}, start=True) as container:
        command = ["--root", str(limited.root), "events", "--stats", container.id]
        assert main(command) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["type"], document["id"]) == ("stats", container.id)
        data = document["data"]
        assert set(data) | {"cpuset"} == {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"}
        assert data["cpu"]["usage"]["total"] > 0
        assert {"kernel", "user"} <= set(data["cpu"]["usage"])
        assert data["memory"]["usage"]["limit"] == 64 * MiB
        assert data["memory"]["usage"]["usage"] > 0
        assert data["memory"]["raw"]
        assert set(data["memory"]) - {"psi", "kernelTCP"} == {"cache", "usage", "swap", "kernel", "raw"}
        assert data["memory"]["kernel"]["limit"] == ((1 << 64) - 1 if on_v2("memory") else (1 << 63) - os.sysconf("SC_PAGESIZE"))
        assert len(data.get("cpuset", ())) == (0 if on_v2("cpuset") else 11)
        if not on_v2("cpuset"):
            assert set(data["cpuset"]["cpus"]) == os.sched_getaffinity(container.pid)
            usage = data["cpu"]["usage"]
            assert len(usage["percpu"]) == len(usage["percpu_user"]) == len(usage["percpu_kernel"]) == os.cpu_count()
            assert sum(usage["percpu"]) > 0
        assert data["pids"] == {"current": 1, "limit": 30}
        assert data["network_interfaces"][0]["Name"] == "lo"
        assert set(data["network_interfaces"][0]) == {
            f"{way}{what}" for way in ("Rx", "Tx") for what in ("Bytes", "Packets", "Errors", "Dropped")} | {"Name"}  # fmt: skip
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        assert main(command) == 1


class Follower:
    """Reads events in a thread of its own."""

    def __init__(self, events: Iterator[oci.Event]) -> None:
        self.kinds: list[str] = []
        self.seen: list[oci.Event] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(events,))
        self._thread.start()

    def _read(self, events: Iterator[oci.Event]) -> None:
        for event in events:
            with self._changed:
                self.seen.append(event)
                self.kinds.append(event.kind)
                self._changed.notify_all()

    def wait_for(self, kind: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: kind in self.kinds, TIME_LIMIT), self.kinds

    def end(self) -> list[str]:
        self._thread.join(TIME_LIMIT)
        assert not self._thread.is_alive(), self.kinds
        return self.kinds


def test_paused_resumed_exit(limited: Limited) -> None:
    with limited({}, start=True) as container:
        follower = Follower(container.events())
        container.pause()
        follower.wait_for("paused")
        container.resume()
        follower.wait_for("resumed")
        container.kill("KILL")
        assert follower.end() == ["paused", "resumed", "exit"]
        container.wait(TIME_LIMIT)
        with pytest.raises(oci.WrongStatus):
            container.events()


@pytest.mark.parametrize("nested", [False, True])
def test_out_of_memory(limited: Limited, pipe: tuple[int, int], nested: bool) -> None:
    """A process of the container is killed; the first one goes on, and is not told to have been."""
    with limited(SMALL, GLUTTON, start=True, stdin=pipe[0]) as container:
        if nested:
            for path in own_cgroups(container):
                if (path / "memory.limit_in_bytes").exists():
                    (path / "sub").mkdir()
                    (path / "sub/memory.limit_in_bytes").write_text(str(10 * MiB))
                    (path / "sub/cgroup.procs").write_text(str(container.pid))
        follower = Follower(container.events())
        os.write(pipe[1], b"\n")
        kinds = follower.end()
        assert kinds[-1] == "exit"
        assert "oom" in kinds
        assert [event.kills for event in follower.seen if event.kind == "oom"][-1] == 1
        assert container.wait(TIME_LIMIT) == 0
        state = container.state
        assert state.oom_killed
        assert state.to_dict()["oomKilled"] is True
        assert container.stats().memory.oom_kills == 1  # type: ignore[union-attr]


def test_the_state_knows_without_a_wait(limited: Limited, pipe: tuple[int, int]) -> None:
    with limited(SMALL, ["sh", "-c", "read x; exec tail /dev/zero"], start=True, stdin=pipe[0]) as container:
        os.write(pipe[1], b"\n")
        assert Follower(container.events()).end()[-1] == "exit"
        assert oci.Container.load(container.id, state_root=limited.root).state.oom_killed
        assert container.wait(TIME_LIMIT) == -9


@pytest.mark.skipif(not on_v2("memory"), reason="needs cgroup v2")
def test_a_container_that_dies_as_a_whole(limited: Limited, pipe: tuple[int, int]) -> None:
    """memory.oom.group: its first process is killed for what another one took."""
    resources = {**SMALL, "unified": {"memory.oom.group": "1"}}
    with limited(resources, ["sh", "-c", "read x; (tail /dev/zero); sleep 100"], start=True, stdin=pipe[0]) as container:
        os.write(pipe[1], b"\n")
        assert container.wait(TIME_LIMIT) == -9
        assert container.state.oom_killed
        assert container.stats().memory.oom_kills >= 2  # type: ignore[union-attr]


def test_another_kill_is_not_an_oom_kill(limited: Limited) -> None:
    with limited(SMALL, start=True) as container:
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9
        assert not container.state.oom_killed
        assert "oomKilled" not in container.state.to_dict()


def test_pressure(limited: Limited, pipe: tuple[int, int]) -> None:
    if not on_v2("memory"):
        pytest.skip("pressure on memory of v1 is a matter of luck in a small cgroup without swap")
    resources = {"memory": {"limit": 64 * MiB, "swap": 64 * MiB}, "unified": {"memory.high": str(4 * MiB)}}
    with limited(resources, ["sh", "-c", "read x; tail /dev/zero"], start=True, stdin=pipe[0]) as container:
        follower = Follower(container.events())
        os.write(pipe[1], b"\n")
        follower.wait_for("pressure")
        container.kill("KILL")
        assert follower.end()[-1] == "exit"


def test_intervals(limited: Limited) -> None:
    with limited({}, start=True) as container:
        follower = Follower(container.events(0.01))
        follower.wait_for("stats")
        container.kill("KILL")
        kinds = follower.end()
        assert set(kinds) == {"stats", "exit"}
        assert all((event.stats is not None) == (event.kind == "stats") for event in follower.seen)
        container.wait(TIME_LIMIT)
    with limited({}, start=True) as container, pytest.raises(ValueError, match="interval"):
        container.events(0)


def test_events_that_are_not_read_cost_little(limited: Limited) -> None:
    with limited({}, start=True) as container:
        before = len(os.listdir("/proc/self/fd"))
        container.events()
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_thread(limited: Limited) -> None:
    """Two tasks look on at once, in one loop."""

    async def look(container: aio.Container, **options: Any) -> list[str]:
        return [event.kind async for event in container.events(**options)]

    async def work(name: str) -> tuple[list[str], list[str]]:
        container = aio.Container.load(name, state_root=limited.root)
        assert (await container.stats()).pids
        threads = threading.active_count()
        tasks = [asyncio.create_task(look(container)), asyncio.create_task(look(container, interval=0.02))]
        await asyncio.sleep(0.1)
        assert threading.active_count() == threads
        for call in (container.pause, container.resume):
            await call()
            await asyncio.sleep(0.05)
        await container.kill("KILL")
        first, second = await asyncio.wait_for(asyncio.gather(*tasks), 20)
        return first, second

    with limited({}, start=True) as container:
        first, second = asyncio.run(work(container.id))
        assert first == ["paused", "resumed", "exit"]
        assert [kind for kind in second if kind != "stats"] == first
        assert "stats" in second
        container.wait(TIME_LIMIT)


def test_the_command(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    with limited({}, start=True) as container:
        command = ["--root", str(limited.root), "events", "--interval", "10ms", container.id]
        done: list[int] = []
        thread = threading.Thread(target=lambda: done.append(main(command)))
        thread.start()
        lines: list[str] = []
        while not lines:
            lines = capsys.readouterr().out.splitlines()
        container.kill("KILL")
        thread.join(TIME_LIMIT)
        lines += capsys.readouterr().out.splitlines()
        assert done == [0]
        documents = [json.loads(line) for line in lines]
        assert {document["type"] for document in documents} == {"stats", "exit"}
        assert documents[-1] == {"type": "exit", "id": container.id}
        container.wait(TIME_LIMIT)


@pytest.mark.parametrize("text", ["", "x", "5x", "-1s", "0"])
def test_times_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["events", f"--interval={text}", "id"])
    assert "--interval" in capsys.readouterr().err
