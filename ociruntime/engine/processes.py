"""Processes by pidfd: waiting for them, signalling them, and reaping children.

The init process of a pid namespace ends only when every other process there has been reaped (pid_namespaces(7)). An exec process is
a child of the process that called `exec` or `popen`, which must therefore reap it before the container can end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ..arguments import check_type, shown
from ..files import ProcessLock, is_over, open_pidfd, read_stat, start_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stats import Usage

_PIDFD_GET_INFO: Final = 0xC040FF0B
_PIDFD_INFO_EXIT: Final = 1 << 3
LONGEST_POLL: Final = 1e6
"""Seconds that one poll(2) can wait: it takes milliseconds in 31 bits."""


class Exit(NamedTuple):
    """How a process ended."""

    code: int | None
    """The exit code; None if it was killed by a signal, or if only its parent can learn the code (before Linux 6.15)."""
    signal: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code as in `subprocess`: negative for a signal."""
        return -self.signal if self.signal else self.code


def open_process(pid: int, started: int, *, ending: bool = False) -> int | None:
    """Return a pidfd of the process with this pid and start time; None if it has ended.

    Args:
        ending: return one also for a process that has begun to end, or is not reaped. The first process of a pid namespace ends
            after all others there.
    """
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return None
    try:
        same = started == (_begin_of(pid) if ending else start_time(pid))
    except BaseException:
        os.close(pidfd)
        raise
    if same:
        return pidfd
    os.close(pidfd)
    return None


def _begin_of(pid: int) -> int:
    """Return the start time of a process until it is reaped; then 0."""
    fields = read_stat(pid)
    return 0 if fields is None else int(fields[19])


def is_init(pid: int) -> bool:
    """Return whether a process executes the program of the init process, and has not become another one."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read() == "oci-init\n"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_namespace_members(pid: int) -> set[int]:
    """Return the processes in the pid namespace of a process; only itself if that is the caller's own namespace.

    Those that have exited, and are not reaped yet, are left out, as cgroups leave them out.
    """
    try:
        namespace = os.stat(f"/proc/{pid}/ns/pid")
    except FileNotFoundError:
        return set()
    if os.path.samestat(namespace, os.stat("/proc/self/ns/pid")):
        return {pid}
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.path.samestat(os.stat(f"/proc/{name}/ns/pid"), namespace) and start_time(int(name)):
                found.add(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or belongs to another user
    return found


def ended_within(pidfd: int, timeout: float | None) -> bool:
    """Return whether a process ends within ``timeout`` seconds; None means no limit. It is not reaped."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if timeout is None:
        return bool(poller.poll())
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > LONGEST_POLL:
        if poller.poll(LONGEST_POLL * 1000):
            return True
    return bool(poller.poll(max(0.0, left) * 1000))


KILL_TIMEOUT: Final = 10.0
"""Seconds for a process to die of SIGKILL."""
_STATES: Final = {b"D": "waiting in the kernel", b"R": "running", b"S": "asleep", b"T": "stopped", b"t": "traced", b"Z": "a zombie"}


def wait_killed(pid: int, pidfd: int, name: str) -> None:
    """Wait for the end of a process that was sent SIGKILL.

    Args:
        name: what the process is, for the error.

    Raises:
        TimeoutError: it does not die.
    """
    if not ended_within(pidfd, KILL_TIMEOUT):
        raise TimeoutError(errno.ETIMEDOUT, not_dead(pid, name))


def kill_each(is_meant: Callable[[int], bool]) -> None:
    """Send SIGKILL to each process that a function of pids chooses. A pid stays that of its process meanwhile.

    Those at which the caller may not look, as where /proc is mounted with hidepid=, are not the caller's.
    """
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(ProcessLookupError, PermissionError):
            pidfd = open_pidfd(int(name))
            try:
                if is_meant(int(name)):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def not_dead(pid: int, name: str) -> str:
    """Return a message that names a process that did not die of SIGKILL, and its state."""
    state = describe_state(pid)
    return f"{name} (pid {pid}) did not die within {KILL_TIMEOUT:.0f} s of SIGKILL: it is {state}; see /proc/{pid}/stack"


def describe_state(pid: int) -> str:
    """Return the state of a process in words (proc_pid_stat(5), field 3), and where in the kernel it waits."""
    fields = read_stat(pid)
    if not fields:
        return "gone"
    state = _STATES.get(fields[0], fields[0].decode())
    if fields[0] not in (b"D", b"S"):
        return state
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            place = file.read()
    except OSError:
        return state  # it has just ended, or the caller may not know
    return state if place in ("", "0") else f"{state} in {place}"


def exit_of(pid: int, pidfd: int) -> Exit:
    """Return how a process ended that has exited. A child is reaped."""
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return _exit_of_other(pid, pidfd)
    if info is None:
        return _exit_of_zombie(pid, pidfd)  # it cannot be reaped yet
    return Exit(info.si_status) if info.si_code == os.CLD_EXITED else Exit(None, info.si_status)


def reap(pid: int, pidfd: int) -> tuple[Exit, Usage]:
    """Reap a child that has exited. Return how it ended, and what it and the children that it waited for have used."""
    from ..stats import Usage

    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # the pid still belongs to it
        found, status, used = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:  # it was reaped elsewhere, or SIGCHLD is ignored
        return _exit_of_other(pid, pidfd), Usage()
    if not found:
        return _exit_of_zombie(pid, pidfd), Usage()  # it cannot be reaped yet
    return _parse_status(status), Usage(used.ru_utime, used.ru_stime, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def is_reaped(pidfd: int) -> bool:
    """Return whether a process that has exited no longer needs reaping; a child is reaped.

    A child cannot be reaped as long as its tracer has not waited for it, or other processes of its pid namespace exist.
    """
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _parse_status(status: int) -> Exit:
    """Parse a status of wait(2)."""
    return Exit(None, status & 0x7F) if status & 0x7F else Exit(status >> 8 & 0xFF)


def _exit_of_other(pid: int, pidfd: int) -> Exit:
    request = memoryview(bytearray(64)).cast("Q")
    request[0] = _PIDFD_INFO_EXIT
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return _exit_of_zombie(pid, pidfd)
    mask, status = request[0], request.cast("B").cast("i")[15]
    return _parse_status(status) if mask & _PIDFD_INFO_EXIT else _exit_of_zombie(pid, pidfd)


def _exit_of_zombie(pid: int, pidfd: int) -> Exit:
    """Read field 52 of /proc/pid/stat (proc(5)). It is 0 for a process that the caller may not trace."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        return Exit(None)
    except OSError:
        pass  # a zombie has none
    fields = read_stat(pid)
    return _parse_status(int(fields[49])) if fields is not None and is_over(fields) and pid_of(pidfd) == pid else Exit(None)


def pid_inside(pid: int) -> int:
    """Return the pid of a process in its own pid namespace (proc_pid_status(5), NSpid). Raises OSError: it has ended."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace", newline="\n") as status:
        return next(int(line.split()[-1]) for line in status if line.startswith("NSpid:"))


def pid_of(pidfd: int) -> int:
    """Return the pid of the process of a pidfd in the caller's pid namespace (proc(5), fdinfo); -1 if it was reaped.

    Raises:
        OSError: EBADF when it is not a pidfd.
    """
    fd = os.open(f"/proc/self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _, found, rest = os.read(fd, 4096).partition(b"\nPid:")
    finally:
        os.close(fd)
    if not found:
        raise OSError(errno.EBADF, "not a pidfd", str(pidfd))
    return int(rest.split(None, 1)[0])


_SIGNAL: Final = re.compile(r"(RTMIN\+)?([0-9]{1,3})")


def signal_number(value: int | str) -> int:
    """Return the number of a signal: a number, ``"9"``, ``"KILL"``, ``"SIGKILL"``, ``"RTMIN+3"``. Raises TypeError, ValueError.

    0 sends no signal, as in kill(2): the operation only fails where a signal could not be sent.
    """
    check_type("signal", value, (int, str), "a number or name of a signal")
    if isinstance(value, int):
        number = int(value)
    else:
        text = value.upper().removeprefix("SIG")
        known = getattr(signal, f"SIG{text}", None)
        if isinstance(known, signal.Signals):
            number = int(known)
        elif found := _SIGNAL.fullmatch(text):
            number = int(found[2]) + (signal.SIGRTMIN if found[1] else 0)
        else:
            number = -1
    if not 0 <= number <= 64:
        raise ValueError(f"{shown(value)} is not a signal")
    return number


_exec_children: dict[int, list[ChildProcess]] = {}
"""Exec processes that are not reaped yet, by pid of the init process of their container."""
_waiters: dict[int, list[EndWaiter]] = {}
_abandoned: list[ChildProcess] = []
POLL_INTERVAL: Final = 1.0
"""Seconds between two checks for an init process that has exited and waits for children of other processes."""


class ChildProcess:
    """A child of this process. It is reaped once, by the first call that finds it ended; the result is kept for the others."""

    def __init__(self, pid: int, pidfd: int, first: int = 0) -> None:
        """Take over a child.

        Args:
            pid: its pid.
            pidfd: its pidfd, which this object closes.
            first: pid of the init process of its container, if that is to end with it, or 0.
        """
        self.pid = pid
        self._pidfd = pidfd
        self._first = first
        self._result: tuple[Exit, Usage] | None = None
        self._lock = ProcessLock()
        self._waiter = EndWaiter(pid, pidfd) if pid == first else None
        if first not in (0, pid):
            _exec_children.setdefault(first, []).append(self)
            for waiter in _waiters.get(first, []):
                waiter.follow(self)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the result of `ended` may have changed; -1 if it is closed."""
        return self._pidfd if self._waiter is None else self._waiter.fileno()

    def ended(self, timeout: float | None = 0) -> bool:
        """Return whether it ends within ``timeout`` seconds; None means no limit."""
        if self._result is not None:
            return True
        return ended_within(self._pidfd, timeout) if self._waiter is None else self._waiter.within(timeout)

    def send(self, number: int) -> None:
        """Send a signal. No effect if it has ended."""
        if self._result is None and self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # it has just ended

    def reap(self) -> tuple[Exit, Usage]:
        """Wait for its end. Return how it ended, and what it and the children that it waited for have used."""
        with self._lock:
            if self._result is None:
                self._result = reap(self.pid, self._pidfd)
                self._forget()
        return self._result

    def close(self) -> None:
        """Close it. If it still runs, it is reaped later: with the next launch, or at the end of its container."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.close()
        if self._pidfd >= 0 and ended_within(self._pidfd, 0):
            self.reap()
            if is_reaped(self._pidfd):
                pidfd, self._pidfd = self._pidfd, -1
                os.close(pidfd)
        if self._pidfd >= 0 and self not in _abandoned:
            _abandoned.append(self)

    def detach(self) -> None:
        """Close it without reaping it, even if it has ended: another process will inherit it."""
        self._forget()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def _forget(self) -> None:
        others = _exec_children.get(self._first, [])
        if self in others:
            others.remove(self)
        if not others:
            _exec_children.pop(self._first, None)


def abandon(pidfd: int) -> None:
    """Take over the pidfd of a child that the caller stops waiting for, to reap it later."""
    ChildProcess(pid_of(pidfd), pidfd).close()


def reap_abandoned() -> None:
    """Reap the children that were closed while they ran and have ended since."""
    for child in _abandoned[:]:
        pidfd = child._pidfd  # -1 when another thread has just closed it
        if pidfd >= 0 and ended_within(pidfd, 0):
            try:
                _abandoned.remove(child)
            except ValueError:
                continue  # another thread reaps it
            child.close()


class EndWaiter:
    """Waits for the end of an init process. Meanwhile the children of this process in its container are reaped."""

    def __init__(self, pid: int, pidfd: int, check: Callable[[], None] | None = None) -> None:
        """Begin to wait. The caller closes the pidfd, after this object.

        Args:
            check: called after each `POLL_INTERVAL` in which the process has not ended. An exception ends the wait.
        """
        self._pid = pid
        self._check = check
        self._pidfd = pidfd
        self._exited_at: float | None = None
        self._epoll = select.epoll()
        self._epoll.register(pidfd, select.EPOLLIN)
        _waiters.setdefault(pid, []).append(self)
        for child in _exec_children.get(pid, [])[:]:
            self.follow(child)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the result of `within` may have changed."""
        return self._epoll.fileno()

    def follow(self, child: ChildProcess) -> None:
        """Wake up when this child ends, too."""
        try:
            self._epoll.register(child.fileno(), select.EPOLLIN | select.EPOLLET)
        except (FileExistsError, ValueError, OSError):
            return  # it is registered already, or was just closed

    def ended(self) -> bool:
        """Return whether it has ended."""
        return self.within(0)

    def within(self, timeout: float | None = 0) -> bool:
        """Return whether the init process ends within ``timeout`` seconds; None means no limit."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = POLL_INTERVAL if deadline is None else min(POLL_INTERVAL, max(0.0, deadline - time.monotonic()))
            self._epoll.poll(left)
            for child in _exec_children.get(self._pid, [])[:]:
                if child.ended():
                    child.reap()
            reap_abandoned()
            if ended_within(self._pidfd, 0) or self._held_back():
                return True
            if self._check is not None:
                self._check()
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def _held_back(self) -> bool:
        """Return whether it exited a while ago. Then it waits for children of other processes, whose end is not notified."""
        if self._exited_at is None and start_time(self._pid) == 0:
            self._exited_at = time.monotonic()
        return self._exited_at is not None and time.monotonic() - self._exited_at > POLL_INTERVAL

    def close(self) -> None:
        self._epoll.close()
        others = _waiters.get(self._pid, [])
        if self in others:
            others.remove(self)
        if not others:
            _waiters.pop(self._pid, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def wait_init(pid: int, pidfd: int, timeout: float | None = None, check: Callable[[], None] | None = None) -> Exit | None:
    """Wait for the end of an init process; None if it takes longer than ``timeout`` seconds. A child is reaped.

    Args:
        check: as for `EndWaiter`.
    """
    with EndWaiter(pid, pidfd, check) as waiter:
        return exit_of(pid, pidfd) if waiter.within(timeout) else None
