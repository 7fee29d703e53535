"""Fixtures of tests that start containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.cgroups import Limited
from ..support.clients import Client
from ..support.fixture_types import Command, MakeBundle, MakeSandbox, UserBundle
from ..support.mounts import Runner
from ..support.terminals import Session
from ..support.users import UID, User, give, temporary_user


@pytest.fixture
def session(state_root: Path) -> Iterator[Callable[..., Session]]:
    """Starts commands on terminals of their own. What a failed test leaves behind goes with them."""
    created: list[Session] = []

    def start(*words: object, **more: tuple[int, int]) -> Session:
        created.append(Session(*words, **more))
        return created[-1]

    yield start
    failed = any(entry.process.poll() is None for entry in created)
    for entry in created:
        entry.close()
    for container in oci.Container.list(state_root=state_root) if failed else ():
        container.delete(force=True)


@pytest.fixture
def command(state_root: Path) -> Command:
    """Returns the arguments of an ``ociruntime`` command on this test's state directory."""
    return lambda *words: [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), *map(str, words)]


@pytest.fixture
def user(make_bundle: MakeBundle, prefix: str, user_python: str) -> Iterator[User]:
    """A user without privileges. For tests that root runs."""
    with temporary_user(make_bundle, prefix, user_python) as created:
        yield created


@pytest.fixture
def shell(make_bundle: MakeBundle) -> oci.Bundle:
    """A bundle whose process is an interactive shell with a plain prompt."""
    spec = oci.RuntimeSpec.default()
    assert spec.process is not None
    process = spec.process.evolve(args=("sh",), terminal=True).with_env(PS1="$ ", ENV=None)
    return make_bundle(spec.evolve(process=process))


@pytest.fixture
def limited(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Limited:
    """Makes containers with limits."""
    return Limited(make_bundle, state_root, prefix)


@pytest.fixture
def user_bundle(make_bundle: MakeBundle, prefix: str) -> Iterator[UserBundle]:
    """Makes a bundle of a user. It is not in tmp_path: each session of pytest bars other users from the directories above that."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as place:
        os.chown(place, UID, UID)

        def make(spec: oci.RuntimeSpec) -> tuple[Path, Path]:
            path = shutil.move(make_bundle(spec).path, place)
            return give(oci.Bundle.load(path), UID).path, Path(place, "state")

        yield make


@pytest.fixture
def run(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Runner:
    return Runner(make_bundle, state_root, prefix)


@pytest.fixture(params=[False, True], ids=["root", "user"])
def either(run: Runner, request: pytest.FixtureRequest) -> Runner:
    """With and without a user namespace."""
    run.user = request.param
    return run


@pytest.fixture(params=["root", "user", "shared"])
def any_tree(run: Runner, request: pytest.FixtureRequest) -> Runner:
    """With and without a user namespace, and without a mount namespace."""
    if request.param == "shared" and oci.Host.probe().kernel < (6, 15):
        pytest.skip("a container without a mount namespace needs Linux 6.15")
    run.user, run.shared = request.param == "user", request.param == "shared"
    return run


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory of the host with a file, a directory and a symbolic link to it."""
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "file").write_text("host\n")
    (tree / "dir/inner").write_text("inner\n")
    (tree / "link").symlink_to("dir")
    return tree


@pytest.fixture
def mounted_tmpfs(tree: Path) -> Iterator[Path]:
    """The same with a tmpfs on its directory."""
    subprocess.run(["mount", "-t", "tmpfs", "none", tree / "dir"], check=True)
    (tree / "dir/below").write_text("below\n")
    yield tree
    subprocess.run(["umount", "-l", tree / "dir"], check=True)


@pytest.fixture
def make_sandbox(busybox_rootfs: Path, state_root: Path, prefix: str) -> Iterator[MakeSandbox]:
    created: list[oci.Sandbox] = []

    def make(image: Any = None, **options: Any) -> oci.Sandbox:
        options.setdefault("name", f"{prefix}-{len(created)}")
        created.append(oci.Sandbox(busybox_rootfs if image is None else image, state_root=state_root, **options))
        return created[-1]

    yield make
    for sandbox in created:
        sandbox.close()
    assert oci.Container.list(state_root=state_root) == []
    if created:
        assert os.listdir(state_root / ".runs") == []


@pytest.fixture
def sandbox(make_sandbox: MakeSandbox) -> oci.Sandbox:
    return make_sandbox()


@pytest.fixture
def client(prefix: str, user_python: str, busybox_rootfs: Path) -> Iterator[Client]:
    """A directory for another program that runs containers with this runtime."""
    made = Client(prefix, user_python, busybox_rootfs)
    yield made
    made.close()
