"""The state document of hooks and callers, and the message that a seccomp agent receives (runtime.md#state)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
from typing_extensions import override

from ..errors import Problem
from .base import NonNegativeInt, OpenEnum
from .model import Model

if TYPE_CHECKING:
    from . import places as places
    from .rules.host import HostLike


class ContainerStatus(OpenEnum):
    """Statuses of a container. A runtime may define more (runtime.md#state)."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class StateDocument(Model["places.StateDocumentAt"]):
    """The state of a container (runtime.md#state)."""

    oci_version: str
    """Version of the runtime spec."""
    id: str
    """Id of the container."""
    status: ContainerStatus
    """Status of the container."""
    pid: NonNegativeInt | None = None
    """Process id of the init process. Required on Linux if the status is created or running."""
    bundle: str
    """Absolute path of the bundle."""
    annotations: Mapping[str, str] | None = None
    """Annotations of the config. Default: none."""

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        from .rules.documents import state_problems

        return state_problems(self)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ContainerProcessState(Model["places.ContainerProcessStateAt"]):
    """The message that a seccomp agent receives with its file descriptors (config-linux.md#the-container-process-state)."""

    oci_version: str
    """Version of the runtime spec."""
    fds: tuple[str, ...] | None = None
    """Names of the file descriptors in the message, in their order. Default: none."""
    pid: int
    """Process id of the container process, in the runtime namespace."""
    metadata: str | None = None
    """``linux.seccomp.listenerMetadata`` of the config. Default: none."""
    state: StateDocument
    """State of the container."""

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        from .rules.documents import state_problems

        return state_problems(self.state, "$.state")
