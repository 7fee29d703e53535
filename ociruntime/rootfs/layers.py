"""Mounting a root filesystem from layers: the squashfs of an image, or a directory, and an overlay on top."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..engine.removal import remove_tree
from ..engine.undo import refusal
from ..errors import BundleError, SifError, UnsupportedError
from ..files import other_writers
from ..image.sif import Filesystem, Partition
from .mount import NODEV, NOSUID, RDONLY, loop_device, mount, mounts_below, unmount

if TYPE_CHECKING:
    from ..image.sif import SifImage

PREFIX: Final = "ociruntime-"
"""Prefix of the name of an ephemeral bundle, which exists for one container."""


def mount_over(lower: Path, path: Path) -> Path:
    """Mount an overlay over a directory.

    Args:
        lower: the directory, which is not changed.
        path: the directory of the bundle: the overlay is mounted on ``rootfs`` in it, and what is written goes to ``overlay``.

    Returns:
        The path of the rootfs.

    Raises:
        UnsupportedError: this user may not mount.
        OSError: the kernel refuses it.
    """
    rootfs, overlay = path / "rootfs", path / "overlay"
    for directory in (rootfs, overlay, overlay / "upper", overlay / "work"):
        directory.mkdir(mode=0o700)
    (overlay / "upper").chmod(lower.stat().st_mode & 0o7777)
    try:
        mount("overlay", "overlay", rootfs, overlay_options(lower, overlay), NOSUID | NODEV)
    except PermissionError as error:
        raise UnsupportedError(
            f"cannot mount an overlay over {lower}: this user may not mount; run as root, or make a bundle with "
            "Bundle.from_dir() and RuntimeSpec.default(rootless=True)"
        ) from error
    return rootfs


def remove_ephemeral(path: str) -> None:
    """Unmount and remove an ephemeral bundle. No effect if it does not exist.

    Raises:
        StateError: the directory is not an ephemeral bundle; nothing is removed.
        BundleError: a mount is in use, and nothing is removed; or a file cannot be removed.
    """
    if not os.path.basename(path).startswith(PREFIX):
        raise refusal(path, f"the name of an ephemeral bundle begins with {PREFIX!r}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise refusal(path, "it is not a directory") from None
    try:
        if why := other_writers(os.fstat(fd)):
            raise refusal(path, why)
        real = os.readlink(f"/proc/self/fd/{fd}")  # as in mount tables
    finally:
        os.close(fd)
    for found in reversed(mounts_below(real)):
        try:
            unmount(found.point)
        except OSError as error:
            raise BundleError(f"{found.point} cannot be unmounted: {error.strerror}") from error
    remove_tree(real)


_OVERLAY_ESCAPES: Final = str.maketrans({"\\": "\\\\", ":": "\\:", ",": "\\,"})


def overlay_options(lower: Path, overlay: Path) -> list[tuple[str, str | None]]:
    """Return the options of an overlay over a directory, with ``upper`` and ``work`` in another directory."""
    layers = (("lowerdir", lower), ("upperdir", overlay / "upper"), ("workdir", overlay / "work"))
    return [(key, str(path).translate(_OVERLAY_ESCAPES)) for key, path in layers]


def mount_image(image: SifImage, rootfs: Path, overlay: Path | None) -> None:
    """Mount the primary system partition of an image.

    Args:
        rootfs: the mount point.
        overlay: directory with ``upper`` and ``work`` for a writable layer; None for a read-only root filesystem.

    Raises:
        SifError: the image has no primary partition.
        UnsupportedError: its filesystem is not squashfs.
        OSError: the kernel refuses it; nothing stays mounted.
    """
    descriptor = image.primary_partition
    if descriptor is None:
        raise SifError("has no primary system partition", field="descriptors", path=str(getattr(image, "path", "")))
    metadata = descriptor.metadata
    assert isinstance(metadata, Partition)
    if metadata.filesystem != Filesystem.SQUASHFS:
        raise UnsupportedError(f"the image's root filesystem is {metadata.filesystem!r}: only squashfs is mounted so far")
    with loop_device(image.fileno(), descriptor.offset, descriptor.size) as device:
        mount("squashfs", device, rootfs, [("ro", None)], RDONLY | NOSUID | NODEV)
    if overlay is None:
        return
    try:
        mount("overlay", "overlay", rootfs, overlay_options(rootfs, overlay), NOSUID | NODEV)
    except BaseException:
        unmount(rootfs)
        raise
