"""Reading a container's log, in all three formats that a supervisor writes."""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Final, NamedTuple

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


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from (line[:-1] for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return


class _Follower:
    """Reads a log that grows, through truncation and rotation; ``pause`` waits a moment and says whether the writer has ended."""

    def __init__(self, path: str, pause: Callable[[], bool]) -> None:
        self._path = path
        self._pause = pause
        self._file: io.FileIO | None = None
        self._rest = b""

    def __iter__(self) -> Iterator[bytes]:
        last_look = False
        try:
            while True:
                data = self._read()
                if data:
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    yield from lines
                elif not self._moved():
                    if last_look:
                        return
                    last_look = self._pause()
        finally:
            if self._file is not None:
                self._file.close()

    def _read(self) -> bytes:
        if self._file is None:
            try:
                self._file = io.FileIO(self._path)
            except FileNotFoundError:
                return b""
        elif os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # whoever copied it has cut it off
            self._rest = b""
        return self._file.read(1 << 16) or b""

    def _moved(self) -> bool:
        """Whether there is another file of this name by now, which is then read."""
        if self._file is None:
            return False
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        if os.path.samestat(there, os.fstat(self._file.fileno())):
            return False
        if data := self._file.read(1 << 16):  # written between our last look and the rename
            self._file.seek(-len(data), os.SEEK_CUR)
            return True
        self._file.close()
        self._file, self._rest = None, b""
        return True


def read(
    path: str,
    style: str,
    *,
    rotated: bool,
    pause: Callable[[], bool] | None,
    since: int | None,
    tail: int | None,
    stream: str | None,
) -> Iterator[LogRecord]:
    """The records of a log. Arguments are those of `Container.logs`; with ``pause`` it is followed until that says so."""
    parts: list[Iterable[bytes]] = [_lines(f"{path}.1")] if rotated else []
    follower = iter(_Follower(path, pause)) if pause is not None else None
    if tail is None:
        found = _records(chain(*parts, follower if follower is not None else _lines(path)), style)
    else:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        old = _records(chain(*parts, _lines(path)), style)
        kept = _last_lines((r for r in old if _wanted(r, since, stream)), tail)
        if follower is None:
            yield from kept
            return
        found = chain(kept, _records(_skip(follower, size), style))
    yield from (record for record in found if _wanted(record, since, stream))


def _skip(lines: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Without the lines that lie within the first ``size`` bytes, which have been read already."""
    for line in lines:
        if size <= 0:
            yield line
        size -= len(line) + 1


def _records(lines: Iterable[bytes], style: str) -> Iterator[LogRecord]:
    return (record for line in lines if (record := parse(line, style)) is not None)


def _wanted(record: LogRecord, since: int | None, stream: str | None) -> bool:
    return (since is None or record.time >= since) and (stream is None or record.stream == stream)


def _last_lines(records: Iterable[LogRecord], count: int) -> Iterator[LogRecord]:
    """The last lines, each with all its parts."""
    lines: deque[list[LogRecord]] = deque(maxlen=count)
    open_: dict[str, list[LogRecord]] = {}
    for record in records:
        parts = open_.pop(record.stream, None)
        if parts is None:
            parts = []
            lines.append(parts)
        parts.append(record)
        if record.partial:
            open_[record.stream] = parts
    return chain.from_iterable(lines)
