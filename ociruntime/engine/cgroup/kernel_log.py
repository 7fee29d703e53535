"""What the kernel's log says of kills for want of memory: all that is left of them where systemd has removed a cgroup."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

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
