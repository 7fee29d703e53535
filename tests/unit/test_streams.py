"""The streams of programs, without a program."""

from __future__ import annotations

import os
import tty

from ociruntime.files import unread
from ociruntime.streams import Streams


def test_all_output_of_a_terminal_is_read() -> None:
    """The kernel counts only a part of what a program has written to its terminal before it ended."""
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        os.set_blocking(slave, False)
        count = os.write(slave, bytes(100_000))
        assert 4096 < count <= unread(master)
        streams = Streams.of_run(None, True, None, None, None, None, terminal=True)
        streams.use_terminal(master)
        streams.drain()
        assert streams.output(1) == bytes(count)
    finally:
        os.close(slave)
        os.close(master)
