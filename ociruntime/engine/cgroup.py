"""Cgroup directories of the cgroupfs driver: made, written, frozen, emptied and removed."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import UnsupportedError


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


def read(path: str | Path, file: str) -> str:
    with open(f"{path}/{file}", encoding="ascii") as content:
        return content.read()


def processes(paths: Iterable[str]) -> set[int]:
    """The processes in these cgroups."""
    pids: set[int] = set()
    for path in paths:
        try:
            pids.update(map(int, read(path, "cgroup.procs").split()))
        except (FileNotFoundError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return pids


def frozen(paths: Iterable[str]) -> bool:
    for path in paths:
        try:
            if os.path.exists(f"{path}/freezer.state"):
                return read(path, "freezer.state").strip() != "THAWED"
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
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
