"""The defaults of the state directory and the config for an unprivileged user, with and without subordinate ids."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci

from ..support.private_users import COUNT, FIRST, STATE, UID, User, give, new_user

pytestmark = pytest.mark.root


@pytest.fixture(params=[False, True], ids=["own id", "subordinate ids"])
def user(request: pytest.FixtureRequest, busybox_rootfs: Path, user_python: str) -> Iterator[User]:
    """A user whose home has ``bundle/rootfs``."""
    if request.param and shutil.which("newuidmap", path="/usr/bin") is None:
        pytest.skip("no newuidmap (Debian: uidmap)")
    with new_user(user_python, subordinate=request.param) as created:
        shutil.copytree(busybox_rootfs, created.home / "bundle/rootfs", symlinks=True)
        give(created.home)
        yield created


def rows(text: str) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in text.splitlines() if len(line.split()) == 3 and line[:1] == " "]


def test_the_command_line_needs_no_option(user: User, prefix: str) -> None:
    user.command("spec", "-b", "bundle")
    shown = user.command(
        "run", "-b", "bundle", prefix, stdin="id -u; cat /proc/self/uid_map; ls -d /sys/class; touch /new\n"
    ).stdout
    assert shown.splitlines()[0] == "0"
    assert shown.splitlines()[-1] == "/sys/class"
    subordinate = [] if not user.subordinate else [[1, FIRST, COUNT]]
    assert rows(shown) == [[0, UID, 1], *subordinate]
    assert (user.home / "bundle/rootfs/new").stat().st_uid == UID
    assert user.command("list", "-q").stdout == ""
    assert os.stat(STATE).st_mode & 0o7777 == 0o700


def test_python_needs_no_option(user: User) -> None:
    text = """
import json, os, ociruntime as oci
bundle = oci.Bundle.from_dir("bundle")
results = []
for who in (None, 1000, (5, 6)):
    for network in (None, "host"):
        result = oci.run(bundle, ["sh", "-c", "id -u; ls -d /sys/class"], user=who, network=network, capture_output=True, text=True)
        results.append([result.returncode, result.stdout.split(), result.stderr])
print(json.dumps(results))
"""
    expected = [[0, [uid, "/sys/class"], ""] for uid in ("0", "0", "1000", "1000", "5", "5")]
    assert json.loads(user.run("-c", text).stdout) == expected


def test_all_commands_find_the_containers(user: User, prefix: str) -> None:
    user.command("spec", "-b", "bundle")
    config = json.loads((user.home / "bundle/config.json").read_text())
    config["process"]["args"] = ["sh", "-c", "echo up; sleep 1000"]
    (user.home / "bundle/config.json").write_text(json.dumps(config))
    user.command("create", "-b", "bundle", prefix)
    user.command("run", "--detach", "--supervise", "-b", "bundle", f"{prefix}-2")
    assert sorted(user.command("list", "-q").stdout.split()) == [prefix, f"{prefix}-2"]
    user.command("start", prefix)
    assert user.command("exec", prefix, "id", "-u").stdout == "0\n"
    for name in prefix, f"{prefix}-2":
        assert json.loads(user.command("state", name).stdout)["status"] == "running"
        user.command("kill", name, "KILL")
    text = "import sys, ociruntime as oci; print(*(oci.Container.load(name).wait(60) for name in sys.argv[1:]))"
    assert user.run("-c", text, f"{prefix}-2").stdout == "-9\n"
    wait = f"import time, ociruntime as oci\nwhile oci.Container.load({prefix!r}).state.status != 'stopped': time.sleep(0.01)"
    user.run("-c", wait)
    assert user.command("logs", f"{prefix}-2").stdout == "up\n"
    assert sorted(user.command("prune").stdout.split()) == [prefix, f"{prefix}-2"]
    assert user.command("list", "-q").stdout == ""


def test_a_runtime_directory_is_used_only_if_it_belongs_to_the_user(user: User, tmp_path: Path) -> None:
    own = user.home / "run"
    own.mkdir()
    os.chown(own, UID, UID)
    text = "from ociruntime.store import default_root; print(default_root())"
    for given, expected in (
        (str(own), f"{own}/ociruntime"),
        (str(own / "missing"), STATE),  # as sbatch(1) passes it on
        ("/", STATE),  # as su(1) passes on that of root
        ("", STATE),
    ):
        assert user.run("-c", text, XDG_RUNTIME_DIR=given).stdout == f"{expected}\n"


def _taken(path: Path) -> None:
    path.mkdir(mode=0o755)
    os.chown(path, UID + 1, UID + 1)


def _linked(path: Path) -> None:
    path.symlink_to("/var/tmp")
    os.chown(path, UID + 1, UID + 1, follow_symlinks=False)


def _open(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)
    os.chown(path, UID, UID)


@pytest.mark.parametrize(
    ("hostile", "why"),
    [
        (_taken, f"it belongs to uid {UID + 1}, not to the caller"),
        (_linked, f"it is a symbolic link of uid {UID + 1}"),
        (Path.touch, "it is not a directory"),
        (_open, "its mode 0777 lets other users write to it"),
    ],
    ids=["directory", "symbolic link", "file", "mode"],
)
def test_what_another_user_has_put_there(user: User, prefix: str, hostile: Callable[[Path], Any], why: str) -> None:
    place = Path(STATE)
    user.command("--root", user.home / "state", "spec", "-b", "bundle")
    try:
        hostile(place)
        for command in (
            ("list",),
            ("prune",),
            ("run", "-b", "bundle", prefix),
            ("create", "-b", "bundle", prefix),
            ("state", prefix),
        ):
            done = user.command(*command, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith(f"ociruntime: cannot keep state in {STATE}: {why}"), done.stderr
            assert done.stderr.count("\n") == 1
            assert "--root" in done.stderr
        assert user.command("--root", user.home / "state", "run", "-b", "bundle", prefix, stdin="echo hi").stdout == "hi\n"
    finally:
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        else:
            place.unlink()


def test_a_shared_directory_without_the_sticky_bit(user: User) -> None:
    text = "import ociruntime.store as s; s._FALLBACK = 'open'; s.StateStore()"
    shared = user.home / "open"
    shared.mkdir()
    shared.chmod(0o777)
    done = user.run("-c", text, check=False)
    assert "StateError: no state directory: XDG_RUNTIME_DIR is not set, and other users can replace files in open" in done.stderr
    shared.chmod(0o1777)
    assert user.run("-c", text).returncode == 0


def test_root_of_a_user_namespace(user: User, prefix: str) -> None:
    """As in ``unshare -r``: neither /run nor group 5 belongs to it, and it may not mount a sysfs for the host's network."""
    script = f"ociruntime spec -b bundle && ociruntime run -b bundle {prefix} && ociruntime list -q"
    script += " && ociruntime run --network host bundle/rootfs test -e /sys/kernel"
    text = "import subprocess, sys; command = ['unshare', '-Ur', 'sh', '-c', sys.argv[1]]"
    text += "; sys.exit(subprocess.run(command, input='id -u', text=True).returncode)"
    script = script.replace("ociruntime ", f"{user.python} -P -m ociruntime ")
    done = user.run("-c", text, script)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert os.path.isdir(STATE)


def test_the_default_config_of_a_host() -> None:
    host = oci.Host.probe()
    assert oci.RuntimeSpec.default(host=attrs.evolve(host, capabilities=-1, initial=True)) == oci.RuntimeSpec.default()
    user = oci.RuntimeSpec.default(host=attrs.evolve(host, capabilities=0))
    assert user.linux is not None
    assert user.linux.uid_mappings is user.linux.gid_mappings is user.linux.resources is None
    assert any(namespace.type == "user" for namespace in user.linux.namespaces or ())
    with pytest.raises(TypeError, match="host"):
        oci.RuntimeSpec.default(rootless=True, host=host)
