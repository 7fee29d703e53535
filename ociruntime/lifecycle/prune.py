"""Removing what has no more use: containers that have stopped or lost their caller, mounted bundles, what crashes have left."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

from ..errors import BundleError, ContainerExists, ContainerNotFound, StateError, UnsupportedError, naming, warn
from ..files import LockFile, MountInfo, read_mounts, start_time
from ..interrupts import uninterruptible
from ..overrides import StrPath
from ..rootfs.bundles import LAYER_TYPES, BundleDirectory, locked, prune_records
from ..rootfs.layers import containers_of as layer_containers
from ..store import Entry, StateRecord, StateStore, Status, cannot_store, check_directory, check_id
from .delete import after_delete, end, living, lock, read, sweep

if TYPE_CHECKING:
    from collections.abc import Container
    from typing import Final


_DIRECTORY: Final = ".runs"
_PATIENCE: Final = 1.0
"""Seconds to wait for another process that looks at a new lock in the moment before it is held, or keeps one of a dead caller."""

_given_up: set[str] = set()
"""Paths of the locks whose containers `clear_orphans` could not remove: only `prune` tries again."""


class CallerLock:
    """Lock of one container of `run`, taken before the container exists and released when it is gone. Its file names the caller.

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
        try:
            os.pwrite(lock.fd, _describe(os.getpid()), 0)
        except OSError as error:
            self.release()
            raise cannot_store(self._path, error) from error

    def release(self) -> None:
        """Release the lock. Its file goes too, unless something of the container is left, which is then an orphan.

        No effect in a forked child, whose parent holds the lock.
        """
        if self._lock.closed:
            return
        with self._lock:
            if not os.path.isdir(self._entry.directory):
                _unlink(self._path)


@cache
def _describe(pid: int) -> bytes:
    """Return a line that tells this process from others: its pid, its start time, and the pid namespace in which it has the pid."""
    return b"%d %d %d\n" % (pid, start_time(pid), os.stat("/proc/self/ns/pid").st_ino)


def _caller_has_died(lock: LockFile) -> bool:
    """Return whether the caller that a lock names has ended. False if that is not known."""
    caller, _, _ = os.pread(lock.fd, 100, 0).partition(b"\n")
    pid, _, _ = caller.partition(b" ")
    if not pid.isdigit():
        return False  # it has just taken the lock
    _, begin, namespace = map(int, caller.split())
    return namespace == os.stat("/proc/self/ns/pid").st_ino and start_time(int(pid)) != begin


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
        if not _acquire(lock, orphan=True):
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
        return not _acquire(lock, orphan=True)


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
        with entry.locked(wait=_PATIENCE):
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
    return LockFile(path, os.O_RDWR)


def _acquire(lock: LockFile, *, orphan: bool = False) -> bool:
    """Take a lock. Return False, with the file closed, if another call holds it or the file was removed meanwhile.

    Args:
        orphan: wait for the lock of a caller that has died. A process that it was starting shares the lock, until that process
            executes its program.

    Raises:
        StateError: the caller has died, and the lock is still held after the wait.
    """
    try:
        lock.acquire(wait=False)
    except BlockingIOError:
        if not orphan or not _caller_has_died(lock):
            lock.close()
            return False
        try:
            lock.acquire(wait=_PATIENCE)
        except BlockingIOError:
            raise StateError("a process that its caller has started still holds its lock") from None
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


@naming(lambda *, state_root=None: f"cannot prune {StateStore(state_root).directory}")
def prune(*, state_root: StrPath | None = None) -> tuple[str, ...]:
    """Remove all containers that nothing uses, and what crashes have left.

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
            with entry.locked(wait=False) as held:
                document, status = read(entry, force=True)
                # A caller removes the container and then its own lock: without that one, this one tells whether it did.
                if status not in _OVER or has_caller(store, entry.id) or held.removed:
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


# ---- unmounting a bundle, and finding the containers and processes that use it ----

_GRACE = 2.0
"""Seconds for a process outside of the containers to lose the mounts of a bundle."""
_POLL = 0.02
_MAX_NAMED = 5
"""Users of a bundle that a message names."""


@uninterruptible()
def umount(path: str | os.PathLike[str], *, force: bool, state_root: str | os.PathLike[str] | None) -> None:
    """Unmount a bundle and remove it. Arguments and errors are those of `Bundle.umount`."""
    with locked(path) as directory:
        if directory.record() is None:
            raise BundleError(
                f"{directory.path} is not a mounted image: 'mount' has not created it; give the path of a mounted bundle"
            )
        if foreign := directory.foreign_mount():
            raise BundleError(f"{directory.path} cannot be unmounted: {foreign} does not belong to the image; unmount it first")
        if force:
            for entry in containers_of(directory, state_root):
                _stop(entry)
        try:
            if force:
                directory.unmount(detach=True)
            else:
                _unmount_unused(directory, state_root)
        except OSError as error:
            why = error.strerror
            if error.errno == errno.EBUSY:
                users = _named(list(_processes_in(directory.rootfs))) or "a process"
                why = f"{why}: {users} has open files or its working directory there; end it, or use force"
            raise BundleError(f"{directory.path} cannot be unmounted: {why} (nothing has been removed)") from error
        directory.remove()


def _unmount_unused(directory: BundleDirectory, state_root: str | os.PathLike[str] | None) -> None:
    """Unmount a bundle that nothing uses. Raises BundleError, OSError: everything is mounted as it was."""
    mounts = directory.mounts()
    _refuse_containers(directory, state_root)
    _refuse(directory, _lasting_users(directory, mounts))
    layers = directory.layers()
    # Nothing uses a bundle that was not mounted to the end. For others no container can be created meanwhile (see `in_use`).
    if layers is None or not layers.shared:
        directory.unmount()
        return
    with directory.top_unmounted():  # a user that came since the first look keeps its open files
        _refuse_containers(directory, state_root)
        _refuse(directory, _lasting_users(directory, mounts, unmounted=True))
    directory.unmount()


def containers_of(directory: BundleDirectory, state_root: str | os.PathLike[str] | None) -> list[Entry]:
    """Return the containers in a state directory that use a bundle: those that are being created and those that run."""
    own, layers = os.fstat(directory.fd), directory.layers()
    entries = {entry.directory: entry for entry in StateStore(state_root).entries()}
    for path in layer_containers(layers) if layers is not None else ():  # in other state roots too
        entries.setdefault(path, Entry(*os.path.split(path)))
    return [entry for entry in entries.values() if _uses(entry, own)]


def _uses(entry: Entry, bundle: os.stat_result) -> bool:
    document = living(entry)
    return document is not None and any(_is_directory(path, bundle) for path in _directories(document))


def _directories(document: StateRecord) -> Iterator[str]:
    """Yield the bundle of a container, and the directory of its root filesystem, which a copy of config.json can name."""
    yield document["bundle"]
    if "rootfs" in document:
        yield os.path.dirname(document["rootfs"])


def _is_directory(path: str, info: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), info)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _stop(entry: Entry) -> None:
    """Kill a container. It stays as a stopped one."""
    try:
        with ExitStack() as stack:
            if lock(stack, entry, force=True):
                document, status = read(entry, force=True)
                end(entry, document, status, -1)
    except ContainerNotFound:
        return  # it was deleted meanwhile


def _refuse_containers(directory: BundleDirectory, state_root: str | os.PathLike[str] | None) -> None:
    _refuse(directory, [f"container {entry.id!r}" for entry in containers_of(directory, state_root)])


def _refuse(directory: BundleDirectory, users: list[str]) -> None:
    if users:
        raise BundleError(f"{directory.path} cannot be unmounted: {_named(users)} still uses it; end it first, or use force")


def _named(users: list[str]) -> str:
    more = f" and {len(users) - _MAX_NAMED} more" if len(users) > _MAX_NAMED else ""
    return ", ".join(users[:_MAX_NAMED]) + more


def _lasting_users(directory: BundleDirectory, mounts: list[MountInfo], *, unmounted: bool = False) -> list[str]:
    """Return the processes that `_elsewhere` finds, as soon as there are none or after a grace period.

    A container that is being created has the host's mounts, those of the bundle included, at another place for a moment.
    """
    deadline = time.monotonic() + _GRACE
    while (users := list(_elsewhere(directory, mounts, unmounted=unmounted))) and time.monotonic() < deadline:
        time.sleep(_POLL)
    return users


def _elsewhere(directory: BundleDirectory, mounts: list[MountInfo], *, unmounted: bool = False) -> Iterator[str]:
    """Yield the processes that have a filesystem of the bundle as their root, or a part of it mounted.

    A copy of the mount namespace has the mounts of the bundle at their usual place, which does not count as use. Mounts that
    propagation has made at other places are removed by propagation too, so they count only if they outlive the unmount.

    Args:
        unmounted: whether the bundle is unmounted at its usual place.
    """
    own, place = {mount.device for mount in mounts}, directory.rootfs
    usual = {mount.point for mount in mounts} | {place}
    for pid, table in _namespaces():
        if own:
            used = any(m.device in own and (m.point not in usual if unmounted else m.point == "/" or m.root != "/") for m in table)
        else:
            used = any(m.point == place and m.fstype in (*LAYER_TYPES, "overlay") for m in table)
        if used:
            yield f"process {pid} ({_command(pid)})"


def _namespaces() -> Iterator[tuple[int, list[MountInfo]]]:
    """Yield a process of each mount namespace and root directory that can be seen, and its mount table."""
    seen: set[tuple[str, str]] = set()
    for pid in _pids():
        try:
            key = os.readlink(f"/proc/{pid}/ns/mnt"), _target(f"/proc/{pid}/root")
            if key not in seen:
                seen.add(key)
                yield pid, list(read_mounts(pid))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM):
                raise
            continue  # it has ended, or the caller may not inspect it


def _processes_in(place: str) -> Iterator[str]:
    """Yield the processes that have their root, working directory or open files in a directory."""
    for pid in _pids():
        try:
            links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
            if any(f"{_target(link)}/".startswith(f"{place}/") for link in links):
                yield f"process {pid} ({_command(pid)})"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def _target(link: str) -> str:
    """Return the target of a link in procfs; empty where it is gone, or too long to be read. Raises OSError."""
    try:
        return os.readlink(link)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return ""


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
