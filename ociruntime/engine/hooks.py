"""Running hooks, and reporting how one failed (config.md#posix-platform-hooks).

In the runtime namespace they are children of the calling process, each in a process group of its own. In the container namespaces
the init process runs them. This module is imported only if there are hooks.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from .._native import check, lib
from ..errors import HookError
from ..files import seal, sealed_memfd, write_all
from ..interrupts import waiting
from ..plan.process import HookProgram
from .launch import Message
from .processes import pid_inside

if TYPE_CHECKING:
    from ..plan.model import Step
    from .launch import Init

StoredHook: TypeAlias = tuple[str, Sequence[str], Sequence[str], int, int]
"""A `HookProgram`, or the members of one from the state."""
_TAIL: Final = 2000
"""Bytes of a hook's output in an error."""
_KEPT: Final = 1 << 16
"""Bytes of a hook's output that stay in memory while it runs; the same as in `forget_output` of the init."""
_POLL_INTERVAL: Final = 100
"""Milliseconds between two checks of how much a hook has written."""
_TIMED_OUT: Final = 1 << 16


def run(kind: str, hook: StoredHook, state: Mapping[str, object], deadline: float | None = None) -> None:
    """Run a hook in the runtime namespace. It is killed at the deadline, which the caller checks. Raises HookError.

    Args:
        state: the state document of the container (runtime.md, State).
    """
    hook, bundle = HookProgram(*hook), str(state["bundle"])
    document, output = sealed_memfd("oci-state", json.dumps(state).encode()), os.memfd_create("oci-output", os.MFD_CLOEXEC)
    try:
        try:
            child = subprocess.Popen(
                hook.args,
                executable=hook.path,
                env={name: value for name, _, value in (entry.partition("=") for entry in hook.env)},
                cwd=bundle if os.path.isdir(bundle) else "/",
                stdin=document,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        except OSError as error:
            raise _error(kind, hook, f"cannot be run: {error.strerror}") from error
        timed_out = not _wait(child, hook.timeout, output, deadline)
        status = child.wait()
        if timed_out and deadline is not None and time.monotonic() > deadline:
            return
        if timed_out:
            raise _error(kind, hook, f"took more than {hook.timeout} s", status, _tail(output))
        if status != 0:
            raise _error(kind, hook, _describe(status), status, _tail(output))
    finally:
        os.close(document)
        os.close(output)


def _wait(child: subprocess.Popen[bytes], timeout: int, output: int, deadline: float | None) -> bool:
    """Return whether a hook ends in time. If not, or if the wait is interrupted, its process group is killed."""
    pidfd = os.pidfd_open(child.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    end = min(time.monotonic() + timeout if timeout else float("inf"), float("inf") if deadline is None else deadline)
    done, start = False, 0
    try:
        with waiting():
            while not done and (left := end - time.monotonic()) > 0:
                done = bool(poller.poll(min(left * 1000 + 1, _POLL_INTERVAL)))
                start = _release_output(output, start)
    finally:
        os.close(pidfd)
        if not done:
            os.killpg(child.pid, signal.SIGKILL)
    return done


def _release_output(output: int, begin: int) -> int:
    """Release the memory of old output, as only the end is reported. Return the offset where the rest begins."""
    end = os.lseek(output, 0, os.SEEK_CUR)  # the hook writes through the same open file
    if end - begin <= 2 * _KEPT:
        return begin
    check(lib.oci_forget(output, begin, end - _KEPT - begin), "the output of a hook")
    return end - _KEPT


def _describe(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    name = signal.strsignal(-returncode)
    return f"was killed by signal {-returncode}" + (f" ({name.lower()})" if name else "")


def _error(kind: str, hook: HookProgram, problem: str, returncode: int | None = None, output: str = "") -> HookError:
    return HookError(problem, kind=kind, index=hook.position, path=hook.path, returncode=returncode, output=output)


def _tail(fd: int) -> str:
    """Return the end of the output of the last hook. The init process writes a NUL before each."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, _KEPT, max(0, size - _KEPT)).rpartition(b"\0")[2]
    return raw[-_TAIL:].decode("utf-8", "replace").strip()


def failure(message: Message, kind: str, hook: StoredHook) -> HookError:
    """Return the error of a hook that the init process ran. The descriptor of the report is closed."""
    hook = HookProgram(*hook)
    try:
        output = _tail(message.fd)
    finally:
        os.close(message.fd)
    if message.value < 0:
        return _error(kind, hook, f"cannot be run: {os.strerror(-message.value)}", None, output)
    status = os.waitstatus_to_exitcode(message.value & 0xFFFF)
    problem = f"took more than {hook.timeout} s" if message.value & _TIMED_OUT else _describe(status)
    return _error(kind, hook, problem, status, output)


class HookRunner:
    """Runs the hooks of one launch: those in the runtime namespace, and what the init process needs for the others."""

    def __init__(self, state_with: Callable[[int], Mapping[str, object]]) -> None:
        """``state_with`` returns the current state document of the container, with a pid of its init process."""
        self._state_with = state_with
        self._document = -1
        self.begun = False
        """Whether a hook has run. Then the poststop hooks must run, even if the launch fails."""

    def open(self, kind: str) -> int:
        """Open an input of the init process: the state document, still empty, or the file for output. Raises OSError."""
        if kind == "state":
            self._document = os.memfd_create("oci-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            return os.open(f"/proc/self/fd/{self._document}", os.O_RDONLY | os.O_CLOEXEC)
        return os.memfd_create("oci-output", os.MFD_CLOEXEC)

    def execute_step(self, step: Step, init: Init, deadline: float | None) -> None:
        """Execute a step ``hook`` or ``hook_state`` of the host. Raises HookError."""
        self.begun = True
        if step.op == "hook":
            kind, *program = step.values
            run(
                cast("str", kind),
                cast("StoredHook", program),
                self._state_with(init.pid),
                deadline,
            )
            return
        write_all(self._document, json.dumps(self._state_with(pid_inside(init.pid))).encode())
        seal(self._document)

    def failure(self, steps: Sequence[Step], message: Message) -> HookError:
        """Return the error for a report about a hook that the init process ran, given the steps of the plan."""
        *before, step = steps[: message.step]
        arguments, kind = step.arguments(), step.text.partition(" ")[0]
        args, env = (cast("Sequence[str]", arguments[name]) for name in ("argv", "env"))
        index = sum(other.op == "hook" and other.text.partition(" ")[0] == kind for other in before)
        hook = HookProgram(str(arguments["path"]), args, env, cast("int", arguments["timeout"]) // 1000, index)
        return failure(message, kind, hook)

    def close(self) -> None:
        if self._document >= 0:
            os.close(self._document)
            self._document = -1
