"""``zos`` of config.json (config-zos.md)."""

from __future__ import annotations

from typing import ClassVar

from .base import OpenEnum
from .bases import ZOSBase, ZOSNamespaceBase


class ZOSNamespaceType(OpenEnum):
    """The namespaces of z/OS (config-zos.md#namespaces)."""

    MOUNT = "mount"
    PID = "pid"
    UTS = "uts"
    IPC = "ipc"


class ZOSNamespace(ZOSNamespaceBase):
    """A namespace of the container (config-zos.md#namespaces)."""

    SECTION: ClassVar[str] = "config-zos.md#namespaces"

    type: ZOSNamespaceType
    """Each type may come once."""
    path: str | None = None
    """Absolute path of an existing namespace to join. Default: a new one."""


class ZOS(ZOSBase):
    """The z/OS part of a config (config-zos.md#zos-container-configuration)."""

    SECTION: ClassVar[str] = "config-zos.md#zos-container-configuration"

    namespaces: tuple[ZOSNamespace, ...] | None = None
    """Namespaces of the container, each type once. Default: all of the runtime (config-zos.md#namespaces)."""
