"""Every public call with its parameters, found by introspection, and wrong values for them."""

from __future__ import annotations

import inspect
import os
import re
import reprlib
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import attrs

import ociruntime as oci
from ociruntime.spec import Model

MODULES = (oci, oci.spec, oci.image, oci.image.sif, oci.aio, oci.errors)
HUGE = 1 << 70


@dataclass(frozen=True)
class Call:
    """A public function, constructor or method."""

    name: str
    """As ``Container.exec`` or ``aio.run``."""
    owner: type | None
    """The class of a method; None for a function or constructor."""
    function: Callable[..., Any]
    bound: bool
    """Whether it is called on an instance."""

    @property
    def parameters(self) -> list[inspect.Parameter]:
        found = list(inspect.signature(self.function).parameters.values())
        found = found[1:] if self.bound else found
        return [item for item in found if item.kind is not item.VAR_KEYWORD and item.annotation not in ("Never", Never)]


def _own(cls: type, name: str) -> bool:
    """Whether a class inherits a name from this package rather than from the standard library."""
    home = next((base for base in cls.__mro__ if name in vars(base)), object)
    return home.__module__.startswith("ociruntime")


def _of_class(prefix: str, cls: type) -> Iterator[Call]:
    if _own(cls, "__init__") and not issubclass(cls, BaseException) and not attrs.has(cls):
        yield Call(prefix, None, cls, bound=False)
    for name in sorted({name for base in cls.__mro__ for name in vars(base)}):  # dir() of an enumeration leaves methods out
        if name.startswith("_") or not _own(cls, name):
            continue
        static, member = inspect.getattr_static(cls, name), getattr(cls, name)
        if isinstance(static, classmethod | staticmethod):
            yield Call(f"{prefix}.{name}", cls, member, bound=False)
        elif callable(member) and not inspect.isclass(member):
            yield Call(f"{prefix}.{name}", cls, member, bound=True)


def public_calls() -> Iterator[Call]:
    """Yield every public function and method, and every constructor that is not one of an attrs class or an exception.

    Documents check their members themselves, and the other attrs classes are values that calls return.
    """
    seen: set[int] = set()
    for module in MODULES:
        for name in module.__all__:
            value = getattr(module, name)
            prefix = "aio." if module is oci.aio else ""
            if id(value) in seen or isinstance(value, types.ModuleType):
                continue
            seen.add(id(value))
            if inspect.isclass(value):
                if not issubclass(value, Model) or value in (oci.RuntimeSpec, oci.spec.ProcessSpec):
                    yield from _of_class(prefix + name, value)
            elif inspect.isfunction(value):
                yield Call(prefix + name, None, value, bound=False)


def models() -> list[type[Model]]:
    """The classes of documents."""
    found = (getattr(oci.spec, name) for name in oci.spec.__all__)
    return [value for value in found if inspect.isclass(value) and issubclass(value, Model) and value is not Model]


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": [value]}
    return value


class Odd:
    """An object of no use."""

    def __repr__(self) -> str:
        return "<odd object>"


def wrong_values(directory: Path) -> dict[str, Any]:
    """Return values by description. They are made in an empty directory."""
    missing, plain, fifo, text = directory / "missing/file", directory / "directory", directory / "fifo", directory / "text"
    plain.mkdir(parents=True)
    os.mkfifo(fifo)
    text.write_text("no document")
    (directory / "locked").mkdir()
    (directory / "locked/file").write_text("{}")
    (directory / "locked/file").chmod(0)
    (directory / "locked").chmod(0)
    loop: list[Any] = []
    loop.append(loop)
    return {
        "None": None,
        "True": True,
        "zero": 0,
        "-1": -1,
        "-5": -5,
        "closed fd": 987654,
        "huge int": HUGE,
        "nan": float("nan"),
        "inf": float("inf"),
        "fraction": 1.5,
        "complex": 1j,
        "empty": "",
        "word": "nonsense",
        "number in a string": "12",
        "digits that int() refuses": "²",
        "many digits": "9" * 5000,
        "NUL": "a\0b",
        "newline": "a\nb",
        "byte that is not UTF-8": "\udcff",
        "lone surrogate": "\ud800",
        "long": "x" * 5000,
        "long name": "n" * 300,
        "dots": "..",
        "dash": "-x",
        "deep JSON": '{"a":' * 100_000,
        "bytes": b"bytes",
        "odd bytes": b"\xff\0",
        "missing": str(missing),
        "missing path": missing,
        "directory": str(plain),
        "fifo": str(fifo),
        "text file": str(text),
        "unreadable": str(directory / "locked/file"),
        "empty tuple": (),
        "mixed list": ["x", 3, None],
        "list of objects": [Odd()],
        "list of surrogates": ["\ud800"],
        "list with a NUL": ["a\0b"],
        "pair": (-1, HUGE),
        "set": {"x"},
        "endless list": loop,
        "deep dict": _deep(5000),
        "dict": {"a": Odd()},
        "dict of numbers": {3: 4},
        "dict of strings": {"a": "b"},
        "generator": (item for item in "ab"),
        "object": Odd(),
        "class": Odd,
        "function": len,
    }


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "StrPath": (str, os.PathLike),
    "str | os.PathLike[str]": (str, os.PathLike),
    "bytes": (bytes, bytearray, memoryview),
    "bytes | str": (bytes, bytearray, memoryview, str),
    "int | str": (int, str),
}
"""Annotations whose instances are known here."""


def is_wrong(annotation: object, value: object) -> bool:
    """Return whether a value is certainly not of an annotated type."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    options = [option.strip() for option in text.split(" | ")]
    if value is None:
        return text.removesuffix(" | None") in _PLAIN and "None" not in options
    kinds = _PLAIN.get(text.removesuffix(" | None"))
    if kinds is None:
        return False
    return not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)


def names(message: str, name: str, value: object) -> bool:
    """Return whether the message of an error names a parameter or its value."""
    if "bytes-like object" in message or re.match(r"(.*: )?\$|[A-Z]\w+\.\w+ takes |[A-Z]\w+ needs ", message, re.S):
        return True  # as the io module says it; the JSON path; the member of a document
    if re.search(rf"(?<![a-zA-Z]){re.escape(name).replace('_', '[-_]')}(?![a-zA-Z])", message):
        return True
    items: list[object] = [value]
    if isinstance(value, list | tuple | set):
        items += [item for item in value if item is not value]
    elif isinstance(value, dict) and "a" not in value:
        items += [item for pair in value.items() for item in pair]
    shown = [str(item) if isinstance(item, str | os.PathLike) else reprlib.repr(item) for item in items]
    shown += [os.path.realpath(item) for item in items if item == ".."]
    shown += [repr(item)[1:-1] if item else "''" for item in items if isinstance(item, str)]
    return any(text and text[:12] in message for text in shown)
