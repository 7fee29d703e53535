"""Runs the fuzz targets of `targets`: ``./run fuzz -- NAME SECONDS [--seed N]``.

An input is bytes, made from a seed and its number alone. A target returns whether it accepted them, or raises one of the
documented errors. Everything else is a finding: another exception, a broken round trip, too much time or memory, or a file
descriptor that stays open. The input of a finding is written to a file, and ``--replay FILE`` tries it again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from ociruntime.errors import OCIRuntimeError

TIME_LIMIT = 20.0
"""Seconds of CPU time for one input."""
WAIT_LIMIT = 300.0
"""Seconds for one input. Other programs may use the machine at the same time."""
MEMORY_LIMIT = 64 << 20
"""Bytes that Python allocates for one input. Tracing them is slow, so only one input in `_TRACED` is measured."""
_TRACED = 64


class Target(NamedTuple):
    """What is fuzzed."""

    generate: Callable[[random.Random], bytes]
    """Returns an input."""
    exercise: Callable[[bytes], bool]
    """Uses an input; returns whether it was accepted. Raises OCIRuntimeError if it was refused."""


class Finding(Exception):
    """An input that does what it must not do."""


def _time_is_over(number: int, frame: FrameType | None) -> None:
    raise Finding(f"more than {TIME_LIMIT:.0f} seconds of CPU time, or {WAIT_LIMIT:.0f} seconds")


@contextmanager
def _bounded(traced: bool) -> Iterator[None]:
    """Check what one input uses. Raises Finding."""
    fds = len(os.listdir("/proc/self/fd"))
    if traced:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
    signal.setitimer(signal.ITIMER_REAL, WAIT_LIMIT)
    try:
        yield
        if traced and (peak := tracemalloc.get_traced_memory()[1]) > MEMORY_LIMIT:
            raise Finding(f"{peak} bytes of memory")
        if len(os.listdir("/proc/self/fd")) != fds:
            raise Finding("file descriptors stay open")
    finally:
        for timer in signal.ITIMER_PROF, signal.ITIMER_REAL:
            signal.setitimer(timer, 0)
        if traced:
            tracemalloc.stop()


def attempt(target: Target, data: bytes, *, traced: bool = True) -> bool:
    """Use one input; return whether it was accepted. Any exception is a finding."""
    before = {number: signal.signal(number, _time_is_over) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        with _bounded(traced), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return target.exercise(data)
            except OCIRuntimeError as error:
                if not str(error).replace("\n", " ").isprintable():
                    raise Finding(f"the message is not printable: {error!r:.300}") from error
                return False
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fuzz(name: str, target: Target, seed: int, *, inputs: int, seconds: float, first: int = 0) -> tuple[int, int]:
    """Try inputs until their number or the time is reached; return how many were tried and how many accepted.

    Raises:
        Exception: the finding, with the file of its input in a note.
    """
    tried = accepted = 0
    end = time.monotonic() + seconds
    while tried < inputs and time.monotonic() < end:
        number = first + tried
        data = target.generate(random.Random(f"{seed} {number}"))
        try:
            accepted += attempt(target, data, traced=number % _TRACED == 0)
        except Exception as error:
            path = Path(f"fuzz-{name}-{seed}-{number}").absolute()
            path.write_bytes(data)
            error.add_note(f"input {number} of seed {seed}: ./run fuzz -- {name} --replay {path}")
            raise
        tried += 1
    return tried, accepted


def main() -> int:
    from .targets import TARGETS

    parser = argparse.ArgumentParser(prog="./run fuzz --", description="Fuzz a reader of untrusted input.")
    parser.add_argument("name", choices=TARGETS)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="stop after this many")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--replay", type=Path, help="the file of an input to try, and no other")
    args = parser.parse_args()
    with TARGETS[args.name]() as target:
        if args.replay:
            print("accepted" if attempt(target, args.replay.read_bytes()) else "refused")
            return 0
        print(f"seed {args.seed}", flush=True)
        tried, accepted = fuzz(args.name, target, args.seed, inputs=args.inputs, seconds=args.seconds, first=args.first)
    print(f"{args.name}: {tried} inputs, {accepted} accepted, no finding")
    return 0
