"""The encoding of the init's steps as one block of bytes (the table is in `ociruntime.plan.ops`).

The block is a header, the fixed structures of the operations, and the text and data that they refer to. The init maps it read-only
from a sealed memfd, so it allocates nothing, and the block cannot change after it was checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from .ops import MAGIC, MAX_SLOTS, NO_SLOT, OPS

_HEADER: Final = struct.Struct("=IIII")
_HEAD: Final = struct.Struct("=IHH")
_U64: Final = struct.Struct("=Q")
_REF: Final = struct.Struct("=II")
_LIST: Final = struct.Struct("=IIQ")
_SIZE: Final = {"slot": 8, "num": 8, "str": 8, "data": 8, "list": 16}
_OP_SIZES: Final = {op.name: _HEAD.size + sum(_SIZE[kind] for _, kind in op.fields) for op in OPS.values()}
MAX_PROGRAM: Final = 64 << 20


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    raise TypeError(f"text or bytes expected, not {type(value).__name__}")


def _text(value: object, field: str) -> bytes:
    raw = _bytes(value)
    if b"\0" in raw:
        raise ValueError(f"{field}: {raw!r} contains NUL")
    return raw + b"\0"


def encode(steps: Sequence[tuple[int, str, Sequence[object]]], inputs: int) -> bytes:
    """Encode steps as the init reads them.

    Args:
        steps: number, operation and values of each step.
        inputs: the number of slots that the caller fills at launch.

    Raises:
        TypeError: a step has the wrong number of values.
        ValueError: text contains NUL, a slot or number is out of range, or the result is above 64 MiB.
    """
    base = _HEADER.size + sum(_OP_SIZES[name] for _, name, _ in steps)
    ops: list[bytes] = []
    tail = bytearray()

    def place(raw: bytes) -> tuple[int, int]:
        at = base + len(tail)
        tail.extend(raw)
        return at, len(raw)

    for number, name, values in steps:
        op = OPS[name]
        if len(values) != len(op.fields):
            raise TypeError(f"step {number} {name}: {len(values)} values for {len(op.fields)} fields")
        parts = [_HEAD.pack(_OP_SIZES[name], op.code, number)]
        for (field, kind), value in zip(op.fields, values, strict=True):
            location = f"step {number} {name}.{field}"
            if kind in ("slot", "num"):
                assert isinstance(value, int)
                if kind == "slot" and value != NO_SLOT and not 0 <= value < MAX_SLOTS:
                    raise ValueError(f"{location}: slot {value} is out of range")
                if not -(1 << 63) <= value < 1 << 64:
                    raise ValueError(f"{location}: {value} does not fit in 64 bits")
                parts.append(_U64.pack(value & 0xFFFFFFFFFFFFFFFF))
            elif kind == "str":
                parts.append(_REF.pack(*place(_text(value, location))))
            elif kind == "data":
                parts.append(_REF.pack(*place(_bytes(value))))
            else:
                assert isinstance(value, Sequence)
                at, size = place(b"".join(_text(item, location) for item in value))
                parts.append(_LIST.pack(at, size, len(value)))
        ops.append(b"".join(parts))
    total = base + len(tail)
    if total > MAX_PROGRAM:
        raise ValueError(f"the program of {total} bytes is larger than {MAX_PROGRAM}")
    return _HEADER.pack(MAGIC, total, len(steps), inputs) + b"".join(ops) + bytes(tail)
