"""`Container`: the lifecycle of a container (runtime.md, Lifecycle and Operations), and further processes in it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from ._lazy import HtmlRepr
from .arguments import Duration, check_bool, check_type, parse_path, parse_timeout
from .engine import cgroup
from .engine.processes import abandon, signal_number, wait_init
from .errors import LaunchTimeout, ProcessTimeout, StateError, UnsupportedError, naming
from .interrupts import DeferredSignals, complete, uninterruptible
from .lifecycle.status import allowed, check_start, current, events, first_process, out_of_memory, stats, status_of, wait_supervised
from .store import Entry, StateStore, Status, check_id, state_document

if TYPE_CHECKING:
    from datetime import datetime

    from .bundle import Bundle
    from .engine.cgroup.stats import Stats
    from .engine.processes import Exit
    from .image import Compression
    from .lifecycle.create import Created, Supervise
    from .lifecycle.files import ContainerFiles
    from .lifecycle.snapshots import Changes, Snapshot
    from .lifecycle.update import Limits
    from .options import (
        CgroupsMode,
        CreateKeywords,
        CreateOptions,
        ExecKeywords,
        ExecOptions,
        LogFormat,
        Misspelt,
        NoKeywords,
        OutputFunction,
        PopenKeywords,
        RestoreOptions,
    )
    from .overrides import Args, Env, StrPath, UserLike
    from .plan.cgroups import Manager
    from .process import LaunchedProcess, Process, Result
    from .rootfs.layers import OwnLayers
    from .spec import ProcessSpec, Resources, RuntimeSpec
    from .spec.base import Json
    from .state import State
    from .stats import Event
    from .streams import MaybeNone, Stdio, Streams
    from .supervisor.client import Attachment
    from .supervisor.logs import LogRecord
    from .terminal import Terminal

__all__ = ["Container"]


class Container(HtmlRepr):
    """A handle to a container. Its state is in the state directory, so any process can load it.

    Make a container with `create` or `run`, find one with `load` or `list`. As a context manager it is deleted, by force, at the
    end, but not when a forked child leaves the block.

    A pickled or copied handle is the id and the state directory. It has no streams and no terminal, and finds the same container if
    that still exists, as one from `load` does.
    """

    terminal: Terminal | None = None
    """The master of the container's terminal, in the object that made the container with ``terminal=True``."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._owner = os.getpid()
        self._pidfd = -1
        self._spec: tuple[tuple[int, int], RuntimeSpec] | None = None
        self._streams: Streams | None = None
        self._layers: OwnLayers | None = None
        self._knows_layers = False

    # ---- making and finding ----

    @classmethod
    def create(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        *,
        state_root: StrPath | None = None,
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
        pivot_root: bool = True,
        die_with_parent: bool = False,
        supervise: bool = False,
        log_path: StrPath | None = None,
        log_format: LogFormat = "kubernetes",
        sync_socket: StrPath | None = None,
        empty_process: bool = False,
        **unknown: Unpack[NoKeywords],
    ) -> Self:
        """Create a container: everything but its process (runtime.md, Create).

        Args:
            container_id: letters, digits and ``_+.-``, no leading dot.
            bundle: a `Bundle` or the path of a bundle directory.
            state_root: the state directory; by default ``/run/ociruntime`` for root.
            stdin, stdout, stderr: file descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; by default the caller's.
                The other ends of pipes are the attributes of the same names.
            terminal: whether the process gets a terminal, whose master is then `terminal`. Default: as ``process.terminal`` says,
                which needs ``console_socket``.
            console_socket: a listening Unix socket that gets the master of the terminal if ``process.terminal`` is true.
            pid_file: a file that gets the pid of the init process.
            preserve_fds: the number of file descriptors from 3 on that the process inherits.
            listen_fds: the number of sockets for socket activation (sd_listen_fds(3)) among the file descriptors from 3 on, before
                those to preserve, or their names. The process gets LISTEN_FDS and LISTEN_PID.
            notify_socket: a NOTIFY_SOCKET of the host (sd_notify(3)). The process gets one of its own. `start` returns when the
                process sends READY=1 there, or has ended, and passes that on. `run` does so in a thread, but waits with a
                supervisor.
            cgroup_manager: what makes the cgroups: ``"cgroupfs"`` (this process), ``"systemd"``, or ``"disabled"``: the container
                stays in the caller's cgroups, and a configuration with limits is refused.
            new_keyring: whether its processes get a session keyring of their own instead of the caller's.
            pivot_root: whether pivot_root(2) detaches the host's tree, which a host on an initial ramfs does not allow. If false,
                the root filesystem is mounted over that tree, in which procfs and sysfs are hidden. This confines less: a process
                with CAP_SYS_ADMIN can unmount it.
            die_with_parent: whether all its processes are killed when this process ends, however it ends. A stopped container is
                left, for `delete` or `prune`.
            supervise: whether it gets a supervisor: a process that owns its streams, keeps a log of its output, lets clients
                `attach`, and knows its exit code for every process that asks. Its input stays open. Each of the next three
                arguments implies it.
            log_path: the log; by default one in the state directory that keeps the last 8 to 16 MiB. ``/dev/null`` for none.
            log_format: ``kubernetes``, ``json`` or ``basic``.
            sync_socket: a listening Unix socket that gets the state document at every change of the status.
            empty_process: whether no program runs, as in a pod: the init process only reaps processes of the container, until HUP,
                INT or TERM. Programs are started with `exec`.

        Raises:
            ContainerExists: the id is taken.
            StateError: the id is not a valid id.
            SpecError, UnsupportedError: the configuration cannot be carried out on this host.
            StepError, HookError: a step or a hook failed. In every case nothing of the container is left.
        """
        from .options import CreateKeywords, CreateOptions, check_keywords

        check_keywords("create", unknown, CreateKeywords)
        options = CreateOptions(
            state_root=state_root,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            listen_fds=listen_fds,
            notify_socket=notify_socket,
            cgroup_manager=cgroup_manager,
            new_keyring=new_keyring,
            pivot_root=pivot_root,
            die_with_parent=die_with_parent,
            supervise=supervise,
            log_path=log_path,
            log_format=log_format,
            sync_socket=sync_socket,
            empty_process=empty_process,
        )
        return cls._create(container_id, bundle, options, start=False)

    @classmethod
    def run(cls, container_id: str, bundle: Bundle | StrPath, **options: Unpack[CreateKeywords]) -> Self:
        """Create and start a container in one go, without the wait in between. Arguments and errors are those of `create`."""
        from .options import CreateKeywords, CreateOptions, check_keywords

        check_keywords("run", options, CreateKeywords)
        return cls._create(container_id, bundle, CreateOptions(**options), start=True)

    run.__func__.__wrapped__ = create.__func__  # type: ignore[attr-defined]  # the signature for inspect

    def _discard(self) -> None:
        try:
            self.delete(force=True)
        finally:
            self._close()

    @classmethod
    @naming(lambda _cls, container_id, *_, **_options: f"cannot create container {container_id!r}")
    def _create(cls, container_id: str, bundle: Bundle | StrPath, options: CreateOptions, *, start: bool) -> Self:
        from .lifecycle.create import create

        def make(opened: Bundle, stdio: Sequence[int]) -> Created:
            supervise: Supervise | None = None
            if options.supervised:
                from .supervisor import client

                supervise = client.supervise
            return create(container_id, opened, options, stdio=stdio, start=start, supervise=supervise)

        return cls._make(bundle, options, make)

    @classmethod
    @uninterruptible(undo=_discard)
    def _make(
        cls, bundle: Bundle | StrPath, options: CreateOptions | RestoreOptions, make: Callable[[Bundle, Sequence[int]], Created]
    ) -> Self:
        """Make a container with the streams of a call.

        Args:
            make: makes it, given the bundle and the file descriptors of the streams.
        """
        from .bundle import Bundle
        from .streams import Streams

        kinds = (Bundle, str, os.PathLike)
        check_type("bundle", bundle, kinds, "a Bundle or its path (Bundle.from_image() makes one of an image)")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.load(parse_path("bundle", bundle))
        streams = Streams(options.stdin, options.stdout, options.stderr)
        try:
            created = make(opened, streams.child)
        except BaseException:
            streams.close()
            raise
        streams.launched()
        container = cls(created.entry)
        container._pidfd, container._streams = created.init.pidfd, streams
        container._keep(created.spec)
        container._layers, container._knows_layers = created.layers, True
        if created.init.terminal >= 0:
            from .terminal import Terminal

            container.terminal = Terminal(created.init.terminal)
        return container

    @classmethod
    def restore(
        cls,
        container_id: str,
        bundle: Bundle | StrPath,
        image_path: StrPath,
        *,
        state_root: StrPath | None = None,
        work_path: StrPath | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        terminal: bool | None = None,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        cgroup_manager: Manager = "cgroupfs",
        tcp_established: bool = False,
        ext_unix_sk: bool = False,
        shell_job: bool = False,
        file_locks: bool = False,
        auto_dedup: bool = False,
        manage_cgroups_mode: CgroupsMode = "soft",
    ) -> Self:
        """Restore a container from the image that `checkpoint` has written. It runs. This needs root and criu.

        Args:
            container_id: the id of the restored container, which may be another one.
            bundle: a bundle with the configuration of the container and the files of its root filesystem: an image has neither.
            image_path: the directory of the image.
            state_root, pid_file, cgroup_manager: as for `create`.
            work_path: a directory for the log of criu, ``restore.log``. Default: ``image_path``.
            stdin, stdout, stderr: as for `create`. They replace the streams that were pipes or files outside of the container.
            terminal: whether the container has a terminal, whose master is then `terminal`. Default: as ``process.terminal`` says,
                which needs ``console_socket``. The terminal is restored with its settings and size, and gets a new master.
            console_socket: a listening Unix socket that gets the master if ``process.terminal`` is true.
            tcp_established: restore the established TCP connections of the image.
            ext_unix_sk, shell_job, file_locks, auto_dedup: as criu(8) describes them.
            manage_cgroups_mode: ``soft``, ``full``, ``strict`` or ``ignore``: how criu restores cgroups and their limits. The
                cgroup of the container itself is made and limited as the configuration says.

        Raises:
            ContainerExists: the id is taken.
            UnsupportedError: this is not root, criu is missing, or cannot restore the image: the message has its reason and the
                path of its log. In every case nothing of the container is left.
            SpecError, StepError, HookError: as for `run`.
        """
        from .lifecycle.checkpoint import RestoreOptions, restore

        options = RestoreOptions(
            image_path=image_path,
            state_root=state_root,
            work_path=work_path,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=terminal,
            console_socket=console_socket,
            pid_file=pid_file,
            cgroup_manager=cgroup_manager,
            tcp_established=tcp_established,
            ext_unix_sk=ext_unix_sk,
            shell_job=shell_job,
            file_locks=file_locks,
            auto_dedup=auto_dedup,
            manage_cgroups_mode=manage_cgroups_mode,
        )
        return cls._make(bundle, options, lambda opened, stdio: restore(container_id, opened, options, stdio=stdio))

    @classmethod
    def _of(cls, created: Created) -> Self:
        """Return a handle to a container that another object of this process deletes."""
        container = cls(created.entry)
        container._keep(created.spec)
        container._layers, container._knows_layers = created.layers, True
        return container

    def _keep(self, spec: RuntimeSpec) -> None:
        """Keep the configuration, so that the first exec does not read it."""
        self._spec = _version(f"{self._entry.directory}/config.json"), spec

    @classmethod
    @naming(lambda _cls, container_id, **_: f"cannot load container {container_id!r}")
    def load(cls, container_id: str, *, state_root: StrPath | None = None) -> Self:
        """Return a container that exists. Raises ContainerNotFound."""
        return cls(StateStore(state_root).entry(container_id))

    @classmethod
    def list(cls, *, state_root: StrPath | None = None) -> list[Self]:
        """Return the containers of the state directory, sorted by id."""
        return [cls(entry) for entry in StateStore(state_root).entries()]

    # ---- the state ----

    @property
    def id(self) -> str:
        """The id, unique in the state directory."""
        return self._entry.id

    @property
    def state(self) -> State:
        """The current state (runtime.md, State). Raises ContainerNotFound."""
        from .state import state_of

        return state_of(current(self._entry.read()))

    def state_document(self) -> dict[str, object]:
        """Return the current state as ``ociruntime state`` prints it, ready for `json.dumps`. Raises ContainerNotFound."""
        return state_document(current(self._entry.read()))

    @property
    def status(self) -> Status:
        """The current status. Raises ContainerNotFound."""
        return status_of(self._entry.read())

    @property
    def pid(self) -> int:
        """The pid of the init process in the caller's pid namespace; 0 if there is none. Raises ContainerNotFound."""
        return current(self._entry.read()).get("pid", 0)

    def __repr__(self) -> str:
        try:
            state = current(self._entry.read())
        except StateError:
            return f"<Container {self.id!r}: deleted>"
        pid = state.get("pid")
        return f"<Container {self.id!r}: {state['status']}{f', pid {pid}' if pid else ''}>"

    # ---- the streams ----

    @property
    def stdin(self) -> IO[bytes] | MaybeNone:
        """The file that writes to the init process's stdin, if this object made the container with ``stdin=PIPE``."""
        return self._streams.file(0) if self._streams is not None else None

    @property
    def stdout(self) -> IO[bytes] | MaybeNone:
        """The file that reads the init process's stdout, if this object made the container with ``stdout=PIPE``."""
        return self._streams.file(1) if self._streams is not None else None

    @property
    def stderr(self) -> IO[bytes] | MaybeNone:
        """The file that reads the init process's stderr, if this object made the container with ``stderr=PIPE``."""
        return self._streams.file(2) if self._streams is not None else None

    # ---- the lifecycle ----

    @naming(lambda self, *_, **_options: f"cannot start container {self.id!r}")
    def start(self) -> None:
        """Run the process of a created container (runtime.md, Start).

        Raises:
            WrongStatus: the container is not ``created``.
            SpecError: its configuration has no process.
            StepError: a step after the start failed, the exec of the program for example. The container is stopped.
            HookError: a startContainer or poststart hook failed. The container is deleted.
        """
        from .lifecycle.start import start

        start(self._entry, self._pidfd)

    @naming(lambda self, *_, **_options: f"cannot send a signal to container {self.id!r}")
    def kill(self, signal: int | str = "TERM", *, all: bool = False) -> None:
        """Send a signal to the init process (runtime.md, Kill), or with ``all`` to every process of the container.

        ``KILL`` reaches every process also if the container has no pid namespace of its own. 0 sends nothing, as in kill(2): it
        asks whether a signal could be sent.

        Raises:
            ValueError: ``signal`` is not a signal.
            WrongStatus: the container is neither created nor running.
        """

        from .lifecycle.delete import kill

        check_bool("all", all)
        kill(self._entry, signal_number(signal), all=all)

    @naming(lambda self, *_, **_options: f"cannot pause container {self.id!r}")
    def pause(self) -> None:
        """Freeze every process. Raises WrongStatus, or UnsupportedError without a freezer."""
        from .lifecycle.update import pause

        pause(self._entry)

    @naming(lambda self, *_, **_options: f"cannot resume container {self.id!r}")
    def resume(self) -> None:
        """Thaw the processes of a paused container. Raises WrongStatus."""
        with allowed(self._entry, "resume", Status.PAUSED) as document:
            cgroup.freeze(document.get("cgroups", []), False)

    @naming(lambda self, *_, **_options: f"cannot update container {self.id!r}")
    def update(self, resources: Resources | Mapping[str, Json] | None = None, **limits: Unpack[Limits]) -> None:
        """Change limits. All others stay as they are, and if one is refused, none changes.

        Args:
            resources: a part of ``linux.resources`` (config-linux.md#control-groups), for what has no argument of its own.
            limits: single limits by name, see `Limits`: ``memory=64 << 20``, ``cpus=1.5``, ``pids=100``.

        Raises:
            SpecError: values contradict each other or the current ones.
            UnsupportedError: this host cannot enforce a limit.
            WrongStatus: the container has stopped.
            StepError: the kernel refuses a value.
        """
        from .lifecycle.update import update

        update(self._entry, resources, limits)

    @naming(lambda self, *_, **_options: f"cannot checkpoint container {self.id!r}")
    def checkpoint(
        self,
        image_path: StrPath,
        *,
        work_path: StrPath | None = None,
        parent_path: StrPath | None = None,
        leave_running: bool = False,
        pre_dump: bool = False,
        tcp_established: bool = False,
        ext_unix_sk: bool = False,
        shell_job: bool = False,
        file_locks: bool = False,
        auto_dedup: bool = False,
        manage_cgroups_mode: CgroupsMode = "soft",
    ) -> None:
        """Write the processes of a running or paused container to an image, from which `restore` goes on. This needs root and criu.

        The container is stopped then. After an error it goes on as before. A signal is handled when criu has ended.

        Args:
            image_path: the directory of the image, which is made if it does not exist. It has what the processes have in memory.
            work_path: a directory for the log of criu, ``dump.log``. Default: ``image_path``.
            parent_path: the image of an earlier ``pre_dump``; only memory that has changed since is written.
            leave_running: let the container go on.
            pre_dump: only write memory, while the container goes on. It is the parent of a later image.
            tcp_established: accept established TCP connections.
            ext_unix_sk, shell_job, file_locks, auto_dedup: as criu(8) describes them.
            manage_cgroups_mode: ``soft``, ``full``, ``strict`` or ``ignore``: what criu writes of the cgroups.

        Raises:
            WrongStatus: the container is neither running nor paused.
            UnsupportedError: this is not root, criu is missing, or cannot write the container: the message has its reason and the
                path of its log. Containers with joined pid, mount, user, cgroup or time namespaces, or whose root
                filesystem is mounted in them alone cannot be written.
        """
        from .lifecycle.checkpoint import CheckpointOptions, checkpoint

        options = CheckpointOptions(
            image_path=image_path,
            work_path=work_path,
            parent_path=parent_path,
            leave_running=leave_running,
            pre_dump=pre_dump,
            tcp_established=tcp_established,
            ext_unix_sk=ext_unix_sk,
            shell_job=shell_job,
            file_locks=file_locks,
            auto_dedup=auto_dedup,
            manage_cgroups_mode=manage_cgroups_mode,
        )
        checkpoint(self._entry, self._pidfd, options)

    @naming(lambda self, *_, **_options: f"cannot read the usage of container {self.id!r}")
    def stats(self) -> Stats:
        """Return what the container uses: CPU, memory, tasks, disks, huge pages, network interfaces and pressure.

        Raises:
            ContainerNotFound: the container was deleted.
        """

        return stats(self._entry)

    def events(self, interval: Duration | None = None) -> Iterator[Event]:
        """Yield the events of the container as they happen, up to the exit of its init process.

        Args:
            interval: seconds between ``stats`` events. Default: no such events.

        Raises:
            WrongStatus: the container has stopped.
        """

        return events(self._entry, self._pidfd, interval)

    @naming(lambda self, *_, **_options: f"cannot wait for container {self.id!r}")
    def wait(self, timeout: Duration | None = None) -> int | None:
        """Wait for the end of the init process and return its exit code, negative for a signal.

        None if the exit code is not known: before Linux 6.15 the kernel tells it to the parent only, the process that created the
        container.

        Raises:
            ProcessTimeout: it still runs after ``timeout`` seconds.
            StepError: its program cannot begin within its memory limit. The container keeps running.
        """
        timeout = parse_timeout(timeout)
        document = self._entry.read()
        if "exit_code" in document:
            return document["exit_code"]
        if "supervisor" in document:
            return wait_supervised(self._entry, document, self._pidfd, timeout)
        pidfd = first_process(document, self._pidfd)
        if pidfd is None:
            return None

        try:
            ended = wait_init(document["pid"], pidfd, timeout, check_start(document))
        finally:
            os.close(pidfd)
        if ended is None:
            assert timeout is not None
            raise ProcessTimeout(f"container {self.id!r}", timeout)
        return self._record(ended)

    def _record(self, ended: Exit) -> int | None:
        code = ended.returncode
        if code is not None:
            with self._entry.locked():
                killed = out_of_memory(self._entry.read())
                self._entry.update(exit_code=code, finished_at=time.time_ns(), oom_killed=killed)
        return code

    @naming(lambda self, *_, **_options: f"cannot delete container {self.id!r}")
    def delete(self, *, force: bool = False) -> None:
        """Remove everything that create made (runtime.md, Delete). With ``force`` the container is killed first.

        A poststop hook that fails is an `OCIRuntimeWarning`.

        Raises:
            WrongStatus: the container is not stopped, and ``force`` was not given.
        """

        from .lifecycle.delete import delete

        check_bool("force", force)
        delete(self._entry, self._pidfd, force=force)
        self._close()

    @property
    def spec(self) -> RuntimeSpec:
        """The configuration as it was at create. Later changes of the bundle have no effect (runtime.md, Lifecycle).

        Raises:
            ContainerNotFound: the container was deleted.
            StateError: its configuration is missing.
        """
        from .spec import RuntimeSpec

        with self._entry.reading_config() as path:
            version = _version(path)
            if self._spec is None or self._spec[0] != version:
                self._spec = version, RuntimeSpec.load(path)
        return self._spec[1]

    def fileno(self) -> int:
        """Return the pidfd of the init process, readable when it has ended. Raises StateError: this object did not create it."""
        if self._pidfd < 0:
            raise StateError(f"container {self.id!r} was not started by this object")
        return self._pidfd

    @naming(lambda self, *_, **_options: f"cannot list the processes of container {self.id!r}")
    def processes(self) -> tuple[int, ...]:
        """Return the pids of all processes of the container, in the caller's pid namespace.

        Raises:
            UnsupportedError: the container has neither cgroups nor a pid namespace of its own.
        """

        from .lifecycle.delete import processes

        return tuple(sorted(processes(self._entry.read())))

    # ---- further processes ----

    @overload
    def exec(self, args: Args = ..., *, text: Literal[True], **options: Unpack[ExecKeywords]) -> Result[str]: ...
    @overload
    def exec(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[ExecKeywords]
    ) -> Result[str]: ...
    @overload
    def exec(self, args: Args = ..., *, errors: str, **options: Unpack[ExecKeywords]) -> Result[str]: ...
    @overload
    def exec(self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[ExecKeywords]) -> Result[bytes]: ...
    @overload
    def exec(
        self, args: Args = ..., *, input: bytes | str | None = ..., capture_output: bool = ...,
        max_output: int | str | None = ..., on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ...,
        stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ..., encoding: str | None = ...,
        errors: str | None = ..., timeout: Duration | None = ..., check: bool = ..., env: Env | None = ...,
        cwd: StrPath | None = ..., user: UserLike | None = ..., groups: Sequence[int] | None = ...,
        capabilities: Sequence[str] = ..., no_new_privileges: bool | None = ..., apparmor_profile: str | None = ...,
        selinux_label: str | None = ..., process: ProcessSpec | Mapping[str, Any] | None = ..., terminal: bool = ...,
        preserve_fds: int = ..., cgroup: str | Mapping[str, str] | None = ..., own_cgroup: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

    def exec(
        self,
        args: Args = (),
        *,
        input: bytes | str | None = None,
        capture_output: bool = False,
        max_output: int | str | None = None,
        on_stdout: OutputFunction | None = None,
        on_stderr: OutputFunction | None = None,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        timeout: Duration | None = None,
        check: bool = False,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        capabilities: Sequence[str] = (),
        no_new_privileges: bool | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        process: ProcessSpec | Mapping[str, Any] | None = None,
        terminal: bool = False,
        preserve_fds: int = 0,
        cgroup: str | Mapping[str, str] | None = None,
        own_cgroup: bool = True,
        **unknown: Misspelt,
    ) -> Result[Any]:
        """Execute a further process in the container and wait for it, as `subprocess.run` does.

        Args:
            args: the program and its arguments.
            input: bytes for stdin, or text with ``text=True``.
            capture_output: keep stdout and stderr in the result.
            max_output: bytes of each stream that are kept, or a size such as ``"16M"``. The rest is read and dropped, and the
                result is ``truncated``. Default: everything.
            on_stdout, on_stderr: functions that get all output of that stream as it comes, in parts of any length: bytes or text.
                An exception of one kills the program.
            stdin, stdout, stderr: file descriptors, files, ``subprocess.PIPE``, ``DEVNULL`` or ``STDOUT``; by default the caller's.
            text: decode the output, as ``encoding`` and ``errors`` do. Default: UTF-8, with surrogates for invalid bytes.
            timeout: seconds, or a time such as ``"90s"`` or a timedelta, until the process and every process that it has started
                are killed, and ProcessTimeout is raised.
            check: raise ProcessError if the process does not exit with 0.
            env: variables over those of the container's process: a mapping, where None removes one, or ``NAME=value`` strings.
            cwd: the working directory in the container.
            user: ``"name"``, ``"name:group"``, ``"uid:gid"``, a uid or ``(uid, gid)``; ``"caller"`` for the caller's ids.
            groups: supplementary groups instead of the user's own.
            capabilities: further capabilities, in the bounding, effective and permitted sets. Those that the container's process
                may inherit are ambient too.
            no_new_privileges, apparmor_profile, selinux_label: as in the process object (config.md, Process).
            process: a complete process object (config.md, Process) or its JSON, instead of the container's. ``args``, if not empty,
                replace its own.
            terminal: give the process a terminal. It is connected with the caller's, from the main thread, and not in a Jupyter
                kernel; or with ``capture_output`` its output is the result's stdout, and ``input`` is typed in.
            preserve_fds: the number of file descriptors from 3 on that the process inherits.
            cgroup: a cgroup below the container's own, for the process to run in: a path from there, or a path for each of some
                controllers (on v1, where every controller may have others). It must exist.
            own_cgroup: whether the process gets a cgroup of its own below that one, or a mark, by which every process that it
                starts is known. Without it, a timeout kills the exec process alone.

        Raises:
            TypeError: ``args`` is a string.
            ValueError: ``cgroup`` leads out of the container's cgroup, or names a controller that it does not have.
            FileNotFoundError: ``cgroup`` does not exist.
            UnsupportedError: ``terminal`` would connect the process with the terminal of a Jupyter server.
            WrongStatus: the container is not running: it is created, paused, about to end or stopped.
            StepError: a step failed; with errno ENOENT the program does not exist, with ENOMEM the container's memory limit is too
                small for it.
            ProcessTimeout: the process did not end within ``timeout`` seconds.
            ProcessError: with ``check``, the process did not exit with 0.
        """
        from .options import ExecKeywords, ExecOptions, check_keywords

        check_keywords("exec", unknown, ExecKeywords)
        options = ExecOptions(
            args=args,
            input=input,
            capture_output=capture_output,
            max_output=max_output,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            codec=(text, encoding, errors),
            timeout=timeout,
            check=check,
            env=env,
            cwd=cwd,
            user=user,
            groups=groups,
            capabilities=capabilities,
            no_new_privileges=no_new_privileges,
            apparmor_profile=apparmor_profile,
            selinux_label=selinux_label,
            process=process,
            terminal=terminal,
            preserve_fds=preserve_fds,
            cgroup=cgroup,
            own_cgroup=own_cgroup,
        )
        return self._exec(options)

    @naming(lambda self, *_, **_options: f"cannot run a process in container {self.id!r}")
    def _exec(self, options: ExecOptions) -> Result[Any]:
        """Execute a further process, as `exec` does."""
        from .process import Deadline, finish

        options.check_interactive()
        with DeferredSignals() as signals, options.open_streams() as streams:
            deadline = Deadline(options.timeout)
            try:
                launched = self._execute(options, streams, deadline.at)
            except LaunchTimeout as error:
                raise deadline.expired(error, streams) from error
            with closing(launched):
                if options.interactive:
                    launched.interact(signals)
                result = finish(launched, signals, options.timeout, kill=launched.kill, result=launched.result)
        if options.check:
            result.check_returncode()
        return result

    @overload
    def popen(self, args: Args = ..., *, text: Literal[True], **options: Unpack[PopenKeywords]) -> Process[str]: ...
    @overload
    def popen(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[PopenKeywords]
    ) -> Process[str]: ...
    @overload
    def popen(self, args: Args = ..., *, errors: str, **options: Unpack[PopenKeywords]) -> Process[str]: ...
    @overload
    def popen(self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[PopenKeywords]) -> Process[bytes]: ...
    @overload
    def popen(
        self, args: Args = ..., *, stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ...,
        encoding: str | None = ..., errors: str | None = ..., bufsize: int = ..., env: Env | None = ...,
        cwd: StrPath | None = ..., user: UserLike | None = ..., groups: Sequence[int] | None = ...,
        capabilities: Sequence[str] = ..., no_new_privileges: bool | None = ..., apparmor_profile: str | None = ...,
        selinux_label: str | None = ..., process: ProcessSpec | Mapping[str, Any] | None = ..., terminal: bool = ...,
        console_socket: StrPath | None = ..., pid_file: StrPath | None = ..., preserve_fds: int = ...,
        cgroup: str | Mapping[str, str] | None = ..., own_cgroup: bool = ..., **unknown: Misspelt,
    ) -> Process[Any]: ...  # fmt: skip

    def popen(
        self,
        args: Args = (),
        *,
        stdin: Stdio = None,
        stdout: Stdio = None,
        stderr: Stdio = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        bufsize: int = -1,
        env: Env | None = None,
        cwd: StrPath | None = None,
        user: UserLike | None = None,
        groups: Sequence[int] | None = None,
        capabilities: Sequence[str] = (),
        no_new_privileges: bool | None = None,
        apparmor_profile: str | None = None,
        selinux_label: str | None = None,
        process: ProcessSpec | Mapping[str, Any] | None = None,
        terminal: bool = False,
        console_socket: StrPath | None = None,
        pid_file: StrPath | None = None,
        preserve_fds: int = 0,
        cgroup: str | Mapping[str, str] | None = None,
        own_cgroup: bool = True,
        **unknown: Misspelt,
    ) -> Process[Any]:
        """Execute a further process in the container and return its `Process`, as `subprocess.Popen` does.

        Arguments and errors are those of `exec`, and:

        Args:
            bufsize: of the streams: 1 for line buffering of text, 0 for none of bytes.
            terminal: give the process a terminal, whose master is `Process.terminal`.
            console_socket: a listening Unix socket that gets the master of a terminal of the process instead.
            pid_file: a file that gets the pid of the process.
        """
        from .options import ExecOptions, PopenKeywords, check_keywords

        check_keywords("popen", unknown, PopenKeywords)
        options = ExecOptions(
            args=args,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            codec=(text, encoding, errors),
            bufsize=bufsize,
            env=env,
            cwd=cwd,
            user=user,
            groups=groups,
            capabilities=capabilities,
            no_new_privileges=no_new_privileges,
            apparmor_profile=apparmor_profile,
            selinux_label=selinux_label,
            process=process,
            terminal=terminal,
            console_socket=console_socket,
            pid_file=pid_file,
            preserve_fds=preserve_fds,
            cgroup=cgroup,
            own_cgroup=own_cgroup,
        )
        return self._open_process(options)

    @naming(lambda self, *_: f"cannot run a process in container {self.id!r}")
    @uninterruptible(undo=lambda process: process._process.discard())
    def _open_process(self, options: ExecOptions) -> Process[Any]:
        """Execute a further process and return it, as `popen` does."""
        from .process import Process

        return Process(self._popen(options))

    def _popen(self, options: ExecOptions) -> LaunchedProcess:
        streams = options.open_pipes()
        try:
            return self._execute(options, streams)
        except BaseException:
            streams.close()
            raise

    def _execute(self, options: ExecOptions, streams: Streams, deadline: float | None = None) -> LaunchedProcess:
        from .lifecycle.execute import execute
        from .process import LaunchedProcess

        launched = execute(self._entry, self.spec, options, stdio=streams.child, deadline=deadline)
        streams.launched()
        process = LaunchedProcess(launched, streams)
        if process.terminal is not None:
            streams.use_terminal(process.terminal.fileno())
        return process

    # ---- files ----

    @property
    def files(self) -> ContainerFiles:
        """The files of the running or paused container."""
        from .lifecycle.files import ContainerFiles

        return ContainerFiles(self._entry, lambda: self.spec)

    # ---- changes ----

    def changes(self) -> Changes:
        """Return what the running or paused container has changed in its root filesystem, compared with the image.

        Files with the same content and the same owner, permissions and attributes have not changed. Mount points are left out. The
        container is not paused: a program that runs may change further files meanwhile.

        Raises:
            StateError: another process has made the container, and this one does not find its layers: the upper layer is in
                memory, or the image is mounted for that process alone.
            UnsupportedError: the container has no upper layer of its own, as those of an image have, or of `Bundle.fresh`, or it is
                in a file that is kept.
            WrongStatus: it was not started, or has ended.
            OSError: the files cannot be read, or there are too many or too deep ones to keep in memory.
        """
        from .lifecycle.snapshots import changes

        return changes(self._entry, self.spec, self._own_layers())

    def diff_text(self, path: str) -> str:
        """Return how a file of the root filesystem differs from that of the image, as a unified diff; empty if it does not.

        Args:
            path: the path as in `changes`: no symbolic link in it is followed.

        Raises:
            FileNotFoundError: there is no such file, and there was none.
            OSError: it is not a text, is larger than 16 MiB, or has more than a million lines. And as for `changes`.
        """
        from .lifecycle.snapshots import diff_text

        return diff_text(self._entry, self.spec, self._own_layers(), path)

    def snapshot(self) -> Snapshot:
        """Copy what the container has changed, as a `Snapshot` from which new containers start.

        Its processes are frozen meanwhile. Files share their content with the copy where the filesystem can do that. Owners,
        attributes, holes and hard links are kept.

        Raises:
            UnsupportedError: programs run in it, and cannot be frozen without a cgroup. And as for `changes`.
        """
        from .lifecycle.snapshots import snapshot

        return snapshot(self._entry, self.spec, self._own_layers())

    def commit(
        self,
        target: StrPath,
        *,
        image: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        compression: Compression = "gzip",
        overwrite: bool = False,
    ) -> None:
        """Make a SIF file of the image of the container with what it has changed. The configuration of the image is kept.

        Args:
            target: the file to write; it appears when it is complete.
            image: the image that the container was made of. Default: that of the bundle, with the configuration of the bundle. It
                is needed where the rootfs of the bundle is empty, because its containers mount the image.
            labels: labels beside those of the image, which they replace.
            compression: as for `oci.build`.
            overwrite: replace a file that exists.

        Raises:
            BundleError: ``image`` is needed.
            ImageError, FileExistsError, OSError: as for `oci.build`. And as for `snapshot`.
        """
        with self.snapshot() as snapshot:
            snapshot.commit(target, image=image, labels=labels, compression=compression, overwrite=overwrite)

    def _own_layers(self) -> OwnLayers:
        layers = self._layers if self._knows_layers else self._find_layers()
        if layers is None:
            raise UnsupportedError(
                f"container {self.id!r} has no upper layer of its own, or it is in a file that is kept: run it from an image or "
                "from a bundle with Bundle.fresh()"
            )
        return layers

    def _find_layers(self) -> OwnLayers | None:
        """Return the layers of a container that another object has made. Raises StateError."""
        from .bundle import Bundle
        from .lifecycle.snapshots import recorded_layers
        from .rootfs.layers import OwnLayers

        found = recorded_layers(self._entry)
        if found is None:
            return None
        upper, *lowers = found.paths
        layers = found._replace(lowers=tuple(lowers))
        bundle = Bundle._of_layers(Path(self._entry.read()["bundle"]), self.spec, layers)
        return OwnLayers(bundle, layers, upper, None)

    # ---- supervised containers ----

    def attach(self, *, stderr: bool = False) -> Attachment:
        """Connect to the container's streams, as one of several clients. A created container prints nothing until it starts.

        Args:
            stderr: whether stderr comes separately, as `Attachment.stderr`.

        Raises:
            WrongStatus: the container has ended, or is still being created.
            StateError: it has no supervisor, or the supervisor has ended or has too many clients.
        """
        from .supervisor.client import attach

        check_bool("stderr", stderr)
        return attach(self._entry, stderr=stderr)

    def logs(
        self,
        *,
        follow: bool = False,
        since: datetime | int | None = None,
        tail: int | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
    ) -> Iterator[LogRecord]:
        """Yield the entries of the container's log.

        Args:
            follow: wait for further entries until the container has ended.
            since: the earliest time, as a `datetime` or in Unix nanoseconds.
            tail: the number of last lines to begin with. Default: all lines.
            stream: only entries of this stream.

        Raises:
            StateError: the container has no log, or it cannot be read.
            ValueError: ``tail`` or ``stream`` is not valid.
        """
        from .supervisor.logs import logs

        return logs(self._entry, follow=follow, since=since, tail=tail, stream=stream)

    def reopen_log(self) -> None:
        """Open the log again by its name, after it was renamed for rotation.

        Raises:
            WrongStatus: the container has ended.
            StateError: it has no supervisor, or the supervisor has ended or cannot open the log.
        """
        from .supervisor.logs import reopen_log

        reopen_log(self._entry)

    # ---- the handle ----

    def __reduce__(self) -> tuple[Callable[[str, str], Self], tuple[str, str]]:
        return type(self)._handle, (self.id, self._entry.root)

    @classmethod
    def _handle(cls, container_id: str, state_root: str) -> Self:
        """Return a handle to a container that may no longer exist. Raises StateError for an invalid id."""
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
        self._layers = None
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            abandon(pidfd)

    def __del__(self) -> None:
        # While the interpreter exits nothing can be imported, and the kernel closes the descriptors.
        if getattr(self, "_pidfd", -1) >= 0 and not sys.is_finalizing():
            self._close()


def _version(path: str) -> tuple[int, int]:
    """Return what changes when a file is replaced: its inode, which a later file may get again, and its time. Raises OSError."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns
