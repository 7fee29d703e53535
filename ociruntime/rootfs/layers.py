"""How the layers of an image become a root filesystem: the table of strategies, and what a container gets where only it may mount.

Root mounts the layers and an overlay on the host, where every container of the bundle shares them. A user mounts at most the layers
there, by FUSE. Each container then mounts an overlay with an upper layer of its own, in its own user and mount namespaces. Where
layers cannot be mounted, the image is extracted once, into a cache that is addressed by its content.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

from ..arguments import check_choice, optional
from ..engine import filesystems
from ..engine.filesystems import MOUNTERS, Filesystem, Programs
from ..engine.trees import copy_attributes
from ..errors import BundleError, LaunchTimeout, UnsupportedError, warn
from ..files import Descriptor
from ..host import Host
from ..interrupts import checking, waiting
from ..plan.rootfs import Overlay
from ..spec.base import is_below
from .cache import Cache, check_space, extracted_files, read_link, release_image
from .mount import (
    ImagePart,
    ServedMount,
    SharedMount,
    has_foreign_opaque,
    mount_filesystem,
    mount_overlay,
    mounts_on,
    served_image,
    shared_mount,
)
from .uppers import Lower, Upper, check_unused, make_directories, occupy

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..image import Image, Layer
    from .users import MissingPoint


class Strategy(StrEnum):
    """A way to get at the files of an image, the best first."""

    KERNEL = "kernel"
    """The kernel mounts each layer through a loop device."""
    FUSE = "fuse"
    """squashfuse, fuse2fs or erofsfuse serves each layer: mounted on the host by fusermount3, or in namespaces of the program."""
    EXTRACTION = "extraction"
    """The files of all layers are extracted as one tree, into the cache."""


def parse_strategy(value: object) -> Strategy | None:
    """Return a caller's choice of a strategy. Raises TypeError, ValueError: it is not one."""
    optional(check_choice, "strategy", value, tuple(Strategy))
    return None if value is None else Strategy(str(value))


class Choice(NamedTuple):
    """The strategy that was chosen, and why the better ones cannot be used."""

    strategy: Strategy
    reason: str = ""

    @property
    def note(self) -> str:
        """The choice as plans show it."""
        return f"{self.strategy}, because {self.reason}" if self.reason else str(self.strategy)


def choose(formats: Collection[str], host: Host, programs: Programs, *, layers: int = 1, only: Strategy | None = None) -> Choice:
    """Return the best strategy for an image that a host offers to this user.

    Args:
        formats: the formats of its layers, as `LayerFormat` has them.
        layers: how many layers it has.
        only: the strategy that the caller asks for.

    Raises:
        UnsupportedError: it offers none, or not that one; the message says what to install.
    """
    reasons: dict[Strategy, str] = {}
    for strategy, find in ((Strategy.KERNEL, _no_kernel), (Strategy.FUSE, _no_fuse), (Strategy.EXTRACTION, _no_extraction)):
        if only is not None and strategy is not only:
            continue
        reasons[strategy] = find(formats, host, programs, layers)
        if not reasons[strategy]:
            del reasons[strategy]
            return Choice(strategy, next(reversed(reasons.values()), ""))
    if only is not None:
        raise UnsupportedError(f"the strategy {only} cannot be used: {reasons[only]}")
    install = [MOUNTERS[kind] for kind in sorted(formats) if kind in MOUNTERS]
    unsquashfs = ", or squashfs-tools" if formats == {"squashfs"} else ""
    raise UnsupportedError(
        f"an image cannot be mounted by this user: {reasons[Strategy.FUSE]}; it cannot be extracted either: "
        f"{reasons[Strategy.EXTRACTION]}; install {' and '.join(install)} where users may open /dev/fuse{unsquashfs}"
    )


def _no_kernel(formats: Collection[str], host: Host, programs: Programs, layers: int) -> str:
    """Return why the kernel cannot mount layers for this user; an empty string if it can."""
    if archives := sorted(set(formats) - set(MOUNTERS)):
        return f"layers of the format {' and '.join(archives)} cannot be mounted"
    return "" if mounts_by_kernel(host) else "only root mounts an image by the kernel"


def _no_fuse(formats: Collection[str], host: Host, programs: Programs, layers: int) -> str:
    if set(formats) - set(MOUNTERS):
        return _no_kernel(formats, host, programs, layers)
    if mounts_by_kernel(host):
        return "root mounts images by the kernel"
    return programs.no_fuse(formats)


def _no_extraction(formats: Collection[str], host: Host, programs: Programs, layers: int) -> str:
    if "squashfs" not in formats or _extracts_by_program(formats, programs, layers):
        return ""
    if programs.library:
        return ""
    if layers == 1:
        return "no unsquashfs in PATH"
    return "several squashfs layers are merged by the extra 'images', which is not installed"


def _extracts_by_program(formats: Collection[str], programs: Programs, layers: int) -> bool:
    return bool(programs.unsquashfs) and layers == 1 and set(formats) == {"squashfs"}


def mounts_by_kernel(host: Host) -> bool:
    """Return whether a host lets this user mount images and overlays on it."""
    return host.privileged and host.initial


def may_mount() -> bool:
    """Return whether this user mounts images and overlays on the host."""
    return mounts_by_kernel(Host.probe())


# ---- the layers of a bundle ----


class Layers(NamedTuple):
    """The root filesystem of a bundle whose containers mount it: lower layers, and an upper layer for each container."""

    lowers: tuple[Lower, ...]
    """Absolute paths of the directories with the files of the image, and mounts of it, the uppermost first."""
    uppers: str
    """Absolute path of the directory of the upper layers."""
    origin: str = ""
    """How the lower layers were made, as a record holds it; empty for a directory of the caller."""
    shared: bool = False
    """Whether an overlay of them is mounted on the root filesystem of the bundle, which all its containers share."""
    upper: Upper = Upper()
    """Where the writes of a container go."""
    bundle: str = ""
    """The mounted bundle that the layers belong to: it is not unmounted while a container uses it. Empty if there is none."""
    note: str = ""
    """Which strategy was chosen for the image, and why the better ones cannot be used, as plans show it."""
    owner: object = None
    """What keeps the lower layers while something refers to it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths by which this process finds the files of the image, the uppermost layer first."""
        return tuple(lower if isinstance(lower, str) else lower.path for lower in self.lowers)

    def place(self, name: str) -> str:
        """Return the path of the directory of an upper layer, given its name."""
        return f"{self.uppers}/{name}"

    @property
    def has_points(self) -> bool:
        """Whether mount points are made in a lower layer of the container: the upper one does not exist yet, or is kept."""
        return not self.upper.private and not may_mount()

    @property
    def has_place(self) -> bool:
        """Whether a directory is made for the container."""
        return self.upper.private or bool(self.bundle) or self.has_points

    def overlay(self, name: str) -> Overlay:
        """Return the overlay of one container.

        Args:
            name: the name of the directory of its upper layer.
        """
        lowers = tuple(lower if isinstance(lower, str) else lower.layer for lower in self.lowers)
        if self.has_points:
            lowers = (f"{self.place(name)}/{_POINTS}", *lowers)
        return Overlay(lowers, self.upper.layer(self.place(name)), kept=not self.upper.private, note=self.note)

    def mount(self, source: str) -> int:
        """Return a detached mount for one container, as a file descriptor. Raises OSError.

        Args:
            source: names the mount in the plan.
        """
        if self.upper.image is not None and self.upper.image.layer.source == source:
            return self.upper.image.mount(self.paths[0])
        return next(lower for lower in self.lowers if not isinstance(lower, str) and lower.layer.source == source).mount()

    def record(self, name: str) -> list[str]:
        """Return how another process finds the upper layer of one container, and the lower ones, by `recorded_layers`.

        Args:
            name: the name of the directory of its upper layer.

        Returns:
            The path of each layer; of an image that is mounted below the overlay of its bundle, the mount point behind
            `_MOUNTED`; an empty string for what another process cannot find.
        """
        upper = self.upper.layer(self.place(name))
        return [f"{upper}/upper" if isinstance(upper, str) else "", *map(_recorded, self.lowers)]

    def undo(self, name: str, container: str) -> list[list[str]]:
        """Return the actions that undo `make_upper` with the same arguments."""
        place = [["bundle", self.place(name)]] if self.has_place else []
        return [*place, *([["overlay", self.upper.directory, container]] if self.upper.directory else [])]


_MOUNTED: Final = "mounted:"


def _recorded(lower: Lower) -> str:
    if isinstance(lower, SharedMount):
        return lower.point and f"{_MOUNTED}{lower.point}"
    return lower if isinstance(lower, str) else ""


def recorded_lower(text: str) -> Lower:
    """Return a lower layer, given what `Layers.record` has returned.

    Raises:
        FileNotFoundError: it was removed or unmounted.
        OSError: it cannot be mounted once more.
    """
    place = text.removeprefix(_MOUNTED)
    if place == text and os.path.isdir(place):
        return place
    if place != text and (mounted := mounts_on(place)):
        return SharedMount.again(mounted[0])
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place)


class OwnRoot(NamedTuple):
    """The root filesystem of a container with an upper layer of its own."""

    layers: Layers
    name: str
    """The name of the upper layer."""

    def overlay(self) -> Overlay:
        """Return the overlay of the container."""
        return self.layers.overlay(self.name)


class OwnLayers:
    """The layers of the root filesystem of a container that has an upper layer of its own.

    Args:
        bundle: the bundle of the container.
        layers: the layers of the bundle.
        upper: the directory of the upper layer; empty if it is in a filesystem without a place.
        opened: that directory then.
    """

    def __init__(self, bundle: Bundle, layers: Layers, upper: str, opened: Descriptor | None) -> None:
        self.bundle, self.layers, self._upper, self._opened = bundle, layers, upper, opened

    def close(self) -> None:
        """Close what is open of them."""
        if self._opened is not None:
            self._opened.close()

    def paths(self) -> list[tuple[str, str]]:
        """Return what each layer is and a path of this process, the uppermost first."""
        upper = self._upper if self._opened is None else f"/proc/self/fd/{self._opened.fd}"
        return [("upper layer", upper), *((f"layer {path}", path) for path in self.layers.paths)]


_CONTAINER: Final = "container"
"""Name of the symbolic link from an upper layer to the state directory of its container."""
_POINTS: Final = "points"
"""Name of the directory of the lower layer with mount points."""


def make_upper(layers: Layers, name: str, container: str, is_used: Callable[[str], bool]) -> None:
    """Make the upper layer of a container, with the permissions and attributes of the uppermost lower layer. See `Layers.undo`.

    Args:
        name: the name of the directory that is made for the container.
        container: the state directory of the container.
        is_used: whether the container of a state directory uses its root filesystem.

    Raises:
        BundleError: another container uses the directory, or the bundle was unmounted.
        OSError: the upper layer cannot be made.
    """
    place, lower = layers.place(name), layers.paths[0]
    if layers.has_place:
        try:
            os.mkdir(place, 0o700)
        except FileNotFoundError:
            raise BundleError(f"{layers.uppers} does not exist: the bundle was unmounted, or TMPDIR is wrong") from None
    if layers.bundle:
        os.symlink(container, f"{place}/{_CONTAINER}")
    for directory in layers.upper.directories_below:
        check_unused(directory, is_used)
    if layers.upper.private:
        make_directories(place, lower)
    elif layers.upper.directory:
        occupy(layers.upper.directory, container, is_used, lower)
    if layers.has_points:
        _make_directory(f"{place}/{_POINTS}", lower)


def make_points(layers: Layers, name: str, points: Iterable[MissingPoint]) -> None:
    """Make mount points where the container could not make them: the layers below belong to another user, or are read-only.

    They are made in the upper layer if that is new, and otherwise in the uppermost lower layer, as a kept upper layer may have
    symbolic links. Directories of the image above them get the same permissions, and belong to the caller.

    Raises:
        OSError: one cannot be made.
    """
    upper = f"{layers.place(name)}/{_POINTS if layers.has_points else 'upper'}"
    for point in points:
        lower, below = point.parent.removesuffix(point.existing), ""
        for part in point.path.split("/")[1:-1]:
            below += f"/{part}"
            _make_directory(upper + below, lower + below if is_below(point.existing, below) else "")
        if point.is_file:
            os.close(os.open(upper + point.path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        else:
            _make_directory(upper + point.path, "")


def _make_directory(path: str, model: str) -> None:
    """Make a directory unless it exists, with the permissions of another one."""
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    if model:
        copy_attributes(f"{model}/.", path, privileged=False)


def containers_of(layers: Layers) -> list[str]:
    """Return the state directories of the containers that have an upper layer, in any state root."""
    names = os.listdir(layers.uppers) if os.path.isdir(layers.uppers) else ()  # a crash may have removed it
    return [path for name in names if (path := read_link(f"{layers.uppers}/{name}/{_CONTAINER}"))]


_CACHE: Final = "cache"
_DIRECTORY: Final = "directory"
_IMAGE: Final = "image"
"""Each container mounts the parts of files that the origin lists."""
_SHARED: Final = "shared+"
"""Begin of an origin whose layers have an overlay on the root filesystem of the bundle, which all containers share."""
_NOTE: Final = "?"
"""Comes before the choice of a strategy in an origin."""
_CHOICE: Final = ";"
"""Comes before the choice of an upper layer in an origin."""
LAYERS: Final = "layers"
"""Name of the directory of a bundle in which several layers of an image are mounted, each by its number, the lowest being 0."""


def attach(image: Image, bundle: Path, used: Container[str], strategy: Strategy | None = None, *, private: bool = False) -> Layers:
    """Make the files of an image the lower layers of a bundle: mounted in it, or extracted. A directory is used as it is.

    Args:
        used: the digests of extracted images that mounted bundles use.
        strategy: the one to use; by default the best one that can be used.
        private: where the kernel mounts the layers, mount them at no place, for this process alone.

    Raises:
        UnsupportedError, ImageError, OSError: the image can be neither mounted nor extracted.
    """
    if image.kind == _DIRECTORY:
        return layers_of(str(bundle), f"{_DIRECTORY}={quote(image.path)}")
    programs, host = Programs.find(), Host.probe()
    formats, count = {str(layer.format) for layer in image.layers}, len(image.layers)
    chosen, reason = choose(formats, host, programs, layers=count, only=strategy)
    if chosen is not Strategy.EXTRACTION:
        with waiting(), _naming(image):
            image.check_layers()
        layers = _mount(image, Choice(chosen, reason), str(bundle), programs, private=private)
        if layers is not None:
            return layers
        attribute = f"{_foreign(chosen)}.overlay.opaque"
        reason = f"directories in its layers hide others by {attribute}, which overlays of {_whose(host)} do not see"
        if why := _no_extraction(formats, host, programs, count):
            raise UnsupportedError(f"{image.name} cannot be used by this user: {reason}; it cannot be extracted: {why}")
    cache, privileged = Cache(), mounts_by_kernel(host)

    def extract(place: str) -> None:
        if formats & set(MOUNTERS) and strategy is None:
            warn([f"{image.name} is extracted, because {reason}"])  # once: the next run finds the files
        with checking(check_space(os.path.dirname(place), image.name)):
            _extract(image, programs, privileged, place)

    with _naming(image):
        digest = cache.digest_of(image, privileged=privileged)
        cache.add(digest, extract, str(bundle), used)
    return layers_of(str(bundle), _origin(_CACHE, quote(cache.place(digest)), Choice(Strategy.EXTRACTION, reason).note))


@contextmanager
def _naming(image: Image) -> Iterator[None]:
    """Name the image in the error of a block that takes longer than the call may."""
    try:
        yield
    except LaunchTimeout as error:
        error.command = ("extract", image.name)
        raise


def _mount(image: Image, choice: Choice, bundle: str, programs: Programs, *, private: bool) -> Layers | None:
    """Mount the layers of an image; None if a directory hides others by an attribute that overlays of this user do not see.

    Args:
        private: at no place of the host.
    """
    parts, places = _filesystems(image), layer_places(bundle, len(image.layers))
    foreign, note = partial(_has_foreign_opaque, image, "user"), choice.note
    no_mount = _no_mount(parts, programs)
    if choice.strategy is Strategy.KERNEL:
        mounts = tuple(map(shared_mount, parts))
        if _has_foreign_opaque(image, "trusted", [mount.path for mount in mounts]):
            return None
        if private:
            return Layers(mounts, f"{bundle}/overlay", note=note)
        for part, place in zip(parts, places, strict=True):
            os.makedirs(place, mode=0o700, exist_ok=True)
            mount_filesystem(part, place)
    elif private or no_mount:
        found = tuple(map(ImagePart.of, parts))
        if not private:
            for image_part in found:
                image_part.check()
        served = served_image(found, parts)
        lowers = tuple(ServedMount(found, number, served) for number in range(len(found)))
        if foreign([lower.path for lower in lowers]):
            return None
        if private:
            return Layers(lowers, f"{bundle}/overlay", note=note)
        note += f"; each container mounts the image, because {no_mount}"
        warn([f"{bundle}/rootfs stays empty: {no_mount}; 'ociruntime shell' with the bundle shows the files"])
        return layers_of(bundle, _origin(_IMAGE, _encode(found), note))._replace(lowers=lowers)
    else:
        for part, place in zip(parts, places, strict=True):
            os.makedirs(place, mode=0o700, exist_ok=True)
            filesystems.mount(part, place, programs)
        if foreign(places):
            for place in places:
                filesystems.unmount(place, detach=True)
            return None
        if len(places) > 1:
            _show(image, places, f"{bundle}/rootfs", programs)
    return layers_of(bundle, _origin(choice.strategy, str(len(parts)), note))


def _no_mount(parts: Sequence[Filesystem], programs: Programs) -> str:
    """Return why FUSE cannot mount filesystems on the host for containers of this user; an empty string if it can."""
    if any(part.format == "erofs" for part in parts):
        return "erofsfuse shows the owners of the image, which do not exist in a container of this user"
    return f"there is {programs.no_mount}" if programs.no_mount else ""


def _show(image: Image, places: Sequence[str], rootfs: str, programs: Programs) -> None:
    """Show several layers as one tree on the root filesystem of a bundle, if that can be done. Its containers do not need it."""
    if programs.overlayfs:
        filesystems.show_layers(places, rootfs, programs, image.name)
    else:
        why = f"{image.name} has several layers, and fuse-overlayfs is not in PATH (Debian: fuse-overlayfs)"
        warn([f"{rootfs} stays empty: {why}; 'ociruntime shell' with the bundle shows the files"])


def shared_mounts(image: Image, strategy: Strategy | None = None) -> Layers | None:
    """Return the layers of an image, mounted at no place; None if it must be extracted.

    Raises:
        ImageError: a layer does not have its digest.
        UnsupportedError, OSError: they cannot be mounted.
    """
    formats = {str(layer.format) for layer in image.layers}
    if formats - set(MOUNTERS):
        return None
    programs, host = Programs.find(), Host.probe()
    chosen, reason = choose(formats, host, programs, layers=len(image.layers), only=strategy)
    if chosen is Strategy.EXTRACTION:
        return None
    with waiting(), _naming(image):
        image.check_layers()
    return _mount(image, Choice(chosen, reason), "", programs, private=True)


def _filesystems(image: Image) -> list[Filesystem]:
    """Return the layers of an image that can be mounted, the uppermost first."""
    return [Filesystem(image.fileno(layer), image.name, layer.offset, layer.size, layer.format) for layer in reversed(image.layers)]


def _whose(host: Host) -> str:
    return "root" if mounts_by_kernel(host) else "users"


def _foreign(strategy: Strategy) -> str:
    """Return the class of the attributes that overlays of this user do not see, given how the layers are mounted."""
    return "user" if strategy is Strategy.KERNEL else "trusted"


def _has_foreign_opaque(image: Image, own: str, places: Sequence[str]) -> bool:
    """Return whether directories of layers hide others by an attribute that the overlay does not see.

    Args:
        own: the class of the attributes that it sees, ``trusted`` or ``user``.
        places: where the layers are mounted, the uppermost first.
    """
    upper = zip(reversed(image.layers[1:]), places, strict=False)  # what the lowest layer hides does not exist
    return any(has_foreign_opaque(place, own) for layer, place in upper if _has_attributes(image, layer))


def _extract(image: Image, programs: Programs, privileged: bool, target: str) -> None:
    """Extract an image to a path that does not exist."""
    formats = {str(layer.format) for layer in image.layers}
    if not _extracts_by_program(formats, programs, len(image.layers)):
        image.unpack(target, privileged=privileged)
        return
    image.check_layers()
    filesystems.extract(_filesystems(image)[0], target, programs, privileged=privileged)


def share(layers: Layers, bundle: Path, *, writable: bool) -> Layers:
    """Mount the layers of a bundle on its root filesystem, for all its containers.

    Args:
        writable: whether there is a layer above them for what is written.

    Raises:
        UnsupportedError, OSError: the overlay cannot be mounted.
    """
    rootfs, overlay = bundle / "rootfs", bundle / "overlay"
    lowers = [Path(path) for path in layers.paths]
    if writable:
        mount_overlay(lowers, rootfs, overlay)
    elif lowers != [rootfs]:
        overlay.mkdir(mode=0o700)  # an overlay that is not writable needs two directories
        mount_overlay([*lowers, overlay] if len(lowers) == 1 else lowers, rootfs, None)
    return layers._replace(origin=_SHARED + layers.origin, shared=True)


def uncovered(layers: Layers) -> Layers:
    """Return the layers of a bundle that `share` has mounted, for containers that have upper layers of their own.

    Raises:
        BundleError: they are not mounted.
        OSError: they cannot be mounted once more.
    """
    rootfs = f"{layers.bundle}/rootfs"
    if layers.paths != (rootfs,):
        return layers._replace(shared=False)
    mounted = mounts_on(rootfs)
    if not mounted:
        raise BundleError(f"{layers.bundle}: the image is not mounted; umount the bundle, and mount the image again")
    return layers._replace(lowers=(SharedMount.again(mounted[0]),), shared=False)


def _has_attributes(image: Image, layer: Layer) -> bool:
    """Return whether files of a layer may have extended attributes. A squashfs without them says so in its superblock."""
    if layer.format != "squashfs":
        return True
    reader = image.reader(layer)
    reader.seek(_ATTRIBUTES_AT)
    return reader.read(8) != _NO_ATTRIBUTES


_ATTRIBUTES_AT: Final = 56
_NO_ATTRIBUTES: Final = b"\xff" * 8
"""Where a squashfs has the offset of its extended attributes, and what it has there if there are none."""


def _origin(kind: str, detail: str, note: str) -> str:
    return f"{kind}={detail}{_NOTE}{quote(note)}"


def _encode(parts: Sequence[ImagePart]) -> str:
    """Return the parts of files as an origin has them: each file once, then the parts by the numbers of their files."""
    files = list(dict.fromkeys((part.path, part.identity) for part in parts))
    texts = [f"{quote(path)}:{'-'.join(f'{number:x}' for number in identity)}" for path, identity in files]
    places = [f"{files.index((part.path, part.identity)):x}-{part.offset:x}-{part.size:x}-{part.format}" for part in parts]
    return f"{','.join(texts)}!{','.join(places)}"


def _decode(text: str) -> tuple[ImagePart, ...]:
    first, _, second = text.partition("!")
    files: list[tuple[str, tuple[int, ...]]] = []
    for file in first.split(","):
        path, _, numbers = file.partition(":")
        files.append((unquote(path), tuple(int(number, 16) for number in numbers.split("-"))))
    parts = []
    for place in second.split(","):
        number, offset, size, kind = place.split("-")
        path, identity = files[int(number, 16)]
        parts.append(ImagePart(path, identity, int(offset, 16), int(size, 16), kind))
    return tuple(parts)


def layers_of(bundle: str, origin: str) -> Layers:
    """Return the layers of a bundle from what is recorded of them."""
    origin, _, choice = origin.partition(_CHOICE)
    kind, _, rest = origin.removeprefix(_SHARED).partition("=")
    detail, _, note = rest.partition(_NOTE)
    lowers: Sequence[Lower]
    if kind == _CACHE:
        lowers = [extracted_files(unquote(detail))]
    elif kind == _DIRECTORY:
        lowers = [unquote(detail)]
    elif kind == _IMAGE:
        parts = _decode(detail)
        lowers = [ServedMount(parts, number) for number in range(len(parts))]
    else:
        lowers = layer_places(bundle, int(detail))
    layers = Layers(tuple(lowers), f"{bundle}/overlay", origin, origin.startswith(_SHARED), bundle=bundle, note=unquote(note))
    return with_choice(layers, unquote(choice)) if choice else layers


def with_choice(layers: Layers, choice: str) -> Layers:
    """Return the layers of a bundle with a choice of the upper layer, which `find_upper` has not looked at."""
    return layers._replace(origin=layers.origin + _CHOICE + quote(choice), upper=Upper(choice))


def with_upper(layers: Layers, upper: Upper) -> Layers:
    """Return layers with the upper layer that `find_upper` has found, and the read-only ones below it."""
    own = layers.lowers[len(layers.upper.lowers) :]
    return layers._replace(upper=upper, lowers=(*upper.lowers, *own))


def layer_places(bundle: str, count: int) -> list[str]:
    """Return the mount points of the layers of an image, the uppermost first: a single one is on the root filesystem itself."""
    return [f"{bundle}/rootfs"] if count == 1 else [f"{bundle}/{LAYERS}/{number}" for number in reversed(range(count))]


def digest_of(origin: str) -> str:
    """Return the digest of the extracted image in a record; empty if the image was not extracted."""
    return os.path.basename(_extracted(origin))


def _extracted(origin: str) -> str:
    """Return the place of the extracted image in a record, which does not depend on the environment of this process."""
    kind, _, rest = origin.partition(_CHOICE)[0].removeprefix(_SHARED).partition("=")
    return unquote(rest.partition(_NOTE)[0]) if kind == _CACHE else ""


def release(origin: str, bundle: str) -> None:
    """Note that a bundle no longer uses its extracted image. No effect for another origin."""
    if place := _extracted(origin):
        release_image(place, bundle)


def prune_images(used: Container[str]) -> None:
    """Remove every extracted image that no bundle uses. Arguments and errors as for `attach`."""
    Cache().prune(used, 0)
