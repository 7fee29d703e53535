"""Statistics and events of a container (``events`` of runc; runtime.md has neither)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ..engine.cgroup.stats import stats as read_stats
from ..errors import WrongStatus
from ..state import Entry, Status
from ..stats import Event
from .status import current, first_process

if TYPE_CHECKING:
    from ..engine.cgroup.watch import EventWatch
    from ..stats import Stats

_CLONE_NEWNET: Final = 0x40000000


def stats(entry: Entry) -> Stats:
    """Return what a container uses. Errors are those of `Container.stats`."""
    document = entry.read()
    state = current(document)
    own_network = document.get("namespaces", 0) & _CLONE_NEWNET
    return read_stats(document.get("cgroups", []), state.pid if own_network else 0)


def watch(entry: Entry, own: int = -1) -> EventWatch:
    """Start watching a container. Raises WrongStatus: it is stopped."""
    from ..engine.cgroup.watch import EventWatch

    document = entry.read()
    pidfd = first_process(document, own) if current(document).status.can_kill else None
    if pidfd is None:
        raise WrongStatus(entry.id, "watch", Status.STOPPED, "created or running")
    return EventWatch(document.get("cgroups", []), document["pid"], pidfd)


def events(entry: Entry, own: int, interval: float | None) -> Iterator[Event]:
    """Yield events until the exit. Arguments and errors are those of `Container.events`."""
    timer = StatsTimer(interval)
    return _follow(entry, watch(entry, own), timer)


def _follow(entry: Entry, watcher: EventWatch, timer: StatsTimer) -> Iterator[Event]:
    with watcher:
        while not watcher.ended:
            yield from watcher.read(timer.left())
            if timer.expired() and not watcher.ended:
                yield Event("stats", time.time_ns(), stats=stats(entry))


class StatsTimer:
    """Expires once per interval, for events with statistics.

    Args:
        interval: seconds; None to expire never. Raises ValueError: it is not positive.
    """

    def __init__(self, interval: float | None) -> None:
        if interval is not None and interval <= 0:
            raise ValueError(f"interval is {interval}: more than 0 seconds is needed")
        self._interval = interval
        self._next = time.monotonic() + (interval or 0)

    def left(self) -> float | None:
        """Return the seconds until it expires; None for never."""
        return None if self._interval is None else max(0.0, self._next - time.monotonic())

    def expired(self) -> bool:
        """Return whether it has expired. If so, the next interval begins."""
        if self._interval is None or time.monotonic() < self._next:
            return False
        self._next = max(self._next + self._interval, time.monotonic())
        return True
