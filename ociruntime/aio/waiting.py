"""Waiting in the event loop, and working beside it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..engine.processes import POLL_INTERVAL
from ..errors import ProcessTimeout
from ..files import Unpicklable
from ..process import KILL_GRACE, LaunchedProcess, Result
from ..streams import Streams

if TYPE_CHECKING:
    from ..streams import Waitable

T = TypeVar("T")


async def work(work: Callable[..., T], *args: Any, undo: Callable[[T], object] | None = None, **options: Any) -> T:
    """Do something in a thread, to its end. When the task is cancelled meanwhile, it is undone before that is told.

    What can be undone is not even begun when the task is cancelled while no thread is free.
    """
    needed = True

    def begin() -> list[T]:
        return [work(*args, **options)] if needed else []

    def give_up() -> None:
        nonlocal needed
        needed = undo is None

    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, begin)
    cancelled = await _whole(future, give_up)
    if cancelled is None:
        return future.result()[0]
    if undo is not None and future.exception() is None and future.result():
        back = loop.run_in_executor(None, undo, future.result()[0])
        cancelled = await _whole(back, give_up) or cancelled
        back.result()
    raise cancelled


async def _whole(future: asyncio.Future[Any], on_cancel: Callable[[], object]) -> asyncio.CancelledError | None:
    """Wait for the end of something that cannot be interrupted; gives the cancellation that came meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            on_cancel()
    return cancelled


async def readable(fd: int) -> None:
    """Wait until a descriptor is readable; it may be waited for several times at once."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    own = os.dup(fd)
    try:
        loop.add_reader(own, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(own)
    finally:
        os.close(own)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def ended(program: Waitable) -> None:
    """Wait for the end of a process."""
    while not program.ended():
        await within(POLL_INTERVAL, readable(program.fileno()))


async def within(timeout: float | None, wait: Awaitable[object]) -> bool:
    """Return whether something ends in time."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            await wait
    except TimeoutError:
        if not limit.expired():
            raise
        return False
    return True


async def pump(streams: Streams, program: Waitable, on_end: Callable[[], object] | None = None) -> None:
    """`Streams.pump` in the loop; it may be cancelled and begun again."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    busy = streams.ends()

    def forget() -> None:
        while busy:
            fd, number = busy.popitem()
            (loop.remove_reader if number else loop.remove_writer)(fd)

    def move(fd: int) -> None:
        try:
            if streams.move(fd, busy[fd]):
                return
            (loop.remove_reader if busy[fd] else loop.remove_writer)(fd)
            streams.finish(busy.pop(fd))
        except Exception as error:
            forget()
            if not done.done():
                done.set_exception(error)
        if not busy and not done.done():
            done.set_result(None)

    for fd, number in busy.items():
        (loop.add_reader if number else loop.add_writer)(fd, move, fd)

    async def end_again() -> None:
        while True:
            await asyncio.sleep(streams.end_again() or POLL_INTERVAL)

    typing = loop.create_task(end_again()) if streams.types else None
    try:
        await ended(program)
        if on_end is not None:
            await work(on_end)
        if busy or done.done():
            await done
    finally:
        if typing is not None:
            typing.cancel()
        forget()


async def finish(
    process: LaunchedProcess,
    timeout: float | None,
    *,
    kill: Callable[[], object],
    result: Callable[[], Result[Any]],
    on_end: Callable[[], object] | None = None,
) -> Result[Any]:
    """`ociruntime.process.finish` in the loop."""
    left = None if timeout is None else timeout - (time.monotonic() - process.began)
    if await within(left, pump(process.streams, process, on_end)):
        return result()
    await work(kill)
    await within(KILL_GRACE, pump(process.streams, process))
    process.check_dead()
    assert timeout is not None
    raise ProcessTimeout(process.args, timeout, result())


class Making(Unpicklable, Generic[T]):
    """Something that is made when it is awaited, or entered by ``async with``."""

    _instead = "await it first"

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._made: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._make().__await__()

    async def __aenter__(self) -> T:
        self._made = await self._make()
        return cast(T, await self._made.__aenter__())  # type: ignore[attr-defined]

    async def __aexit__(self, *exc: object) -> None:
        await self._made.__aexit__(*exc)  # type: ignore[union-attr]
