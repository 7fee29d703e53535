"""resctrl: the steps of plans, and their execution on a directory that stands in for the filesystem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime.engine.cgroup.devices import Rollback
from ociruntime.engine.host_steps import execute_step
from ociruntime.engine.undo import remove_group
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.host import Host
from ociruntime.plan import Side, Step, compile_create
from ociruntime.plan.cgroups import compile_update, existing_placement
from ociruntime.spec import IntelRdt, Linux, RuntimeSpec

HOST = Host((6, 18), "x86_64", 0, 40, (), resctrl="/sys/fs/resctrl")


def steps(host: Host = HOST, **members: Any) -> list[tuple[str, tuple[object, ...]]]:
    document = RuntimeSpec.default().to_dict()
    document["linux"] |= {"intelRdt": members, "resources": {}}  # type: ignore[operator]
    plan = compile_create(RuntimeSpec.load(document), host, bundle="/b", container_id="c1")
    return [(step.op, step.values) for step in plan.steps if step.op.startswith("rdt")]


def execute(op: str, *values: object) -> None:
    execute_step(Step(Side.HOST, op, values, "", ""), None)


def test_a_group_of_its_own_without_closid() -> None:
    group = "/sys/fs/resctrl/c1"
    assert steps(memBwSchema="MB:0=20", l3CacheSchema="L3:0=f", schemata=["L2:0=1"], enableMonitoring=True) == [
        ("rdt_make", (group,)),
        ("rdt_schemata", (group, ("L3:0=f", "MB:0=20", "L2:0=1"))),
        ("rdt_make", (f"{group}/mon_groups/c1",)),
        ("rdt_join", (group,)),
        ("rdt_join", (f"{group}/mon_groups/c1",)),
    ]
    assert [op for op, _ in steps()] == ["rdt_make", "rdt_join"]


def test_a_class_of_service_is_shared() -> None:
    assert steps(closID="gold", l3CacheSchema="L3:0=f") == [
        ("rdt_class", ("/sys/fs/resctrl/gold", ("L3:0=f",))),
        ("rdt_join", ("/sys/fs/resctrl/gold",)),
    ]
    assert steps(closID="/") == [("rdt_class", ("/sys/fs/resctrl", ())), ("rdt_join", ("/sys/fs/resctrl",))]


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ({"closID": "../x"}, "closID"),
        ({"closID": "a/b"}, "closID"),
        ({"closID": ".."}, "closID"),
        ({"closID": "info"}, "closID"),
        ({"closID": ""}, "closID"),
        ({"memBwSchema": "L3:0=f"}, "memBwSchema"),
        ({"l3CacheSchema": "L3:0=f\nMB:0=1"}, "l3CacheSchema"),
        ({"schemata": ["a", "b\n"]}, r"schemata\[1\]"),
    ],
)
def test_invalid_members(members: dict[str, Any], place: str) -> None:
    with pytest.raises(SpecError, match=rf"\$\.linux\.intelRdt\.{place}"):
        steps(**members)


def test_a_host_without_resctrl() -> None:
    with pytest.raises(UnsupportedError, match=r"\$\.linux\.intelRdt.*resctrl"):
        steps(attrs.evolve(HOST, resctrl=""))


def test_a_class_that_exists_must_match(tmp_path: Path) -> None:
    group = tmp_path / "gold"
    with pytest.raises(FileNotFoundError):
        execute("rdt_class", str(group), ())
    group.mkdir()
    (group / "schemata").write_text("    L3:0=00f;1=0ff\n    MB:0=100\n")
    execute("rdt_class", str(group), ("L3:1=ff;0=f", "MB:0=100"))
    execute("rdt_class", str(group), ())
    for other in ("L3:0=e", "L2:0=f", "L3:2=f"):
        with pytest.raises(FileExistsError, match="differs"):
            execute("rdt_class", str(group), (other,))


def test_a_class_that_cannot_be_written_is_removed(tmp_path: Path) -> None:
    group = tmp_path / "gold"
    with pytest.raises(FileNotFoundError):  # an ordinary directory gets no schemata file by itself
        execute("rdt_class", str(group), ("L3:0=f",))
    assert not group.exists()


def test_a_group_is_removed_once(tmp_path: Path) -> None:
    group = str(tmp_path / "c1")
    execute("rdt_make", group)
    with pytest.raises(FileExistsError):
        execute("rdt_make", group)
    remove_group(group)
    remove_group(group)
    assert not (tmp_path / "c1").exists()


@pytest.mark.parametrize(
    ("schemas", "lines"),
    [((), None), (("mem_bw_schema",), ("MB:0=20",)), (("mem_bw_schema", "l3_cache_schema"), ("L3:0=f", "MB:0=20"))],
)
def test_changed_schemas(schemas: tuple[str, ...], lines: tuple[str, ...] | None) -> None:
    linux = Linux(intel_rdt=IntelRdt(l3_cache_schema="L3:0=f", mem_bw_schema="MB:0=20", schemata=("L2:0=1",)))
    plan = compile_update(linux, frozenset(), existing_placement((), HOST), HOST, "c1", schemas=schemas)
    assert [step.values for step in plan.steps] == ([] if lines is None else [("/sys/fs/resctrl/c1", lines)])
    if schemas:
        with pytest.raises(UnsupportedError, match="no resctrl"):
            compile_update(linux, frozenset(), existing_placement((), HOST), attrs.evolve(HOST, resctrl=""), "c1", schemas=schemas)


def test_changed_schemas_are_rolled_back(tmp_path: Path) -> None:
    (tmp_path / "schemata").write_text("    MB:0= 70;1=100\n    L3:0=ff;1=ff\n")
    rollback = Rollback()
    rollback.record(Step(Side.HOST, "rdt_schemata", (str(tmp_path), ("MB:0=20",)), "", ""))
    execute("rdt_schemata", str(tmp_path), ("MB:0=20",))
    assert rollback.restore() == []
    assert (tmp_path / "schemata").read_text().startswith("MB:0=70;1=100\n")
