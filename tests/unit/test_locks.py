"""Locks between processes."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine import launch
from ociruntime.files import LockFile, ProcessLock, sealed_memfd
from ociruntime.store import StateStore

from ..support.users import UID
from ..support.waiting import TIME_LIMIT, wait_until

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


def _symlink(path: Path) -> None:
    (path.parents[2] / "target").touch()
    path.symlink_to(path.parents[2] / "target")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


ODD: dict[str, Callable[[Path], None]] = {
    "symbolic link": _symlink,
    "FIFO": os.mkfifo,
    "directory": Path.mkdir,
    "socket": _socket,
}


@pytest.mark.parametrize("kind", ODD)
def test_only_a_regular_file_is_a_lock(tmp_path: Path, kind: str) -> None:
    entry = StateStore(tmp_path / "state").create("c")
    ODD[kind](tmp_path / "state/c/lock")
    before = os.listdir("/proc/self/fd")
    message = f"cannot write {tmp_path}/state/c/lock: a {kind}, not a regular file; remove it"
    with pytest.raises(oci.StateError, match=message), entry.locked():
        pass
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.root
def test_a_lock_of_another_user(tmp_path: Path) -> None:
    """Only root can make one in the directory of a container."""
    entry = StateStore(tmp_path / "state").create("c")
    (tmp_path / "state/c/lock").touch(0o600)
    for path in (tmp_path / "state", tmp_path / "state/c"):
        os.chown(path, UID, UID)
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(path.stat().st_mode | 0o011)

    def is_refused() -> bool:
        os.setgroups(())
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
        message = f"cannot write {tmp_path}/state/c/lock: permission denied; see that it can be written"
        with pytest.raises(oci.StateError, match=message), entry.locked():
            pass
        return True

    assert in_child(is_refused)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_that_is_gone_after_the_wait(tmp_path: Path, how: str) -> None:
    """Its holder has removed the container. Another file with its name is the lock of another container."""
    entry = StateStore(tmp_path / "state").create("c")
    path = tmp_path / "state/c/lock"
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        stack.enter_context(entry.locked())
        inode = path.stat().st_ino

        def waiting() -> bool:
            return any("->" in line and line.split()[-3].endswith(f":{inode}") for line in open("/proc/locks"))

        def wait_for_it() -> None:
            with entry.locked():
                pass

        waiter = threads.submit(wait_for_it)
        wait_until(waiting, "the wait for the lock")
        path.rename(tmp_path / "old") if how == "replaced" else path.unlink()
        if how == "replaced":
            path.touch()
        stack.close()
        with pytest.raises(oci.ContainerNotFound):
            waiter.result()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_filesystem_that_cannot_lock(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network filesystems answer so: one is mounted without locks, or the service for them is gone."""
    StateStore(tmp_path).create("c")

    def refuse(fd: int, kind: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(oci.HostError) as caught:
        oci.prune(state_root=tmp_path)
    reason = "input/output error" if code == errno.EIO else "no locks available"
    assert str(caught.value).startswith(f"cannot prune {tmp_path}: {reason}: {tmp_path}/c/lock; ")
    assert ("Lustre" in str(caught.value)) == (code != errno.EIO)
