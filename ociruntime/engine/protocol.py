"""Communication with an init process: its reports, its progress page, and the start socket on which it waits."""

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
    """A report of an init process (``struct report``)."""

    kind: Report
    step: int
    value: int
    text: str = ""
    """Message of the kernel about a failed mount."""
    fd: int = -1


def control_pair() -> tuple[int, int]:
    """Create a control socket. Return our end and that of the init process. Raises OSError."""
    ends = ffi.new("int[2]")
    check(lib.oci_pair(ends))
    return ends[0], ends[1]


def wait_readable(control: int, check: Callable[[], object]) -> None:
    """Wait for a message, or for the end of the connection.

    Args:
        check: called every 0.1 seconds. An exception ends the wait.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while not poll.poll(100):
        check()


def receive(control: int, check_wait: Callable[[], object]) -> Message | None:
    """Return the next message; None when the init process has closed its end: it has executed the program, or has died.

    Args:
        check_wait: called every 0.1 seconds until a message arrives. An exception ends the wait.

    Raises:
        ConnectionAbortedError: the peer does not follow the protocol.
        OSError: the connection failed.
    """
    report, passed = ffi.new("struct oci_report *"), ffi.new("int *")
    while (size := lib.oci_receive(control, report, passed)) in _NOTHING_YET:
        check_wait()
    if check(size) == 0:
        return None
    text: bytes = ffi.string(report.words)
    if report.kind not in _KINDS:
        if passed[0] >= 0:
            os.close(passed[0])
        raise ConnectionAbortedError(errno.ECONNABORTED, f"a report of the unknown kind {report.kind}")
    return Message(Report(report.kind), report.step, report.value, text.decode("utf-8", "replace").strip(), passed[0])


class Progress(NamedTuple):
    """Progress of an init process, which can be read even if it can no longer report."""

    step: int
    """Number of the step that it began last."""
    error: int
    """The errno of the failure that ends it, or 0."""
    forked: int
    """Pid of the process that it has forked to continue, or 0."""


PROGRESS_SIZE: Final = 12
"""Bytes of the progress page."""


def read_progress(page: int) -> Progress:
    """Read the progress page of an init process (``struct progress``). Raises OSError."""
    return Progress(*memoryview(os.pread(page, PROGRESS_SIZE, 0)).cast("i"))


class StallDetector:
    """Detects an init process that stays in one step for longer than `STALL`."""

    def __init__(self) -> None:
        self._step = -1
        self._since = 0.0

    def stalled(self, step: int) -> bool:
        """Return whether the init process has been in this step for too long. Call it repeatedly while waiting."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._since = step, now
        return now - self._since > STALL


START_SOCKET: Final = "start.sock"
"""Name of the start socket in the state directory of a container."""


def listen_start(directory: str) -> int:
    """Create the start socket. Return its descriptor, on which the init process accepts one connection. Raises OSError."""
    return _call_at(directory, lib.oci_listen)


def connect_start(directory: str) -> int:
    """Connect to the start socket, which starts the container. Return the connection, over which the init process reports.

    Raises:
        ConnectionRefusedError, FileNotFoundError: no init process waits for it.
    """
    return _call_at(directory, lib.oci_connect)


def _call_at(directory: str, call: Callable[[bytes], int]) -> int:
    # By a descriptor of the directory, as the path may be too long for a socket address.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return check(call(f"/proc/self/fd/{fd}/{START_SOCKET}".encode()), f"{directory}/{START_SOCKET}")
    finally:
        os.close(fd)
