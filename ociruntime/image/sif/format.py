"""The SIF format in bytes: structures and limits, and how to parse and pack a header or a descriptor.

All integers are little-endian. The structures have no padding between fields.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from ociruntime.arguments import shown
from ociruntime.errors import SifError
from ociruntime.image.sif.model import (
    NO_TIME,
    Architecture,
    CryptoMessage,
    DataType,
    Descriptor,
    Filesystem,
    HashKind,
    Header,
    MessageFormat,
    MessageKind,
    Metadata,
    OciObject,
    Partition,
    PartitionKind,
    Sbom,
    SbomFormat,
    Signature,
    parse_enum,
)

HEADER = struct.Struct("<32s10s3s3s16s8q")
DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
MAGIC = b"SIF_MAGIC\0"
VERSION = b"01\0"
GROUP_MASK = 0xF0000000

DEFAULT_CAPACITY = 48
DESCRIPTORS_OFFSET = 4096
PARTITION_ALIGNMENT = 4096

MAX_DESCRIPTORS = 8192
"""Largest accepted table: more entries than any real image has. It bounds the memory that a hostile image can take."""

_LAST_TIME = 253402300799  # 9999-12-31T23:59:59Z: the years that RFC 3339 can write
_USED = 4  # offset of the "used" byte in a descriptor


class Refusal:
    """Raises `SifError` about one file, or about one entry of its table."""

    __slots__ = ("descriptor", "path")

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        self.descriptor = descriptor

    def __call__(self, field: str, message: str) -> NoReturn:
        raise SifError(message, field=field, descriptor=self.descriptor, path=self.path)

    def between(self, field: str, value: int, low: int, high: int, why: str) -> None:
        if not low <= value <= high:
            self(field, f"{value} is not between {low} and {high} ({why})")

    def time(self, field: str, value: int) -> None:
        self.between(field, value, NO_TIME, _LAST_TIME, "Unix seconds of the years 1 to 9999")

    def text(self, field: str, raw: bytes) -> str:
        """Decode a NUL-padded field. Bytes that are not UTF-8 become surrogates, as in file names."""
        value, nul, rest = raw.partition(b"\0")
        if not nul:
            self(field, f"not NUL-terminated within its {len(raw)} bytes")
        if rest.strip(b"\0"):
            self(field, "bytes other than NUL after the terminating NUL")
        return value.decode("utf-8", "surrogateescape")

    def architecture(self, field: str, raw: bytes) -> Architecture | str:
        code = raw[:2].decode("latin-1")
        if raw[2] != 0 or not (code.isascii() and code.isdigit()):
            self(field, f"{raw!r} is not two digits and a NUL")
        try:
            return Architecture(code)
        except ValueError:
            return code


def parse_header(raw: bytes, file_size: int, path: str) -> Header:
    """Decode and check the global header of a file of ``file_size`` bytes. Raises SifError."""
    refuse = Refusal(path)
    if len(raw) < HEADER.size:
        refuse("header", f"the file has {len(raw)} bytes, the header needs {HEADER.size}")
    launch, magic, version, arch, uuid, created, modified, free, total, offset, size, data_offset, data_size = HEADER.unpack(raw)
    if magic != MAGIC:
        refuse("magic", f"{magic!r} is not {MAGIC!r}: not a SIF file")
    if version != VERSION:
        refuse("version", f"{version!r} is not the known version {VERSION!r}")
    script = refuse.text("launch_script", launch)
    architecture = refuse.architecture("architecture", arch)
    refuse.time("created_at", created)
    refuse.time("modified_at", modified)
    refuse.between("descriptors_total", total, 0, MAX_DESCRIPTORS, "limit of this reader")
    refuse.between("descriptors_free", free, 0, total, "descriptors_total")
    refuse.between("descriptors_offset", offset, HEADER.size, file_size, "after the header, within the file")
    if size != total * DESCRIPTOR.size:
        refuse("descriptors_size", f"{size} is not {total} descriptors of {DESCRIPTOR.size} bytes")
    if offset + size > file_size:
        refuse("descriptors_offset", f"the table at {offset} with {size} bytes ends beyond the file of {file_size} bytes")
    refuse.between("data_offset", data_offset, HEADER.size, file_size, "after the header, within the file")
    refuse.between("data_size", data_size, 0, file_size - data_offset, "rest of the file after data_offset")
    if data_offset <= offset < data_offset + data_size:
        refuse("descriptors_offset", f"the table at {offset} lies inside the data, {data_offset} and {data_size} bytes on")
    if offset < data_offset < offset + size:
        refuse("data_offset", f"the data at {data_offset} begin inside the descriptor table, {offset} and {size} bytes on")
    return Header(
        launch_script=script,
        version=version[:2].decode("ascii"),
        architecture=architecture,
        uuid_bytes=uuid,
        created_at=created,
        modified_at=modified,
        descriptors_free=free,
        descriptors_total=total,
        descriptors_offset=offset,
        descriptors_size=size,
        data_offset=data_offset,
        data_size=data_size,
        raw=raw,
    )


def parse_descriptor(raw: bytes, index: int, header: Header, path: str) -> Descriptor | None:
    """Decode and check one table entry by itself; return None for an unused one. Raises SifError."""
    refuse = Refusal(path, index)
    if raw[_USED] > 1:
        refuse("used", f"{raw[_USED]} is neither 0 nor 1")
    if not raw[_USED]:
        return None
    kind, _, ident, group, link, offset, size, padded, created, modified, uid, gid, name, extra = DESCRIPTOR.unpack(raw)
    if kind <= 0:
        refuse("data_type", f"{kind} is not a data type")
    refuse.between("id", ident, 1, GROUP_MASK - 1, "object ids")
    if group and group & GROUP_MASK != GROUP_MASK:
        refuse("group_id", f"{group:#x} does not have the group bits {GROUP_MASK:#x}")
    if link == GROUP_MASK:
        refuse("linked_id", f"{link:#x} names neither an object nor a group")
    data_end = header.data_offset + header.data_size
    refuse.between("offset", offset, header.data_offset, data_end, "data section of the header")
    refuse.between("size", size, 0, data_end - offset, "rest of the data section after offset")
    refuse.between("size_with_padding", padded, size, header.data_size, "size, data section")
    refuse.time("created_at", created)
    refuse.time("modified_at", modified)
    refuse.between("uid", uid, 0, 0xFFFFFFFF, "user ids")
    refuse.between("gid", gid, 0, 0xFFFFFFFF, "group ids")
    linked_group = link & ~GROUP_MASK if link & GROUP_MASK == GROUP_MASK else None
    return Descriptor(
        index=index,
        data_type=parse_enum(DataType, kind),
        id=ident,
        group=(group & ~GROUP_MASK) or None,
        linked_object=link if link and linked_group is None else None,
        linked_group=linked_group,
        offset=offset,
        size=size,
        size_with_padding=padded,
        created_at=created,
        modified_at=modified,
        uid=uid,
        gid=gid,
        name=refuse.text("name", name),
        metadata=_parse_extra(kind, extra, refuse),
        raw=raw,
    )


def _positive(extra: bytes, at: int, field: str, refuse: Refusal) -> int:
    value = int.from_bytes(extra[at : at + 4], "little", signed=True)
    if value <= 0:
        refuse(field, f"{value} is not a valid value")
    return value


def _parse_extra(kind: int, extra: bytes, refuse: Refusal) -> Metadata | None:
    if kind == DataType.PARTITION:
        return Partition(
            filesystem=parse_enum(Filesystem, _positive(extra, 0, "partition.filesystem", refuse)),
            kind=parse_enum(PartitionKind, _positive(extra, 4, "partition.kind", refuse)),
            architecture=refuse.architecture("partition.architecture", extra[8:11]),
        )
    if kind == DataType.SIGNATURE:
        return Signature(parse_enum(HashKind, _positive(extra, 0, "signature.hash", refuse)), extra[4:260])
    if kind == DataType.CRYPTO_MESSAGE:
        return CryptoMessage(
            parse_enum(MessageFormat, _positive(extra, 0, "crypto_message.format", refuse)),
            parse_enum(MessageKind, _positive(extra, 4, "crypto_message.kind", refuse)),
        )
    if kind == DataType.SBOM:
        return Sbom(parse_enum(SbomFormat, _positive(extra, 0, "sbom.format", refuse)))
    if kind in (DataType.OCI_ROOT_INDEX, DataType.OCI_BLOB):
        return OciObject(check_digest(refuse.text("oci.digest", extra), refuse))
    return None


_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def check_digest(digest: str, refuse: Refusal) -> str:
    """Return ``digest`` if it is ``<algorithm>:<lower-case hex>`` of the algorithm's length. Raises SifError."""
    algorithm, _, encoded = digest.partition(":")
    if not set(encoded) <= set("0123456789abcdef") or len(encoded) != _DIGEST_LENGTHS.get(algorithm):
        refuse("oci.digest", f"{shown(digest)} is not a digest such as sha256:<64 hex digits>")
    return digest


def pack_extra(metadata: Metadata | None) -> bytes:
    """Return the type-specific part of a descriptor, without padding."""
    match metadata:
        case None:
            return b""
        case Partition():
            return struct.pack("<ii3s", metadata.filesystem, metadata.kind, metadata.architecture.encode("ascii"))
        case Signature():
            return struct.pack("<i256s", metadata.hash, metadata.entity)
        case CryptoMessage():
            return struct.pack("<ii", metadata.format, metadata.kind)
        case Sbom():
            return struct.pack("<i", metadata.format)
        case OciObject():
            return metadata.digest.encode("ascii")
