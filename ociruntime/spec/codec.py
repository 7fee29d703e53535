"""The only reader and writer of documents: one cattrs converter, exact in both directions.

The hooks of the converter are made per class, when the class is first read or written. They are strict: ``true`` is not a number,
``1.0`` is not an integer, and each number has its range. A hook reads a whole object before it raises, so that one
``cattrs.ClassValidationError`` holds every problem of a document; `problems_of` turns it into JSON paths.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Final, NoReturn, TypeVar, cast, get_args, get_origin

from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    Converter,
    IterableValidationError,
    IterableValidationNote,
)
from typing_extensions import TypeIs

from ..arguments import check_indent, check_type, parse_path, shown
from ..errors import SpecError
from ..files import read_file, replace_file
from .base import (
    EMPTY,
    Constraint,
    FrozenJson,
    FrozenMap,
    Json,
    Member,
    OpenEnum,
    Problem,
    Record,
    freeze,
    json_path,
    json_text,
    members_of,
    section_of,
)

R = TypeVar("R", bound=Record)
Hook = Callable[[Any, Any], Any]

MAX_DOCUMENT: Final = 64 << 20
"""Largest file that is read as a document, in bytes."""
_SCALARS: Final = frozenset({str, int, bool, type(None)})
_EXPECTED: Final = {str: "a string", int: "an integer", bool: "true or false"}


class MismatchError(ValueError):
    """A JSON value is not what a member takes. ``section`` names the section of the spec if it is not that of the object."""

    def __init__(self, message: str, section: str = "") -> None:
        super().__init__(message)
        self.section = section


_ERRORS: Final = (MismatchError, BaseValidationError)
"""What a hook raises for a value that it does not take."""


def _expected(what: str, value: object, section: str = "") -> MismatchError:
    return MismatchError(f"{what} expected, not {json_text(value)}", section)


# ---- reading: the hooks ----


def _is_record(kind: object) -> TypeIs[type[Record]]:
    return isinstance(kind, type) and issubclass(kind, Record)


def _is_enum(kind: object) -> TypeIs[type[OpenEnum]]:
    return isinstance(kind, type) and issubclass(kind, OpenEnum)


def _is_constrained(kind: object) -> bool:
    return get_origin(kind) is Annotated and isinstance(get_args(kind)[1], Constraint)


def _is_array(kind: object) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[1:] == (...,)


def _is_map(kind: object) -> bool:
    return get_origin(kind) is Mapping


def _scalar_hook(scalar: type) -> Hook:
    """Return the hook of str, int or bool, and of their subclasses in programs. A bool is an int in Python and not in JSON."""

    def read(value: Any, kind: Any) -> Any:
        if type(value) is scalar:
            return value if kind is scalar else kind(value)
        raise _expected(_EXPECTED[scalar], value)

    return read


def _constrained_hook(kind: Any, converter: Converter) -> Hook:
    scalar, constraint = get_args(kind)
    read_scalar = converter.get_structure_hook(scalar)
    if constraint.range is None:
        return read_scalar
    lowest, highest = constraint.range

    def read(value: Any, _: Any) -> Any:
        if type(value) is int and lowest <= value <= highest:
            return value
        read_scalar(value, scalar)
        raise MismatchError(f"{value} is not {lowest} to {highest}")

    return read


def _read_enum(value: Any, kind: Any) -> Any:
    if type(value) is not str:
        raise _expected("a string", value)
    return kind(value)


def _array_hook(kind: Any, converter: Converter) -> Hook:
    item_kind = get_args(kind)[0]
    read_item = converter.get_structure_hook(item_kind)

    def read(value: Any, _: Any) -> Any:
        if type(value) is not list and type(value) is not tuple:
            raise _expected("an array", value)
        try:
            return tuple([read_item(item, item_kind) for item in value])
        except _ERRORS:
            raise _item_errors(kind, enumerate(value), read_item, item_kind) from None

    return read


def _map_hook(kind: Any, converter: Converter) -> Hook:
    item_kind = get_args(kind)[1]
    read_item = converter.get_structure_hook(item_kind)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _expected("an object", value)
        try:
            return FrozenMap({key: read_item(item, item_kind) for key, item in value.items()})
        except _ERRORS:
            raise _item_errors(kind, value.items(), read_item, item_kind) from None

    return read


def _item_errors(kind: Any, items: Iterable[tuple[Any, Any]], read: Hook, item_kind: Any) -> IterableValidationError:
    """Read the items of an array or object again, one by one, and return the errors of all of them."""
    errors: list[Exception] = []
    for key, item in items:
        try:
            read(item, item_kind)
        except _ERRORS as error:
            note = IterableValidationNote(f"item {key!r}", key, item_kind)
            errors.append(_noted(error, note))
    return IterableValidationError(f"while reading {kind}", errors, kind)  # pyright: ignore[reportCallIssue]


def _noted(error: Exception, note: AttributeValidationNote | IterableValidationNote) -> Exception:
    error.__notes__ = [*getattr(error, "__notes__", ()), note]
    return error


def _read_json(value: Any, _: Any) -> Any:
    return freeze(value if type(value) in _SCALARS else plain(value))


def _record_hook(cls: type[Record], converter: Converter) -> Hook:
    """Return the hook of a record class. The hook of a member is looked up when a document first has the member."""
    by_key = {member.key: member for member in members_of(cls).values()}
    aliases = {member.alias: member for member in by_key.values() if member.alias != member.key}
    required = [member for member in by_key.values() if member.required]
    absent = dict.fromkeys((member.name for member in by_key.values()), None)
    nullable = cls.NULLABLE
    readers: dict[str, tuple[str, object, Hook, Any]] = {}

    def reader(member: Member) -> tuple[str, object, Hook, Any]:
        kind = member.value_type
        found = readers[member.key] = (member.name, kind, converter.get_structure_hook(kind), kind)
        return found

    def read(document: Any, _: Any) -> Any:
        if type(document) is not dict:
            if not isinstance(document, Mapping | Record):
                raise _expected("an object", document, section_of(cls))
            document = plain(document)
        for alias, member in aliases.items():
            if alias in document and member.key not in document:
                document = {member.key if key == alias else key: value for key, value in document.items()}
        members: dict[str, Any] = {}
        unknown: dict[str, object] = {}
        errors: list[Exception] = []
        for key, value in document.items():
            if key in readers:
                name, scalar, hook, kind = readers[key]
            elif key in by_key:
                name, scalar, hook, kind = reader(by_key[key])
            else:
                unknown[key] = freeze(value)
                continue
            if type(value) is scalar:
                members[name] = value
            elif value is None and nullable and not by_key[key].required:
                unknown[key] = None
            else:
                try:
                    members[name] = hook(value, kind)
                except _ERRORS as error:
                    note = AttributeValidationNote(f"member {key}", key, kind)
                    errors.append(_noted(error, note))
        for member in required:
            if member.key not in document:
                note = AttributeValidationNote(f"member {member.key}", member.key, member.value_type)
                errors.append(_noted(MismatchError(cls.MISSING), note))
        if errors:
            raise ClassValidationError(f"while reading {cls.__name__}", errors, cls)  # pyright: ignore[reportCallIssue]
        record = object.__new__(cls)
        present = vars(record)
        present.update(members)
        if len(members) < len(absent):
            present.update({name: None for name in absent if name not in members})
        present["extensions"] = FrozenMap(unknown) if unknown else EMPTY
        return record

    return read


# ---- writing: the hooks ----


def _write_hook(cls: type[Record], _: Converter) -> Callable[[Any], dict[str, Json]]:
    """Return the hook that writes a record: the present members in their order, then the unknown ones."""
    keys = {member.name: member.key for member in members_of(cls).values()}

    def write(record: Any) -> dict[str, Json]:
        members = vars(record)
        document: dict[str, Json] = {
            keys[name]: member if type(member) in _SCALARS else _to_json(member)
            for name, member in members.items()
            if member is not None and name != "extensions"
        }
        for key, value in members["extensions"].items():
            document[key] = _to_json(value)
        return document

    return write


def _to_json(value: Any) -> Any:
    """Return an immutable JSON value or record as `json.loads` would give it."""
    if type(value) in _SCALARS:
        return value
    if type(value) is tuple:
        return [item if type(item) in _SCALARS else _to_json(item) for item in value]
    if isinstance(value, Record):
        return _write(value)
    if isinstance(value, OpenEnum):
        return value.value
    if isinstance(value, FrozenMap):
        return {key: _to_json(item) for key, item in value.items()}
    return value


# ---- the converter ----


def converter() -> Converter:
    """Return the cattrs converter that reads and writes every document, alone or nested in classes of your own.

    Register your own hooks on a copy: ``converter().copy()``.
    """
    return _converter()


@cache
def _converter() -> Converter:
    converter = Converter()
    for scalar in _EXPECTED:
        converter.register_structure_hook(scalar, _scalar_hook(scalar))
    converter.register_structure_hook(OpenEnum, _read_enum)
    converter.register_structure_hook_func(lambda kind: kind == FrozenJson, _read_json)
    converter.register_structure_hook_factory(_is_map, _map_hook)
    converter.register_structure_hook_factory(_is_array, _array_hook)
    converter.register_structure_hook_factory(_is_constrained, _constrained_hook)
    converter.register_structure_hook_factory(_is_record, _record_hook)
    converter.register_unstructure_hook_func(lambda kind: _is_enum(kind) or kind is FrozenMap, _to_json)
    converter.register_unstructure_hook_factory(_is_record, _write_hook)
    return converter


# The converter keeps the hooks, too, but looking them up there costs as much as writing a small object.
_READERS: Final[dict[type[Record], Hook]] = {}
_WRITERS: Final[dict[type[Record], Callable[[Any], dict[str, Json]]]] = {}


def _read(cls: type[R], document: Any) -> R:
    if cls not in _READERS:
        _READERS[cls] = converter().get_structure_hook(cls)
    return cast("R", _READERS[cls](document, cls))


def _write(record: Record) -> dict[str, Json]:
    cls = type(record)
    if cls not in _WRITERS:
        _WRITERS[cls] = converter().get_unstructure_hook(cls)
    return _WRITERS[cls](record)


def problems_of(error: Exception, path: str = "$", section: str = "") -> Iterator[Problem]:
    """Yield every problem in an error that the converter raised, with its JSON path.

    Args:
        error: a `MismatchError`, or a cattrs validation error that holds some.
        path: the JSON path of what was read.
        section: the section of the runtime spec that describes it.
    """
    if isinstance(error, ClassValidationError):
        section = section_of(error.cl)
    elif not isinstance(error, IterableValidationError):
        yield Problem(path, str(error), getattr(error, "section", "") or section)
        return
    for inner in error.exceptions:
        note: Any = inner.__notes__[-1]
        key = note.name if isinstance(note, AttributeValidationNote) else note.index
        yield from problems_of(inner, f"{path}[{key}]" if isinstance(key, int) else json_path(path, key), section)


# ---- documents ----


def structure(cls: type[R], document: object, source: str = "") -> R:
    """Return a document, of JSON values or records, as an object of a class. Raises SpecError with every problem."""
    return _structure(cls, plain(document, source), source)


def _structure(cls: type[R], document: object, source: str) -> R:
    try:
        return _read(cls, document)
    except _ERRORS as error:
        raise SpecError(problems_of(error), source) from None
    except RecursionError:
        raise SpecError([Problem("$", "nested too deeply")], source) from None


def load(cls: type[R], source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> R:
    """See `Model.load`."""
    document, name = read_source(source)
    return _structure(cls, document, name)


def loads(cls: type[R], text: str | bytes) -> R:
    """See `Model.loads`."""
    check_type("text", text, (str, bytes), "JSON text as a str or bytes")
    return _structure(cls, parse(text), "")


def is_json(source: str | os.PathLike[str]) -> TypeIs[str]:
    """Return whether a source is JSON text and not a path."""
    return isinstance(source, str) and source.lstrip()[:1] == "{"


def read_source(source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> tuple[Json, str]:
    """Return the JSON values of what `Model.load` takes, and the name of the file, if it is one."""
    if isinstance(source, Mapping):
        return plain(source), ""
    if isinstance(source, bytes):
        return parse(source), ""
    if isinstance(source, str) and is_json(source):
        return parse(source), ""
    name = parse_path("source", source)
    return parse(read_file(name, MAX_DOCUMENT), name), name


def to_dict(value: Record) -> dict[str, Json]:
    """See `Model.to_dict`."""
    return _write(value)


def dumps(value: Record, indent: int | None = None) -> str:
    """See `Model.to_json`."""
    check_indent(indent)
    return json.dumps(to_dict(value), indent=indent, allow_nan=False)


def save(value: Record, path: str | os.PathLike[str]) -> None:
    """See `Model.save`."""
    replace_file(parse_path("path", path), dumps(value, 2).encode() + b"\n", mode=0o644)


# ---- JSON ----


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [key for key, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        # Parsers disagree about which of the two counts: another program would read another document.
        raise SpecError([Problem("$", f"the member {shown(double)} appears twice in one object")])
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


_decoder: Final = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite)


def parse(text: bytes | str, source: str = "") -> Json:
    """Return JSON text as Python values. Raises SpecError, with line and column; also for a key that appears twice."""
    try:
        document: Json = _decoder.decode(text.decode() if isinstance(text, bytes) else text)
    except SpecError as error:
        raise SpecError(error.problems, source) from None
    except (ValueError, RecursionError) as error:
        raise SpecError([Problem("$", f"not JSON: {error}")], source) from None
    return document


def plain(value: object, source: str = "") -> Json:
    """Return JSON values or records as `json.loads` would give them. Raises SpecError for any other value."""
    try:
        return _plain(value, "$")
    except RecursionError:
        raise SpecError([Problem("$", "nested too deeply")], source) from None


def _plain(value: object, path: str) -> Json:
    if type(value) in _SCALARS:
        return cast("Json", value)
    if isinstance(value, Record):
        return to_dict(value)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise SpecError([Problem(path, f"the key {shown(key)} is not a string")])
        return {key: item if type(item) in _SCALARS else _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in _SCALARS else _plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, OpenEnum):
        return value.value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise SpecError([Problem(path, f"{shown(value)} is not a JSON value")])
