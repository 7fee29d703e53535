"""JSON documents to the object model and back: exact both ways, with the place of every problem.

`structure` and `unstructure` derive everything from the classes. `converter()` is the cattrs converter that knows them, for
programs that nest a spec in documents of their own; it is not needed to read or write a config, so cattrs is imported there only.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import attrs

from ..errors import Problem, SpecError
from .base import FrozenMap, Json, Model, OpenEnum

if TYPE_CHECKING:
    from cattrs import Converter

M = TypeVar("M", bound=Model)
Reader = Callable[[object, str, list[Problem]], object]


def camel(name: str) -> str:
    """``no_new_privileges`` -> ``noNewPrivileges``."""
    head, *rest = name.rstrip("_").split("_")
    return head + "".join(word.capitalize() for word in rest)


_MEMBERS: dict[type, dict[str, tuple[str, Reader, bool]]] = {}
_KEYS: dict[type, tuple[tuple[str, str], ...]] = {}


def _members(cls: type[Model]) -> dict[str, tuple[str, Reader, bool]]:
    """JSON key -> attribute, reader, whether it is required; worked out when a class is first met."""
    known = _MEMBERS.get(cls)
    if known is None:
        known = _MEMBERS[cls] = _work_out(cls)
        _KEYS[cls] = tuple((attribute, key) for key, (attribute, _, _) in known.items())
    return known


def _work_out(cls: type[Model]) -> dict[str, tuple[str, Reader, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        field.metadata.get("key") or camel(field.name): (field.name, _reader(hints[field.name]), field.default is attrs.NOTHING)
        for field in attrs.fields(cls)
        if field.name != "extensions"
    }


def _scalar(kind: type, name: str) -> Reader:
    def read(value: object, path: str, problems: list[Problem]) -> object:
        # bool is an int to Python and not to JSON
        if type(value) is not kind:
            problems.append(Problem(path, f"{name} expected, not {_shown(value)}"))
        return value

    return read


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return f"{type(value).__name__} {value!r}" if not isinstance(value, str) else f"the string {value[:60]!r}"


_SCALARS: dict[type, Reader] = {
    str: _scalar(str, "a string"),
    int: _scalar(int, "an integer"),
    bool: _scalar(bool, "true or false"),
}


def _reader(hint: object) -> Reader:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _reader(next(arg for arg in args if arg is not type(None)))
    if isinstance(hint, type):
        if hint in _SCALARS:
            return _SCALARS[hint]
        if issubclass(hint, Model):
            return lambda value, path, problems: _object(hint, value, path, problems)
        if issubclass(hint, OpenEnum):
            return lambda value, path, problems: _enum(hint, value, path, problems)
    if origin is tuple:
        item = _reader(args[0])
        return lambda value, path, problems: _array(item, value, path, problems)
    if origin is FrozenMap:
        item = _reader(args[0])
        return lambda value, path, problems: _map(item, value, path, problems)
    raise TypeError(f"no way to read {hint!r}")


def _enum(kind: type[OpenEnum], value: object, path: str, problems: list[Problem]) -> object:
    if not isinstance(value, str):
        problems.append(Problem(path, f"a string expected, not {_shown(value)}"))
        return value
    return kind(value)


def _array(item: Reader, value: object, path: str, problems: list[Problem]) -> object:
    if not isinstance(value, list | tuple):
        problems.append(Problem(path, f"an array expected, not {_shown(value)}"))
        return ()
    return tuple([item(entry, f"{path}[{index}]", problems) for index, entry in enumerate(value)])


def _map(item: Reader, value: object, path: str, problems: list[Problem]) -> object:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"an object expected, not {_shown(value)}"))
        return FrozenMap[object]()
    return FrozenMap({key: item(entry, f"{path}[{key!r}]", problems) for key, entry in value.items()})


def _object(cls: type[M], value: object, path: str, problems: list[Problem]) -> M | None:
    if not isinstance(value, dict):
        problems.append(Problem(path, f"an object expected, not {_shown(value)}"))
        return None
    members = _members(cls)
    found: dict[str, object] = {}
    unknown: dict[str, Json] = {}
    before = len(problems)
    for key, entry in value.items():
        member = members.get(key)
        if member is None:
            unknown[key] = entry
        else:
            found[member[0]] = member[1](entry, f"{path}.{key}", problems)
    if unknown:
        found["extensions"] = FrozenMap(unknown)
    for key, (attribute, _, required) in members.items():
        if required and attribute not in found:
            problems.append(Problem(f"{path}.{key}", "is missing and required"))
    make = typing.cast("Callable[..., M]", cls)
    return make(**found) if len(problems) == before else None


def structure(cls: type[M], document: object, source: str = "") -> M:
    """A document as an object of ``cls``. Raises SpecError with every problem."""
    problems: list[Problem] = []
    value = _object(cls, document, "$", problems)
    if value is None or problems:
        raise SpecError(problems, source)
    return value


def unstructure(value: object) -> Json:
    """An object of the model as JSON values; what is absent stays absent."""
    if isinstance(value, Model):
        _members(type(value))
        document: dict[str, Json] = {
            key: unstructure(member) for attribute, key in _KEYS[type(value)] if (member := getattr(value, attribute)) is not None
        }
        document.update(value.extensions)
        return document
    if isinstance(value, tuple):
        return [unstructure(item) for item in value]
    if isinstance(value, FrozenMap):
        return {key: unstructure(item) for key, item in value.items()}
    if isinstance(value, OpenEnum):
        return value.value
    return typing.cast("Json", value)


def parse(text: bytes | str, source: str) -> object:
    """JSON text as Python values. Raises SpecError with line and column, also for a key that comes twice."""
    import json

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        document = dict(pairs)
        if len(document) != len(pairs):
            names = [key for key, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise SpecError([Problem("$", f"the member {double!r} comes twice in one object")], source)
        return document

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError([Problem("$", f"not JSON: {error}")], source) from None


@cache
def converter() -> Converter:
    """The cattrs converter that reads and writes the object model."""
    from cattrs import Converter

    made = Converter()
    made.register_structure_hook_func(
        lambda kind: isinstance(kind, type) and issubclass(kind, Model), lambda value, kind: structure(kind, value)
    )
    made.register_unstructure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, Model), unstructure)
    return made
