"""The systemd cgroup manager: creating the scope of a container, changing its properties, and stopping it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ..errors import UnsupportedError
from .dbus import SYSTEMD, DBusError, SystemdConnection

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
        UnsupportedError: there is no systemd, or it does not know a property.
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
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as own:
        rows = [line.rstrip("\n").split(":", 2) for line in own]
    return [path for _, name, path in rows if name in ("", "name=systemd")]
