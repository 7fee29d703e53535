"""Streams of a program, read and written in the event loop."""

from __future__ import annotations

import asyncio
import codecs
import errno
import io
import os
import socket
from collections.abc import AsyncIterator
from typing import Any, AnyStr, Generic

from ..pickling import Unpicklable
from ..streams import Codec


class Reader(Unpicklable, Generic[AnyStr]):
    """A stream to read, of bytes or text; iterating gives its lines as they come."""

    _instead = "send what was read from it"

    def __init__(self, stream: asyncio.StreamReader, transport: asyncio.BaseTransport, codec: Codec | None) -> None:
        self._stream = stream
        self._transport = transport
        self._codec = codec
        self._decoder: io.IncrementalNewlineDecoder | None = None
        if codec is not None:  # every kind of line end becomes one, as in text files
            decoder = codecs.getincrementaldecoder(codec.encoding)(codec.errors)
            self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._text = ""
        self._begun: list[bytes] = []
        """Of a line whose end has not come yet, so that a reader that is cancelled loses nothing."""

    async def read(self, size: int = -1) -> AnyStr:
        """What there is, at most ``size`` bytes of it; without a size everything up to the end. Empty at the end."""
        while True:
            raw = await self._stream.read(size)
            whole: Any = b"".join(self._begun) + raw
            self._begun.clear()
            if self._decoder is not None:
                whole, self._text = self._text + self._decoder.decode(whole, final=size < 0 or not raw), ""
            if whole or not raw:
                return whole  # type: ignore[no-any-return]

    async def readline(self) -> AnyStr:
        """The next line with its end; empty at the end of the stream."""
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
        self._stream.write(raw)

    async def drain(self) -> None:
        """Wait until there is room for more. Raises BrokenPipeError, ConnectionResetError: nobody reads any more."""
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
