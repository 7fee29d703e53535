"""`Container`: the lifecycle of a container (runtime.md, Lifecycle and Operations)."""

from __future__ import annotations

import os
import signal as _signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from .engine import cgroup
from .engine.processes import Exit, open_process, signal_number, wait
from .errors import StateError, UnsupportedError, WrongStatus
from .state import Entry, State, StateDocument, StateStore, Status, start_time, state_of

if TYPE_CHECKING:
    import socket

    from .bundle import Bundle
    from .engine.perform import Performance
    from .process import Process as Child
    from .process import Result
    from .spec import Process, RuntimeSpec

__all__ = ["Container"]

StrPath = str | os.PathLike[str]


class Container:
    """A container, wherever it was made: all that is known of it lies in the state directory.

    Make one with `create`, find one with `load` or `list`. As a context manager it is deleted, by force, at the end.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._pidfd = -1

    # ---- making and finding ----

    @classmethod
    def create(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
    ) -> Self:
        """Create a container: everything but its process (runtime.md, Create).

        Args:
            container_id: letters, digits and ``_+.-``, no leading dot.
            bundle: a `Bundle` or the path of a bundle directory.
            root: the state directory; ``/run/ociruntime`` for root by default.
            stdin, stdout, stderr: descriptors for the process; this process's own by default.
            console_socket: a listening Unix socket that gets the terminal's master, when ``process.terminal`` is true.
            pid_file: gets the pid of the container's first process.
            preserve_fds: how many descriptors from 3 on the process inherits.

        Raises:
            ContainerExists, StateError: the id is taken or not an id.
            SpecError, UnsupportedError: the config cannot be carried out.
            StepError: one step failed; nothing of the container is left.
        """
        return cls._make(
            container_id,
            bundle,
            root=root,
            stdio=(stdin, stdout, stderr),
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            gate=True,
        )

    @classmethod
    def run(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
    ) -> Self:
        """Create and start a container in one go, without the wait in between; arguments and errors as for `create`."""
        return cls._make(
            container_id,
            bundle,
            root=root,
            stdio=(stdin, stdout, stderr),
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            gate=False,
        )

    @classmethod
    def _make(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        root: StrPath | None,
        stdio: tuple[int | None, int | None, int | None],
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
        gate: bool,
    ) -> Self:
        from .bundle import Bundle
        from .engine.perform import Performance

        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        store = StateStore(root)
        plan = opened.plan(container_id=container_id, gate=gate)
        if plan.terminal and console_socket is None:
            raise UnsupportedError("$.process.terminal: a terminal needs a console socket to send it to")
        if console_socket is not None and not plan.terminal:
            raise UnsupportedError("a console socket is given, but $.process.terminal is not true")
        if preserve_fds < 0:
            raise ValueError(f"preserve_fds is {preserve_fds}, not a count")
        entry = store.create(container_id)
        try:
            parents = cgroup.survey(plan.cgroups)
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
            "cgroup_parents": parents,
            "namespaces": plan.namespaces,
            "rootfs": str(opened.rootfs),
            "total": len(plan.steps),
        }
        performance: Performance | None = None
        listener: socket.socket | None = None
        try:
            entry.write(document)  # from here on a crash leaves something that delete --force can clean up
            (entry.path / "config.json").write_bytes(opened.config_bytes)
            if gate:
                listener = _listen(entry)
                names = [step.op for step in plan.steps]
                after = names.index("gate") + 1
                document["steps"] = [[n, s.op, s.text] for n, s in enumerate(plan.steps[after:], after + 1)]
            performance = Performance(
                plan,
                stdio=[fd if fd is not None else i for i, fd in enumerate(stdio)],
                gate=listener.fileno() if listener else -1,
                preserve=preserve_fds,
                parents=parents,
                cache=store.root / ".seccomp",
                on_console=(lambda fd: _send_console(fd, str(console_socket))) if console_socket is not None else None,
            )
            init = performance.begin()
            document["pid"], document["pid_start"] = init.pid, start_time(init.pid)
            document["status"] = Status.CREATED if gate else Status.RUNNING
            if not gate:
                document["started_at"] = time.time_ns()
            entry.write(document)
            if pid_file is not None:
                _write_pid_file(Path(pid_file), init.pid)
            performance.finish()
        except BaseException:
            try:
                if performance is not None:
                    performance.abort()
            finally:
                entry.remove()
            raise
        finally:
            if listener:
                listener.close()
        container = cls(entry)
        container._pidfd = os.dup(init.pidfd)
        init.close()
        return container

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
        return self._state(self._entry.read())

    def _state(self, document: StateDocument) -> State:
        frozen = document["status"] == Status.RUNNING and cgroup.frozen(document.get("cgroups", []))
        return state_of(document, frozen=frozen)

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

    # ---- the lifecycle ----

    @contextmanager
    def _in(self, operation: str, *allowed: Status) -> Iterator[StateDocument]:
        """Under the lock, with the status checked."""
        with self._entry.locked():
            document = self._entry.read()
            status = self._state(document).status
            if status not in allowed:
                raise WrongStatus(self.id, operation, status, " or ".join(allowed))
            yield document

    def start(self) -> None:
        """Run the process of a created container (runtime.md, Start).

        Raises:
            WrongStatus: it is not ``created``.
            StepError: a step behind the gate failed, the exec of the program for example; the container is then stopped.
        """
        with self._in("start", Status.CREATED) as document:
            failure = _open_gate(self._entry, document)
            if failure is not None:
                self._wait_gone(document)
                raise failure
            self._entry.write({**document, "status": Status.RUNNING, "started_at": time.time_ns()})

    def _wait_gone(self, document: StateDocument) -> None:
        pidfd = self._open(document)
        if pidfd is not None:
            try:
                wait(pidfd, 5)
            finally:
                os.close(pidfd)

    def _open(self, document: StateDocument) -> int | None:
        if self._pidfd >= 0:
            return os.dup(self._pidfd)
        pid = document.get("pid", 0)
        return open_process(pid, document.get("pid_start", 0)) if pid else None

    def kill(self, signal: int | str = "TERM", *, all: bool = False) -> None:
        """Send a signal to the container's first process (runtime.md, Kill), or with ``all`` to every process in it.

        Raises:
            ValueError: not a signal.
            WrongStatus: it is neither created nor running.
        """
        number = signal_number(signal)
        document = self._entry.read()
        status = self._state(document).status
        if all:
            self._kill_all(document, number)
            return
        if not status.can_kill:
            raise WrongStatus(self.id, "kill", status, "created or running")
        pidfd = self._open(document)
        try:
            if pidfd is None:
                raise WrongStatus(self.id, "kill", Status.STOPPED, "created or running")
            _signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            raise WrongStatus(self.id, "kill", Status.STOPPED, "created or running") from None
        finally:
            if pidfd is not None:
                os.close(pidfd)
        if status is Status.PAUSED and number == _signal.SIGKILL:
            cgroup.freeze(document.get("cgroups", []), False)  # a frozen process on v1 dies only when it thaws

    def _kill_all(self, document: StateDocument, number: int) -> None:
        if number == _signal.SIGKILL:
            cgroup.kill(document.get("cgroups", []))
            return
        for pid in cgroup.processes(document.get("cgroups", [])):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def pause(self) -> None:
        """Freeze every process. Raises WrongStatus, UnsupportedError without a freezer."""
        with self._in("pause", Status.RUNNING) as document:
            cgroup.freeze(document.get("cgroups", []), True)

    def resume(self) -> None:
        """Thaw what `pause` froze. Raises WrongStatus."""
        with self._in("resume", Status.PAUSED) as document:
            cgroup.freeze(document.get("cgroups", []), False)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end of the first process; gives its exit code, negative for a signal, as `subprocess` does.

        None when the kernel tells the code to the parent only: the container was made by another process, before Linux 6.15.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        document = self._entry.read()
        if "exit_code" in document:
            return document["exit_code"]
        pidfd = self._open(document)
        if pidfd is None:
            return None
        try:
            ended = wait(pidfd, timeout)
        finally:
            os.close(pidfd)
        if ended is None:
            raise TimeoutError(f"container {self.id!r} still runs after {timeout} s")
        return self._record(ended)

    def _record(self, ended: Exit) -> int | None:
        code = ended.returncode
        if code is not None:
            with self._entry.locked():
                self._entry.update(exit_code=code, finished_at=time.time_ns())
        return code

    def delete(self, *, force: bool = False) -> None:
        """Remove what create made (runtime.md, Delete). A created container is killed first; a running one only by ``force``.

        Raises:
            WrongStatus: it still runs, and ``force`` was not given.
        """
        with self._entry.locked():
            try:
                document = self._entry.read()
                status = self._state(document).status
            except StateError:
                if not force:
                    raise
                document, status = StateDocument(id=self.id, bundle="", status=Status.STOPPED), Status.STOPPED
            if not force and not status.can_delete:
                raise WrongStatus(self.id, "delete", status, "stopped")
            cgroups = document.get("cgroups", [])
            pidfd = self._open(document)
            if pidfd is not None:
                try:
                    if status is Status.PAUSED:
                        cgroup.freeze(cgroups, False)
                    try:
                        _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
                    except ProcessLookupError:
                        pass  # it ended by itself
                    if wait(pidfd, 10) is None:
                        raise TimeoutError(f"container {self.id!r} did not die within 10 s of SIGKILL")
                finally:
                    os.close(pidfd)
            cgroup.kill(cgroups)
            cgroup.remove(reversed(cgroups))
            cgroup.remove_parents(reversed(document.get("cgroup_parents", [])))
            self._entry.remove()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    # ---- further processes ----

    def exec(
        self,
        args: Sequence[str],
        *,
        input: bytes | str | None = None,
        capture_output: bool = False,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        text: bool = False,
        timeout: float | None = None,
        check: bool = False,
        env: Sequence[str] | None = None,
        cwd: str | None = None,
        user: tuple[int, int] | None = None,
        process: Process | None = None,
        preserve_fds: int = 0,
    ) -> Result:
        """Run a further program in a running container and wait for it, as `subprocess.run` does.

        Args:
            args: the program and its arguments; environment, user and limits are those of the container's process.
            env: further ``NAME=value`` entries.
            process: a complete process object instead (config.md, Process); ``args``, when not empty, replace its own.

        Raises:
            WrongStatus: the container is not running.
            StepError: a step failed; with errno ENOENT the program is not there.
            ProcessError: with ``check``, when the program does not end with 0.
        """
        from .process import Streams, finish

        with Streams(input, capture_output, (stdin, stdout, stderr)) as streams:
            child = self.popen(
                args,
                stdin=streams.child[0],
                stdout=streams.child[1],
                stderr=streams.child[2],
                env=env,
                cwd=cwd,
                user=user,
                process=process,
                preserve_fds=preserve_fds,
            )
            return finish(child, streams, timeout=timeout, text=text, check=check)

    def popen(
        self,
        args: Sequence[str] = (),
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Sequence[str] | None = None,
        cwd: str | None = None,
        user: tuple[int, int] | None = None,
        process: Process | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
    ) -> Child:
        """Start a further program in a running container and give its `ociruntime.process.Process`.

        Arguments and errors are those of `exec`; stdin, stdout and stderr are descriptors, this process's own by default. With
        ``console_socket`` the program gets a terminal, whose master is sent there.
        """
        from .engine.perform import Performance
        from .host import Host
        from .plan.compile import compile_exec
        from .process import Process as Child
        from .process import exec_process

        if isinstance(args, str | bytes):
            raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
        document = self._entry.read()
        status = self._state(document).status
        if not status.can_exec:
            raise WrongStatus(self.id, "exec in", status, "running")
        spec = self.spec
        wanted = exec_process(process or spec.process, args, env, cwd, user, terminal=console_socket is not None)
        plan = compile_exec(
            wanted,
            spec,
            Host.probe(),
            namespaces=document.get("namespaces", 0),
            cgroups=tuple(document.get("cgroups", [])),
            container_id=self.id,
        )
        pidfd = self._open(document)
        if pidfd is None:
            raise WrongStatus(self.id, "exec in", Status.STOPPED, "running")
        try:
            performance = Performance(
                plan,
                stdio=[fd if fd is not None else i for i, fd in enumerate((stdin, stdout, stderr))],
                pidfd=pidfd,
                preserve=preserve_fds,
                cache=self._entry.path.parent / ".seccomp",
                on_console=(lambda fd: _send_console(fd, str(console_socket))) if console_socket is not None else None,
            )
            init = performance.begin()
            try:
                if pid_file is not None:
                    _write_pid_file(Path(pid_file), init.pid)
            except BaseException:
                performance.abort()
                raise
            performance.finish()
        finally:
            os.close(pidfd)
        return Child(tuple(wanted.args or ()), init)

    @property
    def spec(self) -> RuntimeSpec:
        """The config as it was at create: what changes in the bundle later has no effect (runtime.md, Lifecycle)."""
        from .spec import RuntimeSpec

        return RuntimeSpec.load(self._entry.path / "config.json")

    def fileno(self) -> int:
        """The pidfd of the first process, readable when it has ended. Raises StateError for a container that others started."""
        if self._pidfd < 0:
            raise StateError(f"container {self.id!r} was not started by this object")
        return self._pidfd

    def processes(self) -> tuple[int, ...]:
        """The pids, in our pid namespace, of everything that runs in the container."""
        return tuple(sorted(cgroup.processes(self._entry.read().get("cgroups", []))))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._entry.path.is_dir():
            self.delete(force=True)

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            os.close(self._pidfd)


def _listen(entry: Entry) -> socket.socket:
    import socket

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    directory = os.open(entry.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{directory}/start.sock")  # a path of its own may be longer than an address
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def _open_gate(entry: Entry, document: StateDocument) -> Exception | None:
    """Connect to the gate and follow the init until it is the process; gives the step that failed, if one did."""
    import socket

    from .engine.launch import receive
    from .engine.perform import make_error
    from .plan.ops import Report

    directory = os.open(entry.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as peer:
            try:
                peer.connect(f"/proc/self/fd/{directory}/start.sock")
            except (ConnectionRefusedError, FileNotFoundError):
                raise WrongStatus(entry.id, "start", "no longer waiting for a start", Status.CREATED) from None
            message = receive(peer)
    finally:
        os.close(directory)
    if message is None:
        return None
    if message.kind is not Report.ERROR:
        raise AssertionError(f"unexpected {message.kind.name} behind the gate")
    op, text = next(((str(op), str(text)) for n, op, text in document.get("steps", []) if n == message.step), ("?", "?"))
    return make_error(message.step, document.get("total", 0), op, text, message.value, message.words)


def _send_console(master: int, path: str) -> None:
    import socket

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.connect(path)
            socket.send_fds(peer, [b"/dev/ptmx"], [master])
    finally:
        os.close(master)


def _write_pid_file(path: Path, pid: int) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(str(pid))
    temporary.rename(path)
