"""Terminals: the master's side of a container's, and what connects it with the terminal that we sit at."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["DetachKeys", "Terminal", "interact"]

_CHUNK: Final = 1 << 16
_END_OF_FILE: Final = b"\x04"
"""What a terminal in its usual mode takes for the end of its input (VEOF)."""
_LAST_WORDS: Final = 1.0
"""Seconds to wait for output behind the end of the process: the kernel hands it over a moment later."""


class Terminal(io.RawIOBase):
    """The master of a container's terminal, a raw file: what is written is typed in, what is read was printed.

    Reading gives ``b""`` when nobody has the terminal open any more. Closing it hangs the container's terminal up.
    """

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


def _key(name: str) -> int:
    if len(name) == 1 and name.isascii():
        return ord(name)
    control = name.removeprefix("ctrl-").upper()
    if name.startswith("ctrl-") and len(control) == 1 and "@" <= control <= "_":
        return ord(control) & 0x1F
    raise ValueError(f"{name!r} is no key: use a character, or ctrl- with a letter or one of @[\\]^_")


@contextmanager
def raw_mode(fd: int) -> Iterator[None]:
    """Pass on every key as it is typed, while the block runs. Nothing happens for what is no terminal."""
    if not os.isatty(fd):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error as error:
            if error.args[0] != errno.EIO:  # hung up: there is nothing to restore any more
                raise


@contextmanager
def following_size(fd: int, resize: Callable[[int, int], None]) -> Iterator[None]:
    """Give a terminal the size of the one at ``fd``, now and whenever that changes. Nothing happens for what is no terminal."""
    if not os.isatty(fd):
        yield
        return

    def follow(number: int = 0, frame: FrameType | None = None) -> None:
        columns, rows = os.get_terminal_size(fd)
        resize(rows, columns)

    before = signal.signal(signal.SIGWINCH, follow)
    try:
        follow()
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def interact(
    stream: int,
    resize: Callable[[int, int], None] | None,
    *,
    ended: int = -1,
    stdin: int = 0,
    stdout: int = 1,
    end_input: Callable[[], None] | None = None,
    detach: DetachKeys | None = None,
) -> bool:
    """Connect our terminal with a container's until that one ends; from the main thread, as it follows SIGWINCH.

    Our terminal is raw meanwhile and restored on every way out.

    Args:
        stream: the master of a terminal, or the socket of an attachment.
        resize: gets rows and columns when our terminal's size changes; None when there is no terminal on the other side.
        ended: a pidfd; behind the end of its process only what was written before is waited for.
        stdin, stdout: descriptors of ours; without a stdin, -1, nothing is typed.
        end_input: called when our input ends; by default the key for the end of file is typed.
        detach: the keys that end this call.

    Returns:
        Whether the keys to detach have been typed.
    """
    with ExitStack() as stack:
        if resize is not None:
            if stdin >= 0:
                stack.enter_context(raw_mode(stdin))
            stack.enter_context(following_size(stdin if stdin >= 0 and os.isatty(stdin) else stdout, resize))
        return _relay(stream, ended, stdin, stdout, end_input, detach)


def _relay(
    stream: int, ended: int, stdin: int, stdout: int, end_input: Callable[[], None] | None, detach: DetachKeys | None
) -> bool:
    typed, listening, timeout, blocking = b"", True, None, os.get_blocking(stream)
    os.set_blocking(stream, False)  # a program that does not read must not keep us from showing what it prints
    try:
        while True:
            poller = select.poll()
            poller.register(stream, select.POLLIN | (select.POLLOUT if typed else 0))
            if listening and stdin >= 0 and not typed:
                poller.register(stdin, select.POLLIN)
            if ended >= 0:
                poller.register(ended, select.POLLIN)
            events = dict(poller.poll(timeout))
            if not events:
                return False
            if ended in events:
                ended, timeout = -1, _LAST_WORDS * 1000
            if events.get(stream, 0) & (select.POLLIN | select.POLLHUP | select.POLLERR):
                data = _read(stream)
                if data == b"":
                    return False
                _write_all(stdout, data or b"")
            if typed and events.get(stream, 0) & select.POLLOUT:
                typed = typed[_write(stream, typed) :]
            if stdin in events:
                data = _read(stdin)
                if data:
                    typed, stop = detach.feed(data) if detach else (data, False)
                    if stop:
                        return True
                elif data == b"":
                    listening = False
                    if end_input is not None:
                        end_input()
                    else:
                        typed = _END_OF_FILE
    finally:
        os.set_blocking(stream, blocking)


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
