"""Processes of the host, and the descriptors and threads of this one."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def find_processes(text: str, file: str = "cmdline") -> list[int]:
    """Return the running processes with a text in a file of /proc/PID: ``cmdline``, ``environ`` or ``cgroup``."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if text.encode() in Path(f"/proc/{pid}/{file}").read_bytes() and is_running(pid):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        except PermissionError:
            continue  # a process of another user
    return sorted(found)


def describe_children() -> str:
    """Return what each child of this process does: command, state, where it waits in the kernel, and its memory cgroup's counters."""
    lines = []
    for pid in sorted(child_processes()):
        lines.append(f"pid {pid}:")
        for file in ("comm", "wchan", "stack", "status"):
            with suppress(OSError):
                text = Path(f"/proc/{pid}/{file}").read_text()
                expected = ("State", "VmRSS", "SigPnd", "ShdPnd") if file == "status" else ()
                lines += [f"  {line}" for line in text.splitlines() if not expected or line.startswith(expected)]
        with suppress(OSError):
            for row in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
                _, names, path = row.split(":", 2)
                if names in ("", "memory"):
                    lines += _memory_counters(path)
    return "\n".join(lines)


def _memory_counters(cgroup: str) -> list[str]:
    lines = []
    for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"):
        for file in ("limit_in_bytes", "usage_in_bytes", "failcnt", "max", "current", "events", "pressure", "stat"):
            with suppress(OSError):
                text = " ".join(Path(f"{mount}{cgroup}/memory.{file}").read_text().split())
                lines.append(f"  {mount}{cgroup}/memory.{file}: {text}")
    return lines


def child_processes() -> set[int]:
    """Return the children of this process, zombies included."""
    found = set()
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended
        if int(parent) == os.getpid():
            found.add(pid)
    return found


def proportional_set_size(pid: int) -> int:
    """Return the memory of a process in KiB; shared pages count in part."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return int(fields["Pss"].split()[0])


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Allow this process to open only some more file descriptors."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(free + 1)]  # these are the lowest free numbers
    for fd in fds:
        os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fds[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def start_lasting_thread(launch: Callable[[], object]) -> None:
    """Launch a container from another thread than the main one: the first such launch starts a thread that lasts."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(launch).result()


def parent_process(pid: int) -> int:
    """Return the parent of a process. That of a supervised container's init process is the supervisor."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
