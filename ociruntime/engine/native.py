"""The native module, and its results as Python has them."""

from __future__ import annotations

import os

from .._native._host import ffi, lib


def check(result: int, path: str = "") -> int:
    """A native result, or the OSError that it stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *([path] if path else []))
    return result


__all__ = ["check", "ffi", "lib"]
