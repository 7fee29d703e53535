"""Removal of what containers wrote: trees of any depth, name, mode and attribute, and nothing but them."""

from __future__ import annotations

import os
import resource
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.engine import trees
from ociruntime.engine.trees import remove_tree
from ociruntime.errors import BundleError

pytestmark = pytest.mark.root
DEPTH = 2000


def nest(top: Path, depth: int, mode: int = 0o755) -> int:
    """Make directories of mode ``mode`` in each other and return a descriptor of the innermost."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("a", 0o700, dir_fd=fd)
        below = os.open("a", os.O_RDONLY, dir_fd=fd)
        os.fchmod(fd, mode)
        os.close(fd)
        fd = below
    return fd


@pytest.mark.parametrize("depth", [0, 1, 5000])
def test_any_depth_with_few_descriptors(tmp_path: Path, depth: int) -> None:
    innermost = nest(tmp_path / "tree", depth)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=innermost))
    os.close(innermost)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
    try:
        remove_tree(tmp_path / "tree")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_more_directories_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ociruntime.engine.trees._BATCH", 3)
    for number in range(20):
        (tmp_path / f"tree/{number}/below/again").mkdir(parents=True)
        (tmp_path / f"tree/{number}/below/file").touch()
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


def test_what_is_missing(tmp_path: Path) -> None:
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "neither/tree")


def test_links_and_special_files_go_and_what_they_name_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    for place in (tree, tree / "below"):
        (place / "link").symlink_to(tmp_path / "kept")
        os.link(tmp_path / "kept/file", place / "hard")
        os.mkfifo(place / "fifo")
        (place / os.fsdecode(b"\xff\n")).touch()
    remove_tree(tree)
    assert (tmp_path / "kept/file").exists()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(BundleError, match="not a directory"):
        remove_tree(tmp_path / "link")
    assert (tmp_path / "kept/file").exists()


@pytest.mark.parametrize("kind", ["directory", "file", "top"])
def test_mounts_are_not_entered(tmp_path: Path, kind: str) -> None:
    """Bind mounts of the same filesystem, which have the same device number as the tree."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "below/directory").mkdir(parents=True)
    (tree / "below/file").touch()
    source, target = {
        "directory": (tmp_path / "kept", tree / "below/directory"),
        "file": (tmp_path / "kept/file", tree / "below/file"),
        "top": (tmp_path / "kept", tree),
    }[kind]
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        with pytest.raises(BundleError, match=f"{target}: it is a mount point; unmount it"):
            remove_tree(tree)
    finally:
        subprocess.run(["umount", target], check=True)
    assert (tmp_path / "kept/file").exists()
    remove_tree(tree)
    assert not tree.exists()


def test_a_mount_that_appears_meanwhile_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After rmdir(2) has found that a directory has entries, which refuses a mount point that is there already."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree, target = tmp_path / "tree", tmp_path / "tree/below"
    (target / "directory").mkdir(parents=True)
    enter = trees._Walk._enter

    def mount_and_enter(walk: trees._Walk, name: str) -> None:
        if name == "below":
            subprocess.run(["mount", "--bind", tmp_path / "kept", target], check=True)
        enter(walk, name)

    with monkeypatch.context() as patched:
        patched.setattr(trees._Walk, "_enter", mount_and_enter)
        try:
            with pytest.raises(BundleError, match=f"{target}: it is a mount point; unmount it"):
                remove_tree(tree)
        finally:
            subprocess.run(["umount", target], check=True)
    assert (tmp_path / "kept/file").exists()
    remove_tree(tree)
    assert not tree.exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize(("option", "word"), [("i", "immutable"), ("a", "append-only")])
def test_files_that_may_not_change_are_named(tmp_path: Path, kind: str, option: str, word: str) -> None:
    tree = tmp_path / "tree"
    (tree / "below/directory").mkdir(parents=True)
    (tree / "below/directory/file").touch()
    target = tree / "below/directory" / ("file" if kind == "file" else "")
    if subprocess.run(["chattr", f"+{option}", target], check=False, capture_output=True).returncode:
        pytest.skip(f"the filesystem of {tmp_path} has no {word} files")
    try:
        with pytest.raises(BundleError, match=f"{str(target).rstrip('/')}: it is {word}; .*'chattr -{option}'"):
            remove_tree(tree)
    finally:
        subprocess.run(["chattr", f"-{option}", target], check=True)
    remove_tree(tree)
    assert not tree.exists()


UNREADABLE = """
import os, sys
from ociruntime.engine import trees
from ociruntime.engine.trees import remove_tree
os.setgroups([]); os.setgid(54321); os.setuid(54321)
remove_tree(sys.argv[1] + "/a")
"""


def test_a_user_removes_directories_without_permissions(script: Callable[..., object]) -> None:
    with tempfile.TemporaryDirectory() as name:  # a user cannot reach pytest's own directories
        os.chown(name, 54321, 54321)
        os.close(nest(Path(name, "a"), 300, mode=0))
        for directory, _, _ in os.walk(Path(name, "a")):
            os.chown(directory, 54321, 54321)
        script(UNREADABLE, name)
        assert os.listdir(name) == []


def test_a_container_that_nests_directories(bundle: oci.Bundle, busybox_sif: Path, busybox_rootfs: Path, state_root: Path,
                                            prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    deep = f"i=0; while [ $i -lt {DEPTH} ]; do mkdir a; cd -P a 2>/dev/null || cd a; i=$((i+1)); done; echo $i"
    for image in (busybox_sif, busybox_rootfs):
        result = oci.run(image, ["sh", "-c", deep], state_root=state_root, container_id=prefix, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    assert [name for name in os.listdir(tmp_path) if name.startswith("ociruntime-")] == []
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "mounted") as mounted:
        os.close(nest(mounted.rootfs / "deep", DEPTH))
    assert not (tmp_path / "mounted").exists()


@pytest.mark.parametrize("depth", [DEPTH, 3000])
def test_volumes_of_many_levels(busybox_rootfs: Path, state_root: Path, prefix: str, tmp_path: Path, depth: int,
                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A path that the kernel takes works; a longer one is refused before anything is made."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    volume = "/a" * depth
    oci.build_sif(tmp_path / "x.sif", busybox_rootfs, oci_config={"Volumes": {volume: {}}, "Cmd": ["true"]})
    before = sorted(os.listdir(tmp_path))
    if 2 * depth < 4096:
        assert oci.run(tmp_path / "x.sif", state_root=state_root, container_id=prefix).returncode == 0
    else:
        with pytest.raises(oci.OCIRuntimeError, match="too long"):
            oci.run(tmp_path / "x.sif", state_root=state_root, container_id=prefix)
    assert sorted(set(os.listdir(tmp_path)) - {"state"}) == before
    assert [name for name in os.listdir(state_root) if name not in (".runs", ".seccomp")] == []
