"""Waiting for processes and signalling them, by pidfd."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..state import start_time

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


def wait(pidfd: int, timeout: float | None = None) -> Exit | None:
    """Wait for the end of a process; None after ``timeout`` seconds. A child is reaped."""
    if not ended_within(pidfd, timeout):
        return None
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        return _exit_of_stranger(pidfd)
    assert info is not None
    return Exit(info.si_status) if info.si_code == os.CLD_EXITED else Exit(None, info.si_status)


def reap(pidfd: int, pid: int) -> tuple[Exit, Usage]:
    """Reap a child that has ended; how it ended, and what it used with its own children."""
    from .usage import Usage

    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        found, status, used = os.wait4(pid, os.WNOHANG)
        if not found:
            raise ChildProcessError
    except ChildProcessError:  # somebody else has reaped it, or SIGCHLD is ignored
        return _exit_of_stranger(pidfd), Usage()
    usage = Usage(used.ru_utime, used.ru_stime, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
    return Exit(None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else Exit(os.WEXITSTATUS(status)), usage


def end_session(leader: int, pids: Iterable[int]) -> None:
    """Kill what of ``pids`` still belongs to the session that a process began."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if os.getsid(pid) == leader:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)


_abandoned: list[int] = []


def abandon(pidfd: int) -> None:
    """Take the pidfd of a child that nobody waits for any more; it is reaped with one of the next launches, and its zombie goes."""
    _abandoned.append(pidfd)
    reap_abandoned()


def reap_abandoned() -> None:
    """Reap what was abandoned and has ended since."""
    for pidfd in _abandoned[:]:
        if ended_within(pidfd, 0):
            try:
                _abandoned.remove(pidfd)
            except ValueError:
                continue  # another thread was faster
            wait(pidfd, 0)
            os.close(pidfd)


def _exit_of_stranger(pidfd: int) -> Exit:
    request = bytearray(struct.pack("=Q56x", _PIDFD_INFO_EXIT))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, request)
    except OSError:
        return Exit(None)
    mask, status = struct.unpack_from("=Q", request)[0], struct.unpack_from("=i", request, 60)[0]
    if not mask & _PIDFD_INFO_EXIT:
        return Exit(None)
    return Exit(None, status & 0x7F) if status & 0x7F else Exit(status >> 8 & 0xFF)


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
