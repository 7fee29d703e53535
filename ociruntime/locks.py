"""Locks between processes, by flock(2), that end with the process that holds them.

A forked child inherits an open file with its lock, and can live longer than its parent. So it closes what it has inherited.
"""

from __future__ import annotations

import fcntl
import os
import time
from _thread import RLock  # `threading` itself costs more than a short command does with it
from typing import Final, Self

_forking: Final = RLock()
"""Held while a file is opened or closed, and during a fork, which a signal handler of the same thread may do."""
_open: Final[set[LockFile]] = set()


class LockFile:
    """An open file or directory for a lock. Closing it, and the end of the process, release the lock.

    Args:
        path: the file.
        flags: flags of open(2); close-on-exec is added.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str, flags: int) -> None:
        with _forking:
            self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
            _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def acquire(self, *, shared: bool = False, wait: bool | float = True) -> None:
        """Take the lock.

        Args:
            shared: allow other shared locks beside it.
            wait: whether to wait for the lock, or the seconds to wait.

        Raises:
            BlockingIOError: the lock is held by another process, and the wait is over.
        """
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        if wait is True:
            fcntl.flock(self.fd, kind)
            return
        deadline, pause = time.monotonic() + wait, 0.001
        while True:
            try:
                fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    @property
    def closed(self) -> bool:
        """Whether it was closed, here or by the fork that made this process."""
        return self.fd < 0

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more, so that its lock means nothing."""
        return os.fstat(self.fd).st_nlink == 0

    def close(self) -> None:
        """Close the file, once."""
        with _forking:
            _open.discard(self)
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)


def _after_fork() -> None:
    for lock in _open:
        os.close(lock.fd)
        lock.fd = -1
    _open.clear()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)
