"""Bundles whose root filesystem was mounted from an image: their records, and how they are removed.

A bundle counts as mounted only if it has a record. Records are kept in a directory of the user with mode 0700, and not in the
bundle, so nothing in a bundle or an image can imitate one. A record belongs to one directory, by device, inode and time of birth:
it follows a bundle that is renamed, and does not apply to another directory that takes its place. While a bundle is mounted or
unmounted, its record is called ``*.partial`` and its directory is locked; a crash leaves a partial record without the lock. A
record is a symbolic link, which is created atomically. Its target is the time of birth, the origin of the lower layers (see
`ociruntime.rootfs.layers`), and the path.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from .._native import check, lib
from ..engine.filesystems import is_fuse
from ..engine.trees import remove_tree
from ..errors import BundleError, StateError, UnsupportedError
from ..files import LockFile, MountInfo, read_mounts
from ..interrupts import DeferredSignals
from ..store import check_directory, default_root, make_directory
from .layers import LAYERS, Layers, digest_of, layers_of, prune_images, release
from .mount import attach, clone_mount, mounts_below, mounts_on, unmount, unmount_found

LAYER_TYPES: Final = ("squashfs", "ext4", "erofs")
"""Types of the mounts of layers by root. Those by FUSE have a common beginning."""
_MADE: Final = ("overlay", "volumes", LAYERS)
_PARTIAL: Final = ".partial"
_PATIENCE: Final = 3.0
"""Seconds for programs to leave the filesystems that they use, and to end."""


class BundleBusy(BundleError):
    """Another process mounts or unmounts the bundle."""


class BundleDirectory:
    """A bundle's directory, held open and locked. Use `locked`."""

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        """The path that the caller gave."""
        self.fd = fd

    @property
    def real(self) -> str:
        """The path that the kernel resolves it to, as in mount tables."""
        return os.readlink(f"/proc/self/fd/{self.fd}")

    @property
    def rootfs(self) -> str:
        return f"{self.real}/rootfs"

    def at(self, name: str) -> str:
        """Return a path to an entry of the directory, which stays valid if the directory is renamed."""
        return f"/proc/self/fd/{self.fd}/{name}"

    # ---- the record ----

    def _records(self) -> tuple[str, str]:
        """Return the paths of the complete and the partial record. Raises StateError."""
        found = os.fstat(self.fd)
        path = f"{_directory()}/{found.st_dev:x}-{found.st_ino:x}"
        return path, path + _PARTIAL

    def _birth(self) -> int:
        return int(check(lib.oci_birth(self.fd), self.path))

    def record(self) -> str | None:
        """Return the path of the record of the directory; None if it has none. Raises StateError."""
        try:
            paths = self._records()
        except StateError:
            return None  # this user has no directory for records
        if not _check_records():
            return None
        birth = self._birth()
        for path in paths:
            if (known := _read(path)) is not None and known.birth == birth and (birth or self.mounts()):
                # Without a time of birth, the inode may be that of another directory now, but not while the bundle is mounted.
                return path
        return None

    def begin(self, origin: str = "") -> None:
        """Write the partial record, before anything is created or removed. Raises StateError, OSError.

        Args:
            origin: the origin of the lower layer, if that is known.
        """
        _make_directory()
        self._write(self._records()[1], origin)

    def commit(self, layers: Layers) -> None:
        """Make the record complete. Raises OSError: it cannot be written."""
        complete, partial = self._records()
        self._write(complete, layers.origin)
        os.unlink(partial)  # if this process is killed before, `record` finds the complete one first

    def _write(self, record: str, origin: str) -> None:
        _forget(record)  # of a directory that had the same inode
        try:
            os.symlink(f"{self._birth()}{f':{origin}' if origin else ''} {self.real}", record)  # atomic
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise BundleError(f"{self.path}: the path is too long; choose a shorter one") from error

    def layers(self) -> Layers | None:
        """Return the layers of the bundle; None if it has no complete record."""
        path = self.record()
        known = _read(path) if path else None
        return layers_of(self.real, known.origin) if known is not None and known.origin else None

    # ---- mounts ----

    def mounts(self) -> list[MountInfo]:
        """Return the mounts of the image: those of several layers, and those on the root filesystem, the topmost last."""
        below = mounts_below(self.real)
        return [mount for mount in below if self._is_layer(mount)] + [mount for mount in below if mount.point == self.rootfs]

    def _is_layer(self, mount: MountInfo) -> bool:
        place, _, number = mount.point.rpartition("/")
        return place == f"{self.real}/{LAYERS}" and number.isdigit()

    def foreign_mount(self) -> str:
        """Return a mount in the bundle that does not belong to it, as text; empty if there is none."""
        for mount in mounts_below(self.real):
            if mount.point != self.rootfs and not (self._is_layer(mount) and _is_of_layer(mount)):
                return f"{mount.fstype} on {mount.point}"
        stack = mounts_on(self.rootfs)
        known = stack[1:] if stack and _is_of_layer(stack[0]) else stack
        return "" if [mount.fstype for mount in known] in ([], ["overlay"]) else f"{known[-1].fstype} on {self.rootfs}"

    def unmount(self, *, detach: bool = False) -> None:
        """Unmount the image. Nothing is deleted. Raises OSError.

        Args:
            detach: unmount it even if it is in use.
        """
        deadline = 0.0
        for mount in reversed(self.mounts()):
            path = self.at(os.path.relpath(mount.point, self.real))
            while True:
                try:
                    unmount_found(mount, path, detach=detach)
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
            if is_fuse(mount.fstype) and mount.point == self.rootfs:  # fuse-overlayfs leaves the layers a moment later
                deadline = time.monotonic() + _PATIENCE

    @contextmanager
    def top_unmounted(self) -> Iterator[None]:
        """Unmount the topmost layer for the block, to see which processes still use it. It is mounted again if the block raises.

        Until the end of the block the filesystems exist, so that no other ones get their device numbers. Raises OSError.
        """
        if not mounts_on(self.rootfs):
            yield
            return
        with clone_mount(self.at("rootfs")) as copy:
            unmount(self.at("rootfs"))
            try:
                yield
            except BaseException:
                attach(copy, self.at("rootfs"))
                raise

    # ---- removal ----

    def take_back(self, mode: int | None) -> None:
        """Unmount and remove a bundle whose creation failed. Processes that have files of it open keep them.

        Args:
            mode: permissions that the directory had before, which is kept; None if it did not exist, and is removed.

        Raises:
            BundleError, OSError: something cannot be removed.
        """
        self.unmount(detach=True)
        self.remove(keep=mode is not None)
        if mode is not None:
            os.fchmod(self.fd, mode)

    def remove(self, *, keep: bool = False) -> None:
        """Remove the content of the bundle, and its record.

        Args:
            keep: keep the directory itself. It is kept in any case if it has other entries or is a mount point.

        Raises:
            BundleError: something is mounted in it, and nothing is removed; or a file cannot be removed.
        """
        deadline = time.monotonic() + _PATIENCE
        self._check_unmounted(deadline)
        complete, partial = self._records()
        layers = self.layers()
        if self.record() == complete:
            self.begin(layers.origin if layers else "")  # with the current path
            os.unlink(complete)
        while not self._remove_mount_points():
            self._check_unmounted(deadline)
        for name in _MADE:
            remove_tree(f"{self.path}/{name}", parent=self.fd)
        for name in os.listdir(self.fd):
            if name == "config.json" or name.startswith(".config.json."):  # one that a crash left while it was written
                os.unlink(name, dir_fd=self.fd)
        if layers is not None:
            release(layers.origin, self.real)
        if not (keep or os.listdir(self.fd) or os.path.ismount(self.real)):
            os.rmdir(self.real)
        _forget(partial)

    def _check_unmounted(self, deadline: float) -> None:
        """Unmount what a program has mounted after its caller was killed. Raises BundleError: something else is mounted."""
        while mounts := mounts_below(self.real):
            if self.foreign_mount() or time.monotonic() > deadline:
                raise BundleError(
                    f"{self.path} cannot be removed: {mounts[-1].fstype} is mounted on {mounts[-1].point}; unmount it first"
                )
            self.unmount()

    def _remove_mount_points(self) -> bool:
        """Remove the mount points, on which nothing can be mounted from then on. Return False if something is mounted on one."""
        layers = os.listdir(self.at(LAYERS)) if os.path.isdir(self.at(LAYERS)) else ()
        for name in (*(f"{LAYERS}/{number}" for number in layers), "rootfs"):
            try:
                os.rmdir(name, dir_fd=self.fd)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                if name == "rootfs":
                    raise
                # Another file in the directory of the layers, which is removed with it.
        return True


def _is_of_layer(mount: MountInfo) -> bool:
    return mount.fstype in LAYER_TYPES or is_fuse(mount.fstype)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[BundleDirectory]:
    """Open and lock the directory of a bundle that is mounted or unmounted, for the block.

    Raises:
        BundleError: it is not a directory, or another process mounts or unmounts it.
        OSError: it cannot be opened.
    """
    with _lock(os.fspath(path), shared=False) as fd:
        yield BundleDirectory(fd, os.fspath(path))


@contextmanager
def in_use(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep a bundle from being mounted or unmounted, for the block. Raises as `locked`."""
    with _lock(os.fspath(path), shared=True):
        yield


@contextmanager
def _lock(path: str, *, shared: bool) -> Iterator[int]:
    try:
        lock = LockFile(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} is not a bundle: {error.strerror}") from None
    with lock:
        try:
            lock.acquire(shared=shared, wait=False)
        except BlockingIOError:
            what = "" if shared else ", or a container of it is being created"
            raise BundleBusy(
                f"{path} is being mounted or unmounted by another process{what}; try again when it has finished"
            ) from None
        yield lock.fd


def bundle_layers(path: str | os.PathLike[str]) -> Layers | None:
    """Return the layers of a mounted bundle; None for any other directory.

    Records that another user can change are ignored without an error: a bundle that was not mounted needs none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return BundleDirectory(fd, os.fspath(path)).layers()
    except StateError:
        return None
    finally:
        os.close(fd)


def used_images() -> set[str]:
    """Return the digests of the extracted images that mounted bundles use. Raises StateError."""
    directory = _directory()
    records = [_read(f"{directory}/{name}") for name in (os.listdir(directory) if _check_records() else ())]
    return {digest_of(known.origin) for known in records if known is not None}


def is_mounted(path: str | os.PathLike[str]) -> bool:
    """Return whether a directory is a bundle that was mounted and has not been unmounted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return BundleDirectory(fd, os.fspath(path)).record() is not None
    finally:
        os.close(fd)


def prune_records() -> None:
    """Remove bundles that crashes left half mounted or unmounted, records of removed bundles, and extracted images without use.

    Raises:
        BundleError, UnsupportedError, OSError: the first error. The rest is removed in any case.
    """
    failure: Exception | None = None
    try:
        directory = _directory()
    except StateError:
        return
    for name in os.listdir(directory) if _check_records() else ():
        record = f"{directory}/{name}"
        try:
            with DeferredSignals():
                (_remove_partial if name.endswith(_PARTIAL) else _forget_removed)(record)
        except (BundleError, OSError) as error:
            failure = failure or error
    try:
        prune_images(used_images())
    except (UnsupportedError, OSError) as error:
        failure = failure or error
    if failure is not None:
        raise failure


def _remove_partial(record: str) -> None:
    known = _read(record)
    if known is None:
        return
    try:
        with locked(known.path) as directory:
            if directory.record() == record:
                directory.unmount()
                directory.remove()
    except BundleBusy:
        return
    except BundleError:
        if os.path.isdir(known.path):
            raise
        _forget(record)  # the directory was removed, before or meanwhile


def _forget_removed(record: str) -> None:
    """Remove the record of a bundle that was removed by other means, but not that of a mounted bundle that was renamed."""
    known = _read(record)
    if known is None or os.path.lexists(known.path):
        return
    device, inode = (int(number, 16) for number in os.path.basename(record).split("-"))
    for mount in read_mounts():
        parent = os.path.dirname(mount.point)
        try:
            found = os.stat(parent)
        except OSError:
            continue  # it belongs to another user, or was just unmounted
        if (found.st_dev, found.st_ino) == (device, inode):
            return
    _forget(record)


def _forget(record: str) -> None:
    try:
        os.unlink(record)
    except FileNotFoundError:
        return


class _Record(NamedTuple):
    """The content of a record."""

    birth: int
    path: str
    origin: str


def _read(record: str) -> _Record | None:
    """Return the content of a record; None if it does not exist."""
    try:
        facts, _, path = os.readlink(record).partition(" ")
    except FileNotFoundError:
        return None
    birth, _, origin = facts.partition(":")
    return _Record(int(birth), path, origin)


def _directory() -> str:
    return f"{default_root()}/.bundles"


def _make_directory() -> None:
    """Create the directory of records. Raises StateError: another user can write to it."""
    path = _directory()
    make_directory(os.path.dirname(path))
    make_directory(path, link=False)


def _check_records() -> bool:
    """Return whether there is a directory of records. Raises StateError: another user can write to it."""
    path = _directory()
    try:
        check_directory(os.path.dirname(path))
        check_directory(path, link=False)
    except FileNotFoundError:
        return False
    return True
