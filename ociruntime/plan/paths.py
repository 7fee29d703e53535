"""Paths of a container, as text."""

from __future__ import annotations

import posixpath


def destination_in_root(path: str) -> str:
    """A destination as seen from the root: absolute and without dots; a relative one counts from ``/`` (config.md, Mounts)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def below(path: str, directory: str) -> bool:
    """Whether a path is a directory or lies below it, by their components; both are absolute and without dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
