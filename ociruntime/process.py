"""Programs in containers: `Process`, and `Result`, after the model of `subprocess`."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import IO, TYPE_CHECKING, Any, AnyStr, Final, Generic, NamedTuple, Self

from .engine import cgroup, processes
from .engine.processes import signal_number
from .engine.usage import Usage
from .errors import LaunchTimeout, ProcessError
from .interrupts import Held
from .pickling import Unpicklable
from .streams import MaybeNone, Streams
from .terminal import Terminal

if TYPE_CHECKING:
    from .engine.groups import Group

__all__ = ["Process", "Result", "Usage"]

KILL_GRACE = 10.0
"""Seconds for output to end after a kill: a stranger may hold the other end of a pipe."""


_TAIL: Final = 2000
"""Characters of the output in an error's message, at most."""


class Result(NamedTuple, Generic[AnyStr]):
    """How a program in a container ended."""

    args: tuple[str, ...]
    returncode: int
    """The exit code; negative for the signal that killed it."""
    stdout: AnyStr | MaybeNone = None
    """What it wrote, if it was captured; never None then."""
    stderr: AnyStr | MaybeNone = None
    """What it wrote to stderr, if that was captured; never None then."""
    duration: float = 0.0
    """Seconds from the launch to the end."""
    timed_out: bool = False
    """Whether it was killed because the time was over."""
    oom_killed: bool = False
    """Whether the kernel killed something in the container for want of memory; of an exec, the program itself."""
    usage: Usage = Usage()
    """CPU time and memory used."""

    @property
    def signal(self) -> int | None:
        """The signal that killed it."""
        return -self.returncode if self.returncode < 0 else None

    def check_returncode(self) -> None:
        """Raise ProcessError unless it ended with 0 and in time."""
        if self.returncode == 0 and not self.timed_out:
            return
        how = "took too long" if self.timed_out else f"ended with {self.returncode}" if self.signal is None else self._signalled()
        if self.oom_killed:
            how += " for want of memory"
        tail: bytes | str = self.stderr or self.stdout or ""
        text = tail.decode("utf-8", "replace") if isinstance(tail, bytes) else tail
        last = "\n".join(text.strip().splitlines()[-5:])
        if len(last) > _TAIL:
            last = f"...{last[-_TAIL:]}"
        raise ProcessError(f"{' '.join(self.args)!r} {how}{': ' + last if last else ''}", self)

    def _signalled(self) -> str:
        import signal

        try:
            return f"was killed by {signal.Signals(-self.returncode).name}"
        except ValueError:
            return f"was killed by signal {-self.returncode}"


class Child(Unpicklable):
    """A program in a container that this process started, without its streams."""

    _instead = "send the Container, or the Result of an exec"

    def __init__(
        self,
        args: tuple[str, ...],
        pid: int,
        pidfd: int,
        streams: Streams,
        *,
        first: int,
        began: float,
        cgroups: Sequence[str],
        oom_kills: int = 0,
        group: Group | None = None,
        terminal: Terminal | None = None,
    ) -> None:
        self._owner = os.getpid()
        self.args = args
        self.pid = pid
        """In our pid namespace."""
        self.returncode: int | None = None
        """The exit code, negative for a signal; None until `poll` or `wait` has seen the end."""
        self.usage = Usage()
        """What it used, with its own children; zeros until the end was seen."""
        self.terminal = terminal
        """The master of its terminal, when it was given one (``terminal=True``)."""
        self.began = began
        """When it was launched, by `time.monotonic`."""
        self._child = processes.ChildProcess(pid, pidfd, first)
        self.streams = streams
        self.cgroups = cgroups
        """Directories of the container's cgroups."""
        self._oom_kills = oom_kills
        self._group = group

    @property
    def owned(self) -> bool:
        """Whether this process started it. A forked child of the one that did leaves it alone."""
        return os.getpid() == self._owner

    def fileno(self) -> int:
        """A descriptor for select and asyncio: readable when the program has ended. Raises ValueError: it is closed."""
        fd = self._child.fileno()
        if fd < 0:
            raise ValueError(f"{' '.join(self.args)!r} is closed")
        return fd

    def ended(self, timeout: float | None = 0) -> bool:
        """Whether it ends within ``timeout`` seconds; None for as long as it takes."""
        return self.returncode is not None or self._child.ended(timeout)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.ended():
            self.reap()
        return self.returncode

    def reap(self) -> int:
        """The exit code of a program that has ended. Raises ChildProcessError: somebody else got it."""
        if self.returncode is None:
            ended, self.usage = self._child.reap()
            if (code := ended.returncode) is None:
                raise ChildProcessError(errno.ECHILD, "the exit status is lost: SIGCHLD is ignored, or another wait got it")
            self.returncode = code
            if self._group is not None:
                self._group.remove()
        return self.returncode

    def send_signal(self, signal: int | str) -> None:
        """Send a signal, by number or name; nothing happens when it has ended, as with `subprocess.Popen`. Raises ValueError."""
        number = signal_number(signal)
        if self.poll() is None:
            self._child.send(number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal("TERM")

    def kill(self, *, all: bool = False) -> None:
        """Send SIGKILL. With ``all``, also to everything that it has started, whether or not it has ended itself."""
        self.send_signal("KILL")
        if all and self._group is not None:
            self._group.kill()

    def kill_all(self) -> None:
        """Kill the program and everything that it has started."""
        self.kill(all=True)

    def discard(self) -> None:
        """Kill the program and everything that it has started, and close what is open here; no effect in a forked child."""
        if not self.owned:
            return
        try:
            self.end()
        finally:
            self.close()

    def end(self) -> None:
        """Kill the program and everything that it has started, and reap it."""
        self.kill_all()
        self.ended(KILL_GRACE)
        self.poll()

    def check_dead(self) -> None:
        """Raise TimeoutError for what a kill has not ended: it hangs in the kernel."""
        if not self.ended():
            raise TimeoutError(f"{' '.join(self.args)!r} did not die within {KILL_GRACE:.0f} s of SIGKILL")

    def sit(self, held: Held | None = None) -> None:
        """Connect its terminal with the one that we sit at, until it ends; a hang-up of ours is passed on. From the main thread.

        Args:
            held: a block that nothing interrupts but here; then the program is killed.
        """
        from .terminal import interact

        assert self.terminal is not None, "it was started with one"
        try:
            with nullcontext() if held is None else held.opened():
                interact(self.terminal.fileno(), self.terminal.resize, ended=self.fileno())
        except BaseException:
            if held is not None and self.owned:
                self.kill_all()
            raise
        self.terminal.close()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal, in characters. Raises ValueError without one."""
        if self.terminal is None:
            raise ValueError(f"{' '.join(self.args)!r} has no terminal: start it with terminal=True")
        self.terminal.resize(rows, columns)

    @property
    def oom_killed(self) -> bool:
        """Whether it was killed, and the kernel killed something in the container for want of memory since its start."""
        return self.returncode == -9 and cgroup.oom_kills(self.cgroups) > self._oom_kills

    def result(self, *, timed_out: bool = False) -> Result[Any]:
        """Everything known of a program that has ended, with what was read of its output."""
        return Result(
            self.args,
            self.reap(),
            self.streams.output(1),
            self.streams.output(2),
            time.monotonic() - self.began,
            timed_out,
            self.oom_killed,
            self.usage,
        )

    def detach(self) -> None:
        """Leave the program to whoever gets our children when we end (PR_SET_CHILD_SUBREAPER). It is never reaped here."""
        self._child.detach()
        self.close()

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd; what still runs goes on."""
        self.streams.close()
        if self.terminal is not None:
            self.terminal.close()
        self._child.close()

    def __del__(self) -> None:
        if hasattr(self, "_child"):
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' '.join(self.args)!r}: pid {self.pid}, returncode {self.returncode}>"


class Process(Child, Generic[AnyStr]):
    """A program in a container that this process started: read and write its streams, wait for it, signal it.

    As a context manager it closes the streams and waits, as `subprocess.Popen`. If the block raises, the program and everything
    that it has started is killed. Iterating gives the lines of stdout as they come.
    """

    @property
    def stdin(self) -> IO[AnyStr] | MaybeNone:
        """Our end of its stdin, when that is a pipe."""
        return self.streams.file(0)

    @property
    def stdout(self) -> IO[AnyStr] | MaybeNone:
        """Our end of its stdout, when that is a pipe."""
        return self.streams.file(1)

    @property
    def stderr(self) -> IO[AnyStr] | MaybeNone:
        """Our end of its stderr, when that is a pipe."""
        return self.streams.file(2)

    def __iter__(self) -> Iterator[AnyStr]:
        if self.stdout is None:
            raise ValueError("stdout is not a pipe: start it with stdout=PIPE")
        return iter(self.stdout)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code, negative for a signal. Raises TimeoutError after ``timeout`` seconds.

        A program that fills a pipe which nobody reads does not end: use `communicate`, or iterate.
        """
        if not self.ended(timeout):
            raise TimeoutError(f"{' '.join(self.args)!r} still runs after {timeout} s")
        return self.reap()

    def communicate(
        self, input: AnyStr | None = None, timeout: float | None = None
    ) -> tuple[AnyStr | MaybeNone, AnyStr | MaybeNone]:
        """Write ``input``, read stdout and stderr to their ends and wait; gives what was read, None for what is no pipe.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds; nothing is lost, call it again without input.
        """
        self.streams.feed(input)
        if not self.streams.pump(self, None if timeout is None else time.monotonic() + timeout):
            raise TimeoutError(f"{' '.join(self.args)!r} still runs after {timeout} s")
        self.reap()
        out, err = self.streams.output(1), self.streams.output(2)
        self.streams.close()
        return out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            with Held() as held:
                if not self.owned:
                    return  # a forked child leaves the block of its parent
                if kind is not None:
                    self.discard()
                    return
                self.streams.close()
                with held.opened():
                    self.wait()
                self.close()
        except BaseException:
            self.discard()
            raise


class Deadline:
    """The time of a whole call, launch included. None for the limit is no limit."""

    def __init__(self, limit: float | None) -> None:
        self._began = time.monotonic()
        self.at = None if limit is None else self._began + limit
        """By `time.monotonic`."""

    def result(self, error: LaunchTimeout, args: Sequence[str], streams: Streams) -> Result[Any]:
        """Return the result of a program that did not start in time, and was killed.

        Raises:
            LaunchTimeout: the time of the call is not over; the launch itself took too long.
        """
        now = time.monotonic()
        if self.at is None or now < self.at:
            raise error
        streams.launched()
        return Result(tuple(args), -9, streams.output(1), streams.output(2), now - self._began, timed_out=True)


def finish(
    child: Child, held: Held, timeout: float | None, kill: Callable[[], object], on_end: Callable[[], object] | None = None
) -> Result[Any]:
    """Feed and drain a program to its end. After ``timeout`` it is killed; so it is by what interrupts us, which gets the result.

    Args:
        held: the block that nothing interrupts but here.
        kill: kills the program with all that belongs to it.
        on_end: see `Streams.pump`.
    """
    streams = child.streams
    try:
        with held.opened():
            timed_out = not streams.pump(child, None if timeout is None else child.began + timeout, on_end)
        if timed_out:
            kill()
            streams.pump(child, time.monotonic() + KILL_GRACE)
    except BaseException as error:
        if not child.owned:
            raise  # in a forked child: program and output are its parent's
        kill()
        streams.pump(child, time.monotonic() + 1)
        if child.ended(KILL_GRACE):
            error.__dict__["result"] = child.result()
        raise
    if timed_out:
        child.check_dead()
    return child.result(timed_out=timed_out)
