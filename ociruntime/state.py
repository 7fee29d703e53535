"""`State`: the state of a container at one moment. `LostOutput`: what its log lacks."""

from __future__ import annotations

import json
from typing import Any, Final, cast

import attrs

from ._lazy import HtmlRepr
from .arguments import check_indent
from .spec.base import FrozenMap
from .store import OCI_VERSION, StateRecord, Status, describe_exit, oci_state, state_document


@attrs.frozen
class LostOutput:
    """What could not be written to the log of a container."""

    entries: int = 0
    bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.entries or self.bytes)


@attrs.frozen(kw_only=True)
class State(HtmlRepr):
    """The state of a container at one moment (runtime.md, State). Times are Unix nanoseconds, 0 if not known."""

    id: str
    status: Status
    pid: int = 0
    """The pid of the init process in the caller's pid namespace; 0 if there is none."""
    bundle: str
    """Absolute path of the bundle."""
    oci_version: str = OCI_VERSION
    annotations: FrozenMap[str] = attrs.field(default=FrozenMap(), converter=FrozenMap[str])
    created_at: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int | None = None
    """Exit code of the init process; the negative signal number if a signal killed it, as in `subprocess`. None: not known."""
    oom_killed: bool = False
    """Whether an OOM kill ended one of its processes."""
    rootfs: str = ""
    """Path of the root filesystem on the host."""
    attach_socket: str = ""
    """Path of the socket for attach clients; empty without a supervisor, as are those behind it."""
    control_socket: str = ""
    log_path: str = ""
    log_lost: LostOutput = LostOutput()
    """Entries of the log that could not be written; false if there are none."""
    log_error: str = ""
    """Why they could not be written."""

    @property
    def exit_desc(self) -> str:
        """How the container ended, as a phrase; empty if that is not known."""
        return "" if self.exit_code is None else describe_exit(self.exit_code, self.oom_killed)

    def to_oci(self) -> dict[str, object]:
        """Return the state document as hooks and seccomp agents get it: with the members of runtime.md, State, only."""
        return oci_state(self._record())

    def to_dict(self) -> dict[str, object]:
        """Return the state document as ``ociruntime state`` prints it, with members such as createdAt, exitCode and rootfs."""
        return state_document(self._record())

    def to_json(self, indent: int | None = 2) -> str:
        """Return the document of `to_dict` as JSON."""
        check_indent(indent)
        return json.dumps(self.to_dict(), indent=indent)

    def _record(self) -> StateRecord:
        return cast("StateRecord", attrs.asdict(self, recurse=False) | {"log_lost": attrs.astuple(self.log_lost)})


_MEMBERS: Final = frozenset(field.name for field in attrs.fields(State))


def state_of(record: StateRecord) -> State:
    """Return the state that a record describes."""
    members: dict[str, Any] = {name: value for name, value in record.items() if name in _MEMBERS}
    return State(**{**members, "log_lost": LostOutput(*record.get("log_lost", ()))})
