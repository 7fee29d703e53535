"""What a supervisor shares with the processes that create, use and read its container: files, record and messages.

The supervisor imports this module, so it imports little itself.
"""

from __future__ import annotations

import errno
import json
import os
import socket

from ..files import socket_path

RECORD = "supervisor.json"
"""File in the state directory with what only the supervisor knows: exit code, time of the exit, losses of the log."""
RECORD_SIZE = 4096
LOG = "log"
"""The log in the state directory, if the caller gave no other path."""
ERROR_LOG = "supervisor.err"
"""File in the state directory for the supervisor's stderr: it stays empty unless the supervisor fails."""
ATTACH_SOCKET = "attach.sock"
CONTROL_SOCKET = "control.sock"
LOG_FORMATS = ("kubernetes", "json", "basic")
MAX_FDS = 250
"""File descriptors in one message (SCM_MAX_FD of the kernel is 253)."""
_MESSAGE_SIZE = 1 << 20


def read_record(directory: str | os.PathLike[str]) -> dict[str, object]:
    """Return the supervisor's record of a container; it is empty without a supervisor. Raises ValueError: it is damaged."""
    path = f"{os.fspath(directory)}/{RECORD}"
    for _ in range(100):
        try:
            return _read_once(path)
        except ValueError:
            continue  # the supervisor is writing it
    return _read_once(path)


def _read_once(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            record: dict[str, object] = json.loads(file.read(RECORD_SIZE))
    except FileNotFoundError:
        return {}
    return record


def send_message(channel: socket.socket, fds: list[int], **members: object) -> None:
    """Send a JSON object between a supervisor and the process that creates the container. Raises OSError."""
    socket.send_fds(channel, [json.dumps(members).encode()], fds)


def receive_message(channel: socket.socket) -> tuple[dict[str, object] | None, list[int]]:
    """Return the next JSON object and its file descriptors; None at the end of the connection.

    Raises:
        OSError: EMFILE when a descriptor was lost, because this process has as many as it may have.
    """
    try:
        data, fds, flags, _ = socket.recv_fds(channel, _MESSAGE_SIZE, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []  # the peer ended without reading the last message
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return json.loads(data) if data else None, fds


def connect(directory: str, name: str) -> socket.socket:
    """Connect to a supervisor's socket in the state directory. Raises OSError."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_path(directory, name) as path:
            peer.connect(path)
    except BaseException:
        peer.close()
        raise
    return peer
