"""Compiling a spec into a `Plan`: pure, and readable before anything runs."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .compile import compile_create as compile_create
    from .compile import compile_exec as compile_exec
    from .model import Plan as Plan
    from .model import Step as Step
    from .model import Where as Where

_HOMES = {"compile_create": "compile", "compile_exec": "compile", "Plan": "model", "Step": "model", "Where": "model"}
__all__ = ["Plan", "Step", "Where", "compile_create", "compile_exec"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
