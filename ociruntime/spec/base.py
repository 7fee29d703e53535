"""What the classes of the object model share: the base class, immutable mappings, open enumerations."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Generic, Self, TypeVar

import attrs

V = TypeVar("V")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class FrozenMap(Mapping[str, V], Generic[V]):
    """An immutable mapping, equal and hashable by value; it keeps the order of its document."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._items: dict[str, V] = dict(items or {})

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(repr(sorted(self._items.items(), key=lambda item: item[0])))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        return repr(self._items)


class OpenEnum(StrEnum):
    """An enumeration of strings that keeps values which a later spec may add."""

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        member = str.__new__(cls, value)
        member._name_ = value
        member._value_ = value
        return member

    @property
    def known(self) -> bool:
        """Whether the runtime spec names this value."""
        return self._name_ in type(self).__members__


EMPTY: FrozenMap[Json] = FrozenMap()


@attrs.frozen(kw_only=True, repr=False)
class Model:
    """Base of every object of a document. Immutable; equal and hashable by value.

    A member that is absent in JSON is None; one that is present and empty is an empty tuple or mapping.
    """

    extensions: FrozenMap[Json] = attrs.field(default=EMPTY)
    """Members that the runtime spec does not name, kept as they came."""

    def evolve(self, **changes: object) -> Self:
        """A copy with some members changed."""
        return attrs.evolve(self, **typing.cast("dict[str, typing.Any]", changes))

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={value!r}"
            for field in attrs.fields(type(self))
            if (value := getattr(self, field.name)) is not None and not (field.name == "extensions" and not value)
        )
        return f"{type(self).__name__}({', '.join(shown)})"
