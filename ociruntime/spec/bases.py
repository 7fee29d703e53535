"""The base of each class of the model, ``MemoryBase`` of ``Memory`` and so on: all of them `Model`.

``bases.pyi``, generated from the classes, gives each one the `evolve` and `at` that type checkers see: with the members of that
very class, and their types.
"""

from __future__ import annotations

from .base import Model


def __getattr__(name: str) -> type[Model]:
    if not name.endswith("Base"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return Model
