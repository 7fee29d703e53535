"""The attach clients of a supervised container: each gets what the container prints, and may write to its stdin.

A client cannot delay the container. A client that does not read is disconnected when it is too far behind, which it sees as the end
of the stream. A container that does not read its input does delay its clients.
"""

from __future__ import annotations

import socket

from .loop import HUP, IN, OUT, RDHUP, Listener, Loop
from .streams import ContainerStreams

BUFFER = 256 << 10
"""Bytes of memory for what one client has not read yet."""
MAX_CLIENTS = 512
_CHUNK = 65536
_OVERHEAD = 128
"""Approximate memory of a chunk besides its data."""


class Chunk:
    """A piece of output. Chunks form a list that all clients share; a chunk that every client has sent is freed."""

    __slots__ = ("data", "next", "stream")

    def __init__(self) -> None:
        self.stream = self.data = b""
        self.next: Chunk | None = None
        """None in the last chunk, which is empty until there is more output."""


class Outlet:
    """A socket that gets the output from a chunk on.

    Args:
        stream: the name of the only stream that it gets; None for both.
    """

    def __init__(self, peer: socket.socket, chunk: Chunk, stream: bytes | None) -> None:
        peer.setblocking(False)
        self.peer = peer
        self._chunk = chunk
        self._stream = stream
        self._sent = 0
        self.behind = 0
        """Bytes of memory of the chunks that are still to be sent."""

    def flush(self) -> None:
        """Send as much as the socket takes. Raises OSError if the peer has closed it."""
        while (following := self._chunk.next) is not None:
            if self._stream is None or self._stream == self._chunk.stream:
                try:
                    self._sent += self.peer.send(memoryview(self._chunk.data)[self._sent :], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                if self._sent < len(self._chunk.data):
                    return
            self.behind -= len(self._chunk.data) + _OVERHEAD
            self._chunk, self._sent = following, 0


class Client:
    """One client: a socket for both directions, and a second one if it wants stderr separately."""

    def __init__(self, clients: Clients, peer: socket.socket, stderr: socket.socket | None) -> None:
        self._clients = clients
        self._peer = peer
        self._outlets = [Outlet(peer, clients.last, None if stderr is None else b"stdout")]
        if stderr is not None:
            self._outlets.append(Outlet(stderr, clients.last, b"stderr"))
        self._sends_input = True
        """Whether the client may still send input."""
        self._reads_output = True
        """Whether the client still reads. Input that it has sent before remains valid."""
        self.watch()

    @property
    def behind(self) -> bool:
        """Whether output is still to be sent."""
        return any(outlet.behind for outlet in self._outlets)

    def send_now(self, data: bytes) -> None:
        """Send data that is not part of the output's chunks."""
        try:
            self._peer.send(data)
        except OSError:
            self._stop_output()

    def add_output(self, size: int) -> None:
        """Send a new chunk, of this size in memory."""
        for outlet in self._outlets:
            outlet.behind += size
        self.flush()

    def flush(self) -> None:
        try:
            for outlet in self._outlets:
                outlet.flush()
        except OSError:
            self._stop_output()
        if any(outlet.behind > BUFFER for outlet in self._outlets):
            self._clients.dropped += 1
            self.close()
        self.watch()

    def watch(self) -> None:
        """Watch the sockets: for room if output waits, for input only if the container accepts it."""
        if self._peer.fileno() < 0:
            return
        loop, receives = self._clients.loop, self._sends_input and self._clients.streams.accepts_input
        if not self._reads_output and self._sends_input and not receives:
            loop.unwatch(self._peer.fileno())  # its hang-up would be reported all the time
            return
        masks = [OUT if outlet.behind else 0 for outlet in self._outlets] or [0]
        loop.watch(self._peer.fileno(), masks[0] | (IN | RDHUP if receives else 0), self._ready)
        for outlet, mask in zip(self._outlets[1:], masks[1:], strict=True):
            loop.watch(outlet.peer.fileno(), mask, self._stderr_ready)

    def _ready(self, events: int) -> None:
        if events & HUP:
            self._stop_output()
        if self._sends_input and self._clients.streams.accepts_input and events & (IN | RDHUP | HUP):
            self._receive()
        self.flush()

    def _stderr_ready(self, events: int) -> None:
        if events & HUP:
            self._close_stderr()
        self.flush()

    def _receive(self) -> None:
        try:
            data = self._peer.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data, self._reads_output = b"", False
        if data:
            self._clients.streams.write_input(data)
            return
        self._sends_input = False
        if self._reads_output:
            self._clients.streams.end_input()  # the client has shut down its sending side only
        else:
            self.close()  # detached: other clients may still send input

    def _close_stderr(self) -> None:
        for outlet in self._outlets[1:]:
            self._clients.loop.unwatch(outlet.peer.fileno())
            outlet.peer.close()
        del self._outlets[1:]

    def _stop_output(self) -> None:
        """Send nothing more; input that is still in the socket is passed on."""
        self._reads_output = False
        self._close_stderr()
        self._outlets.clear()
        if not self._sends_input:
            self.close()

    def close(self) -> None:
        if self._peer.fileno() >= 0:
            self._close_stderr()
            self._outlets.clear()
            self._clients.loop.unwatch(self._peer.fileno())
            self._peer.close()
            self._clients.remove(self)


class Clients:
    """All clients: those that connect to attach.sock, and those that control.sock brings."""

    def __init__(self, loop: Loop, listener: socket.socket, streams: ContainerStreams) -> None:
        self.loop = loop
        self.streams = streams
        self.dropped = 0
        """Number of clients that were disconnected because they did not read."""
        self.last = Chunk()
        self._clients: list[Client] = []
        self._listener = Listener(loop, listener, self._accept, lambda peer: None)

    def _accept(self, peer: socket.socket) -> None:
        try:
            self.add(peer)
        except OSError:
            peer.close()  # attach.sock has no room for a reason

    def add(self, peer: socket.socket, stderr: socket.socket | None = None) -> None:
        """Take a client, and own its sockets. Raises OSError: there are too many."""
        if len(self._clients) >= MAX_CLIENTS:
            raise OSError(f"there are {MAX_CLIENTS} clients already")
        client = Client(self, peer, stderr)
        self._clients.append(client)
        if self.streams.current_line:
            client.send_now(bytes(self.streams.current_line))

    def remove(self, client: Client) -> None:
        """Forget a client that is closed."""
        self._clients.remove(client)

    def send(self, stream: bytes, data: bytes) -> None:
        """Send what was printed to every client."""
        last = self.last
        self.last = Chunk()
        last.stream, last.data, last.next = stream, data, self.last
        for client in tuple(self._clients):
            client.add_output(len(data) + _OVERHEAD)

    def watch(self) -> None:
        """Watch the clients' sockets again, after the container has accepted input."""
        for client in self._clients:
            client.watch()

    @property
    def behind(self) -> bool:
        """Whether output is still to be sent to a client."""
        return any(client.behind for client in self._clients)

    def stop(self) -> None:
        """Take no further clients."""
        self._listener.close()

    def close(self) -> None:
        for client in tuple(self._clients):
            client.close()
