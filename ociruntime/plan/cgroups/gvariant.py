"""A strict reader of GVariant's text format, in which annotations give systemd's properties.

Supported are true, false, numbers, strings, arrays and tuples of these, a type before a number or string (``uint64 5``), and ``@``
with a type before an empty array (``@as []``). A number without a type is an int32, or a double if it has a point, as in GVariant.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Scalar = bool | int | float | str
Value = Scalar | tuple["Value", ...]


class Typed(NamedTuple):
    """A value with its D-Bus type."""

    signature: str
    value: Value


_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?))
      | (?P<type>@a*[a-z])
      | (?P<word>[a-z][a-z0-9]*)
      | (?P<mark>[][(),])
    )""",
    re.VERBOSE,
)
_INTEGERS: Final = {
    "byte": ("y", 0, 8),
    "int16": ("n", 1, 16),
    "uint16": ("q", 0, 16),
    "int32": ("i", 1, 32),
    "uint32": ("u", 0, 32),
    "int64": ("x", 1, 64),
    "uint64": ("t", 0, 64),
}
_STRINGS: Final = {"string": "s", "objectpath": "o", "signature": "g"}
_ESCAPES: Final = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_SIMPLE: Final = frozenset("bynqiuxtdsog")


def parse(text: str) -> Typed:
    """Read one value. Raises ValueError with the reason."""
    reader = _Reader(text)
    value = reader.value()
    if reader.peek() is not None:
        raise ValueError(f"{text!r}: text after the value")
    return value


class _Reader:
    """Reads one value from its tokens."""

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None or match.lastgroup is None:
                raise ValueError(f"{self.text[at:]!r} is not a value")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def peek(self) -> str | None:
        return self.tokens[0][1] if self.tokens else None

    def take(self) -> tuple[str, str]:
        if not self.tokens:
            raise ValueError(f"{self.text!r} is incomplete")
        return self.tokens.pop(0)

    def value(self) -> Typed:
        kind, token = self.take()
        if kind == "string":
            return Typed("s", _unquote(token))
        if kind == "number":
            return Typed("d", float(token)) if _is_float(token) else _integer(token, "int32")
        if token in ("true", "false"):
            return Typed("b", token == "true")
        if token in _INTEGERS or token in _STRINGS or token == "double":
            return self.prefixed(token)
        if kind == "type":
            signature = token[1:]
            if signature[0] != "a" or signature[-1] not in _SIMPLE or (self.take(), self.take()) != (("mark", "["), ("mark", "]")):
                raise ValueError(f"{token}: only an empty array, as in '@as []', may have its type before it")
            return Typed(signature, ())
        if token in "[(" and kind == "mark":
            return self.sequence("]" if token == "[" else ")")
        raise ValueError(f"{token!r} is not a value")

    def prefixed(self, name: str) -> Typed:
        kind, token = self.take()
        if name in _STRINGS and kind == "string":
            return Typed(_STRINGS[name], _unquote(token))
        if name == "double" and kind == "number":
            return Typed("d", float(token))
        if name in _INTEGERS and kind == "number" and not _is_float(token):
            return _integer(token, name)
        raise ValueError(f"{token} is not a valid {name}")

    def sequence(self, end: str) -> Typed:
        items: list[Typed] = []
        while self.peek() != end:
            items.append(self.value())
            if self.peek() != end and self.take() != ("mark", ","):
                raise ValueError(f"{self.text!r}: a comma or {end} is missing")
        self.take()
        values = tuple(item.value for item in items)
        if end == ")":
            if not items:
                raise ValueError("() is empty")
            return Typed(f"({''.join(item.signature for item in items)})", values)
        kinds = {item.signature for item in items}
        if not items:
            raise ValueError("[] has no type; write one before it, as in '@as []'")
        if len(kinds) != 1:
            raise ValueError(f"{self.text!r} mixes types")
        return Typed("a" + kinds.pop(), values)


def _is_float(token: str) -> bool:
    return not token.lower().lstrip("+-").startswith("0x") and any(letter in token for letter in ".eE")


def _integer(token: str, name: str) -> Typed:
    signature, signed, bits = _INTEGERS[name]
    hexadecimal = token.lower().lstrip("+-").startswith("0x")
    value = int(token, 16 if hexadecimal else 10)
    if not -signed << bits - 1 <= value < 1 << bits - signed:
        raise ValueError(f"{token} is not a valid {name}")
    return Typed(signature, value)


def _unquote(token: str) -> str:
    def character(match: re.Match[str]) -> str:
        letter = match[1]
        return _ESCAPES.get(letter, letter)

    return re.sub(r"\\(.)", character, token[1:-1], flags=re.DOTALL)
