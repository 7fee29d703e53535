"""Images of every kind as root filesystems: for root by the kernel, for users by FUSE, and extracted where layers cannot be mounted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.image import SifBuilder
from ociruntime.image.sif.model import Filesystem
from ociruntime.rootfs import cache as extracted
from ociruntime.rootfs.cache import Cache

from ..support.fixture_types import Script
from ..support.images import SQUASHFS_TYPE, TAR_TYPE, OciImage, small_filesystem, tar_of, tar_of_tree
from ..support.private_users import UID, User, give, new_user
from ..support.waiting import wait_until

pytestmark = pytest.mark.root

TOOLS = {"squashfs": "mksquashfs", "ext": "mkfs.ext4", "erofs": "mkfs.erofs"}
PACKAGES = {"mksquashfs": "squashfs-tools", "mkfs.ext4": "e2fsprogs", "mkfs.erofs": "erofs-utils", "fuse2fs": "fuse2fs"}
LAYERED = ["layout", "oci.tar", "gzip.tar", "docker.tar"]
"""Images with two layers of tar archives."""
SQUASHFS = ["oci-root.sif", "oci-user.sif"]
"""Images with two squashfs layers, in which attributes for overlays of root or of users hide a directory."""
PLAIN = {"one.sif": "squashfs", "x.sqfs": "squashfs", "x.ext2": "ext", "x.ext4": "ext", "ext.sif": "ext", "x.erofs": "erofs"}
"""Images with one filesystem, and its format."""
CONFIG: dict[str, Any] = {"Cmd": ["sleep", "1000"], "Env": ["GREETING=hello"], "Volumes": {"/opaque": {}}}
LIST = "ls / /opaque | grep -v lost.found; cat /etc/passwd; stat -c '%u:%g %a' /etc /set /bin/busybox; echo $GREETING"
BASE = ["/:", "bin", "dev", "etc", "file", "gone", "link", "opaque", "proc", "set", "sys", "tmp"]
OLD = ["/opaque:", "old", "sub"]
USERS = ["root:x:0:0:root:/root:/bin/sh"]
MERGED = ["/:", "bin", "dev", "etc", "link", "opaque", "proc", "set", "sys", "tmp", "/opaque:", "new"]


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (Debian: {PACKAGES[program]})")


def _lower(tree: Path, busybox: Path) -> None:
    shutil.copytree(busybox, tree, symlinks=True)
    for name in ("gone", "opaque/sub", "dev", "proc", "sys", "tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    for path in tree.iterdir():
        if path.name not in BASE:
            shutil.rmtree(path)
    (tree / "gone/x").write_text("x")
    (tree / "opaque/old").write_text("old")
    (tree / "file").write_text("file")
    os.link(tree / "file", tree / "link")
    (tree / "set").write_text("set")
    os.chown(tree / "set", 3, 4)
    (tree / "set").chmod(0o4750)
    os.setxattr(tree / "set", "user.kept", b"x")
    (tree / "etc/passwd").write_text(f"{USERS[0]}\n")


def _upper(tree: Path) -> None:
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/passwd").write_text(f"{USERS[0]}\napp:x:1000:1000::/:/bin/sh\n")
    (tree / "opaque").mkdir()
    (tree / "opaque/new").write_text("new")
    for name in ("gone", "file"):
        os.mknod(tree / name, 0o20000, 0)


def _squashfs(tree: Path, path: Path) -> bytes:
    subprocess.run(["mksquashfs", str(tree), str(path), "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


@pytest.fixture(scope="session")
def images(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an image of each kind that can be made here."""
    _needs("mksquashfs")
    work, created = tmp_path_factory.mktemp("trees"), tmp_path_factory.mktemp("images")
    lower, upper = work / "lower", work / "upper"
    _lower(lower, busybox_rootfs)
    _upper(upper)
    archives = [tar_of_tree(lower), tar_of_tree(upper, opaque=["opaque"])]
    image = OciImage()
    image.add([(content, TAR_TYPE) for content in archives], name="a:1", config=CONFIG)
    image.write_layout(created / "layout")
    image.write_archive(created / "oci.tar")
    image.write_docker_archive(created / "docker.tar", "a:1")
    packed = OciImage()
    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in archives]
    packed.add([(gzip.compress(content), f"{TAR_TYPE}+gzip") for content in archives], config=CONFIG, diff_ids=digests)
    packed.write_archive(created / "gzip.tar")
    base = _squashfs(lower, work / "lower.sqfs")
    for who, prefix in (("root", "trusted"), ("user", "user")):
        os.setxattr(upper / "opaque", f"{prefix}.overlay.opaque", b"y")
        layered = OciImage()
        layers = [(content, SQUASHFS_TYPE) for content in (base, _squashfs(upper, work / f"{who}.sqfs"))]
        layered.add(layers, config=CONFIG)
        layered.write_sif(created / f"oci-{who}.sif")
        os.removexattr(upper / "opaque", f"{prefix}.overlay.opaque")
    single = OciImage()
    single.add([(base, SQUASHFS_TYPE)], config=CONFIG)
    single.write_sif(created / "one.sif")
    (created / "x.sqfs").write_bytes(base)
    if shutil.which(TOOLS["ext"]):
        for kind in ("ext2", "ext4"):
            subprocess.run(["truncate", "--size=8M", str(created / f"x.{kind}")], check=True)
            subprocess.run([f"mkfs.{kind}", "-q", "-d", str(lower), str(created / f"x.{kind}")], check=True)
        builder = SifBuilder()
        builder.add_partition(created / "x.ext4", filesystem=Filesystem.EXT3)
        builder.write(created / "ext.sif")
    if shutil.which(TOOLS["erofs"]):
        subprocess.run(["mkfs.erofs", "--quiet", str(created / "x.erofs"), str(lower)], check=True, stdout=subprocess.DEVNULL)
    return created


def expected(name: str, *, owners: bool, extracted: bool = False) -> list[str]:
    """Return what `LIST` shows in an image.

    Args:
        owners: whether files have the owners of the image.
        extracted: whether a user has extracted it, without set-user-ID bits.
    """
    layered = name in LAYERED + SQUASHFS
    names = MERGED if layered else BASE + OLD
    users = [*USERS, *(["app:x:1000:1000::/:/bin/sh"] if layered else [])]
    stats = ["0:0 755", "3:4 4750" if owners else f"0:0 {'' if extracted else '4'}750", "0:0 755"]
    greeting = ["hello"] if layered or name == "one.sif" else []
    return [*names, *users, *stats, *greeting]


def _show(image: object, **options: Any) -> list[str]:
    done = oci.run(image, ["sh", "-c", LIST], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def _leftovers(place: Path) -> list[str]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{place}/" in line]
    loops = [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if f"{place}/" in _text(path)]
    return mounts + loops


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # the device was removed


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/ociruntime/images"


def cached(cache: Path) -> list[str]:
    return [name for name in (os.listdir(cache) if cache.exists() else []) if name != "known"]


# ---- root ----


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
@pytest.mark.parametrize("name", [*LAYERED, *SQUASHFS, *PLAIN])
def test_root_runs_an_image(images: Path, name: str, tmp_path: Path, cache: Path) -> None:
    path = images / name
    if not path.exists():
        pytest.skip(f"no program makes a filesystem for {name}")
    assert _show(path) == expected(name, owners=True)
    with oci.Bundle.from_image(path, tmp_path / "b") as bundle:
        assert (tmp_path / "b/rootfs/etc/passwd").exists()
        assert _show(bundle) == expected(name, owners=True)
        extracted = name in LAYERED or name == "oci-user.sif"
        (note,) = bundle.plan().notes
        assert note.startswith(
            "root filesystem by the strategy extraction, because" if extracted else "root filesystem by the strategy kernel"
        )
        oci.run(bundle, ["sh", "-c", "rm -r /etc && mkdir /etc && echo new >/etc/new"], check=True)
        assert os.listdir(tmp_path / "b/rootfs/etc") == ["new"]
    with oci.Bundle.from_image(path, tmp_path / "b", writable=False) as bundle:
        assert _show(bundle) == expected(name, owners=True)
        done = oci.run(bundle, ["touch", "/new"], capture_output=True, text=True)
        assert "Read-only file system" in done.stderr
        assert os.listdir(cache) if name in LAYERED else cached(cache) == [] or name == "oci-user.sif"
        oci.prune()
        assert _show(bundle) == expected(name, owners=True)  # it still uses what was extracted
    assert not (tmp_path / "b").exists()
    oci.close_images()
    wait_until(lambda: _leftovers(images) + _leftovers(tmp_path) == [], "the end of loop devices")
    oci.prune()
    assert cached(cache) == []


def test_a_directory(images: Path, busybox_rootfs: Path, tmp_path: Path) -> None:
    with oci.Bundle.from_image(busybox_rootfs, tmp_path / "b b") as bundle:
        oci.run(bundle, ["sh", "-c", "rm -r /etc && touch /new"], check=True)
        assert (tmp_path / "b b/rootfs/new").exists()
    assert (busybox_rootfs / "etc").exists()
    assert not (busybox_rootfs / "new").exists()
    assert not (tmp_path / "b b").exists()


def test_an_image_that_is_open(images: Path, tmp_path: Path) -> None:
    with oci.Image.open(images / "oci-root.sif") as image:
        with oci.Bundle.from_image(image, tmp_path / "b") as bundle:
            assert _show(bundle) == expected("oci-root.sif", owners=True)
        assert not image.closed
        with pytest.raises(ValueError, match=r"pass them to Image\.open"):
            oci.Bundle.from_image(image, tmp_path / "b", platform="linux/amd64")
    assert not (tmp_path / "b").exists()


OPEN = """
import asyncio, os, shutil, sys
import ociruntime as oci
for name in sys.argv[1:]:
    with oci.Image.open(name) as image:
        image.check_layers()
        os.rename(name, "moved")
        os.symlink("/nowhere", name)  # what is there now does not count
        show = lambda: oci.run(image, ["cat", "/etc/passwd"], capture_output=True, text=True, check=True).stdout
        assert show().startswith("root:") and show().startswith("root:"), name
        done = asyncio.run(oci.aio.run(image, ["cat", "/etc/passwd"], capture_output=True, text=True))
        assert done.stdout == show()
        for platform in {"platform": "linux/amd64"}, {"reference": "x"}:
            try:
                oci.run(image, ["true"], **platform)
            except ValueError as error:
                assert "pass them to Image.open" in str(error)
            else:
                raise AssertionError("reference and platform do not belong to an open image")
    try:
        oci.run(image, ["true"])
    except ValueError as error:
        assert "closed" in str(error)
    else:
        raise AssertionError("the image is closed")
    os.unlink(name)
    os.rename("moved", name)
oci.close_images()
print("done")
"""
MOVED = ["one.sif", "oci-root.sif", "x.sqfs", "x.ext4", "layout", "oci.tar", "docker.tar"]


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_root_runs_an_image_that_is_open(images: Path, tmp_path: Path, script: Script) -> None:
    """It is the file that was opened which runs, whatever has its path meanwhile."""
    names = [name for name in MOVED if (images / name).exists()]
    for name in names:
        (shutil.copytree if (images / name).is_dir() else shutil.copy)(images / name, tmp_path / name)
    text = f"import os; os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'cache')!r}; os.chdir({str(tmp_path)!r})\n"
    assert script("import warnings; warnings.simplefilter('ignore')\n" + text + OPEN, *names).stdout == "done\n"
    wait_until(lambda: _leftovers(tmp_path) == [], "the end of loop devices")
    oci.prune()


def test_an_open_layout_whose_files_change(images: Path, tmp_path: Path) -> None:
    """Layers that the kernel mounts stay mounted for the next run; those of another image in the same directory are not taken for them."""
    first, second = OciImage(), OciImage()
    base = (images / "x.sqfs").read_bytes()
    for created, greeting in ((first, "first"), (second, "second")):
        created.add([(base, SQUASHFS_TYPE)], name="one", config={"Env": [f"GREETING={greeting}"]})
    path = first.write_layout(tmp_path / "layout")
    show = lambda image: oci.run(image, ["sh", "-c", "echo $GREETING"], capture_output=True, text=True).stdout  # noqa: E731
    with oci.Image.open(path) as image:
        assert show(image) == show(path) == "first\n"
    for name, content in second.files().items():
        (path / name).write_bytes(content)  # in place: the directory keeps its time
    with oci.Image.open(path) as image:
        image.verify()
        assert show(image) == show(path) == "second\n"
    oci.close_images()


def test_a_directory_that_was_replaced(busybox_rootfs: Path, tmp_path: Path) -> None:
    """A directory is used by its path, so another one is refused."""
    shutil.copytree(busybox_rootfs, tmp_path / "tree", symlinks=True)
    with oci.Image.open(tmp_path / "tree") as image:
        assert oci.run(image, ["true"]).returncode == 0
        (tmp_path / "tree").rename(tmp_path / "old")
        (tmp_path / "tree").mkdir()
        for call in (lambda: oci.run(image, ["true"]), lambda: oci.Bundle.from_image(image, tmp_path / "b")):
            with pytest.raises(oci.ImageError, match="tree: another directory has this path now; open the image again"):
                call()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("name", ["one.sif", "oci-root.sif", "x.ext4", "x.erofs"])
def test_strategies_of_root(images: Path, name: str, tmp_path: Path, cache: Path) -> None:
    if not (images / name).exists():
        pytest.skip("no mkfs.erofs (Debian: erofs-utils)")
    with oci.Bundle.from_image(images / name, tmp_path / "b", strategy="extraction") as bundle:
        assert _show(bundle) == expected(name, owners=True)
        assert bundle.plan().notes == ("root filesystem by the strategy extraction",)
        (digest,) = cached(cache)
        assert os.getxattr(cache / digest / "rootfs/set", "user.kept") == b"x"
    for path, strategy, why in (
        (images / name, "fuse", "root mounts images by the kernel"),
        (images / "layout", "kernel", "layers of the format tar cannot be mounted"),
    ):
        with pytest.raises(oci.UnsupportedError, match=f"the strategy {strategy} cannot be used: {why}"):
            oci.Bundle.from_image(path, tmp_path / "b", strategy=strategy)
    assert not (tmp_path / "b").exists()


def test_files_where_layers_were_unmounted_by_hand(images: Path, tmp_path: Path) -> None:
    bundle = oci.Bundle.from_image(images / "oci-root.sif", tmp_path / "b")
    for line in reversed(_leftovers(tmp_path / "b")):
        subprocess.run(["umount", line.split()[4]], check=True)
    for name in ("layers/0/file", "layers/file"):
        (tmp_path / "b" / name).touch()
    bundle.umount()
    assert not (tmp_path / "b").exists()


def test_which_image_of_a_layout(tmp_path: Path, cache: Path, busybox_rootfs: Path) -> None:
    image = OciImage()
    image.add([(tar_of_tree(busybox_rootfs), TAR_TYPE)], name="one", config={"Env": ["GREETING=one"]})
    image.add([(tar_of_tree(busybox_rootfs), TAR_TYPE)], name="two", config={"Env": ["GREETING=two"]})
    image.add([(tar_of_tree(busybox_rootfs), TAR_TYPE)], name="far", architecture="s390x")  # not for this machine
    path = image.write_layout(tmp_path / "layout")
    for name in ("one", "two"):
        with oci.Bundle.from_image(path, tmp_path / "b", reference=name) as bundle:
            assert oci.run(bundle, ["sh", "-c", "echo $GREETING"], capture_output=True, text=True).stdout == f"{name}\n"
    with pytest.raises(oci.ImageError, match="holds 2 images; choose one with reference="):
        oci.Bundle.from_image(path, tmp_path / "b")
    with pytest.raises(oci.UnsupportedError, match="is an image for s390x, and this machine is"):
        oci.Bundle.from_image(path, tmp_path / "b", reference="far", platform="linux/s390x")
    assert not (tmp_path / "b").exists()


def test_a_layer_that_was_changed(images: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copy(images / "oci-root.sif", tmp_path / "x.sif")
    with oci.Image.open(tmp_path / "x.sif") as image:
        offset = image.layers[0].offset + image.layers[0].size - 1
    with open(tmp_path / "x.sif", "r+b") as file:
        file.seek(offset)
        file.write(b"\xaa")
    with pytest.raises(oci.ImageError, match="has the digest"):
        oci.Bundle.from_image(tmp_path / "x.sif", tmp_path / "b")
    shutil.copytree(images / "layout", tmp_path / "layout")
    blobs = sorted((tmp_path / "layout/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with open(blobs[-1], "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xaa")
    with pytest.raises(oci.ImageError, match="has the digest"):
        oci.Bundle.from_image(tmp_path / "layout", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    oci.prune()
    assert cached(cache) == []


# ---- users ----

EVERY = """
import json, os, sys, warnings
import ociruntime as oci
names, script = json.loads(sys.argv[1]), sys.argv[2]
shown = {}
for name in names:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            done = oci.run(name, ["sh", "-c", script], capture_output=True, text=True)
            with oci.Bundle.from_image(name, "bundle") as bundle:
                again = oci.run(bundle, ["sh", "-c", script], capture_output=True, text=True)
                assert again.stdout == done.stdout and not done.stderr, (again, done)
                oci.run(bundle, ["sh", "-c", "rm -r /etc && mkdir /etc && touch /etc/new"], check=True)
                assert oci.run(bundle, ["sh", "-c", script], capture_output=True, text=True).stdout == done.stdout
            result = done.stdout.splitlines()
        except oci.UnsupportedError as error:
            result = str(error)
    assert not os.path.exists("bundle")
    shown[name] = [result, [str(item.message) for item in warned]]
    oci.prune()  # empties the cache: another image with the same filesystem would not be extracted
print(json.dumps(shown))
"""


@pytest.fixture(params=[True, False], ids=["FUSE and subordinate ids", "extraction and the own id"])
def user(request: pytest.FixtureRequest, user_python: str, images: Path) -> Iterator[User]:
    """A user whose home has the images."""
    if request.param and not (all(map(shutil.which, ("squashfuse", "fusermount3", "newuidmap"))) and os.path.exists("/dev/fuse")):
        pytest.skip("no squashfuse, fusermount3 or newuidmap (Debian: squashfuse, fuse3, uidmap), or no /dev/fuse")
    with new_user(user_python, subordinate=request.param, fuse=request.param) as created:
        shutil.copytree(images, created.home, dirs_exist_ok=True)
        give(created.home)
        yield created


def test_a_user_runs_every_image(user: User, images: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    done = user.run("-c", EVERY, json.dumps(names), LIST, XDG_CACHE_HOME=f"{user.home}/cache")
    shown = json.loads(done.stdout)
    for name in names:
        result, warned = shown[name]
        kind = PLAIN.get(name, "")
        mounted = user.fuse and (kind != "ext" or shutil.which("fuse2fs")) and (kind != "erofs" or shutil.which("erofsfuse"))
        extracted = name in LAYERED or not mounted or name == "oci-root.sif"
        lines = expected(name, owners=False, extracted=extracted)
        if kind == "erofs" and mounted:  # a file of another owner than root
            lines = [line.replace("0:0 4750", "65534:65534 4750") for line in lines]
        assert [line for line in result if line] == lines, name
        if name in LAYERED:
            assert warned == []
        elif name == "oci-root.sif" and user.fuse:
            assert "trusted.overlay.opaque, which overlays of users do not see" in warned[0]
        else:
            assert [text for text in warned if "FUSE cannot be used: " not in text and " stays empty: " not in text] == []
            assert bool([text for text in warned if "FUSE" in text]) == (not mounted)
    assert user.leftovers() == []
    user.command("prune", XDG_CACHE_HOME=f"{user.home}/cache")
    assert cached(user.home / "cache/ociruntime/images") == []


def test_a_user_runs_an_image_that_is_open(user: User) -> None:
    names = [name for name in MOVED if (user.home / name).exists()]
    done = user.run("-W", "ignore", "-c", OPEN, *names, XDG_CACHE_HOME=f"{user.home}/cache")
    assert done.stdout.splitlines() == ["done"]
    assert user.leftovers() == []


def test_a_user_mounts_layers(user: User) -> None:
    """The layers are mounted in the bundle, or extracted. `umount` and `prune` remove them."""
    environment = {"XDG_CACHE_HOME": f"{user.home}/cache"}
    user.command("mount", "oci-user.sif", "bundle", **environment)
    assert len(user.mounts()) == (2 + (shutil.which("fuse-overlayfs") is not None) if user.fuse else 0)
    shown = user.command("plan", "-b", "bundle", **environment).stdout
    numbers = [line[-1] for line in shown.splitlines() if f"layer {user.home}/bundle/layers/" in line]
    assert numbers == (["1", "0"] if user.fuse else [])
    name = f"kinds-{UID}"
    user.command("create", "-b", "bundle", name, **environment)
    done = user.command("umount", "bundle", check=False, **environment)
    assert f"container '{name}' still uses it" in done.stderr
    user.command("umount", "--force", "bundle", **environment)
    user.command("delete", name, **environment)
    done = user.command("mount", "--strategy", "fuse", "layout", "bundle", check=False, **environment)
    assert "the strategy fuse cannot be used: layers of the format tar cannot be mounted" in done.stderr
    assert not (user.home / "bundle").exists()
    assert user.leftovers() == []


# ---- failures ----


def test_an_archive_that_cannot_be_extracted(tmp_path: Path, cache: Path) -> None:
    """Nothing is left of what was extracted before the error."""
    image = OciImage()
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("first"))
        member = tarfile.TarInfo("second")
        member.type = tarfile.SYMTYPE  # without a target
        archive.addfile(member)
    image.add([(link.getvalue(), TAR_TYPE)])
    path = image.write_layout(tmp_path / "layout")
    for call in (lambda: oci.Bundle.from_image(path, tmp_path / "b"), lambda: oci.run(path, ["true"])):
        with pytest.raises(oci.ImageError, match="a symbolic link without a valid target"):
            call()
    assert not (tmp_path / "b").exists()
    (digest,) = cached(cache)
    assert os.listdir(cache / digest) == ["lock"]
    oci.prune()
    assert cached(cache) == []


KILLED = """
import os, signal, sys, threading
import ociruntime as oci, ociruntime.image, ociruntime.bundle
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
with oci.Bundle.from_image(sys.argv[1], sys.argv[2]):
    pass
signal.pause()
"""


@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.2, 0.4])
def test_a_caller_that_is_killed_while_it_extracts(images: Path, tmp_path: Path, cache: Path, delay: float) -> None:
    image = OciImage()
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(3000):
                member = tarfile.TarInfo(f"d/{number}")
                member.size = 10_000
                archive.addfile(member, io.BytesIO(bytes(range(250)) * 40))
        file.seek(0)
        image.add([(file.read(), TAR_TYPE)])
    path = image.write_archive(tmp_path / "x.tar")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), str(tmp_path / "b"), str(delay)], check=False)
    assert done.returncode == -signal.SIGKILL
    oci.prune()
    if (tmp_path / "b").exists() and os.listdir(tmp_path / "b"):  # it was mounted
        oci.Bundle.load(tmp_path / "b").umount()
        oci.prune()
    assert cached(cache) == []
    assert _leftovers(tmp_path) == []


def test_a_helper_that_is_killed(user: User) -> None:
    if not user.fuse:
        pytest.skip("no helper serves an image that is extracted")
    environment = {"XDG_CACHE_HOME": f"{user.home}/cache"}
    user.command("mount", "oci-user.sif", "bundle", **environment)
    for helper in user.processes():
        os.kill(helper, signal.SIGKILL)
    wait_until(lambda: not user.processes(), "the end of the helpers")
    done = user.run("-c", "import ociruntime as oci; oci.run('bundle', ['true'])", check=False, **environment)
    assert "Transport endpoint is not connected" in done.stderr
    user.command("umount", "bundle", **environment)
    assert not (user.home / "bundle").exists()
    assert user.leftovers() == []


def test_two_users_of_one_image(user_python: str, images: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each has a cache of its own, and neither sees what the other writes."""
    script = "import ociruntime as oci; print(oci.run(sys.argv[1], ['sh', '-c', 'ls /new 2>/dev/null; touch /new; ls /new'], capture_output=True, text=True).stdout)"
    place = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="ociruntime-images-"))
    try:
        place.chmod(0o755)
        shutil.copytree(images / "layout", place / "layout")
        for subordinate in (False, True):
            if subordinate and shutil.which("newuidmap") is None:
                pytest.skip("no newuidmap (Debian: uidmap)")
            with new_user(user_python, subordinate=subordinate) as user:
                done = user.run("-c", f"import sys; {script}", place / "layout", XDG_CACHE_HOME=f"{user.home}/cache")
                assert done.stdout.split() == ["/new"]
                (digest,) = cached(user.home / "cache/ociruntime/images")
                found = user.home / "cache/ociruntime/images" / digest
                assert {path.lstat().st_uid for path in found.rglob("*")} == {UID}
                assert found.stat().st_mode & 0o777 == 0o700
                assert not (found / "rootfs/new").exists()
    finally:
        shutil.rmtree(place)


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
@pytest.mark.parametrize("name", ["oci-user.sif", "oci-root.sif", "layout"])
def test_many_at_once(images: Path, cache: Path, name: str) -> None:
    """Threads share mounts and extracted images, which others give up meanwhile."""

    def one(number: int) -> str:
        script = f"test ! -e /new && echo {number} >/new && cat /new"
        return oci.run(images / name, ["sh", "-c", script], capture_output=True, text=True).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [f"{number}\n" for number in range(40)]
    oci.prune()
    assert cached(cache) == []


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_an_extracted_image_stays_where_it_was_extracted(
    images: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of a batch system has another environment than the login shell that mounted the image."""
    with oci.Bundle.from_image(images / "one.sif", tmp_path / "b", strategy="extraction"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        assert _show(oci.Bundle.load(tmp_path / "b")) == expected("one.sif", owners=True)
        (digest,) = cached(cache)
        assert os.listdir(cache / digest / "users") != []
    assert os.listdir(cache / digest / "users") == []
    assert not (tmp_path / "other").exists()


def test_a_file_is_read_once_for_its_digest(images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with oci.Image.open(images / "x.sqfs") as image:
        digest = Cache().digest_of(image, privileged=True)
        Cache().prune((), 0)
        (known,) = os.listdir(cache / "known")
        (cache / f"known/{known}.0123456789abcdef").symlink_to("of another process, which renames it next")
        Cache().prune((), 0)
        assert len(os.listdir(cache / "known")) == 2
        assert Cache().digest_of(image, privileged=True) == digest
        (cache / f"known/{known}").unlink()
        (cache / f"known/{known}").symlink_to("0" * 64)
        assert Cache().digest_of(image, privileged=True) != digest  # what is noted is taken
        monkeypatch.setattr(extracted, "_MAX_KNOWN", 1)
        Cache().prune((), 0)
        assert len(os.listdir(cache / "known")) == 1


GREEDY = """#!/bin/sh
while [ "$1" != -dest ]; do shift; done
mkdir "$2"
while head -c 262144 /dev/zero >>"$2/file"; do sleep 0.02; done
: >{0}
exit 1
"""
"""Takes all space for the files, and says so."""


@pytest.mark.parametrize("kind", ["unsquashfs", "the package", "inodes"])
def test_an_image_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its extraction ends while there is space for others, which get back what it has taken."""
    full, image = tmp_path / "full", tmp_path / "image.sif"
    if kind == "unsquashfs":
        _needs("mksquashfs")
        (tmp_path / "tree").mkdir()
        oci.build_sif(image, tmp_path / "tree")
        (tmp_path / "unsquashfs").write_text(GREEDY.format(full))
        (tmp_path / "unsquashfs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    else:
        files = {"file": b"x" * (20 << 20)} if kind == "the package" else {str(number): b"" for number in range(5000)}
        created = OciImage()
        created.add([(tar_of(files), TAR_TYPE)])
        image = created.write_layout(tmp_path / "image")
    with small_filesystem(tmp_path / "small", "16m,nr_inodes=2000") as small:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small))
        free = os.statvfs(small)
        with pytest.raises(oci.ImageError, match=rf"^{image}: its files do not fit into {small}/.*; make more space there, or set"):
            oci.Bundle.from_image(image, tmp_path / "b", strategy="extraction")
        left = os.statvfs(small)
        assert (left.f_bavail, left.f_favail) >= (free.f_bavail - 10, free.f_favail - 10)
    assert not full.exists()
    assert not (tmp_path / "b").exists()
