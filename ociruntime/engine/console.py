"""Handing the master of a terminal over a console socket, as runc does."""

from __future__ import annotations

import os
import socket


def send(master: int, path: str | os.PathLike[str]) -> None:
    """Send the master, which is closed here, to whoever listens on a Unix socket. Raises OSError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.connect(os.fspath(path))
            socket.send_fds(peer, [b"/dev/ptmx"], [master])
    finally:
        os.close(master)
