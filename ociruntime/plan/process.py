"""The process: its program, user, capabilities, environment, limits, scheduling, terminal and hooks.

See config.md, Process and POSIX-platform Hooks, and config-linux.md, Memory policy.
"""

from __future__ import annotations

import posixpath
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from ..arguments import shown
from ..errors import SpecError, UnsupportedError
from ..spec.base import Problem, destination_in_root, parse_ranges
from ..spec.process import UNLIMITED
from . import ops
from .model import NO_SLOT, PlanBuilder, UncompiledFilter
from .namespaces import KEEP_GROUPS, Setgroups, dumpable
from .ops import Sync, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ..host import Host
    from ..spec import Capabilities, Hook, Linux, ProcessSpec, Rlimit, RuntimeSpec, Seccomp, SyscallArg


DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(process: ProcessSpec) -> tuple[str, ...]:
    """Return the environment for execve; of entries with the same name the last one is kept."""
    last: dict[str, str] = {}
    for entry in process.env or ():
        last[entry.partition("=")[0]] = entry
    return tuple(last.values())


def candidates(process: ProcessSpec) -> tuple[str, ...]:
    """Return the paths at which args[0] is looked up, as execvpe does: in PATH unless it contains a slash."""
    args = process.args
    assert args, "the rules require one"
    if "/" in args[0]:
        return (posixpath.join(process.cwd, args[0]),)
    path = next((entry[5:] for entry in reversed(process.env or ()) if entry.startswith("PATH=")), DEFAULT_PATH)
    return tuple(posixpath.join(process.cwd, directory or ".", args[0]) for directory in path.split(":"))


def compile_limits(builder: PlanBuilder, process: ProcessSpec, *, without: str = "") -> None:
    """Set the resource limits, while the init has the capability to raise them.

    Args:
        without: the type of the limit that is set elsewhere.

    Raises:
        UnsupportedError: Linux does not have a limit.
    """
    for index, limit in enumerate(process.rlimits or ()):
        if limit.type == without:
            continue
        if not limit.type.known:  # the rules for Linux have refused it, unless the configuration has no linux object
            raise UnsupportedError(f"$.process.rlimits[{index}].type: {shown(str(limit.type))} is not a resource limit of Linux")
        text = f"{limit.type} soft={limit.soft} hard={limit.hard}"
        builder.add("rlimit", ops.RLIMITS[limit.type], limit.soft, limit.hard, text=text)


def compile_keyring(builder: PlanBuilder, host: Host) -> None:
    """Create a session keyring, so that the container has no access to the keys in the caller's."""
    if host.keyrings:
        builder.add("keyring", "", text="new session keyring")


def create_cwd(builder: PlanBuilder, process: ProcessSpec, root: int) -> None:
    """Create the working directory if it does not exist, before anything becomes read-only."""
    cwd = destination_in_root(process.cwd)
    if cwd != "/":
        with builder.at("$.process.cwd"):
            builder.add("target", root, cwd, Target.IN_PROC, 0o755, NO_SLOT, NO_SLOT, text=f"working directory {cwd}")


def compile_oom_score(builder: PlanBuilder, process: ProcessSpec, host: Host, *, early: bool = False) -> None:
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


def compile_execve(builder: PlanBuilder, process: ProcessSpec) -> None:
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
        raise SpecError([Problem(location, f"invalid {meaning} {shown(str(name))}; known are {', '.join(table)}", _PROCESS)])
    return number


def compile_scheduling(builder: PlanBuilder, process: ProcessSpec) -> None:
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
        policy = _number(POLICIES, scheduler.policy, f"{location}.policy", "scheduling policy")
        flags = 0
        for index, flag in enumerate(scheduler.flags or ()):
            flags |= _number(SCHEDULER_FLAGS, flag, f"{location}.flags[{index}]", "scheduling flag")
        nice, priority = scheduler.nice or 0, scheduler.priority or 0
        times = (scheduler.runtime or 0, scheduler.deadline or 0, scheduler.period or 0)
        attr = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, flags, nice, priority, *times, 0, 0)
        description = [f"nice {nice}", f"priority {priority}", *(scheduler.flags or ())]
        if any(times):
            description.append("runtime {} deadline {} period {} ns".format(*times))
        builder.add("scheduler", attr, text=f"scheduler {scheduler.policy}, {', '.join(description)}")
    if process.io_priority is not None:
        io_class, level = process.io_priority.class_, process.io_priority.priority or 0
        number = _number(IO_CLASSES, io_class, "$.process.ioPriority.class", "I/O priority class")
        builder.add("ioprio", number << 13 | level, text=f"I/O priority {io_class} {level}")


def compile_affinity(builder: PlanBuilder, cpus: str) -> None:
    """Set the CPU affinity, for ``initial`` or ``final`` of ``execCPUAffinity``."""
    if cpus:
        builder.add("affinity", list_mask(cpus), text=f"CPUs {cpus}")


def reset_affinity(builder: PlanBuilder) -> None:
    """Allow every CPU of the cgroup, which the init has joined, instead of the caller's CPU affinity, as runc does."""
    builder.add("affinity", b"", text="every CPU that the cgroup allows")


def compile_memory_policy(builder: PlanBuilder, linux: Linux | None) -> None:
    """Set ``memoryPolicy`` in the cgroup, which limits the nodes. Raises SpecError: a name does not exist."""
    policy = linux.memory_policy if linux else None
    if policy is None:
        return
    location = "$.linux.memoryPolicy"
    mode = _number(MEMORY_MODES, policy.mode, f"{location}.mode", "memory policy")
    for index, flag in enumerate(policy.flags or ()):
        mode |= _number(MEMORY_FLAGS, flag, f"{location}.flags[{index}]", "memory policy flag")
    nodes = list_mask(policy.nodes) if policy.nodes and policy.nodes.strip() else b""
    description = " ".join(filter(None, (policy.mode, policy.nodes, *(policy.flags or ()))))
    builder.add("mempolicy", mode, nodes, text=f"memory policy {description}")


def compile_personality(builder: PlanBuilder, linux: Linux | None) -> None:
    """Set ``personality``. Raises SpecError: the domain does not exist."""
    personality = linux.personality if linux else None
    if personality is not None:
        number = _number(PERSONALITIES, personality.domain, "$.linux.personality.domain", "execution domain")
        builder.add("personality", number, text=f"execution domain {personality.domain}")


def compile_terminal(builder: PlanBuilder, process: ProcessSpec, attached: dict[str, int], root: int) -> None:
    """Make a terminal of the container's devpts the standard streams (config.md#process, ``terminal`` and ``consoleSize``).

    Args:
        attached: the slots of the container's mounts; empty for an exec process, for which /dev/console stays as it is.
        root: the slot of the container's root.
    """
    in_root = ops.RESOLVE_IN_ROOT | ops.RESOLVE_NO_MAGICLINKS
    dev, devpts = builder.new_slot(), attached.get("/dev/pts")
    builder.add("open", root, "dev", ops.O_PATH, 0, in_root, dev, text="/dev")
    if devpts is None:
        devpts = builder.new_slot()
        builder.add("open", root, "dev/pts", ops.O_PATH, 0, in_root, devpts, text="/dev/pts")
    size = process.console_size
    rows, cols = (size.height, size.width) if size else (0, 0)
    uid = (process.user.uid or 0) if process.user else 0
    builder.add("console", devpts, dev, rows, cols, uid, int(bool(attached)), text="terminal of the container's devpts")


def take_terminal(builder: PlanBuilder, process: ProcessSpec) -> None:
    """Make the terminal, if there is one, the controlling terminal of the session."""
    if process.terminal:
        builder.add("take_terminal", text="controlling terminal of the session")


_ORDER: Final = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST
    NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
    SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
    BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

CAPABILITIES: Final[dict[str, int]] = {f"CAP_{name}": bit for bit, name in enumerate(_ORDER.split())}
"""Name -> bit, in the order of the kernel's ``linux/capability.h``, up to Linux 6.18."""
ALL_CAPABILITIES: Final = (1 << 64) - 1
CAP_SYS_ADMIN: Final = 1 << CAPABILITIES["CAP_SYS_ADMIN"]
CAP_SYS_PTRACE: Final = 1 << CAPABILITIES["CAP_SYS_PTRACE"]
CAP_SYS_RESOURCE: Final = 1 << CAPABILITIES["CAP_SYS_RESOURCE"]


def to_mask(names: Iterable[str], last_cap: int) -> tuple[int, tuple[str, ...]]:
    """Return the mask of capabilities, and the names that this kernel does not know.

    The spec requires a warning for unknown names instead of an error. They are returned in their order, each one once.

    Args:
        names: ``CAP_*``, exactly as the spec writes them.
        last_cap: the kernel's highest capability (``/proc/sys/kernel/cap_last_cap``).
    """
    mask = 0
    unknown: dict[str, None] = {}
    for name in names:
        bit = CAPABILITIES.get(name)
        if bit is None or bit > last_cap:
            unknown[name] = None
        else:
            mask |= 1 << bit
    return mask, tuple(unknown)


def from_mask(mask: int) -> tuple[str, ...]:
    """Return the names of the capabilities in a mask, lowest bit first; ``CAP_<number>`` for one that is not in `CAPABILITIES`.

    Raises:
        ValueError: the mask is negative.
    """
    if mask < 0:
        raise ValueError(f"capability mask {mask}: is negative")
    names = tuple(CAPABILITIES)
    return tuple(names[bit] if bit < len(names) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1)


class Granted(NamedTuple):
    """The five capability sets as masks, with a warning for each group of capabilities that cannot be granted."""

    bounding: int
    effective: int
    permitted: int
    inheritable: int
    ambient: int
    warnings: tuple[str, ...]


def grant(requested: Capabilities | None, last_cap: int, held: int) -> Granted:
    """Return the capabilities that can be granted: known to the kernel, held by the runtime, and allowed by the other sets.

    The kernel allows an effective or ambient capability only if it is permitted, an ambient one only if it is inheritable too, and
    an inheritable one only if it is in the bounding set. The others become warnings, as the spec requires.

    Args:
        requested: ``process.capabilities``.
        last_cap: the kernel's highest capability.
        held: the mask of the capabilities that the runtime can grant; all of them in a new user namespace.
    """
    dropped: dict[tuple[tuple[str, ...], str], list[str]] = {}
    """The sets by the capabilities that they lack, and the reason: often the same for all of them."""

    def mask(kind: str, *above: tuple[int, str]) -> int:
        names: tuple[str, ...] = (getattr(requested, kind) or ()) if requested else ()
        bits, unknown = to_mask(names, last_cap)
        if unknown:
            dropped.setdefault((unknown, "unknown to this kernel"), []).append(kind)
        for allowed, reason in above:
            if lost := bits & ~allowed:
                dropped.setdefault((from_mask(lost), f"cannot be granted: {reason}"), []).append(kind)
            bits &= allowed
        return bits

    runtime = (held, "the runtime does not have them")
    bounding = mask("bounding", runtime)
    permitted = mask("permitted", runtime)
    effective = mask("effective", runtime, (permitted, "they are not permitted"))
    inheritable = mask("inheritable", runtime, (bounding, "they are not in the bounding set"))
    ambient = mask("ambient", runtime, (permitted, "they are not permitted"), (inheritable, "they are not inheritable"))
    warnings = tuple(_dropped(kinds, ", ".join(names), reason) for (names, reason), kinds in dropped.items())
    return Granted(bounding, effective, permitted, inheritable, ambient, warnings)


def _dropped(kinds: Sequence[str], names: str, reason: str) -> str:
    """Return the warning about capabilities that some sets lack."""
    if kinds == ["ambient"]:  # in the words of runc
        names, reason = f"can't raise ambient capability {names}", reason.removeprefix("cannot be granted: ")
    return f"$.process.capabilities.{', '.join(kinds)}: {names}: {reason}"


_MAX_SHOWN: Final = 10
"""Groups that the text of a step names."""


def compile_credentials(
    builder: PlanBuilder,
    process: ProcessSpec,
    host: Host,
    seccomp: Seccomp | None,
    *,
    held: int | None = None,
    setgroups: Setgroups = Setgroups.ALLOWED,
    parent: int = NO_SLOT,
    strict: bool = False,
    visible: bool = False,
    reaps: bool = False,
) -> None:
    """Set user, groups, capabilities and seccomp filter, each while the init still may; the filter applies to no other step.

    Args:
        held: the capabilities that can be granted. Default: those of the runtime.
        setgroups: what setgroups(2) may do.
        parent: the slot of the caller's pidfd, if the process is killed when the caller ends.
        strict: whether to refuse a program that the kernel would not kill with the caller.
        visible: whether the container sees the process before it executes the program.
        reaps: whether it executes none, but reaps those of the container.

    Raises:
        UnsupportedError: the supplementary groups cannot be set, or ``strict`` refuses the program.
    """
    user = process.user
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    groups = tuple(user.additional_gids or ()) if user else ()
    held = host.capabilities if held is None else held
    caps = grant(process.capabilities, host.last_cap, held)
    for warning in caps.warnings:
        builder.warn(warning)
    if user and user.umask is not None:
        builder.add("umask", user.umask, text=f"umask {user.umask:04o}")
    if uid and not process.terminal:
        builder.add("own_stdio", uid, text=f"standard streams that are pipes, for user {uid}")
    builder.add("bounding", caps.bounding, host.last_cap, text=f"{caps.bounding.bit_count()} capabilities in the bounding set")
    builder.add("prctl", ops.PR_SET_KEEPCAPS, 1, 0, text="keep capabilities when the user changes")
    _set_groups(builder, groups, gid, setgroups)
    builder.add("setresgid", gid, text=f"group {gid}")
    builder.add("setresuid", uid, text=f"user {uid}")
    if parent != NO_SLOT:  # after the change of user, which resets it, and before the filter, which may forbid it
        if strict and uid == 0 and not process.no_new_privileges and caps.bounding & ~caps.permitted:
            message = "a program that gains capabilities by execve is not killed with its parent; permit all of the bounding set"
            raise UnsupportedError(f"$.process.capabilities.bounding: {message}, or set noNewPrivileges")
        compile_parent_death(builder, parent)
    # Without no_new_privs loading a filter needs CAP_SYS_ADMIN. execve computes the new sets from the bounding, inheritable and
    # ambient ones alone, so the program does not get it.
    extra = CAP_SYS_ADMIN if seccomp is not None and not process.no_new_privileges else 0
    counts = (caps.effective.bit_count(), caps.permitted.bit_count(), caps.inheritable.bit_count())
    description = "{} effective, {} permitted and {} inheritable capabilities".format(*counts)
    if extra:
        description += "; CAP_SYS_ADMIN until execve, for the filter"
    # A process is traced by those alone that have all of its permitted capabilities. A program that traces the first process could
    # let it take back that it is killed with the caller.
    kept = held & CAP_SYS_PTRACE if reaps and parent != NO_SLOT else 0
    if kept:
        description += "; CAP_SYS_PTRACE is permitted too, so that no program without it can trace this process"
    builder.add("capset", caps.effective | extra, caps.permitted | extra | kept, caps.inheritable, text=description)
    builder.add("ambient", caps.ambient, text=f"{caps.ambient.bit_count()} ambient capabilities")
    if process.no_new_privileges:
        builder.add("prctl", ops.PR_SET_NO_NEW_PRIVS, 1, 0, text="no new privileges")
    if seccomp is not None:
        listener = _load_filter(builder, seccomp)
        if visible and listener != NO_SLOT:
            builder.add("close", listener, text="listener of the seccomp filter, which is for the agent alone")
        if visible and extra & ~caps.permitted:
            builder.add("capset", caps.effective, caps.permitted, caps.inheritable, text=f"{description}; without CAP_SYS_ADMIN")


_OF_FILES: Final = sum(
    1 << CAPABILITIES[f"CAP_{name}"] for name in ("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID")
)
"""The capabilities that change access to files, without those to make devices and to give capabilities to files."""


def compile_file_rights(builder: PlanBuilder, process: ProcessSpec, host: Host, *, held: int | None, setgroups: Setgroups) -> None:
    """Set the user, the groups and the capabilities with which a process of the container accesses files.

    Arguments and errors are those of `compile_credentials`.
    """
    user = process.user
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    groups = tuple(user.additional_gids or ()) if user else ()
    caps = grant(process.capabilities, host.last_cap, host.capabilities if held is None else held)
    kept = _OF_FILES & (caps.ambient if uid else caps.permitted)  # what execve leaves to this user
    builder.add("prctl", ops.PR_SET_KEEPCAPS, 1, 0, text="keep capabilities when the user changes")
    _set_groups(builder, groups, gid, setgroups)
    builder.add("setresgid", gid, text=f"group {gid}")
    builder.add("setresuid", uid, text=f"user {uid}")
    builder.add("capset", kept, kept, 0, text=f"capabilities for files: {', '.join(from_mask(kept)) or 'none'}")


def compile_parent_death(builder: PlanBuilder, parent: int) -> None:
    """Let the kernel kill the process when the caller ends."""
    builder.add("die_with", parent, text="killed when the caller ends")


def _set_groups(builder: PlanBuilder, groups: tuple[int, ...], primary: int, setgroups: Setgroups) -> None:
    """Set the supplementary groups. The primary group alone is set where setgroups(2) is allowed, and not needed elsewhere."""
    needed = any(group != primary for group in groups)
    if setgroups is Setgroups.KEPT:
        if needed:
            raise UnsupportedError(
                f"$.process.user.additionalGids: conflicts with the annotation {KEEP_GROUPS}; remove one of them"
            )
        return
    if setgroups is Setgroups.DENIED:
        if needed:
            message = "the user namespace of an unprivileged user denies setgroups; map the groups with newgidmap, or remove them"
            raise UnsupportedError(f"$.process.user.additionalGids: {message}")
        return
    optional = setgroups is Setgroups.UNKNOWN and not needed
    more = f" and {len(groups) - _MAX_SHOWN} more" if len(groups) > _MAX_SHOWN else ""
    description = f"supplementary groups {', '.join(map(str, groups[:_MAX_SHOWN]))}{more}" if groups else "no supplementary groups"
    packed = struct.pack(f"={len(groups)}I", *groups)
    builder.add(
        "setgroups", packed, int(optional), text=description + (", unless the user namespace denies setgroups" if optional else "")
    )


def compile_labels(builder: PlanBuilder, process: ProcessSpec, host: Host, proc: int, *, empty: bool = False) -> None:
    """Set the AppArmor profile and the SELinux label that execve applies; an unknown name fails here.

    Args:
        proc: the slot of a procfs.
        empty: whether nothing is executed.

    Raises:
        UnsupportedError: the security module is not active, or nothing is executed.
    """
    profile, label = process.apparmor_profile, process.selinux_label
    labels = (
        ("apparmorProfile", "apparmor", profile, "apparmor/exec", f"exec {profile}"),
        ("selinuxLabel", "selinux", label, "exec", label),
    )
    for member, module, name, file, text in labels:
        if not name:
            continue
        if module not in host.lsms:
            raise UnsupportedError(f"$.process.{member}: {module} is not active on this host")
        if empty:
            raise UnsupportedError(f"$.process.{member}: needs a program, and an empty process executes none")
        builder.add("label", proc, f"self/attr/{file}", str(text).encode(), text=f"{module} label {name}")


def _load_filter(builder: PlanBuilder, profile: Seccomp) -> int:
    """Load the filter and return the slot of its listener, or NO_SLOT."""
    names = sum(len(rule.names) for rule in profile.syscalls or ())
    text = f"seccomp filter: {profile.default_action} except for {names} named system calls"
    if not any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        builder.add("seccomp", 0, UncompiledFilter(profile), NO_SLOT, text=text)
        return NO_SLOT
    listener = builder.new_slot()
    builder.add("seccomp", ops.SECCOMP_FILTER_FLAG_NEW_LISTENER, UncompiledFilter(profile), listener, text=text)
    builder.add("handout", listener, text=f"listener of the seccomp filter, for {profile.listener_path}")
    return listener


# ---- joining the pid namespace of a running container, after which its processes see the init ----
#
# In a container without a user namespace a process with CAP_SYS_PTRACE can open the memory and the descriptors of every process
# that it sees, dumpable or not (CVE-2016-9962). So the init forks into the pid namespace after it has given up everything that the
# program does not get, and has loaded the seccomp filter.

_ALLOWED: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})
_NPROC: Final = "RLIMIT_NPROC"
_ROOM: Final = 2
"""The processes of the user when the init forks: itself and its child. The change of user is allowed up to the limit."""


def forks_last(process: ProcessSpec, profile: Seccomp | None, host: Host, *, user: bool) -> bool:
    """Return whether the init can fork after all other steps.

    It cannot if a scheduling attribute does not survive the fork, if the filter denies a later step, or if the limit of processes
    has no room for the init.

    Args:
        user: whether the init is in the container's user namespace, where it cannot raise limits.
    """
    limit = _process_limit(process)
    may_raise = host.initial and not user and host.privileged and host.capabilities & CAP_SYS_RESOURCE
    if limit is not None and limit.hard - limit.soft < _ROOM and not may_raise:
        return False
    scheduler = process.scheduler
    if scheduler is not None and (scheduler.policy == "SCHED_DEADLINE" or "SCHED_FLAG_RESET_ON_FORK" in (scheduler.flags or ())):
        return False
    if profile is None:
        return True
    calls: dict[str, tuple[int | None, ...]] = {
        "clone": (ops.CLONE_PARENT | ops.CLONE_PARENT_SETTID, 0, None, 0, 0),
        "sendmsg": (None, None, ops.MSG_NOSIGNAL),
        "read": (None, None, 1),
        "setsid": (),
    }
    if not process.no_new_privileges:
        calls["capset"] = (None, None)
    if any(rule.action == "SCMP_ACT_NOTIFY" for rule in profile.syscalls or ()):
        calls["close"] = (None,)
    if process.terminal:
        calls["ioctl"] = (0, ops.TIOCSCTTY, 0)
    if limit is not None:
        calls["prlimit64"] = (0, ops.RLIMITS[_NPROC], None, 0)
    return permits(profile, calls)


def permits(profile: Seccomp, calls: Mapping[str, Sequence[int | None]]) -> bool:
    """Return whether a filter certainly allows these system calls.

    Args:
        calls: the arguments by the name of the call; None for an unknown one.
    """
    return all(_permits(profile, name, arguments) for name, arguments in calls.items())


def _permits(profile: Seccomp, name: str, arguments: Sequence[int | None]) -> bool:
    rules = [rule for rule in profile.syscalls or () if name in rule.names]
    unconditional = [rule for rule in rules if not rule.args]
    if unconditional:  # they override all others; two that contradict each other are not trusted
        return all(rule.action in _ALLOWED for rule in unconditional)
    for rule in rules:
        conditions = rule.args or ()
        outcomes = [_holds(condition, arguments) for condition in conditions]
        any_holds = len({condition.index for condition in conditions}) < len(outcomes)  # if an argument occurs twice, as in runc
        decisive = any_holds in outcomes
        if None in outcomes and not decisive:
            return False
        if decisive is any_holds:
            return rule.action in _ALLOWED
    return profile.default_action in _ALLOWED


def _holds(condition: SyscallArg, arguments: Sequence[int | None]) -> bool | None:
    """Return whether a condition holds, or None if that is unknown."""
    argument = arguments[condition.index] if condition.index < len(arguments) else None
    if argument is None:
        return None
    value, other = condition.value, condition.value_two or 0
    return {
        "SCMP_CMP_NE": argument != value,
        "SCMP_CMP_LT": argument < value,
        "SCMP_CMP_LE": argument <= value,
        "SCMP_CMP_EQ": argument == value,
        "SCMP_CMP_GE": argument >= value,
        "SCMP_CMP_GT": argument > value,
        "SCMP_CMP_MASKED_EQ": argument & value == other,
    }.get(condition.op)


def _process_limit(process: ProcessSpec) -> Rlimit | None:
    """Return the limit of the user's processes, if there is one."""
    return next((limit for limit in process.rlimits or () if limit.type == _NPROC and limit.soft != UNLIMITED), None)


def allow_fork(builder: PlanBuilder, process: ProcessSpec) -> None:
    """Set the limit of the user's processes, with room for the fork."""
    limit = _process_limit(process)
    if limit is not None:
        soft = min(limit.soft + _ROOM, UNLIMITED)
        hard = max(soft, limit.hard)
        builder.add("rlimit", ops.RLIMITS[_NPROC], soft, hard, text=f"{_NPROC} soft={soft} hard={hard}, with room for the fork")


def close_unneeded(builder: PlanBuilder) -> None:
    """Close the file descriptors that the program does not get."""
    builder.add("close_all", text="file descriptors that the program does not get, except for the control socket")


def hide_progress(builder: PlanBuilder) -> None:
    """Keep the progress page out of the child, whose memory the container can write; after the filter, madvise may be denied."""
    builder.add("keep_page", text="progress page, kept out of the child process")


def compile_last_fork(builder: PlanBuilder, process: ProcessSpec, host: Host) -> None:
    """Fork into the pid namespace, and set what only the child can set."""
    builder.add("fork_last", text="child process in the pid namespace that was joined")
    compile_oom_score(builder, process, host)
    limit = _process_limit(process)
    if limit is not None:
        builder.add("rlimit", ops.RLIMITS[_NPROC], limit.soft, limit.hard, text=f"{_NPROC} soft={limit.soft} hard={limit.hard}")


# ---- hooks: when each one runs, and what it is given (config.md#posix-platform-hooks) ----
#
# Hooks of the runtime namespace are steps of the host; the init runs those of the container namespace. The hooks that `start` and
# `delete` run are stored with the state (`CompiledHooks.stored`), so that neither reads the config again.

_HOOK_ATTRIBUTES: Final = {
    "prestart": "prestart",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
_AT_CREATE: Final = ("prestart", "createRuntime", "createContainer")
_IN_CONTAINER: Final = ("createContainer", "startContainer")


class HookProgram(NamedTuple):
    """A hook as it is executed. state.json has a list of the same values."""

    path: str
    args: Sequence[str]
    env: Sequence[str]
    timeout: int
    """Unit: seconds. 0 means no timeout."""
    position: int = 0
    """Where it is among the hooks of its kind, from 0 on."""

    def describe(self, kind: str) -> str:
        """Return the hook in one line, its kind first."""
        command = " ".join((self.path, *self.args[1:]))
        limit = f" ({self.timeout} s)" if self.timeout else ""
        return f"{kind} {command if len(command) <= 80 else command[:77] + '...'}{limit}"


class CompiledHooks(NamedTuple):
    """The hooks of a config by their kinds, without empty kinds."""

    programs: dict[str, tuple[HookProgram, ...]]
    state: int
    """The slot of the state document, which is the stdin of hooks in the container."""
    output: int
    """The slot of the file that receives the output of hooks in the container."""

    @property
    def at_create(self) -> bool:
        """Whether hooks run before the root is entered, which needs all mounts attached earlier."""
        return any(kind in self.programs for kind in _AT_CREATE)

    def stored(self) -> dict[str, list[HookProgram]]:
        """Return the hooks that run after create."""
        kinds = ("startContainer", "poststart", "poststop")
        return {kind: list(self.programs[kind]) for kind in kinds if kind in self.programs}


def compile_hooks(builder: PlanBuilder, spec: RuntimeSpec) -> CompiledHooks:
    """Return the hooks of a config, and add the inputs that hooks in the container need."""
    programs = dict(_programs(spec)) if spec.hooks is not None else {}
    state = output = -1
    if any(kind in programs for kind in _IN_CONTAINER):
        state = builder.add_input("state", "state of the container, for its hooks")
        output = builder.add_input("output", "output of hooks in the container")
    return CompiledHooks(programs, state, output)


def _programs(spec: RuntimeSpec) -> Iterator[tuple[str, tuple[HookProgram, ...]]]:
    """Yield the hooks of each kind. A startContainer hook without an environment gets that of the process, as with runc."""
    for kind, attribute in _HOOK_ATTRIBUTES.items():
        entries: tuple[Hook, ...] = getattr(spec.hooks, attribute) or ()
        default = spec.process.env if kind == "startContainer" and spec.process is not None else None
        programs = (
            HookProgram(
                hook.path,
                tuple(hook.args or (hook.path,)),
                tuple((default if hook.env is None else hook.env) or ()),
                hook.timeout or 0,
                index,
            )
            for index, hook in enumerate(entries)
        )
        if entries:
            yield kind, tuple(programs)


def compile_create_hooks(builder: PlanBuilder, hooks: CompiledHooks, root: int) -> None:
    """Run the hooks of create, after everything is mounted and before the host's tree is out of reach."""
    builder.add("sync", Sync.HOST, text="wait until the caller has run its hooks")
    for kind in ("prestart", "createRuntime"):
        for program in hooks.programs.get(kind, ()):
            builder.add_host("hook", kind, *program, text=program.describe(kind))
    if hooks.state >= 0:
        _write_state(builder)
    _run_in_container(builder, hooks, "createContainer", root)


def compile_hook_state(builder: PlanBuilder, hooks: CompiledHooks) -> None:
    """Write the state for the hooks of start, unless it was written for a hook of create."""
    if hooks.state >= 0 and not hooks.at_create:
        _write_state(builder)


def _write_state(builder: PlanBuilder) -> None:
    builder.add_host("hook_state", text="state with the container's pid, for its hooks")


def compile_start_hooks(builder: PlanBuilder, hooks: CompiledHooks, root: int) -> None:
    """Run the hooks of start with the credentials of the process, as their paths are resolved in the image."""
    _run_in_container(builder, hooks, "startContainer", root)


def _run_in_container(builder: PlanBuilder, hooks: CompiledHooks, kind: str, root: int) -> None:
    for program in hooks.programs.get(kind, ()):
        path, args, env, timeout, _ = program
        builder.add("hook", root, path, args, env, hooks.state, hooks.output, timeout * 1000, text=program.describe(kind))
