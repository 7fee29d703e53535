"""Cgroups: where a container's are, and what is written into them (config-linux.md#control-groups). Names and values only."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError, UnsupportedError
from .model import Builder

if TYPE_CHECKING:
    from ..host import Hierarchy, Host
    from ..spec import Resources

SECTION: Final = "config-linux.md#control-groups"
V2_CONTROLLERS: Final = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")


class Write(NamedTuple):
    """One value for one file of one controller."""

    controller: str
    file: str
    value: str


def cgroup_path(path: str | None, container_id: str) -> str:
    """The cgroup's path below each hierarchy's root: ``linux.cgroupsPath``, or ``/ociruntime-ID`` when it is absent.

    A relative path counts from the root of the hierarchies too.

    Raises:
        SpecError: for ``..`` or a path that names the root itself.
    """
    if path is None or path == "":
        return f"/ociruntime-{container_id}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or any("\n" in part or "\0" in part for part in parts):
        raise SpecError([Problem("$.linux.cgroupsPath", f"{path!r} does not name a cgroup below the root", SECTION)])
    return "/" + "/".join(parts)


def v1_writes(resources: Resources) -> tuple[Write, ...]:
    """linux.resources as files of the v1 controllers, in the order in which the kernel takes them."""
    writes: list[Write] = []
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids

    def put(controller: str, file: str, value: object) -> None:
        if value is not None:
            writes.append(Write(controller, file, str(int(value) if isinstance(value, bool) else value)))

    if memory:
        put("memory", "memory.limit_in_bytes", memory.limit)
        put("memory", "memory.soft_limit_in_bytes", memory.reservation)
        put("memory", "memory.memsw.limit_in_bytes", memory.swap)
        put("memory", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp)
        put("memory", "memory.swappiness", memory.swappiness)
        put("memory", "memory.use_hierarchy", memory.use_hierarchy)
        put("memory", "memory.oom_control", 1 if memory.disable_oom_killer else None)
    if cpu:
        put("cpu", "cpu.shares", cpu.shares)
        put("cpu", "cpu.cfs_period_us", cpu.period)
        put("cpu", "cpu.cfs_quota_us", cpu.quota)
        put("cpu", "cpu.cfs_burst_us", cpu.burst)
        put("cpu", "cpu.rt_period_us", cpu.realtime_period)
        put("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime)
        put("cpu", "cpu.idle", cpu.idle)
        put("cpuset", "cpuset.cpus", cpu.cpus)
        put("cpuset", "cpuset.mems", cpu.mems)
    if pids and pids.limit is not None:
        put("pids", "pids.max", "max" if pids.limit <= 0 else pids.limit)
    for device in resources.devices or ():
        kind = str(device.type or "a")
        major = "*" if device.major is None or device.major < 0 else device.major
        minor = "*" if device.minor is None or device.minor < 0 else device.minor
        rule = "a" if kind == "a" and major == minor == "*" else f"{kind} {major}:{minor} {device.access or 'rwm'}"
        put("devices", "devices.allow" if device.allow else "devices.deny", rule)
    return tuple(writes)


def v2_writes(resources: Resources) -> tuple[Write, ...]:
    """linux.resources as files of the v2 controllers."""
    writes: list[Write] = []
    memory, cpu, pids = resources.memory, resources.cpu, resources.pids

    def limit(value: int) -> str:
        return "max" if value < 0 else str(value)

    if memory:
        if memory.limit is not None:
            writes.append(Write("memory", "memory.max", limit(memory.limit)))
        if memory.swap is not None:
            writes.append(Write("memory", "memory.swap.max", v2_swap(memory.limit, memory.swap)))
        if memory.reservation is not None:
            writes.append(Write("memory", "memory.low", limit(memory.reservation)))
    if cpu:
        if cpu.shares:
            writes.append(Write("cpu", "cpu.weight", str(shares_to_weight(cpu.shares))))
        if cpu.quota is not None or cpu.period is not None:
            quota = "max" if cpu.quota is None or cpu.quota <= 0 else str(cpu.quota)
            writes.append(Write("cpu", "cpu.max", f"{quota} {cpu.period or 100000}"))
        if cpu.burst is not None:
            writes.append(Write("cpu", "cpu.max.burst", str(cpu.burst)))
        if cpu.idle is not None:
            writes.append(Write("cpu", "cpu.idle", str(cpu.idle)))
        if cpu.cpus:
            writes.append(Write("cpuset", "cpuset.cpus", cpu.cpus))
        if cpu.mems:
            writes.append(Write("cpuset", "cpuset.mems", cpu.mems))
    if pids and pids.limit is not None:
        writes.append(Write("pids", "pids.max", "max" if pids.limit <= 0 else str(pids.limit)))
    for huge in resources.hugepage_limits or ():
        writes.append(Write("hugetlb", f"hugetlb.{huge.page_size}.max", str(huge.limit)))
    for file, value in (resources.unified or {}).items():
        if "/" in file or file.startswith("cgroup.") or "." not in file:
            raise SpecError([Problem(f"$.linux.resources.unified[{file!r}]", "not a file of a controller", SECTION)])
        writes.append(Write(file.partition(".")[0], file, value))
    return tuple(writes)


def v2_swap(limit: int | None, swap: int) -> str:
    """memory.swap counts memory and swap together on v1, swap alone on v2."""
    if swap < 0:
        return "max"
    if limit is None or limit < 0:
        raise SpecError([Problem("$.linux.resources.memory.swap", "a swap limit needs a memory limit", "config-linux.md#memory")])
    if swap < limit:
        raise SpecError(
            [Problem("$.linux.resources.memory.swap", "is below the memory limit that it includes", "config-linux.md#memory")]
        )
    return str(swap - limit)


def shares_to_weight(shares: int) -> int:
    """cpu.shares 2..262144 to cpu.weight 1..10000, linearly as the peers do it."""
    clamped = min(max(shares, 2), 262144)
    return 1 + (clamped - 2) * 9999 // 262142


def _refuse(resources: Resources) -> None:
    # Silence would be a limit that somebody relies on and that is not there.
    for name in ("block_io", "network", "rdma"):
        if getattr(resources, name):
            raise UnsupportedError(f"$.linux.resources.{name}: not supported yet")


def compile_cgroups(b: Builder, resources: Resources | None, path: str, host: Host) -> tuple[str, ...]:
    """The steps that make the cgroup in each hierarchy and set its limits; gives its directories.

    Raises:
        UnsupportedError: a limit needs a controller that no mounted hierarchy has.
    """
    directories = []
    for hierarchy in host.hierarchies:
        directory = hierarchy.mountpoint + path
        label = "v2" if hierarchy.version == 2 else ",".join(sorted(hierarchy.controllers)) or "v1"
        b.host(
            "cgroup_mkdir", directory, "cpuset" in hierarchy.controllers and hierarchy.version == 1, text=f"{directory} ({label})"
        )
        directories.append(directory)
    if resources is not None:
        _refuse(resources)
        _limits(b, resources, path, host)
    return tuple(directories)


def _limits(b: Builder, resources: Resources, path: str, host: Host) -> None:
    v1 = {write for write in v1_writes(resources) if (h := host.hierarchy(write.controller)) and h.version == 1}
    served: set[str] = set()
    for write in v1_writes(resources):
        if write in v1:
            served.add(write.controller)
            _write(b, host.hierarchy(write.controller), path, write)
    unified = next((h for h in host.hierarchies if h.version == 2), None)
    v2 = [write for write in v2_writes(resources) if write.controller not in served]
    ours = [write for write in v2 if unified and write.controller in unified.controllers]
    if ours and unified:
        needed = tuple(sorted({write.controller for write in ours}))
        b.host("cgroup_enable", unified.mountpoint + path, needed, text=f"{', '.join(needed)} down to {unified.mountpoint}{path}")
        for write in ours:
            _write(b, unified, path, write)
    wanted = {w.controller for w in (*v1_writes(resources), *v2)} - served - {w.controller for w in ours}
    if "devices" in wanted and unified and not host.has_controller("devices"):
        raise UnsupportedError("$.linux.resources.devices: device rules on cgroup v2 are not supported yet")
    if wanted and host.hierarchies:
        raise UnsupportedError(f"$.linux.resources: no mounted cgroup hierarchy has the controller {', '.join(sorted(wanted))}")
    if wanted - {"devices"}:
        raise UnsupportedError("$.linux.resources: limits need cgroups, and none are mounted on this host")


def _write(b: Builder, hierarchy: Hierarchy | None, path: str, write: Write) -> None:
    assert hierarchy is not None
    directory = posixpath.join(hierarchy.mountpoint, path.lstrip("/"))
    b.host("cgroup_write", directory, write.file, write.value, text=f"{write.value} > {directory}/{write.file}")


def compile_join(b: Builder, directories: tuple[str, ...], host: Host) -> None:
    """The init moves itself: a write of 0 to ``tasks`` moves one thread and waits for nobody."""
    for hierarchy, directory in zip(host.hierarchies, directories, strict=True):
        if hierarchy.version == 1:
            slot = b.input("write", f"{directory}/tasks", f"{directory}/tasks")
            b.init("write", slot, "", b"0", text=f"itself > {directory}/tasks")
