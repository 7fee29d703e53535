"""Freezing and thawing everything in a container's cgroups."""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Sequence
from typing import Final

from ...errors import UnsupportedError
from .files import likely, read_if_there, write

_PATIENCE: Final = 10.0
"""Seconds for processes to freeze: one that waits in the kernel, for a disk say, does so only when that is over."""


def frozen(paths: Iterable[str]) -> bool:
    """Whether the processes are frozen, by a freezer of v1 or of v2."""
    paths = likely(paths, "freezer")
    for path in paths:
        if (state := read_if_there(path, "freezer.state")) is not None:
            return state.strip() != "THAWED"
    return any((read_if_there(path, "cgroup.freeze") or "").strip() == "1" for path in paths)


def freeze(paths: Sequence[str], frozen_: bool, *, needed: bool = True, patience: float = _PATIENCE) -> bool:
    """Freeze or thaw every process, and wait until the kernel says so.

    Args:
        needed: whether no freezer is an error; otherwise the answer is False.
        patience: seconds after which processes that do not freeze are thawed again.

    Raises:
        UnsupportedError: without a freezer, when it is needed.
        TimeoutError: they do not freeze, when it is needed.
    """
    done: bool | None = None
    for path in paths:
        if os.path.exists(f"{path}/freezer.state"):
            done = _v1(path, frozen_, patience)
            break
    else:
        for path in paths:
            if os.path.exists(f"{path}/cgroup.freeze"):
                done = _v2(path, frozen_, patience)
                break
    if done is None and needed:
        raise UnsupportedError("no cgroup of the container has a freezer")
    if done is False and needed:
        raise TimeoutError(errno.ETIMEDOUT, f"the processes did not {'freeze' if frozen_ else 'thaw'}", *paths[:1])
    return bool(done)


def _v1(path: str, frozen_: bool, patience: float) -> bool:
    # This kernel tells nobody when it is done; asking it moves it on.
    wanted = "FROZEN" if frozen_ else "THAWED"
    deadline, pause = time.monotonic() + patience, 0.0002
    write(path, "freezer.state", wanted)
    while (read_if_there(path, "freezer.state") or wanted).strip() != wanted:
        if time.monotonic() > deadline:
            write(path, "freezer.state", "THAWED")
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        write(path, "freezer.state", wanted)
    return True


def _v2(path: str, frozen_: bool, patience: float) -> bool:
    events = os.open(f"{path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    try:
        write(path, "cgroup.freeze", str(int(frozen_)))
        poller = select.poll()
        poller.register(events, select.POLLPRI)
        deadline = time.monotonic() + patience
        while f"frozen {int(frozen_)}" not in os.pread(events, 4096, 0).decode():
            if (left := deadline - time.monotonic()) <= 0:
                write(path, "cgroup.freeze", "0")
                return False
            poller.poll(left * 1000)
        return True
    finally:
        os.close(events)


def thaw_to_die(paths: Iterable[str]) -> None:
    """Let processes that were sent SIGKILL die of it: v1 keeps the frozen ones, v2 does not."""
    for path in paths:
        if (read_if_there(path, "freezer.state") or "THAWED").strip() != "THAWED":
            write(path, "freezer.state", "THAWED")
