"""Containers of `run` whose caller ends: they die with it, and the next `run`, or `prune`, removes what is left of them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.spec import NamespaceType

from ..support.fixture_types import MakeBundle, Script
from ..support.places import REPO
from ..support.processes import find_processes
from ..support.waiting import wait_until

pytestmark = pytest.mark.root

CALLER = """
import asyncio, os, sys, threading, time
import ociruntime as oci
from ociruntime import aio
image, root, prefix, how = sys.argv[1:]
args = ["sh", "-c", "setsid sleep 1000 & echo up; wait"]
options = {"state_root": root, "container_id": prefix}
if how == "aio":
    asyncio.run(aio.run(image, args, **options))
elif how in ("thread", "fork"):
    threading.Thread(target=oci.run, args=(image, args), kwargs=options).start()
    if how == "fork":
        while not os.path.exists(f"{root}/.runs/{prefix}"):
            time.sleep(0.001)
        child = os.fork()
        print(f"child {child}" if child else "", end=chr(10) if child else "", flush=True)
    time.sleep(1000)
elif how == "outlives":
    oci.run(image, args, die_with_parent=False, **options)
elif how == "container":
    oci.Container.run(prefix, oci.Bundle.load(image).with_args(args), state_root=root)
    time.sleep(1000)
else:
    oci.run(image, args, **options)
"""


@contextmanager
def caller(*args: object, python: str = sys.executable, **options: object) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """A process that calls `run` with a program that prints ``up`` and leaves another process in the background."""
    command = [python, "-P", "-c", CALLER, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **{"cwd": REPO, **options})  # type: ignore[call-overload]
    try:
        yield process, process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def locks(state_root: Path) -> list[str]:
    return os.listdir(state_root / ".runs")


@pytest.fixture(params=["bundle", "rootfs", pytest.param("sif", marks=pytest.mark.sif)])
def image(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What `run` takes; what it mounts for it lies where the test looks for leaks."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    if request.param == "bundle":
        bundle: oci.Bundle = request.getfixturevalue("bundle")
        return bundle.path
    path: Path = request.getfixturevalue(f"busybox_{request.param}")
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", ["main", "thread", "aio"])
def test_the_caller_is_killed(
    image: Path, state_root: Path, prefix: str, bundle: oci.Bundle, how: str, number: int, tmp_path: Path
) -> None:
    with caller(image, state_root, prefix, how) as (process, stdout):
        assert stdout.readline() == "up\n"
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-beside").returncode == 0
        assert oci.prune(state_root=state_root) == ()  # its caller lives
        assert oci.Container.load(prefix, state_root=state_root).status is oci.Status.RUNNING
        process.send_signal(number)
        process.wait()
        wait_until(lambda: find_processes(prefix, "cgroup") == [], "the end of all processes")  # without another call
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-next").returncode == 0
    assert oci.Container.list(state_root=state_root) == []
    assert locks(state_root) == os.listdir(tmp_path / "scratch") == []


def test_what_the_kernel_does_not_kill(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """Without a pid namespace the first process alone dies with the caller; the next call kills the others."""
    bundle = make_bundle(oci.RuntimeSpec.default().without_namespace(NamespaceType.PID))
    with caller(bundle.path, state_root, prefix, "main") as (process, stdout):
        assert stdout.readline() == "up\n"
        container = oci.Container.load(prefix, state_root=state_root)
        process.kill()
        wait_until(lambda: container.status is oci.Status.STOPPED, "the end of the first process")
        assert len(find_processes(prefix, "cgroup")) == 1
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-next").returncode == 0
    assert find_processes(prefix, "cgroup") == oci.Container.list(state_root=state_root) == locks(state_root) == []


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that users can reach; that of pytest is closed to them whenever another session begins."""
    with tempfile.TemporaryDirectory(prefix="ociruntime-home-", dir="/var/tmp") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("pid_namespace", [True, False])
def test_a_user(home: Path, busybox_rootfs: Path, prefix: str, user_python: str, number: int, pid_namespace: bool) -> None:
    uid = 20000 + os.getpid() % 20000
    spec = oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid)
    if not pid_namespace:  # the mount of proc needs one
        spec = spec.without_namespace(NamespaceType.PID)
        spec = spec.evolve(mounts=tuple(mount for mount in spec.mounts or () if mount.type != "proc"))
        assert spec.linux is not None
        spec = spec.evolve(linux=spec.linux.evolve(masked_paths=None, readonly_paths=None))
    shutil.copytree(busybox_rootfs, home / "bundle/rootfs", symlinks=True)
    bundle = oci.Bundle.from_dir(home / "bundle", spec)
    state_root = home / "state"
    state_root.mkdir()
    for path in (bundle.path, bundle.path / "config.json", bundle.rootfs, state_root):
        os.chown(path, uid, uid)
    user = {"user": uid, "group": uid, "extra_groups": (), "cwd": "/"}

    def of_user() -> list[int]:
        found = []
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if f"\nUid:\t{uid}\t" in status.read_text():
                    found.append(int(status.parent.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    with caller(bundle.path, state_root, prefix, "main", python=user_python, **user) as (process, stdout):
        assert stdout.readline() == "up\n"
        process.send_signal(number)
        process.wait()
        if pid_namespace:
            wait_until(lambda: of_user() == [], "the end of all processes")
        text = (
            "import sys, ociruntime as oci\nbundle, root, name = sys.argv[1:]\n"
            "assert oci.run(bundle, ['true'], state_root=root, container_id=name).returncode == 0\n"
            "assert oci.Container.list(state_root=root) == []"
        )
        command = [user_python, "-P", "-c", text, str(bundle.path), str(state_root), f"{prefix}-next"]
        assert subprocess.run(command, check=False, **user).returncode == 0  # type: ignore[call-overload]
    assert locks(state_root) == []
    for pid in of_user():
        assert not pid_namespace  # no cgroups, so nothing tells what it has started
        os.kill(pid, signal.SIGKILL)


def test_what_outlives_its_caller(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    for how in ("outlives", "container"):
        with caller(bundle.path, state_root, prefix, how) as (process, stdout):
            assert stdout.readline() == "up\n"
            process.kill()
            process.wait()
            assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-next").returncode == 0
            assert oci.prune(state_root=state_root) == ()
            with oci.Container.load(prefix, state_root=state_root) as container:
                assert container.status is oci.Status.RUNNING
                container.delete(force=True)


@pytest.mark.parametrize("namespace", [True, False])
@pytest.mark.parametrize("how", ["command", "python", "aio"])
def test_prune(make_bundle: MakeBundle, state_root: Path, prefix: str, script: Script, how: str, namespace: bool) -> None:
    spec = oci.RuntimeSpec.default()
    bundle = make_bundle(spec if namespace else spec.without_namespace(NamespaceType.PID))
    with caller(bundle.path, state_root, prefix, "main") as (process, stdout):
        assert stdout.readline() == "up\n"
        process.kill()
        process.wait()
        if how == "command":
            text = "import sys\nfrom ociruntime.cli import main\nsys.exit(main(sys.argv[1:]))"
            assert script(text, "--root", state_root, "prune").stdout.split() == [prefix]
        elif how == "python":
            assert oci.prune(state_root=state_root) == (prefix,)
        else:
            assert asyncio.run(aio.prune(state_root=state_root)) == (prefix,)
    assert find_processes(prefix, "cgroup") == oci.Container.list(state_root=state_root) == locks(state_root) == []


def test_a_forked_child_holds_no_lock(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    child = 0
    with caller(bundle.path, state_root, prefix, "fork") as (process, stdout):
        lines = sorted(stdout.readline().split() for _ in range(2))
        child = int(lines[0][1])
        assert lines == [["child", str(child)], ["up"]]
        try:
            process.kill()
            process.wait()
            wait_until(lambda: oci.prune(state_root=state_root) == (prefix,), "the removal of the orphan")
            assert Path(f"/proc/{child}/cmdline").read_bytes()
        finally:
            os.kill(child, signal.SIGKILL)
    assert locks(state_root) == []


HOLDER = """
import subprocess, sys
import ociruntime as oci
image, root, name, seconds = sys.argv[1:]
sandbox = oci.Sandbox(image, state_root=root, name=name)
lock = sandbox._owned._lock._lock.fd
child = subprocess.Popen(["sleep", seconds], pass_fds=[lock])
print(child.pid, flush=True)
sys.stdin.read()
"""
"""A caller that was killed while it started a process, which has copies of its descriptors until it executes its program."""


@pytest.mark.parametrize("seconds", ["0.3", "1000"])
def test_a_process_that_was_being_started(bundle: oci.Bundle, state_root: Path, prefix: str, seconds: str) -> None:
    command = [sys.executable, "-P", "-c", HOLDER, bundle.path, state_root, prefix, seconds]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
    try:
        if seconds == "0.3":
            with oci.Sandbox(bundle, state_root=state_root, name=f"{prefix}-next"):
                assert [found.id for found in oci.Container.list(state_root=state_root)] == [f"{prefix}-next"]
        else:
            with (
                pytest.warns(oci.OCIRuntimeWarning, match=f"'{prefix}', whose caller has ended: a process .* still holds its lock"),
                oci.Sandbox(bundle, state_root=state_root, name=f"{prefix}-next"),
            ):
                pass
            with warnings.catch_warnings(action="error"), oci.Sandbox(bundle, state_root=state_root):
                pass  # it waits once
            os.kill(child, signal.SIGKILL)
            wait_until(lambda: oci.prune(state_root=state_root) == (prefix,), "the removal of the orphan")
    finally:
        if seconds == "1000":
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    assert oci.Container.list(state_root=state_root) == locks(state_root) == []


def test_a_cancelled_task(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        for turn in range(12):
            name = f"{prefix}-{turn}"
            task = asyncio.ensure_future(
                aio.run(bundle, ["sh", "-c", "setsid sleep 1000 & wait"], state_root=state_root, container_id=name)
            )
            await asyncio.sleep(0.004 * turn)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert find_processes(prefix, "cgroup") == []
            assert not (state_root / name).exists()
            assert not (state_root / ".runs" / name).exists()

    asyncio.run(main())


def test_the_thread_that_launched_it_ends(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        first = ThreadPoolExecutor(1)
        loop.set_default_executor(first)
        script = "echo up; read line; echo $line"
        read, write = os.pipe()
        task = asyncio.ensure_future(
            aio.run(bundle, ["sh", "-c", script], stdin=read, capture_output=True, state_root=state_root, container_id=prefix)
        )
        while not (state_root / prefix / "state.json").exists() or not find_processes(prefix, "cgroup"):
            await asyncio.sleep(0.005)
        second = ThreadPoolExecutor(1)
        loop.set_default_executor(second)
        first.shutdown()
        assert not any(thread.name.startswith("ThreadPoolExecutor") and thread.is_alive() for thread in first._threads)
        os.write(write, b"on\n")
        os.close(write)
        result = await task
        os.close(read)
        assert (result.returncode, result.stdout) == (0, b"up\non\n")

    asyncio.run(main())
    assert locks(state_root) == []


RUNS = """
import sys, time
import ociruntime as oci
bundle, root, prefix = sys.argv[1:]
end = time.monotonic() + 4
turn = 0
while time.monotonic() < end or turn < 5:
    name = f"{prefix}-{turn}"
    result = oci.run(bundle, ["sh", "-c", "sleep 0.01; echo $HOSTNAME ok"], hostname=name, env={"HOSTNAME": name}, capture_output=True, text=True,
                     state_root=root, container_id=name, timeout=600)
    assert (result.returncode, result.stdout) == (0, name + " ok\\n"), result
    assert result.usage.peak_memory > 0, result
    turn += 1
print(turn)
"""


@pytest.mark.slow
def test_live_callers_meet_pruning(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    """Pruning removes nothing that a living caller needs, and everything of callers that were killed."""
    stop, failures, pruned = threading.Event(), list[BaseException](), list[str]()

    def prune() -> None:
        try:
            while not stop.is_set():
                pruned.extend(oci.prune(state_root=state_root))
        except BaseException as error:
            failures.append(error)

    def die() -> None:
        try:
            for turn in range(1000):
                if stop.is_set():
                    return
                with caller(bundle.path, state_root, f"{prefix}-dies-{turn}", "main") as (_, stdout):
                    if turn % 2:
                        stdout.readline()
                    else:
                        time.sleep(0.1 + 0.2 * random.random())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for work in (prune, die)]
    for thread in threads:
        thread.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            turns = [pool.submit(script, RUNS, bundle.path, state_root, f"{prefix}-lives{n}") for n in range(2)]
            assert all(int(turn.result().stdout) >= 5 for turn in turns)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    pruned.extend(oci.prune(state_root=state_root))
    assert [name for name in pruned if "-dies-" not in name] == []
    assert oci.Container.list(state_root=state_root) == locks(state_root) == find_processes(prefix, "cgroup") == []


def test_a_call_that_ends_meanwhile(state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the last step of a removal, `prune` makes the lock anew: what the caller removes then is not what it has pruned."""

    def end(*_: object) -> bool:
        shutil.rmtree(state_root / prefix)
        return False  # the lock of the caller goes after the container

    (state_root / prefix).mkdir(0o700, parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("ociruntime.lifecycle.prune.has_caller", end)
        assert oci.prune(state_root=state_root) == ()
    (state_root / prefix).mkdir(0o700)
    assert oci.prune(state_root=state_root) == (prefix,)


def test_a_lock_without_a_container(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """A caller that was killed between the two, and one whose id another kind of container has got meanwhile."""
    (state_root / ".runs").mkdir(parents=True)
    (state_root / f".runs/{prefix}").touch()
    with oci.Container.run(f"{prefix}-other", bundle, state_root=state_root) as container:
        (state_root / f".runs/{prefix}-other").touch()
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=prefix).returncode == 0
        with pytest.raises(oci.ContainerExists):
            oci.run(bundle, ["true"], state_root=state_root, container_id=container.id)
        assert oci.prune(state_root=state_root) == ()
        assert container.status is oci.Status.RUNNING
        container.delete(force=True)
    assert locks(state_root) == []


def test_an_orphan_that_cannot_be_removed(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """One warning, and one attempt, in a process; `prune` says why, and removes it when that is mended."""
    (state_root / ".runs").mkdir(parents=True)
    (state_root / f".runs/{prefix}").touch()
    (state_root / prefix).mkdir(mode=0o700)
    document = {"id": prefix, "bundle": "/", "status": "running", "ephemeral": True, "undo": [["cgroup", "/proc/sys"]]}
    (state_root / prefix / "state.json").write_text(json.dumps(document))
    with pytest.warns(oci.OCIRuntimeWarning, match=rf"cannot remove container '{prefix}', whose caller has ended: .*/proc/sys"):
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-1").returncode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert oci.run(bundle, ["true"], state_root=state_root, container_id=f"{prefix}-2").returncode == 0
    with pytest.raises(oci.StateError, match="/proc/sys"):
        oci.prune(state_root=state_root)
    document["undo"] = []
    (state_root / prefix / "state.json").write_text(json.dumps(document))
    assert oci.prune(state_root=state_root) == (prefix,)
    assert locks(state_root) == []
