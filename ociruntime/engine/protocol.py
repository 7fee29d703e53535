"""The conversation with an init process: its reports, its progress page, and the start socket that it waits on."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from .._native import check, ffi, lib
from ..plan.ops import Report

_KINDS: Final = frozenset(Report)
_NOTHING_YET: Final = (-errno.EAGAIN, -errno.EINTR)
STALL: Final = 60.0
"""Seconds for one step of the init. A hook has a time limit of its own."""


class Message(NamedTuple):
    """What the init said."""

    kind: Report
    step: int
    value: int
    words: str = ""
    """The kernel's own words about a failed mount."""
    fd: int = -1


def pair() -> tuple[int, int]:
    """A control socket: our end, and the init's."""
    ends = ffi.new("int[2]")
    check(lib.oci_pair(ends))
    return ends[0], ends[1]


def wait_readable(control: int, check: Callable[[], object]) -> None:
    """Wait until there is a message, or the end of the connection.

    Args:
        check: called every tenth of a second; raises to give up.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(100):
        check()


def receive(control: int, waiting: Callable[[], object]) -> Message | None:
    """Return the next message, or None when the init closed its end, which it does by becoming the process, or by dying.

    Args:
        waiting: called every tenth of a second until a message comes; raises to give up.

    Raises:
        ConnectionAbortedError: the peer does not speak as an init does.
    """
    said, passed = ffi.new("struct oci_report *"), ffi.new("int *")
    while (size := lib.oci_receive(control, said, passed)) in _NOTHING_YET:
        waiting()
    if check(size) == 0:
        return None
    words: bytes = ffi.string(said.words)
    if said.kind not in _KINDS:
        if passed[0] >= 0:
            os.close(passed[0])
        raise ConnectionAbortedError(errno.ECONNABORTED, f"a report of the unknown kind {said.kind}")
    return Message(Report(said.kind), said.step, said.value, words.decode("utf-8", "replace").strip(), passed[0])


class Progress(NamedTuple):
    """How far an init has come, also when it can no longer report."""

    step: int
    """The number of the step that it began last."""
    error: int
    """The errno of the failure that ends it, or 0."""
    forked: int
    """The pid of the process that it has forked to go on, or 0."""


SIZE: Final = 12


def progress(page: int) -> Progress:
    """Read the progress page of an init (``struct progress``)."""
    return Progress(*memoryview(os.pread(page, SIZE, 0)).cast("i"))


class Watch:
    """Notices an init that stays in one step for longer than `STALL`."""

    def __init__(self) -> None:
        self._step = -1
        self._since = 0.0

    def stalled(self, step: int) -> bool:
        """Return whether the init has been in this step for too long. Call it while waiting for the init."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._since = step, now
        return now - self._since > STALL


START_SOCKET: Final = "start.sock"
"""Its name in the container's state directory."""


def listen_start(directory: str) -> int:
    """Make the gate; gives the descriptor that the init inherits, and accepts once."""
    return _call_at(directory, lib.oci_listen)


def connect_start(directory: str) -> int:
    """Open the gate; gives the connection over which the init reports until it is the process.

    Raises:
        ConnectionRefusedError, FileNotFoundError: nobody waits at the gate.
    """
    return _call_at(directory, lib.oci_connect)


def _call_at(directory: str, call: Callable[[bytes], int]) -> int:
    # By a descriptor of its directory: a path of its own may be longer than an address.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return check(call(f"/proc/self/fd/{fd}/{START_SOCKET}".encode()), f"{directory}/{START_SOCKET}")
    finally:
        os.close(fd)
