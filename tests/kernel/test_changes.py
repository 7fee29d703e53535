"""What a container has changed, and snapshots of it."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine.fileserver import Answer, FileServer
from ociruntime.lifecycle import snapshots
from ociruntime.plan.ops import Call

from ..support.fixture_types import Command, MakeBundle
from ..support.private_users import give, new_user
from ..support.users import run_tests_as_user
from ..support.waiting import wait_until, within

AS_ROOT = os.geteuid() == 0
UPPERS = ["directory", "tmpfs"]
Start = Callable[..., oci.Container]


def spec() -> oci.RuntimeSpec:
    return oci.RuntimeSpec.default(rootless=not AS_ROOT).with_args(["sleep", "1000"])


@pytest.fixture(params=UPPERS)
def start(request: pytest.FixtureRequest, make_bundle: MakeBundle, state_root: Path, prefix: str) -> Iterator[Start]:
    """Runs a container with an upper layer of its own, in a directory or in memory."""
    created: list[oci.Container] = []
    overlay = "tmpfs" if request.param == "tmpfs" else None
    if overlay is not None and not AS_ROOT and oci.Host.probe().kernel < (6, 6):
        pytest.skip("a tmpfs has attributes of users from Linux 6.6 on")
    bundle = make_bundle(spec())
    for name in ("dir", "dir/inner", "gone", "replaced"):
        (bundle.rootfs / name).mkdir()
    for name in ("same", "text", "dir/file", "dir/inner/file", "gone/file", "replaced/old", "replaced/kept", "file"):
        (bundle.rootfs / name).write_text(f"{name}\n")
    (bundle.rootfs / "link").symlink_to("text")

    def run(of: oci.Bundle | None = None) -> oci.Container:
        created.append(oci.Container.run(f"{prefix}-{len(created)}", of or bundle.fresh(overlay=overlay), state_root=state_root))
        return created[-1]

    yield run
    for container in created:
        with suppress(oci.ContainerNotFound):
            container.delete(force=True)


def sh(container: oci.Container, script: str) -> str:
    return container.exec(["sh", "-c", script], capture_output=True, text=True, check=True).stdout


SCRIPT = """
cd /
touch same; chmod 644 same
echo more >> text
rm -r gone
rm -r replaced; mkdir replaced; echo -n x > replaced/new; printf 'replaced/kept\\n' > replaced/kept
rm file; mkdir file
chmod 700 dir/inner
echo -n 12345 > dir/new
rm dir/file
ln -sfn same link
mkfifo pipe
mkdir empty
rm -rf tmp/x; mkdir tmp/x; rmdir tmp/x
printf 'a\\0b' > binary
printf x > "$(printf 'odd\\377\\nname')"
"""
CHANGES = [
    "A /binary",
    "C /dir/inner",
    "R /dir/file",
    "A /dir/new",
    "A /empty",
    "C /file",
    "R /gone",
    "C /link",
    "A /odd\udcff\nname",
    "A /pipe",
    "R /replaced/old",
    "A /replaced/new",
    "C /text",
]


def test_changes(start: Start) -> None:
    container = start()
    assert container.changes() == ()
    assert sh(container, SCRIPT) == ""
    changes = container.changes()
    assert sorted(map(str, changes)) == sorted(CHANGES)
    assert [change.path for change in changes] == sorted((change.path for change in changes), key=os.fsencode)
    by_path = {change.path: change for change in changes}
    assert (by_path["/dir/new"].size, by_path["/pipe"].type, by_path["/gone"].type) == (5, "FIFO", "directory")
    assert (
        repr(changes) == f"<Changes: {len(changes.of_kind('added'))} added, {len(changes.of_kind('changed'))} changed, 3 removed>"
    )
    assert "<td>5 B</td><td><code>/dir/new</code></td>" in changes._repr_html_()
    assert pickle.loads(pickle.dumps(changes)) == changes
    assert container.diff_text("/text") == "--- a/text\n+++ b/text\n@@ -1 +1,2 @@\n text\n+more\n"
    assert container.diff_text("/dir/new") == "--- /dev/null\n+++ b/dir/new\n@@ -0,0 +1 @@\n+12345\n\\ No newline at end of file\n"
    assert container.diff_text("/dir/file") == "--- a/dir/file\n+++ /dev/null\n@@ -1 +0,0 @@\n-dir/file\n"
    assert container.diff_text("/same") == container.diff_text("bin/busybox") == ""
    with pytest.raises(FileNotFoundError):
        container.diff_text("/none")
    with pytest.raises(OSError, match="a binary file, not a text"):
        container.diff_text("/binary")
    with pytest.raises(OSError, match="a FIFO, not a text"):
        container.diff_text("/pipe")


def test_directories_of_many_files(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take few calls of the server, and what is in their extended attributes counts."""
    calls = []

    def call(self: FileServer, call: Call, *args: Any, **keywords: Any) -> Answer:
        calls.append(call)
        return original(self, call, *args, **keywords)

    container = start()
    sh(
        container,
        'mkdir many; cd many; i=0; while [ $i -lt 600 ]; do echo $i > "$i-of-the-files"; : > "empty-$i"; i=$((i+1)); done',
    )
    original = FileServer.call
    monkeypatch.setattr(FileServer, "call", call)
    assert len(container.changes().of_kind("added")) == 1201
    assert len(calls) < 100
    with container.snapshot() as snapshot:
        changed = start(snapshot.bundle)
    sh(changed, "cd many; chmod 600 *; chmod 644 1-of-the-files; rm [2-9]-of-the-files; mkdir new; mv empty-1 new")
    calls.clear()
    changes = changed.changes()
    assert len(calls) < 400
    assert len(changes.of_kind("changed")) == 1200 - 1 - 8 - 1
    assert [change.path for change in changes.of_kind("removed")] == [
        *(f"/many/{number}-of-the-files" for number in range(2, 10)),
        "/many/empty-1",
    ]
    assert [change.path for change in changes.of_kind("added")] == ["/many/new", "/many/new/empty-1"]


@pytest.mark.root
def test_long_names_of_attributes(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(spec())
    many = bundle.rootfs / "many"
    many.mkdir()
    for number in range(40):
        (many / f"{number}").write_text("same\n")
    for number in (1, 2):
        for attribute in range(8):
            os.setxattr(many / f"{number}", f"user.{'x' * 200}{attribute}", b"value")
    with oci.Container.run(prefix, bundle.fresh(), state_root=state_root) as container:
        sh(container, "touch many/*")
        assert container.changes() == ()
        os.setxattr(Path(f"/proc/{container.pid}/root/many/1"), f"user.{'x' * 200}3", b"another")
        assert list(map(str, container.changes())) == ["C /many/1"]
        container.delete(force=True)


def test_differences_of_odd_texts(start: Start) -> None:
    """They take a limited time, however the lines repeat, and lines end with a newline alone."""
    container = start()
    count = "i=0; while [ $i -lt 400 ]; do echo $((i * i % 317)); i=$((i+1)); done > one; cat $(yes one | head -n 300) > text"
    sh(container, f"{count}; printf 'form\\ffeed\\rand\\342\\200\\250more\\n' > odd; yes '' | head -c 1100000 > lines")
    assert container.diff_text("/odd") == "--- /dev/null\n+++ b/odd\n@@ -0,0 +1 @@\n+form\ffeed\rand\u2028more\n"
    with pytest.raises(OSError, match="more than 1048576 lines"):
        container.diff_text("/lines")
    with container.snapshot() as snapshot:
        changed = start(snapshot.bundle)
    sh(changed, "awk '{ print ($1 * 7 + NR) % 317 }' text > other; mv other text")
    with within(60):
        assert changed.diff_text("/text").startswith("--- a/text\n+++ b/text\n@@ -1")


def test_deep_trees(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below the longest path, up to where the paths alone would fill the memory of the caller."""
    container, depth, name = start(), 120, "d" * 200
    sh(
        container,
        f"mkdir deep; cd -P deep; for i in $(seq {depth}); do mkdir {name}; cd -P {name} || exit 1; done; echo x > end; ln end hard",
    )
    found = container.changes()
    assert [change.kind for change in found] == ["added"] * (depth + 3)
    assert found[-1].path == f"/deep/{f'{name}/' * depth}hard"
    with container.snapshot() as snapshot:
        fork = start(snapshot.bundle)
    script = f"cd -P /deep; for i in $(seq {depth}); do cd -P {name} || exit 1; done; cat hard; stat -c %h end"
    assert sh(fork, script).split() == ["x", "2"]
    monkeypatch.setattr(snapshots, "_MOST_PATHS", 1 << 20)
    for call in (container.changes, container.snapshot):
        with pytest.raises(
            OSError, match=r"paths of 1048576 bytes and more, of many levels, as below '/deep/dd.*; remove them first"
        ) as caught:
            call()
        assert caught.value.errno == errno.ENAMETOOLONG


def test_snapshots(start: Start, state_root: Path) -> None:
    container = start()
    sh(container, SCRIPT + "ln text dir/hard; dd if=/dev/zero of=sparse bs=1 count=1 seek=1G 2>/dev/null; chmod 4711 dir/new")
    before = set(map(str, container.changes()))
    with container.snapshot() as snapshot:
        sh(container, "echo later > later; rm text")
        forks = [start(snapshot.bundle), start(snapshot.bundle)]
        result = oci.run(snapshot.bundle, ["cat", "/text"], capture_output=True, text=True, state_root=state_root)
        assert result.stdout == "text\nmore\n"
        ran = oci.run(
            snapshot.bundle, ["sh", "-c", "echo x > x; cat text"], overlay="tmpfs", capture_output=True, state_root=state_root
        )
        assert ran.stdout == b"text\nmore\n"
        place = Path(snapshot.upper).parent
    with pytest.raises(oci.StateError, match="closed"):
        _ = snapshot.bundle
    assert place.exists(), "containers use it"
    for fork in forks:
        assert fork.changes() == (), "compared with the snapshot"
        assert "later" not in fork.files.listdir("/")
        assert not fork.files.exists("/gone")
        assert fork.files.listdir("/replaced") == ["kept", "new"]
        assert sh(fork, "stat -c %h text; stat -c %a dir/new; stat -c %s:%b sparse").split()[:2] == ["2", "4711"]
        assert int(sh(fork, "stat -c %b sparse")) < 10_000
        assert fork.files.stat("/pipe").type == "FIFO"
        sh(fork, "echo own > own")
        with fork.snapshot() as second:
            assert [str(change) for change in fork.changes()] == ["A /own"]
            third = start(second.bundle)
            assert third.files.read_text("/own") == "own\n"
            assert third.files.read_text("/text") == "text\nmore\n"
            third.delete(force=True)
            del third
        del second
    assert forks[1].files.read_text("/own") == "own\n"
    assert {"A /later"} <= set(map(str, container.changes()))
    assert before - set(map(str, container.changes())) == {"C /text"}
    while forks:
        forks.pop().delete(force=True)
    del fork
    gc.collect()
    assert not place.exists()


def test_a_snapshot_of_running_programs(start: Start) -> None:
    container = start()
    with container.popen(["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i > one; echo $i > two; done"]) as process:
        try:
            container.pause()
            container.resume()
        except oci.UnsupportedError:
            with pytest.raises(oci.UnsupportedError, match="end them first"):
                container.snapshot()
        else:
            wait_until(lambda: container.exec(["test", "-e", "two"]).returncode == 0, "the begin of the program")
            for _ in range(5):
                with container.snapshot() as snapshot:
                    upper = Path(snapshot.upper)
                    one, two = (int((upper / name).read_text() or 0) for name in ("one", "two"))
                    assert one - two in (0, 1) or 0 in (one, two), "at one moment"
                assert container.status == "running"
        process.kill()
    container.snapshot().close()


@pytest.mark.skipif(not AS_ROOT, reason="needs devices")
def test_everything_is_copied(start: Start) -> None:
    container = start()
    sh(container, "mkdir d; touch d/f; chown 5:6 d d/f; mknod d/null c 1 3; ln -s x d/l; chown -h 7:8 d/l; touch -d @1000 d/f d")
    upper = Path(f"/proc/self/fd/{container._layers._opened.fd}") if container._layers and container._layers._opened else None
    with container.snapshot() as snapshot:
        copy = Path(snapshot.upper)
        assert (copy / "d").stat().st_uid == 5
        assert (copy / "d/f").stat().st_gid == 6
        assert (copy / "d/l").lstat().st_gid == 8
        assert stat.S_ISCHR((copy / "d/null").stat().st_mode)
        assert (copy / "d").stat().st_mtime == (copy / "d/f").stat().st_mtime == 1000
        assert upper is None or set(os.listdir(upper)) == set(os.listdir(copy))


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs (Debian: squashfs-tools)")
def test_commits(start: Start, state_root: Path, tmp_path: Path) -> None:
    container = start()
    sh(container, SCRIPT)
    container.commit(tmp_path / "one.sif", labels={"a": "b"})
    cat = ["sh", "-c", "cat text; ls replaced; ls -d gone"]
    options = {"capture_output": True, "state_root": state_root}
    expected = b"text\nmore\nkept\nnew\n"
    assert oci.run(tmp_path / "one.sif", cat, **options).stdout == expected  # type: ignore[call-overload]
    with container.snapshot() as snapshot:
        fork = start(snapshot.bundle)
        sh(fork, "rm -r replaced; echo more >> text")
        fork.commit(tmp_path / "two.sif")
    assert oci.run(tmp_path / "two.sif", cat, **options).stdout == b"text\nmore\nmore\n"  # type: ignore[call-overload]
    with pytest.raises(FileExistsError):
        fork.commit(tmp_path / "two.sif")
    assert sorted(name for name in os.listdir(tmp_path) if "sif" in name or "snap" in name) == ["one.sif", "two.sif"]
    with oci.Image.open(tmp_path / "one.sif") as image:
        assert image.labels["a"] == "b"


@pytest.mark.skipif(not AS_ROOT, reason="needs mounts")
@pytest.mark.parametrize("overlay", [None, "tmpfs"])
def test_an_image(busybox_sif: Path, state_root: Path, prefix: str, tmp_path: Path, overlay: str | None) -> None:
    """A bundle of an image is mounted; a SIF keeps its configuration."""
    source = tmp_path / "source.sif"
    oci.build(busybox_sif, source, config={"Cmd": ["sh", "-c", "cat /new"], "Env": ["A=b"]})
    with oci.Bundle.from_image(source, tmp_path / "mounted") as bundle:
        fresh = bundle.with_args(["sleep", "1000"]).fresh(overlay=overlay)
        with oci.Container.run(prefix, fresh, state_root=state_root) as container:
            sh(container, "echo new > /new")
            assert [str(change) for change in container.changes()] == ["A /new"]
            container.commit(tmp_path / "target.sif", image=source)
    assert oci.run(tmp_path / "target.sif", capture_output=True, state_root=state_root).stdout == b"new\n"


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs (Debian: squashfs-tools)")
@pytest.mark.filterwarnings("ignore::ociruntime.errors.OCIRuntimeWarning")  # a user extracts the image, and has no cgroups
def test_a_sandbox_of_an_image(busybox_sif: Path, state_root: Path, tmp_path: Path) -> None:
    """It knows its image, also where a user's containers mount it themselves; so do its forks and snapshots."""
    options: Any = {"capture_output": True, "state_root": state_root}
    source = tmp_path / "source.sif"
    oci.build(busybox_sif, source, config={"Cmd": ["cat", "/new"]})
    with oci.Sandbox(source, state_root=state_root) as sandbox:
        sandbox.write_text("/new", "one")
        sandbox.commit(tmp_path / "one.sif")
        with sandbox.fork() as fork:
            fork.write_text("/new", "two")
            fork.commit(tmp_path / "two.sif")
        with sandbox.snapshot() as snapshot, oci.Sandbox(snapshot, state_root=state_root) as other:
            snapshot.commit(tmp_path / "three.sif")
            other.commit(tmp_path / "four.sif")
    found = [oci.run(tmp_path / f"{name}.sif", **options).stdout for name in ("one", "two", "three", "four")]
    assert found == [b"one", b"two", b"one", b"one"]


@pytest.mark.filterwarnings("ignore::ociruntime.errors.OCIRuntimeWarning")  # a user extracts the image, and has no cgroups
def test_an_image_that_was_replaced(busybox_sif: Path, state_root: Path, tmp_path: Path) -> None:
    source, other = tmp_path / "source.sif", tmp_path / "other.sif"
    oci.build(busybox_sif, source)
    oci.build(busybox_sif, other, config={"Cmd": ["other"]})
    with oci.Sandbox(source, state_root=state_root) as sandbox, sandbox.snapshot() as snapshot:
        source.rename(tmp_path / "moved.sif")
        other.rename(source)
        for commit in (sandbox.commit, snapshot.commit):
            with pytest.raises(oci.ImageError, match=r"source.sif: the image was replaced or changed since .*; pass image="):
                commit(tmp_path / "target.sif")
            assert set(os.listdir(tmp_path)) - {"state"} == {"moved.sif", "source.sif"}
        sandbox.commit(tmp_path / "target.sif", image=tmp_path / "moved.sif")
        sandbox.reset()
        sandbox.commit(tmp_path / "again.sif")
    with oci.Image.open(tmp_path / "again.sif") as image:
        assert (config := image.config()) is not None
        assert config.cmd == ("other",)


def test_sandboxes(make_bundle: MakeBundle, state_root: Path, tmp_path: Path) -> None:
    image = make_bundle(spec()).rootfs
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("data")
    with oci.Sandbox(image, env={"NAME": "value"}, state_root=state_root) as sandbox:
        sandbox.write_text("/tmp/text", "text")
        sandbox.write_bytes("/tmp/bytes", b"bytes")
        sandbox.mkdir("/tmp/a/b", parents=True)
        sandbox.put(tmp_path / "data", "/srv")
        assert sandbox.shell("cat /tmp/text /tmp/bytes /srv/file").stdout == b"textbytesdata"
        assert (sandbox.read_text("/srv/file"), sandbox.read_bytes("/tmp/bytes")) == ("data", b"bytes")
        assert sandbox.listdir("/tmp") == ["a", "bytes", "text"]
        assert (sandbox.stat("/tmp/text").size, sandbox.exists("/none")) == (4, False)
        sandbox.get("/srv", tmp_path / "back")
        assert (tmp_path / "back/file").read_text() == "data"
        sandbox.remove("/tmp/a", recursive=True)
        assert list(map(str, sandbox.changes())) == ["A /srv", "A /srv/file", "A /tmp/bytes", "A /tmp/text"]
        assert sandbox.diff_text("/tmp/text").endswith("+text\n\\ No newline at end of file\n")
        with sandbox.fork() as fork, sandbox.fork() as other:
            assert fork.name != sandbox.name
            assert fork.shell("cat /tmp/text; echo $NAME", text=True).stdout == "textvalue\n"
            fork.write_text("/tmp/text", "changed")
            assert (sandbox.read_text("/tmp/text"), other.read_text("/tmp/text")) == ("text", "text")
            fork.reset()
            assert fork.read_text("/tmp/text") == "text", "as it was forked"
            with fork.fork() as third:
                fork.close()
                assert third.read_text("/tmp/text") == "text"
        with sandbox.snapshot() as snapshot:
            sandbox.reset()
            assert sandbox.changes() == ()
            with oci.Sandbox(snapshot, state_root=state_root, disk=-1) as again:
                assert again.read_text("/srv/file") == "data"
    with pytest.raises(oci.StateError, match="closed"):
        sandbox.changes()
    assert oci.Container.list(state_root=state_root) == []


def test_sandboxes_in_the_event_loop(make_bundle: MakeBundle, state_root: Path) -> None:
    image = make_bundle(spec()).rootfs

    async def use() -> None:
        async with oci.aio.Sandbox(image, state_root=state_root) as sandbox:
            await sandbox.write_text("/tmp/text", "text")
            assert list(map(str, await sandbox.changes())) == ["A /tmp/text"]
            assert (await sandbox.diff_text("/tmp/text")).startswith("--- /dev/null")
            async with await sandbox.fork() as fork:
                assert await fork.read_text("/tmp/text") == "text"
                assert await fork.changes() == ()

    asyncio.run(use())
    assert oci.Container.list(state_root=state_root) == []


def test_mount_points_are_left_out(make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    bundle = make_bundle(spec()).with_overrides(mounts=[f"{tmp_path}/data:/srv/a/data"]).fresh()
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        sh(container, "echo x > /srv/a/data/x")
        assert container.changes() == ()
        sh(container, "echo x > /srv/own")
        assert [str(change) for change in container.changes()] == ["A /srv", "A /srv/own"]


def test_containers_without_an_upper_layer(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    bundle.spec = spec()
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        with pytest.raises(oci.UnsupportedError, match=r"Bundle.fresh"):
            container.changes()
        with pytest.raises(oci.UnsupportedError, match=r"Bundle.fresh"):
            oci.Container.load(prefix, state_root=state_root).snapshot()


def test_a_container_of_another_process(start: Start, state_root: Path, tmp_path: Path, command: Command) -> None:
    container = start()
    sh(container, SCRIPT + "printf '\\033[31m' > \"$(printf 'red\\033')\"")
    loaded = oci.Container.load(container.id, state_root=state_root)

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command(*words), cwd=tmp_path, capture_output=True, text=True, check=False)

    if "tmpfs" in repr(container._layers and container._layers.layers.upper):
        with pytest.raises(
            oci.StateError, match=f"container '{container.id}': its upper layer is in memory, .* the object that made it"
        ):
            loaded.changes()
        assert "in memory" in call("diff", container.id).stderr
        return
    assert loaded.changes() == container.changes()
    assert call("diff", container.id).stdout.splitlines() == [
        line.replace("\udcff\n", "\\udcff\\n").replace("\033", "\\x1b") for line in map(str, container.changes())
    ]
    assert call("diff", container.id, "/text").stdout == container.diff_text("/text") != ""
    assert json.loads(call("diff", "--format", "json", container.id).stdout)[0]["path"] == "/binary"
    with loaded.snapshot() as snapshot:
        assert start(snapshot.bundle).files.read_text("/text") == "text\nmore\n"
    if shutil.which("mksquashfs") is not None:
        done = call("commit", container.id, "new.sif", "--label", "a=b")
        assert done.returncode == 0, done.stderr
        assert oci.run(tmp_path / "new.sif", ["cat", "/text"], capture_output=True, state_root=state_root).stdout == b"text\nmore\n"
        assert "exists" in call("commit", container.id, "new.sif").stderr
    container.kill("KILL", all=True)
    container.wait()
    with pytest.raises(oci.WrongStatus):
        loaded.changes()


@pytest.mark.skipif(not AS_ROOT, reason="needs mounts")
def test_an_image_that_another_process_has_mounted(busybox_sif: Path, state_root: Path) -> None:
    with oci.Sandbox(busybox_sif, state_root=state_root, disk=-1) as sandbox:
        with pytest.raises(oci.StateError, match=r"its image is mounted for the process that made it alone; .*ociruntime mount"):
            oci.Container.load(sandbox.name, state_root=state_root).changes()


def test_a_snapshot_takes_no_other_for_the_rest_of_a_killed_process(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that looks for such rests sees the directory of another one before that has locked it."""
    container = start()
    sh(container, "echo x > /own")
    cleared: list[str] = []

    class Slow(snapshots.LockFile):
        def acquire(self, *, shared: bool = False, wait: bool | float = True) -> None:
            if shared and not cleared:
                cleared.append(str(tmp_path))
                snapshots._clear(str(tmp_path))
            super().acquire(shared=shared, wait=wait)

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(snapshots, "LockFile", Slow)
    with container.snapshot() as snapshot:
        assert Path(snapshot.upper, "own").read_text() == "x\n"
    assert cleared
    del snapshot
    assert not list(tmp_path.glob("ociruntime-snapshot-*"))


def test_a_killed_process_leaves_no_snapshot(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container = start()
    stale = tmp_path / "ociruntime-snapshot-stale"
    (stale / "upper/x").mkdir(parents=True)
    (stale / "lock").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with container.snapshot() as snapshot:
        assert os.path.dirname(snapshot.upper) in map(str, tmp_path.iterdir())
        assert not stale.exists()
        container.snapshot().close()
        assert os.path.isdir(snapshot.upper)


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="no mksquashfs (Debian: squashfs-tools)")
def test_a_killed_commit_leaves_nothing(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    container = start()
    if (pid := os.fork()) == 0:
        monkeypatch.setattr("ociruntime.lifecycle.snapshots.build", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        container.commit(tmp_path / "target/new.sif")
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert os.listdir(tmp_path / "target") == []
    container.snapshot().close()
    assert [name for name in os.listdir(tmp_path / "temporary") if "snapshot" in name] == []


@pytest.mark.root
def test_as_a_user_without_subordinate_ids(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "kernel/test_changes.py")


@pytest.mark.root
@pytest.mark.skipif(shutil.which("newuidmap", path="/usr/bin") is None, reason="no newuidmap (Debian: uidmap)")
def test_a_user_with_subordinate_ids(user_python: str, busybox_rootfs: Path) -> None:
    script = """
import sys, ociruntime as oci
spec = oci.RuntimeSpec.default(rootless=True).with_args(["sleep", "100"])
spec = spec.at.linux.uid_mappings.set(None).at.linux.gid_mappings.set(None)
bundle = oci.Bundle.from_dir(sys.argv[1], spec)
with oci.Container.run("c", bundle.fresh()) as c:
    c.exec(["sh", "-c", "mkdir -m 777 /d; rm /etc/passwd"], check=True)
    c.exec(["sh", "-c", "umask 77; echo secret > /d/x"], user=(1000, 1000), check=True)
    print(*c.changes(), sep=",")
    print(c.diff_text("/d/x").splitlines()[-1])
    with c.snapshot() as snapshot, oci.Container.run("d", snapshot.bundle) as d:
        print(d.files.stat("/d/x").uid, d.files.read_text("/d/x", user=1000).strip(), d.files.exists("/etc/passwd"), *d.changes())
        d.delete(force=True)
"""
    with new_user(user_python, subordinate=True) as user:
        shutil.copytree(busybox_rootfs, user.home / "bundle/rootfs", symlinks=True)
        give(user.home)
        done = user.run("-c", script, user.home / "bundle")
        assert done.stdout.splitlines() == ["A /d,A /d/x,R /etc/passwd", "+secret", "1000 secret False"]
        assert user.leftovers() == []
        uid = os.stat(user.home).st_uid
        snapshots = [entry for entry in os.scandir("/tmp") if entry.name.startswith("ociruntime-snapshot-")]
        assert [entry.path for entry in snapshots if entry.stat().st_uid == uid] == []
