"""Executing a further process in a running container, as ``exec`` of runc and crun does."""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from ..engine import undo
from ..engine.cgroup import joinable, memory_limit, oom_kills, too_small
from ..engine.cgroup.tasks import Group, MarkedGroup, make_cgroup_group, remove_empty
from ..engine.execution import Execution
from ..engine.launch import inherited
from ..engine.processes import ended_within
from ..errors import ContainerNotFound, StepError, WrongStatus, warn
from ..host import Host
from ..plan.cgroups import existing_placement, inner_cgroups
from ..plan.compile import compile_exec, compile_socket
from ..plan.ops import CLONE_NEW
from ..rootfs.users import ContainerRoot, env_with_home
from ..spec import Capabilities, ProcessSpec, Rlimit
from ..spec.process import UNLIMITED, RlimitType
from ..store import Entry, StateRecord, Status
from .create import CleanUps, Launched, receivers, to_socket, write_pid_file
from .status import first_process, recording, status_of

if TYPE_CHECKING:
    from ..options import ExecOptions
    from ..plan import Plan
    from ..spec import RuntimeSpec
    from ..stats import Recorder

_ENDING_ERRNOS: Final = frozenset({errno.ESRCH, errno.ENOMEM, errno.EINTR, errno.EINVAL, errno.ECONNRESET})
"""Errors from joining a container that is about to end: its namespaces are gone, or its pid namespace takes no more processes."""
_END_TIMEOUT: Final = 0.5
"""Seconds for the container to end after such an error."""


@attrs.frozen(kw_only=True)
class PreparedExec:
    """An exec process whose process object and cgroups are complete."""

    process: ProcessSpec
    cgroups: tuple[str, ...]
    """The directories of the cgroups to join."""
    group: Group | None
    """The group of all processes that it starts."""
    siblings: Sequence[str]
    """Cgroups of other exec processes, which may have ended."""
    host: Host

    def compile(self, entry: Entry, document: StateRecord, spec: RuntimeSpec) -> Plan:
        """Compile the plan that executes the process. Raises SpecError, UnsupportedError."""
        keyrings = self.host.keyrings and document.get("new_keyring", True)
        return compile_exec(
            self.process,
            spec,
            attrs.evolve(self.host, keyrings=keyrings),
            namespaces=foreign_namespaces(document),
            cgroups=self.cgroups,
            unit=undo.unit(document.get("undo", [])),
            container_id=entry.id,
            pid=document["pid"],
            tracked=isinstance(self.group, MarkedGroup) and os.path.exists("/proc/self/ns/cgroup"),
        )


def execute(
    entry: Entry, spec: RuntimeSpec, options: ExecOptions, *, stdio: Sequence[int], deadline: float | None = None
) -> Launched:
    """Execute a process in a running container. Errors are those of `Container.popen`; after each, nothing of the process is left.

    Args:
        spec: the container's configuration.
        stdio: file descriptors for its stdin, stdout and stderr.
        deadline: when to give the launch up, by `time.monotonic`.
    """
    with recording("exec", entry.id) as recorder:
        return _execute(entry, spec, options, stdio, deadline, recorder)


def _execute(
    entry: Entry,
    spec: RuntimeSpec,
    options: ExecOptions,
    stdio: Sequence[int],
    deadline: float | None,
    recorder: Recorder | None,
) -> Launched:
    began = time.monotonic()
    preserve = inherited(options.preserve_fds)
    terminals: list[int] = []
    # The lock keeps the container from being paused: a frozen init process never answers.
    with entry.locked(shared=True), CleanUps() as clean_ups:
        document, pidfd = _open_running(entry)
        clean_ups.callback(os.close, pidfd)
        cgroups = document.get("cgroups", [])
        kills = oom_kills(cgroups)
        clean_ups.enter_context(_memory_errors(cgroups, kills))
        clean_ups.enter_context(_end_of_container(entry, pidfd))
        prepared = prepare_exec(document, spec, options)
        if prepared.group is not None:
            clean_ups.on_failure(prepared.group.kill)  # the process may have run before the failure or interruption
        if recorder is not None:
            recorder.mark("compile", "the plan")
        plan = prepared.compile(entry, document, spec)
        if recorder is not None:
            recorder.use(plan := plan.profiled())
        clean_ups.on_failure(_close, terminals)
        console = terminals.append if options.console_socket is None else to_socket(options.console_socket)
        takers = receivers(spec, document, console)
        if isinstance(group := prepared.group, MarkedGroup):
            takers["give"] = lambda _, namespace: group.identify(namespace)
        execution = Execution(
            plan,
            stdio=stdio,
            pidfd=pidfd,
            preserve=preserve,
            cache=f"{entry.root}/.seccomp",
            receivers=takers,
            deadline=deadline,
            recorder=recorder,
        )
        clean_ups.on_failure(execution.abort)
        init = execution.begin()
        warn(plan.warnings)  # not before: what fails has an error, which they would bury
        if options.pid_file is not None:
            write_pid_file(Path(options.pid_file), init.pid)
        execution.finish()
    if prepared.siblings:
        _sweep(entry, prepared.siblings)
    return Launched(
        args=tuple(prepared.process.args or ()),
        pid=init.pid,
        pidfd=init.release(),
        init_pid=document["pid"],
        steps=len(plan.steps),
        began=began,
        cgroups=cgroups,
        oom_kills=kills,
        group=prepared.group,
        terminal=terminals[0] if terminals else -1,
    )


def open_socket(entry: Entry, family: int) -> int:
    """Return a TCP socket of the network namespace of a running container, as a file descriptor. The caller enters no namespace.

    Args:
        family: AF_INET or AF_INET6.

    Raises:
        WrongStatus: the container is not running.
        StepError: the kernel refuses it.
    """
    document, pidfd = _open_running(entry)
    try:
        joined = foreign_namespaces(document) & (CLONE_NEW["user"] | CLONE_NEW["network"])
        if not joined & CLONE_NEW["network"]:
            return socket.socket(family, socket.SOCK_STREAM).detach()
        with _end_of_container(entry, pidfd), open(os.devnull, "r+b", 0) as null:
            plan = compile_socket(joined, family, container_id=entry.id)
            execution = Execution(plan, stdio=(null.fileno(),) * 3, pidfd=pidfd)
            try:
                return os.dup(execution.begin().files["socket"])
            finally:
                execution.abort()
    finally:
        os.close(pidfd)


def prepare_exec(document: StateRecord, spec: RuntimeSpec, options: ExecOptions) -> PreparedExec:
    """Resolve the process object and the cgroups of an exec process, and make a cgroup for it.

    Raises:
        ValueError, FileNotFoundError: the cgroup that the options name does not exist in the container.
        BundleError: the container does not know the user.
    """
    pid, cgroups, host = document["pid"], document.get("cgroups", []), Host.probe()
    root = ContainerRoot(f"/proc/{pid}/root")
    process = _process_of(spec, options, root)
    if (env := env_with_home(process, root)) is not process.env:
        process = process.evolve(env=env)
    joined = _joined_cgroups(cgroups, pid, options.cgroup, host)
    group: Group | None = None
    siblings: list[str] = []
    if options.own_cgroup:
        in_cgroup = make_cgroup_group(existing_placement(joined, host).places, cgroups)
        if in_cgroup is None:
            group, process = _mark(process)
        else:
            group, siblings = in_cgroup
            own, parent = in_cgroup[0].path, os.path.dirname(in_cgroup[0].path)
            joined = tuple(own if path == parent else path for path in joined)
    return PreparedExec(process=process, cgroups=joined, group=group, siblings=siblings, host=host)


def _open_running(entry: Entry) -> tuple[StateRecord, int]:
    """Return the state of a running container and a pidfd of its init process. Raises WrongStatus, ContainerNotFound."""
    document = entry.read()
    status = status_of(document)
    if not status.can_exec:
        raise WrongStatus(entry.id, "exec in", status, "running")
    pidfd = first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "exec in", Status.STOPPED, "running")
    return document, pidfd


@contextmanager
def _end_of_container(entry: Entry, pidfd: int) -> Iterator[None]:
    """Raise WrongStatus for an error in the block whose cause is the end of the container."""
    try:
        yield
    except OSError as error:
        if error.errno in _ENDING_ERRNOS and ended_within(pidfd, _END_TIMEOUT):
            raise WrongStatus(entry.id, "exec in", Status.STOPPED, "running") from error
        raise


@contextmanager
def _memory_errors(cgroups: Sequence[str], kills: int) -> Iterator[None]:
    """Raise StepError for an error in the block whose cause is that the container's memory limit does not hold another process.

    Args:
        kills: the OOM kills in the container before the block.
    """
    try:
        yield
    except (StepError, WrongStatus) as error:
        failure = error.__cause__ if isinstance(error, WrongStatus) else error  # the kernel may have killed the init process
        if not isinstance(failure, StepError) or (failure.errno != errno.ENOMEM and oom_kills(cgroups) == kills):
            raise
        limit = memory_limit(cgroups)
        if limit is None:
            raise
        raise too_small(
            limit.limit,
            "execute a process",
            f"it needs more than {limit.limit} bytes here",
            step=failure.step,
            total=failure.total,
            op=failure.op,
            text=failure.text,
        ) from error


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def foreign_namespaces(document: StateRecord) -> int:
    """Return the CLONE_NEW* bits to join, without the user namespace if the caller is in it: setns(2) refuses that."""
    bits = document.get("namespaces", 0)
    try:
        same = os.path.samefile(f"/proc/{document.get('pid', 0)}/ns/user", "/proc/self/ns/user")
    except FileNotFoundError:
        return bits  # the container has ended, as the launch will tell
    return bits & ~CLONE_NEW["user"] if same else bits


def _sweep(entry: Entry, paths: Sequence[str]) -> None:
    """Remove the cgroups of exec processes whose caller was killed, or has detached them."""
    try:
        with entry.locked(wait=False):  # an empty one may belong to an exec that is launching, which holds the lock
            remove_empty(paths)
    except (OSError, ContainerNotFound):
        return  # the next exec removes them, or the end of the container


def _mark(process: ProcessSpec) -> tuple[MarkedGroup, ProcessSpec]:
    """Return a group for a process without a cgroup of its own, and the process with the resource limit that marks it."""
    limits = process.rlimits or ()
    configured = next((limit.hard for limit in limits if limit.type == RlimitType.RSS), None)
    hard = resource.getrlimit(resource.RLIMIT_RSS)[1] & UNLIMITED if configured is None else configured
    group = MarkedGroup(hard)
    if group.mark is None:
        return group, process
    others = tuple(limit for limit in limits if limit.type != RlimitType.RSS)
    return group, process.evolve(rlimits=(*others, Rlimit(type=RlimitType.RSS, soft=group.mark, hard=hard)))


def _joined_cgroups(cgroups: Sequence[str], pid: int, cgroup: str | Mapping[str, str] | None, host: Host) -> tuple[str, ...]:
    """Return the cgroups to join.

    Args:
        cgroups: those of the container.
        cgroup: the one that the options name.

    Raises:
        ValueError, FileNotFoundError: the container does not have the cgroup that the options name.
    """
    if not cgroup:
        return tuple(joinable(cgroups, pid))
    placement = existing_placement(cgroups, host)
    if not placement.places:
        raise ValueError(f"cgroup={cgroup!r}: the container has no cgroups of its own")
    chosen = inner_cgroups(placement, cgroup)
    missing = next((path for path in chosen.values() if not os.path.isdir(path)), None)
    if missing is not None:
        raise FileNotFoundError(errno.ENOENT, "adding pid to the cgroup: no such file or directory; create it first", missing)
    others = joinable([path for path in cgroups if path not in chosen], pid)
    return (*chosen.values(), *others)


def _process_of(spec: RuntimeSpec, options: ExecOptions, root: ContainerRoot) -> ProcessSpec:
    """Return the process object of the options, or the container's own without its terminal, with the overrides."""

    base = options.process or (spec.process or ProcessSpec(cwd="/")).evolve(terminal=None, console_size=None)
    process = options.overrides.apply(spec.evolve(process=base), lambda _: root).process
    assert process is not None, "the process was given"
    if not options.capabilities:
        return process
    # To the ambient set only what the container's own process may inherit: a program of another user, or without capabilities on
    # its file, must not get others.
    held = process.capabilities or Capabilities()
    inherited = Capabilities().add(*options.capabilities).permitted
    ambient = [name for name in inherited or () if name in (held.inheritable or ())]
    return process.evolve(capabilities=held.add(*options.capabilities).add(*ambient, ambient=True))
