"""Who is attached: each gets what the container prints, and what each types goes to the container.

Nobody here can make the container wait. A client that does not read is cut off when it is too far behind, which it sees as the end
of the stream; a container that does not read makes its clients wait.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from .loop import HUP, IN, OUT, RDHUP, Door, Loop

if TYPE_CHECKING:
    from .streams import Streams

BUFFER = 256 << 10
"""Bytes of memory that a client may leave unread."""
MAX_CLIENTS = 512
_CHUNK = 65536
_OBJECT = 128
"""What a chunk takes beside its bytes, about."""


class Chunk:
    """A piece of what was printed. All clients share them; one that nobody is to get any more is gone."""

    __slots__ = ("data", "next", "stream")

    def __init__(self) -> None:
        self.stream = self.data = b""
        self.next: Chunk | None = None
        """None for the last one, which is still empty."""


class Outlet:
    """A socket that gets what is printed from here on.

    Args:
        wanted: the stream that it gets; None for both.
    """

    def __init__(self, peer: socket.socket, chunk: Chunk, wanted: bytes | None) -> None:
        peer.setblocking(False)
        self.peer = peer
        self._chunk = chunk
        self._wanted = wanted
        self._sent = 0
        self.behind = 0
        """Bytes of memory that are kept for it."""

    def flush(self) -> None:
        """Send as much as the socket takes. Raises OSError when nobody reads it any more."""
        while (after := self._chunk.next) is not None:
            if self._wanted is None or self._wanted == self._chunk.stream:
                try:
                    self._sent += self.peer.send(memoryview(self._chunk.data)[self._sent :], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                if self._sent < len(self._chunk.data):
                    return
            self.behind -= len(self._chunk.data) + _OBJECT
            self._chunk, self._sent = after, 0


class Client:
    """One client: a socket for both directions, and another one for stderr when it wants that separately."""

    def __init__(self, attached: Attached, peer: socket.socket, errors: socket.socket | None) -> None:
        self._attached = attached
        self._peer = peer
        self._outlets = [Outlet(peer, attached.last, None if errors is None else b"stdout")]
        if errors is not None:
            self._outlets.append(Outlet(errors, attached.last, b"stderr"))
        self._typing = True
        """Whether it may still send."""
        self._gone = False
        """Whether it does not listen any more; what it typed before is still there."""
        self.listen()

    @property
    def waiting(self) -> bool:
        return any(outlet.behind for outlet in self._outlets)

    def greet(self, line: bytes) -> None:
        try:
            self._peer.send(line)
        except OSError:
            self._leave()

    def printed(self, cost: int) -> None:
        """There is a new chunk."""
        for outlet in self._outlets:
            outlet.behind += cost
        self.flush()

    def flush(self) -> None:
        try:
            for outlet in self._outlets:
                outlet.flush()
        except OSError:
            self._leave()
        if any(outlet.behind > BUFFER for outlet in self._outlets):
            self._attached.dropped += 1
            self.close()
        self.listen()

    def listen(self) -> None:
        """Ask for the events that there is a use for: input only while the container takes it."""
        if self._peer.fileno() < 0:
            return
        loop, hungry = self._attached.loop, self._typing and self._attached.streams.hungry
        if self._gone and self._typing and not hungry:
            loop.forget(self._peer.fileno())  # it would tell us all the time; we look again when there is room
            return
        masks = [OUT if outlet.behind else 0 for outlet in self._outlets] or [0]
        loop.watch(self._peer.fileno(), masks[0] | (IN | RDHUP if hungry else 0), self._ready)
        for outlet, mask in zip(self._outlets[1:], masks[1:], strict=True):
            loop.watch(outlet.peer.fileno(), mask, self._errors_ready)

    def _ready(self, events: int) -> None:
        if events & HUP:
            self._leave()
        if self._typing and self._attached.streams.hungry and events & (IN | RDHUP | HUP):
            self._receive()
        self.flush()

    def _errors_ready(self, events: int) -> None:
        if events & HUP:
            self._drop_errors()
        self.flush()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data, self._gone = b"", True
        if data:
            self._attached.streams.type(data)
            return
        self._typing = False
        if self._gone:
            self.close()  # detached: others may still type
        else:
            self._attached.streams.end_input()  # it said that its input is over, and still listens

    def _drop_errors(self) -> None:
        for outlet in self._outlets[1:]:
            self._attached.loop.forget(outlet.peer.fileno())
            outlet.peer.close()
        del self._outlets[1:]

    def _leave(self) -> None:
        """It listens no more; what it has typed still counts."""
        self._gone = True
        self._drop_errors()
        self._outlets.clear()
        if not self._typing:
            self.close()

    def close(self) -> None:
        if self._peer.fileno() >= 0:
            self._drop_errors()
            self._outlets.clear()
            self._attached.loop.forget(self._peer.fileno())
            self._peer.close()
            self._attached.clients.remove(self)


class Attached:
    """All clients: those that came to attach.sock, and those that asked for it over control.sock."""

    def __init__(self, loop: Loop, listener: socket.socket) -> None:
        self.loop = loop
        self.clients: list[Client] = []
        self.dropped = 0
        """How many were cut off because they did not read."""
        self.last = Chunk()
        self.streams: Streams
        self._door = Door(loop, listener, self._accept, lambda peer: None)

    def _accept(self, peer: socket.socket) -> None:
        try:
            self.add(peer)
        except OSError:
            peer.close()  # which is all that it can be told

    def add(self, peer: socket.socket, errors: socket.socket | None = None) -> None:
        """Take a client, and its sockets. Raises OSError when there are too many."""
        if len(self.clients) >= MAX_CLIENTS:
            raise OSError(f"there are {MAX_CLIENTS} clients already")
        client = Client(self, peer, errors)
        self.clients.append(client)
        if self.streams.current_line:
            client.greet(bytes(self.streams.current_line))

    def send(self, stream: bytes, data: bytes) -> None:
        last = self.last
        self.last = Chunk()
        last.stream, last.data, last.next = stream, data, self.last
        for client in tuple(self.clients):
            client.printed(len(data) + _OBJECT)

    def listen(self) -> None:
        for client in self.clients:
            client.listen()

    @property
    def waiting(self) -> bool:
        return any(client.waiting for client in self.clients)

    def stop(self) -> None:
        """Take nobody new."""
        self._door.close()

    def close(self) -> None:
        for client in tuple(self.clients):
            client.close()
