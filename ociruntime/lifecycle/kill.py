"""Sending signals to a container (runtime.md, Kill), and listing its processes."""

from __future__ import annotations

import os
import signal
from typing import Final

from ..engine import cgroup
from ..engine.processes import pid_namespace_members
from ..errors import UnsupportedError, WrongStatus
from ..state import Entry, StateDocument, Status
from .status import current, first_process

_CLONE_NEWPID: Final = 0x20000000


def kill(entry: Entry, number: int, *, all: bool) -> None:
    """Send a signal to the init process of a container.

    Args:
        all: send it to every process of the container.

    Raises:
        WrongStatus: the container has ended.
        UnsupportedError: the processes of the container are not known.
    """
    document = entry.read()
    if all:
        _kill_all(document, number)
        return
    status = current(document).status
    if not status.can_kill:
        raise WrongStatus(entry.id, "kill", status, "created or running")
    pidfd = first_process(document)
    try:
        if pidfd is None:
            raise WrongStatus(entry.id, "kill", Status.STOPPED, "created or running")
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        raise WrongStatus(entry.id, "kill", Status.STOPPED, "created or running") from None
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if status is Status.PAUSED and number == signal.SIGKILL:
        cgroup.thaw_killed(document.get("cgroups", []))


def processes(document: StateDocument) -> set[int]:
    """Return the pids of a container, found by its cgroups, or by its pid namespace if it has no cgroups.

    Raises:
        UnsupportedError: it has neither.
    """
    paths = document.get("cgroups", [])
    if paths:
        return cgroup.processes(paths)
    pidfd = first_process(document)
    if pidfd is None:
        return set()
    os.close(pidfd)
    if not document.get("namespaces", 0) & _CLONE_NEWPID:
        raise UnsupportedError("the processes of a container that has neither cgroups nor a pid namespace of its own are not known")
    return pid_namespace_members(document["pid"])


def _kill_all(document: StateDocument, number: int) -> None:
    paths = document.get("cgroups", [])
    if not paths:
        for pid in processes(document):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    elif number == signal.SIGKILL:
        cgroup.kill(paths)
    else:
        cgroup.signal_all(paths, number)
