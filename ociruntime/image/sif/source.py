"""Sources of an image's bytes. Reads are positional: they do not move a file offset and do not look a path up again."""

from __future__ import annotations

import fcntl
import io
import os
import threading
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import attrs

from ociruntime.arguments import check_fd, check_int, check_type, optional, parse_path, shown, wrong_type
from ociruntime.errors import ImageError, SifError
from ociruntime.files import NotRegularError, Unpicklable, absolute_path, check_regular, open_regular
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
        self._lock = threading.Lock()
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
