"""Changes to documents of any class: `At`, a place in one; `merge`, one laid over another; `diff`, what distinguishes two."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, cast

import attrs

from .._lazy import HtmlRepr
from ..arguments import check_type, shown, wrong_type
from .base import FrozenMap, Json, Kind, Member, Record, evolved, json_path, members_of
from .codec import plain, structure, to_dict

R = TypeVar("R", bound=Record)
T = TypeVar("T")


def check_record(name: str, value: object) -> None:
    """Raise TypeError for a value that is not an object of the model."""
    check_type(name, value, Record, "an object of the model")


# ---- places ----


class At(Generic[R, T]):
    """A place in an object. `set`, `update`, `evolve`, `append` and `remove` return a new object with the place changed.

    An attribute leads to a member, an index to an item of an array (int) or of a mapping (str). Absent objects on the way are made,
    which raises TypeError if they have required members. Type checkers know each place from ``places.pyi``.

    Raises:
        AttributeError: the member does not exist.
        IndexError: the array is shorter.
    """

    __slots__ = ("_kind", "_root", "_steps")

    def __init__(self, root: R, kind: Kind | None = None, steps: tuple[str | int, ...] = ()) -> None:
        self._root = root
        self._kind = kind or Kind("", type(root))
        self._steps = steps

    def _members(self) -> Mapping[str, Member]:
        cls = self._kind.record
        return members_of(cls) if cls and not self._kind.outer else {}

    def __getattr__(self, name: str) -> "At[R, Any]":
        member = self._members().get(name)
        if member is None:
            raise AttributeError(f"{self} has no member {name!r}", name=name, obj=self)
        return At(self._root, member.kind, (*self._steps, name))

    def __getitem__(self, key: str | int) -> "At[R, Any]":
        expected: type | None = {"tuple": int, "Mapping": str}.get(self._kind.outer)
        if expected is None or not isinstance(key, expected):
            raise TypeError(f"{self} is not indexed by {shown(key)}")
        return At(self._root, self._kind.inner, (*self._steps, key))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._members()]

    def __repr__(self) -> str:
        text, kind = type(self._root).__name__, Kind("", type(self._root))
        for step in self._steps:
            if kind.outer:
                text, kind = f"{text}[{step!r}]", kind.inner
            else:
                text, kind = f"{text}.{step}", members_of(kind.item)[str(step)].kind
        return text

    def get(self) -> T | None:
        """Return the value at the place, or None if it or an object on the way is absent."""
        value: Any = self._root
        for step in self._steps:
            if value is None:
                return None
            if isinstance(value, Record):
                value = getattr(value, str(step))
            else:
                value = value.get(step) if isinstance(value, Mapping) else value[step]
        found: T | None = value
        return found

    def set(self, value: T | None) -> R:
        """Return the object with a value at the place. None makes the place absent."""
        return self.update(lambda _: value)

    def update(self, change: Callable[[T | None], T | None]) -> R:
        """Return the object with the result of ``change``, which gets the value at the place or None."""
        if not callable(change):
            raise wrong_type("change", change, "a function")
        changed: R = _change(self._root, Kind("", type(self._root)), self._steps, change)
        return changed

    def evolve(self, **changes: object) -> R:
        """Return the object with some members of the object at the place changed. It is made if it is absent."""
        cls = self._kind.record
        if cls is None or self._kind.outer:
            raise TypeError(f"{self} is not an object with members")
        make = cast("Callable[..., Record]", cls)

        def change(value: Any) -> Any:
            return make(**changes) if value is None else evolved(value, changes)

        return self.update(change)

    def append(self, *items: object) -> R:
        """Return the object with more items at the end of the array at the place. It is made if it is absent."""
        self._require_array()

        def change(value: Any) -> Any:
            return (*(value or ()), *items)

        return self.update(change)

    def remove(self, item: object) -> R:
        """Return the object without an item of the array at the place. Raises ValueError: the array has no such item."""
        self._require_array()

        def change(value: Any) -> Any:
            items: list[object] = list(value or ())
            if item not in items:
                raise ValueError(f"item is {shown(item)}, which is not in {self}")
            items.remove(item)
            return tuple(items)

        return self.update(change)

    def _require_array(self) -> None:
        if self._kind.outer != "tuple":
            raise TypeError(f"{self} is not an array")


def _change(value: Any, kind: Kind, steps: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    """Return a value of a kind, or None, with the place at the end of ``steps`` changed."""
    if not steps:
        return change(value)
    key, rest = steps[0], steps[1:]
    if kind.outer == "tuple":
        items = list(value or ())
        changed = _change(items[int(key)], kind.inner, rest, change)
        index = int(key) % len(items)
        return (*items[:index], *(() if changed is None else (changed,)), *items[index + 1 :])
    if kind.outer == "Mapping":
        entries: dict[Any, Any] = dict(value or {})
        changed = _change(entries.get(key), kind.inner, rest, change)
        if changed is None:
            entries.pop(key, None)
        else:
            entries[key] = changed
        return FrozenMap(entries)
    name = str(key)
    changed = _change(getattr(value, name) if value is not None else None, members_of(kind.item)[name].kind, rest, change)
    if value is None:
        return None if changed is None else kind.item(**{name: changed})
    return evolved(value, {name: changed})


# ---- merging ----


def _by_member(key: str) -> Callable[[Json], object]:
    return lambda item: item.get(key) if isinstance(item, dict) else None


def _by_variable(item: Json) -> object:
    return item.partition("=")[0] if isinstance(item, str) else None


def _by_device(item: Json) -> object:
    return (item.get("major"), item.get("minor")) if isinstance(item, dict) else None


_MERGED_BY: Final[dict[tuple[str, str], Callable[[Json], object]]] = {
    ("RuntimeSpec", "mounts"): _by_member("destination"),
    ("ProcessSpec", "env"): _by_variable,
    ("ProcessSpec", "rlimits"): _by_member("type"),
    ("Linux", "namespaces"): _by_member("type"),
    ("Linux", "devices"): _by_member("path"),
    ("Resources", "hugepage_limits"): _by_member("pageSize"),
    ("Network", "priorities"): _by_member("name"),
    ("BlockIO", "weight_device"): _by_device,
    ("BlockIO", "throttle_read_bps_device"): _by_device,
    ("BlockIO", "throttle_write_bps_device"): _by_device,
    ("BlockIO", "throttle_read_iops_device"): _by_device,
    ("BlockIO", "throttle_write_iops_device"): _by_device,
    ("ZOS", "namespaces"): _by_member("type"),
}
"""Arrays whose items have a natural key."""


def merge(base: R, over: R | Mapping[str, Json]) -> R:
    """Return ``base`` with ``over``, an object of the same class or a part of its document, laid over it.

    Objects and mappings are merged member by member; null in a mapping of JSON values removes the member, as in a JSON merge patch
    (RFC 7386). Arrays whose items have a natural key are merged by it: an item replaces the one with its key, or is appended.
    Every other array is replaced.

    Raises:
        SpecError: the result is not a document of the class of ``base``.
    """
    check_record("base", base)
    check_type("over", over, (Record, Mapping), "an object of the model or a mapping")
    patch = plain(over)
    assert isinstance(patch, dict)
    return structure(type(base), _merge_object(type(base), to_dict(base), patch), "merge")


def _merge_object(cls: type[Record] | None, base: Json, over: dict[str, Json]) -> dict[str, Json]:
    merged = dict(base) if isinstance(base, dict) else {}
    members = {member.key: member for member in members_of(cls).values()} if cls else {}
    for key, value in over.items():
        member = members.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            kind = member.kind if member else Kind("", object)
            merge_value = _merge_mapping if kind.outer == "Mapping" else _merge_object
            merged[key] = merge_value(kind.record, merged.get(key), value)
        else:
            item_key = _MERGED_BY.get((cls.__name__, member.name)) if cls and member else None
            merged[key] = _merge_array(item_key, merged.get(key), value) if item_key else value
    return merged


def _merge_mapping(item: type[Record] | None, base: Json, over: dict[str, Json]) -> dict[str, Json]:
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_object(item, merged.get(key), value) if isinstance(value, dict) else value
    return merged


def _merge_array(item_key: Callable[[Json], object], base: Json, over: Json) -> Json:
    if not isinstance(base, list) or not isinstance(over, list):
        return over
    merged = list(base)
    for item in over:
        key = item_key(item)
        same = [index for index, old in enumerate(merged) if key is not None and item_key(old) == key]
        if same:
            merged[same[-1]] = item
        else:
            merged.append(item)
    return merged


# ---- differences ----


@attrs.frozen
class Change:
    """One difference between two documents."""

    kind: Literal["added", "removed", "changed"]
    path: str
    """JSON path: in the second document for a value that was added or changed, in the first for one that was removed."""
    before: Json = None
    after: Json = None

    def __str__(self) -> str:
        if self.kind == "added":
            return f"+ {self.path}: {json.dumps(self.after)}"
        if self.kind == "removed":
            return f"- {self.path}: {json.dumps(self.before)}"
        return f"~ {self.path}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


class Diff(HtmlRepr, tuple[Change, ...]):
    """The differences of two documents, as a tuple that notebooks show as a table."""

    __slots__ = ()


def diff(before: R, after: R) -> Diff:
    """Return every difference between two objects of one class, in the order of the first document.

    Items of arrays are matched as a text diff matches lines: an inserted item is one addition, not a change of every item after it.
    """
    check_record("before", before)
    check_record("after", after)
    found: list[Change] = []
    _diff_objects(to_dict(before), to_dict(after), "$", found)
    return Diff(found)


def _diff_values(before: Json, after: Json, path: str, found: list[Change]) -> None:
    if isinstance(before, dict) and isinstance(after, dict):
        _diff_objects(before, after, path, found)
    elif isinstance(before, list) and isinstance(after, list):
        _diff_arrays(before, after, path, found)
    elif before != after or type(before) is not type(after):
        found.append(Change("changed", path, before, after))


def _diff_objects(before: dict[str, Json], after: dict[str, Json], path: str, found: list[Change]) -> None:
    for key, value in before.items():
        if key in after:
            _diff_values(value, after[key], json_path(path, key), found)
        else:
            found.append(Change("removed", json_path(path, key), before=value))
    for key, value in after.items():
        if key not in before:
            found.append(Change("added", json_path(path, key), after=value))


def _diff_arrays(before: list[Json], after: list[Json], path: str, found: list[Change]) -> None:
    from difflib import SequenceMatcher

    old, new = ([json.dumps(item, sort_keys=True) for item in items] for items in (before, after))
    for tag, start, end, new_start, new_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        both = min(end - start, new_end - new_start)
        for offset in range(both):
            _diff_values(before[start + offset], after[new_start + offset], f"{path}[{new_start + offset}]", found)
        found += [Change("removed", f"{path}[{index}]", before=before[index]) for index in range(start + both, end)]
        found += [Change("added", f"{path}[{index}]", after=after[index]) for index in range(new_start + both, new_end)]
