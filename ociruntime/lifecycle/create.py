"""Creating a container: everything but its process (runtime.md, Create)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..bundle import Bundle
from ..engine import undo
from ..engine.clone import clone
from ..engine.launch import inherited
from ..engine.perform import Performance
from ..engine.protocol import listen_start
from ..errors import UnsupportedError
from ..files import replace_file
from ..host import Host
from ..interrupts import whole
from ..plan.kernel import CLONE_NEW
from ..procfs import start_time
from ..state import Entry, StateDocument, StateStore, Status, state_of
from ..temporary import Temporary
from .delete import after_delete, delete
from .handover import send_fd, send_listener
from .home import has_home, home_of
from .start import after_start
from .supervise import supervise
from .warn import warn

if TYPE_CHECKING:
    from ..engine.hooks import HookRunner
    from ..engine.launch import Init
    from ..plan import Plan
    from ..plan.cgroups import Manager
    from ..spec import RuntimeSpec
    from ..supervisor.client import Supervision, Supervisor
    from .activation import Ready

StrPath = str | os.PathLike[str]


class Created(NamedTuple):
    """A container that has been made."""

    entry: Entry
    document: StateDocument
    pidfd: int
    """Of its first process."""
    args: tuple[str, ...]
    own_pids: bool
    """Whether it has a pid namespace of its own."""
    terminal: int
    """The master of its terminal, or -1."""


def _delete(made: Created) -> None:
    try:
        delete(made.entry, made.pidfd, force=True)
    finally:
        os.close(made.pidfd)
        if made.terminal >= 0:
            os.close(made.terminal)


@whole(undo=_delete)
def create(
    container_id: str,
    bundle: Bundle | Temporary | StrPath,
    *,
    root: StrPath | None,
    stdio: Sequence[int],
    terminal: bool | None,
    console_socket: StrPath | None,
    pid_file: StrPath | None,
    preserve_fds: int,
    listen_fds: int | Sequence[str] = 0,
    notify_socket: StrPath | None = None,
    cgroup_manager: Manager,
    new_keyring: bool,
    die_with_parent: bool | None,
    ephemeral: bool = False,
    supervision: Supervision | None = None,
    empty_process: bool = False,
    gate: bool,
    deadline: float | None = None,
) -> Created:
    """Create a container, or without ``gate`` run it at once. Arguments and errors are those of `Container.create`."""
    if supervision is not None and (console_socket is not None or tuple(stdio) != (0, 1, 2)):
        raise ValueError("the supervisor owns the streams: there can be no stdin, stdout, stderr or console socket beside it")
    if supervision is not None and die_with_parent:
        raise ValueError("a supervised container outlives who made it: it cannot die with its parent")
    told = os.fspath(notify_socket) if notify_socket is not None else ""
    if told and not told.startswith(("/", "@")):
        raise ValueError(f"notify_socket is {told!r}: an absolute path, or @ and the name of an abstract socket")
    preserve = inherited(preserve_fds + (listen_fds if isinstance(listen_fds, int) else len(listen_fds)))
    store = StateStore(root)
    opened = Bundle.load(bundle) if isinstance(bundle, str | os.PathLike) else bundle
    performance: Performance | None = None
    listener = -1
    supervisor: Supervisor | None = None
    ready: Ready | None = None
    masters: list[int] = []
    console: Callable[[int], None] = to_socket(console_socket) if console_socket is not None else masters.append
    document = StateDocument(id=container_id, bundle=str(opened.path), status=Status.CREATING, created_at=time.time_ns())
    if ephemeral:
        document["ephemeral"] = True
    with _hooks_of(document) as hooks, store.making(container_id) as entry:
        try:
            if isinstance(opened, Temporary):
                document["undo"] = [opened.undo]
                entry.record(document)
                opened = opened.make()
            if terminal is not None:
                opened = opened.with_process(terminal=terminal)
            host = Host.probe()
            if not new_keyring:
                host = host._replace(keyrings=False)
            running = opened
            if (listen_fds or told) and opened.spec.process is not None:
                from .activation import activated

                running = activated(opened, entry, listen_fds, told)
            plan = _homely(running).plan(
                host=host,
                container_id=container_id,
                gate=gate,
                cgroup_manager=cgroup_manager,
                die_with_parent=die_with_parent,
                empty_process=empty_process,
            )
            if plan.terminal and console_socket is None and not terminal and supervision is None:
                raise UnsupportedError(
                    "$.process.terminal: nobody takes the terminal: give a console socket, a supervisor, or terminal=True"
                )
            if console_socket is not None and not plan.terminal:
                raise UnsupportedError("a console socket is given, but $.process.terminal is not true")
            warn(plan.warnings)
            parents = undo.parents(plan)
            document["annotations"] = dict(opened.spec.annotations or {})
            document["cgroups"] = list(plan.cgroups)
            document["undo"] = [*document.get("undo", []), *parents, *undo.of_plan(plan)]
            document["namespaces"], document["new_keyring"] = plan.namespaces, new_keyring
            if told and opened.spec.process is not None:
                document["notify"] = told
            document["rootfs"], document["total"] = str(opened.rootfs), len(plan.steps)
            document["process"], document["hooks"] = empty_process or opened.spec.process is not None, dict(plan.hooks)
            entry.record(document)  # from here on a crash leaves something that delete --force can clean up
            entry.save("config.json", opened.config_bytes)
            if gate:
                with entry.storing("start.sock"):
                    listener = listen_start(entry.directory)
                names = [step.op for step in plan.steps]
                after = names.index("gate") + 1
                document["listener"] = listener_of(opened.spec)
                document["steps"] = [[n, s.op, s.text] for n, s in enumerate(plan.steps[after:], after + 1)]
            if supervision is not None:
                supervisor = supervise(entry, document, opened.spec, supervision, terminal=plan.terminal, preserve=preserve)
                console = supervisor.terminal
            performance = Performance(
                plan,
                stdio=stdio,
                gate=listener,
                preserve=preserve,
                parents=parents,
                cache=store.root / ".seccomp",
                parent=supervisor.clone if supervisor is not None else clone,
                receivers=receivers(opened.spec, document, console),
                hooks=hooks(plan),
                deadline=deadline,
            )
            init = performance.begin()
            if supervisor is not None:
                supervisor.adopt(init.pid, init.pidfd)
            document["pid"], document["pid_start"] = init.pid, start_time(init.pid)
            document["status"] = Status.CREATED if gate else Status.RUNNING
            if not gate:
                document["started_at"] = time.time_ns()
            entry.record(document)
            if pid_file is not None:
                write_pid_file(Path(pid_file), init.pid)
            if "notify" in document and not gate:
                from .activation import Ready

                ready = Ready(entry, document)
            performance.finish()
        except BaseException:
            if ready is not None:
                ready.close()
            try:
                if performance is not None:
                    performance.abort()
            finally:
                for fd in masters:
                    os.close(fd)
                if supervisor is not None:
                    supervisor.abort()
                if isinstance(bundle, Temporary):
                    undo.undo_all([bundle.undo])
            entry.remove()  # not when something could not be undone: delete --force shall find what
            raise
        finally:
            if listener >= 0:
                os.close(listener)
    if supervisor is not None:
        supervisor.release()
    if not gate and (failure := after_start(document)) is not None:
        if ready is not None:
            ready.close()
        delete(entry, init.pidfd, force=True)
        init.close()
        for fd in masters:
            os.close(fd)
        raise failure
    if ready is not None:
        (ready.wait if supervisor is not None else ready.wait_aside)(document, init.pidfd)
    process = opened.spec.process
    args = tuple((process.args if process else None) or ())
    return Created(entry, document, init.release(), args, bool(plan.clone_flags & CLONE_NEW["pid"]), masters[0] if masters else -1)


@contextmanager
def _hooks_of(document: StateDocument) -> Iterator[Callable[[Plan], HookRunner | None]]:
    """Makes the hooks that run until the process does, where a plan has some; after a failure behind one poststop hooks run."""
    made: list[HookRunner] = []

    def make(plan: Plan) -> HookRunner | None:
        if not any(step.op in ("hook", "hook_state") for step in plan.steps):
            return None
        from ..engine.hooks import HookRunner

        # To them the container is created: what comes before hooks is done (runtime.md, Lifecycle, 2 and 3).
        made.append(HookRunner(lambda: state_of(document)._replace(status=Status.CREATED)))
        return made[0]

    try:
        yield make
    except BaseException:
        if any(hooks.begun for hooks in made):
            after_delete(document)
        raise
    finally:
        for hooks in made:
            hooks.close()


def _homely(bundle: Bundle) -> Bundle:
    """A bundle whose process has a HOME. config.json stays without it: further processes may be of another user."""
    process = bundle.spec.process
    if process is None or has_home(process):
        return bundle
    return bundle.with_process(env=(*(process.env or ()), home_of(process, bundle.rootfs)))


def listener_of(spec: RuntimeSpec) -> list[str]:
    """The seccomp agent's socket and the metadata for it, both empty where there is none."""
    seccomp = spec.linux.seccomp if spec.linux else None
    return [seccomp.listener_path or "", seccomp.listener_metadata or ""] if seccomp else ["", ""]


def to_socket(path: StrPath) -> Callable[[int], None]:
    """What sends a terminal's master to whoever listens there."""
    return lambda fd: send_fd(fd, path)


def receivers(spec: RuntimeSpec, document: StateDocument, console: Callable[[int], None]) -> dict[str, Callable[[Init, int], None]]:
    """Who gets the descriptors that the init hands out."""

    def to_agent(init: Init, fd: int) -> None:
        path, metadata = listener_of(spec)
        state = state_of(document)
        send_listener(fd, path, metadata, state._replace(pid=state.pid or init.pid), init.pid)

    return {"handout": to_agent, "console": lambda init, fd: console(fd)}


def write_pid_file(path: Path, pid: int) -> None:
    """Write a pid file, atomically. Raises OSError."""
    replace_file(path, str(pid).encode(), mode=0o666)
