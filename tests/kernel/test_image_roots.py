"""The root of images: whose it is, and what the caller's umask has to do with it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.host import Host

from ..conftest import REPO
from ..support.fixture_types import MakeBundle, Script

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
    monkeypatch.setattr("ociruntime.rootfs.mount.Host.probe", lambda: host._replace(kernel=min(kernel, host.kernel)))
    assert show(make_image(_odd_root), "stat -c '%a %u:%g' /; echo x > /x; cat /x") == ["1777 7:8", "x"]
