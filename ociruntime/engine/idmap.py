"""Maps of ids by newuidmap and newgidmap, for a user without privileges (newuidmap(1))."""

from __future__ import annotations

import subprocess
from typing import Final

from ..errors import UnsupportedError

_PATIENCE: Final = 30.0
"""Seconds for a helper that may ask a directory service."""


def by_helper(helper: str, pid: int, text: str) -> None:
    """Have a helper write the map of one process, which is a child of ours that waits. Raises UnsupportedError with its words."""
    command = [helper, str(pid), *text.split()]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={},
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{helper} took more than {_PATIENCE:.0f} s") from None
    if done.returncode != 0:
        raise UnsupportedError(f"{helper} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
