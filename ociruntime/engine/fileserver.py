"""A server of files in a container: an init process that uses them for the caller, and copies of trees between both.

Another process of the container may replace any file at any moment, by a link, a FIFO or a device, and may serve filesystems of its
own. A user without privileges cannot reach files of subordinate ids from outside. So the server has joined the container's
namespaces and has the credentials of one of its users (see ``_native/serve.c``). It opens nothing but regular files and
directories. The caller itself has no descriptor of the container's files, so that it never waits in a filesystem of the container.
"""

from __future__ import annotations

import errno
import os
import posixpath
import socket
import stat
import struct
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from ..files import NotRegularError, check_regular, write_all
from ..image.layers import FILE_TYPES
from ..interrupts import waiting
from ..plan.compile import SERVED_ROOT
from ..plan.ops import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, SERVED, STATUS, Call

if TYPE_CHECKING:
    from .launch import Init

Content: TypeAlias = bytes | bytearray | memoryview
T = TypeVar("T")
Parts: TypeAlias = Generator[memoryview | int, None, None]
"""The content of a file: bytes, and the lengths of holes."""

_REQUEST: Final = struct.Struct("=IIIIIIQQ")
_ANSWER: Final = struct.Struct("=iIQ")
_STATX: Final = struct.Struct("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII")
"""The beginning of ``struct statx``."""
_DIRENT: Final = struct.Struct("=QqHB")
"""The beginning of ``struct linux_dirent64``."""
_ENTRY: Final = struct.Struct("=II")
"""The beginning of an entry in an answer to `Call.ENTRIES`."""
_IN_ROOT: Final = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_NO_XDEV: Final = 0x01
_REMOVEDIR: Final = 0x200
"""AT_REMOVEDIR"""
_FOUND, _FILE, _PLACE, _OTHER, _NEAR = range(SERVED_ROOT + 1, SERVED_ROOT + 6)
"""Slots: what a path leads to, a file that is open, the directory that a walk has come to, a second file, and a directory of a long
path."""
_LONGEST_PATH: Final = 3840
"""Bytes of a path of a layer that one call takes: with the longest name less than PATH_MAX."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_BELOW: Final = RESOLVE_NO_SYMLINKS | 0x08
"""With RESOLVE_BENEATH"""
_U64: Final = (1 << 64) - 1
_TRIES: Final = 100
"""Attempts at a path that another process changes meanwhile."""
_PATIENCE: Final = 60.0
"""Seconds for the answer to one request: a filesystem that a container serves may never answer."""
_MOST_NAMES: Final = 1 << 20
"""Names of files that are kept in memory for one walk."""
COPIED_MODE: Final = 0o777
"""Permissions that are copied: set-user-ID and the like have a meaning for the ids of one side alone."""


class FileInfo(NamedTuple):
    """What a server tells of a file: a part of ``struct statx``."""

    mode: int
    links: int
    uid: int
    gid: int
    inode: int
    size: int
    mtime: int
    """Seconds, to which `mtime_part` adds nanoseconds."""
    mtime_part: int
    device: tuple[int, int]
    rdev: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""

    @classmethod
    def of_statx(cls, raw: memoryview) -> Self:
        fields = _STATX.unpack_from(raw)
        links, uid, gid, mode, inode, size = fields[3:9]
        return cls(mode, links, uid, gid, inode, size, fields[17], fields[18], (fields[21], fields[22]), (fields[19], fields[20]))

    @classmethod
    def of_host(cls, info: os.stat_result) -> Self:
        seconds, part = divmod(info.st_mtime_ns, 10**9)
        device = os.major(info.st_dev), os.minor(info.st_dev)
        return cls(info.st_mode, info.st_nlink, info.st_uid, info.st_gid, info.st_ino, info.st_size, seconds, part, device)

    @property
    def mtime_ns(self) -> int:
        return self.mtime * 10**9 + self.mtime_part

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells this file from every other one."""
        return self.device, self.inode

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Answer(NamedTuple):
    """The answer to a call: what `Call` says."""

    value: int
    info: FileInfo | None
    data: memoryview

    @property
    def file(self) -> FileInfo:
        assert self.info is not None, "this call answers with a status"
        return self.info


def locate(error: OSError, label: str) -> None:
    """Give an error a path for people, unless it has one: those of system calls have none, or one as bytes."""
    if not isinstance(error.filename, str):
        error.filename = label


class FileServer:
    """A running server. It makes one call at a time, and ends with the container and with the caller.

    Args:
        init: the init process.
        peer: the caller's end of its socket, with messages.
        name: the container, for paths in errors.
        ended: returns the error for a container that has ended.
    """

    def __init__(self, init: Init, peer: socket.socket, *, name: str, ended: Callable[[], Exception]) -> None:
        self._init = init
        self._peer = peer
        self._name = name
        self.user = 0
        """The uid of the server in the container, for errors."""
        self._ended = ended
        self.broken = False
        """Whether a call has ended without its answer, so that there can be no other."""
        peer.settimeout(_PATIENCE)

    def close(self) -> None:
        """End the server."""
        self._peer.close()
        self._init.kill()

    def cancel(self) -> None:
        """Let the call of another thread end as if the container had ended."""
        try:
            self._peer.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed

    def call(
        self,
        call: Call,
        slot: int,
        name: bytes = b"",
        *,
        data: Content = b"",
        out: int = 0,
        flags: int = 0,
        mode: int = 0,
        a: int = 0,
        b: int = 0,
    ) -> Answer:
        """Make one call. Signal handlers run while it waits.

        Raises:
            OSError: the call failed. It has no path.
            TimeoutError: the container's filesystem does not answer.
            WrongStatus: the container has ended.
        """
        head = _REQUEST.pack(call, slot, out, flags, mode, len(name) + 1, a & _U64, b)
        self.broken = True
        try:
            with waiting():
                self._peer.sendmsg([head, name, b"\0", data])
                raw = memoryview(self._peer.recv(_ANSWER.size + SERVED))
        except TimeoutError:
            message = f"the filesystem in the container did not answer for {_PATIENCE:.0f} s"
            raise TimeoutError(errno.ETIMEDOUT, message) from None
        except ConnectionError:
            raw = memoryview(b"")
        if not raw:
            raise self._ended()
        self.broken = False
        number, has_info, value = _ANSWER.unpack_from(raw)
        if number:
            raise self._failure(number)
        content = raw[_ANSWER.size :]
        return Answer(value, FileInfo.of_statx(content) if has_info else None, content)

    def _failure(self, number: int) -> OSError:
        if number in (errno.EACCES, errno.EPERM):
            remedy = "; user=0 stands for root of the container" if self.user else ""
            return OSError(number, f"Permission denied to user {self.user} of the container{remedy}")
        return OSError(number, "it is a mount point" if number == errno.EXDEV else os.strerror(number))

    # ---- paths ----

    def label(self, path: bytes) -> str:
        """Return a path of the container for messages."""
        return f"{self._name}:{os.fsdecode(path)}"

    @contextmanager
    def located(self, path: bytes) -> Iterator[None]:
        """Give an OSError in the block a path of the container, unless it has a path."""
        try:
            yield
        except OSError as error:
            locate(error, self.label(path))
            raise

    def find(self, path: bytes, *, follow: bool = True) -> FileInfo:
        """Find what a path leads to, as `_FOUND`, without opening it."""
        flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
        return self.call(Call.OPEN, SERVED_ROOT, path, flags=flags, a=_IN_ROOT, out=_FOUND).file

    def find_any(self, path: bytes) -> FileInfo | None:
        """Find what a path leads to, as `find`; return None if it leads nowhere."""
        try:
            return self.find(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def find_directory(self, path: bytes) -> None:
        """Find a directory, as `find`."""
        self.call(Call.OPEN, SERVED_ROOT, path or b"/", flags=os.O_PATH | os.O_DIRECTORY, a=_IN_ROOT, out=_FOUND)

    def readlink(self) -> str:
        """Return what the symbolic link holds that was found last."""
        return os.fsdecode(bytes(self.call(Call.READLINK, _FOUND).data))

    def make_directory(self, path: bytes, mode: int) -> None:
        """Make a directory. Raises FileExistsError, OSError."""
        folder, name = posixpath.split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.find_directory(folder)
        self.call(Call.MKDIR, _FOUND, name, mode=mode)

    def remove(self, path: bytes, *, recursive: bool) -> None:
        """Remove a file or a directory, which ``path`` names in another one."""
        folder, name = posixpath.split(path)
        self.find_directory(folder)
        try:
            self.call(Call.REMOVE, _FOUND, name)
        except IsADirectoryError:
            if recursive:
                top = self.call(Call.OPEN, _FOUND, name, flags=_DIRECTORY, a=_NO_XDEV, out=_PLACE).file
                ContainerTree(self, self.label(path), top, same_mount=True).remove_content()
            self.call(Call.REMOVE, _FOUND, name, flags=_REMOVEDIR)

    def open_directory(self, path: bytes, *, same_mount: bool = False) -> ContainerTree:
        """Open a directory as a tree; with ``same_mount`` it refuses to enter mount points."""
        self.find_directory(path)
        top = self.call(Call.REOPEN, _FOUND, flags=os.O_RDONLY | os.O_DIRECTORY, out=_PLACE).file
        return ContainerTree(self, self.label(path), top, same_mount=same_mount)

    # ---- the content of the one file that is open ----

    def open_found(self, found: FileInfo, flags: int, label: str) -> FileInfo:
        """Open the regular file that was found last. Raises IsADirectoryError; NotRegularError: it is of another type."""
        if found.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), label)
        if not stat.S_ISREG(found.mode):
            raise NotRegularError(label, FILE_TYPES[stat.S_IFMT(found.mode)])
        return self.call(Call.REOPEN, _FOUND, flags=flags, out=_FILE).file

    def open_to_read(self, path: bytes) -> FileInfo:
        """Open a regular file. Raises NotRegularError: it is of another type."""
        return self.open_found(self.find(path), os.O_RDONLY, self.label(path))

    def open_to_write(self, path: bytes, mode: int) -> None:
        """Open an empty regular file, as open(2) with O_CREAT and O_TRUNC: one that exists loses its content.

        Raises:
            IsADirectoryError, NotRegularError: it exists, and is of another type.
        """
        folder, name = posixpath.split(path)
        for _ in range(_TRIES):
            try:
                found = self.find(path)
            except FileNotFoundError:
                if name in (b"", b".", b".."):
                    raise
                self.find_directory(folder)
                try:
                    self.call(Call.OPEN, _FOUND, name, flags=_NEW, mode=mode, out=_FILE)
                except FileExistsError:
                    if self.find(path, follow=False).is_link:
                        raise OSError(errno.ELOOP, "a symbolic link that leads nowhere") from None
                    continue  # another process was faster
                return
            self.open_found(found, os.O_WRONLY | os.O_TRUNC, self.label(path))
            return
        raise _restless()

    def read(self, slot: int = _FILE) -> Parts:
        """Yield the content."""
        while True:
            answer = self.call(Call.READ, slot, a=SERVED)
            if answer.value:
                yield answer.value
            elif answer.data:
                yield answer.data
            else:
                return

    def write(self, parts: Iterable[memoryview | int]) -> None:
        """Write the content of an empty file."""
        is_hole = False
        for part in parts:
            is_hole = isinstance(part, int)
            if isinstance(part, int):
                self.call(Call.SKIP, _FILE, a=part)
                continue
            for at in range(0, len(part), SERVED):
                self.call(Call.WRITE, _FILE, data=part[at : at + SERVED])
        if is_hole:
            self.call(Call.TRUNCATE, _FILE)

    def touch(self, info: FileInfo, slot: int = _FILE) -> None:
        """Give the file the time of another one."""
        self.call(Call.TOUCH, slot, a=info.mtime, b=info.mtime_part)

    def names(self) -> Iterator[bytes]:
        """Yield the names in the directory of a walk."""
        while data := self.call(Call.LIST, _PLACE).data:
            at = 0
            while at < len(data):
                size = _DIRENT.unpack_from(data, at)[2]
                name = bytes(data[at + _DIRENT.size : at + size]).partition(b"\0")[0]
                at += size
                if name not in (b".", b".."):
                    yield name

    # ---- layers, in which no symbolic link is followed ----

    def _open_in_layer(self, slot: int, path: bytes, flags: int, out: int) -> FileInfo:
        """Open a file of a layer. A container may have paths of any length."""
        while len(path) > _LONGEST_PATH:
            end = path.rindex(b"/", 0, _LONGEST_PATH)
            self.call(Call.OPEN, slot, path[:end], flags=os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, a=_BELOW, out=_NEAR)
            slot, path = _NEAR, path[end + 1 :]
        return self.call(Call.OPEN, slot, path or b".", flags=flags, a=_BELOW, out=out).file

    def look_at(self, slot: int, path: bytes) -> FileInfo:
        """Find a file of a layer, as `_FOUND`."""
        return self._open_in_layer(slot, path, os.O_PATH | os.O_NOFOLLOW, _FOUND)

    def attribute(self, name: bytes) -> bytes | None:
        """Return an extended attribute of what was found last; None if it has no such attribute."""
        try:
            return bytes(self.call(Call.ATTRIBUTES, _FOUND, name).data)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.ENOTSUP):
                return None
            raise

    def attributes(self) -> list[bytes]:
        """Return the names of the extended attributes of what was found last."""
        try:
            names = bytes(self.call(Call.ATTRIBUTES, _FOUND).data).split(b"\0")
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return []
            raise
        return [name for name in names if name]

    def names_in(self, slot: int, path: bytes) -> list[bytes]:
        """Return the names in a directory of a layer."""
        self.open_layer_directory(slot, path)
        return list(self.names())

    def entries_in(self, slot: int, path: bytes) -> Iterator[tuple[bytes, FileInfo, Sequence[bytes] | None]]:
        """Yield name and status of each file in a directory of a layer, and the names of its attributes; None if these are long.

        No other call of the server may use a directory meanwhile.
        """
        self.open_layer_directory(slot, path)
        while (answer := self.call(Call.ENTRIES, _PLACE)).value:
            data, at = answer.data, 0
            while at < len(data):
                size, has_more = _ENTRY.unpack_from(data, at)
                begin = at + _ENTRY.size
                name, *attributes = bytes(data[begin + STATUS : at + size - 1]).split(b"\0")
                yield name, FileInfo.of_statx(data[begin : begin + STATUS]), None if has_more else attributes
                at += size

    def content(self, slot: int, path: bytes) -> Parts:
        """Yield the content of a regular file of a layer, which was looked at."""
        self.open_found(self.look_at(slot, path), os.O_RDONLY, os.fsdecode(path))
        yield from self.read()

    # What follows copies a file of a layer, which is open, to the directory of another layer that was opened last.

    def open_layer_directory(self, slot: int, path: bytes) -> None:
        """Open a directory of a layer."""
        self._open_in_layer(slot, path, _DIRECTORY, _PLACE)

    def make(self, call: Call, name: bytes, *, data: bytes = b"", mode: int = 0, a: int = 0) -> None:
        """Make something that is not a regular file."""
        self.call(call, _PLACE, name, data=data, mode=mode, a=a)

    def make_file(self, name: bytes) -> None:
        """Make a regular file, as `_OTHER`."""
        self.call(Call.OPEN, _PLACE, name, flags=_NEW, mode=0o600, out=_OTHER)

    def share_content(self) -> None:
        """Let it share the content of the file that is open. Raises OSError: the filesystem cannot do that."""
        self.call(Call.CLONE, _FILE, out=_OTHER)

    def copy_content(self, most: int) -> None:
        """Copy the content of the file that is open to it, ``most`` bytes with each call."""
        while self.call(Call.COPY, _FILE, a=most, out=_OTHER).value:
            pass
        self.call(Call.TRUNCATE, _OTHER)

    def link_in_layer(self, slot: int, path: bytes, name: bytes) -> None:
        """Make a hard link to a file of the layer."""
        folder, other = posixpath.split(path)
        self._open_in_layer(slot, folder, os.O_PATH | os.O_DIRECTORY, _FOUND)
        self.call(Call.LINK, _PLACE, name, data=other, out=_FOUND)

    def finish_copy(self, name: bytes, info: FileInfo, attributes: Mapping[bytes, bytes], *, directory: bool) -> None:
        """Give a copy its owner, permissions, attributes and time; a file that is not a directory is `_OTHER`, if it is regular."""
        slot = _PLACE if directory else _OTHER
        is_whiteout = stat.S_ISCHR(info.mode) and info.rdev == (0, 0)
        if not is_whiteout:
            self.call(Call.CHOWN, _PLACE, name, a=info.uid, b=info.gid)
        if directory or stat.S_ISREG(info.mode):
            for attribute, value in attributes.items():
                self.call(Call.SET_ATTRIBUTE, slot, attribute, data=value)
            self.call(Call.CHMOD, slot, mode=stat.S_IMODE(info.mode))
        self.call(Call.TOUCH, _PLACE, name, a=info.mtime, b=info.mtime_part)

    def same_content(self, one: tuple[int, bytes], other: tuple[int, bytes]) -> bool:
        """Return whether two regular files of layers have the same content."""
        for (slot, path), out in ((one, _FILE), (other, _OTHER)):
            self.look_at(slot, path)
            self.call(Call.REOPEN, _FOUND, flags=os.O_RDONLY, out=out)
        return same_parts(self.read(), self.read(_OTHER))


def _restless() -> OSError:
    return OSError(errno.EAGAIN, "other processes change it again and again")


def same_parts(one: Parts, other: Parts) -> bool:
    """Return whether two contents are the same, however their holes are."""
    left: memoryview | int = 0
    right: memoryview | int = 0
    while True:
        left, right = left or next(one, 0), right or next(other, 0)
        if not left or not right:
            return not left and not right
        count = min(_length(left), _length(right))
        if not isinstance(left, int) or not isinstance(right, int):
            count = min(count, SERVED)
            if _begin(left, count) != _begin(right, count):
                return False
        left, right = _rest(left, count), _rest(right, count)


def _length(part: memoryview | int) -> int:
    return part if isinstance(part, int) else len(part)


def _begin(part: memoryview | int, count: int) -> Content:
    return bytes(count) if isinstance(part, int) else part[:count]


def _rest(part: memoryview | int, count: int) -> memoryview | int:
    return part - count if isinstance(part, int) else part[count:]


# ---- trees ----


class Limit:
    """What is left of the bytes that a call may copy."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._left = most

    def count(self, parts: Iterable[memoryview | int]) -> Parts:
        """Pass the content of a file on. Raises OSError: it is too large."""
        for part in parts:
            if self._left is not None:
                self._left -= part if isinstance(part, int) else len(part)
                if self._left < 0:
                    raise OSError(errno.EFBIG, f"larger than max_size, {self._most} bytes")
            yield part


class _Tree:
    """A place in a directory tree: one open directory, and what was above it on the way there.

    It goes down without following symbolic links, and up through ``..``, which must be the directory that it came from.
    """

    def __init__(self, label: str, top: FileInfo) -> None:
        self._names = [label]
        self._identity = top.identity
        self._above: list[tuple[object, ...]] = []

    def path(self, name: bytes = b"") -> str:
        """Return the path of this directory, or of a file in it, for messages."""
        return posixpath.join(*self._names, *([os.fsdecode(name)] if name else ()))

    @contextmanager
    def located(self, name: bytes = b"") -> Iterator[None]:
        """Give an OSError in the block the path of a file in this directory, unless it has a path."""
        try:
            yield
        except OSError as error:
            locate(error, self.path(name))
            raise

    def enter(self, name: bytes) -> None:
        """Go to a subdirectory. Raises OSError."""
        with self.located(name):
            identity = self._go(name).identity
        self._above.append(self._identity)
        self._names.append(os.fsdecode(name))
        self._identity = identity

    def leave(self) -> bytes:
        """Go back to the directory above, and return the name of this one. Raises OSError: another process has moved it."""
        with self.located():
            if self._go(b"..").identity != self._above[-1]:
                raise OSError(errno.ESTALE, "the directory was moved by another process meanwhile; try again")
        self._identity = self._above.pop()
        return os.fsencode(self._names.pop())

    def _go(self, name: bytes) -> FileInfo:
        """Open a subdirectory, or the directory above. Raises OSError."""
        raise NotImplementedError

    def _bounded(self, names: Iterable[bytes], others: int) -> list[bytes]:
        found: list[bytes] = []
        with self.located():
            for name in names:
                found.append(name)
                if len(found) + others > _MOST_NAMES:
                    raise OSError(errno.EFBIG, f"more than {_MOST_NAMES} files")
        return sorted(found, reverse=True)


class Source(Protocol):
    """A tree that is copied. Its methods raise OSError with a path."""

    def path(self, name: bytes = b"") -> str:
        """Return a path for messages."""
        ...

    def enter(self, name: bytes) -> None:
        """Go to a subdirectory. Raises OSError with errno EXDEV: it is a mount point, which is left out."""
        ...

    def leave(self) -> object:
        """Go back to the directory above."""
        ...

    def list(self, others: int = 0) -> list[bytes]:
        """Return the names in this directory, the last first. Raises OSError: there are too many, with ``others``, to keep."""
        ...

    def look(self, name: bytes) -> FileInfo:
        """Return the status of a file, which is not opened."""
        ...

    def read(self, name: bytes) -> tuple[FileInfo, Parts]:
        """Open the regular file that was looked at last. Return its status and its content."""
        ...

    def readlink(self, name: bytes) -> bytes:
        """Return what the symbolic link holds that was looked at last."""
        ...


class Target(Protocol):
    """A tree that a copy is written to. Its methods raise OSError with a path."""

    def enter(self, name: bytes) -> None:
        """Go to a subdirectory."""
        ...

    def leave(self) -> object:
        """Go back to the directory above."""
        ...

    def make_directory(self, name: bytes, info: FileInfo) -> bool:
        """Make a directory; return false if it exists already."""
        ...

    def write(self, name: bytes, info: FileInfo, parts: Parts) -> None:
        """Write a new file in the place of what has the name."""
        ...

    def make_link(self, name: bytes, target: bytes, info: FileInfo) -> None:
        """Make a symbolic link in the place of what has the name."""
        ...

    def finish(self, info: FileInfo) -> None:
        """Give this directory permissions and a time."""
        ...


class LeftOut:
    """Files that a copy leaves out: their number, and the first ones."""

    MOST_SHOWN: Final = 5

    def __init__(self) -> None:
        self.count = 0
        self._shown: list[str] = []

    def add(self, path: str) -> None:
        """Add a file, with the reason if it is known."""
        self.count += 1
        if self.count <= self.MOST_SHOWN:
            self._shown.append(path)

    def __str__(self) -> str:
        more = self.count - len(self._shown)
        return ", ".join(self._shown) + (f" and {more} more" if more else "")


def copy_tree(source: Source, target: Target, limit: Limit, top: FileInfo | None) -> LeftOut:
    """Copy the content of a directory into another, with symbolic links as they are.

    Args:
        source, target: both directories.
        limit: how much to copy.
        top: what the target becomes at the end; None if it existed before.

    Returns:
        What was left out, and why: FIFOs, sockets and devices, and mount points.

    Raises:
        OSError: something cannot be copied.
    """
    left_out = LeftOut()
    pending, infos = [source.list()], [top]
    while True:
        if not pending[-1]:
            pending.pop()
            if (info := infos.pop()) is not None:
                target.finish(info)
            if not pending:
                return left_out
            source.leave()
            target.leave()
            continue
        name = pending[-1].pop()
        path = source.path(name)
        try:
            info = source.look(name)
            kind = stat.S_IFMT(info.mode)
            if kind == stat.S_IFDIR:
                source.enter(name)
                is_new = target.make_directory(name, info)
                target.enter(name)
                infos.append(info if is_new else None)
                pending.append(source.list(sum(map(len, pending))))
            elif kind == stat.S_IFREG:
                opened, parts = source.read(name)
                target.write(name, opened, limit.count(parts))
            elif kind == stat.S_IFLNK:
                target.make_link(name, source.readlink(name), info)
            else:
                left_out.add(f"{path} (a {FILE_TYPES[kind]})")
        except OSError as error:
            locate(error, path)
            if error.filename != path or error.errno not in (errno.ENOENT, errno.EXDEV):
                raise
            if error.errno == errno.EXDEV:
                left_out.add(f"{path} (a mount point)")


class ContainerTree(_Tree):
    """A directory of the container, in slot `_PLACE`, as `Source` and `Target`."""

    def __init__(self, server: FileServer, label: str, top: FileInfo, *, same_mount: bool) -> None:
        super().__init__(label, top)
        self._server = server
        self._resolve = _NO_XDEV if same_mount else 0
        self.top = self._looked_at = top

    def _go(self, name: bytes) -> FileInfo:
        resolve = 0 if name == b".." else self._resolve
        return self._server.call(Call.OPEN, _PLACE, name, flags=_DIRECTORY, a=resolve, out=_PLACE).file

    def list(self, others: int = 0) -> list[bytes]:
        return self._bounded(self._server.names(), others)

    def look(self, name: bytes) -> FileInfo:
        with self.located(name):
            self._looked_at = self._server.call(Call.OPEN, _PLACE, name, flags=os.O_PATH | os.O_NOFOLLOW, out=_FOUND).file
        return self._looked_at

    def read(self, name: bytes) -> tuple[FileInfo, Parts]:
        with self.located(name):
            return self._server.open_found(self._looked_at, os.O_RDONLY, self.path(name)), self._read(name)

    def _read(self, name: bytes) -> Parts:
        with self.located(name):
            yield from self._server.read()

    def readlink(self, name: bytes) -> bytes:
        with self.located(name):
            return os.fsencode(self._server.readlink())

    def make_directory(self, name: bytes, info: FileInfo) -> bool:
        with self.located(name):
            try:
                self._server.call(Call.MKDIR, _PLACE, name, mode=0o700)
            except FileExistsError:
                return False
            return True

    def write(self, name: bytes, info: FileInfo, parts: Parts) -> None:
        with self.located(name):
            mode = info.mode & COPIED_MODE
            self._replace(name, lambda: self._server.call(Call.OPEN, _PLACE, name, flags=_NEW, mode=mode, out=_FILE))
            self._server.write(parts)
            self._server.touch(info)

    def make_link(self, name: bytes, target: bytes, info: FileInfo) -> None:
        with self.located(name):
            self._replace(name, lambda: self._server.call(Call.SYMLINK, _PLACE, name, data=target))

    def _replace(self, name: bytes, make: Callable[[], object]) -> None:
        _replace(make, lambda: self._server.call(Call.REMOVE, _PLACE, name))

    def make_hard_link(self, name: bytes, folder: bytes, other: bytes) -> None:
        """Make a hard link to a file in another directory, given by its path, in the place of what has the name."""
        with self.located(name):
            self._server.find_directory(folder)
            self._replace(name, lambda: self._server.call(Call.LINK, _PLACE, name, data=other, out=_FOUND))

    def finish(self, info: FileInfo) -> None:
        with self.located():
            self._server.call(Call.CHMOD, _PLACE, mode=info.mode & COPIED_MODE)
            self._server.touch(info, _PLACE)

    def remove_content(self) -> None:
        """Remove everything in this directory. Raises OSError: a mount point is in it, for example."""
        pending = [self.list()]
        while True:
            if pending[-1]:
                name, flags = pending[-1].pop(), 0
            else:
                pending.pop()
                if not pending:
                    return
                name, flags = self.leave(), _REMOVEDIR
            with self.located(name):
                try:
                    self._server.call(Call.REMOVE, _PLACE, name, flags=flags)
                except FileNotFoundError:
                    continue
                except IsADirectoryError:
                    self.enter(name)
                    pending.append(self.list(sum(map(len, pending))))


class HostTree(_Tree):
    """A directory of the caller, as `Source` and `Target`; ``follow``: whether it may be a symbolic link. Raises OSError."""

    def __init__(self, path: bytes, *, follow: bool = True) -> None:
        self._fd = os.open(os.fsdecode(path), (os.O_RDONLY | os.O_DIRECTORY if follow else _DIRECTORY) | os.O_CLOEXEC)
        super().__init__(os.fsdecode(path), FileInfo.of_host(os.fstat(self._fd)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def _go(self, name: bytes) -> FileInfo:
        self._fd, left = os.open(name, _DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd), self._fd
        os.close(left)
        return FileInfo.of_host(os.fstat(self._fd))

    def list(self, others: int = 0) -> list[bytes]:
        with os.scandir(self._fd) as entries:
            return self._bounded((os.fsencode(entry.name) for entry in entries), others)

    def look(self, name: bytes) -> FileInfo:
        with self.located(name):
            return FileInfo.of_host(os.stat(name, dir_fd=self._fd, follow_symlinks=False))

    def read(self, name: bytes) -> tuple[FileInfo, Parts]:
        with self.located(name):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=self._fd)
            try:
                info = FileInfo.of_host(check_regular(fd, self.path(name)))
            except BaseException:
                os.close(fd)
                raise
        return info, self._read(name, fd)

    def _read(self, name: bytes, fd: int) -> Parts:
        with self.located(name):
            yield from read_file(fd)

    def readlink(self, name: bytes) -> bytes:
        with self.located(name):
            return os.readlink(name, dir_fd=self._fd)

    def make_directory(self, name: bytes, info: FileInfo) -> bool:
        with self.located(name):
            try:
                os.mkdir(name, 0o700, dir_fd=self._fd)
            except FileExistsError:
                return False
            return True

    def write(self, name: bytes, info: FileInfo, parts: Parts) -> None:
        with self.located(name):
            flags = _NEW | os.O_CLOEXEC
            fd = self._replace(name, lambda: os.open(name, flags, info.mode & COPIED_MODE, dir_fd=self._fd))
            try:
                write_file(fd, parts)
                os.utime(fd, ns=(info.mtime_ns, info.mtime_ns))
            finally:
                os.close(fd)

    def make_link(self, name: bytes, target: bytes, info: FileInfo) -> None:
        with self.located(name):
            self._replace(name, lambda: os.symlink(target, name, dir_fd=self._fd))

    def _replace(self, name: bytes, make: Callable[[], T]) -> T:
        return _replace(make, lambda: os.unlink(name, dir_fd=self._fd))

    def finish(self, info: FileInfo) -> None:
        with self.located():
            os.fchmod(self._fd, info.mode & COPIED_MODE)
            os.utime(self._fd, ns=(info.mtime_ns, info.mtime_ns))


def _replace(make: Callable[[], T], remove: Callable[[], object]) -> T:
    """Make a file, and remove what has its name first. Raises OSError: that is a directory, for example."""
    for _ in range(_TRIES):
        try:
            return make()
        except FileExistsError:
            try:
                remove()
            except FileNotFoundError:
                continue
    raise _restless()


def read_file(fd: int) -> Parts:
    """Yield the content of a regular file of the caller, and close it at the end. Raises OSError."""
    try:
        at = 0
        while True:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.EINVAL):
                    raise
                data = max(at, os.fstat(fd).st_size) if error.errno == errno.ENXIO else at
            if data > at:
                yield data - at
                at = data
            part = os.pread(fd, SERVED, at)
            if not part:
                return
            yield memoryview(part)
            at += len(part)
    finally:
        os.close(fd)


def write_file(fd: int, parts: Iterable[memoryview | int]) -> None:
    """Write the content of a new file of the caller, which may have holes. Raises OSError."""
    is_hole = False
    for part in parts:
        is_hole = isinstance(part, int)
        if isinstance(part, int):
            os.lseek(fd, part, os.SEEK_CUR)
        else:
            write_all(fd, part)
    if is_hole:
        os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
