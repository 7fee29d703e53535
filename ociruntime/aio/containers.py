"""`Container`, `run` and `prune` in the event loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from typing_extensions import override

from .. import container as _sync
from .. import ephemeral as _ephemeral
from ..arguments import Duration, parse_timeout
from ..engine.processes import EndWaiter
from ..ephemeral import EphemeralContainer, ImageLike, find_bundle, profiling, with_profile
from ..errors import LaunchTimeout, ProcessTimeout
from ..files import Unpicklable
from ..lifecycle.files import AnyPath, FileStatus
from ..lifecycle.files import ContainerFiles as _ContainerFiles
from ..lifecycle.prune import prune as _prune
from ..lifecycle.snapshots import Snapshot
from ..lifecycle.status import StatsTimer, check_start, first_process, watch
from ..options import (
    AsyncPopenKeywords,
    CheckpointKeywords,
    CreateKeywords,
    ExecKeywords,
    ExecOptions,
    RestoreKeywords,
    RunKeywords,
    RunOptions,
    check_keywords,
)
from ..overrides import Args, StrPath, UserLike
from ..process import Deadline, LaunchedProcess, Result
from ..stats import Event
from ..store import Status
from ..streams import MaybeNone
from ..supervisor.logs import POLL_INTERVAL, LogReader, LogRecord
from .processes import Attachment, Making, Process, Reader, Writer, connect, ended, finish, readable, within, work

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..engine.cgroup.stats import Stats
    from ..engine.fileserver import Content
    from ..image import Compression
    from ..lifecycle.files import Readable, Writable
    from ..lifecycle.snapshots import Changes
    from ..lifecycle.update import Limits
    from ..options import Misspelt, OutputFunction
    from ..overrides import Env, Mounts, Network, Overlays, Ports
    from ..plan.cgroups import Manager
    from ..presets import Preset
    from ..spec import ProcessSpec, Resources, RuntimeSpec
    from ..spec.base import Json
    from ..state import State
    from ..streams import Stdio
    from ..terminal import Terminal


_T = TypeVar("_T")
_P = ParamSpec("_P")
_TURN = 500
"""Entries of a log after which other tasks get their turn."""


class Container:
    """A handle to a container: `ociruntime.Container` whose operations are coroutines.

    ``async with Container.create(...) as container`` deletes it at the end, as ``await Container.create(...)`` does not.
    """

    def __init__(self, container: _sync.Container) -> None:
        self._sync = container

    def _repr_html_(self) -> str:
        return self._sync._repr_html_()

    @classmethod
    def create(cls, container_id: str, bundle: Bundle | StrPath, **options: Unpack[CreateKeywords]) -> Making[Self]:
        """`ociruntime.Container.create`, to be awaited or entered by ``async with``."""
        return Making(partial(cls._make, _sync.Container.create, container_id, bundle, options))

    @classmethod
    def run(cls, container_id: str, bundle: Bundle | StrPath, **options: Unpack[CreateKeywords]) -> Making[Self]:
        """`ociruntime.Container.run`, to be awaited or entered by ``async with``."""
        return Making(partial(cls._make, _sync.Container.run, container_id, bundle, options))

    @classmethod
    def restore(
        cls, container_id: str, bundle: Bundle | StrPath, image_path: StrPath, **options: Unpack[RestoreKeywords]
    ) -> Making[Self]:
        """`ociruntime.Container.restore`, to be awaited or entered by ``async with``."""
        make = partial(_sync.Container.restore, image_path=image_path)
        return Making(partial(cls._make, make, container_id, bundle, options))

    @classmethod
    async def _make(
        cls,
        make: Callable[..., _sync.Container],
        container_id: str,
        bundle: Bundle | StrPath,
        options: Mapping[str, Any],
    ) -> Self:
        container = cls(await work(make, container_id, bundle, undo=lambda created: created.delete(force=True), **options))
        streams = container._sync._streams
        assert streams is not None, "it was made just now"
        try:
            for number, name in enumerate(("stdin", "stdout", "stderr")):
                fd = streams.take(number)
                if fd is not None:
                    setattr(container, name, await connect(fd, number, None))
        except BaseException:
            await container.delete(force=True)
            raise
        return container

    stdin: Writer[bytes] | MaybeNone = None
    """The stream that writes to the init process's stdin, if this object made the container with ``stdin=PIPE``."""
    stdout: Reader[bytes] | MaybeNone = None
    """The stream that reads the init process's stdout, if this object made the container with ``stdout=PIPE``."""
    stderr: Reader[bytes] | MaybeNone = None
    """The stream that reads the init process's stderr, if this object made the container with ``stderr=PIPE``."""

    @classmethod
    def load(cls, container_id: str, *, state_root: StrPath | None = None) -> Self:
        """Return a container that exists. Raises ContainerNotFound."""
        return cls(_sync.Container.load(container_id, state_root=state_root))

    @classmethod
    def list(cls, *, state_root: StrPath | None = None) -> list[Self]:
        """Return the containers of the state directory, sorted by id."""
        return [cls(container) for container in _sync.Container.list(state_root=state_root)]

    @property
    def id(self) -> str:
        """The id, unique in the state directory."""
        return self._sync.id

    @property
    def state(self) -> State:
        """The current state (runtime.md, State). Raises ContainerNotFound."""
        return self._sync.state

    def state_document(self) -> dict[str, object]:
        """Return the current state as ``ociruntime state`` prints it, ready for `json.dumps`. Raises ContainerNotFound."""
        return self._sync.state_document()

    @property
    def status(self) -> Status:
        """The current status. Raises ContainerNotFound."""
        return self._sync.status

    @property
    def pid(self) -> int:
        """The pid of the init process in the caller's pid namespace; 0 if there is none."""
        return self._sync.pid

    @property
    def spec(self) -> RuntimeSpec:
        """The configuration as it was at create."""
        return self._sync.spec

    def fileno(self) -> int:
        """See `ociruntime.Container.fileno`."""
        return self._sync.fileno()

    @property
    def terminal(self) -> Terminal | None:
        """The master of the container's terminal, in the object that made it with ``terminal=True``."""
        return self._sync.terminal

    def processes(self) -> tuple[int, ...]:
        """See `ociruntime.Container.processes`."""
        return self._sync.processes()

    async def start(self) -> None:
        """See `ociruntime.Container.start`."""
        await work(self._sync.start)

    async def kill(self, signal: int | str = "TERM", *, all: bool = False) -> None:
        """See `ociruntime.Container.kill`."""
        await work(self._sync.kill, signal, all=all)

    async def pause(self) -> None:
        """See `ociruntime.Container.pause`."""
        await work(self._sync.pause)

    async def resume(self) -> None:
        """See `ociruntime.Container.resume`."""
        await work(self._sync.resume)

    async def update(self, resources: Resources | Mapping[str, Json] | None = None, **limits: Unpack[Limits]) -> None:
        """See `ociruntime.Container.update`."""
        await work(self._sync.update, resources, **limits)

    async def checkpoint(self, image_path: StrPath, **options: Unpack[CheckpointKeywords]) -> None:
        """See `ociruntime.Container.checkpoint`."""
        check_keywords("checkpoint", options, CheckpointKeywords)
        await work(self._sync.checkpoint, image_path, **options)

    async def stats(self) -> Stats:
        """See `ociruntime.Container.stats`."""
        return self._sync.stats()  # less work than handing it to a thread

    async def events(self, interval: Duration | None = None) -> AsyncIterator[Event]:
        """`ociruntime.Container.events` as an asynchronous iterator: any number of tasks may iterate, without a thread for each."""
        timer = StatsTimer(interval)
        with watch(self._sync._entry, self._sync._pidfd) as watched:
            while not watched.ended:
                await within(timer.left(), readable(watched.fileno()))
                for event in watched.read():
                    yield event
                if timer.expired() and not watched.ended:
                    yield Event("stats", time.time_ns(), stats=self._sync.stats())

    async def delete(self, *, force: bool = False) -> None:
        """See `ociruntime.Container.delete`."""
        try:
            await work(self._sync.delete, force=force)
        finally:
            if not self._sync._entry.path.is_dir():
                self._close()

    async def wait(self, timeout: Duration | None = None) -> int | None:
        """See `ociruntime.Container.wait`. Any number of tasks may wait at once, without a thread for each."""
        timeout = parse_timeout(timeout)
        document = self._sync._entry.read()
        pidfd = first_process(document, self._sync._pidfd)
        if pidfd is not None:
            try:
                with EndWaiter(document["pid"], pidfd, check_start(document)) as ending:
                    if not await within(timeout, ended(ending)):
                        assert timeout is not None
                        raise ProcessTimeout(f"container {self.id!r}", timeout)
            finally:
                os.close(pidfd)
        # A supervisor records the exit code a moment after the end.
        return await work(self._sync.wait, 0) if "supervisor" in document else self._sync.wait(0)

    @overload
    async def exec(self, args: Args = ..., *, text: Literal[True], **options: Unpack[ExecKeywords]) -> Result[str]: ...
    @overload
    async def exec(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[ExecKeywords]
    ) -> Result[str]: ...
    @overload
    async def exec(self, args: Args = ..., *, errors: str, **options: Unpack[ExecKeywords]) -> Result[str]: ...
    @overload
    async def exec(
        self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[ExecKeywords]
    ) -> Result[bytes]: ...
    @overload
    async def exec(
        self, args: Args = ..., *, input: bytes | str | None = ..., capture_output: bool = ...,
        max_output: int | str | None = ..., on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ...,
        stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ..., encoding: str | None = ...,
        errors: str | None = ..., timeout: Duration | None = ..., check: bool = ..., env: Env | None = ...,
        cwd: StrPath | None = ..., user: UserLike | None = ..., groups: Sequence[int] | None = ...,
        capabilities: Sequence[str] = ..., no_new_privileges: bool | None = ..., apparmor_profile: str | None = ...,
        selinux_label: str | None = ..., process: ProcessSpec | Mapping[str, Any] | None = ..., terminal: bool = ...,
        preserve_fds: int = ..., cgroup: str | Mapping[str, str] | None = ..., own_cgroup: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

    async def exec(
        self,
        args: Args = (),
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Result[Any]:
        """`ociruntime.Container.exec` as a coroutine. Cancelling it kills the process and every process that it has started."""
        check_keywords("exec", options, ExecKeywords)
        given = ExecOptions(args=args, codec=(text, encoding, errors), **options)
        return await self._exec(given)

    async def _exec(self, given: ExecOptions) -> Result[Any]:
        """Execute a further process, as `exec` does."""
        if given.interactive:
            raise ValueError("terminal=True cannot be interactive in an event loop; pass capture_output=True, or use popen")
        with given.open_streams() as streams:
            deadline = Deadline(given.timeout)
            try:
                launched = await work(self._sync._execute, given, streams, deadline.at, undo=LaunchedProcess.discard)
            except LaunchTimeout as error:
                raise deadline.expired(error, streams) from error
            try:
                result = await finish(launched, given.timeout, kill=launched.kill, result=launched.result)
            except BaseException:
                if launched.owned:  # a forked child has no threads to work in
                    await work(launched.discard)
                raise
            launched.close()
        if given.check:
            result.check_returncode()
        return result

    @overload
    def popen(self, args: Args = ..., *, text: Literal[True], **options: Unpack[AsyncPopenKeywords]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[AsyncPopenKeywords]
    ) -> Making[Process[str]]: ...
    @overload
    def popen(self, args: Args = ..., *, errors: str, **options: Unpack[AsyncPopenKeywords]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[AsyncPopenKeywords]
    ) -> Making[Process[bytes]]: ...
    @overload
    def popen(
        self, args: Args = ..., *, stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ...,
        encoding: str | None = ..., errors: str | None = ..., env: Env | None = ..., cwd: StrPath | None = ...,
        user: UserLike | None = ..., groups: Sequence[int] | None = ..., capabilities: Sequence[str] = ...,
        no_new_privileges: bool | None = ..., apparmor_profile: str | None = ..., selinux_label: str | None = ...,
        process: ProcessSpec | Mapping[str, Any] | None = ..., terminal: bool = ..., console_socket: StrPath | None = ...,
        pid_file: StrPath | None = ..., preserve_fds: int = ..., cgroup: str | Mapping[str, str] | None = ...,
        own_cgroup: bool = ..., **unknown: Misspelt,
    ) -> Making[Process[Any]]: ...  # fmt: skip

    def popen(
        self,
        args: Args = (),
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Making[Process[Any]]:
        """`ociruntime.Container.popen` without ``bufsize``, to be awaited or entered by ``async with``."""
        check_keywords("popen", options, AsyncPopenKeywords)
        return self._open_process(ExecOptions(args=args, codec=(text, encoding, errors), **options))

    def _open_process(self, given: ExecOptions) -> Making[Process[Any]]:
        """Execute a further process and return it, as `popen` does."""

        async def make() -> Process[Any]:
            process: Process[Any] = Process(await work(self._sync._popen, given, undo=LaunchedProcess.discard))
            try:
                return await process._connect()
            except BaseException:
                await process._discard()
                raise

        return Making(make)

    @property
    def files(self) -> ContainerFiles:
        """The files of the running or paused container."""
        return ContainerFiles(self._sync)

    async def changes(self) -> Changes:
        """See `ociruntime.Container.changes`."""
        return await work(self._sync.changes)

    async def diff_text(self, path: str) -> str:
        """See `ociruntime.Container.diff_text`."""
        return await work(self._sync.diff_text, path)

    async def snapshot(self) -> Snapshot:
        """See `ociruntime.Container.snapshot`."""
        return await work(self._sync.snapshot, undo=Snapshot.close)

    async def commit(
        self,
        target: StrPath,
        *,
        image: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        compression: Compression = "gzip",
        overwrite: bool = False,
    ) -> None:
        """See `ociruntime.Container.commit`."""
        await work(self._sync.commit, target, image=image, labels=labels, compression=compression, overwrite=overwrite)

    def attach(self, *, stderr: bool = False) -> Making[Attachment]:
        """`ociruntime.Container.attach`, to be awaited or entered by ``async with``."""

        async def make() -> Attachment:
            return await Attachment.connect(
                await work(self._sync.attach, stderr=stderr, undo=lambda attachment: attachment.close())
            )

        return Making(make)

    async def logs(
        self,
        *,
        follow: bool = False,
        since: datetime | int | None = None,
        tail: int | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
    ) -> AsyncIterator[LogRecord]:
        """`ociruntime.Container.logs` as an asynchronous iterator, without a thread."""
        reader = LogReader(self._sync._entry, follow=follow, since=since, tail=tail, stream=stream)
        writer = reader.open_writer()
        try:
            has_ended, count = writer is None, 0
            with closing(reader.items) as items:
                for record in items:
                    if record is not None:
                        yield record
                        count += 1
                        if count % _TURN == 0:
                            await asyncio.sleep(0)
                    elif has_ended:
                        return
                    else:
                        assert writer is not None, "there is a writer that has not ended"
                        has_ended = await within(POLL_INTERVAL, readable(writer))
        finally:
            if writer is not None:
                os.close(writer)

    async def reopen_log(self) -> None:
        """See `ociruntime.Container.reopen_log`."""
        await work(self._sync.reopen_log)

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def __reduce__(self) -> tuple[type[Self], tuple[_sync.Container]]:
        return type(self), (self._sync,)

    async def __aenter__(self) -> Self:
        self._sync.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if os.getpid() != self._sync._owner:
            return  # a forked child, which has neither the container nor the threads of its parent
        try:
            await work(self._sync.__exit__, *exc)
        finally:
            self._close()

    def __repr__(self) -> str:
        return repr(self._sync)


class FileOperations(ABC):
    """What can be done with the files of a container, as coroutines. Cancelling one ends it at once."""

    @abstractmethod
    def _files(self) -> _ContainerFiles:
        """Return the files."""

    async def _work(self, method: Callable[Concatenate[_ContainerFiles, _P], _T], *args: _P.args, **options: _P.kwargs) -> _T:
        files = self._files()
        return await work(method, files, *args, undo=lambda _: None, hurry=files._cancel, **options)

    async def read_bytes(self, path: AnyPath, *, max_size: int | None = None, user: UserLike | None = None) -> bytes:
        """See `ociruntime.ContainerFiles.read_bytes`."""
        return await self._work(_ContainerFiles.read_bytes, path, max_size=max_size, user=user)

    async def read_text(
        self,
        path: AnyPath,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        max_size: int | None = None,
        user: UserLike | None = None,
    ) -> str:
        """See `ociruntime.ContainerFiles.read_text`."""
        return await self._work(_ContainerFiles.read_text, path, encoding=encoding, errors=errors, max_size=max_size, user=user)

    async def write_bytes(self, path: AnyPath, data: Content, *, mode: int = 0o644, user: UserLike | None = None) -> None:
        """See `ociruntime.ContainerFiles.write_bytes`."""
        await self._work(_ContainerFiles.write_bytes, path, data, mode=mode, user=user)

    async def write_text(
        self,
        path: AnyPath,
        text: str,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        mode: int = 0o644,
        user: UserLike | None = None,
    ) -> None:
        """See `ociruntime.ContainerFiles.write_text`."""
        await self._work(_ContainerFiles.write_text, path, text, encoding=encoding, errors=errors, mode=mode, user=user)

    async def put(
        self, source: AnyPath | Readable, destination: AnyPath, *, max_size: int | None = None, user: UserLike | None = None
    ) -> None:
        """See `ociruntime.ContainerFiles.put`."""
        await self._work(_ContainerFiles.put, source, destination, max_size=max_size, user=user)

    async def get(
        self, source: AnyPath, destination: AnyPath | Writable, *, max_size: int | None = None, user: UserLike | None = None
    ) -> None:
        """See `ociruntime.ContainerFiles.get`."""
        await self._work(_ContainerFiles.get, source, destination, max_size=max_size, user=user)

    async def put_archive(self, source: Readable, destination: AnyPath, *, user: UserLike | None = None) -> None:
        """See `ociruntime.ContainerFiles.put_archive`."""
        await self._work(_ContainerFiles.put_archive, source, destination, user=user)

    async def get_archive(self, source: AnyPath, destination: Writable, *, user: UserLike | None = None) -> None:
        """See `ociruntime.ContainerFiles.get_archive`."""
        await self._work(_ContainerFiles.get_archive, source, destination, user=user)

    async def listdir(self, path: AnyPath = "/", *, user: UserLike | None = None) -> list[str]:
        """See `ociruntime.ContainerFiles.listdir`."""
        return await self._work(_ContainerFiles.listdir, path, user=user)

    async def stat(self, path: AnyPath, *, follow_symlinks: bool = True, user: UserLike | None = None) -> FileStatus:
        """See `ociruntime.ContainerFiles.stat`."""
        return await self._work(_ContainerFiles.stat, path, follow_symlinks=follow_symlinks, user=user)

    async def exists(self, path: AnyPath, *, user: UserLike | None = None) -> bool:
        """See `ociruntime.ContainerFiles.exists`."""
        return await self._work(_ContainerFiles.exists, path, user=user)

    async def mkdir(
        self, path: AnyPath, mode: int = 0o755, *, parents: bool = False, exist_ok: bool = False, user: UserLike | None = None
    ) -> None:
        """See `ociruntime.ContainerFiles.mkdir`."""
        await self._work(_ContainerFiles.mkdir, path, mode, parents=parents, exist_ok=exist_ok, user=user)

    async def remove(
        self, path: AnyPath, *, recursive: bool = False, missing_ok: bool = False, user: UserLike | None = None
    ) -> None:
        """See `ociruntime.ContainerFiles.remove`."""
        await self._work(_ContainerFiles.remove, path, recursive=recursive, missing_ok=missing_ok, user=user)


class ContainerFiles(FileOperations, Unpicklable):
    """The files of a container: `ociruntime.ContainerFiles` whose operations are coroutines. Cancelling one ends it at once."""

    _instead = "send the Container, and use its files there"

    def __init__(self, container: _sync.Container) -> None:
        self._container = container

    @override
    def _files(self) -> _ContainerFiles:
        return self._container.files


# The signatures for inspect.
Container.create.__func__.__wrapped__ = _sync.Container.create.__func__  # type: ignore[attr-defined]
Container.run.__func__.__wrapped__ = _sync.Container.run.__func__  # type: ignore[attr-defined]
Container.restore.__func__.__wrapped__ = _sync.Container.restore.__func__  # type: ignore[attr-defined]
Container.checkpoint.__wrapped__ = _sync.Container.checkpoint  # type: ignore[attr-defined]
Container.exec.__wrapped__ = _sync.Container.exec  # type: ignore[attr-defined]
_popen = inspect.signature(_sync.Container.popen)
Container.popen.__signature__ = _popen.replace(  # type: ignore[attr-defined]
    parameters=[parameter for name, parameter in _popen.parameters.items() if name != "bufsize"]
)


@overload
async def run(image: ImageLike, args: Args = ..., *, text: Literal[True], **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
async def run(
    image: ImageLike, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[RunKeywords]
) -> Result[str]: ...
@overload
async def run(image: ImageLike, args: Args = ..., *, errors: str, **options: Unpack[RunKeywords]) -> Result[str]: ...
@overload
async def run(
    image: ImageLike, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[RunKeywords]
) -> Result[bytes]: ...
@overload
async def run(
    image: ImageLike, args: Args = ..., *, input: bytes | str | None = ..., capture_output: bool = ...,
    max_output: int | str | None = ..., on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ...,
    stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ..., encoding: str | None = ...,
    errors: str | None = ..., timeout: Duration | None = ..., check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ...,
    user: UserLike | None = ..., preset: Preset | str | None = ..., mounts: Mounts | None = ..., memory: int | str | None = ...,
    cpus: float | None = ..., pids: int | None = ..., network: Network | None = ..., devices: Iterable[StrPath] | None = ...,
    gpus: str | int | None = ..., ports: Ports | None = ..., read_only: bool | None = ..., overlay: Overlays | None = ...,
    hostname: str | None = ..., terminal: bool = ..., container_id: str | None = ..., state_root: StrPath | None = ...,
    die_with_parent: bool | None = ..., cgroup_manager: Manager = ..., reference: str | None = ..., platform: str | None = ...,
    strategy: str | None = ..., profile: bool = ..., **unknown: Misspelt,
) -> Result[Any]: ...  # fmt: skip


async def run(
    image: ImageLike,
    args: Args = (),
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Any,
) -> Result[Any]:
    """`ociruntime.run` as a coroutine. Cancelling it kills every process of the container, and nothing is left.

    Arguments and errors are those of `ociruntime.run`.
    """
    check_keywords("run", options, RunKeywords)
    given = RunOptions(args=args, codec=(text, encoding, errors), **options)
    if given.interactive:
        raise ValueError("terminal=True cannot be interactive in an event loop; pass capture_output=True")
    with profiling(given) as recorder, given.open_streams() as streams:
        deadline = Deadline(given.timeout)
        try:
            bundle = await work(find_bundle, image, given, deadline.at)
            container = await work(
                EphemeralContainer, bundle, given, streams, deadline.at, recorder, undo=EphemeralContainer.discard
            )
        except LaunchTimeout as error:
            raise deadline.expired(error, streams) from error
        try:
            result = await finish(
                container.process, given.timeout, kill=container.kill, result=container.result, on_end=container.on_end
            )
        finally:
            if container.process.owned:  # a forked child has no threads to work in
                await work(container.discard)
    return with_profile(result, given, recorder)


async def prune(*, state_root: StrPath | None = None) -> tuple[str, ...]:
    """`ociruntime.prune` as a coroutine."""
    return await work(_prune, state_root=state_root)


run.__wrapped__ = _ephemeral.run  # type: ignore[attr-defined]  # the signature for inspect
