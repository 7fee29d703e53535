"""The supervisor process: it launches the init for the process that creates the container, and ends after the container.

It imports little, because there is one for each supervised container. It knows neither the configuration nor the plan.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence

from .._native import clone
from ..files import connect_socket, socket_path
from .control import Clients, Control
from .protocol import ATTACH_SOCKET, CONTROL_SOCKET, LOG, RECORD, RECORD_SIZE, receive_message, send_message
from .streams import IN, ContainerStreams, LogDriver, Loop

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE)
LINGER = 5.0
"""Seconds that clients have to read the rest of the output after the end of the container."""
TERMINAL_DRAIN = 1.0
"""Seconds for the kernel to deliver what was written to a terminal before the end of the container."""
SYNC_TIMEOUT = 5.0
"""Seconds that the backlog of the sync socket may be full before a state is lost."""
_SYNC_RETRY = 0.05
_LOSS_INTERVAL = 1.0
"""Seconds between two records of the log's losses."""


class RecordWriter:
    """Writes `RECORD`, which no other process writes. Raises OSError: the file cannot be made.

    The file has its full size from the beginning and is written in place, so that a full disk cannot prevent the record of an exit
    code.
    """

    def __init__(self, directory: str) -> None:
        self._members: dict[str, object] = {}
        self._fd = os.open(f"{directory}/{RECORD}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self._fd, 0, RECORD_SIZE)
        self.update()

    def update(self, **members: object) -> None:
        """Add members to the record, or replace them."""
        self._members.update(members)
        raw = json.dumps(self._members).encode()
        if len(raw) > RECORD_SIZE:
            raise ValueError(f"the record has {len(raw)} bytes, more than {RECORD_SIZE}")
        os.pwrite(self._fd, raw.ljust(RECORD_SIZE), 0)


class StateSender:
    """Sends the state document to a sync socket, in one connection for each change of the status, without waiting for it.

    Args:
        path: the path of the socket.
        directory: the state directory of the container.
        place: the same directory by an open file descriptor, as for `SupervisorProcess`.
    """

    def __init__(self, path: str, directory: str, place: str) -> None:
        self._path = path
        self._directory = directory
        self._place = place
        self._last_status = ""
        self._queue: list[tuple[float, bytes]] = []

    def update(self) -> None:
        """Read the state, and send it if the status has changed."""
        # Lazy for the memory of supervisors without a sync socket.
        from ..errors import ContainerNotFound
        from ..lifecycle.status import current
        from ..store import StateStore, state_document

        root, container_id = os.path.split(self._directory)
        try:
            state = current(StateStore(root).entry(container_id).read())
            if not os.path.samefile(self._place, self._directory):
                return  # the state of the next container of this name
        except (ContainerNotFound, FileNotFoundError):
            return  # it was deleted meanwhile
        if state["status"] != self._last_status:
            self._last_status = state["status"]
            self._queue.append((time.monotonic() + SYNC_TIMEOUT, json.dumps(state_document(state)).encode()))
            self.send()

    def due(self) -> float | None:
        """Return the seconds until `send` is to be tried again; None if nothing is queued."""
        return _SYNC_RETRY if self._queue else None

    def send(self) -> None:
        """Send the queued documents in order, as long as the listener takes them. It loses those that it refuses."""
        while self._queue:
            deadline, document = self._queue[0]
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as peer:
                try:
                    connect_socket(peer, self._path)
                    peer.send(document)
                except OSError as error:
                    if error.errno == errno.EAGAIN and time.monotonic() < deadline:
                        return
            del self._queue[0]


class SupervisorProcess:
    """The supervisor of one container.

    Args:
        creator: the connection to the process that creates the container.
        setup: the first message of the creator (see `ociruntime.supervisor.client.Supervisor.spawn`).
        place: the path of the state directory by an open file descriptor. If the creator is killed, another process can remove the
            directory and make a container of the same name before this one gets there.
    """

    def __init__(self, creator: socket.socket, setup: dict[str, object], place: str) -> None:
        self._creator = creator
        self._directory = str(setup["directory"])
        self._place = place
        self._setup = setup
        self._loop = Loop()
        self._pidfd = -1
        """Of the container's init process, or of the process that forks it."""
        self._ended = False
        """Whether the process of the pidfd has ended. As long as the creator is connected, it may have forked the init process."""
        self._record = RecordWriter(place)
        self._log = LogDriver(str(setup["log_path"] or f"{place}/{LOG}"), str(setup["log_format"]), int(str(setup["log_limit"])))
        self._recorded_losses, self._losses_recorded_at = 0, 0.0
        sync_socket = setup["sync_socket"]
        self._state_sender = StateSender(str(sync_socket), self._directory, place) if sync_socket else None
        self._streams = ContainerStreams(self._loop, self._on_output, lambda: self._clients.watch())
        self._clients = Clients(self._loop, self._listen(ATTACH_SOCKET), self._streams)
        self._control = Control(self._loop, self._listen(CONTROL_SOCKET), self._actions(), self._command_line)
        self._received_fds: list[int] = []
        self._loop.watch(creator.fileno(), IN, self._creator_ready)

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_path(self._place, name) as path:
            listener.bind(path)
        listener.listen(128)
        return listener

    def _on_output(self, stream: bytes, data: bytes) -> None:
        self._log.feed(stream, data)
        self._clients.send(stream, data)

    # ---- requests over control.sock ----

    def _actions(self) -> dict[str, Callable[[object, list[int]], None]]:
        return {
            "consoleSize": self._resize,
            "reopenLog": lambda value, fds: self._log.reopen(),
            "stateChanged": lambda value, fds: self._status_changed(),
            "attach": self._attach,
        }

    def _resize(self, size: object, fds: list[int]) -> None:
        if not isinstance(size, dict):
            raise ValueError("consoleSize is an object with height and width")
        self._streams.resize(size["height"], size["width"])

    def _attach(self, value: object, fds: list[int]) -> None:
        if not fds:
            raise ValueError("attach needs one or two sockets, as SCM_RIGHTS")
        sockets = []
        try:
            while fds:
                sockets.append(socket.socket(fileno=fds[0]))
                del fds[0]
            self._clients.add(*sockets)
        except BaseException:
            for sock in sockets:
                sock.close()
            raise

    def _status_changed(self) -> None:
        if self._state_sender is not None:
            self._state_sender.update()

    def _command_line(self, operation: str) -> list[str]:
        root, container_id = os.path.split(self._directory)
        code = f"import sys; sys.path[:] = {self._setup['sys_path']!r}; from ociruntime.cli import main; sys.exit(main())"
        return [sys.executable, "-I", "-c", code, "--root", root, operation, container_id]

    # ---- requests of the creator ----

    def _creator_ready(self, events: int) -> None:
        try:
            message, fds = receive_message(self._creator)
        except OSError as error:
            if self._pidfd >= 0:
                raise  # the creator no longer expects an answer
            send_message(self._creator, [], errno=error.errno)
            return
        if message is None:
            # The container is created. Or the creator has died: the init's control socket is closed then, and the init ends too.
            self._loop.unwatch(self._creator.fileno())
            self._creator.close()
            self._status_changed()
            return
        self._received_fds += fds
        if message["do"] == "launch":
            self._launch(message)
        elif message["do"] == "terminal":
            self._streams.open_terminal(self._received_fds.pop())
        elif message["do"] == "adopt":
            self._adopt(self._received_fds.pop())

    def _launch(self, message: dict[str, object]) -> None:
        fds, self._received_fds = self._received_fds, []
        init, cgroup, *rest = fds if message["cgroup"] else (fds[0], -1, *fds[1:])
        kept: Sequence[int] = message["kept"]  # type: ignore[assignment]
        stdio: list[int] = []
        try:
            if self._setup["terminal"]:
                stdio += (os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3))  # until the init has its terminal
            else:
                stdio += self._streams.open_pipes(int(str(self._setup["owner"])))
            pid, self._pidfd = clone(
                flags=int(str(message["flags"])),
                cgroup=cgroup,
                init=init,
                control=rest[0],
                preserve=int(str(message["preserve"])),
                kept=kept,
                fds=[*stdio, *rest],
            )
        except OSError as error:
            send_message(self._creator, [], errno=error.errno)
        else:
            for fd in kept:
                os.close(fd)
            self._loop.watch(self._pidfd, IN, self._process_ended)
            send_message(self._creator, [self._pidfd], pid=pid)
        finally:
            for fd in (*fds, *stdio):
                os.close(fd)

    def _adopt(self, pidfd: int) -> None:
        """Supervise the process that the first one forked. The first one ends by itself."""
        self._loop.unwatch(self._pidfd)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        self._pidfd, self._ended = pidfd, False
        self._loop.watch(pidfd, IN, self._process_ended)

    def _process_ended(self, events: int) -> None:
        self._loop.unwatch(self._pidfd)
        self._ended = True

    # ---- the life of the container ----

    def run(self) -> None:
        """Supervise the container until it has ended, and record how it did."""
        self._status_changed()
        while self._creator.fileno() >= 0 or (self._pidfd >= 0 and not self._ended):
            timeouts = [self._control.due(), self._log.due(), self._state_sender.due() if self._state_sender else None]
            self._loop.run_once(min([timeout for timeout in timeouts if timeout is not None], default=None))
            self._control.expire()
            self._log.flush()
            if self._losses_due():
                self._record_losses()
            if self._state_sender is not None:
                self._state_sender.send()
        if self._pidfd >= 0:
            self._finish()

    def _losses_due(self) -> bool:
        """Return whether losses of the log must be recorded: the first one at once, then at most once per interval."""
        due = time.monotonic() > self._losses_recorded_at + _LOSS_INTERVAL
        return self._log.lost_entries != self._recorded_losses and due

    def _record_losses(self) -> None:
        self._recorded_losses, self._losses_recorded_at = self._log.lost_entries, time.monotonic()
        self._record.update(log_lost=[self._log.lost_entries, self._log.lost_bytes], log_error=self._log.error)

    def _finish(self) -> None:
        finished_at = time.time_ns()
        self._read_rest()
        self._record_end(finished_at)
        os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        self._clients.stop()
        self._control.stop()
        self._status_changed()
        deadline = time.monotonic() + LINGER
        while self._has_work() and time.monotonic() < deadline:
            self._loop.run_once(min(0.05, max(0.0, deadline - time.monotonic())))
            if self._state_sender is not None:
                self._state_sender.send()
        self._control.close()
        self._clients.close()

    def _read_rest(self) -> None:
        """Read and log what the container printed before it ended."""
        deadline = time.monotonic() + TERMINAL_DRAIN
        self._streams.drain()
        while self._setup["terminal"] and self._streams.is_open and time.monotonic() < deadline:
            self._loop.run_once(deadline - time.monotonic())
        self._streams.close()
        self._log.flush(last=True)
        if self._log.lost_entries:
            self._record_losses()

    def _record_end(self, finished_at: int) -> None:
        """Record how the init process ended. It is reaped later: until then its pid is not reused."""
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        assert info is not None
        members: dict[str, object] = {
            "exit_code": info.si_status if info.si_code == os.CLD_EXITED else -info.si_status,
            "finished_at": finished_at,
        }
        if self._clients.dropped:
            members["clients_dropped"] = self._clients.dropped
        try:
            members["oom_killed"] = bool(self._oom_kills())
        finally:
            self._record.update(**members)

    def _has_work(self) -> bool:
        """Return whether a client, a request or the sync socket waits for something."""
        return bool(self._clients.behind or self._control.connections or (self._state_sender and self._state_sender.due()))

    def _oom_kills(self) -> int:
        """Return the number of OOM kills that the container's cgroups count."""
        try:
            with open(f"{self._place}/state.json", "rb") as file:
                cgroups = json.load(file).get("cgroups", [])
        except FileNotFoundError:
            return 0  # the creator gave up, or the container is being deleted
        for path in cgroups:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(f"{path}/{name}", encoding="ascii") as file:
                        counts = dict(line.split() for line in file)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENODEV):
                        raise
                else:
                    return int(counts.get("oom_kill", 0))
        return 0


def main(fd: int) -> None:
    """Become the supervisor for the process at the other end of a socket."""
    if os.fork():
        os._exit(0)  # the supervisor has no parent that must wait for it
    creator = socket.socket(fileno=fd)
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > fd:
            try:
                os.close(int(name))  # inherited by accident
            except OSError:
                continue  # the descriptor of the listing itself
    os.chdir("/")
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)  # the supervisor ends with its container only
    try:
        supervisor = _set_up(creator)
    except ConnectionError:
        return  # the creator is gone
    if supervisor is not None:
        supervisor.run()


def _set_up(creator: socket.socket) -> SupervisorProcess | None:
    """Send the own pid and pidfd, and receive what to supervise; None if that failed. Raises ConnectionError."""
    pidfd = os.pidfd_open(os.getpid())
    send_message(creator, [pidfd], pid=os.getpid())
    os.close(pidfd)
    place = directory = ""
    try:
        setup, fds = receive_message(creator)
        if setup is None:
            return None
        place, directory = f"/proc/self/fd/{fds[0]}", str(setup["directory"])
        supervisor = SupervisorProcess(creator, setup, place)
    except OSError as error:
        path = error.filename and error.filename.replace(place, directory)
        send_message(creator, [], errno=error.errno, path=path)
        return None
    send_message(creator, [])
    return supervisor
