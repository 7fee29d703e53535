"""Reading the log of a supervised container, in each format that the log driver writes, during its life and afterwards."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from typing import Final

import attrs

from ..arguments import check_bool, check_int, check_type, optional, shown
from ..engine.processes import ended_within
from ..errors import StateError
from ..files import NotRegularError, open_regular
from ..lifecycle.status import supervisor_of
from ..store import Entry
from .client import request
from .protocol import LOG

__all__ = ["LogReader", "LogRecord", "logs", "read_log", "reopen_log"]

POLL_INTERVAL: Final = 0.1
"""Seconds between two looks at a log that is followed."""


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
        seconds = self.datetime.replace(microsecond=0, tzinfo=None).isoformat()  # strftime does not pad years before 1000
        return f"{seconds}.{self.time % 10**9:09}Z"


def _parse_time(text: str) -> int:
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0")[:9])


def _parse_kubernetes(line: str) -> LogRecord:
    when, stream, kind, text = line.split(" ", 3)
    return LogRecord(_parse_time(when), stream, text, kind == "P")


def _parse_basic(line: str) -> LogRecord:
    when, stream, text = line.split(" ", 2)
    return LogRecord(_parse_time(when), stream, text)


def _parse_json(line: str) -> LogRecord:
    entry = json.loads(line)
    when, stream, text = entry["time"], entry["stream"], entry["log"]
    if not (isinstance(when, str) and isinstance(stream, str) and isinstance(text, str)):
        raise TypeError("time, stream and log are strings")
    return LogRecord(_parse_time(when), stream, text, entry.get("partial", False) is True)


_PARSERS: Final[dict[str, Callable[[str], LogRecord]]] = {
    "kubernetes": _parse_kubernetes,
    "basic": _parse_basic,
    "json": _parse_json,
}


def _parse(line: bytes, log_format: str) -> LogRecord | None:
    """Return the record of a line, or None for a torn one: on a full disk the writer counts the entry as lost."""
    try:
        return _PARSERS[log_format](line.decode("utf-8", "surrogateescape"))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class _Lines:
    """The lines of a log, and None whenever more are not there yet; the next step looks again, through truncation and rotation.

    The first None comes behind what is there now, also if the log grows faster than it is read.

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
            left = self._size()
            while True:
                if data := self._read():
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    yield from lines
                    if 0 < left <= len(data):
                        yield None
                    left -= len(data)
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

    def _size(self) -> int:
        size = 0
        for path in (self._path, f"{self._path}.1")[: 1 + self._rotated]:
            try:
                size += os.stat(path).st_size
            except FileNotFoundError:
                continue
        return size

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
        if data := self._file.read(1 << 16):  # written between the last read and the rename
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


def read_log(
    path: str, log_format: str, *, rotated: bool, since: int | None, tail: int | None, stream: str | None
) -> Generator[LogRecord | None]:
    """Yield the records of a log, and None whenever all of it has been read; the next step looks again."""
    lines = _Lines(path, rotated=rotated)
    items = (None if line is None else _parse(line, log_format) or _TORN for line in lines)
    selected = (item for item in items if item is None or _is_selected(item, since, stream))
    if tail is not None:
        yield from _last_lines(selected, tail)
        yield None
    yield from selected


_TORN: Final = LogRecord(0, "", "")
"""Stands for a line that is not a record."""


def _is_selected(record: LogRecord, since: int | None, stream: str | None) -> bool:
    return record is not _TORN and (since is None or record.time >= since) and (stream is None or record.stream == stream)


def _last_lines(items: Iterator[LogRecord | None], count: int) -> Iterator[LogRecord]:
    """Return the records of the last lines that exist now, each with all its parts."""
    lines: deque[list[LogRecord]] = deque(maxlen=count)
    incomplete: dict[str, list[LogRecord]] = {}
    while (record := next(items)) is not None:
        parts = incomplete.pop(record.stream, None)
        if parts is None:
            parts = []
            lines.append(parts)
        parts.append(record)
        if record.partial:
            incomplete[record.stream] = parts
    return chain.from_iterable(lines)


class LogReader:
    """Reads a container's log. Arguments and errors are those of `Container.logs`."""

    def __init__(self, entry: Entry, *, follow: bool, since: datetime | int | None, tail: int | None, stream: str | None) -> None:
        check_bool("follow", follow)
        optional(check_type, "since", since, (datetime, int), "a datetime or an int")
        optional(check_int, "tail", tail, 0, sys.maxsize)
        if stream not in (None, "stdout", "stderr"):
            raise ValueError(f"stream is {shown(stream)}: stdout or stderr is needed")
        document = self._document = entry.read()
        if "log_path" not in document:
            raise StateError(
                f"container {entry.id!r} has no log: it was created without a supervisor (supervise=True, --supervise)"
            )
        if tail is not None and tail < 0:
            raise ValueError(f"tail is {tail}, not a count")
        if stream not in (None, "stdout", "stderr"):
            raise ValueError(f"stream is {stream!r}: stdout or stderr is needed")
        path, log_format = document["log_path"], document["log_format"]
        _check(entry, path, follow=follow)
        if isinstance(since, datetime):
            since = round(since.timestamp() * 1e6) * 1000
        rotated = path == f"{entry.directory}/{LOG}"
        self.items = read_log(path, log_format, rotated=rotated, since=since, tail=tail, stream=stream)
        """The records, and None whenever all of the log has been read."""
        self._follow = follow

    def open_writer(self) -> int | None:
        """Return a pidfd of the process that writes the log; None if it has ended, or the log is not followed."""
        return supervisor_of(self._document) if self._follow else None


def _check(entry: Entry, path: str, *, follow: bool) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if follow:
            return  # it may be rotated just now
        raise StateError(f"the log of container {entry.id!r}: {path} no longer exists") from None
    if not stat.S_ISREG(mode):
        raise StateError(f"the log of container {entry.id!r}: {path} is not a regular file and cannot be read again")


def logs(entry: Entry, *, follow: bool, since: datetime | int | None, tail: int | None, stream: str | None) -> Iterator[LogRecord]:
    """Yield the records of a container's log. Arguments and errors are those of `Container.logs`."""
    return _follow(LogReader(entry, follow=follow, since=since, tail=tail, stream=stream))


def _follow(reader: LogReader) -> Iterator[LogRecord]:
    writer = reader.open_writer()
    try:
        has_ended = writer is None
        with closing(reader.items) as items:
            for record in items:
                if record is not None:
                    yield record
                elif has_ended:
                    return
                else:
                    assert writer is not None, "there is a writer that has not ended"
                    has_ended = ended_within(writer, POLL_INTERVAL)
    finally:
        if writer is not None:
            os.close(writer)


def reopen_log(entry: Entry) -> None:
    """Let the supervisor open the log again. Errors are those of `Container.reopen_log`."""
    if "supervisor" not in entry.read():
        raise StateError(f"cannot reopen the log of container {entry.id!r}: it has no supervisor")
    request(entry, "reopen the log of", reopenLog=True)
