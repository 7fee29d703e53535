"""Deferring signals whose Python handlers may raise, as KeyboardInterrupt, where that would leave something behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from .errors import LaunchTimeout

if TYPE_CHECKING:
    import subprocess

P = ParamSpec("P")
T = TypeVar("T")

_DEFERRED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
)


class DeferredSignals:
    """A block that signal handlers do not interrupt: they run at its end. A second signal of a kind is handled at once.

    Python runs handlers in the main thread only. In another thread, and in a block within a block, this has no effect.
    """

    _active: DeferredSignals | None = None
    """The block that defers signals at this moment. Only the main thread changes it."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: dict[int, FrameType | None] = {}
        self._waiting = False
        self._thread = threading.get_ident()

    def __enter__(self) -> DeferredSignals:
        if DeferredSignals._active is None and threading.current_thread() is threading.main_thread():
            for number in _DEFERRED:
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(getattr(handler, "__self__", None), DeferredSignals):
                    self._handlers[number] = handler
            self._hold()
            if self._handlers:
                DeferredSignals._active = self
        return self

    def __exit__(self, *exc: object) -> None:
        if DeferredSignals._active is self:
            DeferredSignals._active = None
        self._restore()

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Run handlers, which may raise, in this part of the block; those of signals that came before run at its begin."""
        if DeferredSignals._active is not self:
            yield  # it defers nothing itself
            return
        DeferredSignals._active = None
        try:
            self._restore()
            yield
        finally:
            DeferredSignals._active = self
            self._hold()

    def _hold(self) -> None:
        try:
            for number in self._handlers:
                signal.signal(number, self._note)
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        if (failure := self._set_back()) is not None:  # by the handler of a signal that was restored already
            self._set_back()
            raise failure
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived:
            number, frame = self._arrived.popitem()
            self._handlers[number](number, frame)

    def _set_back(self) -> BaseException | None:
        failure = None
        for number, handler in self._handlers.items():
            try:
                signal.signal(number, handler)
            except BaseException as error:
                failure = error
        return failure

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number in self._arrived:
            self._handlers[number](number, self._arrived.pop(number))
            self._handlers[number](number, frame)
        elif self._waiting:
            self._handlers[number](number, frame)
        else:
            self._arrived[number] = frame


def _after_fork() -> None:
    """Give a child its handlers back if another thread than that of the block has forked it, because it never leaves the block."""
    block = DeferredSignals._active
    if block is not None and block._thread != threading.get_ident():
        DeferredSignals._active = None
        block._set_back()


os.register_at_fork(after_in_child=_after_fork)


def waiting() -> AbstractContextManager[None]:
    """Return a context in which handlers run, and may raise, during a wait in a block that defers signals.

    If they raise, the caller undoes its work. It costs less than `DeferredSignals.delivered`, and works wherever the block began.
    """
    signals = DeferredSignals._active
    if signals is None or signals._waiting or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return _Waiting(signals)


class _Waiting(AbstractContextManager[None]):
    """The context of `waiting`."""

    def __init__(self, signals: DeferredSignals) -> None:
        self._signals = signals

    def __enter__(self) -> None:
        self._signals._waiting = True
        try:
            self._signals._deliver()
        except BaseException:
            self._signals._waiting = False
            raise

    def __exit__(self, *exc: object) -> None:
        self._signals._waiting = False


CHECK_INTERVAL: Final = 1.0
"""Seconds of one wait of a call that may wait longer. Python sees a signal that came just before a system call only after it."""


def wait_for_child(process: subprocess.Popen[Any]) -> int:
    """Wait for the end of a child as in `waiting`, and return its exit status. A signal is seen within `CHECK_INTERVAL`."""
    poller, pidfd = select.poll(), os.pidfd_open(process.pid)
    try:
        poller.register(pidfd, select.POLLIN)
        with waiting():
            while not poller.poll(CHECK_INTERVAL * 1000):
                pass
    finally:
        os.close(pidfd)
    return process.wait()


_deadline: Final[ContextVar[float | None]] = ContextVar("deadline", default=None)


class time_limit(AbstractContextManager[None]):
    """Set the end of the time-out of a call, for long work on its way, such as the extraction of an image.

    Args:
        deadline: the time, by `time.monotonic`; None for no limit.
    """

    def __init__(self, deadline: float | None) -> None:
        self._value = deadline

    def __enter__(self) -> None:
        self._token = _deadline.set(self._value)

    def __exit__(self, *exc: object) -> None:
        _deadline.reset(self._token)


def current_deadline() -> float | None:
    """Return the deadline that `time_limit` has set around this point of the thread."""
    return _deadline.get()


def time_left() -> float | None:
    """Return the seconds until the deadline of `time_limit`; None if there is none."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())


_check: Final[ContextVar[Callable[[], object] | None]] = ContextVar("check", default=None)


class checking(AbstractContextManager[None]):
    """Call a function at the points of long work in a block, which are those of `check_deadline`. It raises to end the work."""

    def __init__(self, check: Callable[[], object]) -> None:
        self._value = check

    def __enter__(self) -> None:
        self._token = _check.set(self._value)

    def __exit__(self, *exc: object) -> None:
        _check.reset(self._token)


def check_deadline() -> None:
    """Raise LaunchTimeout if the deadline of `time_limit` has passed. For points of long work; the caller undoes it."""
    if time_left() == 0.0:
        text = "make the files of the image"
        raise LaunchTimeout(errno.ETIMEDOUT, step=0, total=0, op="extract", text=text, cause="the time of the call is over")
    if (check := _check.get()) is not None:
        check()


def deliver() -> None:
    """Run the handlers of signals that are deferred, which may raise. For points of long work at which nothing is half done."""
    with waiting():
        pass


def uninterruptible(undo: Callable[[Any], object] | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that is not interrupted: the exception of a handler is raised at its end.

    Args:
        undo: undoes the function when it is interrupted; it gets the function's result. Default: nothing is undone.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> T:
            results: list[T] = []
            caller = os.getpid()
            try:
                with DeferredSignals():
                    results.append(function(*args, **options))
                return results[0]  # within the outer block: Python may run a handler when the inner one has ended
            except BaseException as interruption:
                if results and undo is not None and os.getpid() == caller:  # not what a handler has forked
                    _undo(undo, results[0], interruption)
                raise

        return run

    return decorate


def _undo(undo: Callable[[T], object], result: T, interruption: BaseException) -> None:
    """Undo the work of a function. An error is added to the interruption as a note."""
    try:
        undo(result)
    except Exception as error:
        interruption.add_note(f"what the interrupted call had made could not be removed: {error}")


def complete(function: Callable[[], object]) -> None:
    """Call a function to its end, also when it is interrupted; the exception of a handler is raised after it.

    It is for `__exit__` and `close`, after which nothing else would do the work.
    """
    begun = False
    try:
        with DeferredSignals():
            begun = True
            function()
    finally:
        if not begun:  # interrupted before the block deferred signals
            function()
