"""Terminals: the master of a container's terminal, and the connection between it and the user's terminal."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Literal

from .arguments import check_fd, check_window
from .errors import UnsupportedError
from .files import Unpicklable
from .streams import EndOfInput, end_of_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["DetachKeys", "Terminal", "check_user_terminal", "interact"]

_CHUNK: Final = 1 << 16
_DRAIN_TIME: Final = 1.0
"""Seconds to wait for output after the end of the process: the kernel delivers it a moment later."""
_DRAIN_SIZE: Final = 1 << 20
"""Bytes to read after the end of the process, more than a terminal holds: a process that outlives it may print forever."""


class Terminal(Unpicklable, io.RawIOBase):
    """The master of a container's terminal, as a raw file: it writes what is typed, and reads what is printed.

    Reading returns ``b""`` after the last process has closed the terminal. Closing the master hangs up the container's terminal.
    """

    _instead = "send its descriptor over a Unix socket (socket.send_fds)"

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = -1
        check_fd("fd", fd)
        self._fd = fd

    def fileno(self) -> int:
        if self._fd < 0:
            raise ValueError("the terminal is closed")
        return self._fd

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        try:
            return os.readv(self.fileno(), [buffer])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:
                return 0  # the last process has closed the terminal
            raise

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return None

    def resize(self, rows: int, columns: int) -> None:
        """Set the size in characters. If it changes, the foreground processes of the terminal get SIGWINCH."""
        check_window(rows, columns)
        termios.tcsetwinsize(self.fileno(), (rows, columns))

    @property
    def size(self) -> tuple[int, int]:
        """The size in characters: rows and columns."""
        columns, rows = os.get_terminal_size(self.fileno())
        return rows, columns

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        super().close()


class DetachKeys:
    """Finds the key sequence that detaches in the input. Input that may be its beginning is held back.

    Args:
        keys: single characters, and ``ctrl-`` with a letter or one of ``@[\\]^_``, separated by commas; empty for no sequence.

    Raises:
        ValueError: ``keys`` is not valid.
    """

    def __init__(self, keys: str = "ctrl-p,ctrl-q") -> None:
        self._keys = bytes(map(_key, keys.split(","))) if keys else b""
        self._held_back = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """Return the input to pass on, and whether the sequence is complete."""
        if not self._keys:
            return typed, False
        data = self._held_back + typed
        at = data.find(self._keys)
        if at >= 0:
            return data[:at], True
        keep = next(n for n in range(min(len(self._keys) - 1, len(data)), -1, -1) if data.endswith(self._keys[:n]))
        self._held_back = data[len(data) - keep :]
        return data[: len(data) - keep], False

    def flush(self) -> bytes:
        """Return what is held back, at the end of the input."""
        data, self._held_back = self._held_back, b""
        return data


def _key(name: str) -> int:
    if len(name) == 1 and name.isascii():
        return ord(name)
    control = name.removeprefix("ctrl-").upper()
    if name.startswith("ctrl-") and len(control) == 1 and "@" <= control <= "_":
        return ord(control) & 0x1F
    raise ValueError(f"{name!r} is not a valid key: use a character, or ctrl- with a letter or one of @[\\]^_")


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode for the block, and back while this process is stopped. No effect if it is not a terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)

    def change(how: Callable[[], object]) -> None:
        try:
            how()
        except termios.error as error:
            if error.args[0] != errno.EIO:  # a terminal that was hung up cannot be changed
                raise

    def restore() -> None:
        change(lambda: termios.tcsetattr(fd, termios.TCSANOW, before))  # does not wait for the output

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def go_on(number: int, frame: FrameType | None) -> None:
        change(lambda: tty.setraw(fd, termios.TCSANOW))  # a hang-up comes with a SIGCONT

    handlers = {signal.SIGTSTP: signal.signal(signal.SIGTSTP, stop), signal.SIGCONT: signal.signal(signal.SIGCONT, go_on)}
    try:
        tty.setraw(fd, termios.TCSANOW)  # keeps the input that was typed before
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        restore()


@contextmanager
def following_size(fd: int, resize: Callable[[int, int], None]) -> Iterator[None]:
    """Call ``resize`` with the size of a terminal, now and after each change. No effect if it is not a terminal."""
    if not os.isatty(fd):
        yield
        return

    def follow(number: int = 0, frame: FrameType | None = None) -> None:
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            return  # it was hung up, as the next read reports
        if rows and columns:
            resize(rows, columns)

    before = signal.signal(signal.SIGWINCH, follow)
    try:
        follow()
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def check_user_terminal() -> None:
    """Check that the standard streams can be those of a user at a terminal.

    Raises:
        UnsupportedError: this process is a Jupyter kernel, whose standard streams are those of the server.
        ValueError: this is not the main thread, the only one in which Python handles signals of a terminal.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(shell, "kernel", None) is not None:
        raise UnsupportedError(
            "an interactive terminal is not available in a Jupyter kernel, whose standard streams are those of the server: "
            "pass capture_output=True, or use popen(terminal=True)"
        )
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "an interactive terminal needs the main thread, which receives its signals: "
            "pass capture_output=True, or use popen(terminal=True)"
        )


End = Literal["ended", "detached", "hung up"]
"""Why `interact` returned: the container's side has ended, the detach keys were typed, or the user's terminal was hung up."""


def interact(
    stream: int,
    resize: Callable[[int, int], None] | None,
    *,
    errors: int = -1,
    ended: int = -1,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    end_input: Callable[[], None] | None = None,
    detach: DetachKeys | None = None,
) -> End:
    """Connect the user's terminal, or the files in its place, with a container until the container ends.

    It must run in the main thread, because it handles SIGWINCH. The user's terminal is in raw mode meanwhile, and always restored.
    A file in place of the user's terminal gets lines that end as the program writes them, without carriage returns.

    Args:
        stream: the master of a terminal, or the socket of an attachment.
        resize: takes rows and columns when the size of the user's terminal changes; None if the container has no terminal.
        errors: a file descriptor for the container's stderr; -1 if it is part of ``stream``.
        ended: a pidfd. After the end of its process, only output that was written before is waited for.
        stdin, stdout, stderr: the caller's file descriptors; -1 as stdin for no input.
        end_input: called at the end of the input. By default the key for the end of file is typed.
        detach: the keys that end this call.

    Raises:
        UnsupportedError, ValueError: as `check_user_terminal`.
    """
    check_user_terminal()
    with ExitStack() as stack:
        if resize is not None:
            if stdin >= 0:
                stack.enter_context(raw_mode(stdin))
            stack.enter_context(following_size(stdin if stdin >= 0 and os.isatty(stdin) else stdout, resize))
        stack.callback(os.set_blocking, stream, os.get_blocking(stream))
        os.set_blocking(stream, False)  # the output of a program that does not read its input is still shown
        sources = {stream: stdout, **({errors: stderr} if errors >= 0 else {})}
        lines = _Lines() if resize is not None and not os.isatty(stdout) else None
        return _Relay(stream, sources, ended, _Keyboard(stdin, end_input, detach), lines).run()


class _Keyboard:
    """The input from the user, until the container takes it."""

    def __init__(self, stdin: int, end_input: Callable[[], None] | None, detach: DetachKeys | None) -> None:
        self.stdin = stdin
        """-1 after the end of the input."""
        self._terminal = stdin >= 0 and os.isatty(stdin)
        self._end_input = end_input
        self._detach = detach or DetachKeys("")
        self._typed = b""
        self._last = b""
        self._ending = False
        self._end = EndOfInput()

    @property
    def waiting(self) -> bool:
        return bool(self._typed) or self._ending

    def read(self, stream: int, hung_up: bool) -> End | None:
        data = _read(self.stdin)
        if data:
            self._typed, detached = self._detach.feed(data)
            if not detached:
                return None
            self.write(stream)
            return "detached"
        if data is None:
            return None
        if hung_up and self._terminal:
            return "hung up"  # this is not an end of file: it does not end the program's input
        self.stdin = -1
        self._typed, self._ending = self._detach.flush(), True
        return None

    def write(self, stream: int) -> None:
        """Write as much input as the container takes."""
        if self._typed:
            taken = _write(stream, self._typed)
            if taken:
                self._last = self._typed[taken - 1 : taken]
            self._typed = self._typed[taken:]
        if self._ending and not self._typed:
            self._ending = False
            if self._end_input is not None:
                self._end_input()
            else:
                self._typed = end_of_file(self._last)
                self._end.typed()

    @property
    def left(self) -> float | None:
        """The seconds until the end of file is to be typed again; None if it is not."""
        return None if self.waiting else self._end.left()

    def end_again(self) -> None:
        """Type the end of file again when it is time."""
        if self.left == 0:
            self._typed = end_of_file(b"")
            self._end.typed()


class _Lines:
    """The output of a terminal without the carriage returns that it puts before line feeds (ONLCR in termios(3))."""

    def __init__(self) -> None:
        self._held = b""

    def convert(self, data: bytes) -> bytes:
        """Return the next part of the output; empty bytes are its end."""
        held, self._held = self._held, b"\r" if data.endswith(b"\r") else b""
        return (held + data.removesuffix(b"\r")).replace(b"\r\n", b"\n")


class _Relay:
    """Copies the container's output to the caller's file descriptors, and the user's input to the container."""

    def __init__(self, stream: int, sources: dict[int, int], ended: int, keyboard: _Keyboard, lines: _Lines | None) -> None:
        self._lines = lines
        """What converts the output of ``stream``; None if it stays as it is."""
        self._stream = stream
        self._sources = sources
        self._terminals = {fd for fd in sources.values() if os.isatty(fd)}
        self._ended = ended
        self._keyboard = keyboard

    def run(self) -> End:
        time_left, size_left = None, _DRAIN_SIZE
        while self._sources:
            began = time.monotonic()
            events = self._poll(time_left)
            if time_left is not None:
                time_left -= time.monotonic() - began
            if self._ended in events:
                self._ended, time_left = -1, _DRAIN_TIME
            for source in [source for source in self._sources if events.get(source, 0) & ~select.POLLOUT]:
                data = _read(source)
                shown = data
                if data is not None and source == self._stream and self._lines is not None:
                    shown = self._lines.convert(data)
                if shown and not self._show(shown, self._sources[source]):
                    return "hung up"
                if data == b"":
                    del self._sources[source]
                size_left -= len(data or b"") if time_left is not None else 0
            if time_left is not None and (time_left <= 0 or size_left <= 0):
                break
            self._keyboard.end_again()
            if events.get(self._stream, 0) & select.POLLOUT:
                self._keyboard.write(self._stream)
            if self._keyboard.stdin in events:
                hung_up = bool(events[self._keyboard.stdin] & (select.POLLHUP | select.POLLERR))
                if (end := self._keyboard.read(self._stream, hung_up)) is not None:
                    return end
        return "ended"

    def _poll(self, time_left: float | None) -> dict[int, int]:
        keyboard, poller = self._keyboard, select.poll()
        for source in self._sources:
            poller.register(source, select.POLLIN | (select.POLLOUT if source == self._stream and keyboard.waiting else 0))
        if keyboard.stdin >= 0 and not keyboard.waiting and self._stream in self._sources:
            poller.register(keyboard.stdin, select.POLLIN)
        if self._ended >= 0:
            poller.register(self._ended, select.POLLIN)
        limits = [max(0.0, limit) for limit in (time_left, keyboard.left) if limit is not None]
        return dict(poller.poll(min(limits) * 1000 + 1 if limits else None))

    def _show(self, data: bytes, fd: int) -> bool:
        """Write output. Return False if the user's terminal was hung up. Raises OSError for every other error."""
        try:
            _write_all(fd, data)
        except OSError as error:
            if error.errno != errno.EIO or fd not in self._terminals:
                raise
            return False
        return True


def _read(fd: int) -> bytes | None:
    """Return the available data; empty at the end, None if there is none yet."""
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.EIO, errno.ECONNRESET):
            return b""
        raise


def _write(fd: int, data: bytes) -> int:
    try:
        return os.write(fd, data)
    except BlockingIOError:
        return 0
    except (BrokenPipeError, ConnectionResetError):
        return len(data)  # the other side is closed, as the next read reports


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # another process that shares the file has made it non-blocking
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
