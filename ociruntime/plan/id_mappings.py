"""Id mappings of user namespaces and of mounts (config-linux.md#user-namespace-mappings; config.md, ``idmap``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from ..spec import IDMapping
from . import kernel as k
from .model import NO_SLOT, Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Mount, Process, RuntimeSpec
    from .mount_options import Options


def with_idmaps(spec: RuntimeSpec, host: Host) -> RuntimeSpec:
    """The same config with maps of ids, where it wants a new user namespace and has none, as crun does it. Pure.

    The caller is the user of the process, as everything is his that he makes; the ids that /etc/subuid and /etc/subgid give him are
    all others, from 0 on.
    """
    linux = spec.linux
    if linux is None or all(mappings_of(linux, kind) for kind in ("uid", "gid")):
        return spec
    if not any(space.type == "user" and not space.path for space in linux.namespaces or ()):
        return spec
    user = spec.process.user if spec.process else None
    usable = host.privileged or host.idmap_helpers
    uids = _default_map((user.uid or 0) if user else 0, host.euid, host.subuids if usable else ())
    gids = _default_map((user.gid or 0) if user else 0, host.egid, host.subgids if usable else ())
    changed = linux.evolve(uid_mappings=mappings_of(linux, "uid") or uids, gid_mappings=mappings_of(linux, "gid") or gids)
    return spec.evolve(linux=changed)


def _default_map(inside: int, own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IDMapping, ...]:
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


def mappings_of(linux: Linux | None, kind: str) -> tuple[IDMapping, ...]:
    return (getattr(linux, f"{kind}_mappings") if linux else None) or ()


def is_own_id(maps: Sequence[IDMapping], own: int) -> bool:
    """Whether the map is the only one that a user may write without a helper."""
    return len(maps) == 1 and maps[0].host_id == own and maps[0].size == 1


def compile_idmaps(b: Builder, linux: Linux, host: Host, *, asked: Linux) -> None:
    """The caller writes the maps of the process that the init just forked. Raises UnsupportedError.

    Args:
        asked: as the config has it, which may leave the maps to us.
    """
    for kind, own, allowed in (("uid", host.euid, host.subuids), ("gid", host.egid, host.subgids)):
        where, maps = f"$.linux.{kind}Mappings", mappings_of(linux, kind)
        text = "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in maps)
        shown = ", ".join(text.splitlines())
        helper = ""
        if not host.privileged:
            if not is_own_id(maps, own):
                helper = _helper(where, kind, maps, host, ((own, 1), *allowed))
            elif kind == "gid":
                b.host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups: without privileges the groups stay")
        by = f"{helper} PID {shown}" if helper else f"{shown} > /proc/PID/{kind}_map"
        if not mappings_of(asked, kind):
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


def compile_streams(b: Builder, process: Process, linux: Linux | None) -> None:
    """Give the standard streams to the process's user of the host, as nobody can who is in the user namespace already."""
    uid = process.user.uid or 0 if process.user else 0
    owner = host_id(mappings_of(linux, "uid"), uid)
    if owner is not None and not process.terminal:
        b.init("own_stdio", owner, text=f"pipes among the standard streams are user {owner}'s of the host")


Maps = tuple[str, str]


def map_text(maps: Sequence[IDMapping]) -> str:
    """A map as the kernel takes it (user_namespaces(7))."""
    return "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in maps)


class IdMaps:
    """The user namespaces that hold the maps of one container's mounts: one for each pair of maps."""

    def __init__(self, b: Builder, spec: RuntimeSpec, host: Host, own: Collection[str]) -> None:
        self._b, self._spec, self._host, self._own = b, spec, host, own
        self._slots: dict[object, int] = {}

    def refuse(self, mount: Mount, options: Options, where: str) -> None:
        """For a mount that is no bind mount. Raises UnsupportedError."""
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            raise UnsupportedError(f"{where}: only bind mounts can be id-mapped")

    def of(self, mount: Mount, options: Options, where: str) -> int:
        """The slot of the user namespace that maps a bind mount's ids; NO_SLOT for one whose ids stay. Raises as `Mounts`."""
        uids, gids = mount.uid_mappings or (), mount.gid_mappings or ()
        if not options.idmap and not uids and not gids:
            return NO_SLOT
        if self._host.euid != 0:
            raise UnsupportedError(f"{where}: an id-mapped mount needs root")
        if uids:
            return self._new(where, (map_text(uids), map_text(gids)))
        linux = self._spec.linux
        assert linux is not None, "the rules want a user namespace"
        path = next((space.path for space in linux.namespaces or () if space.type == "user"), None)
        if path:
            if path not in self._slots:
                self._slots[path] = self._b.input("namespace", where, path, k.CLONE_NEW["user"])
            return self._slots[path]
        return self._new(where, (map_text(linux.uid_mappings or ()), map_text(linux.gid_mappings or ())))

    def _new(self, where: str, maps: Maps) -> int:
        if maps not in self._slots:
            self._slots[maps] = self._b.input("userns", where, maps=maps)
        return self._slots[maps]
