"""Running hooks, and telling how one failed (config.md#posix-platform-hooks).

In the runtime's namespaces they are processes of ours, each in a process group of its own; in the container's the init runs them.
Imported only where there are hooks.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from .._native import check, lib
from ..errors import HookError
from ..interrupts import waiting
from .clone import F_ADD_SEALS, SEALS, sealed_memfd

if TYPE_CHECKING:
    from ..plan.model import Step
    from ..state import State
    from .launch import Init
from .protocol import Message

_TAIL: Final = 2000
_KEPT: Final = 1 << 16
"""Bytes of a hook's output that stay in memory while it runs on; `forget_output` of the init has the same."""
_LOOK: Final = 100
"""Milliseconds between two looks at how much it has written."""
_TIMED_OUT: Final = 1 << 16


class Hook(NamedTuple):
    """A program, as `ociruntime.plan.hooks.Program` has it and state.json stores it."""

    path: str
    args: Sequence[str]
    env: Sequence[str]
    timeout: int


def run(kind: str, hook: Hook, state: State, deadline: float | None = None) -> None:
    """Run one hook in our namespaces; it is killed at the deadline, which the caller looks at. Raises HookError."""
    document, output = sealed_memfd("oci-state", _encode(state)), os.memfd_create("oci-output", os.MFD_CLOEXEC)
    try:
        try:
            child = subprocess.Popen(
                hook.args,
                executable=hook.path,
                env={name: value for name, _, value in (entry.partition("=") for entry in hook.env)},
                cwd=state.bundle if os.path.isdir(state.bundle) else "/",
                stdin=document,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        except OSError as error:
            raise HookError(f"cannot be run: {error.strerror}", kind=kind, path=hook.path) from error
        timed_out = not _ended(child, hook.timeout, output, deadline)
        status = child.wait()
        if timed_out and deadline is not None and time.monotonic() > deadline:
            return
        if timed_out:
            raise HookError(f"took more than {hook.timeout} s", kind=kind, path=hook.path, returncode=status, output=_tail(output))
        if status != 0:
            raise HookError(_how(status), kind=kind, path=hook.path, returncode=status, output=_tail(output))
    finally:
        os.close(document)
        os.close(output)


def _ended(child: subprocess.Popen[bytes], timeout: int, output: int, deadline: float | None) -> bool:
    """Whether it ended in time; if not, or when something interrupts us, its whole process group is killed."""
    pidfd = os.pidfd_open(child.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    end = min(time.monotonic() + timeout if timeout else float("inf"), float("inf") if deadline is None else deadline)
    done, forgotten = False, 0
    try:
        with waiting():
            while not done and (left := end - time.monotonic()) > 0:
                done = bool(poller.poll(min(left * 1000 + 1, _LOOK)))
                forgotten = _forget(output, forgotten)
    finally:
        os.close(pidfd)
        if not done:
            os.killpg(child.pid, signal.SIGKILL)
    return done


def _forget(output: int, begin: int) -> int:
    """Give the memory of old output back: only the end will be told. Gives where what is kept begins."""
    end = os.lseek(output, 0, os.SEEK_CUR)  # an offset that it shares with the hook
    if end - begin <= 2 * _KEPT:
        return begin
    check(lib.oci_forget(output, begin, end - _KEPT - begin), "the output of a hook")
    return end - _KEPT


def _encode(state: State) -> bytes:
    return json.dumps(state.to_oci()).encode()


def _how(returncode: int) -> str:
    return f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"


def _tail(fd: int) -> str:
    """The end of what the last hook wrote; the init puts a NUL before each."""
    size = os.fstat(fd).st_size
    raw = os.pread(fd, _KEPT, max(0, size - _KEPT)).rpartition(b"\0")[2]
    return raw[-_TAIL:].decode("utf-8", "replace").strip()


def failure(message: Message, kind: str, hook: Hook) -> HookError:
    """How a hook failed that the init ran; the report's descriptor is closed."""
    try:
        output = _tail(message.fd)
    finally:
        os.close(message.fd)
    if message.value < 0:
        return HookError(f"cannot be run: {os.strerror(-message.value)}", kind=kind, path=hook.path, output=output)
    status = os.waitstatus_to_exitcode(message.value & 0xFFFF)
    how = f"took more than {hook.timeout} s" if message.value & _TIMED_OUT else _how(status)
    return HookError(how, kind=kind, path=hook.path, returncode=status, output=output)


class Hooks:
    """The hooks of one launch: what the init needs for those in the container, and the steps of the host."""

    def __init__(self, describe: Callable[[], State]) -> None:
        """``describe`` gives the state as it is when the first hook runs; its pid comes from the init."""
        self._describe = describe
        self._document = -1
        self.begun = False
        """Whether one has been run, so that those of poststop must be, whatever comes."""

    def open(self, kind: str) -> int:
        """An input of the init: the state document, empty so far, or the place for output."""
        if kind == "state":
            self._document = os.memfd_create("oci-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            return os.open(f"/proc/self/fd/{self._document}", os.O_RDONLY | os.O_CLOEXEC)
        return os.memfd_create("oci-output", os.MFD_CLOEXEC)

    def carry_out(self, step: Step, init: Init, deadline: float | None) -> None:
        """A step ``hook`` or ``hook_state`` of the host. Raises HookError."""
        self.begun = True
        if step.op == "hook":
            kind, *program = step.values
            run(
                cast("str", kind),
                Hook(*cast("tuple[str, list[str], list[str], int]", program)),
                self._describe()._replace(pid=init.pid),
                deadline,
            )
            return
        os.write(self._document, _encode(self._describe()._replace(pid=_pid_inside(init.pid))))
        fcntl.fcntl(self._document, F_ADD_SEALS, SEALS)

    def failure(self, step: Step, message: Message) -> HookError:
        """The error for a report about a hook that the init ran."""
        arguments = step.arguments()
        args, env = (cast("Sequence[str]", arguments[name]) for name in ("argv", "env"))
        hook = Hook(str(arguments["path"]), args, env, cast("int", arguments["timeout"]) // 1000)
        return failure(message, step.text.partition(" ")[0], hook)

    def close(self) -> None:
        if self._document >= 0:
            os.close(self._document)
            self._document = -1


def _pid_inside(pid: int) -> int:
    """The pid that a process has in its own pid namespace (proc_pid_status(5), NSpid)."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
        return next(int(line.split()[-1]) for line in status if line.startswith("NSpid:"))
