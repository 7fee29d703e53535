#!/usr/bin/env python3
"""Fuzz the init: ``fuzz_init.py [SECONDS] [--seed N] [--rounds N] [--init PROGRAM]`` runs programs until the time is over.

Programs for the init are made from the table of its operations, with plausible and with wild values, and their bytes are then
changed. Whatever the bytes are, the init ends by itself with a report; with ``--init`` it is one that was built with the sanitizers,
which end it with another status. A program that breaks this is printed, and the exit status is 1 then; ``--seed`` makes it again.

The init runs as nobody, in no namespaces of its own, so no program has any power over the machine. As root only.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence

from ociruntime.engine import launch
from ociruntime.engine.launch import Init, own_child
from ociruntime.engine.processes import describe_state, ended_within
from ociruntime.plan.model import encode
from ociruntime.plan.ops import NO_SLOT, OPS, REPORTING, WAITING, Report

ENDS = (0, 255)
"""The exit statuses of an init that ends by itself."""
NOBODY = 65534
PATIENCE = 10.0
"""Seconds for one program."""
WAITS = frozenset({"reap", "gate", "serve", "guard"})
"""Operations that wait for something that does not come, or for a child, which then forks other processes than this one's."""
REFUSED = frozenset({"unshare", "mount", "prctl", "rlimit"})
"""Operations that get numbers which the kernel refuses: their success can end the init, or change what the next ones may do."""
NUMBERS = (0, 1, 2, 3, 4, 8, 0o755, 0x1000, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
NAMES = ("", "/", ".", "..", "a", "a/b", "/a/b/../c", "tmpfs", "self/attr/exec", "file", "/" + "z" * 300, "x" * 5000, "\N{SNOWMAN}")
Step = tuple[int, str, tuple[object, ...]]


def operations(raw: bytes) -> Iterator[str]:
    """Yield the names of the operations in a program, as the init reads them."""
    names, at = {op.code: name for name, op in OPS.items()}, 16
    while at + 8 <= len(raw):
        length, code = struct.unpack_from("=HH", raw, at)
        if length < 8:
            return
        yield names.get(code, "")
        at += length


class Programs:
    """Makes programs, good ones and bad ones."""

    def __init__(self, seed: int, directory: str) -> None:
        self._random = random.Random(seed)
        self._directory = directory

    def make(self) -> bytes:
        """Return the next program."""
        while True:
            raw = self._change(bytearray(encode(self._steps(), 0)))
            if WAITS.isdisjoint(operations(raw)):  # a change can make such an operation of another one
                return raw

    def _steps(self) -> list[Step]:
        rng = self._random
        here = self._directory
        known: list[tuple[str, tuple[object, ...]]] = [
            ("target", (1000, "/a/b", 0, 0o755, NO_SLOT, 1001)),
            ("mkdir", (1000, "d", 0o755)),
            ("symlink", (1000, "l", "target")),
            ("mask", (1000, "/no/such", 1001)),
            ("readonly", (1000, "/no/such")),
            ("chdir", (here, 1)),
            ("handout", (1000,)),
            ("sync", (0,)),
            ("fork", (0,)),
            ("affinity", (bytes([255] * 128),)),
            ("copyup", (1000, 1001)),
            ("close_all", ()),
            ("keep_page", ()),
            ("fork_last", ()),
        ]
        failing: list[tuple[str, tuple[object, ...]]] = [
            ("write", (1000, "file", b"data")),
            ("lookup", (1000, ("/x", "/y", "/" + "z" * 300))),
            ("setgroups", (b"", 0)),
            ("exec", (("/no/such/program",), ("a", "b"), ("A=1", "B=2"))),
        ]
        steps = [step for step in known if rng.random() < 0.4]
        steps += [self._step(name) for name in rng.sample(sorted(OPS), rng.choice((0, 0, 1, 2, 6))) if name not in WAITS]
        rng.shuffle(steps)
        if rng.random() < 0.8:
            steps.insert(0, ("open", (NO_SLOT, here, os.O_PATH, 0, 0, 1000)))
        if rng.random() < 0.6:
            steps.append(rng.choice(failing))
        return [(number, name, values) for number, (name, values) in enumerate(steps, 1)]

    def _step(self, name: str) -> tuple[str, tuple[object, ...]]:
        return name, tuple(self._value(kind, name) for _, kind in OPS[name].fields)

    def _value(self, kind: str, name: str) -> object:
        rng = self._random
        if kind == "slot":
            return rng.choice((NO_SLOT, 0, 5, 1000, 1001, 1023))
        if kind == "num":
            return rng.choice(NUMBERS) if name not in REFUSED else (1 << 64) - 1
        if kind == "str":
            return rng.choice(NAMES)
        if kind == "list":
            return tuple(rng.choice(NAMES) for _ in range(rng.randrange(5)))
        return rng.randbytes(rng.choice((0, 1, 4, 8, 48, 128, 1000)))

    def _change(self, raw: bytearray) -> bytes:
        rng = self._random
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 5, 40))):
            kind, at = rng.randrange(6), rng.randrange(max(1, len(raw)))
            if not raw:
                break
            if kind == 0:
                raw[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                raw[at] = rng.choice((0, 1, 127, 128, 255))
            elif kind == 2 and len(raw) >= 8:
                at &= ~3
                number = rng.choice((0, 1, len(raw), len(raw) + 1, 2**31, 2**32 - 1, rng.getrandbits(32)))
                raw[at : at + 4] = struct.pack("=I", number)
            elif kind == 3:
                del raw[at : at + rng.randrange(1, 40)]
                self._fix_length(raw)
            elif kind == 4:
                raw[at:at] = rng.randbytes(rng.randrange(1, 20)) + b"/" * rng.choice((0, 5000))
                self._fix_length(raw)
            elif len(raw) >= 16:
                raw[12:16] = struct.pack("=I", rng.choice((0, 1, 1024, 1025, 2**32 - 1)))
        return bytes(raw)

    def _fix_length(self, raw: bytearray) -> None:
        if self._random.random() < 0.7 and len(raw) >= 8:
            raw[4:8] = struct.pack("=I", len(raw))


class Stuck(Exception):
    """An init that does not end."""


def run(raw: bytes, stdio: Sequence[int]) -> tuple[int, bool]:
    """Run one program. Return the exit status, or the negative signal, and whether an error was reported or the init has forked."""
    init = Init.launch(raw, flags=0, stdio=stdio)
    deadline = time.monotonic() + PATIENCE

    def check() -> None:
        if time.monotonic() > deadline:
            raise Stuck

    failed = False
    # An init that ends before it has read an answer loses its last reports: only what waits for an answer gets one.
    answered = (name in WAITING for name in operations(raw) if name in REPORTING[Report.FD])
    try:
        while True:
            init.wait(check)
            message = init.receive()
            if message is None:
                break
            failed |= message.kind in (Report.ERROR, Report.HOOK)
            if message.kind is Report.FORKED:
                init.follow(message.fd if message.fd >= 0 else own_child(message.value))
                failed = True  # the child may have no page, for an error that the socket does not carry
            elif message.fd >= 0:
                os.close(message.fd)
            if message.kind in (Report.SYNC, Report.FORKED) or (message.kind is Report.FD and next(answered, False)):
                try:
                    init.go()
                except BrokenPipeError:
                    pass
        if not ended_within(init.pidfd, max(0.0, deadline - time.monotonic())):
            raise Stuck(describe_state(init.pid))
        ended = os.waitid(os.P_PIDFD, init.pidfd, os.WEXITED)
        failed |= init.progress.error > 0
    except Stuck:
        init.kill()
        raise
    init.close()
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, failed


def become_nobody(directory: str) -> None:
    """Give up all privileges: programs run as the user nobody."""
    os.chdir(directory)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    if ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) != 0:  # PR_SET_DUMPABLE: /proc/self/fd is closed otherwise
        raise OSError("prctl")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF)
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="end after so many programs")
    parser.add_argument("--init", help="the init to run (default: that of the package)")
    arguments = parser.parse_args()
    if arguments.init:
        setattr(launch, "_INIT", arguments.init)  # noqa: B010 - it is final
    ends: Counter[int] = Counter()
    # Not in a directory in which every user can make files: programs have paths that are nearly these.
    with tempfile.TemporaryDirectory(prefix="fuzz-init-", dir="/run") as above:
        os.chmod(above, 0o777)
        log = os.memfd_create("stderr")
        null = os.open("/dev/null", os.O_RDWR)
        worker = os.fork()  # the directory is removed as root
        if worker:
            _, status = os.waitpid(worker, 0)
            return os.waitstatus_to_exitcode(status)
        status = 1
        try:
            launch.init_memfd()
            become_nobody(above)
            status = fuzz(arguments, above, ends, (null, null, log))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)


def fuzz(arguments: argparse.Namespace, directory: str, ends: Counter[int], stdio: Sequence[int]) -> int:
    """Run programs until the time is over. Return the exit status."""
    programs = Programs(arguments.seed, directory)
    deadline = time.monotonic() + arguments.seconds
    while sum(ends.values()) < arguments.rounds and time.monotonic() < deadline:
        raw = programs.make()
        where = f"seed {arguments.seed} round {sum(ends.values())}: {raw.hex()}"
        try:
            status, failed = run(raw, stdio)
        except (Stuck, TimeoutError) as error:
            print(f"it does not end: {error}: {where}")
            return 1
        ends[status] += 1
        if status not in ENDS or (status == 255 and len(raw) >= 16 and not failed):
            print(f"status {status}, {'an' if failed else 'no'} error or fork reported: {where}")
            print(os.pread(stdio[2], 1 << 20, 0).decode(errors="replace"))
            return 1
    print(f"seed {arguments.seed}: {sum(ends.values())} programs, by exit status {dict(ends)}")
    if set(ends) != set(ENDS):
        print("good programs and bad ones must be among them")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
