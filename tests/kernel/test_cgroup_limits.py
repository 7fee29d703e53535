"""Limits as the kernel shows and keeps them, on whichever version of cgroups this host has (config-linux.md#control-groups)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine import cgroup

from ..support.cgroups import V2, Limited, block_device, directory, has, needs, on_v2, own_cgroups, value
from ..support.fixture_types import Script
from ..support.places import MiB
from ..support.waiting import TIME_LIMIT

pytestmark = [pytest.mark.root, pytest.mark.vm]


CASES: dict[str, tuple[dict[str, Any], str, tuple[str, str], tuple[str, str]]] = {
    "memory": ({"memory": {"limit": 64 * MiB}}, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
    "no limit": ({"memory": {"limit": -1}}, "memory", ("memory.limit_in_bytes", "9223372036854771712"), ("memory.max", "max")),
    "reservation": (
        {"memory": {"reservation": 32 * MiB}}, "memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432")),
    "swap": (
        {"memory": {"limit": 64 * MiB, "swap": 96 * MiB}}, "memory",
        ("memory.memsw.limit_in_bytes", "100663296"), ("memory.swap.max", "33554432")),
    "shares": ({"cpu": {"shares": 512}}, "cpu", ("cpu.shares", "512"), ("cpu.weight", "59")),
    "quota": ({"cpu": {"quota": 20000, "period": 50000}}, "cpu", ("cpu.cfs_quota_us", "20000"), ("cpu.max", "20000 50000")),
    "quota beyond the default period": (
        {"cpu": {"quota": 2000, "period": 1000}}, "cpu", ("cpu.cfs_period_us", "1000"), ("cpu.max", "2000 1000")),
    "burst": ({"cpu": {"quota": 20000, "burst": 10000}}, "cpu", ("cpu.cfs_burst_us", "10000"), ("cpu.max.burst", "10000")),
    "idle": ({"cpu": {"idle": 1, "shares": 512}}, "cpu", ("cpu.idle", "1"), ("cpu.idle", "1")),
    "cpus": ({"cpu": {"cpus": "0"}}, "cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    "mems": ({"cpu": {"mems": "0"}}, "cpuset", ("cpuset.mems", "0"), ("cpuset.mems", "0")),
    "pids": ({"pids": {"limit": 7}}, "pids", ("pids.max", "7"), ("pids.max", "7")),
    "pids without limit": ({"pids": {"limit": -1}}, "pids", ("pids.max", "max"), ("pids.max", "max")),
    "hugetlb": ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MiB}]}, "hugetlb",
                ("hugetlb.2MB.limit_in_bytes", "4194304"), ("hugetlb.2MB.max", "4194304")),
    "reserved hugetlb": ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MiB}]}, "hugetlb",
                         ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"), ("hugetlb.2MB.rsvd.max", "4194304")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_has_it(limited: Limited, name: str) -> None:
    resources, controller, v1, v2 = CASES[name]
    if not has(controller):
        pytest.skip(f"no {controller} controller")
    with limited(resources) as container:
        file, expected = v2 if on_v2(controller) else v1
        assert value(container, controller, file) == expected


def test_throttling_of_a_disk(limited: Limited) -> None:
    major, minor = block_device()
    device = {"major": major, "minor": minor}
    block = {"throttleReadBpsDevice": [{**device, "rate": MiB}], "throttleWriteIOPSDevice": [{**device, "rate": 100}]}
    with limited({"blockIO": block}) as container:
        if on_v2("io"):
            text = value(container, "io", "io.max")
            assert text == f"{major}:{minor} rbps={MiB} wbps=max riops=max wiops=100"
        else:
            assert value(container, "blkio", "blkio.throttle.read_bps_device") == f"{major}:{minor} {MiB}"
            assert value(container, "blkio", "blkio.throttle.write_iops_device") == f"{major}:{minor} 100"


def test_weight_of_disks(limited: Limited) -> None:
    files = {"io.bfq.weight": "100", "io.weight": "910", "blkio.weight": "100", "blkio.bfq.weight": "100"}
    controller = "io" if on_v2("io") else "blkio"
    with limited({}) as container:
        file = next((file for file in files if (directory(container, controller) / file).exists()), None)
    if file is None:
        with pytest.raises(
            oci.UnsupportedError, match=r"\$\.linux\.resources\.blockIO\.weight: this kernel has no (io.bfq|blkio).weight"
        ):
            limited({"blockIO": {"weight": 100}}).__enter__()
        return
    with limited({"blockIO": {"weight": 100}}) as container:
        assert (directory(container, controller) / file).read_text().split()[-1] == files[file]


def test_realtime(limited: Limited, prefix: str) -> None:
    resources = {"cpu": {"realtimeRuntime": 5000, "realtimePeriod": 500000}}
    if on_v2("cpu"):
        with pytest.raises(oci.UnsupportedError, match=r"cpu\.realtimeRuntime"):
            limited(resources).__enter__()
        return
    if not (Path(oci.Host.probe().hierarchy("cpu").mountpoint) / "cpu.rt_runtime_us").exists():  # type: ignore[union-attr]
        pytest.skip("no realtime groups")
    with limited(resources, linux={"cgroupsPath": f"/{prefix}-above/c"}) as container:
        assert value(container, "cpu", "cpu.rt_runtime_us") == "5000"
        assert value(container, "cpu", "../cpu.rt_runtime_us") == "5000"


def test_a_parent_without_cpus_gets_them(limited: Limited, prefix: str) -> None:
    with limited({"cpu": {"cpus": "0"}}, linux={"cgroupsPath": f"/{prefix}-above/c"}) as container:
        if not on_v2("cpuset"):
            root = Path(oci.Host.probe().hierarchy("cpuset").mountpoint)  # type: ignore[union-attr]
            assert value(container, "cpuset", "../cpuset.cpus") == (root / "cpuset.cpus").read_text().strip()
        container.start()
        assert os.sched_getaffinity(container.pid) == {0}


@pytest.fixture
def empty_cpuset(prefix: str) -> Iterator[Path]:
    """A cgroup of v1 with an empty cpuset that something else has created, and one below it."""
    hierarchy = oci.Host.probe().hierarchy("cpuset")
    if hierarchy is None or hierarchy.version == 2:
        pytest.skip("a cpuset of v2 is inherited")
    inner = Path(hierarchy.mountpoint, f"{prefix}-above", "inner")
    inner.mkdir(parents=True)
    assert (inner / "cpuset.cpus").read_text().strip() == ""
    yield inner
    inner.rmdir()
    inner.parent.rmdir()


@pytest.mark.parametrize("exists", [False, True])
def test_parents_with_an_empty_cpuset(limited: Limited, empty_cpuset: Path, exists: bool) -> None:
    top = empty_cpuset.parents[1]
    own = empty_cpuset if exists else empty_cpuset / "c"
    with limited({}, start=True, linux={"cgroupsPath": f"/{own.relative_to(top)}"}) as container:
        assert os.sched_getaffinity(container.pid) == os.sched_getaffinity(0)
        for path in (empty_cpuset.parent, empty_cpuset, own):
            for file in ("cpuset.cpus", "cpuset.mems"):
                assert (path / file).read_text() == (top / file).read_text()
    if exists:
        empty_cpuset.mkdir()


def test_a_given_cpuset_is_not_copied(empty_cpuset: Path) -> None:
    """The cpuset of the parent may overlap with an exclusive one, when the one of the config does not."""
    cgroup.make(str(empty_cpuset), True, ("cpuset.cpus",))
    assert (empty_cpuset.parent / "cpuset.cpus").read_text() == (empty_cpuset.parents[1] / "cpuset.cpus").read_text()
    assert (empty_cpuset / "cpuset.cpus").read_text().strip() == ""
    assert (empty_cpuset / "cpuset.mems").read_text() == (empty_cpuset.parents[1] / "cpuset.mems").read_text()


def test_oom_control_of_v1(limited: Limited) -> None:
    resources = {"memory": {"disableOOMKiller": True, "swappiness": 30, "useHierarchy": True}}
    if on_v2("memory"):
        with pytest.raises(oci.UnsupportedError, match=r"memory\.swappiness"):
            limited(resources).__enter__()
        return
    with limited(resources) as container:
        assert "oom_kill_disable 1" in value(container, "memory", "memory.oom_control")
        assert value(container, "memory", "memory.swappiness") == "30"


@needs["pids"]
def test_no_process_more(limited: Limited) -> None:
    """0 is a limit (config-linux.md#pids), written as 1."""
    with limited({"pids": {"limit": 0}}, ["sh", "-c", "sleep 100 & echo unreached; exec sleep 100"]) as container:
        limit = directory(container, "pids") / "pids.max"
        container.start()
        assert limit.read_text() == "1\n"
        assert container.wait(TIME_LIMIT) != 0  # the shell cannot fork


@needs["pids"]
def test_the_limit_of_processes_holds(limited: Limited) -> None:
    text = "i=0; while [ $i -lt 20 ]; do sleep 50 & i=$((i+1)); done"
    with limited({"pids": {"limit": 5}}, ["sh", "-c", text]) as container:
        events = directory(container, "pids") / "pids.events"
        container.start()
        assert container.wait(TIME_LIMIT) != 0
        assert events.read_text().split()[1] != "0"


def test_unified(limited: Limited) -> None:
    if not on_v2("memory"):
        with pytest.raises(oci.UnsupportedError, match=r"unified\['memory.high'\].*version 2 has the controller memory|unified"):
            limited({"unified": {"memory.high": "1000"}}).__enter__()
        return
    with limited(
        {"unified": {"memory.high": str(32 * MiB), "cgroup.max.descendants": "3"}, "memory": {"limit": 64 * MiB}}
    ) as container:
        assert value(container, "", "memory.high") == str(32 * MiB)
        assert value(container, "", "cgroup.max.descendants") == "3"


def test_unified_of_a_file_that_is_not_there(limited: Limited) -> None:
    controller = "memory" if on_v2("memory") else "hugetlb"
    if not on_v2(controller):
        pytest.skip("no controller of version 2")
    with pytest.raises(
        oci.UnsupportedError, match=rf"unified\['{controller}.nonsense'\]: this kernel has no {controller}.nonsense"
    ):
        limited({"unified": {f"{controller}.nonsense": "1"}}).__enter__()


DEVICES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"},
    {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
]
PROBE = """
mknod /tmp/kmsg c 1 11; mknod /tmp/fuse c 10 229; mknod /tmp/loop c 10 237
for i in null zero full random urandom; do head -c1 /dev/$i >/dev/null || echo bad $i; done
(: >/dev/null) && echo null-w
(: </tmp/kmsg) && echo kmsg-r; (: >/tmp/kmsg) && echo kmsg-w
(: <>/tmp/fuse) && echo fuse-rw; (: </tmp/loop) && echo loop-r
true
"""


@pytest.mark.parametrize("late", [False, True])
def test_device_rules(limited: Limited, late: bool) -> None:
    """The kernel lets through what the rules say, v1's or v2's, and the default devices; nothing else."""
    for number in ("1:11", "10:229", "10:237"):
        if not os.path.exists(f"/sys/dev/char/{number}"):
            pytest.skip(f"this machine has no device {number}")
    spec = limited.make_bundle().spec
    assert spec.process is not None
    capabilities = {
        kind: ["CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG", "CAP_SYS_RAWIO"] for kind in ("bounding", "effective", "permitted")
    }
    document = oci.RuntimeSpec.default().to_dict()
    document["process"].update(args=["sh", "-c", PROBE], capabilities=capabilities)  # type: ignore[attr-defined]
    document["linux"]["resources"] = {"devices": DEVICES}  # type: ignore[index]
    document["linux"].pop("seccomp", None)  # type: ignore[attr-defined]
    bundle = limited.make_bundle(oci.RuntimeSpec.load(document))
    (bundle.path / "rootfs/tmp").chmod(0o1777)
    if late:
        bundle.spec = bundle.spec.evolve(process=bundle.spec.process.evolve(args=("sleep", "100")))  # type: ignore[union-attr]
        with oci.Container.run(limited.prefix, bundle, state_root=limited.root) as container:
            out = container.exec(
                ["sh", "-c", PROBE], capture_output=True, text=True, process=oci.RuntimeSpec.load(document).process
            )
    else:
        out = oci.run(bundle, state_root=limited.root, container_id=limited.prefix, capture_output=True, text=True)
    assert out.returncode == 0, out
    assert out.stdout.split() == ["null-w", "kmsg-r", "fuse-rw"], out.stderr


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "net_cls": ({"network": {"classID": 1}}, r"network\.classID.*net_cls"),
    "net_prio": ({"network": {"priorities": [{"name": "lo", "priority": 1}]}}, r"network\.priorities\[0\].*net_prio"),
    "rdma": ({"rdma": {"mlx5_1": {"hcaHandles": 3}}}, r"rdma\['mlx5_1'\].*rdma"),
    "unified of nothing": ({"unified": {"nonsense.max": "1"}}, r"unified\['nonsense.max'\].*nonsense"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_controller_that_is_not_there_is_said(limited: Limited, name: str) -> None:
    resources, place = REFUSED[name]
    controller = {"net_cls": "net_cls", "net_prio": "net_prio", "rdma": "rdma"}.get(name, "")
    if controller and has(controller):
        pytest.skip(f"there is a {controller} controller")
    with pytest.raises(oci.UnsupportedError, match=rf"\$\.linux\.resources\.{place}"):
        limited(resources).__enter__()


def test_huge_pages_of_a_size_that_is_not_there(limited: Limited) -> None:
    if not has("hugetlb"):
        pytest.skip("no hugetlb controller")
    with pytest.raises(oci.UnsupportedError, match=r"hugepageLimits\[0\]: this kernel has no hugetlb\.3MB"):
        limited({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}).__enter__()


@pytest.mark.parametrize("resources", [{"cpu": {"cpus": "4095"}}, {"cpu": {"mems": "63"}}])
def test_a_value_that_the_kernel_refuses(limited: Limited, resources: dict[str, Any]) -> None:
    with pytest.raises(oci.StepError) as caught:
        limited(resources).__enter__()
    assert caught.value.errno in (errno.EINVAL, errno.ERANGE)
    assert caught.value.op.startswith("cgroup_write")


def test_disabled(limited: Limited, script: Script) -> None:
    with limited({"devices": DEVICES}, cgroup_manager="disabled", start=True) as container:
        assert own_cgroups(container) == []
        assert Path(f"/proc/{container.pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
    with pytest.raises(oci.UnsupportedError, match=r"memory\.limit.*the cgroup manager is disabled"):
        limited({"memory": {"limit": MiB}}, cgroup_manager="disabled").__enter__()


def test_a_frozen_cgroup_is_not_used(limited: Limited, prefix: str) -> None:
    host = oci.Host.probe()
    hierarchy = host.hierarchy("freezer") or V2
    assert hierarchy is not None
    path = Path(hierarchy.mountpoint, prefix)
    path.mkdir()
    try:
        cgroup.freeze([str(path)], True)
        with pytest.raises(FileExistsError, match="frozen"):
            limited({}, linux={"cgroupsPath": f"/{prefix}"}).__enter__()
        cgroup.freeze([str(path)], False)
        with limited({}, linux={"cgroupsPath": f"/{prefix}"}) as container:  # empty, and so of use
            assert path in own_cgroups(container)
        assert not path.exists()
    finally:
        if path.exists():
            path.rmdir()
