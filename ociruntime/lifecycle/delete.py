"""Removing what create made (runtime.md, Delete)."""

from __future__ import annotations

import os
import signal

from ..engine import cgroup, undo
from ..engine.children import wait_first
from ..engine.processes import pid_of
from ..errors import ContainerNotFound, HookError, StateError, WrongStatus
from ..state import Entry, StateDocument, Status, state_of
from .status import current, first_process
from .supervise import end_supervisor

_DEATH = 10.0
"""Seconds for a process to die of SIGKILL."""


def delete(entry: Entry, own: int = -1, *, force: bool) -> None:
    """Delete a container; ``force`` kills it first and does not mind a damaged state. Raises WrongStatus, StateError."""
    with entry.locked():
        document, status = read(entry, force=force)
        if not force and not status.can_delete:
            raise WrongStatus(entry.id, "delete", status, "stopped")
        end(entry, document, status, own)
        sweep(entry, document)
    after_delete(document)


def discard(entry: Entry, document: StateDocument) -> None:
    """Delete a container whose first process its maker has seen the end of. Raises ContainerNotFound: somebody else has."""
    with entry.locked():
        sweep(entry, document)
    after_delete(document)


def read(entry: Entry, *, force: bool) -> tuple[StateDocument, Status]:
    """The recorded state and the status now; with ``force`` a state that cannot be understood is that of a stopped container."""
    try:
        document = entry.read()
        return document, current(document).status
    except ContainerNotFound:
        raise
    except StateError:
        if not force:
            raise
        return StateDocument(id=entry.id, bundle="", status=Status.STOPPED), Status.STOPPED


def sweep(entry: Entry, document: StateDocument) -> None:
    """Remove everything of a container whose first process is gone; the lock is held."""
    end_supervisor(document)
    undo.perform(document.get("undo", []))
    entry.remove()


def after_delete(document: StateDocument) -> None:
    """Run the poststop hooks: a failure is a warning, and the others still run (runtime.md, Lifecycle, 13)."""
    hooks = document.get("hooks", {}).get("poststop")
    if not hooks:
        return
    from ..engine.hooks import Hook, run
    from .warn import warn

    state = state_of(document)._replace(status=Status.STOPPED, pid=0)
    for hook in hooks:
        try:
            run("poststop", Hook(*hook), state)
        except HookError as error:
            warn([str(error)])


def end(entry: Entry, document: StateDocument, status: Status, own: int) -> None:
    """Kill the first process of a container and wait for its end; the lock is held. Raises TimeoutError."""
    pidfd = first_process(document, own)
    if pidfd is None:
        return
    try:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        if status is Status.PAUSED:
            cgroup.thaw_to_die(document.get("cgroups", []))
        if wait_first(pid_of(pidfd), pidfd, _DEATH) is None:
            raise TimeoutError(f"container {entry.id!r} did not die within {_DEATH:.0f} s of SIGKILL")
    finally:
        os.close(pidfd)
