"""Checking documents: the three layers together, all problems at once.

Shape is what the JSON Schema says, `rules` what the text of the runtime spec says beyond, and `rules_host` what one host can do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import Problem, SpecError
from .base import Json, Model
from .codec import plain, read_source, structure
from .explain import explain, shown, step
from .fields import fields_of

if TYPE_CHECKING:
    import os


class HierarchyLike(Protocol):
    """What the rules need to know of a mounted cgroup hierarchy."""

    @property
    def version(self) -> int: ...
    @property
    def controllers(self) -> Collection[str]: ...


class HostLike(Protocol):
    """What the rules need to know of a host: `ociruntime.host.Host` has it, and so may a value made by hand."""

    @property
    def kernel(self) -> tuple[int, int]: ...
    @property
    def machine(self) -> str: ...
    @property
    def euid(self) -> int: ...
    @property
    def last_cap(self) -> int: ...
    @property
    def hierarchies(self) -> Iterable[HierarchyLike]: ...
    @property
    def lsms(self) -> Collection[str]: ...
    @property
    def seccomp(self) -> bool: ...
    @property
    def capabilities(self) -> int: ...
    @property
    def resctrl(self) -> str: ...
    @property
    def egid(self) -> int: ...
    @property
    def privileged(self) -> bool: ...
    def rules_devices(self, version: int) -> bool: ...
    @property
    def idmap_helpers(self) -> tuple[str, str] | None: ...
    @property
    def subuids(self) -> Iterable[tuple[int, int]]: ...
    @property
    def subgids(self) -> Iterable[tuple[int, int]]: ...


def refuse(found: Iterable[Problem]) -> tuple[Problem, ...]:
    """The warnings among problems. Raises SpecError with the errors, if there are any."""
    errors: list[Problem] = []
    warnings: list[Problem] = []
    for problem in found:
        (errors if problem.severity == "error" else warnings).append(problem)
    if errors:
        raise SpecError(errors)
    return tuple(warnings)


def shape_of(cls: type[Model], document: Json) -> tuple[Problem, ...]:
    """What the schema says about a JSON document."""
    from .schema import validator

    return tuple(_problem(cls, error) for error in validator(cls).iter_errors(document))


def problems(value: Model, host: HostLike | None = None) -> tuple[Problem, ...]:
    """See `Model.problems` and `RuntimeSpec.problems`."""
    shape = shape_of(type(value), plain(value))
    places = {problem.path for problem in shape}
    return (*shape, *(problem for problem in _beyond_shape(value, host) if problem.path not in places))


def check(
    cls: type[Model], source: str | os.PathLike[str] | bytes | Mapping[str, Json], host: HostLike | None = None
) -> tuple[Problem, ...]:
    """See `Model.check` and `RuntimeSpec.check`."""
    try:
        document, _ = read_source(source)
    except SpecError as error:
        return error.problems
    shape = shape_of(cls, plain(document))
    places = {problem.path for problem in shape}
    more = explain(cls, document) or _beyond_shape(structure(cls, document), host)
    return (*shape, *(problem for problem in more if problem.path not in places))


def _beyond_shape(value: Model, host: HostLike | None) -> list[Problem]:
    from .config import RuntimeSpec

    if not isinstance(value, RuntimeSpec):
        from .rules_documents import document_rules

        return document_rules(value)
    from .rules import rules

    found = rules(value)
    if host is not None:
        from .rules_host import host_rules

        found += host_rules(value, host)
    return found


_TOLERATED: Final = {"$.linux.rootfsPropagation": ("rprivate", "rshared", "rslave", "runbindable")}
"""Values that the schema does not have and that engines send and runtimes take."""


_KINDS: Final = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "boolean": "true or false",
}


def _problem(cls: type[Model], error: Any) -> Problem:
    """One error of jsonschema, in our words."""
    path, section = "$", cls.SECTION
    place: type[Model] | None = cls
    for key in error.absolute_path:
        if isinstance(key, int):
            path += f"[{key}]"
            continue
        path = step(path, key)
        field = next((f for f in fields_of(place).values() if f.key == key), None) if place else None
        if field is not None:
            place = field.kind.model
            section = place.SECTION if place else section
    limit = error.validator_value
    if error.validator == "required":
        missing = next(key for key in limit if error.message.startswith(repr(key)))
        return Problem(step(path, missing), "is missing and required", section)
    if error.validator == "enum" and error.instance in _TOLERATED.get(path, ()):
        return Problem(path, f"{error.instance!r} is none of {', '.join(limit)}, though runtimes take it", section, "warning")
    messages: dict[str, str] = {
        "type": f"{_KINDS.get(str(limit))} expected, not {shown(error.instance)}",
        "enum": f"{shown(error.instance)} is none of {', '.join(map(str, limit if error.validator == 'enum' else ()))}",
        "pattern": f"{shown(error.instance)} does not match {limit}",
        "minimum": f"{error.instance} is less than {limit}",
        "maximum": f"{error.instance} is more than {limit}",
        "minItems": "at least one item is needed",
    }
    return Problem(path, messages.get(str(error.validator), str(error.message)), section)
