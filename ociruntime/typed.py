"""`NamedTuple` and `TypedDict` for modules that a short command needs: importing `typing` takes longer than such a command may.

Type checkers see those of `typing`. At run time a `NamedTuple` is what `collections.namedtuple` makes of the annotations and
defaults in the body of the class, as it is with `typing`, and a `TypedDict` is a dict.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
    from typing import TypedDict as TypedDict
else:
    from collections import namedtuple

    class _Fields(type):
        def __new__(meta, name, bases, body):
            if not bases:
                return super().__new__(meta, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            for key, value in body.items():
                if key not in ("__module__", "__classcell__"):
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Fields):
        """See `typing.NamedTuple`."""

    class TypedDict(dict):
        """See `typing.TypedDict`."""

        def __init_subclass__(cls, total=True):
            super().__init_subclass__()
