"""Where the parts of an OCI image lie: blobs by their digest in a SIF file or a layout, files by their name in an archive.

A store gives each part as a section of an open file. Content is compared with its digest by `read_checked` and `check_digest`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import posixpath
import re
import sys
import tarfile
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ociruntime.errors import ImageError, UnsupportedError
from ociruntime.files import NotRegularError, absolute_path, open_regular
from ociruntime.image.recognise import is_tar
from ociruntime.image.sif.model import DataType
from ociruntime.image.sif.source import FdSource, Section, SectionReader

if TYPE_CHECKING:
    from ociruntime.image.sif.reader import SifImage
    from ociruntime.image.sif.source import ReadableFile, Source

__all__ = ["ArchiveBlobs", "BlobStore", "LayoutBlobs", "SifBlobs", "check_digest", "open_zstd", "optional_module", "read_checked"]

MAX_DOCUMENT: Final = 4 << 20
"""Largest index, manifest or configuration that is read, in bytes: what registries take."""
MAX_MEMBERS: Final = 100_000
"""Most members of an archive."""
INSTALL: Final = "pip install 'ociruntime[images]'"
_ZSTD_WINDOW: Final = 128 << 20
"""Most memory for decompression, as the program zstd has it."""
_MAX_LINKS: Final = 16
_DIGEST: Final = re.compile(r"(sha256):([0-9a-f]{64})|(sha384):([0-9a-f]{96})|(sha512):([0-9a-f]{128})")
_HEADER_READ: Final = 1 << 20
"""Most bytes of one read of headers: a member with a longer extended header is refused."""


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


def check_digest(section: Section, digest: str, where: str) -> None:
    """Compare the content of a blob with its digest. Raises ImageError."""
    algorithm, expected = split_digest(digest, where)
    with section.reader() as reader:
        found = hashlib.file_digest(reader, algorithm).hexdigest()
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
            with tarfile.open(fileobj=_Headers(source), mode="r:") as archive:  # type: ignore[call-overload]
                for count, member in enumerate(archive):
                    if count >= MAX_MEMBERS:
                        raise ImageError(f"{self.name}: more than {MAX_MEMBERS} members in the archive")
                    self._add(member)
                    archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it keeps each member otherwise
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
    """The file from which tarfile reads headers. A header that claims gigabytes does not make it allocate them."""

    def __init__(self, source: Source) -> None:
        self._reader = SectionReader(source, 0, source.size)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._reader.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()


def open_archive(source: Source, head: bytes) -> ArchiveBlobs | None:
    """Return the members of a tar archive; None if the file is not one."""
    return ArchiveBlobs(source) if is_tar(head) else None
