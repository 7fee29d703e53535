"""Processes by pidfd: waiting for them, signalling them, and reaping our children in time for their container to end.

The kernel lets the first process of a pid namespace go only when all others there have been reaped (pid_namespaces(7)). What `exec`
and `popen` put into a container is a child of the process that called them, so that process must reap it before the container ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import time
from _thread import allocate_lock
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ..procfs import is_over, read_stat, start_time

if TYPE_CHECKING:
    from .usage import Usage

_PIDFD_GET_INFO: Final = 0xC040FF0B
_PIDFD_INFO_EXIT: Final = 1 << 3


class Exit(NamedTuple):
    """How a process ended."""

    code: int | None
    """The exit code; None when it was killed by a signal, or when the kernel tells it to the parent only (before Linux 6.15)."""
    signal: int | None = None

    @property
    def returncode(self) -> int | None:
        """As `subprocess` has it: negative for a signal."""
        return -self.signal if self.signal else self.code


def open_process(pid: int, began: int) -> int | None:
    """A pidfd of the process that has this pid and start time, or None when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != began:
        os.close(pidfd)
        return None
    return pidfd


def pid_namespace_of(pid: int) -> set[int]:
    """Every process in the pid namespace of a process, when it is not our own; only the process itself then."""
    try:
        wanted = os.stat(f"/proc/{pid}/ns/pid")
    except FileNotFoundError:
        return set()
    if os.path.samestat(wanted, os.stat("/proc/self/ns/pid")):
        return {pid}
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.path.samestat(os.stat(f"/proc/{name}/ns/pid"), wanted):
                found.add(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it ended, or is somebody else's
    return found


def ended_within(pidfd: int, timeout: float | None) -> bool:
    """Whether a process ends within ``timeout`` seconds, None for ever; it is not reaped."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0.0, timeout) * 1000))


DEATH: Final = 10.0
"""Seconds for a process to die of SIGKILL."""
_STATES: Final = {b"D": "waiting in the kernel", b"R": "running", b"S": "asleep", b"T": "stopped", b"t": "traced", b"Z": "a zombie"}


def wait_killed(pid: int, pidfd: int, name: str) -> None:
    """Wait for the end of a process that was sent SIGKILL.

    Args:
        name: what the process is, for the error.

    Raises:
        TimeoutError: it does not die.
    """
    if not ended_within(pidfd, DEATH):
        raise TimeoutError(errno.ETIMEDOUT, not_dead(pid, name))


def not_dead(pid: int, name: str) -> str:
    """Say which process did not die of SIGKILL, and what it is doing."""
    return f"{name} (pid {pid}) did not die within {DEATH:.0f} s of SIGKILL: it is {doing(pid)}; see /proc/{pid}/stack"


def doing(pid: int) -> str:
    """Return the state of a process in words (proc_pid_stat(5), field 3)."""
    fields = read_stat(pid)
    return _STATES.get(fields[0], fields[0].decode()) if fields else "gone"


def exit_of(pid: int, pidfd: int) -> Exit:
    """How a process that has exited ended. A child is reaped."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return _exit_of_stranger(pid, pidfd)
    if info is None:
        return _exit_of_zombie(pid, pidfd)  # it is held back
    return Exit(info.si_status) if info.si_code == os.CLD_EXITED else Exit(None, info.si_status)


def reap(pid: int, pidfd: int) -> tuple[Exit, Usage]:
    """Reap a child that has exited; how it ended, and what it used with its own children."""
    from .usage import Usage

    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # that the pid is still its own
        found, status, used = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else has reaped it, or SIGCHLD is ignored
        return _exit_of_stranger(pid, pidfd), Usage()
    if not found:
        return _exit_of_zombie(pid, pidfd), Usage()  # it is held back
    return _exit(status), Usage(used.ru_utime, used.ru_stime, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def is_reaped(pidfd: int) -> bool:
    """Return whether a process that has exited needs no reaping any more; a child is reaped.

    A child that its tracer has not waited for, or that other processes of its pid namespace hold back, cannot be reaped yet.
    """
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _exit(status: int) -> Exit:
    """From a status as wait(2) gives it."""
    return Exit(None, status & 0x7F) if status & 0x7F else Exit(status >> 8 & 0xFF)


def _exit_of_stranger(pid: int, pidfd: int) -> Exit:
    request = memoryview(bytearray(64)).cast("Q")
    request[0] = _PIDFD_INFO_EXIT
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return _exit_of_zombie(pid, pidfd)
    mask, status = request[0], request.cast("B").cast("i")[15]
    return _exit(status) if mask & _PIDFD_INFO_EXIT else _exit_of_zombie(pid, pidfd)


def _exit_of_zombie(pid: int, pidfd: int) -> Exit:
    """From field 52 of /proc/pid/stat (proc(5)), which is 0 for those who may not trace the process."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return Exit(None)
    except OSError:
        pass  # it has none any more
    fields = read_stat(pid)
    return _exit(int(fields[49])) if fields is not None and is_over(fields) and pid_of(pidfd) == pid else Exit(None)


def pid_of(pidfd: int) -> int:
    """The pid, in our pid namespace, of the process behind a pidfd (proc(5), fdinfo); -1 when it is gone."""
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 4096).partition(b"Pid:")[2].split()[0])
    finally:
        os.close(fd)


def signal_number(value: int | str) -> int:
    """A signal from a number, ``"9"``, ``"KILL"``, ``"SIGKILL"`` or ``"RTMIN+3"``. Raises ValueError."""
    if isinstance(value, int):
        number = int(value)
    else:
        text = value.upper().removeprefix("SIG")
        if text.isdigit():
            number = int(text)
        elif text.startswith("RTMIN+") and text[6:].isdigit():
            number = signal.SIGRTMIN + int(text[6:])
        else:
            known = getattr(signal, f"SIG{text}", None)
            if not isinstance(known, signal.Signals):
                raise ValueError(f"{value!r} is not a signal")
            number = int(known)
    if not 1 <= number <= 64:
        raise ValueError(f"{value!r} is not a signal")
    return number


_further: dict[int, list[Child]] = {}
"""Our children that are not reaped yet, by the pid of their container's first process."""
_endings: dict[int, list[Ending]] = {}
_abandoned: list[Child] = []
LOOK: Final = 1.0
"""Seconds between two looks at a first process that may have exited and be held back by children of others."""


class Child:
    """A process that we launched: whoever sees its end first reaps it, and all others find what was seen."""

    def __init__(self, pid: int, pidfd: int, first: int = 0) -> None:
        """``pidfd`` becomes ours; ``first`` is the pid of its container's first process, 0 where nobody waits for that with it."""
        self.pid = pid
        self._pidfd = pidfd
        self._first = first
        self._seen: tuple[Exit, Usage] | None = None
        self._lock = allocate_lock()
        self._ending = Ending(pid, pidfd) if pid == first else None
        if first not in (0, pid):
            _further.setdefault(first, []).append(self)
            for ending in _endings.get(first, []):
                ending.follow(self)

    def fileno(self) -> int:
        """Readable when `ended` has something new to tell; -1 when it is closed."""
        return self._pidfd if self._ending is None else self._ending.fileno()

    def ended(self, timeout: float | None = 0) -> bool:
        """Whether it ends within ``timeout`` seconds; None for as long as it takes."""
        if self._seen is not None:
            return True
        return ended_within(self._pidfd, timeout) if self._ending is None else self._ending.within(timeout)

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self._seen is None and self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it ended since

    def reap(self) -> tuple[Exit, Usage]:
        """How it ended, and what it used with its own children; waits for the end."""
        with self._lock:
            if self._seen is None:
                self._seen = reap(self.pid, self._pidfd)
                self._forget()
        return self._seen

    def close(self) -> None:
        """Let go of it. While it runs, it is reaped later: with a launch, or at the end of its container."""
        ending, self._ending = self._ending, None
        if ending is not None:
            ending.close()
        if self._pidfd >= 0 and ended_within(self._pidfd, 0):
            self.reap()
            if is_reaped(self._pidfd):
                pidfd, self._pidfd = self._pidfd, -1
                os.close(pidfd)
        if self._pidfd >= 0 and self not in _abandoned:
            _abandoned.append(self)

    def detach(self) -> None:
        """Leave it to whoever gets our children when we end, also when it has ended already."""
        self._forget()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def _forget(self) -> None:
        others = _further.get(self._first, [])
        if self in others:
            others.remove(self)
        if not others:
            _further.pop(self._first, None)


def abandon(pidfd: int) -> None:
    """Take the pidfd of a child that nobody waits for any more."""
    Child(pid_of(pidfd), pidfd).close()


def reap_abandoned() -> None:
    """Reap what was let go of and has ended since."""
    for child in _abandoned[:]:
        if ended_within(child._pidfd, 0):
            try:
                _abandoned.remove(child)
            except ValueError:
                continue  # another thread was faster
            child.close()


class Ending:
    """Waiting for the end of a container's first process, while our children in the container are reaped as they end."""

    def __init__(self, pid: int, pidfd: int) -> None:
        """``pidfd`` stays the caller's, and open as long as this is."""
        self._pid = pid
        self._pidfd = pidfd
        self._over: float | None = None
        self._epoll = select.epoll()
        self._epoll.register(pidfd, select.EPOLLIN)
        _endings.setdefault(pid, []).append(self)
        for child in _further.get(pid, [])[:]:
            self.follow(child)

    def fileno(self) -> int:
        """Readable when `within` has something new to tell."""
        return self._epoll.fileno()

    def follow(self, child: Child) -> None:
        """Wake up when this one ends, too."""
        try:
            self._epoll.register(child.fileno(), select.EPOLLIN | select.EPOLLET)
        except (FileExistsError, ValueError, OSError):
            return  # it is known already, or was closed just now

    def ended(self) -> bool:
        """Whether it has ended."""
        return self.within(0)

    def within(self, timeout: float | None = 0) -> bool:
        """Whether the first process ends within ``timeout`` seconds; None for as long as it takes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = LOOK if deadline is None else min(LOOK, max(0.0, deadline - time.monotonic()))
            self._epoll.poll(left)
            for child in _further.get(self._pid, [])[:]:
                if child.ended():
                    child.reap()
            reap_abandoned()
            if ended_within(self._pidfd, 0) or self._held_back():
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _held_back(self) -> bool:
        """Whether it has exited a while ago: only children of others can hold it back so long, and nothing tells of those."""
        if self._over is None and start_time(self._pid) == 0:
            self._over = time.monotonic()
        return self._over is not None and time.monotonic() - self._over > LOOK

    def close(self) -> None:
        self._epoll.close()
        others = _endings.get(self._pid, [])
        if self in others:
            others.remove(self)
        if not others:
            _endings.pop(self._pid, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_first(pid: int, pidfd: int, timeout: float | None = None) -> Exit | None:
    """Wait for the end of a container's first process; None after ``timeout`` seconds. A child is reaped."""
    with Ending(pid, pidfd) as ending:
        return exit_of(pid, pidfd) if ending.within(timeout) else None
