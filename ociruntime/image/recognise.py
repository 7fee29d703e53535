"""What a file holds, by its first bytes: filesystems with their size, archives, and what people mistake for an image."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Final

import attrs

from ociruntime.errors import ImageError

__all__ = ["FilesystemFound", "LayerFormat", "compression", "describe", "find_filesystem"]

ReadAt = Callable[[int, int], bytes]
"""Returns the bytes at an offset, fewer than were asked for only at the end of the file."""

HEAD: Final = 4096
"""Bytes from the beginning of a file that `describe` takes."""
_LAUNCH_LINE: Final = b"#!/usr/bin/env run-singularity\n"


class LayerFormat(enum.StrEnum):
    """The encoding of a layer."""

    SQUASHFS = "squashfs"
    EXT = "ext"
    """ext2, ext3 or ext4."""
    EROFS = "erofs"
    ENCRYPTED = "encrypted"
    """A LUKS2 volume, or gocryptfs, with squashfs inside."""
    TAR = "tar"
    TAR_GZIP = "tar+gzip"
    TAR_ZSTD = "tar+zstd"
    DIRECTORY = "directory"
    OTHER = "other"
    """Data of some other type, which cannot become a part of a root filesystem."""

    @property
    def is_filesystem(self) -> bool:
        """Whether the layer can be mounted as it is."""
        return self in (LayerFormat.SQUASHFS, LayerFormat.EXT, LayerFormat.EROFS)

    @property
    def is_archive(self) -> bool:
        """Whether the layer is a tar archive, plain or compressed."""
        return self in (LayerFormat.TAR, LayerFormat.TAR_GZIP, LayerFormat.TAR_ZSTD)


@attrs.frozen(kw_only=True)
class FilesystemFound:
    """A filesystem at the beginning of a file or of a part of one."""

    format: LayerFormat
    name: str
    """``squashfs``, ``ext2``, ``ext3``, ``ext4`` or ``erofs``."""
    size: int
    """Bytes that the filesystem takes, as its superblock says."""


def find_filesystem(read_at: ReadAt, offset: int = 0) -> FilesystemFound | None:
    """Return the filesystem whose superblock lies at ``offset``; None if there is no known one."""
    head = read_at(offset, 2048)
    return _squashfs(head) or _ext(head) or _erofs(head)


def checked_filesystem(read_at: ReadAt, offset: int, size: int, where: str) -> FilesystemFound | None:
    """Return the filesystem in a part of a file. Raises ImageError if its superblock claims more bytes than the part has."""
    found = find_filesystem(read_at, offset)
    if found is not None and found.size > size:
        raise ImageError(f"{where}: the {found.name} needs {found.size} bytes, but only {size} are there: the file is truncated")
    return found


def launch_script_size(read_at: ReadAt) -> int:
    """Return the size of the line before the squashfs in an image of Singularity 2.4 and older; 0 in any other file."""
    return len(_LAUNCH_LINE) if read_at(0, len(_LAUNCH_LINE)) == _LAUNCH_LINE else 0


def _squashfs(head: bytes) -> FilesystemFound | None:
    if len(head) < 96 or head[:4] != b"hsqs":
        return None
    major, _, _, size = struct.unpack_from("<HHQQ", head, 28)
    return FilesystemFound(format=LayerFormat.SQUASHFS, name="squashfs", size=size) if major == 4 else None


def _ext(head: bytes) -> FilesystemFound | None:
    if len(head) < 2048 or head[1080:1082] != b"\x53\xef":
        return None
    (low,) = struct.unpack_from("<I", head, 1024 + 4)
    (block_log,) = struct.unpack_from("<I", head, 1024 + 24)
    compatible, incompatible, read_only = struct.unpack_from("<III", head, 1024 + 92)
    (high,) = struct.unpack_from("<I", head, 1024 + 336)
    if block_log > 6:
        return None
    blocks = low + (high << 32 if incompatible & 0x80 else 0)
    # The features that ext3 does not have (extents, 64bit, huge_file ...) make it an ext4.
    name = "ext4" if incompatible & ~0x16 or read_only & ~0x7 else "ext3" if compatible & 0x4 else "ext2"
    return FilesystemFound(format=LayerFormat.EXT, name=name, size=blocks * (1024 << block_log))


def _erofs(head: bytes) -> FilesystemFound | None:
    if len(head) < 1024 + 128 or head[1024:1028] != b"\xe2\xe1\xf5\xe0":
        return None
    block_log = head[1024 + 12]
    (blocks,) = struct.unpack_from("<I", head, 1024 + 36)
    return FilesystemFound(format=LayerFormat.EROFS, name="erofs", size=blocks << block_log) if 9 <= block_log <= 16 else None


_COMPRESSIONS: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "lz4"),
)


def compression(head: bytes) -> str:
    """Return the name of the program that decompresses a file; empty if the file is not compressed as a whole."""
    return next((name for magic, name in _COMPRESSIONS if head.startswith(magic)), "")


def is_tar(head: bytes) -> bool:
    """Return whether a file begins with the header of a tar member, by the checksum of the header."""
    if len(head) < 512:
        return False
    try:
        expected = int(head[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return sum(head[:148]) + sum(b" " * 8) + sum(head[156:512]) == expected


_MAGICS: Final = (
    (0, b"SIF_MAGIC", "a SIF image without its first 32 bytes"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"QFI\xfb", "a QEMU disk image (qcow2)"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (0, b"sqsh", "a big-endian squashfs, which Linux no longer mounts"),
    (0, b"XFSB", "an XFS filesystem"),
    (0, b"%PDF", "a PDF document"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself: run 'git lfs pull'"),
    (0, b"070701", "a cpio archive"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0x10040, b"_BHRfS_M", "a Btrfs filesystem"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (512, b"EFI PART", "a disk with a partition table (GPT)"),
    (510, b"\x55\xaa", "a disk with a partition table, or a boot sector"),
)


def describe(head: bytes, read_at: ReadAt) -> str:
    """Say what a file that is not an image seems to be, from its first bytes.

    Args:
        head: the first `HEAD` bytes.
        read_at: reads bytes further on.
    """
    if not head:
        return "an empty file"
    if name := compression(head):
        return f"a file compressed with {name}: decompress it first"
    for offset, magic, what in _MAGICS:
        if (head[offset : offset + len(magic)] if offset < HEAD else read_at(offset, len(magic))) == magic:
            return what
    if not any(head):
        return "a file that begins with zeros"
    return _describe_text(head)


def _describe_text(head: bytes) -> str:
    try:
        text = head.decode("utf-8", "strict" if len(head) < HEAD else "ignore")
    except UnicodeDecodeError:
        return "data of an unknown format"
    if any(char < " " and char not in "\t\r\n\f" for char in text):
        return "data of an unknown format"
    start = text.lstrip().lower()
    if start.startswith("#!"):
        return f"a script ({text.lstrip().splitlines()[0][:60]!r})"
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page: perhaps the error page of a download"
    if start.startswith(("bootstrap:", "from ", "from:")):
        return "a definition file or Dockerfile, from which an image is built"
    return "a JSON document" if start.startswith("{") else "a text file"
