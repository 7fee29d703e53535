"""Reading a container's log, in all three formats that a supervisor writes."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Final, NamedTuple

from .errors import StateError
from .files import NotRegularError, open_regular

__all__ = ["LogRecord", "parse", "read"]


class LogRecord(NamedTuple):
    """One entry of a log."""

    time: int
    """Unix nanoseconds."""
    stream: str
    """``stdout`` or ``stderr``."""
    text: str
    """Without the newline; bytes that are no UTF-8 as ``surrogateescape`` has it."""
    partial: bool = False
    """Whether its line goes on in the stream's next record."""

    @property
    def datetime(self) -> datetime:
        """The time, as exact as `datetime` can be."""
        return datetime.fromtimestamp(self.time // 10**9, UTC).replace(microsecond=self.time % 10**9 // 1000)

    @property
    def stamp(self) -> str:
        """The time in full, as RFC 3339 has it."""
        return f"{self.datetime:%Y-%m-%dT%H:%M:%S}.{self.time % 10**9:09}Z"


def _time(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0")[:9])


def _kubernetes(line: str) -> LogRecord:
    when, stream, kind, text = line.split(" ", 3)
    return LogRecord(_time(when), stream, text, kind == "P")


def _basic(line: str) -> LogRecord:
    when, stream, text = line.split(" ", 2)
    return LogRecord(_time(when), stream, text)


def _json(line: str) -> LogRecord:
    entry = json.loads(line)
    return LogRecord(_time(entry["time"]), entry["stream"], entry["log"], entry.get("partial", False))


_PARSERS: Final[dict[str, Callable[[str], LogRecord]]] = {"kubernetes": _kubernetes, "basic": _basic, "json": _json}


def parse(line: bytes, style: str) -> LogRecord | None:
    """One line of a log; None for what is none: the torn entry of a disk that was full, which its writer has counted as lost."""
    try:
        return _PARSERS[style](line.decode("utf-8", "surrogateescape"))
    except (ValueError, KeyError, TypeError):
        return None


class _Lines:
    """The lines of a log, and None whenever there are no more for now: asked on, it looks again, through truncation and rotation.

    Args:
        rotated: whether its writer makes the file ``.1`` when it has become too long.
    """

    def __init__(self, path: str, *, rotated: bool) -> None:
        self._path = path
        self._rotated = rotated
        self._file: io.FileIO | None = None
        self._rest = b""

    def __iter__(self) -> Iterator[bytes | None]:
        try:
            self._file = self._first()
            while True:
                if data := self._read():
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    yield from lines
                elif not self._go_on():
                    yield None
        finally:
            if self._file is not None:
                self._file.close()

    def _first(self) -> io.FileIO | None:
        # The newer one first: if it becomes the older one meanwhile, nothing is missed.
        newer = _open(self._path)
        older = _open(f"{self._path}.1") if self._rotated else None
        if older is not None and newer is not None:
            newer.close()
        return older or newer

    def _read(self) -> bytes:
        if self._file is None:
            self._file = _open(self._path)
        elif os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # whoever copied it has cut it off
            self._rest = b""
        return (self._file and self._file.read(1 << 16)) or b""

    def _go_on(self) -> bool:
        """Whether there is more: the file's own end, if its writer has left it, and then the next file."""
        if self._file is None or (after := self._next(self._file)) is None:
            return False
        if data := self._file.read(1 << 16):  # written between our last look and the rename
            self._file.seek(-len(data), os.SEEK_CUR)
            after.close()
            return True
        self._file.close()
        self._file, self._rest = after, b""
        return True

    def _next(self, ours: io.FileIO) -> io.FileIO | None:
        """What is written behind this file, once its writer is there: an empty one may have been put there by somebody else."""
        own, newer = os.fstat(ours.fileno()), _open(self._path)
        if newer is None:
            return None
        info = os.fstat(newer.fileno())
        if os.path.samestat(info, own) or not info.st_size:
            newer.close()
            return None
        older = _open(f"{self._path}.1") if self._rotated else None
        if older is not None and not os.path.samestat(os.fstat(older.fileno()), own):
            newer.close()
            return older  # the writer was two files ahead of us
        if older is not None:
            older.close()
        return newer


def _open(path: str) -> io.FileIO | None:
    """Open a log; return None where it does not exist. Raises StateError: a container may be able to replace it."""
    try:
        return io.FileIO(open_regular(path))
    except FileNotFoundError:
        return None
    except NotRegularError as error:
        raise StateError(f"the log {path}: {error.strerror}") from error


def read(
    path: str, style: str, *, rotated: bool, since: int | None, tail: int | None, stream: str | None
) -> Generator[LogRecord | None]:
    """The records of a log, and None whenever all of it has been read: asked on, it looks again."""
    lines = _Lines(path, rotated=rotated)
    items = (None if line is None else parse(line, style) or _TORN for line in lines)
    wanted = (item for item in items if item is None or _wanted(item, since, stream))
    if tail is not None:
        yield from _last_lines(wanted, tail)
        yield None
    yield from wanted


_TORN: Final = LogRecord(0, "", "")
"""In the place of what is no record."""


def _wanted(record: LogRecord, since: int | None, stream: str | None) -> bool:
    return record is not _TORN and (since is None or record.time >= since) and (stream is None or record.stream == stream)


def _last_lines(items: Iterator[LogRecord | None], count: int) -> Iterator[LogRecord]:
    """Of what is there now the last lines, each with all its parts."""
    lines: deque[list[LogRecord]] = deque(maxlen=count)
    open_: dict[str, list[LogRecord]] = {}
    while (record := next(items)) is not None:
        parts = open_.pop(record.stream, None)
        if parts is None:
            parts = []
            lines.append(parts)
        parts.append(record)
        if record.partial:
            open_[record.stream] = parts
    return chain.from_iterable(lines)
