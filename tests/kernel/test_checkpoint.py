"""Checkpoint and restore by criu: what a restored container goes on with, and what is left after an error."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.files import read_mounts
from ociruntime.spec import Mount, RuntimeSpec
from ociruntime.spec.base import is_below

from ..support.clients import criu_works
from ..support.fake_criu import write_criu
from ..support.fixture_types import Command, MakeBundle
from ..support.terminals import Session
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
def greeter(make_bundle: MakeBundle, prefix: str) -> oci.Bundle:
    """A bundle whose program answers each line that is typed, and knows how many there were."""
    script = 'i=0; while read -r line; do i=$((i+1)); echo "$line $i"; done'
    spec = RuntimeSpec.default()
    assert spec.process is not None
    assert spec.linux is not None
    process = spec.process.evolve(args=("sh", "-c", script), terminal=True)
    return make_bundle(spec.evolve(process=process, linux=spec.linux.evolve(cgroups_path=f"/{prefix}-greeter")))


def read_until(terminal: oci.Terminal, text: str) -> str:
    """Return what a terminal prints up to a text."""
    seen = b""
    while text.encode() not in seen:
        data = terminal.read(4096)
        assert data, f"it printed {seen!r}, not {text!r}"
        seen += data
    return seen.decode()


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


def host_state(directory: Path) -> tuple[list[str], set[str]]:
    """Return the mounts below a directory, and the children of this process."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [mount.point for mount in read_mounts() if is_below(mount.point, str(directory))], set(children)


def has_cgroup(name: str) -> bool:
    """Return whether a hierarchy has a cgroup of this name below its root."""
    places = ("", *os.listdir("/sys/fs/cgroup"))
    return any(os.path.exists(f"/sys/fs/cgroup/{place}/{name}") for place in places)


@pytest.mark.vm
@needs_criu
def test_a_restored_container_goes_on(counting: oci.Bundle, state_root: Path, data: Path, tmp_path: Path, prefix: str) -> None:
    image, before = tmp_path / "image", host_state(tmp_path)
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
    assert host_state(tmp_path) == before
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
def test_a_terminal(greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str) -> None:
    """It is restored with its size, and the caller gets its new master."""
    image = tmp_path / "image"
    with oci.Container.run(f"{prefix}-a", greeter, state_root=state_root, terminal=True) as container:
        assert container.terminal is not None
        container.terminal.resize(31, 97)
        container.terminal.write(b"one\n")
        read_until(container.terminal, "one 1\r\n")
        container.checkpoint(image)
        assert container.status == "stopped"
    before = host_state(tmp_path)
    with oci.Container.restore(f"{prefix}-a", greeter, image, state_root=state_root, terminal=True) as restored:
        assert restored.status == "running"
        assert restored.terminal is not None
        assert restored.terminal.size == (31, 97)
        restored.terminal.write(b"two\n")
        read_until(restored.terminal, "two 2\r\n")
        shown = restored.exec(["stat", "-c", "%t:%T", "/dev/console", "/dev/pts/0"], capture_output=True, text=True)
        console, terminal = shown.stdout.splitlines()
        assert console == terminal, "/dev/console is its terminal"
        restored.terminal.write(b"\x03")
        assert restored.wait(TIME_LIMIT) == 130, "it is the controlling terminal"
    assert host_state(tmp_path) == before


@pytest.mark.vm
@needs_criu
def test_the_commands(greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, command: Command) -> None:
    """As with runc, the console sockets get the masters of the terminals."""
    name, image, pid_file = f"{prefix}-a", tmp_path / "image", tmp_path / "pid"

    def execute(*words: object) -> None:
        streams = subprocess.DEVNULL
        subprocess.run(command(*words), stdin=streams, stdout=streams, stderr=streams, timeout=TIME_LIMIT, check=True)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        listener.settimeout(TIME_LIMIT)
        detached = ("--bundle", greeter.path, "--detach", "--console-socket", tmp_path / "console")
        execute("run", *detached, name)
        with receive_terminal(listener) as terminal:
            terminal.write(b"one\n")
            read_until(terminal, "one 1\r\n")
            execute("checkpoint", "--image-path", image, name)
        execute("delete", name)
        execute("restore", *detached, "--image-path", image, "--pid-file", pid_file, name)
        with receive_terminal(listener) as terminal:
            terminal.write(b"two\n")
            read_until(terminal, "two 2\r\n")
            container = oci.Container.load(name, state_root=state_root)
            assert container.status == "running"
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
    before = host_state(tmp_path)
    for pages in image.glob("core-*.img"):
        pages.write_bytes(b"damaged")
    with pytest.raises(oci.UnsupportedError, match=r"cannot restore container .*: criu: .*; see .*/restore\.log"):
        oci.Container.restore(f"{prefix}-a", counting, image, state_root=state_root)
    assert host_state(tmp_path) == before
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


ODD_LOG = """
log("(00.1) Error (criu/util.c:642): exited, status=1", "(00.2) Error (criu/kerndat.c:1): this kernel is too odd")
"""
FAILURES = {
    "a reply": (
        f"{ODD_LOG}peer.send(reply((1, kind), (2, 0), (4, field(1, 2**64 - 1))))",
        "criu: this kernel is too odd; see {log}",
    ),
    "no reply": (ODD_LOG, "criu: this kernel is too odd; see {log}"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "criu failed and wrote no log to {log}; run 'criu check'"),
    "no log": (
        "peer.send(reply((1, kind), (2, 0), (9, b'no directory')))",
        "wrote no log to {log}: no directory; run 'criu check'",
    ),
    "no message": ("peer.send(b'\\xff' * 20)", "a message that is not valid: it has a number of more than 64 bits; use criu 3.17"),
    "a long one": ("peer.send(bytes(70000))", "a message that is not valid: it is too long; use criu 3.17 or later"),
    "a file": ("socket.send_fds(peer, [reply((1, kind), (2, 1))], [0])", "a message that is not valid: it has a file descriptor"),
}
"""What a criu does, and the error."""


@pytest.mark.parametrize("failure", FAILURES)
def test_a_criu_that_fails(
    counting: oci.Bundle,
    state_root: Path,
    tmp_path: Path,
    prefix: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    """The error has criu's own reason, and nothing is left."""
    image, (scenario, error) = tmp_path / "image", FAILURES[failure]
    write_criu(tmp_path / "bin", scenario)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    before = host_state(tmp_path)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with oci.Container.run(f"{prefix}-a", counting, state_root=state_root, **streams) as container:
        with pytest.raises(oci.UnsupportedError, match=re.escape(error.format(log=f"{image}/dump.log"))):
            container.checkpoint(image)
        assert container.status == "running"
        assert goes_on(data)
    (image / "descriptors.json").write_text('["pipe:[1]", "", ""]')
    with pytest.raises(oci.UnsupportedError, match=re.escape(error.format(log=f"{image}/restore.log"))):
        oci.Container.restore(f"{prefix}-a", counting, image, state_root=state_root)
    assert host_state(tmp_path) == before
    assert oci.Container.list(state_root=state_root) == []
    assert not has_cgroup(f"{prefix}-counting")


RESTORED = """
master, slave = os.openpty()
terminal = os.ttyname(slave)
os.close(slave)
notify(b"pre-restore")
"""
WITH_TERMINAL = (
    RESTORED
    + """
assert options[50] == [1] and options[12] == [1] and options[26] == [1], options
pid = restore(echo)
notify(b"orphan-pts-master", [master])
peer.send(reply((1, 2), (2, 1), (4, field(1, pid))))
"""
)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an image, for a criu that does not read it."""
    path = tmp_path / "image"
    path.mkdir()
    (path / "descriptors.json").write_text('["/dev/pts/0", "/dev/pts/0", "/dev/pts/0"]')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return path


@pytest.mark.parametrize("receiver", ["caller", "socket"])
def test_the_master_of_a_restored_terminal(
    greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, image: Path, receiver: str
) -> None:
    write_criu(tmp_path / "bin", WITH_TERMINAL)
    before = host_state(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        listener.settimeout(TIME_LIMIT)
        to: dict[str, Any] = {"terminal": True} if receiver == "caller" else {"console_socket": tmp_path / "console"}
        with oci.Container.restore(f"{prefix}-a", greeter, image, state_root=state_root, **to) as container:
            terminal = container.terminal if receiver == "caller" else receive_terminal(listener)
            assert terminal is not None
            assert container.status == "running"
            terminal.write(b"one\n")
            read_until(terminal, "<one>")
            terminal.close()
            assert container.wait(TIME_LIMIT) == 0, "it ends with its terminal"
    assert host_state(tmp_path) == before


def receive_terminal(listener: socket.socket) -> oci.Terminal:
    """Return the master that a console socket gets."""
    peer, _ = listener.accept()
    with peer:
        _, fds, _, _ = socket.recv_fds(peer, 100, 1)
    return oci.Terminal(fds[0])


def test_a_restore_in_a_terminal(
    greeter: oci.Bundle,
    state_root: Path,
    tmp_path: Path,
    prefix: str,
    image: Path,
    session: Callable[..., Session],
    command: Command,
) -> None:
    """The command connects its terminal with that of the container, as run does."""
    write_criu(tmp_path / "bin", WITH_TERMINAL)
    detached = subprocess.run(
        command("restore", "-d", "--image-path", image, "-b", greeter.path, prefix), capture_output=True, text=True, check=False
    )
    assert detached.returncode == 1
    assert "$.process.terminal needs a receiver" in detached.stderr
    tty = session(*command("restore", "--image-path", image, "-b", greeter.path, prefix))
    tty.type("one\r")
    tty.expect("<one>")
    oci.Container.load(prefix, state_root=state_root).kill("TERM")
    assert tty.wait() == 143
    assert tty.restored
    assert oci.Container.list(state_root=state_root) == []


NOT_VALID = {
    "no terminal": ("peer.send(reply((1, 2), (2, 1), (4, field(1, restore(signal.pause)))))", "have no terminal open"),
    "no master": ("notify(b'orphan-pts-master')", "'orphan-pts-master' does not fit"),
    "another file": ("notify(b'pre-resume', [master])", "'pre-resume' does not fit"),
    "twice": ("[notify(b'orphan-pts-master', [master]) for _ in 'ab']", "'orphan-pts-master' does not fit"),
    "no process": ("notify(b'orphan-pts-master', [master]); peer.send(reply((1, 2), (2, 1)))", "names no restored process"),
    "a failure": (f"restore(signal.pause); notify(b'orphan-pts-master', [master]){ODD_LOG}", "this kernel is too odd"),
}
"""What a criu does wrong in a restore, and the error."""


@pytest.mark.parametrize("wrong", NOT_VALID)
def test_a_restore_that_fails(greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, image: Path, wrong: str) -> None:
    """No process, no file descriptor and no cgroup is left."""
    scenario, error = NOT_VALID[wrong]
    write_criu(tmp_path / "bin", RESTORED + scenario)
    before, files = host_state(tmp_path), os.listdir("/proc/self/fd")
    with pytest.raises(oci.UnsupportedError, match=f"cannot restore container '{prefix}-a': .*{error}"):
        oci.Container.restore(f"{prefix}-a", greeter, image, state_root=state_root, terminal=True)
    assert (host_state(tmp_path), os.listdir("/proc/self/fd")) == (before, files)
    assert oci.Container.list(state_root=state_root) == []
    assert not has_cgroup(f"{prefix}-greeter")


def test_an_interrupted_restore(greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, image: Path) -> None:
    """A signal ends it while criu works."""
    write_criu(tmp_path / "bin", RESTORED + "restore(signal.pause); os.kill(os.getppid(), signal.SIGINT); signal.pause()")
    before = host_state(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        oci.Container.restore(f"{prefix}-a", greeter, image, state_root=state_root, terminal=True)
    assert host_state(tmp_path) == before
    assert oci.Container.list(state_root=state_root) == []
    assert not has_cgroup(f"{prefix}-greeter")


def test_a_console_socket_without_a_listener(
    greeter: oci.Bundle, state_root: Path, tmp_path: Path, prefix: str, image: Path
) -> None:
    write_criu(tmp_path / "bin", WITH_TERMINAL)
    before = host_state(tmp_path)
    with pytest.raises(FileNotFoundError):
        oci.Container.restore(f"{prefix}-a", greeter, image, state_root=state_root, console_socket=tmp_path / "none")
    assert host_state(tmp_path) == before
    assert not has_cgroup(f"{prefix}-greeter")
    with pytest.raises(oci.UnsupportedError, match="console_socket is given, but"):
        oci.Container.restore(
            f"{prefix}-a", greeter, image, state_root=state_root, console_socket=tmp_path / "none", terminal=False
        )


def test_what_cannot_be_restored_is_not_written(
    make_bundle: MakeBundle, state_root: Path, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_criu(tmp_path / "bin", "")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    spec = make_bundle().spec
    bundle = make_bundle(spec.at.linux.namespaces.set(joined(spec, cgroup="/proc/self/ns/cgroup")))
    with oci.Container.run(f"{prefix}-a", bundle, state_root=state_root) as container:
        with pytest.raises(oci.UnsupportedError, match="existing cgroup namespace"):
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
