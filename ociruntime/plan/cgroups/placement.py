"""Where the container's cgroups are, how they are made, who owns them, and how the init gets into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from ...errors import Problem, SpecError

if TYPE_CHECKING:
    from ...host import Hierarchy, Host
    from ...spec import Process, RuntimeSpec
    from ..model import Builder
    from ..namespaces import Namespaces


SECTION: Final = "config-linux.md#cgroups-path"

Manager = Literal["cgroupfs", "systemd", "disabled"]
"""Who makes cgroups: this process through the filesystem, systemd at our request, or nobody."""
MANAGERS: Final[tuple[Manager, ...]] = get_args(Manager)


class Place(NamedTuple):
    """The container's cgroup in one hierarchy."""

    directory: str
    hierarchy: Hierarchy


class Placement(NamedTuple):
    """The container's cgroups, one in each hierarchy that it has one in."""

    places: tuple[Place, ...]
    lack: str = ""
    """Why there are none, if there are none."""
    scope: str = ""
    """The unit that systemd makes around the init, of which the cgroup is."""

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(place.directory for place in self.places)

    @property
    def unified(self) -> Place | None:
        """The cgroup in the v2 hierarchy, if there is one."""
        return next((place for place in self.places if place.hierarchy.version == 2), None)

    @property
    def into(self) -> str:
        """The v2 cgroup to start the init in (CLONE_INTO_CGROUP), or ``""``."""
        return self.unified.directory if self.unified and not self.scope else ""

    def of(self, controller: str) -> Place | None:
        """The cgroup that a controller's files are in, if any."""
        return next((place for place in self.places if controller in place.hierarchy.controllers), None)


def cgroup_path(path: str | None, container_id: str) -> tuple[str, bool]:
    """The cgroup's path and whether it counts from the hierarchy's root: ``linux.cgroupsPath``, or ``ociruntime-ID``.

    Raises:
        SpecError: for ``..`` or a path that names the root itself.
    """
    if path is None or path == "":
        return f"/ociruntime-{container_id}", False
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or any("\n" in part or "\0" in part for part in parts):
        raise SpecError([Problem("$.linux.cgroupsPath", f"{path!r} does not name a cgroup below the root", SECTION)])
    if any(len(part.encode()) > 255 for part in parts):
        raise SpecError([Problem("$.linux.cgroupsPath", "a part of it is longer than 255 bytes", SECTION)])
    return "/" + "/".join(parts), path.startswith("/")


def place(path: str | None, container_id: str, host: Host) -> Placement:
    """Where a container's cgroups are to be: in every hierarchy in which this user may make them.

    An absolute path counts from the hierarchies' roots. A relative one counts from where this user may make cgroups: for root these
    are the roots too, so that the same path names the same place from wherever it is called.

    Raises:
        SpecError: for a path that cannot name a cgroup.
    """
    below, absolute = cgroup_path(path, container_id)
    places = []
    for hierarchy in host.hierarchies:
        if hierarchy.base is None:
            continue
        full = below if absolute else hierarchy.base.rstrip("/") + below
        if hierarchy.holds(full):
            places.append(Place(hierarchy.mountpoint + full, hierarchy))
    if places:
        return Placement(tuple(places))
    if not host.hierarchies:
        return Placement((), "and none are mounted on this host")
    bases = sorted({h.mountpoint + h.base for h in host.hierarchies if h.base})
    if bases and absolute:
        return Placement((), f"and this user may make them below {', '.join(bases)} only: correct linux.cgroupsPath")
    return Placement(
        (),
        "and this user may make none here: use --cgroup-manager systemd, or run in 'systemd-run --user --scope -p Delegate=yes'",
    )


DISABLED: Final = Placement((), "which are disabled")
"""For who wants none."""


def placed(directories: Sequence[str], host: Host) -> Placement:
    """The placement of a container that exists, from the directories that its state holds."""
    places = []
    for directory in directories:
        above = [h for h in host.hierarchies if directory.startswith(h.mountpoint + "/")]
        if above:
            places.append(Place(directory, max(above, key=lambda h: len(h.mountpoint))))
    return Placement(tuple(places))


def inner(placement: Placement, wanted: str | Mapping[str, str]) -> dict[str, str]:
    """The container's cgroups, each with the one below it that is wanted: for all of them, or by controller.

    Raises:
        ValueError: for ``..``, a controller that no cgroup of the container has, or two paths in one hierarchy.
    """
    if isinstance(wanted, str):
        return {place.directory: _under(place.directory, wanted) for place in placement.places}
    found: dict[str, str] = {}
    for controller, path in wanted.items():
        place = placement.of(controller)
        if place is None:
            raise ValueError(f"cgroup {controller}:{path}: the container has no cgroup with the controller {controller!r}")
        chosen = _under(place.directory, path)
        if found.setdefault(place.directory, chosen) != chosen:
            raise ValueError(
                f"cgroup {controller}:{path}: another one is asked for in the same hierarchy: {found[place.directory]}"
            )
    return found


def _under(directory: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"cgroup {path!r} leads out of the container's cgroup")
    return "/".join((directory, *parts))


def compile_places(b: Builder, places: Iterable[Place]) -> None:
    """The steps that make cgroups."""
    for directory, hierarchy in places:
        label = "v2" if hierarchy.version == 2 else ",".join(sorted(hierarchy.controllers)) or "v1"
        inherit = "cpuset" in hierarchy.controllers and hierarchy.version == 1
        b.host("cgroup_mkdir", directory, inherit, text=f"{directory} ({label})")


def compile_join(b: Builder, placement: Placement, *, unified: bool = False) -> None:
    """The init moves itself: on v1 a write of 0 to ``tasks`` moves one thread and waits for nobody.

    On v2 it starts in its cgroup, unless ``unified`` says that it moves there only now. Into a scope it is moved by others.
    """
    if placement.scope:
        return
    for directory, hierarchy in placement.places:
        if hierarchy.version == 1:
            slot = b.input("write", f"{directory}/tasks", f"{directory}/tasks")
            b.init("write", slot, "", b"0", text=f"itself > {directory}/tasks")
        elif unified:
            slot = b.input("write", f"{directory}/cgroup.procs", f"{directory}/cgroup.procs")
            b.init("write", slot, "", b"0", text=f"itself > {directory}/cgroup.procs")


def compile_follow(b: Builder, places: Iterable[Place]) -> None:
    """As `compile_join` on v1, into cgroups that are not there yet when the init starts."""
    for directory, hierarchy in places:
        if hierarchy.version == 1:
            slot = b.input("path", hierarchy.mountpoint, hierarchy.mountpoint)
            path = f"{directory}/tasks".removeprefix(f"{hierarchy.mountpoint}/")
            b.init("write", slot, path, b"0", text=f"itself > {directory}/tasks")


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
