"""Creating a container: everything but its process (runtime.md, Create).

What the launch of an exec process shares with it is here too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

import attrs

from .._native import clone
from ..engine import networks, undo
from ..engine.execution import Execution
from ..engine.hooks import HookRunner
from ..engine.launch import Preserved, inherited, listen_start
from ..errors import UnsupportedError, warn
from ..files import Descriptor, StagedFile, read_mounts, replace_file, start_time
from ..host import Host
from ..interrupts import uninterruptible, waiting
from ..overrides import Overrides
from ..plan.ops import CLONE_NEW
from ..rootfs.bundles import in_use
from ..rootfs.layers import OwnLayers, OwnRoot, make_upper
from ..rootfs.mount import ephemeral_name
from ..rootfs.users import Caller, env_with_home
from ..spec import Mount
from ..store import NOTIFY, Entry, StateRecord, StateStore, Status, oci_state
from .delete import after_delete, delete, living
from .start import Ready, after_start, send_fd, send_listener
from .status import recording

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..engine.cgroup.tasks import Group
    from ..engine.launch import Init
    from ..options import CreateOptions
    from ..plan import Plan
    from ..spec import RuntimeSpec
    from ..stats import Recorder
    from ..supervisor.client import Supervisor


# ---- preparing: everything that changes the configuration is resolved here, and nowhere later ----


@attrs.frozen
class EphemeralBundle:
    """A bundle that is made for one container and removed with it. Its path is recorded before it exists."""

    path: Path
    make: Callable[[], Bundle]
    """Makes the bundle. Raises SifError, BundleError, OSError: what exists of it is removed by `undo`."""

    @property
    def undo(self) -> list[str]:
        """The action that removes the bundle (see `ociruntime.engine.undo`)."""
        return ["bundle", str(self.path)]


def prepare(bundle: Bundle, options: CreateOptions, entry: Entry, *, own: OwnRoot | None = None) -> Prepared:
    """Resolve everything that changes the configuration of a container: terminal, user, socket activation and HOME.

    Args:
        bundle: the bundle, with the overrides of the call.
        entry: the container's state directory, where the files are that the container gets: passwd and group with the caller, and
            the socket for the readiness notification.
        own: the layers of its root filesystem, if it has an upper layer of its own.

    Raises:
        SpecError: the configuration is not valid.
        BundleError: an option changes the process, and the configuration has none; or the container's passwd or group is not valid.
    """
    if options.terminal is not None:
        bundle = bundle.with_process(terminal=options.terminal)
    launched = with_caller(bundle, entry) if bundle._has_caller else bundle
    if bundle._network:
        launched = with_network(launched, entry)
    if bundle.spec.process is not None:
        if options.listen_fds or options.notify_socket:
            launched = activate(launched, entry, options.listen_fds, options.notify_socket)
        process = launched.spec.process
        if process is not None and (env := env_with_home(process, launched._container_root())) is not process.env:
            launched = launched.with_process(env=env)
    return Prepared(bundle=bundle, launched=launched, options=options, own=own)


@attrs.frozen(kw_only=True)
class Prepared:
    """A container whose configuration is complete."""

    bundle: Bundle
    """The bundle with the configuration that is recorded, which further processes get too."""
    launched: Bundle
    """The bundle with the configuration of this launch: with HOME and what socket activation adds."""
    options: CreateOptions
    own: OwnRoot | None = None
    """The layers of its root filesystem, if it has an upper layer of its own."""

    def mount(self, source: str) -> int:
        """Return a detached mount of the image for the container, as `Layers.mount` does. Raises OSError."""
        assert self.own is not None, "the plan has a mount of the image"
        return self.own.layers.mount(source)

    def compile(self, container_id: str, *, start: bool) -> Plan:
        """Compile the plan that creates the container on this host.

        Args:
            start: whether the process runs at once, instead of waiting for `start`.

        Raises:
            SpecError: the configuration contradicts itself or asks for what no host can do.
            UnsupportedError: this host cannot carry it out, or a terminal has no receiver.
        """
        options = self.options
        host = Host.probe()
        plan = self.launched._plan(
            host=host if options.new_keyring else attrs.evolve(host, keyrings=False),
            container_id=container_id,
            gate=not start,
            cgroup_manager=options.cgroup_manager,
            die_with_parent=options.die_with_parent,
            empty_process=options.empty_process,
            own=self.own,
            uncovered=None if options.pivot_root else _whole_kernel_mounts(),
        )
        check_receiver(options, terminal=plan.terminal, receivers="console_socket, supervise=True or terminal=True")
        return plan


def check_receiver(options: CreateOptions, *, terminal: bool, receivers: str) -> None:
    """Raise UnsupportedError if a terminal has no receiver, or a receiver no terminal.

    Args:
        receivers: the arguments of the call that give a receiver, for the error.
    """
    if terminal and not (options.console_socket is not None or options.terminal or options.supervised):
        raise UnsupportedError(f"$.process.terminal needs a receiver: give {receivers}")
    if options.console_socket is not None and not terminal:
        raise UnsupportedError("console_socket is given, but $.process.terminal is not true")


def _whole_kernel_mounts() -> list[str]:
    """Return where procfs and sysfs are mounted with their root directory: each place once, and before those above it."""
    points = {mount.point for mount in read_mounts() if mount.fstype in ("proc", "sysfs") and mount.root == "/"}
    return sorted(points, reverse=True)


# ---- the caller as a user ----


def with_caller(bundle: Bundle, entry: Entry) -> Bundle:
    """Return the bundle with read-only mounts of passwd and group that have the caller's lines too. The image does not change.

    Raises:
        BundleError: a file of the container is not valid.
        StateError: a file cannot be written.
    """
    accounts = Caller.current().accounts(bundle._container_root())
    return bundle.with_overrides(Overrides(mounts=[_file(entry, f"/etc/{name}", content) for name, content in accounts.items()]))


def _file(entry: Entry, destination: str, content: bytes) -> Mount:
    """Make a file in the state directory of a container, and return its mount. Raises StateError: it cannot be written."""
    name = os.path.basename(destination)
    entry.save(name, content)
    (entry.path / name).chmod(0o644)  # whatever the umask
    return _bind(str(entry.path / name), destination)


def _bind(source: str, destination: str) -> Mount:
    return Mount(destination=destination, type="bind", source=source, options=("bind", "ro", "nosuid", "nodev", "noexec"))


# ---- the network ----


def with_network(bundle: Bundle, entry: Entry) -> Bundle:
    """Return the bundle with read-only mounts of resolv.conf and hosts, as its network needs them. The image does not change.

    Raises:
        UnsupportedError: this host has no program for a private network.
        StateError: a file cannot be written.
    """
    files, private = bundle._network_files, None
    if bundle._network == "private":
        private = networks.private_network(bundle._ports)
        hostname = bundle.spec.hostname or os.uname().nodename  # which a new UTS namespace begins with
        contents = {networks.RESOLV_CONF: networks.resolv_conf(private), networks.HOSTS: networks.hosts(hostname)}
        mounts = [_file(entry, path, contents[path].encode()) for path in files]
    elif bundle._network == "none":
        mounts = [_file(entry, path, networks.hosts().encode()) for path in files if path == networks.HOSTS]
    else:
        mounts = [_bind(path, path) for path in files if os.path.isfile(path)]
    launched = bundle.with_overrides(Overrides(mounts=mounts)) if mounts else bundle
    if private is not None:
        launched = launched._with_spec(launched.spec)
        launched._private = private
    return launched


# ---- socket activation and the readiness notification ----

_ABSTRACT: Final = "/run/notify"
"""Path of the socket in the container when the host's socket is abstract, or has a long path."""
_LONGEST_ADDRESS: Final = 107
"""Bytes of the path in the address of a Unix socket (unix(7))."""


def activate(bundle: Bundle, entry: Entry, listen_fds: int | Sequence[str], notify_socket: str | None) -> Bundle:
    """Return the bundle with the environment and mount for socket activation and the readiness notification.

    Args:
        entry: the container's state directory.
        listen_fds: the number of sockets, or their names.
        notify_socket: the host's socket.
    """
    if listen_fds:
        bundle = _with_sockets(bundle, listen_fds)
    return _with_notify_socket(bundle, entry, notify_socket) if notify_socket else bundle


def _with_sockets(bundle: Bundle, listen_fds: int | Sequence[str]) -> Bundle:
    linux = bundle.spec.linux
    if not any(space.type == "pid" and not space.path for space in (linux.namespaces if linux else None) or ()):
        warn(["LISTEN_PID is 1, which the process is in a pid namespace of its own only: without one it may not take its sockets"])
    count, names = (listen_fds, None) if isinstance(listen_fds, int) else (len(listen_fds), ":".join(listen_fds))
    return bundle.with_overrides(Overrides(env={"LISTEN_FDS": str(count), "LISTEN_PID": "1", "LISTEN_FDNAMES": names}))


def _with_notify_socket(bundle: Bundle, entry: Entry, notify_socket: str) -> Bundle:
    # The program in the container needs a path that fits an address.
    fits = notify_socket.startswith("/") and len(os.fsencode(f"{notify_socket}/{NOTIFY}")) <= _LONGEST_ADDRESS
    directory, destination = entry.path / NOTIFY, notify_socket if fits else _ABSTRACT
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask
    options = ("bind", "ro", "nosuid", "nodev", "noexec")
    mount = Mount(destination=destination, type="bind", source=str(directory), options=options)
    return bundle.with_overrides(Overrides(env={"NOTIFY_SOCKET": f"{destination}/{NOTIFY}"}, mounts=(mount,)))


# ---- creating ----

_HOOKS: Final = frozenset({"hook", "hook_state"})
"""Operations of a plan with hooks."""
OWN_STREAMS: Final = (0, 1, 2)
"""The file descriptors of the caller's own stdin, stdout and stderr."""


class Supervise(Protocol):
    """Starts the supervisor of a container: `ociruntime.supervisor.client.supervise`."""

    def __call__(
        self,
        entry: Entry,
        document: StateRecord,
        spec: RuntimeSpec,
        options: CreateOptions,
        /,
        *,
        terminal: bool,
        preserve: Preserved,
    ) -> Supervisor: ...


@attrs.frozen(kw_only=True)
class Launched:
    """A process in a container that has just been launched."""

    args: tuple[str, ...]
    pid: int
    pidfd: int
    init_pid: int
    """The pid of the container's init process."""
    steps: int
    """The number of steps of its plan. The last one executes the program."""
    began: float
    """When the launch began, by `time.monotonic`."""
    cgroups: Sequence[str] = ()
    """Directories of the container's cgroups."""
    oom_kills: int = 0
    """OOM kills in the container before the launch."""
    group: Group | None = None
    """All processes that the process starts, if they are to be known."""
    terminal: int = -1
    """File descriptor of the master of its terminal, if the caller gets it."""


@attrs.frozen(kw_only=True)
class Created:
    """A container that has been created."""

    entry: Entry
    document: StateRecord
    init: Launched
    """Its init process."""
    spec: RuntimeSpec
    """The configuration that is recorded, which further processes get too."""
    own_pids: bool
    """Whether it has a pid namespace of its own."""
    layers: OwnLayers | None = None
    """The layers of its root filesystem, if it has an upper layer of its own."""

    def discard(self) -> None:
        """Delete the container by force, and close what is open here."""
        try:
            delete(self.entry, self.init.pidfd, force=True)
        finally:
            if self.layers is not None:
                self.layers.close()
            os.close(self.init.pidfd)
            if self.init.terminal >= 0:
                os.close(self.init.terminal)


@uninterruptible(undo=Created.discard)
def create(
    container_id: str,
    bundle: Bundle | EphemeralBundle,
    options: CreateOptions,
    *,
    stdio: Sequence[int] = OWN_STREAMS,
    start: bool = False,
    supervise: Supervise | None = None,
    ephemeral: bool = False,
    deadline: float | None = None,
    recorder: Recorder | None = None,
    store: StateStore | None = None,
) -> Created:
    """Create a container. Errors are those of `Container.create`; after each, nothing of the container is left.

    Args:
        stdio: file descriptors for its stdin, stdout and stderr.
        start: whether its process runs at once, instead of waiting for `start`.
        supervise: starts its supervisor, if it gets one.
        ephemeral: whether the container is to be removed when its caller has ended (see `ociruntime.lifecycle.prune`).
        deadline: when to give the launch up, by `time.monotonic`.
        recorder: notes the times of the steps for the operation that this is a part of.
        store: that of ``options``, if the caller has it.
    """
    preserve = inherited(options.preserve_fds + options.listen_count)
    with recording("create", container_id, recorder) as recorder:
        with Creation(store or StateStore(options.state_root), container_id, bundle.path, options, start=start) as creation:
            if ephemeral:
                creation.document["ephemeral"] = True
            opened, own = creation.open(bundle)
            if opened._has_caller or opened._network or options.notify_socket:
                # `prepare` makes files. A directory that has files but no state is not taken for that of a container.
                creation.entry.begin(creation.document)
            prepared = prepare(opened, options, creation.entry, own=own)
            if recorder is not None:
                recorder.container_id = container_id
                recorder.mark("compile", "the plan")
            plan = prepared.compile(container_id, start=start)
            if recorder is not None:
                recorder.use(plan := plan.profiled())
                recorder.mark("record", "the state of the container, the root filesystem for it")
            creation.record(plan, prepared)
            execution = creation.launch(plan, prepared, stdio, preserve, supervise, deadline, recorder=recorder)
            warn(plan.warnings)  # not before: what fails has an error, which they would bury
            creation.commit(execution)
        return creation.follow_up(execution, prepared)


class CleanUps(ExitStack):
    """The clean-ups of a launch: those of `callback` always run, those of `on_failure` if an exception leaves the block."""

    def on_failure(self, function: Callable[..., object], *args: object) -> None:
        """Call a function at the end of the block, if an exception leaves it."""

        def clean_up(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
            if error is not None:
                function(*args)

        self.push(clean_up)


class Creation:
    """A container that is being created, in a block that holds its lock. An exception in the block removes all of it.

    The state is written before each change that it describes, so that ``delete --force`` can undo what a crash leaves.
    """

    def __init__(self, store: StateStore, container_id: str, bundle: Path, options: CreateOptions, *, start: bool) -> None:
        self.document = StateRecord(id=container_id, bundle=str(bundle), status=Status.CREATING, created_at=time.time_ns())
        self._store = store
        self._options = options
        self._start = start
        self._began = time.monotonic()
        self._clean_ups = CleanUps()
        self._failure: BaseException | None = None
        self._hooks: HookRunner | None = None
        self._supervisor: Supervisor | None = None
        self._ready: Ready | None = None
        self._parents: undo.Record = ()
        self._terminals: list[int] = []
        self._staged: tuple[StateRecord, StagedFile] | None = None

    def __enter__(self) -> Self:
        self._clean_ups.on_failure(self._run_poststop_hooks)
        self.entry = self._clean_ups.enter_context(self._store.making(self.document["id"]))
        self._clean_ups.push(self._remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._failure = error
        return self._clean_ups.__exit__(kind, error, traceback)

    def _remove(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Remove the state directory after a failure, but not if a clean-up failed: ``delete --force`` needs the record then."""
        if error is not None and error is self._failure:
            self.entry.remove()

    def _run_poststop_hooks(self) -> None:
        if self._hooks is not None and self._hooks.begun:
            after_delete(self.document)

    def _close_terminals(self) -> None:
        for fd in self._terminals:
            os.close(fd)

    def open(self, bundle: Bundle | EphemeralBundle) -> tuple[Bundle, OwnRoot | None]:
        """Return the bundle, and the layers of the container's root filesystem, if it has an upper layer of its own.

        An ephemeral bundle is made, after its undo action is recorded. The upper layer is not made yet.

        Raises:
            SifError, BundleError, OSError: the bundle cannot be made, or is being unmounted.
        """
        if isinstance(bundle, EphemeralBundle):
            self._add_undo(bundle.undo)
            self.entry.begin(self.document)
            bundle = bundle.make()
            layers = bundle._find_layers()
        elif (layers := bundle._find_layers()) is not None and layers.bundle:
            self._clean_ups.enter_context(in_use(layers.bundle))
            layers = bundle._find_layers()  # it may have been unmounted in between
        if layers is None:
            return bundle, None
        if bundle._layers is None and not layers.bundle:
            why = f"{bundle.rootfs} has not all mount points, and they cannot be made there"
            warn([f"{why}: the container has an upper layer of its own, which is removed with it"])
        name = ephemeral_name()
        for action in layers.undo(name, self.entry.directory):
            self._add_undo(action)
        return bundle, OwnRoot(layers, name)

    def _add_undo(self, action: list[str]) -> None:
        """Note how to remove what is about to be made, and remove it if the creation fails."""
        self.document["undo"] = [*self.document.get("undo", []), action]
        self._clean_ups.on_failure(undo.undo_all, [action])

    def record(self, plan: Plan, prepared: Prepared) -> None:
        """Record what undoes the plan, and what later operations need to know of the container."""
        spec, document, options = prepared.bundle.spec, self.document, self._options
        self._parents = undo.parents(plan)
        document["annotations"] = dict(spec.annotations or {})
        document["cgroups"] = list(plan.cgroups)
        document["undo"] = [*document.get("undo", []), *self._parents, *undo.of_steps(plan.steps)]
        document["namespaces"], document["new_keyring"] = plan.namespaces, options.new_keyring
        if options.notify_socket and spec.process is not None:
            document["notify"] = options.notify_socket
        if prepared.own is not None and prepared.own.layers.upper.image is None:
            document["layers"] = prepared.own.layers.record(prepared.own.name)
        document["rootfs"], document["total"] = prepared.bundle._rootfs, len(plan.steps)
        document["process"], document["hooks"] = options.empty_process or spec.process is not None, dict(plan.hooks)
        if not self._start:
            gate = [step.op for step in plan.steps].index("gate") + 1
            document["listener"] = listener_of(spec)
            document["steps"] = [[number, step.op, step.text] for number, step in enumerate(plan.steps[gate:], gate + 1)]
        self.entry.begin(document)

    def launch(
        self,
        plan: Plan,
        prepared: Prepared,
        stdio: Sequence[int],
        preserve: Preserved,
        supervise: Supervise | None,
        deadline: float | None,
        make: Callable[..., Execution] = Execution,
        recorder: Recorder | None = None,
    ) -> Execution:
        """Execute the plan to the point where the container is created. Raises StepError, HookError."""
        spec, supervisor = prepared.bundle.spec, None
        self._make_upper(prepared)
        gate = -1 if self._start else self._listen()
        if supervise is not None:
            supervisor = self._supervisor = supervise(
                self.entry, self.document, spec, self._options, terminal=plan.terminal, preserve=preserve
            )
            self._clean_ups.on_failure(supervisor.abort)
        self._clean_ups.on_failure(self._close_terminals)
        execution = make(
            plan,
            stdio=stdio,
            gate=gate,
            preserve=preserve,
            parents=self._parents,
            cache=f"{self._store.directory}/.seccomp",
            parent=clone if supervisor is None else supervisor.clone,
            receivers=receivers(spec, self.document, self._console()),
            hooks=self._hooks_of(plan),
            mount=prepared.mount,
            directory=self.entry.directory,
            deadline=deadline,
            recorder=recorder,
        )
        self._clean_ups.on_failure(execution.abort)
        init = execution.begin(lambda: self._store_meanwhile(execution, prepared))
        if supervisor is not None:
            supervisor.adopt(init.pid, init.pidfd)
        return execution

    def _store_meanwhile(self, execution: Execution, prepared: Prepared) -> None:
        """Write the files of the container while its init works: its config, and the state that `commit` can put in place."""
        self.entry.save("config.json", prepared.bundle.config_bytes)
        document = self._created(execution.init)
        self._staged = document, self._clean_ups.enter_context(self.entry.staged_state(document))

    def _created(self, init: Init) -> StateRecord:
        """Return the state of the container when it is created."""
        document: StateRecord = {**self.document, "pid": init.pid, "pid_start": start_time(init.pid)}
        document["status"] = Status.RUNNING if self._start else Status.CREATED
        if self._start:
            document["started_at"] = time.time_ns()
        return document

    def _make_upper(self, prepared: Prepared) -> None:
        """Make the upper layer of the container, if it has one of its own. Raises OSError."""
        if prepared.own is not None:
            make_upper(*prepared.own, self.entry.directory, _uses_root)
            prepared.launched._make_points(*prepared.own)

    def _listen(self) -> int:
        with self.entry.storing("start.sock"):
            listener = listen_start(self.entry.directory)
        self._clean_ups.callback(os.close, listener)
        return listener

    def _console(self) -> Callable[[int], None]:
        if self._options.console_socket is not None:
            return to_socket(self._options.console_socket)
        return self._terminals.append if self._supervisor is None else self._supervisor.send_terminal

    def _hooks_of(self, plan: Plan) -> HookRunner | None:
        if _HOOKS.isdisjoint([step.op for step in plan.steps]):
            return None

        # For hooks the container is created: what comes before them is done (runtime.md, Lifecycle, 2 and 3).
        self._hooks = HookRunner(lambda pid: oci_state({**self.document, "status": Status.CREATED, "pid": pid}))
        self._clean_ups.callback(self._hooks.close)
        return self._hooks

    def commit(self, execution: Execution) -> None:
        """Record the container as created, and let its init process go on. Raises StepError, HookError."""
        init, document = execution.init, self.document
        if self._staged is not None and self._staged[0]["pid"] == init.pid:
            created, staged = self._staged
        else:
            created, staged = self._created(init), None  # the process that was started has forked, and its child is the init
        document.update(created)
        if execution.network is not None:
            document["network"], staged = [execution.network.pid, execution.network.start], None
        self.entry.record(document, staged)
        if self._options.pid_file is not None:
            write_pid_file(Path(self._options.pid_file), init.pid)
        if self._start and "notify" in document:
            self._ready = Ready(self.entry, document)
            self._clean_ups.on_failure(self._ready.close)
        execution.finish()

    def _release(self, execution: Execution, prepared: Prepared) -> Created:
        """Return the container; nothing removes it after a failure from then on."""
        init, spec = execution.init, prepared.bundle.spec
        if execution.network is not None:
            execution.network.release()
        layers = self._own_layers(init, prepared)
        launched = Launched(
            args=tuple((spec.process.args if spec.process else None) or ()),
            pid=init.pid,
            pidfd=init.release(),
            init_pid=init.pid,
            steps=len(execution.plan.steps),
            began=self._began,
            cgroups=self.document["cgroups"],
            terminal=self._terminals[0] if self._terminals else -1,
        )
        own_pids = bool(execution.plan.clone_flags & CLONE_NEW["pid"])
        return Created(entry=self.entry, document=self.document, init=launched, spec=spec, own_pids=own_pids, layers=layers)

    def _own_layers(self, init: Init, prepared: Prepared) -> OwnLayers | None:
        """Return the layers of a container with an upper layer of its own, which this process finds then.

        A file that is kept is not one of them: as long as this process had it open, no other container could use it.
        """
        if "layers" not in self.document or prepared.own is None:
            return None
        opened = init.files.pop("give", -1)
        upper = Descriptor(opened) if opened >= 0 else None
        return OwnLayers(prepared.bundle, prepared.own.layers, self.document["layers"][0], upper)

    def follow_up(self, execution: Execution, prepared: Prepared) -> Created:
        """Do what comes after the block, without the container's lock: hooks may use the container. Return it.

        Raises:
            HookError: a poststart hook failed, and the container is deleted (runtime.md, Lifecycle, 9).
        """
        created = self._release(execution, prepared)
        if self._supervisor is not None:
            self._supervisor.release()
        if not self._start:
            return created
        try:
            if (failure := after_start(self.document)) is not None:
                raise failure
            if self._ready is not None and self._supervisor is None:
                self._ready.wait_aside(self.document, created.init.pidfd)
            elif self._ready is not None:
                with waiting():
                    self._ready.wait(self.document, created.init.pidfd)
        except BaseException:
            if self._ready is not None:
                self._ready.close()
            created.discard()
            raise
        return created


def _uses_root(container: str) -> bool:
    """Return whether the container of a state directory uses its root filesystem, or is being created."""
    return living(Entry(*os.path.split(container))) is not None


def listener_of(spec: RuntimeSpec) -> list[str]:
    """Return the seccomp agent's socket and its metadata; both are empty without an agent."""
    seccomp = spec.linux.seccomp if spec.linux else None
    return [seccomp.listener_path or "", seccomp.listener_metadata or ""] if seccomp else ["", ""]


def to_socket(path: str | os.PathLike[str]) -> Callable[[int], None]:
    """Return a function that sends the master of a terminal to a console socket."""
    return lambda fd: send_fd(fd, path)


def receivers(spec: RuntimeSpec, document: StateRecord, console: Callable[[int], None]) -> dict[str, Callable[[Init, int], None]]:
    """Return the functions that take the file descriptors of the init, by its operation.

    Args:
        console: takes the master of a terminal.
    """

    def to_agent(init: Init, fd: int) -> None:
        path, metadata = listener_of(spec)
        send_listener(fd, path, metadata, oci_state({**document, "pid": document.get("pid", init.pid)}), init.pid)

    return {"handout": to_agent, "console": lambda init, fd: console(fd)}


def write_pid_file(path: Path, pid: int) -> None:
    """Write a pid file atomically. Raises OSError."""
    replace_file(path, str(pid).encode(), mode=0o666)
