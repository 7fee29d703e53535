"""Images that programs serve by FUSE for a user: in namespaces of the programs, or on the host, with each helper present and absent.

The tests are those of a user who may open /dev/fuse. The last one runs them for root, as a user for whom it can be opened. Those in
which a program with a set-uid bit or another kernel makes a difference are for the virtual machine too.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.engine.filesystems import Programs
from ociruntime.ephemeral import close_images
from ociruntime.image.sif import Filesystem, SifBuilder

from ..support.images import SQUASHFS_TYPE, OciImage
from ..support.places import REPO, WALKTHROUGH, link_programs
from ..support.processes import find_processes, is_running
from ..support.waiting import TIME_LIMIT, run_async, wait_until

SERVERS = ("squashfuse", "fuse2fs", "erofsfuse", "fuse-overlayfs", "oci-init")


def _may_use_fuse() -> bool:
    return os.path.exists("/dev/fuse") and os.access("/dev/fuse", os.R_OK | os.W_OK)


for_users = [
    pytest.mark.skipif(os.geteuid() == 0, reason="for a user; test_as_a_user runs it"),
    pytest.mark.skipif(not _may_use_fuse(), reason="/dev/fuse cannot be opened"),
    pytest.mark.skipif(shutil.which("squashfuse") is None, reason="no squashfuse (Debian: squashfuse)"),
    pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs (Debian: squashfs-tools)"),
]


def user_test(function: Callable[..., None]) -> Callable[..., None]:
    for mark in for_users:
        function = mark(function)
    return function


Offer = Callable[..., Path]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Offer:
    """Makes the only directory of PATH, with some of the helpers and the programs of any host. Skips without one of them."""
    directory = tmp_path / "path"

    def make(*helpers: str) -> Path:
        directory.mkdir()
        for name in (*helpers, "sh", "cat", "unshare", "mksquashfs", "tar2sqfs"):
            found = shutil.which(name)
            if found is not None:
                (directory / name).symlink_to(found)
            elif name in helpers:
                pytest.skip(f"no {name}")
        monkeypatch.setenv("PATH", str(directory))
        return directory

    return make


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache, temporary directory and state directory of the test, and the proof that no program and no directory is left."""
    for name in ("cache", "tmp", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    if os.geteuid() == 0:
        return
    close_images()
    wait_until(lambda: not servers(), "the end of the programs")
    assert list((tmp_path / "tmp").glob("ociruntime-*")) == []  # `tempfile` leaves a file if it is killed while it looks for TMPDIR
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {tmp_path}/" in line]


@pytest.fixture
def image(busybox_rootfs: Path, tmp_path: Path) -> Path:
    oci.build_sif(tmp_path / "image.sif", busybox_rootfs, oci_config={"Cmd": ["sleep", "1000"]})
    return tmp_path / "image.sif"


@pytest.fixture
def layered(busybox_rootfs: Path, tmp_path: Path) -> Path:
    """An OCI-SIF file with two squashfs layers. The upper one removes /tmp and adds /upper."""
    change = tmp_path / "change"
    change.mkdir()
    (change / "upper").write_text("up\n")
    created = OciImage()
    parts = []
    for tree in (busybox_rootfs, change):
        file = tmp_path / f"{tree.name}.squashfs"
        subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
        parts.append((file.read_bytes(), SQUASHFS_TYPE))
    created.add(parts)
    return created.write_sif(tmp_path / "layered.sif")


def servers() -> list[int]:
    """Return the running programs of this user that serve filesystems, and the first processes of their pid namespaces."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.stat().st_uid == os.getuid() and (path / "comm").read_text().strip() in SERVERS and is_running(int(path.name)):
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def named(name: str) -> list[int]:
    found = []
    for pid in servers():
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                found.append(pid)
    return found


def output(image: Path | oci.Bundle, script: str = "echo out", **options: object) -> str:
    done = oci.run(image, ["sh", "-c", script], capture_output=True, text=True, check=True, **options)  # type: ignore[call-overload]
    return str(done.stdout)


def command(*args: object, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile("w+", dir="/var/tmp") as out, tempfile.TemporaryFile("w+", dir="/var/tmp") as err:
        words = [sys.executable, "-P", "-m", "ociruntime", *map(str, args)]  # a container would hold a pipe open
        found = subprocess.run(words, cwd=REPO, input=stdin, stdout=out, stderr=err, text=True, timeout=TIME_LIMIT, check=False)
        out.seek(0)
        err.seek(0)
        done = subprocess.CompletedProcess(words, found.returncode, out.read(), err.read())
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


# ---- which strategy, with which helpers ----


@pytest.mark.vm
@user_test
@pytest.mark.parametrize(
    ("helpers", "strategy"),
    [
        (("squashfuse",), "fuse, because only root mounts an image by the kernel"),
        (("squashfuse", "fusermount3", "unsquashfs"), "fuse, because only root mounts an image by the kernel"),
        (("unsquashfs",), "extraction, because FUSE cannot be used: no squashfuse in PATH (Debian: squashfuse)"),
    ],
)
def test_the_strategy_of_run(offer: Offer, image: Path, helpers: tuple[str, ...], strategy: str, tmp_path: Path) -> None:
    offer(*helpers)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert output(image, "touch /new && ls -d /new; stat -c '%u:%g' /bin/busybox") == "/new\n0:0\n"
    extracted = strategy.startswith("extraction")
    assert [str(item.message).partition(", because ")[2] for item in warned] == (
        [strategy.partition(", because ")[2]] if extracted else []
    )
    assert (tmp_path / "cache/ociruntime").exists() == extracted
    oci.prune()


@user_test
def test_the_plan_says_which_strategy_and_why(offer: Offer, image: Path, tmp_path: Path) -> None:
    offer("squashfuse", "unsquashfs")
    why = "only root mounts an image by the kernel; each container mounts the image, because there is no fusermount3 in PATH (Debian: fuse3)"
    with pytest.warns(oci.OCIRuntimeWarning, match="stays empty: there is no fusermount3"):
        bundle = oci.Bundle.from_image(image, tmp_path / "b")
    with bundle:
        plan = bundle.plan()
        assert plan.notes == (f"root filesystem by the strategy fuse, because {why}",)
        assert plan.explain().splitlines()[1] == plan.notes[0]
        assert plan.notes[0] in command("plan", "-b", bundle.path).stdout
        assert output(bundle) == "out\n"
    with oci.Bundle.from_sif(image, tmp_path / "b", strategy="extraction") as bundle:
        assert bundle.plan().notes == ("root filesystem by the strategy extraction",)
    oci.prune()


@user_test
def test_a_strategy_that_is_asked_for(offer: Offer, image: Path, tmp_path: Path) -> None:
    offer("squashfuse", "unsquashfs")
    assert output(image, strategy="extraction") == "out\n"
    assert named("squashfuse") == []
    assert len([name for name in os.listdir(tmp_path / "cache/ociruntime/images") if len(name) == 64]) == 1
    assert output(image, strategy="fuse") == "out\n"
    assert len(named("squashfuse")) == 1
    done = run_async(aio.run(image, ["echo", "x"], strategy="extraction", capture_output=True))
    assert done.stdout == b"x\n"
    with pytest.raises(oci.UnsupportedError, match="the strategy kernel cannot be used: only root mounts an image by the kernel"):
        oci.run(image, ["true"], strategy="kernel")
    with pytest.raises(ValueError, match="strategy is 'zip': one of kernel, fuse, extraction is needed"):
        oci.run(image, ["true"], strategy="zip")
    assert command("run", "--strategy", "fuse", image, "echo", "cli").stdout == "cli\n"
    failed = command("run", "--strategy", "kernel", image, "true", check=False)
    assert (failed.returncode, "the strategy kernel cannot be used" in failed.stderr) == (1, True)
    with oci.Bundle.from_image(image, tmp_path / "b", strategy="extraction") as bundle:
        with pytest.raises(ValueError, match="strategy say how an image is opened and mounted, and a bundle is given"):
            oci.run(bundle, ["true"], strategy="fuse")
        failed = command("run", "-b", bundle.path, "--strategy", "fuse", "c", check=False)
        assert "--strategy needs an image" in failed.stderr
    oci.prune()


@user_test
def test_nothing_that_can_be_used(offer: Offer, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer()
    monkeypatch.setitem(sys.modules, "PySquashfsImage", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for call in (lambda: oci.run(image, ["true"]), lambda: oci.Bundle.from_image(image, tmp_path / "b")):
        with pytest.raises(
            oci.UnsupportedError, match=r"no squashfuse .* no unsquashfs in PATH; install squashfuse where users may"
        ):
            call()
    assert not (tmp_path / "b").exists()


# ---- bundles ----


@pytest.mark.vm
@user_test
def test_a_bundle_without_fusermount3(offer: Offer, image: Path, tmp_path: Path, prefix: str) -> None:
    """Each container mounts the image, also where another process creates it. `ociruntime shell` looks inside."""
    offer("squashfuse")
    bundle = tmp_path / "b"
    done = command("mount", image, bundle)
    assert "rootfs stays empty: there is no fusermount3 in PATH (Debian: fuse3); 'ociruntime shell' with the bundle" in done.stderr
    assert os.listdir(bundle / "rootfs") == []
    wait_until(lambda: not servers(), "the end of the programs of a command that has ended")
    for name in (prefix, f"{prefix}-2"):
        command("create", "-b", bundle, name)
    assert len(named("squashfuse")) == 2
    for name in (prefix, f"{prefix}-2"):
        command("start", name)
    assert "bin\n" in command("shell", bundle, stdin="ls /\n").stdout
    assert f"container '{prefix}'" in command("umount", bundle, check=False).stderr
    for name in (prefix, f"{prefix}-2"):
        command("delete", "--force", name)
    wait_until(lambda: not servers(), "the end of the programs of containers that were deleted")
    command("umount", bundle)
    assert not bundle.exists()


@user_test
def test_an_image_that_changes_while_it_is_mounted(offer: Offer, image: Path, tmp_path: Path) -> None:
    """A process that has it open goes on with the image as it was. No other process mounts it."""
    offer("squashfuse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = oci.Bundle.from_image(image, tmp_path / "b")
    with bundle:
        os.utime(image, (1, 1))
        assert output(bundle) == "out\n"
        done = command("shell", tmp_path / "b", check=False)
        assert f"{image}: the image has changed since it was mounted; umount the bundle, and mount it again" in done.stderr
        image.unlink()
        done = command("shell", tmp_path / "b", check=False)
        assert f"{image}: the image can no longer be opened: no such file or directory" in done.stderr
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(Programs.find().nameless, reason="fusermount3 serves users with a name only")
@pytest.mark.vm
@user_test
@pytest.mark.parametrize("shown", [True, False], ids=["fuse-overlayfs", "no fuse-overlayfs"])
def test_a_bundle_with_layers(offer: Offer, layered: Path, tmp_path: Path, shown: bool) -> None:
    """With fuse-overlayfs `rootfs` shows the merged files."""
    offer("squashfuse", "fusermount3", *(["fuse-overlayfs"] if shown else []))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bundle = oci.Bundle.from_image(layered, tmp_path / "b")
    with bundle:
        files = os.listdir(bundle.path / "rootfs")
        assert ("upper" in files and "bin" in files) if shown else files == []
        assert bool(warned) != shown
        assert output(bundle, "cat /upper; touch /new; ls -d /new") == "up\n/new\n"
        assert output(bundle, "ls -d /new 2>/dev/null; echo fresh") == "fresh\n"
        if shown:
            assert (bundle.path / "rootfs/upper").read_text() == "up\n"
            with pytest.raises(OSError, match="Read-only"):
                (bundle.path / "rootfs/new").touch()
    assert not (tmp_path / "b").exists()


@pytest.mark.vm
@user_test
def test_layers_without_fusermount3(offer: Offer, layered: Path) -> None:
    offer("squashfuse")
    assert output(layered, "cat /upper; touch /new; ls -d /new") == "up\n/new\n"
    assert len(named("squashfuse")) == 2
    assert len(named("oci-init")) == 1


@pytest.mark.skipif("VMTEST" not in os.environ, reason="for the user of tests/vm; test_user_images.py has it for others")
@pytest.mark.vm
@user_test
@pytest.mark.parametrize(
    ("without", "runtime"),
    [((), True), (("fusermount3",), False), (("squashfuse",), False)],
    ids=["everything", "no fusermount3", "no squashfuse"],
)
def test_the_walk_through(without: tuple[str, ...], runtime: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo of README, which checks that nothing of it is left."""
    (tmp_path / "path").mkdir()
    link_programs(tmp_path / "path", without)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    if not runtime:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    with tempfile.TemporaryFile("w+") as shown:  # a container would hold a pipe open
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", WALKTHROUGH], stdin=subprocess.DEVNULL, stdout=shown, stderr=shown,
            timeout=3 * TIME_LIMIT, check=False,
        )  # fmt: skip
        shown.seek(0)
        text = shown.read()
    assert (done.returncode, text.endswith("\nDone.\n")) == (0, True), text
    oci.prune()


# ---- other filesystems ----


@pytest.mark.vm
@user_test
def test_an_ext_image(offer: Offer, busybox_rootfs: Path, tmp_path: Path) -> None:
    offer("fuse2fs")
    mkfs = shutil.which("mkfs.ext4", path="/sbin:/usr/sbin")
    if mkfs is None:
        pytest.skip("no mkfs.ext4 (Debian: e2fsprogs)")
    subprocess.run([mkfs, "-q", "-d", busybox_rootfs, tmp_path / "x.ext4", "8M"], check=True)
    assert output(tmp_path / "x.ext4", "touch /new; ls -d /new") == "/new\n"
    assert len(named("fuse2fs")) == 1
    assert output(tmp_path / "x.ext4", "touch /new; ls -d /new", strategy="extraction") == "/new\n"
    with open(tmp_path / "x.ext4", "r+b") as file:
        file.seek(1024 + 0x78)
        file.write(b"another name")  # in the superblock, which has a checksum
    with pytest.raises(oci.ImageError, match=r"cannot mount .*x.ext4: fuse2fs failed: .*checksum"):
        output(tmp_path / "x.ext4")
    oci.prune()


EROFS = """#!/bin/sh
# serves a squashfs in the place of an erofs
[ "$1 $2 $3" = "--offset=0 -o ro,nosuid,nodev" ] || exit 1
exec {squashfuse} -o "$3,uid=0,gid=0" {squashfs} "$5"
"""


@user_test
def test_an_erofs_image(offer: Offer, busybox_rootfs: Path, tmp_path: Path) -> None:
    """By a program in the place of erofsfuse, which Debian 12 does not have."""
    squashfs, squashfuse = tmp_path / "x.squashfs", shutil.which("squashfuse")
    subprocess.run(["mksquashfs", busybox_rootfs, squashfs, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    image = tmp_path / "x.erofs"
    superblock = struct.pack("<IIIB", 0xE0F5E1E2, 0, 0, 12).ljust(36, b"\0") + struct.pack("<I", 4)
    image.write_bytes((bytes(1024) + superblock).ljust(16 << 10, b"\0"))
    directory = offer()
    (directory / "erofsfuse").write_text(EROFS.format(squashfuse=squashfuse, squashfs=squashfs))
    (directory / "erofsfuse").chmod(stat.S_IRWXU)
    assert output(image) == "out\n"


@pytest.fixture
def erofs(busybox_rootfs: Path, tmp_path: Path) -> Path:
    """A SIF file with an erofs. Its files belong to root, except one."""
    mkfs = shutil.which("mkfs.erofs")
    if mkfs is None:
        pytest.skip("no mkfs.erofs (Debian: erofs-utils)")
    tree = tmp_path / "tree"
    shutil.copytree(busybox_rootfs, tree, symlinks=True)
    (tree / "foreign").write_text("foreign\n")
    subprocess.run([mkfs, "--all-root", tmp_path / "x.erofs", tree], check=True, stdout=subprocess.DEVNULL)
    content = bytearray((tmp_path / "x.erofs").read_bytes())
    with oci.Image.open(tmp_path / "x.erofs") as opened:
        (node,) = (route[-1][1][0] for route in [opened._view(1000, 1 << 30).find("/foreign")])
        inode = node.tree._inode(node.location)  # type: ignore[attr-defined]
    content[inode.attributes - 8 : inode.attributes - 4] = struct.pack("<HH", 33, 33)  # the owner in a small inode
    (tmp_path / "x.erofs").write_bytes(content)
    builder = SifBuilder()
    builder.add_partition(tmp_path / "x.erofs", filesystem=Filesystem.RAW)
    builder.write(tmp_path / "x.sif")
    return tmp_path / "x.sif"


@user_test
def test_an_erofs_that_is_extracted(offer: Offer, erofs: Path) -> None:
    offer()
    with pytest.warns(oci.OCIRuntimeWarning, match=r"is extracted, because FUSE cannot be used: no erofsfuse in PATH"):
        assert output(erofs, "rm -r /etc; touch /new; stat -c %u /foreign; ls -d /new") == "0\n/new\n"
    oci.prune()


@pytest.mark.vm
@user_test
def test_erofsfuse(offer: Offer, erofs: Path, tmp_path: Path) -> None:
    """The files belong to root, unless the image has another owner, who does not exist in the container."""
    offer("erofsfuse", "fusermount3")
    script = "touch /new; rm -r /etc; chmod 700 /bin; cat /foreign; stat -c %u:%g /foreign /bin; ls -d /new /etc 2>/dev/null || :"
    assert output(erofs, script) == "foreign\n65534:65534\n0:0\n/new\n"
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda number: output(erofs, f"test ! -e /new && echo {number} >/new && cat /new"), range(30)))
    assert found == [f"{number}\n" for number in range(30)]
    assert len(named("erofsfuse")) == 1
    with pytest.warns(oci.OCIRuntimeWarning, match="rootfs stays empty: erofsfuse shows the owners of the image"):
        bundle = oci.Bundle.from_image(erofs, tmp_path / "b")
    with bundle:
        assert os.listdir(bundle.path / "rootfs") == []
        with oci.Container.run("c", bundle.with_args(["sleep", "1000"]), state_root=tmp_path / "state") as container:
            for pid in named("erofsfuse"):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: named("erofsfuse") == [], "the end of erofsfuse")
            with pytest.raises(oci.StepError, match="Transport endpoint is not connected"):
                container.exec(["cat", "/etc/passwd"], check=True)
            assert output(bundle) == "out\n"
    assert not (tmp_path / "b").exists()


@user_test
def test_an_erofs_that_erofsfuse_refuses(offer: Offer, erofs: Path, tmp_path: Path) -> None:
    offer("erofsfuse")
    content = bytearray((tmp_path / "x.erofs").read_bytes())
    content[1024 + 80 : 1024 + 84] = b"\xff" * 4
    (tmp_path / "x.erofs").write_bytes(content)
    with pytest.raises(oci.UnsupportedError, match=r"cannot mount .*x\.erofs: erofsfuse failed: .*feature"):
        oci.run(tmp_path / "x.erofs", ["true"])
    assert erofs.exists()


# ---- programs that fail, and what is killed ----


@user_test
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no good' >&2; exit 3", "squashfuse failed: no good"),
        ("exit 3", "squashfuse failed: without a message"),
        ("kill -9 $$", "squashfuse was killed by signal 9"),
        ("exit 0", "squashfuse failed: without a message"),
    ],
)
def test_a_program_that_fails(offer: Offer, image: Path, tmp_path: Path, script: str, message: str) -> None:
    directory = offer()
    (directory / "squashfuse").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "squashfuse").chmod(stat.S_IRWXU)
    with pytest.raises(oci.UnsupportedError, match=f"cannot mount {image}: {message}"):
        oci.run(image, ["true"])
    with pytest.raises(oci.UnsupportedError, match=message):
        oci.Bundle.from_image(image, tmp_path / "b")
    assert not (tmp_path / "b").exists()


HANGING = "#!/bin/sh\n: >{begun}\nexec sleep 98765\n"


@user_test
def test_a_program_that_hangs(offer: Offer, image: Path, layered: Path, tmp_path: Path) -> None:
    """The time limit of a call covers it, and so does an interrupt, on the host too."""
    directory, begun = offer("sleep", "fusermount3"), tmp_path / "begun"
    (directory / "squashfuse").write_text(HANGING.format(begun=begun))
    (directory / "squashfuse").chmod(stat.S_IRWXU)
    begin = time.monotonic()
    with pytest.raises(oci.ProcessTimeout, match=r"'squashfuse .*image.sif' took longer than 1 s and was killed"):
        oci.run(image, ["true"], timeout=1)
    with pytest.raises(oci.ProcessTimeout, match=r"'squashfuse .*layered.sif' took longer than 1 s and was killed"):
        run_async(aio.run(layered, ["true"], timeout=1))
    assert time.monotonic() - begin < TIME_LIMIT
    for call in (lambda: oci.run(image, ["true"]), lambda: oci.Bundle.from_image(image, tmp_path / "b")):
        begun.unlink()

        def interrupt() -> None:
            wait_until(begun.exists, "the start of the program")
            os.kill(os.getpid(), signal.SIGINT)

        interrupter = Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        interrupter.join()
    assert not (tmp_path / "b").exists()
    wait_until(lambda: not any(map(is_running, find_processes("98765", "cmdline"))), "the end of the programs")


@user_test
def test_a_program_that_hangs_before_a_bundle_is_run(offer: Offer, image: Path, tmp_path: Path) -> None:
    """The containers of a bundle that another process has mounted start the program themselves."""
    directory = offer("squashfuse", "sleep")
    command("mount", image, tmp_path / "b")
    (directory / "squashfuse").unlink()
    (directory / "squashfuse").write_text(HANGING.format(begun=tmp_path / "begun"))
    (directory / "squashfuse").chmod(stat.S_IRWXU)
    with pytest.raises(oci.ProcessTimeout, match=r"'squashfuse .*image.sif' took longer than 1 s and was killed"):
        oci.run(tmp_path / "b", ["true"], timeout=1)
    command("umount", tmp_path / "b")


@pytest.mark.vm
@user_test
@pytest.mark.parametrize("victim", ["squashfuse", "oci-init"])
def test_a_program_that_is_killed(offer: Offer, image: Path, tmp_path: Path, victim: str) -> None:
    """A container that uses it is told so, and the next container is served anew."""
    offer("squashfuse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = oci.Bundle.from_image(image, tmp_path / "b")
    with bundle:
        with oci.Container.run("c", bundle.with_args(["sleep", "1000"]), state_root=tmp_path / "state") as container:
            assert container.exec(["echo", "x"], capture_output=True).stdout == b"x\n"
            (pid,) = [pid for pid in named(victim) if pid != container.pid]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: named("squashfuse") == [], "the end of squashfuse")
            with pytest.raises(
                oci.StepError, match=r"serves this filesystem by FUSE has ended.*create the container again .*(ENOTCONN|ESTALE)"
            ):
                container.exec(["cat", "/etc/passwd"], check=True)
            assert output(bundle) == "out\n"
            assert len(named("squashfuse")) == 1, "the bundle keeps it"
    assert not (tmp_path / "b").exists()


CALLER = """
import sys, ociruntime as oci, ociruntime.ephemeral, ociruntime.image
print("up", flush=True)
oci.run(sys.argv[1], ["sleep", "1000"], die_with_parent=True)
"""


@user_test
@pytest.mark.parametrize("delay", [0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.2, 1.0])
def test_a_caller_that_is_killed(offer: Offer, image: Path, tmp_path: Path, delay: float) -> None:
    """At any time, also while the program starts: nothing runs on."""
    offer("squashfuse")
    with subprocess.Popen([sys.executable, "-P", "-c", CALLER, image], cwd=REPO, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"up\n"
        time.sleep(delay)
        caller.kill()
    wait_until(lambda: not servers(), "the end of the programs")
    oci.prune()


@pytest.mark.vm
@user_test
def test_a_terminal_interrupts_no_program(offer: Offer, image: Path) -> None:
    offer("squashfuse")
    assert output(image) == "out\n"
    for pid in servers():
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)


@user_test
def test_no_mount_of_the_host_is_kept(offer: Offer, image: Path) -> None:
    """The programs see nothing but their filesystems, so what is mounted on the host can be unmounted there."""
    offer("squashfuse")
    assert output(image) == "out\n"
    for pid in servers():
        points = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
        assert points in (["/"], []), points


@pytest.mark.vm
@user_test
def test_fifty_at_once(offer: Offer, image: Path) -> None:
    """One program serves them all."""
    offer("squashfuse")
    script = "test ! -e /new && echo {0} >/new && cat /new"
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda number: output(image, script.format(number)), range(50)))
    assert found == [f"{number}\n" for number in range(50)]
    assert len(named("squashfuse")) == 1


@user_test
def test_a_forked_child(offer: Offer, image: Path) -> None:
    """The image that the parent has open serves the child too."""
    offer("squashfuse")
    assert output(image) == "out\n"
    child = os.fork()
    if child == 0:
        os._exit(0 if output(image) == "out\n" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert output(image) == "out\n"


# ---- for root: the tests of users ----

AS_USER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.users import run_tests_as_user
run_tests_as_user(sys.argv[2], sys.argv[3], "kernel/test_fuse.py", timeout=float(sys.argv[4]))
"""


@pytest.mark.root
@pytest.mark.skipif("VMTEST" in os.environ, reason="the user of that machine runs the tests itself")
def test_as_a_user(user_python: str, prefix: str, tmp_path: Path) -> None:
    """In a mount namespace in which users may open /dev/fuse."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    os.mknod(tmp_path / "fuse", 0o20666, os.makedev(10, 229))
    os.chmod(tmp_path / "fuse", 0o666)
    script = 'mount --bind "$1" /dev/fuse; shift; exec "$@"'
    command = [sys.executable, "-P", "-c", AS_USER, REPO, user_python, prefix, str(10 * TIME_LIMIT)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", tmp_path / "fuse", *command],
        capture_output=True, text=True, check=False, timeout=11 * TIME_LIMIT,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
