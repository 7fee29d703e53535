"""Other programs that run containers with this runtime: engines and workload managers, from the packages of the distribution."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from .leftovers import cgroups_of, mounts_below, remove_leftovers
from .processes import find_processes, is_running
from .waiting import TIME_LIMIT, wait_until


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a marker that skips tests where a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {' and no '.join(missing)}")


def criu_works() -> bool:
    """Return whether criu is installed and supports this kernel."""
    if os.geteuid() != 0 or shutil.which("criu") is None:
        return False
    return subprocess.run(["criu", "check"], capture_output=True, timeout=TIME_LIMIT, check=False).returncode == 0


class Client:
    """A directory in which another program keeps all its files, with what it needs.

    Attributes:
        path: the directory, which other users can enter.
        runtime: the runtime as a program, which keeps its containers in `state`.
        archive: a tar archive of a root filesystem of busybox.
        env: the environment of the programs. It names the directory, so that their processes are found.
        user: the user of the programs; root if it is 0.
    """

    def __init__(self, prefix: str, python: str, rootfs: Path) -> None:
        self.prefix = prefix
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir="/var/tmp"))
        self.path.chmod(0o755)
        self.state, self.runtime, self.archive = self.path / "state", self.path / "ociruntime", self.path / "image.tar"
        self.state.mkdir(mode=0o700)
        python_path = os.environ.get("PYTHONPATH", "")
        self.runtime.write_text(f'#!/bin/sh\nPYTHONPATH="{python_path}" exec {python} -P -m ociruntime --root {self.state} "$@"\n')
        self.runtime.chmod(0o755)
        subprocess.run(["tar", "-C", rootfs, "-cf", self.archive, "."], check=True)
        self.env = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(self.path), "XDG_RUNTIME_DIR": str(self.path)}
        self.user = 0
        self._daemons: list[subprocess.Popen[bytes]] = []

    def become(self, user: int) -> None:
        """Run the programs as an unprivileged user, who owns the directory."""
        self.user = user
        for path in (self.path, self.state):
            os.chown(path, user, user)

    def run(self, *words: object, code: int = 0, input: str = "", env: Mapping[str, str] | None = None) -> str:
        """Run a program, assert its exit code, and return its output without the last newline."""
        # Files and no pipes: what outlives the program would hold a pipe open.
        with tempfile.TemporaryFile("w+") as stdin, tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            stdin.write(input)
            stdin.seek(0)
            done = subprocess.run(
                list(map(str, words)), user=self.user, group=self.user, extra_groups=[], cwd="/", env={**self.env, **(env or {})},
                stdin=stdin, stdout=out, stderr=err, timeout=TIME_LIMIT, check=False,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            output = out.read()
            assert done.returncode == code, f"{words}: exit code {done.returncode}\n{output}{err.read()}"
        return output.removesuffix("\n")

    def daemon(self, *words: object) -> int:
        """Start a program that runs until `close`, which ends the programs in the reverse order, and return its pid."""
        with (self.path / f"{Path(str(words[0])).name}.out").open("wb") as out:
            process = subprocess.Popen(
                list(map(str, words)), cwd=self.path, env=self.env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self._daemons.append(process)
        return process.pid

    def processes(self) -> list[int]:
        """Return the processes that belong to this directory by their command line or environment."""
        found = {pid for file in ("cmdline", "environ") for pid in find_processes(self.prefix, file)}
        return sorted(pid for pid in found - {os.getpid()} if is_running(pid))

    def close(self) -> None:
        """End the programs and remove the directory. Assert that no process, container or mount was left."""
        try:
            for process in reversed(self._daemons):
                process.send_signal(signal.SIGTERM)
                process.wait(TIME_LIMIT)
            wait_until(lambda: not self.processes(), "the end of the client's processes")
            assert self.run(self.runtime, "list", "--quiet") == ""
            assert mounts_below(self.path) == []
            # A parent cgroup with the prefix as its name stays; a container's own cgroup does not.
            assert [str(path) for top in cgroups_of(self.prefix) for path in Path(top).glob("*/")] == []
        finally:
            for process in self._daemons:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            remove_leftovers(self.path, self.prefix)
            shutil.rmtree(self.path)
