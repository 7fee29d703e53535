"""Everything that one exec process has started, as a group: listed and killed apart from all else in the container.

Neither a session nor the tree of parents tells: setsid(2) and a double fork leave both. A cgroup does, so an exec process gets one
of its own below the cgroup that it would run in. That limits and counts nothing: no controller is enabled there (v2), or its
hierarchy has none that matters (v1). Where no cgroup can be made, the processes are told by a mark that they inherit: a random soft
limit for the resident set (RLIMIT_RSS), which Linux does not enforce.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ..procfs import start_time
from .cgroup.tasks import held, kill_v2, processes, send, signal_all, wait
from .cgroup.tree import below, read_if_there

if TYPE_CHECKING:
    from ..plan.cgroups import Place

_PREFIX: Final = "ociruntime@exec-"
"""Begins the names of the groups' cgroups. Ids of containers have no ``@``, so no container's cgroup has such a name by default."""
_HARMLESS: Final = frozenset({"freezer", "pids"})
"""Controllers of v1 for which one cgroup more makes no difference to what runs in it."""
_REFUSED: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOSPC})
"""What mkdir says where this user may make no cgroup, or no further one (cgroup.max.descendants)."""
_DISTINCT: Final = 1 << 30
"""The least hard limit below which a random number is not that of any other process."""
_LAST: Final = 1.0
"""Seconds for processes to die of SIGKILL: those that take longer hang in the kernel, or are frozen."""


class Group(ABC):
    """What an exec process has started, itself included, wherever in the process tree it has moved."""

    @abstractmethod
    def processes(self) -> set[int]:
        """Return the pids of those that live, in the caller's pid namespace."""

    def kill(self) -> None:
        """Send SIGKILL to every process, also to those that are being born, and wait until they are dead."""
        deadline = time.monotonic() + _LAST
        while (pids := self.processes()) and time.monotonic() < deadline:
            with held(self.processes, pids) as pidfds:
                send(pidfds, signal.SIGKILL)
                wait(pidfds, deadline)

    def remove(self) -> bool:
        """Remove what tells the processes apart. Return whether that is done: nothing is removed while one lives."""
        return True


class CgroupGroup(Group):
    """The processes in a cgroup that was made for them."""

    def __init__(self, path: str) -> None:
        self.path = path

    def processes(self) -> set[int]:
        return processes([self.path])

    def kill(self) -> None:
        if not kill_v2(self.path):
            signal_all([self.path], signal.SIGKILL)
        super().kill()
        deadline = time.monotonic() + _LAST
        while not self.remove() and time.monotonic() < deadline:
            time.sleep(0.0005)  # dead processes are on their way out

    def remove(self) -> bool:
        return _rmdir(self.path)


class MarkedGroup(Group):
    """The processes that have inherited a mark."""

    def __init__(self, limit: int) -> None:
        """Choose the mark: less than ``limit``, the hard limit that the processes have, and at least half of it."""
        limit = min(limit, 1 << 63)
        self.mark = limit - 1 - int.from_bytes(os.urandom(8)) % (limit // 2) if limit >= _DISTINCT else None
        """The soft limit, or None where the hard one leaves too few to choose from: then the group is not known."""

    def processes(self) -> set[int]:
        if self.mark is None:
            return set()
        mark = b"%d" % self.mark
        return {int(name) for name in os.listdir("/proc") if name.isdigit() and self._soft_limit(int(name)) == mark}

    @staticmethod
    def _soft_limit(pid: int) -> bytes:
        try:
            with open(f"/proc/{pid}/limits", "rb", buffering=0) as file:
                row = file.read(4096).partition(b"Max resident set")[2].split(None, 1)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return b""  # it has ended, or is another user's
        return row[0] if row and start_time(pid) else b""


def in_cgroup(places: Iterable[Place], own: Sequence[str]) -> tuple[CgroupGroup, list[str]] | None:
    """Make a cgroup for a group, below one of these.

    Args:
        places: the cgroups that the process would run in.
        own: the container's cgroups. What lies elsewhere would not be removed with the container.

    Returns:
        The group, and the cgroups of the container's other groups, for `sweep`; None where no cgroup can be made.
    """
    for place in sorted(filter(_suits, places), key=_rank):
        directory = place.directory
        top = next((top for top in own if f"{directory}/".startswith(f"{top}/")), None)
        # A v2 cgroup that is threaded, or hands controllers on, has no ordinary cgroups that do without them below it.
        if top is None or (
            place.hierarchy.version == 2
            and (
                (read_if_there(directory, "cgroup.type") or "").strip() != "domain"
                or (read_if_there(directory, "cgroup.subtree_control") or "").strip()
            )
        ):
            continue
        others = [path for path in below(top) if os.path.basename(path).startswith(_PREFIX)]
        path = f"{directory}/{_PREFIX}{os.urandom(6).hex()}"
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            continue
        return CgroupGroup(path), others
    return None


def sweep(paths: Iterable[str]) -> None:
    """Remove those of these cgroups that are empty. No exec process may be on its way into one."""
    for path in paths:
        _rmdir(path)


def _suits(place: Place) -> bool:
    names = place.hierarchy.controllers
    return place.hierarchy.version == 2 or (bool(names) and (names <= _HARMLESS or all(name.startswith("name=") for name in names)))


def _rank(place: Place) -> int:
    """Order the hierarchies: a cgroup of v1's freezer costs the least time, one of systemd's own hierarchy the most."""
    names = place.hierarchy.controllers
    if place.hierarchy.version == 2:
        return 2
    return 0 if "freezer" in names else 1 if "pids" in names else 3


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # it is in use, or another user's; it goes with the container, whose removal tells what stands in the way
    return True
