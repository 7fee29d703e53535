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
    """The type of a data object."""

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
    """The filesystem in a partition."""

    SQUASHFS = 1
    EXT3 = 2
    ARCHIVE = 3
    RAW = 4
    ENCRYPTED_SQUASHFS = 5
    """A LUKS2 volume with squashfs inside."""
    GOCRYPTFS_SQUASHFS = 6


class PartitionKind(enum.IntEnum):
    """The purpose of a partition."""

    SYSTEM = 1
    PRIMARY_SYSTEM = 2
    """The root filesystem. An image has at most one."""
    DATA = 3
    OVERLAY = 4


class HashKind(enum.IntEnum):
    """The hash algorithm of a signature."""

    SHA256 = 1
    SHA384 = 2
    SHA512 = 3
    BLAKE2S = 4
    BLAKE2B = 5


class MessageFormat(enum.IntEnum):
    """The encoding of a cryptographic message."""

    OPENPGP = 1
    PEM = 2


class MessageKind(enum.IntEnum):
    """The type of a cryptographic message."""

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
        """The name in OCI image documents: ``amd64``, ``386`` ..."""
        return "386" if self is Architecture.I386 else self.name.lower()

    @classmethod
    def from_name(cls, name: str) -> Architecture:
        """Return the architecture with an OCI name (``arm64``), a machine name of uname(2) (``aarch64``) or a SIF code (``04``).

        Raises:
            ValueError: the format has no code for the name.
        """
        lowered = name.lower()
        for member in cls:
            if lowered in (member.oci_name, member.value):
                return member
        machines = {"x86_64": cls.AMD64, "aarch64": cls.ARM64, "loongarch64": cls.LOONG64}
        if lowered in machines:
            return machines[lowered]
        if len(lowered) == 4 and lowered[0] == "i" and lowered.endswith("86"):
            return cls.I386
        if lowered.startswith("armv"):
            return cls.ARM
        raise ValueError(f"no SIF architecture code for {name!r}")

    @classmethod
    def host(cls) -> Architecture:
        """Return the architecture of this machine. Raises ValueError if the format has no code for it."""
        machine = os.uname().machine
        if sys.byteorder == "little" and machine in ("mips", "mips64"):  # uname(2) does not report the byte order
            machine += "le"
        return cls.from_name(machine)


_E = TypeVar("_E", bound=enum.IntEnum)


def parse_enum(kind: type[_E], value: int) -> _E | int:
    """Return the member for ``value``, or ``value`` itself if this version of the format does not name it."""
    try:
        return kind(value)
    except ValueError:
        return value


def label(value: int | str) -> str:
    """Return a value as text: ``oci-blob``, ``amd64``; an unknown one as ``0x4099`` or ``99``."""
    if isinstance(value, Architecture):
        return value.oci_name
    if isinstance(value, enum.IntEnum):
        return value.name.lower().replace("_", "-")
    return value if isinstance(value, str) else f"{value:#x}"
