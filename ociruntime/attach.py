"""`Attachment`: the streams of a supervised container, for whoever attaches."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import StateError
from .pickling import Unpicklable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Attachment"]


class Attachment(Unpicklable, io.RawIOBase):
    """One of several clients of a container: a raw file that reads what it prints and writes what it is to read.

    ``b""`` is the end: the container has ended, or we have been cut off because we did not read. Closing detaches; the container
    goes on. What stdout and stderr print comes as one stream, unless stderr was asked for separately.
    """

    _instead = "send the Container and attach there"

    def __init__(
        self,
        container_id: str,
        peer: socket.socket,
        errors: socket.socket | None = None,
        *,
        record: int,
        pidfd: int,
        terminal: bool,
        resize: Callable[[int, int], None],
    ) -> None:
        super().__init__()
        self.container_id = container_id
        self.terminal = terminal
        """Whether the container has a terminal."""
        self.pidfd = pidfd
        """Of the container's first process; closed with the attachment."""
        self.stderr = io.FileIO(errors.detach()) if errors is not None else None
        """What the container prints to stderr, where that was asked for; read it as well, or we are cut off."""
        self._peer = peer
        self._record = record
        self._resize = resize

    def fileno(self) -> int:
        return self._peer.fileno()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        try:
            return self._peer.recv_into(buffer)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        """Type; gives how much was taken. Raises BrokenPipeError at the end of the stream."""
        try:
            return self._peer.send(data)
        except BlockingIOError:
            return None

    def end_input(self) -> None:
        """Let the container read an end of file, for all clients. In a terminal that is a key instead, ``b"\\x04"``."""
        self._peer.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the container's terminal. Raises StateError without one, WrongStatus when the container has ended."""
        self._resize(rows, columns)

    @property
    def returncode(self) -> int:
        """The exit code of the container at the end of the stream, negative for a signal; known also when it is deleted already.

        Raises:
            StateError: the container has not ended: the supervisor was killed, or has closed the connection of a slow reader.
        """
        facts = json.loads(os.pread(self._record, 1 << 16, 0))
        if "exit_code" not in facts:
            raise StateError(
                f"container {self.container_id!r} goes on without us: we did not read fast enough, or its supervisor is gone"
            )
        return int(facts["exit_code"])

    def close(self) -> None:
        if not self.closed:
            self._peer.close()
            if self.stderr is not None:
                self.stderr.close()
            os.close(self._record)
            os.close(self.pidfd)
        super().close()

    detach = close
