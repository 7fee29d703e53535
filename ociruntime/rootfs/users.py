"""Users and groups of a root filesystem, by its ``/etc/passwd`` and ``/etc/group``.

The image, or the container, writes these files. They are read with a bound, never through a link out of the root, and only if they
are regular files. A line ends at a newline and nowhere else; a line without the ids that it should have is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import BundleError
from ..files import open_regular

if TYPE_CHECKING:
    from ..spec import Process, User

MAX_FILE: Final = 1 << 20
"""Bytes of a file that is read."""
MAX_ID: Final = (1 << 32) - 2
_PASSWD: Final = ("etc/passwd", (2, 3))
_GROUP: Final = ("etc/group", (2,))
"""A file, and the columns that hold ids."""


class _Line(NamedTuple):
    """A line of one of the files."""

    fields: list[str]
    ids: tuple[int, ...]


def resolve(text: str, rootfs: Path) -> User:
    """Return the user that ``user[:group]`` stands for; each part is a name or a number.

    A number needs no file: where none can be read, a user given by number is in group 0 and no other. The primary group is one of
    the supplementary groups.

    Raises:
        BundleError: the root filesystem does not know the name, or the file that would know it cannot be read.
    """
    from ..spec import User

    name, _, group = text.partition(":")
    uid, line = _number(name), _find(rootfs, _PASSWD, name)
    if uid is None:
        if line is None:
            raise BundleError(f"the image's user {name!r:.80} is neither a number nor in its /etc/passwd")
        uid = line.ids[0]
    if group:
        return User(uid=uid, gid=_group(group, rootfs)).in_primary_group()
    gid = line.ids[1] if line else 0
    members = _groups_of(rootfs, line.fields[0] if line else name, needed=_number(name) is None)
    return User(uid=uid, gid=gid, additional_gids=tuple(sorted(members))).in_primary_group()


def _group(name: str, rootfs: Path) -> int:
    gid = _number(name)
    if gid is not None:
        return gid
    line = _find(rootfs, _GROUP, name)
    if line is None:
        raise BundleError(f"the image's group {name!r:.80} is neither a number nor in its /etc/group")
    return line.ids[0]


def env_with_home(process: Process, rootfs: Path) -> tuple[str, ...] | None:
    """Return the environment of a process with HOME: by default the home directory of its user, as runtimes set it."""
    env = process.env or ()
    if any(entry.startswith("HOME=") for entry in env):
        return process.env
    uid = (process.user.uid or 0) if process.user else 0
    return (*env, f"HOME={home(uid, rootfs)}")


def home(uid: int, rootfs: Path) -> str:
    """Return the home directory of a user; ``/`` where the root filesystem does not tell, or not in a way that can be read."""
    line = _find(rootfs, _PASSWD, str(uid))
    path = line.fields[5] if line and len(line.fields) > 5 else ""
    return path if path.startswith("/") and "\0" not in path else "/"


def _number(text: str) -> int | None:
    """Return the id that a text is, or None. Python refuses to convert thousands of digits, so the length is checked first."""
    digits = text.lstrip("0") or text[-1:]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) <= MAX_ID else None


def _find(rootfs: Path, file: tuple[str, tuple[int, ...]], name: str) -> _Line | None:
    """Return the first line for a name, or for an id. Raises BundleError as `_lines` does, but not for an id."""
    number = _number(name)
    lines = _lines(rootfs, file, needed=number is None)
    return next((line for line in lines if (line.fields[0] == name if number is None else line.ids[0] == number)), None)


def _groups_of(rootfs: Path, user: str, *, needed: bool) -> set[int]:
    lines = _lines(rootfs, _GROUP, needed=needed)
    return {line.ids[0] for line in lines if len(line.fields) > 3 and user in line.fields[3].split(",")}


def _lines(rootfs: Path, file: tuple[str, tuple[int, ...]], *, needed: bool) -> Iterator[_Line]:
    """Yield the valid lines of a file; none where it does not exist.

    Args:
        needed: whether a file that cannot be read is an error. Otherwise it is taken for an empty one.

    Raises:
        BundleError: the file is too large, of another type than a regular one, or cannot be read.
    """
    path, columns = file
    try:
        content = _read(rootfs, path)
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


def _read(rootfs: Path, path: str) -> str:
    try:
        with open(open_regular(path, root=rootfs), "rb") as content:
            raw = content.read(MAX_FILE + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise BundleError(f"the image's /{path}: {error.strerror}") from error
    if len(raw) > MAX_FILE:
        raise BundleError(f"the image's /{path}: larger than {MAX_FILE} bytes")
    return raw.decode("utf-8", "surrogateescape")


__all__ = ["home", "resolve"]
