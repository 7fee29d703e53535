"""The files of one layer of an image, without mounting it: the tree of an archive or of a directory.

`filesystems` has the trees of ext and erofs, and `squashfs` that of a squashfs. `TarTree` reads an archive from its beginning to
its end, the others read one directory at a time. Nothing that a layer says is trusted.
"""

from __future__ import annotations

import enum
import errno
import gzip
import hashlib
import os
import posixpath
import stat
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
from typing_extensions import override

from ociruntime.arguments import printable
from ociruntime.errors import ImageError, ImagePathError, OCIRuntimeError, UnsupportedError
from ociruntime.files import NotRegularError, open_in_root, open_regular
from ociruntime.image.blobs import LayerFormat, open_zstd, split_digest
from ociruntime.image.sif.format import ClosedImageError
from ociruntime.interrupts import check_deadline, deliver

if TYPE_CHECKING:
    from ociruntime.image.model import Layer
    from ociruntime.image.sif.format import ReadableFile, SectionReader

__all__ = [
    "ArchivedUpper",
    "Budget",
    "DirectoryTree",
    "FileType",
    "Node",
    "TarTree",
    "Tree",
    "UpperTree",
    "contained",
]

MAX_DEPTH: Final = 256
MAX_PATH: Final = 4000
"""Most bytes of a path, so that it can be extracted below another directory."""
MAX_NAME: Final = 255
PIECE: Final = 1 << 20
"""Most bytes of a file that are read at once."""
MAX_HEADERS: Final = 4 << 20
"""Most bytes of the headers of one member of an archive, and of the global headers of one archive."""
_ATTRIBUTE: Final = "SCHILY.xattr."
"""Begin of the keywords of extended attributes in the headers of archives."""
_LATEST: Final = (1 << 34) - 1
"""The latest time that ext4 can store."""


class FileType(enum.StrEnum):
    """The type of a file, as in stat(2)."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    CHARACTER_DEVICE = "character device"
    BLOCK_DEVICE = "block device"
    FIFO = "FIFO"
    SOCKET = "socket"


FILE_TYPES: Final = {
    stat.S_IFREG: FileType.FILE,
    stat.S_IFDIR: FileType.DIRECTORY,
    stat.S_IFLNK: FileType.SYMLINK,
    stat.S_IFCHR: FileType.CHARACTER_DEVICE,
    stat.S_IFBLK: FileType.BLOCK_DEVICE,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.SOCKET,
}


@attrs.define(kw_only=True, eq=False)
class Node:
    """A file or directory of one layer."""

    tree: Tree
    type: FileType
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int = 0
    target: str = ""
    device: tuple[int, int] | None = None
    location: Any = None
    """Where the tree finds the content. Hard links to one file have the same location."""
    children: dict[str, Node] | None = None
    """The content of a directory of an archive."""
    whiteout: bool = False
    """Whether it is not a file, but hides a file of the lower layers."""
    opaque: bool = False
    """Whether the directory hides those of the lower layers."""
    implied: bool = False
    """Whether the directory is there only because the archive has a file in it."""
    attributes: dict[str, bytes] | None = None
    """Extended attributes of a file of an archive."""

    @property
    def is_directory(self) -> bool:
        return self.type is FileType.DIRECTORY


class Tree(Protocol):
    """The files of one layer."""

    root: Node

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        """Return the content of a directory."""
        ...

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        """Yield regular files with their content, in the order in which the layer has them. The last one must be taken too."""
        ...

    def attributes(self, node: Node) -> dict[str, bytes]:
        """Return the extended attributes of a file."""
        ...


class Budget:
    """The files and bytes that a call may still read or write. Exceeding it raises ImageError, and its deadline LaunchTimeout."""

    def __init__(self, name: str, max_files: int, max_bytes: int) -> None:
        self._name = name
        self._max_files, self._max_bytes = max_files, max_bytes
        self.files_left, self._bytes_left = max_files, max_bytes

    def take_files(self, count: int = 1) -> None:
        check_deadline()
        self.files_left -= count
        if self.files_left < 0:
            raise ImageError(f"{self._name}: more files than the limit max_files={self._max_files}")

    def take_bytes(self, count: int) -> None:
        check_deadline()
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise ImageError(f"{self._name}: more data than the limit max_bytes={self._max_bytes}")

    def renewed(self) -> Budget:
        """Return the whole budget again."""
        return Budget(self._name, self._max_files, self._max_bytes)


@contextmanager
def contained(where: str) -> Iterator[None]:
    """Turn what a reader of foreign data raises into ImageError. An error of the host's own files stays what it is."""
    try:
        yield
    except (OCIRuntimeError, ClosedImageError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError(f"{where}: the layer is damaged: {error or type(error).__name__}") from error


# ---- archives ----


class _Member(tarfile.TarInfo):
    """A member of an archive. A damaged header is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().fromtarfile(archive)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise  # the end of the archive
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.fileobj.tell()}") from error


class _Hashed:
    """A file whose content is hashed while it is read."""

    def __init__(self, file: SectionReader, digest: str, where: str) -> None:
        self._file = file
        self._hash = hashlib.new(split_digest(digest, where)[0]) if digest else None

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(min(size, PIECE) if size >= 0 else PIECE)
        if self._hash is not None:
            self._hash.update(piece)
        return piece

    def check(self, digest: str, where: str) -> None:
        """Read the rest, and compare the digest. Raises ImageError."""
        while self.read(PIECE):
            pass
        if self._hash is not None:
            _compare(self._hash.hexdigest(), digest, where)


def _compare(found: str, digest: str, where: str) -> None:
    algorithm, expected = split_digest(digest, where)
    if found != expected:
        raise ImageError(f"{where}: the content has the digest {algorithm}:{found}, not {digest}: the image is damaged")


class _Stream:
    """The decompressed archive of a layer, which is read once from its beginning. Memory is allocated only for what is there."""

    def __init__(self, layer: Layer, where: str, budget: Budget) -> None:
        assert layer._section is not None  # only a directory has none
        self._layer, self._where, self._budget = layer, where, budget
        self._packed = _Hashed(layer._section.reader(), layer.digest, where)
        self._hash = hashlib.new(split_digest(layer.diff_id, where)[0]) if layer.diff_id else None
        self._position = 0
        self.headers_left = MAX_HEADERS
        self._file: ReadableFile = self._packed
        if layer.format is LayerFormat.TAR_GZIP:
            self._file = gzip.GzipFile(fileobj=self._packed, mode="rb")  # type: ignore[call-overload]
        elif layer.format is LayerFormat.TAR_ZSTD:
            self._file = open_zstd(self._packed)

    def read(self, size: int = -1) -> bytes:
        """Read headers."""
        self.headers_left -= max(size, 0)
        if size < 0 or self.headers_left < 0:
            raise tarfile.ReadError("a header is too large")
        return b"".join(self._pieces(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence or offset < self._position:
            raise tarfile.ReadError("a member has a negative size")
        for _ in self._pieces(offset - self._position):
            pass
        return self._position

    def tell(self) -> int:
        return self._position

    def content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """Yield the content of a member, with zeros for the holes of a sparse file."""
        with contained(self._where):
            yield from self._content(member)

    def _content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        self.seek(member.offset_data)
        position = 0
        for offset, size in getattr(member, "sparse", None) or ((0, member.size),):
            if not size:
                continue  # an entry of the map that is not used
            if offset < position or size < 0:
                raise tarfile.ReadError("the map of a sparse file is not in order")
            yield from zeros(offset - position)
            begin = self._position
            yield from self._pieces(size)
            if self._position - begin < size:
                raise EOFError("the archive is truncated")
            position = offset + size
        yield from zeros(member.size - position)

    def finish(self, *, whole: bool) -> None:
        """Compare the digests. Raises ImageError.

        Args:
            whole: read the decompressed rest too, for the digest of the decompressed archive.
        """
        if whole or not self._layer.digest:
            while any(True for _ in self._pieces(PIECE)):
                pass
            if self._hash is not None:
                _compare(self._hash.hexdigest(), self._layer.diff_id, f"{self._where}: decompressed")
        self._packed.check(self._layer.digest, self._where)

    def _pieces(self, size: int) -> Iterator[bytes]:
        """Read up to that many bytes, fewer only at the end."""
        while size and (piece := self._file.read(min(size, PIECE))):
            size -= len(piece)
            self._position += len(piece)
            self._budget.take_bytes(len(piece))
            if self._hash is not None:
                self._hash.update(piece)
            yield piece


def check_archive(layer: Layer, where: str) -> None:
    """Read an archive once, and compare the digests that the image names. Raises ImageError, UnsupportedError and OSError."""
    with contained(where):
        _Stream(layer, where, Budget(where, 0, sys.maxsize)).finish(whole=True)


def zeros(count: int) -> Iterator[bytes]:
    """Yield zero bytes, in parts."""
    while count > 0:
        yield bytes(min(count, PIECE))
        count -= PIECE


class TarTree:
    """The files of a tar archive. Its index is in memory.

    Args:
        layer: the layer.
        where: the layer, for messages.
        below: returns a file of the lower layers, which can be the target of a hard link; raises ImagePathError.
        budget: for the files of the archive and its decompressed bytes.
    """

    def __init__(self, layer: Layer, where: str, below: Callable[[str], Node], budget: Budget) -> None:
        self._layer, self._where, self._below, self._budget = layer, where, below, budget
        self.root = self._directory()
        for number, member, _ in self._members(budget, whole=True):
            deliver()
            with contained(where):
                self._add(number, member)

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        return node.children or {}

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        remaining = {node.location: node for node in nodes}
        for number, member, stream in self._members(budget, whole=False):
            if number in remaining:
                yield remaining.pop(number), stream.content(member)
        if remaining:
            raise ImageError(f"{self._where}: the layer changed while it was read")

    def attributes(self, node: Node) -> dict[str, bytes]:
        return node.attributes or {}

    def _members(self, budget: Budget, *, whole: bool) -> Iterator[tuple[int, tarfile.TarInfo, _Stream]]:
        with contained(self._where):
            stream = _Stream(self._layer, self._where, budget)
            options: dict[str, Any] = {"tarinfo": _Member, "encoding": "utf-8", "errors": "surrogateescape"}
            with tarfile.open(fileobj=stream, mode="r:", **options) as archive:  # type: ignore[call-overload]
                for number, member in enumerate(archive):
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps each member otherwise
                    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > MAX_HEADERS:
                        raise tarfile.ReadError("the global headers are too large")
                    yield number, member, stream
                    stream.headers_left = MAX_HEADERS
            stream.finish(whole=whole)

    def _directory(self) -> Node:
        return Node(tree=self, type=FileType.DIRECTORY, children={}, implied=True)

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise ImageError(f"{self._where}: the member {name[:200]!r} does not have the path of a file below the root")
        if len(name) > MAX_PATH or len(parts) > MAX_DEPTH or any(len(os.fsencode(part)) > MAX_NAME for part in parts):
            raise ImageError(f"{self._where}: the path of the member {name[:200]!r} is too long")
        return parts

    def _add(self, number: int, member: tarfile.TarInfo) -> None:
        parts = self._parts(member.name)
        if len(member.linkname) > MAX_PATH:
            raise ImageError(f"{self._where}: the link {member.name[:200]!r} has a target that is too long")
        attributes = sum(len(key) + len(value) for key, value in member.pax_headers.items() if key.startswith(_ATTRIBUTE))
        self._budget.take_files(1 + (len(member.linkname) + attributes) // 256)  # what is kept in memory counts
        if not parts:
            if member.isdir():
                self._describe(self.root, member)
            return
        parent, name = self._parent(parts), parts[-1]
        assert parent.children is not None
        before = parent.children.get(name)
        if name.startswith(".wh."):
            self._hide(parent, name)
        elif member.isdir() and before is not None and before.is_directory and not before.whiteout:
            self._describe(before, member)
        elif member.islnk():
            parent.children[name] = self._linked(member)
        else:
            node = parent.children[name] = self._node(number, member)
            node.opaque = node.opaque or before is not None  # a whiteout, or a file that hides what is below it as well

    def _parent(self, parts: list[str]) -> Node:
        node = self.root
        for part in parts[:-1]:
            assert node.children is not None
            child = node.children.get(part)
            if child is None or child.whiteout:
                self._budget.take_files()
                node.children[part] = self._directory()
                node.children[part].opaque = child is not None
                child = node.children[part]
            elif child.children is None:
                raise ImageError(f"{self._where}: the member {'/'.join(parts)[:200]!r} lies below a {child.type}")
            node = child
        return node

    def _describe(self, node: Node, member: tarfile.TarInfo) -> None:
        node.mode, node.uid, node.gid = member.mode & 0o7777, member.uid, member.gid
        node.mtime, node.implied = to_time(member.mtime), False
        node.attributes = {
            key.removeprefix(_ATTRIBUTE): value.encode("utf-8", "surrogateescape")
            for key, value in member.pax_headers.items()
            if key.startswith(_ATTRIBUTE)
        } or None

    def _node(self, number: int, member: tarfile.TarInfo) -> Node:
        kinds = (
            (member.isdir, FileType.DIRECTORY),
            (member.isreg, FileType.FILE),
            (member.issym, FileType.SYMLINK),
            (member.ischr, FileType.CHARACTER_DEVICE),
            (member.isblk, FileType.BLOCK_DEVICE),
            (member.isfifo, FileType.FIFO),
        )
        kind = next((kind for test, kind in kinds if test()), None)
        if kind is None or member.size < 0:
            raise ImageError(f"{self._where}: the member {member.name[:200]!r} has an unknown type or a negative size")
        node = self._directory() if kind is FileType.DIRECTORY else Node(tree=self, type=kind, location=number)
        self._describe(node, member)
        node.size = member.size if kind is FileType.FILE else 0
        if kind is FileType.SYMLINK:
            node.target = member.linkname
        elif kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE):
            node.device = (member.devmajor, member.devminor)
        return node

    def _hide(self, parent: Node, name: str) -> None:
        """Carry out a whiteout (image-spec, layer.md). It has no effect on files of its own layer."""
        assert parent.children is not None
        hidden = name.removeprefix(".wh.")
        if name == ".wh..wh..opq":
            parent.opaque = True
        elif hidden in ("", ".", ".."):
            raise ImageError(f"{self._where}: the whiteout {name!r} hides nothing")
        elif hidden.startswith(".wh."):
            return  # the own files of aufs
        elif hidden in parent.children:
            parent.children[hidden].opaque = True
        else:
            parent.children[hidden] = Node(tree=self, type=FileType.CHARACTER_DEVICE, whiteout=True)

    def _linked(self, member: tarfile.TarInfo) -> Node:
        """Return the file to which a hard link refers, of this layer or a lower one."""
        node: Node | None = self.root
        for part in self._parts(member.linkname):
            node = node.children.get(part) if node is not None and node.children is not None else None
        if node is None:
            try:
                node = self._below(member.linkname)
            except ImagePathError as error:
                raise ImageError(
                    f"{self._where}: {member.name[:200]!r} is a hard link to {member.linkname[:200]!r}, which is not there"
                ) from error
        if node.is_directory or node.whiteout:
            raise ImageError(f"{self._where}: {member.name[:200]!r} is a hard link to a directory")
        return node


class ArchivedUpper(TarTree):
    """The files of an upper directory in an archive that this package has written, with whiteouts as they are in overlays."""

    @override
    def _node(self, number: int, member: tarfile.TarInfo) -> Node:
        node = super()._node(number, member)
        node.whiteout = node.type is FileType.CHARACTER_DEVICE and node.device == (0, 0)
        return node

    @override
    def _describe(self, node: Node, member: tarfile.TarInfo) -> None:
        super()._describe(node, member)
        node.opaque = node.opaque or "trusted.overlay.opaque" in (node.attributes or {})


def to_time(seconds: float) -> int:
    """Return a time of modification within what every filesystem can store."""
    return max(0, min(int(seconds), _LATEST))


# ---- directories ----


class DirectoryTree:
    """The files of a directory of the host. Links in it cannot lead outside.

    Args:
        fd: descriptor of the directory; the caller keeps it.
        where: the directory, for messages.
    """

    def __init__(self, fd: int, where: str) -> None:
        self._root, self._where = f"/proc/self/fd/{fd}", where
        self._linked: dict[tuple[int, int], str] = {}
        """The first path of each file with hard links, by its device and inode."""
        self.root = self._node(".", os.fstat(fd), "")

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        found: dict[str, Node] = {}
        with self._naming(node.location):
            fd = open_in_root(self._root, node.location, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if len(found) >= budget.files_left:
                            budget.take_files(len(found) + 1)
                        info = entry.stat(follow_symlinks=False)
                        target = os.readlink(entry.name, dir_fd=fd) if entry.is_symlink() else ""
                        found[entry.name] = self._node(posixpath.join(node.location, entry.name), info, target)
            finally:
                os.close(fd)
        return found

    @contextmanager
    def _naming(self, location: str) -> Iterator[None]:
        """Let the errors of the host name the file by its path on the host."""
        try:
            yield
        except OSError as error:
            if error.errno is not None and not isinstance(error, OCIRuntimeError):
                error.filename = posixpath.normpath(posixpath.join(self._where, location))
            raise

    def _node(self, path: str, info: os.stat_result, target: str) -> Node:
        kind = FILE_TYPES[stat.S_IFMT(info.st_mode)]
        if info.st_nlink > 1 and kind is not FileType.DIRECTORY:
            path = self._linked.setdefault((info.st_dev, info.st_ino), path)
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(info.st_mode),
            uid=info.st_uid,
            gid=info.st_gid,
            size=info.st_size if kind is FileType.FILE else 0,
            mtime=to_time(info.st_mtime),
            target=target,
            device=(os.major(info.st_rdev), os.minor(info.st_rdev)) if "device" in kind else None,
            location=path,
        )

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        for node in nodes:
            try:
                with self._naming(node.location):
                    fd = open_regular(node.location, root=self._root)
            except NotRegularError as error:
                raise ImageError(f"{error.filename}: {error.strerror}: it was replaced meanwhile") from error
            with os.fdopen(fd, "rb", buffering=0) as file:
                yield node, iter(partial(file.read, PIECE), b"")

    def attributes(self, node: Node) -> dict[str, bytes]:
        if len(os.fsencode(node.location)) > MAX_PATH:
            raise ImageError(
                f"{self._where}: {printable(f'/{posixpath.normpath(node.location)}'[:200])}... lies too deep in the image"
            )
        fd = open_in_root(self._root, node.location, os.O_PATH | os.O_NOFOLLOW)
        try:
            path = f"/proc/self/fd/{fd}"  # the file itself, also if it is a symbolic link
            return {name: os.getxattr(path, name) for name in os.listxattr(path)}
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return {}
            raise
        finally:
            os.close(fd)


class UpperTree(DirectoryTree):
    """The files of the upper directory of an overlay, with the whiteouts and opaque directories of overlayfs and fuse-overlayfs.

    For a caller without privileges, its own files are those of root, as in its containers. A file that has a part of its state in
    a lower layer (``metacopy``, ``redirect_dir``) raises UnsupportedError.
    """

    @override
    def _node(self, path: str, info: os.stat_result, target: str) -> Node:
        node = super()._node(path, info, target)
        if os.geteuid():
            node.uid, node.gid = (0 if node.uid == os.geteuid() else node.uid), (0 if node.gid == os.getegid() else node.gid)
        return node

    @override
    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        found = super().children(node, budget)
        for name in [name for name in found if name.startswith(".wh.")]:  # of fuse-overlayfs without privileges
            del found[name]
            hidden = name.removeprefix(".wh.")
            if hidden in ("", ".", "..", ".wh..opq"):
                node.opaque = node.opaque or hidden == ".wh..opq"
            else:
                found[hidden] = Node(tree=self, type=FileType.CHARACTER_DEVICE, whiteout=True)
        for child in found.values():
            if child.type is FileType.CHARACTER_DEVICE and child.device == (0, 0):
                child.whiteout = True
            elif child.type in (FileType.DIRECTORY, FileType.FILE):
                self._read_marks(child)
        return found

    def _read_marks(self, node: Node) -> None:
        marks = self.attributes(node)
        for prefix in ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs."):
            if partial_state := {f"{prefix}metacopy", f"{prefix}redirect"} & marks.keys():
                what = f"{self._where}/{node.location}: the attribute {min(partial_state)} refers to a lower layer"
                raise UnsupportedError(f"{what}; copy the files through the mounted overlay instead")
            node.opaque = node.opaque or marks.get(f"{prefix}opaque") == b"y"
            node.whiteout = node.whiteout or f"{prefix}whiteout" in marks
