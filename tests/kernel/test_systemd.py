"""The systemd cgroup manager: what systemd and the kernel show of a container's scope. Runs in the machine of tests/vm."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime.engine import systemd
from ociruntime.plan.cgroups.systemd import Property

from ..support.cgroups import Limited, config, directory, own_cgroups, value
from ..support.fixture_types import MakeBundle
from ..support.places import MiB
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = [pytest.mark.vm, pytest.mark.skipif(oci.Host.probe().systemd is None, reason="no systemd to ask")]
root = pytest.mark.root
MODE = oci.Host.probe().cgroup_mode
on_v2 = pytest.mark.skipif(MODE != "v2", reason="for cgroup v2 alone")
on_v1 = pytest.mark.skipif(MODE == "v2", reason="for the controllers of cgroup v1")
CTL = ["systemctl"] if os.geteuid() == 0 else ["systemctl", "--user"]


def show(unit: str, *names: str) -> dict[str, str]:
    command = [*CTL, "show", unit, "-p", ",".join(names)]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(row.partition("=")[::2] for row in rows)


@pytest.fixture(autouse=True)
def no_unit_is_left(prefix: str) -> Iterator[None]:
    """Slices stay, as systemd keeps them; the scopes do not."""
    yield
    subprocess.run([*CTL, "stop", f"{prefix}.slice"], check=True)
    command = [*CTL, "list-units", "--all", "--plain", "--no-legend", f"*{prefix}*"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


@pytest.fixture
def limited(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Callable[..., Any]:
    created = Limited(make_bundle, state_root, prefix)
    return lambda *args, **more: created(*args, cgroup_manager="systemd", **more)


@root
@on_v2
def test_systemd_has_the_limits_and_so_has_the_kernel(limited: Callable[..., Any], prefix: str) -> None:
    resources = {
        "memory": {"limit": 64 * MiB, "swap": 96 * MiB, "reservation": 32 * MiB},
        "cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 33},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MiB}],
        "unified": {"memory.high": str(48 * MiB)},
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
    }
    with limited(resources, linux={"cgroupsPath": f"{prefix}-a.slice:pre:{prefix}"}) as container:
        unit = f"pre-{prefix}.scope"
        shown = show(
            unit,
            *(
                "ActiveState",
                "Delegate",
                "MemoryMax",
                "MemorySwapMax",
                "MemoryLow",
                "MemoryHigh",
                "CPUWeight",
                "CPUQuotaPerSecUSec",
            ),
            *("CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes", "TasksMax", "DevicePolicy", "DeviceAllow", "ControlGroup"),
        )
        assert "/dev/char/10:229 rw" in shown.pop("DeviceAllow")
        assert shown == {
            "ActiveState": "active", "Delegate": "yes", "MemoryMax": f"{64 * MiB}", "MemorySwapMax": f"{32 * MiB}",
            "MemoryLow": f"{32 * MiB}", "MemoryHigh": f"{48 * MiB}", "CPUWeight": "59", "CPUQuotaPerSecUSec": "250ms",
            "CPUQuotaPeriodUSec": "200ms", "AllowedCPUs": "0", "AllowedMemoryNodes": "0", "TasksMax": "33", "DevicePolicy": "strict",
            "ControlGroup": f"/{prefix}.slice/{prefix}-a.slice/{unit}",
        }  # fmt: skip
        assert directory(container, "") == Path(f"/sys/fs/cgroup{shown['ControlGroup']}")
        files = {
            "memory.max": f"{64 * MiB}", "memory.swap.max": f"{32 * MiB}", "memory.low": f"{32 * MiB}", "memory.high": f"{48 * MiB}",
            "cpu.weight": "59", "cpu.max": "50000 200000", "cpuset.cpus": "0", "pids.max": "33", "hugetlb.2MB.max": f"{4 * MiB}",
        }  # fmt: skip
        assert {file: value(container, "", file) for file in files} == files
        subprocess.run([*CTL, "daemon-reload"], check=True)
        assert {file: value(container, "", file) for file in files} == files


@root
@on_v1
def test_the_limits_on_v1(limited: Callable[..., Any], prefix: str) -> None:
    """systemd makes the cgroups of some controllers, and we those of the others at the same path."""
    denied = {"allow": False, "access": "rwm"}
    fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    resources = {
        "memory": {"limit": 64 * MiB, "swap": 96 * MiB},
        "cpu": {"shares": 512, "quota": 50000, "period": 200000, "cpus": "0"},
        "pids": {"limit": 33},
        "devices": [denied, fuse, {**fuse, "minor": 200}, {**fuse, "allow": False, "minor": 200}],
    }
    with limited(resources, linux={"cgroupsPath": f"{prefix}-a.slice:pre:{prefix}"}) as container:
        unit = f"pre-{prefix}.scope"
        path = f"/{prefix}.slice/{prefix}-a.slice/{unit}"
        lines = Path(f"/proc/{container.pid}/cgroup").read_text().splitlines()
        assert {line.split(":", 2)[2] for line in lines} == {path}
        expected = {
            "ActiveState": "active", "Delegate": "yes", "MemoryLimit": f"{64 * MiB}", "CPUShares": "512", "TasksMax": "33",
            "CPUQuotaPerSecUSec": "250ms", "DevicePolicy": "strict", "ControlGroup": path,
        }  # fmt: skip
        assert show(unit, *expected) == expected
        files = {
            ("memory", "memory.limit_in_bytes"): f"{64 * MiB}", ("memory", "memory.memsw.limit_in_bytes"): f"{96 * MiB}",
            ("cpu", "cpu.shares"): "512", ("cpu", "cpu.cfs_quota_us"): "50000", ("cpu", "cpu.cfs_period_us"): "200000",
            ("cpuset", "cpuset.cpus"): "0", ("pids", "pids.max"): "33",
        }  # fmt: skip
        devices = value(container, "devices", "devices.list").splitlines()
        assert "c 10:229 rw" in devices
        assert not any("10:200" in line for line in devices)
        for _ in range(2):
            assert {(controller, file): value(container, controller, file) for controller, file in files} == files
            assert sorted(value(container, "devices", "devices.list").splitlines()) == sorted(devices)
            subprocess.run([*CTL, "daemon-reload"], check=True)
        container.start()
        assert (
            container.exec(["cat", "/proc/self/cgroup"], capture_output=True, text=True, own_cgroup=False).stdout.splitlines()
            == lines
        )
        container.update(memory=80 * MiB, memory_swap=96 * MiB, pids=44)
        assert show(unit, "MemoryLimit", "TasksMax") == {"MemoryLimit": f"{80 * MiB}", "TasksMax": "44"}
        assert value(container, "memory", "memory.limit_in_bytes") == f"{80 * MiB}"
        container.pause()
        assert container.status == "paused"
        # A paused one is deleted, too.
    for hierarchy in oci.Host.probe().hierarchies:
        assert not Path(hierarchy.mountpoint + path).exists()


@root
@on_v1
def test_a_users_own_systemd_is_for_v2(make_bundle: MakeBundle) -> None:
    host = oci.Host.probe()
    assert host.systemd is not None
    with pytest.raises(oci.UnsupportedError, match=f"on cgroup v2 only, and this host uses {MODE}"):
        make_bundle().plan(host=attrs.evolve(host, systemd=attrs.evolve(host.systemd, user=True)), cgroup_manager="systemd")


@root
@on_v2
def test_an_update_tells_systemd_too(limited: Callable[..., Any], prefix: str) -> None:
    resources = {"memory": {"limit": 64 * MiB}, "cpu": {"quota": 50000}, "devices": [{"allow": False, "access": "rwm"}]}
    with limited(resources, linux={"cgroupsPath": f"{prefix}.slice:pre:{prefix}"}) as container:
        unit = f"pre-{prefix}.scope"
        fuse = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
        container.update({"devices": [*resources["devices"], fuse], "memory": {"limit": 80 * MiB}}, cpu_quota=33333, pids=44)
        files = {"memory.max": f"{80 * MiB}", "cpu.max": "33333 100000", "pids.max": "44"}
        assert {file: value(container, "", file) for file in files} == files
        shown = show(unit, "MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "DeviceAllow")
        assert "/dev/char/10:229 rw" in shown.pop("DeviceAllow")
        assert shown == {"MemoryMax": f"{80 * MiB}", "CPUQuotaPerSecUSec": "340ms", "TasksMax": "44"}
        container.update({"devices": resources["devices"]})
        assert "10:229" not in show(unit, "DeviceAllow")["DeviceAllow"]
        container.update(cpu_shares=512, cpu_idle=1)
        assert (show(unit, "CPUWeight"), value(container, "", "cpu.idle")) == ({"CPUWeight": "idle"}, "1")
        container.update(cpu_idle=0)
        assert (show(unit, "CPUWeight"), value(container, "", "cpu.weight")) == ({"CPUWeight": "59"}, "59")
        subprocess.run([*CTL, "daemon-reload"], check=True)
        assert {**files, "cpu.max": "34000 100000"} == {file: value(container, "", file) for file in files} | {
            "cpu.max": "34000 100000"
        }
        with pytest.raises(oci.StepError):
            container.update({"cpu": {"cpus": "4095"}}, memory=70 * MiB)
        assert value(container, "", "memory.max") == f"{80 * MiB}"
        assert show(unit, "MemoryMax") == {"MemoryMax": f"{80 * MiB}"}
        container.update({"devices": [{"allow": True, "access": "rwm"}]})
        assert show(unit, "DevicePolicy", "DeviceAllow") == {"DevicePolicy": "auto"}  # an empty list is not shown


@root
def test_a_whole_life_by_the_command(make_bundle: MakeBundle, prefix: str, state_root: Path) -> None:
    def cli(*args: str) -> str:
        command = [sys.executable, "-m", "ociruntime", "--root", state_root, "--systemd-cgroup", *args]
        # A file and no pipe: the container keeps it open.
        with tempfile.TemporaryFile("w+") as out:
            subprocess.run(command, check=True, stdout=out, stdin=subprocess.DEVNULL)
            out.seek(0)
            return out.read()

    unit = f"ociruntime-{prefix}.scope"
    cli("create", "--bundle", str(make_bundle().path), prefix)
    assert show(unit, "ActiveState", "Slice") == {"ActiveState": "active", "Slice": "system.slice"}
    cli("start", prefix)
    assert cli("exec", prefix, "cat", "/proc/self/cgroup").strip().endswith(unit)
    cli("pause", prefix)
    assert json.loads(cli("state", prefix))["status"] == "paused"
    cli("resume", prefix)
    cli("delete", "--force", prefix)
    assert show(unit, "LoadState") == {"LoadState": "not-found"}
    for hierarchy in oci.Host.probe().hierarchies:
        assert not Path(f"{hierarchy.mountpoint}/system.slice/{unit}").exists()


@root
def test_a_process_that_ends_takes_the_scope_along(limited: Callable[..., Any]) -> None:
    with limited({}, ["true"], start=True) as container:
        assert container.wait(TIME_LIMIT) == 0


@root
def test_a_kill_for_want_of_memory_is_known_when_the_scope_is_gone(limited: Callable[..., Any], prefix: str) -> None:
    """Nobody waits, and the cgroup's count is gone with it. One after it of the same name has nothing to do with it."""
    linux = {"cgroupsPath": f"system.slice:pre:{prefix}"}
    for text, killed in (("x=aaaaaaaa; while :; do x=$x$x; done", True), ("exit 3", False)):
        with limited({"memory": {"limit": 16 * MiB}}, ["sh", "-c", text], linux=linux) as container:
            scope = own_cgroups(container)[0]
            container.start()
            wait_until(lambda scope=scope: not os.path.exists(scope), "the end of the scope")
            assert container.status == "stopped"
            assert container.state.oom_killed is killed


@root
def test_annotations_are_properties(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    plain = config(["sleep", "100"], {})
    spec = plain.evolve(annotations={"org.systemd.property.TimeoutStopSec": "17.5"})
    with oci.Container.create(prefix, make_bundle(spec), state_root=state_root, cgroup_manager="systemd"):
        assert show(f"ociruntime-{prefix}.scope", "TimeoutStopUSec") == {"TimeoutStopUSec": "17.500000s"}
    unknown = plain.evolve(annotations={"org.systemd.property.NothingOfTheKind": "true"})
    with pytest.raises(oci.UnsupportedError, match="NothingOfTheKind"):
        oci.Container.create(prefix, make_bundle(unknown), state_root=state_root, cgroup_manager="systemd")


@root
def test_a_unit_that_runs_is_left_alone(limited: Callable[..., Any], prefix: str) -> None:
    path = {"cgroupsPath": f"system.slice:pre:{prefix}"}
    with limited({}, linux=path) as first:
        words = rf"systemd has pre-{prefix}\.scope already, and it is active" if MODE == "v2" else "cgroup is not empty"
        with pytest.raises(OSError, match=words) as caught:
            with limited({}, linux=path):
                pass
        assert caught.value.errno == errno.EEXIST
        first.start()
        assert first.status == "running"


@root
def test_a_container_is_a_service(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """A unit of Type=notify is active when the program is ready. The stop of the unit ends the container and removes it."""
    # busybox has no systemd-notify, but speaks to syslog's socket, and what it says there has two lines.
    notify = 'ln -s "$NOTIFY_SOCKET" /dev/log && logger "$(printf "%s\\nREADY=1\\n." STATUS=soon)"'
    program = f"trap 'touch /stopped; exit 0' TERM; sleep 2; touch /ready; {notify}; while true; do sleep 1; done"
    bundle, unit = make_bundle(oci.RuntimeSpec.default().with_args(["sh", "-c", program])), f"{prefix}.service"
    run = [sys.executable, "-P", "-m", "ociruntime", "--root", state_root, "run", "-b", bundle.path, prefix]
    environment = f"--setenv=PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    options = ["-q", f"--unit={unit}", "-p", "Type=notify", "-p", f"TimeoutStartSec={TIME_LIMIT}", environment]
    subprocess.run(["systemd-run", *options, *run], check=True, timeout=TIME_LIMIT)  # it waits until the unit is active
    assert (bundle.rootfs / "ready").exists()
    assert show(unit, "ActiveState", "SubState") == {"ActiveState": "active", "SubState": "running"}
    container = oci.Container.load(prefix, state_root=state_root)
    assert container.status == "running"
    subprocess.run(["systemctl", "stop", unit], check=True, timeout=TIME_LIMIT)
    assert (bundle.rootfs / "stopped").exists()
    assert oci.Container.list(state_root=state_root) == []
    assert show(unit, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}


@root
def test_a_unit_that_failed_makes_room(limited: Callable[..., Any], prefix: str) -> None:
    unit = f"pre-{prefix}.scope"
    command = ["systemd-run", "--scope", "-q", f"--unit={unit}", "-p", "RuntimeMaxSec=1", "sleep", "100"]
    subprocess.run(command, check=False)
    assert show(unit, "ActiveState") == {"ActiveState": "failed"}
    with limited({}, linux={"cgroupsPath": f"system.slice:pre:{prefix}"}):
        assert show(unit, "ActiveState") == {"ActiveState": "active"}


@root
def test_a_create_that_fails_leaves_no_scope(limited: Callable[..., Any], state_root: Path) -> None:
    with pytest.raises(oci.StepError):
        with limited({"cpu": {"cpus": "4095"}}):
            pass
    with pytest.raises(oci.StepError):
        with limited({}, ["/nope"]):
            pass
    assert not list(state_root.glob("[!.]*"))  # but the cache of filters


@pytest.fixture
def sleeper() -> Iterator[int]:
    child = subprocess.Popen(["sleep", "100"])
    yield child.pid
    child.kill()
    child.wait()


@on_v2
def test_a_scope_of_either_systemd(sleeper: int, prefix: str) -> None:
    host = oci.Host.probe()
    assert host.systemd is not None
    user, hierarchy = host.systemd.user, host.systemd.hierarchy
    unit, base = f"{prefix}.scope", (hierarchy.base or "").rstrip("/")
    path = f"{base}/{prefix}.slice/{unit}"
    requested = [
        Property("Slice", "s", f"{prefix}.slice"), Property("Delegate", "b", True), Property("MemoryMax", "t", 64 * MiB),
        Property("AllowedCPUs", "ay", (1,)), Property("TasksMax", "t", 7),
    ]  # fmt: skip
    systemd.start_scope(unit, requested, path, user=user, pid=sleeper)
    scope = Path(hierarchy.mountpoint + path)
    try:
        assert show(unit, "MemoryMax", "AllowedCPUs") == {"MemoryMax": f"{64 * MiB}", "AllowedCPUs": "0"}
        assert (scope / "pids.max").read_text() == "7\n"
        assert scope.stat().st_uid == os.geteuid()
        systemd.set_properties(unit, [Property("TasksMax", "t", 9)], user=user)
        assert (scope / "pids.max").read_text() == "9\n"
        with pytest.raises(FileExistsError):
            systemd.start_scope(unit, requested, path, user=user, pid=os.getpid())
    finally:
        os.kill(sleeper, 9)
        systemd.stop(unit, user=user)
    assert not scope.exists()
    systemd.stop(unit, user=user)


def test_by_the_bus_where_there_is_no_private_socket(sleeper: int, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid() != 0
    bus = f"/run/user/{os.geteuid()}/bus" if user else "/run/dbus/system_bus_socket"
    monkeypatch.setattr("ociruntime.engine.systemd._addresses", lambda user: [(bus, False)])
    host = oci.Host.probe()
    assert host.systemd is not None
    path = f"{(host.systemd.hierarchy.base or '').rstrip('/')}/{prefix}.slice/{prefix}.scope"
    systemd.start_scope(f"{prefix}.scope", [Property("Slice", "s", f"{prefix}.slice")], path, user=user, pid=sleeper)
    os.kill(sleeper, 9)
    systemd.stop(f"{prefix}.scope", user=user)


ROOTLESS = """
import os, sys
import ociruntime as oci

bundle, state, name = sys.argv[1:]
limits = {"memory": {"limit": 64 << 20}, "cpu": {"shares": 512}, "pids": {"limit": 20}, "devices": [{"allow": False, "access": "rwm"}]}
document = oci.RuntimeSpec.default().to_dict()
document["process"]["args"] = ["sleep", "100"]
linux = document["linux"]
kept = [space for space in linux["namespaces"] if space["type"] not in ("network", "cgroup", "user")]
own = {"uidMappings": os.getuid(), "gidMappings": os.getgid()}
maps = {key: [{"containerID": 0, "hostID": value, "size": 1}] for key, value in own.items()}
linux.update(maps, namespaces=[*kept, {"type": "user"}, {"type": "cgroup"}], resources=limits)
document["mounts"] = [mount for mount in document["mounts"] if mount["type"] not in ("sysfs", "cgroup")]
for mount in document["mounts"]:
    mount["options"] = [option for option in mount.get("options", []) if not option.startswith("gid=")]
made = oci.Bundle.from_dir(bundle, oci.RuntimeSpec.load(document))
with oci.Container.create(name, made, state_root=state, cgroup_manager="systemd") as container:
    with open(f"/proc/{container.pid}/cgroup") as own:
        path = own.read().strip().removeprefix("0::")
    assert path.endswith(f"/user@{os.getuid()}.service/user.slice/ociruntime-{name}.scope"), path
    container.start()
    script = "cat /proc/self/cgroup; setsid sleep 1007 & sleep 1007"
    try:
        raise SystemExit(f"not timed out: {container.exec(['sh', '-c', script], timeout=5, capture_output=True, text=True)}")
    except oci.ProcessTimeout as error:
        assert error.stdout.startswith("0::/ociruntime@exec-"), error
    assert len(container.processes()) == 1, container.processes()
    assert container.exec(["cat", "/proc/self/cgroup"], capture_output=True, text=True, own_cgroup=False).stdout == "0::/\\n"
    container.update(pids=30)
    values = [open(f"/sys/fs/cgroup{path}/{file}").read().strip() for file in ("memory.max", "cpu.weight", "pids.max")]
    assert values == ["67108864", "59", "30"], values
    container.pause()
    container.resume()
assert not os.path.exists(f"/sys/fs/cgroup{path}")
"""


EACH_LIMIT = """
import json, os, sys
import ociruntime as oci

bundle, state, name, reload, limits = sys.argv[1:]
spec = oci.RuntimeSpec.default(rootless=os.geteuid() != 0).with_args(["sleep", "1000"])
with oci.Container.run(name, oci.Bundle.from_dir(bundle, spec), state_root=state, cgroup_manager="systemd") as container:
    with open(f"/proc/{container.pid}/cgroup") as own:
        path = own.read().strip().removeprefix("0::")
    assert path.endswith(f"/ociruntime-{name}.scope"), path
    wanted = {}
    for resources, arguments, files in json.loads(limits):
        container.update(resources, **arguments)
        wanted |= files
    for _ in range(2):
        assert {file: open(f"/sys/fs/cgroup{path}/{file}").read().strip() for file in wanted} == wanted
        assert os.system(reload) == 0
"""
LIMITS: list[tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = [
    ({}, {"cpuset_cpus": "0"}, {"cpuset.cpus": "0"}),
    ({}, {"cpuset_mems": "0"}, {"cpuset.mems": "0"}),
    ({}, {"memory": "64M", "memory_swap": "96M"}, {"memory.max": f"{64 * MiB}", "memory.swap.max": f"{32 * MiB}"}),
    ({}, {"memory_reservation": "16M"}, {"memory.low": f"{16 * MiB}"}),
    ({}, {"cpus": 0.5}, {"cpu.max": "50000 100000"}),
    ({}, {"cpu_burst": 1000}, {"cpu.max.burst": "1000"}),
    ({}, {"cpu_shares": 512}, {"cpu.weight": "59"}),
    ({}, {"pids": 20}, {"pids.max": "20"}),
    ({}, {"blkio_weight": 50}, {}),
    ({"unified": {"memory.high": f"{48 * MiB}"}}, {}, {"memory.high": f"{48 * MiB}"}),
]
NOT_OF_SYSTEMD = [({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MiB}]}, {}, {"hugetlb.2MB.max": f"{4 * MiB}"})]
"""Limits of controllers that systemd does not know, and does not delegate to users."""


@root
@on_v2
def test_each_limit_of_a_scope_without_limits(busybox_rootfs: Path, prefix: str, tmp_path: Path) -> None:
    """The controllers that systemd has not enabled are enabled by the update."""
    shutil.copytree(busybox_rootfs, tmp_path / "bundle/rootfs", symlinks=True)
    words = [tmp_path / "bundle", tmp_path / "state", prefix, "systemctl daemon-reload", json.dumps(LIMITS + NOT_OF_SYSTEMD)]
    subprocess.run([sys.executable, "-c", EACH_LIMIT, *map(str, words)], check=True)


@root
@on_v2
@pytest.mark.skipif(not os.path.exists("/usr/local/bin/as-user"), reason="for the machine of tests/vm only")
def test_each_limit_of_a_users_scope_without_limits(busybox_rootfs: Path, prefix: str) -> None:
    home = Path(f"/home/tester/{prefix}")
    shutil.copytree(busybox_rootfs, home / "bundle/rootfs", symlinks=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    words = [home / "bundle", home / "state", prefix, "systemctl --user daemon-reload"]
    try:
        command = ["as-user", sys.executable, "-c", EACH_LIMIT, *map(str, words)]
        subprocess.run([*command, json.dumps(LIMITS)], check=True)
        shutil.rmtree(home / "state")
        (home / "bundle/config.json").unlink()
        done = subprocess.run([*command, json.dumps(NOT_OF_SYSTEMD)], capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(home)
    reason = "no cgroup of user 1000 has the controller hugetlb; if the kernel has it, let root delegate it (docs/cgroups.md)"
    assert f"$.linux.resources.hugepageLimits[0]: {reason}\n" in done.stderr


@root
@on_v2
@pytest.mark.skipif(not os.path.exists("/usr/local/bin/as-user"), reason="for the machine of tests/vm only")
@pytest.mark.parametrize("where", ["in a cgroup of the user's", "in one of the system's"])
def test_an_unprivileged_user(busybox_rootfs: Path, prefix: str, where: str) -> None:
    """From a service of the user's own, and from a place that is not delegated, as a login session is."""
    home = Path(f"/home/tester/{prefix}")
    shutil.copytree(busybox_rootfs, home / "bundle/rootfs", symlinks=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    command = [sys.executable, "-c", ROOTLESS, f"{home}/bundle", f"{home}/state", prefix]
    if where == "in a cgroup of the user's":
        command = ["as-user", *command]
    else:
        subprocess.run(["systemctl", "start", "user@1000.service"], check=True)
        user = ["setpriv", "--reuid=tester", "--regid=tester", "--init-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000"]
        command = ["systemd-run", "--scope", "-q", *user, *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(home)


SANDBOX = """
import os, sys
import ociruntime as oci

rootfs, state = sys.argv[1:]

def cgroup_of(sandbox):
    with open(f"/proc/{sandbox.container.pid}/cgroup") as own:
        return own.read().strip().removeprefix("0::")

with oci.Sandbox(rootfs, memory="64M", limits="required", state_root=state) as sandbox:
    path = cgroup_of(sandbox)
    assert path.endswith(f"/user@{os.getuid()}.service/user.slice/ociruntime-{sandbox.name}.scope"), path
    assert dict(sandbox.limits) == {"memory": "cgroup", "pids": "cgroup", "disk": "tmpfs"}, sandbox.limits
    values = [open(f"/sys/fs/cgroup{path}/{file}").read().strip() for file in ("memory.max", "pids.max")]
    assert values == [str(64 << 20), "1024"], values
    assert sandbox.run(["echo", "hello"], text=True).stdout == "hello\\n"
    sandbox.reset()
    assert cgroup_of(sandbox).endswith(".scope")
assert not os.path.exists(f"/sys/fs/cgroup{path}")
with oci.Sandbox(rootfs, state_root=state) as sandbox:  # the default limit of processes alone needs no systemd
    assert dict(sandbox.limits) == {"pids": "rlimit", "disk": "tmpfs"}, sandbox.limits
    assert "ociruntime" not in cgroup_of(sandbox), cgroup_of(sandbox)
detail = oci.doctor(state_root=state)["sandbox limits"].detail
assert "by cgroups of systemd, where they are given" in detail, detail
os.environ["XDG_RUNTIME_DIR"] = "/nowhere"
try:
    raise SystemExit(str(oci.Sandbox(rootfs, memory="64M", state_root=state)))
except oci.UnsupportedError as error:
    assert str(error).startswith("memory: cannot be limited for all processes of a sandbox together: "), error
    assert "user 1000 may not create cgroups" in str(error), error
"""


@root
@on_v2
@pytest.mark.skipif(not os.path.exists("/usr/local/bin/as-user"), reason="for the machine of tests/vm only")
def test_limits_of_a_sandbox_of_a_user(busybox_rootfs: Path, prefix: str) -> None:
    """From a place that is not delegated, limits that are given or required are those of a scope."""
    home = Path(f"/home/tester/{prefix}")
    shutil.copytree(busybox_rootfs, home / "rootfs", symlinks=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    subprocess.run(["systemctl", "start", "user@1000.service"], check=True)
    user = ["setpriv", "--reuid=tester", "--regid=tester", "--init-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000"]
    command = [*user, sys.executable, "-c", SANDBOX, f"{home}/rootfs", f"{home}/state"]
    try:
        done = subprocess.run(["systemd-run", "--scope", "-q", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(home)
