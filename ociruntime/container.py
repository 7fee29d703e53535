"""`Container`: the lifecycle of a container (runtime.md, Lifecycle and Operations)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping

from .engine import cgroup
from .errors import StateError
from .execs import Executes
from .lifecycle.status import allowed, current, first_process, out_of_memory
from .state import Entry, State, StateStore, Status, check_id
from .supervised import Supervised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO, Literal, Self, TypeAlias, Unpack

    from .bundle import Bundle
    from .engine.processes import Exit
    from .events import Event
    from .lifecycle.update import Limits
    from .plan.cgroups import Manager
    from .spec import Resources, RuntimeSpec
    from .spec.base import Json
    from .stats import Stats
    from .streams import MaybeNone, Stdio, Streams
    from .supervisor.client import Supervision
    from .terminal import Terminal

    StrPath: TypeAlias = str | os.PathLike[str]
    LogFormat: TypeAlias = Literal["kubernetes", "json", "basic"]

__all__ = ["Container"]


class Container(Executes, Supervised):
    """A container, wherever it was made: all that is known of it lies in the state directory.

    Make one with `create`, find one with `load` or `list`. As a context manager it is deleted, by force, at the end, but not
    when a forked child leaves the block.

    Pickled or copied it is the id and the state directory. The other object has no streams and no terminal, and finds the same
    container, if that still exists, as one from `load` does.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._owner = os.getpid()
        self._pidfd = -1
        self._spec: tuple[int, RuntimeSpec] | None = None
        self._streams: Streams | None = None
        self.terminal: Terminal | None = None
        """The master of the container's terminal, in the object that made it with ``terminal=True``."""

    # ---- making and finding ----

    @classmethod
    def create(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: bool | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
        listen_fds: int | Sequence[str] = 0,
        notify_socket: StrPath | None = None,
        cgroup_manager: Manager = "cgroupfs",
        new_keyring: bool = True,
        die_with_parent: bool = False,
        supervise: bool = False,
        log_path: StrPath | None = None,
        log_format: LogFormat = "kubernetes",
        sync_socket: StrPath | None = None,
        empty_process: bool = False,
    ) -> Self:
        """Create a container: everything but its process (runtime.md, Create).

        Args:
            container_id: letters, digits and ``_+.-``, no leading dot.
            bundle: a `Bundle` or the path of a bundle directory.
            root: the state directory; ``/run/ociruntime`` for root by default.
            stdin, stdout, stderr: descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; our own by default.
                Our ends of pipes are the attributes of the same names.
            terminal: whether the process gets a terminal, whose master is then `terminal`; by default as ``process.terminal`` says,
                which needs ``console_socket``.
            console_socket: a listening Unix socket that gets the terminal's master, when ``process.terminal`` is true.
            pid_file: gets the pid of the container's first process.
            preserve_fds: how many descriptors from 3 on the process inherits.
            listen_fds: of descriptors from 3 on, before those to preserve, how many are sockets that the process was activated with
                (sd_listen_fds(3)), or their names: it gets LISTEN_FDS and LISTEN_PID.
            notify_socket: a NOTIFY_SOCKET of the host (sd_notify(3)). The process gets one of its own; `start` returns when it says
                READY=1 there, or ends, and passes that on. `run` does so in a thread, but waits with a supervisor.
            cgroup_manager: who makes the cgroups: ``"cgroupfs"`` (this process), ``"systemd"``, or ``"disabled"`` (nobody; the
                container stays in the caller's, and a config with limits is refused).
            new_keyring: whether its processes get a session keyring of their own instead of the caller's.
            die_with_parent: whether everything in it is killed when this process ends, however it ends. What is left is a stopped
                container, for `delete` or `prune`.
            supervise: whether it gets a supervisor, a process that owns its streams, keeps a log of what it prints, lets people
                `attach`, and knows its exit code whoever asks; its input stays open. Any of the next three asks for one.
            log_path: the log; by default one in the state directory, which keeps the last 8 to 16 MiB. ``/dev/null`` for none.
            log_format: ``kubernetes``, ``json`` or ``basic``.
            sync_socket: a listening Unix socket, which gets the state document at every change of the status.
            empty_process: whether no program runs, as in a pod: a first process that does nothing but reap what ends in the
                container, until HUP, INT or TERM. Programs come by `exec`.

        Raises:
            ContainerExists, StateError: the id is taken or not an id.
            SpecError, UnsupportedError: the config cannot be carried out.
            StepError: one step failed; nothing of the container is left.
            HookError: a hook of create failed; nothing of the container is left.
        """
        return cls._make(
            container_id,
            bundle,
            root=root,
            stdio=(stdin, stdout, stderr),
            terminal=terminal,
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            listen_fds=listen_fds,
            notify_socket=notify_socket,
            cgroup_manager=cgroup_manager,
            new_keyring=new_keyring,
            die_with_parent=die_with_parent,
            supervision=_supervision(supervise, log_path, log_format, sync_socket),
            empty_process=empty_process,
            gate=True,
        )

    @classmethod
    def run(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: bool | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
        listen_fds: int | Sequence[str] = 0,
        notify_socket: StrPath | None = None,
        cgroup_manager: Manager = "cgroupfs",
        new_keyring: bool = True,
        die_with_parent: bool = False,
        supervise: bool = False,
        log_path: StrPath | None = None,
        log_format: LogFormat = "kubernetes",
        sync_socket: StrPath | None = None,
        empty_process: bool = False,
    ) -> Self:
        """Create and start a container in one go, without the wait in between; arguments and errors as for `create`."""
        return cls._make(
            container_id,
            bundle,
            root=root,
            stdio=(stdin, stdout, stderr),
            terminal=terminal,
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            listen_fds=listen_fds,
            notify_socket=notify_socket,
            cgroup_manager=cgroup_manager,
            new_keyring=new_keyring,
            die_with_parent=die_with_parent,
            supervision=_supervision(supervise, log_path, log_format, sync_socket),
            empty_process=empty_process,
            gate=False,
        )

    @classmethod
    def _make(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None,
        stdio: tuple[Stdio, Stdio, Stdio],
        terminal: bool | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
        listen_fds: int | Sequence[str] = 0,
        notify_socket: StrPath | None = None,
        cgroup_manager: Manager,
        new_keyring: bool,
        die_with_parent: bool,
        supervision: Supervision | None,
        empty_process: bool,
        gate: bool,
    ) -> Self:
        from .interrupts import Held
        from .lifecycle.create import create
        from .streams import Streams

        with Held() as held:
            streams = Streams(*stdio)
            try:
                made = create(
                    container_id,
                    bundle,
                    root=root,
                    stdio=streams.child,
                    terminal=terminal,
                    console_socket=console_socket,
                    pid_file=pid_file,
                    preserve_fds=preserve_fds,
                    listen_fds=listen_fds,
                    notify_socket=notify_socket,
                    cgroup_manager=cgroup_manager,
                    new_keyring=new_keyring,
                    die_with_parent=die_with_parent,
                    supervision=supervision,
                    empty_process=empty_process,
                    gate=gate,
                )
            except BaseException:
                streams.close()
                raise
            streams.launched()
            container = cls(made.entry)
            container._pidfd, container._streams = made.pidfd, streams
            if made.terminal >= 0:
                from .terminal import Terminal

                container.terminal = Terminal(made.terminal)
            held.undo = container._discard
        return container

    def _discard(self) -> None:
        try:
            self.delete(force=True)
        finally:
            self._close()

    @classmethod
    def load(cls, container_id: str, *, root: StrPath | None = None) -> Self:
        """A container that exists. Raises ContainerNotFound."""
        return cls(StateStore(root).entry(container_id))

    @classmethod
    def list(cls, *, root: StrPath | None = None) -> list[Self]:
        """Every container in the state directory, by id."""
        return [cls(entry) for entry in StateStore(root).entries()]

    # ---- what it is ----

    @property
    def id(self) -> str:
        return self._entry.id

    @property
    def state(self) -> State:
        """The state now (runtime.md, State). Raises ContainerNotFound."""
        return current(self._entry.read())

    @property
    def status(self) -> Status:
        return self.state.status

    @property
    def pid(self) -> int:
        """The pid of the container's first process in our pid namespace; 0 when it has none."""
        return self.state.pid

    def __repr__(self) -> str:
        try:
            state = self.state
        except StateError:
            return f"<Container {self.id!r}: deleted>"
        return f"<Container {self.id!r}: {state.status}{f', pid {state.pid}' if state.pid else ''}>"

    # ---- its streams ----

    @property
    def stdin(self) -> IO[bytes] | MaybeNone:
        """Our end of the first process's stdin, if it was made with ``stdin=PIPE`` by this object."""
        return self._streams.file(0) if self._streams is not None else None

    @property
    def stdout(self) -> IO[bytes] | MaybeNone:
        """Our end of the first process's stdout, if it was made with ``stdout=PIPE`` by this object."""
        return self._streams.file(1) if self._streams is not None else None

    @property
    def stderr(self) -> IO[bytes] | MaybeNone:
        """Our end of the first process's stderr, if it was made with ``stderr=PIPE`` by this object."""
        return self._streams.file(2) if self._streams is not None else None

    # ---- the lifecycle ----

    def start(self) -> None:
        """Run the process of a created container (runtime.md, Start).

        Raises:
            WrongStatus: it is not ``created``.
            SpecError: its config has no process.
            StepError: a step behind the gate failed, the exec of the program for example; the container is then stopped.
            HookError: a startContainer or poststart hook failed; the container is then deleted.
        """
        from .lifecycle.start import start

        start(self._entry, self._pidfd)

    def kill(self, signal: int | str = "TERM", *, all: bool = False) -> None:
        """Send a signal to the container's first process (runtime.md, Kill), or with ``all`` to every process in it.

        Raises:
            ValueError: not a signal.
            WrongStatus: it is neither created nor running.
        """
        from .engine.processes import signal_number
        from .lifecycle.kill import kill

        kill(self._entry, signal_number(signal), all=all)

    def pause(self) -> None:
        """Freeze every process. Raises WrongStatus, UnsupportedError without a freezer."""
        with allowed(self._entry, "pause", Status.RUNNING) as document:
            cgroup.freeze(document.get("cgroups", []), True)

    def resume(self) -> None:
        """Thaw what `pause` froze. Raises WrongStatus."""
        with allowed(self._entry, "resume", Status.PAUSED) as document:
            cgroup.freeze(document.get("cgroups", []), False)

    def update(self, resources: Resources | Mapping[str, Json] | None = None, **limits: Unpack[Limits]) -> None:
        """Change limits; what is not given stays as it is. When one is refused, none has changed.

        Args:
            resources: a part of ``linux.resources`` (config-linux.md#control-groups), for what has no argument of its own.
            limits: single limits by name, see `Limits`: ``memory=64 << 20``, ``cpus=1.5``, ``pids=100``.

        Raises:
            SpecError: values that contradict each other or those that hold already.
            UnsupportedError: this host cannot keep a limit.
            WrongStatus: the container has stopped.
            StepError: the kernel refuses a value.
        """
        from .lifecycle.update import update

        update(self._entry, resources, limits)

    def stats(self) -> Stats:
        """What the container uses: CPU, memory, tasks, disks, huge pages, network interfaces and pressure, at this moment.

        Raises:
            ContainerNotFound: it was deleted.
        """
        from .lifecycle.watch import stats

        return stats(self._entry)

    def events(self, interval: float | None = None) -> Iterator[Event]:
        """What happens to the container, as it happens, up to the exit of its first process.

        Args:
            interval: seconds between ``stats`` events; none by default.

        Raises:
            WrongStatus: it has stopped.
        """
        from .lifecycle.watch import events

        return events(self._entry, self._pidfd, interval)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the first process; gives its exit code, negative for a signal, as `subprocess` does.

        None when the kernel tells the code to the parent only: the container was made by another process, before Linux 6.15.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        document = self._entry.read()
        if "exit_code" in document:
            return document["exit_code"]
        if "supervisor" in document:
            from .lifecycle.supervise import wait_recorded

            return wait_recorded(self._entry, document, self._pidfd, timeout)
        pidfd = first_process(document, self._pidfd)
        if pidfd is None:
            return None
        from .engine.processes import wait_init

        try:
            ended = wait_init(document["pid"], pidfd, timeout)
        finally:
            os.close(pidfd)
        if ended is None:
            raise TimeoutError(f"container {self.id!r} still runs after {timeout} s")
        return self._record(ended)

    def _record(self, ended: Exit) -> int | None:
        code = ended.returncode
        if code is not None:
            with self._entry.locked():
                killed = out_of_memory(self._entry.read())
                self._entry.update(exit_code=code, finished_at=time.time_ns(), oom_killed=killed)
        return code

    def delete(self, *, force: bool = False) -> None:
        """Remove what create made (runtime.md, Delete). With ``force`` it is killed first.

        Raises:
            WrongStatus: it is not stopped, and ``force`` was not given.

        A poststop hook that fails is an `OCIRuntimeWarning`.
        """
        from .lifecycle.delete import delete

        delete(self._entry, self._pidfd, force=force)
        self._close()

    @property
    def spec(self) -> RuntimeSpec:
        """The config as it was at create: what changes in the bundle later has no effect (runtime.md, Lifecycle).

        Raises:
            ContainerNotFound: it was deleted.
            StateError: it has no config (any more).
        """
        from .spec import RuntimeSpec

        path = f"{self._entry.directory}/config.json"
        try:
            which = os.stat(path).st_ino  # another one after an update
            if self._spec is None or self._spec[0] != which:
                self._spec = which, RuntimeSpec.load(path)
        except FileNotFoundError:
            self._entry.read()
            raise StateError(f"container {self.id!r} has no config: {path} is missing") from None
        return self._spec[1]

    def fileno(self) -> int:
        """The pidfd of the first process, readable when it has ended. Raises StateError for a container that others started."""
        if self._pidfd < 0:
            raise StateError(f"container {self.id!r} was not started by this object")
        return self._pidfd

    def processes(self) -> tuple[int, ...]:
        """The pids, in our pid namespace, of everything that runs in the container.

        Raises:
            UnsupportedError: it has neither cgroups nor a pid namespace of its own.
        """
        from .lifecycle.kill import processes

        return tuple(sorted(processes(self._entry.read())))

    def __reduce__(self) -> tuple[Callable[[str, str], Self], tuple[str, str]]:
        return type(self)._handle, (self.id, self._entry.root)

    @classmethod
    def _handle(cls, container_id: str, state_root: str) -> Self:
        """A handle to a container that may be gone. Raises StateError: not an id."""
        return cls(Entry(state_root, check_id(container_id)))

    def __enter__(self) -> Self:
        try:
            self._owner = os.getpid()
        except BaseException:  # an interruption: the block does not begin, so it has no end
            self._end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        from .interrupts import complete

        complete(self._delete_what_is)

    def _delete_what_is(self) -> None:
        if os.getpid() != self._owner:
            return  # a forked child leaves the block of its parent, whose container it is
        if os.path.isdir(self._entry.directory):
            self.delete(force=True)

    def _close(self) -> None:
        if self._streams is not None:
            self._streams.close()
        if self.terminal is not None:
            self.terminal.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            from .engine.processes import abandon

            abandon(pidfd)

    def __del__(self) -> None:
        # At the interpreter's end nothing can be imported any more, and the kernel closes all.
        if getattr(self, "_pidfd", -1) >= 0 and not sys.is_finalizing():
            self._close()


def _supervision(supervise: bool, log_path: StrPath | None, log_format: str, sync_socket: StrPath | None) -> Supervision | None:
    if not supervise and log_path is None and log_format == "kubernetes" and sync_socket is None:
        return None
    from .supervisor.client import Supervision
    from .supervisor.protocol import LOG_FORMATS

    if log_format not in LOG_FORMATS:
        raise ValueError(f"{log_format!r} is no format of a log: use one of {', '.join(LOG_FORMATS)}")
    return Supervision(
        os.path.abspath(log_path) if log_path is not None else None,
        log_format,
        os.path.abspath(sync_socket) if sync_socket is not None else None,
    )
