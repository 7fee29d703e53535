"""The streams of a supervised container: pipes, or the master of its terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import termios
from collections.abc import Callable

from .loop import ERR, HUP, IN, OUT, Loop

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
        """Read what has been printed so far. It is bounded, because a process that survives the init process may print for ever."""
        for fd in tuple(self._sources):
            left = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
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
