"""control.sock: one JSON object for each connection. The end of the connection is the answer; an ``error`` before it says why not.

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

from .loop import HUP, IN, RDHUP, Listener, Loop

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
