"""One operation with one fault: what it does, what it raises, and what it leaves."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import ociruntime as oci

from ..support.leftovers import cgroups_of, loops_below
from ..support.processes import child_processes, is_running
from .injector import Decide, Report, Traced
from .operations import NAME, Operation, Place, clean, files_of, mounts_of

LIMIT: Final = 90.0
"""Seconds for an operation. A step of an init has 60."""
PATIENCE: Final = 3.0
"""Seconds for processes that have been killed to end."""


class Outcome(NamedTuple):
    """What became of an operation."""

    kind: str
    """``works``, ``killed``, the class of an error, or ``status N`` of a program."""
    seconds: float
    finding: str
    """What must not be; empty if all is well."""


class Caller(NamedTuple):
    """Root or a user, and where it works."""

    name: str
    uid: int
    place: Place

    def become(self) -> None:
        """Become the caller, in a child of the driver."""
        oci.host._probe.cache_clear()
        self.place.use()
        if self.uid:
            os.setgroups(())
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: otherwise /proc/self belongs to root
        os.chdir("/")


def adopt_orphans() -> None:
    """Make this process the parent of all descendants whose parents end, so that it finds what is left."""
    if ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
        raise OSError("PR_SET_CHILD_SUBREAPER")


def attempt(
    operation: Operation, caller: Caller, decide: Decide | None = None, arrange: Callable[[], None] | None = None
) -> Outcome:
    """Carry out an operation with a fault, clean up as a caller would, and tell what became of it.

    Args:
        decide: answers the system calls.
        arrange: makes the fault in the process of the caller, after the preparation and with the privileges of root.
    """
    place = caller.place
    prepared = _child(lambda: operation.prepare(place), caller)
    if prepared.document.get("done", "") is not None:
        return Outcome("", 0, f"cannot be prepared: {prepared.document}")

    def body(go: Callable[[], None]) -> object:
        if arrange is not None:
            arrange()
        caller.become()
        go()
        return operation.act(place)

    def clean_up(_: object) -> None:
        caller.become()
        operation.holds(place)
        clean(place)

    traced = Traced(body, decide)
    try:
        report = traced.finish(LIMIT)
        kind, finding = _judge(report, decide is not None)
        held = Traced(clean_up)
        try:
            traced.serve(held.fileno(), LIMIT)
            cleaned = held.finish(LIMIT)
        finally:
            held.close()
        if kind == "killed":
            with contextlib.suppress(OSError):  # an empty directory that the caller has named for a bundle: nothing records it yet
                (place.out / "mounted").rmdir()
        left = _leftovers(place, traced)
    finally:
        traced.close()
    if not finding and (cleaned.hung or "error" in cleaned.document or cleaned.status):
        finding = f"{kind}; cleaning up afterwards: {'hangs' if cleaned.hung else cleaned.document or cleaned.status}"
    if left:
        finding = finding or f"{kind}; leaves {left}"
        _child(lambda: clean(place), caller)
    return Outcome(kind, report.seconds, finding)


def _child(body: Callable[[], Any], caller: Caller) -> Report:
    def run(_: object) -> None:
        caller.become()
        body()

    child = Traced(run)
    try:
        return child.finish(LIMIT)
    finally:
        child.close()


def _judge(report: Report, traced: bool) -> tuple[str, str]:
    """Return what an operation did, and what is wrong with that."""
    document = report.document
    if report.hung:
        return "hangs", f"hangs for {report.seconds:.0f} s"
    if report.status < 0:
        return "killed", "" if report.status == -9 else f"ended by signal {-report.status}"
    if "done" in document:
        done = document["done"]
        return ("works" if not isinstance(done, int) or done == 0 else f"status {done}"), ""
    if "error" not in document:
        return "", f"ended with status {report.status}"
    kind, text = next(name for name in document["kinds"] if name[0] != "_"), document["text"]
    if "OCIRuntimeError" in document["kinds"]:
        return kind, "" if _names_something(text) else f"{kind} that names nothing: {text}"
    if kind == "MemoryError":
        return kind, ""  # without memory Python makes no other
    return kind, f"{kind}: {text} {document['at']}"


def _names_something(text: str) -> bool:
    return NAME in text or "/" in text or "(step " in text or ": " in text


def _leftovers(place: Place, traced: Traced) -> list[str]:
    """Return what is left of an operation, when processes have had time to end; their calls go on."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for pid in child_processes():
            if not is_running(pid):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        processes = [f"process {pid} {_command(pid)}" for pid in child_processes()]
        left = [*processes, *mounts_of(place), *cgroups_of(NAME), *loops_below(place.base.parent), *files_of(place)]
        if not left or time.monotonic() > deadline:
            for pid in child_processes() if left else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            return left
        traced.serve(-1, 0.02)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
