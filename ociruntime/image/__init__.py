"""Images: what a container is made of. Recognising, reading and verifying images of every kind, and writing and signing SIF files.

Nothing here mounts or runs anything, except that `build` runs a program that makes a squashfs, and `pull` skopeo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from . import sif as sif
    from .blobs import LayerFormat as LayerFormat
    from .config import ImageMetadata as ImageMetadata
    from .config import OciImageConfig as OciImageConfig
    from .convert import build as build
    from .convert import build_sif as build_sif
    from .files import FileType as FileType
    from .files import ImageFile as ImageFile
    from .model import Image as Image
    from .model import ImageKind as ImageKind
    from .model import Layer as Layer
    from .model import LayerRole as LayerRole
    from .packing import Compression as Compression
    from .packing import progress_bar as progress_bar
    from .registry import pull as pull
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
        "convert": "build build_sif",
        "config": "ImageMetadata OciImageConfig",
        "packing": "Compression progress_bar",
        "registry": "pull",
        "files": "FileType ImageFile",
        "model": "Image ImageKind Layer LayerRole",
        "sif.reader": "SifImage",
        "sif.writer": "SifBuilder",
        "signatures": "SignatureFormat ValidSignature Verification sign",
    },
    submodules="sif",
)
