"""Plans as text against golden files, purity, and the errors of configs that are not supported.

OCIRUNTIME_UPDATE_GOLDEN=1 rewrites the golden files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import attrs
import pytest

from ociruntime.engine.execution import Execution
from ociruntime.errors import SpecError, UnsupportedError
from ociruntime.host import Host, Systemd
from ociruntime.plan import Plan, compile_create, compile_exec
from ociruntime.plan.cgroups import changed_members, compile_update, existing_placement, member_names
from ociruntime.plan.compile import LAYER, Template, is_usable
from ociruntime.plan.ops import OPS
from ociruntime.plan.rootfs import ImageMount, Overlay, Tmpfs
from ociruntime.spec import Linux, Resources, RuntimeSpec

from ..support.fixture_types import Script
from ..support.plans import (
    BOOTED,
    FS,
    HYBRID,
    NEW,
    NONE,
    NOWHERE,
    PURE_V2,
    USER,
    USER_V2,
    Change,
    both,
    compiled,
    config,
    drop,
    hooked,
    joined,
    limit,
    linux,
    mapped,
    mount,
    process,
    process_of,
)

GOLDEN = Path(__file__).parent / "golden"
LIMITS: dict[str, Any] = {
    "memory": {"limit": 67108864, "swap": 100663296},
    "pids": {"limit": 50},
    "cpu": {"shares": 1024, "quota": 5000},
}


def changed(host: Host, **more: Any) -> Plan:
    """Return the plan of an update of some limits of a container that has others too."""
    change = Resources.load(
        {"memory": {"limit": 8 << 20}, "cpu": {"period": 50000}, "devices": [{"allow": False, "access": "rwm"}]}
    )
    given = changed_members(change)
    before = Resources.load({**LIMITS, "memory": {"limit": 9 << 20, "swap": 99 << 20}})
    directories = [f"{hierarchy.mountpoint}/c1" for hierarchy in host.hierarchies]
    return compile_update(
        Linux(resources=before.merge(given)), member_names(given), existing_placement(directories, host), host, "c1", **more
    )


def limited() -> RuntimeSpec:
    return config(lambda d: d["linux"].update(resources=LIMITS, cgroupsPath="a/b"))


SQUASHFS = ImageMount("squashfs at 36864 of /image.sif")
LABELS = attrs.evolve(PURE_V2, lsms=frozenset({"apparmor", "selinux"}), capabilities=0x1FF, resctrl="/sys/fs/resctrl")


def everything_of_the_process(d: dict[str, Any]) -> None:
    d["process"] |= {
        "args": ["top"],
        "user": {"uid": 1, "gid": 2, "umask": 0o27, "additionalGids": [3]},
        "apparmorProfile": "profile",
        "selinuxLabel": "label",
        "oomScoreAdj": -5,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "runtime": 1024,
            "deadline": 1025,
            "period": 1026,
            "flags": ["SCHED_FLAG_RECLAIM"],
        },
        "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 7},
        "execCPUAffinity": {"initial": "0", "final": "0-3,7"},
        "noNewPrivileges": False,
        "capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_ADMIN"], "ambient": ["CAP_KILL"], "permitted": ["CAP_KILL", "CAP_NEW"]},
    }
    d["linux"] |= {
        "netDevices": {"eth1": {"name": "eth%d"}, "eth2": {}},
        "intelRdt": {"schemata": ["L3:0=f"], "enableMonitoring": True},
        "personality": {"domain": "LINUX32"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]},
        "resources": {},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/run/agent.sock",
            "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}],
        },
    }


ONE, WIDE = [(0, 1000, 1)], [(0, 1000, 1), (1, 100000, 65536)]


def user(uid: int) -> Change:
    return lambda d: d["process"].update(user={"uid": uid, "gid": uid})


def devices(d: dict[str, Any]) -> None:
    d["linux"]["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 10, "gid": 11, "fileMode": 0o157},
        {"path": "/srv/disk", "type": "b", "major": 8, "minor": 0},
        {"path": "/dev/pipe", "type": "p", "uid": 1, "gid": 1},
    ]


CASES = {
    "no-mount-namespace": lambda: compiled(config(drop("mount")), NEW),
    "joined-mount": lambda: compiled(config(both(hooked("createContainer"), joined("mount"))), NEW),
    "exec-no-mount-namespace": lambda: compile_exec(
        process_of(config()), config(drop("mount")), NONE, namespaces=0x6C000000, cgroups=(), container_id="c1", pid=42
    ),
    "hooks": lambda: compiled(
        config(hooked("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")), NONE
    ),
    "hooks-of-start": lambda: compiled(config(hooked("startContainer", "poststart")), NONE),
    "no-process": lambda: compiled(config(lambda d: d.pop("process")), NONE),
    "user": lambda: compiled(config(both(mapped([(0, 100000, 65536)], [(0, 100000, 65536)]), joined("network")))),
    "user-default": lambda: compiled(config(mapped([], []))),
    "user-default-ranges": lambda: compiled(
        config(both(mapped([], WIDE), user(1000))), attrs.evolve(HYBRID, subuids=((7000, 100), (8000, 2000)))
    ),
    "user-devices": lambda: compiled(config(both(mapped(WIDE, WIDE), devices)), NEW),
    "user-devices-old": lambda: compiled(config(both(mapped(WIDE, WIDE), devices)), NONE),
    "devices-without-mknod": lambda: compiled(config(devices), attrs.evolve(NONE, may_mknod=False, may_setgroups=False)),
    "rootless": lambda: compiled(config(mapped(ONE, ONE)), USER),
    "rootless-default": lambda: compiled(config(mapped([], [])), USER),
    "rootless-default-one": lambda: compiled(config(both(mapped([], []), user(5))), attrs.evolve(USER, idmap_helpers=None)),
    "rootless-score": lambda: compiled(config(both(mapped(ONE, ONE), process(oomScoreAdj=500))), USER),
    "rootless-helpers": lambda: compiled(config(mapped(WIDE, WIDE)), USER),
    "rootless-image": lambda: compiled(config(mapped(ONE, ONE)), USER, overlay=Overlay(("/image:1",), "/bundle/overlay/c1")),
    "rootless-image-layers": lambda: compiled(
        config(mapped(ONE, ONE)),
        USER,
        overlay=Overlay(tuple(f"/bundle/layers/{n}" for n in range(20, -1, -1)), "/bundle/overlay/c1"),
    ),
    "image": lambda: compiled(config(), PURE_V2, overlay=Overlay((SQUASHFS,), "/tmp/ociruntime-1")),
    "image-tmpfs": lambda: compiled(config(), PURE_V2, overlay=Overlay((SQUASHFS, "/lower"), Tmpfs(64 << 20))),
    "image-user": lambda: compiled(config(mapped(WIDE, WIDE)), PURE_V2, overlay=Overlay((SQUASHFS,), "/tmp/ociruntime-1")),
    "joined": lambda: compiled(config(both(mapped([], []), joined("user", "pid", "network"))), PURE_V2),
    "joined-rootless": lambda: compiled(config(both(mapped([], []), joined("pid", "user", "network"))), USER),
    "time-and-cgroup": lambda: compiled(
        config(
            linux(
                namespaces=[{"type": kind} for kind in ("mount", "time", "cgroup", "uts")],
                timeOffsets={"monotonic": {"secs": -5}, "boottime": {"secs": 7, "nanosecs": 9}},
            )
        ),
        NONE,
    ),
    "hybrid": lambda: compiled(config()),
    "hybrid-run": lambda: compiled(config(), gate=False),
    "empty-process": lambda: compiled(config(), PURE_V2, empty=True),
    "terminal": lambda: compiled(
        config(lambda d: d["process"].update(terminal=True, consoleSize={"height": 24, "width": 80})), NONE
    ),
    "die-with-parent": lambda: compiled(config(), PURE_V2, die_with_parent=True),
    "none": lambda: compiled(config(), NONE),
    "v2-devices": lambda: compiled(config(limit(devices=[{"allow": False, "access": "rwm"}], pids={"limit": 0})), PURE_V2),
    "v2-delegated": lambda: compiled(
        config(
            both(
                mapped([(0, 100000, 65536)], [(0, 100000, 65536)]),
                lambda d: [
                    d["linux"]["namespaces"].append({"type": "cgroup"}),
                    d["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}),
                    d["process"].update(user={"uid": 5, "gid": 5}),
                ],
            )
        ),
        PURE_V2,
    ),
    "systemd": lambda: compiled(
        config(limit(pids={"limit": 5}, hugepageLimits=[], cpu={"quota": 1234}, devices=[{"allow": False, "access": "rwm"}])),
        BOOTED,
        manager="systemd",
    ),
    "systemd-user": lambda: compiled(
        config(lambda d: d["linux"].update(cgroupsPath="a-b.slice:pre:name", resources={"cpu": {"cpus": "0-1"}})),
        attrs.evolve(USER_V2, systemd=Systemd(True, attrs.evolve(PURE_V2.hierarchies[0], base="/u"))),
        manager="systemd",
    ),
    "systemd-v1": lambda: compiled(
        config(limit(**LIMITS, devices=[{"allow": False, "access": "rwm"}])),
        attrs.evolve(HYBRID, hierarchies=HYBRID.hierarchies[:-1], systemd=Systemd(False, HYBRID.hierarchies[-2])),
        manager="systemd",
    ),
    "systemd-hybrid": lambda: compiled(
        config(limit(**LIMITS)), attrs.evolve(HYBRID, systemd=Systemd(False, HYBRID.hierarchies[-1])), manager="systemd"
    ),
    "update-hybrid": lambda: changed(HYBRID),
    "update-systemd": lambda: changed(PURE_V2, unit=("c1.scope", False, "/sys/fs/cgroup/c1")),
    "user-v2": lambda: compiled(config(limit(memory={"limit": 9 << 20, "checkBeforeUpdate": True})), USER_V2),
    "v2-limits": lambda: compiled(limited(), PURE_V2),
    "hybrid-limits": lambda: compiled(limited()),
    "exec-v2": lambda: compile_exec(
        process_of(config()), config(), PURE_V2, namespaces=0x6C020000, cgroups=(f"{FS}/ociruntime-c1",), container_id="c1"
    ),
}
CASES |= {
    "process": lambda: compiled(config(everything_of_the_process), LABELS),
    "exec-process": lambda: compile_exec(
        process_of(config(everything_of_the_process)), config(everything_of_the_process), LABELS,
        namespaces=0x6C020000, cgroups=(f"{FS}/ociruntime-c1",), container_id="c1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_explain_is_golden(name: str) -> None:
    text = CASES[name]().explain()
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("OCIRUNTIME_UPDATE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_a_value(name: str) -> None:
    plan = CASES[name]()
    assert plan == CASES[name]()
    assert str(plan) == plan.explain()
    document = json.loads(plan.to_json())
    assert [step["step"] for step in document["steps"]] == list(range(1, len(plan.steps) + 1))
    for number, step in plan.init_steps():
        assert len(step.values) == len(OPS[step.op].fields), (number, step)


@pytest.mark.parametrize("host", [HYBRID, PURE_V2, NONE])
@pytest.mark.parametrize("path", [None, "a/b", "/x/idX/c1"])
@pytest.mark.parametrize("gate", [True, False])
def test_a_template_gives_compiled_plans(host: Host, path: str | None, gate: bool) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"] |= {"cgroupsPath": path} if path else {}
        d["linux"]["resources"] = LIMITS if host is not NONE else {}
        if host is not NONE:  # its steps have the paths of cgroups, and so the id
            d["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]})

    spec = config(change)
    template = Template(spec, host, bundle="/bundle", gate=gate, manager="cgroupfs", die_with_parent=gate)
    for name in ("c1", "a", "x-1_2+3.4", "oci" * 100, "run-0123456789abcdef", "run-fedcba9876543210"):
        expected = compile_create(spec, host, bundle="/bundle", container_id=name, gate=gate, die_with_parent=gate)
        assert template.plan(name) == expected
        assert Execution(template.plan(name), stdio=())._program(9) == Execution(expected, stdio=())._program(9)
    assert not is_usable(spec, "systemd")
    assert not is_usable(config(lambda d: d["linux"].update(intelRdt={})), "cgroupfs")


@pytest.mark.parametrize("name", ["c1", "run-0123456789abcdef", "run-fedcba9876543210", "oci" * 100])
def test_a_template_inserts_the_upper_layer(name: str) -> None:
    spec, layer = config(), "ociruntime-0123456789abcdef"
    lowers = ("/bundle/layers/1", "/bundle/layers/0")
    arguments: dict[str, Any] = {"bundle": "/bundle", "gate": False, "die_with_parent": True}
    template = Template(spec, USER, manager="cgroupfs", overlay=Overlay(lowers, f"/upper/{LAYER}"), **arguments)
    expected = compile_create(spec, USER, container_id=name, overlay=Overlay(lowers, f"/upper/{layer}"), **arguments)
    plan = template.plan(name, layer)
    assert plan == expected
    encoded, compared = (Execution(plan, stdio=())._program(9) for plan in (plan, expected))
    assert encoded == compared
    assert layer.encode() in encoded


def test_threads_share_a_template() -> None:
    """Another thread may use the template for an id of another length at any moment."""

    class Id(str):
        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            template.plan("x" * 50)
            return super().encode(encoding, errors)

    spec = config(lambda d: d["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}))
    template = Template(spec, HYBRID, bundle="/bundle", gate=True, manager="cgroupfs", die_with_parent=False)
    template.plan("a" * 20)
    plan = template.plan(Id("b" * 20))
    expected = compile_create(spec, HYBRID, bundle="/bundle", container_id="b" * 20, gate=True, die_with_parent=False)
    assert Execution(plan, stdio=())._program(9) == Execution(expected, stdio=())._program(9)


LOAD = """
import os, sys, types
tests = types.ModuleType("tests")  # an installed package may have this name
tests.__path__ = ["tests"]
sys.modules["tests"] = tests
from tests.plan import test_golden
"""
PURE = """
for make in test_golden.CASES.values(): make().explain()   # imports happen here
seen = []
watch = False
def hook(event, arguments):
    if watch: seen.append((event, arguments))
sys.addaudithook(hook)
watch = True
for make in test_golden.CASES.values(): make().explain()
open("/dev/null").close()
watch = False
names = [event for event, _ in seen if not event.startswith(("object.", "sys._getframe"))]
assert names == ["open"], seen   # our own, which shows that the hook hears
"""


def test_compiling_does_nothing(script: Script) -> None:
    script(LOAD + PURE)


def test_compiling_needs_no_root(script: Script) -> None:
    script(LOAD +
           "for m in test_golden.CASES.values(): m()\n"
           "if os.geteuid() == 0: os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
           "for m in test_golden.CASES.values(): m()\nassert os.geteuid() != 0")  # fmt: skip


BAD = {
    "hook path relative": (
        lambda d: d.update(hooks={"prestart": [{"path": "/x"}, {"path": "x"}]}),
        r"\$\.hooks\.prestart\[1\]\.path",
    ),
    "hook with NUL": (lambda d: d.update(hooks={"poststop": [{"path": "/x", "env": ["A=\0"]}]}), r"\$\.hooks\.poststop\[0\]"),
    "run without a process": (lambda d: d.pop("process"), r"\$\.process"),
    "namespace path relative": (lambda d: d["linux"]["namespaces"][0].update(path="x/y"), r"namespaces\[0\]\.path"),
    "offsets without a time namespace": (linux(timeOffsets={"monotonic": {"secs": 1}}), r"\$\.linux\.timeOffsets"),
    "offset of another clock": (
        lambda d: (d["linux"]["namespaces"].append({"type": "time"}), linux(timeOffsets={"realtime": {}})(d)),
        r"timeOffsets\.realtime",
    ),
    "no root": (lambda d: d.pop("root"), r"\$\.root"),
    "no args": (process(args=[]), r"\$\.process\.args"),
    "empty args[0]": (process(args=[""]), r"\$\.process\.args"),
    "namespace twice": (lambda d: d["linux"]["namespaces"].append({"type": "pid"}), r"namespaces\[5\].*twice"),
    "namespace unknown": (lambda d: d["linux"]["namespaces"].append({"type": "x"}), r"namespaces\[5\]\.type"),
    "hostname without uts": (drop("uts"), r"\$\.hostname"),
    "domainname without uts": (lambda d: (d.pop("hostname"), d.update(domainname="x"), drop("uts")(d)), r"\$\.domainname"),
    "domainname and sysctl": (
        lambda d: (d.update(domainname="a"), linux(sysctl={"kernel.domainname": "b"})(d)),
        r"\$\.domainname.*conflicts with",
    ),
    "sysctl of the host": (linux(sysctl={"kernel.panic": "1"}), r"\$\.linux\.sysctl\['kernel.panic'\]"),
    "sysctl of vm": (linux(sysctl={"vm.swappiness": "1"}), r"\$\.linux\.sysctl"),
    "sysctl of the host's net": (lambda d: (drop("network")(d), linux(sysctl={"net.core.somaxconn": "1"})(d)), r"network"),
    "sysctl with dots up": (linux(sysctl={"net/../kernel/panic": "1"}), r"\$\.linux\.sysctl"),
    "sysctl with slash first": (linux(sysctl={"/net/core/somaxconn": "1"}), r"\$\.linux\.sysctl"),
    "sysctl without a name": (linux(sysctl={"": "1"}), r"\$\.linux\.sysctl"),
    "cgroupsPath up": (linux(cgroupsPath="/a/../../b"), r"\$\.linux\.cgroupsPath"),
    "cgroupsPath is the root": (linux(cgroupsPath="/"), r"\$\.linux\.cgroupsPath"),
    "cgroupsPath of dots": (linux(cgroupsPath="./."), r"\$\.linux\.cgroupsPath"),
    "rlimit unknown": (process(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), r"\$\.process\.rlimits\[0\]\.type"),
    "rlimit twice": (process(rlimits=[{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2), r"\$\.process\.rlimits\[1\].*twice"),
    "scheduler policy": (process(scheduler={"policy": "SCHED_X"}), r"\$\.process\.scheduler\.policy"),
    "scheduler flag": (process(scheduler={"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"]}), r"scheduler\.flags\[0\]"),
    "scheduler nice": (process(scheduler={"policy": "SCHED_OTHER", "nice": 20}), r"scheduler\.nice"),
    "scheduler priority": (process(scheduler={"policy": "SCHED_FIFO", "priority": 100}), r"scheduler\.priority"),
    "I/O class": (process(ioPriority={"class": "IOPRIO_CLASS_X", "priority": 0}), r"ioPriority\.class"),
    "I/O priority": (process(ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 8}), r"ioPriority\.priority"),
    "memory mode": (linux(memoryPolicy={"mode": "MPOL_X"}), r"memoryPolicy\.mode"),
    "memory flag": (linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_X"]}), r"memoryPolicy\.flags\[0\]"),
    "memory without nodes": (linux(memoryPolicy={"mode": "MPOL_BIND"}), r"memoryPolicy\.nodes"),
    "memory with nodes": (linux(memoryPolicy={"mode": "MPOL_LOCAL", "nodes": "0"}), r"memoryPolicy\.nodes"),
    "memory nodes": (linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "0-"}), r"memoryPolicy\.nodes"),
    "network device without namespace": (lambda d: (drop("network")(d), linux(netDevices={"a": {}})(d)), r"\$\.linux\.netDevices"),
    "network device name": (linux(netDevices={"a/b": {}}), r"\$\.linux\.netDevices\['a/b'\]"),
    "network device new name": (linux(netDevices={"a": {"name": "x" * 16}}), r"netDevices\.a\.name"),
    "network device template": (linux(netDevices={"a": {"name": "%s"}}), r"netDevices\.a\.name"),
    "network devices of one name": (linux(netDevices={"a": {"name": "c"}, "b": {"name": "c"}}), r"netDevices\.b"),
    "personality domain": (linux(personality={"domain": "BSD"}), r"personality\.domain"),
    "personality flags": (linux(personality={"domain": "LINUX", "flags": ["X"]}), r"personality\.flags"),
    "tmpfs on /proc": (mount(destination="/proc", type="tmpfs"), r"\$\.mounts\[6\]\.destination"),
    "tmpfs below /proc": (mount(destination="/x/../proc/sys", type="tmpfs"), r"\$\.mounts\[6\]\.destination"),
    "proc below /proc": (mount(destination="/proc/x", type="proc"), r"\$\.mounts\[6\]\.destination"),
    "bind of nothing": (mount(destination="/x", options=["bind"]), r"\$\.mounts\[6\]\.source"),
    "mount of no type": (mount(destination="/x"), r"\$\.mounts\[6\]\.type"),
    "propagation unknown": (linux(rootfsPropagation="bogus"), r"\$\.linux\.rootfsPropagation"),
    "device unknown": (linux(devices=[{"path": "/dev/x", "type": "z"}]), r"\$\.linux\.devices\[0\]\.type"),
}
UNSUPPORTED = {
    "user namespace without a mount namespace": (
        lambda d: (mapped(ONE, ONE)(d), drop("mount")(d)),
        r"\$\.linux\.namespaces: a user namespace needs a mount",
    ),
    "apparmor": (process(apparmorProfile="x"), r"\$\.process\.apparmorProfile.*apparmor is not active"),
    "selinux": (process(selinuxLabel="x"), r"\$\.process\.selinuxLabel.*selinux is not active"),
    "SCHED_ISO": (process(scheduler={"policy": "SCHED_ISO"}), r"\$\.process\.scheduler\.policy"),
    "too many mounts": (lambda d: d["mounts"].extend([{"destination": "/x", "type": "tmpfs"}] * 1100), r"mounts"),
}


@pytest.mark.parametrize("name", BAD)
def test_spec_errors_have_a_json_path(name: str) -> None:
    change, place = BAD[name]
    with pytest.raises(SpecError, match=place):
        compiled(config(change), gate=False)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_configs(name: str) -> None:
    change, place = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError, match=place):
        compiled(config(change))


@pytest.mark.parametrize(
    ("host", "change", "error", "place"),
    [
        (PURE_V2, limit(unified={"cgroup.procs": "1"}), SpecError, "unified"),
        (PURE_V2, limit(unified={"../x.y": "1"}), SpecError, "unified"),
        (PURE_V2, limit(memory={"swap": 5}), SpecError, "swap"),
        (PURE_V2, limit(memory={"limit": 9, "swap": 5}), SpecError, "swap"),
        (PURE_V2, limit(hugepageLimits=[{"pageSize": "2MB", "limit": 0}]), UnsupportedError, "hugetlb"),
        (NONE, limit(pids={"limit": 5}), UnsupportedError, r"pids\.limit.*no cgroup filesystem mounted"),
        (
            USER_V2,
            lambda d: (limit(pids={"limit": 5})(d), linux(cgroupsPath="/x")(d)),
            UnsupportedError,
            "below .*/user.slice/u only",
        ),
        (USER_V2, lambda d: (limit(pids={"limit": 5})(d), linux(cgroupsPath="/user.slice/ux")(d)), UnsupportedError, "below"),
        (NOWHERE, limit(pids={"limit": 5}), UnsupportedError, r"pids\.limit.*let root delegate"),
        (
            HYBRID,
            limit(unified={"memory.high": "5"}),
            UnsupportedError,
            r"unified\['memory.high'\]: invalid configuration .*: no cgroup v2",
        ),
        (PURE_V2, limit(network={"classID": 5}), UnsupportedError, r"network\.classID.*which cgroup v1 alone has"),
        (PURE_V2, limit(memory={"swappiness": 5}), UnsupportedError, r"memory\.swappiness"),
    ],
)
def test_unsupported_limits(
    host: Host,
    change: Change | None,
    error: type[Exception],
    place: str,
) -> None:
    with pytest.raises(error, match=place):
        compiled(config(change), host)


def test_a_user_without_cgroups_and_limits() -> None:
    assert compiled(config(linux(cgroupsPath="/x/y")), USER_V2).cgroups == ()
    assert compiled(config(), NOWHERE).cgroups == ()
    assert compiled(config(), USER_V2).cgroups == (f"{FS}/user.slice/u/ociruntime-c1",)
    assert compiled(config(linux(cgroupsPath="x")), USER_V2).cgroups == (f"{FS}/user.slice/u/x",)
    assert compiled(config(linux(cgroupsPath="/user.slice/u/x")), USER_V2).cgroups == (f"{FS}/user.slice/u/x",)


@pytest.mark.parametrize(
    ("host", "change", "place"),
    [
        (NONE, drop("mount"), r"\$\.linux\.namespaces: .* needs Linux 6\.15"),
        (USER, mapped([(0, 0, 1)], ONE), r"uidMappings\[0\]: user 1000 may not map the host ids 0-0"),
        (USER, mapped(WIDE, [(0, 1000, 1), (1, 100001, 65536)]), r"gidMappings\[1\]: .*host ids 100001-165536"),
        (attrs.evolve(USER, idmap_helpers=None), mapped(WIDE, ONE), r"newuidmap \(Debian: uidmap\)"),
        (
            attrs.evolve(USER, may_setgroups=False),
            both(mapped(WIDE, WIDE), lambda d: d["process"]["user"].update(additionalGids=[0, 5])),
            r"\$\.process\.user\.additionalGids",
        ),
    ],
)
def test_unsupported_user_namespaces(host: Host, change: Change, place: str) -> None:
    with pytest.raises(UnsupportedError, match=place):
        compiled(config(change), host)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (attrs.evolve(HYBRID, systemd=Systemd(True, HYBRID.hierarchies[-1])), "on cgroup v2 only, and this host uses hybrid"),
        (HYBRID, "systemd is not running; use --cgroup-manager cgroupfs$"),
        (NONE, "systemd is not running; use --cgroup-manager cgroupfs$"),  # without cgroups and limits
        (PURE_V2, "systemd is not running; use --cgroup-manager cgroupfs$"),
        (
            attrs.evolve(USER_V2, booted=True),
            "user 1000 has no systemd of its own; let root run .*, or use --cgroup-manager cgroupfs$",
        ),
        (attrs.evolve(NOWHERE, booted=True), "let root run 'loginctl enable-linger 1000', or use --cgroup-manager cgroupfs$"),
    ],
)
def test_hosts_without_a_usable_systemd(host: Host, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        compiled(config(), host, manager="systemd")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (NONE, "this host has no cgroup filesystem mounted; mount it$"),
        (attrs.evolve(NONE, euid=1000), "this host has no cgroup filesystem mounted; mount it as root$"),
        (attrs.evolve(NOWHERE, euid=0), "no cgroup filesystem is writable; mount it with the option rw$"),
        (NOWHERE, "user 1000 may not create cgroups; run as root, or let root delegate cgroups to user 1000 "),
        (attrs.evolve(NOWHERE, booted=True), "user 1000 may not create cgroups; let root run 'loginctl enable-linger 1000', and use --cgroup-manager systemd$"),
        (attrs.evolve(NOWHERE, booted=True, systemd=Systemd(True, PURE_V2.hierarchies[0])), "user 1000 may not create cgroups; use --cgroup-manager systemd, or run in 'systemd-run"),
        (
            attrs.evolve(HYBRID, euid=1000, booted=True, systemd=Systemd(True, HYBRID.hierarchies[-1]),
                hierarchies=tuple(attrs.evolve(h, base=None) for h in HYBRID.hierarchies),
            ),
            "user 1000 may not create cgroups; run as root, or let root delegate cgroups to user 1000 ",
        ),
    ],
)  # fmt: skip
def test_only_remedies_that_work_on_the_host(host: Host, words: str) -> None:
    given = config(limit(pids={"limit": 9}))
    with pytest.raises(UnsupportedError, match=rf"^\$\.linux\.resources\.pids\.limit: needs a cgroup: {words}"):
        compiled(given, host)
    with pytest.raises(UnsupportedError, match=r"needs a cgroup: the cgroup manager is disabled, and "):
        compiled(given, host, manager="disabled")
    if host.systemd is None and host.euid:
        with pytest.raises(UnsupportedError, match=r"^systemd cgroup manager: ") as caught:
            compiled(given, host, manager="systemd")
        assert "cgroupfs" not in str(caught.value)  # which cannot set the limit either


@pytest.mark.parametrize(
    "change", [None, hooked("createRuntime"), mount(destination="/", type="tmpfs", source="tmpfs", options=())]
)
def test_without_pivot_root_the_kernels_filesystems_are_hidden_before_the_root_is_covered(change: Change | None) -> None:
    points = ["/sys", "/proc/x", "/proc", "/bundle/rootfs/proc"]  # the last one is a mount of the container's own
    plan = compiled(config(change), uncovered=points)
    ops = [step.op for step in plan.steps]
    assert "pivot_root" not in ops
    place = ops.index("chroot")
    hidden = [step.values[1] for step in plan.steps[:place] if step.op == "mask"]
    assert hidden == ["sys", "proc/x", "proc"]
    assert ops[place - 5 : place] == ["mask", "mask", "mask", "close", "move_mount"]
    entered = plan.steps[max(number for number, op in enumerate(ops) if op == "chroot")]
    assert entered.op == "chroot"


def test_order_of_the_steps() -> None:
    plan = compiled(config())
    assert [step.op for step in plan.steps].count("pivot_root") == 1
    order = [step.op for step in plan.steps]
    assert order.index("pivot_root") < order.index("setsid") < order.index("sync") < order.index("gate") < order.index("exec")
    assert order[-1] == "exec"


@pytest.mark.parametrize("member", ["apparmorProfile", "selinuxLabel"])
def test_a_label_needs_a_program(member: str) -> None:
    spec = config(process(**{member: "x"}))
    assert "label" in [step.op for step in compiled(spec, LABELS).steps]
    with pytest.raises(UnsupportedError, match=rf"\$\.process\.{member}: needs a program"):
        compiled(spec, LABELS, empty=True)
