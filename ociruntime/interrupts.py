"""Signals whose handlers in Python may raise, as KeyboardInterrupt: held back where that would leave something behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from types import FrameType
from typing import Any, Final, ParamSpec, TypeVar, overload

P = ParamSpec("P")
T = TypeVar("T")

_HELD: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
)


class Held:
    """A block that handlers do not interrupt: what comes meanwhile is handled at its end. A second signal of a kind does not wait.

    Python runs handlers in the main thread only; in another one, and in a block within a block, this does nothing.
    """

    undo: Callable[[], object] | None = None
    """Called at the end, before the exception goes on, when a handler raises there and the block itself did not."""

    _active: Held | None = None
    """The block that holds signals back at this moment; only the main thread changes it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._arrived: dict[int, FrameType | None] = {}
        self._waiting = False
        self._outer: Held | None = None

    def __enter__(self) -> Held:
        if threading.current_thread() is threading.main_thread():
            for number in _HELD:
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(getattr(handler, "__self__", None), Held):
                    self._handlers[number] = handler
            self._hold()
            if self._handlers:
                self._outer, Held._active = Held._active, self
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if Held._active is self:
                Held._active = self._outer
            self._restore()
        except BaseException as interruption:
            if kind is None and self.undo is not None and os.getpid() == self._owner:  # not what a handler has forked
                self._take_back(self.undo, interruption)
            raise

    @staticmethod
    def _take_back(undo: Callable[[], object], interruption: BaseException) -> None:
        """Undo the block's work. An error is a note of the interruption, which arrives as what it is."""
        try:
            undo()
        except Exception as error:
            interruption.add_note(f"what the interrupted call had made could not be removed: {error}")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Handlers run, and may raise, in this part of the block; those of signals that came before run at its begin."""
        try:
            self._restore()
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        try:
            for number in self._handlers:
                signal.signal(number, self._note)
        except BaseException:
            self._restore()
            raise

    def _restore(self) -> None:
        if (failure := self._set_back()) is not None:  # the handler of one that was back already
            self._set_back()
            raise failure
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived:
            number, frame = self._arrived.popitem()
            self._handlers[number](number, frame)

    @contextmanager
    def _open(self) -> Iterator[None]:
        self._waiting = True
        try:
            self._deliver()
            yield
        finally:
            self._waiting = False

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


def waiting() -> AbstractContextManager[None]:
    """A wait for another process in a block that holds signals back: handlers run in it, and may raise.

    The caller undoes its work when they do. It costs less than `Held.opened`, and works wherever the block began.
    """
    held = Held._active
    if held is None or held._waiting or threading.current_thread() is not threading.main_thread():
        return nullcontext()
    return held._open()


@overload
def whole() -> Callable[[Callable[P, T]], Callable[P, T]]: ...


@overload
def whole(undo: Callable[[T], object]) -> Callable[[Callable[P, T]], Callable[P, T]]: ...


def whole(undo: Callable[[T], object] | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that is not interrupted: the exception of a handler is raised at its end.

    Args:
        undo: takes back what the function has made, its result, when it is interrupted. Default: what it did stays done.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> T:
            with Held() as held:
                made = function(*args, **options)
                held.undo = partial(undo, made) if undo is not None else None
            return made

        return run

    return decorate


def complete(function: Callable[[], object]) -> None:
    """Call a function that an interruption does not keep from its end; the exception of a handler is raised after it.

    It is for the end of a block and of a life, as `__exit__` and `close`, where nothing comes after to do the work.
    """
    begun = False
    try:
        with Held():
            begun = True
            function()
    finally:
        if not begun:  # interrupted before the block held signals back
            function()
