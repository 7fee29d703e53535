"""Removal and copies of directory trees whose content is not trusted: images and containers write any depth, name and mode.

The walk of a removal is iterative and holds one descriptor of the tree at a time. It goes down by descriptor and never through a
symbolic link or a mount point, and up through ``..``, which must be the directory that it came from. A copy is bounded.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final, NoReturn

from .._native import check, ffi, lib
from ..errors import BundleError, UnsupportedError
from ..files import write_all
from ..host import Host, start_with_subordinate_ids
from ..interrupts import waiting

_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE_NO_XDEV: Final = 1
_RESOLVE_NO_SYMLINKS: Final = 4
_BATCH: Final = 4096
"""Names of subdirectories that are kept for one directory; for more of them it is read again."""
_FS_IOC_GETFLAGS: Final = 0x80086601 if ffi.sizeof("long") == 8 else 0x80046601
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20
_LONGEST: Final = 1024
"""Characters of a path in an error."""


def remove_tree(path: str | os.PathLike[str], *, parent: int | None = None) -> None:
    """Remove a directory and everything below it on its filesystem. No effect if it does not exist.

    Args:
        path: the directory.
        parent: a descriptor of the directory that it lies in, so that only the last component of the path is looked up.

    Raises:
        BundleError: something in it cannot be removed: an immutable file, a mount point, a file of another user. It is named, what
            was removed before stays removed, and the next call continues from there.
    """
    top = os.path.abspath(path)
    try:
        above = os.path.dirname(top) if parent is None else f"/proc/self/fd/{parent}"
        fd = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with _Walk(fd, top) as walk:
        try:
            walk.remove(os.path.basename(top))
            return
        except BundleError as error:
            host = Host.probe()
            if not isinstance(error.__cause__, PermissionError) or not (host.subuids and host.subgids and host.idmap_helpers):
                raise
    _own_subordinate(top, host)
    with _Walk(os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), top) as walk:
        walk.remove(os.path.basename(top))


def _own_subordinate(path: str, host: Host) -> None:
    """Make the caller the owner of a directory tree in which a container has files of the caller's subordinate ids.

    Raises:
        BundleError: the programs for it are missing or fail.
    """
    what = f"cannot remove {path}: it has files of subordinate ids"
    try:
        with start_with_subordinate_ids(host, ["chown", "-hR", "0:0", "--", path], stderr=subprocess.PIPE) as process:
            try:
                _, messages = process.communicate()
            except BaseException:
                process.kill()
                raise
    except (OSError, UnsupportedError) as error:
        raise BundleError(f"{what}: {error}") from error
    if process.returncode:
        raise BundleError(f"{what}: {messages.decode(errors='backslashreplace').strip()[:_LONGEST]}")


class _Walk:
    """A place in a tree: one open directory, and the names of what is still to be removed in it and in those above it."""

    def __init__(self, fd: int, top: str) -> None:
        self._fd = fd
        self._top = top
        self._pending: list[str] = []
        self._above: list[tuple[tuple[int, int], list[str]]] = []
        """The directories above: device and inode, and the subdirectories that are left, the last one being the one below."""

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def remove(self, name: str) -> None:
        self._pending.append(name)
        was_empty = False  # whether the directory that was left last had no entries
        while True:
            while self._pending:
                name = self._pending[-1]
                try:
                    os.rmdir(name, dir_fd=self._fd)
                except FileNotFoundError:
                    pass  # another process was faster
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or was_empty:
                        self._fail(name, error)
                    self._enter(name)
                    was_empty = not self._clear()
                    continue
                self._pending.pop()
                was_empty = False
            if not self._above:
                return
            self._leave()

    def _enter(self, name: str) -> None:
        try:
            fd = _open_directory(self._fd, name)
        except OSError as error:
            self._fail(name, error)
        found = os.fstat(self._fd)
        self._above.append(((found.st_dev, found.st_ino), self._pending))
        self._pending = []
        self._go(fd)

    def _leave(self) -> None:
        identity, pending = self._above.pop()
        self._go(os.open("..", os.O_PATH | _DIRECTORY, dir_fd=self._fd))
        self._pending = pending
        found = os.fstat(self._fd)
        if (found.st_dev, found.st_ino) != identity:
            raise BundleError(f"cannot remove {self._top}: a directory in it was moved by another process meanwhile; try again")

    def _go(self, fd: int) -> None:
        self._fd, left = fd, self._fd
        os.close(left)

    def _clear(self) -> bool:
        """Remove the entries that are not directories, and note the directories. Return whether there was any entry."""
        found = False
        with os.scandir(self._fd) as entries:
            for entry in entries:
                found = True
                if entry.is_dir(follow_symlinks=False):
                    self._pending.append(entry.name)
                    if len(self._pending) == _BATCH:
                        break
                    continue
                try:
                    os.unlink(entry.name, dir_fd=self._fd)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._fail(entry.name, error)
        return found

    def _fail(self, name: str, error: OSError) -> NoReturn:
        names = [pending[-1] for _, pending in self._above]
        path = os.path.join(os.path.dirname(self._top), *names, name)
        if len(path) > _LONGEST:
            path = f"{path[: _LONGEST // 2]}[...]{path[-_LONGEST // 2 :]}"
        raise BundleError(f"cannot remove {self._top}: {path}: {self._reason(name, error)}") from error

    def _reason(self, name: str, error: OSError) -> str:
        if error.errno in (errno.EBUSY, errno.EXDEV):
            return "it is a mount point; unmount it"
        if error.errno == errno.EPERM:
            for what, entry in (("it", name), ("its directory", ".")):
                if flags := _flags(self._fd, entry) & (_IMMUTABLE | _APPEND_ONLY):
                    kind, option = ("immutable", "i") if flags & _IMMUTABLE else ("append-only", "a")
                    return f"{what} is {kind}; clear that with 'chattr -{option}'"
        return os.strerror(error.errno or 0).lower()


def _open_directory(parent: int, name: str) -> int:
    """Open a subdirectory on the same mount, with read, write and search permission for its owner. Raises OSError."""
    fd = check(lib.oci_openat2(parent, os.fsencode(name), os.O_PATH | _DIRECTORY, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS))
    try:
        mode = os.fstat(fd).st_mode
        if mode & 0o700 != 0o700:
            os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(mode) | 0o700)  # fchmod(2) refuses O_PATH
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _flags(parent: int, name: str) -> int:
    """Return the inode flags of a file (ioctl_iflags(2)); 0 if they cannot be read. Only files and directories are opened."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            return 0
        try:
            readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(readable, _FS_IOC_GETFLAGS, bytes(ffi.sizeof("long")))[:4], sys.byteorder)
        except OSError:
            return 0  # the filesystem has none
        finally:
            os.close(readable)
    finally:
        os.close(fd)


# ---- copies ----

_DEEPEST: Final = 128
"""Directories in one another that are copied. Two descriptors are open for each."""
_MOST_ENTRIES: Final = 1 << 20
_MOST_BYTES: Final = 1 << 38
"""Bytes of all files of a copy, with their holes: sparse files need no space, but time. A crafted image has them in any number."""
_BLOCK: Final = 1 << 17
_HOLE: Final = bytes(_BLOCK)
_OF_OVERLAYS: Final = ("trusted.overlay.", "user.overlay.")
_ACL: Final = "system.posix_acl_"
_OF_USERS: Final = ("user.", _ACL)
_REQUIRED: Final = ("security.", _ACL)
"""Prefixes of extended attributes that must be copied even where the filesystem does not support them, as in overlayfs."""


def copy_attributes(source: str, target: str, *, privileged: bool = True) -> None:
    """Give a file the owner, extended attributes, permissions and times of another, as overlayfs does when it copies one up.

    Neither path is followed if its last component is a symbolic link.

    Args:
        privileged: whether to copy the owner and all attributes. A user other than root can copy access control lists and
            attributes of users.

    Raises:
        OSError: the filesystem does not support it, or the kernel refuses it.
    """
    info = os.lstat(source)
    if privileged:
        os.lchown(target, info.st_uid, info.st_gid)
    names = [name for name in _xattrs(source) if privileged or name.startswith(_OF_USERS)]
    for name in _xattrs(target):
        if name.startswith(_ACL) and name not in names:  # inherited from the directory that the target is in
            os.removexattr(target, name, follow_symlinks=False)
    for name in names:
        if not name.startswith(_OF_OVERLAYS):
            try:
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENOTSUP or name.startswith(_REQUIRED):
                    raise
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(target, stat.S_IMODE(info.st_mode))  # after the owner, whose change resets set-user-ID bits
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def _xattrs(path: str) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return []  # the filesystem has none


def is_whiteout(info: os.stat_result) -> bool:
    """Return whether a file is the mark of an overlay that a file of the layers below is hidden."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def is_opaque(path: str) -> bool:
    """Return whether a directory hides those of the layers below, for an overlay of users or one of root."""
    for prefix in _OF_OVERLAYS:
        try:
            if os.getxattr(path, f"{prefix}opaque", follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue  # it has no such attribute, or the filesystem has none at all
    return False


def copy_tree(sources: Sequence[int], target: str, name: str, *, privileged: bool = True) -> None:
    """Copy a directory with everything in it, and with hard links, holes, devices and all attributes.

    Signal handlers that raise can interrupt it. The caller removes what there is of the copy then, and after an error.

    Args:
        sources: descriptors of the directory in the layers of an overlay, the uppermost first. Only the caller may change what is
            in it.
        target: the path of the copy, which must not exist. ``.links`` is appended for a second directory that does not stay.
        name: describes the directory in errors.
        privileged: whether to copy owners, devices and all attributes, which only root can.

    Raises:
        BundleError: it has too many entries, bytes or levels.
        OSError: something cannot be copied, for example for want of space.
    """
    links = f"{target}.links"
    for directory in (links, target):
        os.mkdir(directory, 0o700)
    with _opened(links) as linked, _opened(target) as top:
        copy = _Copy(name, linked, privileged=privileged, layered=len(sources) > 1)
        copy.fill(sources, top)
        copy.end()
    os.rmdir(links)
    copy_attributes(f"/proc/self/fd/{sources[0]}/.", target, privileged=privileged)


class _Copy:
    """One copy of a tree: how much was copied, and which files had more than one name."""

    def __init__(self, name: str, links: int, *, privileged: bool, layered: bool) -> None:
        self._name = name
        self._layered = layered
        self._privileged = privileged
        self._links = links
        """Descriptor of a directory with a link to each copied file that has further names in the source."""
        self._names_left: dict[str, int] = {}
        """Name of such a link -> how many names of the file are still to come."""
        self._entries = self._bytes = 0

    def fill(self, sources: Sequence[int], target: int, depth: int = 1) -> None:
        """Copy the content of a directory into an empty one."""
        if depth > _DEEPEST:
            self._refuse(f"more than {_DEEPEST} directories in one another")
        seen: set[str] = set()
        for number, source in enumerate(sources):
            with os.scandir(source) as entries:
                for entry in entries:
                    with waiting():
                        pass  # signal handlers run here
                    self._entries += 1
                    if self._entries > _MOST_ENTRIES:
                        self._refuse(f"more than {_MOST_ENTRIES} files")
                    if entry.name not in seen:
                        self._copy_entry(sources[number:], target, entry.name, depth)
                    if len(sources) > 1:
                        seen.add(entry.name)

    def _copy_entry(self, sources: Sequence[int], target: int, name: str, depth: int) -> None:
        source = sources[0]
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            with _merged(sources, name) as inner_sources, _opened(name, target) as inner_target:
                self.fill(inner_sources, inner_target, depth + 1)
        elif (self._layered and is_whiteout(info)) or (info.st_nlink > 1 and self._link(target, name, info)):
            return
        elif stat.S_ISREG(info.st_mode):
            self._copy_file(source, target, name, info)
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif self._privileged or not info.st_rdev:
            os.mknod(name, stat.S_IFMT(info.st_mode) | 0o600, info.st_rdev, dir_fd=target)
        else:
            return  # a device, which has no effect where the copy is mounted nodev
        copy_attributes(f"/proc/self/fd/{source}/{name}", f"/proc/self/fd/{target}/{name}", privileged=self._privileged)
        if info.st_nlink > 1 and not stat.S_ISDIR(info.st_mode):
            self._remember(target, name, info)

    def end(self) -> None:
        """Remove the links to files that have further names outside of the tree."""
        for link in list(self._names_left):
            self._forget(link)

    def _link(self, target: int, name: str, info: os.stat_result) -> bool:
        """Link to the copy of the file under another name. Return whether there is one, and it takes a further link."""
        link = f"{info.st_dev:x}-{info.st_ino:x}"
        if link not in self._names_left:
            return False
        try:
            os.link(link, name, src_dir_fd=self._links, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            self._forget(link)
            return False
        self._names_left[link] -= 1
        if not self._names_left[link]:
            self._forget(link)
        return True

    def _remember(self, target: int, name: str, info: os.stat_result) -> None:
        link = f"{info.st_dev:x}-{info.st_ino:x}"
        os.link(name, link, src_dir_fd=target, dst_dir_fd=self._links, follow_symlinks=False)
        self._names_left[link] = info.st_nlink - 1

    def _forget(self, link: str) -> None:
        os.unlink(link, dir_fd=self._links)
        del self._names_left[link]

    def _copy_file(self, source: int, target: int, name: str, info: os.stat_result) -> None:
        self._bytes += info.st_size
        if self._bytes > _MOST_BYTES:
            self._refuse(f"more than {_MOST_BYTES >> 30} GiB")
        flags = os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            _opened(name, source, os.O_RDONLY | flags) as old,
            _opened(name, target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags) as new,
        ):
            at = 0
            while at < info.st_size:
                with waiting():
                    pass  # as above
                block = os.pread(old, _BLOCK, at)
                if not block:
                    break
                if block != _HOLE[: len(block)]:
                    os.lseek(new, at, os.SEEK_SET)
                    write_all(new, block)
                at += len(block)
            os.ftruncate(new, at)

    def _refuse(self, why: str) -> NoReturn:
        raise BundleError(f"{self._name} cannot be copied: it has {why}")


@contextmanager
def _merged(sources: Sequence[int], name: str) -> Iterator[list[int]]:
    """Open a subdirectory in the layers of an overlay that have a part of it, for the block. Raises OSError."""
    with ExitStack() as stack:
        found: list[int] = []
        for source in sources:
            try:
                info = os.stat(name, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(info.st_mode):
                break
            found.append(stack.enter_context(_opened(name, source)))
            if len(sources) > 1 and is_opaque(f"/proc/self/fd/{found[-1]}/."):
                break
        yield found


@contextmanager
def _opened(path: str, parent: int | None = None, flags: int = os.O_RDONLY | _DIRECTORY) -> Iterator[int]:
    """Open a file for the block. Raises OSError."""
    fd = os.open(path, flags, 0o600, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)
