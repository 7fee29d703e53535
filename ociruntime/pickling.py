"""Objects that cannot be sent to another process."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex


class Unpicklable:
    """Base class of objects that hold file descriptors of this process: pickling or copying one raises TypeError.

    A pickled descriptor is a bare number. In another process it names some other file, or none.
    """

    __slots__ = ()

    _instead: ClassVar[str]
    """What to send instead, for the message."""

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        name = type(self).__qualname__
        raise TypeError(f"cannot pickle or copy {name!r} object: it holds file descriptors of this process; {self._instead}")
