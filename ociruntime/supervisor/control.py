"""control.sock: one JSON object a connection; the end of the connection is the answer, an ``error`` before it says what went wrong.

``{"consoleSize": {"height": H, "width": W}}``, ``{"reopenLog": true}``, ``{"startContainer": true}``, ``{"pause": true}``,
``{"resume": true}``, and of our own ``{"stateChanged": true}``, by which an operation tells that it has written the state, and
``{"attach": true}``, with one or two sockets as SCM_RIGHTS: for all that attach.sock gives, or with stderr on the second one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping

from .loop import HUP, IN, RDHUP, Door, Loop

MAX_REQUEST = 65536
VERBS = {"startContainer": "start", "pause": "pause", "resume": "resume"}
"""Requests that run as a command."""
MAX_CONNECTIONS = 64
MAX_FDS = 2
PATIENCE = 10.0
"""Seconds that a request may take to arrive."""


class Connection:
    """One request on its way."""

    def __init__(self, control: Control, peer: socket.socket) -> None:
        self._control = control
        self._peer = peer
        self._request = b""
        self.fds: list[int] = []
        """Descriptors that came with the request; closed with it, when nobody takes them out."""
        self.deadline: float | None = time.monotonic() + PATIENCE
        """None when the request is there."""
        peer.setblocking(False)
        control.loop.watch(peer.fileno(), IN | RDHUP, self._ready)

    def _ready(self, events: int) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(self._peer, MAX_REQUEST, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
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
            wanted = json.loads(self._request)
        except RecursionError:
            self.answer("nested too deeply")
            return
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
        for fd in self.fds:
            os.close(fd)
        if error:
            tell(self._peer, error)
        self._peer.close()
        self._control.connections.remove(self)


def tell(peer: socket.socket, error: str) -> None:
    try:
        peer.send(json.dumps({"error": error}).encode() + b"\n", socket.MSG_DONTWAIT)
    except OSError:
        pass  # it did not wait for the answer


class Control:
    """The listener of control.sock.

    Args:
        actions: what is done here, by the request's key; gets the value and the descriptors, raises OSError, ValueError, TypeError
            or KeyError.
        command: words of the command line that carries out a verb: such a request is a process of its own.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        actions: Mapping[str, Callable[[object, list[int]], None]],
        command: Callable[[str], list[str]],
    ) -> None:
        self.loop = loop
        self.connections: list[Connection] = []
        self._actions = actions
        self._command = command
        self._door = Door(loop, listener, self._accept, lambda peer: tell(peer, "too many open files"))

    def _accept(self, peer: socket.socket) -> None:
        if len(self.connections) < MAX_CONNECTIONS:
            self.connections.append(Connection(self, peer))
            return
        tell(peer, f"there are {MAX_CONNECTIONS} requests already")
        peer.close()

    def carry_out(self, wanted: object, connection: Connection) -> None:
        if not isinstance(wanted, dict):
            connection.answer("not a JSON object")
            return
        unknown = [key for key in wanted if key not in self._actions and key not in VERBS]
        if unknown or not wanted:
            connection.answer(f"unknown request {', '.join(map(repr, unknown))}")
            return
        unclear = [key for key, value in wanted.items() if key != "consoleSize" and not isinstance(value, bool)]
        if unclear:
            connection.answer(f"{', '.join(map(repr, unclear))} is neither true nor false")
            return
        try:
            for key in wanted:
                if key in self._actions and wanted[key]:
                    self._actions[key](wanted[key], connection.fds)
        except (OSError, ValueError, TypeError, KeyError) as error:
            connection.answer(str(error))
            return
        verbs = [verb for key, verb in VERBS.items() if wanted.get(key)]
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
        """Take no further requests; what is being carried out is answered when it is done."""
        self._door.close()
        for connection in tuple(self.connections):
            if connection.deadline is not None:
                connection.answer("the container has ended")

    def close(self) -> None:
        for connection in tuple(self.connections):
            connection.answer("the container has ended")
