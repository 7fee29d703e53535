"""The processes in a container's cgroups."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable

from .files import GONE, read


def processes(paths: Iterable[str]) -> set[int]:
    """The processes in these cgroups."""
    pids: set[int] = set()
    for path in paths:
        try:
            pids.update(map(int, read(path, "cgroup.procs").split()))
        except OSError as error:
            if error.errno not in GONE:
                raise
    return pids


def kill(paths: Iterable[str]) -> None:
    """Kill what is in these cgroups: a pid is believed only while the cgroup still lists it."""
    paths = list(paths)
    for _ in range(100):
        pids = processes(paths)
        if not pids:
            return
        for pid in pids:
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if pid in processes(paths):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)
        time.sleep(0.002)
