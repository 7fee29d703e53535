"""The state document, which hooks and callers get, and the one that a seccomp agent gets (runtime.md#state)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .base import OpenEnum
from .bases import ContainerProcessStateBase, StateDocumentBase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .scalars import NonNegativeInt


class ContainerStatus(OpenEnum):
    """Where in its lifecycle a container is; a runtime may know more (runtime.md#state)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


class StateDocument(StateDocumentBase):
    """The state of a container (runtime.md#state)."""

    SECTION: ClassVar[str] = "runtime.md#state"

    oci_version: str
    """Version of the runtime spec."""
    id: str
    """The container's id."""
    status: ContainerStatus
    """Where in its lifecycle it is."""
    pid: NonNegativeInt | None = None
    """Its process; needed on Linux when it is created or running."""
    bundle: str
    """Absolute path of the bundle."""
    annotations: Mapping[str, str] | None = None
    """Those of the config. Default: none."""


class ContainerProcessState(ContainerProcessStateBase):
    """What a seccomp agent gets beside the descriptors (config-linux.md#the-container-process-state)."""

    SECTION: ClassVar[str] = "config-linux.md#the-container-process-state"

    oci_version: str
    """Version of the runtime spec."""
    fds: tuple[str, ...] | None = None
    """Names of the descriptors that come along, in their order. Default: none."""
    pid: int
    """The container's process, as the runtime sees it."""
    metadata: str | None = None
    """What the config has in ``linux.seccomp.listenerMetadata``. Default: none."""
    state: StateDocument
    """The state of the container."""
