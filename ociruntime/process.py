"""Processes in containers: `Process` and `Result`, after the model of `subprocess`."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import IO, Any, AnyStr, Final, Generic, Self

import attrs

from ._lazy import HtmlRepr
from .arguments import Duration, check_bool, parse_timeout, shown
from .engine import cgroup, processes
from .engine.processes import POLL_INTERVAL, signal_number
from .errors import LaunchTimeout, ProcessError, ProcessTimeout
from .files import Unpicklable
from .interrupts import DeferredSignals
from .lifecycle.create import Launched
from .stats import Profile, Usage
from .streams import MaybeNone, Streams
from .terminal import Terminal, interact

__all__ = ["Process", "Result"]

KILL_GRACE: Final = 10.0
"""Seconds for output to end after a kill: another process may have a pipe open."""
_TAIL: Final = 2000
"""Most characters of the output in an error's message."""


@attrs.frozen
class Result(HtmlRepr, Generic[AnyStr]):
    """How a process in a container ended."""

    args: tuple[str, ...]
    returncode: int
    """The exit code; negative for the signal that killed the process."""
    stdout: AnyStr | MaybeNone = None
    """The captured output; None if it was not captured."""
    stderr: AnyStr | MaybeNone = None
    """The captured error output; None if it was not captured."""
    duration: float = 0.0
    """Seconds from the launch to the end."""
    oom_killed: bool = False
    """Whether the kernel killed a process of the container for lack of memory; of an exec, whether it killed the exec process."""
    usage: Usage = attrs.field(factory=Usage)
    """CPU time and memory used."""
    timed_out: bool = False
    """Whether it was killed because its time was over."""
    truncated: bool = False
    """Whether there was more output than ``max_output``, of which the rest is lost."""
    profile: Profile | None = None
    """The times of the steps of a run with ``profile=True``; None of any other."""

    @property
    def signal(self) -> int | None:
        """The signal that killed the process, or None."""
        return -self.returncode if self.returncode < 0 else None

    def check_returncode(self) -> None:
        """Raise ProcessError unless the exit code is 0."""
        if self.returncode == 0:
            return
        how = f"ended with {self.returncode}" if self.signal is None else f"was killed by {_signal_name(self.signal)}"
        if self.oom_killed:
            how += " for lack of memory"
        raise ProcessError(f"{' '.join(self.args)!r} {how}{self.last_output()}", self)

    def last_output(self) -> str:
        """Return the last lines of stderr (or stdout) behind a colon, for a message; empty without output."""
        output: bytes | str = self.stderr or self.stdout or ""
        text = output.decode("utf-8", "replace") if isinstance(output, bytes) else output
        lines = "\n".join(text.strip().splitlines()[-5:])
        if len(lines) > _TAIL:
            lines = f"...{lines[-_TAIL:]}"
        return f": {lines}" if lines else ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class LaunchedProcess:
    """A process in a container that this process has launched, with its streams: what `Process` and its asyncio twin share."""

    def __init__(self, launched: Launched, streams: Streams) -> None:
        self._owner = os.getpid()
        self._launched = launched
        self._child = processes.ChildProcess(launched.pid, launched.pidfd, launched.init_pid)
        self.args = launched.args
        self.pid = launched.pid
        self.began = launched.began
        self.terminal = Terminal(launched.terminal) if launched.terminal >= 0 else None
        self.streams = streams
        self.returncode: int | None = None
        self.usage = Usage()
        self._watch = cgroup.StarvationWatch(launched.cgroups, launched.pid, shown(" ".join(launched.args)), launched.steps)

    @property
    def command(self) -> str:
        """The quoted command line, for messages."""
        return repr(" ".join(self.args))

    @property
    def owned(self) -> bool:
        """Whether this process launched it, instead of the parent that this process was forked from."""
        return os.getpid() == self._owner

    def fileno(self) -> int:
        """Return a file descriptor that is readable when `ended` may return True. Raises ValueError: it is closed."""
        fd = self._child.fileno()
        if fd < 0:
            raise ValueError(f"{self.command} is closed")
        return fd

    def ended(self, timeout: float | None = 0) -> bool:
        """Return whether the process ends within ``timeout`` seconds. None waits without a limit.

        Raises:
            StepError: it cannot begin within its memory limit. It still runs, and another call waits for its end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._watch.over:
            left = POLL_INTERVAL if deadline is None else max(0.0, min(POLL_INTERVAL, deadline - time.monotonic()))
            if self._has_ended(left):
                return True
            self._watch.check()
            if left < POLL_INTERVAL:
                return False
        return self._has_ended(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def _has_ended(self, timeout: float | None = 0) -> bool:
        return self.returncode is not None or self._child.ended(timeout)

    def reap(self) -> int:
        """Return the exit code of a process that has ended. Raises ChildProcessError: another wait got it."""
        if self.returncode is None:
            ended, self.usage = self._child.reap()
            if (code := ended.returncode) is None:
                raise ChildProcessError(errno.ECHILD, "the exit status is lost: SIGCHLD is ignored, or another wait got it")
            self.returncode = code
            if self._launched.group is not None:
                self._launched.group.remove()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.reap() if self._has_ended() else None

    def send_signal(self, signal: int | str) -> None:
        """Send a signal, by number or name. No effect on a process that has ended. Raises ValueError."""
        number = signal_number(signal)
        if self.poll() is None:
            self._child.send(number)

    def kill(self, *, all: bool = True) -> None:
        """Send SIGKILL. With ``all``, also to every process that it has started, whether or not it has ended itself."""
        check_bool("all", all)
        self._watch.over = True
        self.send_signal("KILL")
        if all and self._launched.group is not None:
            self._launched.group.kill()

    def end(self) -> None:
        """Kill the process and every process that it has started, and reap it."""
        self.kill()
        self._has_ended(KILL_GRACE)
        self.poll()

    def discard(self) -> None:
        """Kill the process and every process that it has started, and close what is open here. No effect in a forked child."""
        if not self.owned:
            return
        try:
            self.end()
        finally:
            self.close()

    def check_dead(self) -> None:
        """Raise TimeoutError for a process that a kill has not ended: it hangs in the kernel."""
        if not self._has_ended():
            raise TimeoutError(errno.ETIMEDOUT, processes.not_dead(self.pid, self.command))

    def interact(self, signals: DeferredSignals | None = None) -> None:
        """Connect its terminal with the caller's until it ends, from the main thread. A hang-up of the caller's is passed on.

        Args:
            signals: the surrounding block, in which signals are handled here only. A signal that raises kills the process.
        """
        if self.terminal is None:
            raise ValueError(f"{self.command} has no terminal: start it with terminal=True")
        try:
            with nullcontext() if signals is None else signals.delivered():
                interact(self.terminal.fileno(), self.terminal.resize, ended=self.fileno())
        except BaseException:
            if signals is not None and self.owned:
                self.kill()
            raise
        self.terminal.close()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal. Raises ValueError without one."""
        if self.terminal is None:
            raise ValueError(f"{self.command} has no terminal: start it with terminal=True")
        self.terminal.resize(rows, columns)

    @property
    def oom_killed(self) -> bool:
        """Whether it was killed, and the kernel has killed a process of the container for lack of memory since its start."""
        return self.returncode == -9 and cgroup.oom_kills(self._launched.cgroups) > self._launched.oom_kills

    def result(self) -> Result[Any]:
        """Return the result of a process that has ended, with the output that was read."""
        code, duration = self.reap(), time.monotonic() - self.began
        output = self.streams.output(1), self.streams.output(2)
        return Result(self.args, code, *output, duration, self.oom_killed, self.usage, truncated=self.streams.truncated)

    def detach(self) -> None:
        """Leave the process to the process that becomes its parent when this one ends. It is never reaped here."""
        self._child.detach()

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd. The process keeps running."""
        self.streams.close()
        if self.terminal is not None:
            self.terminal.close()
        if self._launched.group is not None:
            self._launched.group.close()
        self._child.close()

    def __del__(self) -> None:
        if hasattr(self, "_child"):
            self.close()


class BaseProcess(Unpicklable):
    """What `Process` and its asyncio twin have in common: everything that does not wait."""

    _instead = "send the Container, or the Result of an exec"

    def __init__(self, process: LaunchedProcess) -> None:
        self._process = process

    @property
    def args(self) -> tuple[str, ...]:
        """The command line."""
        return self._process.args

    @property
    def pid(self) -> int:
        """Its pid in the caller's pid namespace."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal. None until `poll` or `wait` has seen the end."""
        return self._process.returncode

    @property
    def usage(self) -> Usage:
        """What it and its children used; zeros until `poll` or `wait` has seen the end."""
        return self._process.usage

    @property
    def terminal(self) -> Terminal | None:
        """The master of its terminal, if it was started with ``terminal=True``."""
        return self._process.terminal

    @property
    def oom_killed(self) -> bool:
        """Whether it was killed, and the kernel has killed a process of the container for lack of memory since its start."""
        return self._process.oom_killed

    def fileno(self) -> int:
        """Return a file descriptor for `select` that is readable when the process has ended. Raises ValueError: it is closed."""
        return self._process.fileno()

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._process.poll()

    def send_signal(self, signal: int | str) -> None:
        """Send a signal, by number or name. No effect on a process that has ended. Raises ValueError for another signal."""
        self._process.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.send_signal("TERM")

    def kill(self, *, all: bool = False) -> None:
        """Send SIGKILL. With ``all``, also to every process that it has started, whether or not it has ended itself.

        Raises:
            TimeoutError: processes that it has started fork faster than they can be killed. Ending the container ends them.
        """
        self._process.kill(all=all)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal, in characters. Raises ValueError without one."""
        self._process.resize(rows, columns)

    def detach(self) -> None:
        """Let the process outlive this one: the subreaper (PR_SET_CHILD_SUBREAPER) or init reaps it. Closes the object."""
        self._process.detach()
        self.close()

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd. The process keeps running."""
        self._process.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._process.command}: pid {self.pid}, returncode {self.returncode}>"


class Process(BaseProcess, Generic[AnyStr]):
    """A process in a container that this process started: read and write its streams, wait for it, signal it.

    As a context manager it closes the streams and waits, as `subprocess.Popen`. If the block raises, the process and every process
    that it has started are killed. Iterating yields the lines of stdout as they come.
    """

    @property
    def stdin(self) -> IO[AnyStr] | MaybeNone:
        """The file that writes to its stdin, if that is a pipe."""
        return self._process.streams.file(0)

    @property
    def stdout(self) -> IO[AnyStr] | MaybeNone:
        """The file that reads its stdout, if that is a pipe."""
        return self._process.streams.file(1)

    @property
    def stderr(self) -> IO[AnyStr] | MaybeNone:
        """The file that reads its stderr, if that is a pipe."""
        return self._process.streams.file(2)

    def __iter__(self) -> Iterator[AnyStr]:
        if self.stdout is None:
            raise ValueError("stdout is not a pipe: start the process with stdout=PIPE")
        return iter(self.stdout)

    def wait(self, timeout: Duration | None = None) -> int:
        """Wait for the end and return the exit code, negative for a signal.

        A process that fills a pipe which is not read does not end: use `communicate`, or iterate.

        Raises:
            ProcessTimeout: it still runs after ``timeout`` seconds.
            StepError: the program cannot begin within its memory limit. The process keeps running.
        """
        timeout = parse_timeout(timeout)
        if not self._process.ended(timeout):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        return self._process.reap()

    def communicate(
        self, input: AnyStr | None = None, timeout: Duration | None = None
    ) -> tuple[AnyStr | MaybeNone, AnyStr | MaybeNone]:
        """Write ``input``, read stdout and stderr to their ends and wait.

        Returns:
            The output and the error output; None for a stream that is not a pipe.

        Raises:
            ProcessTimeout: it still runs after ``timeout`` seconds. No data is lost: call it again without input.
        """
        timeout = parse_timeout(timeout)
        streams = self._process.streams
        streams.feed(input)
        if not streams.pump(self._process, None if timeout is None else time.monotonic() + timeout):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        self._process.reap()
        out, err = streams.output(1), streams.output(2)
        streams.close()
        return out, err

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        process = self._process
        try:
            with DeferredSignals() as signals:
                if not process.owned:
                    return  # a forked child leaves the block of its parent
                if kind is not None:
                    process.discard()
                    return
                process.streams.close()
                with signals.delivered():
                    self.wait()
                process.close()
        except BaseException:
            process.discard()
            raise


class Deadline:
    """The time limit of a whole call, launch included. None means without limit."""

    def __init__(self, timeout: float | None) -> None:
        self._began = time.monotonic()
        self._timeout = timeout
        self.at = None if timeout is None else self._began + timeout
        """When the time is over, by `time.monotonic`."""

    def expired(self, error: LaunchTimeout, streams: Streams) -> ProcessTimeout:
        """Return the exception for a process that did not start in time, and was killed.

        Raises:
            LaunchTimeout: the time of the call is not over; the launch itself took too long.
        """
        now = time.monotonic()
        if self.at is None or self._timeout is None or now < self.at:
            raise error
        streams.launched()
        result: Result[Any] = Result(error.command, -9, streams.output(1), streams.output(2), now - self._began, timed_out=True)
        return ProcessTimeout(error.command, self._timeout, result)


def finish(
    process: LaunchedProcess,
    signals: DeferredSignals,
    timeout: float | None,
    *,
    kill: Callable[[], object],
    result: Callable[[], Result[Any]],
    on_end: Callable[[], object] | None = None,
) -> Result[Any]:
    """Write the input and read the output of a process until it has ended.

    An interruption kills the process; its exception has the result as an attribute.

    Args:
        signals: the surrounding block, in which signals are handled here only.
        timeout: seconds from the launch.
        kill: kills the process and every process that belongs to it.
        result: returns the result at the end.
        on_end: see `Streams.pump`.

    Raises:
        ProcessTimeout: the time was over, and the process was killed.
        StepError: the program could not begin within its memory limit, and the process was killed.
    """
    streams = process.streams
    try:
        with signals.delivered():
            in_time = streams.pump(process, None if timeout is None else process.began + timeout, on_end)
        if not in_time:
            kill()
            streams.pump(process, time.monotonic() + KILL_GRACE)
    except BaseException as error:
        if not process.owned:
            raise  # in a forked child: process and output are its parent's
        kill()
        streams.pump(process, time.monotonic() + 1)
        if process.ended(KILL_GRACE):
            error.__dict__["result"] = result()
        raise
    if not in_time:
        process.check_dead()
        assert timeout is not None
        raise ProcessTimeout(process.args, timeout, attrs.evolve(result(), timed_out=True))
    return result()
