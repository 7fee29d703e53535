"""`Process`, `Attachment` and their streams in the event loop; waiting there, and working beside it."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, AnyStr, Generic, Self, TypeVar, cast

import attrs

from ..arguments import Duration, check_int, check_type, optional, parse_timeout
from ..engine.processes import POLL_INTERVAL
from ..errors import ProcessTimeout
from ..files import Unpicklable
from ..process import KILL_GRACE, BaseProcess, LaunchedProcess, Result
from ..streams import Codec, MaybeNone, Streams
from ..supervisor.client import Attachment as SupervisorAttachment

if TYPE_CHECKING:
    from ..streams import Waitable


T = TypeVar("T")


async def work(
    work: Callable[..., T],
    *args: Any,
    undo: Callable[[T], object] | None = None,
    hurry: Callable[[], object] | None = None,
    **options: Any,
) -> T:
    """Run a function in a thread, with the caller's context, to its end.

    If the task is cancelled meanwhile, the function is undone before CancelledError is raised.
    What can be undone is not even begun when the task is cancelled while no thread is free. When it has begun, ``hurry`` is called
    and may bring the end about.
    """
    needed = True

    def begin() -> list[T]:
        return [work(*args, **options)] if needed else []

    def give_up() -> None:
        nonlocal needed
        needed = undo is None
        if hurry is not None:
            hurry()

    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, copy_context().run, begin)
    cancelled = await _whole(future, give_up)
    if cancelled is None:
        return future.result()[0]
    if undo is not None and future.exception() is None and future.result():
        undoing = loop.run_in_executor(None, undo, future.result()[0])
        cancelled = await _whole(undoing, give_up) or cancelled
        undoing.result()
    raise cancelled


async def _whole(future: asyncio.Future[Any], on_cancel: Callable[[], object]) -> asyncio.CancelledError | None:
    """Wait for the end of something that cannot be interrupted; gives the cancellation that came meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    return cancelled


async def readable(fd: int) -> None:
    """Wait until a descriptor is readable; it may be waited for several times at once."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    own = os.dup(fd)
    try:
        loop.add_reader(own, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(own)
    finally:
        os.close(own)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def ended(program: Waitable) -> None:
    """Wait for the end of a process."""
    while not program.ended():
        await within(POLL_INTERVAL, readable(program.fileno()))


async def within(timeout: float | None, wait: Awaitable[object]) -> bool:
    """Return whether something ends in time."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            await wait
    except TimeoutError:
        if not limit.expired():
            raise
        return False
    return True


async def pump(streams: Streams, program: Waitable, on_end: Callable[[], object] | None = None) -> None:
    """`Streams.pump` in the loop; it may be cancelled and begun again."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    busy = streams.ends()

    def forget() -> None:
        while busy:
            fd, number = busy.popitem()
            (loop.remove_reader if number else loop.remove_writer)(fd)

    def move(fd: int) -> None:
        try:
            if streams.move(fd, busy[fd]):
                return
            (loop.remove_reader if busy[fd] else loop.remove_writer)(fd)
            streams.finish(busy.pop(fd))
        except Exception as error:
            forget()
            if not done.done():
                done.set_exception(error)
        if not busy and not done.done():
            done.set_result(None)

    for fd, number in busy.items():
        (loop.add_reader if number else loop.add_writer)(fd, move, fd)

    async def end_again() -> None:
        while True:
            await asyncio.sleep(streams.end_again() or POLL_INTERVAL)

    typing = loop.create_task(end_again()) if streams.types else None
    ending = loop.create_task(ended(program))
    try:
        await asyncio.wait([ending, done], return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()  # raises the exception of a function that gets the output, without a wait for the end
        await ending
        if on_end is not None:
            await work(on_end)
        if not streams.linger:
            forget()
            streams.drain()
        elif busy or done.done():
            await done
    finally:
        ending.cancel()
        if typing is not None:
            typing.cancel()
        forget()


async def finish(
    process: LaunchedProcess,
    timeout: float | None,
    *,
    kill: Callable[[], object],
    result: Callable[[], Result[Any]],
    on_end: Callable[[], object] | None = None,
) -> Result[Any]:
    """`ociruntime.process.finish` in the loop."""
    left = None if timeout is None else timeout - (time.monotonic() - process.began)
    if await within(left, pump(process.streams, process, on_end)):
        return result()
    await work(kill)
    await within(KILL_GRACE, pump(process.streams, process))
    process.check_dead()
    assert timeout is not None
    raise ProcessTimeout(process.args, timeout, attrs.evolve(result(), timed_out=True))


class Making(Unpicklable, Generic[T]):
    """Something that is made when it is awaited, or entered by ``async with``."""

    _instead = "await it first"

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._result: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._make().__await__()

    async def __aenter__(self) -> T:
        self._result = await self._make()
        return cast(T, await self._result.__aenter__())  # type: ignore[attr-defined]

    async def __aexit__(self, *exc: object) -> None:
        await self._result.__aexit__(*exc)  # type: ignore[union-attr]


class Reader(Unpicklable, Generic[AnyStr]):
    """A stream to read, of bytes or text; iterating gives its lines as they come."""

    _instead = "send what was read from it"

    def __init__(self, stream: asyncio.StreamReader, transport: asyncio.BaseTransport, codec: Codec | None) -> None:
        self._stream = stream
        self._transport = transport
        self._codec = codec
        self._decoder: io.IncrementalNewlineDecoder | None = None if codec is None else codec.decoder()
        self._text = ""
        self._begun: list[bytes] = []
        """The parts of a line whose end has not arrived, so that a reader that is cancelled loses nothing."""

    async def read(self, size: int = -1) -> AnyStr:
        """Return up to ``size`` bytes, as soon as there are some; without a size everything up to the end. Empty at the end."""
        check_int("size", size)
        while True:
            raw = await self._stream.read(size)
            whole: Any = b"".join(self._begun) + raw
            self._begun.clear()
            if self._decoder is not None:
                whole, self._text = self._text + self._decoder.decode(whole, final=size < 0 or not raw), ""
            if whole or not raw:
                return whole  # type: ignore[no-any-return]

    async def readline(self) -> AnyStr:
        """Return the next line with its line end; empty at the end of the stream."""
        if self._decoder is None:
            whole: Any = await self._raw_line()
            return whole  # type: ignore[no-any-return]
        while "\n" not in self._text:
            raw = await self._raw_line()
            self._text += self._decoder.decode(raw, final=not raw)
            if not raw:
                break
        line, end, self._text = self._text.partition("\n")
        text: Any = line + end
        return text  # type: ignore[no-any-return]

    async def _raw_line(self) -> bytes:
        while True:
            try:
                self._begun.append(await self._stream.readuntil())
            except asyncio.LimitOverrunError as error:
                self._begun.append(await self._stream.readexactly(error.consumed))
                continue
            except asyncio.IncompleteReadError as error:
                self._begun.append(error.partial)
            line = b"".join(self._begun)
            self._begun.clear()
            return line

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        return self._lines()

    async def _lines(self) -> AsyncIterator[AnyStr]:
        while line := await self.readline():
            yield line

    def close(self) -> None:
        self._transport.close()


class Writer(Unpicklable, Generic[AnyStr]):
    """A stream to write, of bytes or text."""

    _instead = "write to it in the process that has it"

    def __init__(self, stream: asyncio.StreamWriter, codec: Codec | None) -> None:
        self._stream = stream
        self._codec = codec

    def write(self, data: AnyStr) -> None:
        """Write, without waiting; `drain` waits."""
        raw: Any = self._codec.encode(data) if self._codec and isinstance(data, str) else data
        check_type("data", raw, (bytes, bytearray, memoryview), "a bytes-like object, or a str for a stream of text,")
        self._stream.write(raw)

    async def drain(self) -> None:
        """Wait until there is room for more. Raises BrokenPipeError, ConnectionResetError: the reader is gone."""
        await self._stream.drain()

    def close(self) -> None:
        """Write what is left, and then close: the program sees the end of its input."""
        self._stream.close()

    def write_eof(self) -> None:
        """Write what is left, and then shut this direction of a socket down."""
        self._stream.write_eof()

    async def wait_closed(self) -> None:
        await self._stream.wait_closed()


_ENDS = frozenset({errno.EIO, errno.ECONNRESET})


class _Protocol(asyncio.StreamReaderProtocol):
    """The end of a terminal, or of a socket whose other side leaves, which the kernel tells as errors, is the end of its stream."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None if isinstance(exc, OSError) and exc.errno in _ENDS else exc)


async def connect(fd: int, number: int, codec: Codec | None) -> Reader[Any] | Writer[Any]:
    """Our end of stream ``number``, which belongs to what is given."""
    loop = asyncio.get_running_loop()
    file = os.fdopen(fd, "rb" if number else "wb", 0)
    stream = asyncio.StreamReader()
    if number:
        reading, _ = await loop.connect_read_pipe(lambda: _Protocol(stream), file)
        return Reader(stream, reading, codec)
    writing, protocol = await loop.connect_write_pipe(lambda: _Protocol(stream), file)  # for its flow control
    return Writer(asyncio.StreamWriter(writing, protocol, None, loop), codec)


async def over(peer: socket.socket) -> tuple[Reader[bytes], Writer[bytes]]:
    """Both directions of a socket, which belongs to what is given."""
    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader()
    try:
        transport, protocol = await loop.create_unix_connection(lambda: _Protocol(stream), sock=peer)
    except BaseException:
        peer.close()
        raise
    return Reader(stream, transport, None), Writer(asyncio.StreamWriter(transport, protocol, None, loop), None)


class Process(BaseProcess, Generic[AnyStr]):
    """A process in a container: `ociruntime.Process` with waiting in the event loop.

    ``async with`` closes its streams and waits at the end. If the block raises or is cancelled, the process and every process that
    it has started are killed. ``async for`` yields the lines of stdout as they come.
    """

    stdin: Writer[AnyStr] | MaybeNone = None
    """The stream that writes to its stdin, if that is a pipe or a terminal."""
    stdout: Reader[AnyStr] | MaybeNone = None
    """The stream that reads its stdout, if that is a pipe or a terminal."""
    stderr: Reader[AnyStr] | MaybeNone = None
    """The stream that reads its stderr, if that is a pipe."""

    def __init__(self, process: LaunchedProcess) -> None:
        super().__init__(process)
        self._read: tuple[list[AnyStr], list[AnyStr]] = ([], [])

    async def _connect(self) -> Self:
        streams, terminal = self._process.streams, self.terminal
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            fd = streams.take(number)
            if fd is None and terminal is not None and number < 2:
                fd = os.dup(terminal.fileno())
            if fd is not None:
                setattr(self, name, await connect(fd, number, streams.codec))
        return self

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        if self.stdout is None:
            raise ValueError("stdout is not a pipe: start the process with stdout=PIPE")
        return cast(AsyncIterator[AnyStr], self.stdout.__aiter__())

    async def wait(self, timeout: Duration | None = None) -> int:
        """Wait for the end and return the exit code, negative for a signal. Raises ProcessTimeout after ``timeout`` seconds."""
        timeout = parse_timeout(timeout)
        if self.returncode is None and not await within(timeout, ended(self._process)):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        return self._process.reap()

    async def communicate(
        self, input: AnyStr | None = None, timeout: Duration | None = None
    ) -> tuple[AnyStr | MaybeNone, AnyStr | MaybeNone]:
        """Write ``input``, read stdout and stderr to their ends and wait.

        Returns:
            The output and the error output; None for a stream that is not a pipe.

        Raises:
            ProcessTimeout: it still runs after ``timeout`` seconds. No data is lost: call it again without input.
        """
        timeout = parse_timeout(timeout)
        optional(check_type, "input", input, (bytes, bytearray, memoryview, str), "bytes, or a str with text=True,")
        if input is not None and self.stdin is None:
            raise ValueError("input needs stdin=PIPE")
        if not await within(timeout, self._communicate(input)):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        self._process.reap()
        nothing: Any = b"" if self._process.streams.codec is None else ""
        read, self._read = self._read, ([], [])
        out, err = (nothing.join(parts) for parts in read)
        return None if self.stdout is None else out, None if self.stderr is None else err

    async def _communicate(self, input: AnyStr | None) -> None:
        async def feed() -> None:
            if self.stdin is None:
                return
            try:
                if input:
                    self.stdin.write(input)
                await self.stdin.drain()
                self.stdin.close()
                await self.stdin.wait_closed()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the process does not read it

        async def read(stream: Reader[AnyStr] | None, parts: list[AnyStr]) -> None:
            while stream is not None and (part := await stream.read(1 << 16)):
                parts.append(part)

        await asyncio.gather(feed(), read(self.stdout, self._read[0]), read(self.stderr, self._read[1]), ended(self._process))

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd. The process keeps running."""
        self._close_streams()
        self._process.close()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._process.owned:
            return  # a forked child leaves the block of its parent
        self._close_streams()
        try:
            if exc[0] is None:
                await self.wait()
        except BaseException:
            await self._discard()
            raise
        if exc[0] is None:
            self.close()
        else:
            await self._discard()

    async def _discard(self) -> None:
        """Kill the process and every process that it has started, and close what is open here. No effect in a forked child."""
        if not self._process.owned:
            return
        try:
            await work(self._process.end)
        finally:
            self.close()


class Attachment(Reader[bytes]):
    """`ociruntime.Attachment` in the event loop: read the container's output, and write its input.

    Reading returns ``b""`` when the container has ended, or when the supervisor has dropped this client because it did not read.
    As a context manager it detaches at the end, and the container runs on.
    """

    _instead = "send the Container and attach there"

    def __init__(
        self,
        attachment: SupervisorAttachment,
        both: tuple[Reader[bytes], Writer[bytes]],
        errors: tuple[Reader[bytes], Writer[bytes]] | None,
    ) -> None:
        super().__init__(both[0]._stream, both[0]._transport, None)
        self._sync = attachment
        self._input = both[1]
        self._errors = errors  # with its writer, whose end would be the socket's
        self.stderr = None if errors is None else errors[0]
        """The container's stderr, with ``stderr=True``. Read it too: the supervisor drops a client that does not read."""

    @classmethod
    async def connect(cls, attachment: SupervisorAttachment) -> Self:
        try:
            both = await over(socket.socket(fileno=os.dup(attachment.fileno())))
            errors = attachment.stderr
            return cls(attachment, both, None if errors is None else await over(socket.socket(fileno=os.dup(errors.fileno()))))
        except BaseException:
            attachment.close()
            raise

    @property
    def terminal(self) -> bool:
        """Whether the container has a terminal."""
        return self._sync.terminal

    def write(self, data: bytes) -> None:
        """Type, without waiting; `drain` waits."""
        self._input.write(data)

    async def drain(self) -> None:
        """Wait until the container has taken most of it. Raises BrokenPipeError, ConnectionResetError: it has ended."""
        await self._input.drain()

    def end_input(self) -> None:
        """See `ociruntime.Attachment.end_input`; what was written before comes first."""
        self._input.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        """See `ociruntime.Attachment.resize`."""
        await work(self._sync.resize, rows, columns)

    @property
    def returncode(self) -> int:
        """See `ociruntime.Attachment.returncode`."""
        return self._sync.returncode

    def close(self) -> None:
        self._input.close()
        if self.stderr is not None:
            self.stderr.close()
        self._sync.close()

    detach = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
