"""Reading a container's log, in all three formats that a supervisor writes."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Final

import attrs

from .errors import StateError
from .files import NotRegularError, open_regular

__all__ = ["LogRecord", "parse", "read"]


@attrs.frozen
class LogRecord:
    """An entry of a log."""

    time: int
    """Unix nanoseconds."""
    stream: str
    """``stdout`` or ``stderr``."""
    text: str
    """Without the newline. Bytes that are not UTF-8 are decoded by ``surrogateescape``."""
    partial: bool = False
    """Whether the line continues in the next record of the stream."""

    @property
    def datetime(self) -> datetime:
        """The time, to the microsecond."""
        return datetime.fromtimestamp(self.time // 10**9, UTC).replace(microsecond=self.time % 10**9 // 1000)

    @property
    def stamp(self) -> str:
        """The time to the nanosecond, in RFC 3339."""
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
    """Return the record of a line, or None for a torn one: on a full disk the writer counts the entry as lost."""
    try:
        return _PARSERS[style](line.decode("utf-8", "surrogateescape"))
    except (ValueError, KeyError, TypeError):
        return None


class _Lines:
    """The lines of a log, and None whenever there are no more for now; the next step looks again, through truncation and rotation.

    Args:
        rotated: whether the writer renames a file that has become too long to ``.1``.
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
        # The newer file first: if it is renamed to the older one meanwhile, nothing is missed.
        newer = _open(self._path)
        older = _open(f"{self._path}.1") if self._rotated else None
        if older is not None and newer is not None:
            newer.close()
        return older or newer

    def _read(self) -> bytes:
        if self._file is None:
            self._file = _open(self._path)
        elif os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # truncated after a copy was made
            self._rest = b""
        return (self._file and self._file.read(1 << 16)) or b""

    def _go_on(self) -> bool:
        """Return whether there is more: in this file, if its writer has left it, or in the next one."""
        if self._file is None or (after := self._next(self._file)) is None:
            return False
        if data := self._file.read(1 << 16):  # written between our last look and the rename
            self._file.seek(-len(data), os.SEEK_CUR)
            after.close()
            return True
        self._file.close()
        self._file, self._rest = after, b""
        return True

    def _next(self, current: io.FileIO) -> io.FileIO | None:
        """Return the file after this one, once it is not empty: another process may have created an empty file."""
        own, newer = os.fstat(current.fileno()), _open(self._path)
        if newer is None:
            return None
        info = os.fstat(newer.fileno())
        if os.path.samestat(info, own) or not info.st_size:
            newer.close()
            return None
        older = _open(f"{self._path}.1") if self._rotated else None
        if older is not None and not os.path.samestat(os.fstat(older.fileno()), own):
            newer.close()
            return older  # the writer was two files ahead
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
    """Yield the records of a log, and None whenever all of it has been read; the next step looks again."""
    lines = _Lines(path, rotated=rotated)
    items = (None if line is None else parse(line, style) or _TORN for line in lines)
    wanted = (item for item in items if item is None or _wanted(item, since, stream))
    if tail is not None:
        yield from _last_lines(wanted, tail)
        yield None
    yield from wanted


_TORN: Final = LogRecord(0, "", "")
"""Stands for a line that is not a record."""


def _wanted(record: LogRecord, since: int | None, stream: str | None) -> bool:
    return record is not _TORN and (since is None or record.time >= since) and (stream is None or record.stream == stream)


def _last_lines(items: Iterator[LogRecord | None], count: int) -> Iterator[LogRecord]:
    """Return the records of the last lines that exist now, each with all its parts."""
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
