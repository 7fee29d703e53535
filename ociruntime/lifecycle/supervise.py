"""Supervised containers: what their operations need of the supervisor."""

from __future__ import annotations

import json
import os
import time

from ..engine.processes import open_process, wait_init
from ..errors import ProcessTimeout, StateError, WrongStatus
from ..state import Status
from .status import current, first_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from typing import Final

    from ..engine.launch import Preserved
    from ..options import CreateOptions
    from ..spec import RuntimeSpec
    from ..state import Entry, StateDocument
    from ..supervisor.client import Supervisor

_LAST_WRITES: Final = 6.0
"""Seconds for a supervisor to end by itself: it lets slow clients read for five."""
_TELL: Final = 1.0
_ANSWER: Final = 10.0
"""Seconds for a supervisor to answer a request."""
_CAP_CHOWN: Final = 1 << 0


def supervise(
    entry: Entry, document: StateDocument, spec: RuntimeSpec, options: CreateOptions, *, terminal: bool, preserve: Preserved
) -> Supervisor:
    """Start the supervisor of a container that is being created, and record it in the state.

    Raises:
        OSError: the log, a socket or a preserved file descriptor cannot be opened.
        UnsupportedError: this Python does not know its interpreter.
    """
    from ..supervisor.client import Supervision, Supervisor

    supervision = Supervision(options.log_path, options.log_format, options.sync_socket)
    supervisor = Supervisor.spawn(entry.path, supervision, terminal=terminal, owner=_host_uid(spec), preserve=preserve)
    document["supervisor"] = list(supervisor.identity)
    document["sockets"] = [str(entry.path / "attach.sock"), str(entry.path / "control.sock")]
    document["terminal"] = terminal
    document["sync"] = options.sync_socket is not None
    document["log"] = [options.log_path or str(entry.path / "log"), options.log_format]
    entry.record(document)
    return supervisor


def _host_uid(spec: RuntimeSpec) -> int:
    """The uid, outside of the container, of its process; ours where we may not give files away."""
    from ..host import Host
    from ..plan.id_mappings import host_id, with_default_mappings

    host = Host.probe()
    if not host.capabilities & _CAP_CHOWN:
        return host.euid
    spec = with_default_mappings(spec, host)
    user = spec.process.user if spec.process else None
    uid = (user.uid or 0) if user else 0
    mappings = (spec.linux.uid_mappings if spec.linux else None) or ()
    mapped = host_id(mappings, uid) if mappings else uid
    return mapped if mapped is not None else host.euid


def supervisor_of(document: StateDocument) -> int | None:
    """A pidfd of the container's supervisor; None when it has none, or none any more."""
    pid, began = document.get("supervisor", (0, 0))
    return open_process(pid, began) if pid else None


def connect(entry: Entry, name: str) -> socket.socket:
    """A connection to one of the supervisor's sockets. Raises OSError."""
    import socket

    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    directory = os.open(entry.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        peer.connect(f"/proc/self/fd/{directory}/{name}")  # the whole path may be longer than an address
    except BaseException:
        peer.close()
        raise
    finally:
        os.close(directory)
    return peer


def request(entry: Entry, operation: str, fds: Sequence[socket.socket] = (), **wanted: object) -> None:
    """Ask over control.sock; ``operation`` is what for, in an error.

    Raises:
        WrongStatus: the container has ended.
        StateError: its supervisor refuses, or is gone.
    """
    import socket

    answer, gone = b"", b'{"error": "its supervisor is gone"}'
    try:
        with connect(entry, "control.sock") as peer:
            peer.settimeout(_ANSWER)
            try:
                socket.send_fds(peer, [json.dumps(wanted).encode()], [one.fileno() for one in fds])
            except BrokenPipeError:
                answer = peer.recv(4096) or gone  # it was refused before it was read
            while data := peer.recv(4096):
                answer += data
    except TimeoutError:
        answer = json.dumps({"error": f"its supervisor did not answer within {_ANSWER:.0f} s"}).encode()
    except (FileNotFoundError, ConnectionError):
        answer = answer or gone
    if not answer:
        return
    status = current(entry.read()).status
    if status is Status.STOPPED:
        raise WrongStatus(entry.id, operation, status, "created or running")
    raise StateError(f"cannot {operation} container {entry.id!r}: {json.loads(answer)['error']}")


def tell_changed(entry: Entry) -> None:
    """Tell the supervisor that the status is another one. It need not be there any more."""
    try:
        with connect(entry, "control.sock") as peer:
            peer.settimeout(_TELL)
            peer.sendall(b'{"stateChanged": true}')
    except (FileNotFoundError, ConnectionError, TimeoutError):
        pass  # it has ended with its container, and told that itself


def recorded(entry: Entry, timeout: float = _LAST_WRITES) -> StateDocument:
    """The state of a supervised container whose process has ended, as soon as the supervisor has written down how."""
    deadline = time.monotonic() + timeout
    while True:
        document = entry.read()
        if "exit_code" in document or time.monotonic() > deadline:
            return document
        pidfd = supervisor_of(document)
        if pidfd is None:
            return entry.read()  # it may have written between our two looks
        os.close(pidfd)
        time.sleep(0.002)


def wait_recorded(entry: Entry, document: StateDocument, own: int, timeout: float | None) -> int | None:
    """Wait for the end of a supervised container; gives its exit code. Raises ProcessTimeout."""
    pidfd = first_process(document, own)
    if pidfd is not None:
        try:
            ended = wait_init(document["pid"], pidfd, timeout)
        finally:
            os.close(pidfd)
        if ended is None:
            assert timeout is not None
            raise ProcessTimeout(f"container {entry.id!r}", timeout)
        return recorded(entry).get("exit_code", ended.returncode)
    return recorded(entry).get("exit_code")


def end_supervisor(document: StateDocument) -> None:
    """See the supervisor end, whose container has; by force when it takes too long. Raises TimeoutError."""
    pidfd = supervisor_of(document)
    if pidfd is None:
        return
    from ..supervisor.client import end, gone

    try:
        if not gone(pidfd, _LAST_WRITES):
            end(pidfd)
    finally:
        os.close(pidfd)
