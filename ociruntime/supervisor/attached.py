"""Who is attached: each gets what the container prints, and what each types goes to the container.

Nobody here can make the container wait. A client that does not read is cut off when its buffer is full, which it sees as the end
of the stream; a container that does not read makes its clients wait.
"""

from __future__ import annotations

import socket

from .loop import HUP, IN, OUT, RDHUP, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .streams import Streams

BUFFER = 256 << 10
"""Bytes that may wait for one client."""
MAX_CLIENTS = 64
_CHUNK = 65536


class Client:
    """One connection to attach.sock."""

    def __init__(self, attached: Attached, peer: socket.socket) -> None:
        self._attached = attached
        self._peer = peer
        self._typing = True
        """Whether it may still send."""
        self.waiting = bytearray()
        peer.setblocking(False)
        attached.loop.watch(peer.fileno(), IN | RDHUP, self._ready)

    def send(self, data: bytes) -> None:
        if not self.waiting:
            try:
                data = data[self._peer.send(data) :]
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if not data:
            return
        if len(self.waiting) + len(data) > BUFFER:
            self._attached.dropped += 1
            self.close()
            return
        self.waiting += data
        self.listen()

    def listen(self) -> None:
        """Ask for the events that there is a use for: input only while the container takes it."""
        if self._peer.fileno() >= 0:
            wanted = IN | RDHUP if self._typing and self._attached.streams.hungry else 0
            self._attached.loop.change(self._peer.fileno(), wanted | (OUT if self.waiting else 0))

    def _ready(self, events: int) -> None:
        if events & OUT and self.waiting:
            try:
                del self.waiting[: self._peer.send(self.waiting)]
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if events & (IN | RDHUP) and self._typing:
            self._receive(gone=bool(events & HUP))
        elif events & HUP:
            self.close()
        self.listen()

    def _receive(self, *, gone: bool) -> None:
        try:
            data = self._peer.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data, gone = b"", True
        if data:
            self._attached.streams.type(data)
            return
        self._typing = False
        if gone:
            self.close()  # detached: others may still type
        else:
            self._attached.streams.end_input()  # it said that its input is over, and still listens

    def close(self) -> None:
        if self._peer.fileno() >= 0:
            self._attached.loop.forget(self._peer.fileno())
            self._peer.close()
            self._attached.clients.remove(self)


class Attached:
    """The clients of attach.sock."""

    def __init__(self, loop: Loop, listener: socket.socket) -> None:
        self.loop = loop
        self.clients: list[Client] = []
        self.dropped = 0
        """How many were cut off because they did not read."""
        self.streams: Streams
        self._listener = listener
        listener.setblocking(False)
        loop.watch(listener.fileno(), IN, self._accept)

    def _accept(self, events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # it is gone again, or we have no descriptors left
        if len(self.clients) >= MAX_CLIENTS:
            peer.close()
            return
        client = Client(self, peer)
        self.clients.append(client)
        if self.streams.current_line:
            client.send(bytes(self.streams.current_line))

    def send(self, data: bytes) -> None:
        for client in tuple(self.clients):
            client.send(data)

    def listen(self) -> None:
        for client in self.clients:
            client.listen()

    @property
    def waiting(self) -> bool:
        return any(client.waiting for client in self.clients)

    def stop(self) -> None:
        """Take nobody new."""
        self.loop.forget(self._listener.fileno())
        self._listener.close()

    def close(self) -> None:
        for client in tuple(self.clients):
            client.close()
