"""The options of calls, each as one value: validated when it is made, and passed whole to the operation.

A public function spells its keywords out and makes the value. A function that hands its keywords on takes them as ``**options``,
typed by the ``...Keywords`` of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Never, Protocol, TypeAlias, TypedDict, TypeVar, cast, get_args

import attrs

from .arguments import (
    Duration,
    check_choice,
    check_int,
    check_str,
    check_type,
    closest,
    parse_limit,
    parse_path,
    parse_size,
    parse_timeout,
    shown,
    wrong_type,
)
from .errors import UnsupportedError
from .files import absolute_path
from .host import Host
from .overrides import (
    Args,
    Arguments,
    Env,
    Mounts,
    Network,
    Overlays,
    Overrides,
    Ports,
    StrPath,
    UserLike,
    find_enforcement,
    is_bool,
    may_use_systemd,
    parse_mounts,
    validated_by,
)
from .plan.cgroups import MANAGERS, Manager
from .presets import Preset, complete, parse_preset
from .rootfs.layers import Strategy, parse_strategy
from .rootfs.mount import SEPARATOR
from .rootfs.uppers import own_layer, parse_overlay
from .spec import Mount, Rlimit, RlimitType
from .streams import BESIDE_A_TERMINAL, DEVNULL, PIPE, Codec, Output, Stdio, Streams
from .terminal import check_user_terminal

if TYPE_CHECKING:
    from .spec import ProcessSpec

__all__ = [
    "AsyncPopenKeywords",
    "CheckpointKeywords",
    "CheckpointOptions",
    "ConfigurationKeywords",
    "CreateKeywords",
    "CreateOptions",
    "ExecKeywords",
    "ExecOptions",
    "NoKeywords",
    "PopenKeywords",
    "RestoreKeywords",
    "RestoreOptions",
    "RunKeywords",
    "RunOptions",
    "check_keywords",
]

LogFormat: TypeAlias = Literal["kubernetes", "json", "basic"]
"""The format of the log of a supervised container."""
LimitPolicy: TypeAlias = Literal["required", "if possible"]
"""Whether a limit of a sandbox that the host cannot enforce is an error, or a warning."""
CgroupsMode: TypeAlias = Literal["soft", "full", "strict", "ignore"]
"""How criu treats cgroups, as its option ``--manage-cgroups``."""
OutputFunction: TypeAlias = "Callable[[Any], object]"
"""A function that gets output as it comes, as bytes or text."""


class CreateKeywords(TypedDict, total=False):
    """The keywords of `Container.create` and `Container.run`."""

    state_root: StrPath | None
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
    pivot_root: bool
    die_with_parent: bool
    supervise: bool
    log_path: StrPath | None
    log_format: LogFormat
    sync_socket: StrPath | None
    empty_process: bool


class CheckpointKeywords(TypedDict, total=False):
    """The keywords of `Container.checkpoint`."""

    work_path: StrPath | None
    parent_path: StrPath | None
    leave_running: bool
    pre_dump: bool
    tcp_established: bool
    ext_unix_sk: bool
    shell_job: bool
    file_locks: bool
    auto_dedup: bool
    manage_cgroups_mode: CgroupsMode


class RestoreKeywords(TypedDict, total=False):
    """The keywords of `Container.restore`."""

    state_root: StrPath | None
    work_path: StrPath | None
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    terminal: bool | None
    console_socket: StrPath | None
    pid_file: StrPath | None
    cgroup_manager: Manager
    tcp_established: bool
    ext_unix_sk: bool
    shell_job: bool
    file_locks: bool
    auto_dedup: bool
    manage_cgroups_mode: CgroupsMode


class _ProgramKeywords(TypedDict, total=False):
    """The keywords that `Container.exec` and `Container.popen` share, except those of the text mode."""

    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    env: Env | None
    cwd: StrPath | None
    user: UserLike | None
    groups: Sequence[int] | None
    capabilities: Sequence[str]
    no_new_privileges: bool | None
    apparmor_profile: str | None
    selinux_label: str | None
    process: ProcessSpec | Mapping[str, Any] | None
    terminal: bool
    preserve_fds: int
    cgroup: str | Mapping[str, str] | None
    own_cgroup: bool


class ExecKeywords(_ProgramKeywords, total=False):
    """The keywords of `Container.exec`, except those of the text mode."""

    input: bytes | str | None
    capture_output: bool
    max_output: int | str | None
    on_stdout: OutputFunction | None
    on_stderr: OutputFunction | None
    timeout: Duration | None
    check: bool


class AsyncPopenKeywords(_ProgramKeywords, total=False):
    """The keywords of `Container.popen` in `ociruntime.aio`, except those of the text mode. Its streams are not files."""

    console_socket: StrPath | None
    pid_file: StrPath | None


class PopenKeywords(AsyncPopenKeywords, total=False):
    """The keywords of `Container.popen`, except those of the text mode."""

    bufsize: int


class ConfigurationKeywords(TypedDict, total=False):
    """The keywords that `ociruntime.run` and `Bundle.with_overrides` share."""

    env: Env | None
    cwd: StrPath | None
    user: UserLike | None
    preset: Preset | str | None
    mounts: Mounts | None
    memory: int | str | None
    cpus: float | None
    pids: int | None
    network: Network | None
    devices: Iterable[StrPath] | None
    gpus: str | int | None
    ports: Ports | None
    read_only: bool | None
    hostname: str | None


class RunKeywords(ConfigurationKeywords, total=False):
    """The keywords of `ociruntime.run`, except those of the text mode."""

    input: bytes | str | None
    capture_output: bool
    max_output: int | str | None
    on_stdout: OutputFunction | None
    on_stderr: OutputFunction | None
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    timeout: Duration | None
    check: bool
    overlay: Overlays | None
    terminal: bool
    container_id: str | None
    state_root: StrPath | None
    die_with_parent: bool | None
    cgroup_manager: Manager
    reference: str | None
    platform: str | None
    strategy: str | None
    profile: bool


class SandboxKeywords(ConfigurationKeywords, total=False):
    """The keywords of `ociruntime.Sandbox`."""

    disk: int | str | None
    shm: int | str | None
    max_output: int | str | None
    timeout: Duration | None
    limits: LimitPolicy | None
    overlay: Overlays | None
    name: str | None
    state_root: StrPath | None
    cgroup_manager: Manager | None
    reference: str | None
    platform: str | None
    strategy: str | None


class SandboxRunKeywords(TypedDict, total=False):
    """The keywords of `Sandbox.run` and `Sandbox.shell`, except those of the text mode."""

    input: bytes | str | None
    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    max_output: int | str | None
    on_stdout: OutputFunction | None
    on_stderr: OutputFunction | None
    timeout: Duration | None
    check: bool
    env: Env | None
    cwd: StrPath | None
    user: UserLike | None
    groups: Sequence[int] | None
    terminal: bool


class SandboxPopenKeywords(TypedDict, total=False):
    """The keywords of `Sandbox.popen`, except those of the text mode and ``bufsize``."""

    stdin: Stdio
    stdout: Stdio
    stderr: Stdio
    env: Env | None
    cwd: StrPath | None
    user: UserLike | None
    groups: Sequence[int] | None
    terminal: bool


class NoKeywords(TypedDict):
    """No keywords: what a function that spells its keywords out takes besides, to say which one was meant."""


if TYPE_CHECKING:
    _T_co = TypeVar("_T_co", covariant=True)

    class UnknownKeyword(Protocol[_T_co]):
        """The type of a keyword that a call does not have. ``UnknownKeyword[Never]`` has no values.

        The last overload of each call takes such keywords, so that type checkers name the misspelt one. If none did, mypy would
        list all overloads, and pyright the types of all arguments. To find the overload that was meant, mypy compares types with
        Any for their parameters, and every value is an ``UnknownKeyword[Any]``.
        """

        def __ne__(self, other: object, /) -> _T_co: ...  # type: ignore[override]

    Misspelt: TypeAlias = UnknownKeyword[Never]


def check_keywords(function: str, options: Mapping[str, object], keywords: type) -> None:
    """Raise TypeError for an option that is not a keyword of a function. The message says which one was probably meant."""
    known: frozenset[str] = keywords.__optional_keys__  # type: ignore[attr-defined]
    for name in options:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{_remedy(name, known, keywords)}")


def _remedy(name: str, known: Set[str], keywords: type) -> str:
    keyword, example = next((ours for theirs, *ours in _INSTEAD if name in theirs.split()), ("", ""))
    if example and (not keyword or keyword in known):
        return f"; {example}"
    ours = keyword or name
    if keywords is CreateKeywords and ours in ConfigurationKeywords.__optional_keys__:
        return f"; use bundle.with_overrides({example.removeprefix('use ') or f'{ours}=...'})"
    if keywords in (SandboxRunKeywords, SandboxPopenKeywords) and ours in SandboxKeywords.__optional_keys__:
        return f"; it is an argument of the Sandbox: {ours}=..."
    close = closest(name, sorted((known | _ALWAYS) - {name}), 0.7)
    return f"; did you mean {close!r}?" if close else ""


_ALWAYS: Final = frozenset({"args", "text", "encoding", "errors"})
"""Arguments that are not in the ``...Keywords``."""
_INSTEAD: Final = (
    ("volumes volume binds bind volume_mounts", "mounts", "use mounts=['source:/destination:ro']"),
    ("tmpfs", "mounts", "use mounts=[Mount(destination='/tmp', type='tmpfs', source='tmpfs')]"),
    ("environment environ env_vars envs envvars", "env", "use env={'NAME': 'value'}"),
    ("mem_limit memory_limit mem max_memory", "memory", "use memory='512M'"),
    ("cpu_count nano_cpus cpu_limit cpu cpu_quota num_cpus", "cpus", "use cpus=0.5"),
    ("pids_limit max_pids", "pids", "use pids=100"),
    ("shm_size", "shm", "use shm='64M'"),
    ("gpu nv device_requests", "gpus", "use gpus='all', or the number of GPUs"),
    ("working_dir workdir pwd work_dir", "cwd", "use cwd='/path'"),
    ("network_mode net", "network", "use network='none', 'private' or 'host'"),
    ("network_disabled", "network", "use network='none'"),
    ("publish port expose", "ports", "use ports={8080: 80} with network='private'"),
    ("readonly read_only_root read_only_rootfs", "read_only", "use read_only=True"),
    ("tty interactive stdin_open pty", "terminal", "use terminal=True"),
    ("uid username user_id", "user", "use user='name' or user=1000"),
    ("host_name", "hostname", "use hostname='name'"),
    ("name id", "container_id", "use container_id='name'"),
    ("universal_newlines", "", "use text=True"),
    ("command cmd entrypoint argv", "", "use args=['program', 'argument']"),
    ("args", "", "use bundle.with_args(['program', 'argument'])"),
    ("shell", "", "use args=['sh', '-c', line], or Sandbox.shell"),
    ("detach detached background", "", "Container.run and Container.popen return while the program runs"),
    ("privileged cap_add", "", "use a Bundle whose process.capabilities has what the program needs"),
    ("remove auto_remove rm", "", "leave it out: nothing is left of what run and Sandbox make"),
)
"""Keywords of other libraries, ours for them or an empty text if it depends on the call, and what to write."""


def _check_manager(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    check_choice(attribute.name, value, MANAGERS)


def _check_log_format(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    check_choice(attribute.name, value, get_args(LogFormat))


def _check_cgroups_mode(_: object, attribute: attrs.Attribute[Any], value: str) -> None:
    check_choice(attribute.name, value, get_args(CgroupsMode))


def _check_notify_socket(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value and not value.startswith(("/", "@")):
        raise ValueError(f"{attribute.name} is {value!r}: an absolute path, or @ and the name of an abstract socket is needed")


def _path(path: StrPath | None) -> str | None:
    """Return a path as a str. What is not a path is left to the validator."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def _absolute(path: StrPath | None) -> str | None:
    text = _path(path)
    return absolute_path(text) if isinstance(text, str) and text else text


def _absolute_path(path: StrPath) -> str:
    return cast("str", _absolute(path))


def _check_listen_fds(_: object, attribute: attrs.Attribute[Any], value: int | Sequence[str]) -> None:
    if isinstance(value, int) and not isinstance(value, bool):
        check_int(attribute.name, value, 0, _MAX_FDS)
    elif isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong_type(attribute.name, value, "a number of sockets or a sequence of their names")
    else:
        for number, name in enumerate(value):
            check_str(f"{attribute.name}[{number}]", name)


def _check_capabilities(_: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise wrong_type(attribute.name, value, "a sequence of names")
    for number, name in enumerate(value):
        check_str(f"{attribute.name}[{number}]", name)


def _check_cgroup(_: object, attribute: attrs.Attribute[Any], value: str | Mapping[str, str] | None) -> None:
    if isinstance(value, Mapping):
        for controller, path in value.items():
            check_str(attribute.name, controller)
            parse_path(f"{attribute.name}[{controller!r}]", path)
    elif value is not None:
        check_type(attribute.name, value, str, "a path, or a mapping of controllers to paths,")
        if value:
            parse_path(attribute.name, value)


def _load_process(process: ProcessSpec | Mapping[str, Any] | None) -> ProcessSpec | None:
    """Return a process object. Raises TypeError, or SpecError for JSON that is not a process object."""
    if process is None:
        return None
    from .spec import ProcessSpec

    check_type("process", process, (ProcessSpec, Mapping), "a ProcessSpec or a mapping")
    return process if isinstance(process, ProcessSpec) else ProcessSpec.load(process)


_MAX_FDS: Final = 1 << 20
"""More file descriptors than a process has."""
_MAX_BUFFER: Final = 1 << 30
_is_fd_count = validated_by(check_int, 0, _MAX_FDS)
_is_path = validated_by(parse_path)
_is_text = validated_by(check_str)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class CreateOptions(Arguments):
    """The options of `Container.create` and `Container.run`, which documents them.

    Raises:
        TypeError, ValueError: a value is wrong, or conflicts with another. The message begins with the argument.
    """

    state_root: StrPath | None = None
    stdin: Stdio = None
    stdout: Stdio = None
    stderr: Stdio = None
    terminal: bool | None = attrs.field(default=None, validator=is_bool)
    console_socket: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    pid_file: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    preserve_fds: int = attrs.field(default=0, validator=_is_fd_count)
    listen_fds: int | Sequence[str] = attrs.field(default=0, validator=_check_listen_fds)
    notify_socket: str | None = attrs.field(default=None, converter=_path, validator=[_is_path, _check_notify_socket])
    cgroup_manager: Manager = attrs.field(default="cgroupfs", validator=_check_manager)
    new_keyring: bool = attrs.field(default=True, validator=is_bool)
    pivot_root: bool = attrs.field(default=True, validator=is_bool)
    die_with_parent: bool | None = attrs.field(default=False, validator=is_bool)
    supervise: bool = attrs.field(default=False, validator=is_bool)
    log_path: str | None = attrs.field(default=None, converter=_absolute, validator=_is_path)
    log_format: LogFormat = attrs.field(default="kubernetes", validator=_check_log_format)
    sync_socket: str | None = attrs.field(default=None, converter=_absolute, validator=_is_path)
    empty_process: bool = attrs.field(default=False, validator=is_bool)

    def __attrs_post_init__(self) -> None:
        if not self.supervised:
            return
        streams = (self.stdin, self.stdout, self.stderr)
        if self.console_socket is not None or any(stream not in (None, number) for number, stream in enumerate(streams)):
            raise ValueError(
                "supervise=True conflicts with stdin, stdout, stderr and console_socket: the supervisor owns the streams"
            )
        if self.die_with_parent:
            raise ValueError("die_with_parent=True conflicts with supervise=True")

    @property
    def supervised(self) -> bool:
        """Whether the container gets a supervisor: any option of one asks for it."""
        logs = self.log_path is not None or self.log_format != "kubernetes"
        return self.supervise or logs or self.sync_socket is not None

    @property
    def listen_count(self) -> int:
        """The number of sockets for socket activation."""
        return self.listen_fds if isinstance(self.listen_fds, int) else len(self.listen_fds)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _CriuOptions(Arguments):
    """What a checkpoint and a restore have in common. Paths are absolute."""

    image_path: str = attrs.field(converter=_absolute_path, validator=_is_path)
    work_path: str | None = attrs.field(default=None, converter=_absolute, validator=_is_path)
    tcp_established: bool = attrs.field(default=False, validator=is_bool)
    ext_unix_sk: bool = attrs.field(default=False, validator=is_bool)
    shell_job: bool = attrs.field(default=False, validator=is_bool)
    file_locks: bool = attrs.field(default=False, validator=is_bool)
    auto_dedup: bool = attrs.field(default=False, validator=is_bool)
    manage_cgroups_mode: CgroupsMode = attrs.field(default="soft", validator=_check_cgroups_mode)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class CheckpointOptions(_CriuOptions):
    """The options of `Container.checkpoint`, which documents them. Raises TypeError, ValueError."""

    parent_path: str | None = attrs.field(default=None, converter=_absolute, validator=_is_path)
    leave_running: bool = attrs.field(default=False, validator=is_bool)
    pre_dump: bool = attrs.field(default=False, validator=is_bool)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class RestoreOptions(_CriuOptions):
    """The options of `Container.restore`, which documents them. Raises TypeError, ValueError."""

    state_root: StrPath | None = None
    stdin: Stdio = None
    stdout: Stdio = None
    stderr: Stdio = None
    terminal: bool | None = attrs.field(default=None, validator=is_bool)
    console_socket: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    pid_file: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    cgroup_manager: Manager = attrs.field(default="cgroupfs", validator=_check_manager)


def parse_max_output(value: int | str | None) -> int | None:
    """Return the bytes of output to keep; None for all. Raises TypeError, ValueError."""
    size = -1 if value is None else parse_limit("max_output", parse_size, value)
    return None if size < 0 else size


def _check_function(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise wrong_type(attribute.name, value, "a function")


def _find_codec(arguments: tuple[bool | None, str | None, str | None]) -> Codec | None:
    return Codec.of(*arguments)


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class _StreamOptions(Arguments):
    """The streams of a program, and how the call waits for it."""

    stdin: Stdio = None
    stdout: Stdio = None
    stderr: Stdio = None
    codec: Codec | None = attrs.field(default=None, converter=attrs.converters.optional(_find_codec))
    """How bytes become text, given ``text``, ``encoding`` and ``errors``; None for bytes."""
    input: bytes | str | None = None
    capture_output: bool = attrs.field(default=False, validator=is_bool)
    max_output: int | None = attrs.field(default=None, converter=parse_max_output)
    on_stdout: OutputFunction | None = attrs.field(default=None, validator=_check_function)
    on_stderr: OutputFunction | None = attrs.field(default=None, validator=_check_function)
    timeout: float | None = attrs.field(default=None, converter=parse_timeout)
    check: bool = attrs.field(default=False, validator=is_bool)

    @property
    def has_terminal(self) -> bool:
        """Whether the program gets a terminal in place of the streams."""
        return False

    @property
    def interactive(self) -> bool:
        """Whether the terminal is connected with the caller's."""
        return self.has_terminal and not self.capture_output

    def check_interactive(self) -> None:
        """Check that the terminal can be connected with the caller's, if it will be. Raises ValueError, UnsupportedError."""
        if not self.interactive:
            return
        if self.timeout is not None:
            raise ValueError("timeout cannot be used with an interactive terminal; pass capture_output=True")
        check_user_terminal()

    def open_streams(self) -> Streams:
        """Open the streams of a program that runs to its end. Raises ValueError, TypeError as `subprocess.run`."""
        functions = {1: self.on_stdout, 2: self.on_stderr}
        receivers = {number: function for number, function in functions.items() if function is not None}
        stdout, stderr = self.stdout, self.stderr
        if not (self.capture_output or self.has_terminal):
            stdout = self._passed_on("stdout", stdout, self.on_stdout)
            stderr = self._passed_on("stderr", stderr, self.on_stderr)
        output = Output(self.max_output, receivers)
        return Streams.of_run(
            self.input, self.capture_output, self.stdin, stdout, stderr, self.codec, self.has_terminal, output=output
        )

    @staticmethod
    def _passed_on(name: str, stream: Stdio, function: OutputFunction | None) -> Stdio:
        """Return a stream, which is a pipe if a function gets what is written to it. Raises ValueError: it is another one."""
        if function is None or stream == PIPE:
            return stream
        if stream is not None:
            raise ValueError(f"on_{name} gets what is written to a pipe, and {name} is {shown(stream)}; leave {name} out")
        return PIPE


def _overrides_of_exec(options: ExecOptions) -> Overrides:
    return Overrides(
        args=options.args,
        env=options.env,
        cwd=options.cwd,
        user=options.user,
        groups=options.groups,
        terminal=True if options.terminal or options.console_socket is not None else None,
        no_new_privileges=options.no_new_privileges,
        apparmor_profile=options.apparmor_profile,
        selinux_label=options.selinux_label,
    )


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class ExecOptions(_StreamOptions):
    """The options of `Container.exec` and `Container.popen`, which document them.

    Raises:
        TypeError, ValueError: a value is wrong, or conflicts with another. The message begins with the argument.
        SpecError: ``process`` is not a process object.
    """

    args: Args = ()
    bufsize: int = attrs.field(default=-1, validator=validated_by(check_int, -1, _MAX_BUFFER))
    env: Env | None = None
    cwd: StrPath | None = None
    user: UserLike | None = None
    groups: Sequence[int] | None = None
    capabilities: Sequence[str] = attrs.field(default=(), validator=_check_capabilities)
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None
    process: ProcessSpec | None = attrs.field(default=None, converter=_load_process)
    terminal: bool = attrs.field(default=False, validator=is_bool)
    console_socket: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    pid_file: str | None = attrs.field(default=None, converter=_path, validator=_is_path)
    preserve_fds: int = attrs.field(default=0, validator=_is_fd_count)
    cgroup: str | Mapping[str, str] | None = attrs.field(default=None, validator=_check_cgroup)
    own_cgroup: bool = attrs.field(default=True, validator=is_bool)
    lingers: bool = True
    """Whether a call that waits for the program also waits for what the program has left, while that has the pipes open."""
    overrides: Overrides = attrs.field(init=False, default=attrs.Factory(_overrides_of_exec, takes_self=True))
    """What changes of the process object."""

    def __attrs_post_init__(self) -> None:
        if self.process is None and not self.overrides.args:
            raise ValueError("args is empty: the program to run in the container is needed, or a process object")
        if self.has_terminal and any(stream not in (None, n) for n, stream in enumerate((self.stdin, self.stdout, self.stderr))):
            raise ValueError(BESIDE_A_TERMINAL)

    @property
    def has_terminal(self) -> bool:
        return bool(self.overrides.terminal or (self.process is not None and self.process.terminal))

    def open_streams(self) -> Streams:
        streams = super().open_streams()
        streams.linger = self.lingers
        return streams

    def open_pipes(self) -> Streams:
        """Open the streams of a program that is left running. Raises ValueError, TypeError, OSError as `subprocess.Popen`."""
        return Streams(self.stdin, self.stdout, self.stderr, codec=self.codec, bufsize=self.bufsize)


def _overrides_of_run(options: RunOptions) -> Overrides:
    overrides = Overrides(
        args=options.args,
        env=options.env,
        cwd=options.cwd,
        user=options.user,
        mounts=options.mounts,
        memory=options.memory,
        cpus=options.cpus,
        pids=options.pids,
        network=options.network,
        devices=options.devices,
        gpus=options.gpus,
        ports=options.ports,
        read_only=options.read_only,
        hostname=options.hostname,
    )
    return overrides if options.preset is None else complete(options.preset, overrides)


def _create_of_run(options: RunOptions) -> CreateOptions:
    return CreateOptions(
        state_root=options.state_root,
        terminal=options.terminal or None,
        die_with_parent=options.die_with_parent,
        cgroup_manager=options.cgroup_manager,
    )


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class RunOptions(_StreamOptions):
    """The options of `ociruntime.run`, which documents them.

    Raises:
        TypeError, ValueError: a value is wrong. The message begins with the argument.
    """

    args: Args = ()
    env: Env | None = None
    cwd: StrPath | None = None
    user: UserLike | None = None
    preset: Preset | None = attrs.field(default=None, converter=parse_preset)
    mounts: Mounts | None = None
    memory: int | str | None = None
    cpus: float | None = None
    pids: int | None = None
    network: Network | None = None
    devices: Iterable[StrPath] | None = None
    gpus: str | int | None = None
    ports: Ports | None = None
    read_only: bool | None = None
    overlay: str = attrs.field(default=None, converter=parse_overlay)
    hostname: str | None = None
    terminal: bool = attrs.field(default=False, validator=is_bool)
    container_id: str | None = None
    state_root: StrPath | None = None
    die_with_parent: bool | None = None
    cgroup_manager: Manager = "cgroupfs"
    reference: str | None = attrs.field(default=None, validator=_is_text)
    platform: str | None = attrs.field(default=None, validator=_is_text)
    strategy: Strategy | None = attrs.field(default=None, converter=parse_strategy)
    profile: bool = attrs.field(default=False, validator=is_bool)
    overrides: Overrides = attrs.field(init=False, default=attrs.Factory(_overrides_of_run, takes_self=True))
    """What changes of the configuration."""
    create: CreateOptions = attrs.field(init=False, default=attrs.Factory(_create_of_run, takes_self=True))
    """How the container is created."""

    @property
    def upper(self) -> str | None:
        """Where the writes to the root filesystem go, as ``overlay``; None for the usual place."""
        return self.overlay or None

    @property
    def has_terminal(self) -> bool:
        return self.terminal


# ---- sandboxes ----

_SANDBOX_PIDS: Final = 1024
_SANDBOX_DISK: Final = 1 << 30
"""The limits of a sandbox whose caller gives none."""
_NO_CORE: Final = Rlimit(type=RlimitType.CORE, soft=1, hard=1)
"""No core dump. Unlike 0, it also keeps the kernel from starting a program of the host that takes them (core_pattern)."""


def _parse_disk(value: int | str | None) -> int | None:
    return None if value is None else parse_limit("disk", parse_size, value)


def _parse_shm(value: int | str | None) -> int | None:
    return None if value is None else parse_limit("shm", parse_size, value)


def _check_policy(_: object, attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        check_choice(attribute.name, value, get_args(LimitPolicy))


class SandboxLimits(NamedTuple):
    """The limits of a sandbox, and what enforces them."""

    overrides: Overrides
    """Those of the call, with the limits that cgroups or resource limits enforce."""
    by: Mapping[str, str]
    """``cgroup``, ``rlimit``, ``tmpfs``, ``image`` or ``none``, by the name of a limit."""
    manager: Manager
    """What makes the cgroups."""
    weak: Sequence[str] = ()
    """The limits of the call that are weaker than asked for, as warnings."""


def _counts_swap(host: Host) -> bool:
    """Return whether a limit of memory can count swap too: with cgroup v1 only if the kernel was booted to account it."""
    hierarchy = host.hierarchy("memory")
    return hierarchy is None or hierarchy.version == 2 or os.path.exists(f"{hierarchy.mountpoint}/memory.memsw.limit_in_bytes")


def _enforce(options: SandboxOptions) -> SandboxLimits:
    """Decide what enforces each limit of a sandbox. Raises UnsupportedError: one that is required cannot be enforced."""
    host, mounts = Host.probe(), parse_mounts(options.mounts)
    if options.shm is not None:
        mounts = (*(mounts or ()), _shm_of(options.shm))
    overrides = Overrides(
        env=options.env,
        cwd=options.cwd,
        user=options.user,
        mounts=mounts,
        memory=options.memory,
        cpus=options.cpus,
        pids=_SANDBOX_PIDS if options.pids is None else options.pids,
        network=options.network,
        devices=options.devices,
        gpus=options.gpus,
        ports=options.ports,
        read_only=options.read_only,
        hostname=options.hostname,
        no_swap=_counts_swap(host),
        default_rlimits=(_NO_CORE,),
        default_tmpfs_size=max(0, _SANDBOX_DISK if options.disk is None else options.disk),
    )
    manager: Manager = options.cgroup_manager or "cgroupfs"
    limited = _limit_processes(options, overrides, host, manager)
    if limited.lacking and options.cgroup_manager is None and may_use_systemd(host):
        by_systemd = _limit_processes(options, overrides, host, "systemd")
        if len(by_systemd.lacking) < len(limited.lacking):
            manager, limited = "systemd", by_systemd
    if limited.lacking and options.limits != "if possible":
        reasons = "; ".join(dict.fromkeys(limited.lacking.values()))
        raise UnsupportedError(
            f"{', '.join(limited.lacking)}: cannot be limited for all processes of a sandbox together: {reasons}; or pass "
            "limits='if possible' for weaker limits"
        )
    by, own = limited.by, own_layer(options.upper)
    by["disk"] = "tmpfs" if own.startswith("tmpfs:") else "image" if os.path.isfile(own) else "none"
    cleared: dict[str, Any] = dict.fromkeys(limited.cleared)
    overrides = attrs.evolve(overrides, rlimits=tuple(limited.rlimits), **cleared)
    weak = [f"sandbox: {name} is {_WEAKER[name, by[name]]}: {reason}" for name, reason in limited.lacking.items()]
    return SandboxLimits(overrides if options.preset is None else complete(options.preset, overrides), by, manager, weak)


class _ProcessLimits(NamedTuple):
    """What enforces the limits of the processes of a sandbox with one cgroup manager."""

    by: dict[str, str]
    rlimits: list[Rlimit]
    cleared: list[str]
    """The limits that no cgroup enforces."""
    lacking: dict[str, str]
    """Why a limit cannot be enforced that must be."""


def _limit_processes(options: SandboxOptions, overrides: Overrides, host: Host, manager: Manager) -> _ProcessLimits:
    limited = _ProcessLimits({}, [], [], {})
    for name in ("memory", "cpus", "pids"):
        value = getattr(overrides, name)
        if value is None:
            continue
        found = find_enforcement(name, value, host, manager)
        if found.reason:
            limited.cleared.append(name)
        if value < 0:
            continue
        limited.by[name] = found.by
        if found.rlimit is not None:
            limited.rlimits.append(found.rlimit)
        if found.reason and (options.limits == "required" or getattr(options, name) is not None):
            limited.lacking[name] = found.reason
    return limited


_WEAKER: Final = {
    ("memory", "rlimit"): "limited for each process alone",
    ("cpus", "none"): "not limited",
    ("pids", "rlimit"): "limited for each user of the sandbox alone",
    ("pids", "none"): "not limited",
}


def _shm_of(size: int) -> Mount:
    limit = "size=50%" if size < 0 else f"size={size}"
    return Mount(destination="/dev/shm", type="tmpfs", source="shm", options=("nosuid", "noexec", "nodev", "mode=1777", limit))


def _upper_of(options: SandboxOptions) -> str:
    if own_layer(options.overlay):
        if options.disk is not None:
            raise ValueError("disk limits a temporary upper layer, and overlay is another one; leave one of them out")
        return options.overlay
    size = _SANDBOX_DISK if options.disk is None else options.disk
    layers = [options.overlay, "" if size < 0 else f"tmpfs:size={size}"]
    return SEPARATOR.join(layer for layer in layers if layer)


def _create_of_sandbox(options: SandboxOptions) -> CreateOptions:
    return CreateOptions(
        state_root=options.state_root, die_with_parent=None, cgroup_manager=options.enforcement.manager, empty_process=True
    )


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class SandboxOptions(Arguments):
    """The options of `ociruntime.Sandbox`, which documents them.

    Raises:
        TypeError, ValueError: a value is wrong, or conflicts with another. The message begins with the argument.
        UnsupportedError: a limit that is required cannot be enforced.
    """

    memory: int | str | None = None
    cpus: float | None = None
    pids: int | None = None
    disk: int | None = attrs.field(default=None, converter=_parse_disk)
    shm: int | None = attrs.field(default=None, converter=_parse_shm)
    max_output: int | str | None = attrs.field(default="16M", converter=parse_max_output)
    timeout: float | None = attrs.field(default=None, converter=parse_timeout)
    limits: LimitPolicy | None = attrs.field(default=None, validator=_check_policy)
    network: Network | None = None
    devices: Iterable[StrPath] | None = None
    gpus: str | int | None = None
    ports: Ports | None = None
    mounts: Mounts | None = None
    env: Env | None = None
    cwd: StrPath | None = None
    user: UserLike | None = None
    preset: Preset | None = attrs.field(default=None, converter=parse_preset)
    read_only: bool | None = None
    overlay: str = attrs.field(default=None, converter=parse_overlay)
    hostname: str | None = None
    name: str | None = attrs.field(default=None, validator=_is_text)
    state_root: StrPath | None = None
    cgroup_manager: Manager | None = attrs.field(default=None, validator=attrs.validators.optional(_check_manager))
    reference: str | None = attrs.field(default=None, validator=_is_text)
    platform: str | None = attrs.field(default=None, validator=_is_text)
    strategy: Strategy | None = attrs.field(default=None, converter=parse_strategy)
    upper: str = attrs.field(init=False, default=attrs.Factory(_upper_of, takes_self=True))
    """Where the writes to the root filesystem go, in the form of `parse_overlay`."""
    enforcement: SandboxLimits = attrs.field(init=False, default=attrs.Factory(_enforce, takes_self=True))
    create: CreateOptions = attrs.field(init=False, default=attrs.Factory(_create_of_sandbox, takes_self=True))
    """How the container is created."""

    @property
    def overrides(self) -> Overrides:
        """What changes of the configuration."""
        return self.enforcement.overrides

    def exec_options(self, args: Args, options: Mapping[str, Any]) -> ExecOptions:
        """Return the options of one run in the sandbox, given its keywords. Raises as `ExecOptions`."""
        given: dict[str, Any] = {"max_output": self.max_output, "timeout": self.timeout, "lingers": False}
        given |= {name: value for name, value in options.items() if value is not None or name not in ("max_output", "timeout")}
        if given.get("terminal"):
            given |= {"capture_output": True, "stdin": None, "stdout": None, "stderr": None}
        elif given.get("input") is not None and given.get("stdin") == DEVNULL:
            del given["stdin"]
        return ExecOptions(args=args, **given)
