"""How an object of the model shows itself: whole when that is short, its outline otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Model, OpenEnum

WHOLE = 160
"""Characters up to which everything is shown."""


def short(value: Model) -> str:
    """The ``repr`` of an object."""
    whole = _whole(value)
    return whole if len(whole) <= WHOLE else _outline(value, 1)


def _whole(value: object) -> str:
    if isinstance(value, Model):
        return f"{type(value).__name__}({', '.join(f'{name}={_whole(member)}' for name, member in vars(value).items())})"
    if isinstance(value, tuple):
        items = ", ".join(map(_whole, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_whole(item)}" for key, item in value.items()) + "}"
    if isinstance(value, OpenEnum):
        return f"{type(value).__name__}.{value.name}" if value.known else f"{type(value).__name__}({value.value!r})"
    return repr(value)


def _outline(value: object, depth: int) -> str:
    if isinstance(value, Model):
        if not depth and vars(value):
            return f"{type(value).__name__}(…)"
        members = ", ".join(f"{name}={_outline(member, depth - 1)}" for name, member in vars(value).items())
        return f"{type(value).__name__}({members})"
    whole = _whole(value)
    if len(whole) <= 60:
        return whole
    if isinstance(value, tuple | Mapping):
        return f"<{len(value)} {'items' if isinstance(value, tuple) else 'keys'}>"
    return f"{whole[:56]}…{whole[-1]}"
