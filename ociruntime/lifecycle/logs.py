"""The log of a supervised container, while it is written and afterwards."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from ..errors import StateError
from ..logs import LogRecord, read
from ..state import Entry
from .supervise import request, supervisor_of

_LOOK: Final = 100
"""Milliseconds between two looks at a log that is followed."""


def logs(entry: Entry, *, follow: bool, since: datetime | int | None, tail: int | None, stream: str | None) -> Iterator[LogRecord]:
    """Read a log. Arguments and errors are those of `Container.logs`."""
    document = entry.read()
    if "log" not in document:
        raise StateError(f"container {entry.id!r} has no log: create it with a supervisor")
    if tail is not None and tail < 0:
        raise ValueError(f"tail is {tail}, not a count")
    path, style = document["log"]
    if isinstance(since, datetime):
        since = round(since.timestamp() * 1e6) * 1000
    rotated = path == str(entry.path / "log")
    if not follow:
        return read(path, style, rotated=rotated, pause=None, since=since, tail=tail, stream=stream)
    return _followed(supervisor_of(document), path, style, rotated, since, tail, stream)


def reopen(entry: Entry) -> None:
    """Let the supervisor open the log again. Errors are those of `Container.reopen_log`."""
    if "supervisor" not in entry.read():
        raise StateError(f"container {entry.id!r} has no supervisor, and so no log")
    request(entry, "reopen the log of", reopenLog=True)


def _followed(
    writer: int | None, path: str, style: str, rotated: bool, since: int | None, tail: int | None, stream: str | None
) -> Iterator[LogRecord]:
    def pause() -> bool:
        if writer is None:
            return True
        poller = select.poll()
        poller.register(writer, select.POLLIN)
        return bool(poller.poll(_LOOK))

    try:
        yield from read(path, style, rotated=rotated, pause=pause, since=since, tail=tail, stream=stream)
    finally:
        if writer is not None:
            os.close(writer)
