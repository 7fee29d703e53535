"""Signals that the command receives, forwarded to the process that it runs."""

from __future__ import annotations

import signal
from collections.abc import Collection
from types import FrameType
from typing import Final, Self

from .common import Interrupted

NOT_FORWARDED: Final = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH}
    | {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
    | {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
)
"""Signals about the command itself, and those of the job control of its shell."""

_TERMINATING: Final = frozenset({signal.SIGINT, signal.SIGTERM})


class SignalForwarding:
    """A context in which the signals that the command receives are forwarded to the container's process.

    A signal that is received before that process exists is forwarded as soon as it does; the same signal again ends the command
    then. A second INT or TERM always ends the command, as the process may ignore the first.

    Args:
        ending: signals that end the command instead.
    """

    def __init__(self, ending: Collection[int] = ()) -> None:
        self._pidfd = -1
        self._early: list[int] = []
        self._forwarded: set[int] = set()
        self._ending = ending

    def forward_to(self, pidfd: int) -> None:
        """Forward signals to this process from now on, and those that were received before."""
        self._pidfd = pidfd
        for number in self._early:
            self._handle(number, None)

    def stop(self) -> None:
        """Forward no further signal, so that only a signal that is received twice from now on interrupts the clean-up."""
        self._pidfd = -1
        self._early.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._ending:
            raise Interrupted(number)
        if self._pidfd < 0:
            if number in self._early:
                raise Interrupted(number)
            self._early.append(number)
            return
        if number in _TERMINATING and number in self._forwarded:
            raise Interrupted(number)
        self._forwarded.add(number)
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # the process has ended

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in signal.valid_signals() - NOT_FORWARDED
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
