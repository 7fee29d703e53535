"""`Model`, the base of every document class: a record with the methods that read, write, change, check and show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, cast

import attrs
from typing_extensions import TypeVar

from ..arguments import check_type
from ..errors import SpecError
from ..interrupts import DeferredSignals
from .base import OpenEnum, Problems, Record, members_of, present
from .codec import dumps, load, loads, read_source, save, structure, to_dict
from .edit import At, merge
from .schema import describe, schema, section, shape_problems

if TYPE_CHECKING:
    import os

    from .base import Json, Problem
    from .rules.host import HostLike

__all__ = [
    "tree",
]


A_co = TypeVar("A_co", covariant=True, default=object)
E_co = TypeVar("E_co", covariant=True)
E = TypeVar("E")


class _Place(Protocol[E_co]):
    @property
    def evolve(self) -> E_co: ...


class _HasPlace(Protocol[E_co]):
    @property
    def at(self) -> _Place[E_co]: ...


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Model(Record, Generic[A_co]):
    """Base of every object of a document. Immutable; equal and hashable by value.

    Members are given by name. A member that is absent in JSON is None; one that is present and empty is an empty tuple or mapping.
    Lists and dicts become tuples and `FrozenMap`, strings become members of an enumeration. The type parameter is the class in
    ``places.pyi`` that describes ``at``.

    Raises:
        TypeError: a member is unknown, missing or of another type.
    """

    # ---- changing ----

    @property
    def at(self) -> A_co:
        """A place in the object, to read or change it: ``spec.at.linux.resources.memory.limit.set(512 << 20)``."""
        return cast("A_co", At(self))

    @property
    def evolve(self: _HasPlace[E]) -> E:
        """Return a copy with some members changed: ``spec.evolve(hostname="web")``. None makes a member absent.

        Raises:
            TypeError: a member is unknown or of another type, or a required one is None.
        """
        return self.at.evolve

    def merge(self, other: Self | Mapping[str, Json]) -> Self:
        """Return a copy with ``other``, an object or a part of a JSON document, laid over it (see `ociruntime.spec.merge`).

        Raises:
            SpecError: the result is not a document of this class.
        """
        check_type("other", other, (Record, Mapping), "an object of the model or a mapping")
        return merge(self, other)

    # ---- JSON ----

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> Self:
        """Read a document from a path, from JSON text (a str that starts with ``{``, or bytes) or from a mapping.

        Raises:
            SpecError: with every problem and its JSON path.
            OSError: the file cannot be read.
        """
        return load(cls, source)

    @classmethod
    def loads(cls, text: str | bytes) -> Self:
        """Read a document from JSON text. Raises SpecError with every problem and its JSON path."""
        return loads(cls, text)

    def to_dict(self) -> dict[str, Json]:
        """Return the JSON document as Python values. Absent members are left out."""
        return to_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Return the JSON document as text."""
        return dumps(self, indent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to a file, atomically, with mode 0644 less the umask. Raises OSError."""
        with DeferredSignals():
            save(self, path)

    @classmethod
    def json_schema(cls) -> dict[str, Json]:
        """Return the JSON Schema (draft 4, as the official one) of the document."""
        return schema(cls)

    # ---- checking ----

    @classmethod
    def check(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> Problems:
        """Return every problem of a document that need not load, errors and warnings. Raises OSError: the file cannot be read."""
        return cls._check(source, None)

    def problems(self) -> Problems:
        """Return every problem of the object, errors and warnings: its shape, and the rules of the text about it."""
        return self._problems(None)

    def validate(self) -> Problems:
        """Check the object against its schema and the rules of the runtime spec.

        Returns:
            The warnings.

        Raises:
            SpecError: with every error.
        """
        return raise_errors(self.problems())

    @classmethod
    def _check(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json], host: HostLike | None) -> Problems:
        try:
            document, _ = read_source(source)
        except SpecError as error:
            return Problems(error.problems)
        try:
            found: Iterable[Problem] = structure(cls, document)._broken_rules(host)
        except SpecError as error:
            found = error.problems
        return _joined(shape_problems(cls, document), found)

    def _problems(self, host: HostLike | None) -> Problems:
        return _joined(shape_problems(type(self), self.to_dict()), self._broken_rules(host))

    def _broken_rules(self, host: HostLike | None) -> list[Problem]:
        """Return the problems that the schema does not find. Classes of documents with rules override it."""
        return []

    def _repr_html_(self) -> str:
        return tree(self)


def _joined(shape: tuple[Problem, ...], rules: Iterable[Problem]) -> Problems:
    """Return the problems of the shape, and those of the rules at other places."""
    places = {problem.path for problem in shape}
    return Problems((*shape, *(problem for problem in rules if problem.path not in places)))


def raise_errors(problems: Iterable[Problem]) -> Problems:
    """Return the warnings among problems. Raises SpecError with the errors, if there are any."""
    found = Problems(problems)
    errors = [problem for problem in found if problem.severity == "error"]
    if errors:
        raise SpecError(errors)
    return found


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
