"""Limits of a container that exists, changed: in part, by all ways, and not at all when one is refused."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.cli import main
from ociruntime.engine.cgroup import devices
from ociruntime.engine.host_steps import execute_step
from ociruntime.files import StagedFile
from ociruntime.lifecycle import update

from ..support.cgroups import Limited, block_device, directory, on_v2, own_cgroups, value
from ..support.places import MiB
from ..support.waiting import TIME_LIMIT

pytestmark = [pytest.mark.root, pytest.mark.vm]


def limits(container: oci.Container) -> dict[str, str]:
    """What the kernel has, in the words of this test."""
    if on_v2("memory"):
        names = {"memory": "memory.max", "swap": "memory.swap.max", "low": "memory.low"}
        cpu = {"quota": "cpu.max", "weight": "cpu.weight"}
    else:
        names = {"memory": "memory.limit_in_bytes", "swap": "memory.memsw.limit_in_bytes", "low": "memory.soft_limit_in_bytes"}
        cpu = {"quota": "cpu.cfs_quota_us", "period": "cpu.cfs_period_us", "weight": "cpu.shares"}
    found = {name: value(container, "memory", file) for name, file in names.items()}
    found |= {name: value(container, "cpu", file) for name, file in cpu.items()}
    found["pids"] = value(container, "pids", "pids.max")
    if "period" in found:
        quota, period = found["quota"], found.pop("period")
        found["quota"] = f"{'max' if quota == '-1' else quota} {period}"
    elif "memory" in found:
        found["swap"] = str(int(found["swap"]) + int(found["memory"])) if found["swap"].isdigit() else found["swap"]
    return found


FIRST = {
    "memory": {"limit": 64 * MiB, "swap": 96 * MiB, "reservation": 32 * MiB},
    "cpu": {"quota": 20000, "shares": 512},
    "pids": {"limit": 50},
}
STEPS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"pids": 60}, {"pids": "60"}),
    ({"memory": 80 * MiB}, {"memory": str(80 * MiB)}),
    ({"memory": 160 * MiB, "memory_swap": 200 * MiB}, {"memory": str(160 * MiB), "swap": str(200 * MiB)}),
    ({"memory": 40 * MiB, "memory_swap": 50 * MiB}, {"memory": str(40 * MiB), "swap": str(50 * MiB)}),
    ({"cpu_period": 50000}, {"quota": "20000 50000"}),
    ({"cpu_quota": 30000}, {"quota": "30000 50000"}),
    ({"cpus": 1.5}, {"quota": "150000 100000"}),
    ({"cpu_quota": -1}, {"quota": "max 100000"}),
    ({"memory_reservation": 16 * MiB}, {"low": str(16 * MiB)}),
]


def test_single_limits_and_the_others_stay(limited: Limited) -> None:
    with limited(FIRST) as container:
        expected = limits(container)
        assert expected["swap"] == str(96 * MiB)
        for number, (change, changed) in enumerate(STEPS):
            if number == 4:
                container.start()
            elif number == 6:
                container.pause()
            container.update(**change)
            expected |= changed
            assert limits(container) == expected, change
        container.resume()
        assert container.spec.linux.resources.memory.limit == 40 * MiB  # type: ignore[union-attr]


def test_a_container_whose_config_was_removed(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """By a program that cleans /tmp, for example."""
    with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root) as container:
        (state_root / prefix / "config.json").unlink()
        for call in (lambda: container.update(pids=5), lambda: container.exec(["true"])):
            with pytest.raises(oci.StateError, match=f"container '{prefix}' has no config: .*/config.json is missing"):
                call()
        container.delete(force=True)


@pytest.mark.parametrize("way", ["python", "file", "stdin", "apptainer", "flags"])
def test_the_ways_to_say_it(limited: Limited, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"memory": {"limit": 80 * MiB, "swap": 0}, "cpu": {"shares": 2048, "quota": 0, "cpus": ""}, "pids": {"limit": 9}}
    with limited(FIRST) as container:
        expected = {**limits(container), "memory": str(80 * MiB), "weight": "174" if on_v2("cpu") else "2048", "pids": "9"}
        command = ["--root", str(limited.root), "update"]
        (tmp_path / "resources.json").write_text(json.dumps(document))
        if way == "python":
            container.update(document)
        elif way == "stdin":
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(document).encode())))
            assert main([*command, "--resources", "-", container.id]) == 0
        elif way == "flags":
            assert main([*command, "-m", "80m", "--cpu-share", "2048", "--pids-limit", "9", container.id]) == 0
        else:
            option = "--resources" if way == "file" else "-f"
            assert main([*command, option, str(tmp_path / "resources.json"), container.id]) == 0
        assert limits(container) == expected


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "by the rules": ({"memory": {"limit": 200 * MiB}}, oci.SpecError, r"memory\.swap"),
    "by the host": ({"pids": {"limit": 3}, "hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, oci.UnsupportedError, "hugetlb"),
    "by the form": ({"pids": {"limit": 3}, "hugepageLimits": [{"pageSize": "x/../2MB", "limit": 1}]}, oci.SpecError, "hugepageLimits"),
    "by the kernel": ({"pids": {"limit": 3}, "memory": {"limit": 10 * MiB}, "cpu": {"quota": 1000, "shares": 9, "cpus": "4095"}},
                      oci.StepError, "cpuset.cpus"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_change_changes_nothing(limited: Limited, name: str) -> None:
    change, error, place = REFUSED[name]
    major, minor = block_device()
    first = {**FIRST, "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": MiB}]}}
    throttle = "io.max" if on_v2("io") else "blkio.throttle.read_bps_device"
    with limited(first, start=True) as container:
        before, spec = limits(container), container.spec
        disk = value(container, "io" if on_v2("io") else "blkio", throttle)
        more = (
            {"blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 2 * MiB}]}}
            if name == "by the kernel"
            else {}
        )
        with pytest.raises(error, match=place):
            container.update({**more, **change})
        assert limits(container) == before
        assert value(container, "io" if on_v2("io") else "blkio", throttle) == disk
        assert container.spec == spec


def test_whichever_step_fails_nothing_has_changed(limited: Limited, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses the first, the second, ... step, or there is no room for the new config."""
    major, minor = block_device()
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}]
    disk = {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": MiB}]}
    change = {
        "memory": {"limit": 80 * MiB, "swap": 120 * MiB, "reservation": 16 * MiB},
        "cpu": {"quota": 30000, "shares": 2048, "cpus": "0", "idle": 0},
        "pids": {"limit": 70},
        "blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 2 * MiB}]},
        "devices": rules[:1],
    }
    with limited({**FIRST, "blockIO": disk, "devices": rules}, start=True) as container:
        own = own_cgroups(container)
        names = {"memory.", "cpu.", "cpuset.", "pids.max", "io.", "blkio.", "devices.list"}
        shown = {"usage", "stat", "current", "peak", "pressure", "failcnt", "events", "numa"}
        files = [f for d in own for f in d.iterdir() if f.name.startswith(tuple(names)) and not any(w in f.name for w in shown)]

        def look() -> dict[str, str]:
            found = {str(file): file.read_text() for file in files if os.access(file, os.R_OK) and file.stat().st_mode & 0o444}
            if not oci.Host.probe().has_controller("devices"):
                fd = os.open(directory(container, ""), os.O_RDONLY)
                found["devices"] = str(devices.attached(fd))
                os.close(fd)
            if on_v2("cpuset"):  # which is not made empty again: what is in effect counts
                found = {file: text for file, text in found.items() if not file.endswith(("cpuset.cpus", "cpuset.mems"))}
            return found

        def refused(error: type[Exception]) -> bool:
            try:
                container.update(change)
            except error:
                assert look() == before
                assert container.spec == spec
                assert set(os.listdir(limited.root / container.id)) == entries
                return True
            return False

        before, spec, entries = look(), container.spec, set(os.listdir(limited.root / container.id))
        with monkeypatch.context() as patch:
            patch.setattr(StagedFile, "write", Failing(0, errno.ENOSPC))
            assert refused(oci.StateError)
        number = 0
        with monkeypatch.context() as patch:
            patch.setattr(update, "execute_step", Failing(number, errno.EINVAL))
            while refused(oci.StepError):
                number += 1
                patch.setattr(update, "execute_step", Failing(number, errno.EINVAL))
        assert number > 6
        assert look() != before
        assert container.spec.linux.resources.pids.limit == 70  # type: ignore[union-attr]


class Failing:
    """Stands for a step that is carried out so many times, and is refused then."""

    def __init__(self, times: int, code: int) -> None:
        self.left, self.code = times, code

    def __call__(self, *given: Any, **more: Any) -> Any:
        if not self.left:
            raise OSError(self.code, os.strerror(self.code))
        self.left -= 1
        return execute_step(*given, **more)


def test_the_end_of_idle_restores_the_shares(limited: Limited) -> None:
    with limited({"cpu": {"shares": 512}}) as container:
        before = limits(container)["weight"]
        container.update(cpu_idle=1)
        assert value(container, "cpu", "cpu.idle") == "1"
        assert limits(container)["weight"] != before
        container.update(cpu_idle=0)
        assert limits(container)["weight"] == before
        container.update(cpu_idle=1, cpu_shares=2048)
        container.update(cpu_idle=0)
        assert limits(container)["weight"] == ("174" if on_v2("cpu") else "2048")


def test_no_limit_of_memory_is_none_of_swap(limited: Limited) -> None:
    """As with the peers: on v1 the one cannot be above the other."""
    with limited(FIRST) as container:
        container.update(memory=-1)
        endless = "max" if on_v2("memory") else str((1 << 63) - os.sysconf("SC_PAGESIZE"))
        assert (limits(container)["memory"], limits(container)["swap"]) == (endless, endless)
        container.update(memory=64 * MiB, memory_swap=96 * MiB)
        assert limits(container)["memory"] == str(64 * MiB)


def test_resctrl_schemas_of_a_container_without_a_group(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    with limited(FIRST) as container:
        before = limits(container)
        assert main(["--root", str(limited.root), "update", "--l3-cache-schema", "L3:0=f", "--pids-limit", "9", container.id]) == 1
        assert "$.linux.intelRdt: the container has no resctrl group" in capsys.readouterr().err
        assert limits(container) == before


def test_disks(limited: Limited) -> None:
    major, minor = block_device()
    device = {"major": major, "minor": minor}
    with limited({"blockIO": {"throttleReadBpsDevice": [{**device, "rate": MiB}]}}) as container:
        container.update({"blockIO": {"throttleWriteIOPSDevice": [{**device, "rate": 7}]}})
        container.update({"blockIO": {"throttleReadBpsDevice": [{**device, "rate": 2 * MiB}]}})
        if on_v2("io"):
            assert value(container, "io", "io.max") == f"{major}:{minor} rbps={2 * MiB} wbps=max riops=max wiops=7"
        else:
            assert value(container, "blkio", "blkio.throttle.read_bps_device") == f"{major}:{minor} {2 * MiB}"
            assert value(container, "blkio", "blkio.throttle.write_iops_device") == f"{major}:{minor} 7"


def test_devices(limited: Limited) -> None:
    """Another list of rules takes the place of the old one, in one step on v2."""
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}]
    with limited({"devices": rules}, start=True) as container:
        container.update({"devices": rules[:1]})
        if oci.Host.probe().has_controller("devices"):
            assert "c 10:229" not in value(container, "devices", "devices.list")
            assert "c 1:3 rwm" in value(container, "devices", "devices.list")
        else:
            fd = os.open(directory(container, ""), os.O_RDONLY)
            assert len(devices.attached(fd)) == 1
            os.close(fd)
        assert container.exec(["sh", "-c", ": >/dev/null"]).returncode == 0


def test_a_limit_below_what_is_in_use(limited: Limited) -> None:
    """v1 refuses it; v2 would kill, and refuses when checkBeforeUpdate asks for it."""
    hold = ["sh", "-c", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ready; sleep 100; echo $x"]
    read, write = os.pipe()
    try:
        with limited({"memory": {"limit": 200 * MiB, "swap": 200 * MiB}}, hold, start=True, stdout=write) as container:
            assert os.read(read, 6) == b"ready\n"
            before = limits(container)
            with pytest.raises(oci.StepError, match="EBUSY"):
                container.update({"memory": {"limit": 4 * MiB, "swap": 4 * MiB, "checkBeforeUpdate": True}})
            assert limits(container) == before
            assert container.status is oci.Status.RUNNING
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        ({"memroy": 1}, TypeError, "'memroy'"),
        ({"cpus": 0}, ValueError, "^cpus is 0: a number of CPUs from 0.01 on"),
        ({"cpus": float("nan")}, ValueError, "^cpus is nan:"),
        ({"cpus": "one"}, TypeError, "^cpus is 'one':"),
        ({"cpus": 1.0, "cpu_quota": 5000}, ValueError, "^cpus conflicts with cpu_quota"),
        ({"memory": "64x"}, ValueError, "^memory is '64x': a number of bytes"),
        ({"memory_swap": 1.5}, TypeError, "^memory_swap is 1.5: a number of bytes"),
        ({"memory_reservation": 0}, ValueError, "^memory_reservation is 0: a number of bytes"),
        ({"pids": 0}, ValueError, "^pids is 0: a number of tasks from 1 on, or -1"),
        ({"pids": "9"}, TypeError, "^pids is '9':"),
        ({"cpu_quota": 5}, oci.SpecError, "^cpu_quota: 5 is less than"),
        ({"cpus": 0.01, "cpu_period": 1000}, oci.SpecError, "^cpus: 10 is less than"),
        ({"cpu_shares": "many"}, oci.SpecError, "^cpu_shares: an integer expected"),
        ({"blkio_weight": 5}, oci.SpecError, "^blkio_weight: 5 is not 10 to 1000"),
        ({"cpuset_cpus": "x"}, oci.SpecError, "^cpuset_cpus: 'x' is not a list"),
        ({"l3_cache_schema": 3}, TypeError, "^l3_cache_schema is 3: a line such as L3:0=f"),
    ],
)
def test_bad_arguments(limited: Limited, limit: dict[str, Any], error: type[Exception], message: str) -> None:
    with limited(FIRST) as container:
        before = limits(container)
        with pytest.raises(error, match=message):
            container.update(**limit)
        assert limits(container) == before


def test_sizes_as_in_run(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    with limited(FIRST) as container:
        container.update(memory="80M", memory_swap="0.125GiB", memory_reservation="16m")
        now = limits(container)
        assert (now["memory"], now["swap"], now["low"]) == (str(80 * MiB), str(128 * MiB), str(16 * MiB))

        async def update() -> None:
            await aio.Container.load(container.id, state_root=limited.root).update(memory="90M")

        asyncio.run(update())
        assert limits(container)["memory"] == str(90 * MiB)
        assert main(["--root", str(limited.root), "update", "--memory", "100MiB", container.id]) == 0
        assert limits(container)["memory"] == str(100 * MiB)


def test_the_command_says_what_is_wrong(limited: Limited, capsys: pytest.CaptureFixture[str]) -> None:
    with limited(FIRST) as container:
        command = ["--root", str(limited.root), "update", container.id]
        for flags, text in (
            (["--memory", "lots"], "argument -m/--memory: the value is 'lots': a number of bytes"),
            (["--memory-swap", "0"], "argument --memory-swap: the value is '0': a number"),
            (["--cpus", "two"], "argument --cpus: the value is 'two': a number of CPUs"),
            (["--pids-limit", "0"], "argument --pids-limit: the value is 0: a number of tasks"),
            (["--resources", "/nowhere"], "/nowhere"),
            (["-r", "-", "--cpus", "1"], "exclude"),
        ):
            try:
                status = main([*command, *flags])
            except SystemExit as stop:
                status = int(stop.code or 0)
            assert status != 0
            assert text in capsys.readouterr().err


def test_a_stopped_container(limited: Limited) -> None:
    with limited(FIRST, start=True) as container:
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        with pytest.raises(oci.WrongStatus):
            container.update(pids=3)
