"""Scopes of containers for systemd: names, places and properties from a config."""

from __future__ import annotations

from typing import Any

import pytest

import ociruntime as oci
from ociruntime.plan.cgroups.limits import rules_of
from ociruntime.plan.cgroups.systemd import (
    INFINITY,
    Property,
    annotation_properties,
    device_properties,
    limit_properties,
    scope_of,
    scope_properties,
)
from ociruntime.plan.cgroups.writes import unified_writes, v2_writes
from ociruntime.spec.codec import structure
from ociruntime.spec.linux import Resources

M = 1 << 20
NAMES = {
    # cgroupsPath, for a user: unit, path below the mount point
    (None, False): ("ociruntime-c1.scope", "/system.slice/ociruntime-c1.scope"),
    ("", True): ("ociruntime-c1.scope", "/u/user.slice/ociruntime-c1.scope"),
    ("user.slice:libpod:abc", False): ("libpod-abc.scope", "/user.slice/libpod-abc.scope"),
    (":libpod:abc", False): ("libpod-abc.scope", "/system.slice/libpod-abc.scope"),
    (":libpod:abc", True): ("libpod-abc.scope", "/u/user.slice/libpod-abc.scope"),
    ("a-b-c.slice:p:n", False): ("p-n.scope", "/a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
    ("-.slice:p:n", False): ("p-n.scope", "/p-n.scope"),
    ("-.slice:p:n", True): ("p-n.scope", "/u/p-n.scope"),
    ("machine.slice::n.1", False): ("-n.1.scope", "/machine.slice/-n.1.scope"),
    ("machine.slice:cpu.x:n", False): ("cpu.x-n.scope", "/machine.slice/_cpu.x-n.scope"),
    ("machine.slice:_p:n", False): ("_p-n.scope", "/machine.slice/__p-n.scope"),
}
BAD_NAMES = [
    "/abs/path", "a:b", "a.slice:b:c:d", "noslice:p:n", ".slice:p:n", "a--b.slice:p:n", "-a.slice:p:n", "a-.slice:p:n",
    "a/b.slice:p:n", "system.slice:p:", "system.slice:p:pod.slice", "system.slice:p:a/b", "system.slice:p:a b", "system.slice:p:a@b",
    "system.slice:p:" + "n" * 300, "system.slice:p/../x:n",
]  # fmt: skip


@pytest.mark.parametrize(("path", "user"), NAMES)
def test_names(path: str | None, user: bool) -> None:
    created = scope_of(path, "c1", user=user, base="/u" if user else "/")
    assert (created.unit, created.path) == NAMES[path, user]


def test_an_id_is_escaped() -> None:
    assert scope_of(None, "a+b", user=False).unit == r"ociruntime-a\x2bb.scope"


@pytest.mark.parametrize("path", BAD_NAMES)
def test_bad_names(path: str) -> None:
    with pytest.raises(oci.SpecError, match=r"\$\.linux\.cgroupsPath"):
        scope_of(path, "c1", user=False)


LIMITS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "memory": ({"memory": {"limit": 64 * M}}, ["MemoryMax=67108864"]),
    "no memory limit": ({"memory": {"limit": -1}}, ["MemorySwapMax=infinity", "MemoryMax=infinity"]),
    "swap": ({"memory": {"limit": 64 * M, "swap": 96 * M}}, ["MemorySwapMax=33554432", "MemoryMax=67108864"]),
    "reservation": ({"memory": {"reservation": M}}, ["MemoryLow=1048576"]),
    "shares": ({"cpu": {"shares": 1024}}, ["CPUWeight=100"]),
    "idle": ({"cpu": {"shares": 1024, "idle": 1}}, ["CPUWeight=0"]),
    "not idle": ({"cpu": {"shares": 1024, "idle": 0}}, ["CPUWeight=100"]),
    "quota": ({"cpu": {"quota": 50000, "period": 200000}}, ["CPUQuotaPeriodUSec=200000", "CPUQuotaPerSecUSec=250000"]),
    "odd quota": ({"cpu": {"quota": 33333}}, ["CPUQuotaPeriodUSec=100000", "CPUQuotaPerSecUSec=340000"]),
    "no quota": ({"cpu": {"quota": -1, "period": 50000}}, ["CPUQuotaPeriodUSec=50000", "CPUQuotaPerSecUSec=infinity"]),
    "sets": ({"cpu": {"cpus": "0-2,9", "mems": "0"}}, ["AllowedCPUs=0,1,2,9", "AllowedMemoryNodes=0"]),
    "pids": ({"pids": {"limit": 33}}, ["TasksMax=33"]),
    "no pids limit": ({"pids": {"limit": -1}}, ["TasksMax=infinity"]),
    "no pids at all": ({"pids": {"limit": 0}}, ["TasksMax=1"]),
    "weight": ({"blockIO": {"weight": 1000}}, ["IOWeight=10000"]),
    "weight of one disk": ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10}]}}, []),
    "huge pages": ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, []),
    "unified": (
        {"unified": {"memory.high": "1M", "memory.min": "4096", "cpu.max": "max", "cpuset.cpus": "1", "io.weight": "default 50"}},
        [
            "MemoryHigh=1048576",
            "MemoryMin=4096",
            "CPUQuotaPeriodUSec=100000",
            "CPUQuotaPerSecUSec=infinity",
            "AllowedCPUs=1",
            "IOWeight=50",
        ],
    ),
    "unified wins": ({"memory": {"limit": M}, "unified": {"memory.max": "2M"}}, ["MemoryMax=2097152"]),
}


def resources(document: dict[str, Any]) -> Resources:
    return structure(Resources, document, "test")


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    document, expected = LIMITS[name]
    requested = resources(document)
    assert [str(entry) for entry in limit_properties((*v2_writes(requested), *unified_writes(requested)))] == expected


def test_masks_start_with_the_lowest_byte() -> None:
    assert limit_properties(v2_writes(resources({"cpu": {"cpus": "0,9"}}))) == (Property("AllowedCPUs", "ay", (1, 2)),)


def test_unlimited_is_infinity() -> None:
    assert limit_properties(v2_writes(resources({"pids": {"limit": -1}}))) == (Property("TasksMax", "t", INFINITY),)


@pytest.mark.parametrize(
    "unified", [{"memory.max": "much"}, {"cpu.max": "a b"}, {"cpuset.cpus": "3-1"}, {"cpu.max": "1 0"}, {"memory.max": "-1"}]
)
def test_bad_values(unified: dict[str, str]) -> None:
    [key] = unified
    with pytest.raises(oci.SpecError, match=rf"\$\.linux\.resources\.unified\['{key}'\]"):
        limit_properties(unified_writes(resources({"unified": unified})))


def rule(allow: bool, **more: Any) -> dict[str, Any]:
    return {"allow": allow, **more}


DENY = rule(False, access="rwm")
DEVICES: dict[str, tuple[list[dict[str, Any]], list[str] | None]] = {
    "none": ([], None),
    "deny all": ([DENY], []),
    "a device": ([DENY, rule(True, type="c", major=10, minor=229, access="rw")], ["/dev/char/10:229 rw"]),
    "a major": ([DENY, rule(True, type="b", major=8, access="r")], ["block-8 r"]),
    "a minor": ([DENY, rule(True, type="c", minor=8, access="r")], ["char-* r"]),
    "both types": ([DENY, rule(True, major=7, minor=1, access="m")], ["/dev/char/7:1 m", "/dev/block/7:1 m"]),
    "what a later rule takes back stays": (
        [DENY, rule(True, type="b", major=8, access="rw"), rule(False, type="b", major=8, minor=1, access="w")], ["block-8 rw"]),
    "only the last rule for everything counts": ([rule(True, access="rwm"), DENY], []),
    "allow all": ([DENY, rule(True, access="rwm")], None),
    "denials only": ([rule(False, type="b", major=8, access="w")], None),
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_devices(name: str) -> None:
    rules, expected = DEVICES[name]
    assert allowed(rules) == (None if expected is None else [*expected, *DEFAULT])


def allowed(rules: list[dict[str, Any]]) -> list[str] | None:
    created = device_properties(rules_of(resources({"devices": rules}).devices or ()))
    if not created:
        return None
    policy, entries = created
    assert policy == Property("DevicePolicy", "s", "strict")
    assert (entries.name, entries.signature) == ("DeviceAllow", "a(ss)")
    assert isinstance(entries.value, tuple)
    return [" ".join(map(str, entry)) for entry in entries.value if isinstance(entry, tuple)]


DEFAULT = [
    "char-* m", "block-* m", "/dev/char/1:3 rwm", "/dev/char/1:5 rwm", "/dev/char/1:7 rwm", "/dev/char/1:8 rwm", "/dev/char/1:9 rwm",
    "/dev/char/5:0 rwm", "/dev/char/5:1 rwm", "/dev/char/5:2 rwm", "char-136 rwm",
]  # fmt: skip


ANNOTATIONS = {
    ("TimeoutStopUSec", "uint64 123"): Property("TimeoutStopUSec", "t", 123),
    ("TimeoutStopSec", "1.5"): Property("TimeoutStopUSec", "t", 1500000),
    ("TimeoutStopSec", "uint64 3"): Property("TimeoutStopUSec", "t", 3000000),
    ("CollectMode", "'inactive-or-failed'"): Property("CollectMode", "s", "inactive-or-failed"),
    ("After", "['a.service', 'b.service']"): Property("After", "as", ("a.service", "b.service")),
    ("SendSIGHUP", "true"): Property("SendSIGHUP", "b", True),
}


@pytest.mark.parametrize(("name", "text"), ANNOTATIONS)
def test_annotations(name: str, text: str) -> None:
    assert annotation_properties({f"org.systemd.property.{name}": text, "other": "x"}) == (ANNOTATIONS[name, text],)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "true"), ("Ab", "true"), ("after", "true"), ("A.B", "true"), ("After", "nonsense"), ("After", "a.service"), ("XSec", "'5'"),
        ("XSec", "true"), ("XSec", "-1"), ("PIDs", "[uint32 1]"), ("Slice", "'a.slice'"), ("Delegate", "false"),
    ],
)  # fmt: skip
def test_bad_annotations(name: str, text: str) -> None:
    with pytest.raises(oci.SpecError, match=r"annotations\['org\.systemd\.property\."):
        annotation_properties({f"org.systemd.property.{name}": text})


def test_all_properties() -> None:
    expected = resources({"pids": {"limit": 5}})
    note = {"org.systemd.property.TasksMax": "uint64 9", "org.systemd.property.Description": "'mine'"}
    created = scope_properties(
        scope_of("a.slice:b:c", "c1", user=False), limit_properties(v2_writes(expected)), note, container_id="c1"
    )
    assert [str(entry) for entry in created] == [
        "Slice=a.slice", "Delegate=yes", "DefaultDependencies=no", "CPUAccounting=yes", "MemoryAccounting=yes", "IOAccounting=yes",
        "TasksAccounting=yes", "TasksMax=9", "Description=mine",
    ]  # fmt: skip
