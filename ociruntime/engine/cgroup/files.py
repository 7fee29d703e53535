"""Reading and writing the files of cgroups, which may vanish at any moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from ...errors import UnsupportedError

GONE = (errno.ENOENT, errno.ENODEV)
"""What a file says whose cgroup was removed: it is not there, or it is still open."""


def read(path: str | os.PathLike[str], file: str) -> str:
    fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _content(fd)
    finally:
        os.close(fd)


def _content(fd: int) -> str:
    whole = part = os.read(fd, 16384)
    while len(part) >= 2048:  # shorter, it was the end: records are short, and a buffer of the kernel's is a page
        part = os.read(fd, 16384)
        whole += part
    return whole.decode("ascii")


def read_if_there(path: str, file: str) -> str | None:
    """The content of a file; None when there is no such file, or no longer such a cgroup."""
    try:
        fd = os.open(f"{path}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _content(fd)
    except OSError as error:
        if error.errno not in GONE:
            raise
        return None
    finally:
        os.close(fd)


def write(path: str, file: str, *values: str, member: str = "") -> None:
    """Write a value, or several, each by itself.

    Args:
        member: of linux.resources, from which the value follows.

    Raises:
        UnsupportedError: this kernel has no such file.
        OSError: it refuses the value.
    """
    try:
        fd = os.open(f"{path}/{file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise UnsupportedError(f"$.linux.resources.{member}: this kernel has no {file} ({path})") from None
    try:
        for value in values:
            os.write(fd, value.encode())
    finally:
        os.close(fd)


def likely(paths: Iterable[str], controller: str) -> list[str]:
    """The same cgroups, first those that are a controller's by the usual name: fewer files are looked for in vain."""
    return sorted(paths, key=lambda path: f"/{controller}/" not in path)


def flat(text: str | None) -> dict[str, int]:
    """A flat keyed file, one ``name number`` a line."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in (text or "").splitlines()) if value.isdigit()}


def below(path: str) -> Iterator[str]:
    """A cgroup and all that are below it, the deepest last."""
    yield path
    try:
        if os.stat(path).st_nlink <= 2:
            return  # the kernel counts the directories in it
        entries = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return
    for entry in entries:
        yield from below(entry)
