"""Writing a container's log: one entry for a line, in one of three formats. What cannot be written is counted, never waited for."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator

from ..files import open_regular

MAX_LINE = 16384
"""Bytes of a line that go into one entry; the rest follows in further ones."""
PATIENCE = 0.25
"""Seconds that the beginning of a line waits for its end before it is written as a part."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def stamp(now: int) -> bytes:
    """Unix nanoseconds as RFC 3339 in UTC."""
    seconds, nanoseconds = divmod(now, 10**9)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanoseconds)


def kubernetes(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    return b"%s %s %s %s\n" % (when, stream, b"P" if partial else b"F", text)


def basic(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    return b"%s %s %s\n" % (when, stream, text)


def json_line(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    # What is no UTF-8 becomes lone surrogates, which Python's "surrogateescape" turns into the same bytes again.
    entry = {"time": when.decode(), "stream": stream.decode(), "log": text.decode("utf-8", "surrogateescape")}
    return json.dumps({**entry, "partial": True} if partial else entry).encode() + b"\n"


FORMATS: dict[str, Callable[[bytes, bytes, bytes, bool], bytes]] = {"kubernetes": kubernetes, "json": json_line, "basic": basic}


class Lines:
    """Cuts one stream into lines."""

    def __init__(self) -> None:
        self.rest = b""
        self.since = 0.0
        """When the rest began to wait, by the monotonic clock."""
        self.continued = False
        """Whether a part of this line has been given already."""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Lines and parts of lines, and whether it is a part."""
        whole, newline, rest = data.rpartition(b"\n")
        lines = (self.rest + whole).split(b"\n") if newline else []
        self.rest = rest if newline else self.rest + rest
        if self.rest and (newline or not self.since):
            self.since = time.monotonic()
        for line in lines:
            yield from self._cut(line)
            yield line[self._at :], False
            self.continued = False
        if len(self.rest) > MAX_LINE:
            line = self.rest
            yield from self._cut(line)
            self.rest = line[self._at :]
        if not self.rest:
            self.since = 0.0

    def _cut(self, line: bytes) -> Iterator[tuple[bytes, bool]]:
        self._at = 0
        while len(line) - self._at > MAX_LINE:
            end = self._at + MAX_LINE
            for back in range(4):  # not in the middle of a character
                if line[end - back] & 0xC0 != 0x80:
                    end -= back
                    break
            self.continued = True
            yield line[self._at : end], True
            self._at = end

    def flush(self, *, last: bool) -> Iterator[tuple[bytes, bool]]:
        """What waits, as a part; at the end of the stream as the end of its line."""
        rest, self.rest, self.since = self.rest, b"", 0.0
        if rest or (last and self.continued):
            self.continued = not last
            yield rest, not last


class Log:
    """One log file. Raises OSError when it cannot be opened."""

    def __init__(self, path: str, style: str, limit: int = 0) -> None:
        self.path = path
        self._encode = FORMATS[style]
        self._holds_back = style == "basic"  # which has no way to say that a line goes on
        self._limit = limit
        """Bytes behind which the file becomes ``.1`` and a new one begins; 0: never."""
        self._lines: dict[bytes, Lines] = {}
        self.lost_entries = self.lost_bytes = 0
        self.error = ""
        self._torn = False
        # Non-blocking for the sake of a FIFO: its reader must not keep the container waiting.
        self._fd = self._take(os.open(self.path, _FLAGS | os.O_CREAT, 0o640))

    def _take(self, fd: int) -> int:
        info = os.fstat(fd)
        self._regular = stat.S_ISREG(info.st_mode)
        self._size = info.st_size
        return fd

    def reopen(self) -> None:
        """Go on in a new file of the same name, after somebody renamed this one. Raises OSError; the old one then stays."""
        fd = self._take(self._open_again())
        os.close(self._fd)
        self._fd = fd

    def _open_again(self) -> int:
        # The caller chose what the first file is. The container may be able to write to its directory, and chooses nothing.
        if not self._regular:
            return os.open(self.path, _FLAGS)
        try:
            return os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o640)
        except FileExistsError:
            return open_regular(self.path, _FLAGS)

    def feed(self, stream: bytes, data: bytes) -> None:
        """Write what a stream printed."""
        lines = self._lines.get(stream)
        if lines is None:
            lines = self._lines[stream] = Lines()
        self._write_lines(stream, lines.feed(data))

    def _write_lines(self, stream: bytes, lines: Iterator[tuple[bytes, bool]]) -> None:
        when = stamp(time.time_ns())
        self._write(b"".join([self._encode(when, stream, text, partial) for text, partial in lines]))

    def due(self) -> float | None:
        """Seconds until `flush` has something to do; None when nothing waits."""
        waiting = [lines.since for lines in self._lines.values() if lines.since]
        return max(0.0, min(waiting) + PATIENCE - time.monotonic()) if waiting and not self._holds_back else None

    def flush(self, *, last: bool = False) -> None:
        """Write what has waited long enough for the end of its line; with ``last`` everything."""
        for stream, lines in self._lines.items():
            if last or (lines.since and not self._holds_back and time.monotonic() >= lines.since + PATIENCE):
                self._write_lines(stream, lines.flush(last=last))

    def _write(self, data: bytes) -> None:
        if not data:
            return
        if self._limit and self._size + len(data) > self._limit and self._size:
            self._rotate()
        view = memoryview(b"\n" + data if self._torn else data)
        written = 0
        try:
            while written < len(view):
                written += os.write(self._fd, view[written:])
        except OSError as error:
            self._lose(bytes(view), written, error)
        else:
            self._torn = False
            self._size += written

    def _lose(self, data: bytes, written: int, error: OSError) -> None:
        """Count what was not written, and take the beginning of an entry that has no end out of the file."""
        kept = data.rfind(b"\n", 0, written) + 1
        self.lost_entries += data.count(b"\n", kept)
        self.lost_bytes += len(data) - kept
        self.error = os.strerror(error.errno or 0)
        self._size += kept
        self._torn = written > kept
        if self._torn and self._regular:
            try:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - (written - kept))
                self._torn = False
            except OSError:
                pass  # then the next entry begins on a new line

    def _rotate(self) -> None:
        try:
            os.rename(self.path, self.path + ".1")
            self.reopen()
        except OSError as error:
            self.error = os.strerror(error.errno or 0)  # it grows on

    def close(self) -> None:
        self.flush(last=True)
        os.close(self._fd)
