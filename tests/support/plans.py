"""Hosts, configurations and their plans, for tests that compile and execute nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from ociruntime.host import Hierarchy, Host, Systemd
from ociruntime.plan import Plan, compile_create
from ociruntime.spec import ProcessSpec, RuntimeSpec

Change = Callable[[dict[str, Any]], object]
"""Changes a document."""

# ---- hosts ----

V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "name=systemd")
FS = "/sys/fs/cgroup"
HYBRID = Host(
    (6, 18), "x86_64", 0, 40,
    (*(Hierarchy(f"{FS}/{n.removeprefix('name=')}", 1, frozenset({n})) for n in V1),
     Hierarchy(f"{FS}/unified", 2, frozenset({"hugetlb"}))),
)  # fmt: skip
PURE_V2 = Host((6, 8), "x86_64", 0, 40, (Hierarchy(FS, 2, frozenset({"cpu", "cpuset", "io", "memory", "pids"})),))
USER_V2 = attrs.evolve(PURE_V2, euid=1000, initial=False, hierarchies=(attrs.evolve(PURE_V2.hierarchies[0], base="/user.slice/u"),))
BOOTED = attrs.evolve(PURE_V2, systemd=Systemd(False, PURE_V2.hierarchies[0]))
NEW = Host((6, 18), "x86_64", 0, 40, ())
NONE = Host((6, 1), "aarch64", 0, 40, ())
NOWHERE = attrs.evolve(PURE_V2, euid=1000, initial=False, hierarchies=(attrs.evolve(PURE_V2.hierarchies[0], base=None),))
USER = Host((6, 8), "x86_64", 1000, 40, (), capabilities=0, egid=1000, idmap_helpers=("/usr/bin/newuidmap", "/usr/bin/newgidmap"),
            subuids=((100000, 65536),), subgids=((100000, 65536),))  # fmt: skip

# ---- configurations ----


def config(change: Change | None = None) -> RuntimeSpec:
    """Return the default config with a change."""
    document: dict[str, Any] = RuntimeSpec.default().to_dict()
    if change:
        change(document)
    return RuntimeSpec.load(document)


def process_of(spec: RuntimeSpec) -> ProcessSpec:
    assert spec.process is not None
    return spec.process


def compiled(spec: RuntimeSpec, host: Host = HYBRID, **more: Any) -> Plan:
    """Return the plan of container c1."""
    return compile_create(spec, host, bundle="/bundle", container_id="c1", **more)


def mapped(uids: list[tuple[int, int, int]], gids: list[tuple[int, int, int]], path: str | None = None) -> Change:
    """Return a change that adds a user namespace."""

    def change(d: dict[str, Any]) -> None:
        d["linux"]["namespaces"].append({"type": "user"} | ({"path": path} if path else {}))
        d["linux"]["resources"] = {}
        if not any(inside <= 5 < inside + size for inside, _, size in gids):
            d["mounts"][2]["options"].remove("gid=5")
        for name, maps in (("uidMappings", uids), ("gidMappings", gids)):
            d["linux"][name] = [{"containerID": inside, "hostID": outside, "size": size} for inside, outside, size in maps]

    return change


def joined(*kinds: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        new = [n for n in d["linux"]["namespaces"] if n["type"] not in kinds]
        d["linux"]["namespaces"] = [{"type": kind, "path": f"/pod/{kind}"} for kind in kinds] + new

    return change


def both(*changes: Change) -> Change:
    return lambda d: [change(d) for change in changes]


def hooked(*kinds: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        d["hooks"] = {
            kind: [{"path": f"/{kind}", "args": ["x", "-v"], "env": ["A=b"], "timeout": 5}, {"path": "/b"}] for kind in kinds
        }

    return change


def drop(kind: str) -> Change:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["namespaces"] = [n for n in d["linux"]["namespaces"] if n["type"] != kind]

    return change


def linux(**members: object) -> Change:
    return lambda d: d["linux"].update(members)


def process(**members: object) -> Change:
    return lambda d: d["process"].update(members)


def mount(**members: object) -> Change:
    return lambda d: d["mounts"].append(members)


def limit(**members: object) -> Change:
    return lambda d: d["linux"].update(resources=members)
