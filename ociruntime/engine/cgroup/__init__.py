"""Cgroup directories: made, written, frozen, emptied, measured and removed. Every function takes the container's directories."""

from __future__ import annotations

from .account import Usage, oom_kills, usage
from .freezer import freeze, frozen, thaw_to_die
from .tasks import kill, processes, remove, signal_all
from .tree import (
    check_memory,
    delegate,
    enable,
    enterable,
    give_realtime,
    make,
    remove_parents,
    survey,
    write,
    write_first,
    write_set,
)

__all__ = [
    "Usage",
    "check_memory",
    "delegate",
    "enable",
    "enterable",
    "freeze",
    "frozen",
    "give_realtime",
    "kill",
    "make",
    "oom_kills",
    "processes",
    "remove",
    "remove_parents",
    "signal_all",
    "survey",
    "thaw_to_die",
    "usage",
    "write",
    "write_first",
    "write_set",
]
