"""OCI images: from an index or a docker manifest to one image's configuration and layers (image-spec; docker image v1.2)."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Final, TypeVar

import attrs

from ociruntime.arguments import printable, shown
from ociruntime.errors import ImageError, SpecError
from ociruntime.image.blobs import (
    ArchiveBlobs,
    BlobStore,
    LayerFormat,
    check_digest,
    compression,
    read_checked,
    read_document,
    split_digest,
)
from ociruntime.image.sif.format import Section
from ociruntime.spec import codec
from ociruntime.spec.base import Json, NonNegativeInt, Record

__all__ = ["ContentDescriptor", "Contents", "ImageIndex", "ImageManifest", "Platform", "host_platform", "read_docker", "read_index"]

R = TypeVar("R", bound=Record)

REFERENCE: Final = "org.opencontainers.image.ref.name"
_FULL_NAME: Final = "io.containerd.image.name"
_ATTESTATION: Final = "vnd.docker.reference.type"
MAX_DEPTH: Final = 4
"""Levels of indexes in indexes."""
MAX_MANIFESTS: Final = 1000
MAX_LAYERS: Final = 500
"""Most layers of an image: overlay takes no more."""

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_INDEXES: Final = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS: Final = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_CONFIGS: Final = (CONFIG, "application/vnd.docker.container.image.v1+json")
_SYLABS: Final = "application/vnd.sylabs.image.layer.v1."
SQUASHFS: Final = f"{_SYLABS}squashfs"
_TAR: Final = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_FORMATS: Final = {
    SQUASHFS: LayerFormat.SQUASHFS,
    f"{_SYLABS}ext3": LayerFormat.EXT,
    f"{_SYLABS}extfs": LayerFormat.EXT,
    **dict.fromkeys(_TAR, LayerFormat.TAR),
    **{f"{name}{end}": LayerFormat.TAR_GZIP for name in _TAR for end in ("+gzip", ".gzip")},
    **{f"{name}{end}": LayerFormat.TAR_ZSTD for name in _TAR for end in ("+zstd", ".zstd")},
}
_OCI_NAMES: Final = {"x86_64": "amd64", "aarch64": "arm64", "loongarch64": "loong64", "armv7l": "arm", "armv6l": "arm"}
_PLATFORM_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{,63}", re.ASCII)
_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant of an image that names none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Platform(Record):
    """The platform of an image (image-spec, image-index.md)."""

    architecture: str
    os: str
    variant: str | None = None
    """Variant of the CPU: ``v8`` ..."""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def provides(self, requested: "Platform") -> bool:
        """Return whether an image for this platform is one for another, which may leave the variant open."""
        if (self.os, self.architecture) != (requested.os, requested.architecture):
            return False
        return requested.variant is None or requested.variant == (self.variant or _VARIANTS.get(self.architecture))


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ContentDescriptor(Record):
    """A blob by its digest (image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size: NonNegativeInt
    annotations: Mapping[str, str] | None = None
    platform: Platform | None = None
    artifact_type: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """The names that a layout gives the image: ``latest``, ``docker.io/library/busybox:1`` ..."""
        known = self.annotations or {}
        return tuple(dict.fromkeys(known[key] for key in (REFERENCE, _FULL_NAME) if known.get(key)))


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ImageIndex(Record):
    """A list of manifests (image-spec, image-index.md)."""

    schema_version: int
    manifests: tuple[ContentDescriptor, ...]
    media_type: str | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ImageManifest(Record):
    """The configuration and the layers of an image (image-spec, manifest.md)."""

    schema_version: int
    config: ContentDescriptor
    layers: tuple[ContentDescriptor, ...]
    media_type: str | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] | None = None


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class DockerEntry(Record):
    """One image of a docker archive's manifest.json."""

    config: str = attrs.field(metadata={"key": "Config"})
    layers: tuple[str, ...] = attrs.field(metadata={"key": "Layers"})
    repo_tags: tuple[str, ...] | None = attrs.field(default=None, metadata={"key": "RepoTags"})

    NULLABLE: ClassVar[bool] = True


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class DockerArchive(Record):
    """manifest.json of a docker archive, which is an array, as the member of an object."""

    images: tuple[DockerEntry, ...]


@attrs.frozen(kw_only=True)
class LayerContent:
    """One layer of an OCI image."""

    section: Section
    format: LayerFormat
    digest: str
    """Digest of the blob; empty in a docker archive."""
    diff_id: str
    """Digest of the uncompressed tar archive, as the configuration says; empty without one."""
    media_type: str
    name: str
    """Where it is, for messages."""

    def verify(self) -> None:
        """Compare the blob with its digest. Raises ImageError."""
        if self.digest:
            check_digest(self.section, self.digest, self.name)


@attrs.frozen(kw_only=True)
class Contents:
    """What an OCI image consists of."""

    configuration: dict[str, Json] | None
    """The image configuration (image-spec, config.md); None for an artifact that is not an image."""
    layers: tuple[LayerContent, ...]
    references: tuple[str, ...]
    digest: str
    """Digest of the manifest; empty in a docker archive."""
    platform: Platform | None


def host_platform() -> Platform:
    """Return the platform of this machine."""
    machine = os.uname().machine
    return Platform(os="linux", architecture=_OCI_NAMES.get(machine, machine))


def parse_platform(text: str) -> Platform:
    """Return the platform that a text such as ``linux/arm64`` or ``arm64`` names. Raises ValueError."""
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(map(_PLATFORM_NAME.fullmatch, parts)):
        raise ValueError(f"platform={shown(text)} is not os/architecture or os/architecture/variant, such as linux/arm64")
    return Platform(os=parts[0], architecture=_OCI_NAMES.get(parts[1], parts[1]), variant=parts[2] if len(parts) == 3 else None)


def _parse(cls: type[R], content: bytes, where: str) -> R:
    try:
        return codec.structure(cls, codec.parse(content, where), where)
    except SpecError as error:
        raise ImageError(str(error)) from error


def _parse_object(content: bytes, where: str) -> dict[str, Json]:
    try:
        document = codec.parse(content, where)
    except SpecError as error:
        raise ImageError(str(error)) from error
    if not isinstance(document, dict):
        raise ImageError(f"{where}: not a JSON object")
    return document


# ---- indexes ----


def read_index(store: BlobStore, content: bytes, where: str, *, reference: str | None, platform: Platform | None) -> Contents:
    """Return the contents of the one image in an index that a caller means.

    Args:
        store: the blobs.
        content: the index.
        where: its name, for messages.
        reference: name or digest of the image; needed if there are several for the platform.
        platform: the platform. Default: that of this machine, if the index has it, else the only one there is.

    Raises:
        ImageError: there is no such image or more than one, or a document or blob is damaged or missing.
    """
    found = list(_manifests(store, _parse(ImageIndex, content, where), where, (), 1))
    chosen = _choose(store, found, where, reference, platform)
    return _read_manifest(store, chosen.descriptor, where, chosen.references)


@attrs.frozen
class _Candidate:
    descriptor: ContentDescriptor
    references: tuple[str, ...]
    platform: Platform | None

    @property
    def is_artifact(self) -> bool:
        """Whether it is data beside images: a signature, an SBOM ..."""
        return self.descriptor.artifact_type not in (None, *_CONFIGS)

    def matches(self, platform: Platform) -> bool:
        return self.platform is not None and self.platform.provides(platform)


def _manifests(
    store: BlobStore, index: ImageIndex, where: str, names: tuple[str, ...], depth: int, seen: set[str] | None = None
) -> Iterator[_Candidate]:
    """Yield the manifests of an index and of the indexes in it."""
    seen = set() if seen is None else seen
    if depth > MAX_DEPTH:
        raise ImageError(f"{where}: more than {MAX_DEPTH} levels of indexes in indexes")
    for item in index.manifests:
        references = item.references or names
        if (item.annotations or {}).get(_ATTESTATION):
            continue
        if any(reference.endswith((".sig", ".att", ".sbom")) for reference in references):
            continue  # cosign keeps signatures as images of these names
        if item.media_type in _INDEXES:
            if item.digest in seen:
                continue
            seen.add(item.digest)
            inner = _parse(ImageIndex, _document(store, item, where), f"{where}: {item.digest}")
            yield from _manifests(store, inner, where, references, depth + 1, seen)
        elif item.media_type in _MANIFESTS:
            if len(seen) > MAX_MANIFESTS:
                raise ImageError(f"{where}: more than {MAX_MANIFESTS} manifests")
            seen.add(f"{item.digest} {references}")
            yield _Candidate(item, references, item.platform)


def _choose(store: BlobStore, found: list[_Candidate], where: str, reference: str | None, platform: Platform | None) -> _Candidate:
    if not found:
        raise ImageError(f"{where}: holds no image, only an empty index")
    found = [item for item in found if not item.is_artifact] or found
    named = [item for item in found if reference is None or reference in item.references or reference == item.descriptor.digest]
    if not named:
        raise ImageError(f"{where}: no image is named {reference!r}; {_names(found)}")
    if len({item.descriptor.digest for item in named}) > 1:
        named = [item if item.platform is not None else _with_platform(store, item, where) for item in named]
    matching = [item for item in named if item.matches(platform or host_platform())]
    if platform is not None and not matching and any(item.platform is not None for item in named):
        raise ImageError(f"{where}: no image for {platform}; {_platforms(named)}")
    digests = {item.descriptor.digest: item for item in matching or named}
    if len(digests) == 1:
        return next(iter(digests.values()))
    if len({item.references for item in digests.values()}) > 1:
        raise ImageError(f"{where}: holds {len(digests)} images; choose one with reference=; {_names(found)}")
    if not matching:
        raise ImageError(f"{where}: no image for {host_platform()}; choose one with platform=; {_platforms(named)}")
    raise ImageError(f"{where}: {len(digests)} images for {platform or host_platform()}; choose one by its digest with reference=")


def _with_platform(store: BlobStore, item: _Candidate, where: str) -> _Candidate:
    """Return a candidate with the platform that its configuration names, as its index names none."""
    name = f"{where}: manifest {item.descriptor.digest}"
    manifest = _parse(ImageManifest, _document(store, item.descriptor, where), name)
    return attrs.evolve(item, platform=_platform_of(_configuration(store, manifest, name)))


def _configuration(store: BlobStore, manifest: ImageManifest, name: str) -> dict[str, Json] | None:
    """Return the image configuration; None of an artifact that is not an image."""
    if manifest.config.media_type not in _CONFIGS:
        return None
    return _parse_object(_document(store, manifest.config, name), f"{name}: config")


def _names(found: Iterable[_Candidate]) -> str:
    names = sorted({name for item in found for name in item.references or (item.descriptor.digest,)})
    return "there are: " + _joined(names)


def _joined(names: list[str]) -> str:
    """Return the first names as a text for a message. They are what the image says."""
    return ", ".join(printable(name[:200]) for name in names[:20]) + (" ..." if len(names) > 20 else "")


def _platforms(found: Iterable[_Candidate]) -> str:
    names = sorted({str(item.platform) for item in found if item.platform is not None})
    return "there are: " + _joined(names)


def _section(store: BlobStore, item: ContentDescriptor, where: str) -> Section:
    split_digest(item.digest, where)
    section = store.find(item.digest)
    if section is None:
        raise ImageError(f"{where}: the blob {item.digest} is missing")
    if section.size != item.size:
        raise ImageError(f"{where}: the blob {item.digest} has {section.size} bytes, not {item.size}: the image is damaged")
    return section


def _document(store: BlobStore, item: ContentDescriptor, where: str) -> bytes:
    return read_checked(_section(store, item, where), item.digest, f"{where}: blob {item.digest}")


# ---- manifests ----


def _read_manifest(store: BlobStore, item: ContentDescriptor, where: str, references: tuple[str, ...]) -> Contents:
    name = f"{where}: manifest {printable(item.digest[:150])}"
    manifest = _parse(ImageManifest, _document(store, item, where), name)
    if len(manifest.layers) > MAX_LAYERS:
        raise ImageError(f"{name}: {len(manifest.layers)} layers are more than the limit of {MAX_LAYERS}")
    configuration = _configuration(store, manifest, name)
    diff_ids = _diff_ids(configuration, len(manifest.layers), name) if configuration is not None else [""] * len(manifest.layers)
    layers = tuple(
        LayerContent(
            section=_section(store, layer, name),
            format=_format(layer, configuration is not None, name),
            digest=layer.digest,
            diff_id=diff_id,
            media_type=layer.media_type,
            name=f"{where}: layer {layer.digest}",
        )
        for layer, diff_id in zip(manifest.layers, diff_ids, strict=True)
    )
    return Contents(
        configuration=configuration,
        layers=layers,
        references=references,
        digest=item.digest,
        platform=item.platform or _platform_of(configuration),
    )


def _format(layer: ContentDescriptor, is_image: bool, name: str) -> LayerFormat:
    found = _FORMATS.get(layer.media_type)
    if found is not None:
        return found
    if is_image:
        raise ImageError(f"{name}: layers of the type {layer.media_type[:200]!r} are not supported")
    return LayerFormat.OTHER


def _diff_ids(configuration: dict[str, Json], count: int, where: str) -> list[str]:
    """Return ``rootfs.diff_ids``. The ext3 layer that OCI-SIF adds at the end may be missing there."""
    root = configuration.get("rootfs")
    found = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ImageError(f"{where}: the configuration has no array of strings rootfs.diff_ids")
    if len(found) not in (count, count - 1):
        raise ImageError(f"{where}: {count} layers, but {len(found)} diff_ids in the configuration")
    return [str(item) for item in found] + [""] * (count - len(found))


def _platform_of(configuration: dict[str, Json] | None) -> Platform | None:
    if configuration is None:
        return None
    system, architecture, variant = (configuration.get(key) for key in ("os", "architecture", "variant"))
    if not isinstance(architecture, str) or not architecture:
        return None
    return Platform(
        os=system if isinstance(system, str) and system else "linux",
        architecture=architecture,
        variant=variant if isinstance(variant, str) and variant else None,
    )


# ---- docker archives ----


def read_docker(archive: ArchiveBlobs, *, reference: str | None) -> Contents | None:
    """Return the contents of the image in a docker archive; None if the archive has no manifest.json. Errors as `read_index`."""
    manifest = archive.file("manifest.json")
    if manifest is None:
        return None
    where = archive.name
    name = f"{where}: manifest.json"
    try:
        document: Json = codec.parse(read_document(manifest, name), name)
        entries = codec.structure(DockerArchive, {"images": document}, name).images
    except SpecError as error:
        raise ImageError(str(error)) from error
    if len(entries) > MAX_MANIFESTS:
        raise ImageError(f"{name}: more than {MAX_MANIFESTS} images")
    entry = _choose_docker(entries, name, reference)
    if len(entry.layers) > MAX_LAYERS:
        raise ImageError(f"{name}: {len(entry.layers)} layers are more than the limit of {MAX_LAYERS}")
    configured = f"{where}: {printable(entry.config[:200])}"
    configuration = _parse_object(read_document(_member(archive, entry.config), configured), configured)
    diff_ids = _diff_ids(configuration, len(entry.layers), where)
    layers = tuple(_docker_layer(archive, path, diff_id) for path, diff_id in zip(entry.layers, diff_ids, strict=True))
    return Contents(
        configuration=configuration,
        layers=layers,
        references=entry.repo_tags or (),
        digest="",
        platform=_platform_of(configuration),
    )


def _choose_docker(entries: tuple[DockerEntry, ...], name: str, reference: str | None) -> DockerEntry:
    if not entries:
        raise ImageError(f"{name}: holds no image")
    tags = _joined(sorted({tag for entry in entries for tag in entry.repo_tags or ()})) or "none has a name"
    named = [entry for entry in entries if reference is None or reference in (entry.repo_tags or ())]
    if not named:
        raise ImageError(f"{name}: no image is named {reference!r}; there are: {tags}")
    if len(named) > 1:
        raise ImageError(f"{name}: holds {len(named)} images; choose one with reference=; there are: {tags}")
    return named[0]


def _member(archive: ArchiveBlobs, path: str) -> Section:
    section = archive.file(path)
    if section is None:
        raise ImageError(f"{archive.name}: {path[:200]!r}, which manifest.json names, is missing")
    return section


def _docker_layer(archive: ArchiveBlobs, path: str, diff_id: str) -> LayerContent:
    section = _member(archive, path)
    with section.reader() as reader:
        packed = compression(reader.read(8))
    formats = {"": LayerFormat.TAR, "gzip": LayerFormat.TAR_GZIP, "zstd": LayerFormat.TAR_ZSTD}
    where = f"{archive.name}: layer {printable(path[:200])}"
    if packed not in formats:
        raise ImageError(f"{where}: compressed with {packed}, which is not supported")
    return LayerContent(section=section, format=formats[packed], digest="", diff_id=diff_id, media_type="", name=where)
