"""What creating a container and executing a process in one have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from ..engine.groups import Group


@attrs.frozen(kw_only=True)
class Launched:
    """A process in a container that has just been launched."""

    args: tuple[str, ...]
    pid: int
    pidfd: int
    init_pid: int
    """The pid of the container's init process."""
    began: float
    """When the launch began, by `time.monotonic`."""
    cgroups: Sequence[str] = ()
    """Directories of the container's cgroups."""
    oom_kills: int = 0
    """OOM kills in the container before the launch."""
    group: Group | None = None
    """All processes that the process starts, if they are to be known."""
    terminal: int = -1
    """File descriptor of the master of its terminal, if the caller gets it."""


class CleanUps(ExitStack):
    """The clean-ups of a launch: those of `callback` always run, those of `on_failure` if an exception leaves the block."""

    def on_failure(self, function: Callable[..., object], *args: object) -> None:
        """Call a function at the end of the block, if an exception leaves it."""

        def clean_up(kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
            if error is not None:
                function(*args)

        self.push(clean_up)
