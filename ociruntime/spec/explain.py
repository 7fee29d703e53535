"""Why a document is not of a class: the slow second look, which finds every problem and its place."""

from __future__ import annotations

from ..errors import Problem
from .base import Model, OpenEnum
from .fields import JSON_NAME, Field, Kind, fields_of

_EXPECTED = {str: "a string", int: "an integer", bool: "true or false"}


def explain(cls: type[Model], document: object) -> list[Problem]:
    """Every problem of the types in a document."""
    found: list[Problem] = []
    _object(cls, document, "$", cls.SECTION, found)
    return found


def step(path: str, key: str) -> str:
    """The JSON path of a member: ``$.linux.sysctl['net.ipv4.ip_forward']``."""
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{key!r}]"


def shown(value: object) -> str:
    """A JSON value in a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return f"the string {value[:60]!r}" if isinstance(value, str) else f"the number {str(value)[:60]}"


def _object(cls: type[Model], value: object, path: str, section: str, found: list[Problem]) -> None:
    if not isinstance(value, dict):
        found.append(Problem(path, f"an object expected, not {shown(value)}", section))
        return
    by_key: dict[str, Field] = {field.key: field for field in fields_of(cls).values()}
    for key, item in value.items():
        field = by_key.get(key)
        if field is not None and not (item is None and cls.NULLABLE and not field.required):
            _value(field.kind, item, step(path, key), cls.SECTION, found)
    for key, field in by_key.items():
        if field.required and key not in value:
            found.append(Problem(step(path, key), "is missing and required", cls.SECTION))


def _value(kind: Kind, value: object, path: str, section: str, found: list[Problem]) -> None:
    item = Kind("", kind.name)
    if kind.outer == "tuple":
        if isinstance(value, list):
            for index, entry in enumerate(value):
                _value(item, entry, f"{path}[{index}]", section, found)
        else:
            found.append(Problem(path, f"an array expected, not {shown(value)}", section))
    elif kind.outer == "Mapping":
        if isinstance(value, dict):
            for key, entry in value.items():
                _value(item, entry, step(path, key), section, found)
        else:
            found.append(Problem(path, f"an object expected, not {shown(value)}", section))
    elif kind.name != JSON_NAME:
        _single(kind, value, path, section, found)


def _single(kind: Kind, value: object, path: str, section: str, found: list[Problem]) -> None:
    scalar = kind.scalar
    if scalar is not None:
        if type(value) is not scalar.kind:
            found.append(Problem(path, f"{_EXPECTED[scalar.kind]} expected, not {shown(value)}", section))
        elif isinstance(value, int) and scalar.limits is not None and not scalar.limits[0] <= value <= scalar.limits[1]:
            found.append(Problem(path, f"{value} is not {scalar.limits[0]} to {scalar.limits[1]}", section))
        return
    cls = kind.cls
    if issubclass(cls, OpenEnum):
        if not isinstance(value, str):
            found.append(Problem(path, f"a string expected, not {shown(value)}", section))
    else:
        assert issubclass(cls, Model)
        _object(cls, value, path, cls.SECTION, found)
