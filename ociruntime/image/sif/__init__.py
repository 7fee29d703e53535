"""Reading and writing SIF files (the Singularity Image Format): bytes in, typed values out.

`SifImage` opens and checks an image, `SifBuilder` writes one from objects. Nothing here mounts or runs anything.
"""

from __future__ import annotations

from ociruntime._lazy import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .enums import Architecture as Architecture
    from .enums import DataType as DataType
    from .enums import Filesystem as Filesystem
    from .enums import HashKind as HashKind
    from .enums import MessageFormat as MessageFormat
    from .enums import MessageKind as MessageKind
    from .enums import PartitionKind as PartitionKind
    from .enums import SbomFormat as SbomFormat
    from .model import NO_TIME as NO_TIME
    from .model import CryptoMessage as CryptoMessage
    from .model import Descriptor as Descriptor
    from .model import Header as Header
    from .model import Metadata as Metadata
    from .model import OciObject as OciObject
    from .model import Partition as Partition
    from .model import Sbom as Sbom
    from .model import Signature as Signature
    from .reader import ObjectReader as ObjectReader
    from .reader import SifImage as SifImage
    from .writer import SifBuilder as SifBuilder

__getattr__, __dir__, __all__ = lazy_names(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "enums": "Architecture DataType Filesystem HashKind MessageFormat MessageKind PartitionKind SbomFormat",
        "model": "NO_TIME CryptoMessage Descriptor Header Metadata OciObject Partition Sbom Signature",
        "reader": "ObjectReader SifImage",
        "writer": "SifBuilder",
    },
)
