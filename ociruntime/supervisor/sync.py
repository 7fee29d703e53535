"""The state, to whoever listens at ``--sync-socket``: one connection for each change of the status."""

from __future__ import annotations

import errno
import os
import socket
import time

PATIENCE = 5.0
"""Seconds that a listener may have a full backlog."""
_AGAIN = 0.05


class Sync:
    """Sends state documents in order, without waiting for anybody."""

    def __init__(self, path: str, directory: str) -> None:
        self._path = path
        self._directory = directory
        self._last = ""
        self._queue: list[tuple[float, bytes]] = []
        self.lost = 0
        """How many could not be delivered."""

    def changed(self) -> None:
        """Read the state, and send it when the status is another one."""
        # Only who asked for it pays for the import.
        from ..errors import ContainerNotFound
        from ..lifecycle.status import current
        from ..state import StateStore

        root, container_id = os.path.split(self._directory)
        try:
            state = current(StateStore(root).entry(container_id).read())
        except ContainerNotFound:
            return  # deleted meanwhile
        if str(state.status) != self._last:
            self._last = str(state.status)
            self._queue.append((time.monotonic() + PATIENCE, state.to_json(indent=None).encode()))
            self.send()

    def due(self) -> float | None:
        return _AGAIN if self._queue else None

    def send(self) -> None:
        while self._queue:
            deadline, document = self._queue[0]
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as peer:
                try:
                    peer.connect(self._path)
                    sent = peer.send(document)
                except OSError as error:
                    if error.errno == errno.EAGAIN and time.monotonic() < deadline:
                        return
                    sent = 0
            self.lost += sent < len(document)
            del self._queue[0]
