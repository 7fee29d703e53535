"""The documentation of the model, read from its source: what a schema and a notebook show about a member."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, NamedTuple

from .base import Json, Model

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNIT: Final = re.compile(r" ?Unit: ([^.;]+)")
_DEFAULT: Final = re.compile(r" ?Default: ([^.]+?)(?:\.| \(|$)")
_SECTION: Final = re.compile(r" ?\(([a-z-]+\.md#[\w-]+)\)")
_WORDS: Final = {"false": False, "true": True}


class Description(NamedTuple):
    """What the documentation says about a class or a member."""

    text: str = ""
    unit: str = ""
    default: str = ""
    """What holds when the member is absent."""
    section: str = ""
    """Section of the runtime spec."""

    @property
    def default_value(self) -> Json:
        """The default as a JSON value, None when it is only words."""
        if self.default in _WORDS:
            return _WORDS[self.default]
        return int(self.default) if self.default.isdigit() else None


def parse(text: str) -> Description:
    """A docstring by our own conventions: ``What it is. Unit: bytes. Default: 0 (config.md#section)."""
    unit, default, section = (pattern.search(text) for pattern in (_UNIT, _DEFAULT, _SECTION))
    return Description(
        text=_SECTION.sub("", " ".join(text.split())),
        unit=unit[1].strip() if unit else "",
        default=default[1].strip() if default else "",
        section=section[1] if section else "",
    )


@cache
def _module(name: str) -> Mapping[str, Mapping[str, Description]]:
    """Class -> member -> description; the class's own is under ``""``."""
    spec = find_spec(name)
    loader = spec.loader if spec else None
    source: str | None = loader.get_source(name) if hasattr(loader, "get_source") else None  # type: ignore[union-attr]
    found: dict[str, Mapping[str, Description]] = {}
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.ClassDef):
            members = found[node.name] = {"": parse(ast.get_docstring(node) or "")}
            for member, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(member, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
                    target = member.target if isinstance(member, ast.AnnAssign) else member.targets[0]
                    if isinstance(target, ast.Name) and isinstance(after.value, ast.Constant):
                        members[target.id] = parse(str(after.value.value))
    return found


def describe(cls: type, member: str = "") -> Description:
    """The description of a class or of one of its members; empty for a class whose source is not there."""
    for base in cls.__mro__:
        if base is not Model and base.__module__ in sys.modules:
            found = _module(base.__module__).get(base.__name__, {}).get(member)
            if found is not None:
                return found
    return Description()


def section(cls: type[Model], member: str = "") -> str:
    """The section of the runtime spec about a member, or about its class."""
    return (describe(cls, member).section if member else "") or cls.SECTION
