"""The standard streams of a program: opened by the rules of `subprocess`, and read and written without deadlock."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Final, NamedTuple, Protocol, TypeAlias

from .arguments import check_bool, check_fd, check_str, optional, shown, wrong_type
from .files import OwnDescriptor, Unpicklable, forking, unread
from .interrupts import DeferredSignals


class HasFileno(Protocol):
    """An object with a file descriptor, such as a file or socket."""

    def fileno(self) -> int: ...


class Waitable(HasFileno, Protocol):
    """A process: its file descriptor is readable when `ended` may return True."""

    def ended(self) -> bool: ...


__all__ = ["Codec", "Stdio", "Streams"]

PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3
_CHUNK: Final = 1 << 16
_LEAST_READ: Final = 4095
"""Bytes that one read returns if there are so many: a terminal never returns more."""
_CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of a program whose file descriptor may stay silent (see `ociruntime.engine.processes.EndWaiter`)."""


BESIDE_A_TERMINAL: Final = "stdin, stdout and stderr conflict with a terminal, which is all three of them"


def end_of_file(typed: bytes) -> bytes:
    """Return the keys that end the input of a terminal in its usual mode (VEOF). Within a line the first key only sends the line.

    Args:
        typed: what was typed before.
    """
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
"""A file descriptor, an object that has one, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; None for the caller's own stream."""

MaybeNone: TypeAlias = "Any"
"""A value that is None if it was not asked for. A type checker cannot know that, so it does not ask for a check."""


class Codec(NamedTuple):
    """An encoding for text. By default invalid bytes become surrogates, so that no output is lost to an error."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: bool | None, encoding: str | None, errors: str | None) -> Codec | None:
        """Return the codec for the arguments of `subprocess` with these names; None for bytes. Raises ValueError: it is unknown."""
        optional(check_bool, "text", text)
        optional(check_str, "encoding", encoding)
        optional(check_str, "errors", errors)
        if not (text or encoding or errors):
            return None
        found = cls(encoding or "utf-8", errors or "surrogateescape")
        for name, value in (("encoding", found.encoding), ("errors", found.errors)):
            if not value.isascii():
                raise ValueError(f"{name} is {shown(value)}: the name of a codec is needed")
        try:
            "".encode(found.encoding)  # codecs.lookup() also finds encodings that are not for text
        except LookupError as error:
            raise ValueError(f"encoding is {shown(encoding)}: the name of a text encoding is needed") from error
        try:
            codecs.lookup_error(found.errors)
        except LookupError as error:
            raise ValueError(f"errors is {shown(errors)}: the name of an error handler is needed") from error
        return found

    def decode(self, raw: bytes) -> str:
        return raw.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")

    def encode(self, text: str) -> bytes:
        return text.encode(self.encoding, self.errors)

    def decoder(self) -> io.IncrementalNewlineDecoder:
        """Return a decoder of text that arrives in parts, which turns every kind of line end into one, as `decode` does."""
        return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(self.encoding)(self.errors), translate=True)


class Output:
    """What is done with the output of a program while it is read: a limit of what is kept, and functions that get all of it.

    Args:
        limit: bytes of each stream that are kept, the first ones; None for all.
        receivers: functions that get what was read, by the numbers of the streams: bytes, or text with a codec.
    """

    def __init__(self, limit: int | None = None, receivers: Mapping[int, Callable[[Any], object]] | None = None) -> None:
        self._limit = limit
        self._receivers = dict(receivers or {})
        self._decoders: dict[int, io.IncrementalNewlineDecoder] = {}
        self._sizes = {1: 0, 2: 0}

    def use(self, codec: Codec | None) -> None:
        """Decode what the functions get."""
        if codec is not None:
            self._decoders = {number: codec.decoder() for number in self._receivers}

    @property
    def truncated(self) -> frozenset[int]:
        """The streams of which not everything is kept."""
        return frozenset(number for number, size in self._sizes.items() if self._limit is not None and size > self._limit)

    def take(self, number: int, chunk: bytes, kept: list[bytes]) -> None:
        """Keep what was read, and pass it on; at the end of a stream the chunk is empty. Raises what the function raises."""
        if number not in self._receivers and self._limit is None:
            if chunk:
                kept.append(chunk)
            return
        room = len(chunk) if self._limit is None else max(0, self._limit - self._sizes[number])
        self._sizes[number] += len(chunk)
        if chunk and room:
            kept.append(chunk[:room])
        if number in self._receivers:
            data = self._decoders[number].decode(chunk, final=not chunk) if number in self._decoders else chunk
            if data:
                try:
                    self._receivers[number](data)
                except BaseException:
                    self._receivers.clear()  # the program is killed, and what it still prints is not passed on
                    raise


class _Raw(Unpicklable, io.RawIOBase):
    """The caller's end of a pipe or terminal. It returns what `Streams.pump` has read already before it reads more."""

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
                return 0  # the last writer has closed the terminal
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
    """stdin, stdout and stderr of one program: the child's ends until it is launched, and the caller's ends of pipes.

    Args:
        stdin, stdout, stderr: as in `subprocess`.
        codec: the codec for text; None for bytes.
        bufsize: buffer size of the files, as in `subprocess.Popen`.
        output: what is done with output that `pump` reads.
        alone: only `pump` uses the pipes, so that children which the caller forks meanwhile close them.
    """

    def __init__(
        self,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        *,
        codec: Codec | None = None,
        bufsize: int = -1,
        output: Output | None = None,
        alone: bool = False,
    ) -> None:
        self.codec = codec
        self._bufsize = bufsize
        self._taking = output or Output()
        self._taking.use(codec)
        self.child: list[int] = []
        """The file descriptors that the program gets."""
        self._child_ends: list[OwnDescriptor] = []
        self._own_ends: dict[int, int] = {}
        self._alone: dict[int, OwnDescriptor] | None = {} if alone else None
        self._files: dict[int, IO[Any]] = {}
        self._input = memoryview(b"")
        self._output: dict[int, list[bytes]] = {}
        self._captures = False
        self._typed: bytes | None = None
        self._end: EndOfInput | None = None
        self.linger = True
        """Whether `pump` continues after the end of the program while another process has its pipes open."""
        try:
            for number, stream in enumerate((stdin, stdout, stderr)):
                self.child.append(self._open(number, stream))
        except BaseException:
            self.close()
            raise

    def _open(self, number: int, stream: Stdio) -> int:
        if stream is None:
            return number
        name = ("stdin", "stdout", "stderr")[number]
        if isinstance(stream, bool) or not (isinstance(stream, int) or hasattr(stream, "fileno")):
            raise wrong_type(name, stream, "a file descriptor, an open file, PIPE, DEVNULL, STDOUT or None")
        try:
            fd = stream if isinstance(stream, int) else stream.fileno()
        except (ValueError, OSError) as error:
            raise ValueError(f"{name} is {shown(stream)}, which has no open file descriptor: {error}") from error
        if fd >= 0:
            check_fd(name, fd)
            return fd
        if fd == DEVNULL:
            with forking:
                self._child_ends.append(OwnDescriptor(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)))
            return self._child_ends[-1].fd
        if fd == STDOUT and number == 2:
            return self.child[1]
        if fd != PIPE:
            raise ValueError(f"{name} is {fd}, which is not a file descriptor")
        with forking:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            own_end, child_end = (writer, reader) if number == 0 else (reader, writer)
            self._child_ends.append(OwnDescriptor(child_end))
            if self._alone is not None:
                self._alone[number] = OwnDescriptor(own_end)
        self._own_ends[number] = own_end
        if number:
            self._output[number] = []
        return child_end

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
        output: Output | None = None,
    ) -> Streams:
        """Return the streams of a program that runs to its end, by the rules of `subprocess.run`. Raises ValueError, TypeError."""
        if terminal:
            if (stdin, stdout, stderr) != (None, None, None):
                raise ValueError(BESIDE_A_TERMINAL)
            if input is not None and not capture_output:
                raise ValueError("input for a terminal needs capture_output=True: the terminal echoes it to the output")
            streams = cls(codec=codec, output=output)
            streams._captures, streams._typed = capture_output, None if input is None else bytes(streams._encoded(input))
            return streams
        if input is not None:
            if stdin is not None:
                raise ValueError("stdin and input cannot be used together")
            stdin = PIPE
        if capture_output:
            if stdout is not None or stderr is not None:
                raise ValueError("stdout and stderr cannot be used with capture_output=True, which captures both")
            stdout = stderr = PIPE
        streams = cls(stdin, stdout, stderr, codec=codec, output=output, alone=True)
        try:
            streams.feed(input)
        except BaseException:
            streams.close()
            raise
        return streams

    def use_terminal(self, master: int) -> None:
        """Type the input into the program's terminal and capture its output, if the output is captured."""
        if not self._captures:
            return
        self._own_ends[1] = os.dup(master)
        self._output.update({1: [], 2: []})
        if self._typed is not None:
            self._own_ends[0] = os.dup(master)
            self._input = memoryview(self._typed + end_of_file(self._typed))
            self._end = EndOfInput()

    def launched(self) -> None:
        """Close the child's ends, which the program has inherited."""
        for end in self._child_ends:
            end.close()
        self._child_ends.clear()

    def take(self, number: int) -> int | None:
        """Return the caller's end as a file descriptor, and give up its ownership; None without a pipe."""
        if self._alone and number in self._alone:
            self._alone.pop(number).take()
        return self._own_ends.pop(number, None)

    # ---- as files ----

    def file(self, number: int) -> IO[Any] | None:
        """Return the caller's end as a file, binary or text; None without a pipe."""
        if number in self._files or number not in self._own_ends:
            return self._files.get(number)
        raw = _Raw(self._own_ends[number], writable=number == 0, pushed=self._output.setdefault(number, []))
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
        """Set what `pump` writes to stdin, which it closes afterwards."""
        if 0 in self._files:
            try:
                self._files[0].flush()
            except BrokenPipeError:
                pass  # the program has closed its stdin
        if input is not None:
            input = self._encoded(input)
            if 0 not in self._own_ends:
                raise ValueError("input needs stdin=PIPE")
            self._input = memoryview(input).cast("B")
        if 0 in self._own_ends and not self._input:
            self._shut(0)

    def _encoded(self, input: bytes | str) -> bytes:
        if isinstance(input, str):
            if self.codec is None:
                raise TypeError("input is a str: bytes or text=True is needed")
            try:
                return self.codec.encode(input)
            except UnicodeEncodeError as error:
                raise ValueError(f"input cannot be encoded: {error}") from error
        if not isinstance(input, bytes | bytearray | memoryview):
            raise wrong_type("input", input, "bytes, or a str with text=True,")
        return input

    def pump(self, program: Waitable, deadline: float | None, on_end: Callable[[], object] | None = None) -> bool:
        """Write and read the pipes until all are closed and the program has ended.

        It can be called again: it keeps what it has read, and the input that is left.

        Args:
            deadline: when to give up, by `time.monotonic`.
            on_end: called when the program has ended, to end other processes that keep its pipes open.

        Returns:
            False if the deadline has passed before that.
        """
        poller, watched = select.poll(), program.fileno()
        poller.register(watched, select.POLLIN)
        numbers = self.ends()
        for fd, number in numbers.items():
            poller.register(fd, select.POLLIN if number else select.POLLOUT)
        running = True
        while running or numbers:
            left = _CHECK_INTERVAL if deadline is None else min(_CHECK_INTERVAL, max(0.0, deadline - time.monotonic()))
            again = self.end_again()
            ready = poller.poll((left if again is None else min(left, again)) * 1000)
            for fd, _ in ready or ([(watched, 0)] if running else []):
                if fd == watched:
                    if program.ended():
                        poller.unregister(fd)
                        running = False
                        if on_end:
                            on_end()
                        if not self.linger:
                            self.drain()
                            return True
                elif not self.move(fd, numbers[fd]):
                    poller.unregister(fd)
                    self.finish(numbers.pop(fd))
            if left == 0 and (running or numbers):
                for fd in numbers:
                    os.set_blocking(fd, True)
                return False
        return True

    def drain(self) -> None:
        """Read what a program that has ended left in its pipes, and close them, also where another process has them open."""
        for fd, number in self.ends().items():
            if number:
                poller, reads = select.poll(), unread(fd) // _LEAST_READ + 1
                poller.register(fd, select.POLLIN)
                while reads and poller.poll(0) and self.move(fd, number):
                    reads -= 1
            self.finish(number)

    def ends(self) -> dict[int, int]:
        """Return the numbers of the open ends by their file descriptors, and make them non-blocking, for `move`."""
        for fd in self._own_ends.values():
            os.set_blocking(fd, False)
        return {fd: number for number, fd in self._own_ends.items()}

    def move(self, fd: int, number: int) -> bool:
        """Read or write what is ready at one end. Return False at the end of the stream."""
        try:
            if number:
                chunk = os.read(fd, _CHUNK)
            else:
                self._input = self._input[os.write(fd, self._input[:_CHUNK]) :]
                return bool(self._input)
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # the program has closed its stdin
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            chunk = b""  # the last writer has closed the terminal
        if number:
            self._taking.take(number, chunk, self._output[number])
        return bool(chunk)

    @property
    def types(self) -> bool:
        """Whether an input is typed into a terminal."""
        return self._end is not None

    def end_again(self) -> float | None:
        """Type the end of file again when it is time; return the seconds until the next time, or None for no terminal."""
        if self._end is None or 0 in self._own_ends or 1 not in self._own_ends:
            return None
        left = self._end.left()
        if left == 0:
            try:
                os.write(self._own_ends[1], end_of_file(b""))
            except OSError as error:
                # The program has not read what was typed before, or the last writer has closed the terminal.
                if error.errno not in (errno.EAGAIN, errno.EIO):
                    raise
            left = None
        if left is None:
            self._end.typed()
        return self._end.left()

    def finish(self, number: int) -> None:
        """Close the end of a stream that is over."""
        if number in self._files and number:
            del self._own_ends[number]  # the file still returns what was read
        else:
            self._shut(number)

    def output(self, number: int) -> Any:
        """Return what was read from stdout (1) or stderr (2), as bytes or text; None without a pipe."""
        if number in self._files:
            file = self._files[number]
            return None if file.closed else file.read()
        chunks = self._output.get(number)
        if chunks is None:
            return None
        whole = b"".join(chunks)
        if self.codec is None:
            return whole
        if number in self._taking.truncated:
            return self.codec.decoder().decode(whole)  # without a character of which only a part was kept
        return self.codec.decode(whole)

    @property
    def truncated(self) -> bool:
        """Whether not everything was kept that was read."""
        return bool(self._taking.truncated)

    def _shut(self, number: int) -> None:
        with DeferredSignals():  # an interrupt must not let it be closed twice: its number may be in use again by then
            fd = self._own_ends.pop(number, -1)
            if number in self._files:
                try:
                    self._files[number].close()
                except BrokenPipeError:
                    pass  # the buffer could not be flushed
            elif self._alone and number in self._alone:
                self._alone.pop(number).close()
            elif fd >= 0:
                os.close(fd)

    def close(self) -> None:
        """Close all ends."""
        self.launched()
        for number in {*self._own_ends, *self._files}:
            self._shut(number)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
