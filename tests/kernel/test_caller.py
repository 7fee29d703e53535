"""Programs that run as their caller: ids, groups, names, home and working directory, with the files of the image unchanged."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.overrides import Overrides

from ..support.private_users import UID, User, give, new_user

pytestmark = pytest.mark.root
FUSE = all(shutil.which(name) for name in ("squashfuse", "fusermount3")) and os.path.exists("/dev/fuse")
HELPERS = shutil.which("newuidmap", path="/usr/bin") is not None
PASSWD = f"root:x:0:0:root:/root:/bin/sh\nother:x:{UID}:{UID}::/other:/bin/sh\n"
NAME = f"u{UID}"


@pytest.fixture(scope="module")
def tree(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem in which the id of the user has another name."""
    tree = tmp_path_factory.mktemp("tree") / "rootfs"
    shutil.copytree(busybox_rootfs, tree, symlinks=True)
    (tree / "etc/passwd").write_text(PASSWD)
    (tree / "etc/group").write_text("root:x:0:\n")
    return tree


@pytest.fixture(scope="module")
def image(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("mksquashfs") is None:
        pytest.skip("no mksquashfs (Debian: squashfs-tools)")
    path = tmp_path_factory.mktemp("image") / "image.sif"
    oci.build_sif(path, tree, oci_config={"Cmd": ["sleep", "1000"], "WorkingDir": "/tmp", "Env": ["HOME=/image"]})
    return path


@pytest.fixture(params=[False, True], ids=["own id", "subordinate ids"])
def user(request: pytest.FixtureRequest, user_python: str, tree: Path, image: Path) -> Iterator[User]:
    """A user in two groups, whose home has ``image.sif``, ``tree`` and ``bundle``."""
    if request.param and not HELPERS:
        pytest.skip("no newuidmap (Debian: uidmap)")
    with new_user(user_python, subordinate=request.param, fuse=FUSE and request.param) as created:
        created.groups = (UID, 39)
        shutil.copy(image, created.home / "image.sif")
        shutil.copytree(tree, created.home / "tree", symlinks=True)
        (created.home / "bundle").mkdir()
        shutil.copytree(tree, created.home / "bundle/rootfs", symlinks=True)
        give(created.home)
        yield created


def run_script(user: User, text: str, *args: object, **env: str) -> list[str]:
    """Run Python text as the user, and return the lines of its output."""
    text = f"import json, os, sys, ociruntime as oci\n{text}"
    options = ("-W", "ignore::ociruntime.OCIRuntimeWarning", "-c", text, *args)
    return user.run(*options, XDG_CACHE_HOME=f"{user.home}/cache", **env).stdout.splitlines()


AS_CALLER = """
oci.Bundle.from_dir("bundle")
script = 'id -u; id -g; id -G; whoami; echo $HOME; pwd; awk -F: "{print \\\\$1}" /etc/passwd /etc/group | xargs; touch /tmp/new; stat -c %u /tmp/new'
for image in "image.sif", "tree", oci.Bundle.load("bundle"):
    print(*oci.run(image, ["sh", "-c", script], user="caller", capture_output=True, text=True, check=True).stdout.splitlines(), sep="|")
"""


def test_a_user(user: User) -> None:
    """The ids are the same inside and outside, and the caller's lines come before those of the image."""
    shown = run_script(user, AS_CALLER)
    names = f"{NAME} root other group{UID} root"
    groups = f"{UID} 65534"
    assert shown[0] == f"{UID}|{UID}|{groups}|{NAME}|/nonexistent|/tmp|{names}|{UID}"
    assert shown[1:] == [f"{UID}|{UID}|{groups}|{NAME}|/nonexistent|/|{names}|{UID}"] * 2
    assert (user.home / "bundle/rootfs/tmp/new").stat().st_uid == UID
    for place in "tree", "bundle/rootfs":
        assert (user.home / place / "etc/passwd").read_text() == PASSWD
    assert user.leftovers() == []


CALLED = """
home = os.environ["HOME"]
def run(script, image=f"{home}/image.sif", user="caller", **more):
    print(*oci.run(image, ["sh", "-c", script], user=user, capture_output=True, text=True, check=True, **more).stdout.split())
"""
PLACES = """
home = os.environ["HOME"]
here = [f"{home}:{home}"]
run("pwd; echo $HOME")
run("pwd; echo $HOME", mounts=here)
run("pwd; echo $HOME", mounts=[f"{home}:/elsewhere"])
run("pwd; echo $HOME", mounts=[*here, f"/tmp:{os.path.dirname(home)}"])
run("pwd; echo $HOME", mounts=here, cwd="/etc", env={"HOME": "/etc"})
"""


def test_home_and_working_directory(user: User) -> None:
    """The working directory is the caller's if the container shows it, and otherwise that of the image."""
    assert run_script(user, CALLED + PLACES, HOME=str(user.home)) == [
        f"/tmp {user.home}",
        f"{user.home} {user.home}",
        f"/tmp {user.home}",
        f"/tmp {user.home}",
        "/etc /etc",
    ]
    assert user.leftovers() == []


GROUPS = """
run("touch /shared/new; stat -c %u /shared/new", mounts=["shared:/shared"])
bundle = oci.Bundle.load("bundle") if os.path.exists("bundle/config.json") else oci.Bundle.from_dir("bundle")
bundle = bundle.with_overrides(user="caller", args=["sleep", "1000"], mounts=["shared:/shared"])
with oci.Container.run(sys.argv[1], bundle) as container:
    script = ["sh", "-c", "id -u; id -G; whoami; touch /shared/newer"]
    print(*container.exec(script, user="caller", capture_output=True, text=True, check=True).stdout.split())
    print(*container.exec(["id", "-G"], groups=[int(sys.argv[2])], capture_output=True, text=True, check=True).stdout.split())
"""


def test_the_groups_of_the_caller_are_kept(user: User, prefix: str) -> None:
    text = CALLED + GROUPS
    kept = f"{UID} 65534"
    (shared := user.home / "shared").mkdir()
    os.chown(shared, 0, 39)
    shared.chmod(0o770)
    assert run_script(user, text, prefix, UID, HOME=str(user.home)) == [f"{UID}", f"{UID} {kept} {NAME}", kept]
    assert user.leftovers() == []


LIFECYCLE = """
import asyncio
home, script = os.environ["HOME"], ["sh", "-c", "id -u; whoami; echo $HOME $MORE; pwd; ls new"]
def show(result):
    print(*result.stdout.split())
async def twin(bundle):
    async with oci.aio.Container.run(sys.argv[1], bundle) as container:
        show(await container.exec(script, user="caller", capture_output=True, text=True))
with oci.Bundle.from_image("image.sif", "mounted") as bundle:
    for preset in "hpc", "contain":
        own = bundle.with_overrides(preset=preset, args=["sh", "-c", "touch new; exec sleep 1000"], env={"MORE": "1"})
        with oci.Container.create(sys.argv[1], own, supervise=True) as container:
            container.start()
            while container.exec(["ls", "new"], capture_output=True).returncode:
                pass
            show(container.exec(script, user="caller", capture_output=True, text=True))
        asyncio.run(twin(own))
    print(os.path.exists("new"), bundle.spec == oci.Bundle.load("mounted").spec)
    os.unlink("new")
"""


def test_the_caller_and_presets_with_the_lifecycle(user: User, prefix: str) -> None:
    """Each container of a bundle can have the caller as its user; the bundle stays as it is."""
    hpc, twin, contained, _, kept = run_script(user, LIFECYCLE, prefix, HOME=str(user.home))
    assert hpc == twin == f"{UID} {NAME} {user.home} 1 {user.home} new"
    assert contained == f"{UID} {NAME} {user.home} 1 {user.home} new"
    assert kept == "True True"
    assert user.leftovers() == []


def test_what_with_overrides_refuses(bundle: oci.Bundle) -> None:
    for keywords, error, message in (
        ({"colour": 1}, TypeError, r"^with_overrides\(\) got an unexpected keyword argument 'colour'$"),
        ({"preset": "cluster"}, ValueError, "^preset is 'cluster'"),
        ({"memory": "much"}, ValueError, "^memory is 'much'"),
        ({"overrides": Overrides(), "user": 5}, ValueError, "^overrides conflicts with the other arguments"),
        ({"overrides": 5}, TypeError, "^overrides is 5"),
        ({"user": "nobody-here"}, oci.BundleError, "^user 'nobody-here' is neither a number nor in"),
    ):
        with pytest.raises(error, match=message):
            bundle.with_overrides(**keywords)  # type: ignore[arg-type]


def test_explicit_mappings(user: User) -> None:
    """A mapping of the own id alone maps the same id then; ids of others, which the user may not map, do not stay."""
    text = """
user = oci.RuntimeSpec.default(rootless=True)
spec = user.at.linux.uid_mappings.set((oci.spec.IDMapping(container_id=0, host_id=5, size=10),))
for number, config in enumerate((user, spec)):
    os.makedirs(f"{number}")
    os.symlink("../bundle/rootfs", f"{number}/rootfs")
    run("id -u; cat /proc/self/uid_map | xargs", oci.Bundle.from_dir(f"{number}", config))
"""
    alone, default = run_script(user, CALLED + text, HOME=str(user.home))
    assert alone == f"{UID} {UID} {UID} 1"
    assert default.startswith(f"{UID} ")
    assert len(default.split()) == (1 + 6 if user.subordinate else 1 + 3)


def test_root(tree: Path, state_root: Path) -> None:
    """Root is root, with the groups and the home directory of the caller."""
    text = """
import os, sys, ociruntime as oci
os.setgroups([0, 39])
script = "id -u; id -G; whoami; echo $HOME; cut -d: -f1 /etc/passwd | xargs"
print(*oci.run(sys.argv[1], ["sh", "-c", script], user="caller", capture_output=True, text=True, check=True, state_root=sys.argv[2]).stdout.split())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", text, tree, state_root],
        env={"PATH": os.environ["PATH"], "HOME": "/tmp"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["0", "0", "39", "root", "/tmp", "root", "root", "other"], done.stderr
    assert (tree / "etc/passwd").read_text() == PASSWD


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_accounts_that_cannot_be_read(name: str, tree: Path, tmp_path: Path, state_root: Path) -> None:
    """They are refused before anything is made; without the option nobody reads them."""
    shutil.copytree(tree, tmp_path / "tree", symlinks=True)
    file = tmp_path / "tree/etc" / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(oci.BundleError, match=f"^the container's /etc/{name}: "):
        oci.run(tmp_path / "tree", ["id"], user="caller", state_root=state_root)
    file.unlink()
    result = oci.run(
        tmp_path / "tree", ["cat", f"/etc/{name}"], user="caller", capture_output=True, text=True, state_root=state_root
    )
    assert result.stdout.count("\n") == 1
    assert not file.exists()


def test_in_the_event_loop(tree: Path, state_root: Path) -> None:
    result = asyncio.run(oci.aio.run(tree, ["whoami"], user="caller", capture_output=True, text=True, state_root=state_root))
    assert result.stdout == f"{pwd.getpwuid(os.getuid()).pw_name}\n"
