"""What a container has used, and whether it ran out of memory: read after its end, before its cgroups are removed.

Where systemd has removed a cgroup already, only the kernel log tells of OOM kills.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from .tree import parse_flat, read_if_exists, sort_likely, walk

if TYPE_CHECKING:
    from ...stats import Usage

_V1_CPU: Final = ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")
_SLACK: Final = 60.0
"""Seconds by which the start of a container and its first records in the kernel log may differ."""
_DRIFT: Final = 1e-4
"""Drift of the log's clock, which is never adjusted, as a fraction of the time since boot."""


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
        text = read_if_exists(path, "memory.events")  # on v2 it includes the descendants
        if text is not None:
            return parse_flat(text).get("oom_kill", 0)
        if (text := read_if_exists(path, "memory.oom_control")) is not None:
            _, *others = walk(path)
            texts = (text, *(read_if_exists(other, "memory.oom_control") for other in others))
            return sum(parse_flat(text).get("oom_kill", 0) for text in texts)
    return 0


def usage(paths: Sequence[str]) -> CgroupUsage:
    """Return CPU time and peak memory of these cgroups."""
    times: tuple[float, ...] | None = None
    peak: int | None = None
    # The unified cgroup is the last one, and one file of it has all about CPU time.
    for path in (*paths[-1:], *sort_likely(paths[:-1], "memory")):
        if times is None and (stat := parse_flat(read_if_exists(path, "cpu.stat"))).get("usage_usec"):
            times = tuple(stat.get(name, 0) / 1e6 for name in ("usage_usec", "user_usec", "system_usec"))
        elif times is None and read_if_exists(path, _V1_CPU[0]) is not None:
            times = tuple(int(read_if_exists(path, file) or 0) / 1e9 for file in _V1_CPU)
        for file in ("memory.peak", "memory.max_usage_in_bytes"):
            if peak is None and (text := read_if_exists(path, file)) is not None:
                peak = int(text)
        if times is not None and peak is not None:
            break
    cpu, user, system = times or (None, None, None)
    return CgroupUsage(cpu, peak, user, system)


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
