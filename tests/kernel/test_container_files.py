"""The files of a container: read, written and copied with the rights of its users, while it changes them as it likes."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import io
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine import fileserver
from ociruntime.files import NotRegularError, socket_path
from ociruntime.image.layers import FileType
from ociruntime.lifecycle.files import launch_server
from ociruntime.spec import User

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.private_users import UID, give, new_user
from ..support.processes import child_processes
from ..support.users import run_tests_as_user, with_user_namespace
from ..support.waiting import TIME_LIMIT, wait_until

AS_ROOT = os.geteuid() == 0
Make = Callable[..., oci.Container]


@pytest.fixture(params=["root", "user namespace"] if AS_ROOT else ["user"])
def make(request: pytest.FixtureRequest, make_bundle: MakeBundle, state_root: Path, prefix: str) -> Iterator[Make]:
    """Runs a container, as root with and without a user namespace, or as the user of the test."""
    created: list[oci.Container] = []

    def run(*args: str, change: Callable[[oci.RuntimeSpec], oci.RuntimeSpec] = lambda spec: spec) -> oci.Container:
        spec = oci.RuntimeSpec.default(rootless=not AS_ROOT).with_args(args or ["sleep", "1000"])
        bundle = make_bundle()
        if request.param == "user namespace":
            spec = with_user_namespace(spec)
            for directory, _, _ in os.walk(bundle.rootfs):
                os.chown(directory, 100000, 100000)
        bundle.spec = change(spec)
        created.append(oci.Container.run(f"{prefix}-{len(created)}", bundle, state_root=state_root))
        return created[-1]

    yield run
    for container in created:
        with suppress(oci.ContainerNotFound):
            container.delete(force=True)


@pytest.fixture
def container(make: Make) -> oci.Container:
    return make()


def sh(container: oci.Container, script: str, **options: Any) -> str:
    return container.exec(["sh", "-c", script], capture_output=True, text=True, check=True, **options).stdout


def test_content(container: oci.Container) -> None:
    files = container.files
    text = "naïve\r\n\udcff\n"
    files.write_text("/tmp/text", text)
    assert files.read_text("/tmp/text") == text
    assert files.read_bytes("/tmp/text") == text.encode("utf-8", "surrogateescape")
    files.write_text("/tmp/text", "é", encoding="latin-1")
    assert files.read_bytes(b"/tmp/text") == b"\xe9"
    large = os.urandom(3_000_001)
    files.write_bytes(Path("/tmp/large"), bytearray(large))
    assert files.read_bytes("/tmp/large") == large
    files.write_bytes("/tmp/large", memoryview(b"short"))
    assert sh(container, "cat /tmp/large") == "short"
    assert files.read_bytes("/tmp/large", max_size=5) == b"short"
    with pytest.raises(OSError, match=f"larger than max_size, 4 bytes: '{container.id}:/tmp/large'") as caught:
        files.read_bytes("/tmp/large", max_size=4)
    assert caught.value.errno == errno.EFBIG
    files.write_bytes("/tmp/empty", b"", mode=0o600)
    assert sh(container, "stat -c %a:%s /tmp/empty; chmod 604 /tmp/empty") == "600:0\n"
    files.write_bytes("/tmp/empty", b"x", mode=0o777)
    assert sh(container, "stat -c %a:%s /tmp/empty") == "604:1\n", "a file that exists keeps its permissions"
    assert files.read_text("/proc/sys/kernel/ostype") == "Linux\n", "a file without a size"


def test_names(container: oci.Container) -> None:
    files = container.files
    assert {"bin", "etc", "tmp"} <= set(files.listdir())
    files.mkdir("/tmp/a/b/c", parents=True)
    files.mkdir("/tmp/a/b/c", parents=True, exist_ok=True)
    files.mkdir("/tmp/d", 0o1777)
    with pytest.raises(FileExistsError, match=f"File exists: '{container.id}:/tmp/d'"):
        files.mkdir("/tmp/d/")
    with pytest.raises(FileNotFoundError):
        files.mkdir("/tmp/no/d")
    assert sh(container, "stat -c %a /tmp/d; ln -s a /tmp/link; ln -s /nowhere /tmp/dangling") == "1777\n"
    assert files.listdir("/tmp") == ["a", "d", "dangling", "link"]
    assert (files.exists("/tmp/link/b"), files.exists("/tmp/dangling"), files.exists("/tmp/d/x/y")) == (True, False, False)
    status = files.stat("/tmp/d")
    assert (status.type, status.mode, status.uid, status.path) == (FileType.DIRECTORY, 0o1777, 0, "/tmp/d")
    assert abs(status.mtime_ns - time.time_ns()) < 60e9
    link = files.stat("/tmp/dangling", follow_symlinks=False)
    assert (link.type, link.target) == (FileType.SYMLINK, "/nowhere")
    assert files.stat("/dev/null").type is FileType.CHARACTER_DEVICE
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{container.id}:/tmp/dangling'"):
        files.stat("/tmp/dangling")
    with pytest.raises(OSError, match="leads nowhere"):
        files.write_text("/tmp/dangling", "x")
    with pytest.raises(OSError, match="Directory not empty"):
        files.remove("/tmp/a")
    files.remove("/tmp/link")
    files.remove("/tmp/a", recursive=True)
    files.remove("/tmp/a", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        files.remove("/tmp/a")
    with pytest.raises(ValueError, match="a name in a directory is needed"):
        files.remove("/", recursive=True)
    files.remove("/tmp/d")
    assert files.listdir("/tmp") == ["dangling"]
    with pytest.raises(NotADirectoryError):
        files.listdir("/bin/busybox")
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        files.read_bytes("/tmp")


def test_relative_paths_count_from_the_working_directory(make: Make) -> None:
    container = make(change=lambda spec: spec.evolve(process=spec.process and spec.process.evolve(cwd="/tmp")))
    container.files.write_text("here", "x")
    assert sh(container, "cat /tmp/here; pwd") == "x/tmp\n"


def test_links_stay_in_the_root(container: oci.Container, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("host")
    files = container.files
    sh(container, f"mkdir -p {tmp_path}; ln -s {outside} /tmp/link; ln -s ../../../../../../..{outside} /tmp/dots")
    for path in ("/tmp/link", "/tmp/dots", f"/../..{outside}"):
        with pytest.raises(FileNotFoundError):
            files.read_bytes(path)
    sh(container, f"echo -n inside > {outside}")
    for path in ("/tmp/link", "/tmp/dots", f"/../..{outside}"):
        assert files.read_text(path) == "inside"
        files.write_text(path, "changed")
        files.write_text(path, "inside")
    with pytest.raises(OSError, match=r"symbolic links|No such file|Permission denied"):
        files.read_text(f"/proc/1/root{outside}")
    with pytest.raises(OSError, match=r"symbolic links|No such file|Permission denied"):
        files.read_text(f"/proc/self/root{outside}")
    assert outside.read_text() == "host"


def test_special_files_are_not_opened(container: oci.Container, tmp_path: Path) -> None:
    files = container.files
    sh(container, "mkfifo /tmp/fifo; ln -s fifo /tmp/link; mkdir /tmp/d")
    with socket.socket(socket.AF_UNIX) as bound, socket_path(f"{container.state.rootfs}/tmp", "socket") as path:
        bound.bind(path)
    kinds = {"fifo": "FIFO", "link": "FIFO", "socket": "socket", "../dev/zero": "character device"}
    for name, kind in kinds.items():
        path = f"/tmp/{name}"
        message = f"a {kind}, not a regular file: '{container.id}:{path}'"
        with pytest.raises(NotRegularError, match=re.escape(message)):
            files.read_bytes(path)
        with pytest.raises(NotRegularError, match=re.escape(message)):
            files.write_bytes(path, b"x")
        with pytest.raises(NotRegularError, match=f"a {kind}"):
            files.get(path, io.BytesIO())
        with pytest.raises(NotRegularError, match=f"a {kind}"):
            files.put(io.BytesIO(b"x"), path)
    with pytest.warns(oci.OCIRuntimeWarning, match=f"not copied: {container.id}:/tmp/fifo .a FIFO.*/tmp/socket .a socket"):
        files.get("/tmp", tmp_path / "copy")
    assert sorted(os.listdir(tmp_path / "copy")) == ["d", "link"]
    os.mkfifo(tmp_path / "copy/fifo")
    with pytest.raises(NotRegularError):
        files.put(tmp_path / "copy/fifo", "/tmp")
    with pytest.warns(oci.OCIRuntimeWarning, match="not copied: .*copy/fifo"):
        files.put(tmp_path / "copy", "/tmp/back")
    assert files.listdir("/tmp/back") == ["d", "link"]


NAMES = ["plain", "with space", "new\nline", "-n", "\udcff\udcfe", "é", "n" * 255, "*", ":", "\\"]


def make_tree(top: Path) -> None:
    """Make a tree with odd names, links, holes, a file without any permissions, and a directory that is not writable."""
    top.mkdir()
    for name in NAMES:
        (top / name).write_text(name, errors="surrogateescape")
    os.truncate(top / "plain", 1 << 34)
    (top / "link").symlink_to("../../etc/passwd")
    (top / "locked").mkdir()
    (top / "locked/file").write_text("x")
    (top / "set-id").write_text("x")
    (top / "set-id").chmod(0o6755)
    (top / "empty").mkdir(mode=0o711)
    os.utime(top / "locked/file", (1, 2))
    (top / "locked").chmod(0o555)
    os.utime(top / "locked", (3, 4))


def check_tree(top: Path, *, merged: bool = False) -> None:
    assert sorted(os.listdir(top)) == sorted([*NAMES, "link", "locked", "empty", "set-id"])
    for name in NAMES[1:]:
        assert (top / name).read_text(errors="surrogateescape") == name
    plain = (top / "plain").stat()
    assert (plain.st_size, plain.st_blocks < 10_000) == (1 << 34, True)
    assert os.readlink(top / "link") == "../../etc/passwd"
    assert (top / "locked/file").stat().st_mtime == 2
    assert stat.S_IMODE((top / "locked").stat().st_mode) == 0o555
    assert merged or (top / "locked").stat().st_mtime == 4
    assert stat.S_IMODE((top / "empty").stat().st_mode) == 0o711
    assert stat.S_IMODE((top / "set-id").stat().st_mode) == 0o755
    assert (top / "set-id").stat().st_uid == os.geteuid()


def test_trees_there_and_back(container: oci.Container, tmp_path: Path) -> None:
    files = container.files
    make_tree(tmp_path / "tree")
    files.put(tmp_path / "tree", "/tmp/one")
    files.put(f"{tmp_path}/tree", "/tmp")
    assert files.listdir("/tmp") == ["one", "tree"]
    assert sh(container, "cat /tmp/one/-n; stat -c %a:%u /tmp/one/set-id; readlink /tmp/one/link") == "-n755:0\n../../etc/passwd\n"
    files.get("/tmp/one", tmp_path / "back")
    check_tree(tmp_path / "back")
    (tmp_path / "there").mkdir()
    files.get("/tmp/tree", tmp_path / "there")
    check_tree(tmp_path / "there/tree")
    (tmp_path / "there/tree/é").unlink()
    (tmp_path / "there/tree/é").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("host")
    for directory in (tmp_path / "there/tree/locked", tmp_path / "tree/locked"):
        directory.chmod(0o755)
    sh(container, "chmod 755 /tmp/tree/locked")
    files.put(f"{tmp_path}/tree/.", "/tmp/tree/")
    files.get("/tmp/tree/.", tmp_path / "there/tree")
    (tmp_path / "there/tree/locked").chmod(0o555)
    check_tree(tmp_path / "there/tree", merged=True)
    assert (tmp_path / "victim").read_text() == "host", "a link is replaced, not followed"
    files.put(tmp_path / "tree/é", "/tmp")
    files.get("/tmp/é", tmp_path)
    assert (tmp_path / "é").read_text() == "é"
    files.get("/tmp/é", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "é"
    with pytest.raises(OSError, match="larger than max_size"):
        files.get("/tmp/one/plain", tmp_path / "other", max_size=1 << 20)
    assert (tmp_path / "other").read_text() == "é", "an error leaves it as it was"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    files.remove("/tmp/tree", recursive=True)
    assert files.listdir("/tmp") == ["one", "é"]


def test_deep_trees(container: oci.Container, tmp_path: Path) -> None:
    """Far below the longest path, in both directions."""
    depth, name = 700, "d" * 200
    sh(
        container,
        f"mkdir /tmp/deep; cd -P /tmp/deep; for i in $(seq {depth}); do mkdir {name}; cd -P {name} || exit 1; done; echo x > end",
    )
    files = container.files
    files.get("/tmp/deep", tmp_path / "deep")
    fd = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(depth):
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    assert os.listdir(fd) == ["end"]
    os.close(fd)
    files.put(tmp_path / "deep", "/tmp/again")
    files.remove("/tmp/deep", recursive=True)
    files.remove("/tmp/again", recursive=True)
    assert files.listdir("/tmp") == []
    shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    subprocess.run(["rm", "-rf", str(tmp_path / "deep")], check=True)


def test_links_of_an_earlier_copy_are_not_followed(container: oci.Container, tmp_path: Path) -> None:
    """What a container has put into a directory of the caller does not lead the next copy elsewhere."""
    host, copies, files = tmp_path / "host", tmp_path / "copies", container.files
    host.mkdir()
    (host / "file").write_text("host")
    os.mkfifo(host / "fifo")
    copies.mkdir()
    sh(
        container,
        f"mkdir /tmp/a /tmp/dir; cd /tmp/a; ln -s {host} dir; ln -s {host}/file file; ln -s {host}/fifo fifo; ln -s /none none",
    )
    sh(container, "cd /tmp; for name in dir/file file fifo; do echo inside > $name; done; mkdir none")
    files.get("/tmp/a/.", copies)
    for name in ("dir", "none"):
        with pytest.raises(NotADirectoryError, match="a symbolic link, which a copy does not follow"):
            files.get(f"/tmp/{name}", copies)
    reader = os.open(host / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("file", "fifo"):
        files.get(f"/tmp/{name}", copies)
        assert (copies / name).lstat().st_size == len("inside\n")
    assert (host / "file").read_text() == "host"
    assert os.read(reader, 10) == b""
    os.close(reader)
    (tmp_path / "link").symlink_to(copies)
    files.get("/tmp/file", tmp_path / "link")
    files.get("/tmp/dir/.", tmp_path / "link")
    assert (copies / "file").read_text() == "inside\n", "a link that the caller gives is followed"


def test_mount_points_are_not_entered(container: oci.Container, tmp_path: Path) -> None:
    files = container.files
    with pytest.warns(oci.OCIRuntimeWarning, match=r"/dev \(a mount point\).*/proc \(a mount point\)"):
        files.get("/", tmp_path / "root")
    assert "proc" not in os.listdir(tmp_path / "root")
    assert (tmp_path / "root/bin/busybox").stat().st_size == files.stat("/bin/busybox").size
    with pytest.raises(OSError, match=f"it is a mount point: '{container.id}:/dev'"):
        files.remove("/dev", recursive=True)
    assert files.exists("/dev/null")


def test_users(make: Make) -> None:
    if not AS_ROOT:
        pytest.skip("only the user's own id is mapped")
    container = make(change=lambda spec: spec.evolve(process=spec.process and spec.process.evolve(user=User(uid=5, gid=6))))
    files = container.files
    sh(container, "chmod 1777 /tmp; echo 'app:x:7:8::/:' >> /etc/passwd; umask 77; echo root > /tmp/root", user=0)
    files.write_text("/tmp/own", "x")
    assert (files.stat("/tmp/own").uid, files.stat("/tmp/own").gid) == (5, 6)
    files.mkdir("/tmp/app", user="app")
    assert (files.stat("/tmp/app").uid, files.stat("/tmp/app").gid) == (7, 8)
    message = f"Permission denied to user 5 of the container; user=0 stands for root of the container: '{container.id}:/tmp/root'"
    with pytest.raises(PermissionError, match=re.escape(message)):
        files.read_text("/tmp/root")
    with pytest.raises(PermissionError):
        files.write_text("/etc/x", "x")
    with pytest.raises(PermissionError):
        files.remove("/tmp/app")
    assert files.read_text("/tmp/root", user=0) == "root\n"
    files.write_text("/tmp/own", "changed", user="root")
    assert files.stat("/tmp/own").uid == 5
    with pytest.raises(oci.BundleError, match="nobody"):
        files.listdir("/", user="nobody")
    with files:
        assert files.read_text("/tmp/own") == "changed"
        assert files.read_text("/tmp/root", user=0) == "root\n"
        assert files.exists("/tmp/own", user=(9, 9))


@pytest.mark.skipif(not AS_ROOT, reason="a user has no files of other users")
def test_the_rights_are_those_of_a_process_of_the_container(make: Make) -> None:
    """Root of a container without CAP_DAC_OVERRIDE does not get more rights by a link that the container makes."""

    def without(spec: oci.RuntimeSpec) -> oci.RuntimeSpec:
        assert spec.process is not None
        return spec.evolve(process=spec.process.evolve(capabilities=oci.spec.Capabilities()))

    container = make(change=without)
    rootfs = Path(container.state.rootfs)
    (rootfs / "theirs").write_text("x")
    os.chown(rootfs / "theirs", 101234, 101234)
    os.chmod(rootfs / "theirs", 0o600)
    assert container.exec(["cat", "/theirs"], stderr=subprocess.DEVNULL).returncode == 1
    with pytest.raises(PermissionError, match="user 0 of the container"):
        container.files.read_bytes("/theirs")


def test_statuses(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default(rootless=not AS_ROOT).with_args(["sleep", "1000"]))
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        files = container.files
        with pytest.raises(oci.WrongStatus, match="it is created, not running or paused"):
            files.listdir("/")
        container.start()
        files.write_text("/tmp/x", "running")
        with suppress(oci.UnsupportedError):
            container.pause()
            assert files.read_text("/tmp/x") == "running"
            container.resume()
        with files:
            files.read_text("/tmp/x")
            container.kill("KILL")
            container.wait()
            with pytest.raises(oci.WrongStatus, match=r"cannot use the files of container .* it is stopped"):
                files.read_text("/tmp/x")
        with pytest.raises(oci.WrongStatus, match="it is stopped, not running or paused"):
            files.listdir("/")
    with pytest.raises(oci.ContainerNotFound):
        files.listdir("/")


def test_a_server_is_invisible_and_ends(container: oci.Container) -> None:
    before = child_processes()
    with container.files as files:
        files.listdir("/")
        servers = set(child_processes()) - set(before)
        assert len(servers) == 1
        assert "oci-init" not in sh(container, "cat /proc/[0-9]*/comm")
        assert container.processes() == (container.pid,)
        files.exists("/tmp")
        assert set(child_processes()) - set(before) == servers, "one for all calls of the block"
    assert set(child_processes()) <= set(before)
    for _ in range(3):
        container.files.listdir("/")
    assert set(child_processes()) <= set(before)


def test_a_filesystem_that_does_not_answer(container: oci.Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileserver, "_PATIENCE", 0.3)
    before = child_processes()
    with container.files as files:
        files.listdir("/")
        (server,) = set(child_processes()) - set(before)
        os.kill(server, signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="did not answer for 0 s"):
            files.listdir("/")
        assert "tmp" in files.listdir("/"), "by another server"
    assert set(child_processes()) <= set(before)


def test_an_archive_is_not_kept_in_memory(container: oci.Container) -> None:
    """Programs of the container choose how many files it has, and how long their paths are."""
    sh(container, "mkdir /tmp/many; cd /tmp/many; for i in $(seq 40); do mkdir d$i; ln -s x l$i; echo x > f$i; mkfifo p$i; done")

    def members() -> int:
        return sum(type(value) is tarfile.TarInfo for value in gc.get_objects())

    class Sink:
        def write(self, part: bytes) -> None:
            found.append(members())

    gc.collect()
    before, found = members(), list[int]()

    with pytest.warns(oci.OCIRuntimeWarning, match=r"^not copied: (\S+ \(a FIFO\), ){4}\S+ \(a FIFO\) and 35 more$"):
        container.files.get_archive("/tmp/many", Sink())
    assert before < max(found) < before + 10


def test_calls_within_a_call(container: oci.Container) -> None:
    """A file of the caller, as a signal handler, may use the files of the container that is just read: what is open stays what it was."""
    before = child_processes()
    content = os.urandom(300_000)

    class Copy:
        def write(self, part: bytes) -> None:
            assert files.read_bytes("/tmp/other") == b"other"
            files.write_bytes("/tmp/copy", part)
            parts.append(part)

    parts: list[bytes] = []
    with container.files as files:
        files.write_bytes("/tmp/file", content)
        files.write_bytes("/tmp/other", b"other")
        servers = set(child_processes()) - set(before)
        files.get("/tmp/file", Copy())
        assert b"".join(parts) == content
        assert files.read_bytes("/tmp/copy") == parts[-1]
        assert set(child_processes()) - set(before) == servers
    assert set(child_processes()) <= set(before)


def test_interruptions(container: oci.Container, tmp_path: Path) -> None:
    class Alarm(Exception):
        pass

    def raise_alarm(number: int, frame: object) -> None:
        raise Alarm

    before = child_processes()
    sh(container, "dd if=/dev/zero of=/tmp/large bs=1M count=64 2>/dev/null")
    (tmp_path / "target").write_text("old")
    previous = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        for delay in (0.001, 0.003, 0.01, 0.03):
            signal.setitimer(signal.ITIMER_REAL, delay)
            with suppress(Alarm):
                for _ in range(100):
                    container.files.get("/tmp/large", tmp_path / "target")
                pytest.fail("it was not interrupted")
            assert (tmp_path / "target").stat().st_size in (3, 64 << 20)
            assert os.listdir(tmp_path) == ["target"] or set(os.listdir(tmp_path)) >= {"target"}
            assert not [name for name in os.listdir(tmp_path) if name.startswith(".target")]
            assert set(child_processes()) <= set(before)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_killed_caller_leaves_no_server(container: oci.Container, state_root: Path, script: Script) -> None:
    text = """
import os, signal, sys, threading, ociruntime as oci
files = oci.Container.load(sys.argv[1], state_root=sys.argv[2]).files.__enter__()
thread = threading.Thread(target=files.listdir)
thread.start()
thread.join()
for task in os.listdir("/proc/self/task"):
    try:
        print(open(f"/proc/self/task/{task}/children").read(), end=" ", flush=True)
    except FileNotFoundError:  # the thread, whose end join() does not wait for in the kernel
        continue
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = script(text, container.id, state_root, check=False)
    assert done.returncode == -signal.SIGKILL
    (pid,) = done.stdout.split()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the end of the server")


SWAPS = """
cd /tmp/w
while :; do
    echo -n own > new; mv new x
    ln -s {secret} new; mv new x
    mkfifo new; mv new x
    rm -f x; mkdir x; echo -n own > x/passwd
    mv x y; ln -s {folder} x
    rm -rf y x; ln x new 2>/dev/null; {device}
done
"""


@pytest.mark.slow
def test_a_container_that_swaps_everything(container: oci.Container, tmp_path: Path) -> None:
    """Nothing of the host is read or written, nothing blocks, and only documented errors occur."""
    secret, folder = tmp_path / "host/secret", tmp_path / "host"
    folder.mkdir()
    secret.write_text("host")
    (folder / "passwd").write_text("host")
    device = "mknod new c 1 5 2>/dev/null && mv new x" if AS_ROOT else ":"
    sh(container, f"mkdir -p /tmp/w {folder}; echo -n inside > {secret}; echo -n inside > {folder}/passwd")
    swapping = container.popen(["sh", "-c", SWAPS.format(secret=secret, folder=folder, device=device)], stderr=subprocess.DEVNULL)
    allowed = (
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EINVAL,
        errno.ELOOP,
        errno.ESTALE,
        errno.EAGAIN,
        errno.EEXIST,
        errno.EIO,
        errno.ENOTEMPTY,
    )
    outcomes: dict[str, int] = {}
    (tmp_path / "tree/x").mkdir(parents=True)
    (tmp_path / "tree/x/passwd").write_text("caller")
    calls: list[Callable[[oci.ContainerFiles], object]] = [
        lambda files: files.read_text("/tmp/w/x"),
        lambda files: files.read_text("/tmp/w/x/passwd"),
        lambda files: files.write_text("/tmp/w/x", "caller"),
        lambda files: files.write_text("/tmp/w/x/passwd", "caller"),
        lambda files: files.put(tmp_path / "tree/.", "/tmp/w"),
        lambda files: files.get("/tmp/w", tmp_path / "out"),
        lambda files: files.remove("/tmp/w/x", recursive=True),
        lambda files: files.stat("/tmp/w/x").type,
        lambda files: files.get_archive("/tmp/w", io.BytesIO()),
    ]
    words = ("own", "inside", "caller", "")
    written = {first + second[len(first) :] for first in words for second in words}  # two writers begin at the same offset
    end = time.monotonic() + 8
    with container.files as files, swapping:
        while time.monotonic() < end:
            for number, call in enumerate(calls):
                try:
                    result = call(files)
                except OSError as error:
                    if error.errno not in allowed:
                        raise
                    result = errno.errorcode[error.errno or 0]
                except oci.OCIRuntimeWarning:
                    result = "warned"
                assert result != "host"
                outcomes[f"{number}: {result}"] = outcomes.get(f"{number}: {result}", 0) + 1
            for path in (tmp_path / "out").rglob("passwd") if (tmp_path / "out").exists() else ():
                with suppress(OSError):
                    assert path.is_symlink() or path.parent.is_symlink() or path.read_text() in written
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        swapping.kill()
    print(outcomes)
    assert secret.read_text() == "host"
    assert (folder / "passwd").read_text() == "host"
    assert len({key for key in outcomes if key.startswith("0: ")}) > 2, "it has seen several kinds"


def test_a_file_that_grows_without_end(container: oci.Container, tmp_path: Path) -> None:
    growing = container.popen(["sh", "-c", "yes > /tmp/endless"])
    with growing:
        wait_until(
            lambda: container.files.exists("/tmp/endless") and container.files.stat("/tmp/endless").size > 1 << 20, "the file"
        )
        with pytest.raises(OSError, match="larger than max_size"):
            container.files.get("/tmp/endless", tmp_path / "copy", max_size=1 << 20)
        growing.kill()
    assert not (tmp_path / "copy").exists()


def test_file_objects(container: oci.Container, tmp_path: Path) -> None:
    files = container.files
    content = os.urandom(200_000)
    files.put(io.BytesIO(content), "/tmp/object")
    target = io.BytesIO()
    files.get("/tmp/object", target)
    assert target.getvalue() == content
    read, write = os.pipe()
    with open(read, "rb") as source, open(write, "wb") as sink:
        sink.write(b"piped")
        sink.close()
        files.put(source, "/tmp/piped")
    assert files.read_bytes("/tmp/piped") == b"piped"
    with pytest.raises(TypeError, match="binary mode"):
        files.put(io.StringIO("x"), "/tmp/text")  # type: ignore[arg-type]
    files.get("/tmp/piped", "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_archives(container: oci.Container, tmp_path: Path) -> None:
    files = container.files
    make_tree(tmp_path / "tree")
    (tmp_path / "tree/plain").unlink()
    os.link(tmp_path / "tree/é", tmp_path / "tree/hard")
    for mode in ("w", "w:gz"):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode=mode) as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "tree", "top")
            device = tarfile.TarInfo("top/device")
            device.type = tarfile.CHRTYPE
            tar.addfile(device)
        archive.seek(0)
        with pytest.warns(oci.OCIRuntimeWarning, match="not copied: top/device"):
            files.put_archive(archive, "/tmp")
    assert (
        sh(container, "cd /tmp/top; ls locked; stat -c %h hard; stat -c %a:%u set-id; stat -c %Y locked") == "file\n2\n755:0\n4\n"
    )
    result = io.BytesIO()
    files.get_archive("/tmp/top", result)
    result.seek(0)
    with tarfile.open(fileobj=result) as tar:
        members = {member.name: member for member in tar}
        content = tar.extractfile("top/with space")
        assert content is not None
        assert content.read() == b"with space"
    assert {f"top/{name}" for name in NAMES[1:]} | {"top", "top/link", "top/locked/file", "top/hard"} <= set(members)
    assert members["top/link"].linkname == "../../etc/passwd"
    single = io.BytesIO()
    files.get_archive("/tmp/top/é", single)
    with tarfile.open(fileobj=io.BytesIO(single.getvalue())) as tar:
        assert tar.getnames() == ["é"]
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a/../../b"))
    evil.seek(0)
    with pytest.raises(ValueError, match=r"'\.\.' is not allowed"):
        files.put_archive(evil, "/tmp")
    with pytest.raises(ValueError, match="not a tar archive"):
        files.put_archive(io.BytesIO(b"x" * 1000), "/tmp")
    with pytest.raises(FileNotFoundError):
        files.put_archive(io.BytesIO(single.getvalue()), "/none")


def _header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.USTAR_FORMAT)


def test_archives_with_long_headers(container: oci.Container) -> None:
    """Of strangers, and compressed: what they claim and repeat does not fill the memory of the caller."""
    zeros = gzip.compress(bytes(16 << 20))
    global_header = tarfile.TarInfo.create_pax_global_header
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE):
        evil = io.BytesIO(gzip.compress(_header(kind, 1 << 30)) + zeros)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match="not a tar archive: a header is too large"):
                container.files.put_archive(evil, "/tmp")
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()
    names = b"".join(_header(tarfile.GNUTYPE_LONGNAME, 2) + b"a\0".ljust(512, b"\0") for _ in range(3000))
    with pytest.raises(ValueError, match="not a tar archive"):
        container.files.put_archive(io.BytesIO(names), "/tmp")
    headers = b"".join(global_header({f"key{number}": "x" * (1 << 20)}) + _header(tarfile.DIRTYPE, 0) for number in range(5))
    with pytest.raises(ValueError, match="the global headers are too large"):
        container.files.put_archive(io.BytesIO(headers), "/tmp")
    odd = (
        ({"mtime": "inf"}, "not a tar archive: cannot convert float infinity"),
        ({"path": "a\0b"}, "has at most 4000 characters, and no NUL"),
        ({"path": "x" * 100_000}, "has at most 4000 characters, and no NUL"),
    )
    for more, message in odd:
        member = tarfile.TarInfo("x")
        member.pax_headers = more
        with pytest.raises(ValueError, match=message):
            container.files.put_archive(io.BytesIO(member.tobuf(tarfile.PAX_FORMAT)), "/tmp")
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("large")
        member.size = 6 << 20
        tar.addfile(member, io.BytesIO(b"x" * member.size))
    container.files.put_archive(io.BytesIO(gzip.compress(good.getvalue())), "/tmp")
    assert container.files.stat("/tmp/large").size == 6 << 20, "the content does not count"


def test_a_read_only_root(make: Make) -> None:
    container = make(change=lambda spec: spec.evolve(root=spec.root and spec.root.evolve(readonly=True)))
    with pytest.raises(OSError, match=f"Read-only file system: '{container.id}:/x'"):
        container.files.write_text("/x", "x")
    assert "bin" in container.files.listdir("/")


def test_cp(container: oci.Container, command: Command, tmp_path: Path) -> None:
    def cp(*words: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command("cp", *words), capture_output=True, cwd=tmp_path, check=False, **options)

    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/file").write_text("x")
    assert cp("dir", f"{container.id}:tmp").returncode == 0
    assert sh(container, "cat /tmp/dir/file") == "x"
    assert cp(f"{container.id}:/tmp/dir/file", "copy").returncode == 0
    assert (tmp_path / "copy").read_text() == "x"
    archive = cp(f"{container.id}:/tmp/dir", "-").stdout
    container.files.mkdir("/tmp/other")
    assert cp("-", f"{container.id}:/tmp/other", input=archive).returncode == 0
    assert sh(container, "cat /tmp/other/dir/file") == "x"
    failed = cp(f"{container.id}:/none", "copy")
    assert (failed.returncode, failed.stderr.decode()) == (1, f"ociruntime: {container.id}:/none: no such file or directory\n")
    for words in (("a", "b"), (f"{container.id}:/a", f"{container.id}:/b"), ("-", "-")):
        failed = cp(*words)
        assert failed.returncode == 1
        assert b"one of SOURCE and DESTINATION is ID:PATH" in failed.stderr
    if AS_ROOT:
        assert cp("--user", "7:8", "dir/file", f"{container.id}:/tmp/user").returncode == 1
        assert cp("--user", "7:8", f"{container.id}:/tmp/dir/file", "copy").returncode == 0


def test_aio(container: oci.Container, state_root: Path, tmp_path: Path) -> None:
    before = child_processes()

    async def use() -> None:
        files = oci.aio.Container.load(container.id, state_root=state_root).files
        await files.write_text("/tmp/x", "x")
        await asyncio.gather(*(files.write_text(f"/tmp/{n}", str(n)) for n in range(20)))
        assert await files.read_text("/tmp/7") == "7"
        assert await files.exists("/tmp/x")
        assert "7" in await files.listdir("/tmp")
        with pytest.raises(FileNotFoundError):
            await files.stat("/none")
        await files.remove("/tmp/x")
        began = time.monotonic()
        copying = asyncio.create_task(files.put(io.BytesIO(b"x" * (1 << 30)), "/tmp/large"))
        while not copying.done() and not await files.exists("/tmp/large"):
            await asyncio.sleep(0.01)
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert time.monotonic() - began < TIME_LIMIT

    asyncio.run(use())
    assert container.files.stat("/tmp/large").size < 1 << 30
    assert set(child_processes()) <= set(before)


@pytest.mark.root
@pytest.mark.skipif(shutil.which("newuidmap", path="/usr/bin") is None, reason="no newuidmap (Debian: uidmap)")
def test_a_user_with_subordinate_ids(user_python: str, busybox_rootfs: Path, tmp_path: Path) -> None:
    """The user cannot reach these files from outside."""
    script = """
import io, os, sys, ociruntime as oci
from ociruntime.spec import User
spec = oci.RuntimeSpec.default(rootless=True).with_args(["sleep", "100"])
spec = spec.at.linux.uid_mappings.set(None).at.linux.gid_mappings.set(None)
with oci.Container.run("c", oci.Bundle.from_dir(sys.argv[1], spec)) as c:
    files = c.files
    files.mkdir("/tmp/open", 0o777)
    files.write_text("/tmp/open/x", "secret", mode=0o600, user=(1000, 1000))
    print(files.stat("/tmp/open/x").uid, os.stat(sys.argv[1] + "/rootfs/tmp/open/x").st_uid != os.getuid())
    print(files.read_text("/tmp/open/x"), files.read_text("/tmp/open/x", user=1000))
    try:
        open(sys.argv[1] + "/rootfs/tmp/open/x")
    except PermissionError:
        print("from outside: no")
    os.makedirs("tree/inner")
    open("tree/inner/file", "w").write("tree")
    files.put("tree", "/tmp/open", user=1000)
    print(c.exec(["sh", "-c", "stat -c %u /tmp/open/tree/inner/file; cat /tmp/open/tree/inner/file"], capture_output=True, text=True).stdout)
    files.get("/tmp/open", "back")
    print(open("back/tree/inner/file").read(), open("back/x").read(), os.stat("back/x").st_uid == os.getuid())
    files.remove("/tmp/open", recursive=True)
"""
    with new_user(user_python, subordinate=True) as user:
        shutil.copytree(busybox_rootfs, user.home / "bundle/rootfs", symlinks=True)
        give(user.home)
        done = user.run("-c", script, user.home / "bundle")
        assert done.stdout.split() == "1000 True secret secret from outside: no 1000 tree tree secret True".split()
        assert user.leftovers() == []
        assert UID


@pytest.mark.root
def test_as_a_user_without_subordinate_ids(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "kernel/test_container_files.py")


def test_two_threads_share_a_block(container: oci.Container) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with container.files as files, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: files.write_text(f"/tmp/{n}", str(n)), range(40)))
        assert list(pool.map(lambda n: files.read_text(f"/tmp/{n}"), range(40))) == [str(n) for n in range(40)]


def test_a_call_that_is_not_understood(container: oci.Container) -> None:
    """The server refuses what its caller never sends."""
    server = launch_server(container._entry, container.spec, None)
    try:
        peer: socket.socket = server._peer
        for raw in (b"x", bytes(40), bytes(20) + b"\xff" * 4 + bytes(16) + b"x\0", b"\xff" * 60):
            peer.send(raw)
            assert int.from_bytes(peer.recv(100)[:4], sys.byteorder) == errno.EPROTO, raw
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
            with pytest.raises(PermissionError):
                server.call(fileserver.Call.OPEN, fileserver.SERVED_ROOT, b"/dev/zero", flags=flags, out=900)
    finally:
        server.close()
