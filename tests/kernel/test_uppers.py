"""The upper layers of containers: whose they are, where they are, and what is left of them and of the mounts of images below them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import sandbox

from ..support.fixture_types import Script
from ..support.leftovers import assert_nothing_left, loops_below, mounts_below
from ..support.places import REPO
from ..support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.sif]

Look = Callable[..., str]


@pytest.fixture
def image(busybox_sif: Path, tmp_path: Path) -> Path:
    """A copy of the image, so that its loop devices are those of one test."""
    path = tmp_path / "image.sif"
    shutil.copy(busybox_sif, path)
    return path


@pytest.fixture
def look(state_root: Path) -> Look:
    """Runs a shell script in a container, and returns its output."""

    def run(image: object, script: str, **options: object) -> str:
        result = oci.run(image, ["sh", "-c", script], capture_output=True, text=True, state_root=state_root, **options)  # type: ignore[arg-type]
        assert result.returncode == 0, result
        return str(result.stdout)

    return run


# ---- the mount that the containers of a process share ----


def test_runs_share_one_mount_that_has_no_place(image: Path, look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[str] = []
    monkeypatch.setattr("ociruntime.lifecycle.create.warn", lambda _: seen.extend(mounts_below(tmp_path)))
    for _ in range(3):
        assert look(image, "echo x >/new; rm /bin/ls; ls /new 2>&1 | head -1; stat -c %a /").endswith("\n755\n")
        assert len(loops_below(tmp_path)) == 1
    assert seen == []
    sandbox._images.clear()
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device")


def test_an_image_that_is_replaced(image: Path, look: Look, busybox_rootfs: Path, tmp_path: Path) -> None:
    assert look(image, "cat /etc/passwd") == "root:x:0:0:root:/root:/bin/sh\n"
    tree = tmp_path / "tree"
    shutil.copytree(busybox_rootfs, tree, symlinks=True)
    (tree / "etc/passwd").write_text("root:x:0:0:other:/other:/bin/sh\n")
    oci.build_sif(tmp_path / "other.sif", tree)
    os.replace(tmp_path / "other.sif", image)
    assert look(image, "echo $HOME; cat /etc/passwd") == "/other\nroot:x:0:0:other:/other:/bin/sh\n"
    wait_until(lambda: len(loops_below(tmp_path)) == 1, "the end of the loop device of the replaced image")


def test_the_number_of_images_that_stay_mounted_is_bounded(image: Path, look: Look, tmp_path: Path) -> None:
    for number in range(sandbox._MAX_IMAGES + 2):
        shutil.copy(image, tmp_path / f"{number}.sif")
        look(tmp_path / f"{number}.sif", "true")
    wait_until(lambda: len(loops_below(tmp_path)) == sandbox._MAX_IMAGES, "the end of the oldest loop devices")


FORKS = """
import os, sys
import ociruntime as oci
image, root = sys.argv[1:]
run = lambda: oci.run(image, ["sh", "-c", "ls /new || echo none >/new; cat /new"], capture_output=True, text=True, state_root=root).stdout
assert run() == "none\\n"
child = os.fork()
if child == 0:
    os._exit(run() != "none\\n")
assert os.waitpid(child, 0)[1] == 0
assert run() == "none\\n"
"""


def test_a_forked_child_shares_it_too(script: Script, image: Path, state_root: Path, tmp_path: Path) -> None:
    script(FORKS, image, state_root)
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device with the processes")


def test_a_damaged_image_is_refused_before_anything_is_made(image: Path, state_root: Path, tmp_path: Path) -> None:
    with oci.SifImage.open(image) as opened:
        assert opened.primary_partition is not None
        offset = opened.primary_partition.offset
    with image.open("r+b") as file:
        file.seek(offset + 8)
        file.write(b"\xff" * 64)
    with pytest.raises((OSError, oci.ImageError), match=r"image\.sif"):
        oci.run(image, ["true"], state_root=state_root)
    assert not state_root.exists() or oci.Container.list(state_root=state_root) == []
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device")


# ---- what is left ----

KILLED = """
import sys
import ociruntime as oci
image, root, number = sys.argv[1:]
print("begin", flush=True)
for turn in range(1000):
    oci.run(image, ["sh", "-c", "echo x >/new"], container_id=f"{number}-{turn}", state_root=root)
"""


def test_a_caller_that_is_killed_leaves_nothing(image: Path, state_root: Path, tmp_path: Path, prefix: str) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    for number in range(6):
        command = [sys.executable, "-P", "-c", KILLED, image, state_root, f"{prefix}-{number}"]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(place)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as caller:
            assert caller.stdout is not None
            caller.stdout.readline()
            time.sleep(0.05 + 0.03 * number)
            caller.send_signal(signal.SIGKILL)
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop devices")
    oci.prune(state_root=state_root)
    assert os.listdir(place) == []
    assert_nothing_left(state_root, prefix)


def test_a_failed_run_leaves_no_upper_layer(
    image: Path, state_root: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with pytest.raises(oci.StepError, match="cannot run"):
        oci.run(image, ["/missing"], state_root=state_root, container_id=prefix)
    assert os.listdir(place) == []
    assert_nothing_left(state_root, prefix)
