"""Root filesystems that exist for one container only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ..engine.removal import remove_tree
from ..engine.undo import refusal
from ..errors import BundleError, UnsupportedError
from ..files import other_writers
from .mount import NODEV, NOSUID, mount, mounts_below, unmount
from .sif import overlay_options

PREFIX: Final = "ociruntime-"
"""Begins the name of a temporary bundle."""


def cover(lower: Path, path: Path) -> Path:
    """Mount an overlay over a directory on ``rootfs`` in ``path``: what is written stays in ``path``.

    Raises:
        OSError: the kernel refuses it.
        UnsupportedError: this user may not mount.
    """
    rootfs, overlay = path / "rootfs", path / "overlay"
    for directory in (rootfs, overlay, overlay / "upper", overlay / "work"):
        directory.mkdir(mode=0o700)
    (overlay / "upper").chmod(lower.stat().st_mode & 0o7777)
    try:
        mount("overlay", "overlay", rootfs, overlay_options(lower, overlay), NOSUID | NODEV)
    except PermissionError as error:
        raise UnsupportedError(
            f"{lower} is to be covered by an overlay, and this user may not mount: run as root, or make a bundle of it with "
            "Bundle.from_dir() and RuntimeSpec.default(rootless=True)"
        ) from error
    return rootfs


def discard(path: str) -> None:
    """Unmount what is mounted in a temporary bundle and remove it; ignore what does not exist (any more).

    Raises:
        StateError: the directory is not a temporary bundle, and nothing is removed.
        BundleError: a mount is in use, and nothing is removed; or a file cannot be removed.
    """
    if not os.path.basename(path).startswith(PREFIX):
        raise refusal(path, f"the name of a temporary bundle begins with {PREFIX!r}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise refusal(path, "it is not a directory") from None
    try:
        if why := other_writers(os.fstat(fd)):
            raise refusal(path, why)
        real = os.readlink(f"/proc/self/fd/{fd}")  # as mount tables have it
    finally:
        os.close(fd)
    for found in reversed(mounts_below(real)):
        try:
            unmount(found.point)
        except OSError as error:
            raise BundleError(f"{found.point} cannot be unmounted: {error.strerror}") from error
    remove_tree(real)
