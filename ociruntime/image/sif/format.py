"""The SIF format in bytes: structures and limits, and how to parse and pack a header or a descriptor.

All integers are little-endian. The structures have no padding between fields.
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TypeAlias

import attrs

from ociruntime.arguments import check_fd, check_int, check_type, optional, parse_path, shown, wrong_type
from ociruntime.errors import ImageError, SifError
from ociruntime.files import NotRegularError, ProcessLock, Unpicklable, absolute_path, check_regular, open_regular
from ociruntime.image.sif.model import (
    NO_TIME,
    Architecture,
    CryptoMessage,
    DataType,
    Descriptor,
    Filesystem,
    HashKind,
    Header,
    MessageFormat,
    MessageKind,
    Metadata,
    OciObject,
    Partition,
    PartitionKind,
    Sbom,
    SbomFormat,
    Signature,
    parse_enum,
)
from ociruntime.interrupts import complete, waiting

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "ClosedImageError",
    "FdSource",
    "Identity",
    "Openable",
    "ReadableFile",
    "Section",
    "SectionReader",
    "SeekableFile",
    "Source",
    "StreamSource",
    "open_source",
    "read_at",
]


HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
MAGIC = b"SIF_MAGIC\0"
VERSION = b"01\0"
GROUP_MASK = 0xF0000000

DEFAULT_CAPACITY = 48
DESCRIPTORS_OFFSET = 4096
PARTITION_ALIGNMENT = 4096

MAX_DESCRIPTORS = 8192
"""Largest accepted table: more entries than any real image has. It bounds the memory that a hostile image can take."""

_LAST_TIME = 253402300799  # 9999-12-31T23:59:59Z: the years that RFC 3339 can write
_USED = 4  # offset of the "used" byte in a descriptor


class Refusal:
    """Raises `SifError` about one file, or about one entry of its table."""

    __slots__ = ("descriptor", "path")

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        self.descriptor = descriptor

    def __call__(self, field: str, message: str) -> NoReturn:
        raise SifError(message, field=field, descriptor=self.descriptor, path=self.path)

    def between(self, field: str, value: int, low: int, high: int, why: str) -> None:
        if not low <= value <= high:
            self(field, f"{value} is not between {low} and {high} ({why})")

    def time(self, field: str, value: int) -> None:
        self.between(field, value, NO_TIME, _LAST_TIME, "Unix seconds of the years 1 to 9999")

    def text(self, field: str, raw: bytes) -> str:
        """Decode a NUL-padded field. Bytes that are not UTF-8 become surrogates, as in file names."""
        value, nul, rest = raw.partition(b"\0")
        if not nul:
            self(field, f"not NUL-terminated within its {len(raw)} bytes")
        if rest.strip(b"\0"):
            self(field, "bytes other than NUL after the terminating NUL")
        return value.decode("utf-8", "surrogateescape")

    def architecture(self, field: str, raw: bytes) -> Architecture | str:
        code = raw[:2].decode("latin-1")
        if raw[2] != 0 or not (code.isascii() and code.isdigit()):
            self(field, f"{raw!r} is not two digits and a NUL")
        try:
            return Architecture(code)
        except ValueError:
            return code


_CUT: Final = "; it was not copied whole: fetch it again"
_MAX_SIZE: Final = (1 << 63) - 1


def parse_header(raw: bytes, file_size: int, path: str) -> Header:
    """Decode and check the global header of a file of ``file_size`` bytes. Raises SifError."""
    refuse = Refusal(path)
    if len(raw) < HEADER.size:
        refuse("header", f"the file has {len(raw)} bytes, the header needs {HEADER.size}")
    launch, magic, version, arch, uuid, created, modified, free, total, offset, size, data_offset, data_size = HEADER.unpack(raw)
    if magic != MAGIC:
        refuse("magic", f"{magic!r} is not {MAGIC!r}: not a SIF file")
    if version != VERSION:
        refuse("version", f"{version!r} is not the known version {VERSION!r}")
    script = refuse.text("launch_script", launch)
    architecture = refuse.architecture("architecture", arch)
    refuse.time("created_at", created)
    refuse.time("modified_at", modified)
    refuse.between("descriptors_total", total, 0, MAX_DESCRIPTORS, "limit of this reader")
    refuse.between("descriptors_free", free, 0, total, "descriptors_total")
    refuse.between("descriptors_offset", offset, HEADER.size, file_size, "after the header, within the file")
    if size != total * DESCRIPTOR.size:
        refuse("descriptors_size", f"{size} is not {total} descriptors of {DESCRIPTOR.size} bytes")
    if offset + size > file_size:
        refuse("descriptors_offset", f"the table at {offset} with {size} bytes ends beyond the file of {file_size} bytes{_CUT}")
    refuse.between("data_offset", data_offset, HEADER.size, file_size, "after the header, within the file")
    refuse.between("data_size", data_size, 0, _MAX_SIZE, "a size in bytes")
    if data_size > file_size - data_offset:
        refuse("data_size", f"the data at {data_offset} with {data_size} bytes end beyond the file of {file_size} bytes{_CUT}")
    if data_offset <= offset < data_offset + data_size:
        refuse("descriptors_offset", f"the table at {offset} lies inside the data, {data_offset} and {data_size} bytes on")
    if offset < data_offset < offset + size:
        refuse("data_offset", f"the data at {data_offset} begin inside the descriptor table, {offset} and {size} bytes on")
    return Header(
        launch_script=script,
        version=version[:2].decode("ascii"),
        architecture=architecture,
        uuid_bytes=uuid,
        created_at=created,
        modified_at=modified,
        descriptors_free=free,
        descriptors_total=total,
        descriptors_offset=offset,
        descriptors_size=size,
        data_offset=data_offset,
        data_size=data_size,
        raw=raw,
    )


def parse_descriptor(raw: bytes, index: int, header: Header, path: str) -> Descriptor | None:
    """Decode and check one table entry by itself; return None for an unused one. Raises SifError."""
    refuse = Refusal(path, index)
    if raw[_USED] > 1:
        refuse("used", f"{raw[_USED]} is neither 0 nor 1")
    if not raw[_USED]:
        return None
    kind, _, ident, group, link, offset, size, padded, created, modified, uid, gid, name, extra = DESCRIPTOR.unpack(raw)
    if kind <= 0:
        refuse("data_type", f"{kind} is not a data type")
    refuse.between("id", ident, 1, GROUP_MASK - 1, "object ids")
    if group and group & GROUP_MASK != GROUP_MASK:
        refuse("group_id", f"{group:#x} does not have the group bits {GROUP_MASK:#x}")
    if link == GROUP_MASK:
        refuse("linked_id", f"{link:#x} names neither an object nor a group")
    data_end = header.data_offset + header.data_size
    refuse.between("offset", offset, header.data_offset, data_end, "data section of the header")
    refuse.between("size", size, 0, data_end - offset, "rest of the data section after offset")
    refuse.between("size_with_padding", padded, size, header.data_size, "size, data section")
    refuse.time("created_at", created)
    refuse.time("modified_at", modified)
    refuse.between("uid", uid, 0, 0xFFFFFFFF, "user ids")
    refuse.between("gid", gid, 0, 0xFFFFFFFF, "group ids")
    linked_group = link & ~GROUP_MASK if link & GROUP_MASK == GROUP_MASK else None
    return Descriptor(
        index=index,
        data_type=parse_enum(DataType, kind),
        id=ident,
        group=(group & ~GROUP_MASK) or None,
        linked_object=link if link and linked_group is None else None,
        linked_group=linked_group,
        offset=offset,
        size=size,
        size_with_padding=padded,
        created_at=created,
        modified_at=modified,
        uid=uid,
        gid=gid,
        name=refuse.text("name", name),
        metadata=_parse_extra(kind, extra, refuse),
        raw=raw,
    )


def _positive(extra: bytes, at: int, field: str, refuse: Refusal) -> int:
    value = int.from_bytes(extra[at : at + 4], "little", signed=True)
    if value <= 0:
        refuse(field, f"{value} is not a valid value")
    return value


def _parse_extra(kind: int, extra: bytes, refuse: Refusal) -> Metadata | None:
    if kind == DataType.PARTITION:
        return Partition(
            filesystem=parse_enum(Filesystem, _positive(extra, 0, "partition.filesystem", refuse)),
            kind=parse_enum(PartitionKind, _positive(extra, 4, "partition.kind", refuse)),
            architecture=refuse.architecture("partition.architecture", extra[8:11]),
        )
    if kind == DataType.SIGNATURE:
        return Signature(parse_enum(HashKind, _positive(extra, 0, "signature.hash", refuse)), extra[4:260])
    if kind == DataType.CRYPTO_MESSAGE:
        return CryptoMessage(
            parse_enum(MessageFormat, _positive(extra, 0, "crypto_message.format", refuse)),
            parse_enum(MessageKind, _positive(extra, 4, "crypto_message.kind", refuse)),
        )
    if kind == DataType.SBOM:
        return Sbom(parse_enum(SbomFormat, _positive(extra, 0, "sbom.format", refuse)))
    if kind in (DataType.OCI_ROOT_INDEX, DataType.OCI_BLOB):
        return OciObject(check_digest(refuse.text("oci.digest", extra), refuse))
    return None


_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def check_digest(digest: str, refuse: Refusal) -> str:
    """Return ``digest`` if it is ``<algorithm>:<lower-case hex>`` of the algorithm's length. Raises SifError."""
    algorithm, _, encoded = digest.partition(":")
    if not set(encoded) <= set("0123456789abcdef") or len(encoded) != _DIGEST_LENGTHS.get(algorithm):
        refuse("oci.digest", f"{shown(digest)} is not a digest such as sha256:<64 hex digits>")
    return digest


def pack_extra(metadata: Metadata | None) -> bytes:
    """Return the type-specific part of a descriptor, without padding."""
    match metadata:
        case None:
            return b""
        case Partition():
            return struct.pack("<ii3s", metadata.filesystem, metadata.kind, metadata.architecture.encode("ascii"))
        case Signature():
            return struct.pack("<i256s", metadata.hash, metadata.entity)
        case CryptoMessage():
            return struct.pack("<ii", metadata.format, metadata.kind)
        case Sbom():
            return struct.pack("<i", metadata.format)
        case OciObject():
            return metadata.digest.encode("ascii")


# ---- sources of the bytes of an image: reads are positional, so they neither move a file offset nor look a path up again ----


class ClosedImageError(ValueError):
    """An image is read after it was closed."""

    def __init__(self, message: str = "I/O operation on closed image") -> None:
        super().__init__(message)


class ReadableFile(Protocol):
    """A binary file that can be read."""

    def read(self, size: int = ..., /) -> bytes: ...


class SeekableFile(ReadableFile, Protocol):
    """A binary file that can be read from any position."""

    def seek(self, offset: int, whence: int = ..., /) -> int: ...


_OPENABLE: Final = "a path, a file descriptor or a binary file object"
Openable: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes] | int | SeekableFile


Identity: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of modification in nanoseconds. A file with another identity is another file."""


class FdSource:
    """A regular file, read through a file descriptor. Takes ownership of ``fd`` and closes it, also if the file is not regular."""

    def __init__(self, fd: int, name: str, path: str = "") -> None:
        self.name = name
        self.path = path
        """The absolute path that was opened; empty if the file was not opened by a path."""
        self._fd = fd
        try:
            info = check_regular(fd, name)
        except BaseException as error:
            self.close()
            if isinstance(error, NotRegularError):
                raise SifError(str(error.strerror), field="file", path=name) from error
            raise
        self.size = info.st_size
        self.identity: Identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)

    @classmethod
    def from_path(cls, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> FdSource:
        absolute = absolute_path(os.fsdecode(path))
        try:
            fd = open_regular(path)
        except NotRegularError as error:
            raise SifError(str(error.strerror), field="file", path=os.fsdecode(path)) from error
        source = cls(fd, os.fsdecode(path), absolute)
        os.set_blocking(fd, True)  # the loop driver inherits the flags of its backing file
        return source

    def fileno(self) -> int:
        if self._fd < 0:
            raise ClosedImageError
        return self._fd

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Read from ``offset`` into ``buffer``; return the number of bytes, smaller than the buffer only at the end."""
        fd = self.fileno()
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(fd, [buffer[done:]], offset + done)
            except OSError as error:
                error.filename = self.name
                raise
            if not got:
                break
            done += got
        return done

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        complete(self._close)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class StreamSource:
    """A seekable binary stream without a usable descriptor (`io.BytesIO`, a decompressor). The caller keeps ownership."""

    def __init__(self, stream: SeekableFile, name: str) -> None:
        self.name = name
        self._stream: SeekableFile | None = stream
        self._lock = ProcessLock()
        with waiting():  # a decompressor goes through all of it
            self.size = stream.seek(0, io.SEEK_END)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("this SIF image was opened from a stream that is not a plain file")

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Read from ``offset`` into ``buffer``; return the number of bytes, smaller than the buffer only at the end."""
        with self._lock, waiting():
            if self._stream is None:
                raise ClosedImageError
            self._stream.seek(offset)
            done = 0
            while done < len(buffer):
                piece = self._stream.read(len(buffer) - done)
                if not piece:
                    break
                buffer[done : done + len(piece)] = piece
                done += len(piece)
            return done

    @property
    def closed(self) -> bool:
        return self._stream is None

    def close(self) -> None:
        self._stream = None


Source: TypeAlias = FdSource | StreamSource


class SectionReader(Unpicklable, io.RawIOBase):
    """A part of a source, as a read-only seekable binary file.

    It reads from the descriptor of the image without moving its offset, so readers do not disturb each other. It is unbuffered:
    wrap it in `io.BufferedReader` for many small reads. Reading raises `ImageError` if the file has become too short, and
    `ValueError` if the image is closed.
    """

    _instead = "send the image and what names the part"

    def __init__(self, source: Source, offset: int, size: int) -> None:
        super().__init__()
        self.size = size
        self._source = source
        self._offset = offset
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._check_open()
        bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
        check_int("offset", offset)
        check_type("whence", whence, int, "SEEK_SET, SEEK_CUR or SEEK_END")
        if whence not in bases:
            raise ValueError(f"whence {shown(whence)} is not SEEK_SET, SEEK_CUR or SEEK_END")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"seek to the negative position {position}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        got = self._source.readinto(view, self._offset + self._position)
        if got < len(view):
            raise self._shortened(self._position + got)
        self._position += got
        return got

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, or all the rest. No more memory is allocated than the part has bytes."""
        self._check_open()
        optional(check_int, "size", size)
        rest = max(0, self.size - self._position)
        buffer = bytearray(rest if size is None or size < 0 else min(size, rest))
        self.readinto(buffer)
        return bytes(buffer)

    def readall(self) -> bytes:
        return self.read()

    def _shortened(self, end: int) -> ImageError:
        return ImageError(f"{self._source.name}: the file became shorter while it was open: {end} of {self.size} bytes are there")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed reader")


def read_at(source: Source, offset: int, size: int) -> bytes:
    """Return the bytes at an offset; fewer at the end of the source."""
    buffer = bytearray(size)
    return bytes(buffer[: source.readinto(memoryview(buffer), offset)])


@attrs.frozen
class Section:
    """A part of an open file."""

    source: Source
    offset: int
    size: int

    def reader(self) -> SectionReader:
        """Return the bytes as a read-only seekable file."""
        return SectionReader(self.source, self.offset, self.size)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset in the part; fewer at its end."""
        return read_at(self.source, self.offset + offset, max(0, min(size, self.size - offset)))


def open_source(target: Openable) -> Source:
    """Return a source for a path, a file descriptor (which is duplicated) or a binary file object.

    Raises:
        OSError: the file cannot be opened.
        SifError: it is not a regular file.
        TypeError: ``target`` is something else.
    """
    if isinstance(target, bool):
        raise wrong_type("target", target, _OPENABLE)
    if isinstance(target, int):
        check_fd("target", target)
        return FdSource(fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, 3), f"fd {target}")
    if isinstance(target, str | bytes | os.PathLike):
        return FdSource.from_path(parse_path("target", os.fsdecode(target)))
    name = getattr(target, "name", "")
    name = name if isinstance(name, str) else ""
    fd = _plain_fd(target)
    if fd is not None:
        return FdSource(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), name)
    if not (hasattr(target, "read") and hasattr(target, "seek")) or isinstance(target, io.TextIOBase):
        raise wrong_type("target", target, _OPENABLE)
    return StreamSource(target, name)


def _plain_fd(file: object) -> int | None:
    """Return the descriptor of a file object, if it gives the same bytes as the object.

    ``fileno()`` does not tell: that of a gzip file is the descriptor of the compressed bytes.
    """
    file = getattr(file, "file", file)  # the file in a tempfile wrapper
    if isinstance(file, io.BufferedRandom):
        file.flush()
    if isinstance(file, io.BufferedReader | io.BufferedRandom):
        file = file.raw
    return file.fileno() if isinstance(file, io.FileIO) else None
