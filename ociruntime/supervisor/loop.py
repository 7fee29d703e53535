"""A small event loop: descriptors, their handlers, and nothing that waits for anybody in particular."""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

IN, OUT, HUP, RDHUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP, select.EPOLLRDHUP, select.EPOLLERR


class Loop:
    """Calls a handler with the events of its descriptor. HUP and ERR are always among them."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}

    def watch(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        self._poll.register(fd, mask)
        self._handlers[fd], self._masks[fd] = handler, mask

    def change(self, fd: int, mask: int) -> None:
        if self._masks[fd] != mask:
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
