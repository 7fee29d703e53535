"""The streams between us and a program: opened by `subprocess`'s rules, pumped without deadlock, closed."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import time
from collections.abc import Callable
from typing import IO, Any, Final, NamedTuple, Protocol, TypeAlias

from .pickling import Unpicklable


class HasFileno(Protocol):
    """A file, a socket: whatever has a descriptor."""

    def fileno(self) -> int: ...


class Waitable(HasFileno, Protocol):
    """A process: its file descriptor is readable when `ended` may return True."""

    def ended(self) -> bool: ...


__all__ = ["Codec", "Stdio", "Streams"]

PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3
_CHUNK: Final = 1 << 16
_LOOK: Final = 1.0
"""Seconds between two looks at a program whose descriptor does not tell of everything (see `engine.processes.EndWaiter`)."""


BESIDE_A_TERMINAL: Final = "the terminal is the program's stdin, stdout and stderr: give none of them beside it"


def end_of_file(typed: bytes) -> bytes:
    """What a terminal in its usual mode takes for the end of its input (VEOF); the first key only sends a line that has begun."""
    return b"\x04" if typed[-1:] in (b"", b"\n") else b"\x04\x04"


class EndOfInput:
    """When to type the end of file again into a terminal whose input has ended.

    The kernel turns the key into an end of file only for a read in the terminal's usual mode. A program that changes the mode, as
    shells do before each line, discards a key that was typed before. So the key is typed again until the program ends: as with a
    file or a pipe that has ended, every read finds the end.
    """

    _FIRST: Final = 0.1
    _LONGEST: Final = 1.0

    def __init__(self) -> None:
        self._pause = self._FIRST
        self._due: float | None = None

    def typed(self) -> None:
        """Note that the key was typed."""
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, self._LONGEST)

    def left(self) -> float | None:
        """Return the seconds until the key is to be typed again; None before it was typed."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())


Stdio: TypeAlias = "int | HasFileno | None"
"""A descriptor, something that has one, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; None for this process's own."""

MaybeNone: TypeAlias = "Any"
"""None where it was not asked for, which a type checker cannot know and need not be told."""


class Codec(NamedTuple):
    """How bytes become text: invalid ones survive as surrogates by default, so that no output is ever lost to an error."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: bool | None, encoding: str | None, errors: str | None) -> Codec | None:
        """The codec that ``text``, ``encoding`` or ``errors`` ask for, as in `subprocess`; None for bytes. Raises LookupError."""
        if not (text or encoding or errors):
            return None
        found = cls(encoding or "utf-8", errors or "surrogateescape")
        codecs.lookup(found.encoding)
        codecs.lookup_error(found.errors)
        return found

    def decode(self, raw: bytes) -> str:
        return raw.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")

    def encode(self, text: str) -> bytes:
        return text.encode(self.encoding, self.errors)


class _Raw(Unpicklable, io.RawIOBase):
    """Our end of a pipe or terminal. What `Streams.pump` has read already can be put back, so that a reader gets all of it."""

    _instead = "send what was read from it"

    def __init__(self, fd: int, *, writable: bool, pushed: list[bytes]) -> None:
        self._fd = fd
        self._writable = writable
        self._pushed = pushed

    def fileno(self) -> int:
        self._checkClosed()
        return self._fd

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._writable

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def readinto(self, buffer: Any) -> int | None:
        if self._pushed:
            first = self._pushed.pop(0)
            size = min(len(first), len(buffer))
            buffer[:size] = first[:size]
            if size < len(first):
                self._pushed.insert(0, first[size:])
            return size
        try:
            return os.readv(self._fd, [buffer])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:
                return 0  # the last one on the other side of a terminal has gone
            raise

    def write(self, data: Any) -> int | None:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return None

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


class Streams:
    """stdin, stdout and stderr of one program: its ends until it is launched, and ours.

    Args:
        stdin, stdout, stderr: as in `subprocess`.
        codec: for text; None for bytes.
        bufsize: of the files, as in `subprocess.Popen`.
    """

    def __init__(
        self, stdin: Stdio = None, stdout: Stdio = None, stderr: Stdio = None, *, codec: Codec | None = None, bufsize: int = -1
    ) -> None:
        self.codec = codec
        self._bufsize = bufsize
        self.child: list[int] = []
        """What the program gets."""
        self._theirs: list[int] = []
        self._ours: dict[int, int] = {}
        self._files: dict[int, IO[Any]] = {}
        self._input = memoryview(b"")
        self._output: dict[int, list[bytes]] = {}
        self._captures = False
        self._typed: bytes | None = None
        self._end: EndOfInput | None = None
        try:
            for number, wanted in enumerate((stdin, stdout, stderr)):
                self.child.append(self._open(number, wanted))
        except BaseException:
            self.close()
            raise

    def _open(self, number: int, wanted: Stdio) -> int:
        if wanted is None:
            return number
        name = ("stdin", "stdout", "stderr")[number]
        if isinstance(wanted, bool) or not (isinstance(wanted, int) or hasattr(wanted, "fileno")):
            raise TypeError(f"{name} is {wanted!r}: a descriptor, an open file, PIPE, DEVNULL, STDOUT or None is needed")
        fd = wanted if isinstance(wanted, int) else wanted.fileno()
        if fd >= 0:
            try:
                os.fstat(fd)
            except OSError as error:
                raise OSError(error.errno, f"{name} is descriptor {fd}, which is not open") from error
            return fd
        if fd == DEVNULL:
            self._theirs.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            return self._theirs[-1]
        if fd == STDOUT and number == 2:
            return self.child[1]
        if fd != PIPE:
            raise ValueError(f"{fd} is no descriptor for {name}")
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours, theirs = (writer, reader) if number == 0 else (reader, writer)
        self._theirs.append(theirs)
        self._ours[number] = ours
        if number:
            self._output[number] = []
        return theirs

    @classmethod
    def of_run(
        cls,
        input: bytes | str | None,
        capture_output: bool,
        stdin: Stdio,
        stdout: Stdio,
        stderr: Stdio,
        codec: Codec | None,
        terminal: bool = False,
    ) -> Streams:
        """The streams of a program that is run to its end, by the rules of `subprocess.run`. Raises ValueError, TypeError."""
        if terminal:
            if (stdin, stdout, stderr) != (None, None, None):
                raise ValueError(BESIDE_A_TERMINAL)
            if input is not None and not capture_output:
                raise ValueError("input for a terminal comes back with the output: capture it, with capture_output=True")
            streams = cls(codec=codec)
            streams._captures, streams._typed = capture_output, None if input is None else bytes(streams._encoded(input))
            return streams
        if input is not None:
            if stdin is not None:
                raise ValueError("stdin and input exclude each other")
            stdin = PIPE
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr are not for capture_output=True: it captures both")
            stdout = stderr = PIPE
        streams = cls(stdin, stdout, stderr, codec=codec)
        try:
            streams.feed(input)
        except BaseException:
            streams.close()
            raise
        return streams

    def use_terminal(self, master: int) -> None:
        """Type the input into the program's terminal and keep what it prints, where that was asked for."""
        if not self._captures:
            return
        self._ours[1] = os.dup(master)
        self._output.update({1: [], 2: []})
        if self._typed is not None:
            self._ours[0] = os.dup(master)
            self._input = memoryview(self._typed + end_of_file(self._typed))
            self._end = EndOfInput()

    def launched(self) -> None:
        """Close the program's ends: it has them now."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()

    def take(self, number: int) -> int | None:
        """Our end as a descriptor, which belongs to the caller from then on; None when it is no pipe of ours."""
        return self._ours.pop(number, None)

    # ---- as files ----

    def file(self, number: int) -> IO[Any] | None:
        """Our end as a file, binary or text; None when it is no pipe of ours."""
        if number in self._files or number not in self._ours:
            return self._files.get(number)
        raw = _Raw(self._ours[number], writable=number == 0, pushed=self._output.setdefault(number, []))
        file: IO[Any]
        if self._bufsize == 0 and self.codec is None:
            file = raw  # type: ignore[assignment]
        else:
            size = self._bufsize if self._bufsize > 1 else io.DEFAULT_BUFFER_SIZE
            file = io.BufferedWriter(raw, size) if number == 0 else io.BufferedReader(raw, size)
            if self.codec:
                file = io.TextIOWrapper(file, *self.codec, line_buffering=self._bufsize == 1)
        self._files[number] = file
        return file

    # ---- as a whole ----

    def feed(self, input: bytes | str | None) -> None:
        """What `pump` shall write to stdin, which is closed behind it."""
        if 0 in self._files:
            try:
                self._files[0].flush()
            except BrokenPipeError:
                pass  # the program does not want it
        if input is not None:
            input = self._encoded(input)
            if 0 not in self._ours:
                raise ValueError("input needs stdin=PIPE")
            self._input = memoryview(input).cast("B")
        if 0 in self._ours and not self._input:
            self._shut(0)

    def _encoded(self, input: bytes | str) -> bytes:
        if isinstance(input, str):
            if self.codec is None:
                raise TypeError("input is a str: give bytes, or text=True")
            return self.codec.encode(input)
        if not isinstance(input, bytes | bytearray | memoryview):
            raise TypeError(f"input is {input!r}: bytes are needed, or a str with text=True")
        return input

    def pump(self, program: Waitable, deadline: float | None, on_end: Callable[[], object] | None = None) -> bool:
        """Feed and drain the pipes until all are closed and the program has ended; False when the time was over before.

        It can be called again: what was read and what is still to be written are kept.

        Args:
            deadline: of `time.monotonic`.
            on_end: called when the program has ended: for those who hold its pipes and should not.
        """
        poller, watched = select.poll(), program.fileno()
        poller.register(watched, select.POLLIN)
        numbers = self.ends()
        for fd, number in numbers.items():
            poller.register(fd, select.POLLIN if number else select.POLLOUT)
        running = True
        while running or numbers:
            left = _LOOK if deadline is None else min(_LOOK, max(0.0, deadline - time.monotonic()))
            again = self.end_again()
            ready = poller.poll((left if again is None else min(left, again)) * 1000)
            for fd, _ in ready or ([(watched, 0)] if running else []):
                if fd == watched:
                    if program.ended():
                        poller.unregister(fd)
                        running = False
                        if on_end:
                            on_end()
                elif not self.move(fd, numbers[fd]):
                    poller.unregister(fd)
                    self.finish(numbers.pop(fd))
            if left == 0 and (running or numbers):
                for fd in numbers:
                    os.set_blocking(fd, True)
                return False
        return True

    def ends(self) -> dict[int, int]:
        """The number of each open end of ours by its descriptor, for who moves what comes; they do not block from then on."""
        for fd in self._ours.values():
            os.set_blocking(fd, False)
        return {fd: number for number, fd in self._ours.items()}

    def move(self, fd: int, number: int) -> bool:
        """Move what is ready; False at the end of a stream."""
        try:
            if number:
                chunk = os.read(fd, _CHUNK)
                if chunk:
                    self._output[number].append(chunk)
                return bool(chunk)
            self._input = self._input[os.write(fd, self._input[:_CHUNK]) :]
            return bool(self._input)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # the program does not want it
        except OSError as error:
            if error.errno == errno.EIO:
                return False  # the other side of a terminal is closed
            raise

    @property
    def types(self) -> bool:
        """Whether an input is typed into a terminal."""
        return self._end is not None

    def end_again(self) -> float | None:
        """Type the end of file again when it is time; return the seconds until the next time, or None for no terminal."""
        if self._end is None or 0 in self._ours or 1 not in self._ours:
            return None
        left = self._end.left()
        if left == 0:
            try:
                os.write(self._ours[1], end_of_file(b""))
            except OSError as error:
                # The program has not read what was typed before, or the last one has closed the terminal.
                if error.errno not in (errno.EAGAIN, errno.EIO):
                    raise
            left = None
        if left is None:
            self._end.typed()
        return self._end.left()

    def finish(self, number: int) -> None:
        """Close our end of a stream that has come to its end."""
        if number in self._files and number:
            del self._ours[number]  # what it has not given yet is read through the file
        else:
            self._shut(number)

    def output(self, number: int) -> Any:
        """What was read of stdout (1) or stderr (2), as text where that was asked for; None when it is no pipe of ours."""
        if number in self._files:
            file = self._files[number]
            return None if file.closed else file.read()
        chunks = self._output.get(number)
        if chunks is None:
            return None
        return self.codec.decode(b"".join(chunks)) if self.codec else b"".join(chunks)

    def _shut(self, number: int) -> None:
        from .interrupts import DeferredSignals

        with DeferredSignals():  # so that it is closed once, and no other one of the same number later
            fd = self._ours.pop(number, -1)
            if number in self._files:
                try:
                    self._files[number].close()
                except BrokenPipeError:
                    pass  # what was still to be flushed
            elif fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """Close everything that is ours."""
        self.launched()
        for number in {*self._ours, *self._files}:
            self._shut(number)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
