"""Checks of the arguments of public calls, and one parser of each kind of resource limit, for calls and the command line.

Each error names the argument and its value, and says what is needed.

Nothing heavy is imported: short commands check their arguments too.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from datetime import timedelta

Duration: TypeAlias = "float | str | timedelta"
"""Seconds, a time as ``"500ms"``, ``"30s"``, ``"1h30m"`` or ``"2 days"``, or a timedelta."""

_repr: Final = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxlevel = 3
_MAX_INDENT: Final = 64
_MAX_WINDOW: Final = 65535
_MAX_PATH: Final = 4095
_MAX_SECONDS: Final = float(1 << 31)
"""More than 60 years. Above the kernel's and the interpreter's own limits, a wait has none."""


def shown(value: object) -> str:
    """Return the representation of any value, in a length that fits into a message."""
    return _repr.repr(value)


def printable(text: str, keep: str = "") -> str:
    """Return a text in which characters that are not printable, but for those to keep, are escapes as in Python."""
    return "".join(char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text)


def size_text(size: int) -> str:
    """Return a number of bytes as text: ``1.9 MiB``."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{size} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def wrong_type(name: str, value: object, needed: str) -> TypeError:
    """Return the error for an argument of another type. ``needed`` is a noun phrase in the singular."""
    return TypeError(f"{name} is {shown(value)}: {needed} is needed")


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that a name is most like, or None if it is not like one of them."""
    from difflib import get_close_matches  # imported here for its cost: only errors need it

    return next(iter(get_close_matches(name, known, 1, cutoff)), None)


def check_type(name: str, value: object, kinds: type | tuple[type, ...], needed: str) -> None:
    """Raise TypeError for a value that is not an instance of one of these types. A bool is not an int."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
        raise wrong_type(name, value, needed)


def check_bool(name: str, value: object) -> None:
    """Raise TypeError for a value that is not True or False."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError for a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {shown(value)}: one of {', '.join(map(str, choices))} is needed")


def check_int(name: str, value: object, least: int | None = None, most: int | None = None) -> None:
    """Raise TypeError for a value that is not an int, and ValueError for one out of range."""
    check_type(name, value, int, "an int")
    assert isinstance(value, int)
    if (least is not None and value < least) or (most is not None and value > most):
        limits = f"{least} to {most}" if least is not None and most is not None else f"at least {least}"
        raise ValueError(f"{name} is {shown(value)}: {limits} is needed")


def check_str(name: str, value: object) -> None:
    """Raise TypeError for a value that is not a str, and ValueError for one that the kernel cannot take."""
    check_type(name, value, str, "a str")
    assert isinstance(value, str)
    encodable(name, value)


def check_host(host: object) -> None:
    """Raise TypeError for a value that is not like `ociruntime.Host`."""
    if not hasattr(host, "last_cap"):
        raise wrong_type("host", host, "a Host")


def check_indent(indent: object) -> None:
    """Check the indentation of JSON text: a number of spaces, or None for one line. Raises TypeError, ValueError."""
    if indent is not None:
        check_int("indent", indent, 0, _MAX_INDENT)


def check_fd(name: str, value: object) -> None:
    """Raise TypeError for a value that is not an int, and OSError for one that is not an open file descriptor."""
    check_int(name, value)
    assert isinstance(value, int)
    try:
        os.fstat(value)
    except (OSError, OverflowError) as error:
        raise OSError(errno.EBADF, f"{name} is descriptor {value}, which is not open") from error


def check_window(rows: object, columns: object) -> None:
    """Check the size of a terminal in characters. Raises TypeError, ValueError."""
    check_int("rows", rows, 0, _MAX_WINDOW)
    check_int("columns", columns, 0, _MAX_WINDOW)


def encodable(name: str, text: str) -> str:
    """Return a text that goes to the kernel.

    Raises:
        ValueError: it contains a NUL, which would end it there, or a character that has no bytes in the encoding of file names.
    """
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL: {shown(text)}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is {shown(text)}: {text[error.start]!r} cannot be encoded as {error.encoding}") from None
    return text


def parse_path(name: str, value: object) -> str:
    """Return a path as a str. Raises TypeError, ValueError: it is empty, or `encodable` refuses it."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise wrong_type(name, value, "a path as a str or os.PathLike")
    if not path:
        raise ValueError(f"{name} is empty: a path is needed")
    if len(os.fsencode(encodable(name, path))) > _MAX_PATH:
        raise ValueError(f"{name} is {shown(path)}: a path has at most {_MAX_PATH} bytes")
    return path


def parse_args(args: Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return a command line as a tuple of strings.

    Raises:
        TypeError: ``args`` is a string, which would be split into its letters; or an item is neither a string nor a path.
        ValueError: an argument contains a NUL.
    """
    if isinstance(args, str | bytes):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
    if isinstance(args, Mapping | Set) or not isinstance(args, Iterable):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}")
    items = tuple(args)
    for number, item in enumerate(items):
        if not isinstance(item, str | bytes | os.PathLike):
            raise wrong_type(f"args[{number}]", item, "a str or a path")
    return tuple(encodable(f"args[{number}]", os.fsdecode(item)) for number, item in enumerate(items))


def parse_seconds(name: str, value: object) -> float | None:
    """Return a `Duration` in seconds; None stays None, and a time that is longer than any wait becomes the longest.

    Raises:
        TypeError, ValueError: it is not a time.
    """
    if value is None:
        return None
    total_seconds: Callable[[], float] | None = getattr(value, "total_seconds", None)  # of a timedelta
    if isinstance(value, str):
        seconds = _read_duration(value)
        if seconds is None:
            raise ValueError(f"{name} is {shown(value)}: {_TIMES} is needed")
    elif total_seconds is not None:
        seconds = total_seconds()
    else:
        check_type(name, value, (int, float), f"{_TIMES}, a timedelta or None")
        assert isinstance(value, int | float)
        seconds = value
    if math.isnan(seconds):
        raise ValueError(f"{name} is not a number")
    return seconds if seconds < _MAX_SECONDS else _MAX_SECONDS


_TIMES: Final = "a number of seconds, or a time such as '500ms', '30s' or '1h30m'"
_DURATION: Final = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([a-zµ]*)\s*", re.IGNORECASE)
_SECONDS: Final = {
    unit: seconds
    for units, seconds in (
        ("ns", 1e-9),
        ("us µs", 1e-6),
        ("ms", 1e-3),
        ("s sec second seconds", 1.0),
        ("m min minute minutes", 60.0),
        ("h hour hours", 3600.0),
        ("d day days", 86400.0),
    )
    for unit in units.split()
}


def _read_duration(text: str) -> float | None:
    """Return the seconds of text such as ``5``, ``500ms`` or ``1m30s``; None if it is not a time."""
    parts: list[tuple[str, str]] = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        return None
    if len(parts) == 1 and not parts[0][1]:
        return float(parts[0][0])
    if any(unit.lower() not in _SECONDS for _, unit in parts):
        return None
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)


def parse_timeout(timeout: object) -> float | None:
    """Return the argument ``timeout``. See `parse_seconds`."""
    return parse_seconds("timeout", timeout)


def check_mapping(name: str, value: object) -> None:
    """Raise TypeError for a value that is not a mapping with str as keys."""
    check_type(name, value, Mapping, "a mapping")
    assert isinstance(value, Mapping)
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {shown(key)}: a str is needed")


def optional(check: Callable[..., Any], name: str, value: object, *limits: Any) -> None:
    """Make a check unless the value is None."""
    if value is not None:
        check(name, value, *limits)


# ---- limits as callers write them ----

T = TypeVar("T")

_UNITS: Final = {unit: 1 << 10 * power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_SIZE: Final = re.compile(r"(\d{1,19})(\.\d{1,19})?\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_MAX: Final = (1 << 63) - 1
_LEAST_CPUS: Final = 0.01
"""The kernel's smallest quota, 1 ms, of a period of 100 ms."""
_MAX_CPUS: Final = 1 << 20
"""More CPUs than any machine has."""


def parse_limit(name: str, parse: Callable[[Any], T], value: object) -> T:
    """Return a limit by one of the other functions. The messages of TypeError and ValueError then begin with the name."""
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is {error}") from None


def parse_size(value: int | str) -> int:
    """Return the bytes of a number, or of text such as ``"512M"``, ``"1.5GiB"`` or ``"64k"``; -1 stands for no limit.

    Units are powers of 1024.

    Raises:
        TypeError: it is neither a number of bytes nor text.
        ValueError: it is not a size from 1 byte on.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{shown(value)}: {_SIZES}")
    size = value if isinstance(value, int) else _read_size(value.strip())
    if size is None or not (size == -1 or 0 < size <= _MAX):
        raise ValueError(f"{shown(value)}: {_SIZES}")
    return size


_SIZES: Final = "a number of bytes from 1 on, a number with K, M, G, T or P such as '512M', or -1 for no limit is needed"


def _read_size(text: str) -> int | None:
    if text == "-1":
        return -1
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    whole, fraction, unit = match.groups()
    factor = _UNITS[unit.lower()]
    return int(whole) * factor + int(float(fraction or 0) * factor)


def parse_cpus(value: float) -> float:
    """Return a number of CPUs. Raises TypeError for what is not a number, and ValueError below 0.01."""
    message = f"{shown(value)}: a number of CPUs from {_LEAST_CPUS} on is needed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(message)
    if not _LEAST_CPUS <= value < _MAX_CPUS:
        raise ValueError(message)
    return value


def parse_count(value: int) -> int:
    """Return a number of tasks; -1 stands for no limit. Raises TypeError for what is not an integer, and ValueError below 1."""
    message = f"{shown(value)}: a number of tasks from 1 on, or -1 for no limit is needed"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message)
    if not (value == -1 or 0 < value <= _MAX):
        raise ValueError(message)
    return value
