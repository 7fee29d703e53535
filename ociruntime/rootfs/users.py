"""Users and groups of a container, by its ``/etc/passwd`` and ``/etc/group``, and which files those are; the caller as one of them.

The image, or the container, writes these files. They are read with a bound, never through a link out of the root, and only if they
are regular files. A line ends at a newline and nowhere else; a line without the ids that it should have is skipped.

Users are looked up before the container exists, so `ContainerRoot` follows its mounts as the kernel will: in their order, with
symbolic links that do not leave the root, and with what a later mount hides. Only a bind mount has files at that time. Any other
filesystem is new: it hides what it covers, and has nothing itself.
"""

from __future__ import annotations

import errno
import grp
import os
import posixpath
import pwd
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import attrs

from ..engine.trees import is_opaque, is_whiteout
from ..errors import BundleError
from ..files import open_in_root, open_regular
from ..plan.mount_options import parse_entry
from ..spec.base import is_below

if TYPE_CHECKING:
    from ..spec import Mount, ProcessSpec, User

MAX_FILE: Final = 1 << 20
"""Bytes of a file that is read."""
MAX_ID: Final = (1 << 32) - 2
_PASSWD: Final = ("etc/passwd", (2, 3))
_GROUP: Final = ("etc/group", (2,))
"""A file, and the columns that hold ids."""
_MAX_LINKS: Final = 40
"""Symbolic links in one path, as in the kernel."""


class _Line(NamedTuple):
    """A line of one of the files."""

    fields: list[str]
    ids: tuple[int, ...]


def resolve(text: str, root: ContainerRoot) -> User:
    """Return the user that ``user[:group]`` stands for; each part is a name or a number.

    A number needs no file: where none can be read, a user given by number is in group 0 and no other. The primary group is one of
    the supplementary groups.

    Raises:
        BundleError: the container does not know the name, or the file that would know it cannot be read.
    """
    from ..spec import User

    name, _, group = text.partition(":")
    uid, line = _number(name), _find(root, _PASSWD, name)
    if uid is None:
        if line is None:
            raise BundleError(f"user {name!r:.80} is neither a number nor in the container's /etc/passwd")
        uid = line.ids[0]
    if group:
        return User(uid=uid, gid=_group(group, root)).in_primary_group()
    gid = line.ids[1] if line else 0
    members = _groups_of(root, line.fields[0] if line else name, needed=_number(name) is None)
    return User(uid=uid, gid=gid, additional_gids=tuple(sorted(members))).in_primary_group()


def _group(name: str, root: ContainerRoot) -> int:
    gid = _number(name)
    if gid is not None:
        return gid
    line = _find(root, _GROUP, name)
    if line is None:
        raise BundleError(f"group {name!r:.80} is neither a number nor in the container's /etc/group")
    return line.ids[0]


def env_with_home(process: ProcessSpec, root: ContainerRoot) -> tuple[str, ...] | None:
    """Return the environment of a process with HOME. An absent or empty one becomes the home directory of its user."""
    if process.environ.get("HOME"):
        return process.env
    uid = (process.user.uid or 0) if process.user else 0
    return process._env_with(HOME=home(uid, root))


def home(uid: int, root: ContainerRoot) -> str:
    """Return the home directory of a user; ``/`` where the container does not tell, or not in a way that can be read."""
    line = _find(root, _PASSWD, str(uid))
    path = line.fields[5] if line and len(line.fields) > 5 else ""
    return path if path.startswith("/") and "\0" not in path else "/"


def _number(text: str) -> int | None:
    """Return the id that a text is, or None. Python refuses to convert thousands of digits, so the length is checked first."""
    digits = text.lstrip("0") or text[-1:]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= MAX_ID else None


def _find(root: ContainerRoot, file: tuple[str, tuple[int, ...]], name: str) -> _Line | None:
    """Return the first line for a name, or for an id. Raises BundleError as `_lines` does, but not for an id."""
    number = _number(name)
    lines = _lines(root, file, needed=number is None)
    return next((line for line in lines if (line.fields[0] == name if number is None else line.ids[0] == number)), None)


def _groups_of(root: ContainerRoot, user: str, *, needed: bool) -> set[int]:
    lines = _lines(root, _GROUP, needed=needed)
    return {line.ids[0] for line in lines if len(line.fields) > 3 and user in line.fields[3].split(",")}


def _lines(root: ContainerRoot, file: tuple[str, tuple[int, ...]], *, needed: bool) -> Iterator[_Line]:
    """Yield the valid lines of a file; none where it does not exist.

    Args:
        needed: whether a file that cannot be read is an error. Otherwise it is taken for an empty one.

    Raises:
        BundleError: the file is too large, of another type than a regular one, or cannot be read.
    """
    path, columns = file
    try:
        content = read_text(root, path)
    except BundleError:
        if needed:
            raise
        return
    for text in content.split("\n"):
        fields = text.split(":")
        ids = [_number(fields[column]) for column in columns if column < len(fields)]
        known = tuple(number for number in ids if number is not None)
        if len(known) == len(columns):
            yield _Line(fields, known)


def read_text(root: ContainerRoot, path: str) -> str:
    """Return the content of a file of a container; empty if it does not exist. Raises BundleError."""
    try:
        with open(root.open_regular(path), "rb") as content:
            raw = content.read(MAX_FILE + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BundleError(f"the container's /{path}: {error.strerror}") from error
    if len(raw) > MAX_FILE:
        raise BundleError(f"the container's /{path}: larger than {MAX_FILE} bytes")
    return raw.decode("utf-8", "surrogateescape")


# ---- the files of a container ----


class _Source(NamedTuple):
    """A file or directory of the host."""

    bases: tuple[str, ...]
    """Paths of the host, whose symbolic links are followed there: one, or the layers of the root, the uppermost first."""
    inner: str
    """The path below them, without symbolic links; empty for the base itself."""


class _Mounted(NamedTuple):
    """A mount of the configuration that hides or brings files."""

    destination: str
    source: str | None
    """The path of the host that is bound; None for a new filesystem."""
    recursive: bool


class MissingPoint(NamedTuple):
    """A mount point that a root filesystem does not have."""

    path: str
    """Its path in the root filesystem, without symbolic links."""
    existing: str
    """The path of the nearest directory above it that exists; empty for the root."""
    parent: str
    """The path of that directory on the host."""
    is_file: bool
    """Whether a file is mounted on it, not a directory."""


_Table = dict[str, _Source | None]
"""What is mounted where, by paths without symbolic links; the root is the empty path. None is a new filesystem."""


class ContainerRoot:
    """The files of a container's root. Each call looks at the files as they are then."""

    def __init__(self, *layers: str | os.PathLike[str], mounts: Iterable[Mount] = (), bundle: str | os.PathLike[str] = "/") -> None:
        """Describe a root.

        Args:
            layers: the directory of the root filesystem, or those of its layers, the uppermost first.
            mounts: those of the configuration; none for a container that exists, whose root has them.
            bundle: the directory that relative sources of mounts count from.
        """
        self._layers = tuple(os.fspath(layer) for layer in layers)
        self._mounts = tuple(_mounted(mounts, os.fspath(bundle)))

    def open_regular(self, path: str) -> int:
        """Open a regular file for reading, and return its descriptor.

        Raises:
            NotRegularError: it is of another type; it was not opened.
            FileNotFoundError: it does not exist, or not before the container does.
            OSError: it cannot be opened.
        """
        table: _Table = {"": _Source(self._layers, "")}
        for mount in self._mounts:
            self._attach(table, mount)
        source = _source(table, _resolve(table, path))
        bases = [] if source is None else _bases(source)
        if source is None or not bases:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return open_regular(source.inner.lstrip("/"), root=bases[0]) if source.inner else open_regular(bases[0])

    @contextmanager
    def opened_directory(self, path: str) -> Iterator[list[int]]:
        """Open a directory of the root filesystem, for the block: its descriptors in the layers, the uppermost first.

        Raises:
            FileNotFoundError: it does not exist.
            OSError: it cannot be opened, or is of another type.
        """
        with ExitStack() as stack:
            top = _Source(self._layers, "")
            inner = _resolve({"": top}, path)
            found: list[int] = []
            for base in _bases(top._replace(inner=inner)):
                found.append(open_in_root(base, inner or "/", os.O_RDONLY | os.O_DIRECTORY))
                stack.callback(os.close, found[-1])
            if not found:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            yield found

    def missing_points(self, files: Iterable[str], directories: Iterable[str]) -> Iterator[MissingPoint]:
        """Yield the mount points that do not exist in the root filesystem itself. What this process may not look up is left out.

        Args:
            files, directories: paths that are needed too, after all mounts.
        """
        table: _Table = {"": _Source(self._layers, "")}
        for mount in self._mounts:
            yield from self._missing(table, mount.destination, mount.source is not None and os.path.isfile(mount.source))
            self._attach(table, mount)
        for path in files:
            yield from self._missing(table, path, True)
        for path in directories:
            yield from self._missing(table, path, False)

    def _missing(self, table: _Table, path: str, is_file: bool) -> Iterator[MissingPoint]:
        source = _source(table, _resolve(table, path))
        if source is None or source.bases != self._layers:
            return
        existing = _existing(source)
        if existing is not None and existing != source.inner:
            above = source._replace(inner=existing)
            yield MissingPoint(source.inner, existing, _bases(above)[0] + existing, is_file)

    def _attach(self, table: _Table, mount: _Mounted) -> None:
        place = _resolve(table, mount.destination)
        found: _Table = {place: None if mount.source is None else _Source((mount.source,), "")}
        if mount.source is not None and is_below(mount.source, self._layers[0]):
            inside = _resolve(table, mount.source[len(self._layers[0]) :])
            found[place] = _source(table, inside)
            if mount.recursive:
                found |= {place + other[len(inside) :]: table[other] for other in table if other.startswith(f"{inside}/")}
        for hidden in [other for other in table if other.startswith(f"{place}/")]:
            del table[hidden]
        table.update(found)


def _mounted(mounts: Iterable[Mount], bundle: str) -> Iterator[_Mounted]:
    """Yield the mounts that change which files there are."""
    new: list[str] = []  # filesystems in which nothing has been bound: another one changes nothing there
    for index, mount in enumerate(mounts):
        entry = parse_entry(mount, f"$.mounts[{index}]")
        if entry.is_bind:
            source = posixpath.normpath(posixpath.join(bundle, mount.source or ""))
            yield _Mounted(entry.destination, source, entry.options.recursive_bind)
            new.clear()
        elif not (entry.is_change or entry.options.copy_up or any(is_below(entry.destination, other) for other in new)):
            yield _Mounted(entry.destination, None, recursive=False)
            new.append(entry.destination)


def _source(table: _Table, path: str) -> _Source | None:
    """Return what a resolved path names; None where a new filesystem is mounted."""
    place = path
    while place not in table:
        place = place.rpartition("/")[0]
    mounted = table[place]
    return None if mounted is None else _Source(mounted.bases, mounted.inner + path[len(place) :])


def _resolve(table: _Table, path: str) -> str:
    """Return a path without symbolic links and dots, and without the slash at its end. Raises OSError: too many links."""
    done, links, rest = "", 0, path.split("/")[::-1]
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            done = done.rpartition("/")[0]
            continue
        candidate = f"{done}/{name}"
        target = None if candidate in table else _link(_source(table, candidate))
        if target is None:
            done = candidate
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        done = "" if target.startswith("/") else done
        rest += target.split("/")[::-1]
    return done


def _link(source: _Source | None) -> str | None:
    """Return the target of a symbolic link; None for anything else, and for what does not exist or cannot be read."""
    bases = [] if source is None else _bases(source)
    if source is None or not bases:
        return None
    try:
        return os.readlink(bases[0] + source.inner)
    except OSError:
        return None


def _existing(source: _Source) -> str | None:
    """Return the longest part of a path that exists; None if this process may not look it up, or a part is not a directory."""
    path = source.inner
    while path:
        try:
            if any(os.path.lexists(base + path) for base in _bases(source._replace(inner=path))):
                return path if path == source.inner or os.path.isdir(_bases(source._replace(inner=path))[0] + path) else None
        except PermissionError:
            return None
        path = path.rpartition("/")[0]
    return ""


def _bases(source: _Source) -> list[str]:
    """Return the directories of the host that have a file, the uppermost layer first.

    Of a directory it is each layer with a part of it, as in an overlay; of another file the uppermost one, unless it is hidden.
    """
    if len(source.bases) == 1:
        return [source.bases[0]]
    found: list[str] = []
    parts = source.inner.split("/")[1:]
    for base in source.bases:
        place, opaque, info = base, is_opaque(base), os.lstat(base)
        for number, part in enumerate(parts):
            place = f"{place}/{part}"
            try:
                info = os.lstat(place)
            except FileNotFoundError:
                break
            if not stat.S_ISDIR(info.st_mode):
                if not (found or is_whiteout(info)) and number + 1 == len(parts):
                    found.append(base)
                return found
            opaque = opaque or is_opaque(place)
        else:
            found.append(base)
        if opaque:
            break
    return found


CALLER: Final = "caller"
"""The value of ``user=`` that stands for the caller."""
_SHELL: Final = "/bin/sh"
"""The login shell in passwd: the caller's own may not exist in the image."""


@attrs.frozen(kw_only=True)
class Caller:
    """The user that calls, as this host knows it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    """The supplementary groups."""
    name: str
    group: str
    """The name of the primary group."""
    full_name: str
    home: str
    """``$HOME``, or the home directory in passwd(5)."""

    @classmethod
    def current(cls) -> Self:
        """Return the caller. A user or group that this host cannot name gets a name from its id."""
        uid, gid = os.geteuid(), os.getegid()
        try:
            entry = pwd.getpwuid(uid)
            name, full_name, home = entry.pw_name, entry.pw_gecos, entry.pw_dir
        except KeyError:
            name, full_name, home = f"user{uid}", "", "/"
        try:
            group = grp.getgrgid(gid).gr_name
        except KeyError:
            group = f"group{gid}"
        variable = os.environ.get("HOME", "")
        if variable.startswith("/") and variable.isprintable() and ":" not in variable:
            home = posixpath.normpath(variable)
        groups = tuple(sorted(os.getgroups()))
        return cls(uid=uid, gid=gid, groups=groups, name=name, group=group, full_name=full_name, home=home)

    def accounts(self, root: ContainerRoot) -> dict[str, bytes]:
        """Return passwd and group of a container, by their names, with the caller's lines before all others.

        Raises:
            BundleError: a file of the container is too large, of another type than a regular one, or cannot be read.
        """
        lines = {
            "passwd": (self.name, "x", str(self.uid), str(self.gid), self.full_name, self.home, _SHELL),
            "group": (self.group, "x", str(self.gid), ""),
        }
        return {name: os.fsencode(f"{':'.join(fields)}\n{read_text(root, f'etc/{name}')}") for name, fields in lines.items()}


def working_directory() -> str | None:
    """Return the caller's working directory, by ``$PWD`` if that names it; None if it was removed or cannot be reached."""
    path = os.environ.get("PWD", "")
    try:
        if path.startswith("/") and posixpath.normpath(path) == path and os.path.samefile(path, "."):
            return path
    except OSError:
        pass  # it names a directory that was removed, or that this user cannot reach
    try:
        return os.getcwd()
    except OSError:
        return None


def is_shown(path: str, mounts: Iterable[Mount]) -> bool:
    """Return whether the mounts of a configuration show a path of the host at the same path in the container."""
    shown = False
    for mount in mounts:
        if is_below(path, mount.destination):
            is_bind = mount.type == "bind" or not {"bind", "rbind"}.isdisjoint(mount.options or ())
            shown = is_bind and posixpath.normpath(mount.source or "") == posixpath.normpath(mount.destination)
    return shown
