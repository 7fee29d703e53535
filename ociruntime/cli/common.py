"""What several commands share: arguments, forwarding of signals, tables."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

Parser = argparse.ArgumentParser
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Verb(NamedTuple):
    """One command: what runs it, what it is for, and its own arguments."""

    run: Callable[[argparse.Namespace], int | None]
    text: str
    arguments: Callable[[Parser], None]


class Refuse(argparse.Action):
    """A flag that others have and that is not carried out here: said, not ignored."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        parser.error(f"{option} is not supported")


def container_argument(sub: Parser) -> None:
    sub.add_argument("id", metavar="ID")


def bundle_argument(sub: Parser) -> None:
    sub.add_argument("--bundle", "-b", default=".", metavar="DIR", help="bundle directory (default: this one)")


def format_argument(sub: Parser) -> None:
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")


def shell_status(code: int) -> int:
    return 128 - code if code < 0 else code


@contextmanager
def forwarding(pidfd: int) -> Iterator[None]:
    """Pass the signals that people send to this process on to the container."""

    def forward(number: int, frame: FrameType | None) -> None:
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            pass  # it ended by itself

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def when(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // 10**9))


def table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
