"""What several commands share: values of arguments, exit statuses, tables."""

from __future__ import annotations

import re
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Final

_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATIONS: Final = {"": 1.0, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZES: Final = {unit: 1024**power for power, units in enumerate(("b", "k", "m", "g", "t", "p")) for unit in units}


class Interrupted(BaseException):
    """A signal ends the command.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def parse_duration(text: str) -> float:
    """Return the seconds of ``5``, ``500ms`` or ``1m30s``. Raises ArgumentTypeError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|$)", text)
    seconds = sum(float(number) * _DURATIONS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ArgumentTypeError(f"{text!r} is not a time such as 500ms, 5s or 1m30s")
    return seconds


def parse_size(text: str) -> int:
    """Return the bytes of ``1048576``, ``64m`` or ``1.5g``, or -1. Raises ArgumentTypeError."""
    found = re.fullmatch(r"(-1|\d+(?:\.\d+)?) ?([bkmgtp]?)(?:i?b)?", text.lower())
    if found is None:
        raise ArgumentTypeError(f"{text!r} is not a size such as 1048576, 64m or 1.5g")
    return int(float(found[1]) * _SIZES[found[2]]) if found[2] else int(float(found[1]))


def parse_time(text: str) -> int:
    """Return a time, RFC 3339 or an age as ``10m``, in nanoseconds since the epoch. Raises ArgumentTypeError."""
    if text[-1:] in _AGES and text[:-1].replace(".", "", 1).isdigit():
        return time.time_ns() - int(float(text[:-1]) * _AGES[text[-1]] * 10**9)
    from datetime import datetime  # imported here for its cost

    try:
        return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a time: use RFC 3339, or an age such as 90s, 10m, 2h, 1d") from None


def shell_status(code: int) -> int:
    """Return the exit status with which a shell reports an exit code: 128+n for signal n."""
    return 128 - code if code < 0 else code


def format_time(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which has the titles, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
