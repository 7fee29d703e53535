"""The current status of a container, the operations that it allows, what the supervisor knows of it, and its events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Literal

from ..arguments import Duration, parse_seconds
from ..engine import cgroup
from ..engine.processes import open_process, wait_init
from ..errors import ProcessTimeout, WrongStatus, traced
from ..files import start_time
from ..store import Entry, StateRecord, Status

if TYPE_CHECKING:
    from ..engine.cgroup.stats import Stats
    from ..engine.cgroup.tasks import EventWatch
    from ..stats import Event, Recorder


SUPERVISOR_END: Final = 6.0
"""Seconds for a supervisor to end by itself: it lets slow clients read for five."""
_NOTIFY_TIMEOUT: Final = 1.0


def status_of(document: StateRecord) -> Status:
    """Return the current status: the recorded one, unless the init process has ended or the freezer has stopped it."""
    pid, began = document.get("pid", 0), document.get("pid_start", 0)
    if pid and (began == 0 or start_time(pid) != began):
        return Status.STOPPED
    status = Status(document["status"])
    if status is Status.RUNNING and cgroup.frozen(document.get("cgroups", [])):
        return Status.PAUSED
    return status


def current(document: StateRecord) -> StateRecord:
    """Return a record with the current status, and without the pid and the sockets of a container that has ended."""
    now: StateRecord = {**document, "status": status_of(document)}
    if now["status"] is Status.STOPPED:
        now["pid"], now["attach_socket"], now["control_socket"] = 0, "", ""
        now["oom_killed"] = document.get("oom_killed", False) or out_of_memory(document)
    return now


def out_of_memory(document: StateRecord) -> bool:
    """Return whether there was an OOM kill in a container."""
    if cgroup.oom_kills(document.get("cgroups", [])):
        return True
    # systemd removes a scope's cgroup, and its count, with the last process.
    scope = next((entry[3] for entry in document.get("undo", []) if entry[0] == "systemd_scope"), "")
    if not scope or os.path.exists(scope):
        return False

    return cgroup.logged_oom_kill(scope, document.get("pid", 0), document.get("pid_start", 0))


@contextmanager
def allowed(entry: Entry, operation: str, *statuses: Status) -> Iterator[StateRecord]:
    """Hold the container's lock for an operation that needs one of these statuses. Raises WrongStatus, ContainerNotFound."""
    with entry.locked():
        document = entry.read()
        status = status_of(document)
        if status not in statuses:
            raise WrongStatus(entry.id, operation, status, " or ".join(statuses))
        yield document
    if document.get("sync"):
        _notify_supervisor(entry)


def first_process(document: StateRecord, own: int = -1) -> int | None:
    """Return a pidfd of the init process; None if it has ended.

    Args:
        own: the pidfd of the process that created the container, and must reap it. It is duplicated.
    """
    if own >= 0:
        return os.dup(own)
    return _open_process(document.get("pid", 0), document.get("pid_start", 0))


def _open_process(pid: int, start_time: int) -> int | None:
    if not pid:
        return None

    return open_process(pid, start_time)


# ---- the supervisor ----


def supervisor_of(document: StateRecord) -> int | None:
    """Return a pidfd of the container's supervisor; None if it has none, or the supervisor has ended."""
    return _open_process(*document.get("supervisor", (0, 0)))


def _notify_supervisor(entry: Entry) -> None:
    """Tell the supervisor that the status has changed."""
    from ..supervisor.protocol import CONTROL_SOCKET, connect

    try:
        with connect(entry.directory, CONTROL_SOCKET) as peer:
            peer.settimeout(_NOTIFY_TIMEOUT)
            peer.sendall(b'{"stateChanged": true}')
    except (FileNotFoundError, ConnectionError, TimeoutError):
        pass  # the supervisor has ended with its container, and has sent that state itself


def recording(
    operation: Literal["create", "start", "exec"], container_id: str, outer: Recorder | None = None
) -> AbstractContextManager[Recorder | None]:
    """Return a block of an operation, with what notes the times of its steps if they are wanted.

    Args:
        outer: what notes those of the operation that this one is a part of.
    """
    if outer is not None or not traced():
        return nullcontext(outer)
    from ..stats import Recorder

    return Recorder(operation, container_id)


def check_start(document: StateRecord) -> Callable[[], None]:
    """Return a function that raises StepError when the program of a container cannot begin within its memory limit."""
    program = f"container {document['id']!r}"
    return cgroup.StarvationWatch(document.get("cgroups", []), document["pid"], program, document.get("total", 0)).check


def wait_supervised(entry: Entry, document: StateRecord, own: int, timeout: float | None) -> int | None:
    """Wait for the end of a supervised container and return its exit code.

    Returns:
        None if the exit code is not known, because the supervisor was killed.

    Raises:
        ProcessTimeout: it still runs after ``timeout`` seconds.
        StepError: its program cannot begin within its memory limit.
    """

    returncode = None
    pidfd = first_process(document, own)
    if pidfd is not None:
        try:
            exit = wait_init(document["pid"], pidfd, timeout, check_start(document))
        finally:
            os.close(pidfd)
        if exit is None:
            assert timeout is not None
            raise ProcessTimeout(f"container {entry.id!r}", timeout)
        returncode = exit.returncode
    return _read_after_end(entry).get("exit_code", returncode)


def _read_after_end(entry: Entry) -> StateRecord:
    """Return the state of a supervised container that has ended, once the supervisor has recorded the exit code or has ended."""
    deadline = time.monotonic() + SUPERVISOR_END
    while True:
        document = entry.read()
        if "exit_code" in document or time.monotonic() > deadline:
            return document
        pidfd = supervisor_of(document)
        if pidfd is None:
            return entry.read()  # it may have recorded the exit code after the first read
        os.close(pidfd)
        time.sleep(0.002)


_CLONE_NEWNET: Final = 0x40000000


def stats(entry: Entry) -> Stats:
    """Return what a container uses. Errors are those of `Container.stats`."""

    from ..engine.cgroup.stats import stats as read_stats

    document = entry.read()
    own_network = bool(document.get("namespaces", 0) & _CLONE_NEWNET)
    return read_stats(document.get("cgroups", []), current(document).get("pid", 0) if own_network else 0)


def watch(entry: Entry, own: int = -1) -> EventWatch:
    """Start watching a container. Raises WrongStatus: it is stopped."""

    from ..engine.cgroup.tasks import EventWatch

    document = entry.read()
    pidfd = first_process(document, own) if status_of(document).can_kill else None
    if pidfd is None:
        raise WrongStatus(entry.id, "watch", Status.STOPPED, "created or running")
    return EventWatch(document.get("cgroups", []), document["pid"], pidfd)


def events(entry: Entry, own: int, interval: Duration | None) -> Iterator[Event]:
    """Yield events until the exit. Arguments and errors are those of `Container.events`."""
    timer = StatsTimer(interval)
    return _follow(entry, watch(entry, own), timer)


def _follow(entry: Entry, watcher: EventWatch, timer: StatsTimer) -> Iterator[Event]:
    from ..stats import Event

    with watcher:
        while not watcher.ended:
            yield from watcher.read(timer.left())
            if timer.expired() and not watcher.ended:
                yield Event("stats", time.time_ns(), stats=stats(entry))


class StatsTimer:
    """Expires once per interval, for events with statistics.

    Args:
        interval: seconds; None to expire never. Raises ValueError: it is not positive.
    """

    def __init__(self, interval: Duration | None) -> None:
        self._interval = parse_seconds("interval", interval)
        if self._interval is not None and self._interval <= 0:
            raise ValueError(f"interval is {interval}: more than 0 seconds is needed")
        self._next = time.monotonic() + (self._interval or 0)

    def left(self) -> float | None:
        """Return the seconds until it expires; None for never."""
        return None if self._interval is None else max(0.0, self._next - time.monotonic())

    def expired(self) -> bool:
        """Return whether it has expired. If so, the next interval begins."""
        if self._interval is None or time.monotonic() < self._next:
            return False
        self._next = max(self._next + self._interval, time.monotonic())
        return True
