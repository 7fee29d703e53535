"""Cgroup directories and their files, which may vanish at any moment: made, enabled, read, written and removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence

from ...errors import UnsupportedError


def make(path: str, inherit: bool) -> None:
    """Make a cgroup and its missing parents; ``inherit`` gives each a cpuset as its parent's, without which nothing may enter."""
    try:
        os.mkdir(path, 0o755)
    except (FileNotFoundError, FileExistsError):
        pass
    else:
        if inherit:
            _inherit(path, new=True)
        return
    missing = _missing(path)
    if not missing and _in_use(path):
        raise FileExistsError(errno.EEXIST, "the cgroup exists and is in use", path)
    for directory in missing:
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pass  # somebody else needs it, too
        if inherit:
            _inherit(directory)


def _missing(path: str) -> list[str]:
    """What of a directory and of those above it is not there, the topmost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing[::-1]


def _inherit(directory: str, *, new: bool = False) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if new or not (read_if_there(directory, name) or "").strip():
            write(directory, name, read(os.path.dirname(directory), name))


def write_first(path: str, choices: Sequence[tuple[str, str]], optional: bool, member: str = "") -> None:
    """Write a value to the first file that there is. Raises UnsupportedError when there is none and it is not optional."""
    for file, value in choices:
        if os.path.exists(f"{path}/{file}"):
            write(path, file, value, member=member)
            return
    if not optional:
        write(path, *choices[0], member=member)


def write_set(path: str, values: Sequence[tuple[str, str, bool, str]]) -> None:
    """Write values that depend on each other, as quota and period: one that the kernel refuses is tried again after the others."""
    left = list(values)
    while left:
        refused = []
        for entry in left:
            file, value, optional, member = entry
            try:
                write_first(path, [(file, value)], optional, member)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                refused.append((entry, error))
        if len(refused) == len(left):
            raise refused[0][1]
        left = [entry for entry, _ in refused]


def enable(path: str, mountpoint: str, needed: Sequence[str], wanted: Sequence[str] = ()) -> None:
    """Enable v2 controllers in every cgroup above ``path``; of those that are only wanted, as many as the kernel lets us.

    Raises:
        OSError: EBUSY when a cgroup on the way has processes of its own, ENOENT when it does not have a controller.
    """
    directories = []
    while len(path) > len(mountpoint):
        path = os.path.dirname(path)
        directories.append(path)
    for above in reversed(directories):
        enabled = read(above, "cgroup.subtree_control").split()
        if missing := [name for name in needed if name not in enabled]:
            write(above, "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
        for name in wanted:
            if name not in enabled:
                try:
                    write(above, "cgroup.subtree_control", f"+{name}")
                except OSError:
                    continue  # it would count something; nobody relies on it


def delegate(path: str, uid: int) -> None:
    """Give a v2 cgroup to a user: the directory, and of its files those that the kernel names as safe. Raises OSError."""
    try:
        names = read("/sys/kernel/cgroup", "delegate").split()
    except FileNotFoundError:
        names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
    os.chown(path, uid, -1)
    for name in names:
        try:
            os.chown(f"{path}/{name}", uid, -1, follow_symlinks=False)
        except FileNotFoundError:
            continue  # it depends on the controllers of a cgroup which it has


def check_memory(path: str, memory: int, swap: int) -> None:
    """Raise OSError (EBUSY) when a v2 cgroup uses more than these limits: of memory, and of memory and ``swap`` together."""
    used = int(read(path, "memory.current"))
    swapped = int(read_if_there(path, "memory.swap.current") or 0)
    if used > memory or (swap >= 0 and used + swapped > swap):
        raise OSError(errno.EBUSY, f"{used} bytes of memory and {swapped} of swap are in use")


def give_realtime(path: str, mountpoint: str, runtime: int, period: int) -> None:
    """Give realtime to every cgroup above ``path`` that has none at all (v1): children share what their parent has."""
    above = []
    while (path := os.path.dirname(path)) != mountpoint:
        above.append(path)
    for directory in reversed(above):
        if int(read(directory, "cpu.rt_runtime_us")) == 0:
            values = {"cpu.rt_period_us": (period, "cpu.realtimePeriod"), "cpu.rt_runtime_us": (runtime, "cpu.realtimeRuntime")}
            write_set(directory, [(file, str(value), False, member) for file, (value, member) in values.items()])


def enterable(paths: Sequence[str], pid: int) -> list[str]:
    """The container's cgroups as a further process can join them.

    A v2 cgroup that hands controllers on to cgroups below it takes no processes, and a container that sees the host's may have
    left and removed its own; then it is the one of the container's first.
    """
    return [path if _takes_processes(path) else _of_process(path, pid) for path in paths]


def _takes_processes(path: str) -> bool:
    return os.path.isdir(path) and not (read_if_there(path, "cgroup.subtree_control") or "").strip()


def _of_process(path: str, pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as text:
            own = next((line.rstrip("\n")[3:] for line in text if line.startswith("0::")), "/")
    except (FileNotFoundError, ProcessLookupError):
        return path
    # What is told counts from the root of our cgroup namespace, and `path` begins with a mount point: look where it is listed.
    above = path
    while (above := os.path.dirname(above)) != "/":
        if _lists(above + own, pid):
            return above + own
    return path


def _lists(directory: str, pid: int) -> bool:
    try:
        text = read_if_there(directory, "cgroup.procs")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        text = read_if_there(directory, "cgroup.threads")  # it is threaded
    return str(pid) in (text or "").split()


def survey(paths: Iterable[str]) -> list[str]:
    """The parents of these cgroups that are missing and will be made with them, the topmost first.

    Raises FileExistsError when one of the cgroups exists and is in use: it is somebody else's.
    """
    parents: list[str] = []
    for path in paths:
        above = os.path.dirname(path)
        if os.path.isdir(above):
            if os.path.isdir(path):
                _refuse(path)
            continue
        parents += _missing(above)
    return parents


def _refuse(path: str) -> None:
    if _in_use(path):
        raise FileExistsError(errno.EEXIST, "the cgroup exists and is in use: choose another linux.cgroupsPath", path)
    frozen = (read_if_there(path, "freezer.state") or "THAWED").strip() != "THAWED"
    if frozen or (read_if_there(path, "cgroup.freeze") or "0").strip() != "0":
        raise FileExistsError(errno.EEXIST, "the cgroup exists and is frozen, so that nothing in it would run", path)


def _in_use(directory: str) -> bool:
    if read(directory, "cgroup.procs"):
        return True
    with os.scandir(directory) as entries:
        return any(entry.is_dir() for entry in entries)


def remove_parents(paths: Iterable[str]) -> None:
    """Remove what `survey` told of, as far as nobody else has put something there since."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise


GONE = (errno.ENOENT, errno.ENODEV)
"""What a file says whose cgroup was removed: it is not there, or it is still open."""


def read(path: str | os.PathLike[str], file: str) -> str:
    fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _content(fd)
    finally:
        os.close(fd)


def _content(fd: int) -> str:
    whole = part = os.read(fd, 16384)
    while len(part) >= 2048:  # shorter, it was the end: records are short, and a buffer of the kernel's is a page
        part = os.read(fd, 16384)
        whole += part
    return whole.decode("ascii")


def read_if_there(path: str, file: str) -> str | None:
    """The content of a file; None when there is no such file, or no longer such a cgroup."""
    try:
        fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _content(fd)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None
    finally:
        os.close(fd)


def write(path: str, file: str, *values: str, member: str = "") -> None:
    """Write a value, or several, each by itself.

    Args:
        member: of linux.resources, from which the value follows.

    Raises:
        UnsupportedError: this kernel has no such file.
        OSError: it refuses the value.
    """
    try:
        fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise UnsupportedError(f"$.linux.resources.{member}: this kernel has no {file} ({path})") from None
    try:
        for value in values:
            os.write(fd, value.encode())
    finally:
        os.close(fd)


def likely(paths: Iterable[str], controller: str) -> list[str]:
    """The same cgroups, first those that are a controller's by the usual name: fewer files are looked for in vain."""
    return sorted(paths, key=lambda path: f"/{controller}/" not in path)


def flat(text: str | None) -> dict[str, int]:
    """A flat keyed file, one ``name number`` a line."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in (text or "").splitlines()) if value.isdigit()}


def below(path: str) -> Iterator[str]:
    """A cgroup and all that are below it, the deepest last."""
    yield path
    try:
        if os.stat(path).st_nlink <= 2:
            return  # the kernel counts the directories in it
        entries = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    for entry in entries:
        yield from below(entry)
