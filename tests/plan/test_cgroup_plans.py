"""Plans for cgroups, besides the golden ones: delegation and device rules."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from ociruntime.errors import UnsupportedError
from ociruntime.host import Hierarchy, Host
from ociruntime.plan import Plan
from ociruntime.plan.cgroups import compile_update, existing_placement, member_names
from ociruntime.spec import Linux, Resources

from ..support.plans import FS, HYBRID, PURE_V2, Change, both, compiled, config, drop, joined, limit, linux, mapped, process


def delegated(**members: object) -> Change:
    """Return a config with a writable cgroup filesystem in a cgroup namespace, for user 7 of the host."""

    def change(d: dict[str, Any]) -> None:
        d["linux"]["namespaces"].append({"type": "cgroup"})
        d["process"]["user"] = {"uid": 7, "gid": 7}
        d["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", **members})

    return change


@pytest.mark.parametrize(
    ("host", "change", "owner"),
    [
        (PURE_V2, delegated(), 7),
        (PURE_V2, delegated(type="cgroup2", options=["rw", "nosuid"]), 7),
        (PURE_V2, both(delegated(), mapped([(7, 100, 1), (0, 200, 1)], [(7, 100, 1), (0, 200, 1)])), 100),
        (PURE_V2, delegated(options=["nosuid", "ro"]), None),
        (PURE_V2, delegated(destination="/cgroup"), None),
        (PURE_V2, delegated(source="none"), None),
        (PURE_V2, lambda d: (delegated()(d), drop("cgroup")(d)), None),
        (PURE_V2, lambda d: (delegated()(d), d["linux"]["namespaces"][-1].update(path="/x")), None),
        (PURE_V2, lambda d: (delegated()(d), process(user={"uid": 0, "gid": 0})(d)), None),
        (PURE_V2, both(delegated(), mapped([], []), joined("user")), None),
        (attrs.evolve(PURE_V2, capabilities=0), delegated(), None),
        (HYBRID, delegated(), None),
    ],
)
def test_owner_of_the_cgroup(host: Host, change: Change, owner: int | None) -> None:
    steps = [step for step in compiled(config(both(change, linux(resources={}))), host).steps if step.op == "cgroup_delegate"]
    assert [step.values for step in steps] == ([] if owner is None else [(f"{FS}/ociruntime-c1", owner)])


@pytest.mark.parametrize(
    ("change", "rules", "update"),
    [
        ({}, "cgroup_devices", True),
        ({"euid": 1000, "capabilities": 1 << 21}, "cgroup_devices", True),
        ({"euid": 1000, "capabilities": 1 << 39 | 1 << 12}, "cgroup_devices", True),
        ({"capabilities": 1 << 39}, None, False),
        ({"initial": False}, None, False),
        ({"capabilities": 0}, None, False),
        ({"hierarchies": (Hierarchy(f"{FS}/devices", 1, frozenset({"devices"})),)}, "cgroup_write_lines", True),
        ({"hierarchies": (Hierarchy(f"{FS}/devices", 1, frozenset({"devices"})),), "capabilities": 1 << 39 | 1 << 12}, None, False),
        ({"hierarchies": (Hierarchy(f"{FS}/pids", 1, frozenset({"pids"})),)}, None, False),
        ({"hierarchies": ()}, None, False),
    ],
)
def test_device_rules_without_privileges(change: dict[str, Any], rules: str | None, update: bool) -> None:
    """Without the privilege a container starts with a warning, and an update is refused."""
    host = attrs.evolve(PURE_V2, **change)
    denied: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    plan = compiled(config(limit(**denied)), host)
    assert {step.op for step in plan.steps if step.op in ("cgroup_devices", "cgroup_write_lines")} == ({rules} if rules else set())
    assert bool(rules) is not any("resources.devices" in warning for warning in plan.warnings)
    linux_with = Linux(resources=Resources.load(denied))
    where = existing_placement([f"{h.mountpoint}/c1" for h in host.hierarchies], host)
    if update:
        assert rules in [step.op for step in compile_update(linux_with, member_names(denied), where, host).steps]
    else:
        with pytest.raises(UnsupportedError, match=r"\$\.linux\.resources\.devices: device rules need"):
            compile_update(linux_with, member_names(denied), where, host)
    assert not any("devices" in warning for warning in compiled(config(limit(**denied)), host, manager="disabled").warnings)


@pytest.mark.parametrize(
    ("host", "steps"),
    [
        (HYBRID, [("cgroup_write_first", f"{FS}/pids/ociruntime-c1", (("pids.max", "9"),), True, "pids.limit")]),
        (
            PURE_V2,
            [
                ("cgroup_enable", f"{FS}/ociruntime-c1", FS, (), ("cpu", "io", "memory", "pids")),
                ("cgroup_write_first", f"{FS}/ociruntime-c1", (("pids.max", "9"),), True, "pids.limit"),
            ],
        ),
        (attrs.evolve(PURE_V2, hierarchies=(Hierarchy(FS, 2, frozenset({"cpu"})),)), [("cgroup_enable", f"{FS}/ociruntime-c1", FS, (), ("cpu",))]),
        (attrs.evolve(PURE_V2, hierarchies=()), []),
    ],
    ids=["v1", "v2", "no controller", "no cgroups"],
)  # fmt: skip
def test_a_limit_of_processes_that_may_be_left_out(host: Host, steps: list[tuple[object, ...]]) -> None:
    def names(plan: Plan) -> list[tuple[object, ...]]:
        return [
            (step.op, *step.values) for step in plan.steps if step.op in ("cgroup_enable", "cgroup_write_first", "cgroup_write")
        ]

    change = limit(pids={"limit": 9})
    omissible = both(change, lambda d: d.update(annotations={"org.ociruntime.pids-limit": "if possible"}))
    assert names(compiled(config(omissible), host)) == steps
    if host in (HYBRID, PURE_V2):
        assert "cgroup_write" in {name for name, *_ in names(compiled(config(change), host))}
    else:
        with pytest.raises(UnsupportedError, match=r"pids\.limit: "):
            compiled(config(change), host)


def test_a_cpuset_of_the_config_is_not_copied_from_the_parent() -> None:
    cpu = config(both(limit(cpu={"cpus": "0-1"}), drop("cgroup")))
    steps = [step.arguments() for step in compiled(cpu, HYBRID).steps if step.op == "cgroup_mkdir"]
    assert [(step["cpuset"], step["given"]) for step in steps if step["cpuset"]] == [(True, ("cpuset.cpus",))]
    assert all(step["given"] == () for step in steps if not step["cpuset"])
