"""Signals to a container (runtime.md, Kill)."""

from __future__ import annotations

import os
import signal

from ..engine import cgroup
from ..engine.processes import pid_namespace_of
from ..errors import WrongStatus
from ..state import Entry, StateDocument, Status
from .status import current, first_process


def kill(entry: Entry, number: int, *, all: bool) -> None:
    """Send a signal to the first process, or to every one. Raises WrongStatus."""
    document = entry.read()
    status = current(document).status
    if all:
        _kill_all(document, number)
        return
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
        cgroup.freeze(document.get("cgroups", []), False)  # a frozen process on v1 dies only when it thaws


def _kill_all(document: StateDocument, number: int) -> None:
    cgroups = document.get("cgroups", [])
    if number == signal.SIGKILL and cgroups:
        cgroup.kill(cgroups)
        return
    # Without cgroups, as an unprivileged user's container has none, what belongs together is a pid namespace.
    for pid in cgroup.processes(cgroups) if cgroups else pid_namespace_of(document.get("pid", 0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
