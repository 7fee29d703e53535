"""The keywords of calls that hand them on: of `Container.create`, `run`, `exec` and `popen`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import os

    from .container import LogFormat, StrPath
    from .overrides import Env, UserLike
    from .plan.cgroups import Manager
    from .spec import Process as ProcessSpec
    from .streams import Stdio

__all__ = ["CreateOptions", "ExecOptions", "PopenOptions"]


class CreateOptions(TypedDict, total=False):
    """The keywords of `Container.create` and `Container.run`."""

    root: StrPath | None
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    terminal: bool | None
    console_socket: StrPath | None
    pid_file: StrPath | None
    preserve_fds: int
    listen_fds: int | Sequence[str]
    notify_socket: StrPath | None
    cgroup_manager: Manager
    new_keyring: bool
    die_with_parent: bool
    supervise: bool
    log_path: StrPath | None
    log_format: LogFormat
    sync_socket: StrPath | None
    empty_process: bool


class Common(TypedDict, total=False):
    """What `exec` and `popen` take alike, beside the text mode."""

    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    env: Env | None
    cwd: str | os.PathLike[str] | None
    user: UserLike | None
    groups: Sequence[int] | None
    capabilities: Sequence[str]
    no_new_privileges: bool | None
    apparmor_profile: str | None
    selinux_label: str | None
    process: ProcessSpec | Mapping[str, Any] | None
    preserve_fds: int
    cgroup: str | Mapping[str, str] | None
    own_cgroup: bool


class ExecOptions(Common, total=False):
    """The further keywords of `exec`."""

    input: bytes | str | None
    capture_output: bool
    timeout: float | None
    check: bool
    terminal: bool


class PopenOptions(Common, total=False):
    """The further keywords of `popen`."""

    bufsize: int
    terminal: bool
    console_socket: str | os.PathLike[str] | None
    pid_file: str | os.PathLike[str] | None
