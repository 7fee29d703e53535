"""Validation and compilation agree: a config compiles if and only if the rules of the runtime spec accept it.

One config that has every member of the process, of the hooks and of the process-like parts of ``linux``; one member after the other gets
values that are nasty for its type.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any, Final

import attrs
import pytest

from ociruntime.errors import OCIRuntimeWarning, SpecError, UnsupportedError
from ociruntime.host import Hierarchy, Host
from ociruntime.plan import compile_create
from ociruntime.plan.model import encode
from ociruntime.seccomp import compile_profile
from ociruntime.spec import RuntimeSpec

CONTROLLERS: Final = frozenset({"cpu", "cpuset", "io", "memory", "pids"})
HOST: Final = Host(
    (6, 18), "x86_64", 0, 40, (Hierarchy("/sys/fs/cgroup", 2, CONTROLLERS),),
    lsms=frozenset({"apparmor", "selinux"}), resctrl="/sys/fs/resctrl",
)  # fmt: skip
MISSING: Final = object()
INTEGERS: Final = (-(2**63), -1001, -1, 0, 1, 8, 100, 512, 1023, 4094, 4095, 2**31, 2**32 - 1, 2**32, 2**63, 2**64)
TEXTS: Final = (
    "", "x\0y", "x", "a/b", "..", "/abs", "x" * 300, "\ud800", "a\nb", "0-1", "1-0", "SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY", "SCHED_FIFO",
    "SCHED_OTHER", "SCHED_ISO", "MPOL_DEFAULT", "MPOL_PREFERRED", "MPOL_F_NUMA_BALANCING", "IOPRIO_CLASS_IDLE", "SCMP_CMP_EQ",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "read", "CAP_X", "RLIMIT_X", "%d", "info",
)  # fmt: skip
UNSUPPORTED: Final = ((("scheduler", "policy"), "SCHED_ISO"),)
"""Configs that the spec allows, but Linux does not support."""


def ids(first: int) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": first, "size": 1000}, {"containerID": 1000, "hostID": first + 1000, "size": 5}]


def everything() -> dict[str, Any]:
    document: dict[str, Any] = RuntimeSpec.default().to_dict()
    hook = {"path": "/h", "args": ["h", "x"], "env": ["A=b"], "timeout": 3}
    document["hooks"] = {"startContainer": [hook]}
    document["process"] |= {
        "terminal": True,
        "consoleSize": {"height": 1, "width": 2},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}],
        "apparmorProfile": "p",
        "selinuxLabel": "l",
        "oomScoreAdj": 5,
        "scheduler": {
            "policy": "SCHED_DEADLINE", "runtime": 10**6, "deadline": 10**7, "period": 10**8, "flags": ["SCHED_FLAG_RECLAIM"],
            "nice": 0, "priority": 0,
        },
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0", "final": "1"},
        "capabilities": {kind: ["CAP_KILL"] for kind in ("bounding", "ambient")},
    }  # fmt: skip
    document["mounts"] += [
        {"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=1m", "tmpcopyup"]},
        {"destination": "/b", "source": "/b", "options": ["rbind", "idmap"], "uidMappings": ids(5000), "gidMappings": ids(6000)},
    ]
    document["linux"]["namespaces"] += [{"type": "time"}, {"type": "user"}, {"type": "cgroup", "path": "/c"}]
    document["linux"] |= {
        "uidMappings": ids(100000),
        "gidMappings": ids(200000),
        "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 2}},
        "devices": [{"path": "/d", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 1, "gid": 2}],
        "sysctl": {"kernel.msgmax": "1", "net.core.somaxconn": "2"},
        "rootfsPropagation": "rslave",
    }
    document["linux"] |= {
        "netDevices": {"eth0": {"name": "x"}},
        "personality": {"domain": "LINUX32"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
        "intelRdt": {
            "closID": "c", "schemata": ["L3:0=f"], "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "enableMonitoring": True,
        },
        "mountLabel": "m",
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 3,
            "architectures": ["SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "listenerPath": "/a",
            "listenerMetadata": "m",
            "syscalls": [
                {
                    "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4,
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
                },
                {"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"},
            ],
        },
    }  # fmt: skip
    return document


def members(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key), item
        if isinstance(item, dict | list):
            yield from members(item, (*path, key))


def values(value: Any) -> Iterator[Any]:
    yield from (MISSING, None)
    if isinstance(value, bool):
        yield from (True, False)
    elif isinstance(value, int):
        yield from INTEGERS
    elif isinstance(value, str):
        yield from TEXTS
    elif isinstance(value, list):
        yield from ([], value * 2)
    else:
        yield {}


def put(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    if value is MISSING:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return document


def excused(path: tuple[Any, ...], nasty: Any, why: str) -> bool:
    """Return whether the two may differ."""
    return (
        (path[-1] == "fileMode" and isinstance(nasty, int) and nasty > 0o777)  # others write the bits of the type there, too
        or (path[-1] == "rootfsPropagation" and nasty == "")  # a program in Go writes that for none
        or (path[1] == "namespaces" and why.startswith("UnsupportedError"))  # a user namespace needs some others
        or (path == ("linux", "gidMappings") and nasty in (MISSING, None, []))  # the host's choice may be too few for the mounts
    )


def carried_out(document: dict[str, Any]) -> str:
    """Return why a config does not compile, or an empty string; a compiled plan can be encoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OCIRuntimeWarning)
            spec = RuntimeSpec.load(document)
            plan = compile_create(spec, HOST, bundle="/b")
    except (SpecError, UnsupportedError) as error:
        return f"{type(error).__name__}: {error}"
    encode(tuple((n, s.op, s.values) for n, s in plan.init_steps() if s.op != "seccomp"), 0)
    assert spec.linux is not None
    if spec.linux.seccomp is not None and len(spec.linux.seccomp.syscalls or ()) < 3:
        compile_profile(spec.linux.seccomp)
    return ""


PARTS: Final = [("process",), ("hooks",), ("mounts",), ("root",), *(("linux", name) for name in (
    "namespaces", "uidMappings", "gidMappings", "timeOffsets", "devices", "sysctl", "rootfsPropagation", "maskedPaths", "readonlyPaths",
    "netDevices", "personality", "memoryPolicy", "intelRdt", "mountLabel", "seccomp"))]  # fmt: skip


@pytest.mark.parametrize("part", PARTS, ids=".".join)
def test_rules_and_compilers_agree(part: tuple[str, ...]) -> None:
    document = everything()
    assert carried_out(document) == ""
    differ = []
    for path, value in members(document):
        if path[: len(part)] != part or path == part == ("process",):
            continue
        for nasty in values(value):
            changed = put(document, path, nasty)
            errors = [problem for problem in RuntimeSpec.check(changed, HOST) if problem.severity == "error"]
            why = carried_out(changed)
            expected = bool(errors) or (path[-2:], nasty) in UNSUPPORTED
            if bool(why) != expected and not excused(path, nasty, why):
                differ.append((path, nasty, why, errors[:1]))
    assert not differ


@pytest.mark.parametrize(
    ("linux", "host", "words"),
    [
        (
            {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}},
            {"seccomp": False},
            r"seccomp: this kernel does not support seccomp filters",
        ),
        (
            {
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
                    "listenerPath": "/a",
                    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
                }
            },
            {"kernel": (5, 14)},
            r"seccomp\.flags: .* needs Linux 5\.19",
        ),
        (
            {"memoryPolicy": {"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0"}},
            {"kernel": (6, 8)},
            r"memoryPolicy\.mode: .* needs Linux 6\.9",
        ),
        ({"personality": {"domain": "LINUX32"}}, {"machine": "riscv64"}, r"personality\.domain: riscv64 has no"),
    ],
)
def test_unsupported_hosts(linux: dict[str, Any], host: dict[str, Any], words: str) -> None:
    document: dict[str, Any] = RuntimeSpec.default(seccomp=False).to_dict()
    document["linux"] |= linux
    spec = RuntimeSpec.load(document)
    assert compile_create(spec, HOST, bundle="/b").steps
    with pytest.raises(UnsupportedError, match=rf"\$\.linux\.{words}"):
        compile_create(spec, attrs.evolve(HOST, **host), bundle="/b")
