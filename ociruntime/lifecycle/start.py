"""Starting a created container (runtime.md, Start), and what a launch sends to programs of the host.

Those are the readiness notification, and file descriptors for console sockets and seccomp agents.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from ..engine import cgroup
from ..engine.launch import STALL, StallDetector, connect_start, read_progress, read_times, receive, wait_readable
from ..engine.processes import describe_state, wait_init
from ..errors import HookError, LaunchTimeout, SpecError, StepError, UnsupportedError, WrongStatus, warn
from ..files import connect_socket, socket_path
from ..plan.ops import Report
from ..store import NOTIFY, OCI_VERSION, Entry, StateRecord, Status, oci_state
from .delete import delete
from .status import allowed, first_process, recording

if TYPE_CHECKING:
    from ..engine.launch import Message, Progress
    from ..spec import Seccomp
    from ..stats import Recorder

_END_TIMEOUT: Final = 5.0
"""Seconds for the init process to end after it has reported a failure."""
_SEND_TIMEOUT: Final = 10.0
"""Seconds for the peer to accept the connection and the message."""


def start(entry: Entry, own: int = -1) -> None:
    """Start the process of a created container, and wait for its readiness notification if the host has asked for it.

    Args:
        own: the pidfd of the init process in the process that created it; -1 in others.

    Raises:
        WrongStatus: the container is not ``created``.
        SpecError: the configuration has no process.
        StepError: a step after the start failed. The container is stopped.
        HookError: a startContainer or poststart hook failed. The container is deleted.
    """
    with recording("start", entry.id) as recorder:
        _start(entry, own, recorder)


def _start(entry: Entry, own: int, recorder: Recorder | None) -> None:
    with allowed(entry, "start", Status.CREATED) as document:
        if not document.get("process", True):
            from ..spec import Problem

            raise SpecError([Problem("$.process", "is needed to start a container", "runtime.md#start")])
        ready = Ready(entry, document) if "notify" in document else None
        running: StateRecord = {**document, "status": Status.RUNNING, "started_at": time.time_ns()}
        try:
            # The new state is written before the start, so that a full disk cannot prevent it afterwards.
            with entry.staged("state.json", json.dumps(running).encode()) as state:
                failure = _open_gate(entry, document, recorder)
                if failure is None:
                    state.commit()
                    document = running
        except BaseException:
            if ready is not None:
                ready.close()
            raise
        if failure is not None:
            _wait_gone(document, own)
    if recorder is not None:
        recorder.mark("follow-up", "poststart hooks, and the readiness notification")
    # Without the lock, because a hook may use the container.
    failure = failure or after_start(document)
    if isinstance(failure, HookError):
        delete(entry, own, force=True)
    if failure is not None:
        if ready is not None:
            ready.close()
        raise failure
    if ready is not None:
        ready.wait(document, own)


def after_start(document: StateRecord) -> HookError | None:
    """Run the poststart hooks until one fails, and return its error: the container is to be deleted (runtime.md, Lifecycle, 9)."""
    hooks = document.get("hooks", {}).get("poststart")
    if not hooks:
        return None
    from ..engine.hooks import run

    # Hooks get the status "running", even if the process has ended already.
    state = oci_state({**document, "status": Status.RUNNING})
    for hook in hooks:
        try:
            run("poststart", hook, state)
        except HookError as error:
            return error
    return None


def _wait_gone(document: StateRecord, own: int) -> None:
    pidfd = first_process(document, own)
    if pidfd is not None:
        try:
            wait_init(document["pid"], pidfd, _END_TIMEOUT)
        finally:
            os.close(pidfd)


def _open_gate(entry: Entry, document: StateRecord, recorder: Recorder | None) -> Exception | None:
    """Let the init process go on until it has executed the program, and return the error if a step failed."""
    if recorder is not None:
        recorder.use_recorded(f"start {entry.id}", document["steps"])
        recorder.wait()
    try:
        peer = connect_start(entry.directory)
    except (ConnectionRefusedError, FileNotFoundError):
        raise WrongStatus(entry.id, "start", "no longer waiting for a start", Status.CREATED) from None
    page = -1
    watch = StallDetector()
    op_of = {number: str(op) for number, op, _ in document["steps"]}

    def check() -> None:
        step = read_progress(page).step if page >= 0 else 0
        if watch.stalled(step) and op_of.get(step) != "hook":
            raise _late(entry, document, step)

    def next_message() -> Message | None:
        wait_readable(peer, check)
        return receive(peer)

    try:
        while (message := next_message()) is not None and message.kind is Report.FD:
            if page < 0:
                page = message.fd
                continue

            path, metadata = document["listener"]
            try:
                send_listener(message.fd, path, metadata, oci_state(document), document["pid"])
            except UnsupportedError as error:
                return error  # the init process ends with the connection
            os.write(peer, b"\0")
        if message is None:
            return _end_of_connection(entry, document, read_progress(page) if page >= 0 else None)
    except (ConnectionResetError, BrokenPipeError):
        gate = min(number for number in op_of if isinstance(number, int)) - 1
        killed = _out_of_memory(document, gate)
        raise killed or WrongStatus(entry.id, "start", Status.STOPPED, Status.CREATED) from None  # it was killed meanwhile
    finally:
        os.close(peer)
        if page >= 0:
            if recorder is not None:
                times = read_times(page, document.get("total", 0) + 1)
                recorder.times.update((number, at) for number, at in times.items() if number in op_of)
                recorder.mark("report", "the report of the init process")
            os.close(page)
    if message.kind is Report.HOOK:
        from ..engine.hooks import failure as hook_failure

        numbers = [number for number, op, _ in document["steps"] if op == "hook"]
        hook = document["hooks"]["startContainer"][numbers.index(message.step)]
        return hook_failure(message, "startContainer", hook)
    if message.kind is not Report.ERROR:
        raise AssertionError(f"unexpected {message.kind.name} behind the gate")
    return _step_error(entry, document, message.step, message.value, message.text)


def _step_of(document: StateRecord, number: int) -> tuple[str, str]:
    """Return the operation and the text of a step."""
    return next(((str(op), str(text)) for n, op, text in document["steps"] if n == number), ("gate", "wait for start"))


def _step_error(entry: Entry, document: StateRecord, number: int, code: int, words: str = "") -> Exception:
    from ..engine.causes import denied_by_filter, make_error

    op, text = _step_of(document, number)
    seccomp = _filter(entry)
    cause = denied_by_filter(seccomp, op, code) if seccomp is not None else ""
    return make_error(number, document.get("total", 0), op, text, code, words, cause, looked_up=True)


def _filter(entry: Entry) -> Seccomp | None:
    """Return the container's seccomp profile."""
    from ..spec import RuntimeSpec

    with entry.reading_config() as path:
        spec = RuntimeSpec.load(path)
    return spec.linux.seccomp if spec.linux else None


def _end_of_connection(entry: Entry, document: StateRecord, reached: Progress | None) -> Exception | None:
    """Return the error that the end of the connection stands for; None if the init process has executed the program.

    Args:
        reached: the last step of the init process; None if it ended at once.
    """
    last = next(number for number, op, _ in document["steps"] if op in ("exec", "reap") and isinstance(number, int))
    if reached is not None and reached.error:
        return _step_error(entry, document, reached.step, reached.error)
    if reached is not None and reached.step >= last:
        return None

    number = reached.step if reached is not None else last
    if (error := _out_of_memory(document, number)) is not None:
        return error
    from ..engine.causes import how_it_died

    op, text = _step_of(document, number)
    cause = how_it_died(None)
    return StepError(errno.EINTR, step=number, total=document.get("total", 0), op=op, text=text, cause=cause)


def _out_of_memory(document: StateRecord, number: int) -> StepError | None:
    """Return the error of a container whose init process was killed for lack of memory, in a step; None if none was."""
    cgroups = document.get("cgroups", [])
    limit = cgroup.memory_limit(cgroups) if cgroup.oom_kills(cgroups) else None
    if limit is None:
        return None
    op, text = _step_of(document, number)
    needed, total = f"it needs more than {limit.limit} bytes here", document.get("total", 0)
    return cgroup.too_small(limit.limit, "start the container", needed, step=number, total=total, op=op, text=text)


def _late(entry: Entry, document: StateRecord, number: int) -> Exception:
    op, text = _step_of(document, number)
    why = f"the init process made no progress for {STALL:.0f} s; it is {describe_state(document['pid'])}"
    limit = cgroup.memory_limit(document.get("cgroups", []))
    if limit is not None and limit.hits:
        why += f", and has reached its memory limit of {limit.limit} bytes"
    return LaunchTimeout(errno.ETIMEDOUT, step=number, total=document.get("total", 0), op=op, text=text, cause=why)


# ---- programs of the host ----


class Ready:
    """Receives the readiness notification of a container's process, and passes it on to the host's socket."""

    def __init__(self, entry: Entry, document: StateRecord) -> None:
        """Make the socket, before the process runs. Raises OSError."""
        self._notify_socket = document["notify"]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with socket_path(entry.path / NOTIFY, NOTIFY) as path:
                try:
                    os.unlink(path)  # of a start that failed
                except FileNotFoundError:
                    pass
                self._listener.bind(path)
                os.chmod(path, 0o777)  # the process may be any user
        except BaseException:
            self.close()
            raise

    def wait(self, document: StateRecord, own: int = -1, *, main: bool = True) -> None:
        """Wait until the process is ready or has ended, and close.

        Args:
            own: the pidfd of the init process, if the caller is its parent.
            main: whether to report the process as the main process of the service.
        """
        pidfd = first_process(document, own)
        try:
            if self._receive(pidfd):
                self._notify(document["pid"] if main else 0)
        finally:
            self.close()
            if pidfd is not None:
                os.close(pidfd)

    def wait_aside(self, document: StateRecord, own: int) -> None:
        """Wait in a thread. The caller continues as the main process of the service."""
        pidfd = os.dup(own)

        def wait() -> None:
            try:
                self.wait(document, pidfd, main=False)
            finally:
                os.close(pidfd)

        threading.Thread(target=wait, name="ociruntime-notify", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _receive(self, pidfd: int | None) -> bool:
        """Return whether the process says that it is ready before it ends."""
        if pidfd is None:
            return False
        poller = select.poll()
        for fd in (self._listener.fileno(), pidfd):
            poller.register(fd, select.POLLIN)
        while True:
            readable = {fd for fd, _ in poller.poll()}
            if self._listener.fileno() in readable:
                # Without room for descriptors those that come along are closed, which is what sd_notify_barrier(3) waits for.
                if b"READY=1" in self._listener.recv(4096).split(b"\n"):
                    return True
            elif pidfd in readable:
                return False

    def _notify(self, pid: int) -> None:
        message = "READY=1" + (f"\nMAINPID={pid}" if pid else "")
        path = self._notify_socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            try:
                with nullcontext("\0" + path[1:]) if path.startswith("@") else socket_path(*os.path.split(path)) as address:
                    peer.sendto(message.encode(), address)
            except OSError as error:
                warn([f"notify_socket {path}: the readiness notification cannot be sent: {error.strerror}"])


def send_fd(fd: int, path: str | os.PathLike[str], message: bytes = b"/dev/ptmx") -> None:
    """Send a file descriptor with a message to the process that listens on a Unix socket, and close it here. Raises OSError.

    The default message is the one that console sockets get from runc.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_SEND_TIMEOUT)
            connect_socket(peer, os.fspath(path))
            sent = socket.send_fds(peer, [message], [fd])
            if sent < len(message):  # sendall() of nothing would fail if the peer has closed the connection
                peer.sendall(message[sent:])
    finally:
        os.close(fd)


def send_listener(fd: int, path: str, metadata: str, state: Mapping[str, object], pid: int) -> None:
    """Send the listener of a seccomp filter to its agent, and close it here (config-linux.md#the-container-process-state).

    Args:
        path: the agent's socket, ``listenerPath``.
        state: the state document of the container (see `ociruntime.store.oci_state`).
        pid: the process of the filter: the init process or an exec process.

    Raises:
        UnsupportedError: no agent takes the listener.
    """
    document: dict[str, object] = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        document["metadata"] = metadata
    document["state"] = state
    try:
        send_fd(fd, path, json.dumps(document).encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        problem = f"failed to connect with seccomp agent at {path}: {reason}; start the agent first"
        raise UnsupportedError(f"$.linux.seccomp.listenerPath: {problem}") from error
