"""Places in an object: ``spec.at.linux.resources.memory.limit.set(512 << 20)`` is a new spec with that one member changed.

``paths.pyi``, generated from the classes, tells type checkers what is at each place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from .base import FrozenMap, Model
from .fields import Kind, fields_of

R = TypeVar("R", bound=Model)
T = TypeVar("T")


class At(Generic[R, T]):
    """A place in an object; nothing changes until `set`, `update`, `evolve`, `append` or `remove`, which give a new object.

    An attribute leads to a member, an index to an item of an array (int) or of a mapping (str). Objects on the way that are absent
    are made; one with required members cannot be, and raises TypeError.

    Raises:
        AttributeError: there is no such member.
        IndexError: the array is shorter.
    """

    __slots__ = ("_kind", "_root", "_steps")

    def __init__(self, root: R, kind: Kind | None = None, steps: tuple[str | int, ...] = ()) -> None:
        self._root = root
        self._kind = kind or Kind("", type(root).__name__)
        self._steps = steps

    def _model(self) -> type[Model] | None:
        if not self._steps:
            return type(self._root)
        return self._kind.model if not self._kind.outer else None

    def __getattr__(self, name: str) -> At[R, Any]:
        cls = self._model()
        field = fields_of(cls).get(name) if cls else None
        if field is None:
            raise AttributeError(f"{self} has no member {name!r}", name=name, obj=self)
        return At(self._root, field.kind, (*self._steps, name))

    def __getitem__(self, key: str | int) -> At[R, Any]:
        wanted = {"tuple": int, "Mapping": str}.get(self._kind.outer)
        if not self._steps or wanted is None or not isinstance(key, wanted):
            raise TypeError(f"{self} is not indexed by {key!r}")
        return At(self._root, Kind("", self._kind.name), (*self._steps, key))

    def __dir__(self) -> list[str]:
        cls = self._model()
        return [*super().__dir__(), *(fields_of(cls) if cls else ())]

    def __repr__(self) -> str:
        shown, kind = type(self._root).__name__, Kind("", type(self._root).__name__)
        for step in self._steps:
            if kind.outer:
                shown, kind = f"{shown}[{step!r}]", Kind("", kind.name)
            else:
                shown, kind = f"{shown}.{step}", fields_of(kind.model or Model)[str(step)].kind
        return shown

    def get(self) -> T | None:
        """What is there, or None where it or something on the way is absent."""
        value: Any = self._root
        for step in self._steps:
            if value is None:
                return None
            if isinstance(value, Model):
                value = getattr(value, str(step))
            else:
                value = value.get(step) if isinstance(value, Mapping) else value[step]
        found: T | None = value
        return found

    def set(self, value: T | None) -> R:
        """The object with this value there; None makes it absent."""
        return self.update(lambda _: value)

    def update(self, change: Callable[[T | None], T | None]) -> R:
        """The object with what ``change`` makes of what is there, or of None."""
        return _changed(type(self._root), self._root, self._steps, change)

    def evolve(self, **changes: object) -> R:
        """The object with some members of the object there changed; it is made when it is absent."""
        cls = self._model()
        if cls is None:
            raise TypeError(f"{self} is not an object with members")
        made = cls

        def change(value: Any) -> Any:
            return made(**changes) if value is None else value.evolve(**changes)

        return self.update(change)

    def append(self, *items: object) -> R:
        """The object with more items at the end of the array there; it is made when it is absent."""
        self._needs_array()

        def change(value: Any) -> Any:
            return (*(value or ()), *items)

        return self.update(change)

    def remove(self, item: object) -> R:
        """The object without an item of the array there. Raises ValueError: it has no such item."""
        self._needs_array()

        def change(value: Any) -> Any:
            left: list[object] = list(value or ())
            left.remove(item)
            return tuple(left)

        return self.update(change)

    def _needs_array(self) -> None:
        if not self._steps or self._kind.outer != "tuple":
            raise TypeError(f"{self} is not an array")


def _changed(cls: type[Model], value: Any, steps: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    if not steps:
        return change(value)
    step, rest = str(steps[0]), steps[1:]
    kind = fields_of(cls)[step].kind
    member = getattr(value, step) if value is not None else None
    made = _changed_items(kind, member, rest, change)
    if value is None:
        return None if made is None else cls(**{step: made})
    return value.evolve(**{step: made})


def _changed_items(kind: Kind, value: Any, steps: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    if not steps or not kind.outer:
        return _changed(kind.model or Model, value, steps, change)
    key, rest = steps[0], steps[1:]
    if kind.outer == "tuple":
        items = list(value or ())
        made = _changed(kind.model or Model, items[int(key)], rest, change)
        index = int(key) % len(items)
        return tuple(items[:index]) + (() if made is None else (made,)) + tuple(items[index + 1 :])
    entries = dict(value or {})
    made = _changed(kind.model or Model, entries.pop(key, None), rest, change)
    if made is not None:
        entries = {**dict(value or {}), key: made}
    return FrozenMap(entries)
