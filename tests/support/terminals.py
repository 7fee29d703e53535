"""Commands on a terminal, as a person uses them."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import ociruntime as oci

from .places import REPO
from .waiting import SLOWER


def _log_in() -> None:
    """Make the terminal the controlling one, and ignore no signals, as for the first process of a login."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Session:
    """A command with a controlling terminal of its own, as a login shell has it. The test types and reads."""

    def __init__(self, *args: object, size: tuple[int, int] = (24, 80)) -> None:
        self.master, slave = os.openpty()
        termios.tcsetwinsize(self.master, size)
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        self.process = subprocess.Popen(
            list(map(str, args)),
            cwd=REPO,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_log_in,
        )
        self.slave = slave

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str, timeout: float = 20) -> str:
        """Read until the text has been printed. Return the output before it; the next call goes on behind it."""
        expected, deadline = text.encode(), time.monotonic() + timeout * SLOWER
        while expected not in self.seen:
            if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"the command printed {self.seen!r}, not {text!r}")
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(expected)
        return before.decode()

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    @property
    def restored(self) -> bool:
        """Whether the terminal's settings are those of the beginning."""
        return termios.tcgetattr(self.slave) == self.before

    def wait(self, timeout: float = 20) -> int:
        """Return the exit code. Output is read meanwhile, so that the command does not wait for a reader."""
        deadline = time.monotonic() + timeout * SLOWER
        while (code := self.process.poll()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"the command still runs after {timeout * SLOWER} s; it printed {self.seen!r}")
            if select.select([self.master], [], [], 0.02)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return code

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        if self.master >= 0:
            self.hang_up()


def in_foreground(container: oci.Container) -> bool:
    """Return whether the container's shell has given its terminal to a job (proc(5), fields pgrp and tpgid)."""
    fields = Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()
    return fields[2] != fields[5]
