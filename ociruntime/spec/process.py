"""``process`` of config.json (config.md#process)."""

from __future__ import annotations

import attrs

from .base import Model, OpenEnum


class SchedulerPolicy(OpenEnum):
    """config.md#process, scheduler."""

    SCHED_OTHER = "SCHED_OTHER"
    SCHED_FIFO = "SCHED_FIFO"
    SCHED_RR = "SCHED_RR"
    SCHED_BATCH = "SCHED_BATCH"
    SCHED_ISO = "SCHED_ISO"
    SCHED_IDLE = "SCHED_IDLE"
    SCHED_DEADLINE = "SCHED_DEADLINE"


@attrs.frozen(kw_only=True, repr=False)
class ConsoleSize(Model):
    """Size of the terminal in characters."""

    height: int
    width: int


@attrs.frozen(kw_only=True, repr=False)
class User(Model):
    """Numeric ids of the process inside the container (config.md#user)."""

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    additional_gids: tuple[int, ...] | None = None
    username: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Capabilities(Model):
    """Names such as ``CAP_KILL`` in each of the five sets (capabilities(7))."""

    bounding: tuple[str, ...] | None = None
    effective: tuple[str, ...] | None = None
    inheritable: tuple[str, ...] | None = None
    permitted: tuple[str, ...] | None = None
    ambient: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Rlimit(Model):
    """One resource limit (getrlimit(2))."""

    type: str
    soft: int
    hard: int


@attrs.frozen(kw_only=True, repr=False)
class Scheduler(Model):
    """sched_setattr(2); times in nanoseconds."""

    policy: SchedulerPolicy
    nice: int | None = None
    priority: int | None = None
    flags: tuple[str, ...] | None = None
    runtime: int | None = None
    deadline: int | None = None
    period: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class IOPriority(Model):
    """ioprio_set(2)."""

    class_: str
    priority: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class ExecCPUAffinity(Model):
    """CPU lists before and after the move into the cgroup."""

    initial: str | None = None
    final: str | None = None


@attrs.frozen(kw_only=True, repr=False)
class Process(Model):
    """The container's process."""

    cwd: str
    terminal: bool | None = None
    console_size: ConsoleSize | None = None
    user: User | None = None
    args: tuple[str, ...] | None = None
    command_line: str | None = None
    env: tuple[str, ...] | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] | None = None
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    oom_score_adj: int | None = None
    scheduler: Scheduler | None = None
    selinux_label: str | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: ExecCPUAffinity | None = attrs.field(default=None, metadata={"key": "execCPUAffinity"})
