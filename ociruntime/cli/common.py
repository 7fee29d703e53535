"""What several commands share: arguments, tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..typed import NamedTuple
from .options import Options, Parser


class Verb(NamedTuple):
    """One command: what runs it, what it is for, and its own arguments."""

    run: Callable[[Options], int | None]
    text: str
    arguments: Callable[[Parser], None]


def container_argument(sub: Parser) -> None:
    sub.add_argument("id", metavar="ID")


def bundle_argument(sub: Parser) -> None:
    sub.add_argument("--bundle", "-b", default=".", metavar="DIR", help="bundle directory (default: this one)")


def format_argument(sub: Parser) -> None:
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")


def shell_status(code: int) -> int:
    return 128 - code if code < 0 else code


class Interrupted(BaseException):
    """A signal ends what we do."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
