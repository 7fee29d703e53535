"""Checkpoint and restore by criu: what a restored container goes on with, and what is left after an error."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.files import read_mounts
from ociruntime.spec import Mount, RuntimeSpec

from ..support.clients import criu_works
from ..support.fixture_types import Command, MakeBundle
from ..support.users import User
from ..support.waiting import TIME_LIMIT, wait_until

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /data/count; sleep 0.1; done"
"""A program whose state is in its memory alone."""


WORKS = criu_works()
pytestmark = pytest.mark.root


needs_criu = pytest.mark.skipif(not WORKS, reason="criu is missing, or does not support this kernel")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of the host that the container has as /data."""
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture
def counting(make_bundle: MakeBundle, data: Path, prefix: str) -> oci.Bundle:
    """A bundle whose program counts in /data/count."""
    spec = RuntimeSpec.default()
    assert spec.process is not None
    assert spec.linux is not None
    mounts = (*(spec.mounts or ()), Mount(destination="/data", type="bind", source=str(data), options=("bind",)))
    linux = spec.linux.evolve(cgroups_path=f"/{prefix}-counting")
    process = spec.process.evolve(args=("sh", "-c", COUNT), terminal=False)
    return make_bundle(spec.evolve(process=process, mounts=mounts, linux=linux))


def count(data: Path) -> int:
    """Return how far the program has counted; 0 while it writes."""
    try:
        return int((data / "count").read_text() or 0)
    except FileNotFoundError:
        return 0


def goes_on(data: Path) -> bool:
    """Return whether the program counts."""
    begin = count(data)
    wait_until(lambda: count(data) > begin, "the program to count")
    return True


def host_state() -> tuple[list[str], set[str]]:
    """Return the mounts of this process, and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [mount.point for mount in read_mounts()], set(children)


def has_cgroup(name: str) -> bool:
    """Return whether a hierarchy has a cgroup of this name below its root."""
    places = ("", *os.listdir("/sys/fs/cgroup"))
    return any(os.path.exists(f"/sys/fs/cgroup/{place}/{name}") for place in places)


@pytest.mark.vm
@needs_criu
def test_a_restored_container_goes_on(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str) -> None:
    image, before = tmp_path / "image", host_state()
    with oci.Container.run(
        f"{prefix}-a", counting, state_root=state_root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as container:
        wait_until(lambda: count(data) > 5, "the program to count")
        container.checkpoint(image)
        assert container.status == "stopped"
        reached = count(data)
    assert json.loads((image / "descriptors.json").read_text())[1].startswith("pipe:[")
    with oci.Container.restore(
        f"{prefix}-b",
        counting,
        image,
        state_root=state_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as restored:
        assert restored.status == "running"
        wait_until(lambda: count(data) > reached, "the program to go on")
        assert reached < count(data) < reached + 1000, "it has not begun again, and goes on from there"
        pid = restored.pid
        assert f"/{prefix}-counting" in Path(f"/proc/{pid}/cgroup").read_text()
        cgroups = [mount for mount in read_mounts(pid) if mount.fstype == "cgroup2"]
        assert all(mount.root.endswith(f"/{prefix}-counting") for mount in cgroups), "it sees its own cgroup alone"
        shown = restored.exec(["cat", "/data/count", "/proc/1/comm"], capture_output=True, text=True)
        assert shown.returncode == 0
        assert shown.stdout.splitlines()[-1] == "sh"
        restored.kill("KILL")
        assert restored.wait(TIME_LIMIT) == -9
    assert host_state() == before
    assert oci.Container.list(state_root=state_root) == []


@pytest.mark.vm
@needs_criu
def test_it_can_go_on_after_a_checkpoint(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str) -> None:
    with oci.Container.run(
        f"{prefix}-a",
        counting,
        state_root=state_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as container:
        container.checkpoint(tmp_path / "parent", pre_dump=True)
        assert container.status == "running"
        assert goes_on(data)
        container.checkpoint(tmp_path / "image", parent_path=tmp_path / "parent", leave_running=True, work_path=tmp_path / "logs")
        assert container.status == "running"
        assert goes_on(data)
    assert (tmp_path / "logs/dump.log").exists()
    assert not (tmp_path / "image/dump.log").exists()
    names = json.loads((tmp_path / "image/descriptors.json").read_text())
    assert names[0].startswith("file["), "a file of the host, which the restored container gets from its caller"


@pytest.mark.vm
@needs_criu
def test_joined_namespaces_are_joined_again(
    counting: oci.Bundle, make_bundle: MakeBundle, state_root: Path, data: Path, tmp_path: Path, prefix: str
) -> None:
    """The restored container is in the namespaces of another container, as the first one was."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    files = {"network": "net", "ipc": "ipc", "uts": "uts"}
    other = oci.Container.run(f"{prefix}-other", make_bundle(), state_root=state_root)
    with other:
        paths = {kind: f"/proc/{other.pid}/ns/{file}" for kind, file in files.items()}
        spec = counting.spec.evolve(hostname=None).at.linux.namespaces.set(joined(counting.spec, **paths))
        bundle = make_bundle(spec)
        with oci.Container.run(f"{prefix}-a", bundle, state_root=state_root, **streams) as container:
            wait_until(lambda: count(data) > 5, "the program to count")
            container.checkpoint(tmp_path / "image")
        with oci.Container.restore(f"{prefix}-a", bundle, tmp_path / "image", state_root=state_root, **streams) as restored:
            assert goes_on(data)
            for path, file in zip(paths.values(), files.values(), strict=True):
                assert os.readlink(f"/proc/{restored.pid}/ns/{file}") == os.readlink(path)
            files_open = [os.readlink(path) for path in Path(f"/proc/{restored.pid}/fd").iterdir()]
            assert not any(file.startswith("net:") for file in files_open), "it inherits nothing of criu"


@pytest.mark.vm
@needs_criu
def test_a_paused_container(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str) -> None:
    """It stays paused if it goes on, and runs when it is restored."""
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with oci.Container.run(f"{prefix}-a", counting, state_root=state_root, **streams) as container:
        wait_until(lambda: count(data) > 5, "the program to count")
        container.pause()
        reached = count(data)
        container.checkpoint(tmp_path / "first", leave_running=True)
        assert container.status == "paused"
        assert count(data) == reached
        container.checkpoint(tmp_path / "image")
        assert container.status == "stopped"
    with oci.Container.restore(f"{prefix}-a", counting, tmp_path / "image", state_root=state_root, **streams) as restored:
        assert restored.status == "running"
        wait_until(lambda: count(data) > reached, "the program to go on")
        assert count(data) < reached + 1000


@pytest.mark.vm
@needs_criu
def test_a_supervised_container(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str) -> None:
    """Its supervisor ends with it. The restored one has none, and the streams of the caller."""
    with oci.Container.run(f"{prefix}-a", counting, state_root=state_root, supervise=True) as container:
        wait_until(lambda: count(data) > 5, "the program to count")
        container.checkpoint(tmp_path / "image")
        assert container.wait(TIME_LIMIT) == -9
        reached = count(data)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with oci.Container.restore(f"{prefix}-a", counting, tmp_path / "image", state_root=state_root, **streams) as restored:
        assert restored.status == "running"
        wait_until(lambda: count(data) > reached, "the program to go on")


@pytest.mark.vm
@needs_criu
def test_the_commands(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str, command: Command) -> None:
    name, image, pid_file = f"{prefix}-a", tmp_path / "image", tmp_path / "pid"

    def execute(*words: object) -> None:
        subprocess.run(
            command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=TIME_LIMIT,
            check=True,
        )

    execute("run", "--bundle", counting.path, "--detach", name)
    wait_until(lambda: count(data) > 5, "the program to count")
    execute("checkpoint", "--image-path", image, name)
    execute("delete", name)
    reached = count(data)
    execute("restore", "--bundle", counting.path, "--image-path", image, "--pid-file", pid_file, "--detach", name)
    wait_until(lambda: count(data) > reached, "the program to go on")
    container = oci.Container.load(name, state_root=state_root)
    assert int(pid_file.read_text()) == container.pid
    container.kill("KILL")
    container.wait(TIME_LIMIT)
    container.delete()


@pytest.mark.vm
@needs_criu
def test_nothing_is_left_of_a_failed_restore(
    counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str
) -> None:
    image = tmp_path / "image"
    with oci.Container.run(
        f"{prefix}-a",
        counting,
        state_root=state_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as container:
        container.checkpoint(image)
    before = host_state()
    for pages in image.glob("core-*.img"):
        pages.write_bytes(b"damaged")
    with pytest.raises(oci.UnsupportedError, match=r"cannot restore container .*: criu: .*; see .*/restore\.log"):
        oci.Container.restore(f"{prefix}-a", counting, image, state_root=state_root)
    assert host_state() == before
    assert os.listdir(state_root) in ([], [".seccomp"])
    assert not has_cgroup(f"{prefix}-counting")


@pytest.mark.vm
@needs_criu
def test_a_container_goes_on_after_a_failed_checkpoint(
    counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str
) -> None:
    serve, connect = "sleep 1000 | nc -l -p 7000 >/dev/null &", "sleep 1000 | nc 127.0.0.1 7000 >/dev/null &"
    connected = counting.with_process(args=("sh", "-c", f"{serve} sleep 1; {connect} {COUNT}"))
    with oci.Container.run(
        f"{prefix}-a",
        connected,
        state_root=state_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as container:
        wait_until(lambda: " 01 " in Path(f"/proc/{container.pid}/net/tcp").read_text(), "the connection")
        with pytest.raises(
            oci.UnsupportedError, match=r"cannot checkpoint container .*: criu: .*tcp-established.*; see .*/dump\.log"
        ):
            container.checkpoint(tmp_path / "image")
        assert container.status == "running"
        assert goes_on(data)
        container.checkpoint(tmp_path / "image", tcp_established=True)
        assert container.status == "stopped"


def test_without_criu(counting: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with oci.Container.run(f"{prefix}-a", counting, state_root=state_root) as container:
        with pytest.raises(oci.UnsupportedError, match="criu is not installed; install the package criu"):
            container.checkpoint(tmp_path / "image")
        assert container.status == "running"
    with pytest.raises(oci.UnsupportedError, match="criu is not installed; install the package criu"):
        oci.Container.restore(f"{prefix}-a", counting, tmp_path / "image", state_root=state_root)
    assert oci.Container.list(state_root=state_root) == []


def test_a_criu_that_fails(
    counting: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has criu's own reason, and nothing is left."""
    programs, image = tmp_path / "bin", tmp_path / "image"
    programs.mkdir()
    criu = programs / "criu"
    criu.write_text(
        '#!/bin/sh\nwhile [ "$1" != --work-dir ]; do shift; done\n'
        'echo "(00.1) Error (criu/util.c:642): exited, status=1" > "$2/$4"\n'
        'echo "(00.2) Error (criu/kerndat.c:1): this kernel is too odd" >> "$2/$4"\nexit 1\n'
    )
    criu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    before = host_state()
    with oci.Container.run(
        f"{prefix}-a",
        counting,
        state_root=state_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as container:
        with pytest.raises(oci.UnsupportedError, match=r"criu: this kernel is too odd; see .*/dump\.log"):
            container.checkpoint(image)
        assert container.status == "running"
        assert goes_on(data)
    (image / "descriptors.json").write_text('["pipe:[1]", "", ""]')
    with pytest.raises(oci.UnsupportedError, match=r"criu: this kernel is too odd; see .*/restore\.log"):
        oci.Container.restore(f"{prefix}-a", counting, image, state_root=state_root)
    assert host_state() == before
    assert oci.Container.list(state_root=state_root) == []
    assert not has_cgroup(f"{prefix}-counting")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda spec: spec.at.process.terminal.set(True), "it has a terminal"),
        (lambda spec: spec.at.linux.namespaces.set(joined(spec, cgroup="/proc/self/ns/cgroup")), "existing cgroup namespace"),
    ],
)
def test_what_cannot_be_restored_is_not_written(
    make_bundle: MakeBundle,
    state_root: Path,
    tmp_path: Path,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[RuntimeSpec], RuntimeSpec],
    reason: str,
) -> None:
    (tmp_path / "criu").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "criu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    spec = change(make_bundle().spec)
    terminal = True if spec.process is not None and spec.process.terminal else None
    with oci.Container.run(f"{prefix}-a", make_bundle(spec), state_root=state_root, terminal=terminal) as container:
        with pytest.raises(oci.UnsupportedError, match=reason):
            container.checkpoint(tmp_path / "image")
        assert container.status == "running"
    assert not (tmp_path / "image").exists()


def joined(spec: RuntimeSpec, **paths: str) -> tuple[oci.spec.Namespace, ...]:
    """Return the namespaces of a configuration, and those of other types at these paths."""
    assert spec.linux is not None
    own = (space for space in spec.linux.namespaces or () if space.type not in paths)
    return (*own, *(oci.spec.Namespace(type=kind, path=path) for kind, path in paths.items()))


def test_it_needs_root(user: User) -> None:
    user.command("create", "--bundle", user.bundle, "c", check=True)
    user.command("start", "c", check=True)
    try:
        for command in ("checkpoint", "c"), ("restore", "--bundle", user.bundle, "--detach", "d"):
            failed = user.command(*command[:1], "--image-path", user.work / "image", *command[1:])
            assert failed.returncode == 1
            assert "criu needs root" in failed.stderr
        assert not (user.work / "image").exists()
        assert user.command("state", "d").returncode == 1
    finally:
        user.command("delete", "--force", "c", check=True)
