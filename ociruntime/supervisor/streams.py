"""The container's streams: pipes, or the master of its terminal."""

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
"""Bytes of the current line that a new client of a terminal gets to see."""
_INPUT = 65536
"""Bytes of input that may wait for the container to read them."""


class Streams:
    """What the container prints goes to ``printed(stream, data)``; what is typed waits until it reads it.

    Args:
        fed: called when input is taken again, or will never be.
    """

    def __init__(self, loop: Loop, printed: Callable[[bytes, bytes], None], fed: Callable[[], None]) -> None:
        self._loop = loop
        self._printed = printed
        self._fed = fed
        self._sources: dict[int, bytes] = {}
        self._stdin = -1
        self._terminal = False
        self._input = bytearray()
        self._ending = False
        self.current_line = bytearray()

    # ---- opening ----

    def open_pipes(self, owner: int) -> list[int]:
        """Make stdin, stdout and stderr; gives the container's ends. Who has ``owner`` as its uid can open them again by path."""
        theirs = []
        for number in range(3):
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ours, other = (writer, reader) if number == 0 else (reader, writer)
            os.fchown(other, owner, -1)
            os.set_blocking(ours, False)
            theirs.append(other)
            if number == 0:
                self._stdin = ours
                self._watch_stdin()
            else:
                self._add(ours, (b"stdout", b"stderr")[number - 1])
        return theirs

    def open_terminal(self, master: int) -> None:
        """Take over the master of the container's terminal."""
        os.set_blocking(master, False)
        self._terminal, self._stdin = True, master
        self._add(master, b"stdout")

    def _add(self, fd: int, name: bytes) -> None:
        self._sources[fd] = name
        self._loop.watch(fd, IN, lambda events: self._source_ready(fd, events))

    def _watch_stdin(self) -> None:
        """Ask for room where there is something to write."""
        fd, wanted = self._stdin, OUT if self._input else 0
        if self._terminal:
            self._loop.watch(fd, IN | wanted, lambda events: self._source_ready(fd, events))
        else:
            self._loop.watch(fd, wanted, self._stdin_ready)

    # ---- output ----

    def _source_ready(self, fd: int, events: int) -> None:
        if events & OUT:
            self._flush_input()
        if events & (IN | HUP | ERR):
            self._read(fd)

    def _read(self, fd: int) -> int:
        """Read once; gives how much was there."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # nobody has the terminal open any more
        if not data:
            self._close_source(fd)
            return 0
        if self._terminal:
            self.current_line += data
            del self.current_line[: max(self.current_line.rfind(b"\n") + 1, len(self.current_line) - _LINE)]
        self._printed(self._sources[fd], data)
        return len(data)

    def _close_source(self, fd: int) -> None:
        self._loop.forget(fd)
        del self._sources[fd]
        if fd == self._stdin:
            self._drop_input()
        os.close(fd)

    @property
    def open(self) -> bool:
        """Whether output can still come."""
        return bool(self._sources)

    def drain(self) -> None:
        """Read everything that is there now; what survives the container's first process may write for ever."""
        for fd in tuple(self._sources):
            left = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
            while left > 0 and (read := self._read(fd)):
                left -= read

    # ---- input ----

    @property
    def hungry(self) -> bool:
        """Whether input is taken: it is thrown away when the container reads no more."""
        return len(self._input) < _INPUT

    def type(self, data: bytes) -> None:
        if self._stdin >= 0 and not self._ending:
            self._input += data
            self._flush_input()

    def end_input(self) -> None:
        """Let the container read an end of file behind what was typed. A terminal has no such end."""
        if not self._terminal and self._stdin >= 0:
            self._ending = True
            self._flush_input()

    def _stdin_ready(self, events: int) -> None:
        if events & ERR:
            self._close_stdin()  # nobody reads it any more
        else:
            self._flush_input()

    def _flush_input(self) -> None:
        if self._stdin < 0:
            return
        was_hungry = self.hungry
        try:
            while self._input:
                del self._input[: os.write(self._stdin, self._input)]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            if not self._terminal:
                self._close_stdin()
            self._drop_input()
            return
        if self._ending and not self._input:
            self._close_stdin()
            return
        self._watch_stdin()
        if was_hungry != self.hungry:
            self._fed()

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and not self._terminal:
            self._loop.forget(self._stdin)
            os.close(self._stdin)
            self._drop_input()

    def _drop_input(self) -> None:
        self._stdin = -1
        self._input.clear()
        self._fed()

    # ---- the terminal ----

    def resize(self, rows: object, columns: object) -> None:
        """Raises OSError when there is no terminal, ValueError for what is no size."""
        if not (isinstance(rows, int) and isinstance(columns, int) and 0 <= rows < 1 << 16 and 0 <= columns < 1 << 16):
            raise ValueError(f"height and width are numbers from 0 to {(1 << 16) - 1}")
        if not self._terminal or self._stdin < 0:
            raise OSError(errno.ENOTTY, "the container has no terminal")
        fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))

    def close(self) -> None:
        """Close everything; who still writes gets SIGPIPE, or a hang-up."""
        for fd in tuple(self._sources):
            self._close_source(fd)
        self._close_stdin()
