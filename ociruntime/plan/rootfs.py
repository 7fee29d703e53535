"""The root filesystem: how it becomes the container's /, and which paths in it are hidden (config.md#root, config-linux.md)."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from ..arguments import shown
from ..errors import SpecError, UnsupportedError
from ..spec.base import Problem, destination_in_root
from . import kernel
from .model import NO_SLOT, PlanBuilder
from .mount_options import PROPAGATION, parse_options

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec
    from .mount_options import MountEntry


_RECEIVES_MOUNTS: Final = (kernel.MS_SLAVE, kernel.MS_SHARED)


def rootfs_path(spec: RuntimeSpec, bundle: str) -> str:
    """Return the absolute path of the root filesystem on the host."""
    assert spec.root is not None
    return posixpath.normpath(posixpath.join(bundle, spec.root.path))


def root_propagation(spec: RuntimeSpec) -> tuple[int, bool]:
    """Return the kernel's propagation type for `linux.rootfsPropagation`, and whether it applies to all mounts of the container.

    The default is private, or slave if a mount of the config is to receive mounts of the host.

    Raises:
        SpecError: the value does not exist.
    """
    name = spec.linux.rootfs_propagation if spec.linux else None
    if not name:
        options = [option for mount in spec.mounts or () for option in parse_options(mount.options or ()).propagation]
        receives = any(PROPAGATION[option][0] in _RECEIVES_MOUNTS for option in options)
        return (kernel.MS_SLAVE if receives else kernel.MS_PRIVATE), True
    if name not in PROPAGATION:
        message = f"{shown(str(name))} is not one of [r]private, [r]slave, [r]shared, [r]unbindable"
        raise SpecError([Problem("$.linux.rootfsPropagation", message, "config-linux.md#rootfs-mount-propagation")])
    return PROPAGATION[name]


def check_propagation(spec: RuntimeSpec, entries: Iterable[MountEntry]) -> None:
    """Check the propagation of a container without a new mount namespace, whose mounts neither send nor receive any.

    Raises:
        UnsupportedError: the config asks for another propagation than private.
    """
    asked = [(f"{entry.location}.options", name) for entry in entries for name in entry.options.propagation]
    if spec.linux and spec.linux.rootfs_propagation:
        asked.append(("$.linux.rootfsPropagation", spec.linux.rootfs_propagation))
    for location, name in asked:
        if name.removeprefix("r") != "private":
            raise UnsupportedError(f"{location}: {name} needs a new mount namespace; add one, or use private")


def cut_tree_propagation(builder: PlanBuilder, spec: RuntimeSpec) -> None:
    """Cut the propagation between the container's mount namespace and the host's, unless it is to be shared."""
    cut_propagation(builder, root_propagation(spec)[0], NO_SLOT, "all mounts")


def cut_propagation(builder: PlanBuilder, propagation: int, slot: int, subject: str) -> None:
    """Make a tree receive the host's mounts (slave) or not (private); none of its mounts appears on the host."""
    if propagation == kernel.MS_SHARED:
        return
    slave = propagation == kernel.MS_SLAVE
    kept, text = (kernel.MS_SLAVE, "slave") if slave else (kernel.MS_PRIVATE, "private")
    builder.add("mount_setattr", slot, kernel.AT_RECURSIVE, 0, 0, kept, NO_SLOT, text=f"{text} propagation for {subject}")


def clone_root(builder: PlanBuilder, spec: RuntimeSpec, path: str, *, unsettled: bool = False) -> int:
    """Copy the rootfs and return its slot.

    Args:
        unsettled: the init is in the runtime's mount namespace, whose propagation has not been changed for the container.
    """
    bits, _ = root_propagation(spec)
    root = builder.new_slot()
    builder.add("open_tree", NO_SLOT, path, kernel.OPEN_TREE_CLONE | kernel.AT_RECURSIVE, root, text=f"rootfs {path}")
    if unsettled or bits == kernel.MS_SHARED:
        cut_propagation(builder, kernel.MS_PRIVATE if bits == kernel.MS_SHARED else bits, root, "the rootfs")
    return root


def enter_root(builder: PlanBuilder, spec: RuntimeSpec, root: int) -> None:
    """Attach the rootfs over the host's root and change into it."""
    if root_propagation(spec)[0] == kernel.MS_SHARED:
        # The bind mounts are copied and stay peers of the host's. A peer in the old tree would be unmounted on the host with it.
        _make_tree_private(builder)
    builder.add("move_mount", root, NO_SLOT, text="rootfs -> /, over the host's root")
    pivot_root(builder, root)


def open_rootfs_place(builder: PlanBuilder, path: str) -> int:
    """Open the path of the rootfs for `attach_root`, while the init has the caller's ids; return its slot."""
    slot = builder.new_slot()
    builder.add("open", NO_SLOT, path, kernel.O_PATH, 0, 0, slot, text=f"path of the rootfs {path}, for hooks")
    return slot


def attach_root(builder: PlanBuilder, root: int, place: int) -> None:
    """Attach the rootfs at its path in the host's tree, of which this copy becomes private."""
    _make_tree_private(builder)
    builder.add("move_mount", root, place, text="rootfs -> its path in the host's tree")


def _make_tree_private(builder: PlanBuilder) -> None:
    text = "private propagation for the copy of the host's tree"
    builder.add("mount_setattr", NO_SLOT, kernel.AT_RECURSIVE, 0, 0, kernel.MS_PRIVATE, NO_SLOT, text=text)


def pivot_root(builder: PlanBuilder, root: int) -> None:
    """Make the rootfs /, and detach the host's tree."""
    builder.add("pivot_root", root, text="rootfs becomes /, and the host's tree is detached")


def change_root(builder: PlanBuilder, root: int) -> None:
    """Make a detached rootfs /: the mount namespace is not the container's own, so nothing is mounted in it."""
    builder.add("chroot", root, text="rootfs becomes /, and stays detached from the shared mount namespace")


def finish_root(builder: PlanBuilder, spec: RuntimeSpec, root: int) -> None:
    """Set the propagation and the read-only attribute of the root, after everything in it is done."""
    assert spec.root is not None
    bits, recursive = root_propagation(spec)
    if bits in (kernel.MS_SHARED, kernel.MS_UNBINDABLE):
        flags = kernel.AT_RECURSIVE if recursive else 0
        name = next(name for name, value in PROPAGATION.items() if value == (bits, recursive))
        builder.add("mount_setattr", root, flags, 0, 0, bits, NO_SLOT, text=f"{name} propagation for /")
    if spec.root.readonly:
        builder.add("mount_setattr", root, 0, kernel.MOUNT_ATTR_RDONLY, 0, 0, NO_SLOT, text="ro for /")


def hide_paths(builder: PlanBuilder, linux: Linux | None, root: int) -> None:
    """Apply ``readonlyPaths`` and ``maskedPaths`` to the paths that exist (config-linux.md#masked-paths)."""
    if linux is None:
        return
    for index, path in enumerate(linux.readonly_paths or ()):
        with builder.at(f"$.linux.readonlyPaths[{index}]"):
            builder.add("readonly", root, destination_in_root(path), text=f"read-only path {path}, if it exists")
    if linux.masked_paths:
        null = builder.new_slot()
        in_root = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
        builder.add("open", root, "dev/null", kernel.O_PATH, 0, in_root, null, text="/dev/null, to mask paths")
        builder.add("prove_dev", null, kernel.S_IFCHR, kernel.makedev(1, 3), text="/dev/null is the null device")
        for index, path in enumerate(linux.masked_paths):
            with builder.at(f"$.linux.maskedPaths[{index}]"):
                builder.add("mask", root, destination_in_root(path), null, text=f"masked path {path}, if it exists")
