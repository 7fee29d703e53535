"""The processes that create and use a supervised container: starting the supervisor, launching through it, requests to it,
and attaching to the streams.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ..arguments import check_window
from ..engine.launch import check_calls
from ..engine.processes import ended_within, wait_killed
from ..errors import ContainerNotFound, StateError, UnsupportedError, WrongStatus
from ..files import OwnDescriptor, Unpicklable, forking, open_pidfd, start_time
from ..host import Host
from ..lifecycle.status import first_process, status_of
from ..plan.namespaces import host_id, with_default_mappings
from ..store import Entry, Status
from .protocol import (
    ATTACH_SOCKET,
    CONTROL_SOCKET,
    ERROR_LOG,
    LOG,
    MAX_FDS,
    RECORD,
    RECORD_SIZE,
    connect,
    receive_message,
    send_message,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from ..engine.launch import Preserved
    from ..options import CreateOptions
    from ..spec import RuntimeSpec
    from ..store import StateRecord

__all__ = [
    "Attachment",
]


_LOG_LIMIT: Final = 8 << 20
"""Size in bytes after which a log in the state directory, which may be in memory, is renamed to ``.1``."""
_ANSWER_TIMEOUT: Final = 60.0
"""Seconds for a new supervisor to answer."""
_REQUEST_TIMEOUT: Final = 10.0
"""Seconds for a supervisor to answer a request."""
_CAP_CHOWN: Final = 1 << 0
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""Variables that the supervisor gets. It outlives the caller, whose environment may hold secrets."""


class Supervisor:
    """A supervisor, as the process that creates its container sees it."""

    def __init__(self, directory: Path, channel: socket.socket, pid: int, pidfd: int) -> None:
        self._directory = directory
        self._channel = channel
        self.pid = pid
        self._pidfd = pidfd
        self._launched = 0
        """Pid of the process that the supervisor has launched."""

    @classmethod
    def spawn(cls, directory: Path, options: CreateOptions, *, terminal: bool, owner: int, preserve: Preserved) -> Self:
        """Start the supervisor of a container.

        Args:
            directory: the container's state directory.
            options: the log and the sync socket.
            terminal: whether the container has a terminal instead of pipes.
            owner: the uid, in the caller's user namespace, that owns the pipes.
            preserve: the caller's file descriptors that the container's process inherits.

        Raises:
            OSError: the log, a socket or a preserved file descriptor cannot be opened.
            StateError: the supervisor failed, or did not answer.
            UnsupportedError: this Python does not know its interpreter, or a system call is missing.
        """
        if not sys.executable:
            raise UnsupportedError("a supervisor needs a Python interpreter: sys.executable is not set")
        check_calls()
        with forking:
            channel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            supervisor_end = OwnDescriptor(end.detach())
        channel.settimeout(_ANSWER_TIMEOUT)
        try:
            with supervisor_end:
                _spawn(directory, supervisor_end.fd, preserve)
            hello, fds = _receive(channel, directory)
        except BaseException:
            channel.close()
            raise
        supervisor = cls(directory, channel, int(str(hello["pid"])), fds[0])
        place = -1
        try:
            place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            supervisor._send(
                [place],
                directory=str(directory),
                terminal=terminal,
                owner=owner,
                log_path=options.log_path,
                log_format=options.log_format,
                log_limit=0 if options.log_path else _LOG_LIMIT,
                sync_socket=options.sync_socket,
                sys_path=[os.path.join(os.readlink("/proc/self/cwd"), path) for path in sys.path],
            )
            _receive(channel, directory)
        except BaseException:
            supervisor.abort()
            raise
        finally:
            if place >= 0:
                os.close(place)
        return supervisor

    @property
    def identity(self) -> tuple[int, int]:
        """The pid and start time, by which any process can find the supervisor."""
        return self.pid, start_time(self.pid)

    def clone(
        self, *, flags: int, cgroup: int, init: int, control: int, preserve: int, kept: Sequence[int], fds: Sequence[int]
    ) -> tuple[int, int]:
        """Start the init as a child of the supervisor, whose streams replace the first three of ``fds``.

        Arguments, return value and errors are those of `ociruntime._native.clone`.
        """
        inputs = [init, *([cgroup] if cgroup >= 0 else []), *fds[3:]]
        while len(inputs) > MAX_FDS:
            self._send(inputs[:MAX_FDS], do="take")
            del inputs[:MAX_FDS]
        self._send(inputs, do="launch", flags=flags, cgroup=int(cgroup >= 0), preserve=preserve, kept=list(kept))
        answer, received = _receive(self._channel, self._directory)
        self._launched = int(str(answer["pid"]))
        return self._launched, received[0]

    def send_terminal(self, master: int) -> None:
        """Hand the master of the container's terminal over, and close it here."""
        try:
            self._send([master], do="terminal")
        finally:
            os.close(master)

    def adopt(self, pid: int, pidfd: int) -> None:
        """Tell the supervisor which process is the init process, if the launched one has forked it."""
        if pid != self._launched:
            self._send([pidfd], do="adopt")

    def _send(self, fds: list[int], **members: object) -> None:
        with _speaking(self._directory):
            send_message(self._channel, fds, **members)

    def release(self) -> None:
        """Disconnect: the container is created, and the supervisor no longer needs this process."""
        self._channel.close()
        os.close(self._pidfd)

    def abort(self) -> None:
        """Kill the supervisor, and wait for its end. Raises TimeoutError."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        wait_killed(self.pid, self._pidfd, "a supervisor")
        self.release()


def supervise(
    entry: Entry, document: StateRecord, spec: RuntimeSpec, options: CreateOptions, *, terminal: bool, preserve: Preserved
) -> Supervisor:
    """Start the supervisor of a container that is being created, and record it in the state.

    Errors are those of `Supervisor.spawn`.
    """
    supervisor = Supervisor.spawn(entry.path, options, terminal=terminal, owner=_owner_of_pipes(spec), preserve=preserve)
    document["supervisor"] = list(supervisor.identity)
    document["attach_socket"], document["control_socket"] = str(entry.path / ATTACH_SOCKET), str(entry.path / CONTROL_SOCKET)
    document["terminal"] = terminal
    document["sync"] = options.sync_socket is not None
    document["log_path"], document["log_format"] = str(options.log_path or entry.path / LOG), options.log_format
    try:
        entry.record(document)
    except BaseException:
        supervisor.abort()
        raise
    return supervisor


def _owner_of_pipes(spec: RuntimeSpec) -> int:
    """Return the host's uid of the container's process; the caller's uid if the caller cannot change the owner of files."""
    host = Host.probe()
    if not host.capabilities & _CAP_CHOWN:
        return host.euid
    spec = with_default_mappings(spec, host)
    user = spec.process.user if spec.process else None
    uid = (user.uid or 0) if user else 0
    mappings = (spec.linux.uid_mappings if spec.linux else None) or ()
    mapped = host_id(mappings, uid) if mappings else uid
    return mapped if mapped is not None else host.euid


def request(entry: Entry, operation: str, ends: Sequence[OwnDescriptor] = (), **members: object) -> None:
    """Send a request to a container's supervisor over control.sock, and wait for the answer.

    Args:
        operation: what the request does, for error messages: ``cannot OPERATION container ...``.
        ends: file descriptors to send with the request.
        members: the members of the request.

    Raises:
        WrongStatus: the container has ended.
        StateError: the supervisor refuses the request, does not answer, or has ended.
    """
    error = _request(entry.directory, ends, members)
    if not error:
        return
    status = status_of(entry.read())
    if status is Status.STOPPED:
        raise WrongStatus(entry.id, operation, status, "created or running")
    raise StateError(f"cannot {operation} container {entry.id!r}: {error}")


def _request(directory: str, ends: Sequence[OwnDescriptor], members: dict[str, object]) -> str:
    """Send a request, and return the reason why it was refused; empty if it was not."""
    answer, is_gone = b"", "its supervisor is gone"
    try:
        with connect(directory, CONTROL_SOCKET) as peer:
            peer.settimeout(_REQUEST_TIMEOUT)
            try:
                socket.send_fds(peer, [json.dumps(members).encode()], [end.fd for end in ends])
            except BrokenPipeError:  # the supervisor refused the request before it read it
                answer = peer.recv(4096)
                if not answer:
                    return is_gone
            while data := peer.recv(4096):
                answer += data
    except TimeoutError:
        return f"its supervisor did not answer within {_REQUEST_TIMEOUT:.0f} s"
    except (FileNotFoundError, ConnectionError):
        if not answer:
            return is_gone
    return str(json.loads(answer)["error"]) if answer else ""


def _spawn(directory: Path, channel: int, preserve: Preserved) -> None:
    """Run the interpreter that forks the supervisor, and wait for its end: the supervisor is not a child of this process."""
    package = Path(__file__).parent.parent
    backend = sys.modules["_cffi_backend"].__file__  # its directory depends on the installer
    path = [str(package.parent), os.path.dirname(str(backend))]
    code = f"import sys; sys.path[:0] = {path!r}; from {__package__}.process import main; main({3 + preserve.numbers})"
    with ExitStack() as opened:
        high = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, 4 + preserve.numbers)
        opened.callback(os.close, high)
        errors = os.open(directory / ERROR_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, errors)
        keep = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in preserve.fds]
        moved = [(os.POSIX_SPAWN_DUP2, high, 3 + preserve.numbers), (os.POSIX_SPAWN_DUP2, errors, 2)]
        stdio = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1)]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-X", "frozen_modules=on", "-c", code],
            {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            file_actions=[*keep, *moved, *stdio],
            setsid=True,
            setsigmask=(),
        )
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:
        return  # SIGCHLD is ignored: the kernel has reaped it
    try:
        if not ended_within(pidfd, _ANSWER_TIMEOUT):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)  # a zombie takes it too
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # as above
    finally:
        os.close(pidfd)


@contextmanager
def _speaking(directory: Path) -> Iterator[None]:
    """Name the supervisor in the errors of its connection. Raises StateError."""
    try:
        yield
    except TimeoutError:
        raise StateError(f"the supervisor of container {directory.name!r} did not answer within {_ANSWER_TIMEOUT:.0f} s") from None
    except (EOFError, BrokenPipeError, ConnectionResetError):
        reason = (directory / ERROR_LOG).read_text("utf-8", "replace").strip()
        raise StateError(f"the supervisor of container {directory.name!r} died{': ' if reason else ''}{reason[-1000:]}") from None


def _receive(channel: socket.socket, directory: Path) -> tuple[dict[str, object], list[int]]:
    """Return the supervisor's answer and its file descriptors. Raises StateError, and an OSError that the answer reports."""
    with _speaking(directory):
        answer, fds = receive_message(channel)
        if answer is None:
            raise EOFError
    if (code := answer.get("errno")) is not None:
        path = answer.get("path")
        raise OSError(int(str(code)), os.strerror(int(str(code))), *([str(path)] if path else []))
    return answer, fds


class Attachment(Unpicklable, io.RawIOBase):
    """A connection to the streams of a container, as one of several clients: a raw file that reads its output and writes its input.

    Reading returns ``b""`` at the end: the container has ended, or the supervisor has disconnected a client that did not read.
    Closing detaches; the container keeps running. stdout and stderr are one stream unless stderr was requested separately.
    """

    _instead = "send the Container and attach there"

    def __init__(
        self, entry: Entry, peer: socket.socket, stderr: socket.socket | None = None, *, record: int, pidfd: int, terminal: bool
    ) -> None:
        super().__init__()
        self.container_id = entry.id
        self.terminal = terminal
        """Whether the container has a terminal."""
        self.pidfd = pidfd
        """Pidfd of the container's init process; closed with the attachment."""
        self.stderr = io.FileIO(stderr.detach()) if stderr is not None else None
        """The container's stderr, if it was asked for. A client that does not read it is disconnected too."""
        self._entry = entry
        self._peer = peer
        self._record = record

    def fileno(self) -> int:
        return self._peer.fileno()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        try:
            return self._peer.recv_into(buffer)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return 0

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        """Send input to the container, and return the number of bytes that were taken. Raises BrokenPipeError after the end."""
        try:
            return self._peer.send(data)
        except BlockingIOError:
            return None

    def end_input(self) -> None:
        """Close the container's stdin, for all clients. No effect on a terminal: write ``b"\\x04"`` instead."""
        self._peer.shutdown(socket.SHUT_WR)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the container's terminal.

        Raises:
            StateError: the container has no terminal, or its supervisor has ended.
            WrongStatus: the container has ended.
        """
        check_window(rows, columns)
        request(self._entry, "resize the terminal of", consoleSize={"height": rows, "width": columns})

    @property
    def returncode(self) -> int:
        """The exit code of the container after the end of the stream, negative for a signal; known also when it is deleted already.

        Raises:
            StateError: the container has not ended: the supervisor was killed, or has disconnected a client that did not read.
        """
        record = json.loads(os.pread(self._record, RECORD_SIZE, 0))
        if "exit_code" not in record:
            raise StateError(
                f"container {self.container_id!r} has not ended: this client was disconnected because it did not read fast enough, "
                "or its supervisor is gone"
            )
        return int(record["exit_code"])

    def close(self) -> None:
        if not self.closed:
            self._peer.close()
            if self.stderr is not None:
                self.stderr.close()
            os.close(self._record)
            os.close(self.pidfd)
        super().close()

    detach = close


def attach(entry: Entry, *, stderr: bool) -> Attachment:
    """Connect to the container's streams. Errors are those of `Container.attach`."""
    document = entry.read()
    if "supervisor" not in document:
        raise StateError(
            f"cannot attach to container {entry.id!r}: it has no supervisor; create it with supervise=True (--supervise)"
        )
    pidfd = first_process(document)
    if pidfd is None:
        raise WrongStatus(entry.id, "attach to", status_of(document), "created or running")
    with ExitStack() as stack:
        stack.callback(os.close, pidfd)
        try:
            record = os.open(f"{entry.directory}/{RECORD}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ContainerNotFound(entry.id, entry.root) from None
        stack.callback(os.close, record)
        own_ends, supervisor_ends = [], []
        with ExitStack() as sent:
            for _ in range(1 + stderr):
                with forking:
                    own_end, end = socket.socketpair()
                    supervisor_ends.append(sent.enter_context(OwnDescriptor(end.detach())))
                own_ends.append(stack.enter_context(own_end))
            request(entry, "attach to", supervisor_ends, attach=True)
        stack.pop_all()
    return Attachment(entry, *own_ends, record=record, pidfd=pidfd, terminal=document.get("terminal", False))
