"""The root filesystem: how it becomes the container's own, and what of it is hidden (config.md#root, config-linux.md)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError
from ..spec.syntax import destination_in_root
from . import kernel as k
from .model import NO_SLOT, Builder
from .mount_options import PROPAGATION, parse_options

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec

_HEARS_THE_HOST: Final = (k.MS_SLAVE, k.MS_SHARED)


def rootfs_path(spec: RuntimeSpec, bundle: str) -> str:
    """The absolute path of the root filesystem on the host."""
    assert spec.root is not None
    return posixpath.normpath(posixpath.join(bundle, spec.root.path))


def root_propagation(spec: RuntimeSpec) -> tuple[int, bool]:
    """`linux.rootfsPropagation`: the kernel's type, and whether it holds for all mounts of the container. Raises SpecError.

    Without one the container is cut off from the host, unless a mount asks to hear of it.
    """
    name = spec.linux.rootfs_propagation if spec.linux else None
    if not name:
        asked = [PROPAGATION[word][0] for mount in spec.mounts or () for word in parse_options(mount.options or ()).propagation]
        return (k.MS_SLAVE if any(bits in _HEARS_THE_HOST for bits in asked) else k.MS_PRIVATE), True
    if name not in PROPAGATION:
        message = f"{name!r} is none of [r]private, [r]slave, [r]shared, [r]unbindable"
        raise SpecError([Problem("$.linux.rootfsPropagation", message, "config-linux.md#rootfs-mount-propagation")])
    return PROPAGATION[name]


def settle_tree(b: Builder, spec: RuntimeSpec) -> None:
    """Settle what the container's tree and the host's hear of each other."""
    # As a peer of the host's, every bind has what its own options say.
    if (bits := root_propagation(spec)[0]) != k.MS_SHARED:
        settled(b, bits, NO_SLOT, "the whole tree")


def settled(b: Builder, propagation: int, slot: int, what: str) -> None:
    """Make a tree hear of the host, or not; in neither case something goes back."""
    if propagation == k.MS_SHARED:
        return
    kept, text = (
        (k.MS_SLAVE, "slave: mounts of the host come in, nothing goes back")
        if propagation == k.MS_SLAVE
        else (k.MS_PRIVATE, "private: nothing goes in or out")
    )
    b.init("mount_setattr", slot, k.AT_RECURSIVE, 0, 0, kept, NO_SLOT, text=f"{what} {text}")


def copy_root(b: Builder, spec: RuntimeSpec, path: str, *, early: bool = False) -> int:
    """Copy the rootfs; gives its slot. ``early``: in the caller's mount namespace, whose tree is not settled."""
    bits, _ = root_propagation(spec)
    root = b.slot()
    b.init("open_tree", NO_SLOT, path, k.OPEN_TREE_CLONE | k.AT_RECURSIVE, root, text=f"{path}: the container's root")
    if early or bits == k.MS_SHARED:
        settled(b, k.MS_PRIVATE if bits == k.MS_SHARED else bits, root, "the root")
    return root


def enter_root(b: Builder, spec: RuntimeSpec, root: int) -> None:
    """Hang the rootfs over the host's root and change into it."""
    if root_propagation(spec)[0] == k.MS_SHARED:
        # The binds were copied before, and keep their peers. What is a peer when the old tree goes is unmounted on the host too.
        text = "the host's tree private in here: what hangs on it stays, and letting go of it unmounts nothing"
        b.init("mount_setattr", NO_SLOT, k.AT_RECURSIVE, 0, 0, k.MS_PRIVATE, NO_SLOT, text=text)
    b.init("move_mount", root, NO_SLOT, text="the root -> /, over the host's")
    pivot_root(b, root)


def open_place(b: Builder, path: str) -> int:
    """Where the rootfs is in the host's tree, for `hang_root`; opened while the init has the caller's ids. Gives its slot."""
    slot = b.slot()
    b.init("open", NO_SLOT, path, k.O_PATH, 0, 0, slot, text=f"{path}, where hooks look for it")
    return slot


def hang_root(b: Builder, root: int, place: int) -> None:
    """Hang the rootfs in its place in the host's tree, of which this copy is private from here on."""
    b.init("mount_setattr", NO_SLOT, k.AT_RECURSIVE, 0, 0, k.MS_PRIVATE, NO_SLOT, text="this copy of the host's tree private")
    b.init("move_mount", root, place, text="the root -> its place in the host's tree")


def pivot_root(b: Builder, root: int) -> None:
    """Change into the rootfs."""
    b.init("pivot_root", root, text="the rootfs is / from here on, and the host's tree is out of reach")


def change_root(b: Builder, root: int) -> None:
    """Change into a rootfs that hangs nowhere: the mount namespace is not the container's own, and nothing is mounted in it."""
    b.init("chroot", root, text="the rootfs is / from here on, and hangs nowhere in the mount namespace")


def finish_root(b: Builder, spec: RuntimeSpec, root: int) -> None:
    """What holds for the root when everything in it is done: propagation and read-only."""
    assert spec.root is not None
    bits, recursive = root_propagation(spec)
    if bits in (k.MS_SHARED, k.MS_UNBINDABLE):
        flags = k.AT_RECURSIVE if recursive else 0
        name = next(name for name, value in PROPAGATION.items() if value == (bits, recursive))
        b.init("mount_setattr", root, flags, 0, 0, bits, NO_SLOT, text=f"/ {name}")
    if spec.root.readonly:
        b.init("mount_setattr", root, 0, k.MOUNT_ATTR_RDONLY, 0, 0, NO_SLOT, text="/ read-only")


def compile_hidden(b: Builder, linux: Linux | None, root: int) -> None:
    """readonlyPaths and maskedPaths (config-linux.md#masked-paths)."""
    if linux is None:
        return
    for path in linux.readonly_paths or ():
        b.init("readonly", root, destination_in_root(path), text=f"{path}, where it exists")
    if linux.masked_paths:
        null = b.slot()
        in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        b.init("open", root, "dev/null", k.O_PATH, 0, in_root, null, text="/dev/null")
        b.init("prove_dev", null, k.S_IFCHR, k.makedev(1, 3), text="/dev/null is the null device")
        for path in linux.masked_paths:
            b.init("mask", root, destination_in_root(path), null, text=f"{path}, where it exists")
