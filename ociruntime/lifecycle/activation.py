"""Socket activation (sd_listen_fds(3)) and the readiness notification (sd_notify(3)) of a container's process.

The process gets a notification socket of its own. It is in a directory of the state directory that is mounted in the container, so
that the process which starts the container can receive the notification, and pass it on to the host's socket.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import warn
from ..overrides import Overrides
from ..state import NOTIFY
from .status import first_process

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..state import Entry, StateDocument

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

    def __init__(self, entry: Entry, document: StateDocument) -> None:
        """Make the socket, before the process runs. Raises OSError."""
        self._notify_socket = document["notify"]
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        directory = os.open(entry.path / NOTIFY, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            address = f"/proc/self/fd/{directory}/{NOTIFY}"  # the whole path may be longer than an address
            try:
                os.unlink(address)  # of a start that failed
            except FileNotFoundError:
                pass
            self._listener.bind(address)
            os.chmod(address, 0o777)  # the process may be any user
        except BaseException:
            self.close()
            raise
        finally:
            os.close(directory)

    def wait(self, document: StateDocument, own: int = -1, *, main: bool = True) -> None:
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

    def wait_aside(self, document: StateDocument, own: int) -> None:
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
