"""The members of a class, read off its annotations: no evaluation of them, and nothing for a class that is not used.

An annotation of the model is one of ``X``, ``tuple[X, ...]`` and ``Mapping[str, X]``, perhaps with ``| None``, where X is the
name of a plain type (`scalars`), an enumeration or a class of the model. Names are looked up in the package, which imports the
module of a platform when a document has that platform's object.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, cast

from .base import EMPTY, FrozenMap, Model, OpenEnum, freeze
from .scalars import SCALARS, Scalar

_PACKAGE: Final = sys.modules[__name__.rpartition(".")[0]]
JSON_NAME: Final = "FrozenJson"


class Kind(NamedTuple):
    """The type of a member: ``outer`` is ``""``, ``"tuple"`` or ``"Mapping"`` of what ``name`` names."""

    outer: str
    name: str

    @property
    def scalar(self) -> Scalar | None:
        return SCALARS.get(self.name)

    @property
    def cls(self) -> type:
        """The class of a value (of an item): a Model, an enumeration, or int, str, bool; object for any JSON value."""
        if self.name == JSON_NAME:
            return object
        scalar = SCALARS.get(self.name)
        return scalar.kind if scalar else named(self.name)

    @property
    def model(self) -> type[Model] | None:
        kind = self.cls
        return kind if issubclass(kind, Model) else None


class Field(NamedTuple):
    """One member of a class."""

    name: str
    key: str
    kind: Kind
    required: bool


def named(name: str) -> type:
    """A class of the model or an enumeration by its name."""
    found: object = getattr(_PACKAGE, name)
    assert isinstance(found, type)
    return found


def camel(name: str) -> str:
    """``no_new_privileges`` -> ``noNewPrivileges``."""
    if "_" not in name:
        return name
    head, *rest = name.rstrip("_").split("_")
    return head + "".join([word.capitalize() for word in rest])


def _kind(annotation: str) -> Kind:
    text = annotation.removesuffix(" | None")
    if text.startswith("tuple["):
        return Kind("tuple", text[6 : text.index(",")])
    if text.startswith("Mapping["):
        return Kind("Mapping", text[13:-1])
    return Kind("", text)


_FIELDS: dict[type[Model], dict[str, Field]] = {}


def fields_of(cls: type[Model]) -> Mapping[str, Field]:
    """The members of a class by attribute name, without ``extensions``."""
    found = _FIELDS.get(cls)
    if found is None:
        found = _FIELDS[cls] = {}
        for base in reversed(cls.__mro__[: cls.__mro__.index(Model)]):
            members = vars(base)
            keys: Mapping[str, str] = members.get("KEYS", EMPTY)
            for name, annotation in members.get("__annotations__", {}).items():
                if not annotation.startswith("ClassVar"):
                    found[name] = Field(name, keys.get(name) or camel(name), _kind(annotation), name not in members)
    return found


def checked_members(cls: type[Model], members: dict[str, object]) -> dict[str, object]:
    """What an instance holds for these members: None left out, lists and dicts frozen, strings as members of enumerations."""
    fields, held = fields_of(cls), dict[str, object]()
    for name, value in members.items():
        field = fields.get(name)
        if field is None:
            if name != "extensions":
                raise TypeError(f"{cls.__name__} has no member {name!r}{_suggestion(name, fields)}")
            if value:
                held[name] = freeze(value)
        elif value is not None:
            held[name] = _held(field, value, cls.__name__)
    missing = [name for name, field in fields.items() if field.required and name not in held]
    if missing:
        raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
    return held


def _held(field: Field, value: object, owner: str) -> object:
    kind = field.kind
    if kind.name == JSON_NAME:
        return freeze(value)
    if kind.outer == "tuple":
        # A str is a sequence too, and args="sh" a common slip.
        if not isinstance(value, list | tuple):
            raise TypeError(f"{owner}.{field.name} takes a tuple, not {value!r:.60}")
        return tuple([_item(field, item, owner) for item in value])
    if kind.outer == "Mapping":
        if not isinstance(value, Mapping):
            raise TypeError(f"{owner}.{field.name} takes a mapping, not {value!r:.60}")
        return FrozenMap({key: _item(field, item, owner) for key, item in value.items()})
    return _item(field, value, owner)


def _item(field: Field, value: object, owner: str) -> object:
    cls = field.kind.cls
    if isinstance(value, cls) and not (cls is int and isinstance(value, bool)):
        return value
    if type(value) is str and issubclass(cls, OpenEnum):
        return cls(value)
    raise TypeError(f"{owner}.{field.name} takes {cls.__name__}, not {value!r:.60}")


def _suggestion(name: str, fields: Mapping[str, Field]) -> str:
    from difflib import get_close_matches

    by_key = {field.key: field.name for field in fields.values()}
    close = [by_key[name]] if name in by_key else get_close_matches(name, fields, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


_ATTRS: dict[type[Model], tuple[object, ...]] = {}


def attrs_fields(cls: type[Model]) -> tuple[object, ...]:
    """``__attrs_attrs__``: the members as attrs describes those of its own classes."""
    found = _ATTRS.get(cls)
    if found is None:
        import attrs

        members: dict[str, object] = {"extensions": attrs.field(default=EMPTY, type=FrozenMap)}
        for field in fields_of(cls).values():
            default = attrs.NOTHING if field.required else None
            members[field.name] = attrs.field(default=default, metadata={"key": field.key}, type=_hint(field))
        twin = attrs.make_class(cls.__name__, members, frozen=True, kw_only=True, eq=False, repr=False)
        found = _ATTRS[cls] = attrs.fields(twin)
    return found


def _hint(field: Field) -> type:
    item: Any = field.kind.cls
    hint: Any = {"tuple": tuple[item, ...], "Mapping": FrozenMap[item]}.get(field.kind.outer, item)
    return cast("type", hint if field.required else hint | None)
