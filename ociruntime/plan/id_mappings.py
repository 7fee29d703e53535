"""Id mappings of user namespaces and of mounts (config-linux.md#user-namespace-mappings; config.md, ``idmap``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from ..spec import IDMapping
from . import kernel
from .model import NO_SLOT, PlanBuilder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Linux, Mount, Process, RuntimeSpec
    from .mount_options import MountOptions

Mappings = Sequence[IDMapping]


def host_id(mappings: Mappings, container_id: int) -> int | None:
    """Return the host's id of an id in the user namespace, or None if it is not mapped."""
    for entry in mappings:
        if entry.container_id <= container_id < entry.container_id + entry.size:
            return entry.host_id + container_id - entry.container_id
    return None


def root_id(mappings: Mappings) -> int:
    """Return the id that owns what is created in the user namespace: 0, or the first mapped id if 0 is not mapped."""
    return 0 if host_id(mappings, 0) is not None else mappings[0].container_id


def mappings_of(linux: Linux | None, kind: str) -> tuple[IDMapping, ...]:
    """Return the mappings of ``uid`` or ``gid``."""
    return (getattr(linux, f"{kind}_mappings") if linux else None) or ()


def maps_own_id_alone(mappings: Mappings, own: int) -> bool:
    """Return whether this is the only mapping that an unprivileged user may write without a helper."""
    return len(mappings) == 1 and mappings[0].host_id == own and mappings[0].size == 1


def map_text(mappings: Mappings) -> str:
    """Return mappings in the kernel's format (user_namespaces(7))."""
    return "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in mappings)


# ---- user namespaces ----


def with_default_mappings(spec: RuntimeSpec, host: Host) -> RuntimeSpec:
    """Return the config with id mappings, as crun chooses them, if it has a new user namespace without any.

    The caller's own id becomes the user of the process, so that files it creates belong to the caller. The subordinate ids become
    all other ids, from 0 on.
    """
    linux = spec.linux
    if linux is None or all(mappings_of(linux, kind) for kind in ("uid", "gid")):
        return spec
    if not any(namespace.type == "user" and not namespace.path for namespace in linux.namespaces or ()):
        return spec
    user = spec.process.user if spec.process else None
    uid, gid = (user.uid or 0, user.gid or 0) if user else (0, 0)
    subuids, subgids = (host.subuids, host.subgids) if host.privileged or host.idmap_helpers else ((), ())
    uids = mappings_of(linux, "uid") or _default_mappings(uid, host.euid, subuids)
    gids = mappings_of(linux, "gid") or _default_mappings(gid, host.egid, subgids)
    return spec.evolve(linux=linux.evolve(uid_mappings=uids, gid_mappings=gids))


def _default_mappings(process_id: int, own: int, ranges: Sequence[tuple[int, int]]) -> tuple[IDMapping, ...]:
    """Map ``process_id`` to the caller's own id, and the ids around it to the subordinate ranges."""
    mappings: list[tuple[int, int, int]] = []
    next_id = 0
    for first, count in ranges:
        before = process_id - next_id
        if 0 <= before < count:
            mappings += [(next_id, first, before), (process_id, own, 1), (process_id + 1, first + before, count - before)]
            next_id += count + 1
        else:
            mappings.append((next_id, first, count))
            next_id += count
    if next_id <= process_id:
        mappings.append((process_id, own, 1))
    return tuple(IDMapping(container_id=inside, host_id=outside, size=size) for inside, outside, size in mappings if size)


def compile_id_mappings(builder: PlanBuilder, linux: Linux, host: Host, *, configured: Linux) -> None:
    """Let the caller write the mappings of the process that the init has just forked.

    Args:
        configured: ``linux`` of the config, which may leave the mappings to `with_default_mappings`.

    Raises:
        UnsupportedError: this user may not map an id.
    """
    for kind, own, ranges in (("uid", host.euid, host.subuids), ("gid", host.egid, host.subgids)):
        mappings = mappings_of(linux, kind)
        text = map_text(mappings)
        helper = ""
        if not host.privileged:
            if not maps_own_id_alone(mappings, own):
                helper = _helper(kind, mappings, host, ((own, 1), *ranges))
            elif kind == "gid":
                builder.add_host("proc_write", "setgroups", "deny", text="deny > /proc/PID/setgroups, for an unprivileged gid map")
        description = ", ".join(text.splitlines())
        description = f"{helper} PID {description}" if helper else f"{description} > /proc/PID/{kind}_map"
        if not mappings_of(configured, kind):
            subordinate = f" and the ids of /etc/sub{kind}" if len(mappings) > 1 else ""
            description += f" (default without {kind}Mappings: the caller's own id{subordinate})"
        builder.add_host("idmap", f"{kind}_map", text, helper, text=description)


def _helper(kind: str, mappings: Mappings, host: Host, ranges: Sequence[tuple[int, int]]) -> str:
    """Return the program that writes a mapping for an unprivileged user."""
    location = f"$.linux.{kind}Mappings"
    for index, entry in enumerate(mappings):
        last = entry.host_id + entry.size - 1
        if not any(first <= entry.host_id and last < first + count for first, count in ranges):
            raise UnsupportedError(
                f"{location}[{index}]: user {host.euid} may not map the host ids {entry.host_id}-{last}; "
                f"add them to /etc/sub{kind}, or map {kind} {host.euid if kind == 'uid' else host.egid} alone"
            )
    if not host.idmap_helpers:
        raise UnsupportedError(f"{location}: mapping more than the own id needs new{kind}map (Debian: uidmap) or root")
    return host.idmap_helpers[0 if kind == "uid" else 1]


def compile_stream_owner(builder: PlanBuilder, process: Process, linux: Linux | None) -> None:
    """Give pipes among the standard streams to the process's user while the init is still outside of the user namespace."""
    uid = process.user.uid or 0 if process.user else 0
    owner = host_id(mappings_of(linux, "uid"), uid)
    if owner is not None and not process.terminal:
        builder.add("own_stdio", owner, text=f"standard streams that are pipes, for the host's user {owner}")


# ---- mounts ----


class MountMappings:
    """The user namespaces that hold the id mappings of a container's mounts: one for each pair of mappings."""

    def __init__(self, builder: PlanBuilder, spec: RuntimeSpec, host: Host) -> None:
        self._builder, self._spec, self._host = builder, spec, host
        self._slots: dict[object, int] = {}

    def refuse(self, mount: Mount, options: MountOptions, location: str) -> None:
        """Raise UnsupportedError if a mount that is not a bind mount has an id mapping."""
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            raise UnsupportedError(f"{location}: only bind mounts can be id-mapped")

    def slot_for(self, mount: Mount, options: MountOptions, location: str) -> int:
        """Return the slot of the user namespace with the id mapping of a bind mount, or NO_SLOT if it has none.

        Raises:
            UnsupportedError: the caller is not root.
        """
        uids, gids = mount.uid_mappings or (), mount.gid_mappings or ()
        if not options.idmap and not uids and not gids:
            return NO_SLOT
        if self._host.euid != 0:
            raise UnsupportedError(f"{location}: an id-mapped mount needs root")
        if uids:
            return self._namespace(location, (map_text(uids), map_text(gids)))
        linux = self._spec.linux
        assert linux is not None, "the rules require a user namespace"
        path = next((namespace.path for namespace in linux.namespaces or () if namespace.type == "user"), None)
        if not path:
            return self._namespace(location, (map_text(linux.uid_mappings or ()), map_text(linux.gid_mappings or ())))
        if path not in self._slots:
            self._slots[path] = self._builder.add_input("namespace", location, path, kernel.CLONE_NEW["user"])
        return self._slots[path]

    def _namespace(self, location: str, maps: tuple[str, str]) -> int:
        if maps not in self._slots:
            self._slots[maps] = self._builder.add_input("userns", location, maps=maps)
        return self._slots[maps]
