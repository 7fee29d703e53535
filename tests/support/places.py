"""Places and sizes that several tests name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
"""The directory of the repository, or of the unpacked source distribution."""
WALKTHROUGH = REPO / "examples/walkthrough.py"
MiB = 1 << 20


def link_programs(directory: Path, without: Collection[str]) -> None:
    """Fill a directory with links to all programs in PATH but some."""
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*"):
            link = directory / program.name
            if program.name not in without and not link.is_symlink():
                link.symlink_to(program)
