"""The removal of what a failed test leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script
from ..support.leftovers import cgroups_of, loops_below, mounts_below, remove_leftovers
from ..support.processes import find_processes
from ..support.waiting import SLOWER

pytestmark = pytest.mark.root


def test_leftovers_are_removed(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    for supervise in (False, True):
        oci.Container.run(f"{prefix}-{supervise}", bundle, state_root=state_root, supervise=supervise)
    oci.Container.create(f"{prefix}-created", bundle, state_root=state_root)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", prefix])
    disk, mounted = tmp_path / "disk", tmp_path / "mounted"
    mounted.mkdir()
    disk.write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", "-f", disk], check=True)
    for _ in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "none", mounted], check=True)
    remove_leftovers(tmp_path, prefix)
    assert oci.Container.list(state_root=state_root) == []
    assert cgroups_of(prefix) == mounts_below(tmp_path) == loops_below(tmp_path) == []
    assert find_processes(prefix) == find_processes(prefix, "cgroup") == []


def test_cgroups_without_a_container_are_removed(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, script: Script
) -> None:
    script(
        "import sys, ociruntime as oci; oci.Container.run(sys.argv[1], sys.argv[2], state_root=sys.argv[3])",
        *(prefix, bundle.path, state_root),
    )
    assert len(find_processes(prefix, "cgroup")) == 1
    (state_root / prefix / "state.json").unlink()
    remove_leftovers(tmp_path, prefix)
    assert cgroups_of(prefix) == find_processes(prefix, "cgroup") == []


FAILING = """
import subprocess
import pytest
import ociruntime as oci

def test_that_fails(bundle, state_root, prefix, tmp_path):
    (tmp_path.parents[1] / "prefix").write_text(prefix)
    oci.Container.run(prefix, bundle, state_root=state_root)
    subprocess.run(["mount", "-t", "tmpfs", "none", bundle.rootfs / "tmp"], check=True)
    raise ValueError("on purpose")
"""


def test_a_failed_test_leaves_nothing(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    (tmp_path / "tests/kernel").mkdir(parents=True)
    shutil.copy(tests / "conftest.py", tmp_path / "tests")
    shutil.copytree(tests / "support", tmp_path / "tests/support", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tests/kernel/test_failing.py").write_text(FAILING)
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        f"--basetemp={tmp_path}/base",
        "--rootdir",
        tmp_path,
        "-c",
        os.devnull,
    ]
    command = [sys.executable, "-P", "-m", "pytest", *options, tmp_path / "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * SLOWER, cwd=tests.parent)
    assert "on purpose" in done.stdout, done.stdout + done.stderr
    assert "1 failed in" in done.stdout, done.stdout  # and no error at teardown
    inner = (tmp_path / "prefix").read_text()
    assert cgroups_of(inner) == find_processes(inner, "cgroup") == mounts_below(tmp_path) == []
