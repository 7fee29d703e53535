"""Cgroups: where a container's are, and what is written into them (config-linux.md#control-groups). Names and values only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ...errors import UnsupportedError
from ..ops import Sync
from .limits import compile_limits, compile_writes
from .owner import compile_owner
from .placement import (
    DISABLED,
    MANAGERS,
    Manager,
    Place,
    Placement,
    compile_follow,
    compile_join,
    compile_places,
    inner,
    place,
    placed,
)

if TYPE_CHECKING:
    from ...host import Host
    from ...spec import Linux, RuntimeSpec
    from ..model import Builder
    from .files import Write

__all__ = [
    "MANAGERS",
    "Manager",
    "Place",
    "Placement",
    "Setup",
    "attached",
    "compile_attach",
    "compile_cgroups",
    "compile_join",
    "compile_late",
    "compile_owner",
    "compile_scope",
    "inner",
    "placed",
]


class Setup(NamedTuple):
    """What the steps before the clone made, and what is left for later."""

    placement: Placement
    late: list[tuple[Place, Write]]


def compile_cgroups(b: Builder, linux: Linux | None, container_id: str, host: Host, manager: Manager = "cgroupfs") -> Setup:
    """The steps before the clone that make the container's cgroups and set their limits.

    Raises:
        SpecError: ``linux.cgroupsPath`` or a limit contradicts itself.
        UnsupportedError: a limit needs a controller or a manager that this host does not have.
    """
    if manager == "systemd":
        return Setup(_in_scope(linux, container_id, host), [])
    placement = DISABLED if manager == "disabled" else place(linux.cgroups_path if linux else None, container_id, host)
    compile_places(b, placement.places)
    return Setup(placement, compile_limits(b, linux.resources if linux else None, placement, host))


def compile_late(b: Builder, setup: Setup) -> None:
    """The limits under which the init could not have been started: no further process at all."""
    compile_writes(b, setup.late)


def _in_scope(linux: Linux | None, container_id: str, host: Host) -> Placement:
    from .systemd import scope

    if host.systemd is None:
        raise UnsupportedError(
            f"the systemd cgroup manager: no systemd runs here that user {host.euid} can ask: use --cgroup-manager cgroupfs; "
            "a user's own is started by a login, or by 'loginctl enable-linger'"
        )
    user, hierarchy = host.systemd
    if user and host.cgroup_mode != "v2":
        raise UnsupportedError(
            "the systemd cgroup manager: a user's own systemd has controllers on cgroup v2 only, and this host has "
            f"{host.cgroup_mode}: use --cgroup-manager cgroupfs, or boot with systemd.unified_cgroup_hierarchy=1"
        )
    made = scope(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    # On v1 the same path in every hierarchy, as systemd itself has it in some.
    others = [h for h in host.hierarchies if h.mountpoint != hierarchy.mountpoint and h.base is not None]
    return Placement(tuple(Place(h.mountpoint + made.path, h) for h in (*others, hierarchy)), scope=made.unit)


def attached(unit: tuple[str, bool, str] | None, placement: Placement, host: Host) -> str:
    """The cgroup, as UNIT/PATH, that only systemd may move a further process to, or ``""``: that of a user who comes from outside
    of what his own systemd has, as users log in."""
    place, own = placement.unified, next((h.base for h in host.hierarchies if h.version == 2), None)
    if unit is None or not unit[1] or place is None or host.systemd is None or (own and host.systemd.hierarchy.holds(own)):
        return ""
    return unit[0] + place.directory.removeprefix(unit[2])


def compile_attach(b: Builder, attach: str) -> None:
    """The init waits while the user's systemd moves it to where `attached` says, if anywhere."""
    if attach:
        unit, slash, below = attach.partition("/")
        b.init("sync", Sync.HOST, text="the user's systemd takes the init into the container's cgroup")
        b.host("systemd_attach", unit, slash + below, True, text=attach)


def compile_scope(b: Builder, setup: Setup, spec: RuntimeSpec, container_id: str, host: Host) -> None:
    """With the manager systemd: the init waits while systemd makes a scope around it, and what systemd has no property for is set.

    Raises:
        SpecError, UnsupportedError: as for `compile_cgroups`.
    """
    assert host.systemd is not None, "who has a scope has asked it"
    from .systemd import CONTROLLERS, limits_of, properties, scope, words

    linux, (user, hierarchy) = spec.linux, host.systemd
    resources = linux.resources if linux else None
    made = scope(linux.cgroups_path if linux else None, container_id, user=user, base=hierarchy.base or "/")
    asked = properties(made, limits_of(resources, host, user=user), spec.annotations or {}, container_id=container_id)
    whose = "the user's" if user else "the system's"
    b.init("sync", Sync.HOST, text=f"{whose} systemd makes a scope around the init")
    values = (made.unit, tuple(map(tuple, asked)), made.path, setup.placement.directories[::-1], user)
    b.host("systemd_scope", *values, text=words(made, asked))
    *others, _ = setup.placement.places
    compile_places(b, [place for place in others if not CONTROLLERS & place.hierarchy.controllers])
    setup.late.extend(compile_limits(b, resources, setup.placement, host))
    compile_follow(b, others)
