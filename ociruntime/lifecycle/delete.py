"""Sending signals to a container (runtime.md, Kill), and deleting what create made (runtime.md, Delete)."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import ExitStack
from typing import Final

from ..engine import cgroup, undo
from ..engine.processes import (
    KILL_TIMEOUT,
    describe_state,
    ended_within,
    is_init,
    not_dead,
    open_process,
    pid_inside,
    pid_namespace_members,
    pid_of,
    reap_abandoned,
    wait_init,
    wait_killed,
)
from ..errors import ContainerNotFound, HookError, StateError, UnsupportedError, WrongStatus, warn
from ..store import Entry, StateRecord, Status, oci_state
from .status import SUPERVISOR_END, first_process, status_of, supervisor_of

NETWORK_END: Final = 1.0
"""Seconds for the guard of a private network to end by itself, after the container."""
_LOCK_TIMEOUT: Final = 10.0
"""Seconds for another operation on the container to end, before a deletion by force ends it."""


def _discard(bundle: str) -> None:
    from ..rootfs.mount import remove_ephemeral

    remove_ephemeral(bundle)


def _leave(directory: str, container: str) -> None:
    from ..rootfs.uppers import leave

    leave(directory, container)


undo.register("bundle", _discard)
undo.register("overlay", _leave)


def delete(entry: Entry, own: int = -1, *, force: bool) -> None:
    """Delete a container.

    Args:
        own: the pidfd of the init process in the process that created it; -1 in others.
        force: kill the container first, and delete it even if its state is damaged.

    Raises:
        WrongStatus: the container is not stopped.
        StateError: its state is damaged.
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
    """Hold the container's lock until the stack is closed.

    With ``force`` the container is killed if another operation keeps the lock, because that ends the operation.

    Returns:
        False if the container was deleted while another operation had the lock.
    """
    if not force:
        stack.enter_context(entry.locked())
        return True
    try:
        stack.enter_context(entry.locked(wait=_LOCK_TIMEOUT))
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
    """Kill the processes that the state records, without the container's lock."""
    try:
        document, _ = read(entry, force=True)
    except ContainerNotFound:
        return
    pidfd = first_process(document)
    if pidfd is not None:
        try:
            _kill(pidfd)
        finally:
            os.close(pidfd)
    paths = [path for path in document.get("cgroups", []) if os.path.isdir(path)]
    if paths:
        cgroup.kill(paths)


def _holder(entry: Entry) -> str:
    """Return the name of the process that holds the container's lock (proc_locks(5))."""
    info = os.stat(f"{entry.directory}/lock")
    inode = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with open("/proc/locks", encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if inode in fields and "->" not in fields:
                pid = int(fields[fields.index(inode) - 1])
                return f"process {pid}, which is {describe_state(pid)}"
    return "another process"


def discard(entry: Entry, document: StateRecord) -> None:
    """Delete a container whose init process has ended. Raises ContainerNotFound: another process has deleted it."""
    with entry.locked():
        sweep(entry, document)
    after_delete(document)


def read(entry: Entry, *, force: bool) -> tuple[StateRecord, Status]:
    """Return the recorded state and the current status.

    Args:
        force: use the recovery record when the state is damaged.

    Raises:
        ContainerNotFound: the container does not exist.
        StateError: the record is damaged.
    """
    try:
        document = entry.read()
    except ContainerNotFound:
        raise
    except StateError:
        if not force:
            raise
        document = entry.recovered()
    return document, status_of(document)


def living(entry: Entry) -> StateRecord | None:
    """Return the state of a container that has not ended; None if it was deleted, or if its creator ended before it was created."""
    try:
        document, status = read(entry, force=True)
        has_ended = _is_abandoned(entry) if status is Status.CREATING else status is Status.STOPPED
    except ContainerNotFound:
        return None
    return None if has_ended else document


def _is_abandoned(entry: Entry) -> bool:
    """Return whether the creator of a container that is being created has ended. Raises ContainerNotFound."""
    try:
        with entry.locked(wait=False):
            return True
    except BlockingIOError:
        return False


def sweep(entry: Entry, document: StateRecord) -> None:
    """Remove everything of a container whose init process has ended. The caller holds the lock."""
    _end_supervisor(entry, document)
    _end_network(entry, document)
    undo.undo_all(document.get("undo", []))
    entry.remove()


def _end_supervisor(entry: Entry, document: StateRecord) -> None:
    """Wait for the end of the supervisor of a container that has ended, and kill it if that takes too long. Raises TimeoutError."""
    pidfd = supervisor_of(document)
    if pidfd is None:
        return
    try:
        if not ended_within(pidfd, SUPERVISOR_END):
            _kill(pidfd)
            wait_killed(document["supervisor"][0], pidfd, f"the supervisor of container {entry.id!r}")
    finally:
        os.close(pidfd)


def _end_network(entry: Entry, document: StateRecord) -> None:
    """Wait for the end of the guard of the private network of a container that has ended, and kill it if that takes too long.

    Raises:
        StateError: another process than a guard is recorded.
        TimeoutError: it does not die.
    """
    if "network" not in document:
        return
    pid, started = document["network"]
    pidfd = open_process(pid, started, ending=True)
    if pidfd is None:
        return
    try:
        if not ended_within(pidfd, NETWORK_END):
            if not is_init(pid):
                raise undo.refusal(f"process {pid}", "it is not the guard of a network")
            _kill(pidfd)
            wait_killed(pid, pidfd, f"the guard of the network of container {entry.id!r}")
        reap_abandoned()
    finally:
        os.close(pidfd)


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended


def after_delete(document: StateRecord) -> None:
    """Run the poststop hooks. A failure is a warning, and the other hooks still run (runtime.md, Lifecycle, 13)."""
    hooks = document.get("hooks", {}).get("poststop")
    if not hooks:
        return
    from ..engine.hooks import run

    state = oci_state({**document, "status": Status.STOPPED, "pid": 0})
    for hook in hooks:
        try:
            run("poststop", hook, state)
        except HookError as error:
            warn([str(error)])


def end(entry: Entry, document: StateRecord, status: Status, own: int) -> None:
    """Kill the init process of a container and wait for its end. The caller holds the lock. Raises TimeoutError."""
    pidfd = first_process(document, own)
    if pidfd is None:
        return
    try:
        _kill(pidfd)
        if status is Status.PAUSED:
            cgroup.thaw_killed(document.get("cgroups", []))
        pid = pid_of(pidfd)
        if wait_init(pid, pidfd, KILL_TIMEOUT) is None:
            raise TimeoutError(errno.ETIMEDOUT, not_dead(pid, f"the init process of container {entry.id!r}"))
    finally:
        os.close(pidfd)


_CLONE_NEWPID: Final = 0x20000000


def kill(entry: Entry, number: int, *, all: bool) -> None:
    """Send a signal to the init process of a container. KILL goes to every process if the kernel does not kill the others then.

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
    status = status_of(document)
    if not status.can_kill:
        raise WrongStatus(entry.id, "kill", status, "created or running")
    pidfd = first_process(document)
    try:
        if pidfd is None:
            raise WrongStatus(entry.id, "kill", Status.STOPPED, "created or running")
        # The first process of a pid namespace takes all others there with it.
        alone = number == signal.SIGKILL and pid_inside(pid_of(pidfd)) != 1
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, FileNotFoundError):
        raise WrongStatus(entry.id, "kill", Status.STOPPED, "created or running") from None
    finally:
        if pidfd is not None:
            os.close(pidfd)
    if alone:
        cgroup.kill(document.get("cgroups", []))
    elif status is Status.PAUSED and number == signal.SIGKILL:
        cgroup.thaw_killed(document.get("cgroups", []))


def processes(document: StateRecord) -> set[int]:
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
        raise UnsupportedError(
            "the processes of the container are not known: it has neither cgroups nor a pid namespace; create it with one of them"
        )
    return pid_namespace_members(document["pid"])


def _kill_all(document: StateRecord, number: int) -> None:
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
