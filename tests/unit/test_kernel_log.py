"""Which of the kernel's records of kills for want of memory are a container's."""

from __future__ import annotations

import os
import time

import pytest

from ociruntime.engine.cgroup import tree

SCOPE = "/sys/fs/cgroup/system.slice/p-c1.scope"
PID = 1000


def record(path: str, pid: int, age: float) -> str:
    """As /dev/kmsg has it; ``age`` in seconds before now."""
    when = int((time.monotonic() - age) * 1e6)
    return (
        f"6,4711,{when},-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/system.slice,"
        f"task_memcg={path},task=sh,pid={pid},uid=0\n SUBSYSTEM=memory\n"
    )


@pytest.mark.parametrize(
    ("path", "pid", "age", "expected"),
    [
        ("/system.slice/p-c1.scope", PID + 5, 100, True),
        ("/system.slice/p-c1.scope/below/it", PID + 5, 100, True),
        ("/system.slice/p-c1.scope", PID, 600, True),  # at its beginning
        ("/system.slice/p-c1.scope", PID - 5, 600, False),  # of one before it
        ("/system.slice/p-c1.scope", PID - 5, 100, True),  # pids begin again
        ("/system.slice/p-c1.scope", PID + 5, 20000, False),
        ("/system.slice/p-c1.scope.d", PID + 5, 100, False),
        ("/system.slice/p-c12.scope", PID + 5, 100, False),
        ("/user.slice/p-c1.scope", PID + 5, 100, False),
        ("/", PID + 5, 100, False),
    ],
)
def test_whose_a_kill_is(monkeypatch: pytest.MonkeyPatch, path: str, pid: int, age: float, expected: bool) -> None:
    log = ["6,1,1,-;something else\n", record(path, pid, age), "6,2,2,-;oom-kill:cut off"]
    monkeypatch.setattr(tree, "_records", lambda: iter(log))
    began = int((time.clock_gettime(time.CLOCK_BOOTTIME) - 600) * os.sysconf("SC_CLK_TCK"))
    assert tree.logged_oom_kill(SCOPE, PID, began) is expected
