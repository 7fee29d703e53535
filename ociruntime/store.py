"""The state store: one directory for each container, crash-safe and locked (runtime.md, State).

A directory holds ``state.json`` (replaced atomically), ``recovery`` (for the case that state.json is damaged), ``config.json``
(the config as it was at create), ``start.sock`` (the gate) and ``lock``. What a crash would leave behind is recorded before it
is made, so that ``delete --force`` can undo it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Required, TypedDict

from .arguments import check_type, parse_path, shown
from .errors import ContainerExists, ContainerNotFound, StateError
from .files import LockFile, NotRegularError, StagedFile, absolute_path, in_user_namespace, other_writers, outer_uid, write_all

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OCI_VERSION", "StateRecord", "StateStore", "Status", "default_root"]

OCI_VERSION: Final = "1.3.0"
MAX_ID: Final = 255
"""Length of a file name, which an id is."""
_MODE: Final = 0o700
"""Permissions of the directory of a container."""
_TURN: Final = 0.01
"""Seconds to wait for a lock before a look at what its holder has made."""
NOTIFY: Final = "notify"
"""The directory of the socket by which a process says that it is ready, and the socket's name in it."""
_ID_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+.-")


class Status(StrEnum):
    """Status of a container (runtime.md, State; ``paused`` is common among runtimes)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"

    @property
    def can_start(self) -> bool:
        """Whether `Container.start` is possible."""
        return self is Status.CREATED

    @property
    def can_kill(self) -> bool:
        """Whether `Container.kill` is possible."""
        return self in (Status.CREATED, Status.RUNNING, Status.PAUSED)

    @property
    def can_exec(self) -> bool:
        """Whether `Container.exec` is possible."""
        return self is Status.RUNNING

    @property
    def can_delete(self) -> bool:
        """Whether `Container.delete` is possible without ``force``."""
        return self is Status.STOPPED


class StateRecord(TypedDict, total=False):
    """Members of state.json. Times are Unix nanoseconds."""

    id: Required[str]
    bundle: Required[str]
    status: Required[str]
    pid: int
    pid_start: int
    created_at: int
    started_at: int
    finished_at: int
    exit_code: int | None
    """Exit code of the init process; the negative signal number if a signal killed it. Absent or None: not known."""
    oom_killed: bool
    oci_version: str
    annotations: Mapping[str, str]
    cgroups: list[str]
    undo: list[list[str]]
    listener: list[str]
    namespaces: int
    new_keyring: bool
    steps: list[list[object]]
    total: int
    rootfs: str
    process: bool
    """Whether the config has a process."""
    hooks: dict[str, Sequence[tuple[str, Sequence[str], Sequence[str], int, int]]]
    """The hooks of start and delete by kind: path, arguments, environment and timeout in seconds."""
    supervisor: list[int]
    """Its pid and start time."""
    network: list[int]
    """Pid and start time of the guard of its private network."""
    attach_socket: str
    control_socket: str
    sync: bool
    """Whether the supervisor reports every change of the status to its sync socket."""
    terminal: bool
    log_path: str
    log_format: str
    log_lost: Sequence[int]
    """Entries of the log, and their bytes, that could not be written."""
    log_error: str
    ephemeral: bool
    """Whether it is to be removed when its caller has ended (see `ociruntime.lifecycle.prune`)."""
    layers: list[str]
    """The upper layer and the lower layers, if the container has an upper layer of its own, as `Layers.record` returns them."""
    notify: str
    """The host's socket for the readiness notification; absent without one."""


_TYPES: Final = {
    **dict.fromkeys(("pid", "pid_start", "created_at", "namespaces", "total"), int),
    **dict.fromkeys(("bundle", "rootfs"), str),
    **dict.fromkeys(("annotations", "hooks"), dict),
    **dict.fromkeys(("cgroups", "undo", "steps", "layers"), list),
}
"""Types of members of `StateRecord` that are used by every operation."""


def _malformed(document: StateRecord) -> str | None:
    """Return the name of a member that is damaged, although the document is one of JSON."""
    for name, value in document.items():
        if type(value) is not _TYPES.get(name, type(value)):
            return name
    if not all(isinstance(path, str) and path.startswith("/") for path in document.get("cgroups", ())):
        return "cgroups"
    if not all(
        isinstance(action, list) and action and all(isinstance(word, str) for word in action) for action in document.get("undo", ())
    ):
        return "undo"
    return None


_FALLBACK: Final = "/tmp"
"""Parent of the state directory of a user without a runtime directory."""


def default_root() -> str:
    """Return the state directory where the caller names none.

    It is ``/run/ociruntime`` for root, and ``$XDG_RUNTIME_DIR/ociruntime`` for a user. If XDG_RUNTIME_DIR is not a directory of
    this user, as in batch jobs and after su(1), it is ``/tmp/ociruntime-UID``, with the uid outside of user namespaces. Root of a
    user namespace, as rootless engines make one, counts as a user if it has an XDG_RUNTIME_DIR or does not own /run.

    Raises:
        StateError: /tmp is needed, and other users could replace the directory there.
    """
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if runtime_dir and not _is_own_directory(runtime_dir):
        runtime_dir = None
    if os.geteuid() == 0 and not (in_user_namespace() and (runtime_dir or not _is_own_directory("/run"))):
        return "/run/ociruntime"
    if runtime_dir:
        return os.path.join(runtime_dir, "ociruntime")
    try:
        mode = os.stat(_FALLBACK).st_mode
    except OSError as error:
        raise _no_default(f"{_FALLBACK} cannot be used: {os.strerror(error.errno or errno.EIO).lower()}") from error
    if mode & 0o022 and not mode & stat.S_ISVTX:
        raise _no_default(f"other users can replace files in {_FALLBACK}, which lacks the sticky bit")
    return f"{_FALLBACK}/ociruntime-{outer_uid()}"


def _no_default(why: str) -> StateError:
    return StateError(f"no state directory: XDG_RUNTIME_DIR is not set, and {why}; give one with --root (state_root=)")


def _is_own_directory(path: str) -> bool:
    """Return whether a path is that of a directory of this user, as the XDG base directory specification requires."""
    try:
        info = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID and text[0] != "." and _ID_LETTERS.issuperset(text)


def check_id(container_id: str) -> str:
    """Return the id if it may name a directory: letters, digits and ``_+.-``, no leading dot, at most `MAX_ID` of them."""
    check_type("container_id", container_id, str, "a str")
    if not _is_id(container_id):
        raise StateError(
            f"{shown(container_id)} is not a container id: use letters, digits and _+.- (no leading dot), at most {MAX_ID} of them"
        )
    return container_id


def check_directory(path: str, *, link: bool = True) -> None:
    """Check that no other user can change what is recorded in a directory. Its parent directories are the caller's choice.

    Args:
        link: accept a symbolic link of this user or of root to such a directory.

    Raises:
        FileNotFoundError: it does not exist.
        StateError: it is not a directory, or another user can write to it.
    """
    info = os.lstat(path)
    if link and stat.S_ISLNK(info.st_mode):
        if info.st_uid not in (0, os.geteuid()):
            raise _unsafe(path, f"it is a symbolic link of uid {info.st_uid}")
        info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise _unsafe(path, "it is not a directory")
    if why := other_writers(info):
        raise _unsafe(path, why)


def make_directory(path: str, *, link: bool = True) -> None:
    """Check a directory as `check_directory` does, and make it first if need be. Raises StateError, OSError."""
    try:
        check_directory(path, link=link)
    except FileNotFoundError:
        os.makedirs(path, mode=_MODE, exist_ok=True)
        _check_umask(path)
        check_directory(path, link=link)


def _check_umask(path: str) -> None:
    """Remove a new directory that its owner cannot use. Raises StateError."""
    if os.stat(path).st_mode & _MODE != _MODE:
        os.rmdir(path)
        raise StateError(
            f"cannot keep state in {path}: the umask of this process denies it to its owner; set another one, such as 022"
        )


def _unsafe(path: str, why: str) -> StateError:
    return StateError(
        f"cannot keep state in {path}: {why}; give a directory that only this user can write to with --root (state_root=)"
    )


def cannot_store(path: str, error: OSError) -> StateError:
    if isinstance(error, NotRegularError):
        return StateError(f"cannot write {path}: {error.strerror}; remove it")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free space on its filesystem" if full else "see that it can be written"
    reason = os.strerror(error.errno or errno.EIO).lower()
    return StateError(f"cannot write {path}: {reason}; {remedy}, or give another state directory with --root (state_root=)")


def _cannot_read(path: str, error: OSError) -> StateError:
    reason = os.strerror(error.errno or errno.EIO).lower()
    return StateError(f"cannot read {path}: {reason}; give another state directory with --root (state_root=)")


def _is_ours(names: Sequence[str]) -> bool:
    """Return whether the files of a directory may be those of a container, or of one that was just being made.

    All other directories are the user's: a state root can be any directory.
    """
    return RECOVERY in names or "state.json" in names or set(names) <= {"lock"}


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


# ---- the recovery record ----

RECOVERY: Final = "recovery"
_RECOVERED: Final = (
    "created_at",
    "bundle",
    "rootfs",
    "annotations",
    "hooks",
    "cgroups",
    "undo",
    "supervisor",
    "ephemeral",
    "network",
    "pid",
    "pid_start",
)
"""Members of `StateRecord` that are recorded."""
_RESERVE: Final = 128
"""Bytes that are kept free for the line with the pid, so that no lack of space can prevent it."""


class Recovery:
    """The creator's side of a recovery record: what ``delete --force`` needs when state.json is damaged or missing.

    It is a file of lines, each a JSON object; the members of all of them together are the record, and the state of a container that
    is being created and has no state.json yet. Only the creator of the container appends lines, each before it makes what the line
    tells of, and the record is complete before the container's process runs. A line without its newline was being written when the
    creator was killed, and does not count.

    Args:
        directory: the container's directory.
    """

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/{RECOVERY}"
        self._recorded: dict[str, object] = {}
        self._end = self._reserved = 0

    def add(self, document: Mapping[str, object]) -> None:
        """Append what a state document has and the record does not have yet. Raises OSError."""
        facts = {name: document[name] for name in _RECOVERED if name in document and self._recorded.get(name) != document[name]}
        if not facts:
            return
        line = json.dumps(facts).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            needed = self._end + len(line) + (0 if "pid" in facts else _RESERVE)
            if needed > self._reserved:
                os.posix_fallocate(fd, self._end, needed - self._end)
                self._reserved = needed
            os.lseek(fd, self._end, os.SEEK_SET)
            write_all(fd, line)
        finally:
            os.close(fd)
        self._recorded.update(facts)
        self._end += len(line)


def read_recovery(directory: str) -> dict[str, object] | None:
    """Return the record of a container: empty while it has no complete line, None without a file.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        with open(f"{directory}/{RECOVERY}", "rb") as file:
            *lines, _ = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    facts: dict[str, object] = {}
    for line in lines:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"{values!r} is not an object")
        facts.update(values)
    return facts


# ---- the directory of a container ----


class _Storing:
    """A block that makes a file. An OSError in it becomes a StateError with a remedy."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise cannot_store(self._path, error) from error


class Entry:
    """Directory of one container."""

    def __init__(self, root: str, container_id: str) -> None:
        self.root = root
        self.directory = os.path.join(root, container_id)
        self.id = container_id
        self._recovery: Recovery | None = None

    @property
    def path(self) -> Path:
        """The directory. Made on demand, so that short commands do not import `pathlib`."""
        from pathlib import Path

        return Path(self.directory)

    def _not_found(self) -> ContainerNotFound:
        return ContainerNotFound(self.id, self.root)

    def check(self) -> None:
        """Check that no other user can have changed what is recorded. Raises ContainerNotFound, StateError."""
        try:
            check_directory(self.root)
            check_directory(self.directory, link=False)
            names = os.listdir(self.directory)
        except FileNotFoundError:
            raise self._not_found() from None
        except OSError as error:
            raise _cannot_read(self.directory, error) from error
        if not _is_ours(names):
            raise StateError(f"{self.directory} is not the state of a container: it has other files, and no state.json")

    def read(self) -> StateRecord:
        """Return the recorded state. Raises ContainerNotFound; StateError: it is damaged, or another user can change it."""
        self.check()
        try:
            with open(f"{self.directory}/state.json", "rb") as file:
                raw = file.read()
        except FileNotFoundError:
            if not os.path.isdir(self.directory):
                raise self._not_found() from None
            facts = self._recovery_facts() or {}
            if "pid" not in facts:
                return self._recovered(facts)  # the creator has not written state.json yet, or died before it did
            if os.path.exists(f"{self.directory}/state.json"):
                return self.read()  # the creator wrote both meanwhile
            raise self._damaged("it is missing") from None
        try:
            document: StateRecord = json.loads(raw)
        except ValueError as error:
            raise self._damaged(str(error)) from error
        if not isinstance(document, dict) or document.get("id") != self.id or document.get("status") not in set(Status):
            raise self._damaged("it does not hold this container's id and a status")
        if (name := _malformed(document)) is not None:
            raise self._damaged(f"{name} is not of its type")
        if "supervisor" in document:
            from .supervisor.protocol import read_record

            try:
                document.update(read_record(self.directory))  # type: ignore[typeddict-item]
            except ValueError as error:
                raise self._damaged(str(error)) from error
        return document

    def _damaged(self, why: str) -> StateError:
        return StateError(f"{self.directory}/state.json is damaged: {why}; 'delete --force' removes the container")

    def recovered(self) -> StateRecord:
        """Return what the recovery record holds for a container whose state.json is damaged.

        Raises:
            StateError: the recovery record is damaged as well.
        """
        facts = self._recovery_facts()
        if facts == {}:
            raise self._lost("no line of it is complete")
        return self._recovered(facts or {})  # without a file nothing was made

    def _recovery_facts(self) -> dict[str, object] | None:
        try:
            return read_recovery(self.directory)
        except ValueError as error:
            raise self._lost(str(error)) from error

    def _recovered(self, facts: dict[str, object]) -> StateRecord:
        status = Status.RUNNING if "pid" in facts else Status.CREATING
        document: StateRecord = {"id": self.id, "bundle": "", "status": status}
        document.update(facts)  # type: ignore[typeddict-item]
        return document

    def _lost(self, why: str) -> StateError:
        return StateError(
            f"{self.directory}/recovery is damaged, and so is state.json: {why}; end the container's processes, then remove its "
            "cgroups, its mounts and this directory"
        )

    def begin(self, document: StateRecord) -> None:
        """Record what is about to be made for a container that is being created. Until `record`, state.json does not exist.

        Raises:
            StateError: it cannot be written.
        """
        if self._recovery is None:
            self._recovery = Recovery(self.directory)
        with self.storing(RECOVERY):
            self._recovery.add(document)

    def record(self, document: StateRecord, staged: StagedFile | None = None) -> None:
        """Write the state of a container whose process exists and does not run yet, and complete the recovery record.

        In this order, as a recovery record with a pid and no state.json stands for damage.

        Args:
            staged: the state, if it is written already (see `staged_state`).

        Raises:
            StateError: it cannot be written.
        """
        if staged is None:
            self.write(document)
        else:
            with self.storing("state.json"):
                staged.commit()
        self.begin(document)

    def staged_state(self, document: StateRecord) -> AbstractContextManager[StagedFile]:
        """Write a new state.json, which takes effect with `StagedFile.commit`. Raises StateError: it cannot be written."""
        return self.staged("state.json", json.dumps(document).encode())

    def write(self, document: StateRecord) -> None:
        """Replace state.json. Raises StateError: it cannot be written, and the old one stays."""
        self.save("state.json", json.dumps(document).encode())

    def save(self, name: str, content: bytes) -> None:
        """Replace a file of the directory. Raises StateError: it cannot be written, and the old one stays."""
        with self.staged(name, content) as file:
            file.commit()

    @contextmanager
    def staged(self, name: str, content: bytes) -> Iterator[StagedFile]:
        """Write a new version of a file of the directory, which takes effect with `StagedFile.commit`. Raises as `save`."""
        with self.storing(name):
            file = StagedFile(f"{self.directory}/{name}")
        with file:
            with self.storing(name):
                file.write(content)
            yield file

    def storing(self, name: str) -> _Storing:
        """Raise StateError, with a remedy, for an OSError in the block, which makes a file of the directory."""
        return _Storing(f"{self.directory}/{name}")

    @contextmanager
    def reading_config(self) -> Iterator[str]:
        """Give the path of config.json for the block, which reads it. Raises ContainerNotFound; StateError: it is missing."""
        path = f"{self.directory}/config.json"
        try:
            yield path
        except FileNotFoundError:
            self.read()
            raise StateError(f"container {self.id!r} has no config: {path} is missing") from None

    def update(self, **changes: object) -> StateRecord:
        document: StateRecord = {**self.read(), **changes}  # type: ignore[typeddict-item]
        self.write(document)
        return document

    @contextmanager
    def locked(self, *, shared: bool = False, wait: bool | float = True) -> Iterator[LockFile]:
        """Hold the container's lock: one operation that changes it at a time, or several shared ones, over all processes.

        It can be a new lock in the directory of a container whose removal, by another process, is at its last step.

        Args:
            wait: whether to wait for the lock, or the seconds to wait.

        Raises:
            ContainerNotFound: the container does not exist, or was deleted meanwhile.
            StateError: the lock cannot be made, or another user can change the directory.
            BlockingIOError: the lock is held by another process, and the wait is over.
        """
        self.check()
        with self._locked(shared=shared, wait=wait) as lock:
            yield lock

    @contextmanager
    def _locked(self, *, shared: bool = False, wait: bool | float = True) -> Iterator[LockFile]:
        """Hold the lock of a directory that this process has checked, or made in a checked one. Raises as `locked`."""
        try:
            lock = LockFile(f"{self.directory}/lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:
            raise self._not_found() from None
        except OSError as error:
            raise cannot_store(f"{self.directory}/lock", error) from error
        with lock:
            lock.acquire(shared=shared, wait=wait)
            if lock.removed:  # the container was deleted during the wait
                raise self._not_found()
            yield lock

    def remove(self) -> None:
        """Remove the directory, the lock last: a process that waits for the lock learns that the container is gone.

        Another process can make a new lock before the directory is gone. If that process has made the directory, it makes a
        container there; otherwise it finds none.
        """
        with ExitStack() as locks:
            while True:
                try:
                    names = os.listdir(self.directory)
                    for name in sorted(names, key=lambda name: (name == "lock", name == RECOVERY, name == "state.json", name)):
                        path = f"{self.directory}/{name}"
                        if name == NOTIFY:
                            _unlink(f"{path}/{NOTIFY}")
                            os.rmdir(path)
                        else:
                            _unlink(path)
                    os.rmdir(self.directory)
                    return
                except FileNotFoundError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                if not self._take_new_lock(locks):
                    return

    def _take_new_lock(self, locks: ExitStack) -> bool:
        """Take the lock that another process has made in a directory that is being removed.

        Return False if the directory has a record again: it is that of a new container.
        """
        while True:
            try:
                with ExitStack() as attempt:
                    lock = attempt.enter_context(LockFile(f"{self.directory}/lock", os.O_RDWR))
                    try:
                        lock.acquire(wait=_TURN)
                        taken = not lock.removed
                    except BlockingIOError:
                        taken = False
                    if {RECOVERY, "state.json"} & {*os.listdir(self.directory)}:
                        return False
                    if taken:
                        locks.enter_context(attempt.pop_all())
                        return True
            except FileNotFoundError:
                return True


class StateStore:
    """All containers below one root directory."""

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.directory = absolute_path(parse_path("state_root", root)) if root is not None else default_root()

    @property
    def root(self) -> Path:
        """The directory. Made on demand, as `Entry.path`."""
        from pathlib import Path

        return Path(self.directory)

    def open_lock(self, directory: str, name: str) -> LockFile:
        """Open a file for a lock in a directory beside those of the containers. Both are made if need be. Raises StateError."""
        path = f"{self.directory}/{directory}"
        try:
            make_directory(self.directory)
            make_directory(path, link=False)
            return LockFile(f"{path}/{name}", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise cannot_store(f"{path}/{name}", error) from error

    def create(self, container_id: str) -> Entry:
        """Make the directory of a new container. Of several callers exactly one succeeds.

        Raises:
            ContainerExists: the id is taken.
            StateError: the id or the root directory is not usable.
        """
        entry = Entry(self.directory, check_id(container_id))
        try:
            make_directory(self.directory)
            os.mkdir(entry.directory, mode=_MODE)
            _check_umask(entry.directory)
        except FileExistsError:
            raise ContainerExists(container_id, self.directory) from None
        except OSError as error:
            raise cannot_store(entry.directory, error) from error
        return entry

    @contextmanager
    def making(self, container_id: str) -> Iterator[Entry]:
        """Make the directory of a new container and hold its lock. Raises as `create`."""
        with ExitStack() as stack:
            while True:
                entry = self.create(container_id)
                try:
                    stack.enter_context(entry._locked())
                    break
                except ContainerNotFound:
                    continue  # another process took it for the remains of a crash
                except BaseException:
                    entry.remove()
                    raise
            yield entry

    def entry(self, container_id: str) -> Entry:
        """Return the directory of a container that exists. Raises ContainerNotFound, StateError."""
        entry = Entry(self.directory, check_id(container_id))
        entry.check()
        return entry

    def entries(self) -> list[Entry]:
        """Return the directories of all containers. Raises StateError: another user can change the root directory."""
        try:
            check_directory(self.directory)
            names = sorted(os.listdir(self.directory))
            return [Entry(self.directory, name) for name in names if _is_id(name) and self._has(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot_read(self.directory, error) from error

    def _has(self, name: str) -> bool:
        """Return whether a name is that of a container's directory."""
        path = f"{self.directory}/{name}"
        try:
            return _is_ours(os.listdir(path)) and os.stat(path).st_mode & 0o777 == _MODE
        except (FileNotFoundError, NotADirectoryError):
            return False


def oci_state(record: StateRecord) -> dict[str, object]:
    """Return the state as hooks and seccomp agents get it: with the members of runtime.md, State, only."""
    document: dict[str, object] = {
        "ociVersion": record.get("oci_version", OCI_VERSION),
        "id": record["id"],
        "status": str(record["status"]),
    }
    if record.get("pid"):
        document["pid"] = record["pid"]
    document["bundle"] = record.get("bundle", "")
    if record.get("annotations"):
        document["annotations"] = dict(sorted(record["annotations"].items()))
    return document


def state_document(record: StateRecord) -> dict[str, object]:
    """Return the state as ``ociruntime state`` prints it: `oci_state` with what this runtime adds, such as createdAt and rootfs."""
    document = oci_state(record)
    members = {
        "rootfs": record.get("rootfs"),
        "createdAt": record.get("created_at"),
        "startedAt": record.get("started_at"),
        "finishedAt": record.get("finished_at"),
    }
    exit_code, oom_killed = record.get("exit_code"), record.get("oom_killed", False)
    document.update({name: value for name, value in members.items() if value})
    if exit_code is not None:
        document["exitCode"] = exit_code if exit_code >= 0 else 128 - exit_code
        document["exitDesc"] = describe_exit(exit_code, oom_killed)
    members = {
        "oomKilled": oom_killed,
        "attachSocket": record.get("attach_socket"),
        "controlSocket": record.get("control_socket"),
        "logPath": record.get("log_path"),
    }
    document.update({name: value for name, value in members.items() if value})
    entries, size = record.get("log_lost", (0, 0))
    if entries or size:
        document["logLost"] = {"entries": entries, "bytes": size, "error": record.get("log_error", "")}
    return document


def describe_exit(exit_code: int, oom_killed: bool) -> str:
    """Return how a container ended, as a phrase."""
    how = f"killed by signal {-exit_code}" if exit_code < 0 else f"exited with code {exit_code}"
    return how + (", out of memory" if oom_killed else "")
