"""Cgroup filesystems in a container: they show its own cgroups (config-linux.md#default-filesystems).

With a cgroup namespace a new mount has the container's cgroup as its root. Without one it would show all cgroups of the host, so
the container's own cgroups are bind mounted instead, read-only unless the options say ``rw``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from . import kernel
from .model import NO_SLOT
from .mount_options import MountOptions
from .ops import Target

if TYPE_CHECKING:
    from ..host import Hierarchy, Host
    from .cgroups import Placement
    from .detached_mounts import Attach, DetachedMounts
    from .mount_options import MountEntry

_ALWAYS: Final = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOEXEC


class CgroupMounts:
    """The cgroup mounts of one container."""

    def __init__(self, mounts: DetachedMounts, host: Host, placement: Placement, *, namespaced: bool) -> None:
        self._mounts = mounts
        self._host = host
        self._directories = {place.hierarchy.mountpoint: place.directory for place in placement.places}
        self._namespaced = namespaced

    def create(self, entry: MountEntry) -> tuple[int, Attach]:
        """Create the detached mounts; return the slot of the topmost one and what attaches them. Raises UnsupportedError."""
        _, location, destination, fstype, options = entry
        hierarchies = self._host.hierarchies
        options = options.of_one_mount()
        options = options._replace(set=options.set | _ALWAYS, superblock=tuple(o for o in options.superblock if o != "ro"))
        unified = next((h for h in hierarchies if h.version == 2), None)
        if not hierarchies or (fstype == "cgroup2" and unified is None):
            raise UnsupportedError(f"{location}: no {fstype} filesystem is mounted on this host")
        if not self._namespaced and "rw" not in options.superblock:
            options = options._replace(set=options.set | kernel.MOUNT_ATTR_RDONLY)
        if fstype == "cgroup2" or all(h.version == 2 for h in hierarchies):
            assert unified is not None
            slot = self._create_one(unified, destination, options, location)
            return slot, self._mounts.attacher(slot, destination, "cgroup2")
        if options.data:
            option = options.data[0][0]
            raise UnsupportedError(
                f"{location}.options: {option!r} is not supported on cgroup v1, where all hierarchies of the host are mounted"
            )
        return self._create_all(hierarchies, destination, options, location)

    def _create_one(self, hierarchy: Hierarchy, destination: str, options: MountOptions, location: str) -> int:
        """Create the mount of one hierarchy."""
        if self._namespaced:
            if hierarchy.version == 2:
                return self._mounts.create_filesystem("cgroup2", "cgroup", destination, options, location)
            options = options._replace(data=_v1_data(hierarchy))
            return self._mounts.create_filesystem("cgroup", "cgroup", destination, options, location)
        directory = self._directories.get(hierarchy.mountpoint, "")
        if not directory and not options.set & kernel.MOUNT_ATTR_RDONLY:
            raise UnsupportedError(
                f"{location}: the container has no cgroup in {hierarchy.mountpoint}, so a writable mount would give it the "
                "host's; mount it read-only, or add a cgroup namespace"
            )
        source = directory or hierarchy.mountpoint
        return self._mounts.clone(source, destination, options._replace(data=(), superblock=()))

    def _create_all(
        self, hierarchies: Sequence[Hierarchy], destination: str, options: MountOptions, location: str
    ) -> tuple[int, Attach]:
        """Create a tmpfs with a directory for each hierarchy, and links for controllers that share one, as on the host."""
        builder = self._mounts.builder
        late = options.set & kernel.MOUNT_ATTR_RDONLY
        tmpfs = MountOptions(set=_ALWAYS, data=(("mode", "755"),), propagation=options.propagation)
        top = self._mounts.create_filesystem("tmpfs", "cgroup", destination, tmpfs, location)
        slots = {}
        for hierarchy in hierarchies:
            name = posixpath.basename(hierarchy.mountpoint)
            slots[name] = (hierarchy, self._create_one(hierarchy, f"{destination}/{name}", options, location))
        attach_top = self._mounts.attacher(top, destination, "tmpfs")

        def attach(root: int) -> int:
            attach_top(root)
            for name, (hierarchy, slot) in slots.items():
                target = self._mounts.open_target(top, f"/{name}", Target(0), slot, description=f"{destination}/{name}")
                builder.add("move_mount", slot, target, text=f"cgroup -> {destination}/{name}")
                if hierarchy.version == 1:
                    for controller in sorted(hierarchy.controllers - {name}):
                        if not controller.startswith("name="):
                            builder.add("symlink", top, controller, name, text=f"{destination}/{controller} -> {name}")
            if late:
                builder.add("mount_setattr", top, 0, late, 0, 0, NO_SLOT, text=f"ro for {destination}")
            return top

        return top, attach


def _v1_data(hierarchy: Hierarchy) -> tuple[tuple[str, str | None], ...]:
    """Return the options of a v1 filesystem that select a hierarchy."""
    named = next((c.removeprefix("name=") for c in hierarchy.controllers if c.startswith("name=")), None)
    controllers = tuple((c, None) for c in sorted(hierarchy.controllers) if not c.startswith("name="))
    if named is None:
        return controllers
    return (*(controllers or (("none", None),)), ("name", named))
