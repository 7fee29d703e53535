"""Paths of a container and words of its mounts, as text."""

from __future__ import annotations

import posixpath


def destination_in_root(path: str) -> str:
    """A destination as seen from the root: absolute and without dots; a relative one counts from ``/`` (config.md, Mounts)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def below(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies below it, by their components; both are absolute and without dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def split(option: str) -> list[str]:
    """An option at its commas, as mount(2) takes them in its data; quoted or escaped ones do not count."""
    parts, start, quoted = [], 0, False
    for at, char in enumerate(option):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted and option[at - 1 : at] != "\\":
            parts.append(option[start:at])
            start = at + 1
    return [part for part in (*parts, option[start:]) if part]
