"""Looking on: what a container uses, and what happens to it (the peers' ``events``; runtime.md has neither)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..engine.cgroup.stats import stats as read_stats
from ..errors import WrongStatus
from ..events import Event
from ..state import Entry, Status
from .status import current, first_process

if TYPE_CHECKING:
    from ..engine.cgroup.watch import EventWatch
    from ..stats import Stats

_CLONE_NEWNET: Final = 0x40000000


def stats(entry: Entry) -> Stats:
    """What a container uses. Raises as `Container.stats`."""
    document = entry.read()
    state = current(document)
    own_network = document.get("namespaces", 0) & _CLONE_NEWNET
    return read_stats(document.get("cgroups", []), state.pid if own_network else 0)


def watch(entry: Entry, own: int = -1) -> EventWatch:
    """Begin to watch a container that has not stopped. Raises WrongStatus."""
    from ..engine.cgroup.watch import EventWatch

    document = entry.read()
    pidfd = first_process(document, own) if current(document).status.can_kill else None
    if pidfd is None:
        raise WrongStatus(entry.id, "watch", Status.STOPPED, "created or running")
    return EventWatch(document.get("cgroups", []), document["pid"], pidfd)


def events(entry: Entry, own: int, interval: float | None) -> Iterator[Event]:
    """Events up to the exit. Arguments and errors are those of `Container.events`."""
    ticks = Ticks(interval)
    return _follow(entry, watch(entry, own), ticks)


def _follow(entry: Entry, watched: EventWatch, ticks: Ticks) -> Iterator[Event]:
    with watched:
        while not watched.ended:
            yield from watched.read(ticks.left())
            if ticks.over() and not watched.ended:
                yield Event("stats", time.time_ns(), stats=stats(entry))


class Ticks:
    """The times at which statistics are due."""

    def __init__(self, interval: float | None) -> None:
        if interval is not None and interval <= 0:
            raise ValueError(f"interval is {interval}: more than 0 seconds is needed")
        self._interval = interval
        self._next = time.monotonic() + (interval or 0)

    def left(self) -> float | None:
        """Seconds up to the next one; None when there is none."""
        return None if self._interval is None else max(0.0, self._next - time.monotonic())

    def over(self) -> bool:
        """Whether one is due; then the next one is an interval later."""
        if self._interval is None or time.monotonic() < self._next:
            return False
        self._next = max(self._next + self._interval, time.monotonic())
        return True
