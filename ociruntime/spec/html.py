"""The representation of documents in notebooks: HTML without scripts and style sheets, which is safe in any viewer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from .base import OpenEnum, Record, members_of, present
from .schema import describe, section

__all__ = ["tree"]

_OPEN_DEPTH: Final = 1
"""Number of levels that are unfolded initially."""
_MAX_ITEMS: Final = 100
"""Maximum number of items of an array that are shown."""
_MAX_TEXT: Final = 200
_NAME: Final = "font-family:monospace;font-weight:600"
_VALUE: Final = "font-family:monospace;white-space:pre-wrap"
_DIM: Final = "opacity:.6"
_INDENT: Final = "margin-left:1.4em"


def tree(value: Record) -> str:
    """Return a collapsible tree of an object. The documentation of a member is shown as its tooltip."""
    head = f'<span style="{_NAME}">{type(value).__name__}</span>'
    return f'<div class="ociruntime">{_branch(head, describe(type(value)).text, _members(value, 1), 0)}</div>'


def _members(value: Record, depth: int) -> Iterable[str]:
    cls = type(value)
    members = members_of(cls)
    for name, member in present(value).items():
        if name == "extensions":
            for key, item in value.extensions.items():
                yield _node(key, "not defined by the runtime spec", item, depth)
            continue
        about = describe(cls, name)
        where = section(cls, name)
        yield _node(name, f"{members[name].key}: {about.text} ({where})", member, depth, about.unit)


def _node(name: str, title: str, value: object, depth: int, unit: str = "") -> str:
    head = f'<span style="{_NAME}">{escape(name)}</span>'
    if isinstance(value, Record):
        return _branch(f'{head} <span style="{_DIM}">{_summary(value)}</span>', title, _members(value, depth + 1), depth)
    if isinstance(value, tuple) and (len(value) > 8 or any(isinstance(item, Record | Mapping | tuple) for item in value)):
        shown = (_node(f"[{index}]", "", item, depth + 1) for index, item in enumerate(value[:_MAX_ITEMS]))
        more = [f'<div style="{_DIM}">… {len(value) - _MAX_ITEMS} more</div>'] if len(value) > _MAX_ITEMS else []
        return _branch(f'{head} <span style="{_DIM}">{len(value)} items</span>', title, [*shown, *more], depth)
    if isinstance(value, Mapping) and value:
        shown = (_node(str(key), "", item, depth + 1) for key, item in value.items())
        return _branch(f'{head} <span style="{_DIM}">{len(value)} keys</span>', title, shown, depth)
    text = _text(value)
    suffix = f' <span style="{_DIM}">{escape(unit)}</span>' if unit else ""
    return f'<div title="{escape(title)}">{head}: <span style="{_VALUE}">{escape(text)}</span>{suffix}</div>'


def _branch(head: str, title: str, inside: Iterable[str], depth: int) -> str:
    unfolded = " open" if depth < _OPEN_DEPTH else ""
    body = "".join(inside)
    return f'<details{unfolded}><summary title="{escape(title)}">{head}</summary><div style="{_INDENT}">{body}</div></details>'


def _summary(value: Record) -> str:
    """Return a summary of a folded object: its first plain members."""
    words = [_text(member) for member in present(value).values() if isinstance(member, str | int) and not isinstance(member, bool)]
    text = ", ".join(words[:3])
    return escape(text if len(text) <= 60 else f"{text[:59]}…")


def _text(value: object) -> str:
    if isinstance(value, OpenEnum):
        return value.value
    if isinstance(value, tuple):
        text = "[" + ", ".join(_text(item) for item in value) + "]"
    elif isinstance(value, bool | None):
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = "{}" if isinstance(value, Mapping) else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
