"""Preparing a container: everything that changes its configuration is resolved here, and nowhere later.

Socket activation and the readiness notification, ephemeral bundles, and what creating a container and executing a process in one
share are here too.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import attrs

from ..errors import UnsupportedError, warn
from ..files import socket_path
from ..host import Host
from ..overrides import Overrides
from ..rootfs.users import env_with_home
from ..store import NOTIFY, OCI_VERSION
from .status import first_process

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..engine.groups import Group
    from ..options import CreateOptions
    from ..plan import Plan
    from ..store import Entry, StateRecord


_ABSTRACT: Final = "/run/notify"
"""Path of the socket in the container when the host's socket is abstract."""


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
    from ..spec import Mount

    directory, destination = entry.path / NOTIFY, notify_socket if notify_socket.startswith("/") else _ABSTRACT
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask
    options = ("bind", "ro", "nosuid", "nodev", "noexec")
    mount = Mount(destination=destination, type="bind", source=str(directory), options=options)
    return bundle.with_overrides(Overrides(env={"NOTIFY_SOCKET": f"{destination}/{NOTIFY}"}, mounts=(mount,)))


class Ready:
    """Receives the readiness notification of a container's process, and passes it on to the host's socket."""

    def __init__(self, entry: Entry, document: StateRecord) -> None:
        """Make the socket, before the process runs. Raises OSError."""
        self._notify_socket = document["notify"]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with socket_path(entry.path / NOTIFY, NOTIFY) as path:
                try:
                    os.unlink(path)  # of a start that failed
                except FileNotFoundError:
                    pass
                self._listener.bind(path)
                os.chmod(path, 0o777)  # the process may be any user
        except BaseException:
            self.close()
            raise

    def wait(self, document: StateRecord, own: int = -1, *, main: bool = True) -> None:
        """Wait until the process is ready or has ended, and close.

        Args:
            own: the pidfd of the init process, if the caller is its parent.
            main: whether to report the process as the main process of the service.
        """
        pidfd = first_process(document, own)
        try:
            if self._receive(pidfd):
                self._notify(document["pid"] if main else 0)
        finally:
            self.close()
            if pidfd is not None:
                os.close(pidfd)

    def wait_aside(self, document: StateRecord, own: int) -> None:
        """Wait in a thread. The caller goes on as the main process of the service."""
        pidfd = os.dup(own)

        def wait() -> None:
            try:
                self.wait(document, pidfd, main=False)
            finally:
                os.close(pidfd)

        threading.Thread(target=wait, name="ociruntime-notify", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _receive(self, pidfd: int | None) -> bool:
        """Return whether the process says that it is ready before it ends."""
        if pidfd is None:
            return False
        poller = select.poll()
        for fd in (self._listener.fileno(), pidfd):
            poller.register(fd, select.POLLIN)
        while True:
            readable = {fd for fd, _ in poller.poll()}
            if self._listener.fileno() in readable:
                # Without room for descriptors those that come along are closed, which is what sd_notify_barrier(3) waits for.
                if b"READY=1" in self._listener.recv(4096).split(b"\n"):
                    return True
            elif pidfd in readable:
                return False

    def _notify(self, pid: int) -> None:
        message = "READY=1" + (f"\nMAINPID={pid}" if pid else "")
        path = self._notify_socket
        address = "\0" + path[1:] if path.startswith("@") else path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            try:
                peer.sendto(message.encode(), address)
            except OSError as error:
                warn([f"notify_socket {path}: the readiness notification cannot be sent: {error.strerror}"])


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


@attrs.frozen(kw_only=True)
class Prepared:
    """A container whose configuration is complete."""

    bundle: Bundle
    """The bundle with the configuration that is recorded, which further processes get too."""
    launched: Bundle
    """The bundle with the configuration of this launch: with HOME and what socket activation adds."""
    options: CreateOptions

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
        plan = self.launched.plan(
            host=host if options.new_keyring else host._replace(keyrings=False),
            container_id=container_id,
            gate=not start,
            cgroup_manager=options.cgroup_manager,
            die_with_parent=options.die_with_parent,
            empty_process=options.empty_process,
        )
        receiver = options.console_socket is not None or options.terminal or options.supervised
        if plan.terminal and not receiver:
            raise UnsupportedError("$.process.terminal needs a receiver: give console_socket, supervise=True or terminal=True")
        if options.console_socket is not None and not plan.terminal:
            raise UnsupportedError("console_socket is given, but $.process.terminal is not true")
        return plan


def prepare(bundle: Bundle, options: CreateOptions, entry: Entry) -> Prepared:
    """Resolve everything that changes the configuration of a container: its terminal, socket activation and HOME.

    Args:
        bundle: the bundle, with the overrides of the call.
        entry: the container's state directory, where the socket for the readiness notification is.

    Raises:
        SpecError: the configuration is not valid.
        BundleError: an option changes the process, and the configuration has none.
    """
    if options.terminal is not None:
        bundle = bundle.with_process(terminal=options.terminal)
    launched = bundle
    if bundle.spec.process is not None:
        if options.listen_fds or options.notify_socket:
            launched = activate(launched, entry, options.listen_fds, options.notify_socket)
        process = launched.spec.process
        if process is not None and (env := env_with_home(process, launched.root_view())) is not process.env:
            launched = launched.with_process(env=env)
    return Prepared(bundle=bundle, launched=launched, options=options)


_SEND_TIMEOUT: Final = 10.0
"""Seconds for the peer to accept the connection and the message."""


@attrs.frozen(kw_only=True)
class Launched:
    """A process in a container that has just been launched."""

    args: tuple[str, ...]
    pid: int
    pidfd: int
    init_pid: int
    """The pid of the container's init process."""
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


class CleanUps(ExitStack):
    """The clean-ups of a launch: those of `callback` always run, those of `on_failure` if an exception leaves the block."""

    def on_failure(self, function: Callable[..., object], *args: object) -> None:
        """Call a function at the end of the block, if an exception leaves it."""

        def clean_up(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
            if error is not None:
                function(*args)

        self.push(clean_up)


def send_fd(fd: int, path: str | os.PathLike[str], message: bytes = b"/dev/ptmx") -> None:
    """Send a file descriptor with a message to the process that listens on a Unix socket, and close it here. Raises OSError.

    The default message is the one that console sockets get from runc.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as peer:
            peer.settimeout(_SEND_TIMEOUT)
            peer.connect(os.fspath(path))
            sent = socket.send_fds(peer, [message], [fd])
            if sent < len(message):  # sendall() of nothing would fail if the peer has closed the connection
                peer.sendall(message[sent:])
    finally:
        os.close(fd)


def send_listener(fd: int, path: str, metadata: str, state: Mapping[str, object], pid: int) -> None:
    """Send the listener of a seccomp filter to its agent, and close it here (config-linux.md#the-container-process-state).

    Args:
        path: the agent's socket, ``listenerPath``.
        state: the state document of the container (see `ociruntime.store.oci_state`).
        pid: the process of the filter: the init process or an exec process.

    Raises:
        UnsupportedError: no agent takes the listener.
    """
    document: dict[str, object] = {"ociVersion": OCI_VERSION, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        document["metadata"] = metadata
    document["state"] = state
    try:
        send_fd(fd, path, json.dumps(document).encode())
    except OSError as error:
        raise UnsupportedError(f"$.linux.seccomp.listenerPath: no seccomp agent takes the listener at {path}: {error}") from error
