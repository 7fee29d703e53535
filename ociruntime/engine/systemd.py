"""The systemd cgroup manager at work: a scope around the init, its properties, and its end."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from ..errors import UnsupportedError
from .dbus import SYSTEMD, Connection, DBusError

T = TypeVar("T")
Properties = Sequence[tuple[str, str, object]]
"""Names, D-Bus types and values, as `ociruntime.plan.cgroups.systemd.Property` has them."""

TIMEOUT: Final = 30.0
"""Seconds for one request, all attempts together."""
_PAUSE: Final = 0.05
_AGAIN: Final = frozenset(
    (errno.EAGAIN, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM)
)
"""A connection that could not be made or that broke: systemd is busy, or on its way through ``daemon-reexec``."""
_AGAIN_NAMES: Final = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("NoReply", "Timeout", "TimedOut", "Disconnected", "LimitsExceeded", "NoServer", "NameHasNoOwner", "ServiceUnknown")
)
_UNKNOWN: Final = frozenset(f"org.freedesktop.DBus.Error.{name}" for name in ("PropertyReadOnly", "UnknownProperty"))
_DENIED: Final = frozenset(f"org.freedesktop.DBus.Error.{name}" for name in ("AccessDenied", "InteractiveAuthorizationRequired"))
_NO_UNIT: Final = f"{SYSTEMD}.NoSuchUnit"
_EXISTS: Final = f"{SYSTEMD}.UnitExists"


def start_scope(unit: str, properties: Properties, path: str, *, user: bool, pid: int) -> None:
    """Have systemd make a scope around a process, and wait until the process is in it.

    Args:
        path: the cgroup in which the process must be then, as in /proc/PID/cgroup.
        user: ask the user's own systemd.

    Raises:
        UnsupportedError: there is no systemd, or it does not know a property.
        OSError: it refuses (EEXIST: the unit is running already), or did not do it in time.
    """

    asked = False

    def start(bus: Connection) -> None:
        nonlocal asked
        body = _variants(properties)
        body.append(("PIDs", ("au", [pid])))
        asked = True
        try:
            [job] = bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", body, [])
        except DBusError as error:
            if error.name != _EXISTS:
                raise
            if path in _cgroups_of(pid):
                return  # an attempt before this one succeeded without our hearing of it
            _clear(bus, unit)
            [job] = bus.manager("StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", body, [])
        result = bus.finished(job)
        if result != "done":
            raise OSError(errno.EIO, f"systemd could not start {unit}: its job ended as {result}; see `systemctl status`")

    try:
        _ask(start, user)
        if path not in (found := _cgroups_of(pid)):
            raise OSError(errno.EXDEV, f"systemd put {unit} into {' and '.join(found)}, not into {path}")
    except (FileExistsError, UnsupportedError):
        raise  # nothing of ours was made
    except BaseException as error:
        try:
            if asked:
                stop(unit, user=user)
        except OSError as again:
            error.add_note(f"{unit} could not be stopped either: {again}")
        raise


def _clear(bus: Connection, unit: str) -> None:
    """Make room for a unit whose last run failed. Raises FileExistsError when it is running."""
    bus_path = "/org/freedesktop/systemd1/unit/" + "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in unit)
    properties = (SYSTEMD, bus_path, "org.freedesktop.DBus.Properties")
    [(_, state)] = bus.call(properties, "Get", "ss", f"{SYSTEMD}.Unit", "ActiveState")
    if state not in ("failed", "inactive"):
        raise FileExistsError(errno.EEXIST, f"systemd has {unit} already, and it is {state}: choose another linux.cgroupsPath")
    _unless_gone(bus, "ResetFailedUnit", "s", unit)


def attach(unit: str, below: str, pid: int, *, user: bool) -> None:
    """Move a process of ours into a unit that is delegated, or a cgroup ``below`` it. Raises as `start_scope` does."""
    _ask(lambda bus: bus.manager("AttachProcessesToUnit", "ssau", unit, below, [pid]), user)


def set_properties(unit: str, properties: Properties, *, user: bool) -> None:
    """Change properties of a running unit, until it ends. Raises UnsupportedError, OSError as `start_scope` does."""
    body = _variants(properties)
    _ask(lambda bus: bus.manager("SetUnitProperties", "sba(sv)", unit, True, body), user)


def stop(unit: str, *, user: bool) -> None:
    """Stop a unit and forget how it ended; one that is not there is fine. Raises UnsupportedError, OSError."""

    def end(bus: Connection) -> None:
        job = _unless_gone(bus, "StopUnit", "ss", unit, "replace")
        if job:
            bus.finished(job[0])
            _unless_gone(bus, "ResetFailedUnit", "s", unit)

    _ask(end, user)


def _unless_gone(bus: Connection, member: str, signature: str, *body: object) -> tuple[str, ...]:
    try:
        return bus.manager(member, signature, *body)
    except DBusError as error:
        if error.name != _NO_UNIT:
            raise
        return ()


def _ask(request: Callable[[Connection], T], user: bool) -> T:
    """Carry a request out, again when the connection is at fault, until the time is up."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            with Connection(user=user, deadline=deadline) as bus:
                return request(bus)
        except DBusError as error:
            if error.name not in _AGAIN_NAMES or time.monotonic() + _PAUSE > deadline:
                raise _translated(error) from error
        except TimeoutError as error:
            raise TimeoutError(errno.ETIMEDOUT, f"systemd did not answer within {TIMEOUT:.0f} s") from error
        except OSError as error:
            if error.errno not in _AGAIN or time.monotonic() + _PAUSE > deadline:
                raise
        time.sleep(_PAUSE)


def _translated(error: DBusError) -> Exception:
    words = f"systemd says: {error.message or error.name}"
    if error.name in _UNKNOWN:
        return UnsupportedError(f"{words}: this version of systemd lacks it")
    if error.name in _DENIED:
        return PermissionError(errno.EACCES, words)
    if error.name in _AGAIN_NAMES:
        return TimeoutError(errno.ETIMEDOUT, words)
    return OSError(errno.EINVAL, words)


def _variants(properties: Properties) -> list[tuple[str, tuple[str, object]]]:
    return [(name, (signature, _listed(value, signature))) for name, signature, value in properties]


def _listed(value: object, signature: str) -> object:
    """Arrays as lists or bytes, structures as tuples, as jeepney takes them."""
    if signature == "ay" and isinstance(value, tuple):
        return bytes(value)
    if signature.startswith("a") and isinstance(value, tuple):
        return [_listed(item, signature[1:]) for item in value]
    return value


def _cgroups_of(pid: int) -> list[str]:
    """Where systemd has a process: in the v2 hierarchy, or in the one of v1 that is its own."""
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as own:
        rows = [line.rstrip("\n").split(":", 2) for line in own]
    return [path for _, name, path in rows if name in ("", "name=systemd")]
