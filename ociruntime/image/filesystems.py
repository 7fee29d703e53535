"""The files of an ext or erofs filesystem, read from its image without mounting it.

Nothing that the filesystem says is trusted.
"""

from __future__ import annotations

import enum
import io
import lzma
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs
from typing_extensions import override

from ociruntime.errors import UnsupportedError
from ociruntime.image.blobs import open_zstd
from ociruntime.image.layers import FILE_TYPES, MAX_NAME, MAX_PATH, PIECE, Budget, FileType, Node, contained, to_time, zeros

if TYPE_CHECKING:
    from ociruntime.image.sif.format import Section

__all__ = ["ErofsTree", "ExtTree"]


class _DiskTree:
    """The files of a filesystem that is read without mounting it.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.
    """

    root: Node

    def __init__(self, section: Section, where: str) -> None:
        self._section, self._where = section, where
        self._known: dict[int, dict[str, Node]] = {}

    def children(self, node: Node, budget: Budget) -> dict[str, Node]:
        with contained(self._where):
            found = self._known.get(node.location)
            if found is None:
                found = {}
                for name, number in self._names(node.location):
                    if b"/" in name or b"\0" in name or os.fsdecode(name) in found:
                        raise ValueError(f"a directory has the entry {name[:100]!r}, or has it twice")
                    if len(found) >= budget.files_left:
                        budget.take_files(len(found) + 1)
                    found[os.fsdecode(name)] = self._node(number)
                self._known[node.location] = found
        return found

    def contents(self, nodes: Sequence[Node], budget: Budget) -> Iterator[tuple[Node, Iterator[bytes]]]:
        for node in nodes:
            yield node, self._contained_content(node)

    def attributes(self, node: Node) -> dict[str, bytes]:
        with contained(self._where):
            return self._attributes_of(node.location)

    def _contained_content(self, node: Node) -> Iterator[bytes]:
        with contained(self._where):
            yield from self._content_of(node.location)

    def _read(self, offset: int, size: int) -> bytes:
        content = self._section.read_at(offset, size)
        if len(content) != size:
            raise ValueError(f"{size} bytes at byte {offset} are not in the filesystem")
        return content

    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a directory and the numbers of their inodes, without ``.`` and ``..``."""
        raise NotImplementedError

    def _node(self, number: int) -> Node:
        raise NotImplementedError

    def _content_of(self, number: int) -> Iterator[bytes]:
        raise NotImplementedError

    def _attributes_of(self, number: int) -> dict[str, bytes]:
        raise NotImplementedError


_ATTRIBUTE_CLASSES: Final = {1: "user.", 4: "trusted.", 6: "security."}
"""The classes of extended attributes by their numbers, which ext and erofs share."""
_OPAQUE: Final = ("trusted.overlay.opaque", "user.overlay.opaque")


def _type_of(mode: int) -> FileType:
    kind = FILE_TYPES.get(stat.S_IFMT(mode))
    if kind is None:
        raise ValueError(f"a file has the unknown mode {mode:#o}")
    return kind


def _is_opaque(attributes: dict[str, bytes]) -> bool:
    return any(attributes.get(name) == b"y" for name in _OPAQUE)


# ---- ext2, ext3 and ext4 ----

_EXTENTS: Final = 0x80000
_READABLE: Final = 0x2 | 0x4 | 0x40 | 0x80 | 0x100 | 0x200 | 0x2000 | 0x4000
"""Incompatible features that can be read: filetype, recover, extents, 64bit, mmp, flex_bg, csum_seed and largedir."""
_BIGALLOC: Final = 0x200
"""A feature that only readers of some files can ignore."""
_FEATURES: Final = {
    0x1: "compression",
    0x8: "journal_dev",
    0x10: "meta_bg",
    0x400: "ea_inode",
    0x1000: "dirdata",
    0x8000: "inline_data",
    0x10000: "encrypt",
    0x20000: "casefold",
    _BIGALLOC << 32: "bigalloc",
}
_ROOT_INODE: Final = 2
_EXTENT_MAGIC: Final = 0xF30A
_ATTRIBUTE_MAGIC: Final = b"\x00\x00\x02\xea"
_EXTENT_DEPTH: Final = 5
_UNWRITTEN: Final = 1 << 15
"""Blocks that an extent has at most; more of them are allocated, but not written."""
_DIRECT: Final = 12
"""Blocks of a file before those that are found by lists of blocks."""


@attrs.frozen
class _Inode:
    """A file of an ext filesystem: its number, and the entry in the table of inodes."""

    number: int
    raw: bytes

    def field(self, form: str, offset: int) -> int:
        number: int = struct.unpack_from(form, self.raw, offset)[0]
        return number

    @property
    def mode(self) -> int:
        return self.field("<H", 0)

    @property
    def size(self) -> int:
        has_more = stat.S_IFMT(self.mode) in (stat.S_IFREG, stat.S_IFDIR)
        return self.field("<I", 4) | (self.field("<I", 108) << 32 if has_more else 0)

    @property
    def has_extents(self) -> bool:
        """Whether its blocks are found by a tree of extents, not by lists of blocks."""
        return bool(self.field("<I", 32) & _EXTENTS)

    @property
    def acl(self) -> int:
        """The block with extended attributes; 0 without one."""
        return self.field("<I", 104) | self.field("<H", 118) << 32


class ExtTree(_DiskTree):
    """The files of an ext2, ext3 or ext4 filesystem, without mounting it. Its journal is not replayed.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.

    Raises:
        ImageError: it is damaged.
        UnsupportedError: it has a feature that cannot be read.
    """

    def __init__(self, section: Section, where: str) -> None:
        super().__init__(section, where)
        with contained(where):
            head = self._read(1024, 1024)
            (self._inodes,) = struct.unpack_from("<I", head)
            self._first, log = struct.unpack_from("<II", head, 20)
            (self._per_group,) = struct.unpack_from("<I", head, 40)
            revision, features, read_only = struct.unpack_from("<I16xII", head, 76)
            inode_size, descriptor_size = struct.unpack_from("<H", head, 88)[0], struct.unpack_from("<H", head, 254)[0]
            features |= (read_only & _BIGALLOC) << 32
            if features & ~_READABLE:
                names = [name for flag, name in _FEATURES.items() if features & flag] or [f"{features & ~_READABLE:#x}"]
                raise UnsupportedError(f"{where}: an ext filesystem with {', '.join(names)} cannot be read without mounting it")
            self._block = 1024 << log if log <= 6 else 0
            self._inode_size = inode_size if revision else 128
            self._descriptor = descriptor_size if features & 0x80 else 32
            if not (self._block and self._per_group and 128 <= self._inode_size <= self._block and 32 <= self._descriptor <= 1024):
                raise ValueError("the superblock is not valid")
            self._blocks_left = section.size // self._block + 1
            self.root = self._node(_ROOT_INODE)
            if not self.root.is_directory:
                raise ValueError("the root is not a directory")

    @override
    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        for content in self._content(self._inode(number), self._block):
            self._blocks_left -= 1  # each directory is read once, so that all of them have the blocks of the filesystem
            if self._blocks_left < 0 or len(content) < self._block:
                raise ValueError("the size of a directory is not valid")
            yield from self._entries(content)

    @override
    def _content_of(self, number: int) -> Iterator[bytes]:
        return self._content(self._inode(number), PIECE)

    @override
    def _attributes_of(self, number: int) -> dict[str, bytes]:
        return self._attributes(self._inode(number))

    def _inode(self, number: int) -> _Inode:
        if not 1 <= number <= self._inodes:
            raise ValueError(f"inode {number} does not exist")
        group, index = divmod(number - 1, self._per_group)
        descriptor = self._read((self._first + 1) * self._block + group * self._descriptor, self._descriptor)
        table: int = struct.unpack_from("<I", descriptor, 8)[0]
        if self._descriptor >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        raw = self._read(table * self._block + index * self._inode_size, self._inode_size)
        return _Inode(number, raw)

    @override
    def _node(self, number: int) -> Node:
        inode = self._inode(number)
        kind = _type_of(inode.mode)
        is_device = kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
        device = self._device(inode) if is_device else None
        later = inode.field("<I", 136) & 3 if len(inode.raw) > 128 and inode.field("<H", 128) >= 12 else 0
        attributes = self._attributes(inode) if kind is FileType.DIRECTORY else {}
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.field("<H", 2) | inode.field("<H", 120) << 16,
            gid=inode.field("<H", 24) | inode.field("<H", 122) << 16,
            size=inode.size if kind is FileType.FILE else 0,
            mtime=to_time(inode.field("<i", 16) + (later << 32)),
            target=os.fsdecode(self._target(inode)) if kind is FileType.SYMLINK else "",
            device=device,
            location=number,
            whiteout=kind is FileType.CHARACTER_DEVICE and device == (0, 0),
            opaque=_is_opaque(attributes),
        )

    @staticmethod
    def _device(inode: _Inode) -> tuple[int, int]:
        old, new = inode.field("<I", 40), inode.field("<I", 44)
        if old:
            return old >> 8 & 0xFF, old & 0xFF
        return new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00

    def _target(self, inode: _Inode) -> bytes:
        if inode.size > MAX_PATH:
            raise ValueError("a symbolic link has a target that is too long")
        own = self._block // 512 if inode.acl else 0
        if inode.size < 60 and not inode.has_extents and inode.field("<I", 28) == own:
            return inode.raw[40 : 40 + inode.size]
        return b"".join(self._content(inode, PIECE))

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a block of a directory, and the numbers of their inodes."""
        offset = 0
        while offset < len(block):
            number, length, name_length = struct.unpack_from("<IHB", block, offset)
            if length in (0, 0xFFFF) and len(block) == 1 << 16:
                length = 1 << 16
            if length < 8 + name_length or length % 4 or offset + length > len(block):
                raise ValueError("an entry of a directory has a wrong length")
            name = block[offset + 8 : offset + 8 + name_length]
            if number and name not in (b".", b".."):
                if not name:
                    raise ValueError("an entry of a directory has no name")
                yield name, number
            offset += length

    # ---- the blocks of a file ----

    def _content(self, inode: _Inode, most: int) -> Iterator[bytes]:
        """Yield the content of a file in pieces of so many bytes at most, with zeros for holes."""
        position = 0
        for logical, physical, count in self._runs(inode):
            begin, end = logical * self._block, min((logical + count) * self._block, inode.size)
            if begin >= inode.size:
                break
            yield from zeros(begin - position)
            for offset in range(0, end - begin, most):
                yield self._read(physical * self._block + offset, min(most, end - begin - offset))
            position = end
        yield from zeros(inode.size - position)

    def _runs(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of a file that are not holes: first block of the file, first block on the disk, number of blocks."""
        begin = start = count = 0
        for logical, physical, length in self._extents(inode) if inode.has_extents else self._listed(inode):
            if logical < begin + count:
                raise ValueError("the blocks of a file are not in order")
            if count and (logical, physical) == (begin + count, start + count):
                count += length
                continue
            if count:
                yield begin, start, count
            begin, start, count = logical, physical, length
        if count:
            yield begin, start, count

    def _extents(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        pending, left = [(0, _EXTENT_DEPTH + 1)], self._section.size // self._block
        while pending:
            number, above = pending.pop()
            node = self._read(number * self._block, self._block) if number else inode.raw[40:100]
            magic, entries, _, depth = struct.unpack_from("<HHHH", node)
            left -= entries if depth else 0  # no block is in two trees
            if magic != _EXTENT_MAGIC or depth >= above or 12 + 12 * entries > len(node) or left < 0:
                raise ValueError("a tree of extents is damaged")
            if depth:
                below = [struct.unpack_from("<IH", node, 16 + 12 * entry) for entry in range(entries)]
                pending += [(low | high << 32, depth) for low, high in reversed(below)]
                continue
            for entry in range(entries):
                logical, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * entry)
                if length <= _UNWRITTEN:
                    yield logical, low | high << 32, length

    def _listed(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        blocks = -(-inode.size // self._block)
        numbers: tuple[int, ...] = struct.unpack_from("<15I", inode.raw, 40)
        yield from ((logical, number, 1) for logical, number in enumerate(numbers[:_DIRECT]) if number)
        logical, each = _DIRECT, self._block // 4
        for level, number in enumerate(numbers[_DIRECT:], start=1):
            yield from self._list(number, level, logical, blocks)
            logical += each**level

    def _list(self, number: int, level: int, logical: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the blocks of a file in a list of blocks or, on higher levels, of lists."""
        if not number or logical >= end:
            return
        each = self._block // 4
        for index, entry in enumerate(struct.unpack(f"<{each}I", self._read(number * self._block, self._block))):
            if level > 1:
                yield from self._list(entry, level - 1, logical + index * each ** (level - 1), end)
            elif entry:
                yield logical + index, entry, 1

    # ---- extended attributes ----

    def _attributes(self, inode: _Inode) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        if len(inode.raw) > 132:
            own = inode.raw[128 + inode.field("<H", 128) :]
            if own[:4] == _ATTRIBUTE_MAGIC:
                found |= self._attribute_entries(own[4:], 0)
        if inode.acl:
            block = self._read(inode.acl * self._block, self._block)
            if block[:4] != _ATTRIBUTE_MAGIC:
                raise ValueError("a block of extended attributes is damaged")
            found |= self._attribute_entries(block, 32)
        return found

    @staticmethod
    def _attribute_entries(area: bytes, offset: int) -> Iterator[tuple[str, bytes]]:
        """Yield names and values, which lie behind the entries. Access control lists are left out."""
        while area[offset : offset + 4] not in (bytes(4), b""):
            length, kind, place, elsewhere, size = struct.unpack_from("<BBHII", area, offset)
            name, value = area[offset + 16 : offset + 16 + length], area[place : place + size]
            if elsewhere or len(name) != length or len(value) != size or b"\0" in name:
                raise ValueError("an extended attribute is damaged")
            if kind in _ATTRIBUTE_CLASSES:
                yield _ATTRIBUTE_CLASSES[kind] + os.fsdecode(name), value
            offset += 16 + length + -length % 4


# ---- erofs ----

_EROFS_READABLE: Final = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20
"""Features that can be read: lz4_0padding, big_pcluster, chunked_file, compr_head2, ztailpacking and dedupe."""
_EROFS_FEATURES: Final = {0x40: "xattr_prefixes", 0x80: "48bit", 0x100: "metabox"}
_PADDED: Final = 0x1
"""The feature of data that lies at the end of its blocks, behind zeros."""
_NOT_STORED: Final = 0xFFFFFFFF
"""The block of a chunk that is a hole."""
_WITH_INDEXES: Final = 0x20
"""Flag of a file in chunks that each have an entry of 8 bytes, not of 4."""
_MOST_PACKED: Final = 1 << 20
_MOST_UNPACKED: Final = 12 << 20
"""Most bytes of an extent of a compressed file: as it is stored, and decompressed."""
_COUNT: Final = 0x800
"""Flag of an entry that has the number of blocks of the extent before."""


class _Layout(enum.IntEnum):
    """How the content of a file of an erofs is stored."""

    PLAIN = 0
    """In blocks one after another."""
    FULL = 1
    """Compressed, with an index of 8 bytes for each cluster."""
    INLINE = 2
    """As `PLAIN`, but what does not fill a block lies behind the inode."""
    COMPACT = 3
    """Compressed, with an index of 2 or 4 bytes for each cluster."""
    CHUNKS = 4
    """In chunks, each with a block of its own, or none."""


class _Cluster(enum.IntEnum):
    """What begins in a cluster of a compressed file."""

    PLAIN = 0
    """Data that is not compressed."""
    FIRST = 1
    """Data that is compressed with the first algorithm of the file."""
    NONE = 2
    SECOND = 3


_BIG: Final = {_Cluster.PLAIN: 0x4, _Cluster.FIRST: 0x2, _Cluster.SECOND: 0x4}
"""Flags of files in which extents of a kind may take several blocks."""
_SMALL_INDEXES, _IN_INDEX, _INTERLACED, _IN_FRAGMENT = 0x1, 0x8, 0x10, 0x20
"""Flags of compressed files: entries of 2 bytes, last extent behind the index, rotated plain data, last extent in another file."""


@attrs.frozen(kw_only=True)
class _ErofsInode:
    """A file of an erofs."""

    layout: _Layout
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    value: int
    """The first block, the number of a device, or the format of chunks."""
    attributes: int
    """Where its extended attributes begin."""
    end: int
    """Where they end."""


class ErofsTree(_DiskTree):
    """The files of an erofs, without mounting it.

    Args:
        section: the part of a file that holds it.
        where: the layer, for messages.

    Raises:
        ImageError: it is damaged.
        UnsupportedError: it has a feature that cannot be read.
    """

    def __init__(self, section: Section, where: str) -> None:
        super().__init__(section, where)
        with contained(where):
            head = self._read(1024, 128)
            log, root = struct.unpack_from("<BxH", head, 12)
            self._epoch, self._meta, self._shared = struct.unpack_from("<Q8xII", head, 24)
            self._features, devices = struct.unpack_from("<I2xH", head, 80)
            if self._features & ~_EROFS_READABLE or devices:
                unknown = self._features & ~_EROFS_READABLE
                names = [name for flag, name in _EROFS_FEATURES.items() if unknown & flag] or [f"{unknown:#x}"]
                raise self._unsupported("data in other files" if devices else ", ".join(names))
            self._block = 1 << log if 9 <= log <= 16 else 0
            if not self._block or head[90]:
                raise ValueError("the superblock is not valid")
            self._left = section.size
            self.root = self._node(root)
            if not self.root.is_directory:
                raise ValueError("the root is not a directory")

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self._where}: an erofs with {what} cannot be read without mounting it")

    def _inode(self, number: int) -> _ErofsInode:
        place = self._meta * self._block + 32 * number
        raw = self._read(place, 32)
        form, count, mode = struct.unpack_from("<HHH", raw)
        (value,) = struct.unpack_from("<I", raw, 16)
        if form & 1:
            (size,), (uid, gid, mtime) = struct.unpack_from("<Q", raw, 8), struct.unpack("<IIQ", self._read(place + 24, 16))
        else:
            (size,), (uid, gid), mtime = struct.unpack_from("<I", raw, 8), struct.unpack_from("<HH", raw, 24), self._epoch
        attributes = place + (64 if form & 1 else 32)
        return _ErofsInode(
            layout=_Layout(form >> 1 & 7),
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            value=value,
            attributes=attributes,
            end=attributes + (8 + 4 * count if count else 0),
        )

    @override
    def _node(self, number: int) -> Node:
        inode = self._inode(number)
        kind = _type_of(inode.mode)
        is_device = kind in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE)
        device = (inode.value >> 8 & 0xFFF, inode.value & 0xFF | inode.value >> 12 & 0xFFF00) if is_device else None
        if kind is FileType.SYMLINK and inode.size > MAX_PATH:
            raise ValueError("a symbolic link has a target that is too long")
        return Node(
            tree=self,
            type=kind,
            mode=stat.S_IMODE(inode.mode),
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size if kind is FileType.FILE else 0,
            mtime=to_time(inode.mtime),
            target=os.fsdecode(b"".join(self._content(inode))) if kind is FileType.SYMLINK else "",
            device=device,
            location=number,
            whiteout=device == (0, 0) and kind is FileType.CHARACTER_DEVICE,
            opaque=kind is FileType.DIRECTORY and _is_opaque(dict(self._attributes(inode))),
        )

    @override
    def _names(self, number: int) -> Iterator[tuple[bytes, int]]:
        pending = bytearray()
        for piece in self._content(self._inode(number)):
            pending += piece
            while len(pending) >= self._block:
                yield from self._entries(bytes(pending[: self._block]))
                del pending[: self._block]
        if pending:
            yield from self._entries(bytes(pending))

    def _entries(self, block: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the names in a block of a directory, and the numbers of their inodes."""
        self._left -= len(block)  # each directory is read once, so that all of them have the size of the filesystem
        (first,) = struct.unpack_from("<H", block, 8)
        if self._left < 0 or first % 12 or not 12 <= first < len(block):
            raise ValueError("a directory is not valid")
        entries = list(struct.iter_unpack("<QHBx", block[:first]))
        ends = [start for _, start, _ in entries[1:]] + [len(block)]
        for (number, start, _), end in zip(entries, ends, strict=True):
            name = block[start:end]
            if end == len(block):
                name = name.partition(b"\0")[0]
            if start < first or not 0 < len(name) <= MAX_NAME:
                raise ValueError("an entry of a directory has a wrong length")
            if name not in (b".", b".."):
                yield name, number

    @override
    def _attributes_of(self, number: int) -> dict[str, bytes]:
        return dict(self._attributes(self._inode(number)))

    def _attributes(self, inode: _ErofsInode) -> Iterator[tuple[str, bytes]]:
        if inode.end == inode.attributes:
            return
        area = self._read(inode.attributes, inode.end - inode.attributes)
        offset = 12 + 4 * area[4]
        for (place,) in struct.iter_unpack("<I", area[12:offset]):
            start = self._shared * self._block + 4 * place
            length, _, size = struct.unpack("<BBH", self._read(start, 4))
            yield from self._attribute(self._read(start, 4 + length + size))
        while offset < len(area):
            length, _, size = struct.unpack_from("<BBH", area, offset)
            yield from self._attribute(area[offset : offset + 4 + length + size])
            offset += 4 + length + size + -(length + size) % 4

    @staticmethod
    def _attribute(entry: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the name and value of an attribute, unless it is an access control list."""
        length, kind, size = struct.unpack_from("<BBH", entry)
        name, value = entry[4 : 4 + length], entry[4 + length :]
        if len(value) != size or b"\0" in name:
            raise ValueError("an extended attribute is damaged")
        if kind in _ATTRIBUTE_CLASSES:
            yield _ATTRIBUTE_CLASSES[kind] + os.fsdecode(name), value

    # ---- the content of a file ----

    @override
    def _content_of(self, number: int) -> Iterator[bytes]:
        return self._content(self._inode(number))

    def _content(self, inode: _ErofsInode) -> Iterator[bytes]:
        match inode.layout:
            case _Layout.PLAIN:
                yield from self._pieces(inode.value * self._block, inode.size)
            case _Layout.INLINE:
                rest = inode.size % self._block
                yield from self._pieces(inode.value * self._block, inode.size - rest)
                yield self._read(inode.end, rest)
            case _Layout.CHUNKS:
                yield from self._chunks(inode)
            case _:
                yield from self._extents(inode)

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        for begin in range(0, size, PIECE):
            yield self._read(offset + begin, min(PIECE, size - begin))

    def _chunks(self, inode: _ErofsInode) -> Iterator[bytes]:
        chunk, width = self._block << (inode.value & 0x1F), 8 if inode.value & _WITH_INDEXES else 4
        start = inode.end + -inode.end % width
        for number in range(-(-inode.size // chunk)):
            (block,) = struct.unpack("<I", self._read(start + width * number, width)[-4:])
            size = min(chunk, inode.size - chunk * number)
            yield from zeros(size) if block == _NOT_STORED else self._pieces(block * self._block, size)

    def _extents(self, inode: _ErofsInode) -> Iterator[bytes]:
        """Yield the content of a compressed file, extent by extent."""
        start = inode.end + -inode.end % 8
        inlined, flags, algorithms, clusters = struct.unpack("<2xHHBB", self._read(start, 8))
        if flags & _IN_FRAGMENT or clusters & 0x80:
            raise self._unsupported("fragments")
        log = self._block.bit_length() - 1 + (clusters & 0xF)
        if log > 14 and inode.layout is _Layout.COMPACT:
            raise ValueError("the size of clusters is not valid")
        index = self._full_index if inode.layout is _Layout.FULL else self._compact_index
        kind, begin, block, count, index_end, is_next = _Cluster.NONE, 0, 0, 1, start, False
        for number, (next_kind, value, next_block, entry_end) in enumerate(index(inode.size, start + 8, log, flags)):
            index_end = entry_end
            if next_kind is _Cluster.NONE:
                if is_next and value & _COUNT and flags & _BIG[kind]:
                    count = value & ~_COUNT
                is_next = False
                continue
            end = (number << log) + value
            if end >= inode.size:
                break
            if kind is not _Cluster.NONE:
                yield self._extent(kind, algorithms, flags, begin, end, self._stored(block, count))
            elif end:
                raise ValueError("a compressed file does not begin with its first extent")
            kind, begin, block, count, is_next = next_kind, end, next_block, 1, True
        if kind is not _Cluster.NONE:
            inlined = inlined if flags & _IN_INDEX else 0
            stored = self._read(index_end, inlined) if inlined else self._stored(block, count)
            yield self._extent(kind, algorithms, flags, begin, inode.size, stored)
        elif inode.size:
            raise ValueError("a compressed file has no extents")

    def _stored(self, block: int, count: int) -> bytes:
        if count * self._block > _MOST_PACKED:
            raise ValueError("an extent is too large")
        return self._read(block * self._block, count * self._block)

    def _full_index(self, size: int, start: int, log: int, flags: int) -> Iterator[tuple[_Cluster, int, int, int]]:
        """Yield what begins in each cluster of a file, where in the cluster, its block, and where this entry ends.

        If nothing begins in the cluster, the second number has the distance to the cluster in which the extent begins, or `_COUNT`
        and the number of its blocks.
        """
        for place in range(start + 8, start + 8 + 8 * -(-size >> log), 8):
            kind, offset, block = struct.unpack("<HHI", self._read(place, 8))
            is_head = kind & 3 != _Cluster.NONE
            yield _Cluster(kind & 3), offset if is_head else block & 0xFFFF, block, place + 8

    def _compact_index(self, size: int, start: int, log: int, flags: int) -> Iterator[tuple[_Cluster, int, int, int]]:
        """Yield as `_full_index`. The entries are in packs, each with the block at which its first extent begins."""
        total, count = -(-size // self._block), -(-size >> log)
        first = (32 - start % 32) // 4 % 8
        small = range(first, first + (total - first) // 16 * 16) if flags & _SMALL_INDEXES and first < total else range(0)
        number, bits = 0, max(log, 12)
        while number < count:
            entries, length = (16, 32) if number in small else (2, 8)
            pack = self._read(start, length)
            packed, width = int.from_bytes(pack[:-4], "little"), (length - 4) * 8 // entries
            block: int = struct.unpack("<I", pack[-4:])[0] + (0 if flags & _BIG[_Cluster.FIRST] else 1)
            start += length
            if bits + 2 > width:
                raise ValueError("the size of clusters is not valid")
            for entry in range(min(entries, count - number)):
                value = packed >> width * entry & (1 << width) - 1
                kind, value = _Cluster(value >> bits & 3), value & (1 << bits) - 1
                yield kind, value, block, start
                if kind is not _Cluster.NONE:
                    block += 1
                elif value & _COUNT and flags & _BIG[_Cluster.FIRST]:
                    block += (value & ~_COUNT) - (1 if entry else 0)
            number += entries

    def _extent(self, kind: _Cluster, algorithms: int, flags: int, begin: int, end: int, stored: bytes) -> bytes:
        """Return the content of a file from one offset to another one, which is stored as one extent."""
        size = end - begin
        if not 0 <= size <= _MOST_UNPACKED or (kind is _Cluster.PLAIN and size > len(stored)):
            raise ValueError("an extent is too large, or does not lie behind the one before")
        if kind is _Cluster.PLAIN:
            turned = begin % self._block if flags & _INTERLACED else 0
            content = (stored[turned : self._block] + stored[:turned] + stored[self._block :])[:size]
        else:
            algorithm = algorithms >> 4 if kind is _Cluster.SECOND else algorithms & 0xF
            padded = algorithm or self._features & _PADDED
            content = _DECOMPRESSORS[algorithm](stored.lstrip(b"\0") if padded else stored, size)
        if len(content) != size:
            raise ValueError("an extent ends too early")
        return content


def _unpack_lz4(packed: bytes, size: int) -> bytes:
    """Return the first bytes of a block of LZ4."""
    found, place = bytearray(), 0

    def longer(length: int) -> int:
        nonlocal place
        if length == 15:
            while True:
                more = packed[place]
                place += 1
                length += more
                if more < 255:
                    break
        return length

    while len(found) < size:
        token = packed[place]
        place += 1
        length = longer(token >> 4)
        if place + length > len(packed):
            raise EOFError("compressed data ends too early")
        found += packed[place : place + length]
        place += length
        if len(found) >= size:
            break
        distance = packed[place] | packed[place + 1] << 8
        place += 2
        length = min(longer(token & 15) + 4, size - len(found))
        if not 0 < distance <= len(found):
            raise ValueError("compressed data refers to what lies before it")
        begin = len(found) - distance
        found += found[begin : begin + length] if distance >= length else (found[begin:] * (length // distance + 1))[:length]
    return bytes(found[:size])


def _unpack_lzma(packed: bytes, size: int) -> bytes:
    """Return the first bytes of MicroLZMA: the first byte, which is always 0 otherwise, has the inverted properties."""
    properties = packed[0] ^ 0xFF
    rest, context = divmod(properties, 9)
    chain = {"id": lzma.FILTER_LZMA1, "dict_size": max(size, 4096), "lc": context, "lp": rest % 5, "pb": rest // 5}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[chain]).decompress(b"\0" + packed[1:], max_length=size)


def _unpack_deflate(packed: bytes, size: int) -> bytes:
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, max_length=size) if size else b""


def _unpack_zstd(packed: bytes, size: int) -> bytes:
    return open_zstd(io.BytesIO(packed)).read(size)


_DECOMPRESSORS: Final[dict[int, Callable[[bytes, int], bytes]]] = {
    0: _unpack_lz4,
    1: _unpack_lzma,
    2: _unpack_deflate,
    3: _unpack_zstd,
}
"""The algorithms of compressed files, by their numbers."""
