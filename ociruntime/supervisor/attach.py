"""Attaching to a supervised container: `Attachment`, one client's connection to its streams (runtime.md has no such operation)."""

from __future__ import annotations

import io
import json
import os
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..errors import ContainerNotFound, StateError, WrongStatus
from ..lifecycle.status import current, first_process
from ..pickling import Unpicklable
from ..state import Entry
from .client import request
from .protocol import RECORD, RECORD_SIZE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Attachment"]


class Attachment(Unpicklable, io.RawIOBase):
    """A connection to the streams of a container, as one of several clients: a raw file that reads its output and writes its input.

    Reading returns ``b""`` at the end: the container has ended, or the supervisor has disconnected a client that did not read.
    Closing detaches; the container goes on. stdout and stderr come as one stream, unless stderr was asked for separately.
    """

    _instead = "send the Container and attach there"

    def __init__(
        self, entry: Entry, peer: socket.socket, stderr: socket.socket | None = None, *, record: int, pidfd: int, terminal: bool
    ) -> None:
        super().__init__()
        self.container_id = entry.id
        self.terminal = terminal
        """Whether the container has a terminal."""
        self.pidfd = pidfd
        """Pidfd of the container's init process; closed with the attachment."""
        self.stderr = io.FileIO(stderr.detach()) if stderr is not None else None
        """The container's stderr, if it was asked for. A client that does not read it is disconnected too."""
        self._entry = entry
        self._peer = peer
        self._record = record

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
        """Send input to the container, and return the number of bytes that were taken. Raises BrokenPipeError after the end."""
        try:
            return self._peer.send(data)
        except BlockingIOError:
            return None

    def end_input(self) -> None:
        """Close the container's stdin, for all clients. No effect on a terminal: write ``b"\\x04"`` instead."""
        self._peer.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the container's terminal.

        Raises:
            StateError: the container has no terminal, or its supervisor has ended.
            WrongStatus: the container has ended.
        """
        request(self._entry, "resize the terminal of", consoleSize={"height": rows, "width": columns})

    @property
    def returncode(self) -> int:
        """The exit code of the container after the end of the stream, negative for a signal; known also when it is deleted already.

        Raises:
            StateError: the container has not ended: the supervisor was killed, or has disconnected a client that did not read.
        """
        record = json.loads(os.pread(self._record, RECORD_SIZE, 0))
        if "exit_code" not in record:
            raise StateError(
                f"container {self.container_id!r} has not ended: this client was disconnected because it did not read fast enough, "
                "or its supervisor is gone"
            )
        return int(record["exit_code"])

    def close(self) -> None:
        if not self.closed:
            self._peer.close()
            if self.stderr is not None:
                self.stderr.close()
            os.close(self._record)
            os.close(self.pidfd)
        super().close()

    detach = close


def attach(entry: Entry, *, stderr: bool) -> Attachment:
    """Connect to the container's streams. Errors are those of `Container.attach`."""
    document = entry.read()
    if "supervisor" not in document:
        raise StateError(
            f"cannot attach to container {entry.id!r}: it has no supervisor; create it with supervise=True (--supervise)"
        )
    status, pidfd = current(document).status, first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "attach to", status, "created or running")
    with ExitStack() as stack:
        stack.callback(os.close, pidfd)
        try:
            record = os.open(f"{entry.directory}/{RECORD}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContainerNotFound(entry.id, entry.root) from None
        stack.callback(os.close, record)
        pairs = [socket.socketpair() for _ in range(1 + stderr)]
        for own_end, _ in pairs:
            stack.callback(own_end.close)
        try:
            request(entry, "attach to", [supervisor_end for _, supervisor_end in pairs], attach=True)
        finally:
            for _, supervisor_end in pairs:
                supervisor_end.close()
        stack.pop_all()
    own_ends = [own_end for own_end, _ in pairs]
    return Attachment(entry, *own_ends, record=record, pidfd=pidfd, terminal=document.get("terminal", False))
