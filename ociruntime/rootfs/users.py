"""``User`` of an image config, by the image's passwd and group: read with a bound, never through a link out of the root."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..engine.native import check, lib
from ..errors import BundleError

if TYPE_CHECKING:
    from ..spec import User

MAX_FILE: Final = 1 << 20
MAX_ID: Final = (1 << 32) - 2
_RESOLVE_IN_ROOT_NO_MAGICLINKS: Final = 0x10 | 0x02


def resolve(text: str, rootfs: Path) -> User:
    """``user[:group]``, each a name or a number, as numbers. Raises BundleError for one that the image does not know."""
    from ..spec import User

    name, _, group = text.partition(":")
    row = _find(rootfs, "etc/passwd", name)
    uid = _number(name) if row is None else _number(row[2])
    if uid is None:
        raise BundleError(f"the image's user {name!r} is neither a number nor in its /etc/passwd")
    gid = 0 if row is None else _number(row[3])
    if group:
        found = _find(rootfs, "etc/group", group)
        gid = _number(group) if found is None else _number(found[2])
    if gid is None:
        raise BundleError(f"the image's group {group or text!r} is neither a number nor in its /etc/group")
    members = [] if group else _groups_of(rootfs, row[0] if row else name)
    extra = tuple(sorted({number for number in members if number != gid}))
    return User(uid=uid, gid=gid, additional_gids=extra or None)


def home(uid: int, rootfs: Path) -> str:
    """The home directory of a user; ``/`` where the image does not tell, or not in a way that can be read."""
    try:
        row = _find(rootfs, "etc/passwd", str(uid))
    except (OSError, BundleError):
        return "/"
    return row[5] if row is not None and len(row) > 5 and row[5].startswith("/") else "/"


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) <= MAX_ID else None


def _find(rootfs: Path, file: str, name: str) -> list[str] | None:
    column = 2 if name.isdigit() else 0
    return next((row for row in _rows(rootfs, file) if len(row) > 2 and row[column] == name), None)


def _groups_of(rootfs: Path, user: str) -> list[int]:
    rows = (row for row in _rows(rootfs, "etc/group") if len(row) > 3 and user in row[3].split(","))
    return [number for row in rows if (number := _number(row[2])) is not None]


def _rows(rootfs: Path, file: str) -> list[list[str]]:
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        result = lib.oci_openat2(root, file.encode(), flags, _RESOLVE_IN_ROOT_NO_MAGICLINKS)
    finally:
        os.close(root)
    if result == -2:
        return []
    fd = check(result, file)
    with open(fd, "rb") as content:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BundleError(f"the image's /{file} is not a regular file")
        raw = content.read(MAX_FILE + 1)
    if len(raw) > MAX_FILE:
        raise BundleError(f"the image's /{file} is larger than {MAX_FILE} bytes")
    return [line.split(":") for line in raw.decode("utf-8", "surrogateescape").splitlines()]


__all__ = ["home", "resolve"]
