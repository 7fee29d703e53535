"""The root filesystem: how it becomes the container's own, and what of it is hidden (config.md#root, config-linux.md)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .model import NO_SLOT, Builder
from .mounts import destination_in_root

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec

_PROPAGATION: Final = {
    "private": k.MS_PRIVATE,
    "slave": k.MS_SLAVE,
    "shared": k.MS_SHARED,
    "unbindable": k.MS_UNBINDABLE,
}


def prepare_root(b: Builder, spec: RuntimeSpec, bundle: str) -> int:
    """Cut the tree off from the host's and make the rootfs a mount of its own; gives its slot. Raises SpecError."""
    assert spec.root is not None
    linux = spec.linux
    name = (linux.rootfs_propagation if linux else None) or "rprivate"
    bits = _PROPAGATION.get(name.removeprefix("r") if name not in _PROPAGATION else name)
    if bits is None:
        message = f"{name!r} is none of [r]private, [r]slave, [r]shared, unbindable"
        raise SpecError([Problem("$.linux.rootfsPropagation", message, "config-linux.md#rootfs-mount-propagation")])
    if bits in (k.MS_SHARED, k.MS_UNBINDABLE):
        raise UnsupportedError(f"$.linux.rootfsPropagation: {name} is not supported yet")
    b.init(
        "mount_setattr", NO_SLOT, k.AT_RECURSIVE, 0, 0, bits, NO_SLOT, text=f"the whole tree {name}: nothing goes back to the host"
    )
    path = posixpath.normpath(posixpath.join(bundle, spec.root.path))
    root, target = b.slot(), b.slot()
    b.init("open_tree", NO_SLOT, path, k.OPEN_TREE_CLONE | k.AT_RECURSIVE, root, text=f"{path}: the container's root")
    b.init("open", NO_SLOT, path, k.O_PATH, 0, 0, target, text=f"{path}: where it will hang")
    b.init("move_mount", root, target, text=f"the root -> {path}")
    return root


def compile_hidden(b: Builder, linux: Linux | None, root: int) -> None:
    """readonlyPaths and maskedPaths (config-linux.md#masked-paths)."""
    if linux is None:
        return
    for path in linux.readonly_paths or ():
        b.init("readonly", root, destination_in_root(path), text=f"{path}, where it exists")
    if linux.masked_paths:
        null = b.slot()
        b.init("open", root, "dev/null", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, null, text="/dev/null")
        b.init("prove_null", null, text="/dev/null is the null device")
        for path in linux.masked_paths:
            b.init("mask", root, destination_in_root(path), null, text=f"{path}, where it exists")
