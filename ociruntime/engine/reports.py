"""What an init says, over its control socket or, behind the gate, to whoever opened that."""

from __future__ import annotations

import errno

from ..plan.ops import Report
from ..typed import NamedTuple
from .native import check, ffi, lib


class Message(NamedTuple):
    """What the init said."""

    kind: Report
    step: int
    value: int
    words: str = ""
    """The kernel's own words about a failed mount."""
    fd: int = -1


def pair() -> tuple[int, int]:
    """A control socket: our end, and the init's."""
    ends = ffi.new("int[2]")
    check(lib.oci_pair(ends))
    return ends[0], ends[1]


def receive(control: int) -> Message | None:
    """The next message; None when the init closed its end, which it does by becoming the process, or by dying."""
    said, passed = ffi.new("struct oci_report *"), ffi.new("int *")
    while (size := lib.oci_receive(control, said, passed)) == -errno.EINTR:
        pass  # and Python has run what handles the signal
    if check(size) == 0:
        return None
    words: bytes = ffi.string(said.words)
    return Message(Report(said.kind), said.step, said.value, words.decode("utf-8", "replace").strip(), passed[0])
