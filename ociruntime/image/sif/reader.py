"""`SifImage`: an open SIF file, which is checked as a whole when it is opened."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from ociruntime.arguments import check_int, check_str, check_type, optional
from ociruntime.errors import SifError
from ociruntime.image.config import MAX_DOCUMENT, Location, OciImageConfig, parse_env, parse_json_object, string_map
from ociruntime.image.sif import format as fmt
from ociruntime.image.sif import model
from ociruntime.image.sif.format import (
    ClosedImageError,
    FdSource,
    Identity,
    Openable,
    Section,
    SectionReader,
    Source,
    open_source,
    read_at,
)
from ociruntime.image.sif.model import Architecture, DataType, Descriptor, Header, JsonObject, OciObject, Partition, PartitionKind
from ociruntime.interrupts import uninterruptible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

__all__ = ["OCI_CONFIG_NAME", "ObjectReader", "SifImage"]

OCI_CONFIG_NAME = "oci-config.json"
INSPECT_METADATA_NAME = "inspect-metadata.json"

_BATCH = 64  # descriptors read at a time


class ObjectReader(SectionReader):
    """The data of one object, as a read-only seekable binary file. See `SectionReader`; errors are `SifError`."""

    _instead = "send the SifImage and the descriptor of the object"

    def __init__(self, source: Source, descriptor: Descriptor) -> None:
        super().__init__(source, descriptor.offset, descriptor.size)
        self.descriptor = descriptor

    @override
    def _shortened(self, end: int) -> SifError:
        return SifError(
            f"the file became shorter while it was open: object {self.descriptor.id} ends after {end} bytes",
            field="size",
            descriptor=self.descriptor.index,
            path=self._source.name,
        )


class SifImage:
    """An open SIF file: a header, descriptors and their data. Iterating yields the descriptors; a ``with`` block closes the file.

    Opening checks the header, every descriptor and their consistency, and reads no data. All access is through one file
    descriptor: what was checked or verified is what is read and mounted, even if another file takes over the path.

    An image that was opened by a path can be pickled and copied. The copy opens the same file again.
    """

    header: Header
    descriptors: tuple[Descriptor, ...]
    """The used descriptors, in the order of the table."""
    name: str
    """The path that was opened, or another name of the file, for messages."""

    def __init__(self, source: Source) -> None:
        """Take ownership of ``source``. Use `SifImage.open` instead."""
        self._source = source
        self.name = source.name
        try:
            self.header = fmt.parse_header(read_at(self._source, 0, fmt.HEADER.size), source.size, self.name)
            self.descriptors = tuple(self._read_descriptors())
            self._by_id = check_image(self.header, self.descriptors, self.name)
        except BaseException:
            source.close()
            raise

    def close(self) -> None:
        """Close the file. Readers of this image stop working. Closing twice is allowed."""
        self._source.close()

    @classmethod
    @uninterruptible(undo=close)
    def open(cls, target: Openable) -> SifImage:
        """Open a path, a file descriptor (which is duplicated) or a binary file object.

        Raises:
            SifError: the file breaks the format or is not a regular file.
            OSError: it cannot be opened or read.
        """
        return cls(open_source(target))

    def __reduce__(self) -> tuple[Callable[[str, Identity], SifImage], tuple[str, Identity]]:
        """Return the absolute path and the identity of the file, never the descriptor.

        Raises:
            TypeError: the image is closed, or was not opened by its path.
        """
        if self.closed:
            raise TypeError(f"cannot pickle or copy SIF image {self.name!r}: it is closed; open it again")
        if not isinstance(self._source, FdSource) or not self._source.path:
            raise TypeError(f"cannot pickle or copy SIF image {self.name!r}: it was not opened by a path; use SifImage.open(path)")
        return type(self)._reopen, (self._source.path, self._source.identity)

    @classmethod
    @uninterruptible(undo=close)
    def _reopen(cls, path: str, identity: Identity) -> SifImage:
        """Open the file of a pickled image. Raises SifError if the path is now another file or has other content."""
        source = FdSource.from_path(path)
        if source.identity != identity:
            source.close()
            raise SifError("the file was replaced or changed since the image was pickled; open it again", field="file", path=path)
        return cls(source)

    @property
    def source(self) -> Source:
        """The open file."""
        return self._source

    @property
    def closed(self) -> bool:
        return self._source.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        source: Source | None = getattr(self, "_source", None)
        if source is not None and not source.closed:
            warnings.warn(f"unclosed SIF image {self.name!r}", ResourceWarning, source=self, stacklevel=2)
            source.close()

    def fileno(self) -> int:
        """Return the file descriptor, which the image keeps. Raises io.UnsupportedOperation for a stream."""
        return self._source.fileno()

    # --- finding objects

    def __iter__(self) -> Iterator[Descriptor]:
        return iter(self.descriptors)

    def __len__(self) -> int:
        return len(self.descriptors)

    def by_id(self, object_id: int) -> Descriptor:
        """Return the object with this id. Raises KeyError."""
        check_int("object_id", object_id)
        return self._by_id[object_id]

    def find(
        self,
        data_type: DataType | int | None = None,
        *,
        name: str | None = None,
        group: int | None = None,
        linked_object: int | None = None,
        linked_group: int | None = None,
        kind: PartitionKind | int | None = None,
        digest: str | None = None,
    ) -> tuple[Descriptor, ...]:
        """Return the objects that match every given argument, in the order of the table.

        ``kind`` is the kind of a partition, ``digest`` the digest of an OCI root index or blob.
        """
        for parameter, number in (("data_type", data_type), ("group", group), ("kind", kind)):
            optional(check_int, parameter, number)
        for parameter, number in (("linked_object", linked_object), ("linked_group", linked_group)):
            optional(check_int, parameter, number)
        optional(check_str, "name", name)
        optional(check_str, "digest", digest)
        found: list[Descriptor] = []
        for item in self.descriptors:
            metadata = item.metadata
            if (
                (data_type is None or item.data_type == data_type)
                and (name is None or item.name == name)
                and (group is None or item.group == group)
                and (linked_object is None or item.linked_object == linked_object)
                and (linked_group is None or item.linked_group == linked_group)
                and (kind is None or (isinstance(metadata, Partition) and metadata.kind == kind))
                and (digest is None or (isinstance(metadata, OciObject) and metadata.digest == digest))
            ):
                found.append(item)
        return tuple(found)

    @property
    def groups(self) -> tuple[int, ...]:
        """The numbers of all groups, ascending."""
        return tuple(sorted({item.group for item in self.descriptors if item.group is not None}))

    @property
    def primary_partition(self) -> Descriptor | None:
        """The partition with the root filesystem; None without one, as in an OCI-SIF image."""
        return self._only(self.find(DataType.PARTITION, kind=PartitionKind.PRIMARY_SYSTEM), "primary system partition")

    @property
    def root_index(self) -> Descriptor | None:
        """The OCI root index of an OCI-SIF image; None in another image. Raises SifError if there are several."""
        return self._only(self.find(DataType.OCI_ROOT_INDEX), "OCI root index")

    def _only(self, found: tuple[Descriptor, ...], what: str) -> Descriptor | None:
        if len(found) > 1:
            ids = ", ".join(str(item.id) for item in found)
            raise SifError(f"more than one {what}: objects {ids}", field="data_type", descriptor=found[1].index, path=self.name)
        return found[0] if found else None

    # --- data

    def reader(self, item: Descriptor) -> ObjectReader:
        """Return the data of an object as a read-only seekable file, which takes bounded memory."""
        self._check_mine(item)
        return ObjectReader(self._source, item)

    def section(self, item: Descriptor) -> Section:
        """Return where the data of an object lie in the open file."""
        self._check_mine(item)
        return Section(self._source, item.offset, item.size)

    def chunks(self, item: Descriptor, size: int = 1 << 20) -> Iterator[bytes]:
        """Yield the data of an object in pieces of ``size`` bytes. The last one may be shorter."""
        self._check_mine(item)
        check_int("size", size, 1)
        return self._chunks(item, size)

    def _chunks(self, item: Descriptor, size: int) -> Iterator[bytes]:
        with self.reader(item) as reader:
            while piece := reader.read(size):
                yield piece

    def read(self, item: Descriptor, *, limit: int = MAX_DOCUMENT) -> bytes:
        """Return all data of an object. Raises SifError if it has more than ``limit`` bytes."""
        self._check_mine(item)
        check_int("limit", limit, 0)
        if item.size > limit:
            raise SifError(
                f"object {item.id} of {item.size} bytes is larger than the limit of {limit} bytes; use reader() or chunks()",
                field="size",
                descriptor=item.index,
                path=self.name,
            )
        with self.reader(item) as reader:
            return reader.read()

    def _check_mine(self, item: Descriptor) -> None:
        check_type("item", item, Descriptor, "a Descriptor")
        if self._by_id.get(item.id) != item:  # a pickled descriptor is equal, not identical
            raise ValueError(f"the descriptor of object {item.id} is not from this image")
        if self.closed:
            raise ClosedImageError

    # --- well-known documents

    @property
    def oci_config_json(self) -> JsonObject | None:
        """The object ``oci-config.json``, which is the ``config`` of the OCI image that was converted; None without one."""
        found = self._only(self.find(DataType.GENERIC_JSON, name=OCI_CONFIG_NAME), OCI_CONFIG_NAME)
        return parse_json_object(self.read(found), self._location(found)) if found else None

    def oci_config(self) -> OciImageConfig | None:
        """Return `oci_config_json` as a typed value. Raises SifError, which names a key of a wrong type."""
        document = self.oci_config_json
        if document is None:
            return None
        return OciImageConfig.from_json(document, self._location(self.find(DataType.GENERIC_JSON, name=OCI_CONFIG_NAME)[0]))

    @property
    def inspect_metadata(self) -> JsonObject | None:
        """The object ``inspect-metadata.json`` (labels and scripts, as Apptainer writes it); None without one."""
        found = self._only(self.find(DataType.GENERIC_JSON, name=INSPECT_METADATA_NAME), INSPECT_METADATA_NAME)
        return parse_json_object(self.read(found), self._location(found)) if found else None

    @property
    def labels(self) -> dict[str, str] | None:
        """The labels object; None without one."""
        found = self._only(self.find(DataType.LABELS), "labels object")
        if found is None:
            return None
        location = self._location(found)
        return string_map(parse_json_object(self.read(found), location), "", location)

    @property
    def definition(self) -> str | None:
        """The definition file from which the image was built; None without one."""
        found = self._only(self.find(DataType.DEFINITION), "definition file")
        return self._text(found) if found else None

    @property
    def env(self) -> dict[str, str] | None:
        """The ``NAME=value`` lines of the environment object; None without one."""
        found = self._only(self.find(DataType.ENVIRONMENT), "environment object")
        return parse_env(self._text(found), self._location(found)) if found else None

    def _location(self, item: Descriptor) -> Location:
        name = item.name or (item.data_type.name.lower() if isinstance(item.data_type, DataType) else "data")
        return Location(name, item.index, self.name)

    def _text(self, item: Descriptor) -> str:
        try:
            return self.read(item).decode("utf-8")
        except UnicodeDecodeError as error:
            self._location(item).refuse("", f"not UTF-8: {error}", error)

    # --- showing

    def to_dict(self) -> JsonObject:
        """Return the header and the descriptors as JSON values."""
        return model.to_dict(self.name, self.header, self.descriptors)

    def table(self) -> str:
        """Return the objects as a plain text table."""
        return model.table(self.descriptors)

    def __repr__(self) -> str:
        return model.summary(self.name, self.header, len(self), self.primary_partition, closed=self.closed)

    def _repr_html_(self) -> str:
        return model.html(self.name, self.header, self.descriptors)

    # --- reading the structures

    def _read_descriptors(self) -> Iterator[Descriptor]:
        header, width = self.header, fmt.DESCRIPTOR.size
        for first in range(0, header.descriptors_total, _BATCH):
            count = min(_BATCH, header.descriptors_total - first)
            raw = read_at(self._source, header.descriptors_offset + first * width, count * width)
            if len(raw) < count * width:
                raise SifError("the file became shorter while it was read", field="descriptors_size", path=self.name)
            for number in range(count):
                item = fmt.parse_descriptor(raw[number * width : (number + 1) * width], first + number, header, self.name)
                if item is not None:
                    yield item


def check_image(header: Header, descriptors: tuple[Descriptor, ...], path: str) -> dict[int, Descriptor]:
    """Check the descriptors together: counts, ids, links, overlaps, the primary partition. Return them by id. Raises SifError."""
    refuse = fmt.Refusal(path)
    used = header.descriptors_total - header.descriptors_free
    if used != len(descriptors):
        refuse("descriptors_free", f"{header.descriptors_free} free of {header.descriptors_total}, but {len(descriptors)} are used")
    by_id: dict[int, Descriptor] = {}
    primary: Descriptor | None = None
    for item in descriptors:
        refuse.descriptor = item.index
        if by_id.setdefault(item.id, item) is not item:
            refuse("id", f"object id {item.id} is also that of descriptor {by_id[item.id].index}")
        if isinstance(item.metadata, Partition) and item.metadata.kind == PartitionKind.PRIMARY_SYSTEM:
            if primary is not None:
                refuse("partition.kind", f"a second primary system partition after descriptor {primary.index}")
            primary = item
    groups = {item.group for item in descriptors}
    for item in descriptors:
        refuse.descriptor = item.index
        if item.linked_object is not None and item.linked_object not in by_id:
            refuse("linked_id", f"there is no object {item.linked_object}")
        if item.linked_object == item.id:
            refuse("linked_id", "the object is linked to itself")
        if item.linked_group is not None and item.linked_group not in groups:
            refuse("linked_id", f"there is no object in group {item.linked_group}")
    end, before = 0, -1
    for item in sorted(descriptors, key=lambda item: item.offset):
        refuse.descriptor = item.index
        if item.size and item.offset < end:
            refuse("offset", f"the data at {item.offset} overlap those of descriptor {before}, which end at {end}")
        if item.size:
            end, before = item.offset + item.size, item.index
    if primary is not None and isinstance(primary.metadata, Partition):
        arch = primary.metadata.architecture
        if Architecture.UNKNOWN not in (arch, header.architecture) and arch != header.architecture:
            refuse.descriptor = None
            refuse("architecture", f"{header.architecture} in the header, {arch} in the primary system partition")
    return by_id
