"""Creating a container: everything but its process (runtime.md, Create)."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..bundle import Bundle
from ..engine import handover, undo
from ..engine.gate import listen
from ..engine.perform import Performance
from ..errors import OCIRuntimeWarning, UnsupportedError
from ..host import Host
from ..state import Entry, StateDocument, StateStore, Status, start_time, state_of
from .agent import send
from .delete import after_delete, delete
from .start import after_start

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from ..engine.hooks import Hooks
    from ..engine.launch import Init
    from ..plan import Plan
    from ..plan.cgroups import Manager
    from ..spec import RuntimeSpec

StrPath = str | os.PathLike[str]


class Created(NamedTuple):
    """What its maker has of a new container."""

    entry: Entry
    pidfd: int
    """Of the first process."""
    terminal: int
    """The master of its terminal, or -1."""


def create(
    container_id: str,
    bundle: Bundle | StrPath,
    *,
    root: StrPath | None,
    stdio: tuple[int | None, int | None, int | None],
    terminal: bool | None,
    console_socket: StrPath | None,
    pid_file: StrPath | None,
    preserve_fds: int,
    cgroup_manager: Manager,
    new_keyring: bool,
    gate: bool,
) -> Created:
    """Create a container, or without ``gate`` run it at once.

    Arguments and errors are those of `Container.create`.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    store = StateStore(root)
    if terminal is not None:
        opened = opened.with_process(terminal=terminal)
    host = Host.probe()
    if not new_keyring:
        host = host._replace(keyrings=False)
    plan = opened.plan(host=host, container_id=container_id, gate=gate, cgroup_manager=cgroup_manager)
    for text in plan.warnings:
        warnings.warn(text, OCIRuntimeWarning, stacklevel=4)
    if plan.terminal and console_socket is None and not terminal:
        raise UnsupportedError("$.process.terminal: nobody takes the terminal: give a console socket, or pass terminal=True")
    if console_socket is not None and not plan.terminal:
        raise UnsupportedError("a console socket is given, but $.process.terminal is not true")
    if preserve_fds < 0:
        raise ValueError(f"preserve_fds is {preserve_fds}, not a count")
    entry = store.create(container_id)
    try:
        parents = undo.parents(plan)
    except BaseException:
        entry.remove()
        raise
    document: StateDocument = {
        "id": container_id,
        "bundle": str(opened.path),
        "status": Status.CREATING,
        "created_at": time.time_ns(),
        "annotations": dict(opened.spec.annotations or {}),
        "cgroups": list(plan.cgroups),
        "undo": [*parents, *undo.of_plan(plan)],
        "namespaces": plan.namespaces,
        "new_keyring": new_keyring,
        "rootfs": str(opened.rootfs),
        "total": len(plan.steps),
        "process": opened.spec.process is not None,
        "hooks": dict(plan.hooks),
    }
    hooks = _hooks(plan, document)
    performance: Performance | None = None
    listener: socket.socket | None = None
    masters: list[int] = []
    try:
        entry.write(document)  # from here on a crash leaves something that delete --force can clean up
        (entry.path / "config.json").write_bytes(opened.config_bytes)
        if gate:
            listener = listen(entry.path)
            names = [step.op for step in plan.steps]
            after = names.index("gate") + 1
            document["listener"] = listener_of(opened.spec)
            document["steps"] = [[n, s.op, s.text] for n, s in enumerate(plan.steps[after:], after + 1)]
        performance = Performance(
            plan,
            stdio=[fd if fd is not None else i for i, fd in enumerate(stdio)],
            gate=listener.fileno() if listener else -1,
            preserve=preserve_fds,
            parents=parents,
            cache=store.root / ".seccomp",
            receivers=receivers(opened.spec, document, to_socket(console_socket) if console_socket is not None else masters.append),
            hooks=hooks,
        )
        init = performance.begin()
        document["pid"], document["pid_start"] = init.pid, start_time(init.pid)
        document["status"] = Status.CREATED if gate else Status.RUNNING
        if not gate:
            document["started_at"] = time.time_ns()
        entry.write(document)
        if pid_file is not None:
            write_pid_file(Path(pid_file), init.pid)
        performance.finish()
    except BaseException:
        try:
            if performance is not None:
                performance.abort()
        finally:
            for fd in masters:
                os.close(fd)
            entry.remove()
        if hooks is not None and hooks.begun:
            after_delete(document)
        raise
    finally:
        if listener:
            listener.close()
        if hooks is not None:
            hooks.close()
    pidfd = os.dup(init.pidfd)
    init.close()
    if not gate and (failure := after_start(document)) is not None:
        delete(entry, pidfd, force=True)
        for fd in (pidfd, *masters):
            os.close(fd)
        raise failure
    return Created(entry, pidfd, masters[0] if masters else -1)


def _hooks(plan: Plan, document: StateDocument) -> Hooks | None:
    """The hooks that run until the process does, if there are any."""
    if not any(step.op in ("hook", "hook_state") for step in plan.steps):
        return None
    from ..engine.hooks import Hooks

    # To them the container is created: what comes before hooks is done (runtime.md, Lifecycle, 2 and 3).
    return Hooks(lambda: state_of(document)._replace(status=Status.CREATED))


def listener_of(spec: RuntimeSpec) -> list[str]:
    """The seccomp agent's socket and the metadata for it, both empty where there is none."""
    seccomp = spec.linux.seccomp if spec.linux else None
    return [seccomp.listener_path or "", seccomp.listener_metadata or ""] if seccomp else ["", ""]


def to_socket(path: StrPath) -> Callable[[int], None]:
    """What sends a terminal's master to whoever listens there."""
    return lambda fd: handover.send(fd, path)


def receivers(spec: RuntimeSpec, document: StateDocument, console: Callable[[int], None]) -> dict[str, Callable[[Init, int], None]]:
    """Who gets the descriptors that the init hands out."""

    def to_agent(init: Init, fd: int) -> None:
        path, metadata = listener_of(spec)
        state = state_of(document)
        send(fd, path, metadata, state._replace(pid=state.pid or init.pid), init.pid)

    return {"handout": to_agent, "console": lambda init, fd: console(fd)}


def write_pid_file(path: Path, pid: int) -> None:
    """Write a pid file, atomically. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(str(pid))
    temporary.rename(path)
