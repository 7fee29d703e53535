"""The side of who creates a container: makes a supervisor, hands it the launch, and the terminal when there is one."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from ..engine.launch import Preserved
from ..errors import StateError, UnsupportedError
from ..state import start_time
from .main import MAX_FDS

ERRORS: Final = "supervisor.err"
"""The file in the state directory that gets what a supervisor says when it breaks."""
_LIMIT: Final = 8 << 20
"""Bytes behind which a log in the state directory, which may be memory, becomes ``.1``, in the place of the one before."""
_ANSWER: Final = 60.0
"""Seconds for a supervisor to answer the process that makes it."""
_DEATH: Final = 10.0
"""Seconds for a supervisor to die of SIGKILL."""
_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""What the supervisor has of our environment: it lives on, and ours may hold secrets."""


class Supervision(NamedTuple):
    """What a supervised container is asked to have."""

    log_path: str | None
    """None: a log of limited size in the state directory."""
    log_format: str
    sync_socket: str | None
    """A listening Unix socket that gets the state at every change of the status."""


class Supervisor:
    """A supervisor that has been made just now."""

    def __init__(self, directory: Path, channel: socket.socket, pid: int, pidfd: int) -> None:
        self._directory = directory
        self._channel = channel
        self.pid = pid
        self._pidfd = pidfd
        self._child = 0

    @classmethod
    def spawn(cls, directory: Path, wanted: Supervision, *, terminal: bool, owner: int, preserve: Preserved) -> Self:
        """Make the supervisor of a container whose state is in this directory.

        Args:
            terminal: whether it will get a terminal instead of pipes.
            owner: the uid, on the host, that the pipes belong to.
            preserve: the descriptors of ours that the container's process inherits.

        Raises:
            OSError: the log, a socket or a preserved descriptor cannot be opened.
            UnsupportedError: this Python does not know its interpreter.
        """
        if not sys.executable:
            raise UnsupportedError("a supervisor needs a Python interpreter: sys.executable is not set")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_ANSWER)
        try:
            with theirs:
                _spawn(directory, theirs.fileno(), preserve)
            hello, fds = _receive(ours, directory)
        except BaseException:
            ours.close()
            raise
        made = cls(directory, ours, int(str(hello["pid"])), fds[0])
        try:
            setup = {
                "directory": str(directory),
                "terminal": terminal,
                "owner": owner,
                "log_path": wanted.log_path or str(directory / "log"),
                "log_format": wanted.log_format,
                "log_limit": 0 if wanted.log_path else _LIMIT,
                "sync_socket": wanted.sync_socket,
                "sys_path": [os.path.abspath(path) for path in sys.path],
            }
            ours.send(json.dumps(setup).encode())
            answer, _ = _receive(ours, directory)
            _check(answer)
        except BaseException:
            made.abort()
            raise
        return made

    @property
    def identity(self) -> tuple[int, int]:
        """Its pid and start time, by which anybody can find it."""
        return self.pid, start_time(self.pid)

    def clone(
        self, *, flags: int, cgroup: int, init: int, control: int, preserve: int, kept: Sequence[int], fds: Sequence[int]
    ) -> tuple[int, int]:
        """As `ociruntime.engine.clone.clone`, but the parent is the supervisor, and its streams replace the first three ``fds``."""
        given = [init, *([cgroup] if cgroup >= 0 else []), *fds[3:]]
        while len(given) > MAX_FDS:
            self._tell("take", given[:MAX_FDS])
            del given[:MAX_FDS]
        self._tell("launch", given, flags=flags, cgroup=int(cgroup >= 0), preserve=preserve, kept=list(kept))
        answer, received = _receive(self._channel, self._directory)
        _check(answer)
        self._child = int(str(answer["pid"]))
        return self._child, received[0]

    def terminal(self, master: int) -> None:
        """Hand over the master, which is closed here."""
        try:
            self._tell("terminal", [master])
        finally:
            os.close(master)

    def adopt(self, pid: int, pidfd: int) -> None:
        """Tell which process the first one has become, when it has forked on its way."""
        if pid != self._child:
            self._tell("adopt", [pidfd])

    def _tell(self, what: str, fds: Sequence[int], **more: object) -> None:
        socket.send_fds(self._channel, [json.dumps({"do": what, **more}).encode()], list(fds))

    def release(self) -> None:
        """The container is created: from here on the supervisor is on its own."""
        self._channel.close()
        os.close(self._pidfd)

    def abort(self) -> None:
        """Kill it, and wait until it is gone."""
        end(self._pidfd)
        self.release()


def end(pidfd: int) -> None:
    """Kill a supervisor. Raises TimeoutError when it does not die."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    if not gone(pidfd, _DEATH):
        raise TimeoutError(f"a supervisor did not die within {_DEATH:.0f} s of SIGKILL")


def gone(pidfd: int, timeout: float | None) -> bool:
    """Whether a process ends within ``timeout`` seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def _spawn(directory: Path, channel: int, preserve: Preserved) -> None:
    """Start the interpreter that forks the supervisor, and wait for it: the supervisor is nobody's child."""
    package = Path(__file__).parent.parent
    backend = sys.modules["_cffi_backend"].__file__  # which lies wherever its installer put it
    here = [str(package.parent), os.path.dirname(str(backend))]
    code = f"import sys; sys.path[:0] = {here!r}; from {__package__}.main import main; main({3 + preserve.numbers})"
    high = fcntl.fcntl(channel, fcntl.F_DUPFD_CLOEXEC, 4 + preserve.numbers)
    errors = os.open(directory / ERRORS, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        keep = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in preserve.fds]
        moved = [(os.POSIX_SPAWN_DUP2, high, 3 + preserve.numbers), (os.POSIX_SPAWN_DUP2, errors, 2)]
        stdio = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1)]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-X", "frozen_modules=on", "-c", code],
            {name: os.environ[name] for name in _KEPT if name in os.environ},
            file_actions=[*keep, *moved, *stdio],
            setsid=True,
            setsigmask=(),
        )
    finally:
        os.close(high)
        os.close(errors)
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # the program that we live in reaps its children by itself
    try:
        if not gone(pidfd, _ANSWER):
            end(pidfd)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # as above
    finally:
        os.close(pidfd)


def _receive(channel: socket.socket, directory: Path) -> tuple[dict[str, object], list[int]]:
    try:
        data, fds, _, _ = socket.recv_fds(channel, 65536, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise StateError(f"the supervisor did not answer within {_ANSWER:.0f} s") from None
    if not data:
        said = (directory / ERRORS).read_text("utf-8", "replace").strip()
        raise StateError(f"the supervisor died{': ' if said else ''}{said[-1000:]}")
    message: dict[str, object] = json.loads(data)
    return message, fds


def _check(answer: dict[str, object]) -> None:
    if (code := answer.get("errno")) is not None:
        path = answer.get("path")
        raise OSError(int(str(code)), os.strerror(int(str(code))), *([str(path)] if path else []))
