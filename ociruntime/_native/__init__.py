"""The native module of the calling process, and its results as Python has them."""

from __future__ import annotations

import os

from ._host import ffi, lib

__all__ = ["check", "ffi", "lib"]


def check(result: int, path: str = "") -> int:
    """Return the result of a native call. Raises the OSError that a negative one stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), *([path] if path else []))
    return result
