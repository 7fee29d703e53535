"""Terminals: the master's side of a container's, and what connects it with the terminal that we sit at."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Literal

from .pickling import Unpicklable
from .streams import EndOfInput, end_of_file

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["DetachKeys", "Terminal", "interact"]

_CHUNK: Final = 1 << 16
_LAST_WORDS: Final = 1.0
"""Seconds to wait for output behind the end of the process: the kernel hands it over a moment later."""
_LAST_BYTES: Final = 1 << 20
"""Bytes to read behind the end of the process, more than a terminal holds: what survives it may write for ever."""


class Terminal(Unpicklable, io.RawIOBase):
    """The master of a container's terminal, a raw file: what is written is typed in, what is read was printed.

    Reading gives ``b""`` when nobody has the terminal open any more. Closing it hangs the container's terminal up.
    """

    _instead = "send its descriptor over a Unix socket (socket.send_fds)"

    def __init__(self, fd: int) -> None:
        super().__init__()
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
                return 0  # nobody has the other side open: the kernel's way to say end of file
            raise

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            return os.write(self.fileno(), data)
        except BlockingIOError:
            return None

    def resize(self, rows: int, columns: int) -> None:
        """Set the size in characters; who runs in the terminal gets SIGWINCH when it changes."""
        import termios

        termios.tcsetwinsize(self.fileno(), (rows, columns))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        columns, rows = os.get_terminal_size(self.fileno())
        return rows, columns

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        super().close()


class DetachKeys:
    """Finds the keys that detach in what is typed. What may be their beginning is held back until it is clear."""

    def __init__(self, keys: str = "ctrl-p,ctrl-q") -> None:
        """``keys``: single characters and ``ctrl-`` with a letter or one of ``@[\\]^_``, separated by commas; none when empty.

        Raises:
            ValueError: it is none of these.
        """
        self._keys = bytes(map(_key, keys.split(","))) if keys else b""
        self._held = b""

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of the input is to be passed on, and whether the keys have been typed."""
        if not self._keys:
            return typed, False
        data = self._held + typed
        at = data.find(self._keys)
        if at >= 0:
            return data[:at], True
        keep = next(n for n in range(min(len(self._keys) - 1, len(data)), -1, -1) if data.endswith(self._keys[:n]))
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep], False

    def flush(self) -> bytes:
        """What is held back, when nothing comes behind it."""
        held, self._held = self._held, b""
        return held


def _key(name: str) -> int:
    if len(name) == 1 and name.isascii():
        return ord(name)
    control = name.removeprefix("ctrl-").upper()
    if name.startswith("ctrl-") and len(control) == 1 and "@" <= control <= "_":
        return ord(control) & 0x1F
    raise ValueError(f"{name!r} is no key: use a character, or ctrl- with a letter or one of @[\\]^_")


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass on every key as it is typed, while the block runs and we are not stopped. Nothing happens for what is no terminal."""
    if not os.isatty(fd):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(fd)

    def change(how: Callable[[], object]) -> None:
        try:
            how()
        except termios.error as error:
            if error.args[0] != errno.EIO:  # hung up: there is nothing to change any more
                raise

    def restore() -> None:
        change(lambda: termios.tcsetattr(fd, termios.TCSANOW, before))  # without waiting for who reads the terminal

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def go_on(number: int, frame: FrameType | None) -> None:
        change(lambda: tty.setraw(fd, termios.TCSANOW))  # a hang-up comes with a SIGCONT

    handlers = {signal.SIGTSTP: signal.signal(signal.SIGTSTP, stop), signal.SIGCONT: signal.signal(signal.SIGCONT, go_on)}
    try:
        tty.setraw(fd, termios.TCSANOW)  # without a flush: what has been typed already counts
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        restore()


@contextmanager
def following_size(fd: int, resize: Callable[[int, int], None]) -> Iterator[None]:
    """Give a terminal the size of the one at ``fd``, now and whenever that changes. Nothing happens for what has none."""
    if not os.isatty(fd):
        yield
        return

    def follow(number: int = 0, frame: FrameType | None = None) -> None:
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            return  # hung up, as who reads it learns
        if rows and columns:
            resize(rows, columns)

    before = signal.signal(signal.SIGWINCH, follow)
    try:
        follow()
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


End = Literal["ended", "detached", "hung up"]
"""Why `interact` is over: the container's side has ended, the keys to detach were typed, or our own terminal is gone."""


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
    """Connect our terminal, or what we have in its place, with a container until that one ends.

    From the main thread, as it follows SIGWINCH. Our terminal is raw meanwhile and restored on every way out.

    Args:
        stream: the master of a terminal, or the socket of an attachment.
        resize: gets rows and columns when our terminal's size changes; None when there is no terminal on the other side.
        errors: a descriptor from which the container's stderr comes.
        ended: a pidfd; behind the end of its process only what was written before is waited for.
        stdin, stdout, stderr: descriptors of ours; without a stdin, -1, nothing is typed.
        end_input: called when our input ends; by default the key for the end of file is typed.
        detach: the keys that end this call.
    """
    with ExitStack() as stack:
        if resize is not None:
            if stdin >= 0:
                stack.enter_context(raw_mode(stdin))
            stack.enter_context(following_size(stdin if stdin >= 0 and os.isatty(stdin) else stdout, resize))
        stack.callback(os.set_blocking, stream, os.get_blocking(stream))
        os.set_blocking(stream, False)  # a program that does not read must not keep us from showing what it prints
        sources = {stream: stdout, **({errors: stderr} if errors >= 0 else {})}
        return _Relay(stream, sources, ended, _Keyboard(stdin, end_input, detach)).run()


class _Keyboard:
    """What is typed, until the container takes it."""

    def __init__(self, stdin: int, end_input: Callable[[], None] | None, detach: DetachKeys | None) -> None:
        self.stdin = stdin
        """-1 when nothing comes from there any more."""
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
            return "hung up"  # which is no end of file: nobody meant to end the program's input
        self.stdin = -1
        self._typed, self._ending = self._detach.flush(), True
        return None

    def write(self, stream: int) -> None:
        """Type as much as the container takes."""
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
        """Seconds until the end of file is to be typed again; None when it is not."""
        return None if self.waiting else self._end.left()

    def end_again(self) -> None:
        """Type the end of file again when it is time."""
        if self.left == 0:
            self._typed = end_of_file(b"")
            self._end.typed()


class _Relay:
    """Passes on what comes from each source to a descriptor of ours, and to the container what is typed."""

    def __init__(self, stream: int, sources: dict[int, int], ended: int, keyboard: _Keyboard) -> None:
        self._stream = stream
        self._sources = sources
        self._terminals = {fd for fd in sources.values() if os.isatty(fd)}
        self._ended = ended
        self._keyboard = keyboard

    def run(self) -> End:
        patience, left = None, _LAST_BYTES
        while self._sources:
            began = time.monotonic()
            events = self._poll(patience)
            if patience is not None:
                patience -= time.monotonic() - began
            if self._ended in events:
                self._ended, patience = -1, _LAST_WORDS
            for source in [source for source in self._sources if events.get(source, 0) & ~select.POLLOUT]:
                data = _read(source)
                if data == b"":
                    del self._sources[source]
                elif data and not self._show(data, self._sources[source]):
                    return "hung up"
                left -= len(data or b"") if patience is not None else 0
            if patience is not None and (patience <= 0 or left <= 0):
                break
            self._keyboard.end_again()
            if events.get(self._stream, 0) & select.POLLOUT:
                self._keyboard.write(self._stream)
            if self._keyboard.stdin in events:
                hung_up = bool(events[self._keyboard.stdin] & (select.POLLHUP | select.POLLERR))
                if (end := self._keyboard.read(self._stream, hung_up)) is not None:
                    return end
        return "ended"

    def _poll(self, patience: float | None) -> dict[int, int]:
        keyboard, poller = self._keyboard, select.poll()
        for source in self._sources:
            poller.register(source, select.POLLIN | (select.POLLOUT if source == self._stream and keyboard.waiting else 0))
        if keyboard.stdin >= 0 and not keyboard.waiting and self._stream in self._sources:
            poller.register(keyboard.stdin, select.POLLIN)
        if self._ended >= 0:
            poller.register(self._ended, select.POLLIN)
        limits = [max(0.0, limit) for limit in (patience, keyboard.left) if limit is not None]
        return dict(poller.poll(min(limits) * 1000 + 1 if limits else None))

    def _show(self, data: bytes, where: int) -> bool:
        """Whether it could be shown, and our terminal is not gone. Raises OSError when something else is wrong with our side."""
        try:
            _write_all(where, data)
        except OSError as error:
            if error.errno != errno.EIO or where not in self._terminals:
                raise
            return False
        return True


def _read(fd: int) -> bytes | None:
    """What there is; empty at the end, None when there is nothing yet."""
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
        return len(data)  # nobody listens any more; the end comes with the next read


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # our own output was made non-blocking by whoever shares it
            poller = select.poll()
            poller.register(fd, select.POLLOUT)
            poller.poll()
