"""Files of the kernel that are empty, end early, or hold names that a container chooses."""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime import files, host
from ociruntime.engine import processes
from ociruntime.engine.cgroup import memory_limit, tasks
from ociruntime.engine.cgroup.devices import current_lines
from ociruntime.engine.cgroup.stats import IoEntry, stats
from ociruntime.errors import StepError
from ociruntime.supervisor.protocol import receive_message, send_message

from ..support.processes import few_descriptors

# ---- processes ----


def test_pid_of_something_else_than_a_process() -> None:
    pidfd, fd = os.pidfd_open(os.getpid()), os.open("/dev/null", os.O_RDONLY)
    try:
        assert processes.pid_of(pidfd) == os.getpid()
        with pytest.raises(OSError, match="not a pidfd") as caught:
            processes.pid_of(fd)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(pidfd)
        os.close(fd)


def test_a_process_that_is_being_reaped_has_ended() -> None:
    """Linux answers as for a thread."""
    over, ids = threading.Event(), queue.SimpleQueue[int]()

    def work() -> None:
        ids.put(threading.get_native_id())
        over.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with pytest.raises(ProcessLookupError):
            files.open_pidfd(ids.get())
    finally:
        over.set()
        thread.join()
    os.close(files.open_pidfd(os.getpid()))


def test_an_empty_status_is_that_of_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "read", lambda fd, size: b"")
    assert files.read_stat(os.getpid()) is None
    assert files.start_time(os.getpid()) == 0
    assert processes.describe_state(os.getpid()) == "gone"


def test_a_process_whose_status_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(processes, "start_time", fail)
    with pytest.raises(OSError, match="Too many open files"):
        processes.open_process(os.getpid(), 1)
    assert os.listdir("/proc/self/fd") == before


def test_a_child_that_another_thread_has_just_closed() -> None:
    child = processes.ChildProcess(1, -1)
    processes._abandoned.append(child)
    try:
        processes.reap_abandoned()
    finally:
        processes._abandoned.remove(child)


def test_a_cgroup_whose_name_has_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "/a\rb\x0bc\u2028d"
    requested = []
    monkeypatch.setattr(host, "_base", lambda mountpoint, candidates: requested.append(candidates))
    host._hierarchies(f"1:name=systemd:{name}\n0::{name}\n")
    assert any(name in candidates for candidates in requested)


# ---- messages ----


def test_a_message_whose_descriptors_do_not_fit() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        before = os.listdir("/proc/self/fd")
        for free in (0, 1):
            send_message(ours, [0, 1], pid=1)
            with few_descriptors(free), pytest.raises(OSError, match="Too many open files") as caught:
                receive_message(theirs)
            assert caught.value.errno == errno.EMFILE
            assert os.listdir("/proc/self/fd") == before
        send_message(ours, [0, 1], pid=1)
        message, fds = receive_message(theirs)
        assert message == {"pid": 1}
        assert len(fds) == 2
        for fd in fds:
            assert stat.S_IFMT(os.fstat(fd).st_mode)
            os.close(fd)


# ---- cgroups ----


def test_devices_without_statistics(tmp_path: Path) -> None:
    """Some kernels print them without a newline, others print an empty line."""
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "io.stat").write_text("8:0 8:16 rbytes=5 wbytes=6 rios=1 wios=2 dbytes=0 dios=0\n\n7:0 \n")
    found = stats([str(tmp_path)])
    assert found.io is not None
    assert found.io.bytes == (IoEntry(8, 16, "Read", 5), IoEntry(8, 16, "Write", 6))
    assert found.io.operations == (IoEntry(8, 16, "Read", 1), IoEntry(8, 16, "Write", 2))


def test_files_that_are_empty(tmp_path: Path) -> None:
    names = [
        "cgroup.controllers", "cpu.stat", "cpu.pressure", "memory.pressure", "memory.current", "memory.stat", "memory.events", "io.stat",
        "io.pressure", "pids.current", "pids.max", "rdma.current", "hugetlb.2MB.rsvd.current", "hugetlb.2MB.events",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).write_text("")
    empty = stats([str(tmp_path)])
    assert (empty.cpu, empty.memory, empty.pids, empty.rdma) == (None, None, None, {})
    for name in names:
        (tmp_path / name).write_text("\n")
    assert attrs.evolve(stats([str(tmp_path)]), time=empty.time) == empty


@pytest.mark.parametrize(("file", "value"), [("memory.oom_control", "1"), ("io.weight", "100"), ("blkio.bfq.weight_device", "100")])
def test_a_file_with_nothing_to_restore(tmp_path: Path, file: str, value: str) -> None:
    for content in ("", "\n"):
        (tmp_path / file).write_text(content)
        assert current_lines(str(tmp_path), file, value) == []


def test_the_line_to_restore(tmp_path: Path) -> None:
    (tmp_path / "io.weight").write_text("default 100\n8:0 50\n")
    assert current_lines(str(tmp_path), "io.weight", "300") == ["100"]
    assert current_lines(str(tmp_path), "io.weight", "8:0 300") == ["8:0 50"]
    assert current_lines(str(tmp_path), "io.weight", "8:16 300") == ["8:16 default"]
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert current_lines(str(tmp_path), "memory.oom_control", "1") == ["0"]


# ---- memory limits ----

V1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes", "hits": ("memory.failcnt", "{}"), "cache": "cache"}
V2 = {"limit": "memory.max", "usage": "memory.current", "hits": ("memory.events", "low 0\nmax {}\noom 0"), "cache": "file"}


class StarvingProcess:
    """The files of a process and of its cgroup, as a process leaves them that waits for its own pages only."""

    def __init__(self, directory: Path, version: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.version = directory, version
        self.limit: object = 100 * 4096
        self.hits = self.faults = self.ticks = 0
        monkeypatch.setattr(tasks, "read_stat", lambda pid: [b"R"] + [b"0"] * 8 + [b"%d" % self.faults, b"0", b"%d" % self.ticks])

    def watch(self) -> tasks.StarvationWatch:
        return tasks.StarvationWatch([str(self.directory)], os.getpid(), "'true'", 7)

    def check(self, watch: tasks.StarvationWatch, hits: int, faults: int) -> None:
        self.hits, self.faults = hits, faults
        file, text = self.version["hits"]
        (self.directory / file).write_text(text.format(hits))
        (self.directory / self.version["limit"]).write_text(f"{self.limit}\n")
        (self.directory / self.version["usage"]).write_text("409600\n")
        (self.directory / "memory.stat").write_text(f"{self.version['cache']} 309600\nshmem 100000\n")
        watch.check()


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_a_process_that_starves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: dict[str, Any]) -> None:
    process = StarvingProcess(tmp_path, version, monkeypatch)
    watch = process.watch()
    process.check(watch, 5000, 90)
    process.check(watch, 6000, 100)  # it may have waited for each page once
    assert memory_limit([str(tmp_path)]) == (409600, 6000, 200000)
    with pytest.raises(
        StepError, match=r"^memory limit of 409600 bytes is too small to run 'true': .*; use [0-9]+ bytes"
    ) as caught:
        process.check(watch, 6001, 101)
    assert (caught.value.errno, caught.value.step) == (errno.ENOMEM, 7)
    process.check(watch, 60000, 1000)
    assert watch.over  # it is told once


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(
    ("change", "hits", "over"),
    [
        ({"ticks": os.sysconf("SC_CLK_TCK")}, 60000, True),  # it has begun
        ({}, 5050, False),  # the limit is not why it waits
        ({"limit": 64 << 20}, 60000, True),
        ({"limit": "max"}, 60000, True),
        ({"limit": 9223372036854771712}, 60000, True),
    ],
)
def test_a_process_that_does_not_starve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: dict[str, Any], change: dict[str, Any], hits: int, over: bool
) -> None:
    process = StarvingProcess(tmp_path, version, monkeypatch)
    vars(process).update(change)
    watch = process.watch()
    process.check(watch, 5000, 1000)
    process.check(watch, hits, 2000)
    assert watch.over == over
