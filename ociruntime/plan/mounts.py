"""The mounts of a container: each is created detached, then attached in the container's root (config.md, Mounts).

`Mounts.create` creates every mount in the order of the config, which is also the order in which the kernel lists them. With a user
namespace `Mounts.clone_sources` comes first: it copies what is bound from the host while the init has the caller's privileges.
`Mounts.attach` attaches everything in the order of the config, after the host's tree is out of reach.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..arguments import shown
from ..errors import SpecError, UnsupportedError
from ..spec.base import Problem, is_below
from . import ops
from .detached_mounts import FILLED_FIRST, SHARED, Attach, DetachedMounts
from .model import NO_SLOT, PlanBuilder
from .mount_options import Data, MountEntry, MountOptions, parse_entry, too_long
from .namespaces import MountMappings
from .ops import Target
from .rootfs import check_propagation, rootfs_path

if TYPE_CHECKING:
    from ..host import Hierarchy, Host
    from ..spec import RuntimeSpec
    from .cgroups import Placement


_ALWAYS: Final = ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NODEV | ops.MOUNT_ATTR_NOEXEC


class CreatedMount(NamedTuple):
    """A mount that is ready to be attached."""

    destination: str
    fstype: str
    slot: int
    """The slot of the detached mount, or NO_SLOT if it does not exist before it is attached."""
    attach: Attach
    readonly: bool = False
    """Whether it becomes read-only when everything in it is done."""


class CgroupMounts:
    """The cgroup mounts of one container."""

    def __init__(self, mounts: DetachedMounts, host: Host, placement: Placement, *, namespaced: bool) -> None:
        self._mounts = mounts
        self._host = host
        self._directories = {place.hierarchy.mountpoint: place.directory for place in placement.places}
        self._namespaced = namespaced

    def create(self, entry: MountEntry) -> CreatedMount:
        """Create the detached mounts. Raises UnsupportedError."""
        _, location, destination, fstype, options = entry
        hierarchies = self._host.hierarchies
        options = options.of_one_mount()
        always = _ALWAYS & ~options.clear
        options = options._replace(set=options.set | always, superblock=tuple(o for o in options.superblock if o != "ro"))
        unified = next((h for h in hierarchies if h.version == 2), None)
        if not hierarchies or (fstype == "cgroup2" and unified is None):
            raise UnsupportedError(f"{location}: no {fstype} filesystem is mounted on this host")
        if not self._namespaced and not options.clear & ops.MOUNT_ATTR_RDONLY:
            options = options._replace(set=options.set | ops.MOUNT_ATTR_RDONLY)
        if fstype == "cgroup2" or all(h.version == 2 for h in hierarchies):
            assert unified is not None
            slot = self._create_one(unified, destination, options, location)
            return CreatedMount(destination, fstype, slot, self._mounts.attacher(slot, destination, "cgroup2"))
        if options.data:
            option = options.data[0][0]
            raise UnsupportedError(
                f"{location}.options: {shown(option)} is not supported on cgroup v1, where all hierarchies of the host are mounted"
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
        if not directory and not options.set & ops.MOUNT_ATTR_RDONLY:
            raise UnsupportedError(
                f"{location}: the container has no cgroup in {hierarchy.mountpoint}, so a writable mount would give it the "
                "host's; mount it read-only, or add a cgroup namespace"
            )
        source = directory or hierarchy.mountpoint
        return self._mounts.clone(source, destination, options._replace(data=(), superblock=()))

    def _create_all(self, hierarchies: Sequence[Hierarchy], destination: str, options: MountOptions, location: str) -> CreatedMount:
        """Create a tmpfs with a directory for each hierarchy, and links for controllers that share one, as on the host."""
        builder = self._mounts.builder
        early = options.set & ~ops.MOUNT_ATTR_RDONLY
        tmpfs = MountOptions(set=early, data=(("mode", "755"),), propagation=options.propagation)
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
            return top

        return CreatedMount(destination, "cgroup", top, attach, bool(options.set & ops.MOUNT_ATTR_RDONLY))


def _v1_data(hierarchy: Hierarchy) -> tuple[tuple[str, str | None], ...]:
    """Return the options of a v1 filesystem that select a hierarchy."""
    named = next((c.removeprefix("name=") for c in hierarchy.controllers if c.startswith("name=")), None)
    controllers = tuple((c, None) for c in sorted(hierarchy.controllers) if not c.startswith("name="))
    if named is None:
        return controllers
    return (*(controllers or (("none", None),)), ("name", named))


_NEEDED_NAMESPACES: Final = {"proc": ("pid", "/proc"), "mqueue": ("ipc", "/dev/mqueue")}
"""In a user namespace: the namespace that the container must have for a filesystem, and what to bind without it."""


class Mounts:
    """The mounts of one container."""

    def __init__(
        self,
        builder: PlanBuilder,
        spec: RuntimeSpec,
        host: Host,
        *,
        bundle: str,
        namespaces: Collection[str],
        placement: Placement,
    ) -> None:
        """Read the config.

        Args:
            namespaces: the types of the namespaces that the container does not share with the runtime.
            placement: the container's cgroups.

        Raises:
            SpecError: a mount contradicts itself, or its destination is not allowed.
            UnsupportedError: this host cannot make a mount.
        """
        self.builder = builder
        self._bundle, self._namespaces = bundle, namespaces
        self._in_user_namespace = "user" in namespaces or not host.initial
        self.detached = DetachedMounts(builder, spec, host, rootfs_path(spec, bundle))
        self._uids = (spec.linux.uid_mappings if spec.linux else None) or ()
        self._gids = (spec.linux.gid_mappings if spec.linux else None) or ()
        self._mappings = MountMappings(builder, spec, host)
        self._cgroups = CgroupMounts(self.detached, host, placement, namespaced="cgroup" in namespaces)
        self._entries = [parse_entry(mount, f"$.mounts[{index}]") for index, mount in enumerate(spec.mounts or ())]
        if not self.detached.new_tree:
            check_propagation(spec, self._entries)
        for entry in self._entries:
            if entry.options.bind and (options := entry.options.without_effect_on_binds()):
                subject = "a bind mount" if entry.is_bind else "a remount with bind, which changes no filesystem"
                builder.warn(f"{entry.location}.options: {', '.join(options)}: no effect on {subject}")
        self._created: dict[int, CreatedMount] = {}
        self._filled: dict[str, int] = {}  # the mounts by their destinations in which something may still be made

    def binds(self, destination: str) -> bool:
        """Return whether something of the host is bind mounted on a destination."""
        return any(entry.destination == destination and entry.is_bind for entry in self._entries)

    # ---- before the host's tree is out of reach ----

    def clone_sources(self, *, unsettled: bool = False) -> None:
        """Copy the sources of the bind mounts, before any other mount is created.

        Args:
            unsettled: the init is in the runtime's mount namespace, whose propagation has not been changed for the container.
        """
        for index, entry in enumerate(self._entries):
            if entry.is_bind:
                with self.builder.at(entry.location):
                    self._created[index] = self._bind(entry, unsettled=unsettled)

    def create(self) -> None:
        """Create every mount that does not exist yet."""
        for index, entry in enumerate(self._entries):
            if index not in self._created:
                with self.builder.at(entry.location):
                    self._created[index] = self._create(entry)

    def _create(self, entry: MountEntry) -> CreatedMount:
        if entry.is_bind:
            return self._bind(entry, unsettled=False)
        self._mappings.refuse(entry.mount, entry.options, entry.location)
        if entry.is_change:
            return self._change(entry)
        if entry.fstype in ("cgroup", "cgroup2"):
            return self._cgroups.create(entry)
        if self._in_user_namespace and entry.fstype == "sysfs" and "network" not in self._namespaces:
            return self._bind_sys(entry)
        return self._filesystem(entry)

    def _bind(self, entry: MountEntry, *, unsettled: bool) -> CreatedMount:
        mount, location, destination, _, options = entry
        source = posixpath.normpath(posixpath.join(self._bundle, mount.source or ""))
        mapping = self._mappings.slot_for(mount, options, location)
        if is_below(source, self.detached.rootfs) and mapping == NO_SLOT:
            return self._bind_inside(source, destination, options)
        # As the root it is like root.readonly: mount points are made in it.
        readonly = destination == "/" and bool((options.set | options.recursive_set) & ops.MOUNT_ATTR_RDONLY)
        if readonly:
            options = options._replace(set=options.set & ~ops.MOUNT_ATTR_RDONLY)
        slot = self.detached.clone(source, destination, options, unsettled=unsettled, mapping=mapping)
        if readonly and options.recursive_set & ops.MOUNT_ATTR_RDONLY:
            self.detached.set_attributes(slot, MountOptions(clear=ops.MOUNT_ATTR_RDONLY), destination)
        return CreatedMount(destination, "bind", slot, self._bind_attacher(slot, source, destination, options), readonly)

    def _bind_attacher(self, slot: int, source: str, destination: str, options: MountOptions) -> Attach:
        if "copy-symlink" not in options.links or is_below(destination, "/proc"):
            on_link = "dest-nofollow" in options.links
            return self.detached.attacher(slot, destination, "bind", description=source, on_link=on_link)

        def attach(root: int) -> int:
            parent, name = posixpath.split(destination)
            directory = self.detached.open_target(root, parent, Target(0), NO_SLOT)
            text = f"{source} -> {destination}, or a copy if it is a symbolic link"
            self.builder.add("copy_link", slot, root, destination, directory, name, text=text)
            return slot

        return attach

    def _bind_inside(self, source: str, destination: str, options: MountOptions) -> CreatedMount:
        """Bind something from inside the rootfs, which is opened after the mounts before it are attached."""
        slot = self.builder.new_slot()

        def attach(root: int) -> int:
            self.detached.clone_in_root(root, source, destination, options, slot)
            self.detached.set_attributes(slot, options, destination, bind=True)
            return self._bind_attacher(slot, source, destination, options)(root)

        return CreatedMount(destination, "bind", slot, attach)

    def _bind_sys(self, entry: MountEntry) -> CreatedMount:
        """Bind the host's /sys read-only, as crun does: only the owner of the network namespace may mount a sysfs."""
        _, location, destination, _, options = entry
        attributes = options.of_one_mount().set
        if not attributes & ops.MOUNT_ATTR_RDONLY:
            raise UnsupportedError(
                f"{location}: a writable sysfs in a user namespace needs a new network namespace; add one, or the option ro"
            )
        bound = MountOptions(
            recursive_set=attributes & ~ops.MOUNT_ATTR_ATIME, bind=True, recursive_bind=True, propagation=options.propagation
        )
        slot = self.detached.clone("/sys", destination, bound)
        attach = self.detached.attacher(slot, destination, "sysfs", description="the host's /sys")
        cgroups = posixpath.join(destination, "fs/cgroup")

        def attach_and_mask(root: int) -> int:
            attach(root)
            if all(other.destination != cgroups for other in self._entries):
                self.builder.add("mask", root, cgroups, NO_SLOT, text=f"{cgroups}, the host's cgroups")
            return slot

        return CreatedMount(destination, "sysfs", slot, attach_and_mask)

    def _filesystem(self, entry: MountEntry) -> CreatedMount:
        mount, location, destination, fstype, options = entry
        if "user" in self._namespaces:
            self._check_user_namespace(entry)
        options = options.of_one_mount()
        # A tmpfs gets the mode of the directory that it covers, unless the options give one; without either it is 1777.
        copies_mode = fstype == "tmpfs" and all(key != "mode" for key, _ in options.data)
        postponed = options.set & ops.MOUNT_ATTR_RDONLY if fstype in FILLED_FIRST else 0
        early = options._replace(set=options.set & ~postponed)
        slot = self.detached.create_filesystem(fstype, mount.source or "none", destination, early, location)

        def attach(root: int) -> int:
            builder = self.builder
            if copies_mode:  # before the directory is created where it is missing
                text = f"give the tmpfs the mode of {destination} in the image, if it exists"
                builder.add("mode_like", root, destination, slot, text=text)
            target = self.detached.open_destination(root, slot, destination, fstype, NO_SLOT)
            if options.copy_up:
                builder.add("copyup", target, slot, text=f"copy {destination} of the image into the tmpfs")
            self.detached.attach_to(target, slot, destination, fstype)
            return slot

        return CreatedMount(destination, fstype, slot, attach, bool(postponed))

    def _check_user_namespace(self, entry: MountEntry) -> None:
        """Check what a filesystem needs in a user namespace."""
        _, location, _, fstype, options = entry
        needed, source = _NEEDED_NAMESPACES.get(fstype, ("", ""))
        if needed and needed not in self._namespaces:
            raise UnsupportedError(
                f"{location}: {fstype} in a user namespace needs a new {needed} namespace; add one, or bind {source} instead"
            )
        problems = []
        for key, mappings in (("uid", self._uids), ("gid", self._gids)):
            for name, value in options.data:
                if name == key and value and value.isdigit() and mappings:
                    number = int(value)
                    if not any(m.container_id <= number < m.container_id + m.size for m in mappings):
                        message = f"{key} {number} is not mapped in the user namespace"
                        problems.append(Problem(f"{location}.options", message, "config-linux.md#user-namespace-mappings"))
        if problems:
            raise SpecError(problems)

    # ---- in the container's root ----

    def attach(self, root: int, change: str | None) -> tuple[int, dict[str, int]]:
        """Attach every mount in the order of the config; return the slots of the root and of the mounts by their destinations.

        Args:
            change: the operation by which a mount on ``/`` becomes the root. None: the caller enters its slot.
        """
        attached: dict[str, int] = {}
        self._filled = {"/": root}
        for index, mount in sorted(self._created.items()):
            with self.builder.at(self._entries[index].location):
                if mount.fstype != "remount":
                    self.detached.forget(mount.destination)
                    self._filled = {path: slot for path, slot in self._filled.items() if not is_below(path, mount.destination)}
                slot = attached[mount.destination] = mount.attach(root)
                if mount.readonly:
                    self.detached.postpone_readonly(slot, mount.destination)
                if mount.fstype in FILLED_FIRST | {"cgroup"} or mount.destination == "/":
                    self._filled[mount.destination] = slot
                if mount.destination == "/" and mount.slot != NO_SLOT:
                    if change is not None:
                        self.builder.add(change, slot, text=f"the {mount.fstype} mount becomes /")
                    root, attached = slot, {}
        return root, attached

    def finish(self, root: int) -> None:
        """Make the mounts read-only whose options say so, after everything in them is done."""
        self.detached.finish(root)

    def _change(self, entry: MountEntry) -> CreatedMount:
        """Change an existing mount (mount(8), ``remount``): its filesystem too, unless the options say ``bind``."""
        _, _, destination, _, options = entry
        superblock, data = self._filesystem_changes(entry)
        readonly = options.set & ops.MOUNT_ATTR_RDONLY
        writable = (options.clear | options.recursive_clear) & ops.MOUNT_ATTR_RDONLY
        now = tuple(option for option in superblock if option != "ro")

        def attach(root: int) -> int:
            slot = self.detached.open_mount(root, destination)
            if now or data:
                self.detached.reconfigure(slot, destination, now, data)
            slot = self.detached.change(slot, options._replace(set=options.set & ~readonly), destination)
            if writable:
                recursive = bool(options.recursive_clear & ops.MOUNT_ATTR_RDONLY)
                self.detached.keep_writable(slot, destination, recursive=recursive, filesystem="rw" in superblock)
            if options.recursive_set & ops.MOUNT_ATTR_RDONLY:
                self._postpone_readonly_below(root, slot, destination)
            if readonly:
                self.detached.postpone_readonly(slot, destination, filesystem="ro" in superblock)
            return slot

        return CreatedMount(destination, "remount", NO_SLOT, attach)

    def _filesystem_changes(self, entry: MountEntry) -> tuple[tuple[str, ...], Data]:
        """Return the options of a remount that are for the filesystem: those of the superblock, and the filesystem's own.

        Raises:
            UnsupportedError: a remount cannot change them, or the filesystem may be the host's.
        """
        _, location, destination, _, options = entry
        superblock, data = options.superblock, options.data
        if not options.remount or options.bind:
            return (), ()
        if key := too_long(data):
            message = f"the value of {key} is longer than 255 bytes, which a remount does not support"
            raise UnsupportedError(f"{location}.options: {message}")
        if "dirsync" in superblock:
            raise UnsupportedError(f"{location}.options: dirsync cannot be set by a remount; add it to the entry of the mount")
        before = self._entries[: self._entries.index(entry)]
        mounted = next((e for e in reversed(before) if e.destination == destination and not e.is_change), None)
        if mounted is not None and mounted.fstype in SHARED:
            # As in a new mount, ro is for the mount alone.
            superblock = tuple(option for option in superblock if option not in ("ro", "rw"))
        elif not (destination == "/" if mounted is None else mounted.is_bind):
            return superblock, data
        if superblock or data:
            names = ", ".join((*superblock, *(key for key, _ in data)))
            message = f"{names} would change the filesystem of {destination}, which may be the host's"
            raise UnsupportedError(f"{location}.options: {message}; add bind to change the mount alone")
        return (), ()

    def _postpone_readonly_below(self, root: int, slot: int, destination: str) -> None:
        """Leave what ``rro`` has made read-only writable for now, where something may still be made."""
        detached = self.detached
        below = {path: number for path, number in self._filled.items() if is_below(path, destination)}
        if not self.binds(destination):  # of the host's mounts the kernel may have locked the attribute
            below = {destination: slot, **below}
        for path, number in below.items():
            if path == destination:
                number = slot
            elif not detached.new_tree:
                number = detached.open_mount(root, path)
            number = detached.change(number, MountOptions(clear=ops.MOUNT_ATTR_RDONLY), path)
            detached.postpone_readonly(number, path)
