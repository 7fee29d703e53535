"""The files of a container: reading, writing and copying them with the rights of one of its users."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import socket
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeGuard

import attrs
from typing_extensions import override

from ..arguments import check_bool, check_int, check_type, parse_path, shown, wrong_type
from ..engine.execution import Execution
from ..engine.fileserver import (
    COPIED_MODE,
    ContainerTree,
    Content,
    FileInfo,
    FileServer,
    HostTree,
    LeftOut,
    Limit,
    Parts,
    copy_tree,
    read_file,
    write_file,
)
from ..errors import WrongStatus, warn
from ..files import OwnDescriptor, ProcessLock, StagedFile, Unpicklable, forking, open_regular
from ..host import Host
from ..image.layers import FILE_TYPES, MAX_HEADERS, MAX_PATH, FileType
from ..interrupts import DeferredSignals, waiting
from ..overrides import Overrides
from ..plan.compile import compile_serve
from ..plan.ops import SERVED
from ..rootfs.users import ContainerRoot
from ..spec import ProcessSpec
from ..store import Status
from ..streams import Codec
from .execute import foreign_namespaces
from .status import first_process, status_of

if TYPE_CHECKING:
    from ..overrides import UserLike
    from ..plan import Plan
    from ..spec import RuntimeSpec
    from ..store import Entry, StateRecord

    class Readable(Protocol):
        """A file that is open for reading in binary mode."""

        def read(self, size: int, /) -> bytes: ...

    class Writable(Protocol):
        """A file that is open for writing in binary mode."""

        def write(self, content: bytes, /) -> object: ...


__all__ = ["ContainerFiles", "FileStatus"]

AnyPath: TypeAlias = "str | bytes | os.PathLike[str] | os.PathLike[bytes]"
"""A path in a container, in which bytes may name what is not UTF-8."""


@attrs.frozen(kw_only=True)
class FileStatus:
    """A file as the container sees it."""

    path: str
    """The path that was asked for, from the root of the container."""
    type: FileType
    mode: int
    """Permissions, set-user-ID, set-group-ID and sticky bits."""
    uid: int
    """Owner, as an id of the container."""
    gid: int
    size: int
    """Size of the content in bytes."""
    mtime_ns: int
    """Time of the last change of the content, in nanoseconds since the epoch."""
    links: int
    """Number of names that the file has."""
    target: str = ""
    """What a symbolic link holds."""


def launch_server(entry: Entry, spec: RuntimeSpec, user: UserLike | None) -> FileServer:
    """Start a server of the files of a container.

    Raises:
        WrongStatus: the container was not started, or has ended.
        StepError, BundleError: the container does not have the user.
    """
    uid = 0

    def compile(document: StateRecord, namespaces: int) -> Plan:
        nonlocal uid
        process, pid = _process_of(spec, document, user), document["pid"]
        uid = (process.user.uid or 0) if process.user else 0
        return compile_serve(process, spec, Host.probe(), namespaces=namespaces, container_id=entry.id, pid=pid)

    server = start_server(entry, compile)
    server.user = uid
    return server


def start_server(entry: Entry, compile: Callable[[StateRecord, int], Plan]) -> FileServer:
    """Start a server.

    Args:
        compile: returns its plan, given the state of the container and the namespaces that are not the caller's.

    Raises:
        WrongStatus: the container was not started, or has ended.
        StepError: the server cannot be started.
    """
    with ExitStack() as stack:
        stack.enter_context(entry.locked(shared=True))
        document = entry.read()
        status = status_of(document)
        if status not in (Status.RUNNING, Status.PAUSED):
            raise _wrong_status(entry, status)
        pidfd = first_process(document)
        if pidfd is None:
            raise _wrong_status(entry, Status.STOPPED)
        stack.callback(os.close, pidfd)
        plan = compile(document, foreign_namespaces(document))
        with forking:
            caller, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            peer = OwnDescriptor(end.detach())
        failed = stack.enter_context(ExitStack())
        failed.callback(caller.close)
        with peer, open(os.devnull, "r+b", buffering=0) as null:
            execution = Execution(plan, stdio=[null.fileno()] * 3, pidfd=pidfd, peer=peer.fileno())
            init = execution.begin()
            failed.callback(execution.abort)
            execution.finish()
        failed.pop_all()
    return FileServer(init, caller, name=entry.id, ended=lambda: _wrong_status(entry, Status.STOPPED))


def _process_of(spec: RuntimeSpec, document: StateRecord, user: UserLike | None) -> ProcessSpec:
    """Return a process of the container with a user. Raises BundleError, TypeError, ValueError."""
    base = spec.evolve(process=(spec.process or ProcessSpec(cwd="/")).evolve(terminal=None, console_size=None))
    root = ContainerRoot(f"/proc/{document['pid']}/root")
    process = Overrides(user=user).apply(base, lambda _: root).process
    assert process is not None, "it was given"
    return process


def _wrong_status(entry: Entry, status: Status) -> WrongStatus:
    return WrongStatus(entry.id, "use the files of", status, "running or paused")


class FileOperations(ABC):
    """What can be done with the files of a container. Each method has the user as whom it is done."""

    @abstractmethod
    def _server(self, user: UserLike | None) -> AbstractContextManager[FileServer]:
        """Give a server for the block."""

    @abstractmethod
    def _path(self, path: AnyPath, name: str = "path") -> bytes:
        """Return a path as the server takes it. Raises TypeError, ValueError."""

    @contextmanager
    def _using(self, path: bytes, user: UserLike | None) -> Iterator[FileServer]:
        """Give a server for the block. An OSError in it that has no path gets this one."""
        with self._server(user) as server, server.located(path):
            yield server

    # ---- content ----

    def read_bytes(self, path: AnyPath, *, max_size: int | None = None, user: UserLike | None = None) -> bytes:
        """Return the content of a file.

        Args:
            path: the file.
            max_size: the most bytes to read; a larger file is an OSError with errno EFBIG.
            user: the user of the container who reads it.
        """
        limit, where = _limit(max_size), self._path(path)
        content = bytearray()
        with self._using(where, user) as server:
            server.open_to_read(where)
            for part in limit.count(server.read()):
                content += bytes(part) if isinstance(part, int) else part
        return bytes(content)

    def read_text(
        self,
        path: AnyPath,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        max_size: int | None = None,
        user: UserLike | None = None,
    ) -> str:
        """Return the content of a file as text, by default from UTF-8 with surrogates for invalid bytes. Newlines are kept."""
        codec = _codec(encoding, errors)
        return self.read_bytes(path, max_size=max_size, user=user).decode(*codec)

    def write_bytes(self, path: AnyPath, data: Content, *, mode: int = 0o644, user: UserLike | None = None) -> None:
        """Write a file. One that exists is overwritten, and keeps its owner and permissions.

        Args:
            path: the file.
            data: its new content.
            mode: the permissions of a new file; no umask applies.
            user: the user of the container who writes it.
        """
        check_type("data", data, (bytes, bytearray, memoryview), "a bytes-like object")
        check_int("mode", mode, 0, 0o7777)
        where = self._path(path)
        with self._using(where, user) as server:
            server.open_to_write(where, mode)
            server.write([memoryview(data).cast("B")])

    def write_text(
        self,
        path: AnyPath,
        text: str,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        mode: int = 0o644,
        user: UserLike | None = None,
    ) -> None:
        """Write text to a file, as `write_bytes`, with the encoding of `read_text`. Raises ValueError too: it cannot be encoded."""
        check_type("text", text, str, "a str")
        codec = _codec(encoding, errors)
        try:
            data = text.encode(*codec)
        except UnicodeEncodeError as error:
            raise ValueError(f"text has {text[error.start]!r}, which cannot be encoded as {codec.encoding}") from error
        self.write_bytes(path, data, mode=mode, user=user)

    # ---- copies ----

    def put(
        self, source: AnyPath | Readable, destination: AnyPath, *, max_size: int | None = None, user: UserLike | None = None
    ) -> None:
        """Copy a file or a directory of the caller into the container, as ``cp -r`` does.

        In a directory that exists, the copy gets the name of the source. If the source ends in ``/.``, its content is copied there
        instead. Otherwise ``destination`` is the path of the copy. What is in a directory replaces files and links of the same
        names. Permissions and times are kept, but not set-user-ID and set-group-ID bits; holes stay holes. FIFOs, sockets and
        devices in a directory are left out, with an `OCIRuntimeWarning`.

        Args:
            source: a path, or a binary file that is read to its end.
            destination: the path in the container.
            max_size: the most bytes to copy, holes included.
            user: the user of the container as which the files are made.
        """
        limit, where = _limit(max_size), self._path(destination, "destination")
        if _is_readable(source):
            with self._using(where, user) as server:
                server.open_to_write(where, 0o644)
                server.write(limit.count(_read_object(source)))
            return
        given = _host_path(source, "source")
        with self._server(user) as server:
            with server.located(where):
                found = server.find_any(where)
                if found is not None and found.is_directory and (name := _own_name(given)):
                    where = posixpath.join(where, name)
            if os.path.isdir(given):
                _put_tree(server, given, where, limit)
            else:
                _put_file(server, given, where, limit)

    def get(
        self, source: AnyPath, destination: AnyPath | Writable, *, max_size: int | None = None, user: UserLike | None = None
    ) -> None:
        """Copy a file or a directory of the container to the caller, as ``cp -r`` does.

        The rules are those of `put`. The copies belong to the caller. A single file replaces its destination when it is complete;
        after an error the destination is what it was. In a directory, mount points are left out too, with an `OCIRuntimeWarning`.
        Symbolic links below ``destination``, which an earlier copy may have brought from the container, are not followed.

        Args:
            source: the path in the container.
            destination: a path, or a binary file that gets the content of a regular file.
            max_size: the most bytes to copy, holes included.
            user: the user of the container who reads the files.
        """
        limit, where = _limit(max_size), self._path(source, "source")
        with self._using(where, user) as server:
            if _is_writable(destination):
                server.open_to_read(where)
                _write_object(destination, limit.count(server.read()))
                return
            path = _host_path(destination, "destination")
            info, name = server.find(where), _own_name(where)
            given = not (name and os.path.isdir(path))
            if not given:
                path = os.path.join(path, name)
            if info.is_directory:
                _get_tree(server, where, path, limit, follow=given)
            else:
                info = server.open_found(info, os.O_RDONLY, server.label(where))
                _get_file(server, path, limit, info, follow=given)

    def put_archive(self, source: Readable, destination: AnyPath, *, user: UserLike | None = None) -> None:
        """Extract a tar archive, of any compression that `tarfile` reads, into a directory that exists.

        The files belong to the user, whatever their owners are in the archive; their permissions and times are those of the
        archive, as for `put`. Devices and FIFOs are left out, with an `OCIRuntimeWarning`.

        Args:
            source: a binary file, which is read once from its begin to its end.
            destination: the directory in the container.
            user: the user of the container as which the files are made.

        Raises:
            ValueError: it is not a tar archive, or a name in it has a ``..``.
        """
        if not _is_readable(source):
            raise wrong_type("source", source, "a file that is open in binary mode")
        where = self._path(destination, "destination")
        with self._using(where, user) as server:
            _extract(source, server, where)

    def get_archive(self, source: AnyPath, destination: Writable, *, user: UserLike | None = None) -> None:
        """Write a file or a directory of the container as a tar archive, in which it has its own name.

        What is left out is as for `get`; the archive has the owners, as ids of the container.

        Args:
            source: the path in the container.
            destination: a binary file that gets the archive.
            user: the user of the container who reads the files.
        """
        if not _is_writable(destination):
            raise wrong_type("destination", destination, "a file that is open in binary mode")
        where = self._path(source, "source")
        with self._using(where, user) as server:
            _archive(server, where, destination)

    # ---- names ----

    def listdir(self, path: AnyPath = "/", *, user: UserLike | None = None) -> list[str]:
        """Return the names in a directory, sorted. Bytes that are not UTF-8 are surrogates, as in `os.listdir`."""
        where = self._path(path)
        with self._using(where, user) as server:
            return [os.fsdecode(name) for name in reversed(server.open_directory(where).list())]

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True, user: UserLike | None = None) -> FileStatus:
        """Return the status of a file of any type; with ``follow_symlinks=False`` that of a symbolic link itself."""
        check_bool("follow_symlinks", follow_symlinks)
        where = self._path(path)
        with self._using(where, user) as server:
            info = server.find(where, follow=follow_symlinks)
            target = server.readlink() if info.is_link else ""
        return FileStatus(
            path=os.fsdecode(where),
            type=FILE_TYPES[stat.S_IFMT(info.mode)],
            mode=stat.S_IMODE(info.mode),
            uid=info.uid,
            gid=info.gid,
            size=info.size,
            mtime_ns=info.mtime_ns,
            links=info.links,
            target=target,
        )

    def exists(self, path: AnyPath, *, user: UserLike | None = None) -> bool:
        """Return whether a path leads to a file of any type."""
        where = self._path(path)
        with self._using(where, user) as server:
            return server.find_any(where) is not None

    def mkdir(
        self, path: AnyPath, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False, user: UserLike | None = None
    ) -> None:
        """Make a directory. Arguments as for `pathlib.Path.mkdir`, but no umask applies to ``mode``."""
        check_int("mode", mode, 0, 0o7777)
        check_bool("parents", parents)
        check_bool("exist_ok", exist_ok)
        where = self._path(path).rstrip(b"/") or b"/"
        with self._using(where, user) as server:
            ends = [end for end, letter in enumerate(where) if letter == ord("/") and end] if parents else []
            for end in ends:
                if server.find_any(where[:end]) is None:
                    _make_directory(server, where[:end], 0o755, exist_ok=True)
            _make_directory(server, where, mode, exist_ok=exist_ok)

    def remove(self, path: AnyPath, *, recursive: bool = False, missing_ok: bool = False, user: UserLike | None = None) -> None:
        """Remove a file, a symbolic link or an empty directory.

        Args:
            path: what to remove. A symbolic link is not followed.
            recursive: remove a directory with everything in it. A mount point in it is an error.
            missing_ok: whether the path may be missing.
            user: the user of the container who removes it.
        """
        check_bool("recursive", recursive)
        check_bool("missing_ok", missing_ok)
        where = self._path(path).rstrip(b"/")
        if posixpath.basename(where) in (b"", b".", b".."):
            raise ValueError(f"path is {shown(os.fsdecode(where) or '/')}: a name in a directory is needed")
        try:
            with self._using(where, user) as server:
                server.remove(where, recursive=recursive)
        except FileNotFoundError:
            if not missing_ok:
                raise


class ContainerFiles(FileOperations, Unpicklable):
    """The files of a running or paused container, used with the rights of one of its users.

    Paths are those of the container. A relative one counts from the working directory of its process, and no link leads out of its
    root directory. Only regular files are opened: a FIFO, a socket or a device raises NotRegularError, which is an OSError. Errors
    are those of Python's own functions for files, with paths as ``ID:/path``.

    Every method has the argument ``user``, as `Container.exec`; by default it is the user of the container's process. It has the
    rights of a program that `exec` runs as this user, and what is made belongs to it. The calls do not count for the limits of the
    container, and work while it is paused.

    Each call starts a process for some milliseconds. As a context manager, the object keeps it for all calls of the block.

    Raises:
        WrongStatus: the container was not started, or has ended.
        StepError, BundleError: it does not have the user.
        FileNotFoundError, PermissionError, OSError: a path cannot be used.
        TimeoutError: a filesystem that the container itself serves does not answer.
    """

    _instead = "send the Container, and use its files there"

    def __init__(self, entry: Entry, spec: Callable[[], RuntimeSpec]) -> None:
        self._entry = entry
        self._spec = spec
        self._lock = ProcessLock()
        self._kept: dict[str, FileServer] | None = None
        self._owner = os.getpid()
        self._current: FileServer | None = None
        self._in_use = False
        self._cancelled = False

    def __enter__(self) -> Self:
        self._kept, self._owner = {}, os.getpid()
        return self

    def __exit__(self, *exc: object) -> None:
        kept, self._kept = self._kept or {}, None
        if os.getpid() == self._owner:
            with DeferredSignals():
                for server in kept.values():
                    server.close()

    def _cancel(self) -> None:
        """End the call that another thread is in, or is about to make: it raises WrongStatus."""
        self._cancelled = True
        if (server := self._current) is not None:
            server.cancel()

    @override
    @contextmanager
    def _server(self, user: UserLike | None) -> Iterator[FileServer]:
        key = repr(user)
        with self._lock, DeferredSignals():
            outer, is_nested, self._in_use = self._current, self._in_use, True
            # A call within another one, by a signal handler or a file of the caller, would change which files that one has open.
            kept = self._kept if not is_nested and os.getpid() == self._owner else None
            server: FileServer | None = None
            try:
                server = kept.get(key) if kept is not None else None
                if server is None:
                    server = launch_server(self._entry, self._spec(), user)
                    if kept is not None:
                        kept[key] = server
                self._current = server
                if self._cancelled:
                    server.cancel()
                yield server
            finally:
                self._current, self._in_use = outer, is_nested
                if server is not None and (kept is None or server.broken):
                    server.close()
                    if kept is not None:
                        del kept[key]

    @override
    def _path(self, path: AnyPath, name: str = "path") -> bytes:
        encoded = _host_path(path, name)
        if encoded.startswith(b"/"):
            return encoded
        process = self._spec().process
        return posixpath.join(os.fsencode(process.cwd if process else "/"), encoded)


def _codec(encoding: str | None, errors: str | None) -> Codec:
    codec = Codec.of(True, encoding, errors)
    assert codec is not None, "it is text"
    return codec


def _limit(max_size: int | None) -> Limit:
    if max_size is not None:
        check_int("max_size", max_size, 0, (1 << 63) - 1)
    return Limit(max_size)


def _host_path(path: object, name: str) -> bytes:
    raw = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(raw, str | bytes):
        raise wrong_type(name, path, "a path as a str, bytes or os.PathLike")
    return os.fsencode(parse_path(name, os.fsdecode(raw)))


def _is_readable(source: object) -> TypeGuard[Readable]:
    return hasattr(source, "read")


def _is_writable(destination: object) -> TypeGuard[Writable]:
    return hasattr(destination, "write")


def _own_name(path: bytes) -> bytes:
    """Return the name of a file that its copy in a directory gets; empty if its content is copied there."""
    name = posixpath.basename(path.rstrip(b"/"))
    return b"" if name in (b".", b"..") else name


def _make_directory(server: FileServer, path: bytes, mode: int, *, exist_ok: bool) -> None:
    try:
        server.make_directory(path, mode)
    except FileExistsError:
        if not exist_ok or not server.find(path).is_directory:
            raise


def _put_file(server: FileServer, source: bytes, where: bytes, limit: Limit) -> None:
    fd = open_regular(os.fsdecode(source))
    info = FileInfo.of_host(os.fstat(fd))
    with closing(read_file(fd)) as parts, server.located(where):
        server.open_to_write(where, info.mode & COPIED_MODE)
        server.write(limit.count(parts))
        server.touch(info)


def _put_tree(server: FileServer, source: bytes, where: bytes, limit: Limit) -> None:
    created = None
    with HostTree(source) as tree:
        with server.located(where):
            if server.find_any(where) is None:
                server.make_directory(where, 0o700)
                created = FileInfo.of_host(os.stat(source))
            target = server.open_directory(where)
        _warn_left_out(copy_tree(tree, target, limit, created))


def _get_file(server: FileServer, path: bytes, limit: Limit, info: FileInfo, *, follow: bool) -> None:
    parts = limit.count(server.read())
    if os.path.exists(path) and not os.path.isfile(path) and (follow or not os.path.islink(path)):
        with open(path, "wb", buffering=0) as special:
            _write_object(special, parts)
        return
    with StagedFile(os.fsdecode(path), mode=info.mode & COPIED_MODE, anonymous=True) as staged:
        write_file(staged.fd, parts)
        os.utime(staged.fd, ns=(info.mtime_ns, info.mtime_ns))
        staged.commit()


def _get_tree(server: FileServer, where: bytes, path: bytes, limit: Limit, *, follow: bool) -> None:
    source, created = server.open_directory(where, same_mount=True), None
    if not follow and os.path.islink(path):
        raise NotADirectoryError(errno.ENOTDIR, "a symbolic link, which a copy does not follow; remove it", os.fsdecode(path))
    if not os.path.isdir(path):
        os.mkdir(os.fsdecode(path), 0o700)
        created = source.top
    with HostTree(path, follow=follow) as target:
        _warn_left_out(copy_tree(source, target, limit, created))


def _warn_left_out(files: LeftOut) -> None:
    if files.count:
        warn([f"not copied: {files}"])


def _read_object(file: Readable) -> Parts:
    while True:
        with waiting():
            part: object = file.read(SERVED)
        if not isinstance(part, bytes | bytearray | memoryview):
            raise wrong_type("source", file, "a file that is open in binary mode")
        if not part:
            return
        yield memoryview(part).cast("B")


def _write_object(file: Writable, parts: Iterable[memoryview | int]) -> None:
    for part in parts:
        for at in range(0, part if isinstance(part, int) else 1, SERVED):
            content = bytes(min(SERVED, part - at)) if isinstance(part, int) else bytes(part)
            with waiting():
                file.write(content)


# ---- archives ----


class _Waiting:
    """A file of the caller. Signal handlers run while it is read or written."""

    def __init__(self, file: Readable | Writable) -> None:
        self._file: Any = file

    def read(self, size: int) -> bytes:
        with waiting():
            content: bytes = self._file.read(size)
        return content

    def write(self, content: bytes) -> int:
        with waiting():
            self._file.write(content)
        return len(content)


class _ArchiveTarget:
    """A tar archive that is written, as `Target`."""

    def __init__(self, tar: tarfile.TarFile, *names: str) -> None:
        self._tar = tar
        self._names = [*names]

    def _member(self, name: bytes, info: FileInfo, kind: bytes) -> tarfile.TarInfo:
        member = tarfile.TarInfo("/".join((*self._names, os.fsdecode(name))))
        member.type, member.mode, member.mtime = kind, stat.S_IMODE(info.mode), info.mtime
        member.uid, member.gid = info.uid, info.gid
        return member

    def enter(self, name: bytes) -> None:
        self._names.append(os.fsdecode(name))

    def leave(self) -> None:
        self._names.pop()

    def _add(self, member: tarfile.TarInfo, content: io.BufferedReader | None = None) -> None:
        self._tar.addfile(member, content)
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all

    def make_directory(self, name: bytes, info: FileInfo) -> bool:
        self._add(self._member(name, info, tarfile.DIRTYPE))
        return True

    def write(self, name: bytes, info: FileInfo, parts: Parts) -> None:
        member = self._member(name, info, tarfile.REGTYPE)
        member.size = info.size
        try:
            self._add(member, io.BufferedReader(_PartsFile(parts)))
        except OSError as error:
            if error.errno is None:  # by tarfile itself
                raise OSError(errno.EIO, "it became shorter while it was read; try again") from error
            raise

    def make_link(self, name: bytes, target: bytes, info: FileInfo) -> None:
        member = self._member(name, info, tarfile.SYMTYPE)
        member.linkname = os.fsdecode(target)
        self._add(member)

    def finish(self, info: FileInfo) -> None:
        """Nothing: the directory has its own member."""


class _PartsFile(io.RawIOBase):
    """The content of a file, to be read in order."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._left: memoryview | int = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = next(self._parts, 0)
        left = self._left
        count = min(left if isinstance(left, int) else len(left), len(buffer))
        buffer[:count] = bytes(count) if isinstance(left, int) else left[:count]
        self._left = left - count if isinstance(left, int) else left[count:]
        return count


def _archive(server: FileServer, where: bytes, destination: Writable) -> None:
    info, name = server.find(where), _own_name(where) or b"."
    file: Any = _Waiting(destination)
    with tarfile.open(mode="w|", fileobj=file, format=tarfile.PAX_FORMAT) as tar:
        if info.is_directory:
            _ArchiveTarget(tar).make_directory(name, info)
            tree = server.open_directory(where, same_mount=True)
            _warn_left_out(copy_tree(tree, _ArchiveTarget(tar, os.fsdecode(name)), Limit(None), None))
        else:
            info = server.open_found(info, os.O_RDONLY, server.label(where))
            _ArchiveTarget(tar).write(name, info, server.read())


class _Headers:
    """The decompressed archive that tarfile reads. A header in it may claim to have gigabytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.left: int | None = MAX_HEADERS
        """Bytes that the headers of a member may still have; None while its content is read."""

    def read(self, size: int) -> bytes:
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise tarfile.ReadError("a header is too large")
        content: bytes = self._stream.read(size)
        return content

    def seek(self, offset: int) -> None:
        self._stream.seek(offset)

    def tell(self) -> int:
        position: int = self._stream.tell()
        return position

    def close(self) -> None:
        self._stream.close()


class _Archive(tarfile.TarFile):
    """A tar archive that is read once, with bounded memory."""

    def __init__(self, name: Any, mode: Any, fileobj: Any, **options: Any) -> None:
        self.headers = _Headers(fileobj)
        super().__init__(name, mode, self.headers, **options)  # type: ignore[arg-type]

    def read_members(self) -> Iterator[tarfile.TarInfo]:
        """Yield each member, whose content can be read until the next one. Raises tarfile.TarError."""
        while (member := self.next()) is not None:
            self.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if sum(len(key) + len(value) for key, value in self.pax_headers.items()) > MAX_HEADERS:
                raise tarfile.ReadError("the global headers are too large")
            self.headers.left = None
            yield member
            self.headers.left = MAX_HEADERS


def _extract(source: Readable, server: FileServer, where: bytes) -> None:
    file: Any = _Waiting(source)
    left_out = LeftOut()
    directories: dict[bytes, FileInfo] = {}
    try:
        with _Archive.open(mode="r|*", fileobj=file) as tar:
            for member in tar.read_members():
                mtime = max(0, int(member.mtime))
                info = FileInfo(member.mode, 1, member.uid, member.gid, 0, member.size, mtime, 0, (0, 0))
                parts = _archive_path(member.name)
                if member.isdir():
                    _open_directory(server, where, parts)
                    path = posixpath.join(where, *parts)
                    directories.pop(path, None)  # the last one counts, after those that precede it
                    directories[path] = info
                elif not parts or not _extract_file(
                    tar, member, info, _open_directory(server, where, parts[:-1]), where, parts[-1]
                ):
                    left_out.add(member.name)
    except (tarfile.TarError, RecursionError, OverflowError) as error:  # of headers of headers, and an infinite time
        raise ValueError(f"source is not a tar archive: {error}") from error
    for path, info in reversed(directories.items()):
        server.open_directory(path).finish(info)
    _warn_left_out(left_out)


def _extract_file(
    tar: tarfile.TarFile, member: tarfile.TarInfo, info: FileInfo, tree: ContainerTree, where: bytes, name: bytes
) -> bool:
    """Make a file of an archive in a directory; return false if it is of a type that is left out."""
    if member.issym():
        tree.make_link(name, os.fsencode(member.linkname), info)
    elif member.islnk():
        *folder, other = _archive_path(member.linkname)
        tree.make_hard_link(name, posixpath.join(where, *folder), other)
    elif member.isreg():
        content = tar.extractfile(member)
        assert content is not None, "it is a regular file"
        tree.write(name, info, _read_object(content))
    return member.issym() or member.islnk() or member.isreg()


def _archive_path(name: str) -> list[bytes]:
    """Return the components of a path in an archive. Raises ValueError: it could lead out of the directory, or is not a path."""
    if "\0" in name or len(name) > MAX_PATH:
        raise ValueError(f"source has the name {shown(name)}: a path in an archive has at most {MAX_PATH} characters, and no NUL")
    parts = [os.fsencode(part) for part in name.split("/") if part not in ("", ".")]
    if b".." in parts:
        raise ValueError(f"source has the name {shown(name)}: '..' is not allowed in an archive")
    return parts


def _open_directory(server: FileServer, where: bytes, parts: Sequence[bytes]) -> ContainerTree:
    """Open a directory below another one, and make what is missing of the path."""
    try:
        return server.open_directory(posixpath.join(where, *parts))
    except FileNotFoundError:
        for end in range(1, len(parts) + 1):
            _make_directory(server, posixpath.join(where, *parts[:end]), 0o755, exist_ok=True)
        return server.open_directory(posixpath.join(where, *parts))
