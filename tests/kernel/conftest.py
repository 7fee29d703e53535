"""The command line on a real terminal."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle
from ..support.waiting import SLOWER
from .mounting import either, mounted_tmpfs, run, tree  # noqa: F401 (fixtures)
from .users import User, temporary_user

REPO = Path(__file__).resolve().parents[2]


def _log_in() -> None:
    """Be what a login shell starts: with the terminal in control, and no signal ignored that whoever runs the tests ignores."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


class Session:
    """A command on a terminal of its own, which controls it, as a login shell has it; we are the person who types and reads."""

    def __init__(self, *words: object, size: tuple[int, int] = (24, 80)) -> None:
        self.master, slave = os.openpty()
        termios.tcsetwinsize(self.master, size)
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        self.process = subprocess.Popen(
            list(map(str, words)),
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
        """Read until the text has been printed; gives what came before it. It counts once: the next call looks behind it."""
        wanted, deadline = text.encode(), time.monotonic() + timeout * SLOWER
        while wanted not in self.seen:
            if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come, but {self.seen!r}")
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(wanted)
        return before.decode()

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.master, (rows, columns))

    @property
    def restored(self) -> bool:
        """Whether the terminal's settings are those of the beginning."""
        return termios.tcgetattr(self.slave) == self.before

    def wait(self, timeout: float = 20) -> int:
        """The exit code; what is printed meanwhile is read, so that nobody waits for us."""
        deadline = time.monotonic() + timeout * SLOWER
        while (code := self.process.poll()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"it still runs after {timeout} s; it printed {self.seen!r}")
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


@pytest.fixture
def session(state_root: Path) -> Iterator[Callable[..., Session]]:
    """Starts commands on terminals of their own. What a failed test leaves behind goes with them."""
    made: list[Session] = []

    def start(*words: object, **more: tuple[int, int]) -> Session:
        made.append(Session(*words, **more))
        return made[-1]

    yield start
    failed = any(entry.process.poll() is None for entry in made)
    for entry in made:
        entry.close()
    for container in oci.Container.list(state_root=state_root) if failed else ():
        container.delete(force=True)


@pytest.fixture
def command(state_root: Path) -> Command:
    """Returns the arguments of an ``ociruntime`` command on this test's state directory."""
    return lambda *words: [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), *map(str, words)]


@pytest.fixture
def user(make_bundle: MakeBundle, prefix: str, user_python: str) -> Iterator[User]:
    """A user without privileges. For tests that root runs."""
    with temporary_user(make_bundle, prefix, user_python) as made:
        yield made


def in_foreground(container: oci.Container) -> bool:
    """Whether the container's shell has given its terminal to a job (proc(5), fields pgrp and tpgid)."""
    fields = Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()
    return fields[2] != fields[5]


@pytest.fixture
def shell(make_bundle: MakeBundle) -> oci.Bundle:
    """A bundle whose process is an interactive shell with a plain prompt."""
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    process = spec.process.evolve(args=("sh",), terminal=True).with_env(PS1="$ ", ENV=None)
    return make_bundle(spec.evolve(process=process))
