"""What a container has used up, and whether it ran out of memory: read at its end, before its cgroups go.

The kernel's log also tells of kills for want of memory: all that is left of them where systemd has removed a cgroup.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .tree import below, flat, likely, read_if_there

_V1_CPU = ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys")


class CgroupUsage(NamedTuple):
    """What everything in a container has used so far; None where no controller counts it."""

    cpu: float | None = None
    """Seconds of CPU time, user and system together."""
    peak: int | None = None
    """The most memory at one time, in bytes (v1, or v2 since Linux 5.19)."""
    user: float | None = None
    """Seconds of CPU time in user space."""
    system: float | None = None
    """Seconds of CPU time in the kernel."""


def oom_kills(paths: Sequence[str]) -> int:
    """How many processes the kernel killed in these cgroups, and below them, for want of memory."""
    for path in likely(paths, "memory"):
        text = read_if_there(path, "memory.events")  # v2: counts what is below it too
        if text is not None:
            return flat(text).get("oom_kill", 0)
        if (text := read_if_there(path, "memory.oom_control")) is not None:
            _, *others = below(path)
            return sum(flat(each).get("oom_kill", 0) for each in (text, *(read_if_there(o, "memory.oom_control") for o in others)))
    return 0


def usage(paths: Sequence[str]) -> CgroupUsage:
    """CPU time and peak memory of these cgroups."""
    times: tuple[float, ...] | None = None
    peak: int | None = None
    # The unified one is the last, and its one file says all about CPU time.
    for path in (*paths[-1:], *likely(paths[:-1], "memory")):
        if times is None and (spent := flat(read_if_there(path, "cpu.stat"))).get("usage_usec"):
            times = tuple(spent.get(name, 0) / 1e6 for name in ("usage_usec", "user_usec", "system_usec"))
        elif times is None and read_if_there(path, _V1_CPU[0]) is not None:
            times = tuple(int(read_if_there(path, file) or 0) / 1e9 for file in _V1_CPU)
        for file in ("memory.peak", "memory.max_usage_in_bytes"):
            if peak is None and (text := read_if_there(path, file)) is not None:
                peak = int(text)
        if times is not None and peak is not None:
            break
    cpu, user, system = times or (None, None, None)
    return CgroupUsage(cpu, peak, user, system)


_SLACK = 60.0
_DRIFT = 1e-4
"""The log has a clock of its own, which nobody corrects: that much of the time since boot it may be off."""


def killed(directory: str, pid: int, ticks: int) -> bool:
    """Whether the kernel killed something in a cgroup that is gone, or below it.

    The log keeps its last records only, and may be for root alone (kernel.dmesg_restrict): whoever cannot read it gets False.

    Args:
        directory: where the cgroup was; another of its name may have been there before it.
        pid: the first process in it.
        ticks: when that started, in clock ticks since boot (proc(5), field 22).
    """
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    began = ticks / os.sysconf("SC_CLK_TCK") - asleep
    slack = _SLACK + _DRIFT * time.monotonic()
    name = "/" + os.path.basename(directory)
    for when, path, victim in _victims():
        above, found, _ = f"{path}/".partition(f"{name}/")
        if not found or not directory.endswith(above + name) or when < began - slack:
            continue
        # About the time of its beginning, what was killed in one before it has a lower pid.
        if when > began + slack or victim >= pid:
            return True
    return False


def _victims() -> Iterator[tuple[float, str, int]]:
    """When, in which cgroup and what: seconds since boot, path and pid."""
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
                continue  # it was overwritten as we came to it
            except (BlockingIOError, PermissionError):
                return
    finally:
        os.close(log)
