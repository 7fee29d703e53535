"""Fixtures over all tests: a busybox root filesystem, bundles and SIF images of it, and the proof that nothing is left behind."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ociruntime as oci

from .support.fixture_types import MakeBundle, Script
from .support.images import make_busybox_tree
from .support.leftovers import cgroups_of, loops_below, mounts_below, remove_leftovers
from .support.places import REPO
from .support.processes import child_processes
from .support.users import BECOME, interpreter_for_users
from .support.waiting import SLOWER, wait_until

pytest_plugins = ("pytester",)
FAILED = pytest.StashKey[bool]()
"""Set for a test that failed."""


def pytest_configure() -> None:
    """Hear an interrupt even in the background, where shells let programs ignore it: tests send it, and what they start inherits."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) == signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def busybox_rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem of busybox alone; one for each worker, not to be written to."""
    rootfs = tmp_path_factory.mktemp("busybox") / "rootfs"
    if not make_busybox_tree(rootfs):
        pytest.skip("no busybox (Debian: busybox-static)")
    return rootfs


@pytest.fixture(scope="session")
def busybox_sif(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIF image of the busybox root filesystem."""
    if shutil.which("mksquashfs") is None:
        pytest.skip("no mksquashfs (Debian: squashfs-tools)")
    path = tmp_path_factory.mktemp("sif") / "busybox.sif"
    oci.build_sif(path, busybox_rootfs, singularity_layout=True)
    return path


def _link_tree(source: Path, target: Path) -> None:
    """Copy directories, and link everything in them: symbolic links too, because `shutil.copytree` is eight times slower."""
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_dir(follow_symlinks=False):
            _link_tree(Path(entry), target / entry.name)
        else:
            os.link(entry, f"{target}/{entry.name}", follow_symlinks=False)


@pytest.fixture
def make_bundle(busybox_rootfs: Path, tmp_path: Path) -> MakeBundle:
    """Makes a bundle in a fresh directory; its root filesystem is hard links, so a test may add files and not change any."""

    def make(spec: oci.RuntimeSpec | None = None, name: str = "") -> oci.Bundle:
        path = tmp_path / (name or f"bundle-{secrets.token_hex(4)}")
        path.mkdir()
        _link_tree(busybox_rootfs, path / "rootfs")
        if spec is None:
            spec = oci.RuntimeSpec.default()
            assert spec.process is not None
            spec = spec.evolve(process=spec.process.evolve(args=("sleep", "1000")))
        return oci.Bundle.from_dir(path, spec)

    return make


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> oci.Bundle:
    return make_bundle(name="bundle")


@pytest.fixture
def state_root(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def prefix() -> str:
    """Begins every container id and cgroup name of one test, so that tests in other processes do not meet them."""
    return f"t{secrets.token_hex(5)}"


def _scripts(python: str, cwd: Path) -> Script:
    def run(text: str, *args: object, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        # Files and no pipes: a container that outlives the script would hold a pipe open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            command = [python, "-P", "-c", text, *map(str, args)]
            done = subprocess.run(
                command, cwd=cwd, stdout=out, stderr=err, timeout=timeout * SLOWER, check=False, stdin=subprocess.DEVNULL
            )
            out.seek(0)
            err.seek(0)
            done = subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def script() -> Script:
    """Runs Python text in an interpreter of its own, with the package importable; ``sys.argv[1:]`` are the further arguments."""
    return _scripts(sys.executable, REPO)


@pytest.fixture(scope="session")
def user_python() -> Iterator[str]:
    """An interpreter for tests that become a user: this one, or one made where users may read it, with copies of the packages."""
    with interpreter_for_users() as python:
        yield python


@pytest.fixture
def user_script(user_python: str) -> Script:
    """As `script`, for text that becomes a user by ``become(uid)``, in an interpreter that users can run."""
    run = _scripts(user_python, Path("/"))
    return lambda text, *args, timeout=60, check=True: run(BECOME + text, *args, timeout=timeout, check=check)


def _fds() -> dict[str, str]:
    """Number -> what it is; the descriptor of the listing itself is gone when it is looked at."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Assert that a test with containers leaves no mount, loop device, cgroup, file descriptor or child process behind.

    What a test leaves behind is removed, so that it does not disturb other tests.
    """
    stdin = os.readlink("/proc/self/fd/0")
    if {"kernel", "integrations"}.isdisjoint(request.path.parts) or os.geteuid() != 0:
        yield
        assert os.readlink("/proc/self/fd/0") == stdin
        return
    from ociruntime import ephemeral
    from ociruntime.engine.launch import init_memfd

    init_memfd()  # kept for the life of the process on purpose
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp().resolve()
    directory: Path = request.getfixturevalue("tmp_path")
    prefix: str = request.getfixturevalue("prefix")
    gc.collect()
    before = (mounts_below(base), loops_below(base), child_processes(), _fds())
    yield
    ephemeral._images.clear()  # kept for further calls on purpose
    gc.collect()
    mounts, loops, children, fds = before
    try:
        if FAILED not in request.node.stash:
            with suppress(AssertionError):  # the kernel detaches a loop device after its last unmount
                wait_until(lambda: loops_below(base) == loops, "the end of the loop devices")
            assert mounts_below(base) == mounts
            assert loops_below(base) == loops
            assert cgroups_of(prefix) == []
            assert child_processes() <= children
            now = _fds()
            assert len(now) <= len(fds), {n: what for n, what in now.items() if fds.get(n) != what}
            assert os.readlink("/proc/self/fd/0") == stdin
            return
    except AssertionError:
        remove_leftovers(directory, prefix)
        raise
    remove_leftovers(directory, prefix)
    assert (mounts_below(base), loops_below(base), cgroups_of(prefix)) == (mounts, loops, [])
