"""Bundles from SIF images: mounted, used and gone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = [pytest.mark.root, pytest.mark.sif]


def mounted(path: Path) -> list[str]:
    """Filesystem types on a mount point, the lowest first."""
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        rows = [line.split() for line in table]
    return [row[row.index("-") + 1] for row in rows if row[4] == str(path)]


@pytest.mark.parametrize("writable", [True, False])
def test_mounted_and_gone(busybox_sif: Path, tmp_path: Path, writable: bool) -> None:
    path = tmp_path / "b"
    bundle = oci.Bundle.from_sif(busybox_sif, path, writable=writable)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert mounted(path / "rootfs") == (["squashfs", "overlay"] if writable else ["squashfs"])
        assert (path / "rootfs/bin/busybox").is_file()
        assert json.loads((path / "config.json").read_text())["ociVersion"]
        if writable:
            (path / "rootfs/new").write_text("x")
            assert (path / "overlay/upper/new").read_text() == "x"
        else:
            with pytest.raises(OSError, match="Read-only"):
                (path / "rootfs/new").write_text("x")
    finally:
        bundle.umount()
    assert not path.exists()
    assert mounted(path / "rootfs") == []
    with pytest.raises(oci.BundleError):
        bundle.umount()


def test_findmnt_agrees(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b") as bundle:
        shown = subprocess.run(
            ["findmnt", "-n", "-o", "FSTYPE", "-R", bundle.path / "rootfs"], capture_output=True, text=True, check=True
        ).stdout
        assert sorted(shown.split()) in (["overlay"], ["overlay", "squashfs"])
        assert "overlay" in shown
    assert subprocess.run(["findmnt", "-n", tmp_path / "b/rootfs"], capture_output=True, check=False).returncode == 1


def test_a_bundle_that_another_process_mounted(busybox_sif: Path, tmp_path: Path) -> None:
    oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    oci.Bundle.load(tmp_path / "b").umount()
    assert not (tmp_path / "b").exists()


def test_run_from_the_image(busybox_sif: Path, state_root: Path, prefix: str) -> None:
    result = oci.run(
        busybox_sif, ["sh", "-c", "echo x > /new && cat /new"], capture_output=True, text=True, root=state_root, container_id=prefix
    )
    assert (result.returncode, result.stdout) == (0, "x\n"), result.stderr


def test_in_use_it_cannot_be_unmounted(busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b") as bundle:
        here = os.open(bundle.path / "rootfs/bin", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with pytest.raises(oci.BundleError, match="cannot be unmounted"):
                bundle.umount()
        finally:
            os.close(here)
        with oci.Container.run(prefix, bundle.with_args(["sleep", "100"]), root=state_root) as container:
            assert container.exec(["ls", "/bin/busybox"], capture_output=True).returncode == 0


def test_the_directory_must_be_empty(busybox_sif: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/file").touch()
    with pytest.raises(oci.BundleError, match="not empty"):
        oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["file"]


def test_no_image_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "x.sif").write_bytes(b"\0" * 70000)
    with pytest.raises(oci.SifError):
        oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_broken_squashfs_leaves_nothing(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.SifImage.open(busybox_sif) as image:
        primary = image.primary_partition
        assert primary is not None
        offset = primary.offset
    raw = bytearray(busybox_sif.read_bytes())
    raw[offset : offset + 4096] = b"\xff" * 4096
    (tmp_path / "x.sif").write_bytes(raw)
    with pytest.raises(OSError, match="SQUASHFS superblock"):
        oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_spec_that_cannot_be_saved_leaves_nothing(busybox_sif: Path, tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        oci.Bundle.from_sif(busybox_sif, tmp_path / "b", spec=object())  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()
