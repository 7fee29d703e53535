"""The BPF program of device rules on a v2 cgroup, wherever a v2 hierarchy is mounted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ociruntime.engine.cgroup import devices
from ociruntime.engine.cgroup.devices import Rollback
from ociruntime.plan import Side, Step
from ociruntime.plan.cgroups.limits import MKNOD, READ, WRITE, DeviceRule, compile_program

from ..support.cgroups import V2

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.skipif(V2 is None, reason="no v2 hierarchy")]
ALL = READ | WRITE | MKNOD
DENY = DeviceRule(False, "a", None, None, ALL)
USE = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for name, flags in (("null", os.O_RDONLY), ("null", os.O_WRONLY), ("null", os.O_RDWR), ("zero", os.O_RDONLY), ("full", os.O_RDONLY)):
    try:
        os.close(os.open("/dev/" + name, flags))
        print(name, flags)
    except PermissionError:
        pass
"""


@pytest.fixture
def cgroup(prefix: str) -> Iterator[Path]:
    assert V2 is not None
    path = Path(V2.mountpoint, prefix)
    path.mkdir()
    yield path
    path.rmdir()


def ids(path: Path) -> list[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return devices.attached(fd)
    finally:
        os.close(fd)


def test_rules_in_force_and_replaced(cgroup: Path, script: Callable[..., object]) -> None:
    def usable() -> list[str]:
        return script(USE, cgroup).stdout.splitlines()  # type: ignore[attr-defined, no-any-return]

    assert len(usable()) == 5
    devices.attach(str(cgroup), compile_program([DENY, DeviceRule(True, "c", 1, 3, READ), DeviceRule(True, "c", 1, 5, ALL)]))
    assert usable() == ["null 0", "zero 0"]
    before = ids(cgroup)
    devices.attach(str(cgroup), compile_program([DENY, DeviceRule(True, "c", 1, None, ALL), DeviceRule(False, "c", 1, 3, WRITE)]))
    after = ids(cgroup)
    assert len(before) == len(after) == 1
    assert before != after
    assert usable() == ["null 0", "zero 0", "full 0"]
    devices.attach(str(cgroup), compile_program([]))
    assert len(usable()) == 5


@pytest.mark.parametrize(
    "rules",
    [[], [DENY], [DeviceRule(True, "a", None, None, ALL)], [DENY, DeviceRule(True, "a", None, None, READ)],
     [DeviceRule(bool(n % 2), "abc"[n % 3], n % 7 or None, n % 5 or None, n % 8) for n in range(300)],
     [DeviceRule(False, "c", 1 << 31, (1 << 40), ALL)]],
)  # fmt: skip
def test_the_verifier_takes_every_program(rules: list[DeviceRule]) -> None:
    os.close(devices.load(compile_program(rules)))


def test_what_the_verifier_refuses_is_an_error(cgroup: Path) -> None:
    with pytest.raises(OSError, match=r"Permission denied|Invalid argument"):
        devices.attach(str(cgroup), compile_program([])[:-8])
    assert ids(cgroup) == []


def test_a_program_of_others_stays(cgroup: Path) -> None:
    name, devices.NAME = devices.NAME, b"other"  # type: ignore[misc]
    try:
        devices.attach(str(cgroup), compile_program([DENY]))
    finally:
        devices.NAME = name  # type: ignore[misc]
    devices.attach(str(cgroup), compile_program([]))
    devices.attach(str(cgroup), compile_program([]))
    assert len(ids(cgroup)) == 2


def test_a_program_taken_back(cgroup: Path, script: Callable[..., object]) -> None:
    """What a change that fails half way leaves: the old program, or none."""
    step = Step(Side.HOST, "cgroup_devices", (str(cgroup), compile_program([DENY])), "", "")
    before: list[int] = []
    for count in (0, 1):
        rollback = Rollback()
        rollback.record(step)
        devices.attach(str(cgroup), compile_program([DENY]))
        assert ids(cgroup) != before
        assert rollback.restore() == []
        rollback.close()
        assert ids(cgroup) == before
        assert len(before) == count
        devices.attach(str(cgroup), compile_program([]))
        before = ids(cgroup)
