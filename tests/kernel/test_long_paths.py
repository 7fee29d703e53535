"""Paths that are longer than what single system calls take: 255 bytes of a mount option, 107 of a socket address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.files import socket_path

from ..support.leftovers import mounts_below
from ..support.places import REPO
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = [pytest.mark.root, pytest.mark.sif]


def long_path(top: Path, length: int) -> Path:
    """Make a directory whose path has this length, in bytes."""
    path = str(top)
    while length - len(path) > 255:
        path += "/" + "d" * min(200, length - len(path) - 2)
    if length > len(path):
        path += "/" + "e" * (length - len(path) - 1)
    assert len(path) == length
    os.makedirs(path)
    return Path(path)


@pytest.fixture(params=[300, 4000])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return long_path(tmp_path, request.param)


def test_a_mounted_bundle(busybox_sif: Path, place: Path, prefix: str) -> None:
    state_root = place / "s"
    with oci.Bundle.from_sif(busybox_sif, place / "b") as bundle:
        with oci.Container.run(prefix, bundle.with_args(["sleep", "1000"]), state_root=state_root) as container:
            script = "echo x > /new && cat /new"
            assert container.exec(["sh", "-c", script], capture_output=True).stdout == b"x\n"
            with pytest.raises(oci.BundleError, match="still uses it"):
                bundle.umount(state_root=state_root)
        assert (bundle.path / "overlay/upper/new").read_text() == "x\n"
    assert os.listdir(place) == ["s"]
    assert mounts_below(place) == []


@pytest.mark.parametrize("source", ["busybox_sif", "busybox_rootfs"])
def test_a_long_temporary_directory(
    request: pytest.FixtureRequest, place: Path, state_root: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(place))
    result = oci.run(
        request.getfixturevalue(source), ["sh", "-c", "echo x > /new && cat /new"], capture_output=True, state_root=state_root
    )
    assert result.stdout == b"x\n", result
    assert os.listdir(place) == []


def test_images_and_lower_layers(busybox_sif: Path, busybox_rootfs: Path, place: Path, state_root: Path) -> None:
    shutil.copy(busybox_sif, place / "x")
    shutil.copytree(busybox_rootfs, place / "r", symlinks=True)
    for image in ("x", "r"):
        assert oci.run(place / image, ["echo", "x"], capture_output=True, state_root=state_root).stdout == b"x\n"
    mounts = [f"{place}/r/etc:/etc", f"{place}/r/etc/passwd:/file"]
    assert oci.run(place / "x", ["cat", "/file"], mounts=mounts, capture_output=True, state_root=state_root).stdout.startswith(
        b"root:"
    )


def test_the_life_of_a_supervised_container(busybox_rootfs: Path, place: Path, prefix: str) -> None:
    shutil.copytree(busybox_rootfs, place / "rootfs", symlinks=True)
    bundle = oci.Bundle.from_dir(place).with_args(["sh", "-c", "echo begun; read line; exit 3"])
    with oci.Container.create(prefix, bundle, state_root=place / "s", supervise=True) as container:
        container.start()
        assert container.exec(["echo", "x"], capture_output=True).stdout == b"x\n"
        container.pause()
        container.resume()
        with container.attach() as attachment:
            attachment.write(b"line\n")
            assert container.wait(TIME_LIMIT) == 3
        assert next(iter(container.logs())).text == "begun"


def test_the_command_line(busybox_sif: Path, place: Path, prefix: str) -> None:
    def command(*words: object) -> str:
        line = [sys.executable, "-P", "-m", "ociruntime", "--root", str(place / "s"), *map(str, words)]
        done = subprocess.run(line, cwd=REPO, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("mount", busybox_sif, place / "m")
    bundle = oci.Bundle.load(place / "m")
    bundle.spec = bundle.with_args(["sleep", "1000"]).spec
    with listening(place / "sync") as peers:
        subprocess.run(
            [sys.executable, "-P", "-m", "ociruntime", "--root", place / "s", "create", "-b", place / "m", prefix],
            cwd=REPO, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert '"created"' in command("state", prefix)
        command("state", "-s", place / "sync", prefix)
        wait_until(lambda: len(peers) == 1, "the state at the sync socket", 20)
        assert b'"created"' in peers[0]
    command("start", prefix)
    assert command("exec", prefix, "echo", "x") == "x\n"
    command("delete", "--force", prefix)
    command("umount", place / "m")
    assert sorted(os.listdir(place)) == ["s", "sync"]


@contextmanager
def listening(path: Path) -> Iterator[list[bytes]]:
    """Listen on a socket at a path of any length; the list gets what each connection sends."""
    heard: list[bytes] = []
    fds: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_path(path.parent, path.name) as address:
            listener.bind(address)
        listener.listen()

        def accept() -> None:
            try:
                peer, _ = listener.accept()
            except OSError:
                return  # nobody came
            with peer:
                data, received, _, _ = socket.recv_fds(peer, 1 << 16, 8)
                fds.extend(received)
                heard.append(data)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for fd in fds:  # a terminal would hang up when its master is closed
                os.close(fd)


def test_sockets_of_the_caller(busybox_rootfs: Path, place: Path, prefix: str) -> None:
    """The console socket, the sync socket and the one for the readiness notification."""
    shutil.copytree(busybox_rootfs, place / "rootfs", symlinks=True)
    state_root = place / "s"
    bundle = oci.Bundle.from_dir(place).with_args(["sleep", "1000"])
    with listening(place / "console") as heard:
        terminal = bundle.with_process(terminal=True)
        with oci.Container.run(prefix, terminal, state_root=state_root, console_socket=place / "console"):
            wait_until(lambda: heard == [b"/dev/ptmx"], "the terminal", 20)
    with listening(place / "sync") as heard:
        with oci.Container.create(prefix, bundle, state_root=state_root, supervise=True, sync_socket=place / "sync"):
            wait_until(lambda: len(heard) == 1, "the state at the sync socket", 20)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(TIME_LIMIT)
        with socket_path(place, "notify") as address:
            listener.bind(address)
        with oci.Container.create(prefix, bundle, state_root=state_root, notify_socket=str(place / "notify")) as container:
            starting = threading.Thread(target=oci.Container.load(prefix, state_root=state_root).start)
            starting.start()
            wait_until(lambda: container.status is oci.Status.RUNNING, "the start", 60)
            environment = Path(f"/proc/{container.pid}/environ").read_bytes().split(b"\0")
            assert b"NOTIFY_SOCKET=/run/notify/notify" in environment, "a path that fits an address"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as process:
                process.sendto(b"READY=1", f"/proc/{container.pid}/root/run/notify/notify")
            starting.join(TIME_LIMIT)
            assert listener.recv(100) == f"READY=1\nMAINPID={container.pid}".encode()


def test_a_path_that_is_too_long(busybox_sif: Path, tmp_path: Path) -> None:
    place = long_path(tmp_path, 4085)
    with pytest.raises(oci.BundleError, match="the path is too long; choose a shorter one"):
        oci.Bundle.from_sif(busybox_sif, place / "b")
    assert os.listdir(place) == []


def test_umount_beside_a_process_in_a_directory_that_has_no_path(busybox_sif: Path, tmp_path: Path) -> None:
    """The kernel gives no path of more than 4095 bytes, in the links of /proc for example."""
    deep = os.open(long_path(tmp_path, 4000), os.O_PATH | os.O_DIRECTORY)
    try:
        os.mkdir("d" * 200, dir_fd=deep)
        inner = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=deep)
    finally:
        os.close(deep)
    try:
        with oci.Bundle.from_sif(busybox_sif, tmp_path / "b") as bundle:
            with (bundle.rootfs / "bin/busybox").open("rb"), pytest.raises(oci.BundleError, match=rf"process {os.getpid()} "):
                bundle.umount()
    finally:
        os.close(inner)
