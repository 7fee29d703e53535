"""User namespaces: their maps of ids, and who one is in them (config-linux.md#user-namespace-mappings)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from .model import Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import IDMapping, Linux, Process
    from .namespaces import Namespaces

SECTION: Final = "config-linux.md#user-namespace-mappings"


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
    if not spaces.user:
        return Groups.EXACT
    if "user" not in spaces.new:
        return Groups.UNKNOWN
    return Groups.DENIED if not host.privileged and _is_own(_maps(linux, "gid"), host.egid) else Groups.EXACT


def _maps(linux: Linux | None, kind: str) -> Sequence[IDMapping]:
    return (getattr(linux, f"{kind}_mappings") if linux else None) or ()


def _is_own(maps: Sequence[IDMapping], own: int) -> bool:
    """Whether the map is the only one that a user may write without a helper."""
    return len(maps) == 1 and maps[0].host_id == own and maps[0].size == 1


def compile_idmaps(b: Builder, linux: Linux | None, host: Host) -> None:
    """The caller writes the maps of the process that the init just forked. Raises SpecError, UnsupportedError."""
    for kind, own, allowed in (("uid", host.euid, host.subuids), ("gid", host.egid, host.subgids)):
        where, maps = f"$.linux.{kind}Mappings", _maps(linux, kind)
        if not maps:
            raise SpecError([Problem(where, "is needed by a new user namespace", SECTION)])
        text = "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in maps)
        shown = ", ".join(text.splitlines())
        helper = ""
        if not host.privileged:
            if not _is_own(maps, own):
                helper = _helper(where, kind, maps, host, ((own, 1), *allowed))
            elif kind == "gid":
                b.host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups: without privileges the groups stay")
        by = f"{helper} PID {shown}" if helper else f"{shown} > /proc/PID/{kind}_map"
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
        ids = [entry.container_id for entry in _maps(linux, kind)] if "user" in spaces.new else [0]
        b.init(f"setres{kind}", 0 if 0 in ids else ids[0], text=f"{kind} {0 if 0 in ids else ids[0]} of the user namespace")


def compile_streams(b: Builder, process: Process, linux: Linux | None) -> None:
    """Give the standard streams to the process's user of the host, as nobody can who is in the user namespace already."""
    uid = process.user.uid or 0 if process.user else 0
    for entry in _maps(linux, "uid"):
        if entry.container_id <= uid < entry.container_id + entry.size and not process.terminal:
            owner = entry.host_id + uid - entry.container_id
            b.init("own_stdio", owner, text=f"pipes among the standard streams are user {owner}'s of the host")
