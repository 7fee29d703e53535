"""Running a further process in a container (the peers' ``exec``; runtime.md has none)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.perform import Performance
from ..errors import OCIRuntimeWarning, WrongStatus
from ..host import Host
from ..plan.compile import compile_exec
from ..plan.kernel import CLONE_NEW
from ..process import Process as Child
from ..process import exec_process
from ..state import Entry, StateDocument, Status
from ..terminal import Terminal
from .create import StrPath, receivers, to_socket, write_pid_file
from .status import current, first_process

if TYPE_CHECKING:
    from ..spec import Process, RuntimeSpec


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
    args: Sequence[str],
    *,
    stdio: tuple[int | None, int | None, int | None],
    env: Sequence[str] | None,
    cwd: str | None,
    user: tuple[int, int] | None,
    process: Process | None,
    terminal: bool,
    console_socket: StrPath | None,
    pid_file: StrPath | None,
    preserve_fds: int,
) -> Child:
    """Start a process in a running container. Arguments and errors are those of `Container.popen`."""
    if isinstance(args, str | bytes):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
    document = entry.read()
    status = current(document).status
    if not status.can_exec:
        raise WrongStatus(entry.id, "exec in", status, "running")
    wanted = exec_process(process or spec.process, args, env, cwd, user, terminal=terminal or console_socket is not None)
    plan = compile_exec(
        wanted,
        spec,
        Host.probe()._replace(keyrings=Host.probe().keyrings and document.get("new_keyring", True)),
        namespaces=_foreign(document),
        cgroups=tuple(document.get("cgroups", [])),
        container_id=entry.id,
    )
    for text in plan.warnings:
        warnings.warn(text, OCIRuntimeWarning, stacklevel=3)
    pidfd = first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "exec in", Status.STOPPED, "running")
    masters: list[int] = []
    try:
        performance = Performance(
            plan,
            stdio=[fd if fd is not None else i for i, fd in enumerate(stdio)],
            pidfd=pidfd,
            preserve=preserve_fds,
            cache=entry.path.parent / ".seccomp",
            receivers=receivers(spec, document, to_socket(console_socket) if console_socket is not None else masters.append),
        )
        init = performance.begin()
        try:
            if pid_file is not None:
                write_pid_file(Path(pid_file), init.pid)
        except BaseException:
            performance.abort()
            raise
        performance.finish()
    except BaseException:
        for fd in masters:
            os.close(fd)
        raise
    finally:
        os.close(pidfd)
    return Child(tuple(wanted.args or ()), init, Terminal(masters[0]) if masters else None)
