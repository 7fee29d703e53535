"""How the kernel schedules the process and where its memory comes from (config.md#linux-process, config-linux.md#memory-policy)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
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
_MAX_LIST: Final = 1 << 16
_SCHED_ATTR: Final = struct.Struct("=IIQiIQQQII")


def list_mask(text: str, where: str, section: str) -> bytes:
    """The bit mask of a list such as ``0-3,7``, in whole 64-bit words of the machine's byte order. Raises SpecError."""
    mask = 0
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if (
            not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit())
            or not int(first) <= int(last) < _MAX_LIST
        ):
            raise SpecError([Problem(where, f"{text!r} is no list of numbers and ranges such as 0-3,7", section)])
        mask |= (1 << int(last) + 1) - (1 << int(first))
    words = (mask.bit_length() + 63) // 64
    return struct.pack(f"={words}Q", *(mask >> 64 * word & (1 << 64) - 1 for word in range(words)))


def _number(table: dict[str, int], name: str, where: str, what: str, section: str) -> int:
    number = table.get(name)
    if number is None:
        raise SpecError([Problem(where, f"{name!r} is {what}; known are {', '.join(table)}", section)])
    return number


def compile_scheduling(b: Builder, process: Process) -> None:
    """scheduler and ioPriority: inside the cgroup, as it decides what is allowed, and while there are capabilities.

    Raises:
        SpecError: a name that does not exist, or a value out of range.
        UnsupportedError: SCHED_ISO.
    """
    scheduler = process.scheduler
    if scheduler is not None:
        where = "$.process.scheduler"
        if scheduler.policy == "SCHED_ISO":
            raise UnsupportedError(f"{where}.policy: Linux has no SCHED_ISO")
        policy = _number(POLICIES, scheduler.policy, f"{where}.policy", "no scheduling policy", _PROCESS)
        flags = 0
        for index, flag in enumerate(scheduler.flags or ()):
            flags |= _number(SCHEDULER_FLAGS, flag, f"{where}.flags[{index}]", "no scheduling flag", _PROCESS)
        nice, priority = scheduler.nice or 0, scheduler.priority or 0
        if not -20 <= nice <= 19:
            raise SpecError([Problem(f"{where}.nice", f"{nice} is outside -20..19", _PROCESS)])
        if not 0 <= priority <= 99:
            raise SpecError([Problem(f"{where}.priority", f"{priority} is outside 0..99", _PROCESS)])
        times = (scheduler.runtime or 0, scheduler.deadline or 0, scheduler.period or 0)
        attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times, 0, 0)
        shown = [f"nice {nice}", f"priority {priority}", *(scheduler.flags or ())]
        if any(times):
            shown.append("runtime {} deadline {} period {} ns".format(*times))
        b.init("scheduler", attr, text=f"{scheduler.policy}, {', '.join(shown)}")
    if process.io_priority is not None:
        where, wanted = "$.process.ioPriority", process.io_priority
        level = wanted.priority or 0
        number = _number(IO_CLASSES, wanted.class_, f"{where}.class", "no class of I/O priority", _PROCESS)
        if not 0 <= level <= 7:
            raise SpecError([Problem(f"{where}.priority", f"{level} is outside 0..7", _PROCESS)])
        b.init("ioprio", number << 13 | level, text=f"{wanted.class_} {level}")


def compile_affinity(b: Builder, process: Process, member: str) -> bool:
    """execCPUAffinity's ``initial`` or ``final`` for a process that joins a container; whether there is one. Raises SpecError."""
    cpus: str | None = getattr(process.exec_cpu_affinity, member, None)
    if not cpus:
        return False
    b.init("affinity", list_mask(cpus, f"$.process.execCPUAffinity.{member}", _PROCESS), text=f"CPUs {cpus}")
    return True


def compile_memory_policy(b: Builder, linux: Linux | None) -> None:
    """memoryPolicy, inside the cgroup, whose nodes it must be among. Raises SpecError."""
    policy = linux.memory_policy if linux else None
    if policy is None:
        return
    where, section = "$.linux.memoryPolicy", "config-linux.md#memory-policy"
    mode = _number(MEMORY_MODES, policy.mode, f"{where}.mode", "no memory policy", section)
    for index, flag in enumerate(policy.flags or ()):
        mode |= _number(MEMORY_FLAGS, flag, f"{where}.flags[{index}]", "no flag of memory policies", section)
    nodes = list_mask(policy.nodes, f"{where}.nodes", section) if policy.nodes else b""
    if policy.mode in ("MPOL_DEFAULT", "MPOL_LOCAL") and nodes:
        raise SpecError([Problem(f"{where}.nodes", f"{policy.mode} takes no nodes", section)])
    if policy.mode not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED") and not nodes:
        raise SpecError([Problem(f"{where}.nodes", f"{policy.mode} needs at least one node", section)])
    b.init("mempolicy", mode, nodes, text=" ".join([policy.mode, policy.nodes or "", *(policy.flags or ())]).strip())


def compile_personality(b: Builder, linux: Linux | None) -> None:
    """personality. Raises SpecError."""
    personality = linux.personality if linux else None
    if personality is None:
        return
    section = "config-linux.md#personality"
    if personality.flags:
        raise SpecError([Problem("$.linux.personality.flags", "no flag is defined", section)])
    number = _number(PERSONALITIES, personality.domain, "$.linux.personality.domain", "no execution domain", section)
    b.init("personality", number, text=personality.domain)
