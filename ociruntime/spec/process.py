"""``process`` of config.json (config.md#process)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs

from ..arguments import check_bool, check_mapping, check_type, optional
from .base import CPUList, FrozenMap, Int32, OpenEnum, Uint32, Uint64
from .model import Model

if TYPE_CHECKING:
    from . import places as places

UNLIMITED: Final = (1 << 64) - 1
"""RLIM_INFINITY: no limit, for `Rlimit`."""


class Capability(OpenEnum):
    """Capabilities of capabilities(7), in the order of their numbers (config.md#linux-process)."""

    CHOWN = "CAP_CHOWN"
    DAC_OVERRIDE = "CAP_DAC_OVERRIDE"
    DAC_READ_SEARCH = "CAP_DAC_READ_SEARCH"
    FOWNER = "CAP_FOWNER"
    FSETID = "CAP_FSETID"
    KILL = "CAP_KILL"
    SETGID = "CAP_SETGID"
    SETUID = "CAP_SETUID"
    SETPCAP = "CAP_SETPCAP"
    LINUX_IMMUTABLE = "CAP_LINUX_IMMUTABLE"
    NET_BIND_SERVICE = "CAP_NET_BIND_SERVICE"
    NET_BROADCAST = "CAP_NET_BROADCAST"
    NET_ADMIN = "CAP_NET_ADMIN"
    NET_RAW = "CAP_NET_RAW"
    IPC_LOCK = "CAP_IPC_LOCK"
    IPC_OWNER = "CAP_IPC_OWNER"
    SYS_MODULE = "CAP_SYS_MODULE"
    SYS_RAWIO = "CAP_SYS_RAWIO"
    SYS_CHROOT = "CAP_SYS_CHROOT"
    SYS_PTRACE = "CAP_SYS_PTRACE"
    SYS_PACCT = "CAP_SYS_PACCT"
    SYS_ADMIN = "CAP_SYS_ADMIN"
    SYS_BOOT = "CAP_SYS_BOOT"
    SYS_NICE = "CAP_SYS_NICE"
    SYS_RESOURCE = "CAP_SYS_RESOURCE"
    SYS_TIME = "CAP_SYS_TIME"
    SYS_TTY_CONFIG = "CAP_SYS_TTY_CONFIG"
    MKNOD = "CAP_MKNOD"
    LEASE = "CAP_LEASE"
    AUDIT_WRITE = "CAP_AUDIT_WRITE"
    AUDIT_CONTROL = "CAP_AUDIT_CONTROL"
    SETFCAP = "CAP_SETFCAP"
    MAC_OVERRIDE = "CAP_MAC_OVERRIDE"
    MAC_ADMIN = "CAP_MAC_ADMIN"
    SYSLOG = "CAP_SYSLOG"
    WAKE_ALARM = "CAP_WAKE_ALARM"
    BLOCK_SUSPEND = "CAP_BLOCK_SUSPEND"
    AUDIT_READ = "CAP_AUDIT_READ"
    PERFMON = "CAP_PERFMON"
    BPF = "CAP_BPF"
    CHECKPOINT_RESTORE = "CAP_CHECKPOINT_RESTORE"

    @property
    def number(self) -> int:
        """Number of the capability. Raises ValueError: the capability is not defined here."""
        defined = list(type(self))
        if self not in defined:
            raise ValueError(f"{self.value}: the number of this capability is unknown; use one that Capability defines")
        return defined.index(self)


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


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ConsoleSize(Model["places.ConsoleSizeAt"]):
    """Size of a terminal (config.md#process)."""

    height: Uint64
    """Number of rows. Unit: characters."""
    width: Uint64
    """Number of columns. Unit: characters."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class User(Model["places.UserAt"]):
    """User and groups of a process, as ids of the container's user namespace (config.md#user)."""

    uid: Uint32 | None = None
    """User id. Required on POSIX platforms."""
    gid: Uint32 | None = None
    """Group id. Required on POSIX platforms."""
    umask: Uint32 | None = None
    """File mode creation mask of umask(2), decimal in JSON: 0o022 is 18. Default: the runtime's."""
    additional_gids: tuple[Uint32, ...] | None = None
    """Supplementary groups. Default: none."""
    username: str | None = None
    """Name of the user, on Windows. Default: the platform's."""

    def in_primary_group(self) -> "User":
        """Return a copy with the primary group among the supplementary groups, as a login has it.

        Without it, a set-group-id program lets its user leave the primary group, and so get at what is denied to that group.
        """
        gid, groups = self.gid or 0, self.additional_gids or ()
        return self if gid in groups else self.evolve(additional_gids=(gid, *groups))


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Capabilities(Model["places.CapabilitiesAt"]):
    """Names such as ``CAP_KILL`` in the five sets of capabilities(7). An absent set is empty (config.md#linux-process)."""

    bounding: tuple[str, ...] | None = None
    """Upper bound of the capabilities that execve(2) can grant. Default: none."""
    effective: tuple[str, ...] | None = None
    """Capabilities that the kernel checks. Default: none."""
    inheritable: tuple[str, ...] | None = None
    """Capabilities kept by execve(2) of a file that has them in its inheritable set. Default: none."""
    permitted: tuple[str, ...] | None = None
    """Capabilities that the process may make effective. Default: none."""
    ambient: tuple[str, ...] | None = None
    """Capabilities kept by execve(2) of a file without capabilities. Each must be permitted and inheritable. Default: none."""

    def add(self, *names: str, ambient: bool = False) -> "Capabilities":
        """Return a copy with capabilities in the bounding, effective and permitted sets, and with ``ambient`` in all five.

        Names may lack ``CAP_`` and be in lower case.
        """
        check_bool("ambient", ambient)
        added = [_capability_name(name) for name in names]
        bounding, effective, permitted = (_union(held, added) for held in (self.bounding, self.effective, self.permitted))
        changed = self.evolve(bounding=bounding, effective=effective, permitted=permitted)
        if not ambient:
            return changed
        return changed.evolve(inheritable=_union(self.inheritable, added), ambient=_union(self.ambient, added))

    def drop(self, *names: str) -> "Capabilities":
        """Return a copy without capabilities in any set. ``ALL`` removes every one. Absent sets stay absent."""
        dropped = {_capability_name(name) for name in names}

        def remaining(held: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return held and tuple(name for name in held if name not in dropped and "CAP_ALL" not in dropped)

        return Capabilities(
            bounding=remaining(self.bounding),
            effective=remaining(self.effective),
            inheritable=remaining(self.inheritable),
            permitted=remaining(self.permitted),
            ambient=remaining(self.ambient),
            extensions=self.extensions,
        )


def _capability_name(name: str) -> str:
    check_type("names", name, str, "a str")
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"


def _union(held: tuple[str, ...] | None, added: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*(held or ()), *added)))


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Rlimit(Model["places.RlimitAt"]):
    """A resource limit, as in setrlimit(2) (config.md#posix-process)."""

    type: RlimitType
    """The resource. Each may appear once."""
    soft: Uint64
    """Limit that the kernel enforces; `UNLIMITED` for none."""
    hard: Uint64
    """Upper bound of the soft limit; `UNLIMITED` for none."""


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


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Scheduler(Model["places.SchedulerAt"]):
    """CPU scheduling of the process, as in sched_setattr(2) (config.md#linux-process)."""

    policy: SchedulerPolicy
    """Scheduling policy."""
    nice: Int32 | None = None
    """Nice value from -20 (most favourable) to 19, for SCHED_OTHER and SCHED_BATCH. Default: 0."""
    priority: Int32 | None = None
    """Static priority from 1 to 99 (highest), for SCHED_FIFO and SCHED_RR. Default: 0."""
    flags: tuple[SchedulerFlag, ...] | None = None
    """Flags. Default: none."""
    runtime: Uint64 | None = None
    """CPU time in each period, for SCHED_DEADLINE. Unit: nanoseconds. Default: 0."""
    deadline: Uint64 | None = None
    """Deadline from the start of each period, for SCHED_DEADLINE. Unit: nanoseconds. Default: 0."""
    period: Uint64 | None = None
    """Length of a period, for SCHED_DEADLINE. Unit: nanoseconds. Default: 0."""


class IOPriorityClass(OpenEnum):
    """Classes of ioprio_set(2) (config.md#linux-process)."""

    RT = "IOPRIO_CLASS_RT"
    BE = "IOPRIO_CLASS_BE"
    IDLE = "IOPRIO_CLASS_IDLE"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class IOPriority(Model["places.IOPriorityAt"]):
    """I/O scheduling of the process, as in ioprio_set(2) (config.md#linux-process)."""

    class_: IOPriorityClass
    """Scheduling class."""
    priority: Int32 | None = None
    """Priority in the class, from 0 (highest) to 7. Default: 0."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ExecCPUAffinity(Model["places.ExecCPUAffinityAt"]):
    """CPU affinity of an exec process (config.md#linux-process)."""

    initial: CPUList | None = None
    """CPUs before the process is moved to the container's cgroup. Default: the runtime's."""
    final: CPUList | None = None
    """CPUs after the process is moved. Default: those of the cgroup."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ProcessSpec(Model["places.ProcessSpecAt"]):
    """The init process of a container, or an exec process (config.md#process)."""

    cwd: str
    """Absolute path of the working directory in the container."""
    terminal: bool | None = None
    """Whether a terminal is attached. Default: false."""
    console_size: ConsoleSize | None = None
    """Size of the terminal. Ignored without a terminal. Default: the kernel's."""
    user: User | None = None
    """User and groups of the process. Default: 0:0 (config.md#user)."""
    args: tuple[str, ...] | None = None
    """The program and its arguments. A name without a slash is looked up in PATH. Required on POSIX platforms, not empty."""
    command_line: str | None = None
    """The whole command line, on Windows. Default: composed of ``args``."""
    env: tuple[str, ...] | None = None
    """Environment, as ``NAME=value``. Default: none."""
    capabilities: Capabilities | None = None
    """Capability sets of the process. Default: none (config.md#linux-process)."""
    rlimits: tuple[Rlimit, ...] | None = None
    """Resource limits, each resource once. Default: the runtime's (config.md#posix-process)."""
    no_new_privileges: bool | None = None
    """Whether execve(2) cannot grant privileges that the process lacks. Default: false (config.md#linux-process)."""
    apparmor_profile: str | None = None
    """AppArmor profile of the process. Default: none (config.md#linux-process)."""
    oom_score_adj: int | None = None
    """OOM score adjustment, from -1000 (never killed) to 1000 (killed first). Default: unchanged (config.md#linux-process)."""
    scheduler: Scheduler | None = None
    """CPU scheduling. Default: unchanged (config.md#linux-process)."""
    selinux_label: str | None = None
    """SELinux label of the process. Default: none (config.md#linux-process)."""
    io_priority: IOPriority | None = None
    """I/O scheduling. Default: unchanged (config.md#linux-process)."""
    exec_cpu_affinity: ExecCPUAffinity | None = attrs.field(default=None, metadata={"key": "execCPUAffinity"})
    """CPU affinity of exec processes. Default: unchanged (config.md#linux-process)."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment by name. If a name appears twice, the last entry counts, as for the program."""
        return FrozenMap({name: value for name, _, value in (entry.partition("=") for entry in self.env or ())})

    def with_env(self, changes: Mapping[str, str | None] | None = None, /, **names: str | None) -> "ProcessSpec":
        """Return a copy with environment variables set, in their old places or at the end. None removes one.

        Raises:
            ValueError: a name contains ``=`` or a NUL byte, or is empty.
        """
        return self.evolve(env=self._env_with(changes, **names))

    def _env_with(self, changes: Mapping[str, str | None] | None = None, /, **names: str | None) -> tuple[str, ...]:
        """Return the environment of the result of `with_env`. Raises as that does."""
        optional(check_mapping, "changes", changes)
        changed = {**(changes or {}), **names}
        for name, value in changed.items():
            optional(check_type, f"changes[{name!r}]", value, str, "a str, or None to remove it,")
            if not name or "=" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a valid name of an environment variable")
        env: list[str] = []
        added = dict(changed)
        for entry in self.env or ():
            name = entry.partition("=")[0]
            if name not in changed:
                env.append(entry)
                continue
            value = added.pop(name, None)
            if value is not None:
                env.append(f"{name}={value}")
        env += [f"{name}={value}" for name, value in added.items() if value is not None]
        return tuple(env)
