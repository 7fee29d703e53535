"""Saying what a plan does not carry out as its config has it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from ..errors import OCIRuntimeWarning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PACKAGE: Final = __name__.partition(".")[0]


def warn(texts: Iterable[str]) -> None:
    """Warn in the name of whoever called the package."""
    for text in texts:
        level, frame = 1, sys._getframe()
        while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
            level, frame = level + 1, frame.f_back
        warnings.warn(text, OCIRuntimeWarning, stacklevel=level)
