"""Starting a created container (runtime.md, Start)."""

from __future__ import annotations

import errno
import json
import os
import time
from typing import TYPE_CHECKING

from ..engine.launch import STALL, StallDetector, connect_start, read_progress, receive, wait_readable
from ..engine.processes import wait_init
from ..errors import HookError, LaunchTimeout, SpecError, StepError, UnsupportedError, WrongStatus
from ..plan.model import HookProgram
from ..plan.ops import Report
from ..store import Entry, StateRecord, Status, oci_state
from .delete import delete
from .status import allowed, first_process

if TYPE_CHECKING:
    from ..engine.launch import Message, Progress
    from ..spec import Seccomp
    from .prepare import Ready

_END_TIMEOUT = 5.0
"""Seconds for the init process to end after it has reported a failure."""


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
    with allowed(entry, "start", Status.CREATED) as document:
        if not document.get("process", True):
            from ..spec import Problem

            raise SpecError([Problem("$.process", "is needed to start a container", "runtime.md#start")])
        ready = _expect_ready(entry, document)
        running: StateRecord = {**document, "status": Status.RUNNING, "started_at": time.time_ns()}
        try:
            # The new state is written before the start, so that a full disk cannot prevent it afterwards.
            with entry.staged("state.json", json.dumps(running).encode()) as state:
                failure = _open_gate(entry, document)
                if failure is None:
                    state.commit()
                    document = running
        except BaseException:
            if ready is not None:
                ready.close()
            raise
        if failure is not None:
            _wait_gone(document, own)
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


def _expect_ready(entry: Entry, document: StateRecord) -> Ready | None:
    """Return the receiver of the readiness notification; None if the host has not asked for it."""

    from .prepare import Ready

    if "notify" not in document:
        return None

    return Ready(entry, document)


def after_start(document: StateRecord) -> HookError | None:
    """Run the poststart hooks until one fails, and return its error: the container is to be deleted (runtime.md, Lifecycle, 9)."""

    from ..engine.hooks import run

    hooks = document.get("hooks", {}).get("poststart")
    if not hooks:
        return None

    # Hooks get the status "running", even if the process has ended already.
    state = oci_state({**document, "status": Status.RUNNING})
    for hook in hooks:
        try:
            run("poststart", HookProgram(*hook), state)
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


def _open_gate(entry: Entry, document: StateRecord) -> Exception | None:
    """Let the init process go on until it has executed the program, and return the error if a step failed."""

    from ..engine.hooks import failure as hook_failure
    from .prepare import send_listener

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
        raise WrongStatus(entry.id, "start", Status.STOPPED, Status.CREATED) from None  # it was killed meanwhile
    finally:
        os.close(peer)
        if page >= 0:
            os.close(page)
    if message.kind is Report.HOOK:
        numbers = [number for number, op, _ in document["steps"] if op == "hook"]
        hook = HookProgram(*document["hooks"]["startContainer"][numbers.index(message.step)])
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

    spec = RuntimeSpec.load(f"{entry.directory}/config.json")
    return spec.linux.seccomp if spec.linux else None


def _end_of_connection(entry: Entry, document: StateRecord, reached: Progress | None) -> Exception | None:
    """Return the error that the end of the connection stands for; None if the init process has executed the program.

    Args:
        reached: the last step of the init process; None if it ended at once.
    """

    from ..engine.causes import how_it_died

    last = next(number for number, op, _ in document["steps"] if op in ("exec", "reap") and isinstance(number, int))
    if reached is not None and reached.error:
        return _step_error(entry, document, reached.step, reached.error)
    if reached is not None and reached.step >= last:
        return None

    number = reached.step if reached is not None else last
    op, text = _step_of(document, number)
    cause = how_it_died(None)
    return StepError(errno.EINTR, step=number, total=document.get("total", 0), op=op, text=text, cause=cause)


def _late(entry: Entry, document: StateRecord, number: int) -> Exception:
    op, text = _step_of(document, number)
    why = f"the init process made no progress for {STALL:.0f} s"
    return LaunchTimeout(errno.ETIMEDOUT, step=number, total=document.get("total", 0), op=op, text=text, cause=why)
