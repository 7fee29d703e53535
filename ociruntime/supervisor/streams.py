"""The streams of a supervised container: pipes, or the master of its terminal; their log, and the event loop that serves them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import socket
import stat
import struct
import termios
import time
from collections.abc import Callable, Iterator

from ..files import open_regular, unread

IN, OUT, HUP, RDHUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLRDHUP, select.EPOLLERR


class Loop:
    """Calls a handler for the events of each watched file descriptor. The events always include HUP and ERR."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Watch a file descriptor for the events of ``mask``. A second call replaces the mask and the handler."""
        self._handlers[fd] = handler
        before = self._masks.get(fd)
        if before is None:
            self._poll.register(fd, mask)
        elif before != mask:
            self._poll.modify(fd, mask)
        self._masks[fd] = mask

    def unwatch(self, fd: int) -> None:
        """Stop watching a file descriptor. No effect if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._poll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        """Wait for events, at most ``timeout`` seconds, and handle them."""
        for fd, events in self._poll.poll(timeout):
            handler = self._handlers.get(fd)  # an earlier handler may have unwatched it
            if handler is not None:
                handler(events)


class Listener:
    """A listening socket in the loop.

    Args:
        accept: takes each connection.
        refuse: takes a connection for which no file descriptor is left. The connection is closed when it returns.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, accept: Callable[[socket.socket], None], refuse: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._accept = accept
        self._refuse = refuse
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        sock.setblocking(False)
        loop.watch(sock.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        try:
            self._accept(self._socket.accept()[0])
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse_one()  # a connection that stays in the queue would keep the loop busy

    def _refuse_one(self) -> None:
        os.close(self._spare)
        try:
            with self._socket.accept()[0] as peer:
                self._refuse(peer)
        except OSError:
            pass  # the peer has closed the connection
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()


_CHUNK = 16384
_LINE = 4096
"""Bytes of a terminal's current line that a new client gets."""
_INPUT = 65536
"""Bytes of input that may wait for the container to read them."""


class ContainerStreams:
    """Reads what the container prints, and writes the input of its clients to its stdin.

    Args:
        on_output: takes the name of a stream and what was read from it.
        on_input_change: called when `accepts_input` has become true.
    """

    def __init__(self, loop: Loop, on_output: Callable[[bytes, bytes], None], on_input_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_output = on_output
        self._on_input_change = on_input_change
        self._sources: dict[int, bytes] = {}
        """The names of the open streams, by the file descriptor."""
        self._stdin = -1
        self._is_terminal = False
        self._input = bytearray()
        self._ending = False
        """Whether stdin is closed after the waiting input."""
        self.current_line = bytearray()
        """The end of what a terminal shows, from the last newline on."""

    # ---- opening ----

    def open_pipes(self, owner: int) -> list[int]:
        """Make pipes for stdin, stdout and stderr, and return the container's ends.

        Args:
            owner: the uid that owns the pipes, so that its processes can open them again by path.
        """
        container_ends = []
        for number in range(3):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            own_end, container_end = (writer, reader) if number == 0 else (reader, writer)
            os.fchown(container_end, owner, -1)
            os.set_blocking(own_end, False)
            container_ends.append(container_end)
            if number == 0:
                self._stdin = own_end
                self._watch_stdin()
            else:
                self._add_source(own_end, (b"stdout", b"stderr")[number - 1])
        return container_ends

    def open_terminal(self, master: int) -> None:
        """Use the master of the container's terminal, and own it."""
        os.set_blocking(master, False)
        self._is_terminal, self._stdin = True, master
        self._add_source(master, b"stdout")

    def _add_source(self, fd: int, name: bytes) -> None:
        self._sources[fd] = name
        self._loop.watch(fd, IN, lambda events: self._source_ready(fd, events))

    def _watch_stdin(self) -> None:
        fd, mask = self._stdin, OUT if self._input else 0
        if self._is_terminal:
            self._loop.watch(fd, IN | mask, lambda events: self._source_ready(fd, events))
        else:
            self._loop.watch(fd, mask, self._stdin_ready)

    # ---- output ----

    def _source_ready(self, fd: int, events: int) -> None:
        if events & OUT:
            self._flush_input()
        if events & (IN | HUP | ERR):
            self._read(fd)

    def _read(self, fd: int) -> int:
        """Read once, and return the number of bytes."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the last writer has closed the terminal
        if not data:
            self._close_source(fd)
            return 0
        if self._is_terminal:
            self.current_line += data
            del self.current_line[: max(self.current_line.rfind(b"\n") + 1, len(self.current_line) - _LINE)]
        self._on_output(self._sources[fd], data)
        return len(data)

    def _close_source(self, fd: int) -> None:
        self._loop.unwatch(fd)
        del self._sources[fd]
        if fd == self._stdin:
            self._discard_input()
        os.close(fd)

    @property
    def is_open(self) -> bool:
        """Whether the container can still print."""
        return bool(self._sources)

    def drain(self) -> None:
        """Read what has been printed so far. It is bounded, because a process that outlives the init process may print forever."""
        for fd in tuple(self._sources):
            left = unread(fd)
            while left > 0 and (size := self._read(fd)):
                left -= size

    # ---- input ----

    @property
    def accepts_input(self) -> bool:
        """Whether there is room for input. It is also true after stdin was closed: input is discarded then."""
        return len(self._input) < _INPUT

    def write_input(self, data: bytes) -> None:
        """Pass input on to the container."""
        if self._stdin >= 0 and not self._ending:
            self._input += data
            self._flush_input()

    def end_input(self) -> None:
        """Close the container's stdin after the waiting input. No effect on a terminal, which has no such end."""
        if not self._is_terminal and self._stdin >= 0:
            self._ending = True
            self._flush_input()

    def _stdin_ready(self, events: int) -> None:
        if events & ERR:
            self._close_stdin()  # the last reader has closed the pipe
        else:
            self._flush_input()

    def _flush_input(self) -> None:
        if self._stdin < 0:
            return
        accepted = self.accepts_input
        try:
            while self._input:
                del self._input[: os.write(self._stdin, self._input)]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            if not self._is_terminal:
                self._close_stdin()
            self._discard_input()
            return
        if self._ending and not self._input:
            self._close_stdin()
            return
        self._watch_stdin()
        if accepted != self.accepts_input:
            self._on_input_change()

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and not self._is_terminal:
            self._loop.unwatch(self._stdin)
            os.close(self._stdin)
            self._discard_input()

    def _discard_input(self) -> None:
        self._stdin = -1
        self._input.clear()
        self._on_input_change()

    # ---- the terminal ----

    def resize(self, rows: object, columns: object) -> None:
        """Set the size of the terminal. Raises OSError without a terminal, ValueError for an invalid size."""
        if not (isinstance(rows, int) and isinstance(columns, int) and 0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
            raise ValueError(f"height and width are numbers from 0 to {(1 << 16) - 1}")
        if not self._is_terminal or self._stdin < 0:
            raise OSError(errno.ENOTTY, "the container has no terminal")
        fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Close everything. A process that still writes gets SIGPIPE, or a hang-up of the terminal."""
        for fd in tuple(self._sources):
            self._close_source(fd)
        self._close_stdin()


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
            for distance in range(4):  # not in the middle of a UTF-8 sequence
                if line[end - distance] & 0xC0 != 0x80:
                    end -= distance
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
        self._has_partial = log_format != "basic"  # a basic entry cannot mark a line that continues
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
