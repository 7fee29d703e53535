"""The processes in a container's cgroups: listing, signalling, freezing and killing them."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from ...errors import UnsupportedError
from .tree import GONE, read, read_if_exists, sort_likely, walk, write

_KILL_TIMEOUT: Final = 10.0
"""Seconds for processes to die of SIGKILL."""
_FREEZE_TIMEOUT: Final = 10.0
"""Seconds for processes to freeze. One that waits in the kernel, for a disk for example, freezes only when that wait is over."""


def processes(paths: Iterable[str]) -> set[int]:
    """Return the pids of the processes in these cgroups and their descendants. Raises OSError."""
    pids: set[int] = set()
    for path in paths:
        for directory in walk(path):
            try:
                pids.update(map(int, read(directory, "cgroup.procs").split()))
            except OSError as error:
                # A threaded cgroup of v2 lists none: they are listed in its threaded domain.
                if error.errno not in (*GONE, errno.EOPNOTSUPP):
                    raise
    pids.discard(0)  # a process of a pid namespace that the caller does not see
    return pids


# ---- signals ----


@contextmanager
def open_pidfds(list_pids: Callable[[], set[int]], pids: Iterable[int]) -> Iterator[list[int]]:
    """Open pidfds of processes, for the block. One whose pid ``list_pids`` no longer returns afterwards is left out."""
    opened: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                opened[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        listed = list_pids() if opened else set()
        yield [pidfd for pid, pidfd in opened.items() if pid in listed]
    finally:
        for pidfd in opened.values():
            os.close(pidfd)


def send(pidfds: Iterable[int], number: int) -> None:
    """Send a signal to processes, without those that have ended. Raises PermissionError."""
    for pidfd in pidfds:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            continue


def signal_all(paths: Sequence[str], number: int) -> None:
    """Send a signal to every process. They are frozen meanwhile, so that none of them can fork unseen.

    Raises:
        OSError: a signal is not permitted, or the processes do not freeze.
    """
    was_frozen = frozen(paths)
    thaw = not was_frozen and freeze(paths, True, needed=False)
    try:
        with open_pidfds(lambda: processes(paths), processes(paths)) as pidfds:
            send(pidfds, number)
    finally:
        if thaw:
            freeze(paths, False)


def kill(paths: Iterable[str]) -> None:
    """Kill every process in these cgroups and their descendants, frozen or not, and wait until they are dead.

    Raises:
        TimeoutError: a process does not die.
    """
    paths = list(paths)
    deadline = time.monotonic() + _KILL_TIMEOUT
    again = False
    while pids := processes(paths):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "processes do not die of SIGKILL", paths[0])
        for path in paths:
            kill_v2(path)
        thaw = again and freeze(paths, True, needed=False, timeout=0.1)  # they fork as fast as they are killed
        with open_pidfds(lambda: processes(paths), processes(paths) if thaw else pids) as pidfds:
            send(pidfds, signal.SIGKILL)
            if thaw:
                freeze(paths, False)
            thaw_killed(paths)
            wait(pidfds, deadline)
        again = True


def kill_v2(path: str) -> bool:
    """Kill every process of a v2 cgroup and its descendants at once, new ones included. Return False if the kernel cannot."""
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, b"1")
    except OSError as error:
        if error.errno not in (*GONE, errno.EOPNOTSUPP):  # EOPNOTSUPP: it is threaded
            raise
        return False
    finally:
        os.close(fd)
    return True


def wait(pidfds: Iterable[int], deadline: float) -> None:
    """Wait for the end of processes, until a time of `time.monotonic`."""
    poller = select.poll()
    pending = set(pidfds)
    for pidfd in pending:
        poller.register(pidfd, select.POLLIN)
    while pending and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in poller.poll(left * 1000):
            poller.unregister(pidfd)
            pending.discard(pidfd)


def remove(path: str) -> None:
    """Remove a cgroup and its descendants. Processes in them are killed.

    Raises:
        TimeoutError: a process does not die.
        OSError: this user may not remove it.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        kill([path])
        for directory in reversed(list(walk(path))[1:]):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
        time.sleep(0.0005)  # dead processes leave the cgroup a moment later


# ---- freezing ----


def frozen(paths: Iterable[str]) -> bool:
    """Return whether the processes are frozen or being frozen, by a freezer of v1 or v2."""
    paths = sort_likely(paths, "freezer")
    for path in paths:
        if (state := read_if_exists(path, "freezer.state")) is not None:
            return state.strip() != "THAWED"
    return any((read_if_exists(path, "cgroup.freeze") or "").strip() == "1" for path in paths)


def freeze(paths: Sequence[str], state: bool, *, needed: bool = True, timeout: float = _FREEZE_TIMEOUT) -> bool:
    """Freeze or thaw every process, and wait until the kernel has done it.

    Args:
        state: True to freeze, False to thaw.
        needed: whether failure is an error. Otherwise the result is False.
        timeout: seconds after which processes that do not freeze are thawed again.

    Raises:
        UnsupportedError: there is no freezer, and it is needed.
        TimeoutError: the processes do not freeze, and it is needed.
    """
    done: bool | None = None
    for path in paths:
        if os.path.exists(f"{path}/freezer.state"):
            done = _freeze_v1(path, state, timeout)
            break
    else:
        for path in paths:
            if os.path.exists(f"{path}/cgroup.freeze"):
                done = _freeze_v2(path, state, timeout)
                break
    if done is None and needed:
        raise UnsupportedError("no cgroup of the container has a freezer")
    if done is False and needed:
        raise TimeoutError(errno.ETIMEDOUT, f"the processes did not {'freeze' if state else 'thaw'}", *paths[:1])
    return bool(done)


def _freeze_v1(path: str, state: bool, timeout: float) -> bool:
    # There is no notification, and each write makes the kernel try again.
    target = "FROZEN" if state else "THAWED"
    deadline, pause = time.monotonic() + timeout, 0.0002
    write(path, "freezer.state", target)
    while (read_if_exists(path, "freezer.state") or target).strip() != target:
        if time.monotonic() > deadline:
            write(path, "freezer.state", "THAWED")
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        write(path, "freezer.state", target)
    return True


def _freeze_v2(path: str, state: bool, timeout: float) -> bool:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write(path, "cgroup.freeze", str(int(state)))
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        deadline = time.monotonic() + timeout
        while f"frozen {int(state)}" not in os.pread(events, 4096, 0).decode():
            if (left := deadline - time.monotonic()) <= 0:
                write(path, "cgroup.freeze", "0")
                return False
            poller.poll(left * 1000)
        return True
    finally:
        os.close(events)


def thaw_killed(paths: Iterable[str]) -> None:
    """Thaw processes that were sent SIGKILL, so that they die of it. A freezer of v1 holds them back, one of v2 does not."""
    for path in paths:
        if (read_if_exists(path, "freezer.state") or "THAWED").strip() != "THAWED":
            write(path, "freezer.state", "THAWED")
