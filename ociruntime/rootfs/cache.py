"""The cache of extracted images: where the layers of an image cannot be mounted, their files are extracted once, as one tree.

An image is addressed by the digests of its layers. It stays while a bundle uses it, and then as long as the
cache is not above its bound.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .._native import check, lib
from ..arguments import size_text
from ..engine.trees import remove_tree
from ..errors import ImageError, UnsupportedError
from ..files import LockFile, other_writers, outer_uid
from ..interrupts import check_deadline, time_left, waiting

if TYPE_CHECKING:
    from ..image import Image, Layer

_BOUND: Final = 16 << 30
"""Bytes of extracted images above which those that are not used are removed."""
_KEPT_BYTES: Final = 1 << 30
_KEPT_FILES: Final = 10_000
"""What an extraction leaves of the free space of its filesystem, but at most a tenth of what was free at its beginning."""
_MAX_KNOWN: Final = 1000
"""How many files have a digest that is kept."""
_CHUNK: Final = 1 << 20
_DIRECTORIES: Final = ("partial", "rootfs", "users")
"""What an image has beside its lock and links."""


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


class Cache:
    """Extracted images. ``DIGEST/rootfs`` has the files, and ``DIGEST/users`` a symbolic link to each bundle that uses them.

    ``DIGEST/lock`` is held while an image is extracted, removed or gets a user. ``known`` has the digests of files that were read
    before, by their identity.
    """

    def __init__(self) -> None:
        self._root = _cache_directory()

    def place(self, digest: str) -> str:
        """Return the directory of an image, which may not exist."""
        return f"{self._root}/{digest}"

    def add(self, digest: str, extract: Callable[[str], None], bundle: str, used: Container[str]) -> None:
        """Extract an image unless that was done before, and note that a bundle uses it.

        Args:
            digest: the digest of the image, from `digest_of`.
            extract: extracts it to a path that does not exist. A call that failed is repeated the next time.
            bundle: the directory of the bundle.
            used: the digests of extracted images that mounted bundles use.
        """
        with self._locked(digest):
            place = self.place(digest)
            partial = f"{place}/partial"
            remove_tree(partial)  # of a process that was killed
            if not os.path.isdir(extracted_files(place)):
                try:
                    with waiting():
                        extract(partial)
                    _replace_link(f"{place}/size", str(_size(partial)))
                    _sync(partial)  # what a crash of the machine leaves is not taken for the image
                    os.rename(partial, extracted_files(place))
                except BaseException:
                    remove_tree(partial)
                    raise
            os.makedirs(f"{place}/users", mode=0o700, exist_ok=True)
            self._live_users(digest)
            _replace_link(_reference(place, bundle), bundle)
            os.utime(f"{place}/users")
        self.prune(used, _BOUND)

    def digest_of(self, image: Image, *, privileged: bool) -> str:
        """Return the digest of an image as it is extracted: 64 hexadecimal digits.

        That of an OCI layer is the one in the image, which is compared with the content when it is extracted. Any other layer is
        read once.

        Args:
            privileged: whether the files keep their owners.

        Raises:
            UnsupportedError: another user can write to the cache.
        """
        self._make()
        with waiting():
            parts = [layer.diff_id or layer.digest or f"sha256:{self._digest(image, layer)}" for layer in image.layers]
        return hashlib.sha256("\n".join(["owners" if privileged else "", *parts]).encode()).hexdigest()

    def _make(self) -> None:
        os.makedirs(os.path.dirname(os.path.dirname(self._root)), mode=0o700, exist_ok=True)
        for path in (os.path.dirname(self._root), self._root):
            _make_private(path)

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
        if "known" in names:
            self._forget_oldest(f"{self._root}/known")

    def _forget_oldest(self, known: str) -> None:
        """Forget the digests of files except those that were read last, which another process may just be noting."""
        found = []
        for name in os.listdir(known):
            try:
                found.append((os.lstat(f"{known}/{name}").st_ctime_ns, name))
            except FileNotFoundError:
                continue  # another process has just renamed it
        for _, name in sorted(found, reverse=True)[_MAX_KNOWN:]:
            _unlink(f"{known}/{name}")

    def _remove(self, digest: str) -> bool:
        """Remove an image unless it is used or locked, and return whether it was removed."""
        place = f"{self._root}/{digest}"
        try:
            with self._locked(digest, wait=False):
                if self._live_users(digest):
                    return False
                for name in sorted(os.listdir(place), key=lambda name: name == "lock"):
                    if name in _DIRECTORIES:
                        remove_tree(f"{place}/{name}")
                    else:  # a link, also one that a process which was killed had not yet given its name
                        _unlink(f"{place}/{name}")
                os.rmdir(place)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # another process waits for the lock, and extracts it again
                raise
        return True

    def _live_users(self, digest: str) -> bool:
        """Forget the bundles that no longer exist, and return whether any is left."""
        users, left = f"{self._root}/{digest}/users", False
        for name in os.listdir(users) if os.path.isdir(users) else ():
            if os.path.lexists(read_link(f"{users}/{name}")):
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
                lock = LockFile(f"{place}/lock", os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue  # another process has just removed the image
            with lock:
                left = time_left()
                with waiting():
                    try:
                        lock.acquire(wait=wait if left is None or not wait else left)
                    except BlockingIOError:
                        if wait:
                            check_deadline()
                        raise
                if not lock.removed:
                    yield
                    return

    def _digest(self, image: Image, layer: Layer) -> str:
        """Return the SHA-256 digest of a layer in a file; it is computed once for each file."""
        info = os.fstat(image.fileno(layer))
        identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, layer.offset, layer.size)
        directory = f"{self._root}/known"
        known = f"{directory}/{'-'.join(f'{number:x}' for number in identity)}"
        if digest := read_link(known):
            return digest
        state, reader = hashlib.sha256(), image.reader(layer)
        while chunk := reader.read(_CHUNK):
            check_deadline()
            state.update(chunk)
        _make_private(directory)
        _replace_link(known, state.hexdigest())
        return state.hexdigest()

    def _last_use(self, digest: str) -> float:
        try:
            return os.stat(f"{self._root}/{digest}/users").st_mtime
        except FileNotFoundError:
            return 0

    def _recorded_size(self, digest: str) -> int:
        return int(read_link(f"{self._root}/{digest}/size") or 0)


def check_space(directory: str, name: str) -> Callable[[], None]:
    """Return a function that raises ImageError when little is left of the free space that a filesystem has now.

    Args:
        directory: a directory of the filesystem.
        name: the image that is extracted there.
    """

    def free() -> tuple[int, int]:
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize, found.f_favail

    before = free()
    kept = min(_KEPT_BYTES, before[0] // 10), min(_KEPT_FILES, before[1] // 10)

    def check() -> None:
        for was, now, least, text in zip(before, free(), kept, (size_text, "{:,} inodes".format), strict=True):
            if now < least:
                raise ImageError(
                    f"{name}: its files do not fit into {directory}: of {text(was)} that were free, {text(now)} are left; "
                    "make more space there, or set XDG_CACHE_HOME to a directory of a larger filesystem"
                )

    return check


def extracted_files(place: str) -> str:
    """Return the root directory of an extracted image, given the directory of the image in a cache."""
    return f"{place}/rootfs"


def release_image(place: str, bundle: str) -> None:
    """Note that a bundle no longer uses an image. Arguments as for `extracted_files`, and the directory of the bundle."""
    _unlink(_reference(place, bundle))


def _reference(place: str, bundle: str) -> str:
    return f"{place}/users/{hashlib.sha256(os.fsencode(bundle)).hexdigest()[:32]}"


def _size(path: str) -> int:
    """Return the bytes on disk of a directory tree, without those of directories that this user may not read."""
    total, directories = 0, [path]
    while directories:  # os.walk recurses in Python 3.11
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except PermissionError:
            continue  # it has the mode that it has in the image
    return total


def read_link(path: str) -> str:
    """Return the target of a symbolic link; an empty string if it does not exist."""
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _sync(directory: str) -> None:
    """Write the filesystem of a directory to its device. Raises OSError: what was written before cannot be stored."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        check(lib.oci_syncfs(fd), directory)
    finally:
        os.close(fd)


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
