"""Freezing and thawing everything in a container's cgroups."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable

from ...errors import UnsupportedError
from .files import GONE, read
from .tree import write


def frozen(paths: Iterable[str]) -> bool:
    for path in paths:
        try:
            if os.path.exists(f"{path}/freezer.state"):
                return read(path, "freezer.state").strip() != "THAWED"
        except OSError as error:
            if error.errno not in GONE:
                raise
    for path in paths:
        if os.path.exists(f"{path}/cgroup.freeze"):
            return read(path, "cgroup.freeze").strip() == "1"
    return False


def freeze(paths: Iterable[str], frozen_: bool) -> None:
    """Freeze or thaw every process, and wait until the kernel says so. Raises UnsupportedError without a freezer."""
    for path in paths:
        if os.path.exists(f"{path}/freezer.state"):
            wanted = "FROZEN" if frozen_ else "THAWED"
            for _ in range(1000):
                write(path, "freezer.state", wanted)
                if read(path, "freezer.state").strip() == wanted:
                    return
                time.sleep(0.001)
            write(path, "freezer.state", "THAWED")
            raise TimeoutError(errno.ETIMEDOUT, "the processes did not freeze", path)
    for path in paths:
        if os.path.exists(f"{path}/cgroup.freeze"):
            write(path, "cgroup.freeze", "1" if frozen_ else "0")
            for _ in range(1000):
                if f"frozen {int(frozen_)}" in read(path, "cgroup.events"):
                    return
                time.sleep(0.001)
            raise TimeoutError(errno.ETIMEDOUT, "the processes did not freeze", path)
    raise UnsupportedError("no cgroup of the container has a freezer")
