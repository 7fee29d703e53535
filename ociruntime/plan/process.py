"""The process: its program, environment, limits, scheduling and terminal (config.md, Process; config-linux.md, Memory policy)."""

from __future__ import annotations

import posixpath
import struct
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.syntax import destination_in_root, parse_ranges
from . import kernel
from .model import NO_SLOT, PlanBuilder
from .namespaces import dumpable
from .ops import Sync, Target

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Process


DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(process: Process) -> tuple[str, ...]:
    """Return the environment for execve; of entries with the same name the last one is kept."""
    last: dict[str, str] = {}
    for entry in process.env or ():
        last[entry.partition("=")[0]] = entry
    return tuple(last.values())


def candidates(process: Process) -> tuple[str, ...]:
    """Return the paths at which args[0] is looked up, as execvpe does: in PATH unless it contains a slash."""
    args = process.args
    assert args, "the rules require one"
    if "/" in args[0]:
        return (posixpath.join(process.cwd, args[0]),)
    path = next((entry[5:] for entry in reversed(process.env or ()) if entry.startswith("PATH=")), DEFAULT_PATH)
    return tuple(posixpath.join(process.cwd, directory or ".", args[0]) for directory in path.split(":"))


def compile_limits(builder: PlanBuilder, process: Process, *, without: str = "") -> None:
    """Set the resource limits, while the init has the capability to raise them.

    Args:
        without: the type of the limit that is set elsewhere.
    """
    for limit in process.rlimits or ():
        if limit.type == without:
            continue
        text = f"{limit.type} soft={limit.soft} hard={limit.hard}"
        builder.add("rlimit", kernel.RLIMITS[limit.type], limit.soft, limit.hard, text=text)


def compile_keyring(builder: PlanBuilder, host: Host) -> None:
    """Create a session keyring, so that the container has no access to the keys in the caller's."""
    if host.keyrings:
        builder.add("keyring", "", text="new session keyring")


def create_cwd(builder: PlanBuilder, process: Process, root: int) -> None:
    """Create the working directory if it does not exist, before the root becomes read-only."""
    cwd = destination_in_root(process.cwd)
    builder.add("target", root, cwd, Target(0), 0o755, NO_SLOT, NO_SLOT, text=f"working directory {cwd}")


def compile_oom_score(builder: PlanBuilder, process: Process, host: Host, *, early: bool = False) -> None:
    """Let the caller write ``oomScoreAdj``: a privileged one may lower it.

    Args:
        early: before any namespace is joined. An unprivileged caller writes it there, as the init must be dumpable for that.
    """
    if process.oom_score_adj is None or early == host.privileged:
        return
    value = str(process.oom_score_adj)
    with dumpable(builder, host, "for /proc/PID/oom_score_adj"):
        if early:
            builder.add("sync", Sync.HOST, text="wait until the caller has written the OOM score")
        builder.add_host("proc_write", "oom_score_adj", value, text=f"{value} > /proc/PID/oom_score_adj")


def compile_execve(builder: PlanBuilder, process: Process) -> None:
    """Add the last step: the init executes the program."""
    args = tuple(process.args or ())
    command = " ".join(args)
    text = command if len(command) <= 80 else command[:77] + "..."
    builder.add("exec", candidates(process), args, environment(process), text=text)


_PROCESS: Final = "config.md#linux-process"
POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
"""Linux reserves a number for SCHED_ISO, but does not implement it."""
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
    """Return the bit mask of a list such as ``0-3,7``, in 64-bit words of the machine's byte order. Raises ValueError."""
    mask = 0
    for first, last in parse_ranges(text):
        mask |= (1 << last + 1) - (1 << first)
    words = (mask.bit_length() + 63) // 64
    return struct.pack(f"={words}Q", *(mask >> 64 * word & (1 << 64) - 1 for word in range(words)))


def _number(table: dict[str, int], name: str, location: str, meaning: str) -> int:
    number = table.get(name)
    if number is None:
        raise SpecError([Problem(location, f"{name!r} is not {meaning}; known are {', '.join(table)}", _PROCESS)])
    return number


def compile_scheduling(builder: PlanBuilder, process: Process) -> None:
    """Set ``scheduler`` and ``ioPriority`` in the cgroup, which limits them, and while the init has the capabilities.

    Raises:
        SpecError: a name does not exist.
        UnsupportedError: SCHED_ISO is asked for.
    """
    scheduler = process.scheduler
    if scheduler is not None:
        location = "$.process.scheduler"
        if scheduler.policy == "SCHED_ISO":
            raise UnsupportedError(f"{location}.policy: Linux does not implement SCHED_ISO")
        policy = _number(POLICIES, scheduler.policy, f"{location}.policy", "a scheduling policy")
        flags = 0
        for index, flag in enumerate(scheduler.flags or ()):
            flags |= _number(SCHEDULER_FLAGS, flag, f"{location}.flags[{index}]", "a scheduling flag")
        nice, priority = scheduler.nice or 0, scheduler.priority or 0
        times = (scheduler.runtime or 0, scheduler.deadline or 0, scheduler.period or 0)
        attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times, 0, 0)
        description = [f"nice {nice}", f"priority {priority}", *(scheduler.flags or ())]
        if any(times):
            description.append("runtime {} deadline {} period {} ns".format(*times))
        builder.add("scheduler", attr, text=f"scheduler {scheduler.policy}, {', '.join(description)}")
    if process.io_priority is not None:
        io_class, level = process.io_priority.class_, process.io_priority.priority or 0
        number = _number(IO_CLASSES, io_class, "$.process.ioPriority.class", "an I/O priority class")
        builder.add("ioprio", number << 13 | level, text=f"I/O priority {io_class} {level}")


def compile_affinity(builder: PlanBuilder, process: Process, member: str) -> None:
    """Set ``initial`` or ``final`` of ``execCPUAffinity`` for an exec process."""
    cpus: str | None = getattr(process.exec_cpu_affinity, member, None)
    if cpus and cpus.strip():
        builder.add("affinity", list_mask(cpus), text=f"CPUs {cpus}")


def compile_memory_policy(builder: PlanBuilder, linux: Linux | None) -> None:
    """Set ``memoryPolicy`` in the cgroup, which limits the nodes. Raises SpecError: a name does not exist."""
    policy = linux.memory_policy if linux else None
    if policy is None:
        return
    location = "$.linux.memoryPolicy"
    mode = _number(MEMORY_MODES, policy.mode, f"{location}.mode", "a memory policy")
    for index, flag in enumerate(policy.flags or ()):
        mode |= _number(MEMORY_FLAGS, flag, f"{location}.flags[{index}]", "a memory policy flag")
    nodes = list_mask(policy.nodes) if policy.nodes and policy.nodes.strip() else b""
    description = " ".join(filter(None, (policy.mode, policy.nodes, *(policy.flags or ()))))
    builder.add("mempolicy", mode, nodes, text=f"memory policy {description}")


def compile_personality(builder: PlanBuilder, linux: Linux | None) -> None:
    """Set ``personality``. Raises SpecError: the domain does not exist."""
    personality = linux.personality if linux else None
    if personality is not None:
        number = _number(PERSONALITIES, personality.domain, "$.linux.personality.domain", "an execution domain")
        builder.add("personality", number, text=f"execution domain {personality.domain}")


def compile_terminal(builder: PlanBuilder, process: Process, attached: dict[str, int], root: int) -> None:
    """Make a terminal of the container's devpts the standard streams (config.md#process, ``terminal`` and ``consoleSize``).

    Args:
        attached: the slots of the container's mounts; empty for an exec process, for which /dev/console stays as it is.
        root: the slot of the container's root.
    """
    in_root = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
    dev, devpts = builder.new_slot(), attached.get("/dev/pts")
    builder.add("open", root, "dev", kernel.O_PATH, 0, in_root, dev, text="/dev")
    if devpts is None:
        devpts = builder.new_slot()
        builder.add("open", root, "dev/pts", kernel.O_PATH, 0, in_root, devpts, text="/dev/pts")
    size = process.console_size
    rows, cols = (size.height, size.width) if size else (0, 0)
    uid = (process.user.uid or 0) if process.user else 0
    builder.add("console", devpts, dev, rows, cols, uid, int(bool(attached)), text="terminal of the container's devpts")


def take_terminal(builder: PlanBuilder, process: Process) -> None:
    """Make the terminal, if there is one, the controlling terminal of the session."""
    if process.terminal:
        builder.add("take_terminal", text="controlling terminal of the session")
