"""Writing SIF files: `SifBuilder` makes new ones, `add_objects` and `remove_objects` change one."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar, get_args

import attrs

from ociruntime.arguments import (
    check_bool,
    check_int,
    check_mapping,
    check_str,
    check_type,
    optional,
    parse_path,
    shown,
    wrong_type,
)
from ociruntime.files import StagedFile
from ociruntime.image.config import Location, check_oci_config, string_map
from ociruntime.image.sif import format as fmt
from ociruntime.image.sif.format import FdSource, ReadableFile, SectionReader
from ociruntime.image.sif.model import (
    NO_TIME,
    Architecture,
    CryptoMessage,
    DataType,
    Filesystem,
    HashKind,
    JsonValue,
    MessageFormat,
    MessageKind,
    Metadata,
    OciObject,
    Partition,
    PartitionKind,
    Sbom,
    SbomFormat,
    Signature,
)
from ociruntime.image.sif.reader import OCI_CONFIG_NAME, SifImage
from ociruntime.interrupts import uninterruptible, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ociruntime.image.sif.model import Header

__all__ = ["DEFAULT_LAUNCH_SCRIPT", "Data", "SifBuilder", "add_objects", "append_objects", "remove_objects"]

T = TypeVar("T")

DEFAULT_LAUNCH_SCRIPT = "#!/usr/bin/env run-singularity\n"

Data: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | ReadableFile
"""The data of an object: bytes, the path of a file, or a binary file, which is read from its position to its end."""

_CHUNK = 1 << 20
_MAX_CODE: Final = (1 << 31) - 1
"""Codes of kinds and formats are stored as signed numbers of 32 bits."""
_MAX_ALIGNMENT: Final = 1 << 30


@attrs.frozen
class _Planned:
    data_type: int
    data: Data
    name: str
    group: int | None
    linked: int
    metadata: Metadata | None
    alignment: int


class SifBuilder:
    """Collects objects and writes them as one SIF file.

    The layout is that of other software: the header, the table of ``capacity`` entries at offset 4096, then the data in the order
    in which it was added. Partitions are aligned to 4096 bytes, other data is not aligned. Ids count from 1.

    Args:
        launch_script: First line of the file, at most 31 bytes.
        deterministic: Write an all-zero UUID and no times (`NO_TIME`, unless ``timestamp`` is given). By default the UUID is
            random and the time is that of `write`.
        timestamp: Unix seconds for the header and the objects.
        capacity: Number of entries of the table. It grows with the number of objects.

    Raises:
        SifError: a value cannot be stored; ``field`` names it.
    """

    def __init__(
        self,
        *,
        launch_script: str = DEFAULT_LAUNCH_SCRIPT,
        deterministic: bool = False,
        timestamp: int | None = None,
        capacity: int = fmt.DEFAULT_CAPACITY,
    ) -> None:
        check_int("capacity", capacity)
        check_bool("deterministic", deterministic)
        optional(check_int, "timestamp", timestamp)
        refuse = fmt.Refusal("")
        refuse.between("descriptors_total", capacity, 0, fmt.MAX_DESCRIPTORS, "limit of the reader")
        self._launch_script: Final = _text("launch_script", launch_script, 32, refuse)
        if timestamp is not None:
            refuse.time("created_at", timestamp)
        self._deterministic = deterministic
        self._timestamp = timestamp
        self._capacity = capacity
        self._planned: list[_Planned] = []
        self._architecture: Architecture | str = Architecture.UNKNOWN
        self._has_primary = False

    def __len__(self) -> int:
        return len(self._planned)

    def add(
        self,
        data_type: DataType | int,
        data: Data,
        *,
        name: str = "",
        group: int | None = 1,
        linked_object: int | None = None,
        linked_group: int | None = None,
        metadata: Metadata | None = None,
        alignment: int = 1,
    ) -> int:
        """Add an object of any type and return its id. `write` reads the data. The methods below add the common types."""
        check_int("data_type", data_type)
        _check_data(data)
        optional(check_type, "metadata", metadata, get_args(Metadata), "a Partition, Signature or other metadata")
        for parameter, number in (("group", group), ("linked_object", linked_object), ("linked_group", linked_group)):
            optional(check_int, parameter, number)
        check_int("alignment", alignment)
        refuse = fmt.Refusal("", len(self._planned))
        refuse.between("data_type", int(data_type), 1, 0x7FFFFFFF, "data types")
        _text("name", name, 128, refuse)
        if group is not None:
            refuse.between("group_id", group, 1, ~fmt.GROUP_MASK & 0xFFFFFFFF, "group numbers")
        if linked_group is not None:
            refuse.between("linked_id", linked_group, 1, ~fmt.GROUP_MASK & 0xFFFFFFFF, "group numbers")
        if linked_object is not None:
            refuse.between("linked_id", linked_object, 1, fmt.GROUP_MASK - 1, "object ids")
        if linked_object is not None and linked_group is not None:
            refuse("linked_id", "an object is linked to an object or to a group, not both")
        if not 1 <= alignment <= _MAX_ALIGNMENT:
            refuse("offset", f"alignment of {alignment} bytes")
        if isinstance(metadata, OciObject):
            fmt.check_digest(metadata.digest, refuse)
        if isinstance(metadata, Signature) and len(metadata.entity) > 256:
            refuse("signature.entity", f"{len(metadata.entity)} bytes do not fit into 256")
        if isinstance(metadata, Partition) and metadata.kind == PartitionKind.PRIMARY_SYSTEM:
            if self._has_primary:
                refuse("partition.kind", "there is a primary system partition already")
            self._has_primary = True
            self._architecture = metadata.architecture
        linked = linked_object or 0 if linked_group is None else fmt.GROUP_MASK | linked_group
        self._planned.append(_Planned(int(data_type), data, name, group, linked, metadata, alignment))
        return len(self._planned)

    def add_partition(
        self,
        data: Data,
        *,
        kind: PartitionKind | int = PartitionKind.PRIMARY_SYSTEM,
        filesystem: Filesystem | int = Filesystem.SQUASHFS,
        arch: Architecture | str | None = None,
        name: str = "",
        group: int | None = 1,
        alignment: int = fmt.PARTITION_ALIGNMENT,
    ) -> int:
        """Add a filesystem image. ``arch`` is an `Architecture` or a name such as ``arm64``; this machine's when not given."""
        check_int("kind", kind, 0, _MAX_CODE)
        check_int("filesystem", filesystem, 0, _MAX_CODE)
        optional(check_type, "arch", arch, str, "an Architecture or a name such as 'arm64'")
        architecture = Architecture.host() if arch is None else Architecture.from_name(arch)
        return self.add(
            DataType.PARTITION,
            data,
            name=name,
            group=group,
            metadata=Partition(filesystem, kind, architecture),
            alignment=alignment,
        )

    def add_definition(self, text: str, *, name: str = "", group: int | None = 1) -> int:
        """Add the definition file from which the image was built."""
        check_str("text", text)
        return self.add(DataType.DEFINITION, text.encode("utf-8", "surrogateescape"), name=name, group=group)

    def add_env(self, env: Mapping[str, str], *, name: str = "", group: int | None = 1) -> int:
        """Add environment variables, as lines of ``NAME=value``."""
        refuse = fmt.Refusal("", len(self._planned))
        check_mapping("env", env)
        for key, value in env.items():
            check_str(f"env[{key!r}]", value)
            if not key or "=" in key or "\n" in key + value or "\0" in key + value or key.lstrip().startswith("#"):
                refuse("env", f"{key!r} = {value!r:.80} cannot be written as a NAME=value line")
        text = "".join(f"{key}={value}\n" for key, value in env.items())
        return self.add(DataType.ENVIRONMENT, text.encode("utf-8", "surrogateescape"), name=name, group=group)

    def add_labels(self, labels: Mapping[str, str], *, name: str = "", group: int | None = 1) -> int:
        """Add labels, as JSON. Raises SifError for a value that is not a string."""
        check_mapping("labels", labels)
        texts = string_map(dict(labels), "", Location("labels", None, ""))
        return self.add(DataType.LABELS, _json("labels", {**texts}), name=name, group=group)

    def add_oci_config(self, config: Mapping[str, JsonValue], *, group: int | None = 1) -> int:
        """Add the ``config`` object of an OCI image configuration (Entrypoint, Cmd, Env ...) as ``oci-config.json``.

        Raises:
            SifError: it is not such an object; the error names the key.
        """
        check_mapping("config", config)
        check_oci_config(dict(config), Location(OCI_CONFIG_NAME, None, ""))
        return self.add(DataType.GENERIC_JSON, _json("config", dict(config)), name=OCI_CONFIG_NAME, group=group)

    def add_json(self, value: JsonValue, *, name: str, group: int | None = 1) -> int:
        """Add a generic JSON object."""
        return self.add(DataType.GENERIC_JSON, _json("value", value), name=name, group=group)

    def add_generic(self, data: Data, *, name: str, group: int | None = 1) -> int:
        """Add raw data."""
        return self.add(DataType.GENERIC, data, name=name, group=group)

    def add_signature(
        self,
        data: Data,
        *,
        hash_kind: HashKind | int = HashKind.SHA256,
        fingerprint: bytes = b"",
        linked_object: int | None = None,
        linked_group: int | None = None,
        name: str = "",
    ) -> int:
        """Add a signature of an object or a group. A signature does not belong to a group itself."""
        check_int("hash_kind", hash_kind, 0, _MAX_CODE)
        check_type("fingerprint", fingerprint, bytes, "bytes")
        metadata = Signature(hash_kind, fingerprint)
        return self.add(
            DataType.SIGNATURE,
            data,
            name=name,
            group=None,
            linked_object=linked_object,
            linked_group=linked_group,
            metadata=metadata,
        )

    def add_crypto_message(
        self,
        data: Data,
        *,
        message_format: MessageFormat | int,
        message_kind: MessageKind | int,
        linked_object: int | None = None,
        name: str = "",
        group: int | None = 1,
    ) -> int:
        """Add a cryptographic message, e.g. the wrapped key of the encrypted partition ``linked_object``."""
        check_int("message_format", message_format, 0, _MAX_CODE)
        check_int("message_kind", message_kind, 0, _MAX_CODE)
        metadata = CryptoMessage(message_format, message_kind)
        return self.add(DataType.CRYPTO_MESSAGE, data, name=name, group=group, linked_object=linked_object, metadata=metadata)

    def add_sbom(self, data: Data, *, sbom_format: SbomFormat | int, name: str = "", group: int | None = 1) -> int:
        """Add a software bill of materials."""
        check_int("sbom_format", sbom_format, 0, _MAX_CODE)
        return self.add(DataType.SBOM, data, name=name, group=group, metadata=Sbom(sbom_format))

    def add_oci_root_index(self, data: Data, *, digest: str, group: int | None = 1) -> int:
        """Add the root index of an OCI-SIF image; ``digest`` is not compared with the data."""
        check_str("digest", digest)
        return self.add(DataType.OCI_ROOT_INDEX, data, group=group, metadata=OciObject(digest))

    def add_oci_blob(self, data: Data, *, digest: str, group: int | None = 1) -> int:
        """Add a blob of an OCI-SIF image; ``digest`` is not compared with the data."""
        check_str("digest", digest)
        return self.add(DataType.OCI_BLOB, data, group=group, metadata=OciObject(digest))

    @uninterruptible()
    def write(self, path: str | os.PathLike[str], *, mode: int | None = None, overwrite: bool = False) -> None:
        """Write the image to ``path``.

        An interruption, KeyboardInterrupt for example, leaves nothing behind, or arrives when the new file is in place.

        Args:
            path: The file to write.
            mode: Permissions of the file. Default: executable, as far as the umask allows.
            overwrite: Replace an existing file, or a symbolic link, when the new file is complete and has been read back.

        Raises:
            FileExistsError: ``path`` exists, and ``overwrite`` is false.
            OSError: the file cannot be written; nothing is left behind.
            SifError: the objects contradict each other.
        """
        path = parse_path("path", path)
        optional(check_int, "mode", mode, 0, 0o7777)
        check_target(path, overwrite=overwrite)
        with StagedFile(path, mode=0o777 if mode is None else mode & 0o700, anonymous=True) as file:
            with waiting():  # large objects take long
                self._write_to(file.fd)
            SifImage(FdSource(os.dup(file.fd), file.path)).close()  # never put a file in place that the reader refuses
            if mode is not None:
                os.fchmod(file.fd, mode)
            file.commit(durable=True, replace=overwrite)

    def _write_to(self, fd: int) -> None:
        capacity = max(self._capacity, len(self._planned))
        fmt.Refusal("").between("descriptors_total", capacity, 0, fmt.MAX_DESCRIPTORS, "limit of the reader")
        table_size = capacity * fmt.DESCRIPTOR.size
        data_offset = end = fmt.DESCRIPTORS_OFFSET + table_size
        when = self._when()
        table = bytearray(table_size)
        for index, item in enumerate(self._planned):
            offset = -(-end // item.alignment) * item.alignment
            size = _copy(item.data, fd, offset)
            entry = _pack(item, index + 1, offset, size, offset + size - end, when)
            table[index * fmt.DESCRIPTOR.size : (index + 1) * fmt.DESCRIPTOR.size] = entry
            end = offset + size
        os.truncate(fd, end)  # the last object may be empty but has padding
        _write_all(fd, bytes(table), fmt.DESCRIPTORS_OFFSET)
        header = fmt.HEADER.pack(
            self._launch_script,
            fmt.MAGIC,
            fmt.VERSION,
            self._architecture.encode("ascii"),
            self._uuid(),
            when,
            when,
            capacity - len(self._planned),
            capacity,
            fmt.DESCRIPTORS_OFFSET,
            table_size,
            data_offset,
            end - data_offset,
        )
        _write_all(fd, header, 0)

    def _append_to(self, image: SifImage, fd: int) -> tuple[int, ...]:
        """Write the objects behind the data of an image, which `fd` is, and into free entries of its table; return their ids."""
        header, start = image.header, image.source.size
        free = sorted(set(range(header.descriptors_total)) - {item.index for item in image})
        if len(free) < len(self._planned):
            fmt.Refusal(image.name)(
                "descriptors_free", f"{len(free)} free entries, {len(self._planned)} are needed; rebuild the image"
            )
        when = NO_TIME if header.created_at == NO_TIME and not any(header.uuid_bytes) else self._when()
        first = max((item.id for item in image), default=0) + 1
        end = start
        for number, (index, item) in enumerate(zip(free, self._planned, strict=False)):
            offset = -(-end // item.alignment) * item.alignment
            size = _copy(item.data, fd, offset)
            entry = _pack(item, first + number, offset, size, offset + size - end, when)
            _write_all(fd, entry, header.descriptors_offset + index * fmt.DESCRIPTOR.size)
            end = offset + size
        os.truncate(fd, end)
        architecture = self._architecture if self._has_primary else None
        _write_all(fd, _changed(header, when, len(self._planned), end, architecture), 0)
        return tuple(range(first, first + len(self._planned)))

    def _when(self) -> int:
        if self._timestamp is not None:
            return self._timestamp
        if self._deterministic:
            return NO_TIME
        return int(time.time())

    def _uuid(self) -> bytes:
        if self._deterministic:
            return bytes(16)
        import uuid

        return uuid.uuid4().bytes


def _check_data(data: object) -> None:
    if isinstance(data, str | os.PathLike):
        parse_path("data", data)
    elif not isinstance(data, bytes | bytearray | memoryview) and not callable(getattr(data, "read", None)):
        raise wrong_type("data", data, "bytes, the path of a file or a binary file")


def append_objects(path: str | os.PathLike[str], objects: Callable[[SifImage], SifBuilder]) -> tuple[int, ...]:
    """Add objects to a SIF file, as a whole or not at all.

    A copy of the file takes its place when it is complete and on disk, with the same mode, owner and extended attributes. A
    symbolic link stays, and the file that it names is replaced.

    Args:
        path: the file.
        objects: returns what to add, given the open copy.

    Returns:
        The ids of the new objects.

    Raises:
        SifError: the file is not a valid SIF file, was changed meanwhile, or its table has no free entry.
        OSError: it cannot be read or written.
    """

    def append(source: FdSource, image: SifImage, fd: int) -> tuple[int, ...]:
        _copy_file(SectionReader(source, 0, source.size), fd, 0)
        with SifImage(FdSource(os.dup(fd), image.name)) as copy:
            return objects(copy)._append_to(copy, fd)

    return _rewrite(path, append)


def add_objects(path: str | os.PathLike[str], builder: SifBuilder) -> tuple[int, ...]:
    """Add the objects of a builder to a SIF file, as a whole or not at all.

    Ids go on from the highest one of the file, and the other objects stay as they are. Signatures of a group that gets an object
    do not cover it.

    Returns:
        The ids of the new objects.

    Raises:
        SifError: the file is not a valid SIF file, was changed meanwhile, or its table has no free entry; or an object contradicts
            those in the file.
        OSError: it cannot be read or written.
    """
    check_type("builder", builder, SifBuilder, "a SifBuilder")
    return append_objects(parse_path("path", path), lambda _: builder)


def remove_objects(path: str | os.PathLike[str], *object_ids: int) -> None:
    """Remove objects from a SIF file with their data, as a whole or not at all.

    The other objects keep their ids, groups and links, and their alignment up to 4096 bytes. Signatures of other groups stay valid.

    Raises:
        KeyError: there is no object with an id.
        SifError: another object is linked to one of them, or it is a part of an OCI image; or the file is not a valid SIF file, or
            was changed meanwhile.
        OSError: it cannot be read or written.
    """
    for number, object_id in enumerate(object_ids):
        check_int(f"object_ids[{number}]", object_id)

    def remove(source: FdSource, image: SifImage, fd: int) -> None:
        _check_removable(image, set(object_ids))
        _copy_without(source, image, set(object_ids), fd)

    _rewrite(parse_path("path", path), remove)


@uninterruptible()
def _rewrite(path: str | os.PathLike[str], change: Callable[[FdSource, SifImage, int], T]) -> T:
    """Replace a SIF file by what a function writes, given its source, the open image and a descriptor of the new file."""
    target = os.path.realpath(path)
    with SifImage.open(path) as image, StagedFile(target, anonymous=True) as file:
        source = image.source
        assert isinstance(source, FdSource)  # it was opened by a path
        with waiting():  # large objects take long
            result = change(source, image, file.fd)
        SifImage(FdSource(os.dup(file.fd), image.name)).close()  # never put a file in place that the reader refuses
        _keep_status(source.fileno(), file.fd, target)
        now = os.stat(target)
        if (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns) != source.identity:
            fmt.Refusal(image.name)("file", "replaced or changed meanwhile; try again")
        file.commit(durable=True)
    return result


def _check_removable(image: SifImage, object_ids: set[int]) -> None:
    """Raises KeyError, SifError."""
    groups = {item.group for item in image if item.id not in object_ids}
    for object_id in sorted(object_ids):
        item = image.by_id(object_id)
        refuse = fmt.Refusal(image.name, item.index)
        if isinstance(item.metadata, OciObject):
            refuse("data_type", f"object {object_id} is a part of an OCI image, which would be damaged; build another image")
        for other in image:
            if other.id not in object_ids and (
                other.linked_object == object_id
                or (other.linked_group is not None and other.linked_group == item.group and item.group not in groups)
            ):
                refuse("linked_id", f"object {other.id} is linked to object {object_id}; remove both")


def _copy_without(source: FdSource, image: SifImage, object_ids: set[int], fd: int) -> None:
    """Write a SIF file without some of its objects."""
    header = image.header
    refuse = fmt.Refusal(image.name)
    if header.descriptors_offset > header.data_offset:
        refuse("descriptors_offset", "the table is behind the data, which is not supported here; build another image")
    _copy_file(SectionReader(source, 0, header.data_offset), fd, 0)
    end = header.data_offset
    for item in sorted(image, key=lambda item: item.offset):
        entry = bytes(fmt.DESCRIPTOR.size)
        if item.id not in object_ids:
            offset = end + (item.offset - end) % fmt.PARTITION_ALIGNMENT
            _copy_file(image.reader(item), fd, offset)
            fields = list(fmt.DESCRIPTOR.unpack(item.raw))
            fields[5], fields[7] = offset, offset + item.size - end
            entry, end = fmt.DESCRIPTOR.pack(*fields), offset + item.size
        _write_all(fd, entry, header.descriptors_offset + item.index * fmt.DESCRIPTOR.size)
    os.truncate(fd, end)
    architecture = None
    if image.primary_partition is not None and image.primary_partition.id in object_ids:
        architecture = Architecture.UNKNOWN
    _write_all(fd, _changed(header, _time_of_change(header), -len(object_ids), end, architecture), 0)


def _time_of_change(header: Header) -> int:
    """Return the time of modification of a file that is changed now; none of one that has no times."""
    if header.created_at == NO_TIME and not any(header.uuid_bytes):
        return NO_TIME
    return int(time.time())


def _keep_status(source: int, fd: int, path: str) -> None:
    """Give a file the owner, extended attributes and mode of another one. Raises OSError, which names the path."""
    info, mine = os.fstat(source), os.fstat(fd)
    try:
        if (info.st_uid, info.st_gid) != (mine.st_uid, mine.st_gid):
            os.fchown(fd, info.st_uid, info.st_gid)
        for name in os.listxattr(source):
            if name.startswith(("user.", "system.posix_acl_")):
                os.setxattr(fd, name, os.getxattr(source, name))
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
    except PermissionError as error:
        message = f"uid {info.st_uid} and gid {info.st_gid} of the file cannot be kept; change a copy of it"
        raise PermissionError(error.errno, message, path) from error
    except OSError as error:
        error.filename = path
        raise


def _pack(item: _Planned, ident: int, offset: int, size: int, padded: int, when: int) -> bytes:
    """Return the entry of an object."""
    return fmt.DESCRIPTOR.pack(
        item.data_type,
        True,
        ident,
        fmt.GROUP_MASK | (item.group or 0),
        item.linked,
        offset,
        size,
        padded,
        when,
        when,
        0,
        0,
        item.name.encode("utf-8", "surrogateescape"),
        fmt.pack_extra(item.metadata),
    )


def _changed(header: Header, when: int, added: int, end: int, architecture: Architecture | str | None) -> bytes:
    """Return the header of an image with a number of objects added, whose data now end at an offset."""
    launch, magic, version, code, uuid, created, _, free, total, offset, size, data_offset, _ = fmt.HEADER.unpack(header.raw)
    code = code if architecture is None else architecture.encode("ascii")
    return fmt.HEADER.pack(
        launch, magic, version, code, uuid, created, when, free - added, total, offset, size, data_offset, end - data_offset
    )


def check_target(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check that an image can be written to a path.

    Raises:
        FileExistsError: it exists, and ``overwrite`` is false.
        OSError: it is a directory or a special file, which is never replaced.
    """
    check_bool("overwrite", overwrite)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not overwrite:
        raise FileExistsError(
            errno.EEXIST, "file exists; pass overwrite=True to replace it, or --force on the command line", os.fspath(path)
        )
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "a special file, which is not replaced", os.fspath(path))


def _text(field: str, text: str, room: int, refuse: fmt.Refusal) -> bytes:
    check_type(field, text, str, "a str")
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        refuse(field, f"{shown(text)} cannot be encoded: {error.reason}")
    if len(encoded) >= room or b"\0" in encoded:
        refuse(field, f"{shown(text)} does not fit into {room} bytes that end with NUL")
    return encoded


def _json(name: str, value: JsonValue) -> bytes:
    import json

    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be written as JSON: {error}") from error


def _copy(data: Data, fd: int, offset: int) -> int:
    """Copy ``data`` to ``fd`` at ``offset``; return the number of bytes."""
    if isinstance(data, bytes | bytearray | memoryview):
        view = memoryview(data).cast("B")
        _write_all(fd, view, offset)
        return len(view)
    if isinstance(data, str | os.PathLike):
        with open(data, "rb") as file:
            return _copy_file(file, fd, offset)
    return _copy_file(data, fd, offset)


def _copy_file(file: ReadableFile, fd: int, offset: int) -> int:
    done = 0
    while piece := file.read(_CHUNK):
        _write_all(fd, piece, offset + done)
        done += len(piece)
    return done


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
