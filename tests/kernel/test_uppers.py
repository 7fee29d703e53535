"""The upper layers of containers: whose they are, where they are, and what is left of them and of the mounts of images below them."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import aio, ephemeral
from ociruntime.image.sif import Filesystem, PartitionKind, SifBuilder

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.leftovers import assert_nothing_left, loops_below, mounts_below
from ..support.places import REPO
from ..support.users import with_user_namespace
from ..support.waiting import run_async, wait_until

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
    oci.close_images()
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop device")


def test_the_file_of_the_image_itself_can_be_bound(image: Path, look: Look) -> None:
    """It is not the root filesystem of the container, which has no path on the host."""
    assert look(image, "stat -c '%F %s' /data", mounts=[f"{image}:/data:ro"]) == f"regular file {image.stat().st_size}\n"


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
    for number in range(ephemeral._MAX_IMAGES + 2):
        shutil.copy(image, tmp_path / f"{number}.sif")
        look(tmp_path / f"{number}.sif", "true")
    wait_until(lambda: len(loops_below(tmp_path)) == ephemeral._MAX_IMAGES, "the end of the oldest loop devices")


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


def test_many_at_once(image: Path, state_root: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))

    def run(number: int) -> str:
        overlay = (None, "tmpfs", "none")[number % 3]
        script = ["sh", "-c", "echo x >>/new; cat /new"]
        name = f"{prefix}-{number}"
        return oci.run(
            image, script, capture_output=True, text=True, overlay=overlay, container_id=name, state_root=state_root
        ).stdout

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(run, range(50)))
    assert results == [("x\n", "x\n", "")[number % 3] for number in range(50)]
    assert len(loops_below(tmp_path)) == 1
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


# ---- choices of upper layers ----


def test_memory(image: Path, look: Look) -> None:
    script = "echo x >>/new; cat /new; dd if=/dev/zero of=/big bs=1M count=6 2>&1 | head -1; stat -c %a /"
    for _ in range(2):
        assert look(image, script, overlay="tmpfs:size=4M") == "x\ndd: error writing '/big': No space left on device\n755\n"
    assert look(image, "echo x >>/new; cat /new; rm -r /etc; mkdir /etc; ls /etc", overlay="tmpfs") == "x\n"


def test_a_directory_is_kept(image: Path, look: Look, tmp_path: Path) -> None:
    kept = tmp_path / "kept, a:b"
    kept.mkdir()
    assert look(image, "echo x >>/new; rm /etc/passwd; cat /new", overlay=kept) == "x\n"
    assert (kept / "upper/new").read_text() == "x\n"
    assert look(image, "echo x >>/new; cat /new; ls /etc", overlay=kept) == "x\nx\n"
    assert sorted(os.listdir(kept)) == ["upper", "work"]


def test_a_filesystem_in_a_file_is_kept(image: Path, look: Look, tmp_path: Path) -> None:
    kept = tmp_path / "kept.img"
    make_ext3(kept)
    for expected in "x\n", "x\nx\n", "x\nx\nx\n":
        assert look(image, "echo x >>/new; cat /new", overlay=kept) == expected
    wait_until(lambda: len(loops_below(tmp_path)) == 1, "the end of the loop device of the upper layer")


def make_ext3(path: Path) -> None:
    if shutil.which("mkfs.ext3") is None:
        pytest.skip("no mkfs.ext3 (Debian: e2fsprogs)")
    with path.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext3", "-q", "-F", path], check=True)


def make_squashfs(path: Path, **files: str) -> None:
    tree = path.with_suffix(".tree")
    tree.mkdir()
    for name, text in files.items():
        (tree / name).write_text(text)
    subprocess.run(["mksquashfs", tree, path, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)


def test_the_overlay_in_a_sif_file(image: Path, look: Look, tmp_path: Path, state_root: Path) -> None:
    """It is kept in the image. Without it the image would not be complete, so it is not used without it."""
    filesystem = tmp_path / "overlay.img"
    make_ext3(filesystem)
    builder = SifBuilder()
    with oci.SifImage.open(image) as opened:
        root = opened.primary_partition
        assert root is not None
        builder.add_partition(opened.read(root, limit=1 << 30))
    builder.add_partition(filesystem.read_bytes(), kind=PartitionKind.OVERLAY, filesystem=Filesystem.EXT3)
    image = tmp_path / "writable.sif"
    builder.write(image)
    (tmp_path / "link.sif").symlink_to(image)
    for overlay, expected in (
        (image, "x\n"),
        (tmp_path / "link.sif", "x\nx\n"),
        (f"{image}:ro", "x\nx\nx\n"),
        (f"{image}:ro", "x\nx\nx\n"),
    ):
        assert look(image, "echo x >>/new; cat /new", overlay=overlay) == expected
    with pytest.raises(oci.UnsupportedError, match=r"has a writable layer, .* use it with overlay="):
        oci.run(image, ["true"], state_root=state_root)


def test_a_read_only_root_with_new_mount_points(image: Path, look: Look, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    script = "touch /new 2>&1 | sed 's/.*: //'; touch /made/here/x && ls /made/here"
    assert look(image, script, overlay="none", mounts=[f"{tmp_path}/data:/made/here"]) == "Read-only file system\nx\n"


def test_only_one_container_at_a_time_uses_what_is_kept(
    image: Path, look: Look, tmp_path: Path, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ociruntime.rootfs.uppers._PATIENCE", 0.1)
    directory, file = tmp_path / "kept", tmp_path / "kept.img"
    directory.mkdir()
    make_ext3(file)
    with oci.Bundle.from_sif(image, tmp_path / "bundle") as bundle:
        for number, (kept, name) in enumerate(((directory, f"container '{prefix}-0'"), (file, "another container"))):
            used = bundle.with_args(["sleep", "1000"]).fresh(overlay=kept)
            with oci.Container.run(f"{prefix}-{number}", used, state_root=state_root) as container:
                for _ in range(2):
                    with pytest.raises(oci.BundleError, match=rf"overlay {kept}: {name} uses it"):
                        look(bundle, "true", overlay=kept)
                container.kill("KILL")
                container.wait()
                wait_until(lambda: look(bundle, "echo x", overlay=kept) == "x\n", "the use of the layer of a stopped container")  # noqa: B023
    assert sorted(os.listdir(directory)) == ["upper", "work"]


@pytest.mark.parametrize(
    ("overlay", "error", "message"),
    [
        ("x.sqfs", oci.ImageError, r"overlay .*/x\.sqfs: a squashfs cannot be written to; give it read-only, as FILE:ro"),
        ("missing", oci.BundleError, "overlay .*/missing: no such file or directory; make a directory there"),
        ("text", oci.ImageError, "overlay .*/text: neither a directory nor a file with an ext filesystem: .* a text file"),
        ("image.sif", oci.ImageError, r"overlay .*/image\.sif: it has no ext filesystem for an upper layer"),
        ("nested/kept", oci.StepError, r"its filesystem cannot have an upper layer .* overlay='tmpfs'"),
    ],
)
def test_what_cannot_be_an_upper_layer(
    image: Path, state_root: Path, prefix: str, tmp_path: Path, overlay: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "text").write_text("text\n")
    make_squashfs(tmp_path / "x.sqfs", text="x\n")
    for name in "nested", "upper", "work":
        (tmp_path / name).mkdir()
    options = f"lowerdir=/usr/share/misc,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / "nested"], check=True)
    try:
        (tmp_path / "nested/kept").mkdir()
        with pytest.raises(error, match=message):
            oci.run(image, ["true"], overlay=tmp_path / overlay, state_root=state_root, container_id=prefix)
    finally:
        subprocess.run(["umount", tmp_path / "nested"], check=True)
    assert_nothing_left(state_root, prefix)


# ---- bundles ----


def test_containers_of_a_fresh_bundle_do_not_see_each_other(
    image: Path, look: Look, tmp_path: Path, state_root: Path, prefix: str
) -> None:
    with oci.Bundle.from_sif(image, tmp_path / "bundle") as bundle:
        look(bundle, "echo shared >/new")
        fresh = bundle.with_args(["sleep", "1000"]).fresh()
        names = (f"{prefix}-1", f"{prefix}-2")
        one, two = (oci.Container.run(name, fresh, state_root=state_root) for name in names)
        with one, two:
            for container in one, two:
                done = container.exec(["sh", "-c", "echo x >>/new; cat /new"], capture_output=True, text=True)
                assert done.stdout == "x\n"
            with pytest.raises(oci.BundleError, match=rf"container '{prefix}-1', container '{prefix}-2' still uses it"):
                bundle.umount(state_root=state_root)
        assert look(bundle, "cat /new") == "shared\n"
        assert look(pickle.loads(pickle.dumps(bundle.fresh(overlay="tmpfs"))), "cat /new; echo $?").endswith("1\n")
        assert "ociruntime-" not in " ".join(os.listdir(tmp_path / "bundle/overlay"))
        first, second = (bundle.fresh().plan(container_id="c").to_json() for _ in range(2))
        assert first == second


def test_a_bundle_directory_stays_as_it_is(make_bundle: MakeBundle, look: Look) -> None:
    bundle = make_bundle()
    assert look(bundle.fresh(), "echo x >>/new; rm -r /etc; cat /new") == "x\n"
    assert look(bundle.path, "echo x >>/new; cat /new", overlay="tmpfs") == "x\n"
    assert not (bundle.rootfs / "new").exists()
    assert (bundle.rootfs / "etc/passwd").exists()


def test_a_user_namespace_of_root(image: Path, look: Look, tmp_path: Path) -> None:
    """The overlay is mounted with the rights of root of the host, in a mount namespace aside, as before the container has its own."""
    with oci.Bundle.from_sif(image, tmp_path / "bundle") as bundle:
        mapped = oci.Bundle(bundle.path, config=with_user_namespace(bundle.spec).to_json().encode())
        assert (
            look(mapped.fresh(), "id -u; cat /etc/passwd >/dev/null; head -c 1 /proc/self/uid_map; ls /new 2>&1 | wc -l").split()[0]
            == "0"
        )
    assert mounts_below(tmp_path) == []


def test_shared_propagation(image: Path, look: Look, tmp_path: Path) -> None:
    """Where the host sees the mounts of the container, it does not see those of its layers."""
    with oci.Bundle.from_sif(image, tmp_path / "bundle") as bundle:
        linux = bundle.spec.linux
        assert linux is not None
        spec = bundle.spec.evolve(linux=linux.evolve(rootfs_propagation="rshared"))
        shared = oci.Bundle(bundle.path, config=spec.to_json().encode())
        for overlay in None, "tmpfs":
            assert look(shared.fresh(overlay=overlay), "echo x >>/new; cat /new") == "x\n"
    assert [mount for mount in mounts_below(Path("/")) if mount == "/"] == []


def test_asyncio(image: Path, state_root: Path) -> None:
    async def main() -> list[str]:
        runs = (
            aio.run(
                image, ["sh", "-c", "echo x >>/new; cat /new"], text=True, capture_output=True, overlay=where, state_root=state_root
            )
            for where in (None, "tmpfs", "tmpfs:size=1M")
        )
        return [result.stdout for result in await asyncio.gather(*runs)]

    assert run_async(main()) == ["x\n"] * 3


def test_the_command_line(image: Path, tmp_path: Path, command: Command) -> None:
    subprocess.run(command("mount", image, tmp_path / "bundle"), check=True)
    (tmp_path / "kept").mkdir()
    try:
        script = ["sh", "-c", "echo x >>/new; cat /new"]
        spec = oci.RuntimeSpec.load((tmp_path / "bundle/config.json").read_bytes())
        assert spec.process is not None
        oci.Bundle.load(tmp_path / "bundle").spec = spec.evolve(process=spec.process.evolve(args=tuple(script)))
        for overlay, expected in (("tmpfs", "x\n"), (tmp_path / "kept", "x\n"), (tmp_path / "kept", "x\nx\n")):
            done = subprocess.run(
                command("run", "-b", tmp_path / "bundle", "--overlay", overlay, "c"), capture_output=True, text=True, check=True
            )
            assert done.stdout == expected
        failed = subprocess.run(
            command("run", "-b", tmp_path / "bundle", "--overlay", "/missing", "c"), capture_output=True, text=True
        )
        assert failed.returncode != 0
        assert "overlay /missing: no such file or directory; make a directory there" in failed.stderr
    finally:
        subprocess.run(command("umount", tmp_path / "bundle"), check=True)


def test_a_mounted_bundle_with_an_upper_layer(image: Path, look: Look, tmp_path: Path, state_root: Path, prefix: str) -> None:
    """Each container mounts it, also in another process. The root filesystem of the bundle shows the image."""
    kept, path, count = tmp_path / "kept, a;b", tmp_path / "bundle", "echo x >>/new; cat /new | wc -l"
    kept.mkdir()
    for overlay, expected in (("tmpfs:size=1M", "1 1"), (kept, "1 2"), (kept, "3 4"), ("none", "0 0")):
        with oci.Bundle.from_sif(image, path, overlay=overlay) as bundle:
            assert f"{look(bundle, count).strip()} {look(path, count).strip()}" == expected
            assert look(bundle.fresh(), count) == ("0\n" if overlay == "none" else "1\n")
            assert "etc" in os.listdir(path / "rootfs")
            used = bundle.with_args(["sleep", "1000"])
            with oci.Container.run(prefix, used, state_root=state_root):
                with pytest.raises(oci.BundleError, match=rf"container '{prefix}' still uses it"):
                    bundle.umount(state_root=state_root)
        assert not path.exists()
    assert sorted(os.listdir(kept)) == ["upper", "work"]
    with pytest.raises(oci.BundleError, match="overlay /missing: no such file or directory"):
        oci.Bundle.from_image(image, path, overlay="/missing")
    with pytest.raises(ValueError, match="writable=False conflicts with overlay"):
        oci.Bundle.from_image(image, path, overlay="tmpfs", writable=False)
    assert not path.exists()


def test_mount_with_an_upper_layer_by_the_command_line(image: Path, tmp_path: Path, command: Command, look: Look) -> None:
    subprocess.run(command("mount", "--overlay", "tmpfs", image, tmp_path / "bundle"), check=True)
    try:
        for _ in range(2):
            assert look(tmp_path / "bundle", "echo x >>/new; cat /new") == "x\n"
    finally:
        subprocess.run(command("umount", tmp_path / "bundle"), check=True)


def test_a_shell_sees_what_containers_of_its_bundle_see(image: Path, tmp_path: Path, command: Command) -> None:
    """What it writes is kept in an overlay that the caller has chosen, and otherwise removed."""

    def call(name: str, *args: object, script: str) -> str:
        done = subprocess.run(command(name, *args), input=script, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    bundle, script = tmp_path / "bundle", "cat /new; echo more >>/new; touch /other"
    (tmp_path / "kept").mkdir()
    for options, seen in (((), "written\n"), (("--overlay", tmp_path / "kept"), "written\nmore\n"), (("--overlay", "tmpfs"), "")):
        call("mount", *options, image, bundle, script="")
        try:
            call("exec", f"{bundle}/", "sh", "-c", "echo written >/new", script="")
            first = call("shell", bundle, script=script.replace("cat /new", "cat /new || true"))
            assert call("shell", bundle, script="cat /new || true") == seen
            assert first == ("written\n" if seen else "")
            assert call("shell", "--overlay", "tmpfs", bundle, script="ls /new || true") == ("" if options else "/new\n")
            assert (bundle / "rootfs/new").exists() == (not options)
            assert not (bundle / "rootfs/other").exists()
        finally:
            call("umount", bundle, script="")
    assert (tmp_path / "kept/upper/other").exists()
    assert mounts_below(tmp_path) == []


# ---- a kept upper layer that is used read-only ----


def test_a_kept_upper_layer_below_others(image: Path, look: Look, tmp_path: Path, state_root: Path, prefix: str) -> None:
    """Containers see what is kept, and change nothing of it; they do not use it while one writes to it."""
    kept, path = tmp_path / "kept", tmp_path / "bundle"
    kept.mkdir()
    look(image, "echo kept >/new; mkdir -p /d/e; rm /etc/passwd; rm -r /root; mkdir /root; mv /d /moved", overlay=kept)
    script = "cat /new; ls /etc /root /moved; echo x >/new; rm -r /moved; touch /etc/passwd"
    expected = "kept\n/etc:\n\n/moved:\ne\n\n/root:\n"
    for source in (image, image):
        assert look(source, script, overlay=f"{kept}:ro") == expected
    with oci.Bundle.from_image(image, path, overlay=f"{kept}:ro") as bundle:
        assert look(bundle, script) == look(path, script) == expected
        assert look(pickle.loads(pickle.dumps(bundle.fresh(overlay=f"{kept}:ro"))), script) == expected
        assert look(bundle.fresh(overlay=f"{kept}:ro").fresh(overlay="tmpfs"), "ls /new 2>&1 || true").startswith("ls: ")
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root):
            assert look(bundle, script) == expected
    with oci.Bundle.from_image(image, path, overlay=kept) as bundle:
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root):
            with pytest.raises(oci.BundleError, match=rf"kept: container '{prefix}' uses it; end it, or give another directory"):
                look(image, "true", overlay=f"{kept}:ro")
    assert (kept / "upper/new").read_text() == "kept\n"
    assert sorted(os.listdir(kept)) == ["upper", "work"]
    for overlay, error, message in (
        (f"{tmp_path}/missing:ro", oci.BundleError, "missing:ro: no such file or directory; give a directory, or a file with"),
        (f"{image}:ro", oci.ImageError, r"image\.sif:ro: it has no filesystem for a layer; give a directory"),
        (f"{kept}:ro:ro", ValueError, "a path that ends with ':ro' cannot be used; rename it"),
    ):
        with pytest.raises(error, match=message):
            look(image, "true", overlay=overlay)
    assert oci.Container.list(state_root=state_root) == []


# ---- several layers ----


@pytest.fixture
def parts(image: Path, look: Look, tmp_path: Path) -> Path:
    """A directory with layers of each kind: a plain directory, a kept one, a squashfs and an ext3. All have ``/name``."""
    place = tmp_path / "parts"
    (place / "plain").mkdir(parents=True)
    (place / "plain/name").write_text("plain\n")
    (place / "plain/plain").touch()
    (place / "kept").mkdir()
    look(image, "echo kept >/name; touch /kept; rm /etc/passwd", overlay=place / "kept")
    make_squashfs(place / "x.sqfs", name="squashfs\n", squashfs="")
    make_ext3(place / "x.img")
    look(image, "echo ext >/name; touch /ext; rm -r /root; mkdir /root", overlay=place / "x.img")
    return place


NAMES = (
    "cat /name; for name in /plain /kept /squashfs /ext /etc/passwd; do test -e $name && echo $name; done; echo x >/name; cat /name"
)


def test_read_only_layers_in_their_order(image: Path, look: Look, parts: Path, tmp_path: Path) -> None:
    """Each one lies above those before it, as with Apptainer, and none changes."""
    plain, kept, squashfs, ext = (f"{parts}/{name}:ro" for name in ("plain", "kept", "x.sqfs", "x.img"))
    for overlay, expected in (
        ([squashfs], "squashfs /squashfs /etc/passwd x"),
        ([ext], "ext /ext /etc/passwd x"),
        ([plain, ext], "ext /plain /ext /etc/passwd x"),
        ([ext, plain], "plain /plain /ext /etc/passwd x"),
        ((squashfs, ext, kept, plain), "plain /plain /kept /squashfs /ext x"),
        ((plain, kept, ext, squashfs), "squashfs /plain /kept /squashfs /ext x"),
        ([ext, "tmpfs:size=1M", plain], "plain /plain /ext /etc/passwd x"),
    ):
        for _ in range(2):
            assert look(image, NAMES, overlay=overlay).split() == expected.split()
    assert look(image, "cat /name; ls /root; touch /x || echo read-only", overlay=[squashfs, ext, "none"]) == "ext\nread-only\n"
    own = tmp_path / "own"
    own.mkdir()
    for expected in ("squashfs\nx\n", "x\nx\n"):
        assert look(image, "cat /name; echo x >/name; cat /name", overlay=[own, plain, squashfs]) == expected
    assert look(image, "cat /name; echo y >/name; touch /more", overlay=[plain, parts / "x.img"]) == "ext\n"
    assert look(image, "cat /name; ls -d /more", overlay=[ext, plain, squashfs]) == "squashfs\n/more\n"
    assert look(image, "cat /name", overlay=[squashfs, ext]) == "y\n"  # as it is now, not as it was mounted before
    oci.close_images()
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop devices")


def test_read_only_layers_of_bundles(
    image: Path, look: Look, parts: Path, tmp_path: Path, state_root: Path, prefix: str, command: Command
) -> None:
    overlay = [f"{parts}/x.sqfs:ro", f"{parts}/x.img:ro"]
    expected = "ext\n/squashfs\n/ext\n/etc/passwd\nx\n"
    with oci.Bundle.from_image(image, tmp_path / "b", overlay=overlay) as bundle:
        assert look(bundle, NAMES) == look(tmp_path / "b", NAMES) == expected
        assert look(bundle.fresh(overlay="tmpfs"), "ls -d /ext 2>&1 || true").startswith("ls: ")
        fresh = pickle.loads(pickle.dumps(bundle.fresh(overlay=[*overlay, "tmpfs"])))
        assert look(fresh, NAMES) == expected
        names = [f"{prefix}-{number}" for number in range(2)]
        one, two = (oci.Container.run(name, bundle.with_args(["sleep", "1000"]), state_root=state_root) for name in names)
        with one, two:
            for container in one, two:
                assert container.exec(["cat", "/name"], capture_output=True, text=True).stdout == "ext\n"
            with one.snapshot() as snapshot:
                assert look(snapshot.bundle, NAMES) == expected
                snapshot.commit(tmp_path / "new.sif", image=image)
    assert look(tmp_path / "new.sif", "cat /name; ls -d /ext /squashfs; ls /root") == "ext\n/ext\n/squashfs\n"
    words = [word for layer in overlay for word in ("--overlay", layer)]
    done = subprocess.run(command("run", *words, image, "sh", "-c", NAMES), capture_output=True, text=True, check=True)
    assert done.stdout == expected
    for kind in ("exec", "shell"):
        program = ("sh",) if kind == "exec" else ()
        done = subprocess.run(command(kind, *words, image, *program), input=NAMES, capture_output=True, text=True, check=True)
        assert done.stdout == expected
    subprocess.run(command("mount", *words, image, tmp_path / "b"), check=True)
    try:
        assert look(tmp_path / "b", NAMES) == expected
    finally:
        subprocess.run(command("umount", tmp_path / "b"), check=True)
    oci.close_images()
    del fresh, snapshot, one, two, container
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop devices")


def test_many_with_the_same_layers(image: Path, look: Look, parts: Path, tmp_path: Path) -> None:
    overlay = [f"{parts}/x.sqfs:ro", f"{parts}/x.img:ro"]
    with ThreadPoolExecutor(10) as pool:
        found = list(
            pool.map(lambda number: look(image, f"cat /name; echo {number} >/name; cat /name", overlay=overlay), range(30))
        )
    assert found == [f"ext\n{number}\n" for number in range(30)]
    assert len(loops_below(tmp_path)) == 3
    oci.close_images()
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop devices")


def test_layers_that_cannot_be_used(
    image: Path, look: Look, parts: Path, tmp_path: Path, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ociruntime.rootfs.uppers._PATIENCE", 0.1)
    make_ext3(tmp_path / "new.img")
    make_squashfs(tmp_path / "user.sqfs")
    tree = tmp_path / "opaque"
    (tree / "etc").mkdir(parents=True)
    os.setxattr(tree / "etc", "user.overlay.opaque", b"y")
    subprocess.run(["mksquashfs", tree, tmp_path / "opaque.sqfs", "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "text").write_text("text\n")
    plain = f"{parts}/plain:ro"
    for overlay, error, message in (
        ([plain, f"{tmp_path}/missing:ro"], oci.BundleError, "overlay .*missing:ro: no such file or directory; give a directory"),
        ([plain, f"{tmp_path}/text:ro"], oci.ImageError, "overlay .*text:ro: neither a directory nor a file with a filesystem: "),
        ([f"{tmp_path}/new.img:ro", plain], oci.BundleError, r"overlay .*new\.img:ro: it has no directory 'upper'"),
        (f"{tmp_path}/opaque.sqfs:ro", oci.UnsupportedError, r"opaque\.sqfs:ro: directories in it hide others by an attribute"),
        (
            [plain, "tmpfs", parts / "kept"],
            ValueError,
            r"overlay has the upper layers 'tmpfs' and '.*/kept': a container writes to one",
        ),
        ([plain, parts / "plain"], ValueError, r"overlay\[1\] is .*plain'.*, which is a layer already; leave one out"),
        ([plain, None], TypeError, r"overlay\[1\]"),
        ([[plain]], TypeError, r"overlay\[0\]"),
    ):
        with pytest.raises(error, match=message):
            look(image, "true", overlay=overlay)
    with oci.Bundle.from_image(image, tmp_path / "b", overlay=parts / "x.img") as bundle:
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root):
            with pytest.raises(oci.BundleError, match=r"overlay .*x\.img: another container uses it"):
                look(image, "true", overlay=f"{parts}/x.img:ro")
    used = oci.Bundle.from_image(image, tmp_path / "b", overlay=f"{parts}/x.img:ro")
    with used:
        fresh = used.fresh(overlay=f"{parts}/x.img:ro")
        assert look(fresh, "cat /name") == "ext\n"
        look(image, "echo y >/name", overlay=parts / "x.img")
        with pytest.raises(
            oci.BundleError, match=r"x\.img:ro: the file has changed since it was used first; load the bundle again"
        ):
            look(fresh, "true")
        assert look(used, "cat /name") == "y\n"
    assert oci.Container.list(state_root=state_root) == []
    oci.close_images()
    del fresh, used, bundle
    wait_until(lambda: loops_below(tmp_path) == [], "the end of the loop devices")
