"""Locks between processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ociruntime.engine import launch
from ociruntime.files import LockFile, ProcessLock, sealed_memfd

from ..support.waiting import TIME_LIMIT

FLAGS = os.O_RDWR | os.O_CREAT


def in_child(function: Callable[[], bool]) -> bool:
    """Return what a function returns in a forked child."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIME_LIMIT)
        try:
            os._exit(0 if function() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_exclusive_and_shared(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with LockFile(path, FLAGS) as first, LockFile(path, FLAGS) as second:
        first.acquire()
        with pytest.raises(BlockingIOError):
            second.acquire(wait=False)
        with pytest.raises(BlockingIOError):
            second.acquire(shared=True, wait=0.05)
        threading.Timer(0.05, first.close).start()
        second.acquire(shared=True, wait=30)
        with LockFile(path, FLAGS) as third:
            third.acquire(shared=True, wait=False)
        os.unlink(path)
        assert second.removed
    assert first.closed
    assert second.closed


@pytest.mark.parametrize("directory", [True, False])
def test_a_forked_child_does_not_keep_it(tmp_path: Path, directory: bool) -> None:
    path, flags = (str(tmp_path), os.O_RDONLY | os.O_DIRECTORY) if directory else (str(tmp_path / "lock"), FLAGS)
    ready, go = os.pipe(), os.pipe()
    holder = LockFile(path, flags)
    holder.acquire()
    child = os.fork()
    if child == 0:  # it lives until the lock was taken again
        holder.close()
        os.write(ready[1], b"1" if holder.closed else b"0")
        os.read(go[0], 1)
        os._exit(0)
    try:
        assert os.read(ready[0], 1) == b"1"
        with LockFile(path, flags) as other:
            with pytest.raises(BlockingIOError):
                other.acquire(wait=False)  # the child did not release it either
            os.close(holder.fd)  # as the kernel does when the holder is killed
            other.acquire(wait=False)
    finally:
        os.write(go[1], b"1")
        os.waitpid(child, 0)
        for fd in (*ready, *go):
            os.close(fd)
    holder.fd = -1
    holder.close()


def test_a_child_takes_its_own(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")

    def child() -> bool:
        with LockFile(path, FLAGS) as own:
            own.acquire(wait=False)
            holder.close()  # has no effect on the file that has its number now
            return holder.closed and not own.removed

    with LockFile(path, FLAGS) as holder:
        assert in_child(child)


def test_a_fork_waits_for_an_open(tmp_path: Path) -> None:
    """Children that are forked while other threads open and close locks have none of them."""
    path, over = str(tmp_path / "lock"), threading.Event()

    def work() -> None:
        while not over.is_set():
            LockFile(path, FLAGS).close()

    def names() -> bool:
        return not any(os.path.realpath(f"/proc/self/fd/{fd}") == path for fd in os.listdir("/proc/self/fd"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert all(in_child(names) for _ in range(100))
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_child_finds_a_lock_of_threads_free() -> None:
    lock, taken, over = ProcessLock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            over.wait()

    def child() -> bool:
        with lock:
            return True

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        taken.wait()
        assert in_child(child)
    finally:
        over.set()
        thread.join()


def test_a_fork_waits_for_what_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked while another thread makes the memfd of the init can use it, and make its own."""
    begun = threading.Event()

    def slow(*arguments: Any, **options: Any) -> int:
        begun.set()
        time.sleep(0.2)
        return sealed_memfd(*arguments, **options)

    monkeypatch.setattr(launch, "_inits", {})
    monkeypatch.setattr(launch, "sealed_memfd", slow)
    thread = threading.Thread(target=launch.init_memfd)
    thread.start()
    try:
        begun.wait()
        assert in_child(lambda: launch.init_memfd() >= 0)
    finally:
        thread.join()
        os.close(launch.init_memfd())
