"""Handing the listener of a seccomp filter to its agent (config-linux.md#the-container-process-state)."""

from __future__ import annotations

import json

from ..engine import handover
from ..errors import UnsupportedError
from ..state import OCI_VERSION, State


def send(fd: int, path: str, metadata: str, state: State, pid: int) -> None:
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
        handover.send(fd, path, json.dumps(document).encode())
    except OSError as error:
        raise UnsupportedError(f"$.linux.seccomp.listenerPath: no seccomp agent takes the listener at {path}: {error}") from error
