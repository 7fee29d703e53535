"""Time limits and polling. Every limit is for an idle machine and is multiplied by `SLOWER`."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import pytest

import ociruntime as oci

T = TypeVar("T")

SLOWER = 10 if "VMTEST" in os.environ else 1
"""Factor of all time limits: 10 in the emulated machine of tests/vm."""
TIME_LIMIT = 60 * SLOWER
"""Seconds after which a test gives up waiting for something that happens at once on an idle machine."""


def wait_until(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    """Poll until the condition is true. Raises AssertionError when the time is over."""
    deadline = time.monotonic() + timeout * SLOWER
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout * SLOWER} s")
        time.sleep(0.01)


async def wait_until_async(condition: Callable[[], object], what: str, timeout: float = 20) -> None:
    """As `wait_until`, for coroutines."""
    deadline = time.monotonic() + timeout * SLOWER
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not happen within {timeout * SLOWER} s")
        await asyncio.sleep(0.005)


def run_async(main: Coroutine[Any, Any, T], timeout: float = 120) -> T:
    """Run a coroutine in a new event loop. Raises TimeoutError when the time is over."""

    async def limited() -> T:
        async with asyncio.timeout(timeout * SLOWER):
            return await main

    return asyncio.run(limited())


def timed_out(call: Callable[[], object]) -> oci.Result[Any]:
    """Return the result, with the output so far, of a call whose time limit is too short."""
    with pytest.raises(oci.ProcessTimeout) as caught:
        call()
    assert caught.value.result is not None
    return caught.value.result


def timed_out_with_output(call: Callable[[float], object]) -> oci.Result[Any]:
    """As `timed_out`, for a call that takes the time limit. It is longer each time until the program has printed something."""
    limit = 0.3
    while not (result := timed_out(partial(call, limit))).stdout and limit < TIME_LIMIT:
        limit *= 3
    return result


@contextmanager
def within(timeout: float) -> Iterator[None]:
    """Assert that the body takes less than this time."""
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < timeout * SLOWER, f"took {took:.1f} s of at most {timeout * SLOWER} s"


@contextmanager
def interrupted_when(
    condition: Callable[[], object], what: str, *, between: bool = False
) -> Iterator[pytest.ExceptionInfo[KeyboardInterrupt]]:
    """Send SIGINT to this process as soon as the condition is true, and expect KeyboardInterrupt from the body.

    It is sent again every minute until the body ends: a second signal is not deferred.

    Args:
        between: the first signal interrupts no system call of the body, as one that comes just before the call.
    """
    ended, failures = threading.Event(), list[AssertionError]()

    def send() -> None:
        try:
            wait_until(lambda: ended.is_set() or condition(), what)
        except AssertionError as error:
            failures.append(error)
        receiver = threading.get_ident() if between else threading.main_thread().ident
        if between:
            time.sleep(0.3 * SLOWER)  # the body comes to the system call
        while not ended.is_set():
            signal.pthread_kill(receiver or 0, signal.SIGINT)
            ended.wait(60 * SLOWER)
            receiver = threading.main_thread().ident

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            yield caught
    finally:
        ended.set()
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert failures == []
