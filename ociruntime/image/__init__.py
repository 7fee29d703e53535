"""Images: what a container is made of. Recognising, reading and verifying images of every kind, and writing and signing SIF files.

Nothing here mounts or runs anything, except that `build_sif` runs ``mksquashfs``.
"""

from __future__ import annotations

from .._lazy import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import sif as sif
    from .blobs import LayerFormat as LayerFormat
    from .build import Compression as Compression
    from .build import build_sif as build_sif
    from .config import OciImageConfig as OciImageConfig
    from .files import FileType as FileType
    from .files import ImageFile as ImageFile
    from .model import Image as Image
    from .model import ImageKind as ImageKind
    from .model import Layer as Layer
    from .model import LayerRole as LayerRole
    from .sif.reader import SifImage as SifImage
    from .sif.writer import SifBuilder as SifBuilder
    from .signatures import SignatureFormat as SignatureFormat
    from .signatures import ValidSignature as ValidSignature
    from .signatures import Verification as Verification
    from .signatures import sign as sign

__getattr__, __dir__, __all__ = lazy_names(  # pyright: ignore[reportUnsupportedDunderAll]
    __name__,
    {
        "blobs": "LayerFormat",
        "build": "Compression build_sif",
        "config": "OciImageConfig",
        "files": "FileType ImageFile",
        "model": "Image ImageKind Layer LayerRole",
        "sif.reader": "SifImage",
        "sif.writer": "SifBuilder",
        "signatures": "SignatureFormat ValidSignature Verification sign",
    },
    submodules="sif",
)
