"""What systemd gives a service, for a container's process: sockets (sd_listen_fds(3)), and to say that it is ready (sd_notify(3)).

Imported only where one of them is asked for. The process gets a socket of its own to say it: in a directory of the state, which is
mounted in the container, so that whoever starts the container can be the one who listens there.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..overrides import Overrides
from ..state import NOTIFY
from .status import first_process
from .warn import warn

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..state import Entry, StateDocument

_ABSTRACT: Final = "/run/notify"
"""Where the container sees its socket when the host's has no path."""


def activated(bundle: Bundle, entry: Entry, sockets: int | Sequence[str], told: str) -> Bundle:
    """A bundle whose process is given what is asked for. Further processes are not: the container's config stays without it."""
    if sockets:
        bundle = _with_sockets(bundle, sockets)
    return _with_notify(bundle, entry, told) if told else bundle


def _with_sockets(bundle: Bundle, sockets: int | Sequence[str]) -> Bundle:
    """A bundle whose process is told of the sockets that it inherits from descriptor 3 on: how many, or their names."""
    linux = bundle.spec.linux
    if not any(space.type == "pid" and not space.path for space in (linux.namespaces if linux else None) or ()):
        warn(["LISTEN_PID is 1, which the process is in a pid namespace of its own only: without one it may not take its sockets"])
    count, names = (sockets, None) if isinstance(sockets, int) else (len(sockets), ":".join(sockets))
    return bundle.with_overrides(Overrides(env={"LISTEN_FDS": str(count), "LISTEN_PID": "1", "LISTEN_FDNAMES": names}))


def _with_notify(bundle: Bundle, entry: Entry, told: str) -> Bundle:
    """A bundle whose process has a NOTIFY_SOCKET.

    Args:
        told: the host's socket, whose path is that of the directory in the container.
    """
    from ..spec import Mount

    directory, place = entry.path / NOTIFY, told if told.startswith("/") else _ABSTRACT
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)  # whatever the umask
    mount = Mount(destination=place, type="bind", source=str(directory), options=("bind", "ro", "nosuid", "nodev", "noexec"))
    return bundle.with_overrides(Overrides(env={"NOTIFY_SOCKET": f"{place}/{NOTIFY}"}, mounts=(mount,)))


class Ready:
    """Listens for a container's process, from before it runs until it says that it is ready; then the host hears of it, once."""

    def __init__(self, entry: Entry, document: StateDocument) -> None:
        """Raises OSError: the socket cannot be made."""
        self._told = document["notify"]
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
        """Wait until the process is ready, or gone, and close.

        Args:
            main: whether the host is to take it for the service's main process.
        """
        pidfd = first_process(document, own)
        try:
            if self._says_so(pidfd):
                self._tell(document["pid"] if main else 0)
        finally:
            self.close()
            if pidfd is not None:
                os.close(pidfd)

    def wait_aside(self, document: StateDocument, own: int) -> None:
        """As `wait`, in a thread: this process goes on, and is the service's main process."""
        pidfd = os.dup(own)

        def wait() -> None:
            try:
                self.wait(document, pidfd, main=False)
            finally:
                os.close(pidfd)

        threading.Thread(target=wait, name="ociruntime-notify", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _says_so(self, pidfd: int | None) -> bool:
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
                return False  # it said no more before it ended

    def _tell(self, pid: int) -> None:
        message = "READY=1" + (f"\nMAINPID={pid}" if pid else "")
        address = "\0" + self._told[1:] if self._told.startswith("@") else self._told
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer:
            try:
                peer.sendto(message.encode(), address)
            except OSError as error:
                warn([f"nobody at {self._told} hears that the container is ready: {error.strerror}"])
