"""Launching the init process: one native call, then messages over its control socket."""

from __future__ import annotations

import errno
import os
import queue
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from .._native import check, clone, ffi, lib
from ..errors import MISSING_CALL, UnsupportedError
from ..files import OwnDescriptor, forking, open_pidfd, read_stat, sealed_memfd, socket_path
from ..plan.ops import Report
from .processes import Exit, ended_within, exit_of, kill_each, pid_of, reap_abandoned, wait_killed

if TYPE_CHECKING:
    from typing import Protocol, Self

    class Clone(Protocol):
        """A function that starts an init process: `ociruntime._native.clone`, or one that calls it in another process."""

        def __call__(
            self, *, flags: int, cgroup: int, init: int, control: int, preserve: int, kept: Sequence[int], fds: Sequence[int]
        ) -> tuple[int, int]: ...


_KINDS: Final = frozenset(Report)
STALL: Final = 60.0
"""Seconds for one step of the init. A hook has a time limit of its own."""


class Message(NamedTuple):
    """A report of an init process (``struct report``)."""

    kind: Report
    step: int
    value: int
    text: str = ""
    """Message of the kernel about a failed mount."""
    fd: int = -1


def wait_readable(control: int, check: Callable[[], object]) -> None:
    """Wait for a message, or for the end of the connection.

    Args:
        check: called every 0.1 seconds. An exception ends the wait.
    """
    while not _is_readable(control, 100):
        check()


def _is_readable(control: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(control, select.POLLIN)
    return bool(poll.poll(milliseconds))


def receive(control: int) -> Message | None:
    """Return the next message; None when the init process has closed its end: it has executed the program, or has died.

    Call `wait_readable` first: the wait in this function cannot be ended.

    Raises:
        ConnectionAbortedError: the peer does not follow the protocol.
        OSError: the connection failed.
    """
    report, passed = ffi.new("struct oci_report *"), ffi.new("int *")
    while (size := lib.oci_receive(control, report, passed)) == -errno.EINTR:
        pass
    if check(size) == 0:
        return None
    text: bytes = ffi.string(report.words)
    if report.kind not in _KINDS:
        if passed[0] >= 0:
            os.close(passed[0])
        raise ConnectionAbortedError(errno.ECONNABORTED, f"a report of the unknown kind {report.kind}")
    words = text.decode("utf-8", "replace").strip()
    words = words[2:] if words[:2] in ("e ", "w ", "i ") else words  # the severity in the log of a filesystem context
    return Message(Report(report.kind), report.step, report.value, words, passed[0])


class Progress(NamedTuple):
    """Progress of an init process, which can be read even if it can no longer report."""

    step: int
    """Number of the step that it began last."""
    error: int
    """The errno of the failure that ends it, or 0."""
    forked: int
    """Pid of the process that it has forked to continue, or 0."""


PROGRESS_SIZE: Final = 12
"""Bytes of the progress page that tell the progress."""
_STAMPS: Final = 16
"""Where the times of the steps begin in the page."""


def read_progress(page: int) -> Progress:
    """Read the progress page of an init process (``struct progress``). Raises OSError."""
    return Progress(*memoryview(os.pread(page, PROGRESS_SIZE, 0)).cast("i"))


def read_times(page: int, steps: int) -> dict[int, int]:
    """Return when an init process began its steps, as far as it has noted that in its progress page. Raises OSError.

    Args:
        steps: the number above that of the last step.
    """
    times = os.pread(page, 8 * steps, _STAMPS)
    return {step: time for step, time in enumerate(memoryview(times[: len(times) & ~7]).cast("q")) if time}


class StallDetector:
    """Detects an init process that stays in one step for longer than `STALL`."""

    def __init__(self) -> None:
        self._step = -1
        self._since = 0.0

    def stalled(self, step: int) -> bool:
        """Return whether the init process has been in this step for too long. Call it repeatedly while waiting."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._since = step, now
        return now - self._since > STALL


START_SOCKET: Final = "start.sock"
"""Name of the start socket in the state directory of a container."""


def listen_start(directory: str) -> int:
    """Create the start socket. Return its descriptor, on which the init process accepts one connection. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, socket_path(directory, START_SOCKET) as path:
        listener.bind(path)
        listener.listen(1)
        return listener.detach()


def connect_start(directory: str) -> int:
    """Connect to the start socket, which starts the container. Return the connection, over which the init process reports.

    Raises:
        ConnectionRefusedError, FileNotFoundError: no init process waits for it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer, socket_path(directory, START_SOCKET) as path:
        peer.connect(path)
        return peer.detach()


class Preserved(NamedTuple):
    """The file descriptors from 3 on that a process inherits."""

    numbers: int
    """Count of descriptors that are reserved for them, open or not."""
    fds: list[int]


_END_TIMEOUT: Final = 1.0
"""Seconds from the end of an init's connection to the end of its process."""
NONE_PRESERVED: Final = Preserved(0, [])


def inherited(count: int) -> Preserved:
    """Return those of ``count`` file descriptors from 3 on that are open and inheritable.

    Call this before the launch opens files. Those are never inheritable.

    Raises:
        ValueError: the process could not have so many.
    """
    if count == 0:
        return NONE_PRESERVED
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 3
    if count > most:
        raise ValueError(f"preserve_fds (with listen_fds) is {count}: at most {most} is needed, as this process may open no more")
    open_now = (int(name) for name in os.listdir("/proc/self/fd"))
    return Preserved(count, sorted(fd for fd in open_now if 3 <= fd < 3 + count and _is_inheritable(fd)))


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # the descriptor of the listing itself


def own_child(pid: int) -> int:
    """Return a pidfd of a child of this process. Raises ProcessLookupError: the child does not exist."""
    pidfd = open_pidfd(pid)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, "not a child of this process", str(pid)) from None
    return pidfd


_INIT: Final = os.path.join(os.path.dirname(os.path.dirname(__file__)), "_native/init")
_inits: dict[int, int] = {}
"""Descriptors of the program of the init, by pid of the process that opened them: a forked child may have closed its copy."""


_PROBES: Final[dict[str, Callable[[], object]]] = {
    "statx": lambda: check(lib.oci_birth(-1)),
    "pidfd_open": lambda: os.pidfd_open(-1),
    "pidfd_send_signal": lambda: signal.pidfd_send_signal(-1, 0),
    "waitid": lambda: os.waitid(os.P_PIDFD, -1, os.WEXITED),
    "epoll_create1": lambda: select.epoll().close(),
}
"""Calls that have no effect, of system calls whose absence would show when a container exists already, or in the wrong place."""


def check_calls() -> None:
    """Raise UnsupportedError if a system call is missing."""
    for name, call in _PROBES.items():
        try:
            call()
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM):
                raise UnsupportedError(f"{name}: {MISSING_CALL}; Linux 5.14 or later is needed") from error


def init_memfd() -> int:
    """Return the sealed memfd with the program of the init. It is created once in each process.

    Raises:
        UnsupportedError: a system call is missing.
        OSError: memory or free descriptors are lacking.
    """
    with forking:
        fd = _inits.get(os.getpid())
        if fd is None:
            check_calls()
            with open(_INIT, "rb") as program:
                fd = _inits[os.getpid()] = sealed_memfd("oci-init", program.read(), executable=True)
    return fd


class Init:
    """A running init process, with its control socket and its progress page."""

    def __init__(self, pid: int, pidfd: int, control: int, page: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self._page = page
        self._followed = False
        self.files: dict[str, int] = {}
        """File descriptors that it has sent, by operation. `close` closes them."""

    @classmethod
    def launch(
        cls,
        program: bytes,
        *,
        flags: int,
        stdio: Sequence[int],
        inputs: Sequence[int] = (),
        cgroup: int = -1,
        preserve: Preserved = NONE_PRESERVED,
        lasting: bool = False,
        parent: Clone = clone,
        timed_steps: int = 0,
    ) -> Self:
        """Start the init process with an encoded plan. Raises OSError: clone3(2) failed.

        Args:
            flags: CLONE_NEW* bits.
            stdio: file descriptors for stdin, stdout and stderr.
            inputs: file descriptors for the first slots.
            cgroup: the directory of a v2 cgroup to start in, or -1.
            preserve: the file descriptors that the process inherits.
            lasting: launch from a thread that lasts as long as this process. For the kernel a parent has died when the thread that
                created the child has ended (PR_SET_PDEATHSIG).
            parent: starts the process. Default: this process, which is then its parent.
            timed_steps: how many times of steps the progress page has room for.
        """
        reap_abandoned()
        fds = ffi.new("int[4]")
        with forking:  # a copy of its end in a child would keep `receive` from seeing that the init has closed it
            check(lib.oci_launch_files(program, len(program), _STAMPS + 8 * timed_steps, fds))
            init_end = OwnDescriptor(fds[1])
        control, _, page, memfd = fds
        try:
            launch = partial(
                parent,
                flags=flags,
                cgroup=cgroup,
                init=init_memfd(),
                control=init_end.fd,
                preserve=preserve.numbers,
                kept=preserve.fds,
                fds=[*stdio, init_end.fd, memfd, page, *inputs],
            )
            pid, pidfd = in_lasting_thread(launch) if lasting else launch()
            return cls(pid, pidfd, control, page)
        except BaseException:
            os.close(control)
            os.close(page)
            raise
        finally:
            init_end.close()
            os.close(memfd)

    def receive(self) -> Message | None:
        """Return the next message, as `receive` does."""
        try:
            return receive(self.control)
        except ConnectionResetError:
            return None  # it ended with an answer of the caller unread

    def wait(self, check: Callable[[], object]) -> None:
        """Wait until `receive` has something to return, as `wait_readable` does."""
        wait_readable(self.control, check)

    @property
    def silent(self) -> bool:
        """Whether it has ended and reports nothing more. A process that it has just forked can keep the connection open."""
        return ended_within(self.pidfd, 0) and not _is_readable(self.control, 0)

    @property
    def progress(self) -> Progress:
        """Its progress page."""
        return read_progress(self._page)

    def times(self, timed_steps: int) -> dict[int, int]:
        """Return when the steps below this number began that it has noted: nanoseconds of CLOCK_MONOTONIC, by number."""
        return read_times(self._page, timed_steps)

    def go(self) -> None:
        """Answer a SYNC or FORKED message."""
        os.write(self.control, b"\0")

    def follow(self, pidfd: int) -> None:
        """Continue with the process that the init has forked. The first one ends by itself, and is reaped here."""
        self._followed = True
        self._reap()
        os.close(self.pidfd)
        self.pidfd, self.pid = pidfd, -1
        self.pid = pid_of(pidfd)  # which may fail: the process is killed by its pidfd alone then

    def kill(self) -> None:
        """Kill and reap it, and close its file descriptors. Raises TimeoutError: it did not die."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended by itself
        try:
            if not ended_within(self.pidfd, _END_TIMEOUT):
                # Perhaps it waits for a filesystem in user space, whose program it has started, and which has read the request.
                kill_each(lambda pid: (read_stat(pid) or [b"", b""])[1] == b"%d" % self.pid)
            self._reap()
            if not self._followed and (forked := self.progress.forked):
                self._kill_forked(forked)
        finally:
            self.close()

    def _kill_forked(self, pid: int) -> None:
        """Kill and reap the process that a dead init had forked, and whose report was not read. Raises TimeoutError."""
        try:
            pidfd = own_child(pid)
        except ProcessLookupError:
            return  # another process is its parent, and reaps it
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            wait_killed(pid, pidfd, "the forked init process")
            exit_of(pid, pidfd)
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)

    def _reap(self) -> None:
        """Wait until it is gone. Raises TimeoutError."""
        wait_killed(self.pid, self.pidfd, "the init process")
        exit_of(self.pid, self.pidfd)

    def ended(self) -> Exit | None:
        """Return how it ended, and reap it if it is a child; None if it still runs."""
        return exit_of(self.pid, self.pidfd) if ended_within(self.pidfd, _END_TIMEOUT) else None

    def release(self) -> int:
        """Close its file descriptors except the pidfd, and return that. The caller owns it from then on."""
        pidfd, self.pidfd = self.pidfd, -1
        self.close()
        return pidfd

    def close(self) -> None:
        if self.control >= 0:
            os.close(self.control)
            self.control = -1
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()
        for name in ("pidfd", "_page"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)


Work = Callable[[], tuple[int, int]]
Answer = queue.SimpleQueue[tuple[int, int] | Exception]

_lasting: dict[int, queue.SimpleQueue[tuple[Work, Answer]]] = {}
"""The queue of work of the lasting thread, by pid of the process: a forked child has none of its parent's threads."""


def in_lasting_thread(work: Work) -> tuple[int, int]:
    """Do the work in a thread that ends with the process: the main thread, or one that is kept for this. Raises what it raises."""
    if threading.current_thread() is threading.main_thread():
        return work()
    with forking:
        orders = _lasting.get(os.getpid())
        if orders is None:
            orders = _lasting[os.getpid()] = queue.SimpleQueue()
            threading.Thread(target=_last, args=(orders,), name="ociruntime-parent", daemon=True).start()
    answer: Answer = queue.SimpleQueue()
    orders.put((work, answer))
    result = answer.get()
    if isinstance(result, Exception):
        raise result
    return result


def _last(orders: queue.SimpleQueue[tuple[Work, Answer]]) -> None:
    while True:
        work, answer = orders.get()
        try:
            answer.put(work())
        except Exception as error:
            answer.put(error)
