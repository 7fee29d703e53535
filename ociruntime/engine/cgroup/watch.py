"""Waiting for what happens to a container, by one descriptor: nothing is polled."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from ..._native import check, ffi, lib
from ...events import Event, EventKind
from ..processes import Ending
from .account import oom_kills
from .tasks import frozen
from .tree import read_if_there

_IN_MODIFY: Final = 2
_STALL: Final = "some 200000 2000000"
"""A fifth of two seconds of waiting for memory is told; users without privileges may ask for whole windows of two seconds only."""


class Watch:
    """What happens in a container's cgroups and to its first process, as descriptors in one epoll, which is readable then."""

    def __init__(self, paths: Sequence[str], pid: int, pidfd: int) -> None:
        """Begin to watch; ``pidfd``, of the first process, becomes ours. Raises OSError."""
        self._paths = list(paths)
        self._ending = Ending(pid, pidfd)
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
        """Readable when `read` has something to tell."""
        return self._epoll.fileno()

    def read(self, timeout: float | None = 0) -> list[Event]:
        """What has happened; waits ``timeout`` seconds for it (None: as long as it takes)."""
        kinds: list[EventKind] = []
        ready = [fd for fd, _ in self._epoll.poll(-1 if timeout is None else max(0.0, timeout))]
        for fd in ready:
            if fd in self._handlers:
                found: list[EventKind] = self._handlers[fd]()
                kinds.extend(kind for kind in found if kind not in kinds)
        if self._ending.fileno() in ready and self._ending.ended():
            # The kernel tells of a kill for want of memory when it has counted it; the end may be known first.
            if oom_kills(self._paths) > self._kills and "oom" not in kinds:
                kinds.append("oom")
            kinds.append("exit")
            self.ended = True
        if "oom" in kinds:
            self._kills = oom_kills(self._paths)
        now = time.time_ns()
        return [Event(kind, now, self._kills if kind == "oom" else 0) for kind in kinds]

    def close(self) -> None:
        """Watch no more; a second time there is nothing to do."""
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

    # ---- what to watch ----

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
            os.close(fd)  # pressure is not counted (psi=0)
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
        """An eventfd that the v1 kernel counts up (cgroup.event_control)."""
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
            return [kind] if os.path.exists(path) else []  # it is told of the end of the cgroup too

        self._handlers[event] = happened
        self._epoll.register(event, select.EPOLLIN)

    # ---- what happened ----

    def _oom_v2(self) -> list[EventKind]:
        return ["oom"] if oom_kills(self._paths) > self._kills else []

    def _freezer(self) -> list[EventKind]:
        now = any((read_if_there(path, "freezer.state") or "").strip() == "FROZEN" for path in self._paths)
        now = now or any("frozen 1" in (read_if_there(path, "cgroup.events") or "") for path in self._paths)
        if now == self._frozen:
            return []
        self._frozen = now
        return ["paused" if now else "resumed"]


def _reading(fd: int, handler: Callable[[], list[EventKind]], *, seek: bool = True) -> Callable[[], list[EventKind]]:
    """A handler that takes the news in first, so that the descriptor is no longer ready."""

    def handle() -> list[EventKind]:
        try:
            if seek:
                os.pread(fd, 4096, 0)
            else:
                os.read(fd, 4096)
        except OSError:
            return []  # the cgroup is gone
        return handler()

    return handle
