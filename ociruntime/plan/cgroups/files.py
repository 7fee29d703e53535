"""What the modules of one cgroup version have in common."""

from __future__ import annotations

from typing import NamedTuple


class Write(NamedTuple):
    """One value for one file of one controller."""

    controller: str
    file: str
    value: str
