"""Removing what create made (runtime.md, Delete)."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import ExitStack

from ..engine import cgroup, undo
from ..engine.processes import KILL_TIMEOUT, describe_state, not_dead, pid_of, wait_init
from ..errors import ContainerNotFound, HookError, StateError, WrongStatus
from ..plan.model import HookProgram
from ..state import Entry, StateDocument, Status, state_of
from .status import current, first_process
from .supervise import end_supervisor

_PATIENCE = 10.0
"""Seconds for another operation on a container, before a deletion by force ends it."""


def _discard(bundle: str) -> None:
    from ..rootfs.layers import remove_ephemeral

    remove_ephemeral(bundle)


undo.register("bundle", _discard)


def delete(entry: Entry, own: int = -1, *, force: bool) -> None:
    """Delete a container; ``force`` kills it first and does not mind a damaged state.

    Raises:
        WrongStatus, StateError: its status does not allow it.
        TimeoutError: a process does not die of SIGKILL, or keeps the container locked.
    """
    with ExitStack() as stack:
        if not lock(stack, entry, force=force):
            return
        document, status = read(entry, force=force)
        if not force and not status.can_delete:
            raise WrongStatus(entry.id, "delete", status, "stopped")
        end(entry, document, status, own)
        sweep(entry, document)
    after_delete(document)


def lock(stack: ExitStack, entry: Entry, *, force: bool) -> bool:
    """Hold the container's lock until the stack is left; False when the container went while another operation had the lock.

    With ``force`` the container is killed when that operation keeps the lock, which ends the operation.
    """
    if not force:
        stack.enter_context(entry.locked())
        return True
    try:
        stack.enter_context(entry.locked(wait=_PATIENCE))
        return True
    except BlockingIOError:
        _kill_recorded(entry)
    try:
        stack.enter_context(entry.locked(wait=KILL_TIMEOUT))
    except ContainerNotFound:
        return False
    except BlockingIOError:
        message = f"container {entry.id!r} is locked by {_holder(entry)}: end that process, or wait for it"
        raise TimeoutError(errno.ETIMEDOUT, message) from None
    return True


def _kill_recorded(entry: Entry) -> None:
    """Kill what the state says that the container has, without its lock."""
    try:
        document, _ = read(entry, force=True)
    except ContainerNotFound:
        return
    pidfd = first_process(document)
    if pidfd is not None:
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        finally:
            os.close(pidfd)
    paths = [path for path in document.get("cgroups", []) if os.path.isdir(path)]
    if paths:
        cgroup.kill(paths)


def _holder(entry: Entry) -> str:
    """Name the process that holds the container's lock (proc_locks(5))."""
    info = os.stat(f"{entry.directory}/lock")
    wanted = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if wanted in fields and "->" not in fields:
                pid = int(fields[fields.index(wanted) - 1])
                return f"process {pid}, which is {describe_state(pid)}"
    return "another process"


def discard(entry: Entry, document: StateDocument) -> None:
    """Delete a container whose first process its maker has seen the end of. Raises ContainerNotFound: somebody else has."""
    with entry.locked():
        sweep(entry, document)
    after_delete(document)


def read(entry: Entry, *, force: bool) -> tuple[StateDocument, Status]:
    """Return the recorded state and the status now.

    Args:
        force: use the recovery record when the state is damaged.

    Raises:
        ContainerNotFound: there is no such container.
        StateError: what is recorded is damaged.
    """
    try:
        document = entry.read()
    except ContainerNotFound:
        raise
    except StateError:
        if not force:
            raise
        document = entry.recovered()
    return document, current(document).status


def sweep(entry: Entry, document: StateDocument) -> None:
    """Remove everything of a container whose first process is gone; the lock is held."""
    end_supervisor(document)
    undo.undo_all(document.get("undo", []))
    entry.remove()


def after_delete(document: StateDocument) -> None:
    """Run the poststop hooks: a failure is a warning, and the others still run (runtime.md, Lifecycle, 13)."""
    hooks = document.get("hooks", {}).get("poststop")
    if not hooks:
        return
    from ..engine.hooks import run
    from .warn import warn

    state = state_of(document)._replace(status=Status.STOPPED, pid=0)
    for hook in hooks:
        try:
            run("poststop", HookProgram(*hook), state)
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
            cgroup.thaw_killed(document.get("cgroups", []))
        pid = pid_of(pidfd)
        if wait_init(pid, pidfd, KILL_TIMEOUT) is None:
            raise TimeoutError(errno.ETIMEDOUT, not_dead(pid, f"the first process of container {entry.id!r}"))
    finally:
        os.close(pidfd)
