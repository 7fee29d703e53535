"""The root filesystem in a SIF image, mounted: its squashfs through a loop device, and an overlay on top when it is writable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SifError, UnsupportedError
from .loop import attached
from .mount import NODEV, NOSUID, RDONLY, mount, unmount

if TYPE_CHECKING:
    from ..image.sif import SifImage

_OVERLAY_ESCAPES = str.maketrans({"\\": "\\\\", ":": "\\:", ",": "\\,"})


def overlay_options(lower: Path, overlay: Path) -> list[tuple[str, str | None]]:
    """The options of an overlay over a directory, with ``upper`` and ``work`` in another one."""
    layers = (("lowerdir", lower), ("upperdir", overlay / "upper"), ("workdir", overlay / "work"))
    return [(key, str(path).translate(_OVERLAY_ESCAPES)) for key, path in layers]


def mount_image(image: SifImage, rootfs: Path, overlay: Path | None) -> None:
    """Mount the primary partition on ``rootfs``; with ``overlay`` a writable layer in its ``upper`` and ``work`` goes on top.

    Raises:
        SifError: the image has no primary partition.
        UnsupportedError: its filesystem is none that is mounted here.
        OSError: the kernel refuses; nothing stays mounted.
    """
    from ..image.sif import Filesystem, Partition

    descriptor = image.primary_partition
    if descriptor is None:
        raise SifError("has no primary system partition", field="descriptors", path=str(getattr(image, "path", "")))
    metadata = descriptor.metadata
    assert isinstance(metadata, Partition)
    if metadata.filesystem != Filesystem.SQUASHFS:
        raise UnsupportedError(f"the image's root filesystem is {metadata.filesystem!r}: only squashfs is mounted so far")
    with attached(image.fileno(), descriptor.offset, descriptor.size) as device:
        mount("squashfs", device, rootfs, [("ro", None)], RDONLY | NOSUID | NODEV)
    if overlay is None:
        return
    try:
        mount("overlay", "overlay", rootfs, overlay_options(rootfs, overlay), NOSUID | NODEV)
    except BaseException:
        unmount(rootfs)
        raise
