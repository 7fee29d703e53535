"""The process: its program, environment, limits, scheduling and terminal (config.md, Process; config-linux.md, Memory policy)."""

from __future__ import annotations

import posixpath
import struct
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from ..spec.syntax import destination_in_root, parse_ranges
from . import kernel as k
from .model import NO_SLOT, Builder
from .namespaces import own_files
from .ops import Sync, Target

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Process


DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(process: Process) -> tuple[str, ...]:
    """The environment as execve gets it: of a name that comes twice, the last one counts."""
    last: dict[str, str] = {}
    for entry in process.env or ():
        last[entry.partition("=")[0]] = entry
    return tuple(last.values())


def candidates(process: Process) -> tuple[str, ...]:
    """Where args[0] is looked for, as execvpe does: in PATH unless it has a slash."""
    args = process.args
    assert args, "the rules want one"
    if "/" in args[0]:
        return (posixpath.join(process.cwd, args[0]),)
    path = next((e[5:] for e in reversed(process.env or ()) if e.startswith("PATH=")), DEFAULT_PATH)
    return tuple(posixpath.join(process.cwd, directory or ".", args[0]) for directory in path.split(":"))


def compile_limits(b: Builder, process: Process, *, without: str = "") -> None:
    """rlimits, as long as the init still has the capability to raise them.

    Args:
        without: the limit that is set elsewhere.
    """
    for limit in process.rlimits or ():
        if limit.type == without:
            continue
        text = f"{limit.type} soft={limit.soft} hard={limit.hard}"
        b.init("rlimit", k.RLIMITS[limit.type], limit.soft, limit.hard, text=text)


def compile_keyring(b: Builder, host: Host) -> None:
    """A fresh session keyring: the caller's holds keys that are none of the container's business."""
    if host.keyrings:
        b.init("keyring", "", text="a session keyring of its own")


def make_cwd(b: Builder, process: Process, root: int) -> None:
    """Make the working directory where it is missing, before the root becomes read-only."""
    cwd = destination_in_root(process.cwd)
    b.init("target", root, cwd, Target(0), 0o755, NO_SLOT, NO_SLOT, text=f"{cwd}, the working directory, made where missing")


def compile_oom_score(b: Builder, process: Process, host: Host, *, early: bool = False) -> None:
    """oomScoreAdj, written by the caller, who may lower it.

    Args:
        early: before anything is joined: there a user without privileges does it, as the init must open itself to him.
    """
    if process.oom_score_adj is None or early == host.privileged:
        return
    value = str(process.oom_score_adj)
    with own_files(b, host, "let the caller write the score"):
        if early:
            b.init("sync", Sync.HOST, text="the caller writes the score")
        b.host("proc_write", "oom_score_adj", value, text=f"{value} > /proc/PID/oom_score_adj")


def compile_exec_step(b: Builder, process: Process) -> None:
    """The last step: the init becomes the program."""
    args = tuple(process.args or ())
    shown = " ".join(args)
    b.init("exec", candidates(process), args, environment(process), text=shown if len(shown) <= 80 else shown[:77] + "...")


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
    for first, last in parse_ranges(text):
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


def compile_terminal(b: Builder, process: Process, attached: dict[str, int], root: int) -> None:
    """A terminal from the container's own devpts as the standard streams.

    Args:
        attached: the slots of the container's mounts; empty for an exec, where /dev/console stays as it is.
        root: the slot of the container's root.
    """
    dev, devpts = b.slot(), attached.get("/dev/pts")
    b.init("open", root, "dev", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, dev, text="/dev")
    if devpts is None:
        devpts = b.slot()
        b.init("open", root, "dev/pts", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, devpts, text="/dev/pts")
    size = process.console_size
    rows, cols = (size.height, size.width) if size else (0, 0)
    uid = (process.user.uid or 0) if process.user else 0
    b.init("console", devpts, dev, rows, cols, uid, int(bool(attached)), text="a terminal from the container's own devpts")


def take_terminal(b: Builder, process: Process) -> None:
    """Make the terminal, if there is one, that of the session; the session's leader is in its foreground."""
    if process.terminal:
        b.init("take_terminal", text="the terminal controls the session")
