"""The files of one layer of an image, without mounting it: archives, directories, ext, erofs; `squashfs` has those of a squashfs.

Each layer is a tree of nodes. `TarTree` reads an archive from its beginning to its end, the others one directory at a time.
Nothing that a layer says is trusted.
"""

from __future__ import annotations

import enum
import errno
import gzip
import hashlib
import io
import lzma
import os
import posixpath
import stat
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
from typing_extensions import override

from ociruntime.errors import ImageError, ImagePathError, OCIRuntimeError, UnsupportedError
from ociruntime.files import NotRegularError, open_in_root, open_regular
from ociruntime.image.blobs import LayerFormat, open_zstd, split_digest
from ociruntime.image.sif.format import ClosedImageError
from ociruntime.interrupts import deliver

if TYPE_CHECKING:
    from ociruntime.image.model import Layer
    from ociruntime.image.sif.format import ReadableFile, Section, SectionReader

__all__ = [
    "ArchivedUpper",
    "Budget",
    "DirectoryTree",
    "ErofsTree",
    "ExtTree",
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
_MAX_NAME: Final = 255
_PIECE: Final = 1 << 20
_HEADERS: Final = 4 << 20
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
    """The files and bytes that a call may still read or write. Exceeding it raises ImageError."""

    def __init__(self, name: str, max_files: int, max_bytes: int) -> None:
        self._name = name
        self._max_files, self._max_bytes = max_files, max_bytes
        self.files_left, self._bytes_left = max_files, max_bytes

    def take_files(self, count: int = 1) -> None:
        self.files_left -= count
        if self.files_left < 0:
            raise ImageError(f"{self._name}: more files than the limit max_files={self._max_files}")

    def take_bytes(self, count: int) -> None:
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
        piece = self._file.read(min(size, _PIECE) if size >= 0 else _PIECE)
        if self._hash is not None:
            self._hash.update(piece)
        return piece

    def check(self, digest: str, where: str) -> None:
        """Read the rest, and compare the digest. Raises ImageError."""
        while self.read(_PIECE):
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
        self.headers_left = _HEADERS
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
            yield from _zeros(offset - position)
            begin = self._position
            yield from self._pieces(size)
            if self._position - begin < size:
                raise EOFError("the archive is truncated")
            position = offset + size
        yield from _zeros(member.size - position)

    def finish(self, *, whole: bool) -> None:
        """Compare the digests. Raises ImageError.

        Args:
            whole: read the decompressed rest too, for the digest of the decompressed archive.
        """
        if whole or not self._layer.digest:
            while any(True for _ in self._pieces(_PIECE)):
                pass
            if self._hash is not None:
                _compare(self._hash.hexdigest(), self._layer.diff_id, f"{self._where}: decompressed")
        self._packed.check(self._layer.digest, self._where)

    def _pieces(self, size: int) -> Iterator[bytes]:
        """Read up to that many bytes, fewer only at the end."""
        while size and (piece := self._file.read(min(size, _PIECE))):
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


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, _PIECE))
        count -= _PIECE


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
        wanted = {node.location: node for node in nodes}
        for number, member, stream in self._members(budget, whole=False):
            if number in wanted:
                yield wanted.pop(number), stream.content(member)
        if wanted:
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
                    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > _HEADERS:
                        raise tarfile.ReadError("the global headers are too large")
                    yield number, member, stream
                    stream.headers_left = _HEADERS
            stream.finish(whole=whole)

    def _directory(self) -> Node:
        return Node(tree=self, type=FileType.DIRECTORY, children={}, implied=True)

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            raise ImageError(f"{self._where}: the member {name[:200]!r} does not have the path of a file below the root")
        if len(name) > MAX_PATH or len(parts) > MAX_DEPTH or any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
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
                yield node, iter(partial(file.read, _PIECE), b"")

    def attributes(self, node: Node) -> dict[str, bytes]:
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


# ---- filesystems ----


class _DiskTree:
    """The files of a filesystem that is read without mounting it.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.
    """

    root: Node

    def __init__(self, section: Section, where: str) -> None:
        self._section, self._where = section, where
        self._known: dict[int, dict[str, Node]] = {}

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        with contained(self._where):
            found = self._known.get(node.location)
            if found is None:
                found = {}
                for name, number in self._names(node.location):
                    if b"/" in name or b"\0" in name or os.fsdecode(name) in found:
                        raise ValueError(f"a directory has the entry {name[:100]!r}, or has it twice")
                    if len(found) >= budget.files_left:
                        budget.take_files(len(found) + 1)
                    found[os.fsdecode(name)] = self._node(number)
                self._known[node.location] = found
        return found

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        for node in nodes:
            yield node, self._contained_content(node)

    def attributes(self, node: Node) -> dict[str, bytes]:
        with contained(self._where):
            return self._attributes_of(node.location)

    def _contained_content(self, node: Node) -> Iterator[bytes]:
        with contained(self._where):
            yield from self._content_of(node.location)

    def _read(self, offset: int, size: int) -> bytes:
        content = self._section.read_at(offset, size)
        if len(content) != size:
            raise ValueError(f"{size} bytes at byte {offset} are not in the filesystem")
        return content

    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a directory and the numbers of their inodes, without ``.`` and ``..``."""
        raise NotImplementedError

    def _node(self, number: int) -> Node:
        raise NotImplementedError

    def _content_of(self, number: int) -> Iterator[bytes]:
        raise NotImplementedError

    def _attributes_of(self, number: int) -> dict[str, bytes]:
        raise NotImplementedError


_ATTRIBUTE_CLASSES: Final = {1: "user.", 4: "trusted.", 6: "security."}
"""The classes of extended attributes by their numbers, which ext and erofs share."""
_OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque")


def _type_of(mode: int) -> FileType:
    kind = FILE_TYPES.get(stat.S_IFMT(mode))
    if kind is None:
        raise ValueError(f"a file has the unknown mode {mode:#o}")
    return kind


def _is_opaque(attributes: dict[str, bytes]) -> bool:
    return any(attributes.get(name) == b"y" for name in _OPAQUE)


# ---- ext2, ext3 and ext4 ----

_EXTENTS: Final = 0x80000
_READABLE: Final = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000 | 0x4000
"""Incompatible features that can be read: filetype, recover, extents, 64bit, mmp, flex_bg, csum_seed and largedir."""
_BIGALLOC: Final = 0x200
"""A feature that only readers of some files can ignore."""
_FEATURES: Final = {
    0x1: "compression",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x400: "ea_inode",
    0x1000: "dirdata",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
    _BIGALLOC << 32: "bigalloc",
}
_ROOT_INODE: Final = 2
_EXTENT_MAGIC: Final = 0xF30A
_ATTRIBUTE_MAGIC: Final = b"\x00\x00\x02\xea"
_EXTENT_DEPTH: Final = 5
_UNWRITTEN: Final = 1 << 15
"""Blocks that an extent has at most; more of them are allocated, but not written."""
_DIRECT: Final = 12
"""Blocks of a file before those that are found by lists of blocks."""


@attrs.frozen
class _Inode:
    """A file of an ext filesystem: its number, and the entry in the table of inodes."""

    number: int
    raw: bytes

    def field(self, form: str, offset: int) -> int:
        number: int = struct.unpack_from(form, self.raw, offset)[0]
        return number

    @property
    def mode(self) -> int:
        return self.field("<H", 0)

    @property
    def size(self) -> int:
        has_more = stat.S_IFMT(self.mode) in (stat.S_IFREG, stat.S_IFDIR)
        return self.field("<I", 4) | (self.field("<I", 108) << 32 if has_more else 0)

    @property
    def has_extents(self) -> bool:
        """Whether its blocks are found by a tree of extents, not by lists of blocks."""
        return bool(self.field("<I", 32) & _EXTENTS)

    @property
    def acl(self) -> int:
        """The block with extended attributes; 0 without one."""
        return self.field("<I", 104) | self.field("<H", 118) << 32


class ExtTree(_DiskTree):
    """The files of an ext2, ext3 or ext4 filesystem, without mounting it. Its journal is not replayed.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.

    Raises:
        ImageError: it is damaged.
        UnsupportedError: it has a feature that cannot be read.
    """

    def __init__(self, section: Section, where: str) -> None:
        super().__init__(section, where)
        with contained(where):
            head = self._read(1024, 1024)
            (self._inodes,) = struct.unpack_from("<I", head)
            self._first, log = struct.unpack_from("<II", head, 20)
            (self._per_group,) = struct.unpack_from("<I", head, 40)
            revision, features, read_only = struct.unpack_from("<I16xII", head, 76)
            inode_size, descriptor_size = struct.unpack_from("<H", head, 88)[0], struct.unpack_from("<H", head, 254)[0]
            features |= (read_only & _BIGALLOC) << 32
            if features & ~_READABLE:
                names = [name for flag, name in _FEATURES.items() if features & flag] or [f"{features & ~_READABLE:#x}"]
                raise UnsupportedError(f"{where}: an ext filesystem with {', '.join(names)} cannot be read without mounting it")
            self._block = 1024 << log if log <= 6 else 0
            self._inode_size = inode_size if revision else 128
            self._descriptor = descriptor_size if features & 0x80 else 32
            if not (self._block and self._per_group and 128 <= self._inode_size <= self._block and 32 <= self._descriptor <= 1024):
                raise ValueError("the superblock is not valid")
            self._blocks_left = section.size // self._block + 1
            self.root = self._node(_ROOT_INODE)
            if not self.root.is_directory:
                raise ValueError("the root is not a directory")

    @override
    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        for content in self._content(self._inode(number), self._block):
            self._blocks_left -= 1  # each directory is read once, so that all of them have the blocks of the filesystem
            if self._blocks_left < 0 or len(content) < self._block:
                raise ValueError("the size of a directory is not valid")
            yield from self._entries(content)

    @override
    def _content_of(self, number: int) -> Iterator[bytes]:
        return self._content(self._inode(number), _PIECE)

    @override
    def _attributes_of(self, number: int) -> dict[str, bytes]:
        return self._attributes(self._inode(number))

    def _inode(self, number: int) -> _Inode:
        if not 1 <= number <= self._inodes:
            raise ValueError(f"inode {number} does not exist")
        group, index = divmod(number - 1, self._per_group)
        descriptor = self._read((self._first + 1) * self._block + group * self._descriptor, self._descriptor)
        table: int = struct.unpack_from("<I", descriptor, 8)[0]
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        raw = self._read(table * self._block + index * self._inode_size, self._inode_size)
        return _Inode(number, raw)

    @override
    def _node(self, number: int) -> Node:
        inode = self._inode(number)
        kind = _type_of(inode.mode)
        is_device = kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
        device = self._device(inode) if is_device else None
        later = inode.field("<I", 136) & 3 if len(inode.raw) > 128 and inode.field("<H", 128) >= 12 else 0
        attributes = self._attributes(inode) if kind is FileType.DIRECTORY else {}
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.field("<H", 2) | inode.field("<H", 120) << 16,
            gid=inode.field("<H", 24) | inode.field("<H", 122) << 16,
            size=inode.size if kind is FileType.FILE else 0,
            mtime=to_time(inode.field("<i", 16) + (later << 32)),
            target=os.fsdecode(self._target(inode)) if kind is FileType.SYMLINK else "",
            device=device,
            location=number,
            whiteout=kind is FileType.CHARACTER_DEVICE and device == (0, 0),
            opaque=_is_opaque(attributes),
        )

    @staticmethod
    def _device(inode: _Inode) -> tuple[int, int]:
        old, new = inode.field("<I", 40), inode.field("<I", 44)
        if old:
            return old >> 8 & 0xFF, old & 0xFF
        return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00

    def _target(self, inode: _Inode) -> bytes:
        if inode.size > MAX_PATH:
            raise ValueError("a symbolic link has a target that is too long")
        own = self._block // 512 if inode.acl else 0
        if inode.size < 60 and not inode.has_extents and inode.field("<I", 28) == own:
            return inode.raw[40 : 40 + inode.size]
        return b"".join(self._content(inode, _PIECE))

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a block of a directory, and the numbers of their inodes."""
        offset = 0
        while offset < len(block):
            number, length, name_length = struct.unpack_from("<IHB", block, offset)
            if length in (0, 0xFFFF) and len(block) == 1 << 16:
                length = 1 << 16
            if length < 8 + name_length or length % 4 or offset + length > len(block):
                raise ValueError("an entry of a directory has a wrong length")
            name = block[offset + 8 : offset + 8 + name_length]
            if number and name not in (b".", b".."):
                if not name:
                    raise ValueError("an entry of a directory has no name")
                yield name, number
            offset += length

    # ---- the blocks of a file ----

    def _content(self, inode: _Inode, most: int) -> Iterator[bytes]:
        """Yield the content of a file in pieces of so many bytes at most, with zeros for holes."""
        position = 0
        for logical, physical, count in self._runs(inode):
            begin, end = logical * self._block, min((logical + count) * self._block, inode.size)
            if begin >= inode.size:
                break
            yield from _zeros(begin - position)
            for offset in range(0, end - begin, most):
                yield self._read(physical * self._block + offset, min(most, end - begin - offset))
            position = end
        yield from _zeros(inode.size - position)

    def _runs(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of a file that are not holes: first block of the file, first block on the disk, number of blocks."""
        begin = start = count = 0
        for logical, physical, length in self._extents(inode) if inode.has_extents else self._listed(inode):
            if logical < begin + count:
                raise ValueError("the blocks of a file are not in order")
            if count and (logical, physical) == (begin + count, start + count):
                count += length
                continue
            if count:
                yield begin, start, count
            begin, start, count = logical, physical, length
        if count:
            yield begin, start, count

    def _extents(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        pending, left = [(0, _EXTENT_DEPTH + 1)], self._section.size // self._block
        while pending:
            number, above = pending.pop()
            node = self._read(number * self._block, self._block) if number else inode.raw[40:100]
            magic, entries, _, depth = struct.unpack_from("<HHHH", node)
            left -= entries if depth else 0  # no block is in two trees
            if magic != _EXTENT_MAGIC or depth >= above or 12 + 12 * entries > len(node) or left < 0:
                raise ValueError("a tree of extents is damaged")
            if depth:
                below = [struct.unpack_from("<IH", node, 16 + 12 * entry) for entry in range(entries)]
                pending += [(low | high << 32, depth) for low, high in reversed(below)]
                continue
            for entry in range(entries):
                logical, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * entry)
                if length <= _UNWRITTEN:
                    yield logical, low | high << 32, length

    def _listed(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        blocks = -(-inode.size // self._block)
        numbers: tuple[int, ...] = struct.unpack_from("<15I", inode.raw, 40)
        yield from ((logical, number, 1) for logical, number in enumerate(numbers[:_DIRECT]) if number)
        logical, each = _DIRECT, self._block // 4
        for level, number in enumerate(numbers[_DIRECT:], start=1):
            yield from self._list(number, level, logical, blocks)
            logical += each**level

    def _list(self, number: int, level: int, logical: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks of a file in a list of blocks or, on higher levels, of lists."""
        if not number or logical >= end:
            return
        each = self._block // 4
        for index, entry in enumerate(struct.unpack(f"<{each}I", self._read(number * self._block, self._block))):
            if level > 1:
                yield from self._list(entry, level - 1, logical + index * each ** (level - 1), end)
            elif entry:
                yield logical + index, entry, 1

    # ---- extended attributes ----

    def _attributes(self, inode: _Inode) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        if len(inode.raw) > 132:
            own = inode.raw[128 + inode.field("<H", 128) :]
            if own[:4] == _ATTRIBUTE_MAGIC:
                found |= self._attribute_entries(own[4:], 0)
        if inode.acl:
            block = self._read(inode.acl * self._block, self._block)
            if block[:4] != _ATTRIBUTE_MAGIC:
                raise ValueError("a block of extended attributes is damaged")
            found |= self._attribute_entries(block, 32)
        return found

    @staticmethod
    def _attribute_entries(area: bytes, offset: int) -> Iterator[tuple[str, bytes]]:
        """Yield names and values, which lie behind the entries. Access control lists are left out."""
        while area[offset : offset + 4] not in (bytes(4), b""):
            length, kind, place, elsewhere, size = struct.unpack_from("<BBHII", area, offset)
            name, value = area[offset + 16 : offset + 16 + length], area[place : place + size]
            if elsewhere or len(name) != length or len(value) != size or b"\0" in name:
                raise ValueError("an extended attribute is damaged")
            if kind in _ATTRIBUTE_CLASSES:
                yield _ATTRIBUTE_CLASSES[kind] + os.fsdecode(name), value
            offset += 16 + length + -length % 4


# ---- erofs ----

_EROFS_READABLE: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20
"""Features that can be read: lz4_0padding, big_pcluster, chunked_file, compr_head2, ztailpacking and dedupe."""
_EROFS_FEATURES: Final = {0x40: "xattr_prefixes", 0x80: "48bit", 0x100: "metabox"}
_PADDED: Final = 0x1
"""The feature of data that lies at the end of its blocks, behind zeros."""
_NOT_STORED: Final = 0xFFFFFFFF
"""The block of a chunk that is a hole."""
_WITH_INDEXES: Final = 0x20
"""Flag of a file in chunks that each have an entry of 8 bytes, not of 4."""
_MOST_PACKED: Final = 1 << 20
_MOST_UNPACKED: Final = 12 << 20
"""Most bytes of an extent of a compressed file: as it is stored, and decompressed."""
_COUNT: Final = 0x800
"""Flag of an entry that has the number of blocks of the extent before."""


class _Layout(enum.IntEnum):
    """How the content of a file of an erofs is stored."""

    PLAIN = 0
    """In blocks one after another."""
    FULL = 1
    """Compressed, with an index of 8 bytes for each cluster."""
    INLINE = 2
    """As `PLAIN`, but what does not fill a block lies behind the inode."""
    COMPACT = 3
    """Compressed, with an index of 2 or 4 bytes for each cluster."""
    CHUNKS = 4
    """In chunks, each with a block of its own, or none."""


class _Cluster(enum.IntEnum):
    """What begins in a cluster of a compressed file."""

    PLAIN = 0
    """Data that is not compressed."""
    FIRST = 1
    """Data that is compressed with the first algorithm of the file."""
    NONE = 2
    SECOND = 3


_BIG: Final = {_Cluster.PLAIN: 0x4, _Cluster.FIRST: 0x2, _Cluster.SECOND: 0x4}
"""Flags of files in which extents of a kind may take several blocks."""
_SMALL_INDEXES, _IN_INDEX, _INTERLACED, _IN_FRAGMENT = 0x1, 0x8, 0x10, 0x20
"""Flags of compressed files: entries of 2 bytes, last extent behind the index, rotated plain data, last extent in another file."""


@attrs.frozen(kw_only=True)
class _ErofsInode:
    """A file of an erofs."""

    layout: _Layout
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    value: int
    """The first block, the number of a device, or the format of chunks."""
    attributes: int
    """Where its extended attributes begin."""
    end: int
    """Where they end."""


class ErofsTree(_DiskTree):
    """The files of an erofs, without mounting it.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.

    Raises:
        ImageError: it is damaged.
        UnsupportedError: it has a feature that cannot be read.
    """

    def __init__(self, section: Section, where: str) -> None:
        super().__init__(section, where)
        with contained(where):
            head = self._read(1024, 128)
            log, root = struct.unpack_from("<BxH", head, 12)
            self._epoch, self._meta, self._shared = struct.unpack_from("<Q8xII", head, 24)
            self._features, devices = struct.unpack_from("<I2xH", head, 80)
            if self._features & ~_EROFS_READABLE or devices:
                unknown = self._features & ~_EROFS_READABLE
                names = [name for flag, name in _EROFS_FEATURES.items() if unknown & flag] or [f"{unknown:#x}"]
                raise self._unsupported("data in other files" if devices else ", ".join(names))
            self._block = 1 << log if 9 <= log <= 16 else 0
            if not self._block or head[90]:
                raise ValueError("the superblock is not valid")
            self._left = section.size
            self.root = self._node(root)
            if not self.root.is_directory:
                raise ValueError("the root is not a directory")

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self._where}: an erofs with {what} cannot be read without mounting it")

    def _inode(self, number: int) -> _ErofsInode:
        place = self._meta * self._block + 32 * number
        raw = self._read(place, 32)
        form, count, mode = struct.unpack_from("<HHH", raw)
        (value,) = struct.unpack_from("<I", raw, 16)
        if form & 1:
            (size,), (uid, gid, mtime) = struct.unpack_from("<Q", raw, 8), struct.unpack("<IIQ", self._read(place + 24, 16))
        else:
            (size,), (uid, gid), mtime = struct.unpack_from("<I", raw, 8), struct.unpack_from("<HH", raw, 24), self._epoch
        attributes = place + (64 if form & 1 else 32)
        return _ErofsInode(
            layout=_Layout(form >> 1 & 7),
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            value=value,
            attributes=attributes,
            end=attributes + (8 + 4 * count if count else 0),
        )

    @override
    def _node(self, number: int) -> Node:
        inode = self._inode(number)
        kind = _type_of(inode.mode)
        is_device = kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
        device = (inode.value >> 8 & 0xFFF, inode.value & 0xFF | inode.value >> 12 & 0xFFF00) if is_device else None
        if kind is FileType.SYMLINK and inode.size > MAX_PATH:
            raise ValueError("a symbolic link has a target that is too long")
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size if kind is FileType.FILE else 0,
            mtime=min(inode.mtime, _LATEST),
            target=os.fsdecode(b"".join(self._content(inode))) if kind is FileType.SYMLINK else "",
            device=device,
            location=number,
            whiteout=device == (0, 0) and kind is FileType.CHARACTER_DEVICE,
            opaque=kind is FileType.DIRECTORY and _is_opaque(dict(self._attributes(inode))),
        )

    @override
    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        pending = bytearray()
        for piece in self._content(self._inode(number)):
            pending += piece
            while len(pending) >= self._block:
                yield from self._entries(bytes(pending[: self._block]))
                del pending[: self._block]
        if pending:
            yield from self._entries(bytes(pending))

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a block of a directory, and the numbers of their inodes."""
        self._left -= len(block)  # each directory is read once, so that all of them have the size of the filesystem
        (first,) = struct.unpack_from("<H", block, 8)
        if self._left < 0 or first % 12 or not 12 <= first < len(block):
            raise ValueError("a directory is not valid")
        entries = list(struct.iter_unpack("<QHBx", block[:first]))
        ends = [start for _, start, _ in entries[1:]] + [len(block)]
        for (number, start, _), end in zip(entries, ends, strict=True):
            name = block[start:end]
            if end == len(block):
                name = name.partition(b"\0")[0]
            if start < first or not 0 < len(name) <= _MAX_NAME:
                raise ValueError("an entry of a directory has a wrong length")
            if name not in (b".", b".."):
                yield name, number

    @override
    def _attributes_of(self, number: int) -> dict[str, bytes]:
        return dict(self._attributes(self._inode(number)))

    def _attributes(self, inode: _ErofsInode) -> Iterator[tuple[str, bytes]]:
        if inode.end == inode.attributes:
            return
        area = self._read(inode.attributes, inode.end - inode.attributes)
        offset = 12 + 4 * area[4]
        for (place,) in struct.iter_unpack("<I", area[12:offset]):
            start = self._shared * self._block + 4 * place
            length, _, size = struct.unpack("<BBH", self._read(start, 4))
            yield from self._attribute(self._read(start, 4 + length + size))
        while offset < len(area):
            length, _, size = struct.unpack_from("<BBH", area, offset)
            yield from self._attribute(area[offset : offset + 4 + length + size])
            offset += 4 + length + size + -(length + size) % 4

    @staticmethod
    def _attribute(entry: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the name and value of an attribute, unless it is an access control list."""
        length, kind, size = struct.unpack_from("<BBH", entry)
        name, value = entry[4 : 4 + length], entry[4 + length :]
        if len(value) != size or b"\0" in name:
            raise ValueError("an extended attribute is damaged")
        if kind in _ATTRIBUTE_CLASSES:
            yield _ATTRIBUTE_CLASSES[kind] + os.fsdecode(name), value

    # ---- the content of a file ----

    @override
    def _content_of(self, number: int) -> Iterator[bytes]:
        return self._content(self._inode(number))

    def _content(self, inode: _ErofsInode) -> Iterator[bytes]:
        match inode.layout:
            case _Layout.PLAIN:
                yield from self._pieces(inode.value * self._block, inode.size)
            case _Layout.INLINE:
                rest = inode.size % self._block
                yield from self._pieces(inode.value * self._block, inode.size - rest)
                yield self._read(inode.end, rest)
            case _Layout.CHUNKS:
                yield from self._chunks(inode)
            case _:
                yield from self._extents(inode)

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        for begin in range(0, size, _PIECE):
            yield self._read(offset + begin, min(_PIECE, size - begin))

    def _chunks(self, inode: _ErofsInode) -> Iterator[bytes]:
        chunk, width = self._block << (inode.value & 0x1F), 8 if inode.value & _WITH_INDEXES else 4
        start = inode.end + -inode.end % width
        for number in range(-(-inode.size // chunk)):
            (block,) = struct.unpack("<I", self._read(start + width * number, width)[-4:])
            size = min(chunk, inode.size - chunk * number)
            yield from _zeros(size) if block == _NOT_STORED else self._pieces(block * self._block, size)

    def _extents(self, inode: _ErofsInode) -> Iterator[bytes]:
        """Yield the content of a compressed file, extent by extent."""
        start = inode.end + -inode.end % 8
        inlined, flags, algorithms, clusters = struct.unpack("<2xHHBB", self._read(start, 8))
        if flags & _IN_FRAGMENT or clusters & 0x80:
            raise self._unsupported("fragments")
        log = self._block.bit_length() - 1 + (clusters & 0xF)
        if log > 14 and inode.layout is _Layout.COMPACT:
            raise ValueError("the size of clusters is not valid")
        index = self._full_index if inode.layout is _Layout.FULL else self._compact_index
        kind, begin, block, count, index_end, is_next = _Cluster.NONE, 0, 0, 1, start, False
        for number, (next_kind, value, next_block, entry_end) in enumerate(index(inode.size, start + 8, log, flags)):
            index_end = entry_end
            if next_kind is _Cluster.NONE:
                if is_next and value & _COUNT and flags & _BIG[kind]:
                    count = value & ~_COUNT
                is_next = False
                continue
            end = (number << log) + value
            if end >= inode.size:
                break
            if kind is not _Cluster.NONE:
                yield self._extent(kind, algorithms, flags, begin, end, self._stored(block, count))
            elif end:
                raise ValueError("a compressed file does not begin with its first extent")
            kind, begin, block, count, is_next = next_kind, end, next_block, 1, True
        if kind is not _Cluster.NONE:
            inlined = inlined if flags & _IN_INDEX else 0
            stored = self._read(index_end, inlined) if inlined else self._stored(block, count)
            yield self._extent(kind, algorithms, flags, begin, inode.size, stored)
        elif inode.size:
            raise ValueError("a compressed file has no extents")

    def _stored(self, block: int, count: int) -> bytes:
        if count * self._block > _MOST_PACKED:
            raise ValueError("an extent is too large")
        return self._read(block * self._block, count * self._block)

    def _full_index(self, size: int, start: int, log: int, flags: int) -> Iterator[tuple[_Cluster, int, int, int]]:
        """Yield what begins in each cluster of a file, where in the cluster, its block, and where this entry ends.

        If nothing begins in the cluster, the second number has the distance to the cluster in which the extent begins, or `_COUNT`
        and the number of its blocks.
        """
        for place in range(start + 8, start + 8 + 8 * -(-size >> log), 8):
            kind, offset, block = struct.unpack("<HHI", self._read(place, 8))
            is_head = kind & 3 != _Cluster.NONE
            yield _Cluster(kind & 3), offset if is_head else block & 0xFFFF, block, place + 8

    def _compact_index(self, size: int, start: int, log: int, flags: int) -> Iterator[tuple[_Cluster, int, int, int]]:
        """Yield as `_full_index`. The entries are in packs, each with the block at which its first extent begins."""
        total, count = -(-size // self._block), -(-size >> log)
        first = (32 - start % 32) // 4 % 8
        small = range(first, first + (total - first) // 16 * 16) if flags & _SMALL_INDEXES and first < total else range(0)
        number, bits = 0, max(log, 12)
        while number < count:
            entries, length = (16, 32) if number in small else (2, 8)
            pack = self._read(start, length)
            packed, width = int.from_bytes(pack[:-4], "little"), (length - 4) * 8 // entries
            block: int = struct.unpack("<I", pack[-4:])[0] + (0 if flags & _BIG[_Cluster.FIRST] else 1)
            start += length
            if bits + 2 > width:
                raise ValueError("the size of clusters is not valid")
            for entry in range(min(entries, count - number)):
                value = packed >> width * entry & (1 << width) - 1
                kind, value = _Cluster(value >> bits & 3), value & (1 << bits) - 1
                yield kind, value, block, start
                if kind is not _Cluster.NONE:
                    block += 1
                elif value & _COUNT and flags & _BIG[_Cluster.FIRST]:
                    block += (value & ~_COUNT) - (1 if entry else 0)
            number += entries

    def _extent(self, kind: _Cluster, algorithms: int, flags: int, begin: int, end: int, stored: bytes) -> bytes:
        """Return the content of a file from one offset to another one, which is stored as one extent."""
        size = end - begin
        if not 0 <= size <= _MOST_UNPACKED or (kind is _Cluster.PLAIN and size > len(stored)):
            raise ValueError("an extent is too large, or does not lie behind the one before")
        if kind is _Cluster.PLAIN:
            turned = begin % self._block if flags & _INTERLACED else 0
            content = (stored[turned : self._block] + stored[:turned] + stored[self._block :])[:size]
        else:
            algorithm = algorithms >> 4 if kind is _Cluster.SECOND else algorithms & 0xF
            padded = algorithm or self._features & _PADDED
            content = _DECOMPRESSORS[algorithm](stored.lstrip(b"\0") if padded else stored, size)
        if len(content) != size:
            raise ValueError("an extent ends too early")
        return content


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    """Return the first bytes of a block of LZ4."""
    found, place = bytearray(), 0

    def longer(length: int) -> int:
        nonlocal place
        if length == 15:
            while True:
                more = packed[place]
                place += 1
                length += more
                if more < 255:
                    break
        return length

    while len(found) < size:
        token = packed[place]
        place += 1
        length = longer(token >> 4)
        if place + length > len(packed):
            raise EOFError("compressed data ends too early")
        found += packed[place : place + length]
        place += length
        if len(found) >= size:
            break
        distance = packed[place] | packed[place + 1] << 8
        place += 2
        length = min(longer(token & 15) + 4, size - len(found))
        if not 0 < distance <= len(found):
            raise ValueError("compressed data refers to what lies before it")
        begin = len(found) - distance
        found += found[begin : begin + length] if distance >= length else (found[begin:] * (length // distance + 1))[:length]
    return bytes(found[:size])


def _unpack_lzma(packed: bytes, size: int) -> bytes:
    """Return the first bytes of MicroLZMA: the first byte, which is always 0 otherwise, has the inverted properties."""
    properties = packed[0] ^ 0xFF
    rest, context = divmod(properties, 9)
    chain = {"id": lzma.FILTER_LZMA1, "dict_size": max(size, 4096), "lc": context, "lp": rest % 5, "pb": rest // 5}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[chain]).decompress(b"\0" + packed[1:], max_length=size)


def _unpack_deflate(packed: bytes, size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, max_length=size) if size else b""


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    return open_zstd(io.BytesIO(packed)).read(size)


_DECOMPRESSORS: Final[dict[int, Callable[[bytes, int], bytes]]] = {
    0: _unpack_lz4,
    1: _unpack_lzma,
    2: _unpack_deflate,
    3: _unpack_zstd,
}
"""The algorithms of compressed files, by their numbers."""
