"""Running programs in containers: `Result`, `exec` and `run`, after the model of `subprocess`."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .engine.processes import Exit, signal_number, wait
from .errors import ProcessError

if TYPE_CHECKING:
    from . import spec
    from .engine.launch import Init
    from .terminal import Terminal

__all__ = ["Process", "Result"]

DEVNULL = -3
PIPE = -1
KILL_GRACE = 10.0
"""Seconds for output to end after a kill: a stranger may hold the other end of a pipe."""


class Result(NamedTuple):
    """How a program in a container ended."""

    args: tuple[str, ...]
    returncode: int
    """The exit code; negative for the signal that killed it."""
    stdout: bytes | str | None = None
    stderr: bytes | str | None = None
    duration: float = 0.0
    """Seconds from the launch to the end."""
    timed_out: bool = False

    @property
    def signal(self) -> int | None:
        """The signal that killed it."""
        return -self.returncode if self.returncode < 0 else None

    def check_returncode(self) -> None:
        """Raise ProcessError unless it ended with 0."""
        if self.returncode == 0 and not self.timed_out:
            return
        how = "took too long" if self.timed_out else f"ended with {self.returncode}"
        tail = self.stderr or self.stdout or ""
        text = tail.decode("utf-8", "replace") if isinstance(tail, bytes) else tail
        last = "\n".join(text.strip().splitlines()[-5:])
        raise ProcessError(f"{' '.join(self.args)!r} {how}{': ' + last if last else ''}", self)


class Process:
    """A program in a container that this process started: wait for it, signal it. Closed with its last reference."""

    def __init__(self, args: tuple[str, ...], init: Init, terminal: Terminal | None = None) -> None:
        self.args = args
        self.terminal = terminal
        """The master of its terminal, when it was given one (``terminal=True``)."""
        self.pid = init.pid
        """In our pid namespace."""
        self.returncode: int | None = None
        self._pidfd = os.dup(init.pidfd)
        self.started = time.monotonic()
        init.close()

    def fileno(self) -> int:
        """The pidfd, for select and asyncio: readable when the program has ended."""
        return self._pidfd

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code, negative for a signal. Raises TimeoutError after ``timeout`` seconds."""
        if self.returncode is None:
            ended = wait(self._pidfd, timeout)
            if ended is None:
                raise TimeoutError(f"{' '.join(self.args)!r} still runs after {timeout} s")
            self._ended(ended)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, ended: Exit) -> None:
        code = ended.returncode
        assert code is not None, "a child's exit status is known"
        self.returncode = code

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None and (ended := wait(self._pidfd, 0)) is not None:
            self._ended(ended)
        return self.returncode

    def send_signal(self, signal: int | str) -> None:
        """Send a signal; nothing happens when it has ended, as with `subprocess.Popen`."""
        import signal as _signal

        if self.poll() is None:
            try:
                _signal.pidfd_send_signal(self._pidfd, signal_number(signal))
            except ProcessLookupError:
                pass  # it ended since

    def terminate(self) -> None:
        self.send_signal("TERM")

    def kill(self) -> None:
        self.send_signal("KILL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.wait()
        self.close()

    def close(self) -> None:
        if self.terminal is not None:
            self.terminal.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            os.close(self._pidfd)

    def __repr__(self) -> str:
        return f"<Process {' '.join(self.args)!r}: pid {self.pid}, returncode {self.returncode}>"


def exec_process(
    base: spec.Process | None,
    args: Sequence[str],
    env: Sequence[str] | None,
    cwd: str | None,
    user: tuple[int, int] | None,
    *,
    terminal: bool = False,
) -> spec.Process:
    """The process object of an exec: the container's own, with what was asked for changed."""
    from .spec import Process as ProcessSpec
    from .spec import User

    process = base or ProcessSpec(cwd="/")
    changes: dict[str, Any] = {"terminal": terminal or None}
    if args:
        changes["args"] = tuple(args)
    if env:
        changes["env"] = (*(process.env or ()), *env)
    if cwd is not None:
        changes["cwd"] = cwd
    if user is not None:
        changes["user"] = User(uid=user[0], gid=user[1])
    return process.evolve(**changes)


def finish(child: Process, streams: Streams, *, timeout: float | None, text: bool, check: bool) -> Result:
    """Feed and drain a program to its end; a timeout, or anything that interrupts us, kills it."""
    try:
        ended = streams.communicate(child.fileno(), timeout)
        timed_out = ended is None
        if ended is None:
            child.kill()
            ended = streams.communicate(child.fileno(), KILL_GRACE) or wait(child.fileno())
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        duration = time.monotonic() - child.started
    assert ended is not None
    child.close()
    return streams.result(child.args, ended, duration, timed_out=timed_out, text=text, check=check)


class Streams:
    """The pipes between us and a program: opened, pumped without deadlock, closed."""

    def __init__(self, input: bytes | str | None, capture: bool, stdio: tuple[int | None, int | None, int | None]) -> None:
        self.child: list[int] = []
        self._theirs: list[int] = []
        self._ours: dict[int, int] = {}
        self._input = memoryview(input.encode() if isinstance(input, str) else input or b"")
        self._output: dict[int, list[bytes]] = {}
        given = [PIPE if input is not None else stdio[0], *(PIPE if capture and fd is None else fd for fd in stdio[1:])]
        try:
            for number, fd in enumerate(given):
                self.child.append(self._open(number, fd))
        except BaseException:
            self.close()
            raise

    def _open(self, number: int, fd: int | None) -> int:
        if fd is None:
            return number
        if fd == DEVNULL:
            self._theirs.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            return self._theirs[-1]
        if fd != PIPE:
            return fd
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours, theirs = (writer, reader) if number == 0 else (reader, writer)
        self._theirs.append(theirs)
        self._ours[number] = ours
        os.set_blocking(ours, False)
        if number:
            self._output[number] = []
        return theirs

    def communicate(self, pidfd: int, timeout: float | None) -> Exit | None:
        """Feed and drain the pipes until the program ended and its output is closed; None when the time is over."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()
        if not self._ours:
            return wait(pidfd, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for number, fd in self._ours.items():
                selector.register(fd, selectors.EVENT_READ if number else selectors.EVENT_WRITE, number)
            while selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                for key, _ in selector.select(left):
                    self._pump(selector, key.fd, key.data)
        return wait(pidfd, None if deadline is None else deadline - time.monotonic())

    def _pump(self, selector: selectors.BaseSelector, fd: int, number: int) -> None:
        if number:
            chunk = os.read(fd, 1 << 16)
            if chunk:
                self._output[number].append(chunk)
                return
        else:
            try:
                self._input = self._input[os.write(fd, self._input[: 1 << 16]) :]
            except BrokenPipeError:
                self._input = memoryview(b"")  # the program does not want it
            if self._input:
                return
        selector.unregister(fd)
        os.close(self._ours.pop(number))

    def result(self, args: tuple[str, ...], ended: Exit, duration: float, *, timed_out: bool, text: bool, check: bool) -> Result:
        out, err = (b"".join(self._output[number]) if number in self._output else None for number in (1, 2))
        convert: Callable[[bytes | None], bytes | str | None] = (
            (lambda raw: raw if raw is None else raw.decode("utf-8", "surrogateescape")) if text else (lambda raw: raw)
        )
        code = ended.returncode
        assert code is not None, "a child's exit status is known"
        result = Result(args, code, convert(out), convert(err), duration, timed_out)
        if check:
            result.check_returncode()
        return result

    def close(self) -> None:
        for fd in (*self._theirs, *self._ours.values()):
            os.close(fd)
        self._theirs.clear()
        self._ours.clear()

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
