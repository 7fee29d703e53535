"""The log driver: writes what a container prints to its log, one entry for each line, in one of three formats.

It never waits for the log. An entry that cannot be written is counted as lost.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator

from ..files import open_regular

MAX_LINE = 16384
"""Bytes of a line in one entry. Further entries hold the rest."""
PARTIAL_AFTER = 0.25
"""Seconds that the beginning of a line waits for its end before it is written as a partial entry."""
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def format_time(now: int) -> bytes:
    """Return Unix nanoseconds in the format of RFC 3339, in UTC."""
    seconds, nanoseconds = divmod(now, 10**9)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), nanoseconds)


def encode_kubernetes(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    return b"%s %s %s %s\n" % (when, stream, b"P" if partial else b"F", text)


def encode_basic(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    return b"%s %s %s\n" % (when, stream, text)


def encode_json(when: bytes, stream: bytes, text: bytes, partial: bool) -> bytes:
    # Bytes that are not UTF-8 become lone surrogates, which a reader decodes with "surrogateescape".
    entry = {"time": when.decode(), "stream": stream.decode(), "log": text.decode("utf-8", "surrogateescape")}
    return json.dumps({**entry, "partial": True} if partial else entry).encode() + b"\n"


ENCODERS: dict[str, Callable[[bytes, bytes, bytes, bool], bytes]] = {
    "kubernetes": encode_kubernetes,
    "json": encode_json,
    "basic": encode_basic,
}
"""Entry encoders, one for each of `ociruntime.supervisor.protocol.LOG_FORMATS`."""


class LineSplitter:
    """Splits one stream into lines and parts of lines."""

    def __init__(self) -> None:
        self._rest = b""
        self.waiting_since = 0.0
        """When the incomplete line began to wait, by the monotonic clock; 0 without one."""
        self._continued = False
        """Whether a part of the incomplete line was returned."""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield lines and parts of lines, and whether each is a part that another one follows."""
        complete, newline, rest = data.rpartition(b"\n")
        lines = (self._rest + complete).split(b"\n") if newline else []
        self._rest = rest if newline else self._rest + rest
        if self._rest and (newline or not self.waiting_since):
            self.waiting_since = time.monotonic()
        for line in lines:
            yield from self._split_long(line)
            yield line[self._split_at :], False
            self._continued = False
        if len(self._rest) > MAX_LINE:
            line = self._rest
            yield from self._split_long(line)
            self._rest = line[self._split_at :]
        if not self._rest:
            self.waiting_since = 0.0

    def _split_long(self, line: bytes) -> Iterator[tuple[bytes, bool]]:
        self._split_at = 0
        while len(line) - self._split_at > MAX_LINE:
            end = self._split_at + MAX_LINE
            for back in range(4):  # not in the middle of a UTF-8 sequence
                if line[end - back] & 0xC0 != 0x80:
                    end -= back
                    break
            self._continued = True
            yield line[self._split_at : end], True
            self._split_at = end

    def flush(self, *, last: bool) -> Iterator[tuple[bytes, bool]]:
        """Yield the incomplete line as a part, or with ``last``, at the end of the stream, as the end of its line."""
        rest, self._rest, self.waiting_since = self._rest, b"", 0.0
        if rest or (last and self._continued):
            self._continued = not last
            yield rest, not last


class LogDriver:
    """Writes one log file. Raises OSError if the file cannot be opened.

    Args:
        log_format: one of `ociruntime.supervisor.protocol.LOG_FORMATS`.
        limit: size in bytes after which the file is renamed to ``.1`` and a new one begins; 0 for no limit.
    """

    def __init__(self, path: str, log_format: str, limit: int = 0) -> None:
        self.path = path
        self._encode = ENCODERS[log_format]
        self._has_partial = log_format != "basic"  # a basic entry cannot say that its line goes on
        self._limit = limit
        self._splitters: dict[bytes, LineSplitter] = {}
        self.lost_entries = self.lost_bytes = 0
        self.error = ""
        """Reason of the last loss."""
        self._torn = False
        """Whether the file ends in the middle of an entry."""
        # Non-blocking, because it may be a FIFO: its reader must not delay the container.
        self._fd = self._use(os.open(self.path, _FLAGS | os.O_CREAT, 0o640))

    def _use(self, fd: int) -> int:
        info = os.fstat(fd)
        self._regular = stat.S_ISREG(info.st_mode)
        self._size = info.st_size
        return fd

    def reopen(self) -> None:
        """Continue in a new file of the same name, after this one was renamed. Raises OSError: the old file stays in use."""
        fd = self._use(self._open_again())
        os.close(self._fd)
        self._fd = fd

    def _open_again(self) -> int:
        # The caller chose the first file. A container that can write to its directory must not choose the next one.
        if not self._regular:
            return os.open(self.path, _FLAGS)
        try:
            return os.open(self.path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o640)
        except FileExistsError:
            return open_regular(self.path, _FLAGS)

    def feed(self, stream: bytes, data: bytes) -> None:
        """Log what was read from a stream."""
        splitter = self._splitters.get(stream)
        if splitter is None:
            splitter = self._splitters[stream] = LineSplitter()
        self._write_lines(stream, splitter.feed(data))

    def _write_lines(self, stream: bytes, lines: Iterator[tuple[bytes, bool]]) -> None:
        when = format_time(time.time_ns())
        self._write(b"".join([self._encode(when, stream, text, partial) for text, partial in lines]))

    def due(self) -> float | None:
        """Return the seconds until `flush` has something to write; None if no line is incomplete."""
        waiting = [splitter.waiting_since for splitter in self._splitters.values() if splitter.waiting_since]
        return max(0.0, min(waiting) + PARTIAL_AFTER - time.monotonic()) if waiting and self._has_partial else None

    def flush(self, *, last: bool = False) -> None:
        """Write incomplete lines that have waited long enough; with ``last`` all of them."""
        for stream, splitter in self._splitters.items():
            since = splitter.waiting_since
            if last or (since and self._has_partial and time.monotonic() >= since + PARTIAL_AFTER):
                self._write_lines(stream, splitter.flush(last=last))

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
            self._count_loss(bytes(view), written, error)
        else:
            self._torn = False
            self._size += written

    def _count_loss(self, data: bytes, written: int, error: OSError) -> None:
        """Count the entries that were not written, and remove the beginning of an incomplete one from the file."""
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
                pass  # the next entry then begins on a new line

    def _rotate(self) -> None:
        try:
            os.rename(self.path, self.path + ".1")
            self.reopen()
        except OSError as error:
            self.error = os.strerror(error.errno or 0)  # the file grows beyond the limit
