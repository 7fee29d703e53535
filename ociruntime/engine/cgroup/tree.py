"""Cgroup directories and their files: creating, enabling, reading, writing and removing them; what they have counted.

Other processes may remove a cgroup at any moment. What that means is said for each function.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..._native import check, lib
from ...errors import StepError, UnsupportedError

if TYPE_CHECKING:
    from ...stats import Usage


GONE: Final = (errno.ENOENT, errno.ENODEV)
"""Errors of a file whose cgroup was removed: when it is opened, and when it is read through a descriptor."""

UNLIMITED: Final = 1 << 62
"""Values from here on stand for no limit: on v1 the kernel shows the greatest number of pages."""

# ---- files ----


def read(path: str | os.PathLike[str], file: str) -> str:
    """Return the content of a file. Raises OSError."""
    with open(f"{path}/{file}", "rb", buffering=0) as opened:  # an object, which an interrupt before the block closes too
        return _content(opened.fileno())


def _content(fd: int) -> str:
    content = part = os.read(fd, 16384)
    while len(part) >= 2048:  # a shorter part is the last one: lines are short, and the kernel's buffer is a page
        part = os.read(fd, 16384)
        content += part
    return content.decode("ascii")


def read_if_exists(path: str, file: str) -> str | None:
    """Return the content of a file; None if the file or its cgroup does not exist. Raises OSError."""
    try:
        return read(path, file)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None


def write(path: str, file: str, *values: str, member: str = "") -> None:
    """Write one or several values, each with a write(2) of its own.

    Args:
        member: the member of linux.resources that the value comes from, for errors.

    Raises:
        UnsupportedError: this kernel has no such file.
        OSError: the kernel refuses the value, or the cgroup was removed.
    """
    try:
        fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if not os.path.isdir(path):
            raise
        raise UnsupportedError(f"$.linux.resources.{member}: this kernel has no {file} ({path})") from None
    try:
        for value in values:
            os.write(fd, value.encode())
    finally:
        os.close(fd)


def write_first(path: str, choices: Sequence[tuple[str, str]], optional: bool, member: str = "") -> None:
    """Write to the first file that exists.

    Args:
        choices: files and the value for each.
        optional: whether it is fine that none of them exists.
        member: as for `write`.

    Raises:
        UnsupportedError: none of them exists, and it is not optional.
        OSError: the kernel refuses the value.
    """
    for file, value in choices:
        if os.path.exists(f"{path}/{file}"):
            write(path, file, value, member=member)
            return
    if not optional:
        write(path, *choices[0], member=member)


def write_set(path: str, values: Sequence[tuple[str, str, bool, str]]) -> None:
    """Write values that depend on each other, such as quota and period. What the kernel refuses is tried again after the others.

    Args:
        values: file, value, and `optional` and `member` as for `write_first`.

    Raises:
        UnsupportedError, OSError: as for `write_first`.
    """
    pending = list(values)
    while pending:
        refused = []
        for entry in pending:
            file, value, optional, member = entry
            try:
                write_first(path, [(file, value)], optional, member)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                refused.append((entry, error))
        if len(refused) == len(pending):
            raise refused[0][1]
        pending = [entry for entry, _ in refused]


def sort_likely(paths: Iterable[str], controller: str) -> list[str]:
    """Return cgroups with those first that have the usual path of a controller, so that fewer files are looked for in vain."""
    usual, found = f"/{controller}/", list(paths)
    return [path for path in found if usual in path] + [path for path in found if usual not in path]


def _in_order(files: tuple[str, str], path: str) -> tuple[str, str]:
    """Return the names that a file of the memory controller has, on v2 and on v1: first the one that the path lets expect."""
    return (files[1], files[0]) if "/memory/" in path else files


def parse_flat(text: str | None) -> dict[str, int]:
    """Parse a flat keyed file, which has ``name number`` in each line."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in (text or "").splitlines()) if value.isdigit()}


def walk(path: str) -> Iterator[str]:
    """Yield a cgroup and all descendants, parents before their children; nothing below a cgroup that was removed."""
    yield path
    try:
        if os.stat(path).st_nlink <= 2:
            return  # the link count tells the number of subdirectories
        entries = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    for entry in entries:
        yield from walk(entry)


# ---- directories ----


NEW: Final = chr(lib.OCI_CGROUP_NEW)
MAKE: Final = chr(lib.OCI_CGROUP_MAKE)
MAKE_CPUSET: Final = chr(lib.OCI_CGROUP_MAKE_CPUSET)
REMOVE: Final = chr(lib.OCI_CGROUP_REMOVE)
OPEN: Final = chr(lib.OCI_CGROUP_OPEN)
WRITE: Final = chr(lib.OCI_CGROUP_WRITE)
_CPUSET: Final = ("cpuset.cpus", "cpuset.mems")


def batch(operations: Sequence[str]) -> int:
    """Carry out operations in one native call, which other threads of the caller do not wait for, until one of them fails.

    Args:
        operations: each one of `NEW`, `MAKE` ... and its operand.

    Returns:
        How many were carried out. An operation that the call cannot carry out has had no effect: the functions of this module
        know why, and what to do then.
    """
    text = os.fsencode("\0".join(operations))
    # A NUL in an operand would end it.
    return lib.oci_cgroups(text, len(operations)) if operations and text.count(b"\0") == len(operations) - 1 else 0


def make(path: str, cpuset: bool, given: Collection[str] = ()) -> None:
    """Create a cgroup and its missing parents.

    Args:
        cpuset: whether it has a cpuset of v1, which accepts no process while it is empty. Then it gets that of its parent. So
            does every parent with an empty one, whatever created it, as with runc.
        given: the files of the cpuset whose values come from the config.

    Raises:
        FileExistsError: the cgroup exists and is in use.
        OSError: the kernel refuses it.
    """
    made = False
    try:
        make_one(path)
        made = True
    except (FileNotFoundError, FileExistsError):
        missing = _missing(path)
        made = bool(missing)
        if not missing and _in_use(path):
            raise FileExistsError(errno.EEXIST, "the container's cgroup is not empty", path) from None
        for directory in missing:
            try:
                make_one(directory)
            except FileExistsError:
                pass  # another process created it for its own use
    if cpuset:
        try:
            for file in _CPUSET:
                _inherit(os.path.dirname(path) if file in given else path, file)
        except BaseException:
            if made:
                os.rmdir(path)
            raise


def _inherit(directory: str, file: str) -> str:
    """Return the CPUs or memory nodes of a v1 cgroup. If there are none, it gets those of its parent. Raises OSError."""
    content = read(directory, file)
    if content.strip():
        return content
    try:
        content = _inherit(os.path.dirname(directory), file)
    except FileNotFoundError:
        raise OSError(errno.ENOSPC, f"{directory}/{file} is empty, and this process cannot see its parent") from None
    try:
        write(directory, file, content)
    except PermissionError:
        raise PermissionError(errno.EACCES, f"{directory}/{file} is empty, and this user may not write it") from None
    return content


def make_one(path: str) -> None:
    """Create a cgroup whose files every user of the container can read, whatever the umask. Raises OSError."""
    check(lib.oci_make_cgroup(os.fsencode(path)), path)


def _missing(path: str) -> list[str]:
    """Return those of a directory and its parents that do not exist, the topmost first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing[::-1]


def missing_parents(paths: Iterable[str]) -> list[str]:
    """Return the parents of these cgroups that will be created with them, the topmost first.

    Raises:
        FileExistsError: one of the cgroups exists and is in use.
    """
    parents: list[str] = []
    paths = list(paths)
    for path in paths[batch([f"{NEW}{path}" for path in paths]) :]:
        parent = os.path.dirname(path)
        if os.path.isdir(parent):
            if os.path.isdir(path):
                _check_unused(path)
            continue
        parents += _missing(parent)
    return parents


def _check_unused(path: str) -> None:
    if _in_use(path):
        raise FileExistsError(errno.EEXIST, "the container's cgroup is not empty: choose another linux.cgroupsPath", path)
    frozen = (read_if_exists(path, "freezer.state") or "THAWED").strip() != "THAWED"
    if frozen or (read_if_exists(path, "cgroup.freeze") or "0").strip() != "0":
        words = "container's cgroup unexpectedly frozen: thaw it, or choose another linux.cgroupsPath"
        raise FileExistsError(errno.EEXIST, words, path)


def _in_use(directory: str) -> bool:
    if read(directory, "cgroup.procs"):
        return True
    with os.scandir(directory) as entries:
        return any(entry.is_dir() for entry in entries)


def remove_parents(paths: Iterable[str]) -> None:
    """Remove the result of `missing_parents`, except for cgroups that others use by now. Raises OSError."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise


def enable(path: str, mountpoint: str, needed: Sequence[str], desired: Sequence[str] = ()) -> None:
    """Enable v2 controllers in every cgroup above ``path``.

    Args:
        mountpoint: where the hierarchy is mounted, the topmost of them.
        needed: controllers without which this is an error.
        desired: controllers that are enabled where the kernel allows it.

    Raises:
        OSError: EBUSY when one of the cgroups has processes of its own, ENOENT when it does not have a controller.
    """
    directories = []
    while len(path) > len(mountpoint):
        path = os.path.dirname(path)
        directories.append(path)
    for directory in reversed(directories):
        enabled = read(directory, "cgroup.subtree_control").split()
        missing, more = ([name for name in names if name not in enabled] for names in (needed, desired))
        if (missing or more) and _has_own_processes(directory):
            if missing:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), f"{directory}/cgroup.subtree_control")
            continue
        if missing:
            write(directory, "cgroup.subtree_control", " ".join(f"+{name}" for name in missing))
        for name in more:
            try:
                write(directory, "cgroup.subtree_control", f"+{name}")
            except OSError:
                continue  # it is for statistics only


def _has_own_processes(path: str) -> bool:
    """Return whether a v2 cgroup has processes itself, and is not the root of the hierarchy.

    The kernel lets it enable some controllers all the same, but then it is threaded, and no cgroup below it takes a process.
    """
    try:
        return os.path.exists(f"{path}/cgroup.type") and read(path, "cgroup.procs") != ""
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False  # it is threaded


def delegate(path: str, uid: int) -> None:
    """Give a v2 cgroup to a user: its directory, and those of its files that the kernel lists as safe. Raises OSError."""
    try:
        names = read("/sys/kernel/cgroup", "delegate").split()
    except FileNotFoundError:
        names = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"]
    os.chown(path, uid, -1)
    for name in names:
        try:
            os.chown(f"{path}/{name}", uid, -1, follow_symlinks=False)
        except FileNotFoundError:
            continue  # the list has the files of every controller


def check_memory(path: str, memory: int, swap: int) -> None:
    """Check that a v2 cgroup uses no more memory than a new limit allows.

    Args:
        memory: the limit of memory, in bytes.
        swap: the limit of memory and swap together, in bytes; negative for none.

    Raises:
        OSError: EBUSY when it uses more.
    """
    used = int(read(path, "memory.current"))
    swapped = int(read_if_exists(path, "memory.swap.current") or 0)
    if used > memory or (swap >= 0 and used + swapped > swap):
        raise OSError(errno.EBUSY, f"{used} bytes of memory and {swapped} of swap are in use")


def give_realtime(path: str, mountpoint: str, runtime: int, period: int) -> None:
    """Give real-time CPU time to each cgroup above ``path`` that has none (v1). Children share what their parent has.

    Args:
        mountpoint: where the hierarchy is mounted.
        runtime: microseconds in each period.
        period: microseconds.

    Raises:
        OSError: the kernel refuses it.
    """
    directories = []
    while (path := os.path.dirname(path)) != mountpoint:
        directories.append(path)
    for directory in reversed(directories):
        if int(read(directory, "cpu.rt_runtime_us")) == 0:
            values = {"cpu.rt_period_us": (period, "cpu.realtimePeriod"), "cpu.rt_runtime_us": (runtime, "cpu.realtimeRuntime")}
            write_set(directory, [(file, str(value), False, member) for file, (value, member) in values.items()])


# ---- joining ----


def joinable(paths: Sequence[str], pid: int) -> list[str]:
    """Return the cgroups that an exec process joins.

    These are the container's, with one exception: a v2 cgroup that has enabled controllers for its children accepts no process, and
    a container that sees the cgroups of the host may have left its own and removed it. Then it is the cgroup of the init process.

    Args:
        paths: the container's cgroups.
        pid: its init process.
    """
    return [path if _accepts_processes(path) else _cgroup_of(path, pid) for path in paths]


def _accepts_processes(path: str) -> bool:
    return os.path.isdir(path) and not (read_if_exists(path, "cgroup.subtree_control") or "").strip()


def _cgroup_of(path: str, pid: int) -> str:
    """Return the v2 cgroup of a process, given another one of the same hierarchy; that one if the process has ended."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape", newline="\n") as text:
            relative = next((line.rstrip("\n")[3:] for line in text if line.startswith("0::")), "/")
    except (FileNotFoundError, ProcessLookupError):
        return path
    # The path is relative to the root of the caller's cgroup namespace, and `path` begins with a mount point. So look for the
    # process below each parent directory.
    parent = path
    while (parent := os.path.dirname(parent)) != "/":
        if _has_process(parent + relative, pid):
            return parent + relative
    return path


def _has_process(directory: str, pid: int) -> bool:
    try:
        text = read_if_exists(directory, "cgroup.procs")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        text = read_if_exists(directory, "cgroup.threads")  # it is threaded
    return str(pid) in (text or "").split()


# ---- what a container has used, and whether it ran out of memory: read after its end, before its cgroups are removed ----
#
# Where systemd has removed a cgroup already, only the kernel log tells of OOM kills.

_V1_CPU: Final = ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")
_SLACK: Final = 60.0
"""Seconds by which the start of a container and its first records in the kernel log may differ."""
_DRIFT: Final = 1e-4
"""Drift of the log's clock, which is never adjusted, as a fraction of the time since boot."""


class MemoryLimit(NamedTuple):
    """The memory limit of a container, and how the container gets along with it."""

    limit: int
    """Bytes."""
    hits: int
    """How many times the kernel had to free memory of the container, or to kill, because of the limit."""
    unreclaimable: int
    """Bytes in use that cannot be freed by dropping file pages."""


def memory_limit(paths: Sequence[str]) -> MemoryLimit | None:
    """Return the memory limit of these cgroups; None if they have none."""
    for path in sort_likely(paths, "memory"):
        text = read_if_exists(path, "memory.max")
        if text is not None:
            usage, cache = "memory.current", "file"
        elif (text := read_if_exists(path, "memory.limit_in_bytes")) is not None:
            usage, cache = "memory.usage_in_bytes", "cache"
        else:
            continue
        if not text.strip().isdigit() or int(text) >= UNLIMITED:
            return None
        failures = read_if_exists(path, "memory.failcnt")
        hits = parse_flat(read_if_exists(path, "memory.events")).get("max", 0) if failures is None else int(failures)
        stat = parse_flat(read_if_exists(path, "memory.stat"))
        droppable = stat.get(cache, 0) - stat.get("shmem", 0)
        return MemoryLimit(int(text), hits, max(0, int(read_if_exists(path, usage) or 0) - droppable))
    return None


def too_small(limit: int, what: str, remedy: str, *, step: int, total: int, op: str, text: str) -> StepError:
    """Return the error of a memory limit within which a step of a plan cannot be carried out.

    Args:
        limit: the limit in bytes.
        what: what it is too small for.
    """
    problem = f"memory limit of {limit} bytes is too small to {what}"
    return StepError(errno.ENOMEM, step=step, total=total, op=op, text=text, problem=problem, remedy=remedy)


class CgroupUsage(NamedTuple):
    """What the processes of a container have used; None for what no controller counts."""

    cpu: float | None = None
    """Seconds of CPU time, user and system together."""
    peak: int | None = None
    """Peak of the memory in use, in bytes (v1, or v2 since Linux 5.19)."""
    user: float | None = None
    """Seconds of CPU time in user space."""
    system: float | None = None
    """Seconds of CPU time in the kernel."""


def oom_kills(paths: Sequence[str]) -> int:
    """Return how many processes of these cgroups and their descendants were OOM-killed."""
    for path in sort_likely(paths, "memory"):
        for file in _in_order(("memory.events", "memory.oom_control"), path):
            if (text := read_if_exists(path, file)) is None:
                continue
            _, *others = (path,) if file == "memory.events" else walk(path)  # on v2 it includes the descendants
            texts = (text, *(read_if_exists(other, file) for other in others))
            return sum(parse_flat(text).get("oom_kill", 0) for text in texts)
    return 0


def usage(paths: Sequence[str]) -> CgroupUsage:
    """Return CPU time and peak memory of these cgroups."""
    times: tuple[float, ...] | None = None
    # The unified cgroup is the last one, and one file of it has all about CPU time.
    for path in (*paths[-1:], *sort_likely(paths[:-1], "cpuacct")):
        if (stat := parse_flat(read_if_exists(path, "cpu.stat"))).get("usage_usec"):
            times = tuple(stat.get(name, 0) / 1e6 for name in ("usage_usec", "user_usec", "system_usec"))
            break
        if read_if_exists(path, _V1_CPU[0]) is not None:
            times = tuple(int(read_if_exists(path, file) or 0) / 1e9 for file in _V1_CPU)
            break
    cpu, user, system = times or (None, None, None)
    return CgroupUsage(cpu, _peak(paths), user, system)


def _peak(paths: Sequence[str]) -> int | None:
    """Return the peak of the memory in use, in bytes; None if no controller counts it."""
    for path in sort_likely(paths, "memory"):
        for file in _in_order(("memory.peak", "memory.max_usage_in_bytes"), path):
            if (text := read_if_exists(path, file)) is not None:
                return int(text)
    return None


def container_usage(paths: Sequence[str], first: Usage) -> Usage:
    """Return the usage of a container.

    Args:
        paths: its cgroups.
        first: the usage of its init process, which stands in for what no cgroup counts.
    """
    from ...stats import Usage  # a short command asks for OOM kills only, and does without attrs

    used = usage(paths)
    peak = first.peak_memory if used.peak is None else used.peak
    if used.cpu is None:
        return Usage(first.user, first.system, first.total, peak)
    return Usage(used.user or 0.0, used.system or 0.0, used.cpu, peak)


# ---- the kernel log ----


def logged_oom_kill(directory: str, pid: int, ticks: int) -> bool:
    """Return whether the kernel log tells of an OOM kill in a cgroup, which may have been removed, or a descendant.

    The log keeps the last records only, and may be reserved for root (kernel.dmesg_restrict). Then the result is False.

    Args:
        directory: path of the cgroup. There may have been another one with this path before it.
        pid: the container's init process.
        ticks: start time of that process, in clock ticks since boot (proc(5), field 22).
    """
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    began = ticks / os.sysconf("SC_CLK_TCK") - asleep
    slack = _SLACK + _DRIFT * time.monotonic()
    name = "/" + os.path.basename(directory)
    for when, path, victim in _victims():
        parent, found, _ = f"{path}/".partition(f"{name}/")
        if not found or not directory.endswith(parent + name) or when < began - slack:
            continue
        # Around the start of the container, a victim in an earlier cgroup of this path has a lower pid.
        if when > began + slack or victim >= pid:
            return True
    return False


def _victims() -> Iterator[tuple[float, str, int]]:
    """Yield the OOM kills in the log: seconds since boot, path of the cgroup, pid."""
    for record in _records():
        head, _, text = record.partition(";")
        if not text.startswith("oom-kill:"):
            continue
        line = text.partition("\n")[0].removeprefix("oom-kill:")
        fields = {key: value for key, _, value in (part.partition("=") for part in line.split(","))}
        if fields.get("pid", "").isdigit():
            yield int(head.split(",")[2]) / 1e6, fields.get("task_memcg", ""), int(fields["pid"])


def _records() -> Iterator[str]:
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (PermissionError, FileNotFoundError):
        return
    try:
        while True:
            try:
                yield os.read(log, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # the next record was overwritten
            except (BlockingIOError, PermissionError):
                return
    finally:
        os.close(log)
