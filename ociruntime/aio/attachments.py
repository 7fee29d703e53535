"""`Attachment` in the event loop."""

from __future__ import annotations

import os
import socket
from typing import Self

from ..supervisor import attach as _sync
from .streams import Reader, Writer, over
from .waiting import work


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
