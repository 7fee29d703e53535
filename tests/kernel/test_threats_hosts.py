"""What other users of the host do to directories, pids and sockets of the runtime, and what an image file hides in attributes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.ephemeral import close_images
from ociruntime.files import start_time
from ociruntime.image.sif import SifBuilder

from ..support.fixture_types import Script
from ..support.images import COPIES, COPY_SIZE, HOSTILE, hostile_sif
from ..support.leftovers import assert_nothing_left, loops_below, mounts_below
from ..support.processes import is_running
from ..support.users import UID
from ..support.waiting import SLOWER, TIME_LIMIT, wait_until, within

pytestmark = pytest.mark.root


@pytest.mark.parametrize("replaced", ["link", "directory"])
def test_a_tmpdir_of_another_user(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: str
) -> None:
    """Its owner puts something else in the place of an upper layer: nothing outside of it is removed."""
    scratch, victim = tmp_path / "scratch", tmp_path / "victim"
    for path in (scratch, victim):
        path.mkdir()
    (victim / "kept").touch()
    os.chown(scratch, UID, UID)
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr("tempfile.tempdir", None)
    container = oci.Container.run(prefix, bundle.fresh(), state_root=state_root)
    (upper,) = scratch.iterdir()
    upper.rename(scratch / "moved")
    if replaced == "link":
        upper.symlink_to(victim)
    else:
        shutil.copytree(victim, upper)
        os.chown(upper, UID, UID)
    with pytest.raises((oci.OCIRuntimeError, OSError), match=upper.name):
        container.delete(force=True)
    assert (victim / "kept").exists()
    if replaced == "directory":
        assert (upper / "kept").exists()
        shutil.rmtree(upper)
    else:
        upper.unlink()
    (scratch / "moved").rename(upper)
    container.delete(force=True)
    assert list(scratch.iterdir()) == []
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize("how", ["kill", "delete", "pause", "exec", "prune"])
def test_a_pid_that_another_process_has_by_now(bundle: oci.Bundle, state_root: Path, prefix: str, how: str) -> None:
    """A pid counts with its start time only: the process that has it now is left alone."""
    container = oci.Container.run(prefix, bundle, state_root=state_root)
    container.kill("KILL")
    container.wait(TIME_LIMIT)
    with subprocess.Popen(["sleep", "1000"]) as other, ExitStack() as stack:
        stack.callback(other.kill)
        path = state_root / prefix / "state.json"
        document = json.loads(path.read_bytes())
        document.pop("exit_code", None)
        path.write_text(json.dumps({**document, "status": "running", "pid": other.pid, "pid_start": start_time(other.pid) + 1}))
        again = oci.Container.load(prefix, state_root=state_root)
        assert again.status is oci.Status.STOPPED
        calls = {"kill": lambda: again.kill("KILL"), "pause": again.pause, "exec": lambda: again.exec(["true"])}
        if how in calls:
            with pytest.raises(oci.WrongStatus):
                calls[how]()
        elif how == "prune":
            assert oci.prune(state_root=state_root) == (prefix,)
        if how != "prune":
            again.delete(force=True)
        assert is_running(other.pid)
    assert_nothing_left(state_root, prefix)


CONNECT = """
import socket, sys
become(int(sys.argv[1]))
for path in sys.argv[2:]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as peer:
            try:
                peer.connect(path)
            except PermissionError:
                continue
            print("connected to", path)
"""


def test_sockets_are_those_of_the_caller(bundle: oci.Bundle, state_root: Path, prefix: str, user_script: Script) -> None:
    """Another user can neither start a container nor attach to one, even where the directories above can be entered."""
    with oci.Container.create(prefix, bundle, state_root=state_root, supervise=True) as container:
        sockets = [path for path in (state_root / prefix).iterdir() if path.is_socket()]
        assert "start.sock" in {path.name for path in sockets}
        assert len(sockets) >= 2
        assert user_script(CONNECT, UID, *sockets).stdout == ""
        assert container.status is oci.Status.CREATED


@pytest.mark.parametrize("keyword", ["sync_socket", "console_socket"])
def test_a_socket_whose_listener_never_answers(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, keyword: str
) -> None:
    """It takes no connection and reads nothing: no call waits for it."""
    terminal = keyword == "console_socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as taken, within(30):
        listener.bind(str(tmp_path / "socket"))
        listener.listen(0)
        taken.connect(str(tmp_path / "socket"))  # the queue is full
        options = {keyword: tmp_path / "socket", "state_root": state_root}
        with suppress(oci.OCIRuntimeError, BlockingIOError):
            container = oci.Container.create(prefix, bundle.with_process(terminal=terminal), **options)
            container.start()
            container.delete(force=True)
    assert_nothing_left(state_root, prefix)


@pytest.mark.sif
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_sif_that_changes_while_it_is_mounted(
    busybox_sif: Path, state_root: Path, prefix: str, tmp_path: Path, damage: str
) -> None:
    """Programs fail; the host does not, and everything can be removed."""
    image = tmp_path / "changing.sif"
    shutil.copy(busybox_sif, image)
    bundle = oci.Bundle.from_sif(image, tmp_path / "mounted")
    size = image.stat().st_size
    if damage == "truncated":
        os.truncate(image, 32768)
    else:
        with image.open("r+b") as file:
            file.seek(32768)
            file.write(os.urandom(size - 32768))
    with within(60), suppress(oci.OCIRuntimeError):
        result = oci.run(bundle, ["ls", "-lR", "/bin"], capture_output=True, timeout=30, state_root=state_root, container_id=prefix)
        assert result.returncode in range(-64, 256)
    with pytest.raises((oci.ImageError, oci.OCIRuntimeError)):
        oci.run(image, ["true"], state_root=state_root, container_id=prefix)
    bundle.umount()
    assert mounts_below(tmp_path) == []
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device")
    assert_nothing_left(state_root, prefix)


def _image(rootfs: Path, path: Path) -> Path:
    """Make a SIF file with the attributes of a tree as they are, which `build_sif` leaves out."""
    squashfs = path.with_suffix(".squashfs")
    subprocess.run(["mksquashfs", rootfs, squashfs, "-quiet", "-no-progress", "-xattrs"], check=True, stdout=subprocess.DEVNULL)
    builder = SifBuilder()
    builder.add_partition(squashfs)
    builder.write(path)
    return path


@pytest.mark.sif
def test_attributes_of_overlays_lead_nowhere(busybox_rootfs: Path, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """``trusted.overlay.redirect`` of a layer names another directory, and ``metacopy`` another file's data: neither is followed."""
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    (rootfs / "secret").mkdir()
    (rootfs / "secret/file").write_text("another\n")
    for name in ("led", "led-up"):
        (rootfs / name).mkdir()
        (rootfs / name / "own").touch()
    (rootfs / "copied").write_text("own\n")
    try:
        os.setxattr(rootfs / "led", "trusted.overlay.redirect", b"/secret")
        os.setxattr(rootfs / "led-up", "trusted.overlay.redirect", b"/../../../../etc")
        os.setxattr(rootfs / "copied", "trusted.overlay.metacopy", b"")
        os.setxattr(rootfs / "copied", "trusted.overlay.redirect", b"/secret/file")
    except OSError as error:
        pytest.skip(f"the filesystem of the tests has no trusted attributes: {error}")
    image = _image(rootfs, tmp_path / "led.sif")
    program = ["sh", "-c", "ls /led /led-up; cat /copied 2>&1"]
    result = oci.run(image, program, capture_output=True, text=True, state_root=state_root, container_id=prefix)
    listing, _, content = result.stdout.partition("/led-up:\nown\n")
    assert listing == "/led:\nown\n\n"
    assert content == "own\n" or content.startswith("cat: ")  # the kernel refuses it
    assert_nothing_left(state_root, prefix)


@pytest.mark.sif
def test_file_capabilities_of_an_image_give_nothing(busybox_rootfs: Path, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """``security.capability`` of a file: a program of another user has no capability by it."""
    rootfs = tmp_path / "rootfs"
    shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
    everything = b"\x01\x00\x00\x02" + b"\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00"
    os.setxattr(rootfs / "bin/busybox", "security.capability", everything)
    image = _image(rootfs, tmp_path / "capable.sif")
    program = ["grep", "CapEff", "/proc/self/status"]
    result = oci.run(image, program, user=7, capture_output=True, text=True, state_root=state_root, container_id=prefix)
    assert result.stdout.split() == ["CapEff:", "0000000000000000"]


LOOK = "find /one -maxdepth 8 | wc -l; md5sum /one/file; cat /one/* | wc -c"
SEEN = {  # by the kernel
    "copies": f"{COPIES + 3}\n{{digest}}  /one/file\n{COPIES * COPY_SIZE + 9000}\n",
    "depth": "11\n{digest}  /one/file\n9000\n",
    "loops": "{digest}  /one/file\n9000\n",
    "overlong block": "3\n0\n",
    "overlong file": "3\n8192\n",
}


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of extracted images on a filesystem of 16 MiB."""
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", cache], check=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    yield cache / "ociruntime/images"
    subprocess.run(["umount", cache], check=True)


@pytest.mark.sif
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_squashfs_against_its_readers(
    busybox_rootfs: Path,
    state_root: Path,
    prefix: str,
    tmp_path: Path,
    small_cache: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mounted by the kernel, programs see errors in the damaged files, and only those. An extraction is whole or leaves nothing."""
    # unsquashfs meets the end of the disk itself: nothing looks at the free space before.
    monkeypatch.setattr("ociruntime.engine.filesystems._CHECK_INTERVAL", 60 * SLOWER)
    image = hostile_sif(kind, busybox_rootfs, tmp_path / "hostile.sif")
    options: dict[str, Any] = {"timeout": 60 * SLOWER, "state_root": state_root, "container_id": prefix}
    if kind == "inodes":
        with pytest.raises(oci.ImageError, match=f"{image}: cannot be mounted by the kernel, Invalid argument"):
            oci.run(image, ["true"], **options)
    else:
        result = oci.run(image, ["sh", "-c", LOOK], capture_output=True, text=True, **options)
        assert result.stdout.endswith(SEEN[kind].format(digest=hashlib.md5(b"x" * 9000).hexdigest()))
        assert ("Input/output error" in result.stderr) == kind.startswith("overlong")
    if shutil.which("unsquashfs") is not None:
        options["strategy"] = "extraction"
        if kind == "depth":
            assert oci.run(image, ["sh", "-c", LOOK], capture_output=True, text=True, **options).stdout == result.stdout
        else:
            with pytest.raises(oci.ImageError, match=f"{image}: unsquashfs failed: "):
                oci.run(image, ["true"], **options)
            (place,) = [path for path in small_cache.iterdir() if len(path.name) == 64]
            assert os.listdir(place) == ["lock"]
        oci.prune(state_root=state_root)
        assert os.listdir(small_cache) == ["known"]
    close_images()
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device")
    assert_nothing_left(state_root, prefix)
