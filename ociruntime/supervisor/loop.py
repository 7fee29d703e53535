"""A small event loop: descriptors, their handlers, and nothing that waits for anybody in particular."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

IN, OUT, HUP, RDHUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLRDHUP, select.EPOLLERR


class Loop:
    """Calls a handler with the events of its descriptor. HUP and ERR are always among them."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Watch a descriptor, or watch it for something else from here on."""
        self._handlers[fd] = handler
        before = self._masks.get(fd)
        if before is None:
            self._poll.register(fd, mask)
        elif before != mask:
            self._poll.modify(fd, mask)
        self._masks[fd] = mask

    def forget(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._poll.unregister(fd)

    def turn(self, timeout: float | None) -> None:
        """Wait for events, at most ``timeout`` seconds, and handle them."""
        for fd, events in self._poll.poll(timeout):
            handler = self._handlers.get(fd)  # one handler may forget another's descriptor
            if handler is not None:
                handler(events)


class Door:
    """A listening socket: who comes goes to ``came``; whom there are no descriptors left for goes to ``refused`` and is closed."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        came: Callable[[socket.socket], None],
        refused: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._came = came
        self._refused = refused
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        listener.setblocking(False)
        loop.watch(listener.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        try:
            self._came(self._listener.accept()[0])
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse()  # or it would stay at the door, and we in this loop

    def _refuse(self) -> None:
        os.close(self._spare)
        try:
            with self._listener.accept()[0] as peer:
                self._refused(peer)
        except OSError:
            pass  # it is gone again
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._loop.forget(self._listener.fileno())
        self._listener.close()
