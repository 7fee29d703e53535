"""The typed values of a SIF file: header, descriptors, metadata and the enumerations of the format.

A value that an enumeration does not list is not an error, as the format grows: readers keep it as the raw ``int``, or
``str`` for an architecture.
"""

from __future__ import annotations

import enum
import os
import sys
from typing import TYPE_CHECKING, TypeAlias, TypeVar, Union

import attrs

from ociruntime.arguments import check_str, printable, shown, size_text

if TYPE_CHECKING:
    import datetime
    import uuid
    from collections.abc import Sequence

__all__ = [
    "NO_TIME",
    "Architecture",
    "CryptoMessage",
    "DataType",
    "Descriptor",
    "Filesystem",
    "HashKind",
    "Header",
    "JsonObject",
    "JsonValue",
    "MessageFormat",
    "MessageKind",
    "Metadata",
    "OciObject",
    "Partition",
    "PartitionKind",
    "Sbom",
    "SbomFormat",
    "Signature",
    "label",
    "to_datetime",
]


class DataType(enum.IntEnum):
    """The type of a data object."""

    DEFINITION = 0x4001
    ENVIRONMENT = 0x4002
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    GENERIC_JSON = 0x4006
    GENERIC = 0x4007
    CRYPTO_MESSAGE = 0x4008
    SBOM = 0x4009
    OCI_ROOT_INDEX = 0x400A
    OCI_BLOB = 0x400B


class Filesystem(enum.IntEnum):
    """The filesystem in a partition."""

    SQUASHFS = 1
    EXT3 = 2
    ARCHIVE = 3
    RAW = 4
    ENCRYPTED_SQUASHFS = 5
    """A LUKS2 volume with squashfs inside."""
    GOCRYPTFS_SQUASHFS = 6


class PartitionKind(enum.IntEnum):
    """The purpose of a partition."""

    SYSTEM = 1
    PRIMARY_SYSTEM = 2
    """The root filesystem. An image has at most one."""
    DATA = 3
    OVERLAY = 4


class HashKind(enum.IntEnum):
    """The hash algorithm of a signature."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3
    BLAKE2S = 4
    BLAKE2B = 5


class MessageFormat(enum.IntEnum):
    """The encoding of a cryptographic message."""

    OPENPGP = 1
    PEM = 2


class MessageKind(enum.IntEnum):
    """The type of a cryptographic message."""

    CLEAR_SIGNATURE = 0x100
    RSA_OAEP = 0x200


class SbomFormat(enum.IntEnum):
    """The format of a software bill of materials."""

    CYCLONEDX_JSON = 1
    CYCLONEDX_XML = 2
    GITHUB_JSON = 3
    SPDX_JSON = 4
    SPDX_RDF = 5
    SPDX_TAG_VALUE = 6
    SPDX_YAML = 7
    SYFT_JSON = 8


class Architecture(enum.StrEnum):
    """The two-digit architecture code of a header or a partition."""

    UNKNOWN = "00"
    I386 = "01"
    AMD64 = "02"
    ARM = "03"
    ARM64 = "04"
    PPC64 = "05"
    PPC64LE = "06"
    MIPS = "07"
    MIPSLE = "08"
    MIPS64 = "09"
    MIPS64LE = "10"
    S390X = "11"
    RISCV64 = "12"
    LOONG64 = "13"

    @property
    def oci_name(self) -> str:
        """The name in OCI image documents: ``amd64``, ``386`` ..."""
        return "386" if self is Architecture.I386 else self.name.lower()

    @classmethod
    def from_name(cls, name: str) -> Architecture:
        """Return the architecture with an OCI name (``arm64``), a machine name of uname(2) (``aarch64``) or a SIF code (``04``).

        Raises:
            TypeError, ValueError: it is not a str, or the format has no code for it.
        """
        check_str("name", name)
        lowered = name.lower()
        for member in cls:
            if lowered in (member.oci_name, member.value):
                return member
        machines = {"x86_64": cls.AMD64, "aarch64": cls.ARM64, "loongarch64": cls.LOONG64}
        if lowered in machines:
            return machines[lowered]
        if len(lowered) == 4 and lowered[0] == "i" and lowered.endswith("86"):
            return cls.I386
        if lowered.startswith("armv"):
            return cls.ARM
        raise ValueError(f"no SIF architecture code for {shown(name)}")

    @classmethod
    def host(cls) -> Architecture:
        """Return the architecture of this machine. Raises ValueError if the format has no code for it."""
        machine = os.uname().machine
        if sys.byteorder == "little" and machine in ("mips", "mips64"):  # uname(2) does not report the byte order
            machine += "le"
        return cls.from_name(machine)


_E = TypeVar("_E", bound=enum.IntEnum)


def parse_enum(kind: type[_E], value: int) -> _E | int:
    """Return the member for ``value``, or ``value`` itself if this version of the format does not name it."""
    try:
        return kind(value)
    except ValueError:
        return value


def label(value: int | str) -> str:
    """Return a value as text: ``oci-blob``, ``amd64``; an unknown one as ``0x4099`` or ``99``."""
    if isinstance(value, Architecture):
        return value.oci_name
    if isinstance(value, enum.IntEnum):
        return value.name.lower().replace("_", "-")
    return value if isinstance(value, str) else f"{value:#x}"


JsonValue: TypeAlias = Union["dict[str, JsonValue]", "list[JsonValue]", str, int, float, bool, None]
JsonObject: TypeAlias = "dict[str, JsonValue]"

NO_TIME = -62135596800
"""Unix seconds of 0001-01-01T00:00:00Z, which deterministic images have in place of a time."""


def to_datetime(seconds: int) -> datetime.datetime | None:
    """Convert Unix seconds to a date in UTC. `NO_TIME` gives None."""
    if seconds == NO_TIME:
        return None
    import datetime

    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


@attrs.frozen
class Header:
    """The global header: the first 128 bytes of the file. Offsets and sizes are in bytes, times in Unix seconds."""

    launch_script: str
    version: str
    architecture: Architecture | str
    """Architecture of the primary partition; `Architecture.UNKNOWN` without one, the raw code of an unnamed one."""
    uuid_bytes: bytes
    created_at: int
    modified_at: int
    descriptors_free: int
    descriptors_total: int
    descriptors_offset: int
    descriptors_size: int
    data_offset: int
    data_size: int
    raw: bytes = attrs.field(repr=False)
    """The 128 bytes in the file."""

    @property
    def uuid(self) -> uuid.UUID | None:
        """The identity of the image; None if it is all zero, as in a deterministic image."""
        if not any(self.uuid_bytes):
            return None
        import uuid

        return uuid.UUID(bytes=self.uuid_bytes)

    @property
    def created(self) -> datetime.datetime | None:
        """``created_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return to_datetime(self.created_at)

    @property
    def modified(self) -> datetime.datetime | None:
        """``modified_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return to_datetime(self.modified_at)


@attrs.frozen
class Partition:
    """A filesystem image."""

    filesystem: Filesystem | int
    kind: PartitionKind | int
    architecture: Architecture | str


@attrs.frozen
class Signature:
    """A signature of the object or group to which the descriptor is linked."""

    hash: HashKind | int
    entity: bytes = attrs.field(repr=False)
    """256 bytes that identify the signer."""

    @property
    def fingerprint(self) -> bytes | None:
        """The 20-byte fingerprint of the key, as the signature claims; None without a claim, as in DSSE signatures."""
        claimed = self.entity[:20]
        return claimed if any(claimed) else None


@attrs.frozen
class CryptoMessage:
    """A cryptographic message, such as the wrapped key of an encrypted partition."""

    format: MessageFormat | int
    kind: MessageKind | int


@attrs.frozen
class Sbom:
    """A software bill of materials."""

    format: SbomFormat | int


@attrs.frozen
class OciObject:
    """An OCI root index or blob, named by its digest."""

    digest: str
    """``sha256:<64 hex digits>``, as the descriptor says. Reading does not compare it with the data."""


Metadata: TypeAlias = Partition | Signature | CryptoMessage | Sbom | OciObject


@attrs.frozen
class Descriptor:
    """One used entry of the descriptor table. Offsets and sizes are in bytes, times in Unix seconds."""

    index: int
    """0-based index in the table."""
    data_type: DataType | int
    id: int
    """1-based, unique in the image."""
    group: int | None
    """Number of the group; None if the object is not in a group."""
    linked_object: int | None
    """Id of the object that this one describes."""
    linked_group: int | None
    """Number of the group that this one describes."""
    offset: int
    """Offset of the data in the file."""
    size: int
    size_with_padding: int
    """Size with the padding before the data."""
    created_at: int
    modified_at: int
    uid: int
    """Deprecated by the format."""
    gid: int
    """Deprecated by the format."""
    name: str
    metadata: Metadata | None
    """Type-specific values; None for types without any. Those of an unknown type are in ``raw``."""
    raw: bytes = attrs.field(repr=False)
    """The 585 bytes in the file."""

    @property
    def created(self) -> datetime.datetime | None:
        """``created_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return to_datetime(self.created_at)

    @property
    def modified(self) -> datetime.datetime | None:
        """``modified_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return to_datetime(self.modified_at)


# ---- display: a line, a text table, an HTML table, JSON values; all text from the image is escaped ----

_COLUMNS = ("id", "group", "link", "type", "offset", "size", "name", "details")


def link_text(item: Descriptor) -> str:
    """Return the link of an object: ``object 1``, ``group 1`` or an empty string."""
    if item.linked_group is not None:
        return f"group {item.linked_group}"
    return f"object {item.linked_object}" if item.linked_object is not None else ""


def details(metadata: Metadata | None) -> str:
    match metadata:
        case None:
            return ""
        case Partition():
            return f"{label(metadata.filesystem)}, {label(metadata.kind)}, {label(metadata.architecture)}"
        case Signature():
            signer = metadata.fingerprint
            return f"{label(metadata.hash)}, key {signer.hex()}" if signer else label(metadata.hash)
        case CryptoMessage():
            return f"{label(metadata.format)}, {label(metadata.kind)}"
        case Sbom():
            return label(metadata.format)
        case OciObject():
            return metadata.digest


def _row(item: Descriptor) -> tuple[str, ...]:
    return (
        str(item.id),
        "" if item.group is None else str(item.group),
        link_text(item),
        label(item.data_type),
        str(item.offset),
        str(item.size),
        printable(item.name),
        details(item.metadata),
    )


def summary(name: str, header: Header, count: int, primary: Descriptor | None, *, closed: bool) -> str:
    """Return the ``repr`` of an image."""
    parts = [label(header.architecture), f"{count} object{'' if count == 1 else 's'}"]
    if primary is not None and isinstance(primary.metadata, Partition):
        parts.append(f"{label(primary.metadata.filesystem)} root of {size_text(primary.size)}")
    if closed:
        parts.append("closed")
    return f"<SifImage {printable(name) or '(stream)'}: {', '.join(parts)}>"


def table(descriptors: Sequence[Descriptor]) -> str:
    """Return the objects as a plain text table."""
    rows = [_COLUMNS, *(_row(item) for item in descriptors)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def html(name: str, header: Header, descriptors: Sequence[Descriptor]) -> str:
    """Return the header's facts and the objects as an HTML table."""
    from html import escape

    facts = [
        ("architecture", label(header.architecture)),
        ("uuid", str(header.uuid or "")),
        ("created", _time(header.created_at) or ""),
        ("modified", _time(header.modified_at) or ""),
    ]
    known = ", ".join(f"{fact} {escape(value)}" for fact, value in facts if value)
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _row(item)) + "</tr>" for item in descriptors)
    caption = f"<caption>SIF image {escape(printable(name))}: {known}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _time(seconds: int) -> str | None:
    when = to_datetime(seconds)
    return when.isoformat().replace("+00:00", "Z") if when else None  # strftime does not pad years before 1000


def to_dict(name: str, header: Header, descriptors: Sequence[Descriptor]) -> JsonObject:
    """Return header and descriptors as JSON values."""
    objects: list[JsonValue] = [_descriptor_dict(item) for item in descriptors]
    return {"path": name, "header": _header_dict(header), "objects": objects}


def _header_dict(header: Header) -> JsonObject:
    return {
        "launchScript": header.launch_script,
        "version": header.version,
        "architecture": label(header.architecture),
        "uuid": str(header.uuid) if header.uuid else None,
        "created": _time(header.created_at),
        "modified": _time(header.modified_at),
        "descriptorsFree": header.descriptors_free,
        "descriptorsTotal": header.descriptors_total,
        "descriptorsOffset": header.descriptors_offset,
        "descriptorsSize": header.descriptors_size,
        "dataOffset": header.data_offset,
        "dataSize": header.data_size,
    }


def _descriptor_dict(item: Descriptor) -> JsonObject:
    return {
        "id": item.id,
        "type": label(item.data_type),
        "group": item.group,
        "linkedObject": item.linked_object,
        "linkedGroup": item.linked_group,
        "offset": item.offset,
        "size": item.size,
        "sizeWithPadding": item.size_with_padding,
        "created": _time(item.created_at),
        "modified": _time(item.modified_at),
        "name": item.name,
        "metadata": _metadata_dict(item.metadata),
    }


def _metadata_dict(metadata: Metadata | None) -> JsonObject | None:
    match metadata:
        case None:
            return None
        case Partition():
            return {
                "filesystem": label(metadata.filesystem),
                "kind": label(metadata.kind),
                "architecture": label(metadata.architecture),
            }
        case Signature():
            signer = metadata.fingerprint
            return {"hash": label(metadata.hash), "fingerprint": signer.hex() if signer else None}
        case CryptoMessage():
            return {"format": label(metadata.format), "kind": label(metadata.kind)}
        case Sbom():
            return {"format": label(metadata.format)}
        case OciObject():
            return {"digest": metadata.digest}
