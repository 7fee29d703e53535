"""Upper layers: where the writes of a container go, as callers choose it, the read-only layers below, and who uses them at a time.

A choice is kept as text in one form: layers with `SEPARATOR` between them. Those that are used read-only come first, the lowest
first: ``PATH:ro``, for a directory or file. The last one may be the layer for the writes: ``none``, ``tmpfs``,
``tmpfs:size=BYTES``, or the absolute path of a directory or of a file. Otherwise each container has a directory of its own, which
is removed with it.

A directory or file that is kept belongs to one container at a time. In a directory a symbolic link names the container. A file is
locked by flock(2), through the open file of its loop device, so the lock ends with the mount, however the container ends.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, TypeAlias

from ..arguments import parse_path, parse_size, shown
from ..engine import filesystems
from ..engine.filesystems import Filesystem
from ..engine.trees import copy_attributes
from ..engine.undo import refusal
from ..errors import BundleError, ImageError, UnsupportedError
from ..files import LockFile, absolute_path, flock
from ..plan.rootfs import ImageMount, Tmpfs
from .mount import (
    NODEV,
    NOSUID,
    READ_ONLY,
    SEPARATOR,
    ImagePart,
    ServedMount,
    SharedMount,
    create_mount,
    has_foreign_opaque,
    identity,
    loop_device,
    open_image,
    shared_mount,
)

NONE: Final = "none"
"""The choice of a read-only root filesystem. Mount points are made in an upper layer that is removed with the container."""
_TMPFS: Final = "tmpfs"
_SIZE: Final = f"{_TMPFS}:size="
_CONTAINER: Final = "container"
"""Name of the symbolic link from a kept directory to the state directory of the container that uses it."""
_PATIENCE: Final = 3.0
"""Seconds for the kernel to unmount the file of a container that has just ended."""


def parse_overlay(value: object, name: str = "overlay") -> str:
    """Return a caller's choice of an upper layer, or of several layers, in its one form; an empty string for None.

    Raises:
        TypeError, ValueError: it is not a choice; the message begins with the name of the argument.
    """
    if value is None:
        return ""
    if not isinstance(value, list | tuple):
        return _parse_layer(value, name)
    layers = [_parse_layer(layer, f"{name}[{number}]") for number, layer in enumerate(value)]
    paths = [layer.removesuffix(READ_ONLY) for layer in layers]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"{name}[{number}] is {shown(value[number])}, which is a layer already; leave one out")
    own = [layer for layer in layers if not layer.endswith(READ_ONLY)]
    if len(own) > 1:
        raise ValueError(
            f"{name} has the upper layers {shown(own[0])} and {shown(own[1])}: a container writes to one; "
            f"add {READ_ONLY!r} to the path of a layer that is only read"
        )
    return SEPARATOR.join([*(layer for layer in layers if layer not in own), *own])


def _parse_layer(value: object, name: str) -> str:
    if isinstance(value, str) and value in (NONE, _TMPFS):
        return value
    if isinstance(value, str) and value.startswith(f"{_TMPFS}:"):
        size = value.removeprefix(_SIZE)
        if size == value:
            raise ValueError(f"{name} is {shown(value)}: 'tmpfs' or 'tmpfs:size=SIZE' is needed; for a path, './tmpfs:...'")
        try:
            number = parse_size(size)
        except ValueError as error:
            raise ValueError(f"{name} is {shown(value)}: {error}") from None
        return _TMPFS if number < 0 else f"{_SIZE}{number}"
    text = parse_path(name, value)
    suffix = READ_ONLY if text.endswith(READ_ONLY) else ""
    path = absolute_path(parse_path(name, text.removesuffix(READ_ONLY)))
    if path.endswith(READ_ONLY):
        raise ValueError(f"{name} is {shown(value)}: a path that ends with {READ_ONLY!r} cannot be used; rename it")
    return path + suffix


def own_layer(choice: str) -> str:
    """Return the layer for the writes in a choice; an empty string if each container has a directory of its own."""
    last = choice.rpartition(SEPARATOR)[2]
    return "" if last.endswith(READ_ONLY) else last


class ExtImage(NamedTuple):
    """An ext2, ext3 or ext4 filesystem in a file, for an upper layer."""

    path: str
    offset: int
    size: int

    @property
    def layer(self) -> ImageMount:
        """The mount in plans."""
        return ImageMount(f"ext at {self.offset} of {self.path}")

    def mount(self, lower: str) -> int:
        """Return a detached mount with the directories ``upper`` and ``work``, as a file descriptor.

        Args:
            lower: a path to the root directory of the image, of which a new upper layer gets the attributes.

        Raises:
            BundleError: another container uses the file.
            UnsupportedError: no loop device is available.
            OSError: it cannot be opened or mounted.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _lock(fd, self.path)
            with loop_device(fd, self.offset, self.size, writable=True) as device:
                mount = create_mount("ext4", device, [], NOSUID | NODEV, self.path)
        finally:
            os.close(fd)
        try:
            make_directories(f"/proc/self/fd/{mount}", lower)
        except BaseException:
            os.close(mount)
            raise
        return mount


def _lock(fd: int, path: str, *, shared: bool = False) -> None:
    deadline, kind = time.monotonic() + _PATIENCE, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            flock(fd, kind | fcntl.LOCK_NB, path)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BundleError(f"overlay {path}: another container uses it; end that container, or give another file") from None
            time.sleep(0.01)
        else:
            return


class ReadOnlyImage:
    """A filesystem in a file that is a read-only layer of containers. It is mounted when it is used first, at no place.

    Root mounts it by the kernel, users by FUSE.

    Args:
        path: the file.
        offset, size, kind: the part of it, and its format, as in `Filesystem`.
        privileged: whether this user mounts filesystems on the host.
    """

    def __init__(self, path: str, offset: int, size: int, kind: str, *, privileged: bool) -> None:
        self._path, self._offset, self._size, self._kind, self._privileged = path, offset, size, kind, privileged
        self._part: ImagePart | None = None
        self._mount: SharedMount | ServedMount | None = None

    @property
    def layer(self) -> ImageMount:
        """The mount in plans."""
        return ImageMount(f"{self._kind} at {self._offset} of {self._path}", self._directory)

    @property
    def _directory(self) -> str:
        return "upper" if self._kind == "ext" else ""

    @property
    def path(self) -> str:
        """A path to the files, for this process. Raises as `mount`."""
        return f"{self._mounted().path}/{self._directory}".rstrip("/")

    def mount(self) -> int:
        """Return a detached mount for one container, as a file descriptor.

        Raises:
            BundleError: a container writes to the file, or has written to it since its first use; or it has no layer.
            UnsupportedError: it cannot be mounted, or used by this user.
            OSError: the kernel cannot mount it.
        """
        return self._mounted().mount()

    def _mounted(self) -> SharedMount | ServedMount:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _lock(fd, self._path, shared=True)
            flock(fd, fcntl.LOCK_UN, self._path)
            opened = Filesystem(fd, self._path, self._offset, self._size, self._kind)
            part = ImagePart.of(opened)
            if self._part not in (None, part):
                raise BundleError(
                    f"overlay {self._path}{READ_ONLY}: the file has changed since it was used first; load the bundle again"
                )
            if self._mount is None:
                mount = shared_mount(opened) if self._privileged else ServedMount((part,), 0)
                self._check(mount.path)
                self._mount, self._part = mount, part
            return self._mount
        finally:
            os.close(fd)

    def _check(self, place: str) -> None:
        name = f"overlay {self._path}{READ_ONLY}"
        if self._directory and not os.path.isdir(f"{place}/{self._directory}"):
            raise BundleError(f"{name}: it has no directory 'upper', so no container has written to it")
        own, whose = ("trusted", "root") if self._privileged else ("user", "users")
        if has_foreign_opaque(f"{place}/{self._directory}".rstrip("/"), own):
            raise UnsupportedError(
                f"{name}: directories in it hide others by an attribute that overlays of {whose} do not see; "
                "make it by a container of the same user"
            )

    def __repr__(self) -> str:
        return f"<ReadOnlyImage {self.layer.source}>"


def file_states(choice: str) -> tuple[object, ...]:
    """Return what is the same for the files that a choice uses read-only as long as they have not been replaced or changed."""
    paths = [layer.removesuffix(READ_ONLY) for layer in choice.split(SEPARATOR) if layer.endswith(READ_ONLY)]
    return tuple(identity(os.stat(path)) for path in paths if os.path.isfile(path))


Lower: TypeAlias = str | SharedMount | ServedMount | ReadOnlyImage
"""A read-only layer: the absolute path of a directory, or a filesystem that is mounted at no place."""


class Upper(NamedTuple):
    """Where the writes of containers go, as `Layers` has it."""

    choice: str = ""
    image: ExtImage | None = None
    """The filesystem, if the writes go to a file."""
    lowers: tuple[str | ReadOnlyImage, ...] = ()
    """The layers of the choice that are used read-only, the uppermost first."""

    @property
    def own(self) -> str:
        """The layer for the writes, as `own_layer` returns it."""
        return own_layer(self.choice)

    @property
    def directory(self) -> str:
        """The directory that is kept, or an empty string."""
        return self.own if self.own.startswith("/") and self.image is None else ""

    @property
    def directories_below(self) -> tuple[str, ...]:
        """The directories that are used read-only."""
        paths = [layer.removesuffix(READ_ONLY) for layer in self.choice.split(SEPARATOR) if layer.endswith(READ_ONLY)]
        return tuple(path for path in paths if os.path.isdir(path))

    @property
    def private(self) -> bool:
        """Whether the upper layer is a directory that is made for one container."""
        return self.own in ("", NONE)

    def layer(self, place: str) -> str | ImageMount | Tmpfs:
        """Return the upper layer in a plan.

        Args:
            place: the directory that is made for the container.
        """
        if self.image is not None:
            return self.image.layer
        if self.own.startswith(_TMPFS):
            return Tmpfs(int(self.own.removeprefix(_SIZE)) if self.own != _TMPFS else 0)
        return self.directory or place


def find_upper(choice: str, *, privileged: bool) -> Upper:
    """Return the upper layer of a choice, and the read-only ones, which exist.

    Args:
        privileged: whether this user mounts filesystems on the host.

    Raises:
        BundleError: a path does not exist.
        ImageError: a file does not have one filesystem that can be used.
        UnsupportedError: this user cannot mount it.
    """
    below = [layer.removesuffix(READ_ONLY) for layer in choice.split(SEPARATOR) if layer.endswith(READ_ONLY)]
    lowers = tuple(_find_lower(path, privileged=privileged) for path in reversed(below))
    return Upper(choice, _find_image(own_layer(choice), privileged=privileged), lowers)


def _find_lower(path: str, *, privileged: bool) -> str | ReadOnlyImage:
    """Return a layer that is used read-only. A directory without ``upper`` is the layer itself."""
    name = f"overlay {path}{READ_ONLY}"
    if _is_directory(path, name, "give a directory, or a file with a filesystem"):
        return f"{path}/upper" if os.path.isdir(f"{path}/upper") else path
    offset, size, kind = _find_filesystem(path, name, filesystems.MOUNTERS)
    if not privileged and (missing := filesystems.Programs.find().no_fuse([kind])):
        raise UnsupportedError(f"{name}: {missing}; a directory can be used instead")
    return ReadOnlyImage(path, offset, size, kind, privileged=privileged)


def _find_image(own: str, *, privileged: bool) -> ExtImage | None:
    """Return the filesystem in the file for the writes; None if they do not go to a file."""
    name = f"overlay {own}"
    if not own.startswith("/") or _is_directory(own, name, "make a directory there, or a filesystem with mkfs.ext3"):
        return None
    if not privileged:
        raise UnsupportedError(
            f"{name}: only root can write to a filesystem in a file: the kernel takes no FUSE filesystem as an upper "
            f"layer, and fuse-overlayfs would refuse all ids but the user's own; give a directory, 'tmpfs', or FILE{READ_ONLY}"
        )
    offset, size, _ = _find_filesystem(own, name, ("ext",))
    return ExtImage(own, offset, size)


def _is_directory(path: str, name: str, remedy: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        raise BundleError(f"{name}: {os.strerror(error.errno or 0).lower()}; {remedy}") from None


def _find_filesystem(path: str, name: str, formats: Collection[str]) -> tuple[int, int, str]:
    """Return offset, size and format of the only filesystem in a file that can be a layer."""
    what = "an ext filesystem" if formats == ("ext",) else "a filesystem"
    try:
        image = open_image(path, check=False)
    except ImageError as error:
        raise ImageError(f"{name}: neither a directory nor a file with {what}: {error}") from error
    with image:
        layers = image.overlays if image.sif is not None else image.layers
        found = [layer for layer in layers if layer.format in formats]
        if len(found) == 1:
            return found[0].offset, found[0].size, str(found[0].format)
        count = "no" if not found else "more than one"
        use = f"{what.partition(' ')[2]} for {'an upper' if formats == ('ext',) else 'a'} layer"
        if not found and [layer for layer in layers if layer.format in filesystems.MOUNTERS]:
            raise ImageError(f"{name}: a {layers[0].filesystem} cannot be written to; give it read-only, as FILE{READ_ONLY}")
        remedy = "of mkfs.ext3" if formats == ("ext",) else "with a filesystem alone, or a SIF file with an overlay partition"
        raise ImageError(f"{name}: it has {count} {use}; give a directory, or a file {remedy}")


def check_unused(directory: str, is_used: Callable[[str], bool]) -> None:
    """Check that no container writes to a kept directory. Arguments as for `occupy`. Raises BundleError."""
    link = f"{directory}/{_CONTAINER}"
    user = os.readlink(link) if os.path.lexists(link) else ""
    if user and is_used(user):
        raise _in_use(directory, user)


def _in_use(directory: str, container: str) -> BundleError:
    return BundleError(f"overlay {directory}: container {os.path.basename(container)!r} uses it; end it, or give another directory")


def make_directories(place: str, lower: str) -> None:
    """Make the directories of an upper layer, if they do not exist, with the attributes of a lower one. Raises OSError."""
    for name in ("work", "upper"):
        try:
            os.mkdir(f"{place}/{name}", 0o700)
        except FileExistsError:
            continue
        if name == "upper":
            copy_attributes(f"{lower}/.", f"{place}/upper", privileged=os.geteuid() == 0)


def occupy(directory: str, container: str, is_used: Callable[[str], bool], lower: str) -> None:
    """Give a kept directory to a container, and make the directories of an upper layer in it.

    Args:
        container: the state directory of the container.
        is_used: whether the container of a state directory uses its root filesystem.
        lower: as for `make_directories`.

    Raises:
        BundleError: another container uses it, or it cannot be used.
    """
    link = f"{directory}/{_CONTAINER}"
    try:
        with LockFile(directory, os.O_RDONLY | os.O_DIRECTORY) as lock:
            lock.acquire()
            user = os.readlink(link) if os.path.lexists(link) else ""
            if user and user != container and is_used(user):
                raise _in_use(directory, user)
            make_directories(directory, lower)
            if user:
                os.unlink(link)
            os.symlink(container, link)
    except OSError as error:
        raise BundleError(f"overlay {directory}: {os.strerror(error.errno or 0).lower()}; give a directory of this user") from error


def leave(directory: str, container: str) -> None:
    """Note that a container no longer uses a kept directory. No effect if it did not. Raises StateError, OSError."""
    link = f"{directory}/{_CONTAINER}"
    if not directory.startswith("/") or os.path.normpath(directory) != directory:
        raise refusal(directory, "it is not an absolute path without '..'")
    try:
        if os.readlink(link) == container:
            os.unlink(link)
    except (FileNotFoundError, NotADirectoryError):
        return
