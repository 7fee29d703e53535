"""Running SIF files that were made from other images, by root and by an unprivileged user."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.images import TAR_TYPE, OciImage
from ..support.private_users import FIRST, User, give, new_user
from ..support.processes import find_processes
from ..support.waiting import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not (shutil.which("tar2sqfs") or shutil.which("mksquashfs")), reason="neither squashfs-tools-ng nor squashfs-tools"
    ),
]


def write_layout(root: Path, path: Path, **config: list[str]) -> Path:
    """Write an OCI image whose second layer adds a program that belongs to another user, and removes one."""
    layers = []
    for names in (os.listdir(root), []):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in names:
                archive.add(root / name, name)
            if not names:
                script = tarfile.TarInfo("srv/app")
                script.size, script.mode, script.uid = 31, 0o750, 1000
                archive.addfile(script, io.BytesIO(b'#!/bin/sh\necho "app: $GREETING"\n'))
                archive.addfile(tarfile.TarInfo("bin/.wh.nslookup"))
        layers.append((buffer.getvalue(), TAR_TYPE))
    image = OciImage()
    image.add(layers, name="it", config=config)
    return image.write_layout(path)


CONFIG = {"Entrypoint": ["/bin/sh", "-c", '/srv/app; stat -c %u /srv/app; ls -d "$@"; :', "sh"], "Env": ["GREETING=hello"]}


def test_root(busybox_rootfs: Path, tmp_path: Path, state_root: Path) -> None:
    write_layout(busybox_rootfs, tmp_path / "layout", **CONFIG)
    oci.build(tmp_path / "layout", tmp_path / "x.sif")
    result = oci.run(tmp_path / "x.sif", capture_output=True, text=True, state_root=state_root)
    assert result.stdout == "app: hello\n1000\n.\n"
    result = oci.run(
        tmp_path / "x.sif",
        ["/.singularity.d/actions/run", "/bin/nslookup", "/singularity"],
        capture_output=True,
        text=True,
        state_root=state_root,
    )
    assert result.stdout == "app: hello\n1000\n/singularity\n"
    assert "/bin/nslookup: No such file" in result.stderr
    with oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "bundle", writable=False) as bundle:
        assert os.stat(bundle.rootfs / "srv/app").st_uid == 1000
        assert os.stat(bundle.rootfs / "bin/busybox").st_size == os.stat(busybox_rootfs / "bin/busybox").st_size


def test_a_bundle_and_its_upper_layer(busybox_rootfs: Path, tmp_path: Path) -> None:
    """What a kernel overlay has, mounted and as its directory, is what the new image has."""
    write_layout(busybox_rootfs, tmp_path / "layout", **CONFIG)
    oci.build(tmp_path / "layout", tmp_path / "x.sif")
    with oci.Bundle.from_sif(tmp_path / "x.sif", tmp_path / "bundle") as bundle:
        root = bundle.rootfs
        os.unlink(root / "bin/ls")
        shutil.rmtree(root / "srv")
        (root / "srv").mkdir(0o711)
        (root / "srv/new").write_text("new")
        os.chown(root / "etc/passwd", 7, 8)
        os.mknod(root / "zero", 0o20666, os.makedev(1, 5))
        expected = {path.relative_to(root).as_posix() for path in root.rglob("*")}
        oci.build(bundle.path, tmp_path / "mounted.sif")
        oci.build(tmp_path / "x.sif", tmp_path / "upper.sif", upper=bundle.path / "overlay")
        oci.build(tmp_path / "layout", tmp_path / "layers.sif", upper=bundle.path / "overlay/upper", format="oci-sif")
    for name in ("mounted.sif", "upper.sif", "layers.sif"):
        with oci.Image.open(tmp_path / name) as image:
            files = {file.path.lstrip("/"): file for file in image.files()}
        assert {path for path in expected if name != "layers.sif" or path.startswith(("bin", "etc", "srv"))} <= files.keys()
        assert not {"bin/ls", "srv/app", "bin/nslookup"} & files.keys()
        assert (files["etc/passwd"].uid, files["etc/passwd"].gid, files["srv"].mode) == (7, 8, 0o711)
        assert files["zero"].device == (1, 5)
        assert files["srv/new"].size == 3


@pytest.fixture(params=[True, False], ids=["subordinate ids", "the own id"])
def user(request: pytest.FixtureRequest, user_python: str) -> Iterator[User]:
    with new_user(user_python, subordinate=request.param, fuse=False) as created:
        yield created


def test_a_user(user: User, busybox_rootfs: Path) -> None:
    write_layout(busybox_rootfs, user.home / "layout", **CONFIG)
    give(user.home)
    env = {"XDG_CACHE_HOME": f"{user.home}/cache"}
    assert user.command("build", "x.sif", "oci:layout:it", **env).stderr == ""
    with oci.Image.open(user.home / "x.sif") as image:
        assert {file.uid for file in image.files("/bin")} == {0}  # as the archive says, not the user's id
        assert {file.path: file.uid for file in image.files("/srv")}["/srv/app"] == 1000
        assert not [file for file in image.files("/bin") if file.path == "/bin/nslookup"]
    done = user.run("-W", "ignore", "-c", "import ociruntime as oci; oci.run('x.sif')", **env)
    assert done.stdout.startswith("app: hello\n"), done.stderr
    user.command("prune", **env)


CHANGES = """
umask 077
mkdir -p /var/lib/db && echo secret > /var/lib/db/file && echo 1 > /srv/new && ln /srv/new /srv/same
rm /srv/app /bin/ls && rm -r /etc && mkdir /etc && echo 2 > /etc/new
chown -R 33:41 /var/lib/db && chown 65534:65534 /srv/new
"""


def test_the_upper_layer_of_a_user(user: User, busybox_rootfs: Path) -> None:
    """Files that a container gave to other ids have these ids in the image, although they are not the user's on the host."""
    write_layout(busybox_rootfs, user.home / "layout")
    (user.home / "kept").mkdir()
    give(user.home)
    env = {"XDG_CACHE_HOME": f"{user.home}/cache"}
    changes = CHANGES if user.subordinate else "\n".join(CHANGES.splitlines()[:-1])
    text = f"import ociruntime as oci; oci.run('layout', ['/bin/sh', '-ec', {changes!r}], overlay='kept', check=True)"
    user.run("-W", "ignore", "-c", text, **env)
    assert (os.stat(user.home / "kept/upper/var/lib/db").st_uid == FIRST + 32) == user.subordinate
    for name, options in {"x.sif": [], "oci.sif": ["--oci"]}.items():
        assert user.command("build", *options, "--upper", "kept", name, "layout", **env).stderr == ""
        with oci.Image.open(user.home / name) as image:
            files = {file.path: file for file in image.files()}
            assert image.read_bytes("/var/lib/db/file") == b"secret\n"
        database, others = ((33, 41), (65534, 65534)) if user.subordinate else ((0, 0), (0, 0))
        for path, mode, ids in (
            ("/var/lib", 0o700, (0, 0)),
            ("/var/lib/db", 0o700, database),
            ("/var/lib/db/file", 0o600, database),
            ("/srv/new", 0o600, others),
            ("/srv/same", 0o600, others),
            ("/etc/new", 0o600, (0, 0)),
        ):
            assert (files[path].mode, files[path].uid, files[path].gid) == (mode, *ids), path
        assert not {"/srv/app", "/bin/ls", "/etc/passwd"} & files.keys()
    os.chown(user.home / "kept/upper/srv/new", 4711, 4711)
    os.chmod(user.home / "kept/upper/srv/new", 0o644)
    done = user.command("build", "--upper", "kept", "y.sif", "layout", check=False, **env)
    assert done.returncode == 1
    why = "belongs to uid 4711 and gid 4711, which are neither the caller's nor in its ranges"
    assert re.search(f"kept/upper/srv/(new|same): {why}", done.stderr)  # these are links to one file
    assert sorted(path.name for path in user.home.iterdir()) == ["cache", "kept", "layout", "oci.sif", "x.sif"]
    user.command("prune", **env)


SLOW_READER = """\
#!{python}
import os, sys
*options, code = sys.argv[1:]
begin, call = code.rsplit("; ", 1)
slow = "import time; from ociruntime.image.convert import Files; Files.write_archive = lambda *rest: time.sleep(1000)"
os.execv("{python}", ["{python}", *options, f"{{begin}}; {{slow}}; {{call}}"])
"""


def test_the_reader_of_an_upper_layer_ends_with_its_caller(user: User, busybox_rootfs: Path) -> None:
    """The files of subordinate ids are read by another process."""
    if not user.subordinate:
        pytest.skip("all files belong to the user, which reads them itself")
    changed = user.home / "kept/upper/file"
    for directory in (changed.parent, user.home / "kept/work"):
        directory.mkdir(parents=True)
    changed.touch()
    reader = user.home / "reader"
    reader.write_text(SLOW_READER.format(python=user.python))
    reader.chmod(0o755)
    write_layout(busybox_rootfs, user.home / "layout")
    give(user.home)
    os.chown(changed, FIRST, FIRST)
    text = "import sys; sys.executable = './reader'; import ociruntime as oci; oci.build('layout', 'x.sif', upper='kept')"
    with user.start("-c", text, stdout=1, stderr=2) as builder:
        wait_until(lambda: any(pid in user.processes() for pid in find_processes("write_archive = ")), "the start of the reader")
        builder.kill()
    assert user.leftovers() == []
    assert sorted(os.listdir(user.home)) == ["kept", "layout", "reader"]


def test_an_image_with_nothing_to_run(tmp_path: Path, state_root: Path) -> None:
    (tmp_path / "root").mkdir()
    oci.build(tmp_path / "root", tmp_path / "x.sif")
    oci.build_sif(tmp_path / "y.sif", tmp_path / "root")
    for name in ("x.sif", "y.sif"):
        with pytest.raises(oci.StepError, match="the image has nothing to run by default") as caught:
            oci.run(tmp_path / name, state_root=state_root)
        assert "PATH" not in str(caught.value)


def test_a_default_shell(busybox_rootfs: Path, tmp_path: Path, state_root: Path) -> None:
    oci.build(busybox_rootfs, tmp_path / "x.sif")
    result = oci.run(tmp_path / "x.sif", input="echo from the shell", capture_output=True, text=True, state_root=state_root)
    assert result.stdout == "from the shell\n"
