"""The processes that one exec process has started, as a group that can be listed and killed apart from the rest of the container.

Sessions and parents do not identify them: setsid(2) and a double fork leave both. A cgroup does, so an exec process gets one of its
own below the cgroup that it would run in. It limits and counts nothing: no controller is enabled there (v2), or its hierarchy has
none that matters (v1). Where no cgroup can be created, the processes are identified by a mark that they inherit: a random soft
limit of the resident set (RLIMIT_RSS), which Linux does not enforce.
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
from .cgroup.tasks import kill_v2, open_pidfds, processes, send, signal_all, wait
from .cgroup.tree import make_one, read_if_exists, walk

if TYPE_CHECKING:
    from ..plan.cgroups import Place

_PREFIX: Final = "ociruntime@exec-"
"""Prefix of the names of the groups' cgroups. Container ids have no ``@``, so no container's cgroup has such a name by default."""
_HARMLESS: Final = frozenset({"freezer", "pids"})
"""Controllers of v1 for which a further level of cgroups makes no difference."""
_REFUSED: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOSPC})
"""Errors of mkdir(2) where this user may not create a cgroup, or no further one (cgroup.max.descendants)."""
_MIN_LIMIT: Final = 1 << 30
"""The lowest hard limit that leaves enough random numbers for no two groups to have the same."""
_KILL_TIMEOUT: Final = 1.0
"""Seconds for processes to die of SIGKILL. Those that take longer hang in the kernel, or are frozen."""


class Group(ABC):
    """An exec process and everything that it has started, wherever that is in the process tree."""

    @abstractmethod
    def processes(self) -> set[int]:
        """Return the pids of the processes that run, in the caller's pid namespace."""

    def kill(self) -> None:
        """Send SIGKILL to every process, including those that are being forked, and wait until they are dead."""
        deadline = time.monotonic() + _KILL_TIMEOUT
        while (pids := self.processes()) and time.monotonic() < deadline:
            with open_pidfds(self.processes, pids) as pidfds:
                send(pidfds, signal.SIGKILL)
                wait(pidfds, deadline)

    def remove(self) -> bool:
        """Remove the cgroup. Return whether that is done: nothing is removed while a process runs."""
        return True


class CgroupGroup(Group):
    """A group with a cgroup of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def processes(self) -> set[int]:
        return processes([self.path])

    def kill(self) -> None:
        if not kill_v2(self.path):
            signal_all([self.path], signal.SIGKILL)
        super().kill()
        deadline = time.monotonic() + _KILL_TIMEOUT
        while not self.remove() and time.monotonic() < deadline:
            time.sleep(0.0005)  # dead processes leave the cgroup a moment later

    def remove(self) -> bool:
        return _rmdir(self.path)


class MarkedGroup(Group):
    """A group whose processes have inherited a mark."""

    def __init__(self, limit: int) -> None:
        """Choose the mark: less than ``limit``, the hard limit that the processes have, and at least half of it."""
        limit = min(limit, 1 << 63)
        self.mark = limit - 1 - int.from_bytes(os.urandom(8)) % (limit // 2) if limit >= _MIN_LIMIT else None
        """The soft limit, or None where the hard limit leaves too few numbers. Then the group has no known processes."""

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
            return b""  # it has ended, or belongs to another user
        return row[0] if row and start_time(pid) else b""


def make_cgroup_group(places: Iterable[Place], own: Sequence[str]) -> tuple[CgroupGroup, list[str]] | None:
    """Create a group with a cgroup.

    Args:
        places: the cgroups that the process would run in. The new one is a child of one of them.
        own: the container's cgroups. A cgroup elsewhere would not be removed with the container.

    Returns:
        The group, and the cgroups of the container's other groups, for `remove_empty`; None where no cgroup can be created.
    """
    for place in sorted(filter(_is_suitable, places), key=_cost):
        directory = place.directory
        top = next((top for top in own if f"{directory}/".startswith(f"{top}/")), None)
        # Below a v2 cgroup that is threaded or enables controllers, ordinary cgroups without controllers cannot exist.
        if top is None or (
            place.hierarchy.version == 2
            and (
                (read_if_exists(directory, "cgroup.type") or "").strip() != "domain"
                or (read_if_exists(directory, "cgroup.subtree_control") or "").strip()
            )
        ):
            continue
        others = [path for path in walk(top) if os.path.basename(path).startswith(_PREFIX)]
        path = f"{directory}/{_PREFIX}{os.urandom(6).hex()}"
        try:
            make_one(path)
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            continue
        return CgroupGroup(path), others
    return None


def remove_empty(paths: Iterable[str]) -> None:
    """Remove those of these cgroups that are empty. The caller sees to it that no exec process is about to join one."""
    for path in paths:
        _rmdir(path)


def _is_suitable(place: Place) -> bool:
    names = place.hierarchy.controllers
    return place.hierarchy.version == 2 or (bool(names) and (names <= _HARMLESS or all(name.startswith("name=") for name in names)))


def _cost(place: Place) -> int:
    """Rank the hierarchies by the time that a cgroup takes: v1's freezer the least, systemd's own hierarchy the most."""
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
        return False  # it is in use, or belongs to another user; it is removed with the container, where an error is reported
    return True
