"""Handing a descriptor over a Unix socket: the master of a terminal, and the listener of a seccomp filter to its agent."""

from __future__ import annotations

import json
import os
import socket
from typing import Final

from ..errors import UnsupportedError
from ..state import OCI_VERSION, State


def send_listener(fd: int, path: str, metadata: str, state: State, pid: int) -> None:
    """Send the listener with the container process state to whoever listens at ``listenerPath``; it is closed here.

    Args:
        pid: the process that the filter is for: the container's first one, or a further one.

    Raises:
        UnsupportedError: nobody listens there.
    """
    document: dict[str, object] = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        document["metadata"] = metadata
    document["state"] = state.to_oci()
    try:
        send_fd(fd, path, json.dumps(document).encode())
    except OSError as error:
        raise UnsupportedError(f"$.linux.seccomp.listenerPath: no seccomp agent takes the listener at {path}: {error}") from error


_TIMEOUT: Final = 10.0
"""Seconds for the peer to take the connection and the message."""


def send_fd(fd: int, path: str | os.PathLike[str], message: bytes = b"/dev/ptmx") -> None:
    """Send a descriptor, which is closed here, with a message to whoever listens on a Unix socket. Raises OSError."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_TIMEOUT)
            peer.connect(os.fspath(path))
            sent = socket.send_fds(peer, [message], [fd])
            if sent < len(message):  # who has got all may be gone already, and not even nothing can be sent to it
                peer.sendall(message[sent:])
    finally:
        os.close(fd)
