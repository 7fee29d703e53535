"""JSON Schema, generated from the classes: the same verdicts as the official one, with documentation, units and sections.

The dialect is draft 4, as in the official schema. Where the official schema and the text of the runtime spec differ, the generated
schema follows the former, and the codec or the rules the latter: see `OPTIONAL` and `REQUIRED`.
"""

from __future__ import annotations

import ast
import json
import linecache
import pkgutil
import re
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..arguments import shown
from .base import Constraint, Json, Kind, Member, OpenEnum, Problem, Record, json_path, json_text, members_of, section_of

if TYPE_CHECKING:
    from collections.abc import Mapping

# ---- documentation, from the source of the classes ----

_UNIT: Final = re.compile(r" ?Unit: ([^.;]+)")
_DEFAULT: Final = re.compile(r" ?Default: ([^.]+?)(?:\.| \(|$)")
_SECTION: Final = re.compile(r" ?\(([a-z-]+\.md#[\w-]+)\)")
_BOOLEANS: Final = {"false": False, "true": True}


class Description(NamedTuple):
    """Documentation of a class or a member."""

    text: str = ""
    unit: str = ""
    default: str = ""
    """Value or behaviour if the member is absent."""
    section: str = ""
    """Section of the runtime spec."""

    @property
    def default_value(self) -> Json:
        """The default as a JSON value, or None if it is a phrase."""
        if self.default in _BOOLEANS:
            return _BOOLEANS[self.default]
        return int(self.default) if self.default.isdigit() else None


def _parse(text: str) -> Description:
    """Parse a docstring of the form ``Limit of memory. Unit: bytes. Default: 0 (config.md#section).``"""
    unit, default, section = (pattern.search(text) for pattern in (_UNIT, _DEFAULT, _SECTION))
    return Description(
        text=_SECTION.sub("", " ".join(text.split())),
        unit=unit[1].strip() if unit else "",
        default=default[1].strip() if default else "",
        section=section[1] if section else "",
    )


@cache
def _module(name: str) -> Mapping[str, Mapping[str, Description]]:
    """Return the descriptions in a module by class and member. That of the class itself is under ``""``."""
    module = sys.modules[name]
    # Not by the loader: pytest, which loads the packages of its plugins itself, has one that cannot tell the source.
    source = "".join(linecache.getlines(module.__file__ or "", vars(module)))
    found: dict[str, Mapping[str, Description]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            members = found[node.name] = {"": _parse(ast.get_docstring(node) or "")}
            for member, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(member, ast.AnnAssign | ast.Assign) and isinstance(after, ast.Expr):
                    target = member.target if isinstance(member, ast.AnnAssign) else member.targets[0]
                    if isinstance(target, ast.Name) and isinstance(after.value, ast.Constant):
                        members[target.id] = _parse(str(after.value.value))
    return found


def describe(cls: type, member: str = "") -> Description:
    """Return the description of a class or one of its members. It is empty if the source of the class is not available."""
    for base in cls.__mro__:
        if base is not Record and base.__module__ in sys.modules:
            found = _module(base.__module__).get(base.__name__, {}).get(member)
            if found is not None:
                return found
    return Description()


def section(cls: type[Record], member: str = "") -> str:
    """Return the section of the runtime spec that describes a member, or its class."""
    return (describe(cls, member).section if member else "") or section_of(cls)


# ---- schemas ----

_PACKAGE: Final = __name__.rpartition(".")[0]
_TYPES: Final = {str: "string", int: "integer", bool: "boolean"}
PUBLISHED: Final[Mapping[str, str]] = {
    "RuntimeSpec": "config-schema.json",
    "Features": "features-schema.json",
    "StateDocument": "state-schema.json",
}
"""Classes whose schemas are package data, and the files."""
OPTIONAL: Final = frozenset({"FreeBSDDevice.path", "MemoryPolicy.mode", "Personality.domain", "ThrottleDevice.rate"})
"""Members that the text of the spec requires and the official schema does not."""
REQUIRED: Final = frozenset({"Pids.limit"})
"""Members that the official schema requires and the text of the spec does not."""
_NOT_EMPTY: Final = frozenset({"Syscall.names", "Windows.layer_folders"})
_PATTERNS: Final = {"DeviceType": "^[cbup]$", "RlimitType": "^RLIMIT_[A-Z]+$"}
"""Enumerations that the official schema does not limit to their values."""
_CLOSED: Final = {"Linux.time_offsets": ("monotonic", "boottime")}
"""Mappings whose keys the official schema defines."""


def schema(cls: type[Record]) -> dict[str, Json]:
    """Return the schema of a class: the published one, or a generated one for any other class."""
    name = PUBLISHED.get(cls.__name__) if cls.__module__.rpartition(".")[0] == _PACKAGE else None
    data = pkgutil.get_data(_PACKAGE, name) if name else None
    if data is None:
        return generate(cls)
    found: dict[str, Json] = json.loads(data)
    return found


def generate(cls: type[Record]) -> dict[str, Json]:
    """Generate the schema of a class."""
    definitions: dict[str, Json] = {}
    top = _object(cls, definitions)
    definitions.pop(cls.__name__, None)
    return {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "title": cls.__name__,
        **top,
        "definitions": dict(sorted(definitions.items())),
    }


def _object(cls: type[Record], definitions: dict[str, Json]) -> dict[str, Json]:
    definitions[cls.__name__] = None  # in progress: classes may refer to each other
    properties: dict[str, Json] = {}
    required: list[Json] = []
    for member in members_of(cls).values():
        place = f"{cls.__name__}.{member.name}"
        properties[member.key] = _property(cls, member, place, definitions)
        if (member.required and place not in OPTIONAL) or place in REQUIRED:
            required.append(member.key)
    about = describe(cls).text
    definition: dict[str, Json] = {"description": about, "x-section": section_of(cls), "type": "object", "properties": properties}
    if required:
        definition["required"] = required
    definitions[cls.__name__] = definition
    return definition


def _property(cls: type[Record], member: Member, place: str, definitions: dict[str, Json]) -> Json:
    kind = member.kind
    item = _item(kind, definitions)
    if kind.outer == "tuple":
        definition: dict[str, Json] = {"type": "array", "items": item}
        if place in _NOT_EMPTY:
            definition["minItems"] = 1
    elif kind.outer == "Mapping":
        definition = _mapping(place, kind, item)
    elif "$ref" in item:
        definition = {"allOf": [item]}  # draft 4 ignores the siblings of a $ref
    else:
        definition = dict(item)
    about = describe(cls, member.name)
    definition["description"] = about.text
    if about.default_value is not None:
        definition["default"] = about.default_value
    if about.unit:
        definition["x-unit"] = about.unit
    definition["x-section"] = section(cls, member.name)
    return definition


def _mapping(place: str, kind: Kind, item: dict[str, Json]) -> dict[str, Json]:
    if place in _CLOSED:
        return {"type": "object", "properties": dict.fromkeys(_CLOSED[place], item)}
    if kind.item in _TYPES:
        return {"type": "object", "patternProperties": {".{1,}": item}}
    return {"type": "object", "additionalProperties": item} if item else {"type": "object"}


def _item(kind: Kind, definitions: dict[str, Json]) -> dict[str, Json]:
    cls = kind.item
    if cls is object:
        return {}
    if cls in _TYPES:
        return _scalar(cls, kind.constraint)
    if cls.__name__ not in definitions:
        if issubclass(cls, Record):
            _object(cls, definitions)
        elif issubclass(cls, OpenEnum):
            definitions[cls.__name__] = _enumeration(cls)
    return {"$ref": f"#/definitions/{cls.__name__}"}


def _enumeration(cls: type[OpenEnum]) -> dict[str, Json]:
    values: list[Json] = [member.value for member in cls]
    limits: dict[str, Json] = {"pattern": _PATTERNS[cls.__name__]} if cls.__name__ in _PATTERNS else {"enum": values}
    return {"description": describe(cls).text, "type": "string", **limits}


def _scalar(cls: type, constraint: Constraint) -> dict[str, Json]:
    definition: dict[str, Json] = {"type": _TYPES[cls]}
    lowest, highest = constraint.range or (None, None)
    if constraint.schema_minimum is not None:
        lowest = constraint.schema_minimum
    if constraint.schema_maximum is not None:
        highest = constraint.schema_maximum
    if lowest is not None:
        definition["minimum"] = lowest
    if highest is not None:
        definition["maximum"] = highest
    if constraint.pattern is not None:
        definition["pattern"] = constraint.pattern
    return definition


# ---- checking ----


_VALIDATORS: Final[dict[type[Record], Any]] = {}


def validator(cls: type[Record]) -> Any:
    """Return the jsonschema validator of a class."""
    if cls not in _VALIDATORS:
        from jsonschema import Draft4Validator

        _VALIDATORS[cls] = Draft4Validator(schema(cls))
    return _VALIDATORS[cls]


def shape_problems(cls: type[Record], document: Json) -> tuple[Problem, ...]:
    """Return every difference between a JSON document and the schema of a class."""
    return tuple(_problem(cls, error) for error in validator(cls).iter_errors(document))


_TOLERATED: Final = {"$.linux.rootfsPropagation": ("rprivate", "rshared", "rslave", "runbindable")}
"""Values that engines write and runtimes accept, and that the schema does not have."""
_EXPECTED: Final = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "boolean": "true or false",
}


def _problem(cls: type[Record], error: Any) -> Problem:
    """Return an error of jsonschema as a problem."""
    path, where = "$", section_of(cls)
    owner: type[Record] | None = cls
    for key in error.absolute_path:
        if isinstance(key, int):
            path += f"[{key}]"
            continue
        path = json_path(path, key)
        member = next((member for member in members_of(owner).values() if member.key == key), None) if owner else None
        if member is not None:
            owner = member.kind.record
            where = section_of(owner) if owner else where
    limit = error.validator_value
    if error.validator == "required":
        missing = next(key for key in limit if error.message.startswith(repr(key)))
        return Problem(json_path(path, missing), "is missing and required", where)
    if error.validator == "enum" and error.instance in _TOLERATED.get(path, ()):
        return Problem(path, f"{shown(error.instance)} is none of {', '.join(limit)}, though runtimes accept it", where, "warning")
    messages: dict[str, str] = {
        "type": f"{_EXPECTED.get(str(limit))} expected, not {json_text(error.instance)}",
        "enum": f"{json_text(error.instance)} is none of {', '.join(map(str, limit if error.validator == 'enum' else ()))}",
        "pattern": f"{json_text(error.instance)} does not match {limit}",
        "minimum": f"{error.instance} is less than {limit}",
        "maximum": f"{error.instance} is more than {limit}",
        "minItems": "at least one item is required",
    }
    return Problem(path, messages.get(str(error.validator), str(error.message)), where)
