"""How the layers of an image become a root filesystem: the table of strategies, and what a container gets where only it may mount.

Root mounts an image and an overlay on the host, where every container of the bundle shares them. A user mounts at most the image
there, by FUSE. Each container then mounts an overlay with an upper layer of its own, in its own user and mount namespaces. Where
FUSE cannot be used, the image is extracted once, into a cache that is addressed by its content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Container, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..engine import squashfs
from ..engine.trees import copy_attributes, remove_tree
from ..errors import UnsupportedError, warn
from ..files import LockFile, other_writers
from ..host import Host
from ..interrupts import waiting
from ..plan.overlay import Overlay
from ..procfs import outer_uid
from .shared import SharedMount

if TYPE_CHECKING:
    from ..engine.squashfs import Image, Programs


class Strategy(StrEnum):
    """A way to get at the files of a squashfs image, the best first."""

    KERNEL = "kernel"
    """The kernel mounts it through a loop device."""
    FUSE = "fuse"
    """squashfuse serves it, and fusermount3 mounts it."""
    EXTRACTION = "extraction"
    """unsquashfs extracts it, into the cache."""


class Choice(NamedTuple):
    """The strategy that was chosen, and why the better ones cannot be used."""

    strategy: Strategy
    reason: str = ""


def choose(host: Host, programs: Programs) -> Choice:
    """Return the best strategy for a squashfs image that a host offers to this user.

    Raises:
        UnsupportedError: it offers none; the message says what to install.
    """
    if mounts_by_kernel(host):
        return Choice(Strategy.KERNEL)
    needed = (("squashfuse", programs.squashfuse, "squashfuse"), ("fusermount3", programs.fusermount, "fuse3"))
    missing = [f"no {program} in PATH (Debian: {package})" for program, path, package in needed if not path]
    if programs.device:
        missing.append(programs.device)
    if not missing:
        return Choice(Strategy.FUSE, "only root mounts an image by the kernel")
    reason = f"FUSE cannot be used: {', '.join(missing)}"
    if programs.unsquashfs:
        return Choice(Strategy.EXTRACTION, reason)
    raise UnsupportedError(
        f"an image cannot be mounted by this user: {reason}; it cannot be extracted either: no unsquashfs in PATH; install "
        "squashfuse and fuse3 where users may open /dev/fuse, or squashfs-tools"
    )


def mounts_by_kernel(host: Host) -> bool:
    """Return whether a host lets this user mount images and overlays on it."""
    return host.privileged and host.initial


def may_mount() -> bool:
    """Return whether this user mounts images and overlays on the host."""
    return mounts_by_kernel(Host.probe())


# ---- the layers of a bundle ----


class Layers(NamedTuple):
    """The root filesystem of a bundle whose containers mount it: lower layers, and an upper layer for each container."""

    lowers: tuple[str | SharedMount, ...]
    """Absolute paths of the directories with the files of the image, and mounts of it, the uppermost first."""
    uppers: str
    """Absolute path of the directory of the upper layers."""
    origin: str = ""
    """How the lower layers were made, as a record holds it; empty for a directory of the caller."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths by which this process finds the files of the image, the uppermost layer first."""
        return tuple(lower if isinstance(lower, str) else lower.path for lower in self.lowers)

    def place(self, name: str) -> str:
        """Return the path of the directory of an upper layer, given its name."""
        return f"{self.uppers}/{name}"

    def overlay(self, name: str) -> Overlay:
        """Return the overlay of one container.

        Args:
            name: the name of the directory of its upper layer.
        """
        return Overlay(tuple(lower if isinstance(lower, str) else lower.layer for lower in self.lowers), self.place(name))

    def mount(self, source: str) -> int:
        """Return a detached mount for one container, as a file descriptor. Raises OSError.

        Args:
            source: names the mount in the plan.
        """
        return next(lower for lower in self.lowers if not isinstance(lower, str) and lower.layer.source == source).mount()


_CONTAINER: Final = "container"
"""Name of the symbolic link from an upper layer to the state directory of its container."""


def make_upper(layers: Layers, name: str, container: str = "") -> None:
    """Make the directories of an upper layer, whose root has the permissions and attributes of the uppermost lower layer.

    Args:
        name: the name of its directory.
        container: the state directory of the container, if `containers_of` is to find it.

    Raises:
        OSError: they cannot be made.
    """
    place = layers.place(name)
    os.mkdir(place, 0o700)
    if container:
        os.symlink(container, f"{place}/{_CONTAINER}")
    os.mkdir(f"{place}/work", 0o700)
    os.mkdir(f"{place}/upper", 0o700)
    copy_attributes(f"{layers.paths[0]}/.", f"{place}/upper", privileged=may_mount())


def containers_of(layers: Layers) -> list[str]:
    """Return the state directories of the containers that have an upper layer, in any state root."""
    names = os.listdir(layers.uppers) if os.path.isdir(layers.uppers) else ()  # a crash may have removed it
    return [path for name in names if (path := _read_link(f"{layers.uppers}/{name}/{_CONTAINER}"))]


_FUSE: Final = "fuse"
_CACHE: Final = "cache"
LAYERS: Final = "layers"
"""Name of the directory of a bundle in which several layers of an image are mounted, each by its number, the lowest being 0."""


def attach(image: Image, bundle: Path, used: Container[str]) -> Layers:
    """Make the files of an image the lower layer of a bundle: mounted on its ``rootfs``, or extracted.

    Args:
        used: the digests of extracted images that mounted bundles use.

    Raises:
        UnsupportedError, SifError, OSError: the image can be neither mounted nor extracted.
    """
    os.mkdir(bundle / "overlay", 0o700)
    programs = squashfs.Programs.find()
    choice = choose(Host.probe(), programs)
    if choice.strategy is Strategy.FUSE:
        squashfs.mount(image, str(bundle / "rootfs"), programs)
        return layers_of(str(bundle), _FUSE)
    warn([f"{image.path} is extracted, because {choice.reason}"])
    return layers_of(str(bundle), f"{_CACHE}=" + _Cache().add(image, str(bundle), programs, used))


def layers_of(bundle: str, origin: str) -> Layers:
    """Return the layers of a bundle from what is recorded of them."""
    kind, _, detail = origin.partition("=")
    lowers = [_Cache().files(detail)] if kind == _CACHE else layer_places(bundle, int(detail or 1))
    return Layers(tuple(lowers), f"{bundle}/overlay", origin)


def layer_places(bundle: str, count: int) -> list[str]:
    """Return the mount points of the layers of an image, the uppermost first: a single one is on the root filesystem itself."""
    return [f"{bundle}/rootfs"] if count == 1 else [f"{bundle}/{LAYERS}/{number}" for number in reversed(range(count))]


# ---- extracted images ----


def digest_of(origin: str) -> str:
    """Return the digest of the extracted image in a record; empty if the image was not extracted."""
    kind, _, digest = origin.partition("=")
    return digest if kind == _CACHE else ""


def release(origin: str, bundle: str) -> None:
    """Note that a bundle does not use its extracted image any more. No effect for another origin."""
    if digest := digest_of(origin):
        _unlink(_Cache().reference(digest, bundle))


def prune_images(used: Container[str]) -> None:
    """Remove every extracted image that no bundle uses. Arguments and errors as for `attach`."""
    _Cache().prune(used, 0)


_BOUND: Final = 16 << 30
"""Bytes of extracted images above which those that are not used are removed."""
_CHUNK: Final = 1 << 20


def _cache_directory() -> str:
    """Return the directory of extracted images: in the cache directory of the user, or in /var/tmp for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(base) and os.access(base if os.path.exists(base) else os.path.dirname(base), os.W_OK):
        return f"{base}/ociruntime/images"
    return f"/var/tmp/ociruntime-{outer_uid()}/images"


def _make_private(path: str) -> None:
    """Make a directory, and check that no other user can write to it. Raises UnsupportedError, OSError."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        info = os.lstat(path)
        why = other_writers(info) if stat.S_ISDIR(info.st_mode) else "it is not a directory"
        if why:
            raise UnsupportedError(
                f"cannot keep extracted images in {path}: {why}; set XDG_CACHE_HOME to a directory of this user"
            ) from None


class _Cache:
    """Extracted images. ``DIGEST/rootfs`` has the files, and ``DIGEST/users`` a symbolic link to each bundle that uses them.

    ``DIGEST/lock`` is held while an image is extracted, removed or gets a user. ``known`` has the digests of files that were read
    before, by their identity. The digest is that of the whole filesystem.
    """

    def __init__(self) -> None:
        self._root = _cache_directory()

    def files(self, digest: str) -> str:
        return f"{self._root}/{digest}/rootfs"

    def reference(self, digest: str, bundle: str) -> str:
        name = hashlib.sha256(os.fsencode(bundle)).hexdigest()[:32]
        return f"{self._root}/{digest}/users/{name}"

    def add(self, image: Image, bundle: str, programs: Programs, used: Container[str]) -> str:
        """Extract an image unless that was done before, note that a bundle uses it, and return its digest."""
        os.makedirs(os.path.dirname(os.path.dirname(self._root)), mode=0o700, exist_ok=True)
        for path in (os.path.dirname(self._root), self._root):
            _make_private(path)
        with waiting():
            digest = self._digest(image)
        with self._locked(digest):
            place = f"{self._root}/{digest}"
            partial = f"{place}/partial"
            remove_tree(partial)  # of a process that was killed
            if not os.path.isdir(self.files(digest)):
                try:
                    with waiting():
                        squashfs.extract(image, partial, programs)
                    _replace_link(f"{place}/size", str(_size(partial)))
                    os.sync()  # what a crash of the machine leaves is not taken for the image
                    os.rename(partial, self.files(digest))
                except BaseException:
                    remove_tree(partial)
                    raise
            os.makedirs(f"{place}/users", mode=0o700, exist_ok=True)
            self._live_users(digest)
            _replace_link(self.reference(digest, bundle), bundle)
            os.utime(f"{place}/users")
        self.prune(used, _BOUND)
        return digest

    def prune(self, used: Container[str], bound: int) -> None:
        """Remove images that are not used, those first that were used least recently, until the rest is not above a bound."""
        if not os.path.isdir(self._root):
            return
        _make_private(self._root)
        names = os.listdir(self._root)
        found = sorted((self._last_use(name), name, self._recorded_size(name)) for name in names if len(name) == 64)
        total = sum(size for _, _, size in found)
        for _, digest, size in found:
            if (total > bound or not bound) and digest not in used and self._remove(digest):
                total -= size
        known = f"{self._root}/known"
        for name in os.listdir(known) if "known" in names else ():
            if not os.path.isdir(f"{self._root}/{_read_link(f'{known}/{name}')}"):
                _unlink(f"{known}/{name}")

    def _remove(self, digest: str) -> bool:
        """Remove an image unless it is used or locked, and return whether it was removed."""
        place = f"{self._root}/{digest}"
        try:
            with self._locked(digest, wait=False):
                if self._live_users(digest):
                    return False
                for name in sorted(os.listdir(place), key=lambda name: name == "lock"):
                    if name in ("lock", "size"):
                        _unlink(f"{place}/{name}")
                    else:
                        remove_tree(f"{place}/{name}")
                os.rmdir(place)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another process waits for the lock, and extracts it again
                raise
        return True

    def _live_users(self, digest: str) -> bool:
        """Forget the bundles that do not exist any more, and return whether any is left."""
        users, left = f"{self._root}/{digest}/users", False
        for name in os.listdir(users) if os.path.isdir(users) else ():
            if os.path.lexists(_read_link(f"{users}/{name}")):
                left = True
            else:
                _unlink(f"{users}/{name}")
        return left

    @contextmanager
    def _locked(self, digest: str, *, wait: bool = True) -> Iterator[None]:
        place = f"{self._root}/{digest}"
        while True:
            _make_private(place)
            try:
                lock = LockFile(f"{place}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # another process has just removed the image
            with lock:
                with waiting():
                    lock.acquire(wait=wait)
                if not lock.removed:
                    yield
                    return

    def _digest(self, image: Image) -> str:
        """Return the SHA-256 digest of an image; it is computed once for each file."""
        info = os.fstat(image.fd)
        identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, image.offset, image.size)
        directory = f"{self._root}/known"
        known = f"{directory}/{'-'.join(f'{number:x}' for number in identity)}"
        if digest := _read_link(known):
            return digest
        state, position, end = hashlib.sha256(), image.offset, image.offset + image.size
        while position < end and (chunk := os.pread(image.fd, min(_CHUNK, end - position), position)):
            state.update(chunk)
            position += len(chunk)
        _make_private(directory)
        _replace_link(known, state.hexdigest())
        return state.hexdigest()

    def _last_use(self, digest: str) -> float:
        try:
            return os.stat(f"{self._root}/{digest}/users").st_mtime
        except FileNotFoundError:
            return 0

    def _recorded_size(self, digest: str) -> int:
        return int(_read_link(f"{self._root}/{digest}/size") or 0)


def _size(path: str) -> int:
    """Return the bytes on disk of a directory tree."""
    total = 0
    for directory, _, names in os.walk(path):
        total += sum(os.lstat(os.path.join(directory, name)).st_blocks * 512 for name in names)
    return total


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _replace_link(path: str, target: str) -> None:
    """Make a symbolic link, or replace one, atomically."""
    temporary = f"{path}.{os.urandom(8).hex()}"
    os.symlink(target, temporary)
    try:
        os.rename(temporary, path)
    except BaseException:
        _unlink(temporary)
        raise


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
