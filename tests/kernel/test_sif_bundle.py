"""Bundles from SIF images: mounted, used and gone."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime._native import lib
from ociruntime.engine.trees import remove_tree
from ociruntime.files import read_mounts
from ociruntime.image.sif import Architecture, Filesystem, PartitionKind, SifBuilder
from ociruntime.rootfs.bundles import BundleDirectory, is_mounted, locked
from ociruntime.store import StateStore, default_root

from ..support.fixture_types import Script
from ..support.places import REPO
from ..support.waiting import TIME_LIMIT, wait_until

RECORDS = Path(default_root(), ".bundles")

pytestmark = [pytest.mark.root, pytest.mark.sif]


def mounted(path: Path) -> list[str]:
    """Filesystem types on a mount point, the lowest first."""
    return [mount.fstype for mount in read_mounts() if mount.point == str(path)]


def contents(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


def command(state_root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=REPO)


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
        busybox_sif,
        ["sh", "-c", "echo x > /new && cat /new"],
        capture_output=True,
        text=True,
        state_root=state_root,
        container_id=prefix,
    )
    assert (result.returncode, result.stdout) == (0, "x\n"), result.stderr


def test_what_the_image_configuration_says(busybox_rootfs: Path, tmp_path: Path) -> None:
    config = {
        "Entrypoint": [""],
        "Cmd": ["id"],
        "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"org.example": "1"},
        "Volumes": {"/data": {}},
    }
    oci.build_sif(tmp_path / "x.sif", busybox_rootfs, oci_config=config)
    with oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b") as bundle:
        spec = bundle.spec
        assert spec.process is not None
        assert spec.process.args == ("id",)
        assert spec.annotations == {
            "org.opencontainers.image.stopSignal": "SIGQUIT",
            "org.opencontainers.image.exposedPorts": "80/tcp",
            "org.example": "1",
        }
        volume = spec.mount("/data")
        assert volume is not None
        assert volume.source == str(tmp_path / "b/volumes/0")


def squashfs_of(image: Path, path: Path) -> Path:
    """Write the root partition of an image to a file."""
    with oci.SifImage.open(image) as sif, path.open("wb") as file:
        assert sif.primary_partition is not None
        file.writelines(sif.chunks(sif.primary_partition))
    return path


def test_a_whole_image_configuration(busybox_sif: Path, tmp_path: Path, state_root: Path) -> None:
    """Some converters store the whole document as oci-config.json."""
    whole = {"os": "linux", "architecture": "amd64", "author": "somebody", "config": {"Cmd": ["id", "-u"], "StopSignal": "SIGQUIT"}}
    builder = SifBuilder()
    builder.add_partition(squashfs_of(busybox_sif, tmp_path / "root.squashfs"))
    builder.add_json(whole, name="oci-config.json")
    builder.write(tmp_path / "x.sif")
    assert oci.run(tmp_path / "x.sif", capture_output=True, state_root=state_root, check=True).stdout == b"0\n"
    with oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b") as bundle:
        assert bundle.spec.annotations == {
            "org.opencontainers.image.os": "linux",
            "org.opencontainers.image.architecture": "amd64",
            "org.opencontainers.image.author": "somebody",
            "org.opencontainers.image.stopSignal": "SIGQUIT",
        }


EXT3 = bytes(1028) + b"\2" + bytes(51) + b"\x53\xef" + bytes(34) + b"\4" + bytes(2048)
"""The superblock of an ext3 with two blocks and a journal."""

FOREIGN = Architecture.S390X if Architecture.host() is not Architecture.S390X else Architecture.ARM64


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("overlay", r"x\.sif: the image has a writable layer, whose files would be missing: use it with overlay='.*x\.sif'"),
        ("foreign", rf"x\.sif is an image for {FOREIGN.oci_name}, and this machine is {Architecture.host().oci_name}: .*qemu"),
        ("ext3", r"x\.sif: cannot be mounted by the kernel, Invalid argument"),
    ],
)
def test_what_is_not_supported(busybox_sif: Path, tmp_path: Path, state_root: Path, kind: str, message: str) -> None:
    root, builder, path = squashfs_of(busybox_sif, tmp_path / "root.squashfs"), SifBuilder(), tmp_path / "x.sif"
    match kind:
        case "ext3":
            builder.add_partition(EXT3, filesystem=Filesystem.EXT3)
        case "foreign":
            builder.add_partition(root, arch=FOREIGN)
        case "overlay":
            builder.add_partition(root)
            builder.add_partition(EXT3, kind=PartitionKind.OVERLAY, filesystem=Filesystem.EXT3)
    builder.write(path)
    for refused in (
        lambda: oci.run(path, ["true"], state_root=state_root),
        lambda: oci.Bundle.from_sif(path, tmp_path / "b"),
    ):
        with pytest.raises((oci.UnsupportedError, oci.ImageError), match=message):
            refused()
    done = command(state_root, "mount", path, tmp_path / "b")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not (tmp_path / "b").exists()
    assert oci.Container.list(state_root=state_root) == []


def test_data_partitions_are_ignored(busybox_sif: Path, tmp_path: Path, state_root: Path) -> None:
    builder = SifBuilder()
    builder.add_partition(b"data", kind=PartitionKind.DATA, filesystem=Filesystem.RAW)
    builder.add_partition(squashfs_of(busybox_sif, tmp_path / "root.squashfs"))
    builder.write(tmp_path / "x.sif")
    assert oci.run(tmp_path / "x.sif", ["true"], state_root=state_root).returncode == 0


def test_in_use_it_cannot_be_unmounted(busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b") as bundle:
        here = os.open(bundle.path / "rootfs/bin", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with pytest.raises(oci.BundleError, match="cannot be unmounted"):
                bundle.umount()
        finally:
            os.close(here)
        with oci.Container.run(prefix, bundle.with_args(["sleep", "100"]), state_root=state_root) as container:
            assert container.exec(["ls", "/bin/busybox"], capture_output=True).returncode == 0


def test_a_copy_of_the_mounts_that_goes_away(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b") as bundle:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        script = f"mount --bind {bundle.rootfs} {elsewhere} && echo mounted && read line"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "mounted\n"
            timer = threading.Timer(0.3, process.stdin.close)
            timer.start()
            bundle.umount()
            timer.join()
    assert not (tmp_path / "b").exists()


def test_the_directory_must_be_empty(busybox_sif: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/file").touch()
    with pytest.raises(oci.BundleError, match="not empty"):
        oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["file"]


def test_no_image_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "x.sif").write_bytes(b"\0" * 70000)
    with pytest.raises(oci.ImageError, match="not an image: it seems to be a file that begins with zeros"):
        oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_broken_squashfs_leaves_nothing(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.SifImage.open(busybox_sif) as image:
        primary = image.primary_partition
        assert primary is not None
        offset = primary.offset
    raw = bytearray(busybox_sif.read_bytes())
    raw[offset + 96 : offset + 4096] = b"\xff" * 4000
    raw[offset + 48 : offset + 96] = b"\xff" * 48  # where the tables begin
    (tmp_path / "x.sif").write_bytes(raw)
    with pytest.raises(
        (oci.ImageError, oci.HostError), match=r"x\.sif: cannot be mounted by the kernel, Invalid argument|input/output error"
    ):
        oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_spec_that_cannot_be_saved_leaves_nothing(busybox_sif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(oci.RuntimeSpec, "save", refuse)
    with pytest.raises(oci.HostError, match=r"cannot mount .*: no space left on device; "):
        oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["volumes", "overlay"])
def test_a_bundle_with_directories_of_the_same_names_is_left_alone(bundle: oci.Bundle, state_root: Path, name: str) -> None:
    (bundle.path / name).mkdir()
    (bundle.path / name / "precious").write_text("data")
    before = contents(bundle.path)
    with oci.Bundle.load(bundle.path) as loaded, pytest.raises(oci.BundleError, match="not a mounted image"):
        loaded.umount()
    for force in ((), ("--force",)):
        done = command(state_root, "umount", *force, bundle.path)
        assert (done.returncode, "not a mounted image" in done.stderr) == (1, True), done.stderr
    assert contents(bundle.path) == before


def test_a_copy_of_a_mounted_bundle_is_left_alone(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b"):
        shutil.copytree(tmp_path / "b", tmp_path / "copy", ignore=lambda path, names: ["rootfs"] if path.endswith("/b") else [])
        (tmp_path / "copy/volumes/precious").touch()
        with pytest.raises(oci.BundleError, match="not a mounted image"):
            oci.Bundle.load(tmp_path / "copy").umount()
    assert (tmp_path / "copy/volumes/precious").exists()


@pytest.mark.parametrize("birth_known", [True, False])
def test_the_record_does_not_fit_a_directory_that_took_the_inode(
    busybox_sif: Path, tmp_path: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch, birth_known: bool
) -> None:
    path = tmp_path / "b"
    if not birth_known:  # as on a filesystem that does not record it
        monkeypatch.setattr(BundleDirectory, "_birth", lambda directory: 0)
    bundle = oci.Bundle.from_sif(busybox_sif, path)
    assert is_mounted(path)
    for _ in ("overlay", "squashfs"):
        subprocess.run(["umount", path / "rootfs"], check=True)
    if birth_known:
        assert is_mounted(path), "unmounted by hand, there is still something to remove"
        with monkeypatch.context() as patch:  # the same device and inode, born later
            patch.setattr(BundleDirectory, "_birth", lambda directory: lib.oci_birth(directory.fd) + 1)
            assert not is_mounted(path)
            with bundle, pytest.raises(oci.BundleError, match="not a mounted image"):
                bundle.umount()
            assert (path / "overlay").is_dir()
        bundle.umount()
        assert not path.exists()
    else:
        assert not is_mounted(path)
        shutil.rmtree(path)
        oci.prune(state_root=state_root)
        assert not any(os.readlink(record).endswith(f" {path}") for record in RECORDS.iterdir()), "the record went with the bundle"


def test_a_renamed_bundle_is_unmounted(busybox_sif: Path, tmp_path: Path) -> None:
    oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    oci.Bundle.load(tmp_path / "c").umount()
    assert os.listdir(tmp_path) == []


def test_files_of_others_stay(busybox_sif: Path, tmp_path: Path) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b"):
        (tmp_path / "b/notes").write_text("mine")
    assert contents(tmp_path) == ["b", "b/notes"]


def test_a_mount_of_others_in_the_bundle_is_refused(busybox_sif: Path, tmp_path: Path) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").touch()
    for place in ("volumes", "rootfs", "rootfs/root"):
        subprocess.run(["mount", "--bind", tmp_path / "other", bundle.path / place], check=True)
        before = contents(bundle.path / "overlay")
        for force in (False, True):
            with pytest.raises(oci.BundleError, match=f"on {bundle.path / place} does not belong to the image"):
                bundle.umount(force=force)
        assert contents(bundle.path / "overlay") == before
        subprocess.run(["umount", bundle.path / place], check=True)
    bundle.umount()
    assert contents(tmp_path) == ["other", "other/precious"]


@pytest.mark.parametrize("status", ["created", "running", "paused"])
def test_a_container_keeps_its_bundle(busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str, status: str) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    try:
        with oci.Container.create(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root) as container:
            if status != "created":
                container.start()
                container.exec(["sh", "-c", "echo x > /written"])
            if status == "paused":
                container.pause()
            before = contents(bundle.path / "overlay")
            with pytest.raises(oci.BundleError, match=f"container '{prefix}' still uses it"):
                oci.Bundle.load(bundle.path).umount(state_root=state_root)
            with pytest.raises(
                oci.BundleError, match=rf"process {container.pid} \(\w+.*\) still uses it"
            ):  # of another state directory
                bundle.umount()
            done = command(state_root, "umount", bundle.path)
            assert (done.returncode, f"container '{prefix}' still uses it" in done.stderr) == (1, True), done.stderr
            assert mounted(bundle.path / "rootfs") == ["squashfs", "overlay"]
            assert contents(bundle.path / "overlay") == before
            assert container.status == status
    finally:
        bundle.umount(state_root=state_root)
    assert not bundle.path.exists()


@pytest.mark.parametrize("by_command", [True, False])
def test_force_stops_containers(busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str, by_command: bool) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    with (
        oci.Container.run(f"{prefix}-1", bundle.with_args(["sleep", "1000"]), state_root=state_root) as one,
        oci.Container.run(f"{prefix}-2", bundle.with_args(["sleep", "1000"]), state_root=state_root) as two,
    ):
        two.pause()
        if by_command:
            done = command(state_root, "umount", "--force", bundle.path)
            assert done.returncode == 0, done.stderr
        else:
            bundle.umount(force=True, state_root=state_root)
        assert not bundle.path.exists()
        assert (one.status, two.status) == (oci.Status.STOPPED, oci.Status.STOPPED)


def test_force_ends_an_operation_that_keeps_a_container_locked(
    busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ociruntime.lifecycle.delete._LOCK_TIMEOUT", 0.1)
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root) as container:
        locked_now, ended = threading.Event(), []

        def operate() -> None:
            with StateStore(state_root).entry(prefix).locked():
                locked_now.set()
                ended.extend(select.select([container.fileno()], [], [], TIME_LIMIT)[0])  # readable when the process has ended

        operation = threading.Thread(target=operate)
        operation.start()
        assert locked_now.wait(TIME_LIMIT)
        bundle.umount(force=True, state_root=state_root)
        operation.join()
        assert ended
        assert not bundle.path.exists()
        assert container.status == oci.Status.STOPPED


@pytest.mark.parametrize("writable", [True, False])
def test_layers_are_nosuid_and_nodev(busybox_sif: Path, tmp_path: Path, writable: bool) -> None:
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "b", writable=writable) as bundle:
        lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        layers = [set(fields[5].split(",")) for fields in lines if fields[4] == str(bundle.path / "rootfs")]
    assert len(layers) == 1 + writable
    assert all({"nosuid", "nodev"} <= options for options in layers), layers


@pytest.mark.parametrize("source", ["busybox_sif", "busybox_rootfs"])
def test_temporary_layers_are_nosuid_and_nodev(request: pytest.FixtureRequest, source: str, state_root: Path, prefix: str) -> None:
    image: Path = request.getfixturevalue(source)
    result = oci.run(
        image, ["cat", "/proc/self/mountinfo"], capture_output=True, text=True, state_root=state_root, container_id=prefix
    )
    (options,) = [fields[5] for fields in map(str.split, result.stdout.splitlines()) if fields[4] == "/"]
    assert {"nosuid", "nodev"} <= set(options.split(",")), options


def test_force_unmounts_under_processes(busybox_sif: Path, tmp_path: Path) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    with (bundle.path / "rootfs/bin/busybox").open("rb") as file:
        with pytest.raises(oci.BundleError, match=rf"process {os.getpid()} \(.*nothing has been removed"):
            bundle.umount()
        assert mounted(bundle.path / "rootfs") == ["squashfs", "overlay"]
        bundle.umount(force=True)
        assert file.read(4) == b"\x7fELF"
    assert contents(tmp_path) == []


def test_a_mount_in_another_place_keeps_the_bundle(busybox_sif: Path, tmp_path: Path) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    (tmp_path / "other").mkdir()
    for part in ("", "root"):
        subprocess.run(["mount", "--bind", bundle.path / "rootfs" / part, tmp_path / "other"], check=True)
        (tmp_path / "other/written").write_text("x")
        with pytest.raises(oci.BundleError, match="still uses it"):
            bundle.umount()
        assert (bundle.path / "overlay/upper" / part / "written").read_text() == "x"
        assert mounted(bundle.path / "rootfs") == ["squashfs", "overlay"], "it is as it was"
        subprocess.run(["umount", tmp_path / "other"], check=True)

    def unmounted() -> bool:
        with suppress(oci.BundleError):
            bundle.umount()
        return not bundle.path.exists()

    # A process of another test may have copied the mount namespace meanwhile, and with it the mount in the other place.
    wait_until(unmounted, "the end of such processes")


NAMES = ["a b", "a\nb", "a\\040b", "a:b,c=d", "a#b\t'\"", "a\rb", "\u00e9\u2028"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(busybox_sif: Path, tmp_path: Path, name: str, state_root: Path, prefix: str) -> None:
    path = tmp_path / name
    with oci.Bundle.from_sif(busybox_sif, path) as bundle:
        assert mounted(path / "rootfs") == ["squashfs", "overlay"]
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root) as container:
            assert container.exec(["sh", "-c", "echo x > /written"]).returncode == 0
            with pytest.raises(oci.BundleError, match="still uses it"):
                bundle.umount(state_root=state_root)
        assert (path / "overlay/upper/written").read_text() == "x\n"
    assert not path.exists()


@pytest.mark.parametrize("used", ["link/b", "last"])
def test_a_symbolic_link_in_the_path_of_the_bundle(busybox_sif: Path, tmp_path: Path, state_root: Path, used: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "last").symlink_to("real/b")
    for work in ("python", "command"):
        if work == "python":
            oci.Bundle.from_sif(busybox_sif, tmp_path / "link/b")
            oci.Bundle.load(tmp_path / used).umount()
        else:
            assert command(state_root, "mount", busybox_sif, tmp_path / "link/b").returncode == 0
            done = command(state_root, "umount", tmp_path / used)
            assert done.returncode == 0, done.stderr
        assert os.listdir(tmp_path / "real") == []


def test_a_symbolic_link_while_a_container_runs(busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "link/b") as bundle:
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root):
            with pytest.raises(oci.BundleError, match=f"container '{prefix}'"):
                oci.Bundle.load(tmp_path / "real/b").umount(state_root=state_root)
        assert mounted(tmp_path / "real/b/rootfs") == ["squashfs", "overlay"]


@pytest.mark.parametrize("source", ["busybox_sif", "busybox_rootfs"])
@pytest.mark.parametrize("name", ["tmp", *NAMES])
def test_any_temporary_directory(
    request: pytest.FixtureRequest, tmp_path: Path, source: str, name: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image: Path = request.getfixturevalue(source)
    (tmp_path / "real" / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "link" / name))
    result = oci.run(
        image,
        ["sh", "-c", "echo x > /new && cat /new"],
        capture_output=True,
        text=True,
        state_root=tmp_path / "link/state",
        container_id=prefix,
    )
    assert (result.returncode, result.stdout) == (0, "x\n"), result.stderr
    assert os.listdir(tmp_path / "real" / name) == []
    assert oci.Container.list(state_root=tmp_path / "link/state") == []


def test_an_upper_layer_that_cannot_be_removed_is_removed_later(
    busybox_sif: Path, tmp_path: Path, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "link"))

    def hold(*_: object) -> None:
        (created,) = (tmp_path / "real").iterdir()
        (created / "held").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", created / "held"], check=True)

    monkeypatch.setattr("ociruntime.lifecycle.create.warn", hold)
    with pytest.raises(oci.BundleError, match="/held: it is a mount point; unmount it"):
        oci.run(busybox_sif, ["sh", "-c", "echo x > /new"], capture_output=True, state_root=state_root, container_id=prefix)
    (created,) = (tmp_path / "real").iterdir()
    subprocess.run(["umount", created / "held"], check=True)
    oci.Container.load(prefix, state_root=state_root).delete(force=True)
    assert os.listdir(tmp_path / "real") == []


CRASH = """
import os, signal, sys
import ociruntime as oci

what, image, path, number = sys.argv[1:]
SYSTEM = {"posix", "fcntl", "_host", "_ociruntime"}
count = 0

def hook(frame, event, function):
    global count
    if event == "c_call" and (getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__) in SYSTEM:
        count += 1
        if count == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

if what == "umount":
    oci.Bundle.from_sif(image, path)
sys.setprofile(hook)
if what == "mount":
    oci.Bundle.from_sif(image, path)
sys.setprofile(None if what == "mount" else hook)
oci.Bundle.load(path).umount()
"""


def partial_records(path: Path) -> list[str]:
    records = Path(default_root(), ".bundles")
    found = []
    for name in os.listdir(records):
        try:
            found += [name] if name.endswith(".partial") and os.readlink(records / name).endswith(f" {path}") else []
        except FileNotFoundError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", ["mount", "umount"])
def test_killed_at_any_system_call(busybox_sif: Path, tmp_path: Path, state_root: Path, what: str, script: Script) -> None:
    """What a crash leaves goes with `prune`; a bundle that is whole goes with `umount`."""
    path, number, killed = tmp_path / "b", 1, 0
    while True:
        done = script(CRASH, what, busybox_sif, path, number, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        while partial_records(path):  # those of other tests prune too, and hold what they remove
            oci.prune(state_root=state_root)
        if is_mounted(path):
            oci.Bundle(path, config=None).umount()
        elif path.exists():
            assert contents(path) == []
            path.rmdir()
        assert mounted(path / "rootfs") == []
        # umount makes system calls for each process of the machine, so the steps grow on a machine with many.
        killed, number = killed + 1, number + 3 + number // 40
    assert killed >= 10
    assert not path.exists()


def test_prune_leaves_a_bundle_that_is_being_made(busybox_sif: Path, tmp_path: Path, state_root: Path) -> None:
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    with locked(bundle.path) as directory:
        record = directory.record()
        assert record is not None
        os.rename(record, f"{record}.partial")
        oci.prune(state_root=state_root)
        assert mounted(bundle.path / "rootfs") == ["squashfs", "overlay"]
        with pytest.raises(oci.BundleError, match="by another process"):
            bundle.umount()
    oci.prune(state_root=state_root)
    assert not bundle.path.exists()


def test_prune_beside_the_unmounting_of_a_renamed_bundle(
    busybox_sif: Path, tmp_path: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")

    def remove(path: str, *, parent: int) -> None:
        oci.prune(state_root=state_root)
        remove_tree(path, parent=parent)
        assert is_mounted(tmp_path / "c"), "the record goes last"

    monkeypatch.setattr("ociruntime.rootfs.bundles.remove_tree", remove)
    oci.Bundle.load(tmp_path / "c").umount()
    assert os.listdir(tmp_path) == []


def test_prune_beside_the_removal_of_a_partial_bundle(
    busybox_sif: Path, tmp_path: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process unmounts the bundle and removes its directory when `prune` has read its record."""
    bundle = oci.Bundle.from_sif(busybox_sif, tmp_path / "b")
    with locked(bundle.path) as directory:
        record = directory.record()
    assert record is not None

    def remove_first(path: str) -> AbstractContextManager[BundleDirectory]:
        if path == str(bundle.path) and bundle.path.exists():
            os.rename(f"{record}.partial", record)
            bundle.umount()
            os.symlink(content, f"{record}.partial")
        return locked(path)

    content = os.readlink(record)
    os.rename(record, f"{record}.partial")
    monkeypatch.setattr("ociruntime.rootfs.bundles.locked", remove_first)
    oci.prune(state_root=state_root)
    assert partial_records(bundle.path) == os.listdir(tmp_path) == []
