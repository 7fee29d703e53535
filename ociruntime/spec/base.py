"""What the classes of the object model share: the base class, immutable mappings, open enumerations.

The classes behave as ``@attrs.frozen(kw_only=True)`` ones and speak its protocol (`attrs.fields`, `attrs.evolve`,
`attrs.asdict`, cattrs), but the decorator does not make them: importing attrs and generating the methods of the classes that the
default config takes cost 24 ms, three times the interpreter's own start, in each process of the command line. Here a class is
its annotations and defaults, nothing is generated, and ``__attrs_attrs__`` is made when somebody asks. An instance's ``__dict__``
holds the members that are present, in the order of the document, and the class attribute None stands for an absent one: reading a
document is filling one dict for each object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    import attrs

    from ..errors import Problem

V = TypeVar("V")
Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
FrozenJson = None | bool | int | float | str | tuple["FrozenJson", ...] | Mapping[str, "FrozenJson"]
"""A JSON value that cannot change: arrays are tuples, objects `FrozenMap`."""


class FrozenMap(Mapping[str, V], Generic[V]):
    """An immutable mapping, equal and hashable by value; it keeps the order of its document."""

    __slots__ = ("_items",)
    _items: dict[str, V]

    def __init__(self, items: Mapping[str, V] | Iterable[tuple[str, V]] = (), /) -> None:
        object.__setattr__(self, "_items", dict(items))

    def __getitem__(self, key: str) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a FrozenMap cannot change: {name}")

    def __or__(self, other: Mapping[str, V]) -> FrozenMap[V]:
        return FrozenMap({**self._items, **other})

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FrozenMap):
            return self._items == other._items
        return self._items == other

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[FrozenMap[V]], tuple[dict[str, V]]]:
        return type(self), (self._items,)


class OpenEnum(StrEnum):
    """An enumeration of strings that keeps values which a later spec may add: ``known`` is false for those."""

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
        return self._value_ in type(self)._value2member_map_

    # A value from the future is an object of its own each time, and an enumeration's identity would not survive a copy.
    def __reduce_ex__(self, protocol: object) -> tuple[type[Self], tuple[str]]:
        return type(self), (self._value_,)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self


EMPTY: FrozenMap[FrozenJson] = FrozenMap()


def freeze(value: object) -> object:
    """Arrays as tuples and objects as `FrozenMap`, all the way down."""
    if isinstance(value, list | tuple):
        return tuple([freeze(item) for item in value])
    if isinstance(value, Mapping):
        return FrozenMap({key: freeze(item) for key, item in value.items()})
    return value


class _AttrsFields:
    """``__attrs_attrs__`` of a class, made at the first use, which imports attrs."""

    def __get__(self, instance: object, owner: type[Model]) -> tuple[object, ...]:
        from .fields import attrs_fields

        return attrs_fields(owner)


@dataclass_transform(kw_only_default=True, frozen_default=True, eq_default=True)
class Model:
    """Base of every object of a document. Immutable; equal and hashable by value.

    Members are given by name. One that is absent in JSON is None; one that is present and empty is an empty tuple or mapping. Lists
    and dicts become tuples and `FrozenMap`.

    Raises:
        TypeError: a member that the class does not have, or a required one that is missing.
    """

    extensions: Mapping[str, FrozenJson] = EMPTY
    """Members that the runtime spec does not name, kept as they came."""

    KEYS: ClassVar[FrozenMap[str]] = FrozenMap()
    """Attribute -> JSON key, where it is not the attribute in camelCase."""
    SECTION: ClassVar[str] = ""
    """The section of the runtime spec that describes the object."""

    NULLABLE: ClassVar[bool] = False
    """Whether null stands for absence."""

    if TYPE_CHECKING:
        __attrs_attrs__: ClassVar[tuple[attrs.Attribute[object], ...]]
    else:
        __attrs_attrs__ = _AttrsFields()

        def __init__(self, **members: object) -> None:
            from .fields import checked_members

            self.__dict__.update(checked_members(type(self), members))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot change: use evolve({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} cannot change: use evolve({name}=None)")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), frozenset(self.__dict__.items())))

    def __repr__(self) -> str:
        from .show import short

        return short(self)

    def _repr_html_(self) -> str:
        from ..notebook import tree

        return tree(self)

    # ---- changing ----

    if not TYPE_CHECKING:
        # Type checkers see those of each class in `bases.pyi`.

        def evolve(self, **changes):
            """A copy with some members changed; None makes a member absent. ``at`` reaches deeper.

            Raises:
                TypeError: a name that is no member, a value that cannot be there, or None for a required member.
            """
            from .fields import checked_members

            made = object.__new__(type(self))
            made.__dict__.update(checked_members(type(self), {**self.__dict__, **changes}))
            return made

        __replace__ = evolve  # copy.replace() of Python 3.13

        @property
        def at(self):
            """A place in the object, to read or change what is there: ``spec.at.linux.resources.memory.limit.set(512 << 20)``."""
            from .paths import At

            return At(self)

    def merge(self, other: Self | Mapping[str, Json]) -> Self:
        """This with ``other``, an object or a part of its JSON document, laid over it (see `ociruntime.spec.overlay`).

        Raises:
            SpecError: what comes out is not a document of this class.
        """
        from .overlay import merge

        return merge(self, other)

    # ---- JSON ----

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> Self:
        """Read a document from a path, from JSON text (a str that starts with ``{``, or bytes) or from a mapping.

        Raises:
            SpecError: with every problem and its JSON path.
            OSError: the file cannot be read.
        """
        from .codec import load

        return load(cls, source)

    @classmethod
    def loads(cls, text: str | bytes) -> Self:
        """Read a document from JSON text. Raises SpecError with every problem and its JSON path."""
        from .codec import loads

        return loads(cls, text)

    def to_dict(self) -> dict[str, Json]:
        """The JSON document as Python values; what is absent stays absent."""
        from .codec import unstructure_object

        return unstructure_object(self)

    def to_json(self, indent: int | None = None) -> str:
        """The JSON document as text."""
        from .codec import dumps

        return dumps(self, indent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to a file, atomically, with mode 0644 less the umask. Raises OSError."""
        from .codec import save

        save(self, path)

    @classmethod
    def json_schema(cls) -> dict[str, Json]:
        """The JSON Schema (draft 4, as the official one) of the document, made from the classes."""
        from .schema import schema

        return schema(cls)

    @classmethod
    def check(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> tuple[Problem, ...]:
        """Everything wrong with a document that may not even load, errors and warnings. Raises OSError: the file cannot be read."""
        from .check import check

        return check(cls, source)

    def problems(self) -> tuple[Problem, ...]:
        """Everything wrong with the object, errors and warnings: its shape, and the rules of the text about it."""
        from .check import problems

        return problems(self)

    def validate(self) -> tuple[Problem, ...]:
        """Check the object against its schema and the rules of the runtime spec.

        Returns:
            The warnings.

        Raises:
            SpecError: with every error.
        """
        from .check import refuse

        return refuse(self.problems())
