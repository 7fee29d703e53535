"""What a container is at this moment, and which operation that allows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..engine import cgroup
from ..errors import WrongStatus
from ..state import Entry, State, StateDocument, Status, state_of


def current(document: StateDocument) -> State:
    """The state now: what is recorded, corrected by what the processes and the freezer say."""
    cgroups = document.get("cgroups", [])
    state = state_of(document, frozen=document["status"] == Status.RUNNING and cgroup.frozen(cgroups))
    if state.status is Status.STOPPED and not state.oom_killed and out_of_memory(document):
        return state._replace(oom_killed=True)
    return state


def out_of_memory(document: StateDocument) -> bool:
    """Whether the kernel has killed something in a container for want of memory."""
    if cgroup.oom_kills(document.get("cgroups", [])):
        return True
    # systemd removes a scope's cgroup with its last process, and the count with it.
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
        from .supervise import tell_changed

        tell_changed(entry)


def first_process(document: StateDocument, own: int = -1) -> int | None:
    """A pidfd of the first process, or None when it is gone; ``own`` is the one of its maker, who must reap it."""
    if own >= 0:
        return os.dup(own)
    pid = document.get("pid", 0)
    if not pid:
        return None
    from ..engine.processes import open_process

    return open_process(pid, document.get("pid_start", 0))
