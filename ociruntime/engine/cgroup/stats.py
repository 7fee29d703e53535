"""`Stats`: what a container uses, read from its cgroups, v1 or v2. With the JSON of ``runc events``."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from ..._lazy import HtmlRepr
from .tree import UNLIMITED, parse_flat, read_if_exists, walk

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
class Stats(HtmlRepr):
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
    entries = {"ioServiceBytesRecursive": _entries_document(io.bytes), "ioServicedRecursive": _entries_document(io.operations)}
    return {**_filled(entries), **_psi(io.pressure)}


def _cpuset(cpuset: Cpuset) -> dict[str, object]:
    flags = {name: cpuset.flags.get(name, 0) for name in CPUSET_FLAGS}
    return {**_filled({"cpus": list(cpuset.cpus), "mems": list(cpuset.mems)}), **flags}


def _entries_document(entries: tuple[IoEntry, ...]) -> list[dict[str, object]]:
    return [_filled(attrs.asdict(entry)) for entry in entries]


def _psi(stall: Stall | None) -> dict[str, object]:
    if stall is None:
        return {}
    return {"psi": {name: attrs.asdict(part) for name, part in (("some", stall.some), ("full", stall.full)) if part is not None}}


def _interface(interface: InterfaceStats) -> dict[str, object]:
    return {"".join(part.title() for part in name.split("_")): value for name, value in attrs.asdict(interface).items()}


# ---- reading ----

_TICK: Final = 10**9 // os.sysconf("SC_CLK_TCK")
"""Nanoseconds in a clock tick."""


def stats(paths: Sequence[str], pid: int = 0) -> Stats:
    """Return what these cgroups count.

    Args:
        pid: a process in the container's network namespace, if that is its own; 0 for no network interfaces.

    Raises:
        OSError: a file that exists cannot be read.
    """
    cpu: CpuStats | None = None
    memory, pids, io, cpuset = None, None, None, None
    huge, rdma = dict[str, HugePageStats](), dict[str, RdmaStats]()
    stalls: dict[str, Stall | None] = {}
    for path in paths:
        names = _files(path)
        if "cgroup.controllers" in names:
            cpu = cpu or _cpu_v2(path)
            if "memory.current" in names:
                memory = _memory_v2(path)
            if "io.stat" in names:
                io = _io_v2(path)
            stalls = {name: _stall(path, name) for name in ("cpu", "memory", "io") if f"{name}.pressure" in names}
        if "cpuacct.usage" in names:
            cpu = _cpu_v1(path, cpu or CpuStats())
        if "cpu.cfs_quota_us" in names:
            cpu = _throttling_v1(path, cpu or CpuStats())
        if "cpuset.sched_load_balance" in names:
            cpuset = _cpuset_v1(path)
        if "memory.usage_in_bytes" in names:
            memory = _memory_v1(path)
        if "pids.current" in names:
            tasks = _number(path, "pids.current")
            pids = None if tasks is None else PidsStats(tasks, _limit(path, "pids.max"))
        if "blkio.throttle.io_service_bytes_recursive" in names:
            io = _io_v1(path)
        huge |= _hugetlb(path, names)
        if "rdma.current" in names:
            rdma = _rdma(path)
    cpu = attrs.evolve(cpu, pressure=stalls.get("cpu")) if cpu else None
    memory = attrs.evolve(memory, pressure=stalls.get("memory")) if memory else None
    io = attrs.evolve(io, pressure=stalls.get("io")) if io else None
    return Stats(time.time_ns(), cpu, memory, pids, io, huge, rdma, _interfaces(pid) if pid else (), cpuset)


_v1_files: Final[dict[int, frozenset[str]]] = {}
"""Names of files by device number of the filesystem: all cgroups of a v1 hierarchy have the same files."""


def _files(path: str) -> frozenset[str]:
    try:
        device = os.stat(path).st_dev
        if device not in _v1_files:
            names = frozenset(os.listdir(path))
            if "cgroup.controllers" in names:
                return names  # on v2 they depend on the parent
            _v1_files[device] = names
    except FileNotFoundError:
        return frozenset()
    return _v1_files[device]


def _number(path: str, file: str) -> int | None:
    text = read_if_exists(path, file)
    return None if text is None or not text.strip().isdigit() else int(text)


def _limit(path: str, file: str) -> int | None:
    number = _number(path, file)
    return None if number is None or number >= UNLIMITED else number


def _stall(path: str, name: str) -> Stall | None:
    try:
        text = read_if_exists(path, f"{name}.pressure")
    except OSError:
        return None  # the kernel does not measure it (psi=0)
    parts = {}
    for kind, *members in map(str.split, filter(str.strip, (text or "").splitlines())):
        avg10, avg60, avg300, total = (member.partition("=")[2] for member in members)
        parts[kind] = Pressure(float(avg10), float(avg60), float(avg300), int(total))
    return Stall(parts["some"], parts.get("full")) if "some" in parts else None


# ---- CPU ----


def _cpu_v2(path: str) -> CpuStats | None:
    stat = parse_flat(read_if_exists(path, "cpu.stat"))
    if not stat:
        return None
    return CpuStats(
        usage=_scaled(stat.get("usage_usec"), 1000),
        user=_scaled(stat.get("user_usec"), 1000),
        system=_scaled(stat.get("system_usec"), 1000),
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled_time=_scaled(stat.get("throttled_usec"), 1000),
    )


def _scaled(number: int | None, factor: int) -> int | None:
    return None if number is None else number * factor


def _cpu_v1(path: str, cpu: CpuStats) -> CpuStats:
    rows = [line.split() for line in (read_if_exists(path, "cpuacct.usage_all") or "").splitlines()[1:]]
    each = zip((read_if_exists(path, "cpuacct.usage_percpu") or "").split(), rows, strict=False)
    ticks = parse_flat(read_if_exists(path, "cpuacct.stat"))
    return attrs.evolve(
        cpu,
        usage=_number(path, "cpuacct.usage"),
        user=_scaled(ticks.get("user"), _TICK),
        system=_scaled(ticks.get("system"), _TICK),
        per_cpu=tuple(CpuTime(int(usage), int(user), int(system)) for usage, (_, user, system) in each),
    )


def _cpuset_v1(path: str) -> Cpuset:
    flags = {name: int(read_if_exists(path, f"cpuset.{name}") or 0) for name in CPUSET_FLAGS}
    cpus, mems = (_numbers(read_if_exists(path, f"cpuset.{name}") or "") for name in ("cpus", "mems"))
    return Cpuset(cpus, mems, flags)


def _numbers(text: str) -> tuple[int, ...]:
    """Parse a list such as ``0-2,7``."""
    ranges = (part.partition("-") for part in text.strip().split(",") if part)
    return tuple(number for first, _, last in ranges for number in range(int(first), int(last or first) + 1))


def _throttling_v1(path: str, cpu: CpuStats) -> CpuStats:
    stat = parse_flat(read_if_exists(path, "cpu.stat"))
    return attrs.evolve(
        cpu,
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled_time=stat.get("throttled_time"),
    )


# ---- memory ----


def _memory_v2(path: str) -> MemoryStats | None:
    usage = _number(path, "memory.current")
    if usage is None:
        return None
    stat, events = parse_flat(read_if_exists(path, "memory.stat")), parse_flat(read_if_exists(path, "memory.events"))
    limit = _limit(path, "memory.max")
    swap = None
    if (swapped := _number(path, "memory.swap.current")) is not None:
        more = _limit(path, "memory.swap.max")
        reached = parse_flat(read_if_exists(path, "memory.swap.events")).get("max")
        swap = MemoryUse(usage + swapped, None if limit is None or more is None else limit + more, failures=reached)
    kernel = MemoryUse(stat["kernel"]) if "kernel" in stat else None
    return MemoryStats(
        usage,
        limit,
        _number(path, "memory.peak"),
        events.get("max"),
        swap=swap,
        kernel=kernel,
        cache=stat.get("file", 0),
        oom_kills=events.get("oom_kill", 0),
        stat=stat,
    )


def _memory_v1(path: str) -> MemoryStats | None:
    def use(kind: str) -> MemoryUse | None:
        names = ("usage_in_bytes", "limit_in_bytes", "max_usage_in_bytes", "failcnt")
        usage, limit, peak, failures = (_number(path, f"memory.{kind}{name}") for name in names)
        if usage is None:
            return None
        return MemoryUse(usage, limit if limit and limit < UNLIMITED else None, peak, failures, limit or 0)

    whole = use("")
    if whole is None:
        return None
    stat = parse_flat(read_if_exists(path, "memory.stat"))
    kills = sum(parse_flat(read_if_exists(each, "memory.oom_control")).get("oom_kill", 0) for each in walk(path))
    cache = stat.get("total_cache", stat.get("cache", 0))
    return MemoryStats(
        **attrs.asdict(whole),
        swap=use("memsw."),
        kernel=use("kmem."),
        kernel_tcp=use("kmem.tcp."),
        cache=cache,
        oom_kills=kills,
        stat=stat,
    )


# ---- disks ----


def _io_v2(path: str) -> IoStats:
    kinds = {"rbytes": (0, "Read"), "wbytes": (0, "Write"), "rios": (1, "Read"), "wios": (1, "Write")}
    found: tuple[list[IoEntry], list[IoEntry]] = ([], [])
    major = minor = ""
    # Some kernels print devices without statistics, and no newline after them.
    for word in (read_if_exists(path, "io.stat") or "").split():
        name, is_value, value = word.partition("=")
        if not is_value:
            major, _, minor = word.partition(":")
        elif name in kinds and minor:
            table, op = kinds[name]
            found[table].append(IoEntry(int(major), int(minor), op, int(value)))
    return IoStats(tuple(found[0]), tuple(found[1]))


def _io_v1(path: str) -> IoStats:
    return IoStats(
        tuple(_entries(path, "blkio.throttle.io_service_bytes_recursive")),
        tuple(_entries(path, "blkio.throttle.io_serviced_recursive")),
    )


def _entries(path: str, file: str) -> Iterator[IoEntry]:
    for line in (read_if_exists(path, file) or "").splitlines():
        fields = line.split()
        if len(fields) == 3:
            major, _, minor = fields[0].partition(":")
            yield IoEntry(int(major), int(minor), fields[1], int(fields[2]))


# ---- huge pages, RDMA, network ----


def _hugetlb(path: str, names: frozenset[str]) -> dict[str, HugePageStats]:
    found = {}
    for name in names:
        if name.startswith("hugetlb.") and name.endswith((".rsvd.current", ".rsvd.usage_in_bytes")):
            size = name.split(".")[1]
            stem = f"hugetlb.{size}"
            failures = _number(path, f"{stem}.rsvd.failcnt")
            if failures is None:
                failures = parse_flat(read_if_exists(path, f"{stem}.events")).get("max", 0)
            found[size] = HugePageStats(_number(path, name) or 0, _number(path, f"{stem}.rsvd.max_usage_in_bytes"), failures)
    return found


def _rdma(path: str) -> dict[str, RdmaStats]:
    found = {}
    for device, *members in map(str.split, filter(str.strip, (read_if_exists(path, "rdma.current") or "").splitlines())):
        values = dict(member.split("=") for member in members)
        found[device] = RdmaStats(int(values.get("hca_handle", 0)), int(values.get("hca_object", 0)))
    return found


def _interfaces(pid: int) -> tuple[InterfaceStats, ...]:
    try:
        with open(f"/proc/{pid}/net/dev", encoding="utf-8", errors="surrogateescape") as table:
            rows = [line.partition(":") for line in table][2:]
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.ENXIO, errno.EACCES, errno.EPERM):
            raise
        return ()  # it or its namespace has ended, or it belongs to another user
    found = []
    for name, _, numbers in rows:
        values = [int(number) for number in numbers.split()]
        found.append(InterfaceStats(name.strip(" "), *values[:4], *values[8:12]))
    return tuple(found)
