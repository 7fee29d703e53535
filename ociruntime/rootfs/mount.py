"""Mounting the rootfs of a bundle on the host: filesystems in a part of a file through loop devices (loop(4)), and
overlays.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary, finalize

from .._native import check, ffi, lib
from ..engine import filesystems
from ..engine.filesystems import Filesystem
from ..engine.trees import copy_attributes, copy_tree, remove_tree
from ..engine.undo import refusal
from ..errors import BundleError, ImageError, UnsupportedError
from ..files import MountInfo, ProcessLock, other_writers, read_mounts
from ..host import Host, runs_programs_of
from ..image import sif
from ..plan.rootfs import WHOLE_FILES, ImageMount
from ..spec.base import destination_in_root

if TYPE_CHECKING:
    from ..image import Image
    from .users import ContainerRoot

NOSUID: Final = 2
NODEV: Final = 4
RDONLY: Final = 1
_SET_FLAG: Final = 0
_SET_STRING: Final = 1
_SET_FD: Final = 5
_CREATE: Final = 6
_F_EMPTY_PATH: Final = 4
_OPEN_TREE_CLONE: Final = 1
_AT_FDCWD: Final = -100
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


Options = Iterable[tuple[str, str | int | None]]


def mount(fstype: str, source: str, target: str | os.PathLike[str], options: Options, attrs: int) -> None:
    """Mount a filesystem on a directory. Arguments and errors are those of `create_mount`."""
    detached = create_mount(fstype, source, options, attrs, target)
    try:
        attach(detached, target)
    finally:
        os.close(detached)


def create_mount(fstype: str, source: str, options: Options, attrs: int, name: str | os.PathLike[str]) -> int:
    """Create a detached mount, and return its descriptor.

    Args:
        fstype: the type of the filesystem.
        source: the device, for example.
        options: options with their values: at most 255 bytes, a file descriptor, or None for a flag.
        attrs: mount attributes, such as `NOSUID`.
        name: the file that an error names.

    Raises:
        OSError: the kernel refuses it; with its message if it has one.
    """
    fs = check(lib.oci_fsopen(fstype.encode()), fstype)
    try:
        for key, value in (("source", source), *options):
            command = _SET_FLAG if value is None else _SET_FD if isinstance(value, int) else _SET_STRING
            text, fd = (os.fsencode(value), 0) if isinstance(value, str) else (ffi.NULL, value or 0)
            _check_fs(fs, lib.oci_fsconfig(fs, command, key.encode(), text, fd), name)
        _check_fs(fs, lib.oci_fsconfig(fs, _CREATE, ffi.NULL, ffi.NULL, 0), name)
        return _check_fs(fs, lib.oci_fsmount(fs, attrs), name)
    finally:
        os.close(fs)


def _check_fs(fs: int, result: int, name: str | os.PathLike[str]) -> int:
    if result >= 0:
        return result
    try:
        message = os.read(fs, 512).decode("utf-8", "replace").strip()
    except OSError:
        message = ""  # the kernel has no message
    raise OSError(-result, f"{os.strerror(-result)}{f' [kernel: {message}]' if message else ''}", os.fspath(name))


def attach(mount: int, target: str | os.PathLike[str]) -> None:
    """Attach a detached mount, given its descriptor. Raises OSError."""
    check(lib.oci_move_mount(mount, b"", _AT_FDCWD, os.fsencode(target), _F_EMPTY_PATH), os.fspath(target))


@contextmanager
def clone_mount(target: str) -> Iterator[int]:
    """Create a detached copy of the topmost mount on a path, for the block; a descriptor. Raises OSError."""
    copy = check(lib.oci_open_tree(_AT_FDCWD, os.fsencode(target), _OPEN_TREE_CLONE | os.O_CLOEXEC), target)
    try:
        yield copy
    finally:
        os.close(copy)


def unmount(target: str | os.PathLike[str], *, detach: bool = False) -> None:
    """Unmount the topmost mount on a path. A symbolic link there is not followed.

    Args:
        detach: unmount it even if it is in use. Its users keep it until they release it.

    Raises:
        OSError: the kernel refuses.
    """
    check(lib.oci_umount(os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)), os.fspath(target))


def unmount_found(found: MountInfo, path: str, *, detach: bool = False) -> None:
    """Unmount a mount of a bundle. Raises OSError.

    Args:
        path: a path to the mount point that stays valid if directories above it are renamed.
        detach: as for `unmount`.
    """
    if filesystems.is_fuse(found.fstype):
        filesystems.unmount(found.point, detach=detach)
    else:
        unmount(path, detach=detach)


def mounts_on(target: str) -> list[MountInfo]:
    """Return the mounts on a path that the kernel has resolved, the topmost last."""
    return [mount for mount in read_mounts() if mount.point == target]


def mounts_below(path: str) -> list[MountInfo]:
    """Return the mounts below a directory that the kernel has resolved, in the order of mounting."""
    return [mount for mount in read_mounts() if mount.point.startswith(path.rstrip("/") + "/")]


_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CLR_FD: Final = 0x4C01
_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_BLKRASET: Final = 0x1262
_BLOCK_SIZE: Final = 512
_READ_AHEAD: Final = 256
"""Blocks to read ahead: the default of the kernel, 128 KiB. Some hosts set megabytes. Then a container with a smaller memory limit
would evict each page before it is used, and never stop reading."""


@contextmanager
def loop_device(image: int, offset: int, size: int, *, writable: bool = False) -> Iterator[str]:
    """Set up a loop device over a part of an open file, and return its path, for the block.

    The device is removed with its last user: mount it inside the block, and the mount keeps it.

    Args:
        writable: whether the file, which is open for writing, can be written to.

    Raises:
        UnsupportedError: no loop device is available.
        OSError: the kernel refuses it.
    """
    path, fd = _configure(image, offset, size, writable=writable)
    try:
        yield path
    finally:
        os.close(fd)  # autoclear: a mount keeps it, if there is one


def _configure(image: int, offset: int, size: int, *, writable: bool) -> tuple[str, int]:
    # struct loop_config: fd, block_size, struct loop_info64, reserved
    flags = _AUTOCLEAR if writable else _READ_ONLY | _AUTOCLEAR
    info = struct.pack("=QQQQQIIII64s64s32s16x", 0, 0, 0, offset, size, 0, 0, 0, flags, b"ociruntime", b"", b"")
    config = struct.pack("=II", image, _BLOCK_SIZE) + info + bytes(64)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnsupportedError("this host has no loop devices (/dev/loop-control is missing)") from None
    try:
        for _ in range(64):  # another process may take the free one first
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
                fcntl.ioctl(fd, _BLKRASET, _READ_AHEAD)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return path, fd
    finally:
        os.close(control)
    raise UnsupportedError("no loop device: other processes took each free one first; try again")


_PREFIX: Final = "ociruntime-"
"""Prefix of the name of an ephemeral bundle or upper layer, which exists for one container."""


def ephemeral_name() -> str:
    """Return a new name for an ephemeral bundle or upper layer."""
    return f"{_PREFIX}{os.urandom(8).hex()}"


def remove_ephemeral(path: str) -> None:
    """Unmount and remove an ephemeral bundle or upper layer. No effect if it does not exist.

    Raises:
        StateError: the directory is not an ephemeral one; nothing is removed.
        BundleError: a mount is in use, and nothing is removed; or a file cannot be removed.
    """
    if not os.path.basename(path).startswith(_PREFIX):
        raise refusal(path, f"the name of an ephemeral bundle begins with {_PREFIX!r}")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise refusal(path, "it is not a directory") from None
    try:
        if why := other_writers(os.fstat(fd)):
            raise refusal(path, why)
        real = os.readlink(f"/proc/self/fd/{fd}")  # as in mount tables
    finally:
        os.close(fd)
    # An upper layer has no mounts, and the mount table may be long.
    for found in reversed(mounts_below(real) if os.path.lexists(f"{real}/rootfs") else ()):
        try:
            unmount_found(found, found.point)
        except OSError as error:
            raise BundleError(f"{found.point} cannot be unmounted: {error.strerror}") from error
    remove_tree(real)


_LAYERS_BY_FD: Final = (6, 13)
"""The first kernel whose overlays take descriptors of layers. Before, and for paths of any length, they take paths of procfs."""
_LONGEST_DATA: Final = 4095
"""Bytes of the options of mount(2)."""


def mount_overlay(lowers: Sequence[Path], rootfs: Path, overlay: Path | None) -> None:
    """Mount an overlay over directories.

    Args:
        lowers: the directories, the uppermost first. The root of the overlay has the owner, permissions, extended attributes and
            times of the uppermost.
        rootfs: the mount point.
        overlay: a directory that is made for what is written; None for a read-only overlay, which needs two directories.

    Raises:
        UnsupportedError: these are more directories than the kernel takes.
        OSError: the kernel refuses it.
    """
    with ExitStack() as stack:

        def opened(path: Path) -> int:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        lower, upper = [opened(path) for path in lowers], []
        if overlay is not None:
            for directory in (overlay, overlay / "upper", overlay / "work"):
                directory.mkdir(mode=0o700)
            copy_attributes(f"{lowers[0]}/.", str(overlay / "upper"))
            upper = [("upperdir", opened(overlay / "upper")), ("workdir", opened(overlay / "work"))]
        if Host.probe().kernel >= _LAYERS_BY_FD:
            mount("overlay", "overlay", rootfs, [*(("lowerdir+", fd) for fd in lower), *upper, *WHOLE_FILES], NOSUID | NODEV)
            return
        options = [
            f"lowerdir={':'.join(f'/proc/self/fd/{fd}' for fd in lower)}",
            *(f"{key}=/proc/self/fd/{fd}" for key, fd in upper),
            *(f"{key}={value}" for key, value in WHOLE_FILES),
        ]
        data = ",".join(options)
        if len(data) > _LONGEST_DATA:
            raise UnsupportedError(f"the image has {len(lowers)} layers, which are too many for a kernel before Linux 6.13")
        target = f"/proc/self/fd/{opened(rootfs)}"
        check(lib.oci_mount(b"overlay", target.encode(), NOSUID | NODEV, data.encode()), os.fspath(rootfs))


def open_image(
    path: str | os.PathLike[str],
    *,
    reference: str | None = None,
    platform: str | None = None,
    overlay: str = "",
    check: bool = True,
) -> Image:
    """Open an image that can become a root filesystem on this machine.

    Args:
        reference, platform: as for `Image.open`.
        overlay: the choice of an upper layer, which may be in the image itself.
        check: whether it must be able to become a root filesystem.

    Raises:
        ImageError: it is damaged, or not an image.
        BundleError: it is a bundle.
        UnsupportedError: it cannot be mounted yet, or this machine does not run its programs.
    """
    from ..image import Image  # the models of OCI images take time, and a bundle does not need them

    image = Image.open(path, reference=reference, platform=platform)
    try:
        if check:
            check_image(image, own_overlay=is_same_file(path, overlay))
    except BaseException:
        image.close()
        raise
    return image


READ_ONLY: Final = ":ro"
"""End of the path of a layer that is used read-only, in the choice of an upper layer."""
SEPARATOR: Final = "\0"
"""Between the layers of such a choice."""


def is_same_file(path: str | os.PathLike[str], overlay: str) -> bool:
    """Return whether a layer of the choice of an upper layer is in the file of the image itself."""
    files = [layer.removesuffix(READ_ONLY) for layer in overlay.split(SEPARATOR) if layer.startswith("/")]
    return any(os.path.exists(file) and os.path.samefile(path, file) for file in files)


def check_image(image: Image, *, own_overlay: bool = False) -> None:
    """Check that an image can become a root filesystem on this machine. Raises ImageError, UnsupportedError.

    Args:
        own_overlay: whether the writable layer in the image is used.
    """
    if not image.layers:
        raise ImageError(f"{image.name}: no part of the image is a root filesystem")
    for layer in image.layers:
        if not (layer.format.is_filesystem or layer.format.is_archive or layer.format == "directory"):
            raise UnsupportedError(f"{image.name}: the root filesystem is of the format {layer.format}, which cannot be used")
    if not own_overlay:
        _check_overlays(image)
    _check_architecture(image)


def _check_overlays(image: Image) -> None:
    if image.overlays:
        raise UnsupportedError(
            f"{image.name}: the image has a writable layer, whose files would be missing: use it with overlay={image.name!r} "
            "(only root), or use an image without one"
        )


def _check_architecture(image: Image) -> None:
    try:
        machine = sif.Architecture.host().oci_name
    except ValueError:
        machine = os.uname().machine
    if image.architecture and not runs_programs_of(image.architecture, machine):
        raise UnsupportedError(
            f"{image.name} is an image for {image.architecture}, and this machine is {machine}: use an image for {machine}, "
            f"or register an emulator of {image.architecture} in binfmt_misc (Debian: qemu-user-static)"
        )


_KERNEL: Final[dict[str, tuple[str, tuple[tuple[str, str | None], ...]]]] = {
    "squashfs": ("squashfs", ()),
    "ext": ("ext4", (("noload", None), ("errors", "continue"))),
    "erofs": ("erofs", ()),
}
"""Type and options of each format. The journal of an image is not replayed, and what it says of errors does not count."""


_DAMAGE: Final = (errno.EINVAL, errno.EUCLEAN, errno.EOVERFLOW)
"""What the kernel answers for a filesystem that it cannot read."""


def mount_filesystem(part: Filesystem, target: str | os.PathLike[str]) -> None:
    """Mount a filesystem in a file by the kernel, read-only.

    Raises:
        ImageError: the filesystem is damaged.
        UnsupportedError: no loop device is available.
        OSError: the kernel refuses it; nothing stays mounted.
    """
    with loop_device(part.fd, part.offset, part.size) as device:
        detached = create_from_device(device, part.format, part.path)
        try:
            attach(detached, target)
        finally:
            os.close(detached)


def create_from_device(device: str, kind: str, name: str) -> int:
    """Create a detached read-only mount of a filesystem, and return its descriptor.

    Args:
        device: the block device.
        kind: its format, as in `Filesystem`.
        name: the file that an error names.

    Raises:
        ImageError: the filesystem is damaged.
        OSError: the kernel refuses it.
    """
    fstype, options = _KERNEL[kind]
    try:
        return create_mount(fstype, device, [("ro", None), *options], RDONLY | NOSUID | NODEV, name)
    except OSError as error:
        if error.errno not in _DAMAGE:
            raise
        raise ImageError(
            f"{name}: cannot be mounted by the kernel, {error.strerror}: it is damaged, or has a feature that this kernel lacks"
        ) from error


def make_volume(root: ContainerRoot, destination: str, path: Path, *, privileged: bool) -> None:
    """Make the directory of an image's volume, with what the image has at its destination, as engines do.

    Args:
        root: the root filesystem of the image.
        destination: the path in the container. If the image has nothing there, the volume is empty and belongs to root.
        path: the directory to make.
        privileged: whether to copy owners, devices and all attributes, which only root can.

    Raises:
        BundleError: the destination cannot be a volume, or what is there cannot be copied.
    """
    inside, name = destination_in_root(destination), f"the image's volume {destination!r:.200}"
    if inside == "/":
        raise BundleError(f"{name}: a volume cannot cover the whole root filesystem")
    with ExitStack() as stack:
        try:
            sources = stack.enter_context(root.opened_directory(inside))
        except FileNotFoundError:
            path.mkdir()
            path.chmod(0o755)
            return
        except OSError as error:
            raise BundleError(f"{name} cannot be made: what the image has there: {error.strerror}") from error
        try:
            copy_tree(sources, str(path), name, privileged=privileged)
        except OSError as error:
            raise BundleError(f"{name} cannot be copied: {error.strerror}") from error


_MOST_DIRECTORIES: Final = 1_000_000


def has_foreign_opaque(place: str, own: str) -> bool:
    """Return whether a directory of a layer hides those below by an attribute that the overlay does not see.

    Args:
        place: where the layer is mounted. squashfuse shows attributes of other classes than ``user`` under wrong names.
        own: the class of attributes that the overlay sees, ``trusted`` or ``user``.

    Raises:
        ImageError: there are too many directories.
        OSError: they cannot be read.
    """
    pending, count = [f"{place}/."], 0
    while pending:
        path = pending.pop()
        count += 1
        if count > _MOST_DIRECTORIES:
            raise ImageError(f"the image has more than {_MOST_DIRECTORIES} directories")
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise
            return False  # a filesystem without attributes
        if any(name.endswith(".overlay.opaque") and name != f"{own}.overlay.opaque" for name in names):
            return True
        with os.scandir(path) as entries:
            pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return False


# ---- detached mounts of images, which all containers of a process share ----

Identity = tuple[int, ...]


class SharedMount:
    """A filesystem in an image that is mounted, but not at a path. It is unmounted when nothing refers to the object.

    Only this process has it, by a file descriptor, and it ends with the process. While it is open, the kernel keeps the superblock
    and the page cache of the image. A container gets another mount of the same superblock, which reads nothing. The loop device
    is released with the last mount. A forked child has a mount of its own.

    Args:
        device: the loop device.
        kind: the format, as in `Filesystem`.
        name: the file that errors name.
        layer: the mount in plans.
        point: the mount point of the image, if it is mounted elsewhere.

    Raises:
        OSError: the kernel cannot mount the image; with its message.
    """

    def __init__(self, device: str, kind: str, name: str, layer: ImageMount, point: str = "") -> None:
        self._device, self._kind, self._name = device, kind, name
        self.point = point
        self.layer = layer
        self._mount = self.mount()
        # Not __del__: while it runs, another thread can still get the object from the weak dictionary.
        finalize(self, os.close, self._mount).atexit = False

    @classmethod
    def of_image(cls, image: Filesystem) -> SharedMount:
        """Mount a filesystem in an image. Raises UnsupportedError, OSError: it cannot be mounted."""
        with loop_device(image.fd, image.offset, image.size) as device:
            return cls(device, image.format, image.path, ImageMount(f"{image.format} at {image.offset} of {image.path}"))

    @classmethod
    def again(cls, mounted: MountInfo) -> SharedMount:
        """Mount the image of a loop device that is mounted elsewhere. Raises OSError."""
        kind = "ext" if mounted.fstype.startswith("ext") else mounted.fstype
        device, point = f"/dev/loop{mounted.device.partition(':')[2]}", mounted.point
        return cls(device, kind, point, ImageMount(f"{kind} on {point}"), point)

    @property
    def path(self) -> str:
        """A path to the root directory of the image, for this process."""
        return f"/proc/self/fd/{self._mount}"

    def mount(self) -> int:
        """Return a new detached mount for one container, as a file descriptor. Raises OSError."""
        return create_from_device(self._device, self._kind, self._name)

    def __repr__(self) -> str:
        return f"<SharedMount {self.layer.source}>"


_DELETED: Final = " (deleted)"
"""End of the path in procfs of a file that was removed."""


class ImagePart(NamedTuple):
    """A filesystem in a file, which can be found again."""

    path: str
    identity: Identity
    offset: int
    size: int
    format: str

    @classmethod
    def of(cls, image: Filesystem) -> ImagePart:
        """Return the part that is open."""
        path, info = os.readlink(f"/proc/self/fd/{image.fd}"), os.fstat(image.fd)
        return cls(path, identity(info)[:4], image.offset, image.size, image.format)

    def check(self) -> None:
        """Check that other processes can find it. Raises UnsupportedError: the file no longer has a path."""
        if not os.path.exists(self.path) or identity(os.stat(self.path))[:4] != self.identity:
            path = self.path.removesuffix(_DELETED)
            raise UnsupportedError(f"{path}: the file was replaced or removed after it was opened; open the image again")

    def open(self) -> Filesystem:
        """Open the file. Raises BundleError: another file has taken its place."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BundleError(f"{self.path}: the image can no longer be opened: {(error.strerror or '').lower()}") from error
        if identity(os.fstat(fd))[:4] != self.identity:
            os.close(fd)
            raise BundleError(f"{self.path}: the image has changed since it was mounted; umount the bundle, and mount it again")
        return Filesystem(fd, self.path, self.offset, self.size, self.format)


class ServedMount:
    """A filesystem of an image that its program serves by FUSE, at no place of the host. See `filesystems.Served`.

    All filesystems of an image are served together, as soon as one is used, and once in a process. If a program was killed, the
    next container has them served anew.
    """

    def __init__(self, parts: tuple[ImagePart, ...], number: int, served: filesystems.Served | None = None) -> None:
        part = parts[number]
        self._parts, self._number, self._served = parts, number, served
        self.layer = ImageMount(f"{part.format} at {part.offset} of {part.path}")

    def _serve(self) -> filesystems.Served:
        if self._served is None or not self._served.alive:
            self._served = served_image(self._parts)
        return self._served

    @property
    def path(self) -> str:
        """A path to the root directory of the filesystem, for this process. Raises as `served_image`."""
        return self._serve().path(self._number)

    def mount(self) -> int:
        """Return a detached mount for one container, as a file descriptor. Raises OSError, and as `served_image`."""
        return self._serve().copy(self._number)

    def __repr__(self) -> str:
        return f"<ServedMount {self.layer.source}>"


_served: Final[WeakValueDictionary[tuple[object, ...], filesystems.Served]] = WeakValueDictionary()
_serving: Final = ProcessLock()
"""Held while programs are started, by one thread at a time."""


def served_image(parts: tuple[ImagePart, ...], opened: Sequence[Filesystem] = ()) -> filesystems.Served:
    """Return filesystems that this process serves by FUSE, or begin to serve them.

    Args:
        opened: the filesystems, if they are open. Otherwise their files are opened again.

    Raises:
        BundleError: a file was changed.
        UnsupportedError, StepError: they cannot be mounted.
    """
    key = (os.getpid(), parts)
    with _serving, ExitStack() as stack:
        found = _served.get(key)
        if found is not None and found.alive:
            return found
        if not opened:
            opened = [part.open() for part in parts]
            for image in opened:
                stack.callback(os.close, image.fd)
        served = _served[key] = filesystems.Served(opened, filesystems.Programs.find())
        return served


def identity(file: os.stat_result) -> Identity:
    """Return what is the same for a file as long as it has not been replaced or changed."""
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns


_mounts: Final[WeakValueDictionary[Identity, SharedMount]] = WeakValueDictionary()


def shared_mount(image: Filesystem) -> SharedMount:
    """Return the mount of an image that this process has, or make it. Raises as `SharedMount.of_image`."""
    key = (*identity(os.fstat(image.fd)), image.offset, image.size)
    found = _mounts.get(key)
    return found if found is not None else _mounts.setdefault(key, SharedMount.of_image(image))
