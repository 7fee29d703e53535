"""A sandbox environment of Inspect (extra ``inspect``): the tools of an evaluation run in a `Sandbox`.

::

    Task(dataset=..., solver=..., sandbox=("ociruntime", "images/tools.sif"))

Inspect finds it by its name, ``ociruntime``, where the package is installed. Inspect must use asyncio, its default.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from posixpath import dirname, join
from typing import Any, Final, Literal, overload

from inspect_ai.util import (
    ComposeConfig,
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    SandboxUserUnsupportedError,
    is_compose_yaml,
    parse_compose_yaml,
    sandboxenv,
)
from inspect_ai.util import (
    concurrency as throttle,
)
from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from .. import aio
from ..errors import BundleError, SpecError, StateError, StepError

__all__ = ["OciSandbox", "SandboxConfig"]

_IGNORED: Final = frozenset({"command", "entrypoint", "init", "stdin_open", "tty", "restart", "stop_grace_period", "x_default"})
"""Members of a compose service that are about its main program. A sandbox has none."""
_EXTENSION: Final = "x-ociruntime"
"""The member of a compose service with keywords of `ociruntime.Sandbox`, which win over the other members."""
_NOT_FOUND: Final = 127
_NOT_EXECUTED: Final = 126


class SandboxConfig(BaseModel):
    """What `SandboxEnvironmentSpec` takes in place of a path: an image, and keywords of `ociruntime.Sandbox`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    """The path of an image of any kind."""
    options: dict[str, Any] = {}
    """Keywords of `ociruntime.Sandbox`, such as ``memory`` and ``network``."""

    @override
    def __hash__(self) -> int:
        return hash(self.model_dump_json())


@sandboxenv(name="ociruntime")
class OciSandbox(SandboxEnvironment):
    """A `Sandbox` for each service of a sample. It is removed with the sample, and with the process that evaluates it.

    The configuration is the path of an image, that of a compose file, or a `SandboxConfig`. Paths in a compose file are relative to
    it.
    """

    def __init__(self, sandbox: aio.Sandbox, directory: str) -> None:
        super().__init__()
        self.sandbox: Final = sandbox
        """The sandbox, for what Inspect has no method for."""
        self._directory = directory

    @override
    @classmethod
    async def sample_init(
        cls, task_name: str, config: BaseModel | str | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        created: dict[str, SandboxEnvironment] = {}
        try:
            for name, (image, options) in _services(config).items():
                sandbox = await aio.Sandbox(image, **options)
                process = sandbox.container.spec.process
                created[name] = cls(sandbox, process.cwd if process is not None else "/")
        except BaseException:
            await _close(created)
            raise
        return created

    @override
    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: BaseModel | str | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        await _close(environments)

    @override
    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        return ComposeConfig.model_validate(config) if "services" in config else SandboxConfig(**config)

    @override
    @classmethod
    def config_files(cls) -> list[str]:
        return ["compose.yaml", "compose.yml"]

    @override
    @classmethod
    def is_docker_compatible(cls) -> bool:
        return False  # nothing builds a Dockerfile, and images are paths

    @override
    @classmethod
    def default_concurrency(cls) -> int | None:
        return 4 * (os.cpu_count() or 1)

    @override
    def default_polling_interval(self) -> float:
        return 0.2

    @override
    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        """See `SandboxEnvironment.exec`. A program that timed out is not tried again: it may have had an effect.

        Raises:
            TimeoutError: the program did not end in time. Everything that it has started is killed.
            PermissionError: the program cannot be executed.
            OutputLimitExceededError: there is more output than the limit. The program is killed.
            SandboxUserUnsupportedError: the sandbox has no such uid, because its user namespace has only the caller's.
            SandboxUnavailableError: the sandbox has ended.
        """
        async with throttle("ociruntime", 4 * (os.cpu_count() or 1)) if concurrency else nullcontext():
            return await self._exec(cmd, input, cwd, env, user, timeout)

    async def _exec(
        self,
        cmd: list[str],
        input: str | bytes | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str | None,
        timeout: float | None,
    ) -> ExecResult[str]:
        outputs = _Output(), _Output()
        try:
            result = await self.sandbox.run(
                cmd,
                input=input.encode() if isinstance(input, str) else input,
                cwd=self._path(cwd or ""),
                env=env,
                user=user,
                timeout=timeout,
                max_output=1,
                on_stdout=outputs[0],
                on_stderr=outputs[1],
            )
        except BundleError as error:  # the image has no such user
            return ExecResult(False, _NOT_EXECUTED, "", f"{error}\n")
        except SpecError as error:
            raise _unsupported(user, error) from error
        except StateError as error:
            raise SandboxUnavailableError(str(error)) from error
        except StepError as error:
            if user is not None and error.errno == errno.EINVAL:
                raise _unsupported(user, error) from error
            if error.op in ("lookup", "exec") and error.errno in (errno.EACCES, errno.EPERM):
                raise PermissionError(error.errno, str(error), cmd[0]) from error
            if isinstance(error, TimeoutError):
                raise
            missing = error.op in ("lookup", "exec") and error.errno == errno.ENOENT
            return ExecResult(False, _NOT_FOUND if missing else _NOT_EXECUTED, "", f"{error}\n")
        code = result.returncode if result.returncode >= 0 else 128 - result.returncode
        return ExecResult(code == 0, code, *(output.text() for output in outputs))

    @override
    async def write_file(self, file: str, contents: str | bytes) -> None:
        path = self._path(file)
        await self.sandbox.mkdir(dirname(path), parents=True, exist_ok=True)
        await self.sandbox.write_bytes(path, contents.encode() if isinstance(contents, str) else contents)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...
    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    @override
    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        try:
            content = await self.sandbox.read_bytes(self._path(file), max_size=limit)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None) from error
            raise
        return content.decode() if text else content

    @override
    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        container = self.sandbox._sandbox.container
        if self.sandbox.closed:
            raise ConnectionError(f"sandbox {self.sandbox.name!r} is closed")
        words = [sys.executable, "-m", "ociruntime", "--root", str(container._entry.path.parent), "exec", "--tty"]
        words += ["--user", user] if user is not None else []
        command = shlex.join([*words, container.id, "sh"])
        return SandboxConnection(type="ociruntime", command=command, container=container.id)

    def _path(self, path: str) -> str:
        return join(self._directory, path)


class _Output:
    """The output of one stream, up to the limit. More is an error, which kills the program."""

    def __init__(self) -> None:
        self._limit = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE
        self._limit_text = SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE_STR
        self._content = bytearray()

    def __call__(self, part: bytes | str) -> None:
        self._content += part if isinstance(part, bytes) else part.encode()
        if len(self._content) > self._limit:
            del self._content[self._limit :]
            raise OutputLimitExceededError(self._limit_text, self.text())

    def text(self) -> str:
        """Return the output, with the replacement character for what is not UTF-8."""
        return self._content.decode(errors="replace")


def _unsupported(user: str | None, error: Exception) -> Exception:
    return error if user is None else SandboxUserUnsupportedError(f"user {user!r}: {error}")


async def _close(environments: Mapping[str, SandboxEnvironment]) -> None:
    for environment in environments.values():
        await environment.as_type(OciSandbox).sandbox.close()


def _services(config: BaseModel | str | None) -> dict[str, tuple[str, Any]]:
    """Return image and keywords of the sandbox of each service, that of the default one first. Raises ValueError, TypeError."""
    if isinstance(config, str) and not is_compose_yaml(config):
        if config.endswith((".yaml", ".yml")):
            raise ValueError(f"{config}: not an image; a compose file is named compose.yaml, compose.yml or NAME-compose.yaml")
        return {"default": (config, {})}
    if isinstance(config, SandboxConfig):
        return {"default": (config.image, config.options)}
    if isinstance(config, str):
        return _of_compose(parse_compose_yaml(config), Path(config).parent)
    if isinstance(config, ComposeConfig):
        return _of_compose(config, Path())
    if config is None:
        raise ValueError("sandbox 'ociruntime': no image; give its path, as in sandbox=('ociruntime', 'image.sif')")
    raise TypeError(f"sandbox 'ociruntime': not an image, a compose file or a SandboxConfig, but {type(config).__name__}")


def _of_compose(config: ComposeConfig, directory: Path) -> dict[str, tuple[str, Any]]:
    default = next((name for name, service in config.services.items() if service.x_default), None)
    default = default or ("default" if "default" in config.services else next(iter(config.services), None))
    if default is None:
        raise ValueError("compose file: it has no services")
    names = [default, *(name for name in config.services if name != default)]
    return {name: _of_service(f"services.{name}", config.services[name], directory) for name in names}


def _of_service(place: str, service: Any, directory: Path) -> tuple[str, dict[str, Any]]:
    """Return image and keywords of a service. Raises ValueError: it has no image, or a member that a sandbox does not have."""
    members = {name: value for name, value in service if value is not None and name not in _IGNORED and not name.startswith("x")}
    image = members.pop("image", None)
    if image is None:
        raise ValueError(f"{place}.image: missing; name the path of an image")
    options: dict[str, Any] = {}
    for name, value in members.items():
        if name not in _MEMBERS:
            raise ValueError(f"{place}.{name}: a sandbox does not have this; it takes image, {', '.join(_MEMBERS)}")
        keyword, convert = _MEMBERS[name]
        options[keyword] = convert(f"{place}.{name}", value, directory)
    further = service.extensions.get(_EXTENSION, {})
    if not isinstance(further, dict):
        raise ValueError(f"{place}.{_EXTENSION}: {further!r} is not a mapping of keywords of Sandbox to values")
    return str(directory / image), options | further


def _same(place: str, value: Any, directory: Path) -> Any:
    return value


def _environment(place: str, value: Any, directory: Path) -> Any:
    entries = value.items() if isinstance(value, dict) else (tuple(entry.split("=", 1)) for entry in value)
    for name, *content in entries:
        if content in ([], [None]):
            raise ValueError(f"{place}: {name!r} has no value; variables of the caller are not passed")
    return value


def _network(place: str, value: str, directory: Path) -> str:
    if value not in ("none", "host"):
        raise ValueError(f"{place}: {value!r} is not 'none' or 'host'")
    return value


def _mounts(place: str, value: list[Any], directory: Path) -> list[tuple[str, str, str]]:
    found = []
    for entry in value:
        if isinstance(entry, str):
            source, _, rest = entry.partition(":")
            target, _, mode = rest.partition(":")
        else:
            source, target, mode = entry.source or "", entry.target or "", "ro" if entry.read_only else "rw"
            if entry.type != "bind":
                raise ValueError(f"{place}: {entry.type!r} is not 'bind'")
        if not target or not source.startswith(("/", ".", "~")):
            raise ValueError(
                f"{place}: {source or entry!r} is not the path of a file or directory; named volumes do not exist here"
            )
        found.append((str(directory / Path(source).expanduser()), target, mode or "rw"))
    return found


_MEMBERS: Final[dict[str, tuple[str, Callable[[str, Any, Path], Any]]]] = {
    "working_dir": ("cwd", _same),
    "environment": ("env", _environment),
    "user": ("user", _same),
    "hostname": ("hostname", _same),
    "read_only": ("read_only", _same),
    "mem_limit": ("memory", _same),
    "cpus": ("cpus", _same),
    "pids_limit": ("pids", lambda _, value, __: int(value)),
    "shm_size": ("shm", _same),
    "devices": ("devices", _same),
    "network_mode": ("network", _network),
    "volumes": ("mounts", _mounts),
    "platform": ("platform", _same),
}
"""Members of a compose service, with the keywords of a sandbox that have their effect."""
