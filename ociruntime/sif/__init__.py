"""Reading and writing SIF files (the Singularity Image Format): bytes in, typed values out.

`SifImage` opens and checks an image, `SifBuilder` writes one from objects, `build_sif` makes one of a root directory. Nothing here
mounts or runs anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ociruntime.sif.config import OciImageConfig
from ociruntime.sif.enums import (
    Architecture,
    DataType,
    Filesystem,
    HashKind,
    MessageFormat,
    MessageKind,
    PartitionKind,
    SbomFormat,
)
from ociruntime.sif.image import ObjectReader, SifImage
from ociruntime.sif.model import NO_TIME, CryptoMessage, Descriptor, Header, Metadata, OciObject, Partition, Sbom, Signature

if TYPE_CHECKING:
    from ociruntime.sif.build import build_sif
    from ociruntime.sif.builder import SifBuilder

__all__ = [
    "NO_TIME",
    "Architecture",
    "CryptoMessage",
    "DataType",
    "Descriptor",
    "Filesystem",
    "HashKind",
    "Header",
    "MessageFormat",
    "MessageKind",
    "Metadata",
    "ObjectReader",
    "OciImageConfig",
    "OciObject",
    "Partition",
    "PartitionKind",
    "Sbom",
    "SbomFormat",
    "SifBuilder",
    "SifImage",
    "Signature",
    "build_sif",
]


def __getattr__(name: str) -> object:
    # writing is rare: those who only read do not pay for importing it
    if name == "SifBuilder":
        from ociruntime.sif.builder import SifBuilder

        return SifBuilder
    if name == "build_sif":
        from ociruntime.sif.build import build_sif

        return build_sif
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
