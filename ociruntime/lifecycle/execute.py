"""Running a further process in a container (the peers' ``exec``; runtime.md has none)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..engine import groups, undo
from ..engine.cgroup import joinable, oom_kills
from ..engine.launch import inherited
from ..engine.perform import Performance
from ..engine.processes import ended_within
from ..errors import ContainerNotFound, WrongStatus
from ..host import Host
from ..overrides import Overrides
from ..plan.cgroups import existing_placement, inner_cgroups
from ..plan.compile import compile_exec
from ..plan.kernel import CLONE_NEW
from ..state import Entry, StateDocument, Status
from ..terminal import Terminal
from .create import StrPath, receivers, to_socket, write_pid_file
from .home import with_home
from .status import current, first_process
from .warn import warn

if TYPE_CHECKING:
    from ..spec import Process, RuntimeSpec

_OF_AN_END: Final = frozenset({errno.ESRCH, errno.ENOMEM, errno.EINTR, errno.EINVAL, errno.ECONNRESET})
"""What joining a container says that is about to end: without namespaces, or with a pid namespace that takes nobody."""
_END: Final = 0.5
"""Seconds from there to its end."""


class Started(NamedTuple):
    """A further process in a container, on its way."""

    args: tuple[str, ...]
    pid: int
    pidfd: int
    first: int
    """The pid of the container's first process."""
    cgroups: Sequence[str]
    oom_kills: int
    """In the container, before."""
    group: groups.Group | None
    """What it starts, if that is to be known."""
    terminal: Terminal | None


def _foreign(document: StateDocument) -> int:
    """The CLONE_NEW* bits to join: nobody may enter the user namespace that he is in already."""
    bits = document.get("namespaces", 0)
    try:
        ours = os.path.samefile(f"/proc/{document.get('pid', 0)}/ns/user", "/proc/self/ns/user")
    except FileNotFoundError:
        return bits  # it ended meanwhile, as the launch will tell
    return bits & ~CLONE_NEW["user"] if ours else bits


def execute(
    entry: Entry,
    spec: RuntimeSpec,
    overrides: Overrides,
    *,
    process: Process | Mapping[str, Any] | None,
    capabilities: Sequence[str],
    stdio: Sequence[int],
    console_socket: StrPath | None,
    pid_file: StrPath | None,
    preserve_fds: int,
    cgroup: str | Mapping[str, str] | None,
    own_cgroup: bool,
    deadline: float | None = None,
) -> Started:
    """Start a process in a running container. Arguments and errors are those of `Container.popen`."""
    preserve = inherited(preserve_fds)
    with entry.locked(shared=True):  # so that nobody pauses the container meanwhile: a frozen init never answers
        document = entry.read()
        status = current(document).status
        if not status.can_exec:
            raise WrongStatus(entry.id, "exec in", status, "running")
        pidfd, cgroups = first_process(document), document.get("cgroups", [])
        if pidfd is None:
            raise WrongStatus(entry.id, "exec in", Status.STOPPED, "running")
        masters: list[int] = []
        group: groups.Group | None = None
        others: list[str] = []
        try:
            rootfs = Path(f"/proc/{document['pid']}/root")
            wanted = with_home(_wanted(spec, overrides, process, capabilities, rootfs), rootfs)
            host = Host.probe()
            joined = _joined(cgroups, document["pid"], cgroup, host)
            if own_cgroup and (made := groups.make_cgroup_group(existing_placement(joined, host).places, cgroups)) is not None:
                group, others = made
                joined = tuple(made[0].path if os.path.dirname(made[0].path) == path else path for path in joined)
            elif own_cgroup:
                group, wanted = _marked(wanted)
            plan = compile_exec(
                wanted,
                spec,
                host._replace(keyrings=host.keyrings and document.get("new_keyring", True)),
                namespaces=_foreign(document),
                cgroups=joined,
                unit=undo.unit(document.get("undo", [])),
                container_id=entry.id,
                pid=document["pid"],
            )
            warn(plan.warnings)
            performance = Performance(
                plan,
                stdio=stdio,
                pidfd=pidfd,
                preserve=preserve,
                cache=entry.path.parent / ".seccomp",
                receivers=receivers(spec, document, to_socket(console_socket) if console_socket is not None else masters.append),
                deadline=deadline,
            )
            kills = oom_kills(cgroups)
            init = performance.begin()
            try:
                if pid_file is not None:
                    write_pid_file(Path(pid_file), init.pid)
            except BaseException:
                performance.abort()
                raise
            performance.finish()
        except BaseException as error:
            for fd in masters:
                os.close(fd)
            if group is not None:
                group.kill()  # the program may have run for a moment when the interrupt or the failure came
            if isinstance(error, OSError) and error.errno in _OF_AN_END and ended_within(pidfd, _END):
                raise WrongStatus(entry.id, "exec in", Status.STOPPED, "running") from error
            raise
        finally:
            os.close(pidfd)
    if others:
        _sweep(entry, others)
    return Started(
        tuple(wanted.args or ()),
        init.pid,
        init.release(),
        document["pid"],
        cgroups,
        kills,
        group,
        Terminal(masters[0]) if masters else None,
    )


def _sweep(entry: Entry, paths: Sequence[str]) -> None:
    """Remove the cgroups of exec processes that have ended without their caller: it was killed, or has detached them."""
    try:
        with entry.locked(wait=False):  # an empty one may be that of an exec on its way, which holds the lock
            groups.remove_empty(paths)
    except (OSError, ContainerNotFound):
        return  # they are left to the next exec, or gone with the container


def _marked(process: Process) -> tuple[groups.MarkedGroup, Process]:
    """A group for a process that has no cgroup of its own, and the process with the limit that marks it."""
    import resource

    from ..spec import Rlimit
    from ..spec.process import UNLIMITED, RlimitType

    set_ = next((limit.hard for limit in process.rlimits or () if limit.type == RlimitType.RSS), None)
    hard = resource.getrlimit(resource.RLIMIT_RSS)[1] & UNLIMITED if set_ is None else set_
    group = groups.MarkedGroup(hard)
    if group.mark is None:
        return group, process
    others = tuple(limit for limit in process.rlimits or () if limit.type != RlimitType.RSS)
    return group, process.evolve(rlimits=(*others, Rlimit(type=RlimitType.RSS, soft=group.mark, hard=hard)))


def _joined(cgroups: Sequence[str], pid: int, wanted: str | Mapping[str, str] | None, host: Host) -> tuple[str, ...]:
    """The cgroups for a further process. Raises ValueError and FileNotFoundError for the one that is asked for."""
    if not wanted:
        return tuple(joinable(cgroups, pid))
    placement = existing_placement(cgroups, host)
    if not placement.places:
        raise ValueError(f"cgroup={wanted!r}: the container has no cgroups of its own")
    chosen = inner_cgroups(placement, wanted)
    missing = next((path for path in chosen.values() if not os.path.isdir(path)), None)
    if missing is not None:
        raise FileNotFoundError(errno.ENOENT, "the container has no such cgroup", missing)
    others = joinable([path for path in cgroups if path not in chosen], pid)
    return (*chosen.values(), *others)


def _wanted(
    spec: RuntimeSpec,
    overrides: Overrides,
    process: Process | Mapping[str, Any] | None,
    capabilities: Sequence[str],
    rootfs: Path,
) -> Process:
    """The process object: the container's own without its terminal, or a given one; with what was asked for changed."""
    from ..spec import Capabilities
    from ..spec import Process as ProcessSpec

    if isinstance(process, Mapping):
        process = ProcessSpec.load(process)
    base = process or (spec.process or ProcessSpec(cwd="/")).evolve(terminal=None, console_size=None)
    wanted = overrides.apply(spec.evolve(process=base), rootfs).process
    assert wanted is not None, "there is one now"
    # Never to the inheritable or ambient sets: a program of another user, or without them on its file, must not get them.
    return wanted.evolve(capabilities=(wanted.capabilities or Capabilities()).add(*capabilities)) if capabilities else wanted
