"""HOME, which runtimes set where the configuration does not. The runtime spec says nothing about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..rootfs.users import home

if TYPE_CHECKING:
    from ..spec import Process


def with_home(process: Process, rootfs: Path) -> Process:
    """Return a process with HOME in its environment: by default the home directory of its user in the container's passwd."""
    env = process.env or ()
    if any(entry.startswith("HOME=") for entry in env):
        return process
    uid = (process.user.uid or 0) if process.user else 0
    return process.evolve(env=(*env, f"HOME={home(uid, rootfs)}"))
