"""Executing a plan: the host steps in this process, the init steps by an init process that it launches."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import attrs

from .._native import check, clone, lib
from ..errors import LaunchTimeout, OCIRuntimeError, SpecError, StepError, UnsupportedError
from ..interrupts import waiting
from ..plan.model import UncompiledFilter, encode
from ..plan.ops import CLONE_NEW, NAMESPACE_FILES, REPORTING, WAITING, Report, Sync, Target
from ..spec.base import Problem
from . import cgroup, undo
from .causes import denied_by_filter, explain_clone, how_it_died, make_error
from .host_steps import execute_step, execute_together
from .launch import NONE_PRESERVED, STALL, Init, Message, Preserved, StallDetector, own_child
from .networks import NetworkHelper
from .processes import describe_state

if TYPE_CHECKING:
    from ..plan.model import Input, Plan, Step
    from ..seccomp import Filter as Compiled
    from ..spec import Seccomp
    from ..stats import Recorder
    from .hooks import HookRunner
    from .launch import Clone

_TIMED_OUT: Final = "the time-out of the call has passed"
_O_PATH: Final = os.O_PATH | os.O_CLOEXEC
_NS_GET_NSTYPE: Final = 0xB703
_NAMESPACES: Final = "config-linux.md#namespaces"
_FILES: Final = {CLONE_NEW[kind]: file for kind, file in NAMESPACE_FILES.items()}


class Execution:
    """Executes one plan. `begin` stops when the container is created and its state can be recorded; `finish` does the rest.

    If one of them raises, everything that this execution made is removed. A file descriptor that the init sends goes to the
    receiver of its operation, which owns it from then on. Without a receiver it is kept in `Init.files`.

    Args:
        stdio: file descriptors for stdin, stdout and stderr.
        gate: the listening start socket, or -1.
        pidfd: the pidfd of the init process of the container to join, or -1.
        peer: the socket by which the init serves files, or -1.
        preserve: the file descriptors that the process inherits.
        cache: the directory of compiled filters.
        parents: the undo actions for the parents of cgroups.
        parent: the function that launches the init. The process that carries it out is the parent of the init.
        receivers: functions that take file descriptors from the init, by operation.
        hooks: the hooks of the plan.
        mount: creates a detached mount of the container's image, given its name in the plan.
        directory: the state directory of the container, for the programs that the plan starts on the host.
        deadline: the end of the time-out, by `time.monotonic`.
        recorder: notes when each step begins, if the plan is to be profiled.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        stdio: Sequence[int],
        gate: int = -1,
        pidfd: int = -1,
        peer: int = -1,
        preserve: Preserved = NONE_PRESERVED,
        cache: str | None = None,
        parents: undo.Record = (),
        parent: Clone = clone,
        receivers: Mapping[str, Callable[[Init, int], None]] | None = None,
        hooks: HookRunner | None = None,
        mount: Callable[[str], int] | None = None,
        directory: str = "",
        deadline: float | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.plan = plan
        self.network: NetworkHelper | None = None
        """What connects the network of the container, until the caller releases it."""
        self._directory = directory
        self._stdio = stdio
        self._given = {"gate": gate, "pidfd": pidfd, "peer": peer}
        self._preserve = preserve
        self._parent = parent
        self._cache = cache
        self._receivers = receivers or {}
        self._hooks = hooks
        self._mount = mount
        self._deadline = deadline
        self._recorder = recorder
        self._watch = StallDetector()
        self._parents = list(parents)
        self._undo_entries = list(parents)
        self._clean_ups: list[Callable[[], None]] = []
        self._at = 0
        self._init: Init | None = None

    @property
    def init(self) -> Init:
        """The init process, from `begin` to `abort`."""
        assert self._init is not None, "begin() comes first"
        return self._init

    def begin(self, meanwhile: Callable[[], object] | None = None) -> Init:
        """Execute the plan up to the point where the container is created, and return the init. Raises StepError, HookError.

        Args:
            meanwhile: what the caller has to do while the init works. An exception of it fails the execution.
        """
        try:
            self._host_steps()
            init = self._init = self._launch()
            self._debug("step %d/%d clone3: init process %d", self._clone_number(), len(self.plan.steps), init.pid)
            if meanwhile is not None:
                meanwhile()
            while (message := self._receive(init)) is not None:
                if message.kind is Report.SYNC and message.value == Sync.CREATED:
                    self._at = message.step
                    break
                if message.kind is Report.FORKED and self.plan.steps[message.step - 1].op == "fork_last":
                    self._follow(init, message)
                    break
                self._handle(init, message)
            else:
                raise self._vanished(init)
        except BaseException:
            self.abort()
            raise
        return init

    def finish(self) -> None:
        """Execute the rest of the plan: the init then waits for a start, or has become the program. Raises StepError, HookError."""
        init = self.init
        try:
            self._host_steps()
            self._go(init)
            while (message := self._receive(init)) is not None:
                self._handle(init, message)
            self._check_end(init)
            self._read_times(init)
            self._debug("init process %d has carried out the plan of %d steps", init.pid, len(self.plan.steps))
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Kill the init, if there is one, and undo the host steps that were executed.

        A second call has no effect, unless an undo action failed: it is tried again.
        """
        while self._clean_ups:
            self._clean_ups.pop()()
        init, self._init = self._init, None
        try:
            if init is not None:
                self._read_times(init)
                init.kill()
        finally:
            undo.undo_all(self._undo_entries)
            self._undo_entries = []

    def _debug(self, text: str, *values: object) -> None:
        if self._recorder is not None:
            self._recorder.log(text, *values)

    def _read_times(self, init: Init) -> None:
        if self._recorder is not None:
            self._recorder.times.update(init.times(self.plan.timed_steps))

    def _handle(self, init: Init, message: Message) -> None:
        if self._recorder is not None:
            self._read_times(init)
            self._recorder.flush()
        self._debug("init process %d: %s in step %d/%d", init.pid, message.kind.name.lower(), message.step, len(self.plan.steps))
        if message.kind is Report.ERROR:
            raise self.error(message)
        if message.kind is Report.HOOK:
            assert self._hooks is not None, "a plan with hooks"
            raise self._hooks.failure(self.plan.steps, message)
        if message.kind is Report.SYNC:
            self._at = message.step
            self._host_steps()
            self._go(init)
        elif message.kind is Report.FORKED:
            self._follow(init, message)
            self._host_steps()
            self._go(init)
        elif message.kind is Report.FD:
            op = self.plan.steps[message.step - 1].op
            if op in self._receivers:
                self._receivers[op](init, message.fd)
            else:
                init.files[op] = message.fd
            if op in WAITING:
                self._at = message.step
                self._host_steps()
                self._go(init)

    def _follow(self, init: Init, message: Message) -> None:
        pidfd = message.fd
        if pidfd < 0:
            try:
                pidfd = own_child(message.value)
            except ProcessLookupError:
                raise self._vanished(init) from None
        init.follow(pidfd)
        self._at = message.step

    def _go(self, init: Init) -> None:
        try:
            init.go()
        except BrokenPipeError:
            raise self._vanished(init) from None

    def _receive(self, init: Init) -> Message | None:
        """Return the next message of the init, or None at its end. Signals are handled during the wait.

        Raises:
            StepError: the init was killed before it could report a process that it had forked.
            LaunchTimeout: the deadline has passed, or the init is stuck in a step.
        """

        def check() -> None:
            if init.silent:
                raise self._vanished(init)
            step = init.progress.step
            if self._is_late():
                raise self._late(step, _TIMED_OUT)
            in_hook = step > 0 and self.plan.steps[step - 1].op == "hook"
            if self._watch.stalled(step) and not in_hook:
                raise self._late(step, f"the init process made no progress for {STALL:.0f} s")

        if self._recorder is not None:
            self._recorder.wait()
        with waiting():
            init.wait(check)
        if self._recorder is not None:
            self._recorder.mark("report", "the report of the init process, and the state of the container")
        try:
            message = init.receive()  # signals are deferred: a handler that raises would lose the file descriptor
        except ConnectionAbortedError:
            raise self._vanished(init) from None
        if message is not None and not self._belongs(message):
            if message.fd >= 0:
                os.close(message.fd)
            raise self._vanished(init)
        return message

    def _belongs(self, message: Message) -> bool:
        """Return whether the plan can report this now. A container may write to the socket of an init process that joins it."""
        if message.kind is Report.ERROR and message.step == 0:
            return self._at <= self._clone_number()
        if not self._at < message.step <= len(self.plan.steps):
            return False
        ops = REPORTING.get(message.kind)
        return ops is None or self.plan.steps[message.step - 1].op in ops

    def _late(self, number: int, why: str) -> LaunchTimeout:
        number = number or self._at + 1
        step = self.plan.steps[number - 1]
        cause = why if self._init is None else f"{why}; it is {describe_state(self._init.pid)}"
        if (limit := self._reached_limit()) is not None:
            cause += f", and has reached its memory limit of {limit} bytes"
        error = LaunchTimeout(errno.ETIMEDOUT, step=number, total=len(self.plan.steps), op=step.op, text=step.text, cause=cause)
        error.command = self.plan.command()
        return error

    def _check_end(self, init: Init) -> None:
        """Raise an error if the init has ended before it waited for a start or became the program."""
        last = next(number for number, step in enumerate(self.plan.steps, 1) if step.op in _LAST)
        step, error, _ = init.progress
        if step < last or (step == last and error):
            raise self._vanished(init)

    def _vanished(self, init: Init) -> StepError | UnsupportedError:
        """Return the error for an init that has ended without a report."""
        number, code, _ = init.progress
        number = number or self._clone_number()
        if code:
            return self._failed(number, code, "")
        ended = init.ended()
        limit = _memory_limit(self.plan)
        # If the kernel cannot execute the init for lack of memory, it kills it without counting an OOM kill.
        before_first_step = number <= self._clone_number() and self._reached_limit() is not None
        if limit is not None and (before_first_step or cgroup.oom_kills(self.plan.cgroups)):
            return self._too_small(limit, number)
        return death(self.plan, number, ended.signal if ended is not None else None)

    def _too_small(self, limit: int, number: int) -> StepError:
        """Return the error for an init that a memory limit killed. It says how much memory creating the container takes."""
        step = self.plan.steps[number - 1]
        self.abort()
        needed = f"it needs more than {max(self._measure() or 0, limit)} bytes here"
        return cgroup.too_small(
            limit, "start the container", needed, step=number, total=len(self.plan.steps), op=step.op, text=step.text
        )

    def _reached_limit(self) -> int | None:
        """Return the memory limit of the plan if the container has reached it."""
        limit = _memory_limit(self.plan)
        if limit is None:
            return None
        found = cgroup.memory_limit(self.plan.cgroups)
        return limit if found is not None and found.hits else None

    def _measure(self) -> int | None:
        """Create the container again, without its memory limits, and return the bytes of memory that this takes.

        Returns:
            None if the plan has steps that must not be repeated, or if the memory is not counted.
        """
        steps = _with_new_work_directory([step for step in self.plan.steps if not _limits_memory(step) and step.op != "profile"])
        if any(step.op in _ONCE for step in steps):
            return None
        again = Execution(
            attrs.evolve(self.plan, steps=steps),
            stdio=self._stdio,
            gate=self._given["gate"],
            pidfd=self._given["pidfd"],
            preserve=self._preserve,
            cache=self._cache,
            parents=self._parents,
            parent=self._parent,
            mount=self._mount,
            deadline=self._deadline,
        )
        try:
            again.begin()
            return cgroup.usage(self.plan.cgroups).peak
        except OCIRuntimeError:
            return None  # the error of the first attempt is reported
        finally:
            again.abort()

    def error(self, message: Message) -> StepError | UnsupportedError:
        """Return the error that the init has reported."""
        return self._failed(message.step or self._clone_number(), message.value, message.text)

    def _failed(self, number: int, code: int, words: str) -> StepError | UnsupportedError:
        """Return the error of a step, as `step_error`."""
        limit = self._reached_limit() if code == errno.ENOMEM else None
        return step_error(self.plan, number, code, words) if limit is None else self._too_small(limit, number)

    def _clone_number(self) -> int:
        return next(number for number, step in enumerate(self.plan.steps, 1) if step.op == "clone3")

    # ---- host steps ----

    def _host_steps(self) -> None:
        """Execute the host steps up to the clone or to the next init step."""
        while self._at < len(self.plan.steps):
            step = self.plan.steps[self._at]
            if step.side != "host" or step.op == "clone3":
                return
            if self._recorder is not None:
                self._recorder.step(self._at + 1)
                self._recorder.flush()
            # To be profiled, each step gets a call of its own.
            steps = self.plan.steps[self._at : None if self._recorder is None else self._at + 1]
            done = steps[: execute_together(steps)]
            if not done:
                self._execute_step(step)
                done = (step,)
            self._undo_entries += undo.of_steps(done)
            self._at += len(done)

    def _execute_step(self, step: Step) -> None:
        try:
            clean_up = self._carry_out(step)
            if clean_up is not None:
                self._clean_ups.append(clean_up)
        except OSError as error:
            if isinstance(error, StepError):
                raise
            code = error.errno or errno.EIO
            cause = error.strerror if error.strerror and error.strerror != os.strerror(code) else ""
            raise step_error(self.plan, self._at + 1, code, "", cause=cause) from error

    def _carry_out(self, step: Step) -> Callable[[], None] | None:
        if step.op == "network":
            self.network = self._connect(*step.values)
            return self.network.kill
        if step.op not in ("hook", "hook_state"):
            return execute_step(step, self._init)
        assert self._hooks is not None, "a plan with hooks"
        self._hooks.execute_step(step, self.init, self._deadline)
        if self._is_late():
            raise self._late(self._at + 1, _TIMED_OUT)
        return None

    def _connect(self, program: object, ports: object, forwards_dns: object) -> NetworkHelper:
        """Connect the network of the container. Raises UnsupportedError, LaunchTimeout, OSError."""
        try:
            return NetworkHelper(
                self.init,
                cast("str", program),
                cast("Sequence[tuple[str, int, int, str]]", ports),
                bool(forwards_dns),
                directory=self._directory,
                deadline=self._deadline,
            )
        except TimeoutError as error:
            raise self._late(self._at + 1, _TIMED_OUT if self._is_late() else error.strerror or "") from error

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    # ---- init steps ----

    def _launch(self) -> Init:
        step = self.plan.steps[self._at]
        opened: list[int] = []
        if self._recorder is not None:
            self._recorder.mark("encode", "the steps of the init process, the filter, and what the init process inherits")
        try:
            inputs = []
            for entry in self.plan.inputs:
                if entry.kind in self._given:
                    inputs.append(self._given[entry.kind])
                    continue
                if entry.kind == "parent":
                    opened.append(os.pidfd_open(os.getpid()))
                elif entry.kind in ("state", "output"):
                    assert self._hooks is not None, "a plan with hooks"
                    opened.append(self._hooks.open(entry.kind))
                elif entry.kind == "image":
                    assert self._mount is not None, "a plan with mounts of an image"
                    opened.append(self._mount(entry.path))
                else:
                    opened.append(_open(entry))
                inputs.append(opened[-1])
            into = -1
            if step.arguments()["cgroup"]:
                opened.append(os.open(str(step.arguments()["cgroup"]), _O_PATH | os.O_DIRECTORY))
                into = opened[-1]
            lasting = any(entry.kind == "parent" for entry in self.plan.inputs)
            program = self._program(len(inputs))
            if self._recorder is not None:
                self._recorder.step(self._at + 1)
            launched = Init.launch(
                program,
                flags=self.plan.clone_flags,
                stdio=self._stdio,
                inputs=inputs,
                cgroup=into,
                preserve=self._preserve,
                lasting=lasting,
                parent=self._parent,
                timed_steps=self.plan.timed_steps,
            )
        except OSError as error:
            raise step_error(self.plan, self._at + 1, error.errno or errno.EIO, error.filename or "") from error
        finally:
            for fd in opened:
                os.close(fd)
        self._at += 1
        return launched

    def _program(self, inputs: int) -> bytes:
        """Return the encoded steps of the init."""
        variation = self.plan._variation
        if variation is None or variation.steps is not self.plan.steps:
            return self._encode(self.plan, inputs)
        pattern = variation.pattern
        if pattern.encoded is None:
            pattern.encoded = self._encode(pattern.plan, inputs)
        return variation.encode(pattern.encoded)

    def _encode(self, plan: Plan, inputs: int) -> bytes:
        steps = [(n, s.op, self._filter(s) if s.op == "seccomp" else s.values) for n, s in plan.init_steps()]
        return _encode(tuple(steps), inputs)

    def _filter(self, step: Step) -> tuple[object, ...]:
        """Return the values of a seccomp step, with its profile compiled."""

        flags, uncompiled, out = step.values
        assert isinstance(uncompiled, UncompiledFilter)
        assert isinstance(flags, int)
        compiled = _filter(uncompiled.profile, self._cache)
        if self._recorder is not None:
            self._recorder.log("seccomp filter flags: %d", flags | compiled.flags, whole=True)  # as runc, for which tests look
        return (flags | compiled.flags, compiled.program, out)


_LAST: Final = frozenset({"gate", "exec", "reap", "fork_last", "serve"})
"""Operations with which the init closes the connection when all went well."""
_ONCE: Final = frozenset({"hook", "hook_state", "netdev_move", "systemd_scope", "rdt_make", "rdt_class", "handout", "network"})
"""Operations with an effect outside the container: a plan with one of them is not executed twice."""


def _limits_memory(step: Step) -> bool:
    return step.op.startswith("cgroup_write") and "memory." in str(step.values[1:])


def _memory_limit(plan: Plan) -> int | None:
    """Return the memory limit of a plan in bytes; None if it has none."""
    for step in plan.steps:
        if step.op == "cgroup_write_set":
            _, values = step.values
            found = [
                value for _, value, _, member in cast("Sequence[tuple[str, str, bool, str]]", values) if member == "memory.limit"
            ]
        elif step.op == "cgroup_write" and step.values[3] == "memory.limit":
            found = [str(step.values[2])]
        else:
            continue
        for value in found:
            if value.isdigit():
                return int(value)
    return None


_filters: list[tuple[Seccomp, Compiled]] = []
"""The filters of the last profiles. Profiles are compared by identity: comparing their values would take most of the time."""
_MAX_FILTERS: Final = 8


def _filter(profile: Seccomp, cache: str | None) -> Compiled:
    from ..seccomp import compile_profile

    for known, compiled in tuple(_filters):
        if known is profile:
            return compiled
    compiled = compile_profile(profile, cache_dir=None if cache is None else Path(cache))
    _filters.insert(0, (profile, compiled))
    del _filters[_MAX_FILTERS:]
    return compiled


@lru_cache(maxsize=16)
def _encode(steps: tuple[tuple[int, str, tuple[object, ...]], ...], inputs: int) -> bytes:
    """Return the encoded init steps. They are the same for every exec process with the same options."""
    return encode(steps, inputs)


def _open(entry: Input) -> int:
    """Open a file that the init inherits. Raises OSError, and SpecError for a file that is not a namespace of the right kind."""
    if entry.kind == "userns":
        uids, gids = (text.encode() for text in entry.maps)
        return check(lib.oci_user_namespace(uids, gids), f"a user namespace for {entry.name}")
    if entry.kind not in ("namespace", "changed"):
        return os.open(entry.path, os.O_WRONLY | os.O_CLOEXEC if entry.kind == "write" else _O_PATH)
    try:
        fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise SpecError([Problem(entry.name, f"{entry.path}: {error.strerror}", _NAMESPACES)]) from error
    try:
        kind = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != entry.bit:
        os.close(fd)
        names = {bit: name for name, bit in CLONE_NEW.items()}
        what = f"a {names[kind]} namespace" if kind in names else "not a namespace"
        raise SpecError([Problem(entry.name, f"{entry.path} is {what}; give a {names[entry.bit]} namespace", _NAMESPACES)])
    if entry.kind == "changed" and os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{_FILES[entry.bit]}")):
        os.close(fd)
        message = f"{entry.path} is the caller's own namespace, which $.hostname, $.domainname or $.linux.sysctl would change"
        raise SpecError([Problem(entry.name, message, _NAMESPACES)])
    return fd


def _with_new_work_directory(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Return steps that can be executed again: the kernel uses the work directory of a volatile overlay only once."""
    if not any(step.op == "fsconfig" and "volatile" in step.values for step in steps):
        return tuple(steps)
    again: list[Step] = []
    for step in steps:
        if step.op == "open" and step.values[1] == "work":
            base, _, *rest = step.values
            again.append(step._replace(op="mkdir", values=(base, "work2", 0o700)))
            step = step._replace(values=(base, "work2", *rest))
        again.append(step)
    return tuple(again)


def step_error(plan: Plan, number: int, code: int, words: str, cause: str = "") -> StepError | UnsupportedError:
    """Return the error of a step.

    Args:
        number: the number of the step, from 1 on.
        code: the errno.
        words: what the init reports beside the errno, a path for example.
        cause: the reason, if it is known; else it is looked up.
    """
    step = plan.steps[number - 1]
    profile = _profile(plan, number)
    if profile is not None and not cause:
        cause = denied_by_filter(profile, step.op, code)
    if step.op == "clone3" and code in (errno.EPERM, errno.ENOSPC) and os.geteuid():
        cause = explain_clone(code, bool(plan.clone_flags & CLONE_NEW["user"]))
    if step.op == "target" and code == errno.ELOOP and cast("int", step.arguments()["kind"]) & ~Target.IN_PROC == Target.NO_LINK:
        cause = "it is a symbolic link in the image: procfs and sysfs must be mounted on ordinary directory"
    looked_up = any(earlier.op == "lookup" for earlier in plan.steps[: number - 1])
    return make_error(
        number, len(plan.steps), step.op, step.text, code, words, cause,
        location=step.location, looked_up=looked_up, user_namespace=bool(plan.namespaces & CLONE_NEW["user"]),
    )  # fmt: skip


def _profile(plan: Plan, number: int) -> Seccomp | None:
    """Return the seccomp profile that is in force when a step begins."""

    for step in plan.steps[: number - 1]:
        if step.op == "seccomp":
            uncompiled = step.values[1]
            assert isinstance(uncompiled, UncompiledFilter)
            return uncompiled.profile
    return None


def death(plan: Plan, number: int, killed_by: int | None) -> StepError:
    """Return the error for an init that was killed, or ended, during a step."""
    step = plan.steps[number - 1]
    cause = how_it_died(killed_by)
    return StepError(errno.EINTR, step=number, total=len(plan.steps), op=step.op, text=step.text, cause=cause)
