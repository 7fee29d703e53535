"""Detached mounts: the steps that create one, give it its attributes and attach it to a mount point.

A detached mount belongs to no mount namespace until it is attached. `mounts` decides which ones a container gets.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import UnsupportedError
from ..spec.base import is_below
from . import ops
from .model import NO_SLOT, PlanBuilder
from .mount_options import (
    PROPAGATION,
    SUPERBLOCK,
    Data,
    MountOptions,
    attribute_names,
    mount_data,
    split_layers,
    superblock_flags,
    too_long,
)
from .ops import Target
from .rootfs import Overlay, create_overlay, cut_propagation, root_propagation

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import RuntimeSpec

Attach = Callable[[int], int]
"""Adds the steps that attach a mount below the root in a slot; returns the slot of the mount."""

IN_ROOT: Final = ops.RESOLVE_IN_ROOT | ops.RESOLVE_NO_MAGICLINKS
FILLED_FIRST: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs", "mqueue"})
"""Filesystems in which the runtime itself may create something: mount points, devices and links."""
SHARED: Final = frozenset(
    {"mqueue", "sysfs", "devtmpfs", "debugfs", "tracefs", "securityfs", "configfs", "fusectl", "pstore", "cgroup", "cgroup2"}
)
"""Filesystems of the kernel: a new mount may show what the host has mounted, and then shares its superblock."""
_READ_ONLY_MOUNT: Final = (FILLED_FIRST | SHARED) - {"cgroup", "cgroup2"}
"""Filesystems of which only the mount becomes read-only: they may be the host's as well, or are written to first."""
_UNLABELLED: Final = frozenset({"proc", "sysfs", "cgroup", "cgroup2"})
_LABELLED_BY_XATTR: Final = "mqueue"


class _Postponed(NamedTuple):
    """A mount that becomes read-only, or writable again, when everything below it exists."""

    slot: int
    destination: str
    readonly: bool
    filesystem: bool
    """Whether its filesystem changes too."""
    location: str
    """The JSON path of its entry."""


class DetachedMounts:
    """Adds the steps that create, attach and change the mounts of one container.

    Without a new mount namespace the container's mounts stay in a detached tree. There the kernel changes only the mount at the
    root of the tree, so any other one is covered by a changed copy.
    """

    def __init__(self, builder: PlanBuilder, spec: RuntimeSpec, host: Host, rootfs: str) -> None:
        """Read what applies to every mount of the container.

        Args:
            rootfs: the absolute path of the root filesystem on the host.
        """
        self.builder = builder
        self.rootfs = rootfs
        self._host = host
        self._propagation = root_propagation(spec)[0]
        linux = spec.linux
        self.new_tree = any(n.type == "mount" and not n.path for n in (linux.namespaces if linux else None) or ())
        self._label = (linux.mount_label if linux else None) or ""
        if self._label and "selinux" not in host.lsms:
            builder.warn("$.linux.mountLabel: has no effect: SELinux is not active on this host")
            self._label = ""
        self._context = self._target = NO_SLOT
        self._postponed: list[_Postponed] = []

    # ---- creating ----

    def clone(
        self, source: str, destination: str, options: MountOptions, *, unsettled: bool = False, mapping: int = NO_SLOT
    ) -> int:
        """Copy a mount of the host, or a part of one, and return the slot of the copy.

        Args:
            unsettled: the init is in the runtime's mount namespace, whose propagation has not been changed for the container.
            mapping: the slot of the user namespace with the id mapping of the mount.
        """
        builder, slot = self.builder, self.builder.new_slot()
        if is_below(source, self.rootfs):
            builder.add("open", NO_SLOT, self.rootfs, ops.O_PATH, 0, 0, slot, text=f"rootfs {self.rootfs}")
            self.clone_in_root(slot, source, destination, options, slot)
        else:
            flags, text = _clone_flags(source, destination, options)
            builder.add("open_tree", NO_SLOT, source, flags, slot, text=text)
        if unsettled:
            cut_propagation(builder, self._propagation, slot, f"mount for {destination}")
        if mapping != NO_SLOT:
            recursive = ops.AT_RECURSIVE if options.idmap == "ridmap" else 0
            text = f"id mapping of the mount for {destination}{' and its submounts' if recursive else ''}"
            builder.add("mount_setattr", slot, recursive, ops.MOUNT_ATTR_IDMAP, 0, 0, mapping, text=text)
        self.set_attributes(slot, options, destination, bind=True)
        return slot

    def clone_in_root(self, root: int, source: str, destination: str, options: MountOptions, slot: int) -> None:
        """Copy a mount from inside the rootfs; symbolic links do not lead out of it."""
        flags, text = _clone_flags(source, destination, options)
        inside, name = "." + source[len(self.rootfs) :], ""
        if options.follow or inside == ".":
            flags = flags & ~ops.AT_SYMLINK_NOFOLLOW | ops.AT_EMPTY_PATH
        else:
            inside, name = posixpath.split(inside)
        self.builder.add("open", root, inside, ops.O_PATH, 0, IN_ROOT, slot, text=f"source {source} in the rootfs")
        self.builder.add("open_tree", slot, name, flags, slot, text=text)

    def create_filesystem(self, fstype: str, source: str, destination: str, options: MountOptions, location: str) -> int:
        """Create a filesystem and return the slot of its mount.

        Raises:
            UnsupportedError: the options are too long for this kernel.
        """
        data = split_layers(fstype, options.data, self._host)
        superblock = tuple(o for o in options.superblock if SUPERBLOCK[o][1] and not (o == "ro" and fstype in _READ_ONLY_MOUNT))
        data = (*data, *self.labels(fstype))
        if key := too_long((("source", source), *data)):
            options = options._replace(superblock=superblock, data=tuple(data))
            return self._create_by_mount(fstype, source, destination, options, location, key)
        builder, context, slot = self.builder, self.context(), self.builder.new_slot()
        builder.add("fsopen", fstype, context, text=f"{fstype} for {destination}")
        for key, value in (("source", source), *((option, None) for option in superblock), *data):
            self.configure(context, key, value, destination)
        builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text=f"create the {fstype} for {destination}")
        flags = attribute_names(options.set)
        builder.add("fsmount", context, options.set, slot, text=f"{fstype} for {destination}{f' ({flags})' if flags else ''}")
        if self._label and fstype == _LABELLED_BY_XATTR:
            text = f"label {self._label} for {destination}"
            builder.add("setxattr", slot, "security.selinux", self._label.encode() + b"\0", text=text)
        self.set_attributes(slot, options._replace(set=0, clear=0), destination)
        return slot

    def create_root(self, overlay: Overlay, *, early: bool) -> int:
        """Create the overlay that becomes the root filesystem; return its slot.

        Args:
            early: whether the init is still in the mount namespace of the runtime.

        Raises:
            UnsupportedError: the container has no new mount namespace, or more layers than the kernel supports.
        """
        if not self.new_tree:
            raise UnsupportedError(
                "$.linux.namespaces: the root filesystem has layers that only this container mounts, which needs a new mount "
                "namespace; add one"
            )
        aside = early or self._propagation == ops.MS_SHARED
        kernel_wide = self._host.privileged and self._host.initial
        return create_overlay(self.builder, self, overlay, self._host, aside=aside, userxattr=not kernel_wide)

    def labels(self, fstype: str) -> Data:
        """Return the option that gives the files of a filesystem the label of the container, if they get it by an option."""
        labelled = self._label and fstype not in _UNLABELLED and fstype != _LABELLED_BY_XATTR
        return (("context", self._label),) if labelled else ()

    def _create_by_mount(self, fstype: str, source: str, destination: str, options: MountOptions, location: str, key: str) -> int:
        """Create a filesystem by mount(2), for an option that is too long for fsconfig(2); it is attached for a moment."""
        reason = f"{location}.options: the value of {key} is longer than 255 bytes, and such a filesystem"
        if not self.new_tree:
            raise UnsupportedError(f"{reason} needs a new mount namespace")
        if self._propagation == ops.MS_SHARED:
            raise UnsupportedError(f"{reason} would be visible on the host for a moment; choose another linux.rootfsPropagation")
        slot = self.builder.new_slot()
        data = mount_data(options.data, location)
        text = f"{fstype} for {destination}, attached to /proc for a moment: {data}"
        self.builder.add("mount", source, "/proc", fstype, superblock_flags(options.superblock), data, slot, text=text)
        self.set_attributes(slot, options, destination)
        return slot

    def context(self) -> int:
        """Return the slot that filesystem contexts use, one after the other."""
        if self._context == NO_SLOT:
            self._context = self.builder.new_slot()
        return self._context

    def configure(self, context: int, key: str, value: str | None, destination: str) -> None:
        """Set one option of a filesystem context."""
        if value is None:
            self.builder.add("fsconfig", context, ops.FSCONFIG_SET_FLAG, key, "", text=f"{key} for {destination}")
        else:
            self.builder.add("fsconfig", context, ops.FSCONFIG_SET_STRING, key, value, text=f"{key}={value} for {destination}")

    def set_attributes(self, slot: int, options: MountOptions, destination: str, *, bind: bool = False) -> None:
        """Set the attributes and the propagation that the options name; others stay, those that a user namespace locks too."""
        for flags, on, off, scope in (
            (0, options.set, options.clear, ""),
            (ops.AT_RECURSIVE, options.recursive_set, options.recursive_clear, " and its submounts"),
        ):
            if on or off:
                text = f"{attribute_names(on, off)} for {destination}{scope}"
                self.builder.add("mount_setattr", slot, flags, on, off, 0, NO_SLOT, text=text)
        if not options.propagation and self._propagation == ops.MS_SHARED and bind:
            # The copy of a shared mount is in its peer group: a mount on it would appear on the host.
            text = f"private propagation for {destination} and its submounts"
            self.builder.add("mount_setattr", slot, ops.AT_RECURSIVE, 0, 0, ops.MS_PRIVATE, NO_SLOT, text=text)
        for name in options.propagation:
            bits, recursive = PROPAGATION[name]
            flags = ops.AT_RECURSIVE if recursive else 0
            self.builder.add("mount_setattr", slot, flags, 0, 0, bits, NO_SLOT, text=f"{name} propagation for {destination}")

    # ---- changing what is attached ----

    def open_mount(self, root: int, destination: str) -> int:
        """Open the mount at a destination, and return its slot."""
        slot = self.builder.new_slot()
        self.builder.add("open", root, destination, ops.O_PATH, 0, IN_ROOT, slot, text=f"mount {destination}")
        return slot

    def reconfigure(self, slot: int, destination: str, superblock: tuple[str, ...], data: Data) -> None:
        """Change the filesystem of a mount."""
        context = self.context()
        self.builder.add("fspick", slot, "", ops.FSPICK_EMPTY_PATH, context, text=f"filesystem of {destination}")
        for key, value in (*((option, None) for option in superblock), *data):
            self.configure(context, key, value, destination)
        text = f"change the filesystem of {destination}"
        self.builder.add("fsconfig", context, ops.FSCONFIG_CMD_RECONFIGURE, "", "", text=text)

    def change(self, slot: int, options: MountOptions, destination: str) -> int:
        """Change the attributes and the propagation of a mount; return the slot of what is at the destination then."""
        changes = options.set, options.clear, options.recursive_set, options.recursive_clear, options.propagation
        if not any(changes) or self.new_tree or destination == "/":
            self.set_attributes(slot, options, destination)
            return slot
        builder, copy = self.builder, self.builder.new_slot()
        builder.add("fspick", slot, "", ops.FSPICK_EMPTY_PATH, self.context(), text=f"{destination} is a mount point")
        flags = ops.OPEN_TREE_CLONE | ops.AT_EMPTY_PATH | ops.AT_RECURSIVE
        builder.add("open_tree", slot, "", flags, copy, text=f"copy of {destination}, to change it in a detached tree")
        self.set_attributes(copy, options, destination)
        builder.add("move_mount", copy, slot, text=f"copy of {destination} -> {destination}")
        return copy

    def postpone_readonly(self, slot: int, destination: str, *, filesystem: bool = False) -> None:
        """Make a mount read-only in `finish`; what is mounted in it or created in it until then may need to write.

        Args:
            filesystem: whether its filesystem becomes read-only too.
        """
        self.forget(destination)
        self._postponed.append(_Postponed(slot, destination, True, filesystem, self.builder.location))

    def keep_writable(self, slot: int, destination: str, *, recursive: bool, filesystem: bool) -> None:
        """Leave a mount writable that an earlier entry makes read-only in `finish`.

        Args:
            recursive: whether the mounts below it stay writable too.
            filesystem: whether its filesystem was made writable too.
        """
        self.forget(destination, recursive=recursive)
        if self._postponed:  # by a link the destination may be one of these mounts
            self._postponed.append(_Postponed(slot, destination, False, filesystem, self.builder.location))

    def forget(self, destination: str, *, recursive: bool = False) -> None:
        """Make the mount at a destination not read-only in `finish`, nor with ``recursive`` those below it."""
        above = recursive or destination == "/"
        self._postponed = [
            mount
            for mount in self._postponed
            if not (is_below(mount.destination, destination) if above else mount.destination == destination)
        ]

    def finish(self, root: int) -> None:
        """Carry out what was postponed, in the order of the config: the last entry for a mount decides."""
        for mount in self._postponed:
            destination = mount.destination
            with self.builder.at(mount.location):
                slot = mount.slot if self.new_tree or destination == "/" else self.open_mount(root, destination)
                if mount.filesystem:
                    self.reconfigure(slot, destination, ("ro" if mount.readonly else "rw",), ())
                bits = ops.MOUNT_ATTR_RDONLY
                self.change(slot, MountOptions(set=bits) if mount.readonly else MountOptions(clear=bits), destination)

    # ---- attaching ----

    def scratch(self) -> int:
        """Return the slot that mount points use, one after the other."""
        if self._target == NO_SLOT:
            self._target = self.builder.new_slot()
        return self._target

    def open_target(self, root: int, path: str, kind: Target, like: int, *, description: str = "") -> int:
        """Open a mount point below a root, or create it, and return its slot, which the next mount point reuses.

        Args:
            like: the slot of the mount that decides whether the mount point is a file or a directory, or NO_SLOT.
            description: the path in the container, if it differs from ``path``.
        """
        slot = self.scratch()
        self.builder.add("target", root, path, kind, 0o755, like, slot, text=f"mount point {description or path}")
        return slot

    def open_destination(self, root: int, slot: int, destination: str, fstype: str, like: int, *, on_link: bool = False) -> int:
        """Open the destination of a mount that is about to be attached, and return its slot."""
        kind = Target.NO_LINK | Target.LINK if on_link else Target(0)
        if destination == "/proc":
            kind = Target.IN_PROC
            if fstype != "proc":
                self.builder.add("prove_proc", slot, text="mount for /proc is the root of a procfs")
        elif is_below(destination, "/proc"):
            kind, like = Target.IN_PROC | Target.FILE, NO_SLOT
        if fstype in ("proc", "sysfs") or destination == "/proc":
            kind |= Target.NO_LINK
        return self.open_target(root, destination, kind, like)

    def attacher(self, slot: int, destination: str, fstype: str, *, description: str = "", on_link: bool = False) -> Attach:
        """Return what attaches a mount to its destination; with ``on_link`` over a symbolic link instead of its target."""

        def attach(root: int) -> int:
            target = self.open_destination(root, slot, destination, fstype, slot, on_link=on_link)
            self.attach_to(target, slot, destination, description or fstype)
            return slot

        return attach

    def attach_to(self, target: int, slot: int, destination: str, description: str) -> None:
        """Attach a mount to its mount point. In a detached tree a mount on ``/`` is not attached: it becomes another tree."""
        if self.new_tree or destination != "/":
            self.builder.add("move_mount", slot, target, text=f"{description} -> {destination}")


def _clone_flags(source: str, destination: str, options: MountOptions) -> tuple[int, str]:
    """Return the flags of open_tree(2) for a source, and the text of the step."""
    recursive = options.recursive_bind
    flags = ops.OPEN_TREE_CLONE | (ops.AT_RECURSIVE if recursive else 0)
    if not options.follow:
        flags |= ops.AT_SYMLINK_NOFOLLOW
    return flags, f"source {source}{' with its submounts' if recursive else ''} for {destination}"
