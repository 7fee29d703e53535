"""What a container has changed: the files of its upper layer, compared with those of the layers below.

The files are used through a server with all rights in the container's user namespace (`ociruntime.engine.fileserver`), so that
those of subordinate ids can be read. Marks of overlayfs are understood with the attributes of root and with those of users:
whiteouts, opaque and moved directories, and files of which only the metadata were copied up.
"""

from __future__ import annotations

import difflib
import errno
import html
import os
import posixpath
import stat
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

import attrs

from ..arguments import check_choice
from ..engine.fileserver import FileInfo, FileServer
from ..image.layers import FILE_TYPES, FileType

_MARKS: Final = (b"trusted.overlay.", b"user.overlay.")
_OPAQUE, _WHITEOUT, _METACOPY, _REDIRECT = b"opaque", b"whiteout", b"metacopy", b"redirect"
_MOST_TEXT: Final = 16 << 20
"""Bytes of a file of which differences are shown."""
_MOST_CHANGES: Final = 1 << 20
_MOST_ROWS: Final = 200
"""Changes that a notebook shows."""

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


class Changes(tuple[Change, ...]):
    """The changes of a container, sorted by path. A directory that was removed, or replaced, stands for everything in it."""

    __slots__ = ()

    def of_kind(self, kind: ChangeKind | str) -> Changes:
        """Return those of one kind: ``"added"``, ``"changed"`` or ``"removed"``. Raises ValueError."""
        check_choice("kind", kind, tuple(ChangeKind))
        wanted = ChangeKind(kind)
        return Changes(change for change in self if change.kind is wanted)

    def _counts(self) -> str:
        return ", ".join(f"{len(self.of_kind(kind))} {kind}" for kind in ChangeKind)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def __repr__(self) -> str:
        return f"<Changes: {self._counts()}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{change.kind}</td><td>{change.type}</td><td>{change.size}</td>"
            f"<td><code>{html.escape(change.path.encode('utf-8', 'backslashreplace').decode())}</code></td></tr>"
            for change in self[:_MOST_ROWS]
        )
        more = f"<p>and {len(self) - _MOST_ROWS} more</p>" if len(self) > _MOST_ROWS else ""
        head = "<tr><th>kind</th><th>type</th><th>bytes</th><th>path</th></tr>"
        return f"<p>{self._counts()}</p><table>{head}{rows}</table>{more}"


class _Found(NamedTuple):
    """A file of the layers below."""

    info: FileInfo
    place: Place
    """Where it is, in the uppermost layer that has it."""
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

    # ---- single files ----

    def _look(self, place: Place) -> FileInfo | None:
        """Return the status of a file, which is found then; None if there is none."""
        try:
            return self._server.look_at(*place)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            return None

    def _mark(self, name: bytes) -> bytes | None:
        """Return a mark of overlayfs of the file that was found last."""
        for prefix in _MARKS:
            value = self._server.attribute(prefix + name)
            if value is not None:
                return value
        return None

    def _is_whiteout(self, info: FileInfo) -> bool:
        """Return whether the file that was found last hides one of the layers below."""
        if stat.S_ISCHR(info.mode):
            return info.rdev == (0, 0)
        return stat.S_ISREG(info.mode) and not info.size and self._mark(_WHITEOUT) is not None

    def _find(self, directories: Iterable[Place], name: bytes) -> _Found | None:
        """Return a file of a directory of the layers below."""
        found: tuple[FileInfo, Place] | None = None
        parts: list[Place] = []
        for slot, base in directories:
            place = slot, posixpath.join(base, name)
            info = self._look(place)
            if info is None:
                continue
            if self._is_whiteout(info) or (found is not None and not info.is_directory):
                break
            found = found or (info, place)
            if not info.is_directory:
                break
            parts.append(place)
            if self._mark(_OPAQUE) == b"y":
                break
        return _Found(*found, tuple(parts)) if found is not None else None

    def _resolve(self, path: bytes) -> _Found | None:
        """Return a file of the layers below by its path from the root."""
        directories, found = self._root, None
        for name in filter(None, path.split(b"/")):
            found = self._find(directories, name)
            if found is None:
                return None
            directories = found.directories
        return found

    def _differs(self, info: FileInfo, upper: Place, lower: _Found) -> bool:
        """Return whether two files of the same type differ in more than their times."""
        below = lower.info
        if (info.mode, info.uid, info.gid, info.rdev) != (below.mode, below.uid, below.gid, below.rdev):
            return True
        if info.is_link:
            return self._link(upper) != self._link(lower.place)
        if self._attributes(upper) != self._attributes(lower.place):
            return True
        if not stat.S_ISREG(info.mode):
            return False
        self._look(upper)
        if self._mark(_METACOPY) is not None:
            return False
        return info.size != below.size or not self._server.same_content(upper, lower.place)

    def _link(self, place: Place) -> str:
        self._look(place)
        return self._server.readlink()

    def _attributes(self, place: Place) -> dict[bytes, bytes]:
        self._look(place)
        names = [name for name in self._server.attributes() if not name.startswith(_MARKS)]
        return {name: self._server.attribute(name) or b"" for name in names}

    # ---- all of them ----

    def changes(self) -> Changes:
        """Return the changes."""
        found: dict[bytes, Change] = {}
        for path, kind, info in self._scan():
            size = info.size if stat.S_ISREG(info.mode) and kind is not ChangeKind.REMOVED else 0
            name = f"/{os.fsdecode(path)}"
            found[path] = Change(path=name, kind=kind, type=FILE_TYPES[stat.S_IFMT(info.mode)], size=size)
            if len(found) > _MOST_CHANGES:
                raise OSError(errno.EFBIG, f"more than {_MOST_CHANGES} files were changed")
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
            own = self._names((self._upper, directory.path))
            names = own.union(*map(self._names, directory.moved))
            for name in names:
                path = posixpath.join(directory.path, name)
                if path in self._points:
                    continue
                below = self._find(directory.lowers, name)
                info = self._look((self._upper, path)) if name in own else None
                if info is None:
                    yield from self._moved(directory, name, path, below, pending)
                elif self._is_whiteout(info):
                    if below is not None:
                        yield path, ChangeKind.REMOVED, below.info
                else:
                    yield from self._compare(info, path, below, pending)
            if directory.hides:
                for name in set().union(*map(self._names, directory.lowers)) - names:
                    below = self._find(directory.lowers, name)
                    path = posixpath.join(directory.path, name)
                    if below is not None and path not in self._points:
                        yield path, ChangeKind.REMOVED, below.info

    def _compare(
        self, info: FileInfo, path: bytes, below: _Found | None, pending: list[_Directory]
    ) -> Iterator[tuple[bytes, ChangeKind, FileInfo]]:
        """Compare a file of the upper layer, which was found last, with the one below."""
        place = self._upper, path
        hides = redirect = None
        if info.is_directory:
            hides, redirect = self._mark(_OPAQUE) == b"y", self._mark(_REDIRECT)
        same = below is not None and stat.S_IFMT(below.info.mode) == stat.S_IFMT(info.mode)
        if below is None:
            yield path, ChangeKind.ADDED, info
        elif not same or self._differs(info, place, below):
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
            yield path, ChangeKind.ADDED if below is None else ChangeKind.CHANGED, found.info
            if found.directories:
                pending.append(_Directory(path, below.directories if below is not None else (), True, found.directories))

    def _names(self, place: Place) -> set[bytes]:
        info = self._look(place)
        return set(self._server.names_in(*place)) if info is not None and info.is_directory else set()

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
        before = self._text(lower.place, lower.info, path) if lower is not None else []
        after = [] if removed else self._text((self._upper, inner), upper, path)
        old, new = ("/dev/null" if lower is None else f"a{path}"), ("/dev/null" if removed else f"b{path}")
        return "".join(difflib.unified_diff(before, after, old, new))

    def _text(self, place: Place, info: FileInfo, path: str) -> list[str]:
        if not stat.S_ISREG(info.mode):
            raise OSError(errno.EINVAL, f"a {FILE_TYPES[stat.S_IFMT(info.mode)]}, not a text", path)
        if info.size > _MOST_TEXT:
            raise OSError(errno.EFBIG, f"more than {_MOST_TEXT >> 20} MiB", path)
        content = b"".join(bytes(part) for part in self._server.content(*place))
        if b"\0" in content:
            raise OSError(errno.EINVAL, "a binary file, not a text", path)
        lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n\\ No newline at end of file\n"
        return lines
