"""HOME, which runtimes set where the config does not (the peers' behaviour; the runtime spec has nothing of it)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..rootfs.users import home

if TYPE_CHECKING:
    from ..spec import Process


def has_home(process: Process) -> bool:
    """Whether the environment has a HOME."""
    return any(entry.startswith("HOME=") for entry in process.env or ())


def home_of(process: Process, rootfs: Path) -> str:
    """The variable HOME for a process: that of its user in the container's passwd."""
    uid = (process.user.uid or 0) if process.user else 0
    return f"HOME={home(uid, rootfs)}"


def with_home(process: Process, rootfs: Path) -> Process:
    """A process whose environment has a HOME."""
    return process if has_home(process) else process.evolve(env=(*(process.env or ()), home_of(process, rootfs)))
