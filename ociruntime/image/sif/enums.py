"""The enumerations of the SIF format.

A value that is not listed here is not an error (the format grows): readers keep it as the raw ``int``, or ``str`` for an
architecture.
"""

from __future__ import annotations

import enum
import os
import sys
from typing import TypeVar

__all__ = [
    "Architecture",
    "DataType",
    "Filesystem",
    "HashKind",
    "MessageFormat",
    "MessageKind",
    "PartitionKind",
    "SbomFormat",
    "label",
]


class DataType(enum.IntEnum):
    """What a data object is."""

    DEFINITION = 0x4001
    ENVIRONMENT = 0x4002
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    GENERIC_JSON = 0x4006
    GENERIC = 0x4007
    CRYPTO_MESSAGE = 0x4008
    SBOM = 0x4009
    OCI_ROOT_INDEX = 0x400A
    OCI_BLOB = 0x400B


class Filesystem(enum.IntEnum):
    """What a partition holds."""

    SQUASHFS = 1
    EXT3 = 2
    ARCHIVE = 3
    RAW = 4
    ENCRYPTED_SQUASHFS = 5
    """A LUKS2 volume with squashfs inside."""
    GOCRYPTFS_SQUASHFS = 6


class PartitionKind(enum.IntEnum):
    """What a partition is for."""

    SYSTEM = 1
    PRIMARY_SYSTEM = 2
    """The root filesystem; an image has one at most."""
    DATA = 3
    OVERLAY = 4


class HashKind(enum.IntEnum):
    """The hash that a signature was made over."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3
    BLAKE2S = 4
    BLAKE2B = 5


class MessageFormat(enum.IntEnum):
    """How a cryptographic message is wrapped."""

    OPENPGP = 1
    PEM = 2


class MessageKind(enum.IntEnum):
    """What a cryptographic message is."""

    CLEAR_SIGNATURE = 0x100
    RSA_OAEP = 0x200


class SbomFormat(enum.IntEnum):
    """The format of a software bill of materials."""

    CYCLONEDX_JSON = 1
    CYCLONEDX_XML = 2
    GITHUB_JSON = 3
    SPDX_JSON = 4
    SPDX_RDF = 5
    SPDX_TAG_VALUE = 6
    SPDX_YAML = 7
    SYFT_JSON = 8


class Architecture(enum.StrEnum):
    """The two-digit architecture code of a header or a partition."""

    UNKNOWN = "00"
    I386 = "01"
    AMD64 = "02"
    ARM = "03"
    ARM64 = "04"
    PPC64 = "05"
    PPC64LE = "06"
    MIPS = "07"
    MIPSLE = "08"
    MIPS64 = "09"
    MIPS64LE = "10"
    S390X = "11"
    RISCV64 = "12"
    LOONG64 = "13"

    @property
    def oci_name(self) -> str:
        """The name that OCI image documents use: ``amd64``, ``386`` ..."""
        return "386" if self is Architecture.I386 else self.name.lower()

    @classmethod
    def from_name(cls, name: str) -> Architecture:
        """The architecture of an OCI name (``arm64``), a machine name of uname(2) (``aarch64``) or a SIF code (``04``).

        Raises `ValueError` for a name that the format has no code for.
        """
        wanted = name.lower()
        for member in cls:
            if wanted in (member.oci_name, member.value):
                return member
        machines = {"x86_64": cls.AMD64, "aarch64": cls.ARM64, "loongarch64": cls.LOONG64}
        if wanted in machines:
            return machines[wanted]
        if len(wanted) == 4 and wanted[0] == "i" and wanted.endswith("86"):
            return cls.I386
        if wanted.startswith("armv"):
            return cls.ARM
        raise ValueError(f"no SIF architecture code for {name!r}")

    @classmethod
    def host(cls) -> Architecture:
        """The architecture of this machine; raises `ValueError` when the format has no code for it."""
        machine = os.uname().machine
        if sys.byteorder == "little" and machine in ("mips", "mips64"):  # uname(2) does not tell the byte order
            machine += "le"
        return cls.from_name(machine)


_E = TypeVar("_E", bound=enum.IntEnum)


def known(kind: type[_E], value: int) -> _E | int:
    """The member for ``value``, or ``value`` itself when this version of the format does not name it."""
    try:
        return kind(value)
    except ValueError:
        return value


def label(value: int | str) -> str:
    """A value of one of these enumerations as people write it: ``oci-blob``, ``amd64``; an unknown one as ``0x4099`` or ``99``."""
    if isinstance(value, Architecture):
        return value.oci_name
    if isinstance(value, enum.IntEnum):
        return value.name.lower().replace("_", "-")
    return value if isinstance(value, str) else f"{value:#x}"
