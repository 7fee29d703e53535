"""The sockets of a supervisor for attach clients and requests.

control.sock takes one JSON object for each connection. The end of the connection is the answer, after an ``error`` if there is one.

Requests: ``{"consoleSize": {"height": H, "width": W}}``, ``{"reopenLog": true}``, ``{"startContainer": true}``, ``{"pause": true}``
and ``{"resume": true}``. This package also sends ``{"stateChanged": true}`` after an operation has written the state, and
``{"attach": true}`` with one or two sockets as SCM_RIGHTS: for both streams, or for stdout and stderr.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping

from .streams import HUP, IN, OUT, RDHUP, ContainerStreams, Listener, Loop

MAX_REQUEST = 65536
COMMANDS = {"startContainer": "start", "pause": "pause", "resume": "resume"}
"""Requests that a command carries out, as a process of its own."""
MAX_CONNECTIONS = 64
MAX_SOCKETS = 2
TIMEOUT = 10.0
"""Seconds for a request to arrive."""


class Connection:
    """A connection with one request."""

    def __init__(self, control: Control, peer: socket.socket) -> None:
        self._control = control
        self._peer = peer
        self._request = b""
        self.fds: list[int] = []
        """File descriptors of the request. Those that are still here at the end of the connection are closed."""
        self.deadline: float | None = time.monotonic() + TIMEOUT
        """When the request must be complete, by the monotonic clock; None when it is."""
        peer.setblocking(False)
        control.loop.watch(peer.fileno(), IN | RDHUP, self._ready)

    def _ready(self, events: int) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._peer, MAX_REQUEST, MAX_SOCKETS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        self._request += data
        self.fds += fds
        if flags & socket.MSG_CTRUNC:
            self.answer("too many open files, or descriptors with one request")
            return
        try:
            request = json.loads(self._request)
        except RecursionError:
            self.answer("nested too deeply")
            return
        except ValueError:
            if not data or len(self._request) >= MAX_REQUEST:
                self.answer(f"not a JSON object of at most {MAX_REQUEST} bytes" if self._request else "")
            return
        self.deadline = None
        self._control.loop.unwatch(self._peer.fileno())
        self._control.handle(request, self)

    def answer(self, error: str = "") -> None:
        """Close the connection, after an error if there is one."""
        if self._peer.fileno() < 0:
            return
        self._control.loop.unwatch(self._peer.fileno())
        for fd in self.fds:
            os.close(fd)
        if error:
            send_error(self._peer, error)
        self._peer.close()
        self._control.connections.remove(self)


def send_error(peer: socket.socket, error: str) -> None:
    try:
        peer.send(json.dumps({"error": error}).encode() + b"\n", socket.MSG_DONTWAIT)
    except OSError:
        pass  # the peer did not wait for the answer


class Control:
    """The requests of control.sock.

    Args:
        actions: functions for the requests that are carried out here. Each takes the value and the file descriptors of the request,
            and raises OSError, ValueError, TypeError or KeyError.
        command_line: returns the command line for an operation of `COMMANDS`.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        actions: Mapping[str, Callable[[object, list[int]], None]],
        command_line: Callable[[str], list[str]],
    ) -> None:
        self.loop = loop
        self.connections: list[Connection] = []
        self._actions = actions
        self._command_line = command_line
        self._listener = Listener(loop, listener, self._accept, lambda peer: send_error(peer, "too many open files"))

    def _accept(self, peer: socket.socket) -> None:
        if len(self.connections) < MAX_CONNECTIONS:
            self.connections.append(Connection(self, peer))
            return
        send_error(peer, f"there are {MAX_CONNECTIONS} requests already")
        peer.close()

    def handle(self, request: object, connection: Connection) -> None:
        """Carry a request out, and answer it."""
        if not isinstance(request, dict):
            connection.answer("not a JSON object")
            return
        unknown = [key for key in request if key not in self._actions and key not in COMMANDS]
        if unknown or not request:
            connection.answer(f"unknown request {', '.join(map(repr, unknown))}")
            return
        unclear = [key for key, value in request.items() if key != "consoleSize" and not isinstance(value, bool)]
        if unclear:
            connection.answer(f"{', '.join(map(repr, unclear))} is neither true nor false")
            return
        try:
            for key in request:
                if key in self._actions and request[key]:
                    self._actions[key](request[key], connection.fds)
        except (OSError, ValueError, TypeError, KeyError) as error:
            connection.answer(str(error))
            return
        operations = [operation for key, operation in COMMANDS.items() if request.get(key)]
        if len(operations) > 1:
            connection.answer("one operation at a time")
        elif operations:
            self._run(self._command_line(operations[0]), connection)
        else:
            connection.answer()

    def _run(self, command_line: list[str], connection: Connection) -> None:
        """Carry an operation out as a process of its own: it may take long, and its imports are not kept in memory."""
        errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        actions = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1)] + [(os.POSIX_SPAWN_DUP2, errors, 2)]
        try:
            pid = os.posix_spawn(sys.executable, command_line, os.environ, file_actions=actions, setsigdef=range(1, 32))
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.close(errors)
            connection.answer(str(error))
            return

        def ended(events: int) -> None:
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            self.loop.unwatch(pidfd)
            os.close(pidfd)
            failed = info is None or info.si_code != os.CLD_EXITED or info.si_status != 0
            message = os.pread(errors, 4096, 0).decode("utf-8", "replace").strip()
            os.close(errors)
            connection.answer((message or "it failed") if failed else "")

        self.loop.watch(pidfd, IN | HUP, ended)

    def due(self) -> float | None:
        """Return the seconds until `expire` has something to do; None if no request is incomplete."""
        deadlines = [connection.deadline for connection in self.connections if connection.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def expire(self) -> None:
        """Refuse requests that have not arrived in time."""
        for connection in tuple(self.connections):
            if connection.deadline is not None and time.monotonic() >= connection.deadline:
                connection.answer("the request did not come")

    def stop(self) -> None:
        """Take no further requests. Operations that have begun are answered when they end."""
        self._listener.close()
        for connection in tuple(self.connections):
            if connection.deadline is not None:
                connection.answer("the container has ended")

    def close(self) -> None:
        for connection in tuple(self.connections):
            connection.answer("the container has ended")


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
