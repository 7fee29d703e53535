"""`Supervised`: what people do with a supervised container, `attach` and `logs`; a part of `Container`."""

from __future__ import annotations

from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from typing import Literal

    from .attach import Attachment
    from .logs import LogRecord
    from .state import Entry

__all__ = ["Supervised"]


class Supervised:
    """The operations that need the supervisor of a container, or its log."""

    _entry: Entry

    def attach(self, *, stderr: bool = False) -> Attachment:
        """Connect to the container's streams, as one of several; on a created one nothing comes until it starts.

        Args:
            stderr: whether stderr comes separately, as `Attachment.stderr`.

        Raises:
            WrongStatus: it has ended, or is still being created.
            StateError: it has no supervisor, or that is gone, or has too many clients.
        """
        from .lifecycle.attach import attach

        return attach(self._entry, stderr=stderr)

    def logs(
        self,
        *,
        follow: bool = False,
        since: datetime | int | None = None,
        tail: int | None = None,
        stream: Literal["stdout", "stderr"] | None = None,
    ) -> Iterator[LogRecord]:
        """The container's log, entry by entry.

        Args:
            follow: go on until the container has ended, as it is written.
            since: the earliest time, as a `datetime` or in Unix nanoseconds.
            tail: of what is there only the last lines, this many.
            stream: only this one.

        Raises:
            StateError: it has no log, or none that can be read.
            ValueError: ``tail`` or ``stream`` is none.
        """
        from .lifecycle.logs import logs

        return logs(self._entry, follow=follow, since=since, tail=tail, stream=stream)

    def reopen_log(self) -> None:
        """Go on in a new log of the same name, when somebody has renamed it.

        Raises:
            WrongStatus: it has ended.
            StateError: it has no supervisor, or that is gone, or cannot open the log.
        """
        from .lifecycle.logs import reopen

        reopen(self._entry)
