"""Compiling a spec into a `Plan`: pure, and readable before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .compile import compile_create as compile_create
    from .compile import compile_exec as compile_exec
    from .model import Plan as Plan
    from .model import Side as Side
    from .model import Step as Step

__getattr__, __dir__, __all__ = lazy_names(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__, {"compile": "compile_create compile_exec", "model": "Plan Step Side"}
)
