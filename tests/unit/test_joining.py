"""The order in which the init forks into a container's pid namespace: last, unless a step must come after the fork."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from ociruntime.host import Host
from ociruntime.plan.process import forks_last, permits
from ociruntime.spec import ProcessSpec, Rlimit, RlimitType, RuntimeSpec, Scheduler, SchedulerFlag, SchedulerPolicy, Seccomp

HOST = Host((6, 18), "x86_64", 0, 40, ())
USER = attrs.evolve(HOST, euid=1000, initial=False, capabilities=0)
NAMESPACES: dict[str, Any] = {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}


def profile(default: str, *rules: dict[str, Any]) -> Seccomp:
    return Seccomp.load({"defaultAction": default, "syscalls": [{"names": ["clone"], **rule} for rule in rules]})


@pytest.mark.parametrize(
    ("filter_", "permitted"),
    [
        (profile("SCMP_ACT_ALLOW"), True),
        (profile("SCMP_ACT_LOG"), True),
        (profile("SCMP_ACT_ERRNO"), False),
        (profile("SCMP_ACT_ERRNO", {"action": "SCMP_ACT_ALLOW"}), True),
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_NOTIFY"}), False),
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ALLOW"}, {"action": "SCMP_ACT_ERRNO"}), False),
        # Conditions: the flags are known, the pointers are not.
        (profile("SCMP_ACT_ERRNO", {"action": "SCMP_ACT_ALLOW", "args": [NAMESPACES]}), True),
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ERRNO", "args": [NAMESPACES]}), False),
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ERRNO", "args": [{**NAMESPACES, "valueTwo": 0x10000000}]}), True),
        (profile("SCMP_ACT_ERRNO", {"action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": 0, "op": "SCMP_CMP_NE"}]}), False),
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ERRNO", "args": [{"index": 2, "value": 0, "op": "SCMP_CMP_EQ"}]}), False),
        # Two conditions on one argument: either is enough.
        (profile("SCMP_ACT_ALLOW", {"action": "SCMP_ACT_ERRNO", "args": [NAMESPACES, {**NAMESPACES, "valueTwo": 1}]}), False),
        (
            profile(
                "SCMP_ACT_ALLOW",
                {"action": "SCMP_ACT_ERRNO", "args": [{**NAMESPACES, "valueTwo": 1}, {**NAMESPACES, "valueTwo": 2}]},
            ),
            True,
        ),
    ],
)
def test_permits(filter_: Seccomp, permitted: bool) -> None:
    assert permits(filter_, {"clone": (0x108000, 0, None, 0, 0)}) is permitted


def test_attributes_that_a_fork_resets() -> None:
    spec = RuntimeSpec.default()
    assert spec.linux is not None
    process, default = ProcessSpec(cwd="/"), spec.linux.seccomp
    assert forks_last(process, default, HOST, user=False)
    assert forks_last(process.evolve(terminal=True), default, HOST, user=False)
    assert forks_last(process, None, HOST, user=True)
    assert forks_last(
        process.evolve(scheduler=Scheduler(policy=SchedulerPolicy("SCHED_FIFO"), priority=1)), default, HOST, user=False
    )
    assert not forks_last(process.evolve(scheduler=Scheduler(policy=SchedulerPolicy("SCHED_DEADLINE"))), default, HOST, user=False)
    reset = Scheduler(policy=SchedulerPolicy("SCHED_OTHER"), flags=(SchedulerFlag("SCHED_FLAG_RESET_ON_FORK"),))
    assert not forks_last(process.evolve(scheduler=reset), default, HOST, user=False)
    assert not forks_last(process, profile("SCMP_ACT_ERRNO"), HOST, user=False)


@pytest.mark.parametrize(
    ("hard", "host", "user", "last"),
    [
        (8, USER, True, True),
        (7, USER, True, False),
        (6, HOST, False, True),
        (6, HOST, True, False),
        (6, attrs.evolve(HOST, initial=False), False, False),  # CAP_SYS_RESOURCE of another user namespace raises no limit
    ],
)
def test_the_init_needs_room_among_the_users_processes(hard: int, host: Host, user: bool, last: bool) -> None:
    process = ProcessSpec(cwd="/", rlimits=(Rlimit(type=RlimitType("RLIMIT_NPROC"), soft=6, hard=hard),))
    assert forks_last(process, None, host, user=user) is last
