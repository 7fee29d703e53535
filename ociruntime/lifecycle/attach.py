"""Attaching to a supervised container (the peers' ``attach``; runtime.md has none)."""

from __future__ import annotations

import os

from ..attach import Attachment
from ..errors import StateError, WrongStatus
from ..state import Entry, Status
from ..supervisor.record import NAME
from .status import current, first_process
from .supervise import connect, request


def attach(entry: Entry) -> Attachment:
    """Connect to the container's streams. Errors are those of `Container.attach`."""
    document = entry.read()
    if "supervisor" not in document:
        raise StateError(f"container {entry.id!r} has no supervisor to attach to: create it with one")
    pidfd = first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "attach to", Status.STOPPED, "created or running")
    record = os.open(entry.path / NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        peer = connect(entry, "attach.sock")
    except (ConnectionRefusedError, FileNotFoundError):
        os.close(record)
        os.close(pidfd)
        if current(entry.read()).status is Status.STOPPED:
            raise WrongStatus(entry.id, "attach to", Status.STOPPED, "created or running") from None
        raise StateError(f"container {entry.id!r} cannot be attached to: its supervisor is gone") from None
    except BaseException:
        os.close(record)
        os.close(pidfd)
        raise

    def resize(rows: int, columns: int) -> None:
        request(entry, consoleSize={"height": rows, "width": columns})

    return Attachment(entry.id, peer, record, pidfd, terminal=document.get("terminal", False), resize=resize)
