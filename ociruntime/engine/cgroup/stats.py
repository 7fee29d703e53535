"""Reading the statistics of a container from its cgroups, v1 or v2."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from ...stats import (
    CPUSET_FLAGS,
    Cpuset,
    CpuStats,
    CpuTime,
    HugePageStats,
    InterfaceStats,
    IoEntry,
    IoStats,
    MemoryStats,
    MemoryUse,
    PidsStats,
    Pressure,
    RdmaStats,
    Stall,
    Stats,
)
from .tree import UNLIMITED, parse_flat, read_if_exists, walk

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
