"""`attach` and `logs` in the event loop; a part of `Container`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import datetime
from typing import Literal, Self

from .. import attach as _sync
from .. import container as _container
from ..lifecycle.logs import LOOK, Log
from ..logs import LogRecord
from .streams import Reader, Writer, over
from .waiting import Making, readable, within, work

_TURN = 500
"""Entries of a log behind which others get their turn."""


class Attachment(Reader[bytes]):
    """`ociruntime.Attachment` in the event loop: read what the container prints, `write` what it is to read.

    ``b""`` is the end: the container has ended, or we have been cut off because we did not read. As a context manager it detaches
    at the end; the container goes on.
    """

    _instead = "send the Container and attach there"

    def __init__(
        self,
        attachment: _sync.Attachment,
        both: tuple[Reader[bytes], Writer[bytes]],
        errors: tuple[Reader[bytes], Writer[bytes]] | None,
    ) -> None:
        super().__init__(both[0]._stream, both[0]._transport, None)
        self._sync = attachment
        self._input = both[1]
        self._errors = errors  # with its writer, whose end would be the socket's
        self.stderr = None if errors is None else errors[0]
        """What the container prints to stderr, where that was asked for; read it as well, or we are cut off."""

    @classmethod
    async def connect(cls, attachment: _sync.Attachment) -> Self:
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

    def returncode(self) -> int:
        """See `ociruntime.Attachment.returncode`."""
        return self._sync.returncode()

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


class Supervised:
    """The operations that need the supervisor of a container, or its log."""

    _sync: _container.Container

    def attach(self, *, stderr: bool = False) -> Making[Attachment]:
        """`ociruntime.Container.attach`, to be awaited or entered by ``async with``."""

        async def make() -> Attachment:
            return await Attachment.connect(await work(self._sync.attach, stderr=stderr, undo=lambda made: made.close()))

        return Making(make)

    async def logs(
        self,
        *,
        follow: bool = False,
        since: datetime | int | None = None,
        tail: int | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
    ) -> AsyncIterator[LogRecord]:
        """`ociruntime.Container.logs` as an asynchronous iterator, without a thread."""
        log = Log(self._sync._entry, follow=follow, since=since, tail=tail, stream=stream)
        writer = log.writer()
        try:
            last, count = writer is None, 0
            with closing(log.items) as items:
                for record in items:
                    if record is not None:
                        yield record
                        count += 1
                        if count % _TURN == 0:
                            await asyncio.sleep(0)
                    elif last:
                        return
                    else:
                        assert writer is not None, "somebody to wait for"
                        last = await within(LOOK, readable(writer))
        finally:
            if writer is not None:
                os.close(writer)

    async def reopen_log(self) -> None:
        """See `ociruntime.Container.reopen_log`."""
        await work(self._sync.reopen_log)
