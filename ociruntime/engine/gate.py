"""The start gate: a listening socket in the state directory, which the init waits at and whoever starts connects to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from .native import check, lib

NAME: Final = "start.sock"


def listen(directory: str) -> int:
    """Make the gate; gives the descriptor that the init inherits, and accepts once."""
    return _at(directory, lib.oci_listen)


def knock(directory: str) -> int:
    """Open the gate; gives the connection over which the init reports until it is the process.

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody waits at the gate.
    """
    return _at(directory, lib.oci_connect)


def _at(directory: str, call: Callable[[bytes], int]) -> int:
    # By a descriptor of its directory: a path of its own may be longer than an address.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return check(call(f"/proc/self/fd/{fd}/{NAME}".encode()), f"{directory}/{NAME}")
    finally:
        os.close(fd)
