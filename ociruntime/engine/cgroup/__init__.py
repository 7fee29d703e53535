"""Cgroup directories: made, written, frozen, emptied, measured and removed. Every function takes the container's directories."""

from __future__ import annotations

from .account import Used, oom_kills, used
from .freezer import freeze, frozen
from .tasks import kill, processes
from .tree import enable, make, remove, remove_parents, survey, write

__all__ = [
    "Used",
    "enable",
    "freeze",
    "frozen",
    "kill",
    "make",
    "oom_kills",
    "processes",
    "remove",
    "remove_parents",
    "survey",
    "used",
    "write",
]
