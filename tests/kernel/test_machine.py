"""The machine of tests/vm is what the tests in it take it for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = [pytest.mark.vm, pytest.mark.skipif("VMTEST" not in os.environ, reason="for the machine of tests/vm only")]


def test_pure_cgroup_v2() -> None:
    [hierarchy] = oci.Host.probe().hierarchies
    assert hierarchy.version == 2
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= hierarchy.controllers
    if os.geteuid() == 0:
        assert "hugetlb" in hierarchy.controllers


def test_the_cgroup_is_delegated() -> None:
    own = Path("/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().strip().removeprefix("0::"))
    assert own.stat().st_uid == os.geteuid()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set((own / "cgroup.controllers").read_text().split())


def test_systemd_answers() -> None:
    manager = ["systemctl"] if os.geteuid() == 0 else ["systemctl", "--user"]
    done = subprocess.run([*manager, "is-system-running"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "running", done.stderr


def test_there_is_a_bus() -> None:
    kind = "--system" if os.geteuid() == 0 else "--user"
    subprocess.run(["busctl", kind, "call", "org.freedesktop.systemd1", "/", "org.freedesktop.DBus.Peer", "Ping"], check=True)
