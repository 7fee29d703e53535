"""Mount points that are missing in a root filesystem where the container cannot make them: they are made in an upper layer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.private_users import UID, User, give, new_user

pytestmark = pytest.mark.root
HELPERS = shutil.which("newuidmap", path="/usr/bin") is not None


@pytest.fixture(params=[False, True], ids=["own id", "subordinate ids"])
def user(request: pytest.FixtureRequest, user_python: str, busybox_rootfs: Path, busybox_sif: Path) -> Iterator[User]:
    """A user whose home has ``tree``, a root filesystem of the host's root, and ``image.sif``."""
    if request.param and not HELPERS:
        pytest.skip("no newuidmap (Debian: uidmap)")
    with new_user(user_python, subordinate=request.param) as created:
        shutil.copy(busybox_sif, created.home / "image.sif")
        give(created.home)
        tree = created.home / "tree"
        shutil.copytree(busybox_rootfs, tree, symlinks=True)
        (tree / "srv/inner").mkdir(parents=True, mode=0o755)
        (tree / "srv").chmod(0o705)
        (tree / "srv/file").write_text("of the image\n")
        (tree / "link").symlink_to("/srv/inner/behind")
        yield created


def run_script(user: User, text: str) -> list[str]:
    text = f"import json, os, shutil, sys, ociruntime as oci\nhome = os.environ['HOME']\n{text}"
    options = ("-W", "always", "-c", text)
    done = user.run(*options, HOME=str(user.home), XDG_CACHE_HOME=f"{user.home}/cache")
    return [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if "mount points" in line)]


MOUNTS = """
os.makedirs("data/sub"); open("data/file", "w").write("of the host\\n")
mounts = [f"{home}/data:/srv/new/data", f"{home}/data/file:/srv/inner/new", f"{home}/data:/link", f"{home}/data:/top"]
script = '''
cat /srv/new/data/file /srv/inner/new /srv/inner/behind/file /top/file /srv/file; stat -c %a /srv; ls /srv; pwd; touch /top/made /srv/written && echo written
'''
run = lambda image, **more: oci.run(image, ["sh", "-c", script], capture_output=True, text=True, mounts=mounts, cwd="/srv/new/cwd", **more)
def bundle(tree):
    os.makedirs("bundle", exist_ok=True)
    if os.path.lexists("bundle/rootfs"): os.unlink("bundle/rootfs")
    os.symlink(tree, "bundle/rootfs")
    return oci.Bundle.load("bundle") if os.path.exists("bundle/config.json") else oci.Bundle.from_dir("bundle")
"""


@pytest.mark.parametrize("place", ["'tree'", "bundle(f'{home}/tree')"], ids=["directory", "bundle"])
@pytest.mark.parametrize("who", ["None", "'caller'"])
def test_a_root_filesystem_of_another_user(user: User, place: str, who: str) -> None:
    """The directories above them keep their files and permissions, and the directory itself does not change."""
    before = sorted(str(path) for path in (user.home / "tree").rglob("*"))
    found = run_script(user, f"{MOUNTS}result = run({place}, user={who})\nprint(result.stdout + result.stderr)")
    lines = ["of the host"] * 4 + ["of the image", "705", "file", "inner", "new", "/srv/new/cwd", "written"]
    warned = [line for line in found if "mount points" in line]
    assert [line for line in found if line and line not in warned] == lines
    assert len(warned) == (1 if "bundle" in place else 0)
    assert all(line.endswith("the container has an upper layer of its own, which is removed with it") for line in warned)
    assert sorted(str(path) for path in (user.home / "tree").rglob("*")) == before
    assert (user.home / "data/made").stat().st_uid == UID
    assert user.leftovers() == []


@pytest.mark.parametrize("overlay", ["tmpfs", "tmpfs:size=4M", "kept", "none", "kept:ro"])
def test_every_upper_layer(user: User, overlay: str) -> None:
    """The mount points are made also where the upper layer does not exist before the container, or is kept."""
    before = sorted(str(path) for path in (user.home / "tree").rglob("*"))
    text = f"""
os.makedirs("kept/upper")
for again in range(2):
    result = run("tree", overlay={overlay!r})
    print(result.stdout + result.stderr)
"""
    found = run_script(user, MOUNTS.replace("ls /srv;", "") + text)
    written = "touch: /srv/written: Read-only file system" if overlay == "none" else "written"
    lines = ["of the host"] * 4 + ["of the image", "705", "/srv/new/cwd", written]
    assert [line for line in found if line] == lines * 2
    assert sorted(str(path) for path in (user.home / "tree").rglob("*")) == before
    assert user.leftovers() == []


def test_a_kept_layer_with_a_symbolic_link(user: User) -> None:
    """A container may have left one in the place of a directory. Nothing is made behind it on the host."""
    text = """
os.makedirs("kept/upper"); os.mkdir("outside")
os.symlink(f"{home}/outside", "kept/upper/srv")
result = oci.run("tree", ["true"], mounts=[f"{home}/data:/srv/new/data"], cwd="/srv/new/cwd", overlay="kept")
print(result.returncode, os.listdir("outside"), os.readlink("kept/upper/srv") == f"{home}/outside")
"""
    assert run_script(user, MOUNTS + text)[-1] == "0 [] True"
    assert user.leftovers() == []


def test_a_root_filesystem_that_has_them(user: User) -> None:
    """It needs no upper layer, so what can be written to it stays."""
    (user.home / "tree/own").mkdir()
    (user.home / "tree/mnt").mkdir()
    for name in "proc", "sys", "dev":
        (user.home / "tree" / name).mkdir()
    os.chown(user.home / "tree/own", UID, UID)
    text = """
found = bundle(f"{home}/tree")
print(oci.run(found, ["touch", "/own/new"], mounts=[f"{home}/data:/mnt"], cwd="/own", user="0").returncode)
print(any("overlay" in step.text for step in found.plan().steps))
"""
    assert run_script(user, MOUNTS + text) == ["0", "False"]
    assert (user.home / "tree/own/new").exists()
    assert user.leftovers() == []


def test_a_copy_of_the_config_of_a_mounted_image(user: User, prefix: str) -> None:
    """Slurm copies config.json to another directory. The container mounts the image with an upper layer all the same."""
    text = """
with oci.Bundle.from_sif("image.sif", "mounted") as mounted:
    os.mkdir("copy")
    spec = mounted.spec.evolve(root=oci.spec.Root(path=str(mounted.rootfs)))
    spec.with_args(["sleep", "1000"]).save("copy/config.json")
    print(oci.run(oci.Bundle.load("copy"), ["sh", "-c", "touch /new; ls -d /new /bin/busybox"], capture_output=True, text=True).stdout.split())
    with oci.Container.run(sys.argv[1], oci.Bundle.load("copy")):
        try:
            mounted.umount()
        except oci.BundleError as error:
            print("still uses it" in str(error))
    print(os.listdir("mounted/overlay"))
print(os.path.exists("mounted"))
"""
    text = text.replace("sys.argv[1]", repr(prefix))
    assert run_script(user, text) == ["['/bin/busybox', '/new']", "True", "[]", "False"]
    assert user.leftovers() == []


def test_a_read_only_image(busybox_sif: Path, tmp_path: Path, state_root: Path) -> None:
    """Without a writable overlay, root's containers get an upper layer if they need one."""
    (tmp_path / "data").mkdir()
    script, mounts = ["sh", "-c", "touch /data/new /new; ls -d /new"], [f"{tmp_path}/data:/data"]
    with oci.Bundle.from_sif(busybox_sif, tmp_path / "bundle", writable=False) as bundle:
        with pytest.warns(oci.OCIRuntimeWarning, match=r"/rootfs has not all mount points, and they cannot be made there: "):
            result = oci.run(bundle, script, text=True, mounts=mounts, capture_output=True, state_root=state_root)
        assert result.stdout == "/new\n", result.stderr
        assert os.listdir(tmp_path / "data") == ["new"]
        assert "new" not in os.listdir(bundle.rootfs)
    assert not list(Path("/tmp").glob("ociruntime-*/container"))
