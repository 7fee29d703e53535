"""`Sandbox` in the event loop."""

from __future__ import annotations

import inspect
import socket
from collections.abc import AsyncIterator, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from typing_extensions import override

from .. import sandbox as _sync
from ..arguments import Duration, parse_timeout
from ..errors import StateError
from ..files import Unpicklable
from ..lifecycle.snapshots import Snapshot
from ..options import SandboxKeywords, SandboxOptions, SandboxPopenKeywords, SandboxRunKeywords, check_keywords
from ..presets import HostFiles
from .containers import Container, ContainerFiles, FileOperations
from .processes import Making, Process, readable, within, work

if TYPE_CHECKING:
    from ..engine.cgroup.stats import Stats
    from ..ephemeral import ImageLike
    from ..image import Compression
    from ..lifecycle.files import ContainerFiles as _ContainerFiles
    from ..lifecycle.snapshots import Changes
    from ..options import Misspelt, OutputFunction
    from ..overrides import Args, Env, StrPath, UserLike
    from ..process import Result
    from ..stats import Event
    from ..streams import Stdio


class Sandbox(FileOperations, Unpicklable):
    """`ociruntime.Sandbox` whose operations are coroutines. It begins when it is awaited, or entered by ``async with``.

    A run that is cancelled ends with everything that it has started; the sandbox stays.
    """

    _instead = "make a Sandbox in the process that uses it"

    def __init__(self, image: ImageLike | Snapshot, **options: Unpack[SandboxKeywords]) -> None:
        """Check the arguments, which are those of `ociruntime.Sandbox`, and begin nothing."""
        check_keywords("Sandbox", options, SandboxKeywords)
        self._image: ImageLike | HostFiles | Snapshot | None = image
        self._options = SandboxOptions(**options)
        self._begun_sandbox: _sync.Sandbox | None = None

    @classmethod
    def host(
        cls,
        *,
        read: Iterable[StrPath] = (),
        write: Iterable[StrPath] = (),
        hide: Iterable[StrPath] = (),
        **options: Unpack[SandboxKeywords],
    ) -> Self:
        """See `ociruntime.Sandbox.host`. It begins when it is awaited, or entered by ``async with``."""
        sandbox = cls.__new__(cls)
        sandbox._image, sandbox._options = HostFiles.of(read, write, hide), _sync.host_options(options)
        sandbox._begun_sandbox = None
        return sandbox

    @classmethod
    def _from(cls, begun: _sync.Sandbox) -> Self:
        """Return a sandbox that has begun."""
        sandbox = cls.__new__(cls)
        sandbox._image, sandbox._options, sandbox._begun_sandbox = None, begun._options, begun
        return sandbox

    async def _begin(self) -> Self:
        if self._begun_sandbox is not None:
            raise StateError(f"sandbox {self._begun_sandbox.name!r} has begun already")
        image: Any = self._image  # None, which a caller may have passed, is refused like any other wrong value
        self._begun_sandbox = await work(_sync.Sandbox._of, image, self._options, undo=_sync.Sandbox.close)
        self._image = None  # a snapshot keeps its files while something refers to it
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._begin().__await__()

    async def __aenter__(self) -> Self:
        return self if self._begun_sandbox is not None else await self._begin()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _repr_html_(self) -> str | None:
        return None if self._begun_sandbox is None else self._begun_sandbox._repr_html_()

    @property
    def _sandbox(self) -> _sync.Sandbox:
        if self._begun_sandbox is None:
            raise StateError("the sandbox has not begun: await it, or use it by 'async with'")
        return self._begun_sandbox

    @property
    def name(self) -> str:
        """The id of its container, unique in the state directory."""
        return self._sandbox.name

    @property
    def container(self) -> Container:
        """Its container, for what a sandbox has no method for."""
        return Container(self._sandbox.container)

    @property
    def files(self) -> ContainerFiles:
        """Its files, which can be read, written and copied. Raises StateError: the sandbox is closed."""
        return self._running().files

    @property
    def limits(self) -> Mapping[str, str]:
        """See `ociruntime.Sandbox.limits`."""
        return self._sandbox.limits

    @property
    def owned(self) -> bool:
        """Whether it belongs to this process, instead of the parent that this process was forked from."""
        return self._sandbox.owned

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._sandbox.closed

    def __repr__(self) -> str:
        return repr(self._begun_sandbox) if self._begun_sandbox is not None else "<Sandbox: not begun>"

    def _running(self) -> Container:
        return Container(self._sandbox._running())

    @overload
    async def run(self, args: Args, *, text: Literal[True], **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    async def run(
        self, args: Args, *, encoding: str, errors: str | None = ..., **options: Unpack[SandboxRunKeywords]
    ) -> Result[str]: ...
    @overload
    async def run(self, args: Args, *, errors: str, **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    async def run(
        self, args: Args, *, text: Literal[False] | None = ..., **options: Unpack[SandboxRunKeywords]
    ) -> Result[bytes]: ...
    @overload
    async def run(
        self, args: Args, *, input: bytes | str | None = ..., stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ...,
        text: bool | None = ..., encoding: str | None = ..., errors: str | None = ..., max_output: int | str | None = ...,
        on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ..., timeout: Duration | None = ...,
        check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ..., user: UserLike | None = ...,
        groups: Sequence[int] | None = ..., terminal: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

    async def run(
        self,
        args: Args,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Result[Any]:
        """`ociruntime.Sandbox.run` as a coroutine. Cancelling it kills the program and every process that it has started."""
        check_keywords("run", options, SandboxRunKeywords)
        given = {**_sync.STREAMS, **options, "codec": (text, encoding, errors)}
        return await self._running()._exec(self._options.exec_options(args, given))

    @overload
    async def shell(self, line: str, *, text: Literal[True], **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    async def shell(
        self, line: str, *, encoding: str, errors: str | None = ..., **options: Unpack[SandboxRunKeywords]
    ) -> Result[str]: ...
    @overload
    async def shell(self, line: str, *, errors: str, **options: Unpack[SandboxRunKeywords]) -> Result[str]: ...
    @overload
    async def shell(
        self, line: str, *, text: Literal[False] | None = ..., **options: Unpack[SandboxRunKeywords]
    ) -> Result[bytes]: ...
    @overload
    async def shell(
        self, line: str, *, input: bytes | str | None = ..., stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ...,
        text: bool | None = ..., encoding: str | None = ..., errors: str | None = ..., max_output: int | str | None = ...,
        on_stdout: OutputFunction | None = ..., on_stderr: OutputFunction | None = ..., timeout: Duration | None = ...,
        check: bool = ..., env: Env | None = ..., cwd: StrPath | None = ..., user: UserLike | None = ...,
        groups: Sequence[int] | None = ..., terminal: bool = ..., **unknown: Misspelt,
    ) -> Result[Any]: ...  # fmt: skip

    async def shell(
        self,
        line: str,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Result[Any]:
        """`ociruntime.Sandbox.shell` as a coroutine. Cancelling it kills the program and every process that it has started."""
        check_keywords("shell", options, SandboxRunKeywords)
        given = {**_sync.STREAMS, **options, "codec": (text, encoding, errors)}
        return await self._running()._exec(self._options.exec_options(_sync.shell_args(line), given))

    @overload
    def popen(self, args: Args, *, text: Literal[True], **options: Unpack[SandboxPopenKeywords]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args, *, encoding: str, errors: str | None = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Making[Process[str]]: ...
    @overload
    def popen(self, args: Args, *, errors: str, **options: Unpack[SandboxPopenKeywords]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args, *, text: Literal[False] | None = ..., **options: Unpack[SandboxPopenKeywords]
    ) -> Making[Process[bytes]]: ...
    @overload
    def popen(
        self, args: Args, *, stdin: Stdio = ..., stdout: Stdio = ..., stderr: Stdio = ..., text: bool | None = ...,
        encoding: str | None = ..., errors: str | None = ..., env: Env | None = ..., cwd: StrPath | None = ...,
        user: UserLike | None = ..., groups: Sequence[int] | None = ..., terminal: bool = ..., **unknown: Misspelt,
    ) -> Making[Process[Any]]: ...  # fmt: skip

    def popen(
        self,
        args: Args,
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Any,
    ) -> Making[Process[Any]]:
        """`ociruntime.Sandbox.popen` without ``bufsize``, to be awaited or entered by ``async with``."""
        check_keywords("popen", options, SandboxPopenKeywords)
        given = {**_sync.POPEN_STREAMS, **options, "codec": (text, encoding, errors)}
        return self._running()._open_process(self._options.exec_options(args, given))

    # ---- files: the methods of `FileOperations` ----

    @override
    def _files(self) -> _ContainerFiles:
        return self._sandbox.files

    async def changes(self) -> Changes:
        """See `ociruntime.Sandbox.changes`."""
        return await work(self._sandbox.changes)

    async def diff_text(self, path: str) -> str:
        """See `ociruntime.Sandbox.diff_text`."""
        return await work(self._sandbox.diff_text, path)

    async def snapshot(self) -> Snapshot:
        """See `ociruntime.Sandbox.snapshot`."""
        return await work(self._sandbox.snapshot, undo=Snapshot.close)

    async def fork(self) -> Self:
        """See `ociruntime.Sandbox.fork`."""
        return self._from(await work(self._sandbox.fork, undo=_sync.Sandbox.close))

    async def commit(
        self,
        target: StrPath,
        *,
        image: StrPath | None = None,
        labels: Mapping[str, str] | None = None,
        compression: Compression = "gzip",
        overwrite: bool = False,
    ) -> None:
        """See `ociruntime.Sandbox.commit`."""
        await work(self._sandbox.commit, target, image=image, labels=labels, compression=compression, overwrite=overwrite)

    def processes(self) -> tuple[int, ...]:
        """See `ociruntime.Sandbox.processes`."""
        return self._sandbox.processes()

    async def stats(self) -> Stats:
        """See `ociruntime.Sandbox.stats`."""
        return self._sandbox.stats()  # less work than handing it to a thread

    async def events(self, interval: Duration | None = None) -> AsyncIterator[Event]:
        """`ociruntime.Sandbox.events` as an asynchronous iterator."""
        async for event in self._running().events(interval):
            yield event

    async def wait_for_port(self, port: int, timeout: Duration | None = 30.0) -> None:
        """See `ociruntime.Sandbox.wait_for_port`."""
        wait = self._sandbox._port_wait(port, timeout)
        while (left := wait.left()) is not None:
            await within(left, readable(wait.fileno()))

    async def connect(self, port: int, timeout: Duration | None = None) -> socket.socket:
        """See `ociruntime.Sandbox.connect`. `asyncio.open_connection` takes the socket, after ``setblocking(False)``."""
        return await work(self._sandbox.connect, port, timeout, undo=socket.socket.close)

    async def stop(self, timeout: Duration | None = 10.0) -> None:
        """See `ociruntime.Sandbox.stop`."""
        await work(self._sandbox.stop, timeout)

    async def kill(self) -> None:
        """See `ociruntime.Sandbox.kill`."""
        await work(self._sandbox.kill)

    async def reset(self) -> None:
        """See `ociruntime.Sandbox.reset`."""
        await work(self._sandbox.reset)

    async def close(self) -> None:
        """See `ociruntime.Sandbox.close`. No effect on a sandbox that has not begun."""
        if self._begun_sandbox is not None and self._begun_sandbox.owned:  # a forked child has no threads to work in
            await work(self._begun_sandbox.close)


class SandboxPool(Unpicklable):
    """`ociruntime.SandboxPool` in the event loop: ``async with pool.get() as sandbox``, or ``await pool.get()``."""

    _instead = "make a SandboxPool in the process that uses it"

    def __init__(self, image: ImageLike, *, size: int = 4, **options: Unpack[SandboxKeywords]) -> None:
        """Begin to make sandboxes. Arguments and errors are those of `ociruntime.SandboxPool`."""
        self._pool = _sync.SandboxPool(image, size=size, **options)

    def get(self, timeout: Duration | None = None) -> Making[Sandbox]:
        """`ociruntime.SandboxPool.get`, to be awaited or entered by ``async with``."""
        timeout = parse_timeout(timeout)

        async def make() -> Sandbox:
            found = self._pool._stock.take(0)  # without a thread if one is ready
            if found is None:
                found = await work(self._pool.get, timeout, undo=_sync.Sandbox.close)
            return Sandbox._from(found)

        return Making(make)

    @property
    def ready(self) -> int:
        """How many sandboxes are ready at this moment."""
        return self._pool.ready

    async def close(self) -> None:
        """See `ociruntime.SandboxPool.close`."""
        await work(self._pool.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


# The signatures for inspect.
Sandbox.__signature__ = inspect.signature(_sync.Sandbox)  # type: ignore[attr-defined]
Sandbox.host.__func__.__wrapped__ = _sync.Sandbox.host.__func__  # type: ignore[attr-defined]
Sandbox.shell.__wrapped__ = _sync.Sandbox.shell  # type: ignore[attr-defined]
SandboxPool.__init__.__wrapped__ = _sync.SandboxPool.__init__  # type: ignore[attr-defined]
Sandbox.run.__wrapped__ = _sync.Sandbox.run  # type: ignore[attr-defined]
_popen = inspect.signature(_sync.Sandbox.popen)
Sandbox.popen.__signature__ = _popen.replace(  # type: ignore[attr-defined]
    parameters=[parameter for name, parameter in _popen.parameters.items() if name != "bufsize"]
)
