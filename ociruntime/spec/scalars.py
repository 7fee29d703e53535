"""The plain types of the runtime spec, by their names in annotations: type checkers see int and str, the schema their limits."""

from __future__ import annotations

from typing import Final, NamedTuple

Uint8 = int
Uint16 = int
Uint32 = int
Uint64 = int
Int32 = int
Int64 = int
FileMode = int
"""Permission bits, decimal in JSON: 0o666 is 438."""
PositiveInt = int
NonNegativeInt = int
CPUList = str
"""CPUs or memory nodes, as ``0-3,7``."""
PageSize = str
"""The size of a huge page, as ``2MB``."""
MemoryBandwidth = str
"""A line that starts with ``MB:``."""
CapabilityName = str
"""A capability, as ``CAP_KILL``."""


class Scalar(NamedTuple):
    """What JSON may hold: ``kind``, its width (checked when reading) and what the schema says beyond (checked by `validate`)."""

    kind: type
    limits: tuple[int, int] | None = None
    schema_minimum: int | None = None
    schema_maximum: int | None = None
    pattern: str | None = None


_U32: Final = (1 << 32) - 1
_U64: Final = (1 << 64) - 1

SCALARS: Final[dict[str, Scalar]] = {
    "str": Scalar(str),
    "bool": Scalar(bool),
    "int": Scalar(int),
    "Uint8": Scalar(int, (0, 255)),
    "Uint16": Scalar(int, (0, 65535)),
    "Uint32": Scalar(int, (0, _U32)),
    "Uint64": Scalar(int, (0, _U64)),
    "Int32": Scalar(int, (-(1 << 31), (1 << 31) - 1)),
    "Int64": Scalar(int, (-(1 << 63), (1 << 63) - 1)),
    # Engines send the file type bits of stat(2) along, so only the schema refuses them.
    "FileMode": Scalar(int, (0, _U32), schema_maximum=0o777),
    "PositiveInt": Scalar(int, schema_minimum=1),
    "NonNegativeInt": Scalar(int, schema_minimum=0),
    "CPUList": Scalar(str, pattern="^[0-9, -]*$"),
    "PageSize": Scalar(str, pattern="^[1-9][0-9]*[KMG]B$"),
    "MemoryBandwidth": Scalar(str, pattern="^MB:[^\\n]*$"),
    "CapabilityName": Scalar(str, pattern="^CAP_[A-Z_]+$"),
}
