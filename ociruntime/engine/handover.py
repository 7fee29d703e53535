"""Handing a descriptor over a Unix socket: the master of a terminal as runc does, the listener of a filter as the spec has it."""

from __future__ import annotations

import os

_PATIENCE = 10.0
"""Seconds for the peer to take the connection and the message."""


def send(fd: int, path: str | os.PathLike[str], message: bytes = b"/dev/ptmx") -> None:
    """Send a descriptor, which is closed here, with a message to whoever listens on a Unix socket. Raises OSError."""
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_PATIENCE)
            peer.connect(os.fspath(path))
            sent = socket.send_fds(peer, [message], [fd])
            if sent < len(message):  # who has got all may be gone already, and not even nothing can be sent to it
                peer.sendall(message[sent:])
    finally:
        os.close(fd)
