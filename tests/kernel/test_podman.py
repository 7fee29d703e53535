"""podman with this runtime and the systemd cgroup manager, in the machine of tests/vm with podman in it (see docs/testing.md)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.places import MiB

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        shutil.which("podman") is None or "VMTEST" not in os.environ, reason="for the machine of tests/vm with podman"
    ),
]


USER = [
    "setpriv", "--reuid=tester", "--regid=tester", "--init-groups", "env", "HOME=/home/tester", "XDG_RUNTIME_DIR=/run/user/1000",
    "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus",
]  # fmt: skip


@pytest.fixture
def place(prefix: str, busybox_rootfs: Path) -> Iterator[Path]:
    """A directory that users reach, with a runtime and an image in it."""
    directory = Path("/var/tmp", prefix)
    directory.mkdir(mode=0o755)
    runtime = directory / "ociruntime"
    path = os.environ.get("PYTHONPATH", "")
    runtime.write_text(f'#!/bin/sh\nPYTHONPATH="{path}" exec {sys.executable} -P -m ociruntime "$@"\n')
    runtime.chmod(0o755)
    subprocess.run(["tar", "-C", busybox_rootfs, "-cf", directory / "image.tar", "."], check=True)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize("who", ["root", "user"])
def test_a_container_of_an_engine(place: Path, prefix: str, who: str) -> None:
    """All that an engine does with one, by its own words."""
    # Not by as-user: the service that it is would end, and take along what podman leaves behind.
    whose = USER if who == "user" else []
    subprocess.run(["systemctl", "start", "user@1000.service"], check=True)
    engine = ["podman", "--runtime", place / "ociruntime", "--cgroup-manager", "systemd", "--events-backend", "file"]

    def podman(*words: str, code: int = 0) -> list[str]:
        done = subprocess.run([*whose, *engine, *words], capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stderr
        return done.stdout.split("\n")[:-1]

    def units() -> str:
        command = [*whose, "systemctl", *(["--user"] if whose else []), "list-units", "--all", "--plain", "--no-legend", "libpod-*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    limits = ("--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50")
    files = "cd /sys/fs/cgroup; cat /proc/self/cgroup memory.max cpu.max pids.max"
    podman("import", "-q", str(place / "image.tar"), prefix)
    assert podman("run", "--rm", *limits, prefix, "sh", "-c", f"{files}; exit 3", code=3) == [
        "0::/", f"{64 * MiB}", "50000 100000", "50"
    ]  # fmt: skip
    [created] = podman("run", "-d", "--name", prefix, *limits, prefix, "sleep", "1000")
    assert f"libpod-{created}.scope" in units()
    assert podman("exec", prefix, "cat", "/proc/self/cgroup") == ["0::/"]
    podman("exec", prefix, "sh", "-c", "exit 7", code=7)
    podman("update", "--memory", "80m", prefix)
    assert podman("exec", prefix, "cat", "/sys/fs/cgroup/memory.max") == [f"{80 * MiB}"]
    status = ("inspect", "--format", "{{.State.Status}}", prefix)
    podman("pause", prefix)
    assert podman(*status) == ["paused"]
    podman("unpause", prefix)
    assert "sleep 1000" in podman("top", prefix)[1]
    podman("stop", "-t", "0", prefix)
    assert podman(*status) == ["exited"]
    podman("start", prefix)
    assert podman(*status) == ["running"]
    podman("rm", "-f", "-t", "0", prefix)
    podman("rmi", prefix)
    assert units() == ""
