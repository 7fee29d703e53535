"""What creating a container and executing a process in one have in common."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs

from ..errors import UnsupportedError
from ..state import OCI_VERSION, State

if TYPE_CHECKING:
    from ..engine.groups import Group

_SEND_TIMEOUT: Final = 10.0
"""Seconds for the peer to accept the connection and the message."""


@attrs.frozen(kw_only=True)
class Launched:
    """A process in a container that has just been launched."""

    args: tuple[str, ...]
    pid: int
    pidfd: int
    init_pid: int
    """The pid of the container's init process."""
    began: float
    """When the launch began, by `time.monotonic`."""
    cgroups: Sequence[str] = ()
    """Directories of the container's cgroups."""
    oom_kills: int = 0
    """OOM kills in the container before the launch."""
    group: Group | None = None
    """All processes that the process starts, if they are to be known."""
    terminal: int = -1
    """File descriptor of the master of its terminal, if the caller gets it."""


class CleanUps(ExitStack):
    """The clean-ups of a launch: those of `callback` always run, those of `on_failure` if an exception leaves the block."""

    def on_failure(self, function: Callable[..., object], *args: object) -> None:
        """Call a function at the end of the block, if an exception leaves it."""

        def clean_up(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
            if error is not None:
                function(*args)

        self.push(clean_up)


def send_fd(fd: int, path: str | os.PathLike[str], message: bytes = b"/dev/ptmx") -> None:
    """Send a file descriptor with a message to the process that listens on a Unix socket, and close it here. Raises OSError.

    The default message is the one that console sockets get from runc.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_SEND_TIMEOUT)
            peer.connect(os.fspath(path))
            sent = socket.send_fds(peer, [message], [fd])
            if sent < len(message):  # sendall() of nothing would fail if the peer has closed the connection
                peer.sendall(message[sent:])
    finally:
        os.close(fd)


def send_listener(fd: int, path: str, metadata: str, state: State, pid: int) -> None:
    """Send the listener of a seccomp filter to its agent, and close it here (config-linux.md#the-container-process-state).

    Args:
        path: the agent's socket, ``listenerPath``.
        pid: the process of the filter: the init process or an exec process.

    Raises:
        UnsupportedError: no agent takes the listener.
    """
    document: dict[str, object] = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        document["metadata"] = metadata
    document["state"] = state.to_oci()
    try:
        send_fd(fd, path, json.dumps(document).encode())
    except OSError as error:
        raise UnsupportedError(f"$.linux.seccomp.listenerPath: no seccomp agent takes the listener at {path}: {error}") from error
