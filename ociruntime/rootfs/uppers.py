"""Upper layers: where the writes of a container go, as callers choose it, and who uses it at a time.

A choice is kept as text in one form: ``none``, ``tmpfs``, ``tmpfs:size=BYTES``, the absolute path of a directory or of a file,
``PATH:ro`` for a directory that is used read-only, below a directory of the container's own, or an empty string for the latter
alone, which is removed with the container. A directory or file that is kept belongs to one container at a time. In a directory a
symbolic link names the container. A file is locked by flock(2), through the open file of its loop device, so the lock ends with the
mount, however the container ends.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from ..arguments import parse_path, parse_size, shown
from ..engine.trees import copy_attributes
from ..engine.undo import refusal
from ..errors import BundleError, ImageError, UnsupportedError
from ..files import LockFile, absolute_path
from ..plan.rootfs import ImageMount, Tmpfs
from .mount import NODEV, NOSUID, create_mount, loop_device, open_image

NONE: Final = "none"
"""The choice of a read-only root filesystem. Mount points are made in an upper layer that is removed with the container."""
_TMPFS: Final = "tmpfs"
_SIZE: Final = f"{_TMPFS}:size="
_READ_ONLY: Final = ":ro"
_CONTAINER: Final = "container"
"""Name of the symbolic link from a kept directory to the state directory of the container that uses it."""
_PATIENCE: Final = 3.0
"""Seconds for the kernel to unmount the file of a container that has just ended."""


def parse_overlay(value: object, name: str = "overlay") -> str:
    """Return a caller's choice of an upper layer in its one form; an empty string for None.

    Raises:
        TypeError, ValueError: it is not a choice; the message begins with the name of the argument.
    """
    if value is None:
        return ""
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
    suffix = _READ_ONLY if text.endswith(_READ_ONLY) else ""
    path = absolute_path(parse_path(name, text.removesuffix(_READ_ONLY)))
    if path.endswith(_READ_ONLY):
        raise ValueError(f"{name} is {shown(value)}: a path that ends with {_READ_ONLY!r} cannot be used; rename it")
    return path + suffix


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


def _lock(fd: int, path: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise BundleError(f"overlay {path}: another container uses it; end that container, or give another file") from None
            time.sleep(0.01)
        else:
            return


class Upper(NamedTuple):
    """Where the writes of containers go, as `Layers` has it."""

    choice: str = ""
    image: ExtImage | None = None
    """The filesystem, if the choice is a file."""

    @property
    def directory(self) -> str:
        """The directory that is kept, or an empty string."""
        return self.choice if self.choice.startswith("/") and not self.below and self.image is None else ""

    @property
    def below(self) -> str:
        """The kept directory that is used read-only, or an empty string. Its ``upper`` is the uppermost lower layer."""
        return self.choice.removesuffix(_READ_ONLY) if self.choice.endswith(_READ_ONLY) else ""

    @property
    def private(self) -> bool:
        """Whether the upper layer is a directory that is made for one container."""
        return self.choice in ("", NONE) or bool(self.below)

    def layer(self, place: str) -> str | ImageMount | Tmpfs:
        """Return the upper layer in a plan.

        Args:
            place: the directory that is made for the container.
        """
        if self.image is not None:
            return self.image.layer
        if self.choice.startswith(_TMPFS):
            return Tmpfs(int(self.choice.removeprefix(_SIZE)) if self.choice != _TMPFS else 0)
        return self.directory or place


def find_upper(choice: str, *, privileged: bool) -> Upper:
    """Return the upper layer of a choice, which exists.

    Args:
        privileged: whether this user mounts filesystems on the host.

    Raises:
        BundleError: the path does not exist.
        ImageError: the file is not an ext filesystem, and has none as an overlay.
        UnsupportedError: this user cannot mount it.
    """
    if below := Upper(choice).below:
        _check_below(below)
        return Upper(choice)
    if not choice.startswith("/"):
        return Upper(choice)
    try:
        mode = os.stat(choice).st_mode
    except OSError as error:
        raise BundleError(
            f"overlay {choice}: {os.strerror(error.errno or 0).lower()}; make a directory there, or a filesystem with mkfs.ext3"
        ) from None
    if stat.S_ISDIR(mode):
        return Upper(choice)
    if not privileged:
        raise UnsupportedError(
            f"overlay {choice}: only root can write to a filesystem in a file: the kernel takes no FUSE filesystem as an upper "
            "layer, and fuse-overlayfs would refuse all ids but the user's own; give a directory, or 'tmpfs'"
        )
    try:
        image = open_image(choice, check=False)
    except ImageError as error:
        raise ImageError(f"overlay {choice}: neither a directory nor a file with an ext filesystem: {error}") from error
    with image:
        found = [
            layer for layer in (image.overlays if image.sif is not None else image.layers) if layer.filesystem.startswith("ext")
        ]
        if len(found) != 1:
            what = "no" if not found else "more than one"
            raise ImageError(
                f"overlay {choice}: it has {what} ext filesystem for an upper layer; give a directory, or a file of mkfs.ext3"
            )
        return Upper(choice, ExtImage(choice, found[0].offset, found[0].size))


def _check_below(directory: str) -> None:
    """Check that a directory has an upper layer that can be used read-only. Raises BundleError, UnsupportedError."""
    if os.path.isfile(directory):
        raise UnsupportedError(f"overlay {directory}:ro: only a directory can be used read-only; omit ':ro', or give a directory")
    if not os.path.isdir(f"{directory}/upper"):
        raise BundleError(f"overlay {directory}:ro: it has no directory 'upper', so no container has written to it")


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
    """Note that a container does not use a kept directory any more. No effect if it did not. Raises StateError, OSError."""
    link = f"{directory}/{_CONTAINER}"
    if not directory.startswith("/") or os.path.normpath(directory) != directory:
        raise refusal(directory, "it is not an absolute path without '..'")
    try:
        if os.readlink(link) == container:
            os.unlink(link)
    except (FileNotFoundError, NotADirectoryError):
        return
