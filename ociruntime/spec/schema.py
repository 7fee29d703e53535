"""JSON Schema, generated from the classes: the same verdicts as the official one, with documentation, units and sections.

It is draft 4, the dialect of the official schema, so that both read alike. Where the text of the runtime spec and the official
schema differ, ours follows the official one, and the reader of documents or the rules follow the text: `OPTIONAL`, `REQUIRED`.
"""

from __future__ import annotations

import json
import pkgutil
from typing import TYPE_CHECKING, Any, Final

from .base import Json, Model, OpenEnum
from .describe import describe, section
from .fields import JSON_NAME, Field, fields_of, named
from .scalars import SCALARS, Scalar

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGE: Final = __name__.rpartition(".")[0]
PUBLISHED: Final[Mapping[str, str]] = {
    "RuntimeSpec": "config-schema.json",
    "Features": "features-schema.json",
    "StateDocument": "state-schema.json",
}
"""Classes whose schemas are package data."""
OPTIONAL: Final = frozenset({"FreeBSDDevice.path", "MemoryPolicy.mode", "Personality.domain", "ThrottleDevice.rate"})
"""Members that the text of the spec requires and the official schema does not."""
REQUIRED: Final = frozenset({"Pids.limit"})
"""Members that the official schema requires and the text of the spec does not."""
_NOT_EMPTY: Final = frozenset({"Syscall.names", "Windows.layer_folders"})
_PATTERNS: Final = {"DeviceType": "^[cbup]$", "RlimitType": "^RLIMIT_[A-Z]+$"}
"""Enumerations that the official schema does not close."""
_CLOSED: Final = {"Linux.time_offsets": ("monotonic", "boottime")}
"""Mappings whose keys the official schema names."""


def schema(cls: type[Model]) -> dict[str, Json]:
    """The schema of a class: the published one, or one made now for any other class."""
    name = PUBLISHED.get(cls.__name__) if cls.__module__.rpartition(".")[0] == _PACKAGE else None
    data = pkgutil.get_data(_PACKAGE, name) if name else None
    if data is None:
        return generate(cls)
    found: dict[str, Json] = json.loads(data)
    return found


def generate(cls: type[Model]) -> dict[str, Json]:
    """The schema of a class, from the class."""
    definitions: dict[str, Json] = {}
    top = _object(cls, definitions)
    definitions.pop(cls.__name__, None)
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "title": cls.__name__,
        **top,
        "definitions": dict(sorted(definitions.items())),
    }


def _object(cls: type[Model], definitions: dict[str, Json]) -> dict[str, Json]:
    definitions[cls.__name__] = None  # on the way: classes may refer to each other
    properties: dict[str, Json] = {}
    required: list[Json] = []
    for field in fields_of(cls).values():
        place = f"{cls.__name__}.{field.name}"
        properties[field.key] = _property(cls, field, place, definitions)
        if (field.required and place not in OPTIONAL) or place in REQUIRED:
            required.append(field.key)
    about = describe(cls).text
    made: dict[str, Json] = {"description": about, "x-section": cls.SECTION, "type": "object", "properties": properties}
    if required:
        made["required"] = required
    definitions[cls.__name__] = made
    return made


def _property(cls: type[Model], field: Field, place: str, definitions: dict[str, Json]) -> Json:
    item = _item(field.kind.name, definitions)
    if field.kind.outer == "tuple":
        made: dict[str, Json] = {"type": "array", "items": item}
        if place in _NOT_EMPTY:
            made["minItems"] = 1
    elif field.kind.outer == "Mapping":
        made = _mapping(place, field.kind.name, item)
    elif "$ref" in item:
        made = {"allOf": [item]}  # draft 4 ignores what stands beside a $ref
    else:
        made = dict(item)
    about = describe(cls, field.name)
    made["description"] = about.text
    if about.default_value is not None:
        made["default"] = about.default_value
    if about.unit:
        made["x-unit"] = about.unit
    made["x-section"] = section(cls, field.name)
    return made


def _mapping(place: str, name: str, item: dict[str, Json]) -> dict[str, Json]:
    if place in _CLOSED:
        return {"type": "object", "properties": dict.fromkeys(_CLOSED[place], item)}
    if name in SCALARS:
        return {"type": "object", "patternProperties": {".{1,}": item}}
    return {"type": "object", "additionalProperties": item} if item else {"type": "object"}


def _item(name: str, definitions: dict[str, Json]) -> dict[str, Json]:
    if name == JSON_NAME:
        return {}
    scalar = SCALARS.get(name)
    if scalar is not None:
        return _scalar(scalar)
    cls = named(name)
    if name not in definitions:
        if issubclass(cls, Model):
            _object(cls, definitions)
        else:
            assert issubclass(cls, OpenEnum)
            values: list[Json] = [member.value for member in cls]
            limits: dict[str, Json] = {"pattern": _PATTERNS[name]} if name in _PATTERNS else {"enum": values}
            definitions[name] = {"description": describe(cls).text, "type": "string", **limits}
    return {"$ref": f"#/definitions/{name}"}


def _scalar(scalar: Scalar) -> dict[str, Json]:
    made: dict[str, Json] = {"type": {str: "string", int: "integer", bool: "boolean"}[scalar.kind]}
    lowest, highest = scalar.limits or (None, None)
    lowest = lowest if scalar.schema_minimum is None else scalar.schema_minimum
    highest = highest if scalar.schema_maximum is None else scalar.schema_maximum
    if lowest is not None:
        made["minimum"] = lowest
    if highest is not None:
        made["maximum"] = highest
    if scalar.pattern is not None:
        made["pattern"] = scalar.pattern
    return made


_VALIDATORS: Final[dict[type[Model], Any]] = {}


def validator(cls: type[Model]) -> Any:
    """The jsonschema validator of a class."""
    found = _VALIDATORS.get(cls)
    if found is None:
        from jsonschema import Draft4Validator

        found = _VALIDATORS[cls] = Draft4Validator(schema(cls))
    return found
