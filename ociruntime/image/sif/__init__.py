"""Reading and writing SIF files (the Singularity Image Format): bytes in, typed values out.

`SifImage` opens and checks an image, `SifBuilder` writes one from objects, `add_objects` and `remove_objects` change one. Nothing
here mounts or runs anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ociruntime._lazy import lazy_names

if TYPE_CHECKING:
    from .model import NO_TIME as NO_TIME
    from .model import Architecture as Architecture
    from .model import CryptoMessage as CryptoMessage
    from .model import DataType as DataType
    from .model import Descriptor as Descriptor
    from .model import Filesystem as Filesystem
    from .model import HashKind as HashKind
    from .model import Header as Header
    from .model import MessageFormat as MessageFormat
    from .model import MessageKind as MessageKind
    from .model import Metadata as Metadata
    from .model import OciObject as OciObject
    from .model import Partition as Partition
    from .model import PartitionKind as PartitionKind
    from .model import Sbom as Sbom
    from .model import SbomFormat as SbomFormat
    from .model import Signature as Signature
    from .reader import ObjectReader as ObjectReader
    from .reader import SifImage as SifImage
    from .writer import SifBuilder as SifBuilder
    from .writer import add_objects as add_objects
    from .writer import remove_objects as remove_objects

__getattr__, __dir__, __all__ = lazy_names(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "model": "Architecture CryptoMessage DataType Descriptor Filesystem HashKind Header MessageFormat "
        "MessageKind Metadata NO_TIME OciObject Partition PartitionKind Sbom SbomFormat Signature",
        "reader": "ObjectReader SifImage",
        "writer": "SifBuilder add_objects remove_objects",
    },
)
