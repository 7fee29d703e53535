"""User namespaces: their maps of ids, and who one is in them (config-linux.md#user-namespace-mappings)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from .model import Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import IDMapping, Linux, Process, RuntimeSpec
    from .namespaces import Namespaces


class Groups(Enum):
    """What setgroups(2) may do in the container's user namespace."""

    EXACT = "exact"
    """The supplementary groups are exactly those of the config."""
    DENIED = "denied"
    """The map of groups was written by an unprivileged user, who could otherwise drop a group that forbids something."""
    UNKNOWN = "unknown"
    """The namespace exists already, and only it knows."""


def groups_in(spaces: Namespaces, linux: Linux | None, host: Host) -> Groups:
    """What setgroups may do. Pure."""
    if "user" not in spaces.new and spaces.user:
        return Groups.UNKNOWN
    if not host.may_setgroups:
        return Groups.DENIED
    if not spaces.user:
        return Groups.EXACT
    return Groups.DENIED if not host.privileged and _is_own(_maps(linux, "gid"), host.egid) else Groups.EXACT


def with_idmaps(spec: RuntimeSpec, host: Host) -> RuntimeSpec:
    """The same config with maps of ids, where it wants a new user namespace and has none, as crun does it. Pure.

    The caller is the user of the process, as everything is his that he makes; the ids that /etc/subuid and /etc/subgid give him are
    all others, from 0 on.
    """
    linux = spec.linux
    if linux is None or all(_maps(linux, kind) for kind in ("uid", "gid")):
        return spec
    if not any(space.type == "user" and not space.path for space in linux.namespaces or ()):
        return spec
    user = spec.process.user if spec.process else None
    usable = host.privileged or host.idmap_helpers
    uids = _default_map((user.uid or 0) if user else 0, host.euid, host.subuids if usable else ())
    gids = _default_map((user.gid or 0) if user else 0, host.egid, host.subgids if usable else ())
    return spec.evolve(linux=linux.evolve(uid_mappings=_maps(linux, "uid") or uids, gid_mappings=_maps(linux, "gid") or gids))


def _default_map(inside: int, own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IDMapping, ...]:
    from ..spec import IDMapping

    found: list[tuple[int, int, int]] = []
    at = 0
    for first, count in ranges:
        below = inside - at
        if 0 <= below < count:
            found += [(at, first, below), (inside, own, 1), (inside + 1, first + below, count - below)]
            at += count + 1
        else:
            found.append((at, first, count))
            at += count
    if at <= inside:
        found.append((inside, own, 1))
    return tuple(IDMapping(container_id=a, host_id=b, size=n) for a, b, n in found if n)


def host_id(maps: Sequence[IDMapping], inside: int) -> int | None:
    """The id outside of the user namespace of one that is inside; None where it is not mapped."""
    return next((m.host_id + inside - m.container_id for m in maps if m.container_id <= inside < m.container_id + m.size), None)


def root_id(maps: Sequence[IDMapping]) -> int:
    """Who makes things in the user namespace: 0, or the first mapped id where 0 is not mapped."""
    return 0 if host_id(maps, 0) is not None else maps[0].container_id


def _maps(linux: Linux | None, kind: str) -> tuple[IDMapping, ...]:
    return (getattr(linux, f"{kind}_mappings") if linux else None) or ()


def _is_own(maps: Sequence[IDMapping], own: int) -> bool:
    """Whether the map is the only one that a user may write without a helper."""
    return len(maps) == 1 and maps[0].host_id == own and maps[0].size == 1


def compile_idmaps(b: Builder, linux: Linux, host: Host, *, asked: Linux) -> None:
    """The caller writes the maps of the process that the init just forked. Raises UnsupportedError.

    Args:
        asked: as the config has it, which may leave the maps to us.
    """
    for kind, own, allowed in (("uid", host.euid, host.subuids), ("gid", host.egid, host.subgids)):
        where, maps = f"$.linux.{kind}Mappings", _maps(linux, kind)
        text = "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in maps)
        shown = ", ".join(text.splitlines())
        helper = ""
        if not host.privileged:
            if not _is_own(maps, own):
                helper = _helper(where, kind, maps, host, ((own, 1), *allowed))
            elif kind == "gid":
                b.host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups: without privileges the groups stay")
        by = f"{helper} PID {shown}" if helper else f"{shown} > /proc/PID/{kind}_map"
        if not _maps(asked, kind):
            ours = f", and those of /etc/sub{kind}" if len(maps) > 1 else ""
            by += f" (the config has no {kind}Mappings: the caller's own id{ours})"
        b.host("idmap", f"{kind}_map", text, helper, text=by)


def _helper(where: str, kind: str, maps: Sequence[IDMapping], host: Host, allowed: Sequence[tuple[int, int]]) -> str:
    """The program that writes a map for a user without privileges."""
    for index, entry in enumerate(maps):
        last = entry.host_id + entry.size - 1
        if not any(first <= entry.host_id and last < first + count for first, count in allowed):
            raise UnsupportedError(
                f"{where}[{index}]: host ids {entry.host_id}-{last} are not given to user {host.euid}: "
                f"add them to /etc/sub{kind}, or map {kind} {host.euid if kind == 'uid' else host.egid} alone"
            )
    if not host.idmap_helpers:
        raise UnsupportedError(f"{where}: more than the own id needs new{kind}map (Debian: uidmap), or privileges")
    return host.idmap_helpers[0 if kind == "uid" else 1]


def compile_root(b: Builder, spaces: Namespaces, linux: Linux | None) -> None:
    """Become the root of the user namespace, who owns what is made from here on.

    Until here the init has the caller's ids, and so can open what only they may.
    """
    if not spaces.user:
        return
    for kind in ("gid", "uid"):
        root = root_id(_maps(linux, kind)) if "user" in spaces.new else 0
        b.init(f"setres{kind}", root, text=f"{kind} {root} of the user namespace")


def compile_streams(b: Builder, process: Process, linux: Linux | None) -> None:
    """Give the standard streams to the process's user of the host, as nobody can who is in the user namespace already."""
    uid = process.user.uid or 0 if process.user else 0
    owner = host_id(_maps(linux, "uid"), uid)
    if owner is not None and not process.terminal:
        b.init("own_stdio", owner, text=f"pipes among the standard streams are user {owner}'s of the host")
