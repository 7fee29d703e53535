"""Detached mounts of images, which all containers of a process share.

Such a mount belongs to no mount namespace: only this process has it, by a file descriptor, and it ends with it, however it ends.
While it is open, the kernel keeps the superblock and the page cache of the image. A container gets another mount of the same
superblock, which costs no reading.
"""

from __future__ import annotations

import os
from typing import Final
from weakref import WeakValueDictionary

from ..engine.filesystems import Filesystem
from ..plan.overlay import ImageMount
from .mount import create_from_device, loop_device

Identity = tuple[int, ...]


class SharedMount:
    """A filesystem in an image that is mounted, but at no place. It is unmounted when the object is not used any more.

    Its loop device is released then too. A forked child has a mount of its own with the same superblock.

    Raises:
        UnsupportedError: no loop device is available.
        OSError: the kernel cannot mount the image; with its message.
    """

    def __init__(self, image: Filesystem) -> None:
        self._mount = -1
        self._name, self._format = image.path, image.format
        self.layer = ImageMount(f"{image.format} at {image.offset} of {image.path}")
        """The mount in plans."""
        with loop_device(image.fd, image.offset, image.size) as device:
            self._device = device
            self._mount = self._create()

    @property
    def path(self) -> str:
        """A path to the root directory of the image, for this process."""
        return f"/proc/self/fd/{self._mount}"

    def mount(self) -> int:
        """Return a new detached mount for one container, as a file descriptor. Raises OSError."""
        return self._create()

    def _create(self) -> int:
        return create_from_device(self._device, self._format, self._name)

    def __del__(self) -> None:
        if self._mount >= 0:
            os.close(self._mount)

    def __repr__(self) -> str:
        return f"<SharedMount {self.layer.source}>"


def identity(file: os.stat_result) -> Identity:
    """Return what is the same for a file as long as it has not been replaced or changed."""
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns


_mounts: Final[WeakValueDictionary[Identity, SharedMount]] = WeakValueDictionary()


def shared_mount(image: Filesystem) -> SharedMount:
    """Return the mount of an image that this process has, or make it. Raises as `SharedMount`."""
    key = (*identity(os.fstat(image.fd)), image.offset, image.size)
    found = _mounts.get(key)
    return found if found is not None else _mounts.setdefault(key, SharedMount(image))
