"""Signals to a container (runtime.md, Kill), and which processes it has."""

from __future__ import annotations

import os
import signal

from ..engine import cgroup
from ..engine.processes import pid_namespace_members
from ..errors import UnsupportedError, WrongStatus
from ..state import Entry, StateDocument, Status
from .status import current, first_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_CLONE_NEWPID: Final = 0x20000000


def kill(entry: Entry, number: int, *, all: bool) -> None:
    """Send a signal to the first process, or to every one. Raises WrongStatus, UnsupportedError."""
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
    """Every process of a container, by its cgroups, or by its pid namespace where it has none.

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
        raise UnsupportedError("a container with neither cgroups nor a pid namespace of its own: its processes are not known")
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
