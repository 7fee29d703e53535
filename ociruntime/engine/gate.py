"""The start gate: a listening socket in the state directory, which the init waits at and whoever starts connects to."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = "start.sock"


@contextmanager
def _address(directory: Path) -> Iterator[str]:
    """The socket's path by a descriptor of its directory: a path of its own may be longer than an address."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{NAME}"
    finally:
        os.close(fd)


def listen(directory: Path) -> socket.socket:
    """Make the gate; the init inherits it and accepts once."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with _address(directory) as address:
            listener.bind(address)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    return listener


def knock(directory: Path) -> socket.socket:
    """Open the gate; gives the connection over which the init reports until it is the process.

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody waits at the gate.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        with _address(directory) as address:
            peer.connect(address)
    except BaseException:
        peer.close()
        raise
    return peer
