"""`Image`: an open image of any kind, as one typed value."""

from __future__ import annotations

import enum
import errno
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, Self

import attrs

from ociruntime._lazy import HtmlRepr
from ociruntime.arguments import (
    check_bool,
    check_int,
    check_str,
    check_type,
    optional,
    parse_path,
    printable,
    shown,
    size_text,
    wrong_type,
)
from ociruntime.errors import BundleError, ImageError, ImagePathError, SignatureError
from ociruntime.files import NotRegularError, absolute_path, open_regular
from ociruntime.image import oci
from ociruntime.image.blobs import (
    HEAD,
    ArchiveBlobs,
    LayerFormat,
    LayoutBlobs,
    SifBlobs,
    check_digest,
    checked_filesystem,
    describe,
    launch_script_size,
    open_archive,
    read_document,
)
from ociruntime.image.config import (
    ENVIRONMENT_FILE,
    MAX_DOCUMENT,
    METADATA_DIRECTORY,
    METADATA_FILES,
    ImageMetadata,
    Location,
    OciImageConfig,
    parse_json_object,
    string_map,
)
from ociruntime.image.files import MAX_BYTES, MAX_FILES, ImageFile, Layers, View, extract, unpack
from ociruntime.image.layers import check_archive
from ociruntime.image.packing import Meter, ShownProgress, check_progress, shown_progress
from ociruntime.image.sif.format import MAGIC, ClosedImageError, FdSource, Identity, Section, SectionReader
from ociruntime.image.sif.model import Architecture, DataType, Filesystem, Partition, PartitionKind, label
from ociruntime.image.sif.reader import SifImage
from ociruntime.image.signatures import Key, Verification, verify_sif
from ociruntime.interrupts import uninterruptible

if TYPE_CHECKING:
    from types import TracebackType

    from ociruntime.image.layers import Tree
    from ociruntime.image.sif.model import Descriptor, JsonObject

__all__ = ["Image", "ImageKind", "Layer", "LayerRole"]

StrPath = str | os.PathLike[str]


class ImageKind(enum.StrEnum):
    """What an image file or directory is."""

    SIF = "sif"
    OCI_SIF = "oci-sif"
    """A SIF file with an OCI index and its blobs, as SingularityCE 4 writes it."""
    OCI_LAYOUT = "oci-layout"
    """A directory with ``oci-layout`` and ``index.json``."""
    OCI_ARCHIVE = "oci-archive"
    """An OCI image layout in a tar archive."""
    DOCKER_ARCHIVE = "docker-archive"
    """A tar archive as ``docker save`` writes it."""
    FILESYSTEM = "filesystem"
    """A file with a squashfs, ext2, ext3, ext4 or erofs."""
    DIRECTORY = "directory"
    """A directory that is the root filesystem."""


class LayerRole(enum.StrEnum):
    """The purpose of a layer."""

    ROOT = "root"
    """A part of the root filesystem."""
    OVERLAY = "overlay"
    """A writable upper layer inside the image."""
    DATA = "data"
    """Data that is not a part of the root filesystem."""


@attrs.frozen(kw_only=True)
class Layer:
    """One part of an image: a filesystem, a tar archive or a directory. It can be read while its image is open."""

    format: LayerFormat
    role: LayerRole = LayerRole.ROOT
    path: str
    """Absolute path of the file or directory that holds the layer; empty if the image was opened from a descriptor."""
    offset: int = 0
    """Where the layer begins in the file, in bytes."""
    size: int
    """Size in bytes; 0 for a directory."""
    digest: str = ""
    """``sha256:<64 hexadecimal digits>`` of an OCI layer; empty where the image does not name one."""
    diff_id: str = ""
    """Digest of the uncompressed tar archive, as the image's configuration names it."""
    media_type: str = ""
    """Media type of an OCI layer."""
    filesystem: str = ""
    """``squashfs``, ``ext3`` ... as the superblock says; empty for an archive or a directory."""
    object_id: int | None = None
    """Id of the SIF object."""
    _section: Section | None = attrs.field(default=None, alias="section", eq=False, repr=False)
    _directory: int = attrs.field(default=-1, alias="directory", eq=False, repr=False)

    def __str__(self) -> str:
        parts = [self.filesystem or str(self.format), "" if self.format is LayerFormat.DIRECTORY else size_text(self.size)]
        return " ".join(filter(None, [*parts, self.digest[:19], "" if self.role is LayerRole.ROOT else f"({self.role})"]))


class Image(HtmlRepr):
    """An open image: a SIF or OCI-SIF file, an OCI image layout or archive, a docker archive, a filesystem, or a directory.

    Opening recognises the kind by the content and checks the structure and every document, but reads no layer. All access is
    through descriptors that were opened then: what was checked is what is read and mounted. A ``with`` block closes the image.

    An image that was opened by its path can be pickled and copied. The copy opens the same image again.
    """

    name: str
    """The path that was opened, for messages."""
    path: str
    """The absolute path."""
    kind: ImageKind
    layers: tuple[Layer, ...]
    """What the root filesystem is made of, lowest layer first."""
    overlays: tuple[Layer, ...]
    """Writable upper layers inside the image: overlay partitions of a SIF file, the ext3 layer of an OCI-SIF file."""
    data: tuple[Layer, ...]
    """Other partitions and layers."""
    architecture: str
    """The architecture in OCI's words: ``amd64``, ``arm64`` ...; empty if the image does not say it."""
    references: tuple[str, ...]
    """The names of the image in a layout or archive: ``latest``, ``docker.io/library/busybox:1`` ..."""
    digest: str
    """Digest of the manifest of an OCI image; empty for another kind."""
    config_json: JsonObject | None
    """The image configuration as JSON (image-spec, config.md), or only its ``config`` object in a SIF file; None without one."""

    def __init__(self, opened: _Opened, *, reference: str | None = None, platform: str | None = None) -> None:
        """Take ownership of what was opened. Use `Image.open` instead."""
        self.name, self.path, self.kind = opened.name, opened.path, opened.kind
        self.layers, self.overlays, self.data = (
            tuple(layer for layer in opened.layers if layer.role is role)
            for role in (LayerRole.ROOT, LayerRole.OVERLAY, LayerRole.DATA)
        )
        self.architecture = opened.platform.architecture if opened.platform is not None else ""
        self.references, self.digest = opened.references, opened.digest
        self.config_json = opened.config_json
        self.sif = opened.sif
        self._files = Layers(opened.name, self.layers)
        self._opened: _Opened | None = opened
        self._arguments = (reference, platform)

    sif: SifImage | None
    """The open SIF file of a SIF or OCI-SIF image, which closes with this image."""

    def close(self) -> None:
        """Close all files. Closing twice is allowed."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @classmethod
    @uninterruptible(undo=close)
    def open(cls, path: StrPath, *, reference: str | None = None, platform: str | None = None) -> Image:
        """Open an image and recognise its kind by the content.

        Args:
            path: the file or directory.
            reference: which image of a layout or archive that holds several: one of its names, or the digest of its manifest.
            platform: the platform for which the image must be, such as ``linux/arm64``. Default: of a layout or archive that holds
                several images that of this machine, of another image any.

        Raises:
            ImageError: the file is damaged, or not an image; the message says what it seems to be. Or it has no such image.
            BundleError: the directory is a bundle, which needs no image.
            ValueError: ``platform`` is not a platform.
            OSError: it cannot be opened or read.
        """
        name = parse_path("path", path)
        optional(check_str, "reference", reference)
        optional(check_str, "platform", platform)
        parsed = None if platform is None else oci.parse_platform(platform)
        return cls(_open(name, reference, parsed), reference=reference, platform=platform)

    def __reduce__(self) -> tuple[Callable[..., Image], tuple[object, ...]]:
        if self._opened is None:
            raise TypeError(f"cannot pickle or copy image {self.name!r}: it is closed; open it again")
        return type(self)._reopen, (self.path, *self._arguments, self._opened.identity)

    @classmethod
    def _reopen(
        cls,
        path: str,
        reference: str | None,
        platform: str | None,
        identity: Identity,
        problem: str = "since it was pickled; open it again",
    ) -> Image:
        image = cls.open(path, reference=reference, platform=platform)
        if image._opened is not None and image._opened.identity != identity:
            image.close()
            raise ImageError(f"{path}: the image was replaced or changed {problem}")
        return image

    @property
    def closed(self) -> bool:
        return self._opened is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            warnings.warn(f"unclosed image {self.name!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def status(self) -> os.stat_result:
        """Return the status of the file or directory that was opened, as `os.stat` does.

        Raises:
            ValueError: the image is closed.
            ImageError: it is a directory, which is used by its path, and there is another one now.
        """
        if self._opened is None:
            raise ClosedImageError
        status = os.fstat(self._opened.fd)
        if self.kind is ImageKind.DIRECTORY and not os.path.samestat(status, os.stat(self.path)):
            raise ImageError(f"{self.name}: another directory has this path now; open the image again")
        return status

    # ---- what it says ----

    def config(self) -> OciImageConfig | None:
        """Return the defaults for a container: entrypoint, environment, user ...; None without a configuration.

        Raises:
            ImageError: a value has the wrong type; the message names its key.
        """
        if self.sif is not None and self.kind is ImageKind.SIF:
            return self.sif.oci_config()
        if self.config_json is None:
            return None
        return OciImageConfig.from_json(self.config_json, Location("config", None, self.name))

    @property
    def labels(self) -> dict[str, str]:
        """The labels: those of the configuration, and over them those of a SIF file's labels object."""
        config = self.config()
        own = self.sif.labels if self.sif is not None else None
        return {**(config.labels if config is not None else {}), **(own or {})}

    @property
    def definition(self) -> str | None:
        """The definition file from which a SIF image was built; None without one."""
        return self.sif.definition if self.sif is not None else None

    def metadata(self) -> ImageMetadata:
        """Return the labels, the definition file and the scripts of the image, as Apptainer stores them.

        They are those of the metadata object of a SIF file, and without one those of ``/.singularity.d`` in the files of the image.
        Labels of the configuration and of the labels object, and the definition object, come before these.

        Raises:
            ImageError: a document, script or layer is damaged or too large.
            UnsupportedError, ValueError: as for `files`, if the image has no metadata object.
        """
        self._check_open()
        document = self.sif.inspect_metadata if self.sif is not None else None
        if document is not None:
            found = ImageMetadata.from_json(document, Location("inspect-metadata.json", None, self.name))
        else:
            found = self._metadata_of_files()
        return attrs.evolve(found, labels={**found.labels, **self.labels}, definition=self.definition or found.definition)

    def _metadata_of_files(self) -> ImageMetadata:
        view = self._view(MAX_FILES, MAX_BYTES)

        def text(path: str) -> str:
            with _or_missing():
                return view.read(path, MAX_DOCUMENT).decode("utf-8", "replace")
            return ""

        def names(path: str) -> list[str]:
            with _or_missing():
                return [file.path for file in view.files(path, recursive=False)][1:]
            return []

        scripts = [path for path in names(f"{METADATA_DIRECTORY}/env") if ENVIRONMENT_FILE.fullmatch(path)]
        labels = text(f"{METADATA_DIRECTORY}/labels.json")
        where = Location("labels.json", None, self.name)
        return ImageMetadata(
            labels=string_map(parse_json_object(labels.encode(), where), "", where) if labels else {},
            environment={path: text(path) for path in scripts},
            apps=tuple(path.rpartition("/")[2] for path in names("/scif/apps")),
            **{name: text(f"{METADATA_DIRECTORY}/{file}") for name, file in METADATA_FILES.items()},
        )

    @property
    def signatures(self) -> tuple[Descriptor, ...]:
        """The signatures in a SIF file. They are not verified here."""
        return self.sif.find(DataType.SIGNATURE) if self.sif is not None else ()

    def verify(self, keys: Iterable[Key] = (), *, progress: ShownProgress = None) -> Verification:
        """Verify what the open image holds: the signatures of a SIF file, the digests of an OCI image's layers.

        What is read is what this object gives and mounts, from the files that are open. All data is read once. Documents of an OCI
        image have been compared with their digests when it was opened, and ``digest`` names its manifest.

        Args:
            keys: public keys that are trusted: files, or their contents as bytes. OpenPGP keys, PEM public keys (RSA, ECDSA,
                Ed25519) or X.509 certificates, which are trusted as they are. A SIF file needs them: each group of its objects
                needs a valid signature by one of them. An OCI-SIF file is compared with its digests, and if there are keys, its
                signatures are verified too.
            progress: True for a progress bar, on stderr if that is a terminal, or in a notebook; or a function, which is called
                with the bytes that are read, and with their number in all. What it raises ends the call.

        Raises:
            SignatureError: the image is not signed by a given key, or not as a whole, or it was changed.
            ImageError: a layer does not have its digest.
            UnsupportedError: a library, or a way to decompress a layer, is missing.
            ValueError: the image is closed, or a SIF file is verified without keys.
            OSError: a file cannot be read.
        """
        self._check_open()
        if isinstance(keys, str | bytes | os.PathLike | Mapping) or not isinstance(keys, Iterable):
            raise wrong_type("keys", keys, "a list of keys")
        keys = tuple(keys)
        check_progress(progress)
        if not keys and self.kind is ImageKind.SIF:
            raise ValueError(f"{self.name}: a SIF file is verified by its signatures; pass the public keys of the signers")
        if keys and self.sif is None:
            message = f"the signatures of an image of the kind {self.kind} cannot be verified here; only SIF files hold theirs"
            raise SignatureError(message, reason="unsigned", path=self.name)
        if self.kind in (ImageKind.FILESYSTEM, ImageKind.DIRECTORY):
            message = f"a {self.kind} has neither signatures nor digests that could be verified"
            raise SignatureError(message, reason="unsigned", path=self.name)
        signed = [item for item in self.sif if item.group is not None] if self.sif is not None and keys else []
        layers = () if self.kind is ImageKind.SIF else (*self.layers, *self.overlays, *self.data)
        with shown_progress(progress, f"verifying {os.path.basename(self.name)}") as report:
            meter = Meter(report, sum(item.size for item in signed) + sum(layer.size for layer in layers))
            signatures = verify_sif(self.sif, keys, meter.add) if self.sif is not None and keys else ()
            digests = tuple(_check_layer(layer, self.name, meter.add) for layer in layers)
        return Verification(signatures=signatures, digests=digests)

    def check_layers(self) -> None:
        """Compare the filesystems of an OCI image with their digests. Raises ImageError, OSError."""
        for layer in self.layers:
            if layer.digest and layer.format.is_filesystem:
                _check_layer(layer, self.name)

    # ---- data ----

    def fileno(self, layer: Layer) -> int:
        """Return the descriptor of the file that holds a layer, which this image keeps.

        Raises:
            ValueError: the image is closed, or the layer is a directory.
        """
        self.reader(layer)
        assert layer._section is not None  # it has a reader
        return layer._section.source.fileno()

    def reader(self, layer: Layer) -> SectionReader:
        """Return the bytes of a layer as a read-only seekable file.

        Raises:
            ValueError: the image is closed, or the layer is a directory.
        """
        check_type("layer", layer, Layer, "a Layer")
        self._check_open()
        if layer._section is None:
            raise ValueError(f"layer {layer}: a {layer.format} has no bytes of its own")
        return layer._section.reader()

    # ---- files, without mounting ----

    def files(
        self, path: StrPath = "/", *, recursive: bool = True, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES
    ) -> Iterator[ImageFile]:
        """Yield a file and, if it is a directory, everything in it, as a container sees it: all layers as one tree.

        The order is that of the paths, with a directory before its content. Overlays and data of the image are not read. Symbolic
        links in ``path`` are followed inside the image. What the call reads of an archive is compared with its digest.

        Args:
            path: a path from the root of the image.
            recursive: also what is in the directories of a directory.
            max_files: most files in the archives of the image, and most files that are yielded.
            max_bytes: most bytes to which the archives of the image may decompress.

        Raises:
            ImagePathNotFound: the image has no such file.
            ImagePathError: ``path`` leads through a file that is not a directory, or through a loop of links.
            ImageError: a layer is damaged, does not have its digest, or exceeds a limit.
            UnsupportedError: the files of a layer can be read only when it is mounted, or with modules that are not installed.
            ValueError: the image is closed, also while its files are yielded.
        """
        check_bool("recursive", recursive)
        path = parse_path("path", path)
        return self._while_open(self._view(max_files, max_bytes).files(path, recursive=recursive))

    def _while_open(self, files: Iterator[ImageFile]) -> Iterator[ImageFile]:
        """Yield files. Raises ValueError once the image is closed: its descriptors may be those of other files by then."""
        self._check_open()
        for file in files:
            yield file
            self._check_open()

    def read_bytes(self, path: StrPath, *, limit: int = 64 << 20, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> bytes:
        """Return the content of a regular file. Symbolic links are followed inside the image.

        Args:
            path: a path from the root of the image.
            limit: the largest size of the file, in bytes.
            max_files: see `files`.
            max_bytes: see `files`.

        Raises:
            ImagePathNotFound: the image has no such file.
            ImagePathError: it is a directory, a device, or too large: ``errno`` is EISDIR, EINVAL or EFBIG; or as for `files`.
            ImageError, UnsupportedError, ValueError: as for `files`.
        """
        path = parse_path("path", path)
        check_int("limit", limit, 0)
        return self._view(max_files, max_bytes).read(path, limit)

    def extract(
        self, path: StrPath, to: StrPath, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES
    ) -> tuple[ImageFile, ...]:
        """Copy a file, or a directory with everything in it, to a new path on the host.

        The copy belongs to the caller, and the umask applies. Files lose their set-user-ID, set-group-ID and sticky bits, and keep
        their time of modification and hard links. Directories can always be read and written by the caller. A symbolic link to an
        absolute path becomes a relative one to the copy of its target. If the call fails or is interrupted, nothing is left.

        Args:
            path: a path from the root of the image. Symbolic links are followed inside the image.
            to: a path that does not exist, in a directory that does.
            max_files: most files in the archives of the image, and most files that are copied.
            max_bytes: most bytes to which the archives of the image may decompress, and most bytes of content that are copied.

        Returns:
            What was left out: devices, FIFOs, sockets, and symbolic links that could lead out of the copy.

        Raises:
            FileExistsError: ``to`` exists.
            ImagePathNotFound, ImagePathError, ImageError, UnsupportedError, ValueError: as for `read_bytes`.
            OSError: the copy cannot be written.
        """
        path, to = parse_path("path", path), parse_path("to", to)
        return extract(self._view(max_files, max_bytes), path, to)

    def unpack(self, to: StrPath, *, privileged: bool, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        """Make the files of the image in a new directory as they are, for a root filesystem. After an error some of them are there.

        Permissions, times, hard links and symbolic links are those of the image. The digest of each OCI layer is compared.

        Args:
            to: the path of the directory, which only the caller's user may be able to reach while it is made.
            privileged: keep owners, devices and extended attributes, which only root can. Otherwise all files belong to the caller,
                and devices, and attributes that are not the user's, are left out.
            max_files, max_bytes: see `extract`.

        Raises:
            ImageError, UnsupportedError, ValueError: as for `files`.
            OSError: something cannot be written.
        """
        check_bool("privileged", privileged)
        unpack(self._view(max_files, max_bytes), parse_path("to", to), privileged=privileged)

    def _view(self, max_files: int, max_bytes: int, upper: Tree | None = None) -> View:
        check_int("max_files", max_files, 0)
        check_int("max_bytes", max_bytes, 0)
        self._check_open()
        return self._files.view(max_files, max_bytes, upper)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedImageError

    def __repr__(self) -> str:
        parts = [str(self.kind), self.architecture, *(self._layer_texts() if self.kind is not ImageKind.DIRECTORY else ())]
        if self.signatures:
            parts.append(f"{len(self.signatures)} signature{'s' if len(self.signatures) > 1 else ''}")
        if self.closed:
            parts.append("closed")
        return f"<Image {printable(self.name)}: {', '.join(filter(None, parts))}>"

    def _layer_texts(self) -> list[str]:
        if len(self.layers) == 1:
            return [str(self.layers[0])]
        return (
            [f"{len(self.layers)} layers of {size_text(sum(layer.size for layer in self.layers))}"]
            if self.layers
            else ["no layers"]
        )


@contextmanager
def _or_missing() -> Iterator[None]:
    """Leave the block if a file of an image does not exist."""
    try:
        yield
    except ImagePathError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise


def _check_layer(layer: Layer, name: str, count: Callable[[int], None] = lambda size: None) -> str:
    """Compare a layer with its digest, or that of a docker archive with its diff id; return it.

    Args:
        layer: the layer.
        name: name of the image, for messages.
        count: called with the bytes of each piece that was read.

    Raises:
        ImageError: the layer has another digest.
    """
    digest = layer.digest or layer.diff_id
    where = f"{name}: layer {digest}"
    if layer.digest:
        assert layer._section is not None  # the layers of OCI images are in files
        check_digest(layer._section, digest, where, count)
    else:
        check_archive(layer, where)
        count(layer.size)
    return digest


# ---- opening ----


@attrs.define(kw_only=True)
class _Opened:
    """An image that was recognised, with what must be closed."""

    name: str
    path: str
    kind: ImageKind
    identity: Identity
    fd: int
    """The file or directory itself."""
    layers: tuple[Layer, ...]
    platform: oci.Platform | None = None
    references: tuple[str, ...] = ()
    digest: str = ""
    config_json: JsonObject | None = None
    sif: SifImage | None = None
    owned: tuple[Callable[[], object], ...] = ()

    def close(self) -> None:
        for close in self.owned:
            close()


_REGISTRY: Final = re.compile(r"(^|/)(docker|oras):/")
"""A path that was the reference of an image in a registry. Two slashes may have become one."""


def _open(name: str, reference: str | None, platform: oci.Platform | None) -> _Opened:
    path = absolute_path(name)
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError as error:
        if _REGISTRY.search(name):
            error.strerror = "no such file or directory: it is in a registry and not a file; ociruntime.pull makes a SIF file of it"
        raise
    if stat.S_ISDIR(mode):
        opened = _open_directory(name, path, reference, platform)
    else:
        try:
            fd = open_regular(name)
        except NotRegularError as error:
            raise ImageError(f"{name}: {error.strerror}") from error
        os.set_blocking(fd, True)  # the loop driver inherits the flags of its backing file
        opened = _open_file(FdSource(fd, name, path), reference, platform)
    if reference is not None and opened.kind in (ImageKind.SIF, ImageKind.FILESYSTEM, ImageKind.DIRECTORY):
        opened.close()
        raise ImageError(f"{name}: reference={shown(reference)} chooses from several images, but a {opened.kind} holds one")
    if platform is not None and not (opened.platform is not None and opened.platform.provides(platform)):
        opened.close()
        there = f"the image is for {opened.platform}" if opened.platform is not None else "the image does not name its platform"
        raise ImageError(f"{name}: no image for platform={platform}; {there}")
    return opened


def _open_file(source: FdSource, reference: str | None, platform: oci.Platform | None) -> _Opened:
    """Take ownership of the source."""
    whole = Section(source, 0, source.size)
    try:
        head = whole.read_at(0, HEAD)
        if head[32 : 32 + len(MAGIC)] == MAGIC:
            return _open_sif(SifImage(source), source, reference, platform)
        if (found := _open_filesystem(source, whole)) is not None:
            return found
        archive = open_archive(source, head)
        if archive is None:
            _refuse(source.name, describe(head, whole.read_at))
        return _open_archive(archive, source, reference, platform)
    except BaseException:
        source.close()
        raise


def _refuse(name: str, what: str) -> NoReturn:
    raise ImageError(f"{name}: not an image: it seems to be {what}")


def _open_filesystem(source: FdSource, whole: Section) -> _Opened | None:
    start = launch_script_size(whole.read_at)
    size = source.size - start
    found = checked_filesystem(whole.read_at, start, size, source.name)
    if found is None:
        return None
    layer = Layer(
        format=found.format, path=source.path, offset=start, size=size, filesystem=found.name, section=Section(source, start, size)
    )
    return _Opened(
        name=source.name,
        path=source.path,
        kind=ImageKind.FILESYSTEM,
        identity=source.identity,
        fd=source.fileno(),
        layers=(layer,),
        owned=(source.close,),
    )


def _open_archive(archive: ArchiveBlobs, source: FdSource, reference: str | None, platform: oci.Platform | None) -> _Opened:
    if archive.file("oci-layout") is not None and (index := archive.file("index.json")) is not None:
        kind = ImageKind.OCI_ARCHIVE
        document = read_document(index, f"{archive.name}: index.json")
        contents = oci.read_index(archive, document, archive.name, reference=reference, platform=platform)
    else:
        kind = ImageKind.DOCKER_ARCHIVE
        found = oci.read_docker(archive, reference=reference)
        if found is None:
            _refuse(archive.name, "a tar archive without an OCI layout or docker manifest")
        contents = found
    return _of_contents(contents, archive.name, source.path, kind, source.identity, source.fileno(), (source.close,))


def _of_contents(
    contents: oci.Contents,
    name: str,
    path: str,
    kind: ImageKind,
    identity: Identity,
    fd: int,
    owned: tuple[Callable[[], object], ...],
    sif: SifImage | None = None,
) -> _Opened:
    return _Opened(
        name=name,
        path=path,
        kind=kind,
        identity=identity,
        fd=fd,
        layers=tuple(_oci_layer(layer, contents) for layer in contents.layers),
        platform=contents.platform,
        references=contents.references,
        digest=contents.digest,
        config_json=contents.configuration,
        sif=sif,
        owned=owned,
    )


def _oci_layer(layer: oci.LayerContent, contents: oci.Contents) -> Layer:
    section, role, filesystem = layer.section, LayerRole.ROOT, ""
    if contents.configuration is None or layer.format is LayerFormat.OTHER:
        role = LayerRole.DATA
    elif layer.format is LayerFormat.EXT:
        if layer is not contents.layers[-1]:
            raise ImageError(f"{layer.name}: an ext3 layer that is not the last one; it cannot be a writable overlay")
        role = LayerRole.OVERLAY
    if layer.format.is_filesystem:
        filesystem = _declared(layer.format, section, layer.name)
    return Layer(
        format=layer.format,
        role=role,
        path=section.source.path if isinstance(section.source, FdSource) else "",
        offset=section.offset,
        size=section.size,
        digest=layer.digest,
        diff_id=layer.diff_id,
        media_type=layer.media_type,
        filesystem=filesystem,
        section=section,
    )


def _declared(declared: LayerFormat, section: Section, where: str) -> str:
    """Return the name of the filesystem in a part that declares its format. Raises ImageError if it has another one."""
    found = checked_filesystem(section.read_at, 0, section.size, where)
    if found is None or found.format is not declared:
        raise ImageError(f"{where}: the image calls it {declared}, but it is {found.name if found else 'not a known filesystem'}")
    return found.name


def _open_sif(sif: SifImage, source: FdSource, reference: str | None, platform: oci.Platform | None) -> _Opened:
    path, identity, fd = source.path, source.identity, source.fileno()
    root = sif.root_index
    if root is not None:
        document = read_document(sif.section(root), f"{sif.name}: OCI root index")
        contents = oci.read_index(SifBlobs(sif), document, sif.name, reference=reference, platform=platform)
        return _of_contents(contents, sif.name, path, ImageKind.OCI_SIF, identity, fd, (sif.close,), sif)
    return _Opened(
        name=sif.name,
        path=path,
        kind=ImageKind.SIF,
        identity=identity,
        fd=fd,
        layers=tuple(_partition(sif, item, path) for item in sif.find(DataType.PARTITION)),
        platform=_platform(sif.header.architecture),
        config_json=sif.oci_config_json,
        sif=sif,
        owned=(sif.close,),
    )


def _platform(code: Architecture | str) -> oci.Platform | None:
    return None if code is Architecture.UNKNOWN else oci.Platform(os="linux", architecture=label(code))


_ROLES: Final = {PartitionKind.PRIMARY_SYSTEM: LayerRole.ROOT, PartitionKind.OVERLAY: LayerRole.OVERLAY}
_ENCRYPTED: Final = (Filesystem.ENCRYPTED_SQUASHFS, Filesystem.GOCRYPTFS_SQUASHFS)


def _partition(sif: SifImage, item: Descriptor, path: str) -> Layer:
    section, metadata = sif.section(item), item.metadata
    assert isinstance(metadata, Partition)  # the parser gives each partition its metadata
    where = f"{sif.name}: partition {item.id}"
    filesystem = ""
    match metadata.filesystem:
        case Filesystem.SQUASHFS:
            kind = LayerFormat.SQUASHFS
        case Filesystem.EXT3:
            kind = LayerFormat.EXT
        case Filesystem.RAW:  # "raw" leaves the filesystem open
            found = checked_filesystem(section.read_at, 0, section.size, where)
            kind, filesystem = (found.format, found.name) if found is not None else (LayerFormat.OTHER, "")
        case Filesystem.ARCHIVE:
            kind = LayerFormat.TAR
        case other:
            kind = LayerFormat.ENCRYPTED if other in _ENCRYPTED else LayerFormat.OTHER
    if kind.is_filesystem and not filesystem:
        filesystem = _declared(kind, section, where)
    return Layer(
        format=kind,
        role=_ROLES.get(metadata.kind, LayerRole.DATA) if isinstance(metadata.kind, PartitionKind) else LayerRole.DATA,
        path=path,
        offset=item.offset,
        size=item.size,
        filesystem=filesystem,
        object_id=item.id,
        section=section,
    )


def identity_at(path: str) -> Identity:
    """Return the identity of the image that is opened at a path now. The index of a layout belongs to it. Raises OSError."""
    info = os.stat(path)
    if not stat.S_ISDIR(info.st_mode):
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns
    if not {"oci-layout", "index.json"} <= set(os.listdir(path)):
        return info.st_dev, info.st_ino, 0, 0
    index = os.stat(f"{path}/index.json")
    return info.st_dev, info.st_ino, index.st_size, index.st_mtime_ns


def _open_directory(name: str, path: str, reference: str | None, platform: oci.Platform | None) -> _Opened:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        identity = identity_at(f"/proc/self/fd/{fd}")
        names = set(os.listdir(fd))
        if "config.json" in names and "rootfs" in names:
            raise BundleError(f"{name} is a bundle, not an image: use it as it is, or its rootfs directory")
        if not {"oci-layout", "index.json"} <= names:
            layer = Layer(format=LayerFormat.DIRECTORY, path=path, size=0, directory=fd)
            return _Opened(
                name=name,
                path=path,
                kind=ImageKind.DIRECTORY,
                identity=identity,
                fd=fd,
                layers=(layer,),
                owned=(lambda: os.close(fd),),
            )
        store = LayoutBlobs(fd, name)
        try:
            index = store.file("index.json")
            if index is None:
                raise ImageError(f"{name}: index.json was removed while the layout was read")
            document = read_document(index, f"{name}/index.json")
            contents = oci.read_index(store, document, name, reference=reference, platform=platform)
            return _of_contents(contents, name, path, ImageKind.OCI_LAYOUT, identity, fd, (store.close, lambda: os.close(fd)))
        except BaseException:
            store.close()
            raise
    except BaseException:
        os.close(fd)
        raise
