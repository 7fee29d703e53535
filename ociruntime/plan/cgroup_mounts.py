"""Cgroup filesystems in a container: what its own cgroups look like from inside (config-linux.md#default-filesystems).

With a cgroup namespace the filesystem is mounted anew, and its root is the container's cgroup. Without one a mount would show the
host's whole tree, so the container's own cgroups are bound instead, read-only unless the config says ``rw``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from . import kernel as k
from .model import NO_SLOT
from .mount_options import Options
from .ops import Target

if TYPE_CHECKING:
    from ..host import Hierarchy, Host
    from .cgroups import Placement
    from .mounts import Mounts, Wanted

_ALWAYS: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


class CgroupMounts:
    """The cgroup mounts of one container."""

    def __init__(self, mounts: Mounts, host: Host, placement: Placement, *, namespaced: bool) -> None:
        self._mounts = mounts
        self._host = host
        self._own = {place.hierarchy.mountpoint: place.directory for place in placement.places}
        self._namespaced = namespaced

    def prepare(self, wanted: Wanted) -> tuple[int, Callable[[int], int]]:
        """The steps that make the mounts, detached; gives a slot and what attaches them. Raises UnsupportedError."""
        _, where, destination, fstype, options = wanted
        hierarchies = self._host.hierarchies
        options = options.of_one_mount()
        options = options._replace(set=options.set | _ALWAYS, superblock=tuple(w for w in options.superblock if w != "ro"))
        unified = next((h for h in hierarchies if h.version == 2), None)
        if not hierarchies or (fstype == "cgroup2" and unified is None):
            raise UnsupportedError(f"{where}: no {fstype} filesystem is mounted on this host")
        if not self._namespaced and "rw" not in options.superblock:
            options = options._replace(set=options.set | k.MOUNT_ATTR_RDONLY)
        if fstype == "cgroup2" or all(h.version == 2 for h in hierarchies):
            assert unified is not None
            slot = self._one(unified, destination, options, where)
            return slot, self._mounts.attacher(slot, destination, "cgroup2")
        if options.data:
            raise UnsupportedError(f"{where}.options: {options.data[0][0]!r}: all hierarchies are mounted, as the host has them")
        return self._all(hierarchies, destination, options, where)

    def _one(self, hierarchy: Hierarchy, destination: str, options: Options, where: str) -> int:
        """One hierarchy, detached."""
        if self._namespaced:
            if hierarchy.version == 2:
                return self._mounts.filesystem("cgroup2", "cgroup", destination, options, where)
            return self._mounts.filesystem("cgroup", "cgroup", destination, options._replace(data=_v1_data(hierarchy)), where)
        directory = self._own.get(hierarchy.mountpoint, "")
        if not directory and not options.set & k.MOUNT_ATTR_RDONLY:
            raise UnsupportedError(
                f"{where}: without a cgroup of its own in {hierarchy.mountpoint} the container would get the host's: "
                "mount it read-only, or give the container a cgroup namespace"
            )
        source = directory or hierarchy.mountpoint
        return self._mounts.clone(source, destination, options._replace(data=(), superblock=()))

    def _all(
        self, hierarchies: Sequence[Hierarchy], destination: str, options: Options, where: str
    ) -> tuple[int, Callable[[int], int]]:
        """A tmpfs with a directory for each hierarchy, and links for controllers that share one, as on the host."""
        b = self._mounts.b
        late = options.set & k.MOUNT_ATTR_RDONLY
        tmpfs = Options(set=_ALWAYS, data=(("mode", "755"),), propagation=options.propagation)
        top = self._mounts.filesystem("tmpfs", "cgroup", destination, tmpfs, where)
        slots = {}
        for hierarchy in hierarchies:
            name = posixpath.basename(hierarchy.mountpoint)
            slots[name] = (hierarchy, self._one(hierarchy, f"{destination}/{name}", options, where))
        attach_top = self._mounts.attacher(top, destination, "tmpfs")

        def attach(root: int) -> int:
            attach_top(root)
            for name, (hierarchy, slot) in slots.items():
                target = self._mounts.target(top, f"/{name}", Target(0), slot, shown=f"{destination}/{name}")
                b.init("move_mount", slot, target, text=f"cgroup -> {destination}/{name}")
                if hierarchy.version == 1:
                    for controller in sorted(hierarchy.controllers - {name}):
                        if not controller.startswith("name="):
                            b.init("symlink", top, controller, name, text=f"{destination}/{controller} -> {name}")
            if late:
                b.init("mount_setattr", top, 0, late, 0, 0, NO_SLOT, text=f"{destination} read-only")
            return top

        return top, attach


def _v1_data(hierarchy: Hierarchy) -> tuple[tuple[str, str | None], ...]:
    named = next((c.removeprefix("name=") for c in hierarchy.controllers if c.startswith("name=")), None)
    controllers = tuple((c, None) for c in sorted(hierarchy.controllers) if not c.startswith("name="))
    if named is None:
        return controllers
    return (*(controllers or (("none", None),)), ("name", named))
