"""`Event`: something that happened to a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from .stats import Stats

__all__ = ["Event", "EventKind"]

EventKind = Literal["exit", "oom", "pressure", "paused", "resumed", "stats"]


class Event(NamedTuple):
    """One event."""

    kind: EventKind
    """``exit`` of the first process, after which there are no more; ``oom``: the container ran out of memory; ``pressure``: its
    tasks wait for memory; ``paused`` and ``resumed``; ``stats``: an interval is over."""
    time: int
    """Unix nanoseconds."""
    kills: int = 0
    """oom: the processes that were killed for want of memory so far."""
    stats: Stats | None = None
    """stats: what the container uses now."""

    def to_dict(self, container_id: str) -> dict[str, object]:
        """The event as the peers' ``events`` prints it: type, id and data."""
        document: dict[str, object] = {"type": self.kind, "id": container_id}
        if self.stats is not None:
            document["data"] = self.stats.to_dict()
        elif self.kind == "oom":
            document["data"] = {"kills": self.kills}
        return document
