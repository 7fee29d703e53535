"""`Process` in the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import AnyStr, Generic, Self, cast

from ..process import Child
from ..streams import MaybeNone
from .streams import Reader, Writer, connect
from .waiting import ended, within, work


class Process(Child, Generic[AnyStr]):
    """A program in a container: `ociruntime.Process` with waiting in the event loop.

    ``async with`` closes its streams and waits at the end; when that is interrupted, it is killed. ``async for`` gives the lines of
    stdout as they come.
    """

    stdin: Writer[AnyStr] | MaybeNone = None
    """Its stdin, when that is a pipe or a terminal."""
    stdout: Reader[AnyStr] | MaybeNone = None
    """Its stdout, when that is a pipe or a terminal."""
    stderr: Reader[AnyStr] | MaybeNone = None
    """Its stderr, when that is a pipe."""

    async def _connect(self) -> Self:
        codec, terminal = self.streams.codec, self.terminal
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            fd = self.streams.take(number)
            if fd is None and terminal is not None and number < 2:
                fd = os.dup(terminal.fileno())
            if fd is not None:
                setattr(self, name, await connect(fd, number, codec))
        return self

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        if self.stdout is None:
            raise ValueError("stdout is not a pipe: start it with stdout=PIPE")
        return cast(AsyncIterator[AnyStr], self.stdout.__aiter__())

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code, negative for a signal. Raises TimeoutError after ``timeout`` seconds."""
        if self.returncode is None and not await within(timeout, ended(self)):
            raise TimeoutError(f"{' '.join(self.args)!r} still runs after {timeout} s")
        return self.reap()

    async def communicate(self, input: AnyStr | None = None) -> tuple[AnyStr | MaybeNone, AnyStr | MaybeNone]:
        """Write ``input``, read stdout and stderr to their ends and wait; gives what was read, None for what is no pipe."""

        async def feed() -> None:
            if self.stdin is None:
                if input is not None:
                    raise ValueError("input needs stdin=PIPE")
                return
            try:
                if input:
                    self.stdin.write(input)
                    await self.stdin.drain()
                self.stdin.close()
                await self.stdin.wait_closed()
            except (BrokenPipeError, ConnectionResetError):
                pass  # the program does not want it

        async def read(stream: Reader[AnyStr] | None) -> AnyStr | None:
            return None if stream is None else await stream.read()

        _, out, err = await asyncio.gather(feed(), read(self.stdout), read(self.stderr))
        await self.wait()
        return out, err

    def close(self) -> None:
        """Close the streams, the terminal and the pidfd; what still runs goes on."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        super().close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        try:
            if exc[0] is not None:
                await work(self.kill_session)
            await self.wait()
        except BaseException:
            await work(self.kill_session)
            raise
        finally:
            self.close()
