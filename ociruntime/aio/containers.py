"""`Container` in the event loop."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from .. import container as _sync
from ..engine.processes import EndWaiter
from ..errors import LaunchTimeout
from ..events import Event
from ..execs import Executes
from ..lifecycle.status import first_process
from ..lifecycle.watch import Ticks, watch
from ..options import CreateOptions, ExecOptions, PopenOptions
from ..overrides import Args, seconds, words
from ..process import Deadline, Result
from ..state import State, Status
from ..streams import Codec, MaybeNone, Streams
from .processes import Process
from .programs import checked, streams_of
from .streams import Reader, Writer, connect
from .supervised import Supervised
from .waiting import Making, ended, finish, readable, within, work

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..lifecycle.update import Limits
    from ..spec import Resources, RuntimeSpec
    from ..spec.base import Json
    from ..stats import Stats
    from ..terminal import Terminal

StrPath = str | os.PathLike[str]


class Container(Supervised):
    """A container: `ociruntime.Container` whose operations are coroutines.

    ``async with Container.create(...) as container`` deletes it at the end, as ``await Container.create(...)`` does not.
    """

    def __init__(self, container: _sync.Container) -> None:
        self._sync = container

    @classmethod
    def create(cls, container_id: str, bundle: Bundle | StrPath, **options: Unpack[CreateOptions]) -> Making[Self]:
        """`ociruntime.Container.create`, to be awaited or entered by ``async with``."""
        return Making(partial(cls._make, _sync.Container.create, container_id, bundle, options))

    @classmethod
    def run(cls, container_id: str, bundle: Bundle | StrPath, **options: Unpack[CreateOptions]) -> Making[Self]:
        """`ociruntime.Container.run`, to be awaited or entered by ``async with``."""
        return Making(partial(cls._make, _sync.Container.run, container_id, bundle, options))

    @classmethod
    async def _make(
        cls,
        make: Callable[..., _sync.Container],
        container_id: str,
        bundle: Bundle | StrPath,
        options: CreateOptions,
    ) -> Self:
        container = cls(await work(make, container_id, bundle, undo=lambda made: made.delete(force=True), **options))
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
    """Our end of the first process's stdin, if it was made with ``stdin=PIPE`` by this object."""
    stdout: Reader[bytes] | MaybeNone = None
    """Our end of the first process's stdout, if it was made with ``stdout=PIPE`` by this object."""
    stderr: Reader[bytes] | MaybeNone = None
    """Our end of the first process's stderr, if it was made with ``stderr=PIPE`` by this object."""

    @classmethod
    def load(cls, container_id: str, *, root: StrPath | None = None) -> Self:
        """A container that exists. Raises ContainerNotFound."""
        return cls(_sync.Container.load(container_id, root=root))

    @classmethod
    def list(cls, *, root: StrPath | None = None) -> list[Self]:
        """Every container in the state directory, by id."""
        return [cls(container) for container in _sync.Container.list(root=root)]

    @property
    def id(self) -> str:
        return self._sync.id

    @property
    def state(self) -> State:
        """The state now (runtime.md, State). Raises ContainerNotFound."""
        return self._sync.state

    @property
    def status(self) -> Status:
        return self._sync.status

    @property
    def pid(self) -> int:
        """The pid of the container's first process in our pid namespace; 0 when it has none."""
        return self._sync.pid

    @property
    def spec(self) -> RuntimeSpec:
        """The config as it was at create."""
        return self._sync.spec

    def fileno(self) -> int:
        """See `ociruntime.Container.fileno`."""
        return self._sync.fileno()

    @property
    def terminal(self) -> Terminal | None:
        """The master of the container's terminal, in the object that made it with ``terminal=True``."""
        return self._sync.terminal

    def processes(self) -> tuple[int, ...]:
        """The pids, in our pid namespace, of everything that runs in the container."""
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

    async def stats(self) -> Stats:
        """See `ociruntime.Container.stats`."""
        return self._sync.stats()  # less work than handing it to a thread

    async def events(self, interval: float | None = None) -> AsyncIterator[Event]:
        """`ociruntime.Container.events` as an asynchronous iterator: any number of tasks may look on, without a thread for each."""
        ticks = Ticks(interval)
        with watch(self._sync._entry, self._sync._pidfd) as watched:
            while not watched.ended:
                await within(ticks.left(), readable(watched.fileno()))
                for event in watched.read():
                    yield event
                if ticks.over() and not watched.ended:
                    yield Event("stats", time.time_ns(), stats=self._sync.stats())

    async def delete(self, *, force: bool = False) -> None:
        """See `ociruntime.Container.delete`."""
        try:
            await work(self._sync.delete, force=force)
        finally:
            if not self._sync._entry.path.is_dir():
                self._close()

    async def wait(self, timeout: float | None = None) -> int | None:
        """See `ociruntime.Container.wait`; any number of tasks may wait at once, without a thread for each."""
        document = self._sync._entry.read()
        pidfd = first_process(document, self._sync._pidfd)
        if pidfd is not None:
            try:
                with EndWaiter(document["pid"], pidfd) as ending:
                    if not await within(timeout, ended(ending)):
                        raise TimeoutError(f"container {self.id!r} still runs after {timeout} s")
            finally:
                os.close(pidfd)
        # A supervisor writes the code down a moment after the end.
        return await work(self._sync.wait, 0) if "supervisor" in document else self._sync.wait(0)

    @overload
    async def exec(self, args: Args = ..., *, text: Literal[True], **options: Unpack[ExecOptions]) -> Result[str]: ...
    @overload
    async def exec(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[ExecOptions]
    ) -> Result[str]: ...
    @overload
    async def exec(self, args: Args = ..., *, errors: str, **options: Unpack[ExecOptions]) -> Result[str]: ...
    @overload
    async def exec(
        self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[ExecOptions]
    ) -> Result[bytes]: ...
    @overload
    async def exec(self, args: Args = ..., *, text: bool | None, **options: Unpack[ExecOptions]) -> Result[Any]: ...

    async def exec(
        self,
        args: Args = (),
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ExecOptions],
    ) -> Result[Any]:
        """`ociruntime.Container.exec` as a coroutine: cancelling it kills the program and everything that it has started."""
        given = checked("exec", options, ExecOptions)
        if given.get("terminal") and not given.get("capture_output"):
            raise ValueError("nobody sits at a terminal in an event loop: use capture_output=True, or popen")
        check, timeout = given.pop("check", False), seconds(given.pop("timeout", None))
        with streams_of(given, Codec.of(text, encoding, errors)) as streams:
            deadline = Deadline(timeout)
            try:
                child: Process[Any] = await self._launch(args, streams, {**given, "deadline": deadline.at})
            except LaunchTimeout as error:
                result = deadline.result(error, words(args), streams)
            else:
                try:
                    result = await finish(child, timeout, child.kill_all)
                except BaseException:
                    await child._discard()
                    raise
                child.close()
        if check:
            result.check_returncode()
        return result

    @overload
    def popen(self, args: Args = ..., *, text: Literal[True], **options: Unpack[PopenOptions]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args = ..., *, encoding: str, errors: str | None = ..., **options: Unpack[PopenOptions]
    ) -> Making[Process[str]]: ...
    @overload
    def popen(self, args: Args = ..., *, errors: str, **options: Unpack[PopenOptions]) -> Making[Process[str]]: ...
    @overload
    def popen(
        self, args: Args = ..., *, text: Literal[False] | None = ..., **options: Unpack[PopenOptions]
    ) -> Making[Process[bytes]]: ...
    @overload
    def popen(self, args: Args = ..., *, text: bool | None, **options: Unpack[PopenOptions]) -> Making[Process[Any]]: ...

    def popen(
        self,
        args: Args = (),
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[PopenOptions],
    ) -> Making[Process[Any]]:
        """`ociruntime.Container.popen`, to be awaited or entered by ``async with``."""
        given = checked("popen", options, PopenOptions)
        codec = Codec.of(text, encoding, errors)

        async def make() -> Process[Any]:
            streams = Streams(given.get("stdin"), given.get("stdout"), given.get("stderr"), codec=codec)
            try:
                process = await self._launch(args, streams, given)
            except BaseException:
                streams.close()
                raise
            try:
                return await process._connect()
            except BaseException:
                await process._discard()
                raise

        return Making(make)

    async def _launch(self, args: Args, streams: Streams, given: dict[str, Any]) -> Process[Any]:
        rest = {name: value for name, value in given.items() if name not in _OF_STREAMS}
        return await work(self._sync._launch, Process, args, streams, undo=Process.discard, **rest)

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


_OF_STREAMS = frozenset({"stdin", "stdout", "stderr", "input", "capture_output", "bufsize"})


# For who asks for their signatures.
Container.create.__func__.__wrapped__ = _sync.Container.create.__func__  # type: ignore[attr-defined]
Container.run.__func__.__wrapped__ = _sync.Container.run.__func__  # type: ignore[attr-defined]
Container.exec.__wrapped__ = Executes.exec  # type: ignore[attr-defined]
Container.popen.__wrapped__ = Executes.popen  # type: ignore[attr-defined]
