"""control.sock: one JSON object a connection; the end of the connection is the answer, an ``error`` before it says what went wrong.

``{"consoleSize": {"height": H, "width": W}}``, ``{"reopenLog": true}``, ``{"startContainer": true}``, ``{"pause": true}``,
``{"resume": true}``, and of our own ``{"stateChanged": true}``, by which an operation tells that it has written the state.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from .loop import HUP, IN, RDHUP, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_REQUEST = 65536
MAX_CONNECTIONS = 64
PATIENCE = 10.0
"""Seconds that a request may take to arrive."""


class Connection:
    """One request on its way."""

    def __init__(self, control: Control, peer: socket.socket) -> None:
        self._control = control
        self._peer = peer
        self._request = b""
        self.deadline: float | None = time.monotonic() + PATIENCE
        """None when the request is there."""
        peer.setblocking(False)
        control.loop.watch(peer.fileno(), IN | RDHUP, self._ready)

    def _ready(self, events: int) -> None:
        try:
            data = self._peer.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._request += data
        try:
            wanted = json.loads(self._request)
        except ValueError:
            if not data or len(self._request) >= MAX_REQUEST:
                self.answer(f"not a JSON object of at most {MAX_REQUEST} bytes" if self._request else "")
            return
        self.deadline = None
        self._control.loop.forget(self._peer.fileno())
        self._control.carry_out(wanted, self)

    def answer(self, error: str = "") -> None:
        """End the connection, with an error when there is one."""
        if self._peer.fileno() < 0:
            return
        self._control.loop.forget(self._peer.fileno())
        if error:
            try:
                self._peer.send(json.dumps({"error": error}).encode() + b"\n")
            except OSError:
                pass  # it did not wait for the answer
        self._peer.close()
        self._control.connections.remove(self)


class Control:
    """The listener of control.sock.

    Args:
        actions: what is done here, by the request's key; gets the value, raises OSError or ValueError.
        command: words of the command line that carries out a verb: such a request is a process of its own.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        actions: Mapping[str, Callable[[object], None]],
        command: Callable[[str], list[str]],
    ) -> None:
        self.loop = loop
        self.connections: list[Connection] = []
        self._actions = actions
        self._command = command
        self._listener = listener
        listener.setblocking(False)
        loop.watch(listener.fileno(), IN, self._accept)

    _VERBS = {"startContainer": "start", "pause": "pause", "resume": "resume"}

    def _accept(self, events: int) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            return  # it is gone again, or we have no descriptors left
        if len(self.connections) >= MAX_CONNECTIONS:
            peer.close()
            return
        self.connections.append(Connection(self, peer))

    def carry_out(self, wanted: object, connection: Connection) -> None:
        if not isinstance(wanted, dict):
            connection.answer("not a JSON object")
            return
        unknown = [key for key in wanted if key not in self._actions and key not in self._VERBS]
        if unknown or not wanted:
            connection.answer(f"unknown request {', '.join(map(repr, unknown))}")
            return
        try:
            for key in wanted:
                if key in self._actions and wanted[key]:
                    self._actions[key](wanted[key])
        except (OSError, ValueError, TypeError, KeyError) as error:
            connection.answer(str(error))
            return
        verbs = [verb for key, verb in self._VERBS.items() if wanted.get(key)]
        if len(verbs) > 1:
            connection.answer("one operation at a time")
        elif verbs:
            self._run(self._command(verbs[0]), connection)
        else:
            connection.answer()

    def _run(self, words: list[str], connection: Connection) -> None:
        """Carry an operation out as a process: it may take its time, and we stay small."""
        errors = os.memfd_create("errors", os.MFD_CLOEXEC)
        actions = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1)] + [(os.POSIX_SPAWN_DUP2, errors, 2)]
        try:
            pid = os.posix_spawn(sys.executable, words, os.environ, file_actions=actions, setsigdef=range(1, 32))
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.close(errors)
            connection.answer(str(error))
            return

        def ended(events: int) -> None:
            info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            self.loop.forget(pidfd)
            os.close(pidfd)
            failed = info is None or info.si_code != os.CLD_EXITED or info.si_status != 0
            said = os.pread(errors, 4096, 0).decode("utf-8", "replace").strip()
            os.close(errors)
            connection.answer((said or "it failed") if failed else "")

        self.loop.watch(pidfd, IN | HUP, ended)

    def due(self) -> float | None:
        """Seconds until a connection has taken too long; None when there is none."""
        deadlines = [connection.deadline for connection in self.connections if connection.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def expire(self) -> None:
        for connection in tuple(self.connections):
            if connection.deadline is not None and time.monotonic() >= connection.deadline:
                connection.answer("the request did not come")

    def stop(self) -> None:
        self.loop.forget(self._listener.fileno())
        self._listener.close()
        for connection in tuple(self.connections):
            connection.answer("the container has ended")
