"""JSON documents to the object model and back: exact both ways, with the place of every problem.

One generic function reads every class from tables that are made when a class first comes along. Code generated for each class, as
cattrs makes it, reads a little faster once it is there, but generating it for the 20 classes of a usual config takes
longer than reading one config ever does, and most processes read one. The happy path only tells that something is wrong;
`explain` then goes through the document again, for what and where. `converter()` is the cattrs converter that knows the model, for
programs that nest a spec in documents of their own.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeGuard, TypeVar, cast

from ..errors import Problem, SpecError
from ..files import replace_file
from .base import FrozenMap, Json, Model, OpenEnum
from .fields import JSON_NAME, Kind, fields_of, named
from .scalars import SCALARS, Scalar

if TYPE_CHECKING:
    from cattrs import Converter

M = TypeVar("M", bound=Model)
Reader = Callable[[Any], object]


class _Mismatch(Exception):
    """The document is not of this class; `explain` finds out why."""


# An array where an enumeration belongs cannot be looked up.
_MISMATCHES: Final = (_Mismatch, TypeError)

_EXACT: Final = frozenset({str, int, bool, type(None)})
_PLAIN: Final = _EXACT | {float}
"""Types of JSON values that hold no others; a float may be none that JSON has."""

# ---- reading ----
#
# Inside, a JSON object is the tuple of its (key, value) pairs: the decoder makes it without calling back into Python, arrays stay
# apart as lists, and a key that comes twice shows as a member too few.

_BUILDERS: Final[dict[type[Model], Reader]] = {}
_READERS: Final[dict[Kind, Reader]] = {}


def _builder(cls: type[Model]) -> Reader:
    """The function that makes objects of ``cls`` from pairs."""
    found = _BUILDERS.get(cls)
    if found is None:
        found = _BUILDERS[cls] = _make_builder(cls)
    return found


def _make_builder(cls: type[Model]) -> Reader:
    entries: dict[str, tuple[str, type | None, Reader]] = {}
    """JSON key -> attribute, plain type that needs no reader, reader."""
    for name, key, kind, _ in fields_of(cls).values():
        scalar = SCALARS.get(kind.name) if not kind.outer else None
        direct = scalar.kind if scalar is not None and scalar.limits is None else None
        entries[key] = (name, direct, _reader(kind, cls.__module__))
    required = [field.name for field in fields_of(cls).values() if field.required]
    nullable, new = cls.NULLABLE, object.__new__

    def build(document: Any) -> object:
        if type(document) is not tuple:
            raise _Mismatch
        made = new(cls)
        members = made.__dict__
        unknown: dict[str, object] | None = None
        for key, value in document:
            try:
                name, direct, read = entries[key]
            except KeyError:
                if unknown is None:
                    unknown = {}
                unknown[key] = _freeze_pairs(value)
                continue
            if type(value) is direct:
                members[name] = value
            elif direct is None and value is not None:
                members[name] = read(value)
            elif value is None and nullable:
                if unknown is None:
                    unknown = {}
                unknown[key] = None
            else:
                raise _Mismatch
        if len(members) != len(document) and (unknown is None or len(members) + len(unknown) != len(document)):
            raise _Mismatch
        for name in required:
            if name not in members:
                raise _Mismatch
        if unknown is not None:
            members["extensions"] = FrozenMap(unknown)
        return made

    return build


def _freeze_pairs(value: object) -> object:
    """Any JSON value, of pairs and lists, as one that cannot change."""
    if type(value) is tuple:
        made = FrozenMap([(key, _freeze_pairs(item)) for key, item in value])
        if len(made) != len(value):
            raise _Mismatch
        return made
    if type(value) is list:
        return tuple([_freeze_pairs(item) for item in value])
    return value


def _reader(kind: Kind, module: str) -> Reader:
    found = _READERS.get(kind)
    if found is None:
        if kind.outer == "tuple":
            found = _read_strings if kind.name == "str" else _array_reader(_reader(Kind("", kind.name), module))
        elif kind.outer == "Mapping":
            found = _map_reader(_reader(Kind("", kind.name), module))
        elif kind.name == JSON_NAME:
            found = _freeze_pairs
        elif kind.name in SCALARS:
            found = _scalar_reader(SCALARS[kind.name])
        elif kind.name in vars(sys.modules[module]):
            found = _class_reader(named(kind.name))
        else:
            found = _late_reader(kind.name)
        _READERS[kind] = found
    return found


def _scalar_reader(scalar: Scalar) -> Reader:
    kind = scalar.kind
    if scalar.limits is None:

        def read(value: Any) -> object:
            # bool is an int to Python and not to JSON
            if type(value) is not kind:
                raise _Mismatch
            return value
    else:
        lowest, highest = scalar.limits

        def read(value: Any) -> object:
            if type(value) is not int or not lowest <= value <= highest:
                raise _Mismatch
            return value

    return read


def _class_reader(cls: type) -> Reader:
    if issubclass(cls, Model):
        return _builder(cls)
    assert issubclass(cls, OpenEnum)
    return _Members(cls).__getitem__


class _Members(dict[Any, OpenEnum]):
    """Value -> member of an enumeration, those from the future included."""

    def __init__(self, cls: type[OpenEnum]) -> None:
        super().__init__({member.value: member for member in cls})
        self._cls = cls

    def __missing__(self, value: object) -> OpenEnum:
        if type(value) is not str:
            raise _Mismatch
        return self._cls(value)


def _late_reader(name: str) -> Reader:
    """The reader of a class whose module is imported with the first value: a config seldom has all the platforms and objects."""
    inner: Reader | None = None

    def read(value: Any) -> object:
        nonlocal inner
        if inner is None:
            inner = _class_reader(named(name))
        return inner(value)

    return read


def _read_strings(value: Any) -> object:
    if type(value) is not list:
        raise _Mismatch
    try:
        "".join(value)  # the fastest way to ask whether all are strings
    except TypeError:
        raise _Mismatch from None
    return tuple(value)


def _array_reader(read_item: Reader) -> Reader:
    def read(value: Any) -> object:
        if type(value) is not list:
            raise _Mismatch
        return tuple([read_item(item) for item in value])

    return read


def _map_reader(read_item: Reader) -> Reader:
    def read(value: Any) -> object:
        if type(value) is not tuple:
            raise _Mismatch
        made = FrozenMap([(key, read_item(item)) for key, item in value])
        if len(made) != len(value):
            raise _Mismatch
        return made

    return read


def structure(cls: type[M], document: object, source: str = "") -> M:
    """A document, of JSON values or values of the model, as an object of ``cls``. Raises SpecError with every problem."""
    try:
        document = plain(document)
        return cast("M", _builder(cls)(_pairs(document)))
    except RecursionError:
        raise SpecError([Problem("$", "nested too deeply")], source) from None
    except _MISMATCHES:
        from .explain import explain

        found = explain(cls, document)
        if not found:
            raise
        raise SpecError(found, source) from None


def _pairs(value: object) -> object:
    if type(value) is dict:
        return tuple([(key, item if type(item) in _PLAIN else _pairs(item)) for key, item in value.items()])
    if type(value) is list:
        return [item if type(item) in _PLAIN else _pairs(item) for item in value]
    return value


def _read(cls: type[M], text: bytes | str, source: str) -> M:
    try:
        return cast("M", _builder(cls)(_fast.decode(text if isinstance(text, str) else text.decode())))
    except (*_MISMATCHES, ValueError, RecursionError):
        pass
    # The slow way knows what is wrong, and where.
    return structure(cls, parse(text, source), source)


def load(cls: type[M], source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> M:
    """See `Model.load`."""
    if isinstance(source, Mapping):
        return structure(cls, source)
    if isinstance(source, bytes) or is_text(source):
        return _read(cls, source, "")
    name = os.fspath(source)
    with open(name, "rb") as file:
        return _read(cls, file.read(), name)


def loads(cls: type[M], text: str | bytes) -> M:
    """See `Model.loads`."""
    return _read(cls, text, "")


def is_text(source: str | os.PathLike[str]) -> TypeGuard[str]:
    """Whether a source is JSON text and not a path."""
    return isinstance(source, str) and source.lstrip()[:1] == "{"


def read_source(source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> tuple[object, str]:
    """Plain JSON values, and a name for messages, from what `Model.load` takes."""
    if isinstance(source, Mapping):
        return plain(source), ""
    if isinstance(source, bytes) or is_text(source):
        return parse(source), ""
    name = os.fspath(source)
    with open(name, "rb") as file:
        return parse(file.read(), name), name


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [key for key, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        # Which of the two counts is up to each parser: what was checked would not be what runs.
        raise SpecError([Problem("$", f"the member {double!r} comes twice in one object")])
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


_fast: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_refuse_constant, parse_float=_finite)
_careful: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite)


def parse(text: bytes | str, source: str = "") -> object:
    """JSON text as Python values. Raises SpecError with line and column, also for a key that comes twice."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        return _careful.decode(text)
    except SpecError as error:
        raise SpecError(error.problems, source) from None
    except (ValueError, RecursionError) as error:
        raise SpecError([Problem("$", f"not JSON: {error}")], source) from None


def plain(value: object, path: str = "$") -> Json:
    """What JSON values or values of the model are as `json.loads` would give them. Raises SpecError for anything else."""
    if type(value) in _EXACT:
        return cast("Json", value)
    if isinstance(value, Model):
        return unstructure_object(value)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise SpecError([Problem(path, f"the key {key!r} is no string")])
        return {key: item if type(item) in _EXACT else plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in _EXACT else plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, OpenEnum):
        return value.value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise SpecError([Problem(path, f"{value!r:.80} is no JSON value")])


# ---- writing ----

_KEYS: Final[dict[type[Model], dict[str, str]]] = {}


def unstructure_object(value: Model) -> dict[str, Json]:
    """An object of the model as JSON values, its members in the order in which they came; what is absent stays absent."""
    keys = _KEYS.get(type(value))
    if keys is None:
        keys = _KEYS[type(value)] = {field.name: field.key for field in fields_of(type(value)).values()}
    document: dict[str, Json] = {}
    for name, member in value.__dict__.items():
        if name != "extensions":
            document[keys[name]] = member if type(member) in _PLAIN else unstructure(member)
    unknown = value.__dict__.get("extensions")
    if unknown is not None:
        document.update({key: unstructure(item) for key, item in unknown.items()})
    return document


def unstructure(value: object) -> Json:
    """A value of the model as JSON values."""
    if type(value) is tuple:
        return [cast("Json", item) if type(item) in _PLAIN else unstructure(item) for item in value]
    if isinstance(value, Model):
        return unstructure_object(value)
    if isinstance(value, OpenEnum):
        return value._value_
    if isinstance(value, Mapping):
        return {key: unstructure(item) for key, item in value.items()}
    return cast("Json", value)


def dumps(value: Model, indent: int | None = None) -> str:
    """See `Model.to_json`."""
    return json.dumps(unstructure_object(value), indent=indent, allow_nan=False)


def save(value: Model, path: str | os.PathLike[str]) -> None:
    """See `Model.save`."""
    replace_file(path, dumps(value, 2).encode() + b"\n", mode=0o644)


# ---- cattrs ----

_converters: Final[list[Converter]] = []


def converter() -> Converter:
    """The cattrs converter that reads and writes the object model, alone or nested in classes of your own; one for all."""
    if not _converters:
        from cattrs import Converter

        made = Converter()

        def ours(kind: object) -> bool:
            return isinstance(kind, type) and issubclass(kind, Model)

        made.register_structure_hook_func(ours, lambda value, kind: structure(kind, plain(value)))
        made.register_unstructure_hook_func(ours, unstructure)
        made.register_unstructure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, FrozenMap), unstructure)
        _converters.append(made)
    return _converters[0]
