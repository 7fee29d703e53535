"""The placement of the container's cgroups: their paths, how they are created, their owner, and how the init joins them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from ...arguments import shown
from ...errors import SpecError
from ...spec.base import Problem
from ..namespaces import host_id, mappings_of

if TYPE_CHECKING:
    from ...host import Hierarchy, Host
    from ...spec import ProcessSpec, Resources, RuntimeSpec
    from ..model import PlanBuilder
    from ..namespaces import Namespaces


SECTION: Final = "config-linux.md#cgroups-path"

Manager = Literal["cgroupfs", "systemd", "disabled"]
"""What creates the cgroups: this process through the filesystem, systemd, or nothing (``disabled``)."""
MANAGERS: Final[tuple[Manager, ...]] = get_args(Manager)


class Place(NamedTuple):
    """The container's cgroup in one hierarchy."""

    directory: str
    hierarchy: Hierarchy


class Placement(NamedTuple):
    """The container's cgroups, at most one in each hierarchy."""

    places: tuple[Place, ...]
    lack: str = ""
    """The reason if there are none."""
    scope: str = ""
    """The systemd unit whose cgroup it is, or an empty string."""

    @property
    def directories(self) -> tuple[str, ...]:
        """The directories of the cgroups."""
        return tuple(place.directory for place in self.places)

    @property
    def unified(self) -> Place | None:
        """The cgroup in the v2 hierarchy, if there is one."""
        return next((place for place in self.places if place.hierarchy.version == 2), None)

    @property
    def into(self) -> str:
        """The v2 cgroup into which the init is cloned (CLONE_INTO_CGROUP), or an empty string."""
        return self.unified.directory if self.unified and not self.scope else ""

    def of(self, controller: str) -> Place | None:
        """Return the cgroup with the files of a controller, if any."""
        return next((place for place in self.places if controller in place.hierarchy.controllers), None)


def cgroup_path(path: str | None, container_id: str) -> tuple[str, bool]:
    """Return the path of ``linux.cgroupsPath``, by default ``ociruntime-ID``, and whether it is absolute.

    Raises:
        SpecError: the path contains ``..``, or is the root itself.
    """
    if path is None or path == "":
        return f"/ociruntime-{container_id}", False
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or not parts or any("\n" in part or "\0" in part for part in parts):
        raise SpecError([Problem("$.linux.cgroupsPath", f"{shown(path)} does not name a cgroup below the root", SECTION)])
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in parts):
        raise SpecError([Problem("$.linux.cgroupsPath", "a component of the path is longer than 255 bytes", SECTION)])
    return "/" + "/".join(parts), path.startswith("/")


def new_placement(cgroups_path: str | None, container_id: str, host: Host) -> Placement:
    """Return the placement of a new container: a cgroup in every hierarchy in which this user may create one.

    An absolute path starts at the root of each hierarchy. A relative one starts at the cgroup below which this user may create
    others; for root that is the root of the hierarchy, so that a path does not depend on the caller's cgroup.

    Raises:
        SpecError: the path cannot name a cgroup.
    """
    path, absolute = cgroup_path(cgroups_path, container_id)
    places = []
    for hierarchy in host.hierarchies:
        if hierarchy.base is None:
            continue
        full = path if absolute else hierarchy.base.rstrip("/") + path
        if hierarchy.holds(full):
            places.append(Place(hierarchy.mountpoint + full, hierarchy))
    if places:
        return Placement(tuple(places))
    bases = sorted({h.mountpoint + h.base for h in host.hierarchies if h.base})
    if bases and absolute:
        return Placement((), f"this user may create cgroups below {', '.join(bases)} only; correct linux.cgroupsPath")
    return Placement((), no_cgroups(host))


def no_cgroups(host: Host) -> str:
    """Return why this user may not create cgroups, and what helps on this host."""
    if not host.hierarchies:
        return "this host has no cgroup filesystem mounted; mount it" + (" as root" if host.euid else "")
    if not host.euid:
        return "no cgroup filesystem is writable; mount it with the option rw"
    return f"user {host.euid} may not create cgroups; {privileged_remedy(host, may_use_systemd=True)}"


def privileged_remedy(host: Host, *, may_use_systemd: bool = False) -> str:
    """Return how this user gets cgroups.

    Args:
        may_use_systemd: whether to name the systemd cgroup manager, which is not what failed.
    """
    delegate = f"run as root, or let root delegate cgroups to user {host.euid} (docs/cgroups.md)"
    if may_use_systemd and host.cgroup_mode == "v2":
        if host.systemd is not None:
            return "use --cgroup-manager systemd, or run in 'systemd-run --user --scope -p Delegate=yes'"
        if host.booted:
            return f"let root run 'loginctl enable-linger {host.euid}', and use --cgroup-manager systemd"
    return delegate


DISABLED: Final = Placement((), "the cgroup manager is disabled")
"""The placement for the manager ``disabled``."""


def existing_placement(directories: Sequence[str], host: Host) -> Placement:
    """Return the placement of an existing container, from the directories in its state."""
    if not directories:
        return Placement((), f"the container was created without one; {recreate(host)}")
    places = []
    for directory in directories:
        above = [h for h in host.hierarchies if directory.startswith(h.mountpoint + "/")]
        if above:
            places.append(Place(directory, max(above, key=lambda h: len(h.mountpoint))))
    return Placement(tuple(places))


def recreate(host: Host) -> str:
    """Return how a container gets cgroups that was created without."""
    if host.may_create_cgroups:
        return "create it again with --cgroup-manager cgroupfs"
    return no_cgroups(host)


def inner_cgroups(placement: Placement, paths: str | Mapping[str, str]) -> dict[str, str]:
    """Return the directory of each of the container's cgroups, with the cgroup below it that an exec process joins.

    Args:
        paths: the path below each cgroup: one for all of them, or by controller.

    Raises:
        ValueError: a path contains ``..``, no cgroup of the container has the controller, or a hierarchy gets two paths.
    """
    if isinstance(paths, str):
        return {place.directory: _under(place.directory, paths) for place in placement.places}
    directories: dict[str, str] = {}
    for controller, path in paths.items():
        place = placement.of(controller)
        if place is None:
            raise ValueError(f"cgroup {controller}:{path}: unknown controller {controller!r}: no cgroup of the container has it")
        chosen = _under(place.directory, path)
        if directories.setdefault(place.directory, chosen) != chosen:
            raise ValueError(f"cgroup {controller}:{path}: the same hierarchy already has the path {directories[place.directory]}")
    return directories


def _under(directory: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"cgroup {shown(path)}: bad sub cgroup path: it leads out of the container's cgroup")
    return "/".join((directory, *parts))


def compile_places(builder: PlanBuilder, places: Iterable[Place], resources: Resources | None) -> None:
    """Create cgroups.

    Args:
        resources: the limits that are written afterwards.
    """
    cpu = resources.cpu if resources else None
    given = tuple(f"cpuset.{name}" for name in ("cpus", "mems") if cpu and getattr(cpu, name))
    for directory, hierarchy in places:
        label = "v2" if hierarchy.version == 2 else ",".join(sorted(hierarchy.controllers)) or "v1"
        cpuset = "cpuset" in hierarchy.controllers and hierarchy.version == 1
        builder.add_host("cgroup_mkdir", directory, cpuset, given if cpuset else (), text=f"cgroup {directory} ({label})")


def compile_join(builder: PlanBuilder, placement: Placement, *, unified: bool = False) -> None:
    """Let the init move itself into its cgroups; into a scope systemd moves it.

    On v1 it writes 0 to ``tasks``, which moves one thread without waiting for a grace period of the kernel.

    Args:
        unified: whether it joins the v2 cgroup too, because it was not cloned into it.
    """
    if placement.scope:
        return
    for directory, hierarchy in placement.places:
        if hierarchy.version == 1:
            slot = builder.add_input("write", f"{directory}/tasks", f"{directory}/tasks")
            builder.add("write", slot, "", b"0", text=f"init process > {directory}/tasks")
        elif unified:
            slot = builder.add_input("write", f"{directory}/cgroup.procs", f"{directory}/cgroup.procs")
            builder.add("write", slot, "", b"0", text=f"init process > {directory}/cgroup.procs")


def compile_follow(builder: PlanBuilder, places: Iterable[Place]) -> None:
    """Let the init join v1 cgroups that do not exist when it is cloned."""
    for directory, hierarchy in places:
        if hierarchy.version == 1:
            slot = builder.add_input("path", hierarchy.mountpoint, hierarchy.mountpoint)
            path = f"{directory}/tasks".removeprefix(f"{hierarchy.mountpoint}/")
            builder.add("write", slot, path, b"0", text=f"init process > {directory}/tasks")


_CAP_CHOWN: Final = 1 << 0


def compile_owner(builder: PlanBuilder, placement: Placement, spec: RuntimeSpec, namespaces: Namespaces, host: Host) -> None:
    """Delegate the container's cgroup to its user, if it is writable as the root of a cgroup namespace (#cgroup-ownership).

    v1 cannot be delegated safely, so this is for v2 alone. A caller that may not change the owner skips it, as the spec allows.
    """
    unified = placement.unified
    if unified is None or host.cgroup_mode != "v2" or "cgroup" not in namespaces.new or not _writable(spec):
        return
    uid = _host_uid(spec, namespaces)
    if uid is None or uid == host.euid or not host.capabilities & _CAP_CHOWN:
        return
    description = f"{unified.directory} and its files in /sys/kernel/cgroup/delegate, for the host's user {uid}"
    builder.add_host("cgroup_delegate", unified.directory, uid, text=description)


def _writable(spec: RuntimeSpec) -> bool:
    return any(
        mount.source == "cgroup"
        and mount.destination == "/sys/fs/cgroup"
        and mount.type in ("cgroup", "cgroup2")
        and "ro" not in (mount.options or ())
        for mount in spec.mounts or ()
    )


def _host_uid(spec: RuntimeSpec, namespaces: Namespaces) -> int | None:
    """Return the host's id of the container's user, or None in a user namespace that exists already."""
    uid = _uid(spec.process)
    if not namespaces.user:
        return uid
    return host_id(mappings_of(spec.linux, "uid") if "user" in namespaces.new else (), uid)


def _uid(process: ProcessSpec | None) -> int:
    return (process.user.uid or 0) if process and process.user else 0
