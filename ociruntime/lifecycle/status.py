"""The current status of a container, the operations that it allows, and what the supervisor knows of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..engine import cgroup
from ..errors import ProcessTimeout, WrongStatus
from ..state import Entry, State, StateDocument, Status, state_of

SUPERVISOR_END: Final = 6.0
"""Seconds for a supervisor to end by itself: it lets slow clients read for five."""
_NOTIFY_TIMEOUT: Final = 1.0


def current(document: StateDocument) -> State:
    """Return the current state: the recorded one, corrected by what the processes and the freezer say."""
    cgroups = document.get("cgroups", [])
    state = state_of(document, frozen=document["status"] == Status.RUNNING and cgroup.frozen(cgroups))
    if state.status is Status.STOPPED and not state.oom_killed and out_of_memory(document):
        return state._replace(oom_killed=True)
    return state


def out_of_memory(document: StateDocument) -> bool:
    """Return whether there was an OOM kill in a container."""
    if cgroup.oom_kills(document.get("cgroups", [])):
        return True
    # systemd removes a scope's cgroup, and its count, with the last process.
    scope = next((entry[3] for entry in document.get("undo", []) if entry[0] == "systemd_scope"), "")
    if not scope or os.path.exists(scope):
        return False
    from ..engine.cgroup.account import logged_oom_kill

    return logged_oom_kill(scope, document.get("pid", 0), document.get("pid_start", 0))


@contextmanager
def allowed(entry: Entry, operation: str, *statuses: Status) -> Iterator[StateDocument]:
    """Hold the container's lock for an operation that needs one of these statuses. Raises WrongStatus, ContainerNotFound."""
    with entry.locked():
        document = entry.read()
        status = current(document).status
        if status not in statuses:
            raise WrongStatus(entry.id, operation, status, " or ".join(statuses))
        yield document
    if document.get("sync"):
        _notify_supervisor(entry)


def first_process(document: StateDocument, own: int = -1) -> int | None:
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
    from ..engine.processes import open_process

    return open_process(pid, start_time)


# ---- the supervisor ----


def supervisor_of(document: StateDocument) -> int | None:
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


def wait_supervised(entry: Entry, document: StateDocument, own: int, timeout: float | None) -> int | None:
    """Wait for the end of a supervised container and return its exit code.

    Returns:
        None if the exit code is not known, because the supervisor was killed.

    Raises:
        ProcessTimeout: it still runs after ``timeout`` seconds.
    """
    from ..engine.processes import wait_init

    returncode = None
    pidfd = first_process(document, own)
    if pidfd is not None:
        try:
            exit = wait_init(document["pid"], pidfd, timeout)
        finally:
            os.close(pidfd)
        if exit is None:
            assert timeout is not None
            raise ProcessTimeout(f"container {entry.id!r}", timeout)
        returncode = exit.returncode
    return _read_after_end(entry).get("exit_code", returncode)


def _read_after_end(entry: Entry) -> StateDocument:
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
