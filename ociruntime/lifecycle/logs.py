"""The log of a supervised container, while it is written and afterwards."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from typing import Final

from ..engine.processes import ended_within
from ..errors import StateError
from ..logs import LogRecord, read
from ..state import Entry
from .supervise import request, supervisor_of

LOOK: Final = 0.1
"""Seconds between two looks at a log that is followed."""


class Log:
    """A log to read. Arguments and errors are those of `Container.logs`."""

    def __init__(self, entry: Entry, *, follow: bool, since: datetime | int | None, tail: int | None, stream: str | None) -> None:
        document = self._document = entry.read()
        if "log" not in document:
            raise StateError(f"container {entry.id!r} has no log: create it with a supervisor")
        if tail is not None and tail < 0:
            raise ValueError(f"tail is {tail}, not a count")
        if stream not in (None, "stdout", "stderr"):
            raise ValueError(f"{stream!r} is no stream: use stdout or stderr")
        path, style = document["log"]
        _check(entry, path, follow=follow)
        if isinstance(since, datetime):
            since = round(since.timestamp() * 1e6) * 1000
        rotated = path == str(entry.path / "log")
        self.items = read(path, style, rotated=rotated, since=since, tail=tail, stream=stream)
        """Its records, and None whenever all of it has been read."""
        self._follow = follow

    def writer(self) -> int | None:
        """A pidfd of the process whose end is the log's; None when nobody writes it any more, or nobody wants to wait."""
        return supervisor_of(self._document) if self._follow else None


def _check(entry: Entry, path: str, *, follow: bool) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if follow:
            return  # it is being rotated, perhaps
        raise StateError(f"container {entry.id!r}: its log {path} is not there any more") from None
    if not stat.S_ISREG(mode):
        raise StateError(f"container {entry.id!r}: its log {path} is no regular file, and cannot be read again")


def logs(entry: Entry, *, follow: bool, since: datetime | int | None, tail: int | None, stream: str | None) -> Iterator[LogRecord]:
    """Read a log. Arguments and errors are those of `Container.logs`."""
    return _records(Log(entry, follow=follow, since=since, tail=tail, stream=stream))


def _records(log: Log) -> Iterator[LogRecord]:
    writer = log.writer()
    try:
        last = writer is None
        with closing(log.items) as items:
            for record in items:
                if record is not None:
                    yield record
                elif last:
                    return
                else:
                    assert writer is not None, "somebody to wait for"
                    last = ended_within(writer, LOOK)
    finally:
        if writer is not None:
            os.close(writer)


def reopen(entry: Entry) -> None:
    """Let the supervisor open the log again. Errors are those of `Container.reopen_log`."""
    if "supervisor" not in entry.read():
        raise StateError(f"container {entry.id!r} has no supervisor, and so no log")
    request(entry, "reopen the log of", reopenLog=True)
