"""``process`` of config.json (config.md#process)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from .base import FrozenMap, OpenEnum
from .bases import (
    CapabilitiesBase,
    ConsoleSizeBase,
    ExecCPUAffinityBase,
    IOPriorityBase,
    ProcessBase,
    RlimitBase,
    SchedulerBase,
    UserBase,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .scalars import CPUList, Int32, Uint32, Uint64


class RlimitType(OpenEnum):
    """The resources of getrlimit(2) on Linux (config.md#posix-process)."""

    AS = "RLIMIT_AS"
    CORE = "RLIMIT_CORE"
    CPU = "RLIMIT_CPU"
    DATA = "RLIMIT_DATA"
    FSIZE = "RLIMIT_FSIZE"
    LOCKS = "RLIMIT_LOCKS"
    MEMLOCK = "RLIMIT_MEMLOCK"
    MSGQUEUE = "RLIMIT_MSGQUEUE"
    NICE = "RLIMIT_NICE"
    NOFILE = "RLIMIT_NOFILE"
    NPROC = "RLIMIT_NPROC"
    RSS = "RLIMIT_RSS"
    RTPRIO = "RLIMIT_RTPRIO"
    RTTIME = "RLIMIT_RTTIME"
    SIGPENDING = "RLIMIT_SIGPENDING"
    STACK = "RLIMIT_STACK"


class ConsoleSize(ConsoleSizeBase):
    """Size of the terminal (config.md#process)."""

    SECTION: ClassVar[str] = "config.md#process"

    height: Uint64
    """Unit: characters."""
    width: Uint64
    """Unit: characters."""


class User(UserBase):
    """Who the process runs as, in numbers of the container's user namespace (config.md#user)."""

    SECTION: ClassVar[str] = "config.md#user"

    uid: Uint32 | None = None
    """User id; needed on POSIX platforms."""
    gid: Uint32 | None = None
    """Group id; needed on POSIX platforms."""
    umask: Uint32 | None = None
    """umask(2), decimal in JSON: 0o022 is 18. Default: that of the runtime."""
    additional_gids: tuple[Uint32, ...] | None = None
    """Supplementary groups. Default: none."""
    username: str | None = None
    """Windows: name of the user. Default: the platform's."""


class Capabilities(CapabilitiesBase):
    """Names such as ``CAP_KILL`` in each of the five sets of capabilities(7); an absent set is empty (config.md#linux-process)."""

    SECTION: ClassVar[str] = "config.md#linux-process"

    bounding: tuple[str, ...] | None = None
    """What an execve(2) of the process or of its descendants can gain at most. Default: none."""
    effective: tuple[str, ...] | None = None
    """What the kernel checks. Default: none."""
    inheritable: tuple[str, ...] | None = None
    """What survives execve(2) of a file that has it in its own inheritable set. Default: none."""
    permitted: tuple[str, ...] | None = None
    """What the process may make effective. Default: none."""
    ambient: tuple[str, ...] | None = None
    """What survives execve(2) of a file without capabilities; each must be permitted and inheritable. Default: none."""

    def add(self, *names: str, ambient: bool = False) -> Capabilities:
        """With these capabilities in the bounding, effective and permitted sets, and with ``ambient`` in all five.

        Names may lack ``CAP_`` and be in lower case.
        """
        from .edit import caps_add

        return caps_add(self, names, ambient)

    def drop(self, *names: str) -> Capabilities:
        """Without these capabilities in any set; ``ALL`` drops every one."""
        from .edit import caps_drop

        return caps_drop(self, names)


class Rlimit(RlimitBase):
    """One resource limit, of getrlimit(2) (config.md#posix-process)."""

    SECTION: ClassVar[str] = "config.md#posix-process"

    type: RlimitType
    """The resource; each may come once."""
    soft: Uint64
    """What the kernel enforces; 18446744073709551615 for no limit."""
    hard: Uint64
    """The ceiling of the soft limit."""


class SchedulerPolicy(OpenEnum):
    """Scheduling policies of sched(7) (config.md#linux-process)."""

    SCHED_OTHER = "SCHED_OTHER"
    SCHED_FIFO = "SCHED_FIFO"
    SCHED_RR = "SCHED_RR"
    SCHED_BATCH = "SCHED_BATCH"
    SCHED_ISO = "SCHED_ISO"
    SCHED_IDLE = "SCHED_IDLE"
    SCHED_DEADLINE = "SCHED_DEADLINE"


class SchedulerFlag(OpenEnum):
    """Flags of sched_setattr(2) (config.md#linux-process)."""

    RESET_ON_FORK = "SCHED_FLAG_RESET_ON_FORK"
    RECLAIM = "SCHED_FLAG_RECLAIM"
    DL_OVERRUN = "SCHED_FLAG_DL_OVERRUN"
    KEEP_POLICY = "SCHED_FLAG_KEEP_POLICY"
    KEEP_PARAMS = "SCHED_FLAG_KEEP_PARAMS"
    UTIL_CLAMP_MIN = "SCHED_FLAG_UTIL_CLAMP_MIN"
    UTIL_CLAMP_MAX = "SCHED_FLAG_UTIL_CLAMP_MAX"


class Scheduler(SchedulerBase):
    """CPU scheduling of the process, by sched_setattr(2) (config.md#linux-process)."""

    SECTION: ClassVar[str] = "config.md#linux-process"

    policy: SchedulerPolicy
    """The scheduling class."""
    nice: Int32 | None = None
    """-20 (first) to 19, for SCHED_OTHER and SCHED_BATCH. Default: 0."""
    priority: Int32 | None = None
    """1 to 99 (first), for SCHED_FIFO and SCHED_RR. Default: 0."""
    flags: tuple[SchedulerFlag, ...] | None = None
    """Default: none."""
    runtime: Uint64 | None = None
    """CPU time that SCHED_DEADLINE gives in each period. Unit: nanoseconds. Default: 0."""
    deadline: Uint64 | None = None
    """When the runtime is used up at the latest, from the start of the period. Unit: nanoseconds. Default: 0."""
    period: Uint64 | None = None
    """Unit: nanoseconds. Default: 0."""


class IOPriorityClass(OpenEnum):
    """Classes of ioprio_set(2) (config.md#linux-process)."""

    RT = "IOPRIO_CLASS_RT"
    BE = "IOPRIO_CLASS_BE"
    IDLE = "IOPRIO_CLASS_IDLE"


class IOPriority(IOPriorityBase):
    """I/O scheduling of the process, by ioprio_set(2) (config.md#linux-process)."""

    SECTION: ClassVar[str] = "config.md#linux-process"

    class_: IOPriorityClass
    """The scheduling class."""
    priority: Int32 | None = None
    """0 (first) to 7 within the class. Default: 0."""


class ExecCPUAffinity(ExecCPUAffinityBase):
    """CPUs of a process that joins a running container (config.md#linux-process)."""

    SECTION: ClassVar[str] = "config.md#linux-process"

    initial: CPUList | None = None
    """CPUs before it is moved into the container's cgroup. Default: those of the runtime."""
    final: CPUList | None = None
    """CPUs afterwards. Default: what the kernel makes of the cgroup's."""


class Process(ProcessBase):
    """The container's process (config.md#process)."""

    SECTION: ClassVar[str] = "config.md#process"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"exec_cpu_affinity": "execCPUAffinity"})

    cwd: str
    """Absolute path of the working directory in the container."""
    terminal: bool | None = None
    """Whether a terminal is attached. Default: false."""
    console_size: ConsoleSize | None = None
    """Size of the terminal; ignored without one. Default: the kernel's."""
    user: User | None = None
    """Who the process runs as. Default: 0:0 (config.md#user)."""
    args: tuple[str, ...] | None = None
    """The program, looked up in PATH unless it has a slash, and its arguments; needed on POSIX platforms, one at least."""
    command_line: str | None = None
    """Windows: the whole command line. Default: made of ``args``."""
    env: tuple[str, ...] | None = None
    """``NAME=value`` entries. Default: none."""
    capabilities: Capabilities | None = None
    """The capability sets of the process. Default: none in any (config.md#linux-process)."""
    rlimits: tuple[Rlimit, ...] | None = None
    """Resource limits, each resource once. Default: those of the runtime (config.md#posix-process)."""
    no_new_privileges: bool | None = None
    """Whether execve(2) can grant nothing that the process does not have. Default: false (config.md#linux-process)."""
    apparmor_profile: str | None = None
    """AppArmor profile of the process. Default: none (config.md#linux-process)."""
    oom_score_adj: int | None = None
    """-1000 (never killed) to 1000 (killed first). Default: unchanged (config.md#linux-process)."""
    scheduler: Scheduler | None = None
    """CPU scheduling. Default: unchanged (config.md#linux-process)."""
    selinux_label: str | None = None
    """SELinux label of the process. Default: none (config.md#linux-process)."""
    io_priority: IOPriority | None = None
    """I/O scheduling. Default: unchanged (config.md#linux-process)."""
    exec_cpu_affinity: ExecCPUAffinity | None = None
    """CPUs of further processes, not of the first one. Default: unchanged (config.md#linux-process)."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment by name; of a name that comes twice, the last one counts, as for the process."""
        return FrozenMap({name: value for name, _, value in (entry.partition("=") for entry in self.env or ())})

    def with_env(self, changes: Mapping[str, str | None] | None = None, /, **names: str | None) -> Process:
        """With these variables set, in their old places or at the end; None removes one. Raises ValueError: a name has ``=``."""
        from .edit import with_env

        return with_env(self, {**(changes or {}), **names})


UNLIMITED: Final = (1 << 64) - 1
"""RLIM_INFINITY, for `Rlimit`."""
