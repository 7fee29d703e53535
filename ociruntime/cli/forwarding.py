"""Signals that people send to a command, passed on to the process that it runs."""

from __future__ import annotations

import signal
from collections.abc import Collection
from types import FrameType

from .common import Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

KEPT = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH}
    | {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
    | {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
)
"""Signals that are not passed on: those about ourselves, and those of the job control of the shell that we run under."""


_ENDING = frozenset({signal.SIGINT, signal.SIGTERM})


class Forwarding:
    """Passes the signals that this process gets on to the container's process.

    A signal that comes before that process exists waits for it. The same signal again ends the command then; a second INT or TERM
    ends it always, as the process may ignore the first one.

    Args:
        ours: signals that are not passed on, but end the command.
    """

    def __init__(self, ours: Collection[int] = ()) -> None:
        self.pidfd = -1
        self._early: list[int] = []
        self._passed: set[int] = set()
        self._ours = ours

    def to(self, pidfd: int) -> int:
        """From here on to this process, the early ones included."""
        self.pidfd = pidfd
        for number in self._early:
            self._forward(number, None)
        return pidfd

    def stop(self) -> None:
        """Pass nothing on any more, so that cleaning up is interrupted only by a signal that comes twice from here on."""
        self.pidfd = -1
        self._early.clear()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if number in self._ours:
            raise Interrupted(number)
        if self.pidfd < 0:
            if number in self._early:
                raise Interrupted(number)
            self._early.append(number)
            return
        if number in _ENDING and number in self._passed:
            raise Interrupted(number)
        self._passed.add(number)
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # it ended by itself

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._forward)
            for number in signal.valid_signals() - KEPT
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
