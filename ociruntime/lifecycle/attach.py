"""Attaching to a supervised container (the peers' ``attach``; runtime.md has none)."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from ..attach import Attachment
from ..errors import ContainerNotFound, StateError, WrongStatus
from ..state import Entry
from ..supervisor.protocol import RECORD
from .status import current, first_process
from .supervise import request


def attach(entry: Entry, *, stderr: bool) -> Attachment:
    """Connect to the container's streams. Errors are those of `Container.attach`."""
    document = entry.read()
    if "supervisor" not in document:
        raise StateError(f"container {entry.id!r} has no supervisor to attach to: create it with one")
    status, pidfd = current(document).status, first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "attach to", status, "created or running")
    with ExitStack() as ours:
        ours.callback(os.close, pidfd)
        try:
            record = os.open(entry.path / RECORD, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContainerNotFound(entry.id, str(entry.path.parent)) from None
        ours.callback(os.close, record)
        pairs = [socket.socketpair() for _ in range(1 + stderr)]
        for pair in pairs:
            ours.callback(pair[0].close)
        try:
            request(entry, "attach to", [there for _, there in pairs], attach=True)
        finally:
            for _, there in pairs:
                there.close()
        ours.pop_all()

    def resize(rows: int, columns: int) -> None:
        request(entry, "resize the terminal of", consoleSize={"height": rows, "width": columns})

    here = [here for here, _ in pairs]
    return Attachment(entry.id, *here, record=record, pidfd=pidfd, terminal=document.get("terminal", False), resize=resize)
