"""The processes in a container's cgroups: listed, signalled, frozen and killed."""

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
from .tree import GONE, below, likely, read, read_if_there, write

_LAST = 10.0
"""Seconds for processes to die of SIGKILL."""


def processes(paths: Iterable[str]) -> set[int]:
    """The processes in these cgroups, and in those that the container made below them."""
    pids: set[int] = set()
    for path in paths:
        for each in below(path):
            try:
                pids.update(map(int, read(each, "cgroup.procs").split()))
            except OSError as error:
                # A threaded cgroup of v2 lists none; its domain above has them.
                if error.errno not in (*GONE, errno.EOPNOTSUPP):
                    raise
    pids.discard(0)  # of another pid namespace than ours
    return pids


@contextmanager
def held(listed: Callable[[], set[int]], pids: Iterable[int]) -> Iterator[list[int]]:
    """Open pidfds: a pid is believed only if ``listed`` still gives it after it was opened."""
    opened: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                opened[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        still = listed() if opened else set()
        yield [pidfd for pid, pidfd in opened.items() if pid in still]
    finally:
        for pidfd in opened.values():
            os.close(pidfd)


def send(pidfds: Iterable[int], number: int) -> None:
    """Signal processes; those that are gone are past caring."""
    for pidfd in pidfds:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            continue


def signal_all(paths: Sequence[str], number: int) -> None:
    """Send a signal to every process at one moment: they are frozen meanwhile, so that none can be born unseen.

    Raises:
        OSError: a signal is not permitted, or the processes do not freeze.
    """
    stopped = frozen(paths)
    freezer = not stopped and freeze(paths, True, needed=False)
    try:
        with held(lambda: processes(paths), processes(paths)) as pidfds:
            send(pidfds, number)
    finally:
        if freezer:
            freeze(paths, False)


def kill(paths: Iterable[str]) -> None:
    """Kill everything in these cgroups and below them, frozen or not, and wait until it is dead.

    Raises:
        TimeoutError: something does not die; it hangs in the kernel.
    """
    paths = list(paths)
    deadline = time.monotonic() + _LAST
    again = False
    while pids := processes(paths):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "processes do not die of SIGKILL", paths[0])
        for path in paths:
            kill_v2(path)
        freezer = again and freeze(paths, True, needed=False, patience=0.1)  # they are born as fast as they die
        with held(lambda: processes(paths), processes(paths) if freezer else pids) as pidfds:
            send(pidfds, signal.SIGKILL)
            if freezer:
                freeze(paths, False)
            thaw_to_die(paths)
            wait(pidfds, deadline)
        again = True


def kill_v2(path: str) -> bool:
    """Kill all of a v2 cgroup and below it at once, also what is being born. Return False where the kernel does not."""
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, b"1")
    except OSError as error:
        if error.errno not in (*GONE, errno.EOPNOTSUPP):  # the latter: it is threaded
            raise
        return False
    finally:
        os.close(fd)
    return True


def wait(pidfds: Iterable[int], deadline: float) -> None:
    """Wait for the end of processes, until a time of `time.monotonic`."""
    poller = select.poll()
    waiting = set(pidfds)
    for pidfd in waiting:
        poller.register(pidfd, select.POLLIN)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in poller.poll(left * 1000):
            poller.unregister(pidfd)
            waiting.discard(pidfd)


def remove(path: str) -> None:
    """Remove a cgroup with all that is below it; what still runs there is killed.

    Raises:
        TimeoutError: something there does not die.
        OSError: this user may not remove it.
    """
    deadline = time.monotonic() + _LAST
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
        for each in reversed(list(below(path))[1:]):
            try:
                os.rmdir(each)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
        time.sleep(0.0005)  # dead processes are on their way out


_PATIENCE: Final = 10.0
"""Seconds for processes to freeze: one that waits in the kernel, for a disk say, does so only when that is over."""


def frozen(paths: Iterable[str]) -> bool:
    """Whether the processes are frozen, by a freezer of v1 or of v2."""
    paths = likely(paths, "freezer")
    for path in paths:
        if (state := read_if_there(path, "freezer.state")) is not None:
            return state.strip() != "THAWED"
    return any((read_if_there(path, "cgroup.freeze") or "").strip() == "1" for path in paths)


def freeze(paths: Sequence[str], frozen_: bool, *, needed: bool = True, patience: float = _PATIENCE) -> bool:
    """Freeze or thaw every process, and wait until the kernel says so.

    Args:
        needed: whether no freezer is an error; otherwise the answer is False.
        patience: seconds after which processes that do not freeze are thawed again.

    Raises:
        UnsupportedError: without a freezer, when it is needed.
        TimeoutError: they do not freeze, when it is needed.
    """
    done: bool | None = None
    for path in paths:
        if os.path.exists(f"{path}/freezer.state"):
            done = _v1(path, frozen_, patience)
            break
    else:
        for path in paths:
            if os.path.exists(f"{path}/cgroup.freeze"):
                done = _v2(path, frozen_, patience)
                break
    if done is None and needed:
        raise UnsupportedError("no cgroup of the container has a freezer")
    if done is False and needed:
        raise TimeoutError(errno.ETIMEDOUT, f"the processes did not {'freeze' if frozen_ else 'thaw'}", *paths[:1])
    return bool(done)


def _v1(path: str, frozen_: bool, patience: float) -> bool:
    # This kernel tells nobody when it is done; asking it moves it on.
    wanted = "FROZEN" if frozen_ else "THAWED"
    deadline, pause = time.monotonic() + patience, 0.0002
    write(path, "freezer.state", wanted)
    while (read_if_there(path, "freezer.state") or wanted).strip() != wanted:
        if time.monotonic() > deadline:
            write(path, "freezer.state", "THAWED")
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        write(path, "freezer.state", wanted)
    return True


def _v2(path: str, frozen_: bool, patience: float) -> bool:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write(path, "cgroup.freeze", str(int(frozen_)))
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        deadline = time.monotonic() + patience
        while f"frozen {int(frozen_)}" not in os.pread(events, 4096, 0).decode():
            if (left := deadline - time.monotonic()) <= 0:
                write(path, "cgroup.freeze", "0")
                return False
            poller.poll(left * 1000)
        return True
    finally:
        os.close(events)


def thaw_to_die(paths: Iterable[str]) -> None:
    """Let processes that were sent SIGKILL die of it: v1 keeps the frozen ones, v2 does not."""
    for path in paths:
        if (read_if_there(path, "freezer.state") or "THAWED").strip() != "THAWED":
            write(path, "freezer.state", "THAWED")
