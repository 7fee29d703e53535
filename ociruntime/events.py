"""`Event`: something that happened to a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    from .stats import Stats

__all__ = ["Event", "EventKind"]

EventKind = Literal["exit", "oom", "pressure", "paused", "resumed", "stats"]


@attrs.frozen
class Event:
    """An event of a container."""

    kind: EventKind
    """``exit``: the init process has ended, and no event follows; ``oom``: the container ran out of memory; ``pressure``: its
    tasks wait for memory; ``paused`` and ``resumed``; ``stats``: an interval has passed."""
    time: int
    """Unix nanoseconds."""
    kills: int = 0
    """oom: the number of processes that have been killed so far because memory ran out."""
    stats: Stats | None = None
    """stats: what the container uses now."""

    def to_dict(self, container_id: str) -> dict[str, object]:
        """Return the event as ``runc events`` prints it: type, id and data."""
        document: dict[str, object] = {"type": self.kind, "id": container_id}
        if self.stats is not None:
            document["data"] = self.stats.to_dict()
        elif self.kind == "oom":
            document["data"] = {"kills": self.kills}
        return document
