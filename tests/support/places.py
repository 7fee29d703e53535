"""Places and sizes that several tests name."""

from __future__ import annotations

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
"""The directory of the repository, or of the unpacked source distribution."""
MiB = 1 << 20
