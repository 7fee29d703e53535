"""The root and the volumes of images: whose they are, what they contain, and what the caller's umask has to do with it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime.engine import trees
from ociruntime.engine.trees import copy_tree
from ociruntime.host import Host

from ..support.fixture_types import MakeBundle, Script
from ..support.places import REPO

pytestmark = [pytest.mark.root, pytest.mark.sif]

MakeImage = Callable[..., Path]
ACL = bytes.fromhex("02000000 01000700ffffffff 02000500e8030000 04000000ffffffff 10000500ffffffff 20000000ffffffff")
"""An access control list (acl(5)): rwx for the owner and r-x for user 1000, nothing for others."""


@pytest.fixture
def make_image(busybox_rootfs: Path, tmp_path: Path) -> MakeImage:
    """Makes a SIF image of a copy of the busybox root filesystem, which a function changes before."""

    def make(change: Callable[[Path], object] = lambda rootfs: None, /, **config: Any) -> Path:
        rootfs = tmp_path / "image/rootfs"
        shutil.copytree(busybox_rootfs, rootfs, symlinks=True)
        change(rootfs)
        oci.build_sif(tmp_path / "x.sif", rootfs, oci_config=config or None)
        return tmp_path / "x.sif"

    return make


@pytest.fixture
def show(state_root: Path) -> Callable[..., list[str]]:
    """Runs a shell script in a container of an image, and returns the lines of its output."""

    def run(image: Path | oci.Bundle, script: str, **options: Any) -> list[str]:
        result = oci.run(image, ["sh", "-c", script], capture_output=True, text=True, state_root=state_root, **options)
        assert result.returncode == 0, result
        return str(result.stdout).splitlines()

    return run


# ---- the umask ----

UNDER_A_UMASK = """
import os, sys
import ociruntime as oci
image, rootfs, bundle, path, root = sys.argv[1:]
os.umask(0o077)
look = ["sh", "-c", "stat -c '%a %u:%g %n' / /dev /dev/null /proc /data /new /new/mount /link /made/by/nobody /cgroup/*; umask"]
cgroup = oci.spec.Mount(destination="/cgroup", type="cgroup", source="cgroup", options=("ro",))
mounts = [f"{rootfs}/etc:/new/mount", f"{rootfs}/etc/passwd:/link", cgroup]
options = dict(mounts=mounts, capture_output=True, text=True, state_root=root)
def ran(image, **more):
    result = oci.run(image, look, **options, **more)
    assert result.returncode == 0, result
    return result.stdout
def held(bundle):
    with oci.Container.run("c", bundle.with_args(["sleep", "1000"]), state_root=root) as container:
        return container.exec(["stat", "-c", "%a %n", "/etc", "/"], user=1000, capture_output=True, text=True).stdout
for given in (image, rootfs, bundle):
    print(ran(given))
with oci.Bundle.from_sif(image, path) as mounted:
    print(ran(mounted, user=1000))
    print(held(mounted))
with oci.Bundle.from_sif(image, path, writable=False) as mounted:
    print(oct(mounted.rootfs.stat().st_mode)[-3:])
"""


def test_no_mode_in_a_container_depends_on_the_umask(
    make_image: MakeImage, make_bundle: MakeBundle, tmp_path: Path, state_root: Path, script: Script
) -> None:
    def change(rootfs: Path) -> None:
        (rootfs / "data").mkdir()
        (rootfs / "made/by/nobody").mkdir(parents=True)

    image, bundle = make_image(change, Volumes={"/data": {}, "/made/by/nobody": {}}), make_bundle()
    (bundle.rootfs / "data").mkdir()
    (bundle.rootfs / "made/by/nobody").mkdir(parents=True)
    arguments = image, tmp_path / "image/rootfs", bundle.path, tmp_path / "mounted", state_root
    shown = script(UNDER_A_UMASK, *arguments).stdout
    assert script(UNDER_A_UMASK.replace("os.umask(0o077)", "os.umask(0o022)"), *arguments).stdout == shown.replace("0077", "0022")
    modes = {line.split()[0] for line in shown.splitlines() if line.startswith(("7", "5", "6", "1", "4")) and " " in line}
    assert modes == {"755", "666", "644", "555"}, shown
    assert "700" not in shown
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root)]
    for umask in (0o077, 0o777):
        subprocess.run([*command, "mount", image, tmp_path / "m"], cwd=REPO, check=True, umask=umask)
        assert [stat.S_IMODE((tmp_path / "m" / name).stat().st_mode) for name in ("rootfs", "volumes/0", "volumes/1")] == [
            0o755
        ] * 3
        subprocess.run([*command, "umount", tmp_path / "m"], cwd=REPO, check=True, umask=umask)


USER_UNDER_A_UMASK = """
import os, sys
import ociruntime as oci
path, root, uid = *sys.argv[1:3], int(sys.argv[3])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
os.umask(0o077)
script = "stat -c '%a %n' / /dev /proc /new /new/mount /file; umask"
mounts = [f"{path}/rootfs/etc:/new/mount", f"{path}/rootfs/etc/passwd:/file"]
print(oci.run(path, ["sh", "-c", script], mounts=mounts, capture_output=True, text=True, state_root=root, check=True).stdout)
"""


def test_the_umask_of_a_user(make_bundle: MakeBundle, tmp_path: Path, user_script: Script) -> None:
    uid = 47124
    bundle = make_bundle(oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid))
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    for directory in (state, *(name for name, _, _ in os.walk(bundle.path))):
        os.chown(directory, uid, uid)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o111)
    modes = user_script(USER_UNDER_A_UMASK, bundle.path, state, uid).stdout.split()
    assert modes == ["755", "/", "755", "/dev", "555", "/proc", "755", "/new", "755", "/new/mount", "644", "/file", "0077"]


# ---- the root ----


def _odd_root(rootfs: Path) -> None:
    os.chown(rootfs, 7, 8)
    rootfs.chmod(0o1777)
    os.setxattr(rootfs, "user.kept", b"x")
    for name in ("dev", "proc", "sys"):
        (rootfs / name).mkdir()
    os.utime(rootfs, (1000, 2000))


def test_the_root_of_an_image_keeps_its_attributes(
    make_image: MakeImage, show: Callable[..., list[str]], tmp_path: Path, state_root: Path
) -> None:
    image = make_image(_odd_root)
    for given in (image, tmp_path / "image/rootfs"):
        assert show(given, "stat -c '%a %u:%g' /") == ["1777 7:8"]
    for writable in (True, False):
        with oci.Bundle.from_sif(image, tmp_path / "b", writable=writable) as bundle:
            info = bundle.rootfs.stat()
            assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o1777, 7, 8)
            assert os.getxattr(bundle.rootfs, "user.kept") == b"x"
            assert info.st_mtime == 2000 or not writable, "unless mksquashfs has another time for it"
            assert show(bundle, "stat -c '%a %u:%g' /") == ["1777 7:8"]


def test_the_root_has_no_access_control_list_of_the_directory_above(
    make_image: MakeImage, show: Callable[..., list[str]], tmp_path: Path
) -> None:
    image = make_image(Volumes={"/etc": {}})
    (tmp_path / "acl").mkdir()
    os.setxattr(tmp_path / "acl", "system.posix_acl_default", ACL)
    with oci.Bundle.from_sif(image, tmp_path / "acl/b") as bundle:
        for place in (bundle.rootfs, bundle.path / "volumes/0", bundle.path / "volumes/0/passwd"):
            assert [name for name in os.listxattr(place) if "acl" in name] == [], place


def test_the_root_of_a_directory_keeps_its_access_control_list(
    make_image: MakeImage, show: Callable[..., list[str]], tmp_path: Path
) -> None:
    rootfs = tmp_path / "image/rootfs"
    make_image(lambda rootfs: os.setxattr(rootfs, "system.posix_acl_access", ACL))
    script = "ls / > /dev/null 2>&1 && echo listed || echo denied"
    assert show(rootfs, script, user=1000) == ["listed"]
    assert show(rootfs, script, user=1001) == ["denied"]


@pytest.mark.parametrize("kernel", [(6, 12), (6, 13)])
def test_layers_by_path_and_by_descriptor(
    make_image: MakeImage, show: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int]
) -> None:
    """Older kernels take paths alone. This one takes both."""
    host = Host.probe()
    monkeypatch.setattr("ociruntime.rootfs.mount.Host.probe", lambda: attrs.evolve(host, kernel=min(kernel, host.kernel)))
    assert show(make_image(_odd_root), "stat -c '%a %u:%g' /; echo x > /x; cat /x") == ["1777 7:8", "x"]


# ---- volumes ----


def _fill(data: Path) -> None:
    """Make a file of every kind."""
    data.mkdir()
    os.chown(data, 1000, 1001)
    data.chmod(0o2750)
    (data / "sub/empty").mkdir(parents=True)
    (data / "sub").chmod(0o1733)
    (data / "file").write_text("content\n")
    os.chown(data / "file", 3, 4)
    (data / "file").chmod(0o4751)
    os.setxattr(data / "file", "user.kept", b"x")
    os.utime(data / "file", ns=(10**18, 1234567890 * 10**9))
    os.link(data / "file", data / "sub/same")
    os.link(data / "file", data.parent / "outside")
    (data / "absolute").symlink_to("/etc/passwd")
    (data / "up").symlink_to("../../../../../../etc/passwd")
    os.lchown(data / "up", 5, 6)
    os.link(data / "up", data / "up too", follow_symlinks=False)
    now = os.lstat(data / "up").st_mtime_ns
    # For mksquashfs two names are one file only if its reading does not change the time of access in between.
    os.utime(data / "up", ns=(now + 60 * 10**9, now), follow_symlinks=False)
    os.mkfifo(data / "fifo", 0o620)
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(data / "socket", stat.S_IFSOCK | 0o600)
    os.mkfifo(os.fsencode(data) + b"/\xff\n")
    with (data / "sparse").open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 26)
        file.seek((1 << 25) + 5)
        file.write(b"middle")


def listing(top: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything in a directory: path -> its attributes and content, with hard links as the first of their names."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    for folder, directories, files in os.walk(os.fsencode(top)):
        directories.sort()
        for path in (folder, *(os.path.join(folder, name) for name in (*directories, *sorted(files)))):
            info, name = os.lstat(path), os.path.relpath(path, os.fsencode(top))
            xattrs = {x: os.getxattr(path, x, follow_symlinks=False) for x in os.listxattr(path, follow_symlinks=False)}
            content: object = os.readlink(path) if stat.S_ISLNK(info.st_mode) else b""
            if stat.S_ISREG(info.st_mode):
                content = info.st_size, Path(os.fsdecode(path)).read_bytes() if info.st_size < 1 << 20 else b""
            found[name] = (info.st_mode, info.st_uid, info.st_gid, info.st_rdev, int(info.st_mtime), xattrs, content)
            if not stat.S_ISDIR(info.st_mode):
                found[name] += (min(inodes.setdefault(info.st_ino, name), name),)
    return found


def test_a_volume_has_what_the_image_has_there(make_image: MakeImage, show: Callable[..., list[str]], tmp_path: Path) -> None:
    image = make_image(lambda rootfs: _fill(rootfs / "data"), Volumes={"/data": {}, "/etc": {}}, User="1000:1001")
    with oci.Bundle.from_sif(image, tmp_path / "b") as bundle:
        volume = bundle.path / "volumes/0"
        source = listing(tmp_path / "image/rootfs/data")
        del source[b"socket"]  # left out of the SIF file, which is built from a tar stream
        assert listing(volume) == listing(bundle.rootfs / "data") == source
        assert (volume / "sparse").stat().st_blocks * 512 <= 1 << 20
        with (volume / "sparse").open("rb") as file:
            file.seek(1 << 25)
            assert file.read(16) == b"\0" * 5 + b"middle" + b"\0" * 5
        assert (volume / "file").stat().st_nlink == 2, "the third name is outside"
        assert sorted(os.listdir(bundle.path / "volumes")) == ["0", "1"]
        script = "id -u; cat /data/file 2>/dev/null || echo denied; echo new > /data/new && cat /data/new; stat -c %a:%u:%g /data; head -c 4 /etc/passwd; echo"
        assert show(bundle, script) == ["1000", "denied", "new", "2750:1000:1001", "root"]
        assert (volume / "new").stat().st_uid == 1000
        assert not (bundle.rootfs / "data/new").exists(), "it is in the volume, and not in the root filesystem"
        assert not (tmp_path / "image/rootfs/data/new").exists()
    assert not (tmp_path / "b").exists()
    assert show(image, "touch /data/new && ls /data/new; head -c 4 /etc/passwd") == ["/data/new", "root"]


def test_where_a_volume_can_be(make_image: MakeImage, show: Callable[..., list[str]], tmp_path: Path) -> None:
    """Links stay in the image, inner volumes are mounted in outer ones, and a volume that the image does not have is empty."""

    def change(rootfs: Path) -> None:
        _fill(rootfs / "data")
        (rootfs / "link").symlink_to("../../../../../../data")
        (rootfs / "dangling").symlink_to("/to/be/made")
        (rootfs / "outer/inner").mkdir(parents=True)
        (rootfs / "outer/inner/file").write_text("inner\n")

    volumes = {
        "/outer/inner": {},
        "/link": {},
        "/outer/": {},
        "/dangling": {},
        "relative": {},
        "/no/where": {},
        "/a/../data/sub": {},
    }
    image = make_image(change, Volumes=volumes)
    script = "cat /outer/inner/file /data/file; stat -c '%a %u' /to/be/made /relative /no/where /data/sub; grep -c /volumes/ /proc/self/mountinfo"
    assert show(image, script) == ["inner", "content", "755 0", "755 0", "755 0", "1733 0", "7"]


def _nested(rootfs: Path) -> None:
    path = rootfs / "data"
    for _ in range(200):
        path /= "d"
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "volume", "why"),
    [
        (lambda rootfs: None, "/", "cannot cover the whole root"),
        (lambda rootfs: None, "/bin/..", "cannot cover the whole root"),
        (lambda rootfs: None, "/etc/passwd", "Not a directory"),
        (lambda rootfs: None, "/etc/passwd/below", "Not a directory"),
        (lambda rootfs: (rootfs / "data").symlink_to("data"), "/data", "symbolic links"),
        (_nested, "/data", "more than 128 directories"),
        (lambda rootfs: _fill(rootfs / "data"), "/data", "more than 5 files"),
    ],
)
def test_a_volume_that_cannot_be_made(
    make_image: MakeImage, tmp_path: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch, change: Any, volume: str, why: str
) -> None:
    image = make_image(change, Volumes={volume: {}})
    if "files" in why:
        monkeypatch.setattr(trees, "_MOST_ENTRIES", 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    for make in (
        lambda: oci.Bundle.from_sif(image, tmp_path / "b"),
        lambda: oci.run(image, ["true"], state_root=state_root),
    ):
        with pytest.raises(oci.BundleError, match=f"the image's volume '{volume}'.*{why}"):
            make()
    assert not (tmp_path / "b").exists()
    assert os.listdir(tmp_path / "temporary") == []


def test_too_many_bytes(make_image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "_MOST_BYTES", 1 << 20)
    image = make_image(lambda rootfs: _fill(rootfs / "data"), Volumes={"/data": {}})
    with pytest.raises(oci.BundleError, match="volume '/data' cannot be copied: it has more than"):
        oci.Bundle.from_sif(image, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_full_filesystem(make_image: MakeImage, tmp_path: Path) -> None:
    image = make_image(
        lambda rootfs: ((rootfs / "data").mkdir(), (rootfs / "data/file").write_bytes(os.urandom(1 << 22))), Volumes={"/data": {}}
    )
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "small", tmp_path / "small"], check=True)
    try:
        with pytest.raises(oci.BundleError, match="volume '/data' cannot be copied: No space left on device"):
            oci.Bundle.from_sif(image, tmp_path / "small/b")
        assert os.listdir(tmp_path / "small") == []
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_an_interrupt_while_a_volume_is_copied(make_image: MakeImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = make_image(lambda rootfs: _fill(rootfs / "data"), Volumes={"/data": {}})
    copy, calls = os.pread, []

    def pread(*arguments: int) -> bytes:
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return copy(*arguments)

    monkeypatch.setattr("os.pread", pread)
    with pytest.raises(KeyboardInterrupt):
        oci.Bundle.from_sif(image, tmp_path / "b")
    assert len(calls) == 3, "it ends at once"
    assert not (tmp_path / "b").exists()


def test_a_file_with_more_links_than_the_filesystem_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/0").write_text("x")
    for number in range(1, 6):
        os.link(tmp_path / "source/0", tmp_path / f"source/{number}")
    link, created = os.link, []

    def limited(*arguments: Any, **options: Any) -> None:
        created.append(arguments)
        if len(created) == 3:
            raise OSError(31, "Too many links")
        link(*arguments, **options)

    monkeypatch.setattr("os.link", limited)
    fd = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        copy_tree([fd], str(tmp_path / "target"), "a test")
    finally:
        os.close(fd)
    assert [(tmp_path / f"target/{number}").read_text() for number in range(6)] == ["x"] * 6
    assert len({(tmp_path / f"target/{number}").stat().st_ino for number in range(6)}) == 2
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
