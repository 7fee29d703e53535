"""`Stats` and `Usage`: what a container uses and has used; `Event`: what happens to it. With the JSON of ``runc events``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from .arguments import check_str

__all__ = [
    "CpuStats",
    "CpuTime",
    "Cpuset",
    "Event",
    "EventKind",
    "HugePageStats",
    "InterfaceStats",
    "IoEntry",
    "IoStats",
    "MemoryStats",
    "MemoryUse",
    "PidsStats",
    "Pressure",
    "RdmaStats",
    "Stall",
    "Stats",
    "Usage",
]

_NO_LIMIT: Final = (1 << 64) - 1
"""What runc prints for no limit on v2, and for a limit that is not counted. On v1 it prints the kernel's value."""


CPUSET_FLAGS: Final = (
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
)
"""Files of cpuset on v1, in the order in which runc prints them."""


@attrs.frozen
class Pressure:
    """How long tasks waited for a resource: percent of the last 10, 60 and 300 seconds, and microseconds in total."""

    avg10: float
    avg60: float
    avg300: float
    total: int


@attrs.frozen
class Stall:
    """Pressure stall information: some task waited, or all of them did."""

    some: Pressure
    full: Pressure | None


@attrs.frozen
class CpuTime:
    """CPU time on one CPU, in nanoseconds; user and system are counted in ticks, and so need not add up."""

    usage: int
    user: int
    system: int


@attrs.frozen
class Cpuset:
    """The CPUs and memory nodes of a cgroup of v1, and its flags by the kernel's names."""

    cpus: tuple[int, ...] = ()
    mems: tuple[int, ...] = ()
    flags: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen
class CpuStats:
    """CPU time, in nanoseconds. A member is None where no controller counts it."""

    usage: int | None = None
    user: int | None = None
    system: int | None = None
    per_cpu: tuple[CpuTime, ...] = ()
    """Of each CPU (v1)."""
    periods: int | None = None
    """Periods of the quota that have passed."""
    throttled_periods: int | None = None
    throttled_time: int | None = None
    pressure: Stall | None = None


@attrs.frozen
class MemoryUse:
    """One kind of memory, in bytes."""

    usage: int = 0
    limit: int | None = None
    """None without a limit."""
    peak: int | None = None
    """The maximum so far, or None where the kernel does not report it."""
    failures: int | None = None
    """How often the limit was reached, or None where the kernel does not report it."""
    unlimited: int = _NO_LIMIT
    """The value that stands for no limit in `Stats.to_dict`."""


@attrs.frozen
class MemoryStats(MemoryUse):
    """Memory, in bytes, without swap; and its further kinds."""

    swap: MemoryUse | None = None
    """Memory and swap together, or None where the kernel does not count swap."""
    kernel: MemoryUse | None = None
    kernel_tcp: MemoryUse | None = None
    cache: int = 0
    """Bytes of files in memory."""
    oom_kills: int = 0
    """Processes that the kernel has killed because memory ran out."""
    stat: Mapping[str, int] = attrs.field(factory=dict)
    """memory.stat, whose names depend on the version of cgroups."""
    pressure: Stall | None = None


@attrs.frozen
class PidsStats:
    """Tasks."""

    current: int = 0
    limit: int | None = None


@attrs.frozen
class IoEntry:
    """A count for one device."""

    major: int
    minor: int
    op: str
    """``Read``, ``Write`` or another operation that the kernel reports."""
    value: int


@attrs.frozen
class IoStats:
    """Block devices."""

    bytes: tuple[IoEntry, ...] = ()
    operations: tuple[IoEntry, ...] = ()
    pressure: Stall | None = None


@attrs.frozen
class HugePageStats:
    """Huge pages of one size, in bytes."""

    usage: int = 0
    peak: int | None = None
    failures: int = 0


@attrs.frozen
class RdmaStats:
    """One RDMA device."""

    hca_handles: int = 0
    hca_objects: int = 0


@attrs.frozen
class InterfaceStats:
    """A network interface in the container's network namespace."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@attrs.frozen
class Stats:
    """What a container has used up to one moment. A part is None where no controller counts it."""

    time: int
    """Unix nanoseconds."""
    cpu: CpuStats | None = None
    memory: MemoryStats | None = None
    pids: PidsStats | None = None
    io: IoStats | None = None
    hugetlb: Mapping[str, HugePageStats] = attrs.field(factory=dict)
    """By page size, as ``2MB``."""
    rdma: Mapping[str, RdmaStats] = attrs.field(factory=dict)
    interfaces: tuple[InterfaceStats, ...] = ()
    cpuset: Cpuset | None = None
    """None on v2."""

    def to_dict(self) -> dict[str, object]:
        """Return the ``data`` member of ``runc events --stats``, without what is not known."""
        parts: dict[str, dict[str, object] | None] = {
            "cpu": _cpu(self.cpu) if self.cpu else None,
            "cpuset": _cpuset(self.cpuset) if self.cpuset else None,
            "memory": _memory(self.memory) if self.memory else None,
            "pids": _filled({"current": self.pids.current, "limit": self.pids.limit}) if self.pids else None,
            "blkio": _io(self.io) if self.io else None,
        }
        return {
            **_known(parts),
            "hugetlb": {
                size: _filled({"usage": huge.usage, "max": huge.peak}) | {"failcnt": huge.failures}
                for size, huge in self.hugetlb.items()
            },
            "intel_rdt": {},
            "network_interfaces": [_interface(interface) for interface in self.interfaces] or None,
        }


EventKind = Literal["exit", "oom", "pressure", "paused", "resumed", "stats"]


@attrs.frozen
class Event:
    """An event of a container."""

    kind: EventKind
    """``exit``: the init process has ended, and no event follows; ``oom``: the container ran out of memory; ``pressure``: its
    tasks wait for memory; ``paused`` and ``resumed``; ``stats``: an interval has passed."""
    time: int
    """Unix nanoseconds."""
    kills: int = 0
    """oom: the number of processes that have been killed so far because memory ran out."""
    stats: Stats | None = None
    """stats: what the container uses now."""

    def to_dict(self, container_id: str) -> dict[str, object]:
        """Return the event as ``runc events`` prints it: type, id and, for stats, data."""
        check_str("container_id", container_id)
        document: dict[str, object] = {"type": self.kind, "id": container_id}
        if self.stats is not None:
            document["data"] = self.stats.to_dict()
        return document


@attrs.frozen
class Usage:
    """Resources that were used: of `run`, by the whole container; of `exec`, by the program and the children that it waited for.

    Without cgroups that count them, those of `run` are of the init process and the children that it waited for. All are 0 if the
    kernel did not report them, as when SIGCHLD is ignored.
    """

    user: float = 0.0
    """Seconds of CPU time in user space."""
    system: float = 0.0
    """Seconds of CPU time in the kernel."""
    total: float = 0.0
    """Seconds of CPU time."""
    peak_memory: int = 0
    """The maximum of memory in use, in bytes; of a single program, the maximum of its resident set."""


def _filled(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value}


def _known(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _cpu(cpu: CpuStats) -> dict[str, object]:
    each: dict[str, object] = {
        "percpu": [time.usage for time in cpu.per_cpu],
        "percpu_kernel": [time.system for time in cpu.per_cpu],
        "percpu_user": [time.user for time in cpu.per_cpu],
    }
    usage = _known({"total": cpu.usage, "kernel": cpu.system, "user": cpu.user})
    throttling = {"periods": cpu.periods, "throttledPeriods": cpu.throttled_periods, "throttledTime": cpu.throttled_time}
    return {"usage": usage | _filled(each), "throttling": _filled(throttling), **_psi(cpu.pressure)}


def _memory(memory: MemoryStats) -> dict[str, object]:
    kinds = {"usage": memory, "swap": memory.swap, "kernel": memory.kernel, "kernelTCP": memory.kernel_tcp}
    uses = {name: _entry(use) for name, use in kinds.items() if use is not None}
    return {"cache": memory.cache, **uses, "raw": dict(memory.stat), **_psi(memory.pressure)}


def _entry(use: MemoryUse) -> dict[str, object]:
    limit = use.unlimited if use.limit is None else use.limit
    return {"limit": limit, **_filled({"usage": use.usage, "max": use.peak}), **_known({"failcnt": use.failures})}


def _io(io: IoStats) -> dict[str, object]:
    entries = {"ioServiceBytesRecursive": _entries(io.bytes), "ioServicedRecursive": _entries(io.operations)}
    return {**_filled(entries), **_psi(io.pressure)}


def _cpuset(cpuset: Cpuset) -> dict[str, object]:
    flags = {name: cpuset.flags.get(name, 0) for name in CPUSET_FLAGS}
    return {**_filled({"cpus": list(cpuset.cpus), "mems": list(cpuset.mems)}), **flags}


def _entries(entries: tuple[IoEntry, ...]) -> list[dict[str, object]]:
    return [_filled(attrs.asdict(entry)) for entry in entries]


def _psi(stall: Stall | None) -> dict[str, object]:
    if stall is None:
        return {}
    return {"psi": {name: attrs.asdict(part) for name, part in (("some", stall.some), ("full", stall.full)) if part is not None}}


def _interface(interface: InterfaceStats) -> dict[str, object]:
    return {"".join(part.title() for part in name.split("_")): value for name, value in attrs.asdict(interface).items()}
