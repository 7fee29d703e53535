"""What differs between two documents, place by place."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple, TypeVar

from .base import Json, Model
from .codec import unstructure_object
from .explain import step

M = TypeVar("M", bound=Model)


class Change(NamedTuple):
    """One difference."""

    kind: Literal["added", "removed", "changed"]
    path: str
    """JSON path: of the second document for what was added or changed, of the first for what was removed."""
    before: Json = None
    after: Json = None

    def __str__(self) -> str:
        if self.kind == "added":
            return f"+ {self.path}: {json.dumps(self.after)}"
        if self.kind == "removed":
            return f"- {self.path}: {json.dumps(self.before)}"
        return f"~ {self.path}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


def diff(before: M, after: M) -> tuple[Change, ...]:
    """Every difference between two objects of one class, in the order of the first document; empty when they are equal.

    Items of arrays are matched as a text diff matches lines: one that is put in shows as itself, not as a change of all behind it.
    """
    found: list[Change] = []
    _objects(unstructure_object(before), unstructure_object(after), "$", found)
    return tuple(found)


def _values(before: Json, after: Json, path: str, found: list[Change]) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        _objects(before, after, path, found)
    elif isinstance(before, list) and isinstance(after, list):
        _arrays(before, after, path, found)
    elif before != after or type(before) is not type(after):
        found.append(Change("changed", path, before, after))


def _objects(before: dict[str, Json], after: dict[str, Json], path: str, found: list[Change]) -> None:
    for key, value in before.items():
        if key in after:
            _values(value, after[key], step(path, key), found)
        else:
            found.append(Change("removed", step(path, key), before=value))
    for key, value in after.items():
        if key not in before:
            found.append(Change("added", step(path, key), after=value))


def _arrays(before: list[Json], after: list[Json], path: str, found: list[Change]) -> None:
    from difflib import SequenceMatcher

    old, new = ([json.dumps(item, sort_keys=True) for item in items] for items in (before, after))
    for tag, i, i_end, j, j_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        both = min(i_end - i, j_end - j)
        for offset in range(both):
            _values(before[i + offset], after[j + offset], f"{path}[{j + offset}]", found)
        found += [Change("removed", f"{path}[{index}]", before=before[index]) for index in range(i + both, i_end)]
        found += [Change("added", f"{path}[{index}]", after=after[index]) for index in range(j + both, j_end)]
