"""Configs in which one value is odd: every member of the spec for Linux, with every value that a hostile or broken program may write."""

from __future__ import annotations

import marshal
import random
from collections.abc import Iterator, Sequence
from typing import Any

from ociruntime.spec import RuntimeSpec
from ociruntime.spec.base import Record, members_of

Path = tuple[str | int, ...]
_HOOK = {"path": "/bin/hook", "args": ["hook", "x"], "env": ["A=b"], "timeout": 5}
_DEVICE = [{"major": 8, "minor": 0, "rate": 5}]
_IDS = [{"containerID": 0, "hostID": 1000, "size": 70000}]
_TIME = {"secs": 5, "nanosecs": 6}
PIECES: list[dict[str, Any]] = [
    {"process": {"user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4], "username": "app"}}},
    {"process": {"terminal": True, "consoleSize": {"height": 24, "width": 80}, "commandLine": "x"}},
    {"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}], "oomScoreAdj": 5, "noNewPrivileges": True}},
    {"process": {"apparmorProfile": "p"}},
    {"process": {"selinuxLabel": "a:b:c:d"}, "linux": {"mountLabel": "a:b:c:d"}},
    {
        "process": {
            "scheduler": {
                "policy": "SCHED_OTHER",
                "nice": 5,
                "priority": 0,
                "flags": ["SCHED_FLAG_RESET_ON_FORK"],
                "runtime": 0,
                "deadline": 0,
                "period": 0,
            },
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "execCPUAffinity": {"initial": "0-1", "final": "0"},
        }
    },
    {
        "process": {
            "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "inheritable", "permitted", "ambient")}
        }
    },
    {"hostname": "h", "domainname": "d", "annotations": {"a.b": "c", "org.systemd.property.TimeoutStopUSec": "uint64 5"}},
    {
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs", "readonly": True},
        "process": {"cwd": "/", "args": ["true"], "env": ["A=b"]},
    },
    {
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "/src", "options": ["rbind", "ro", "nosuid"]},
            {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=5m", "mode=1777"]},
            {"destination": "/o", "type": "overlay", "source": "overlay", "options": ["lowerdir=/l", "upperdir=/u", "workdir=/w"]},
        ]
    },
    {
        "mounts": [
            {
                "destination": "/i",
                "type": "none",
                "source": "/src",
                "options": ["bind", "ridmap"],
                "uidMappings": _IDS,
                "gidMappings": _IDS,
            },
        ]
    },
    {"mounts": [{"destination": "/cg", "type": "cgroup", "source": "cgroup", "options": ["ro"]}]},
    {"hooks": {name: [_HOOK] for name in ("prestart", "createRuntime", "createContainer")}},
    {"hooks": {name: [_HOOK] for name in ("startContainer", "poststart", "poststop")}},
    {
        "linux": {
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
            "netDevices": {"eth9": {"name": "e"}},
        }
    },
    {
        "linux": {
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "rslave",
            "sysctl": {"net.ipv4.ip_forward": "1"},
        }
    },
    {
        "linux": {
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 5,
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [
                    {
                        "names": ["chmod"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                        "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}],
                    }
                ],
            }
        }
    },
    {
        "linux": {
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": "/l.sock",
                "listenerMetadata": "m",
                "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_NOTIFY"}],
            }
        }
    },
    {
        "linux": {
            "cgroupsPath": "/a/b",
            "resources": {
                "memory": {
                    "limit": 1 << 30,
                    "reservation": 1 << 29,
                    "swap": 1 << 30,
                    "kernel": 5,
                    "kernelTCP": 6,
                    "swappiness": 5,
                    "disableOOMKiller": True,
                    "useHierarchy": True,
                    "checkBeforeUpdate": True,
                },
                "cpu": {
                    "shares": 5,
                    "quota": 5000,
                    "burst": 5,
                    "period": 100000,
                    "realtimeRuntime": 5,
                    "realtimePeriod": 6,
                    "cpus": "0-1",
                    "mems": "0",
                    "idle": 0,
                },
                "pids": {"limit": 5},
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
                ],
            },
        }
    },
    {
        "linux": {
            "resources": {
                "blockIO": {
                    "weight": 10,
                    "leafWeight": 11,
                    "weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 11}],
                    **{f"throttle{name}Device": _DEVICE for name in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")},
                },
                "hugepageLimits": [{"pageSize": "2MB", "limit": 5}],
                "network": {"classID": 5, "priorities": [{"name": "lo", "priority": 5}]},
            }
        }
    },
    {"linux": {"resources": {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}}}}},
    {"linux": {"resources": {"unified": {"memory.high": "5", "io.max": "8:0 rbps=5"}}}},
    {
        "linux": {
            "namespaces": [
                {"type": "pid", "path": "/proc/1/ns/pid"},
                *({"type": kind} for kind in ("mount", "user", "time", "uts", "network", "ipc", "cgroup")),
            ],
            "uidMappings": _IDS,
            "gidMappings": _IDS,
            "timeOffsets": {"monotonic": _TIME, "boottime": _TIME},
        }
    },
    {"linux": {"personality": {"domain": "LINUX", "flags": ["a"]}}},
    {"linux": {"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}}},
    {
        "linux": {
            "intelRdt": {
                "closID": "c",
                "schemata": ["L3:0=f"],
                "l3CacheSchema": "L3:0=f",
                "memBwSchema": "MB:0=20",
                "enableMonitoring": True,
            }
        }
    },
]
"""Parts of configs, each laid over the default config: together they have every member of the spec for Linux."""

_TEXTS: Sequence[Any] = (
    *(
        "",
        "\0",
        "a\0b",
        "\ud800",
        "\udcff",
        "a\nb",
        "\n",
        " ",
        "x" * 5000,
        "x" * 300,
        "..",
        "../..",
        "/",
        "/..",
        "//",
        "a/../../b",
        ".",
    ),
    *("9" * 5000, "-1", "\u00b2", "1e5", "0x10", "\u00e9", "\u2028", "\t", "a=b", "a,b", "%s", "${x}", "~", "-", "/proc/self/fd/0"),
)
_NUMBERS: Sequence[Any] = (
    *(-1, 0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, 1.5, 1e308),
    *(True, None, "1", [], {}),
)
_OTHERS: Sequence[Any] = (None, True, 0, 1.5, "x", [], {}, [None], {"a": None}, ["x"], [[]], "\0")
_MAPPINGS = frozenset({"annotations", "sysctl", "unified", "rdma", "netDevices"})
"""Objects whose keys are not members of a class."""
OF_OTHER_PLATFORMS = frozenset({"windows", "solaris", "vm", "zos", "freebsd"})


def copied(document: Any) -> Any:
    """Return a copy of a JSON value. `copy.deepcopy` would take half of the time of the fuzzers."""
    return marshal.loads(marshal.dumps(document))


def lay_over(below: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """Return a document with a part of another one laid over it. Objects are joined."""
    created: dict[str, Any] = copied(below)
    for key, value in piece.items():
        under = created.get(key)
        created[key] = lay_over(under, value) if isinstance(value, dict) and isinstance(under, dict) else copied(value)
    return created


def _places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values of a document, but of a long list those of the first items only."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def odd_configs(base: RuntimeSpec, *, each: int | None, seed: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield configs with one odd value each, with a description.

    Args:
        base: the default config.
        each: how many values every place gets, chosen at random; None for all.
    """
    chosen = random.Random(seed)
    default: dict[str, Any] = base.to_dict()
    for piece in [*PIECES, default]:
        document = lay_over(default, piece)
        for path in _places(piece):
            old = _at(document, path)
            is_number = isinstance(old, int | float) and not isinstance(old, bool)
            values = _TEXTS if isinstance(old, str) else _NUMBERS if is_number else _OTHERS
            changes = [(False, value) for value in values]
            if path[-2:-1] and path[-2] in _MAPPINGS:
                changes += [(True, text) for text in _TEXTS]
            for is_key, value in changes if each is None else chosen.sample(changes, min(each, len(changes))):
                created = copied(document)
                around = _at(created, path[:-1])
                if is_key:
                    around[value] = around.pop(path[-1])
                else:
                    around[path[-1]] = value
                yield f"{'.'.join(map(str, path))}{' as a key' if is_key else ''}: {value!r:.60}", created


def members_without_values() -> set[str]:
    """Return the members of the spec for Linux that no config here has."""
    default: dict[str, Any] = RuntimeSpec.default().to_dict()
    return set(_missing(RuntimeSpec, [default, *PIECES], "$"))


def _missing(cls: type[Record], objects: Sequence[Any], where: str) -> Iterator[str]:
    for member in members_of(cls).values():
        if where == "$" and member.key in OF_OTHER_PLATFORMS:
            continue
        found = [item[member.key] for item in objects if isinstance(item, dict) and member.key in item]
        if not found:
            yield f"{where}.{member.key}"
        elif member.kind.record is not None:
            if member.kind.outer == "Mapping":
                found = [inner for item in found for inner in item.values()]
            elif member.kind.outer:
                found = [inner for item in found for inner in item]
            yield from _missing(member.kind.record, found, f"{where}.{member.key}")
