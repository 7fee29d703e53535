"""The terminal of a process (config.md#process, ``terminal`` and ``consoleSize``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import kernel as k
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Process


def compile_terminal(b: Builder, process: Process, attached: dict[str, int], root: int) -> None:
    """A terminal from the container's own devpts; ``attached`` is empty for an exec, where /dev/console stays as it is."""
    dev, devpts = b.slot(), attached.get("/dev/pts")
    b.init("open", root, "dev", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, dev, text="/dev")
    if devpts is None:
        devpts = b.slot()
        b.init("open", root, "dev/pts", k.O_PATH, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, devpts, text="/dev/pts")
    size = process.console_size
    rows, cols = (size.height, size.width) if size else (0, 0)
    uid = (process.user.uid or 0) if process.user else 0
    b.init("console", devpts, dev, rows, cols, uid, int(bool(attached)), text="a terminal from the container's own devpts")
