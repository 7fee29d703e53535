"""Users and home directories of containers, by the files that the container has."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import Mount

from ..support.fixture_types import MakeBundle, Script
from ..support.mounts import Runner, bind, tmpfs
from ..support.places import REPO

pytestmark = pytest.mark.root

IMAGE = "root:x:0:0::/image:\napp:x:1000:1000::/image/app:\n"
OTHER = "root:x:0:0::/other:\napp:x:1001:1002::/other/app:\n"
GROUP = "wheel:x:10:app\nvideo:x:44:app\n"
SHOW = "echo $HOME; cut -d: -f6 /etc/passwd 2>/dev/null | head -n 1"

Place = Callable[[Path, Path], list[dict[str, Any]]]


def _linked(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "usr/etc").mkdir(parents=True)
    (rootfs / "etc").rename(rootfs / "usr/share")
    (rootfs / "etc").symlink_to("usr/etc")
    return [bind(other, "/usr/etc", "bind")]


def _through_a_link(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "alias").symlink_to("../../etc")
    return [bind(other / "passwd", "/alias/passwd", "bind")]


def _link_in_the_mount(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (other / "passwd").rename(other / "users")
    (other / "passwd").symlink_to("/srv/users")
    return [bind(other, "/etc", "bind"), bind(other, "/srv", "bind")]


def _link_of_the_image(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/run/users/passwd")
    return [tmpfs("/run"), bind(other, "/run/users", "bind")]


def _inside(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "srv").mkdir()
    (rootfs / "srv/passwd").write_text(OTHER)
    (rootfs / "link").symlink_to("srv")
    return [bind(rootfs / "link", "/etc", "bind")]


def _inside_a_mount(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "srv").mkdir()
    return [bind(other, "/srv", "bind"), bind(rootfs / "srv", "/etc", "bind")]


def _loop(rootfs: Path, other: Path) -> list[dict[str, Any]]:
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("passwd")
    return []


PLACES: dict[str, tuple[Place, str]] = {
    "nothing": (lambda rootfs, other: [], "/image"),
    "a file": (lambda rootfs, other: [bind(other / "passwd", "/etc/passwd", "bind", "ro")], "/other"),
    "a directory": (lambda rootfs, other: [bind(other, "/etc", "rbind")], "/other"),
    "the root": (lambda rootfs, other: [bind(other, "/etc", "bind"), bind(rootfs, "/", "bind")], "/image"),
    "the root with its mounts": (lambda rootfs, other: [bind(other, "/etc", "bind"), bind(rootfs, "/", "rbind")], "/other"),
    "a tmpfs": (lambda rootfs, other: [tmpfs("/etc")], "/"),
    "a copy": (lambda rootfs, other: [tmpfs("/etc", "tmpcopyup")], "/image"),
    "a tmpfs over a file": (lambda rootfs, other: [bind(other / "passwd", "/etc/passwd", "bind"), tmpfs("/etc")], "/"),
    "a file in a tmpfs": (lambda rootfs, other: [tmpfs("/etc"), bind(other / "passwd", "/etc/passwd", "bind")], "/other"),
    "the last": (lambda rootfs, other: [bind(rootfs / "tmp", "/etc", "bind"), bind(other, "/etc", "bind")], "/other"),
    "a change": (lambda rootfs, other: [bind(other, "/etc", "bind"), bind(other, "/etc", "remount", "bind", "ro")], "/other"),
    "a tmpfs over a bind": (lambda rootfs, other: [tmpfs("/etc"), bind(other, "/etc", "bind"), tmpfs("/etc")], "/"),
    "an empty directory": (lambda rootfs, other: [bind(rootfs / "tmp", "/etc", "bind")], "/"),
    "dots": (lambda rootfs, other: [bind(other, "/tmp/.././etc/", "bind")], "/other"),
    "a linked directory": (_linked, "/other"),
    "a destination with a link": (_through_a_link, "/other"),
    "a link in the mount": (_link_in_the_mount, "/other"),
    "a link into a mount": (_link_of_the_image, "/other"),
    "a source in the root": (_inside, "/other"),
    "a source in a mount": (_inside_a_mount, "/other"),
    "a loop": (_loop, "/"),
}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A directory of the host with files of users."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "passwd").write_text(OTHER)
    (other / "group").write_text(GROUP)
    return other


def with_users(rootfs: Path) -> None:
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").write_text(IMAGE)
    (rootfs / "etc/group").write_text(GROUP)


@pytest.mark.parametrize("place", PLACES)
def test_home_of_the_files_that_the_container_has(either: Runner, other: Path, place: str) -> None:
    """It is what a program reads in the container, and what an exec process gets."""
    bundle = either.bundle()
    with_users(bundle.rootfs)
    mounts, expected = PLACES[place]
    document: dict[str, Any] = bundle.spec.to_dict()
    document["mounts"] += mounts(bundle.rootfs, other)
    bundle.spec = oci.RuntimeSpec.load(document)
    shown = either(SHOW, bundle=bundle).split()
    assert shown == [expected] * (1 if expected == "/" else 2)


def test_names_of_the_files_that_the_container_has(make_bundle: MakeBundle, other: Path, state_root: Path, prefix: str) -> None:
    bundle = make_bundle()
    with_users(bundle.rootfs)
    mounts = [f"{other}/passwd:/etc/passwd"]
    show = ["sh", "-c", "echo $(id -u) $(id -g) $HOME"]
    for image in (bundle, bundle.path, bundle.rootfs):
        result = oci.run(
            image, show, user="app", mounts=mounts, capture_output=True, text=True, state_root=state_root, container_id=prefix
        )
        assert result.stdout == "1001 1002 /other/app\n", result.stderr
    relative = [Mount(destination="/etc", type="bind", source=os.path.relpath(other), options=("bind",))]
    assert oci.run(bundle, show, user="app", mounts=relative, capture_output=True, state_root=state_root).stdout.startswith(
        b"1001 "
    )
    with pytest.raises(oci.BundleError, match="user 'app' is neither a number nor in the container's /etc/passwd"):
        oci.run(bundle, show, user="app", mounts=[Mount(destination="/etc", type="tmpfs", source="tmpfs")], state_root=state_root)


@pytest.mark.sif
def test_the_image_s_user_under_a_mount(make_bundle: MakeBundle, other: Path, state_root: Path) -> None:
    bundle = make_bundle()
    with_users(bundle.rootfs)
    image = bundle.path / "x.sif"
    oci.build_sif(image, bundle.rootfs, oci_config={"User": "app"})
    show = ["sh", "-c", "echo $(id -u) $HOME $(grep ^Groups: /proc/self/status)"]
    for mounts, expected in (((), "1000 /image/app Groups: 10 44 1000"), ([f"{other}:/etc"], "1001 /other/app Groups: 10 44 1002")):
        result = oci.run(image, show, mounts=mounts, capture_output=True, text=True, state_root=state_root)
        assert result.stdout == f"{expected}\n", result.stderr


@pytest.mark.parametrize(
    ("user", "groups"),
    [("app", "10 44 1000"), ("1000", "10 44 1000"), ("app:video", "44"), ("app:7", "7"), ("1000:8", "8"), ("5", "0")],
)
def test_the_primary_group_is_a_supplementary_group(
    make_bundle: MakeBundle, state_root: Path, prefix: str, user: str, groups: str
) -> None:
    """It is one in whatever way the user is named, so that no set-group-id program can drop it."""
    bundle = make_bundle()
    with_users(bundle.rootfs)
    show = ["grep", "^Groups:", "/proc/self/status"]
    by_run = oci.run(bundle, show, user=user, capture_output=True, text=True, state_root=state_root)
    assert by_run.stdout.split() == ["Groups:", *groups.split()], by_run.stderr
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        by_exec = container.exec(show, user=user, capture_output=True, text=True)
        assert by_exec.stdout.split() == ["Groups:", *groups.split()]
        command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), "exec", "--user", user, prefix, *show]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["Groups:", *groups.split()], done.stderr
        with_more = container.exec(show, user=user, groups=[9], capture_output=True, text=True).stdout.split()
        primary = container.exec(["id", "-g"], user=user, capture_output=True, text=True).stdout.strip()
        assert with_more == ["Groups:", *sorted({primary, "9"}, key=int)]


ROOTLESS = """
import os, sys
import ociruntime as oci
from ociruntime.spec import Mount
path, other, root, uid = *sys.argv[1:4], int(sys.argv[4])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
bundle = oci.Bundle.load(path)
show = ["sh", "-c", "echo $(id -u) $(id -g) $HOME"]
options = dict(capture_output=True, text=True, state_root=root, check=True)
mounts = [f"{other}/passwd:/etc/passwd"]
for user in ("root", "0", (0, 0)):
    print(oci.run(bundle, show, user=user, mounts=mounts, **options).stdout, end="")
with oci.Container.run("c", bundle.with_args(["sleep", "1000"]), state_root=root) as container:
    for user in ("root", "0:0"):
        print(container.exec(show, user=user, capture_output=True, text=True, check=True).stdout, end="")
    try:
        container.exec(show, user="root", groups=[7], capture_output=True)
    except oci.OCIRuntimeError as error:
        print(type(error).__name__)
"""


def test_a_user_whose_namespace_denies_setgroups(make_bundle: MakeBundle, other: Path, tmp_path: Path, user_script: Script) -> None:
    """The primary group needs no setgroups there, so a container of a user without subordinate ids runs as before."""
    uid = 47123
    bundle = make_bundle(oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid))
    with_users(bundle.rootfs)
    state = tmp_path / "users-state"
    state.mkdir(mode=0o700)
    for directory in (state, *(name for name, _, _ in os.walk(bundle.path))):
        os.chown(directory, uid, uid)
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(parent.stat().st_mode | 0o111)
    done = user_script(ROOTLESS, bundle.path, other, state, uid)
    assert done.stdout.splitlines() == ["0 0 /other"] * 3 + ["0 0 /image"] * 2 + ["StepError"], done.stderr
