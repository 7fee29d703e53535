"""A connection to systemd over D-Bus: method calls and waiting for jobs, each with a deadline. jeepney encodes the messages."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final, Self

from ..errors import UnsupportedError
from ..host import outer_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER_PATH: Final = "/org/freedesktop/systemd1"
MANAGER: Final = "org.freedesktop.systemd1.Manager"
_BUS: Final = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_JOBS: Final = f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved',path='{MANAGER_PATH}'"


class DBusError(Exception):
    """An error reply to a call."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message


class SystemdConnection:
    """A connection to the private socket of systemd, or to the bus if that does not exist. A context manager.

    Args:
        user: connect to the systemd of the user.
        deadline: time of `time.monotonic` at which every operation ends.

    Raises:
        UnsupportedError: jeepney is not installed, or neither socket exists.
        OSError: the connection failed or was refused; TimeoutError after the deadline.
    """

    def __init__(self, *, user: bool, deadline: float) -> None:
        try:
            import jeepney
        except ModuleNotFoundError:
            raise UnsupportedError(
                "the systemd cgroup manager needs jeepney: pip install 'ociruntime[systemd]', or use --cgroup-manager cgroupfs"
            ) from None
        self._jeepney = jeepney
        self._parser = jeepney.Parser()
        self._deadline = deadline
        self._serial = 0
        self._jobs: dict[str, str] = {}
        self._socket, private = _connect(user, deadline)
        try:
            self._authenticate()
            if not private:  # the private socket reports every job
                self.call(_BUS, "Hello")
                self.call(_BUS, "AddMatch", "s", _JOBS)
                self.manager("Subscribe")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def manager(self, member: str, signature: str = "", *body: object) -> tuple[Any, ...]:
        """Call a method of the manager object. Arguments and errors as for `call`."""
        return self.call((SYSTEMD, MANAGER_PATH, MANAGER), member, signature, *body)

    def call(self, target: tuple[str, str, str], member: str, signature: str = "", *body: object) -> tuple[Any, ...]:
        """Call a method and wait for its reply.

        Args:
            target: bus name, object path and interface.

        Raises:
            DBusError: the reply is an error.
            OSError: the connection failed; TimeoutError after the deadline.
        """
        name, path, interface = target
        address = self._jeepney.DBusAddress(path, bus_name=name, interface=interface)
        message = self._jeepney.new_method_call(address, member, signature or None, body)
        self._serial += 1
        self._timed().sendall(message.serialise(serial=self._serial))
        fields, kinds = self._jeepney.HeaderFields, self._jeepney.MessageType
        while True:
            reply = self._receive()
            if reply.header.fields.get(fields.reply_serial) != self._serial:
                continue
            if reply.header.message_type is kinds.error:
                message = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
                raise DBusError(reply.header.fields.get(fields.error_name, ""), message)
            return tuple(reply.body)

    def wait_job(self, job: str) -> str:
        """Wait for the end of a job. Return its result, which is ``done`` for success. Raises OSError as `call` does."""
        while job not in self._jobs:
            self._receive()
        return self._jobs[job]

    def _timed(self) -> socket.socket:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        return self._socket

    def _read(self) -> bytes:
        data = self._timed().recv(65536)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        return data

    def _receive(self) -> Any:
        while (message := self._parser.get_next_message()) is None:
            self._parser.add_data(self._read())
        fields = message.header.fields
        if fields.get(self._jeepney.HeaderFields.member) == "JobRemoved" and len(message.body) == 4:
            _, job, _, result = message.body
            self._jobs[job] = result
        return message

    def _authenticate(self) -> None:
        # In one write: systemd overlooks a message that it reads together with the end of the authentication.
        uid = str(outer_uid()).encode().hex()
        self._timed().sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\nBEGIN\r\n")
        line = b""
        while not line.endswith(b"\r\n"):
            line += self._timed().recv(1)
            if not line:
                raise ConnectionResetError(errno.ECONNRESET, "the connection was closed")
        if not line.startswith(b"OK "):
            raise PermissionError(errno.EACCES, f"the socket of systemd refuses uid {outer_uid()}")


def _addresses(user: bool) -> Iterator[tuple[str | bytes, bool]]:
    """Yield the sockets of systemd, in order of preference, and whether each is the private one."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{outer_uid()}"
    variable = "DBUS_SESSION_BUS_ADDRESS" if user else "DBUS_SYSTEM_BUS_ADDRESS"
    yield (f"{runtime}/systemd/private" if user else "/run/systemd/private"), True
    for address in os.environ.get(variable, "").split(";"):
        kind, _, rest = address.partition(":")
        options = {key: value for key, _, value in (option.partition("=") for option in rest.split(","))}
        if kind == "unix" and "path" in options:
            yield options["path"], False
        elif kind == "unix" and "abstract" in options:
            yield b"\0" + options["abstract"].encode(), False
    yield (f"{runtime}/bus" if user else "/run/dbus/system_bus_socket"), False


def _connect(user: bool, deadline: float) -> tuple[socket.socket, bool]:
    failure: OSError | None = None
    for address, private in _addresses(user):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.connect(address)
        except FileNotFoundError:
            connection.close()
        except OSError as error:
            connection.close()
            failure = failure or error
        else:
            return connection, private
    if failure is not None:
        raise failure
    if user:
        problem, remedy = f"no systemd of uid {outer_uid()} is running", "log in, use 'loginctl enable-linger', or "
    else:
        problem, remedy = "systemd is not running", ""
    raise UnsupportedError(f"cannot use the systemd cgroup manager: {problem}; {remedy}use --cgroup-manager cgroupfs")
