"""The parts of images: what each holds, by its first bytes, and where those of an OCI image lie.

Blobs lie by their digest in a SIF file or a layout, files by their name in an archive. A store gives each part as a section of an
open file. Content is compared with its digest by `read_checked` and `check_digest`.
"""

from __future__ import annotations

import enum
import hashlib
import importlib
import os
import posixpath
import re
import struct
import sys
import tarfile
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from ociruntime.errors import ImageError, UnsupportedError
from ociruntime.files import NotRegularError, absolute_path, open_regular
from ociruntime.image.sif.format import FdSource, Section, SectionReader
from ociruntime.image.sif.model import DataType
from ociruntime.interrupts import check_deadline

if TYPE_CHECKING:
    from ociruntime.image.sif.format import ReadableFile, Source
    from ociruntime.image.sif.reader import SifImage

__all__ = [
    "ArchiveBlobs",
    "BlobStore",
    "FilesystemFound",
    "LayerFormat",
    "LayoutBlobs",
    "SifBlobs",
    "check_digest",
    "compression",
    "describe",
    "find_filesystem",
    "open_zstd",
    "optional_module",
    "read_checked",
]


# ---- what a file holds: a filesystem, an archive, or what people mistake for an image ----

ReadAt = Callable[[int, int], bytes]
"""Returns the bytes at an offset, fewer than were asked for only at the end of the file."""

HEAD: Final = 4096
"""Bytes from the beginning of a file that `describe` takes."""
_LAUNCH_LINE: Final = b"#!/usr/bin/env run-singularity\n"


class LayerFormat(enum.StrEnum):
    """The encoding of a layer."""

    SQUASHFS = "squashfs"
    EXT = "ext"
    """ext2, ext3 or ext4."""
    EROFS = "erofs"
    ENCRYPTED = "encrypted"
    """A LUKS2 volume, or gocryptfs, with squashfs inside."""
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"
    DIRECTORY = "directory"
    OTHER = "other"
    """Data of some other type, which cannot become a part of a root filesystem."""

    @property
    def is_filesystem(self) -> bool:
        """Whether the layer can be mounted as it is."""
        return self in (LayerFormat.SQUASHFS, LayerFormat.EXT, LayerFormat.EROFS)

    @property
    def is_archive(self) -> bool:
        """Whether the layer is a tar archive, plain or compressed."""
        return self in (LayerFormat.TAR, LayerFormat.TAR_GZIP, LayerFormat.TAR_ZSTD)


@attrs.frozen(kw_only=True)
class FilesystemFound:
    """A filesystem at the beginning of a file or of a part of one."""

    format: LayerFormat
    name: str
    """``squashfs``, ``ext2``, ``ext3``, ``ext4`` or ``erofs``."""
    size: int
    """Bytes that the filesystem takes, as its superblock says."""


def find_filesystem(read_at: ReadAt, offset: int = 0) -> FilesystemFound | None:
    """Return the filesystem whose superblock lies at ``offset``; None if it is unknown or absent."""
    head = read_at(offset, 2048)
    return _squashfs(head) or _ext(head) or _erofs(head)


def checked_filesystem(read_at: ReadAt, offset: int, size: int, where: str) -> FilesystemFound | None:
    """Return the filesystem in a part of a file. Raises ImageError if its superblock claims more bytes than the part has."""
    found = find_filesystem(read_at, offset)
    if found is not None and found.size > size:
        raise ImageError(f"{where}: the {found.name} needs {found.size} bytes, but only {size} are there: the file is truncated")
    return found


def launch_script_size(read_at: ReadAt) -> int:
    """Return the size of the line before the squashfs in an image of Singularity 2.4 and older; 0 in any other file."""
    return len(_LAUNCH_LINE) if read_at(0, len(_LAUNCH_LINE)) == _LAUNCH_LINE else 0


def _squashfs(head: bytes) -> FilesystemFound | None:
    if len(head) < 96 or head[:4] != b"hsqs":
        return None
    major, _, _, size = struct.unpack_from("<HHQQ", head, 28)
    return FilesystemFound(format=LayerFormat.SQUASHFS, name="squashfs", size=size) if major == 4 else None


def _ext(head: bytes) -> FilesystemFound | None:
    if len(head) < 2048 or head[1080:1082] != b"\x53\xef":
        return None
    (low,) = struct.unpack_from("<I", head, 1024 + 4)
    (block_log,) = struct.unpack_from("<I", head, 1024 + 24)
    compatible, incompatible, read_only = struct.unpack_from("<III", head, 1024 + 92)
    (high,) = struct.unpack_from("<I", head, 1024 + 336)
    if block_log > 6:
        return None
    blocks = low + (high << 32 if incompatible & 0x80 else 0)
    # The features that ext3 does not have (extents, 64bit, huge_file ...) make it an ext4.
    name = "ext4" if incompatible & ~0x16 or read_only & ~0x7 else "ext3" if compatible & 0x4 else "ext2"
    return FilesystemFound(format=LayerFormat.EXT, name=name, size=blocks * (1024 << block_log))


def _erofs(head: bytes) -> FilesystemFound | None:
    if len(head) < 1024 + 128 or head[1024:1028] != b"\xe2\xe1\xf5\xe0":
        return None
    block_log = head[1024 + 12]
    (blocks,) = struct.unpack_from("<I", head, 1024 + 36)
    return FilesystemFound(format=LayerFormat.EROFS, name="erofs", size=blocks << block_log) if 9 <= block_log <= 16 else None


_COMPRESSIONS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


def compression(head: bytes) -> str:
    """Return the name of the program that decompresses a file; empty if the file is not compressed as a whole."""
    return next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), "")


def is_tar(head: bytes) -> bool:
    """Return whether a file begins with the header of a tar member, by the checksum of the header."""
    if len(head) < 512:
        return False
    try:
        expected = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return sum(head[:148]) + sum(b" " * 8) + sum(head[156:512]) == expected


_MAGICS: Final = (
    (0, b"SIF_MAGIC", "a SIF image without its first 32 bytes"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"QFI\xfb", "a QEMU disk image (qcow2)"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"sqsh", "a big-endian squashfs, which Linux no longer mounts"),
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"%PDF", "a PDF document"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (0, b"070701", "a cpio archive"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0x10040, b"_BHRfS_M", "a Btrfs filesystem"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (512, b"EFI PART", "a disk with a partition table (GPT)"),
    (510, b"\x55\xaa", "a disk with a partition table, or a boot sector"),
)


def describe(head: bytes, read_at: ReadAt) -> str:
    """Say what a file that is not an image seems to be, from its first bytes.

    Args:
        head: the first `HEAD` bytes.
        read_at: reads bytes further on.
    """
    if not head:
        return "an empty file"
    if name := compression(head):
        return f"a file compressed with {name}: decompress it first"
    for offset, magic, what in _MAGICS:
        if (head[offset : offset + len(magic)] if offset < HEAD else read_at(offset, len(magic))) == magic:
            return what
    if not any(head):
        return "a file that begins with zeros"
    return _describe_text(head)


def _describe_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return "data of an unknown format"
    if any(char < " " and char not in "\t\r\n\f" for char in text):
        return "data of an unknown format"
    start = text.lstrip().lower()
    if start.startswith("#!"):
        return f"a script ({text.lstrip().splitlines()[0][:60]!r})"
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page: perhaps the error page of a download"
    if start.startswith(("bootstrap:", "from ", "from:")):
        return "a definition file or Dockerfile, from which an image is built"
    return "a JSON document" if start.startswith("{") else "a text file"


# ---- the blobs of an OCI image ----

MAX_DOCUMENT: Final = 4 << 20
"""Largest index, manifest or configuration that is read, in bytes: what registries take."""
MAX_MEMBERS: Final = 100_000
"""Most members of an archive."""
INSTALL: Final = "pip install 'ociruntime[images]'"
_ZSTD_WINDOW: Final = 128 << 20
"""Most memory for decompression, as the program zstd has it."""
_MAX_LINKS: Final = 16
_PIECE: Final = 1 << 20
_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha384):([0-9a-f]{96})|(sha512):([0-9a-f]{128})")
_HEADERS: Final = 1 << 20
"""Most bytes of the headers of one member: a member with longer extended headers is refused."""


class BlobStore(Protocol):
    """Blobs by their digest."""

    name: str
    """The image, for messages."""

    def find(self, digest: str) -> Section | None:
        """Return the blob; None if the image does not have it. Raises ImageError: it cannot be read."""
        ...

    def close(self) -> None:
        """Close the files that the store has opened."""
        ...


def split_digest(digest: str, where: str) -> tuple[str, str]:
    """Return the algorithm and the hex digits of a digest. Raises ImageError for anything but SHA-2."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ImageError(f"{where}: {digest[:150]!r} is not a digest such as sha256:<64 hexadecimal digits>")
    algorithm, hexadecimal = (part for part in match.groups() if part is not None)
    return algorithm, hexadecimal


def hash_content(reader: SectionReader, algorithm: str, count: Callable[[int], None] | None = None) -> str:
    """Return the digest of what a file holds, in hexadecimal digits. `count` is called with the bytes of each piece.

    Raises LaunchTimeout: the deadline of the call has passed.
    """
    digest = hashlib.new(algorithm)
    while piece := reader.read(_PIECE):
        check_deadline()
        digest.update(piece)
        if count is not None:
            count(len(piece))
    return digest.hexdigest()


def check_digest(section: Section, digest: str, where: str, count: Callable[[int], None] | None = None) -> None:
    """Compare the content of a blob with its digest. `count` is called with the bytes of each piece. Raises ImageError."""
    algorithm, expected = split_digest(digest, where)
    with section.reader() as reader:
        found = hash_content(reader, algorithm, count)
    if found != expected:
        raise ImageError(f"{where}: the content has the digest {algorithm}:{found}, not {digest}: the image is damaged")


def read_checked(section: Section, digest: str, where: str) -> bytes:
    """Return a document after comparing it with its digest. Raises ImageError: it is another one, or too large."""
    content = read_document(section, where)
    algorithm, expected = split_digest(digest, where)
    found = hashlib.new(algorithm, content).hexdigest()
    if found != expected:
        raise ImageError(f"{where}: the content has the digest {algorithm}:{found}, not {digest}: the image is damaged")
    return content


def read_document(section: Section, where: str) -> bytes:
    """Return a document. Raises ImageError: it is larger than `MAX_DOCUMENT`."""
    if section.size > MAX_DOCUMENT:
        raise ImageError(f"{where}: {section.size} bytes are more than the limit of {MAX_DOCUMENT} for a document")
    with section.reader() as reader:
        return reader.read()


def optional_module(name: str, purpose: str, remedy: str) -> ModuleType:
    """Import a module that only some uses need. Raises UnsupportedError, which names the remedy, if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"{purpose} needs the Python module {error.name}: {remedy}") from error


def open_zstd(file: ReadableFile) -> ReadableFile:
    """Return the decompressed content of a zstd file. Raises UnsupportedError: no module for zstd is installed."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.ZstdFile(file)
    module: Any = optional_module("zstandard", "reading what is compressed with zstd", INSTALL)
    reader: ReadableFile = module.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(file, read_across_frames=True)
    return reader


class SifBlobs:
    """The blobs of an OCI-SIF file. The store does not own the image."""

    def __init__(self, sif: SifImage) -> None:
        self.name = sif.name
        self._sif = sif

    def find(self, digest: str) -> Section | None:
        found = self._sif.find(DataType.OCI_BLOB, digest=digest) or self._sif.find(DataType.OCI_ROOT_INDEX, digest=digest)
        return self._sif.section(found[0]) if found else None

    def close(self) -> None:
        return


class LayoutBlobs:
    """The files of an OCI image layout (image-spec, image-layout.md). Links in it cannot lead outside."""

    def __init__(self, directory: int, name: str) -> None:
        """Take the descriptor of the directory; the caller keeps it."""
        self.name = name
        self._directory = directory
        self._sources: dict[str, FdSource] = {}

    def find(self, digest: str) -> Section | None:
        return self.file(posixpath.join("blobs", *split_digest(digest, self.name)))

    def file(self, path: str) -> Section | None:
        """Return a file of the layout; None if it does not exist. Raises ImageError: it is not a regular file."""
        source = self._sources.get(path)
        if source is None:
            try:
                fd = open_regular(path, root=f"/proc/self/fd/{self._directory}")
            except (FileNotFoundError, NotADirectoryError):
                return None
            except NotRegularError as error:
                raise ImageError(f"{self.name}/{path}: {error.strerror}") from error
            os.set_blocking(fd, True)
            source = self._sources[path] = FdSource(fd, f"{self.name}/{path}", os.path.join(absolute_path(self.name), path))
        return Section(source, 0, source.size)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


class ArchiveBlobs:
    """The members of a tar archive, found by name. Nothing is extracted, so names cannot lead anywhere."""

    def __init__(self, source: Source) -> None:
        """Read the headers of all members. The caller keeps the source.

        Raises:
            ImageError: the archive is damaged, has too many members, or two of one name.
        """
        self.name = source.name
        self._source = source
        self._members: dict[str, Section] = {}
        self._links: dict[str, str] = {}
        try:
            headers = _Headers(source)
            with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
                for count, member in enumerate(archive):
                    if count >= MAX_MEMBERS:
                        raise ImageError(f"{self.name}: more than {MAX_MEMBERS} members in the archive")
                    self._add(member)
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps each member otherwise
                    headers.left = _HEADERS
        except (tarfile.TarError, EOFError, UnicodeError, ValueError, OverflowError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{self.name}: the archive is damaged: {error}") from error

    def _add(self, member: tarfile.TarInfo) -> None:
        name = posixpath.normpath(member.name.lstrip("/"))
        if member.issym():
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.islnk():
            self._links[name] = posixpath.normpath(member.linkname)
        elif member.isreg() and not member.issparse():
            if name in self._members:
                raise ImageError(f"{self.name}: two members of the archive are named {name[:200]!r}")
            if member.size < 0 or member.offset_data + member.size > self._source.size:
                raise ImageError(f"{self.name}: the member {name[:200]!r} ends beyond the archive: the file is truncated")
            self._members[name] = Section(self._source, member.offset_data, member.size)

    def find(self, digest: str) -> Section | None:
        return self.file(posixpath.join("blobs", *split_digest(digest, self.name)))

    def file(self, path: str) -> Section | None:
        """Return the member of a name, also through links to other members; None if there is none."""
        path = posixpath.normpath(path)
        for _ in range(_MAX_LINKS):
            if path not in self._links or path in self._members:
                break
            path = self._links[path]
        return self._members.get(path)

    def close(self) -> None:
        return


class _Headers:
    """The file from which tarfile reads headers. A header that claims gigabytes does not make it allocate them.

    Attributes:
        left: how many bytes of headers may still be read. Newer versions of tarfile read a long header in pieces.
    """

    def __init__(self, source: Source) -> None:
        self._reader = SectionReader(source, 0, source.size)
        self.left = _HEADERS

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError("a header is too large")
        return self._reader.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()


def open_archive(source: Source, head: bytes) -> ArchiveBlobs | None:
    """Return the members of a tar archive; None if the file is not one."""
    return ArchiveBlobs(source) if is_tar(head) else None
