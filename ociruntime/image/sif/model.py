"""The typed values of a SIF file: header, descriptors, metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, Union

import attrs

from ociruntime.image.sif.enums import (
    Architecture,
    DataType,
    Filesystem,
    HashKind,
    MessageFormat,
    MessageKind,
    PartitionKind,
    SbomFormat,
)

if TYPE_CHECKING:
    import datetime
    import uuid

__all__ = [
    "NO_TIME",
    "CryptoMessage",
    "Descriptor",
    "Header",
    "JsonObject",
    "JsonValue",
    "Metadata",
    "OciObject",
    "Partition",
    "Sbom",
    "Signature",
    "to_datetime",
]

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
