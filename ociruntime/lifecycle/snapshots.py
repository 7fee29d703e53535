"""What a container has changed in its root filesystem, and copies of that from which new containers start."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from ..arguments import parse_path
from ..engine import cgroup
from ..engine.fileserver import FileServer
from ..engine.trees import remove_tree
from ..errors import StateError, UnsupportedError
from ..files import LockFile, Unpicklable
from ..host import Host
from ..image.convert import build
from ..interrupts import DeferredSignals, complete
from ..plan.compile import SERVED_LAYERS, compile_serve_layers
from ..plan.ops import Call
from ..rootfs.changes import Changes, LayerComparison
from ..rootfs.layers import OwnLayers
from ..rootfs.uppers import Upper
from ..store import Status
from .delete import processes
from .files import start_server
from .status import status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..bundle import Bundle
    from ..image import Compression
    from ..overrides import StrPath
    from ..rootfs.layers import Layers
    from ..spec import RuntimeSpec
    from ..store import Entry

__all__ = ["Snapshot"]

_PREFIX: Final = "ociruntime-snapshot-"
_LOCK: Final = "lock"
_NOT_COPIED: Final = ("origin", "impure", "nlink", "upper", "uuid")
"""Attributes of overlayfs that belong to one upper layer alone."""
_COPIED_AT_ONCE: Final = 1 << 26


@contextmanager
def _serving(entry: Entry, spec: RuntimeSpec, layers: OwnLayers, more: Sequence[tuple[str, str]] = ()) -> Iterator[FileServer]:
    """Give a server of the layers for the block, and of further directories in the slots after them."""
    paths = [*layers.paths(), *more]
    with DeferredSignals():
        server = start_server(
            entry,
            lambda document, namespaces: compile_serve_layers(
                spec, Host.probe(), namespaces=namespaces, container_id=entry.id, layers=paths
            ),
        )
        try:
            yield server
        finally:
            server.close()


def _comparison(server: FileServer, spec: RuntimeSpec, layers: OwnLayers) -> LayerComparison:
    first = SERVED_LAYERS + 1
    points = [mount.destination for mount in spec.mounts or ()]
    return LayerComparison(server, SERVED_LAYERS, range(first, first + len(layers.layers.paths)), points)


def changes(entry: Entry, spec: RuntimeSpec, layers: OwnLayers) -> Changes:
    """Return what a container has changed. Errors are those of `Container.changes`."""
    with _serving(entry, spec, layers) as server, server.located(b"/"):
        return _comparison(server, spec, layers).changes()


def diff_text(entry: Entry, spec: RuntimeSpec, layers: OwnLayers, path: str) -> str:
    """Return the changes of a file. Arguments and errors are those of `Container.diff_text`."""
    wanted = posixpath.normpath("/" + parse_path("path", path).lstrip("/"))
    with _serving(entry, spec, layers) as server, server.located(os.fsencode(wanted)):
        return _comparison(server, spec, layers).diff_text(wanted)


# ---- snapshots ----


class _Copy:
    """A directory with a copy of an upper layer. It is removed when nothing refers to this object any more."""

    def __init__(self, below: Layers) -> None:
        kept = below.owner.uppers if isinstance(below.owner, _Copy) else ()
        if not kept and below.upper.below:
            kept = (f"{below.upper.below}/upper",)
        self._below = below.owner  # which stays as long as this one
        parent = os.path.realpath(tempfile.gettempdir())
        _clear(parent)
        self.place = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
        self._lock = LockFile(f"{self.place}/{_LOCK}", os.O_RDWR | os.O_CREAT)
        self._lock.acquire(shared=True)
        self.upper = f"{self.place}/upper"
        self.uppers: tuple[str, ...] = (*kept, self.upper)
        """The upper layers over the image, the lowest first."""
        os.mkdir(self.upper, 0o700)
        self.remove = weakref.finalize(self, _remove, self.place, self._lock, os.getpid())


def _remove(place: str, lock: LockFile, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child does not have the containers that use it
    lock.close()
    remove_tree(place)


def _clear(parent: str) -> None:
    """Remove the copies of processes of this user that were killed."""
    with os.scandir(parent) as entries:
        places = [entry.path for entry in entries if entry.name.startswith(_PREFIX)]
    for place in places:
        try:
            if os.lstat(place).st_uid != os.geteuid():
                continue
            with LockFile(f"{place}/{_LOCK}", os.O_RDWR) as lock:
                lock.acquire(wait=False)
                remove_tree(place)
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            continue  # it is in use, just being made, or was removed by another process


class Snapshot(Unpicklable):
    """The root filesystem of a container at one moment, from which any number of new containers start.

    `bundle` can be given to `Container.create`, `run` and others, any number of times. What its containers write goes to upper
    layers of their own. The copy needs space for what the first container had written, or less where the filesystem can share the
    content of files.

    It is removed by `close`, at the end of a ``with`` block, or when the process ends or does not refer to it any more; not before
    the objects of containers that were made of it are gone.
    """

    _instead = "make it in the process that uses it"

    def __init__(self, bundle: Bundle, copy: _Copy) -> None:
        self._bundle: Bundle | None = bundle
        self._copy: _Copy | None = copy

    @property
    def bundle(self) -> Bundle:
        """The bundle of its containers. Raises StateError: it is closed."""
        if self._bundle is None:
            raise StateError("the snapshot is closed")
        return self._bundle

    @property
    def upper(self) -> str:
        """The directory with the changes, as `oci.build` takes it. It must not be changed. Raises StateError: it is closed."""
        if self._copy is None:
            raise StateError("the snapshot is closed")
        return self._copy.upper

    def commit(
        self,
        target: StrPath,
        *,
        image: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        compression: Compression = "gzip",
        overwrite: bool = False,
    ) -> None:
        """Make a SIF file of the image with the changes. Arguments and errors are those of `Container.commit`."""
        source = str(self.bundle.path) if image is None else parse_path("image", image)
        assert self._copy is not None, "the bundle was there"
        final = parse_path("target", target)
        with tempfile.TemporaryDirectory(prefix=f".{_PREFIX}", dir=os.path.dirname(final) or ".") as place:
            *others, last = self._copy.uppers
            for number, upper in enumerate(others):
                source, base = f"{place}/{number}.sif", source
                build(base, source, upper=upper, labels=labels, compression=compression)
            build(source, final, upper=last, labels=labels, compression=compression, overwrite=overwrite)

    def close(self) -> None:
        """Give it up. The files are removed with the last object of a container that uses them."""
        self._bundle = self._copy = None

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot: {'closed' if self._copy is None else self._copy.place}>"


def snapshot(entry: Entry, spec: RuntimeSpec, layers: OwnLayers) -> Snapshot:
    """Copy the upper layer of a container. Errors are those of `Container.snapshot`."""
    copy = _Copy(layers.layers)
    number = len(layers.layers.paths) + 1
    with _still(entry), _serving(entry, spec, layers, [("copy", copy.upper)]) as server:
        with server.located(b"/"):
            _LayerCopy(server, SERVED_LAYERS, SERVED_LAYERS + number).run()
    lowers = (copy.upper, *layers.layers.lowers)
    extended = layers.layers._replace(lowers=lowers, uppers=os.path.dirname(copy.place), upper=Upper(), owner=copy, shared=False)
    return Snapshot(layers.bundle._with_own_layers(extended), copy)


@contextmanager
def _still(entry: Entry) -> Iterator[None]:
    """Keep a container from changing files in the block.

    Raises:
        UnsupportedError: its processes cannot be frozen.
    """
    document = entry.read()
    cgroups = document.get("cgroups", [])
    with ExitStack() as stack:
        if status_of(document) is Status.RUNNING and len(processes(document)) > 1:
            try:
                with DeferredSignals():
                    cgroup.freeze(cgroups, True)
                    stack.callback(complete, lambda: cgroup.freeze(cgroups, False))
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"cannot copy the files of container {entry.id!r} while its programs change them, and they cannot be paused: "
                    f"{error}; end them first"
                ) from error
        yield


class _LayerCopy:
    """A copy of an upper layer, with everything that belongs to it."""

    def __init__(self, server: FileServer, source: int, target: int) -> None:
        self._server, self._source, self._target = server, source, target
        self._linked: dict[tuple[object, ...], bytes] = {}
        """The first name of each file that has several."""
        self._shares = True
        """Whether the filesystem can share the content of files."""

    def run(self) -> None:
        """Make the copy, in a directory that is empty."""
        directories, pending = [], [b""]
        while pending:
            path = pending.pop()
            info = self._server.look_at(self._source, path)
            directories.append((path, info, self._attributes()))
            for name in self._server.names_in(self._source, path):
                inner = posixpath.join(path, name)
                if self._add(inner):
                    pending.append(inner)
        for path, info, attributes in reversed(directories):
            self._server.open_layer_directory(self._target, path)
            self._server.finish_copy(b".", info, attributes, directory=True)

    def _attributes(self) -> dict[bytes, bytes]:
        """Return the attributes of the file that was looked at last, as far as they are copied."""
        found = {}
        for name in self._server.attributes():
            prefix, _, mark = name.rpartition(b".overlay.")
            if prefix and mark.decode("ascii", "replace") in _NOT_COPIED:
                continue
            value = self._server.attribute(name)
            if value is not None:
                found[name] = value
        return found

    def _add(self, path: bytes) -> bool:
        """Copy one file; return whether it is a directory, which is made, and empty."""
        server = self._server
        folder, name = posixpath.split(path)
        info = server.look_at(self._source, path)
        kind = stat.S_IFMT(info.mode)
        attributes = self._attributes() if kind in (stat.S_IFREG, stat.S_IFDIR) else {}
        target = server.readlink() if kind == stat.S_IFLNK else ""
        if kind == stat.S_IFREG:
            server.look_at(self._source, path)
            server.open_found(info, os.O_RDONLY, server.label(path))
        server.open_layer_directory(self._target, folder)
        if kind == stat.S_IFDIR:
            server.make(Call.MKDIR, name, mode=0o700)
            return True
        if kind == stat.S_IFREG:
            first = self._linked.get(info.identity)
            if first is not None:
                server.link_in_layer(self._target, first, name)
                return False
            self._copy_content(name)
        elif kind == stat.S_IFLNK:
            server.make(Call.SYMLINK, name, data=os.fsencode(target))
        elif kind == stat.S_IFSOCK:
            return False
        else:
            server.make(Call.MKNOD, name, mode=info.mode, a=info.rdev[0] << 32 | info.rdev[1])
        server.finish_copy(name, info, attributes, directory=False)
        if info.links > 1:
            self._linked[info.identity] = path
        return False

    def _copy_content(self, name: bytes) -> None:
        server = self._server
        server.make_file(name)
        if self._shares:
            try:
                server.share_content()
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM):
                    raise
                self._shares = False
            else:
                return
        server.copy_content(_COPIED_AT_ONCE)
