"""Waiting for events of a container through one descriptor, without polling."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from ..._native import check, ffi, lib
from ...stats import Event, EventKind
from ..processes import EndWaiter
from .account import oom_kills
from .tasks import frozen
from .tree import read_if_exists

_IN_MODIFY: Final = 2
_STALL: Final = "some 200000 2000000"
"""Notify when tasks waited for memory for 0.2 of 2 seconds. Users without privileges may use windows of multiples of 2 s only."""


class EventWatch:
    """Watches a container's cgroups and its init process. The descriptor of an epoll is readable when something has happened."""

    def __init__(self, paths: Sequence[str], pid: int, pidfd: int) -> None:
        """Begin to watch.

        Args:
            paths: the container's cgroups.
            pid: its init process.
            pidfd: the pidfd of that process, which is closed with this object.

        Raises:
            OSError: a file cannot be watched.
        """
        self._paths = list(paths)
        self._ending = EndWaiter(pid, pidfd)
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], list[EventKind]]] = {}
        self._fds: list[int] = [pidfd]
        self._kills = oom_kills(self._paths)
        self._frozen = frozen(self._paths)
        self.ended = False
        try:
            self._epoll.register(self._ending, select.EPOLLIN)
            for path in self._paths:
                self._watch_v1(path)
                self._watch_v2(path)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has events."""
        return self._epoll.fileno()

    def read(self, timeout: float | None = 0) -> list[Event]:
        """Return what has happened. Waits up to ``timeout`` seconds for an event; None means no limit."""
        kinds: list[EventKind] = []
        ready = [fd for fd, _ in self._epoll.poll(-1 if timeout is None else max(0.0, timeout))]
        for fd in ready:
            if fd in self._handlers:
                found: list[EventKind] = self._handlers[fd]()
                kinds.extend(kind for kind in found if kind not in kinds)
        if self._ending.fileno() in ready and self._ending.ended():
            # The end of the process may be known before the notification of the OOM kill that caused it.
            if oom_kills(self._paths) > self._kills and "oom" not in kinds:
                kinds.append("oom")
            kinds.append("exit")
            self.ended = True
        if "oom" in kinds:
            self._kills = oom_kills(self._paths)
        now = time.time_ns()
        return [Event(kind, now, self._kills if kind == "oom" else 0) for kind in kinds]

    def close(self) -> None:
        """Stop watching. Closing twice is allowed."""
        self._epoll.close()
        self._ending.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def __del__(self) -> None:
        if getattr(self, "_fds", None):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- sources ----

    def _add(self, fd: int, mask: int, handler: Callable[[], list[EventKind]]) -> None:
        self._fds.append(fd)
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def _watch_v2(self, path: str) -> None:
        for file, handler in (("memory.events", self._oom_v2), ("cgroup.events", self._freezer)):
            if os.path.exists(f"{path}/{file}"):
                fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
                self._add(fd, select.EPOLLPRI, _reading(fd, handler))
        try:
            fd = os.open(f"{path}/memory.pressure", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, PermissionError):
            return
        try:
            os.write(fd, _STALL.encode())
        except OSError:
            os.close(fd)  # the kernel does not measure pressure (psi=0)
        else:
            self._add(fd, select.EPOLLPRI, lambda: ["pressure"])

    def _watch_v1(self, path: str) -> None:
        if os.path.exists(f"{path}/freezer.state"):
            fd = check(lib.oci_inotify(ffi.new("char[]", f"{path}/freezer.state".encode()), _IN_MODIFY), path)
            self._add(fd, select.EPOLLIN, _reading(fd, self._freezer, seek=False))
        if os.path.exists(f"{path}/memory.oom_control"):
            self._notify(path, "memory.oom_control", "", "oom")
            if not any(os.path.exists(f"{other}/memory.pressure") for other in self._paths):
                self._notify(path, "memory.pressure_level", "medium", "pressure")

    def _notify(self, path: str, file: str, argument: str, kind: EventKind) -> None:
        """Watch a v1 file by an eventfd (cgroup.event_control)."""
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fds.append(event)
        source = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(source)
        control = os.open(f"{path}/cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, f"{event} {source} {argument}".encode())
        finally:
            os.close(control)

        def happened() -> list[EventKind]:
            os.eventfd_read(event)
            return [kind] if os.path.exists(path) else []  # it is also notified when the cgroup is removed

        self._handlers[event] = happened
        self._epoll.register(event, select.EPOLLIN)

    # ---- events ----

    def _oom_v2(self) -> list[EventKind]:
        return ["oom"] if oom_kills(self._paths) > self._kills else []

    def _freezer(self) -> list[EventKind]:
        frozen_now = any((read_if_exists(path, "freezer.state") or "").strip() == "FROZEN" for path in self._paths)
        frozen_now = frozen_now or any("frozen 1" in (read_if_exists(path, "cgroup.events") or "") for path in self._paths)
        if frozen_now == self._frozen:
            return []
        self._frozen = frozen_now
        return ["paused" if frozen_now else "resumed"]


def _reading(fd: int, handler: Callable[[], list[EventKind]], *, seek: bool = True) -> Callable[[], list[EventKind]]:
    """Return a handler that reads from the descriptor first, so that it is no longer ready."""

    def handle() -> list[EventKind]:
        try:
            if seek:
                os.pread(fd, 4096, 0)
            else:
                os.read(fd, 4096)
        except OSError:
            return []  # the cgroup was removed
        return handler()

    return handle
