"""Directories and files of a squashfs, by the library PySquashfsImage (the extra ``images``), within bounds.

The library reads the whole tree when it opens a filesystem, decompresses blocks of any size and caches without limit. `Reader`
replaces these parts: it reads one directory at a time, and no block decompresses to more than the format allows. It may raise
anything on damaged data; its caller turns that into an error about the image.
"""

from __future__ import annotations

import io
import lzma
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from PySquashfsImage import SquashFsImage
from PySquashfsImage.const import SQUASHFS_INVALID_BLK, SQUASHFS_INVALID_XATTR, Compression
from PySquashfsImage.structure import FragmentEntry, XattrId, XattrTable

from ociruntime.files import ProcessLock
from ociruntime.image.blobs import open_zstd, optional_module
from ociruntime.image.layers import FILE_TYPES, MAX_PATH, Budget, FileType, Node, contained

if TYPE_CHECKING:
    from ociruntime.image.sif.format import Section

__all__ = ["Reader", "SquashfsTree"]

_METADATA: Final = 8192
_UNCOMPRESSED: Final = 1 << 24
_BUFFER: Final = 64 << 10
_CACHED: Final = 256
"""Metadata blocks that are kept."""
_LONGEST: Final = 64 << 10
"""Most bytes of metadata that are read at once."""
_BATCH: Final = 4096
"""Entries of a list of blocks that are read at once."""
_MAX_ATTRIBUTES: Final = 1000
_KEPT: Final = 50_000
"""Entries of directories that are kept, unless one directory has more."""
_XZ_MEMORY: Final = 64 << 20
_CLASSES: Final = ("user", "trusted", "security")
"""The classes of extended attributes, by their numbers."""
_ELSEWHERE: Final = 0x100
"""Flag of an extended attribute whose value is a reference to that of another file."""
_OPAQUE: Final = ((1, b"overlay.opaque", b"y"), (0, b"overlay.opaque", b"y"))
"""Class, name and value of the attribute that hides the lower layers of a directory: trusted, and user for overlays of users."""


class Reader(SquashFsImage):  # type: ignore[misc]  # the library has no types
    """An open squashfs.

    Args:
        section: the part of a file that holds it.
    """

    _fd: Any
    _sblk: Any
    _comp: Any

    def __init__(self, section: Section) -> None:
        self._calls_left = 0
        self._fragment: tuple[int, bytes] = (-1, b"")
        self._attributes: tuple[int, int, int] | None = None
        super().__init__(io.BufferedReader(section.reader(), _BUFFER), closefd=False)

    @property
    def root_location(self) -> tuple[int, int]:
        """Where the inode of the root directory lies."""
        return (self._sblk.root_inode >> 16) & 0xFFFFFFFF, self._sblk.root_inode & 0xFFFF

    def inode(self, location: tuple[int, int]) -> Any:
        """Return the inode at a location: its block in the inode table, and the offset in that block."""
        self._calls_left = 16
        return self._read_inode(*location)

    def entries(self, location: tuple[int, int], most: int) -> list[tuple[bytes, tuple[int, int]]]:
        """Return the names in a directory and where their inodes lie. Raises OverflowError: there are more than ``most``."""
        self._calls_left = 16 + 3 * most  # a header precedes some entries, and each takes two reads
        directory: Any = self._opendir(*location)
        return [(entry["name"], (entry["start_block"], entry["offset"])) for entry in directory.entries]

    def attributes(self, inode: Any) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield the class, name and value of each extended attribute of a file."""
        if inode.xattr == SQUASHFS_INVALID_XATTR or self._attributes is None:
            return
        self._calls_left = 5 * _MAX_ATTRIBUTES + 16
        table, start, count = self._attributes
        if inode.xattr >= count:
            raise ValueError("the index of an extended attribute is too large")
        item = XattrId.from_bytes(*self._table_entry(table, inode.xattr, 16))
        if item.count > _MAX_ATTRIBUTES:
            raise ValueError(f"{item.count} extended attributes of one file")
        block, offset = start + (item.xattr >> 16), item.xattr & 0xFFFF
        for _ in range(item.count):
            head, block, offset = self._read_metadata(self._hash_table, block, offset, 4)
            kind, length = struct.unpack("<HH", head)
            name, block, offset = self._read_metadata(self._hash_table, block, offset, length)
            value, block, offset = self._value(block, offset)
            if kind & _ELSEWHERE:
                (where,) = struct.unpack("<Q", value)
                value, _, _ = self._value(start + (where >> 16), where & 0xFFFF)
            yield kind & ~_ELSEWHERE, name, value

    def _value(self, block: int, offset: int) -> Any:
        """Return the value of an extended attribute, and where the next one begins."""
        head, block, offset = self._read_metadata(self._hash_table, block, offset, 4)
        return self._read_metadata(self._hash_table, block, offset, *struct.unpack("<I", head))

    def content(self, inode: Any) -> Iterator[bytes]:
        """Yield the content of a regular file, block by block."""
        size: int = self._sblk.block_size
        left, position = inode.data, inode.start
        block, offset, count = inode.block_start, inode.block_offset, inode.blocks
        while count:
            batch = min(count, _BATCH)
            count -= batch
            self._calls_left = 16
            data, block, offset = self._read_inode_data(block, offset, 4 * batch)
            for (entry,) in struct.iter_unpack("<I", data):
                expected = min(size, left)
                yield self._checked(self._data(position, entry) if entry else bytes(expected), expected)
                position += entry & ~_UNCOMPRESSED
                left -= expected
        if inode.frag_bytes:
            if self._fragment[0] != inode.fragment:
                self._fragment = (inode.fragment, self._data(*self._read_fragment(inode.fragment)))
            yield self._checked(self._fragment[1][inode.offset : inode.offset + inode.frag_bytes], inode.frag_bytes)

    def _data(self, start: int, size: int) -> bytes:
        if size & ~_UNCOMPRESSED > self._sblk.block_size:
            raise ValueError(f"a block takes {size & ~_UNCOMPRESSED} bytes")  # which reading would allocate
        self._fd.seek(start)
        data: bytes = self._fd.read(size & ~_UNCOMPRESSED)
        return data if size & _UNCOMPRESSED else self._comp.uncompress(data, len(data), self._sblk.block_size)

    @staticmethod
    def _checked(data: bytes, expected: int) -> bytes:
        if len(data) != expected:
            raise ValueError(f"a block has {len(data)} bytes, not {expected}")
        return data

    def _table_entry(self, table: int, index: int, size: int) -> tuple[bytes, int]:
        """Return the metadata block that holds an entry of a table, and the offset of the entry in it."""
        number, offset = divmod(index * size, _METADATA)
        self._fd.seek(table + 8 * number)
        return self._read_block(self._read_long())[0], offset

    # ---- what replaces parts of the library ----

    def _dir_scan(self, start_block: int, offset: int) -> Any:
        """Read nothing yet: the library would read the whole tree here, by recursion."""

    def _get_compressor(self, compression_id: int) -> Any:
        block_size, log = self._sblk.block_size, self._sblk.block_log
        if not 12 <= log <= 20 or block_size != 1 << log:
            raise ValueError(f"blocks of {block_size} bytes")
        return _Compressor(compression_id, block_size)

    def _read_fragment_table(self) -> None:
        """Read nothing yet: `_read_fragment` reads the part of the table that it needs."""

    def _read_fragment(self, fragment: int) -> tuple[int, int]:
        if fragment >= self._sblk.fragments:
            raise ValueError("the index of a fragment is too large")
        entry = FragmentEntry.from_bytes(*self._table_entry(self._sblk.fragment_table_start, fragment, 16))
        return entry.start_block, entry.size

    def _read_xattrs_from_disk(self) -> None:
        """Read only where the attributes are; `attributes` reads those of one file."""
        start = self._sblk.xattr_id_table_start
        if start != SQUASHFS_INVALID_BLK:
            self._fd.seek(start)
            table = XattrTable.from_fd(self._fd)
            self._attributes = (start + 16, table.xattr_table_start, table.xattr_ids)

    def _read_metadata(self, hash_table: dict[int, Any], block: int, offset: int, length: int) -> Any:
        self._calls_left -= 1
        if self._calls_left < 0:
            raise OverflowError("a directory has too many entries")
        if length > _LONGEST:
            raise ValueError(f"{length} bytes of metadata for one file")
        if len(hash_table) > _CACHED:
            hash_table.clear()
        return super()._read_metadata(hash_table, block, offset, length)


class SquashfsTree:
    """The files of a squashfs.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.

    Raises:
        ImageError: it is damaged.
        UnsupportedError: the module for its compression is not installed.
    """

    def __init__(self, section: Section, where: str) -> None:
        self._where = where
        self._lock = ProcessLock()  # the reader has a position
        self._known: dict[tuple[int, int], dict[str, Node]] = {}
        self._count = 0
        with contained(where):
            self._reader = Reader(section)
            self.root = self._node(self._reader.root_location)

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        with self._lock, contained(self._where):
            found = self._known.get(node.location)
            if found is None:
                found = {}
                try:
                    entries = self._reader.entries(node.location, budget.files_left)
                except OverflowError:
                    budget.take_files(budget.files_left + 1)
                    raise
                for name, location in entries:
                    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or os.fsdecode(name) in found:
                        raise ValueError(f"a directory has the entry {name[:100]!r}, or has it twice")
                    found[os.fsdecode(name)] = self._node(location)
                self._keep(node.location, found)
        return found

    def _keep(self, location: tuple[int, int], found: dict[str, Node]) -> None:
        """Keep the content of a directory, which may be looked up for many paths."""
        if self._count + len(found) > _KEPT:
            self._known.clear()
            self._count = 0
        self._known[location] = found
        self._count += len(found) + 1

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        for node in nodes:
            yield node, self._content(node)

    def attributes(self, node: Node) -> dict[str, bytes]:
        with self._lock, contained(self._where):
            found = self._reader.attributes(self._reader.inode(node.location))
            return {f"{_CLASSES[kind]}.{os.fsdecode(name)}": value for kind, name, value in found}

    def _content(self, node: Node) -> Iterator[bytes]:
        with self._lock, contained(self._where):
            blocks = self._reader.content(self._reader.inode(node.location))
        while True:
            with self._lock, contained(self._where):
                block = next(blocks, None)
            if block is None:
                return
            yield block

    def _node(self, location: tuple[int, int]) -> Node:
        inode = self._reader.inode(location)
        kind = FILE_TYPES[stat.S_IFMT(inode.mode)]
        if kind is FileType.SYMLINK and inode.data > MAX_PATH:
            raise ValueError("a symbolic link has a target that is too long")
        is_device = kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
        device = ((inode.rdev & 0xFFF00) >> 8, inode.rdev & 0xFF | (inode.rdev >> 12) & 0xFFF00) if is_device else None
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.data if kind is FileType.FILE else 0,
            mtime=inode.time,
            target=os.fsdecode(inode._symlink) if kind is FileType.SYMLINK else "",
            device=device,
            location=location,
            whiteout=kind is FileType.CHARACTER_DEVICE and device == (0, 0),
            opaque=kind is FileType.DIRECTORY and any(item in _OPAQUE for item in self._reader.attributes(inode)),
        )


class _Compressor:
    """Decompresses blocks, none to more bytes than a block of its kind can have."""

    def __init__(self, compression: int, block_size: int) -> None:
        self._block_size = block_size
        self._decompress = _DECOMPRESSORS[Compression(compression)]()

    def uncompress(self, data: bytes, size: int, expected: int) -> bytes:
        limit = self._block_size if expected == self._block_size else _METADATA
        result = self._decompress(data, limit)
        if len(result) > limit:
            raise ValueError(f"a block decompresses to more than {limit} bytes")
        return result


Decompress = Callable[[bytes, int], bytes]
"""Takes a compressed block and a limit; more bytes than the limit in the result mean that there are too many."""


def _zlib() -> Decompress:
    return lambda data, limit: zlib.decompressobj().decompress(data, limit + 1)


def _xz() -> Decompress:
    return lambda data, limit: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY).decompress(data, limit + 1)


def _zstd() -> Decompress:
    return lambda data, limit: open_zstd(io.BytesIO(data)).read(limit + 1)


def _lz4() -> Decompress:
    block = optional_module("lz4.block", "reading a squashfs that is compressed with lz4", "pip install lz4")
    return lambda data, limit: block.decompress(data, uncompressed_size=limit)


def _lzo() -> Decompress:
    lzo = optional_module("lzo", "reading a squashfs that is compressed with lzo", "pip install python-lzo")
    return lambda data, limit: lzo.decompress(data, False, limit)


_DECOMPRESSORS: Final = {
    Compression.ZLIB: _zlib,
    Compression.XZ: _xz,
    Compression.ZSTD: _zstd,
    Compression.LZ4: _lz4,
    Compression.LZO: _lzo,
}
