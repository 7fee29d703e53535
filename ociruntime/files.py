"""Opening files that a container, an image or another user can replace; replacing, locking and sealing files.

Opening a special file acts on what is behind it: a driver is loaded or a device is claimed, a FIFO blocks, and a device node works
for the runtime even where the container's device rules deny it. So the type is checked first, through a descriptor of ``O_PATH``,
which calls no driver, and the file is reopened through that descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import termios
import time
from _thread import RLock  # `threading` itself costs more than a short command does with it
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, NoReturn, Self, SupportsIndex

if TYPE_CHECKING:
    import socket


StrPath = str | os.PathLike[str]
StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_IN_ROOT: Final = 0x10 | 0x02
"""RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS."""
_TRIES: Final = 1000
"""Attempts at a path for which the kernel asks to try again, as renames go on."""
_KEPT: Final = 48
"""Characters of a target's name in the name of the file that will replace it."""
NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors about a file that does not fit."""
_KINDS: Final = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "character device"),
    (stat.S_ISBLK, "block device"),
    (stat.S_ISLNK, "symbolic link"),
)


class NotRegularError(OSError):
    """A file is of another type than a regular one. ``kind`` names that type."""

    def __init__(self, path: StrOrBytesPath, kind: str) -> None:
        self.kind = kind
        super().__init__(errno.EISDIR if kind == "directory" else errno.EINVAL, f"a {kind}, not a regular file", os.fsdecode(path))


class ProcfsError(OSError):
    """A file does not exist because /proc is not a whole procfs."""

    def __init__(self, path: str) -> None:
        problem = "no whole procfs is mounted on /proc"
        super().__init__(errno.ENOENT, f"{problem}; mount one, without the option subset=pid (of systemd: ProcSubset=pid)", path)


@contextmanager
def needing_procfs() -> Iterator[None]:
    """Raise ProcfsError for a file below /proc that a block does not find, and that every procfs has."""
    try:
        yield
    except FileNotFoundError as error:
        path = str(error.filename)
        if not path.startswith("/proc/") or os.path.lexists(path):  # a link there can lead to a file that was removed
            raise
        raise ProcfsError(path) from error


def check_regular(fd: int, path: StrOrBytesPath) -> os.stat_result:
    """Return the status of an open file. Raises NotRegularError."""
    info = os.fstat(fd)
    _check_type(info, path)
    return info


def _check_type(info: os.stat_result, path: StrOrBytesPath) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise NotRegularError(path, next((kind for test, kind in _KINDS if test(info.st_mode)), "special file"))


def open_regular(path: StrOrBytesPath, flags: int = os.O_RDONLY, *, root: StrOrBytesPath | None = None) -> int:
    """Open a regular file and nothing else; return its descriptor.

    Args:
        path: the file.
        flags: the access mode. Close-on-exec and non-blocking are added: another process may hold a lease on the file.
        root: directory that neither the path nor a link in it can leave. Default: the caller's root.

    Raises:
        NotRegularError: it is a device, a FIFO, a socket or a directory; it was not opened.
        ProcfsError: /proc is not mounted.
        OSError: it cannot be opened.
    """
    found = os.open(path, os.O_PATH | os.O_CLOEXEC) if root is None else open_in_root(root, path, os.O_PATH)
    try:
        check_regular(found, path)
        with needing_procfs():
            return os.open(f"/proc/self/fd/{found}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except ProcfsError:
        raise
    except OSError as error:
        error.filename = os.fsdecode(path)
        raise
    finally:
        os.close(found)


def absolute_path(path: StrPath) -> str:
    """Return a path as `os.path.abspath` does.

    Raises:
        FileNotFoundError: the path is relative, and the working directory was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        what = "the path is relative, and the working directory was removed; give an absolute path"
        raise FileNotFoundError(errno.ENOENT, what, os.fspath(path)) from None


@contextmanager
def socket_path(directory: StrPath, name: str) -> Iterator[str]:
    """Give a path for a socket in a directory: the usual path may be too long for a socket address. Raises OSError.

    An empty directory is the current one, so that a path can be given as ``*os.path.split(path)``.
    """
    fd = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def read_file(path: StrOrBytesPath, limit: int, *, regular: bool = False) -> bytes:
    """Return the content of a file.

    Args:
        limit: the largest size in bytes. What is longer, such as /dev/zero, is not read to its end.
        regular: refuse everything that is not a regular file. Otherwise a FIFO, such as one of a shell's ``<(...)``, is read too.

    Raises:
        NotRegularError: it is not a regular file.
        OSError: it cannot be read, or is too long. The error names the path.
    """
    try:
        with open(open_regular(path) if regular else path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        error.filename = os.fsdecode(path)
        raise
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"more than {limit >> 20} MiB", os.fsdecode(path))
    return content


def connect_socket(peer: socket.socket, path: str) -> None:
    """Connect to the Unix socket at a path, which may be longer than a socket address. Raises OSError, which names the path."""
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        peer.connect(f"/proc/self/fd/{found}")
    except OSError as error:
        number = error.errno or errno.ETIMEDOUT
        raise OSError(number, os.strerror(number), path) from error
    finally:
        os.close(found)


def other_writers(info: os.stat_result) -> str:
    """Say how other users can change a file or directory, given its status; empty when only the caller's user can.

    An access control list that lets others write shows in the permissions of the group (acl(5)).
    """
    if info.st_uid != (euid := os.geteuid()):
        return f"it belongs to uid {info.st_uid}, not to the caller (uid {euid})"
    if info.st_mode & 0o022:
        return f"its mode {stat.S_IMODE(info.st_mode):04o} lets other users write to it"
    return ""


@contextmanager
def inheritable(fd: int) -> Iterator[int]:
    """Give a descriptor for a program that is started to inherit: above 2, as the program gets other standard streams."""
    if fd > 2:
        yield fd
        return
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        yield copy
    finally:
        os.close(copy)


_TERMINAL_BUFFER: Final = 1 << 16


def unread(fd: int) -> int:
    """Return how many bytes may have been written to a pipe or a terminal that were not read.

    The kernel hands on what is written to a terminal a moment later, and does not count it before.
    """
    counted = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    return counted + (_TERMINAL_BUFFER if os.isatty(fd) else 0)


def write_all(fd: int, content: bytes | bytearray | memoryview) -> None:
    """Write all of the content, at the file's position. Raises OSError: it does not fit, for example."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


_SPACE: Final = 1 << 20
"""Bytes without which a filesystem is full for a program that writes large blocks."""


def check_space(fd: int, path: StrPath, failure: Exception) -> None:
    """Check whether a program that failed to write a file found the disk full. The file is not needed after that.

    Args:
        fd: descriptor of the file.
        path: the path for the error.
        failure: the cause of the error.

    Raises:
        OSError: the disk is full, or the file exceeds the user's quota or largest size of a file.
    """
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, _SPACE)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from failure


_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MFD_EXEC: Final = 0x10


def seal(fd: int) -> None:
    """Make a file in memory unchangeable. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def sealed_memfd(name: str, content: bytes, *, executable: bool = False) -> int:
    """Return a descriptor, open for reading, of a file in memory that cannot be changed. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | (_MFD_EXEC if executable else 0))
    except OSError as error:
        if error.errno != errno.EINVAL or not executable:
            raise
        fd = os.memfd_create(name, flags)  # before Linux 6.3 every memfd is executable
    try:
        write_all(fd, content)
        seal(fd)
        # A file that is open for writing cannot be executed.
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


class StagedFile:
    """A file that is written beside its target and takes the target's place at once.

    At the end of the ``with`` block nothing is left of it unless it was committed, and the target is what it was.

    Args:
        path: the target. A symbolic link there is replaced.
        mode: the permissions, as far as the umask allows them.
        directory: descriptor of the directory that a relative path counts from.
        anonymous: give the file no name before it is committed, where the filesystem can do that, so that not even SIGKILL leaves
            it. It costs two more system calls.

    Raises:
        OSError: the file cannot be made. The error names the target.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, mode: int = 0o600, directory: int | None = None, anonymous: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self.fd = -1
        self._directory = directory
        folder, name = os.path.split(self.path)
        self._temporary = os.path.join(folder, f".{name[:_KEPT]}.{os.urandom(8).hex()}")
        self._named = False
        try:
            if anonymous:
                self.fd = _open_anonymous(folder or ".", mode, directory)
            if self.fd < 0:
                # O_EXCL: two writers, or a link that waits there, never share the file.
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self.fd = os.open(self._temporary, flags, mode, dir_fd=directory)
                self._named = True
        except OSError as error:
            error.filename = self.path
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close()
        if self._named:
            os.unlink(self._temporary, dir_fd=self._directory)
        if isinstance(error, OSError) and error.errno in NO_SPACE and error.filename is None:
            error.filename = self.path  # it was written through its descriptor

    def write(self, content: bytes) -> None:
        """Write all of the content. Raises OSError, which names the target."""
        try:
            write_all(self.fd, content)
        except OSError as error:
            error.filename = self.path
            raise

    def commit(self, *, durable: bool = False, replace: bool = True) -> None:
        """Put the file in the place of its target. This takes no space on the filesystem.

        Args:
            durable: see that it survives a crash of the machine. What belongs to running containers does not need that.
            replace: whether a target that exists is replaced.

        Raises:
            FileExistsError: the target exists, and ``replace`` is false.
            OSError: it cannot be replaced, or a network filesystem has no room for what was written.
        """
        if durable:
            os.fsync(self.fd)
        if self._named or not self._take(self.path):
            self._replace(replace)
        if durable:
            folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _take(self, path: str) -> bool:
        """Give a file without a name this one, and close it. Return False if another file has the name."""
        try:
            # With a descriptor, which the absolute path makes meaningless, Python follows the link in /proc.
            os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=self.fd, dst_dir_fd=self._directory)
        except FileExistsError:
            return False
        try:
            self._close()
        except OSError:
            os.unlink(path, dir_fd=self._directory)
            raise
        return True

    def _replace(self, replace: bool) -> None:
        """Put the file in the place of another, which only rename(2) does at once. It needs a name for that."""
        if not self._named:
            if not replace or not self._take(self._temporary):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)
            self._named = True
        self._close()
        if not replace:  # takes the name; a hard link would too, which not every filesystem has
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._directory))
        try:
            os.replace(self._temporary, self.path, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            if not replace:
                os.unlink(self.path, dir_fd=self._directory)
            raise
        self._named = False

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _open_anonymous(folder: str, mode: int, directory: int | None) -> int:
    """Open a new file without a name in a directory; return its descriptor, or -1 if the filesystem has no such files."""
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, mode, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
            return -1  # a missing directory is an error of the next call too
        raise


def replace_file(path: str | os.PathLike[str], content: bytes, *, mode: int = 0o600, directory: int | None = None) -> None:
    """Write a file as a whole or not at all: on an error its target is what it was. Arguments and errors as for `StagedFile`."""
    with StagedFile(path, mode=mode, directory=directory) as staged:
        staged.write(content)
        staged.commit()


def open_in_root(root: StrOrBytesPath, path: StrOrBytesPath, flags: int) -> int:
    """Open a path in a root directory, which neither the path nor a link in it can leave; return its descriptor. Raises OSError."""
    from ._native._host import lib

    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        result: int = -errno.EAGAIN
        for _ in range(_TRIES):
            result = lib.oci_openat2(directory, os.fsencode(path), flags | os.O_CLOEXEC, _IN_ROOT)
            if result != -errno.EAGAIN:
                break
    finally:
        os.close(directory)
    if result < 0:
        raise OSError(-result, os.strerror(-result), os.fsdecode(path))
    return result


class Unpicklable:
    """Base class of objects that hold file descriptors of this process: pickling or copying one raises TypeError.

    A pickled descriptor is a bare number. In another process it names some other file, or none.
    """

    __slots__ = ()

    _instead: ClassVar[str]
    """What to send instead, for the message."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        name = type(self).__qualname__
        raise TypeError(f"cannot pickle or copy {name!r} object: it holds file descriptors of this process; {self._instead}")


forking: Final = RLock()
"""Held during a fork, which a signal handler of the same thread may do, and while something is done that no child may find half
done."""
_own: Final[set[OwnDescriptor]] = set()


class ProcessLock:
    """A lock between the threads of one process. A child finds it free, also if it forks while a thread of its parent holds it."""

    def __init__(self) -> None:
        self._locks: dict[int, RLock] = {}

    def __enter__(self) -> None:
        self._locks.setdefault(os.getpid(), RLock()).acquire()

    def __exit__(self, *failure: object) -> None:
        self._locks[os.getpid()].release()


class Descriptor:
    """A file descriptor that is closed with this object."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it. A second call has no effect."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class OwnDescriptor:
    """A file descriptor of this process alone. Children that it forks close their copy: they do not keep open what it closes.

    Args:
        fd: the descriptor, which this object closes. The caller has held `forking` since before it was opened.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        _own.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether it was closed, here or by the fork that made this process."""
        return self.fd < 0

    def close(self) -> None:
        """Close it, once."""
        with forking:
            if (fd := self.take()) >= 0:
                os.close(fd)

    def take(self) -> int:
        """Return the descriptor, and give up its ownership; -1 if it is closed."""
        with forking:
            _own.discard(self)
            fd, self.fd = self.fd, -1
            return fd


def flock(fd: int, kind: int, path: str) -> None:
    """Call flock(2).

    Args:
        fd: the open file.
        kind: LOCK_SH, LOCK_EX or LOCK_UN, and LOCK_NB.
        path: the name of the file, for errors.

    Raises:
        BlockingIOError: with LOCK_NB, another process holds it.
        OSError: the filesystem cannot lock it. Its error is ENOLCK if the filesystem has no locks.
    """
    try:
        fcntl.flock(fd, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        code = errno.ENOLCK if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP) else error.errno or errno.EIO
        raise OSError(code, os.strerror(code), path) from error


class LockFile(OwnDescriptor):
    """An open file or directory for a lock. Closing it, and the end of the process, release the lock.

    Args:
        path: a regular file, or a directory.
        flags: flags of open(2), with O_DIRECTORY for a directory. Close-on-exec is added, and no link to a file is followed.

    Raises:
        NotRegularError: it is neither.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, flags: int) -> None:
        self.path = path
        directory = flags & os.O_DIRECTORY
        with forking:
            try:
                fd = os.open(path, flags | os.O_CLOEXEC | (0 if directory else os.O_NOFOLLOW | os.O_NONBLOCK), 0o600)
            except OSError as error:
                if not directory and error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                    _check_type(os.lstat(path), path)
                raise
            super().__init__(fd)
        try:
            if not directory:
                check_regular(self.fd, path)
        except BaseException:
            self.close()
            raise

    def acquire(self, *, shared: bool = False, wait: bool | float = True) -> None:
        """Take the lock.

        Args:
            shared: allow other shared locks beside it.
            wait: whether to wait for the lock, or the seconds to wait.

        Raises:
            BlockingIOError: the lock is held by another process, and the wait is over.
            OSError: the filesystem cannot lock it. Its error is ENOLCK if the filesystem has no locks.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if wait is True:
            flock(self.fd, kind, self.path)
            return
        deadline, pause = time.monotonic() + wait, 0.001
        while True:
            try:
                flock(self.fd, kind | fcntl.LOCK_NB, self.path)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    @property
    def removed(self) -> bool:
        """Whether the path names another file by now, or none, so that the lock means nothing."""
        try:
            return not os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return True


def _after_fork() -> None:
    for descriptor in _own:
        os.close(descriptor.fd)
        descriptor.fd = -1
    _own.clear()
    forking.release()


os.register_at_fork(before=forking.acquire, after_in_parent=forking.release, after_in_child=_after_fork)


# ---- mount tables and states of processes, read from /proc (proc(5)) ----

_PF_EXITING: Final = 4


class MountInfo(NamedTuple):
    """One line of a mount table."""

    device: str
    """Device number of the filesystem, as ``major:minor``; the same in every mount namespace."""
    root: str
    """The directory of the filesystem that is mounted."""
    point: str
    """The mount point as the kernel resolves it: without symbolic links, relative to the root of the process."""
    fstype: str
    options: str
    """Options of the filesystem itself."""


def read_mounts(pid: int | str = "self") -> Iterator[MountInfo]:
    """Yield the mounts that a process sees. Of several on one mount point, the topmost comes last. Raises OSError."""
    with open(f"/proc/{pid}/mountinfo", "rb") as table:
        lines = table.read().split(b"\n")
    for line in filter(None, lines):
        fields = line.split(b" ")
        fstype, _, options = fields[fields.index(b"-", 6) + 1 :][:3]
        yield MountInfo(fields[2].decode(), _unescape(fields[3]), _unescape(fields[4]), fstype.decode(), _unescape(options))


def _unescape(field: bytes) -> str:
    r"""Undo the kernel's ``\ooo`` for blanks, newlines and backslashes."""
    first, *escaped = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(piece[:3], 8)]) + piece[3:] for piece in escaped))


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if it does not exist or has exited."""
    return 0 if (fields := read_stat(pid)) is None or is_over(fields) else int(fields[19])


def open_pidfd(pid: int) -> int:
    """Return a pidfd of a process. Raises ProcessLookupError: it has ended, or is a thread.

    While a process is being reaped, some versions of Linux answer as for a thread, by EINVAL or ENOENT.
    """
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), str(pid)) from error


def read_stat(pid: int) -> list[bytes] | None:
    """Return the fields of /proc/PID/stat from the third on, the state (proc(5)); None if the process does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:  # an object, which an interrupt before the block closes too
            return os.read(file.fileno(), 4096).rpartition(b")")[2].split() or None
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_over(fields: list[bytes]) -> bool:
    """Return whether a process has exited: it is a zombie, or the init of a pid namespace that waits for the others to end."""
    if int(fields[17]) > 1:
        return False  # its first thread may have ended, but others have not
    return fields[0] in (b"Z", b"X") or (fields[0] == b"S" and bool(int(fields[6]) & _PF_EXITING))


def outer_uid() -> int:
    """Return the effective uid in the initial user namespace; it differs for root in a user's own user namespace."""
    uid = os.geteuid()
    with needing_procfs(), open("/proc/self/uid_map", encoding="ascii") as table:
        for inside, outside, count in (map(int, line.split()) for line in table):
            if inside <= uid < inside + count:
                return outside + uid - inside
    return uid


def in_user_namespace() -> bool:
    """Return whether this process is in another user namespace than the initial one."""
    with needing_procfs(), open("/proc/self/uid_map", "rb", buffering=0) as table:
        return table.read().split() != [b"0", b"0", b"4294967295"]
