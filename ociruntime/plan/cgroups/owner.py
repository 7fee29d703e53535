"""Whose the container's cgroup is (config-linux.md#cgroup-ownership)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Process, RuntimeSpec
    from ..model import Builder
    from ..namespaces import Namespaces
    from .placement import Placement

_CAP_CHOWN: Final = 1 << 0


def compile_owner(b: Builder, placement: Placement, spec: RuntimeSpec, spaces: Namespaces, host: Host) -> None:
    """The step that gives the container's cgroup to its user, who sees it writable as the root of a cgroup namespace.

    Only on v2 alone, as v1 cannot be delegated safely, and only by who may: to others the spec's MAY means no.
    """
    unified = placement.unified
    if unified is None or host.cgroup_mode != "v2" or "cgroup" not in spaces.new or not _writable(spec):
        return
    uid = _host_uid(spec, spaces)
    if uid is None or uid == host.euid or not host.capabilities & _CAP_CHOWN:
        return
    shown = f"{unified.directory} and its files of /sys/kernel/cgroup/delegate are user {uid}'s of the host"
    b.host("cgroup_delegate", unified.directory, uid, text=shown)


def _writable(spec: RuntimeSpec) -> bool:
    return any(
        mount.source == "cgroup"
        and mount.destination == "/sys/fs/cgroup"
        and mount.type in ("cgroup", "cgroup2")
        and "ro" not in (mount.options or ())
        for mount in spec.mounts or ()
    )


def _host_uid(spec: RuntimeSpec, spaces: Namespaces) -> int | None:
    """The user of the container's process, as the caller knows it; None in a user namespace that exists already."""
    uid = _uid(spec.process)
    if not spaces.user:
        return uid
    maps = spec.linux.uid_mappings or () if spec.linux and "user" in spaces.new else ()
    return next((m.host_id + uid - m.container_id for m in maps if m.container_id <= uid < m.container_id + m.size), None)


def _uid(process: Process | None) -> int:
    return (process.user.uid or 0) if process and process.user else 0
