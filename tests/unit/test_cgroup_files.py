"""linux.resources as files of cgroup v1 and v2, and the conversions between them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ociruntime.engine.cgroup import tasks, tree
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.plan.cgroups import writes
from ociruntime.plan.cgroups.writes import refuse_unsupported, unified_writes, v1_writes, v2_writes
from ociruntime.spec import Resources
from ociruntime.spec.codec import structure


def resources(**members: Any) -> Resources:
    return structure(Resources, members, "$")


@pytest.mark.parametrize(
    ("shares", "weight"),
    [
        (0, 1),
        (2, 1),
        (3, 2),
        (10, 4),
        (100, 17),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (10000, 627),
        (262143, 10000),
        (1 << 40, 10000),
    ],
)
def test_shares_to_weight(shares: int, weight: int) -> None:
    assert writes.shares_to_weight(shares) == weight


def test_more_shares_are_never_less_weight() -> None:
    weights = [writes.shares_to_weight(shares) for shares in range(2, 262145, 7)]
    assert weights == sorted(weights)
    assert set(weights) <= set(range(1, 10001))


@pytest.mark.parametrize(("blkio", "io"), [(10, 1), (11, 11), (100, 910), (500, 4950), (1000, 10000)])
def test_blkio_to_io_weight(blkio: int, io: int) -> None:
    assert writes.blkio_to_io_weight(blkio) == io


@pytest.mark.parametrize(
    ("memory", "swap", "limit"),
    [
        (None, None, None), (100, None, None), (100, 0, None), (-1, None, "max"), (-1, -1, "max"), (100, -1, "max"),
        (None, -1, "max"), (100, 100, "0"), (100, 150, "50"), (-1, 150, "150"),
    ],
)  # fmt: skip
def test_swap_limit(memory: int | None, swap: int | None, limit: str | None) -> None:
    assert writes.swap_limit(memory, swap) == limit


@pytest.mark.parametrize(("memory", "swap"), [(None, 5), (0, 5), (9, 5)])
def test_swap_limits_that_contradict_the_memory_limit(memory: int | None, swap: int) -> None:
    with pytest.raises(SpecError, match=r"\$\.linux\.resources\.memory\.swap"):
        writes.swap_limit(memory, swap)


@pytest.mark.parametrize(
    ("quota", "period", "value"),
    [(None, None, None), (0, 0, None), (5000, None, "5000 100000"), (-1, None, "max 100000"), (None, 50000, "max 50000"),
     (-1, 50000, "max 50000"), (20000, 50000, "20000 50000")],
)  # fmt: skip
def test_cpu_max(quota: int | None, period: int | None, value: str | None) -> None:
    assert writes.cpu_max(quota, period) == value


CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "memory": (
        {"memory": {"limit": 100, "reservation": 50, "swap": 150}},
        ["memory.limit_in_bytes=100", "memory.memsw.limit_in_bytes=150", "memory.soft_limit_in_bytes=50"],
        ["memory.swap.max=50", "memory.max=100", "memory.low=50"],
    ),
    "memory without limits": (
        {"memory": {"limit": -1, "reservation": -1, "swap": -1}},
        ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1", "memory.soft_limit_in_bytes=-1"],
        ["memory.swap.max=max", "memory.max=max", "memory.low=max"],
    ),
    "no limit of memory alone": (
        {"memory": {"limit": -1}},
        ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"],
        ["memory.swap.max=max", "memory.max=max"],
    ),
    "zeros of engines": ({"memory": {"limit": 0, "swap": 0, "reservation": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0}}, [], []),
    "the rest of memory": (
        {"memory": {"kernel": -1, "kernelTCP": -1, "useHierarchy": True, "disableOOMKiller": False, "checkBeforeUpdate": True}},
        ["memory.kmem.limit_in_bytes=-1", "memory.kmem.tcp.limit_in_bytes=-1", "memory.use_hierarchy=1", "memory.oom_control=0"],
        [],
    ),
    "cpu": (
        {"cpu": {"shares": 512, "quota": 20000, "period": 50000, "burst": 100, "cpus": "0-1", "mems": "0"}},
        ["cpu.shares=512", "cpu.cfs_period_us=50000", "cpu.cfs_quota_us=20000", "cpu.cfs_burst_us=100", "cpuset.cpus=0-1",
         "cpuset.mems=0"],
        ["cpu.weight=59", "cpu.max=20000 50000", "cpu.max.burst=100", "cpuset.cpus=0-1", "cpuset.mems=0"],
    ),
    "idle": ({"cpu": {"shares": 512, "idle": 1}}, ["cpu.idle=1"], ["cpu.idle=1"]),
    "not idle any more": ({"cpu": {"shares": 512, "idle": 0}}, ["cpu.idle=0", "cpu.shares=512"], ["cpu.idle=0", "cpu.weight=59"]),
    "pids": ({"pids": {"limit": 5}}, ["pids.max=5"], ["pids.max=5"]),
    "no process more": ({"pids": {"limit": 0}}, ["pids.max=1"], ["pids.max=1"]),
    "pids without limit": ({"pids": {"limit": -1}}, ["pids.max=max"], ["pids.max=max"]),
    "pids unchanged": ({"pids": {}}, [], []),
    "blockIO": (
        {"blockIO": {"weight": 100, "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
                     "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
                     "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 601}],
                     "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}],
                     "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 300}]}},
        ["blkio.weight=100|blkio.bfq.weight=100", "blkio.weight_device=8:0 500|blkio.bfq.weight_device=8:0 500",
         "blkio.throttle.read_bps_device=8:0 600", "blkio.throttle.write_bps_device=8:0 601",
         "blkio.throttle.read_iops_device=8:16 0", "blkio.throttle.write_iops_device=8:16 300"],
        ["io.bfq.weight=100|io.weight=910", "io.bfq.weight=8:0 500|io.weight=8:0 4950", "io.max=8:0 rbps=600", "io.max=8:0 wbps=601",
         "io.max=8:16 riops=max", "io.max=8:16 wiops=300"],
    ),
    "hugetlb": (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]},
        ["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.2MB.rsvd.limit_in_bytes=4194304"],
        ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"],
    ),
    "rdma": (
        {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "rxe3": {"hcaObjects": 7}}},
        ["rdma.max=mlx5_1 hca_handle=3 hca_object=10000", "rdma.max=rxe3 hca_object=7"],
        ["rdma.max=mlx5_1 hca_handle=3 hca_object=10000", "rdma.max=rxe3 hca_object=7"],
    ),
}  # fmt: skip
ONLY_V1: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "kernel": ({"memory": {"kernel": 9}}, ["memory.kmem.limit_in_bytes=9"], r"memory\.kernel"),
    "kernelTCP": ({"memory": {"kernelTCP": 9}}, ["memory.kmem.tcp.limit_in_bytes=9"], r"memory\.kernelTCP"),
    "swappiness": ({"memory": {"swappiness": 0}}, ["memory.swappiness=0"], r"memory\.swappiness"),
    "disableOOMKiller": ({"memory": {"disableOOMKiller": True}}, ["memory.oom_control=1"], r"memory\.disableOOMKiller"),
    "useHierarchy": ({"memory": {"useHierarchy": False}}, ["memory.use_hierarchy=0"], r"memory\.useHierarchy"),
    "realtime": (
        {"cpu": {"realtimeRuntime": 5, "realtimePeriod": 9}},
        ["cpu.rt_period_us=9", "cpu.rt_runtime_us=5"],
        r"cpu\.realtimeRuntime",
    ),
    "leafWeight": ({"blockIO": {"leafWeight": 10}}, ["blkio.leaf_weight=10"], r"blockIO\.leafWeight"),
    "leafWeight of a device": (
        {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}},
        ["blkio.leaf_weight_device=8:0 10"],
        r"blockIO\.weightDevice\[0\]\.leafWeight",
    ),
}


def shown(writes: Any) -> list[str]:
    return [f"{w.file}={w.value}" + (f"|{w.other[0]}={w.other[1]}" if w.other else "") for w in writes]


@pytest.mark.parametrize("name", CASES)
def test_files_of_both_versions(name: str) -> None:
    members, v1, v2 = CASES[name]
    assert shown(v1_writes(resources(**members))) == v1
    assert shown(v2_writes(resources(**members))) == v2
    refuse_unsupported(resources(**members), set())


@pytest.mark.parametrize("name", ONLY_V1)
def test_members_that_v2_does_not_support(name: str) -> None:
    members, v1, place = ONLY_V1[name]
    assert shown(v1_writes(resources(**members))) == v1
    with pytest.raises(UnsupportedError, match=rf"\$\.linux\.resources\.{place}"):
        refuse_unsupported(resources(**members), set())
    refuse_unsupported(resources(**members), {"memory", "cpu", "blkio"})


def test_network_needs_v1() -> None:
    given = resources(network={"classID": 0x100001, "priorities": [{"name": "eth0", "priority": 5}]})
    assert shown(v1_writes(given)) == ["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"]
    assert v2_writes(given) == ()


def test_unified() -> None:
    given = resources(unified={"io.max": "8:0 rbps=1\n8:16 wbps=2", "memory.high": "9", "cpuset.cpus": "", "memory.max": ""})
    assert shown(unified_writes(given)) == ["io.max=8:0 rbps=1", "io.max=8:16 wbps=2", "memory.high=9", "cpuset.cpus=\n"]


@pytest.mark.parametrize(
    "key", ["a/b.c", "../x.y", "cgroup.procs", "cgroup.kill", "cgroup.subtree_control", "memory", ".max", "memory."]
)
def test_unified_keys_that_are_not_limits(key: str) -> None:
    with pytest.raises(SpecError, match="unified"):
        unified_writes(resources(unified={key: "1"}))


def test_a_cgroup_that_gets_no_cpuset_is_removed(tmp_path: Path) -> None:
    """A step that fails has made nothing: what undoes it is noted after it."""
    with pytest.raises(FileNotFoundError, match=r"cpuset\.cpus"):  # this is no cgroup filesystem
        tree.make(str(tmp_path / "c"), cpuset=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("state", "dies"), [(b"R", True), (b"D", False)])
def test_killed_processes_that_wait_for_a_cpu_get_more_time(monkeypatch: pytest.MonkeyPatch, state: bytes, dies: bool) -> None:
    """Those that hang in the kernel do not."""
    end = time.monotonic() + 0.3

    class Group(tasks.Group):
        def processes(self) -> set[int]:
            return {1} if time.monotonic() < end else set()

    monkeypatch.setattr(tasks, "_GROUP_KILL_TIMEOUT", 0.01)
    monkeypatch.setattr(tasks, "open_pidfds", lambda *arguments: nullcontext(()))
    monkeypatch.setattr(tasks, "read_stat", lambda pid: [state])
    group = Group()
    group.kill()
    assert (group.processes() == set()) is dies


@pytest.mark.parametrize("kind", ["processes", "empty", "root"])
def test_nothing_is_enabled_beside_processes(tmp_path: Path, kind: str) -> None:
    """The kernel would enable some controllers, and make the cgroup threaded: then no container can run below it."""
    parent = tmp_path / "parent"
    parent.mkdir()
    (tmp_path / "cgroup.subtree_control").write_text("cpu pids\n")
    (parent / "cgroup.subtree_control").write_text("")
    (parent / "cgroup.procs").write_text("" if kind == "empty" else "12\n")
    if kind != "root":
        (parent / "cgroup.type").write_text("domain\n")
    tree.enable(f"{parent}/own", str(tmp_path), (), ("pids",))
    assert (parent / "cgroup.subtree_control").read_text() == ("" if kind == "processes" else "+pids")
    (parent / "cgroup.subtree_control").write_text("")
    with pytest.raises(OSError, match=f"busy: '{parent}/cgroup") if kind == "processes" else nullcontext():
        tree.enable(f"{parent}/own", str(tmp_path), ("pids",))
    assert (parent / "cgroup.subtree_control").read_text() == ("" if kind == "processes" else "+pids")
