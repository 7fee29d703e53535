"""`Process` in the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, AnyStr, Generic, Self, cast

from ..errors import ProcessTimeout
from ..process import BaseProcess, LaunchedProcess
from ..streams import MaybeNone
from .streams import Reader, Writer, connect
from .waiting import ended, within, work


class Process(BaseProcess, Generic[AnyStr]):
    """A process in a container: `ociruntime.Process` with waiting in the event loop.

    ``async with`` closes its streams and waits at the end. If the block raises or is cancelled, the process and every process that
    it has started are killed. ``async for`` yields the lines of stdout as they come.
    """

    stdin: Writer[AnyStr] | MaybeNone = None
    """The stream that writes to its stdin, if that is a pipe or a terminal."""
    stdout: Reader[AnyStr] | MaybeNone = None
    """The stream that reads its stdout, if that is a pipe or a terminal."""
    stderr: Reader[AnyStr] | MaybeNone = None
    """The stream that reads its stderr, if that is a pipe."""

    def __init__(self, process: LaunchedProcess) -> None:
        super().__init__(process)
        self._read: tuple[list[AnyStr], list[AnyStr]] = ([], [])

    async def _connect(self) -> Self:
        streams, terminal = self._process.streams, self.terminal
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            fd = streams.take(number)
            if fd is None and terminal is not None and number < 2:
                fd = os.dup(terminal.fileno())
            if fd is not None:
                setattr(self, name, await connect(fd, number, streams.codec))
        return self

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        if self.stdout is None:
            raise ValueError("stdout is not a pipe: start the process with stdout=PIPE")
        return cast(AsyncIterator[AnyStr], self.stdout.__aiter__())

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code, negative for a signal. Raises ProcessTimeout after ``timeout`` seconds."""
        if self.returncode is None and not await within(timeout, ended(self._process)):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        return self._process.reap()

    async def communicate(
        self, input: AnyStr | None = None, timeout: float | None = None
    ) -> tuple[AnyStr | MaybeNone, AnyStr | MaybeNone]:
        """Write ``input``, read stdout and stderr to their ends and wait.

        Returns:
            The output and the error output; None for a stream that is not a pipe.

        Raises:
            ProcessTimeout: it still runs after ``timeout`` seconds. No data is lost: call it again without input.
        """
        if input is not None and self.stdin is None:
            raise ValueError("input needs stdin=PIPE")
        if not await within(timeout, self._communicate(input)):
            assert timeout is not None
            raise ProcessTimeout(self.args, timeout)
        self._process.reap()
        nothing: Any = b"" if self._process.streams.codec is None else ""
        read, self._read = self._read, ([], [])
        out, err = (nothing.join(parts) for parts in read)
        return None if self.stdout is None else out, None if self.stderr is None else err

    async def _communicate(self, input: AnyStr | None) -> None:
        async def feed() -> None:
            if self.stdin is None:
                return
            try:
                if input:
                    self.stdin.write(input)
                await self.stdin.drain()
                self.stdin.close()
                await self.stdin.wait_closed()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the process does not read it

        async def read(stream: Reader[AnyStr] | None, parts: list[AnyStr]) -> None:
            while stream is not None and (part := await stream.read(1 << 16)):
                parts.append(part)

        await asyncio.gather(feed(), read(self.stdout, self._read[0]), read(self.stderr, self._read[1]), ended(self._process))

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd. The process goes on."""
        self._close_streams()
        self._process.close()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._process.owned:
            return  # a forked child leaves the block of its parent
        self._close_streams()
        try:
            if exc[0] is None:
                await self.wait()
        except BaseException:
            await self._discard()
            raise
        if exc[0] is None:
            self.close()
        else:
            await self._discard()

    async def _discard(self) -> None:
        """Kill the process and every process that it has started, and close what is open here. No effect in a forked child."""
        if not self._process.owned:
            return
        try:
            await work(self._process.end)
        finally:
            self.close()
