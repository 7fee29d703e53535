"""The processes in a container's cgroups: listing, signalling, freezing and killing them, and watching their start and events."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

from ..._native import check, ffi, lib
from ...errors import StepError, UnsupportedError
from ...files import Descriptor, open_pidfd, read_stat, start_time
from ..processes import LONGEST_POLL, EndWaiter
from .tree import (
    GONE,
    REMOVE,
    MemoryLimit,
    batch,
    make_one,
    memory_limit,
    oom_kills,
    read,
    read_if_exists,
    sort_likely,
    too_small,
    walk,
    write,
)

if TYPE_CHECKING:
    from ociruntime.plan.cgroups import Place

    from ...stats import Event, EventKind


_KILL_TIMEOUT: Final = 10.0
"""Seconds for processes to die of SIGKILL."""
_MOST_PIDFDS: Final = 128
"""Processes of which pidfds are open at a time: a container may have more than the caller may open files."""
_FREEZE_TIMEOUT: Final = 10.0
"""Seconds for processes to freeze. One that waits in the kernel, for a disk for example, freezes only when that wait is over."""


def processes(paths: Iterable[str]) -> set[int]:
    """Return the pids of the processes in these cgroups and their descendants. Raises OSError."""
    pids: set[int] = set()
    for path in paths:
        for directory in walk(path):
            try:
                pids.update(map(int, read(directory, "cgroup.procs").split()))
            except OSError as error:
                # A threaded cgroup of v2 lists none: they are listed in its threaded domain.
                if error.errno not in (*GONE, errno.EOPNOTSUPP):
                    raise
    pids.discard(0)  # a process of a pid namespace that the caller does not see
    return pids


# ---- signals ----


@contextmanager
def open_pidfds(list_pids: Callable[[], set[int]], pids: Iterable[int]) -> Iterator[list[int]]:
    """Open pidfds of processes, for the block: of the first `_MOST_PIDFDS`, so the caller begins again with those that are left.

    One whose pid ``list_pids`` no longer returns afterwards is left out.
    """
    opened: dict[int, int] = {}
    try:
        for pid in islice(pids, _MOST_PIDFDS):
            try:
                opened[pid] = open_pidfd(pid)
            except ProcessLookupError:
                continue
        listed = list_pids() if opened else set()
        yield [pidfd for pid, pidfd in opened.items() if pid in listed]
    finally:
        for pidfd in opened.values():
            os.close(pidfd)


def send(pidfds: Iterable[int], number: int) -> None:
    """Send a signal to processes, without those that have ended. Raises PermissionError."""
    for pidfd in pidfds:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            continue


def signal_each(list_pids: Callable[[], set[int]], number: int) -> None:
    """Send a signal to each of the processes that ``list_pids`` returns. Raises PermissionError."""
    pids = sorted(list_pids())
    for begin in range(0, len(pids), _MOST_PIDFDS):
        with open_pidfds(list_pids, pids[begin : begin + _MOST_PIDFDS]) as pidfds:
            send(pidfds, number)


def wait_each(list_pids: Callable[[], set[int]], deadline: float) -> None:
    """Wait for the end of the processes that ``list_pids`` returns, until a time of `time.monotonic`."""
    while (pids := list_pids()) and time.monotonic() < deadline:
        with open_pidfds(list_pids, pids) as pidfds:
            wait(pidfds, deadline)
        time.sleep(0.0005)  # they are listed for a moment longer


def signal_all(paths: Sequence[str], number: int) -> None:
    """Send a signal to every process. They are frozen meanwhile, so that none of them can fork unseen.

    Raises:
        OSError: a signal is not permitted, or the processes do not freeze.
    """
    was_frozen = frozen(paths)
    thaw = not was_frozen and freeze(paths, True, needed=False)
    try:
        signal_each(lambda: processes(paths), number)
    finally:
        if thaw:
            freeze(paths, False)


def kill(paths: Iterable[str]) -> None:
    """Kill every process in these cgroups and their descendants, frozen or not, and wait until they are dead.

    Raises:
        TimeoutError: a process does not die.
    """
    paths = list(paths)
    deadline = time.monotonic() + _KILL_TIMEOUT
    again = False
    while processes(paths):
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "processes do not die of SIGKILL", paths[0])
        for path in paths:
            kill_v2(path)
        thaw = again and freeze(paths, True, needed=False, timeout=0.1)  # they fork as fast as they are killed
        signal_each(lambda: processes(paths), signal.SIGKILL)
        if thaw:
            freeze(paths, False)
        thaw_killed(paths)
        with open_pidfds(lambda: processes(paths), processes(paths)) as pidfds:
            wait(pidfds, deadline)
        again = True


def kill_v2(path: str) -> bool:
    """Kill every process of a v2 cgroup and its descendants at once, new ones included. Return False if the kernel cannot."""
    try:
        fd = os.open(f"{path}/cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        os.write(fd, b"1")
    except OSError as error:
        if error.errno not in (*GONE, errno.EOPNOTSUPP):  # EOPNOTSUPP: it is threaded
            raise
        return False
    finally:
        os.close(fd)
    return True


def wait(pidfds: Iterable[int], deadline: float) -> None:
    """Wait for the end of processes, until a time of `time.monotonic`."""
    poller = select.poll()
    pending = set(pidfds)
    for pidfd in pending:
        poller.register(pidfd, select.POLLIN)
    while pending and (left := deadline - time.monotonic()) > 0:
        for pidfd, _ in poller.poll(min(left, LONGEST_POLL) * 1000):
            poller.unregister(pidfd)
            pending.discard(pidfd)


def remove_unused(paths: Sequence[str]) -> int:
    """Remove cgroups in one call, up to the first that has children or processes. Return how many of them are gone.

    Anything else than a cgroup stays, also if it is mounted on one.
    """
    return batch([f"{REMOVE}{path}" for path in paths])


def remove(path: str) -> None:
    """Remove a cgroup and its descendants. Processes in them are killed.

    Raises:
        TimeoutError: a process does not die.
        OSError: this user may not remove it.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        kill([path])
        for directory in reversed(list(walk(path))[1:]):
            try:
                os.rmdir(directory)
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOENT):
                    raise
        time.sleep(0.0005)  # dead processes leave the cgroup a moment later


# ---- freezing ----


def frozen(paths: Iterable[str]) -> bool:
    """Return whether the processes are frozen or being frozen, by a freezer of v1 or v2."""
    return freezer(paths) is not None


def freezer(paths: Iterable[str]) -> str | None:
    """Return the cgroup that has frozen the processes or is freezing them, with a freezer of v1 or v2; None if none has."""
    paths = sort_likely(paths, "freezer")
    for path in paths:
        if (state := read_if_exists(path, "freezer.state")) is not None:
            return path if state.strip() != "THAWED" else None
    return next((path for path in paths if (read_if_exists(path, "cgroup.freeze") or "").strip() == "1"), None)


def freeze(paths: Sequence[str], state: bool, *, needed: bool = True, timeout: float = _FREEZE_TIMEOUT) -> bool:
    """Freeze or thaw every process, and wait until the kernel has done it.

    Args:
        state: True to freeze, False to thaw.
        needed: whether failure is an error. Otherwise the result is False.
        timeout: seconds after which processes that do not freeze are thawed again.

    Raises:
        UnsupportedError: a freezer is needed but not available.
        TimeoutError: the processes do not freeze, and it is needed.
    """
    done: bool | None = None
    for path in paths:
        if os.path.exists(f"{path}/freezer.state"):
            done = _freeze_v1(path, state, timeout)
            break
    else:
        for path in paths:
            if os.path.exists(f"{path}/cgroup.freeze"):
                done = _freeze_v2(path, state, timeout)
                break
    if done is None and needed:
        raise UnsupportedError("no cgroup of the container has a freezer")
    if done is False and needed:
        raise TimeoutError(errno.ETIMEDOUT, f"the processes did not {'freeze' if state else 'thaw'}", *paths[:1])
    return bool(done)


def _freeze_v1(path: str, state: bool, timeout: float) -> bool:
    # The kernel does not notify, and each write makes the kernel try again.
    target = "FROZEN" if state else "THAWED"
    deadline, pause = time.monotonic() + timeout, 0.0002
    write(path, "freezer.state", target)
    while (read_if_exists(path, "freezer.state") or target).strip() != target:
        if time.monotonic() > deadline:
            write(path, "freezer.state", "THAWED")
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        write(path, "freezer.state", target)
    return True


def _freeze_v2(path: str, state: bool, timeout: float) -> bool:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write(path, "cgroup.freeze", str(int(state)))
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        deadline = time.monotonic() + timeout
        while f"frozen {int(state)}" not in os.pread(events, 4096, 0).decode():
            if (left := deadline - time.monotonic()) <= 0:
                write(path, "cgroup.freeze", "0")
                return False
            poller.poll(left * 1000)
        return True
    finally:
        os.close(events)


def thaw_killed(paths: Iterable[str]) -> None:
    """Thaw processes that were sent SIGKILL, so that they die of it. A freezer of v1 holds them back, one of v2 does not."""
    for path in paths:
        if (read_if_exists(path, "freezer.state") or "THAWED").strip() != "THAWED":
            write(path, "freezer.state", "THAWED")


# ---- memory ----

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SMALL_LIMIT: Final = 6 << 20
"""Bytes, the smallest limit that Docker accepts. Larger ones are not watched."""
_BEGUN: Final = 0.05
"""Seconds of CPU time in user space after which a program has begun."""


class StarvationWatch:
    """Detects a program that cannot begin, because its memory limit does not hold the program's own pages.

    The kernel kills a process if it can free no memory for it. But it can always drop pages of programs and libraries, and read
    them again at the next instruction. If the limit is smaller than these, or than what the kernel reads ahead from the disk, the
    first instructions of a program can take minutes without an OOM kill.

    This is detected by counts, as time says nothing on a slow or busy host. Before the process has used `_BEGUN` seconds in user
    space, it has waited for more pages than the limit holds (major page faults), and the limit was hit more often than that.
    """

    def __init__(self, paths: Sequence[str], pid: int, program: str, steps: int) -> None:
        """Watch a process from the first `check` on.

        Args:
            paths: the cgroups of its container.
            pid: the process.
            program: what it runs, for the error.
            steps: the number of steps of its plan, the last of which has executed the program.
        """
        self._paths = paths
        self._pid = pid
        self._program = program
        self._steps = steps
        self._hits = -1
        self.over = False
        """Whether no further check is needed: the program has begun, its limit is not small, or the error was raised."""

    def check(self) -> None:
        """Raise StepError if the process starves."""
        if self.over:
            return
        found, fields = memory_limit(self._paths), read_stat(self._pid)
        if found is None or fields is None or found.limit >= _SMALL_LIMIT or int(fields[11]) > _BEGUN * _TICKS:
            self.over = True
        elif self._hits < 0:
            self._hits = found.hits
        elif min(int(fields[9]), found.hits - self._hits) * _PAGE > found.limit:
            self.over = True
            raise self._error(found)

    def _error(self, found: MemoryLimit) -> StepError:
        enough = max(found.unreclaimable + _mapped(self._pid), _SMALL_LIMIT)
        what = f"run {self._program}: its pages are dropped and read again, and it cannot begin"
        remedy = f"use {enough} bytes or more"
        return too_small(found.limit, what, remedy, step=self._steps, total=self._steps, op="exec", text=self._program)


def _mapped(pid: int) -> int:
    """Return the bytes of files that a process has mapped; 0 if this user may not know."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as table:
            ranges = [line.split(b" ", 1)[0].split(b"-") for line in table if b" /" in line]
    except OSError:
        return 0
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


# ---- events ----

_IN_MODIFY: Final = 2
_STALL: Final = "some 200000 2000000"
"""Notify when tasks waited for memory for 0.2 of 2 seconds. Users without privileges may use windows of multiples of 2 s only."""


class EventWatch:
    """Watches a container's cgroups and its init process. The descriptor of an epoll is readable when something has happened."""

    def __init__(self, paths: Sequence[str], pid: int, pidfd: int) -> None:
        """Begin to watch.

        Args:
            paths: the container's cgroups.
            pid: its init process.
            pidfd: the pidfd of that process, which is closed with this object.

        Raises:
            OSError: a file cannot be watched.
        """
        self._paths = list(paths)
        self._ending = EndWaiter(pid, pidfd)
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
        """Return the descriptor that is readable when `read` has events."""
        return self._epoll.fileno()

    def read(self, timeout: float | None = 0) -> list[Event]:
        """Return what has happened. Waits up to ``timeout`` seconds for an event; None means no limit."""
        from ...stats import Event

        kinds: list[EventKind] = []
        ready = [fd for fd, _ in self._epoll.poll(-1 if timeout is None else min(max(0.0, timeout), LONGEST_POLL))]
        for fd in ready:
            if fd in self._handlers:
                found: list[EventKind] = self._handlers[fd]()
                kinds.extend(kind for kind in found if kind not in kinds)
        if self._ending.fileno() in ready and self._ending.ended():
            # The end of the process may be known before the notification of the OOM kill that caused it.
            if oom_kills(self._paths) > self._kills and "oom" not in kinds:
                kinds.append("oom")
            kinds.append("exit")
            self.ended = True
        if "oom" in kinds:
            self._kills = oom_kills(self._paths)
        now = time.time_ns()
        return [Event(kind, now, self._kills if kind == "oom" else 0) for kind in kinds]

    def close(self) -> None:
        """Stop watching. Closing twice is allowed."""
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

    # ---- sources ----

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
            os.close(fd)  # the kernel does not measure pressure (psi=0)
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
        """Watch a v1 file by an eventfd (cgroup.event_control)."""
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
            return [kind] if os.path.exists(path) else []  # it is also notified when the cgroup is removed

        self._handlers[event] = happened
        self._epoll.register(event, select.EPOLLIN)

    # ---- events ----

    def _oom_v2(self) -> list[EventKind]:
        return ["oom"] if oom_kills(self._paths) > self._kills else []

    def _freezer(self) -> list[EventKind]:
        frozen_now = any((read_if_exists(path, "freezer.state") or "").strip() == "FROZEN" for path in self._paths)
        frozen_now = frozen_now or any("frozen 1" in (read_if_exists(path, "cgroup.events") or "") for path in self._paths)
        if frozen_now == self._frozen:
            return []
        self._frozen = frozen_now
        return ["paused" if frozen_now else "resumed"]


def _reading(fd: int, handler: Callable[[], list[EventKind]], *, seek: bool = True) -> Callable[[], list[EventKind]]:
    """Return a handler that reads from the descriptor first, so that it stops being ready."""

    def handle() -> list[EventKind]:
        try:
            if seek:
                os.pread(fd, 4096, 0)
            else:
                os.read(fd, 4096)
        except OSError:
            return []  # the cgroup was removed
        return handler()

    return handle


# ---- the processes that one exec process has started, apart from the rest of the container ----
#
# Sessions and parents do not identify them: setsid(2) and a double fork leave both. A cgroup does, so an exec process gets one of
# its own below the cgroup that it would run in. It limits and counts nothing: no controller is enabled there (v2), or its hierarchy
# has none that matters (v1). Where no cgroup can be created, the processes are identified by a cgroup namespace of their own, which
# only CAP_SYS_ADMIN can leave. It shows the cgroup that they are in as the root. The files of a process whose program its user may
# not read say nothing about namespaces. So there is a mark too that they inherit: a random soft limit of the resident set
# (RLIMIT_RSS), which Linux does not enforce.

_PREFIX: Final = "ociruntime@exec-"
"""Prefix of the names of the groups' cgroups. Container ids have no ``@``, so no container's cgroup has such a name by default."""
_HARMLESS: Final = frozenset({"freezer", "pids"})
"""Controllers of v1 for which a further level of cgroups makes no difference."""
_REFUSED: Final = frozenset({errno.EACCES, errno.EAGAIN, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOSPC})
"""Errors of mkdir(2) where this user may not create a cgroup, or no further one (cgroup.max.descendants)."""
_MIN_LIMIT: Final = 1 << 30
"""The lowest hard limit that leaves enough random numbers for no two groups to have the same."""
_GROUP_KILL_TIMEOUT: Final = 1.0
"""Seconds for processes to die of SIGKILL. Those that take longer hang in the kernel, or are frozen."""
_IN_VAIN: Final = 10_000
"""New pids in succession that are tried in vain: they are those of other programs then, which fork all the time."""
_BATCH: Final = 100
"""Pids that are tried between two looks for new ones."""


class Group(ABC):
    """An exec process and everything that it has started, wherever that is in the process tree."""

    @abstractmethod
    def processes(self) -> set[int]:
        """Return the pids of the processes that run, in the caller's pid namespace."""

    def kill(self) -> None:
        """Send SIGKILL to every process, including those that are being forked, and wait until they are dead.

        Raises:
            TimeoutError: they are forked faster than they can be killed.
        """
        begun = time.monotonic()
        known = set[int]()
        while pids := self.processes():
            if not _is_time_left(begun, begun, pids):
                if not pids <= known:
                    raise _outrun(pids)
                return
            known |= pids
            with open_pidfds(self.processes, pids) as pidfds:
                send(pidfds, signal.SIGKILL)
                wait(pidfds, time.monotonic() + _GROUP_KILL_TIMEOUT / 10)

    def remove(self) -> bool:
        """Remove the cgroup. Return whether that is done: nothing is removed while a process runs."""
        return True

    def close(self) -> None:  # noqa: B027 - not every group has something open
        """Close what is open here. The processes keep running, and may no longer be known."""


def _is_time_left(begun: float, progress: float, pids: Iterable[int]) -> bool:
    """Whether to wait on for the end of killed processes, given when the first was killed, and when the last new one was found.

    A process that is ready to run dies as soon as it gets a CPU, which takes seconds on a machine with too much work.
    """
    now = time.monotonic()
    if now < min(progress + _GROUP_KILL_TIMEOUT, begun + _KILL_TIMEOUT):
        return True
    return now < begun + _KILL_TIMEOUT and any((fields := read_stat(pid)) and fields[0] == b"R" for pid in pids)


def _outrun(pids: Collection[int]) -> TimeoutError:
    """Return the error for processes that run on, given the last ones that were found."""
    return TimeoutError(
        errno.ETIMEDOUT,
        "kill a process and all that it has started: they fork faster than they can be killed, and run on"
        f"{f' as pid {max(pids)}' if pids else ''}; end the container, and limit its processes with pids= or RLIMIT_NPROC",
    )


class CgroupGroup(Group):
    """A group with a cgroup of its own."""

    def __init__(self, path: str) -> None:
        self.path = path

    def processes(self) -> set[int]:
        return processes([self.path])

    def kill(self) -> None:
        if not kill_v2(self.path):
            self._end_forks()
            signal_all([self.path], signal.SIGKILL)
        super().kill()
        deadline = time.monotonic() + _GROUP_KILL_TIMEOUT
        while not self.remove() and time.monotonic() < deadline:
            time.sleep(0.0005)  # dead processes leave the cgroup a moment later

    def _end_forks(self) -> None:
        """Let no process fork any more, in a hierarchy of pids."""
        try:
            write(self.path, "pids.max", "0")
        except UnsupportedError:
            return  # it is in another hierarchy, or was removed
        except OSError as error:
            if error.errno not in GONE:
                raise

    def remove(self) -> bool:
        return _rmdir(self.path)


class MarkedGroup(Group):
    """A group whose processes have inherited a cgroup namespace of its own, and a mark."""

    def __init__(self, limit: int) -> None:
        """Choose the mark: less than ``limit``, the hard limit that the processes have, and at least half of it."""
        limit = min(limit, 1 << 63)
        self.mark = limit - 1 - int.from_bytes(os.urandom(8)) % (limit // 2) if limit >= _MIN_LIMIT else None
        """The soft limit, or None where the hard limit leaves too few numbers."""
        self._namespace: tuple[Descriptor, os.stat_result] | None = None

    def identify(self, namespace: int) -> None:
        """Take the file descriptor of the cgroup namespace of the processes. While it is open, no other gets its number."""
        self._namespace = Descriptor(namespace), os.fstat(namespace)

    def processes(self) -> set[int]:
        return set(filter(self._has, _all_pids()))

    def _has(self, pid: int) -> bool:
        if self._namespace is not None:
            try:
                return os.path.samestat(os.stat(f"/proc/{pid}/ns/cgroup"), self._namespace[1])
            except (FileNotFoundError, ProcessLookupError):
                return False  # it has ended
            except PermissionError:
                pass  # it belongs to another user, or its program cannot be read
        return self.mark is not None and self._soft_limit(pid) == b"%d" % self.mark

    @staticmethod
    def _soft_limit(pid: int) -> bytes:
        try:
            with open(f"/proc/{pid}/limits", "rb", buffering=0) as file:
                row = file.read(4096).partition(b"Max resident set")[2].split(None, 1)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return b""  # it has ended, or belongs to another user
        return row[0] if row and start_time(pid) else b""

    def kill(self) -> None:
        begun = progress = time.monotonic()
        deadline = begun + _KILL_TIMEOUT
        pause, known = 0.0005, set[int]()
        while pids := self._send(signal.SIGKILL, deadline):
            if pids <= known:
                if not _is_time_left(begun, progress, pids):
                    return
            elif (progress := time.monotonic()) >= deadline:
                raise _outrun(pids)
            elif known:  # they fork as fast as they are killed
                self._stop(deadline)
            known |= pids
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
        self.close()

    def close(self) -> None:
        self._namespace = None  # its number may be that of another one from now on

    def _stop(self, deadline: float) -> None:
        """Stop all processes, until none is found that was not stopped."""
        stopped = set[int]()
        while pids := self._send(signal.SIGSTOP, deadline, but=stopped):
            stopped |= pids

    def _send(self, number: int, deadline: float, but: Collection[int] = ()) -> set[int]:
        """Send a signal to each process as it is found, before it forks once more. Return the pids.

        A process that forks and ends can be missed by every reading of /proc: its child is listed later, or not at all. But
        the child has one of the next pids. So all new pids are tried too, the last one first, until there are no more, or many
        are those of other programs.

        Raises:
            TimeoutError: there are still more at the deadline.
        """
        sent: set[int] = set()
        last, in_vain = _last_pid(), 0
        pending: list[Sequence[int]] = [_all_pids()]
        while pending:
            pids = pending.pop()
            found = {pid for pid in reversed(pids[-_BATCH:]) if pid not in but and self._send_one(pid, number)}
            sent |= found
            in_vain = 0 if found else in_vain
            if rest := pids[:-_BATCH]:
                pending.append(rest)
            if (newest := _last_pid()) != last and in_vain < _IN_VAIN:
                if time.monotonic() > deadline:
                    raise _outrun(sent)
                pending.append(range(last + 1, newest + 1) if newest > last else _all_pids())
                in_vain += len(pending[-1])
                last = newest
        return sent

    def _send_one(self, pid: int, number: int) -> bool:
        """Send a signal to a process if it belongs to the group, and return whether that is so."""
        if not self._has(pid):
            return False
        with open_pidfds(lambda: {pid} if self._has(pid) else set(), [pid]) as pidfds:
            send(pidfds, number)
            return bool(pidfds)


def _all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _last_pid() -> int:
    """Return the pid that was given last in the caller's pid namespace (proc_loadavg(5))."""
    with open("/proc/loadavg", "rb", buffering=0) as file:
        return int(file.read(100).split()[-1])


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
