"""Waiting for processes and signalling them, by pidfd."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
from typing import TYPE_CHECKING, Final, NamedTuple

from ..state import is_over, start_time, stat_of

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
    fields = stat_of(pid)
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


def reaped(pidfd: int) -> bool:
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
    fields = stat_of(pid)
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
