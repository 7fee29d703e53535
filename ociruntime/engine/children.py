"""Our children: reaped once, and in time for the container they are in to end.

The kernel lets the first process of a pid namespace go only when all others there have been reaped (pid_namespaces(7)). What `exec`
and `popen` put into a container is a child of the process that called them, so that process must reap it before the container ends.
"""

from __future__ import annotations

import os
import select
import signal
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING, Final, Self

from ..state import start_time
from . import processes
from .processes import Exit, ended_within, pid_of

if TYPE_CHECKING:
    from .usage import Usage

_further: dict[int, list[Child]] = {}
"""Our children that are not reaped yet, by the pid of their container's first process."""
_endings: dict[int, list[Ending]] = {}
_abandoned: list[Child] = []
LOOK: Final = 1.0
"""Seconds between two looks at a first process that may have exited and be held back by children of others."""


class Child:
    """A process that we launched: whoever sees its end first reaps it, and all others find what was seen."""

    def __init__(self, pid: int, pidfd: int, first: int = 0) -> None:
        """``pidfd`` becomes ours; ``first`` is the pid of its container's first process, 0 where nobody waits for that with it."""
        self.pid = pid
        self._pidfd = pidfd
        self._first = first
        self._seen: tuple[Exit, Usage] | None = None
        self._lock = allocate_lock()
        self._ending = Ending(pid, pidfd) if pid == first else None
        if first not in (0, pid):
            _further.setdefault(first, []).append(self)
            for ending in _endings.get(first, []):
                ending.follow(self)

    def fileno(self) -> int:
        """Readable when `ended` has something new to tell; -1 when it is closed."""
        return self._pidfd if self._ending is None else self._ending.fileno()

    def ended(self, timeout: float | None = 0) -> bool:
        """Whether it ends within ``timeout`` seconds; None for as long as it takes."""
        if self._seen is not None:
            return True
        return ended_within(self._pidfd, timeout) if self._ending is None else self._ending.within(timeout)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._seen is None and self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it ended since

    def reap(self) -> tuple[Exit, Usage]:
        """How it ended, and what it used with its own children; waits for the end."""
        with self._lock:
            if self._seen is None:
                self._seen = processes.reap(self.pid, self._pidfd)
                self._forget()
        return self._seen

    def close(self) -> None:
        """Let go of it. While it runs, it is reaped later: with a launch, or at the end of its container."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.close()
        if self._pidfd >= 0 and ended_within(self._pidfd, 0):
            self.reap()
            if processes.reaped(self._pidfd):
                pidfd, self._pidfd = self._pidfd, -1
                os.close(pidfd)
        if self._pidfd >= 0 and self not in _abandoned:
            _abandoned.append(self)

    def detach(self) -> None:
        """Leave it to whoever gets our children when we end, also when it has ended already."""
        self._forget()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def _forget(self) -> None:
        others = _further.get(self._first, [])
        if self in others:
            others.remove(self)
        if not others:
            _further.pop(self._first, None)


def abandon(pidfd: int) -> None:
    """Take the pidfd of a child that nobody waits for any more."""
    Child(pid_of(pidfd), pidfd).close()


def reap_abandoned() -> None:
    """Reap what was let go of and has ended since."""
    for child in _abandoned[:]:
        if ended_within(child._pidfd, 0):
            try:
                _abandoned.remove(child)
            except ValueError:
                continue  # another thread was faster
            child.close()


class Ending:
    """Waiting for the end of a container's first process, while our children in the container are reaped as they end."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """``pidfd`` stays the caller's, and open as long as this is."""
        self._pid = pid
        self._pidfd = pidfd
        self._over: float | None = None
        self._epoll = select.epoll()
        self._epoll.register(pidfd, select.EPOLLIN)
        _endings.setdefault(pid, []).append(self)
        for child in _further.get(pid, [])[:]:
            self.follow(child)

    def fileno(self) -> int:
        """Readable when `within` has something new to tell."""
        return self._epoll.fileno()

    def follow(self, child: Child) -> None:
        """Wake up when this one ends, too."""
        try:
            self._epoll.register(child.fileno(), select.EPOLLIN | select.EPOLLET)
        except (FileExistsError, ValueError, OSError):
            return  # it is known already, or was closed just now

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.within(0)

    def within(self, timeout: float | None = 0) -> bool:
        """Whether the first process ends within ``timeout`` seconds; None for as long as it takes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK if deadline is None else min(LOOK, max(0.0, deadline - time.monotonic()))
            self._epoll.poll(left)
            for child in _further.get(self._pid, [])[:]:
                if child.ended():
                    child.reap()
            reap_abandoned()
            if ended_within(self._pidfd, 0) or self._held_back():
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _held_back(self) -> bool:
        """Whether it has exited a while ago: only children of others can hold it back so long, and nothing tells of those."""
        if self._over is None and start_time(self._pid) == 0:
            self._over = time.monotonic()
        return self._over is not None and time.monotonic() - self._over > LOOK

    def close(self) -> None:
        self._epoll.close()
        others = _endings.get(self._pid, [])
        if self in others:
            others.remove(self)
        if not others:
            _endings.pop(self._pid, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_first(pid: int, pidfd: int, timeout: float | None = None) -> Exit | None:
    """Wait for the end of a container's first process; None after ``timeout`` seconds. A child is reaped."""
    with Ending(pid, pidfd) as ending:
        return processes.exit_of(pid, pidfd) if ending.within(timeout) else None
