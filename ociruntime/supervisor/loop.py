"""The supervisor's event loop, and listening sockets in it."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable

IN, OUT, HUP, RDHUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLRDHUP, select.EPOLLERR


class Loop:
    """Calls a handler for the events of each watched file descriptor. The events always include HUP and ERR."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Watch a file descriptor for the events of ``mask``. A second call replaces the mask and the handler."""
        self._handlers[fd] = handler
        before = self._masks.get(fd)
        if before is None:
            self._poll.register(fd, mask)
        elif before != mask:
            self._poll.modify(fd, mask)
        self._masks[fd] = mask

    def unwatch(self, fd: int) -> None:
        """Stop watching a file descriptor. No effect if it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            del self._masks[fd]
            self._poll.unregister(fd)

    def run_once(self, timeout: float | None) -> None:
        """Wait for events, at most ``timeout`` seconds, and handle them."""
        for fd, events in self._poll.poll(timeout):
            handler = self._handlers.get(fd)  # an earlier handler may have unwatched it
            if handler is not None:
                handler(events)


class Listener:
    """A listening socket in the loop.

    Args:
        accept: takes each connection.
        refuse: takes a connection for which no file descriptor is left. The connection is closed when it returns.
    """

    def __init__(
        self, loop: Loop, sock: socket.socket, accept: Callable[[socket.socket], None], refuse: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._accept = accept
        self._refuse = refuse
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        sock.setblocking(False)
        loop.watch(sock.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        try:
            self._accept(self._socket.accept()[0])
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._refuse_one()  # a connection that stays in the queue would keep the loop busy

    def _refuse_one(self) -> None:
        os.close(self._spare)
        try:
            with self._socket.accept()[0] as peer:
                self._refuse(peer)
        except OSError:
            pass  # the peer has closed the connection
        finally:
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
