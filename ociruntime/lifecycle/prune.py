"""Removing containers that have stopped or lost their caller, and what crashes have left."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from ..errors import BundleError, ContainerExists, ContainerNotFound, UnsupportedError, warn
from ..files import LockFile
from ..overrides import StrPath
from ..rootfs.bundles import prune_records
from ..store import Entry, StateStore, Status, check_directory, check_id
from .delete import after_delete, end, read, sweep

if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Final


_DIRECTORY: Final = ".runs"
_PATIENCE: Final = 1.0
"""Seconds to wait for another process that looks at a new lock in the moment before it is held."""

_given_up: set[str] = set()
"""Paths of the locks whose containers `clear_orphans` could not remove: only `prune` tries again."""


class CallerLock:
    """Lock of one container of `run`, taken before the container exists and released when it is gone.

    Raises:
        ContainerExists: another call of `run` has a container of this id.
        StateError: the id or the state directory is not usable.
    """

    def __init__(self, store: StateStore, container_id: str) -> None:
        self._entry = Entry(store.directory, check_id(container_id))
        self._path = f"{store.directory}/{_DIRECTORY}/{container_id}"
        deadline = time.monotonic() + _PATIENCE
        while not _acquire(lock := store.open_lock(_DIRECTORY, container_id)):
            if os.path.isdir(self._entry.directory) or time.monotonic() > deadline:
                raise ContainerExists(container_id, store.directory)
            time.sleep(0.001)
        self._lock = lock

    def release(self) -> None:
        """Release the lock. Its file goes too, unless something of the container is left, which is then an orphan.

        No effect in a forked child, whose parent holds the lock.
        """
        if self._lock.closed:
            return
        with self._lock:
            if not os.path.isdir(self._entry.directory):
                _unlink(self._path)


def remove_orphans(store: StateStore, *, but: Container[str] = ()) -> tuple[list[str], dict[str, Exception]]:
    """Kill and remove every orphan. Containers whose caller lives cost a failed flock(2) each.

    Args:
        but: paths of locks to leave alone.

    Returns:
        The ids of the orphans that were removed, and path of the lock -> error of those that could not be.

    Raises:
        StateError: another user can change the state directory.
    """
    directory = f"{store.directory}/{_DIRECTORY}"
    try:
        check_directory(store.directory)
        check_directory(directory, link=False)
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return [], {}
    removed: list[str] = []
    failures: dict[str, Exception] = {}
    for name in names:
        path = f"{directory}/{name}"
        if path in but:
            continue
        try:
            if _remove_orphan(store, name, path):
                removed.append(name)
        except Exception as error:
            failures[path] = error
    return removed, failures


def _remove_orphan(store: StateStore, container_id: str, path: str) -> bool:
    """Kill and remove a container if its lock is free, and remove the lock. Return whether there was a container."""
    try:
        lock = _open(path)
    except FileNotFoundError:
        return False  # that run has just ended
    with lock:
        if not _acquire(lock):
            return False
        try:
            removed = _remove(Entry(store.directory, container_id))
        except BlockingIOError:
            return False  # another operation on the container is under way
        _unlink(path)
    return removed


def has_caller(store: StateStore, container_id: str) -> bool:
    """Return whether a container belongs to a call of `run` whose process lives."""
    try:
        lock = _open(f"{store.directory}/{_DIRECTORY}/{container_id}")
    except FileNotFoundError:
        return False
    with lock:
        return not _acquire(lock)


def clear_orphans(store: StateStore) -> None:
    """Remove every orphan before a new `run`. One that cannot be removed is an `OCIRuntimeWarning`, once in a process."""
    _, failures = remove_orphans(store, but=_given_up)
    _given_up.update(failures)
    warn(
        f"cannot remove container {os.path.basename(path)!r}, whose caller has ended: {error}; 'prune' tries again"
        for path, error in failures.items()
    )


def _remove(entry: Entry) -> bool:
    """Kill and remove a container of `run`. Return False if there is none of this id, or it is not one of `run`.

    Raises:
        BlockingIOError: another operation on the container is under way.
    """
    try:
        with entry.locked(wait=False):
            document, status = read(entry, force=True)
            # A container without its first state was left by a crash: nothing holds its lock.
            if not document.get("ephemeral") and status is not Status.CREATING:
                return False
            end(entry, document, status, -1)
            sweep(entry, document)
    except ContainerNotFound:
        return False
    after_delete(document)
    return True


def _open(path: str) -> LockFile:
    return LockFile(path, os.O_RDWR | os.O_NOFOLLOW)


def _acquire(lock: LockFile) -> bool:
    """Take a lock. Return False, with the file closed, if another call holds it or the file was removed meanwhile."""
    try:
        lock.acquire(wait=False)
    except BlockingIOError:
        lock.close()
        return False
    if lock.removed:
        lock.close()
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


_OVER = (Status.STOPPED, Status.CREATING)
"""``creating`` while no process has the lock: the process that was creating it has died."""


def prune(*, state_root: StrPath | None = None) -> tuple[str, ...]:
    """Remove all containers that nothing uses any more, and what crashes have left.

    These are containers that are stopped or damaged, those whose making was interrupted, and orphans: containers of `run` whose
    caller has ended, which are killed first. All others stay. Bundles that a process was mounting or unmounting when it was killed
    go too.

    Args:
        state_root: the state directory; by default ``/run/ociruntime`` for root.

    Returns:
        The ids of the containers that were removed.

    Raises:
        StateError, BundleError, OSError: something cannot be removed; the rest is removed all the same.
    """
    store = StateStore(state_root)
    removed, failures = remove_orphans(store)
    failure = next(iter(failures.values()), None)
    for entry in store.entries():
        try:
            with entry.locked(wait=False):
                document, status = read(entry, force=True)
                if status not in _OVER or has_caller(store, entry.id):
                    continue
                sweep(entry, document)
            removed.append(entry.id)
            after_delete(document)
        except (BlockingIOError, ContainerNotFound):
            continue  # another process is at work on it, or has removed it
        except Exception as error:
            failure = failure or error
    try:
        prune_records()
    except (BundleError, UnsupportedError, OSError) as error:
        failure = failure or error
    if failure is not None:
        raise failure
    return tuple(removed)
