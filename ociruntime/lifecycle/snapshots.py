"""What a container has changed in its root filesystem, and copies of that from which new containers start."""

from __future__ import annotations

import difflib
import errno
import os
import posixpath
import stat
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import attrs
from typing_extensions import override

from .._lazy import HtmlRepr
from ..arguments import check_choice, parse_path, shown
from ..engine import cgroup
from ..engine.fileserver import FileInfo, FileServer
from ..engine.trees import remove_tree
from ..errors import StateError, UnsupportedError
from ..files import LockFile, Unpicklable
from ..host import Host
from ..image.convert import build
from ..image.layers import FILE_TYPES, FileType
from ..image.model import Image
from ..interrupts import DeferredSignals, complete
from ..plan.compile import SERVED_LAYERS, compile_serve_layers
from ..plan.ops import Call
from ..rootfs.layers import Layers, OwnLayers, recorded_lower
from ..rootfs.uppers import Upper
from ..store import Status
from .delete import processes
from .files import start_server
from .status import status_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..bundle import Bundle
    from ..image import Compression
    from ..image.sif.format import Identity
    from ..overrides import StrPath
    from ..spec import RuntimeSpec
    from ..store import Entry

__all__ = [
    "Snapshot",
]


_MARKS: Final = (b"trusted.overlay.", b"user.overlay.")
_OPAQUE, _WHITEOUT, _METACOPY, _REDIRECT = b"opaque", b"whiteout", b"metacopy", b"redirect"
_MOST_TEXT: Final = 16 << 20
"""Bytes of a file of which differences are shown."""
_MOST_LINES: Final = 1 << 20
_MOST_COMPARED: Final = 1 << 23
"""Pairs of lines that are looked at for one file: some seconds."""
_MOST_CHANGES: Final = 1 << 20
_MOST_PATHS: Final = 1 << 27
"""Bytes of paths that are kept in memory: those of a tree that is 10,000 levels deep are 12 GiB."""
_FEW: Final = 16
"""Files of an upper directory for which the lower directories are not listed."""

Place: TypeAlias = tuple[int, bytes]
"""A file of a layer: the slot of the layer, and the path in it."""


class ChangeKind(StrEnum):
    """What happened to a file."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@attrs.frozen(kw_only=True)
class Change:
    """A file that a container has added, changed or removed."""

    path: str
    """The path in the container. Bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""
    kind: ChangeKind
    type: FileType
    """What it is now, or was before it was removed."""
    size: int
    """Size of the content in bytes; 0 for anything but a regular file, and for one that was removed."""

    def __str__(self) -> str:
        return f"{self.kind[0].upper()} {self.path}"


class Changes(HtmlRepr, tuple[Change, ...]):
    """The changes of a container, sorted by path. A directory that was removed, or replaced, stands for everything in it."""

    __slots__ = ()

    def of_kind(self, kind: ChangeKind | str) -> Changes:
        """Return those of one kind: ``"added"``, ``"changed"`` or ``"removed"``. Raises ValueError."""
        check_choice("kind", kind, tuple(ChangeKind))
        selected = ChangeKind(kind)
        return Changes(change for change in self if change.kind is selected)

    def _counts(self) -> str:
        return ", ".join(f"{len(self.of_kind(kind))} {kind}" for kind in ChangeKind)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"<Changes: {self._counts()}>"


class _File(NamedTuple):
    """A file of a layer."""

    info: FileInfo
    place: Place
    attributes: Sequence[bytes] | None = None
    """The names of its extended attributes; None if they are not known yet."""


class _Found(NamedTuple):
    """A file of the layers below."""

    file: _File
    """The file, of the uppermost layer that has it."""
    directories: tuple[Place, ...]
    """The parts of a directory in the layers, the uppermost first; empty for another file."""


class _Directory(NamedTuple):
    """A directory that is still to be compared."""

    path: bytes
    lowers: tuple[Place, ...]
    """The parts of it in the layers below."""
    hides: bool = False
    """Whether it hides what is in those."""
    moved: tuple[Place, ...] = ()
    """The parts of the directory that was moved here, which it shows too."""


class LayerComparison:
    """The upper layer of a container and the layers below it.

    Args:
        server: a server with all rights over the layers.
        upper: the slot of the upper layer.
        lowers: the slots of the layers below, the uppermost first.
        points: paths of mount points, which the runtime has made and which are left out.
    """

    def __init__(self, server: FileServer, upper: int, lowers: Sequence[int], points: Iterable[str] = ()) -> None:
        self._server = server
        self._upper = upper
        self._root = tuple((slot, b"") for slot in lowers)
        self._points = {posixpath.normpath(point).strip("/").encode("utf-8", "surrogateescape") for point in points} - {b"", b"."}
        self._listed: dict[Place, dict[bytes, _File]] = {}
        """The files of directories that are just being compared."""

    # ---- single files ----

    def _look(self, place: Place) -> _File | None:
        """Return a file; None if there is none."""
        try:
            return _File(self._server.look_at(*place), place)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None

    def _member(self, directory: Place, name: bytes) -> _File | None:
        """Return a file of a directory; None if there is none."""
        listed = self._listed.get(directory)
        return self._look(_inside(directory, name)) if listed is None else listed.get(name)

    def _list(self, directory: Place) -> dict[bytes, _File]:
        """Return the files of a directory by their names; nothing if it is not a directory."""
        found: dict[bytes, _File] = {}
        try:
            for name, info, attributes in self._server.entries_in(*directory):
                found[name] = _File(info, _inside(directory, name), attributes)
                if len(found) > _MOST_CHANGES:
                    raise _too_many()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        return found

    def _mark(self, file: _File, name: bytes) -> bytes | None:
        """Return a mark of overlayfs."""
        names = [prefix + name for prefix in _MARKS if file.attributes is None or prefix + name in file.attributes]
        if names:
            self._server.look_at(*file.place)
        return next((value for value in map(self._server.attribute, names) if value is not None), None)

    def _is_whiteout(self, file: _File) -> bool:
        """Return whether a file hides one of the layers below."""
        info = file.info
        if stat.S_ISCHR(info.mode):
            return info.rdev == (0, 0)
        return stat.S_ISREG(info.mode) and not info.size and self._mark(file, _WHITEOUT) is not None

    def _find(self, directories: Iterable[Place], name: bytes) -> _Found | None:
        """Return a file of a directory of the layers below."""
        found: _File | None = None
        parts: list[Place] = []
        for directory in directories:
            file = self._member(directory, name)
            if file is None:
                continue
            if self._is_whiteout(file) or (found is not None and not file.info.is_directory):
                break
            found = found or file
            if not file.info.is_directory:
                break
            parts.append(file.place)
            if self._mark(file, _OPAQUE) == b"y":
                break
        return _Found(found, tuple(parts)) if found is not None else None

    def _resolve(self, path: bytes) -> _Found | None:
        """Return a file of the layers below by its path from the root."""
        directories, found = self._root, None
        for name in filter(None, path.split(b"/")):
            found = self._find(directories, name)
            if found is None:
                return None
            directories = found.directories
        return found

    def _differs(self, file: _File, lower: _File) -> bool:
        """Return whether two files of the same type differ in more than their times."""
        info, below = file.info, lower.info
        if (info.mode, info.uid, info.gid, info.rdev) != (below.mode, below.uid, below.gid, below.rdev):
            return True
        if info.is_link:
            return self._link(file) != self._link(lower)
        if self._attributes(file) != self._attributes(lower):
            return True
        if not stat.S_ISREG(info.mode) or self._mark(file, _METACOPY) is not None:
            return False
        return info.size != below.size or not self._server.same_content(file.place, lower.place)

    def _link(self, file: _File) -> str:
        self._server.look_at(*file.place)
        return self._server.readlink()

    def _attributes(self, file: _File) -> dict[bytes, bytes]:
        if file.attributes is None or not all(name.startswith(_MARKS) for name in file.attributes):
            self._server.look_at(*file.place)
        known = self._server.attributes() if file.attributes is None else file.attributes
        names = [name for name in known if not name.startswith(_MARKS)]
        return {name: self._server.attribute(name) or b"" for name in names}

    # ---- all of them ----

    def changes(self) -> Changes:
        """Return the changes."""
        found: dict[bytes, Change] = {}
        paths = _Paths()
        for path, kind, info in self._scan():
            size = info.size if stat.S_ISREG(info.mode) and kind is not ChangeKind.REMOVED else 0
            name = f"/{os.fsdecode(path)}"
            found[paths.keep(path)] = Change(path=name, kind=kind, type=FILE_TYPES[stat.S_IFMT(info.mode)], size=size)
            if len(found) > _MOST_CHANGES:
                raise _too_many()
        for point in sorted(self._points, reverse=True):
            self._leave_parents_out(found, point)
        return Changes(found[path] for path in sorted(found))

    @staticmethod
    def _leave_parents_out(found: dict[bytes, Change], point: bytes) -> None:
        """Leave out the directories that were made for a mount point alone."""
        while point := posixpath.dirname(point):
            change = found.get(point)
            if change is None or change.kind is not ChangeKind.ADDED or any(path.startswith(point + b"/") for path in found):
                return
            del found[point]

    def _scan(self) -> Iterator[tuple[bytes, ChangeKind, FileInfo]]:
        pending = [_Directory(b"", self._root)]
        while pending:
            directory = pending.pop()
            own = self._list((self._upper, directory.path))
            lists_all = directory.hides or len(own) > _FEW
            self._listed = {place: self._list(place) for place in (*directory.moved, *(directory.lowers if lists_all else ()))}
            names = set(own).union(*(self._listed[place] for place in directory.moved))
            for name in names:
                path = posixpath.join(directory.path, name)
                if path in self._points:
                    continue
                below = self._find(directory.lowers, name)
                file = own.get(name)
                if file is None:
                    yield from self._moved(directory, name, path, below, pending)
                elif self._is_whiteout(file):
                    if below is not None:
                        yield path, ChangeKind.REMOVED, below.file.info
                else:
                    yield from self._compare(file, path, below, pending)
            if directory.hides:
                for name in set[bytes]().union(*(self._listed[place] for place in directory.lowers)) - names:
                    below = self._find(directory.lowers, name)
                    path = posixpath.join(directory.path, name)
                    if below is not None and path not in self._points:
                        yield path, ChangeKind.REMOVED, below.file.info

    def _compare(
        self, file: _File, path: bytes, below: _Found | None, pending: list[_Directory]
    ) -> Iterator[tuple[bytes, ChangeKind, FileInfo]]:
        """Compare a file of the upper layer with the one below."""
        info = file.info
        hides = redirect = None
        if info.is_directory:
            hides, redirect = self._mark(file, _OPAQUE) == b"y", self._mark(file, _REDIRECT)
        same = below is not None and stat.S_IFMT(below.file.info.mode) == stat.S_IFMT(info.mode)
        if below is None:
            yield path, ChangeKind.ADDED, info
        elif not same or self._differs(file, below.file):
            yield path, ChangeKind.CHANGED, info
        if info.is_directory:
            lowers = below.directories if same and below is not None else ()
            moved: tuple[Place, ...] = ()
            if redirect is not None:
                target = redirect if redirect.startswith(b"/") else posixpath.join(posixpath.dirname(path), redirect)
                origin = self._resolve(target)
                moved = origin.directories if origin is not None else ()
            pending.append(_Directory(path, lowers, bool(hides) or bool(moved), moved))

    def _moved(
        self, directory: _Directory, name: bytes, path: bytes, below: _Found | None, pending: list[_Directory]
    ) -> Iterator[tuple[bytes, ChangeKind, FileInfo]]:
        """Report a file that is only in the directory that was moved here."""
        found = self._find(directory.moved, name)
        if found is not None:
            yield path, ChangeKind.ADDED if below is None else ChangeKind.CHANGED, found.file.info
            if found.directories:
                pending.append(_Directory(path, below.directories if below is not None else (), True, found.directories))

    # ---- differences ----

    def diff_text(self, path: str) -> str:
        """Return the difference of a file as a unified diff; empty if it has not changed.

        Raises:
            FileNotFoundError: there is no such file, and there was none.
            OSError: it is not a text, a regular file, or is too large.
        """
        inner = os.fsencode(path).strip(b"/")
        lower, upper = self._resolve(inner), self._look((self._upper, inner))
        removed = upper is not None and self._is_whiteout(upper)
        if upper is None and lower is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if upper is None:
            return ""
        before = self._text(lower.file, path) if lower is not None else []
        after = [] if removed else self._text(upper, path)
        old, new = ("/dev/null" if lower is None else f"a{path}"), ("/dev/null" if removed else f"b{path}")
        return "".join(_unified_diff(before, after, old, new))

    def _text(self, file: _File, path: str) -> list[str]:
        info = file.info
        if not stat.S_ISREG(info.mode):
            raise OSError(errno.EINVAL, f"a {FILE_TYPES[stat.S_IFMT(info.mode)]}, not a text", path)
        if info.size > _MOST_TEXT:
            raise OSError(errno.EFBIG, f"more than {_MOST_TEXT >> 20} MiB", path)
        content = b"".join(bytes(part) for part in self._server.content(*file.place))
        if b"\0" in content:
            raise OSError(errno.EINVAL, "a binary file, not a text", path)
        if content.count(b"\n") > _MOST_LINES:
            raise OSError(errno.EFBIG, f"more than {_MOST_LINES} lines", path)
        *lines, last = (f"{line}\n" for line in content.decode("utf-8", "surrogateescape").split("\n"))
        return [*lines, f"{last}\\ No newline at end of file\n"] if last != "\n" else lines


def _inside(directory: Place, name: bytes) -> Place:
    slot, path = directory
    return slot, posixpath.join(path, name)


def _too_many() -> OSError:
    return OSError(errno.EFBIG, f"more than {_MOST_CHANGES} files were changed")


class _Paths:
    """The bytes of paths that a walk keeps in memory."""

    def __init__(self) -> None:
        self._left = _MOST_PATHS

    def keep(self, path: bytes) -> bytes:
        """Count a path, and return it. Raises OSError: they are too long together, in a tree of many levels."""
        self._left -= len(path)
        if self._left < 0:
            begin = shown(os.fsdecode(b"/" + path[:80]))
            raise OSError(
                errno.ENAMETOOLONG, f"paths of {_MOST_PATHS} bytes and more, of many levels, as below {begin}; remove them first"
            )
        return path


class _LineMatcher(difflib.SequenceMatcher[str]):
    """A comparison of lines that takes a limited time, whatever the lines are: what it does not come to counts as changed."""

    a: list[str]
    b: list[str]
    b2j: dict[str, list[int]]
    _left = _MOST_COMPARED

    @override
    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None) -> difflib.Match:
        ahi, bhi = len(self.a) if ahi is None else ahi, len(self.b) if bhi is None else bhi
        most = min(ahi - alo, bhi - blo)
        if same := next((at for at in range(most) if self.a[alo + at] != self.b[blo + at]), most):
            return difflib.Match(alo, blo, same)
        if same := next((at for at in range(most) if self.a[ahi - 1 - at] != self.b[bhi - 1 - at]), most):
            return difflib.Match(ahi - same, bhi - same, same)
        self._left -= sum(1 + len(self.b2j.get(self.a[at], ())) for at in range(alo, ahi))
        return super().find_longest_match(alo, ahi, blo, bhi) if self._left > 0 else difflib.Match(alo, blo, 0)


def _unified_diff(before: list[str], after: list[str], old: str, new: str) -> Iterator[str]:
    """Yield a unified diff, as `difflib.unified_diff`, which has no limit of its time."""
    groups = list(_LineMatcher(None, before, after).get_grouped_opcodes())
    if groups:
        yield f"--- {old}\n+++ {new}\n"
    for group in groups:
        (_, begin, _, new_begin, _), (_, _, end, _, new_end) = group[0], group[-1]
        yield f"@@ -{_hunk_range(begin, end)} +{_hunk_range(new_begin, new_end)} @@\n"
        for kind, one, two, three, four in group:
            yield from (f"{' ' if kind == 'equal' else '-'}{line}" for line in before[one:two])
            yield from (f"+{line}" for line in after[three:four] if kind != "equal")


def _hunk_range(begin: int, end: int) -> str:
    count = end - begin
    return f"{begin + 1}" if count == 1 else f"{begin + 1 if count else begin},{count}"


_PREFIX: Final = "ociruntime-snapshot-"
_LOCK: Final = "lock"
_NOT_COPIED: Final = {mark + name for mark in _MARKS for name in (b"origin", b"impure", b"nlink", b"upper", b"uuid")}
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


def recorded_layers(entry: Entry) -> Layers | None:
    """Return the layers of a container that another process has made, with the upper one first; None if it has none of its own.

    Raises:
        StateError: this process cannot find them.
    """
    recorded = entry.read().get("layers", [])
    remedy = "use the object that made it"
    if recorded and not recorded[0]:
        why = "its upper layer is in memory, where only the process that made it finds it"
        raise StateError(f"container {entry.id!r}: {why}; {remedy}, or make it with an upper layer on disk")
    if "" in recorded:
        why = "its image is mounted for the process that made it alone"
        raise StateError(f"container {entry.id!r}: {why}; {remedy}, or mount the image with 'ociruntime mount' and run its bundle")
    try:
        return Layers(tuple(map(recorded_lower, recorded)), os.path.realpath(tempfile.gettempdir())) if recorded else None
    except FileNotFoundError as error:
        raise StateError(f"container {entry.id!r}: its layer {error.filename} was removed") from error


def changes(entry: Entry, spec: RuntimeSpec, layers: OwnLayers) -> Changes:
    """Return what a container has changed. Errors are those of `Container.changes`."""
    with _serving(entry, spec, layers) as server, server.located(b"/"):
        return _comparison(server, spec, layers).changes()


def diff_text(entry: Entry, spec: RuntimeSpec, layers: OwnLayers, path: str) -> str:
    """Return the changes of a file. Arguments and errors are those of `Container.diff_text`."""
    location = posixpath.normpath("/" + parse_path("path", path).lstrip("/"))
    with _serving(entry, spec, layers) as server, server.located(os.fsencode(location)):
        try:
            return _comparison(server, spec, layers).diff_text(location)
        except OSError as error:
            if error.filename == location:
                error.filename = path  # as the caller wrote it
            raise


# ---- snapshots ----


class _Copy:
    """A directory with a copy of an upper layer. It is removed when nothing refers to this object."""

    def __init__(self, below: Layers) -> None:
        kept = below.owner.uppers if isinstance(below.owner, _Copy) else ()
        if not kept:
            count = len(below.upper.lowers)
            kept = tuple(reversed(below.paths[:count]))
        self._below = below.owner  # which stays as long as this one
        parent = os.path.realpath(tempfile.gettempdir())
        _clear(parent)
        while True:
            self.place = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
            self._lock = LockFile(f"{self.place}/{_LOCK}", os.O_RDWR | os.O_CREAT)
            self._lock.acquire(shared=True)
            if os.path.exists(self.place):
                break
            self._lock.close()  # before it was locked, another copy took it for the rest of a process that was killed
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


class Origin(NamedTuple):
    """The image that a root filesystem was made of, and which of several it is, as `oci.build` takes them."""

    image: str
    reference: str | None = None
    platform: str | None = None
    identity: Identity | None = None
    """What it was then, if it can be told from another image that has its path later."""

    def open(self, stack: ExitStack) -> StrPath | Image:
        """Return it as `oci.build` takes it. Raises ImageError: another image has its path now; OSError."""
        if self.identity is None:
            return self.image
        return stack.enter_context(
            Image._reopen(
                self.image,
                self.reference,
                self.platform,
                self.identity,
                "since the container was made of it; pass image=, the path that it has now",
            )
        )


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
        self._origin: Origin | None = None

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
        origin = Origin(str(self.bundle.path)) if self._origin is None else self._origin
        if image is not None:
            origin = Origin(parse_path("image", image))
        assert self._copy is not None, "the bundle was there"
        final = parse_path("target", target)
        with ExitStack() as stack:
            # Where the next snapshot removes it, if this process is killed.
            place = stack.enter_context(tempfile.TemporaryDirectory(dir=self._copy.place))
            source, reference, platform = origin.open(stack), origin.reference, origin.platform
            if isinstance(source, Image):
                reference = platform = None
            *others, last = self._copy.uppers
            for number, upper in enumerate(others):
                target = f"{place}/{number}.sif"
                build(source, target, upper=upper, reference=reference, platform=platform, labels=labels, compression=compression)
                source, reference, platform = target, None, None
            build(
                source,
                final,
                upper=last,
                reference=reference,
                platform=platform,
                labels=labels,
                compression=compression,
                overwrite=overwrite,
            )

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
        self._paths = _Paths()

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
                    pending.append(self._paths.keep(inner))
        for path, info, attributes in reversed(directories):
            self._server.open_layer_directory(self._target, path)
            self._server.finish_copy(b".", info, attributes, directory=True)

    def _attributes(self) -> dict[bytes, bytes]:
        """Return the attributes of the file that was looked at last, as far as they are copied."""
        found = {}
        for name in self._server.attributes():
            if name in _NOT_COPIED:
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
            self._linked[info.identity] = self._paths.keep(path)
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
