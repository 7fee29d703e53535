"""Resource limits as callers write them: one parser of each kind, for every call and for the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

from .arguments import shown

__all__ = ["parse_count", "parse_cpus", "parse_limit", "parse_size"]

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
