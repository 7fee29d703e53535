"""The systemd cgroup manager, over D-Bus: creating the scope of a container, changing its properties, and stopping it."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from ..errors import UnsupportedError
from ..files import outer_uid

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
            raise UnsupportedError("the systemd cgroup manager needs jeepney: pip install 'ociruntime[systemd]'") from None
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


def is_reachable(*, user: bool) -> bool:
    """Return whether there is a socket of systemd to connect to, and a library for it."""
    if find_spec("jeepney") is None:
        return False
    return any(isinstance(address, bytes) or os.access(address, os.W_OK) for address, _ in _addresses(user))


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
    problem, remedy = "systemd is not running", "use --cgroup-manager cgroupfs"
    if user:
        problem, remedy = f"the systemd of uid {outer_uid()} has no socket in $XDG_RUNTIME_DIR", "set it as a login does"
    raise UnsupportedError(f"cannot use the systemd cgroup manager: {problem}; {remedy}")


T = TypeVar("T")
Properties = Sequence[tuple[str, str, object]]
"""Names, D-Bus types and values (`ociruntime.plan.cgroups.systemd.Property`)."""

TIMEOUT: Final = 30.0
"""Seconds for one request, including all attempts."""
_PAUSE: Final = 0.05
_RETRIED: Final = frozenset(
    (errno.EAGAIN, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
)
"""Errors of a connection when systemd is busy or executes ``daemon-reexec``."""
_RETRIED_NAMES: Final = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("NoReply", "Timeout", "TimedOut", "Disconnected", "LimitsExceeded", "NoServer", "NameHasNoOwner", "ServiceUnknown")
)
_UNKNOWN: Final = frozenset(f"org.freedesktop.DBus.Error.{name}" for name in ("PropertyReadOnly", "UnknownProperty"))
_DENIED: Final = frozenset(f"org.freedesktop.DBus.Error.{name}" for name in ("AccessDenied", "InteractiveAuthorizationRequired"))
_NO_UNIT: Final = f"{SYSTEMD}.NoSuchUnit"
_EXISTS: Final = f"{SYSTEMD}.UnitExists"


def start_scope(unit: str, properties: Properties, path: str, *, user: bool, pid: int) -> None:
    """Create a scope with a process in it, and wait until the process is there.

    Args:
        path: the cgroup of the scope, as in /proc/PID/cgroup.
        user: use the systemd of the user.

    Raises:
        UnsupportedError: systemd does not run, or does not know a property.
        OSError: it refuses (EEXIST: the unit is running already), or does not answer in time.
    """

    requested = False

    def start(bus: SystemdConnection) -> None:
        nonlocal requested
        body = _variants(properties)
        body.append(("PIDs", ("au", [pid])))
        requested = True
        try:
            [job] = bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", body, [])
        except DBusError as error:
            if error.name != _EXISTS:
                raise
            if path in _cgroups_of(pid):
                return  # an earlier attempt succeeded, but its answer was lost
            _reset_failed(bus, unit)
            [job] = bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", body, [])
        result = bus.wait_job(job)
        if result != "done":
            raise OSError(errno.EIO, f"systemd could not start {unit}: its job ended as {result}; see `systemctl status`")

    try:
        _request(start, user)
        if path not in (found := _cgroups_of(pid)):
            raise OSError(errno.EXDEV, f"systemd put {unit} into {' and '.join(found)}, not into {path}")
    except (FileExistsError, UnsupportedError):
        raise  # nothing was created
    except BaseException as error:
        try:
            if requested:
                stop(unit, user=user)
        except OSError as again:
            error.add_note(f"the unit {unit} was not stopped: {again}")
        raise


def _reset_failed(bus: SystemdConnection, unit: str) -> None:
    """Forget the failure of an earlier unit with this name. Raises FileExistsError: it is running."""
    bus_path = "/org/freedesktop/systemd1/unit/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    properties = (SYSTEMD, bus_path, "org.freedesktop.DBus.Properties")
    [(_, state)] = bus.call(properties, "Get", "ss", f"{SYSTEMD}.Unit", "ActiveState")
    if state not in ("failed", "inactive"):
        raise FileExistsError(errno.EEXIST, f"systemd has {unit} already, and it is {state}: choose another linux.cgroupsPath")
    _call_if_exists(bus, "ResetFailedUnit", "s", unit)


def attach(unit: str, below: str, pid: int, *, user: bool) -> None:
    """Move a process into a delegated unit, or into the cgroup ``below`` it. Raises as `start_scope`."""
    _request(lambda bus: bus.manager("AttachProcessesToUnit", "ssau", unit, below, [pid]), user)


def set_properties(unit: str, properties: Properties, *, user: bool) -> None:
    """Change properties of a running unit for its lifetime. Raises UnsupportedError, OSError as `start_scope` does."""
    body = _variants(properties)
    _request(lambda bus: bus.manager("SetUnitProperties", "sba(sv)", unit, True, body), user)


def stop(unit: str, *, user: bool) -> None:
    """Stop a unit and forget its result. No effect if it does not exist. Raises UnsupportedError, OSError."""

    def end(bus: SystemdConnection) -> None:
        job = _call_if_exists(bus, "StopUnit", "ss", unit, "replace")
        if job:
            bus.wait_job(job[0])
            _call_if_exists(bus, "ResetFailedUnit", "s", unit)

    _request(end, user)


def _call_if_exists(bus: SystemdConnection, member: str, signature: str, *body: object) -> tuple[str, ...]:
    try:
        return bus.manager(member, signature, *body)
    except DBusError as error:
        if error.name != _NO_UNIT:
            raise
        return ()


def _request(request: Callable[[SystemdConnection], T], user: bool) -> T:
    """Execute a request. It is repeated if the connection fails, until the time is over."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with SystemdConnection(user=user, deadline=deadline) as bus:
                return request(bus)
        except DBusError as error:
            if error.name not in _RETRIED_NAMES or time.monotonic() + _PAUSE > deadline:
                raise _translate(error) from error
        except TimeoutError as error:
            raise TimeoutError(errno.ETIMEDOUT, f"systemd did not answer within {TIMEOUT:.0f} s") from error
        except OSError as error:
            if error.errno not in _RETRIED or time.monotonic() + _PAUSE > deadline:
                raise
        time.sleep(_PAUSE)


def _translate(error: DBusError) -> Exception:
    message = f"systemd says: {error.message or error.name}"
    if error.name in _UNKNOWN:
        return UnsupportedError(f"{message}: this version of systemd lacks it")
    if error.name in _DENIED:
        return PermissionError(errno.EACCES, message)
    if error.name in _RETRIED_NAMES:
        return TimeoutError(errno.ETIMEDOUT, message)
    return OSError(errno.EINVAL, message)


def _variants(properties: Properties) -> list[tuple[str, tuple[str, object]]]:
    return [(name, (signature, _to_jeepney(value, signature))) for name, signature, value in properties]


def _to_jeepney(value: object, signature: str) -> object:
    """Convert a value to the types of jeepney: arrays to lists or bytes, structures to tuples."""
    if signature == "ay" and isinstance(value, tuple):
        return bytes(value)
    if signature.startswith("a") and isinstance(value, tuple):
        return [_to_jeepney(item, signature[1:]) for item in value]
    return value


def _cgroups_of(pid: int) -> list[str]:
    """Return the cgroups of a process that systemd manages: on v2, or in the v1 hierarchy of systemd."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as own:
        rows = [line.rstrip("\n").split(":", 2) for line in own]
    return [path for _, name, path in rows if name in ("", "name=systemd")]
