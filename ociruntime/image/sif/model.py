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
    "moment",
]

JsonValue: TypeAlias = Union["dict[str, JsonValue]", "list[JsonValue]", str, int, float, bool, None]
JsonObject: TypeAlias = "dict[str, JsonValue]"

NO_TIME = -62135596800
"""Unix seconds of 0001-01-01T00:00:00Z: what deterministic images carry where others carry a time."""


def moment(seconds: int) -> datetime.datetime | None:
    """Unix seconds as a date in UTC; ``None`` for `NO_TIME`."""
    if seconds == NO_TIME:
        return None
    import datetime

    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(seconds=seconds)


@attrs.frozen
class Header:
    """The global header: 128 bytes at the beginning of the file. Offsets and sizes are bytes, times Unix seconds."""

    launch_script: str
    version: str
    architecture: Architecture | str
    """Of the primary partition; `Architecture.UNKNOWN` without one; the raw code when this version does not name it."""
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
    """The 128 bytes as they are in the file."""

    @property
    def uuid(self) -> uuid.UUID | None:
        """The identity of the image; ``None`` when all zero (a deterministic image)."""
        if not any(self.uuid_bytes):
            return None
        import uuid

        return uuid.UUID(bytes=self.uuid_bytes)

    @property
    def created(self) -> datetime.datetime | None:
        """``created_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return moment(self.created_at)

    @property
    def modified(self) -> datetime.datetime | None:
        """``modified_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return moment(self.modified_at)


@attrs.frozen
class Partition:
    """A filesystem image."""

    filesystem: Filesystem | int
    kind: PartitionKind | int
    architecture: Architecture | str


@attrs.frozen
class Signature:
    """A signature over the object or group that the descriptor is linked to."""

    hash: HashKind | int
    entity: bytes = attrs.field(repr=False)
    """256 bytes that name the signer."""

    @property
    def fingerprint(self) -> bytes | None:
        """The 20-byte fingerprint that the signature claims for its key; ``None`` when it claims none, as DSSE signatures do."""
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
    """``sha256:<64 hex digits>``; as the descriptor says, nobody has compared it with the data."""


Metadata: TypeAlias = Partition | Signature | CryptoMessage | Sbom | OciObject


@attrs.frozen
class Descriptor:
    """One used entry of the descriptor table. Offsets and sizes are bytes, times Unix seconds."""

    index: int
    """0-based place in the table."""
    data_type: DataType | int
    id: int
    """1-based, unique in the image."""
    group: int | None
    """The group's number; ``None`` when the object is in no group."""
    linked_object: int | None
    """The id of the object that this one is about."""
    linked_group: int | None
    """The number of the group that this one is about."""
    offset: int
    """Of the data in the file."""
    size: int
    size_with_padding: int
    """With the padding before the data."""
    created_at: int
    modified_at: int
    uid: int
    """Deprecated by the format."""
    gid: int
    """Deprecated by the format."""
    name: str
    metadata: Metadata | None
    """For the types that have some, else ``None``; an unknown type's is in ``raw``."""
    raw: bytes = attrs.field(repr=False)
    """The 585 bytes as they are in the file."""

    @property
    def created(self) -> datetime.datetime | None:
        """``created_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return moment(self.created_at)

    @property
    def modified(self) -> datetime.datetime | None:
        """``modified_at`` as a date in UTC; ``None`` for `NO_TIME`."""
        return moment(self.modified_at)
