"""Cgroup directories and their files: made, enabled, written and removed."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from ...errors import UnsupportedError
from .files import read


def make(path: str, inherit: bool) -> None:
    """Make a cgroup and its missing parents; ``inherit`` gives each a cpuset as its parent's, without which nothing may enter."""
    try:
        os.mkdir(path, 0o755)
    except (FileNotFoundError, FileExistsError):
        pass
    else:
        if inherit:
            _inherit(Path(path))
        return
    missing = []
    at = Path(path)
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    if not missing and _in_use(at):
        raise FileExistsError(errno.EEXIST, "the cgroup exists and is in use", path)
    for directory in reversed(missing):
        directory.mkdir(mode=0o755, exist_ok=True)
        if inherit:
            _inherit(directory)


def _inherit(directory: Path) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not (directory / name).read_text().strip():
            (directory / name).write_text((directory.parent / name).read_text())


def write(path: str, file: str, value: str) -> None:
    """Write one value. Raises UnsupportedError when this kernel has no such file, OSError when it refuses the value."""
    try:
        fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise UnsupportedError(f"this kernel has no {file}, which a limit in linux.resources needs ({path})") from None
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def enable(path: str, controllers: Iterable[str]) -> None:
    """Enable controllers in every cgroup between the v2 mount point and ``path``."""
    target = Path(path)
    mount = next(parent for parent in (target, *target.parents) if not (parent / "cgroup.events").exists())
    for directory in reversed(target.relative_to(mount).parents):
        write(str(mount / directory), "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


def remove(paths: Iterable[str]) -> None:
    """Remove cgroups; one that is still busy with processes on their way out is tried again for two seconds."""
    for path in paths:
        deadline = time.monotonic() + 2
        while True:
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                for child in sorted(Path(path).rglob("*/"), reverse=True):
                    try:
                        child.rmdir()
                    except OSError as inner:
                        if inner.errno not in (errno.EBUSY, errno.ENOENT):
                            raise
                time.sleep(0.001)


def survey(paths: Iterable[str]) -> list[str]:
    """The parents of these cgroups that are missing and will be made with them, the topmost first.

    Raises FileExistsError when one of the cgroups exists and is in use: it is somebody else's.
    """
    parents: list[str] = []
    for path in paths:
        above = os.path.dirname(path)
        if os.path.isdir(above):
            if os.path.isdir(path) and _in_use(Path(path)):
                raise FileExistsError(errno.EEXIST, "the cgroup exists and is in use: choose another linux.cgroupsPath", path)
            continue
        missing = []
        while not os.path.isdir(above):
            missing.append(above)
            above = os.path.dirname(above)
        parents += reversed(missing)
    return parents


def _in_use(directory: Path) -> bool:
    return bool(read(directory, "cgroup.procs")) or any(child.is_dir() for child in directory.iterdir())


def remove_parents(paths: Iterable[str]) -> None:
    """Remove what `survey` told of, as far as nobody else has put something there since."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise
