"""How the kernel schedules the process and where its memory comes from (config.md#linux-process, config-linux.md#memory-policy)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.lists import ranges
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux, Process

_PROCESS: Final = "config.md#linux-process"
POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
"""Linux reserves a number for SCHED_ISO and has never had it."""
SCHEDULER_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
MEMORY_MODES: Final = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: Final = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
PERSONALITIES: Final = {"LINUX": 0, "LINUX32": 8}
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")


def list_mask(text: str) -> bytes:
    """The bit mask of a list such as ``0-3,7``, in whole 64-bit words of the machine's byte order. Raises ValueError."""
    mask = 0
    for first, last in ranges(text):
        mask |= (1 << last + 1) - (1 << first)
    words = (mask.bit_length() + 63) // 64
    return struct.pack(f"={words}Q", *(mask >> 64 * word & (1 << 64) - 1 for word in range(words)))


def _number(table: dict[str, int], name: str, where: str, what: str) -> int:
    number = table.get(name)
    if number is None:
        raise SpecError([Problem(where, f"{name!r} is {what}; known are {', '.join(table)}", _PROCESS)])
    return number


def compile_scheduling(b: Builder, process: Process) -> None:
    """scheduler and ioPriority: inside the cgroup, as it decides what is allowed, and while there are capabilities.

    Raises:
        SpecError: a name that does not exist.
        UnsupportedError: SCHED_ISO.
    """
    scheduler = process.scheduler
    if scheduler is not None:
        where = "$.process.scheduler"
        if scheduler.policy == "SCHED_ISO":
            raise UnsupportedError(f"{where}.policy: Linux has no SCHED_ISO")
        policy = _number(POLICIES, scheduler.policy, f"{where}.policy", "no scheduling policy")
        flags = 0
        for index, flag in enumerate(scheduler.flags or ()):
            flags |= _number(SCHEDULER_FLAGS, flag, f"{where}.flags[{index}]", "no scheduling flag")
        nice, priority = scheduler.nice or 0, scheduler.priority or 0
        times = (scheduler.runtime or 0, scheduler.deadline or 0, scheduler.period or 0)
        attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times, 0, 0)
        shown = [f"nice {nice}", f"priority {priority}", *(scheduler.flags or ())]
        if any(times):
            shown.append("runtime {} deadline {} period {} ns".format(*times))
        b.init("scheduler", attr, text=f"{scheduler.policy}, {', '.join(shown)}")
    if process.io_priority is not None:
        wanted = process.io_priority
        level = wanted.priority or 0
        number = _number(IO_CLASSES, wanted.class_, "$.process.ioPriority.class", "no class of I/O priority")
        b.init("ioprio", number << 13 | level, text=f"{wanted.class_} {level}")


def compile_affinity(b: Builder, process: Process, member: str) -> None:
    """execCPUAffinity's ``initial`` or ``final`` for a process that joins a container."""
    cpus: str | None = getattr(process.exec_cpu_affinity, member, None)
    if cpus and cpus.strip():
        b.init("affinity", list_mask(cpus), text=f"CPUs {cpus}")


def compile_memory_policy(b: Builder, linux: Linux | None) -> None:
    """memoryPolicy, inside the cgroup, whose nodes it must be among. Raises SpecError: a name that does not exist."""
    policy = linux.memory_policy if linux else None
    if policy is None:
        return
    where = "$.linux.memoryPolicy"
    mode = _number(MEMORY_MODES, policy.mode, f"{where}.mode", "no memory policy")
    for index, flag in enumerate(policy.flags or ()):
        mode |= _number(MEMORY_FLAGS, flag, f"{where}.flags[{index}]", "no flag of memory policies")
    nodes = list_mask(policy.nodes) if policy.nodes and policy.nodes.strip() else b""
    b.init("mempolicy", mode, nodes, text=" ".join([policy.mode, policy.nodes or "", *(policy.flags or ())]).strip())


def compile_personality(b: Builder, linux: Linux | None) -> None:
    """personality. Raises SpecError: a domain that does not exist."""
    personality = linux.personality if linux else None
    if personality is not None:
        number = _number(PERSONALITIES, personality.domain, "$.linux.personality.domain", "no execution domain")
        b.init("personality", number, text=personality.domain)
