"""`run`: what a call may ask for, how it ends, and that nothing is left however it ends."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.ephemeral import close_images
from ociruntime.spec import Mount, NamespaceType

from ..support.cgroups import needs
from ..support.fixture_types import MakeBundle
from ..support.leftovers import assert_nothing_left
from ..support.waiting import SLOWER, TIME_LIMIT, interrupted_when, timed_out, timed_out_with_output, wait_until, within

pytestmark = pytest.mark.root
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT


@pytest.fixture
def sh(bundle: oci.Bundle, state_root: Path, prefix: str) -> Callable[..., oci.Result[str]]:
    """Runs a shell script in a container and gives what it said, as text."""

    def run(script: str, **options: Any) -> oci.Result[str]:
        options = {"capture_output": True, "text": True, "state_root": state_root, "container_id": prefix, **options}
        result = oci.run(options.pop("image", bundle), ["sh", "-c", script], **options)
        assert set(os.listdir(state_root)) <= {".runs", ".seccomp"}
        assert os.listdir(state_root / ".runs") == []
        return result

    return run


Sh = Callable[..., "oci.Result[str]"]


def test_a_result(sh: Sh) -> None:
    result = sh("echo out; echo err >&2; exit 3", timeout=TIME_LIMIT)
    assert (result.args, result.returncode, result.stdout, result.stderr) == (
        ("sh", "-c", "echo out; echo err >&2; exit 3"), 3, "out\n", "err\n",
    )  # fmt: skip
    assert (result.signal, result.oom_killed) == (None, False)
    assert 0 < result.duration < TIME_LIMIT
    with pytest.raises(AttributeError):
        result.returncode = 0  # type: ignore[misc]


def test_usage_is_that_of_the_container(sh: Sh) -> None:
    usage = sh("i=0; (while [ $i -lt 20000 ]; do i=$((i+1)); done)").usage
    assert usage.total > 0.001
    assert usage.user + usage.system == pytest.approx(usage.total, abs=0.02)
    assert 100_000 < usage.peak_memory < 1 << 30


@pytest.mark.parametrize(
    ("options", "out", "err"),
    [
        ({"capture_output": True}, b"out\n", b"err\n"),
        ({"stdout": PIPE}, b"out\n", None),
        ({"stderr": PIPE, "stdout": DEVNULL}, None, b"err\n"),
        ({"stdout": PIPE, "stderr": STDOUT}, b"out\nerr\n", None),
        ({"stdout": PIPE, "stderr": DEVNULL, "text": True}, "out\n", None),
        ({"stdout": PIPE, "stderr": DEVNULL, "encoding": "utf-16-le"}, "畯ੴ", None),
        ({"stdout": PIPE, "stderr": DEVNULL, "errors": "strict"}, "out\n", None),
    ],
)
def test_streams_as_subprocess_has_them(
    bundle: oci.Bundle, state_root: Path, options: dict[str, Any], out: object, err: object
) -> None:
    args = ["sh", "-c", "echo out; echo err >&2"]
    result = oci.run(bundle, args, state_root=state_root, **options)
    assert (result.stdout, result.stderr) == (out, err)
    expected = subprocess.run(args, check=False, **options)
    assert (expected.stdout, expected.stderr) == (out, err)


def test_output_into_files_and_input_from_them(bundle: oci.Bundle, state_root: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("hello\n")
    with open(tmp_path / "in") as stdin, open(tmp_path / "out", "wb") as stdout, open(tmp_path / "err", "w") as stderr:
        result = oci.run(
            bundle, ["sh", "-c", "cat; echo e >&2"], stdin=stdin, stdout=stdout, stderr=stderr.fileno(), state_root=state_root
        )
    assert (result.returncode, result.stdout, result.stderr) == (0, None, None)
    assert ((tmp_path / "out").read_text(), (tmp_path / "err").read_text()) == ("hello\n", "e\n")


def test_much_input_and_output_at_once(sh: Sh) -> None:
    text = "0123456789abcde\n" * 200_000
    result = sh("tee /dev/stderr", input=text, timeout=TIME_LIMIT)
    assert (result.stdout, result.stderr) == (text, text)
    assert sh("exec <&-; exec sleep 0.1", input=text).returncode == 0  # it has no reader


def test_invalid_text_is_not_lost(sh: Sh) -> None:
    out = sh(r"printf 'a\r\nb\377\n'").stdout
    assert out == "a\nb\udcff\n"


@pytest.mark.parametrize(
    ("call", "error", "hint"),
    [
        ({"args": "echo hi"}, TypeError, "shlex.split"),
        ({"args": b"echo"}, TypeError, "shlex.split"),
        ({"input": b"", "stdin": PIPE}, ValueError, "cannot be used together"),
        ({"input": "text"}, TypeError, "text=True"),
        ({"capture_output": True, "stdout": PIPE}, ValueError, "capture_output"),
        ({"stdin": STDOUT}, ValueError, "stdin"),
        ({"stdout": -7}, ValueError, "stdout"),
        ({"memory": "lots"}, ValueError, "512M|number with K, M, G or T"),
        ({"cpus": 0}, ValueError, "cpus"),
        ({"mounts": ["/x"]}, ValueError, "source:/destination"),
        ({"mounts": ["/x:relative"]}, ValueError, "source:/destination"),
        ({"network": True}, ValueError, "'host'"),
        ({"env": ["X"]}, ValueError, "NAME=value"),
        ({"env": "X=1"}, TypeError, "mapping"),
        ({"env": {"A=B": "1"}}, ValueError, "A=B"),
        ({"user": "nobody-here"}, oci.BundleError, "nobody-here"),
        ({"user": ""}, ValueError, "empty"),
        ({"user": (0, -1)}, ValueError, "4294967294"),
        ({"user": "4294967295"}, oci.BundleError, "4294967295"),
        ({"user": -1}, oci.BundleError, "-1"),
        ({"container_id": "../x"}, oci.StateError, "container id"),
        ({"mounts": ["/no/such:/x"]}, oci.StepError, "no such file or directory"),
        ({"args": ["no-such-program"]}, oci.StepError, "not found"),
        ({"image": "/no/such"}, FileNotFoundError, "/no/such"),
        ({"image": 5}, TypeError, "image"),
        ({"image": ""}, ValueError, "image"),
        ({"args": None}, TypeError, "args"),
        ({"args": {"true": 1}}, TypeError, "args"),
        ({"args": ["echo", 1]}, TypeError, r"args\[1\]"),
        ({"args": ["echo", "a\0b"]}, ValueError, r"args\[1\] contains a NUL"),
        ({"input": 5}, TypeError, "input"),
        ({"stdin": "file"}, TypeError, "stdin"),
        ({"stdout": True}, TypeError, "stdout"),
        ({"stderr": 3333}, OSError, "stderr is descriptor 3333, which is not open"),
        ({"encoding": "nope"}, ValueError, "encoding is .nope"),
        ({"errors": "nope"}, ValueError, "errors is .nope"),
        ({"timeout": [5]}, TypeError, "timeout"),
        ({"timeout": "soon"}, ValueError, "timeout is 'soon'"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"env": {"A": 1}}, TypeError, "env: 'A'"),
        ({"env": {"A": "a\0b"}}, ValueError, "env: A contains a NUL"),
        ({"env": [1]}, ValueError, "env: 1"),
        ({"cwd": "relative"}, ValueError, "cwd is 'relative'"),
        ({"cwd": 5}, TypeError, "cwd"),
        ({"user": (1,)}, TypeError, "user"),
        ({"user": ("a", "b")}, TypeError, "user"),
        ({"user": True}, TypeError, "user"),
        ({"mounts": "/x:/y"}, TypeError, "mounts"),
        ({"mounts": [("/x",)]}, TypeError, "mounts contains"),
        ({"mounts": ["/etc:/x:bogus"]}, ValueError, "'bogus' is not an option"),
        ({"memory": 1.5}, TypeError, "memory"),
        ({"memory": 0}, ValueError, "memory"),
        ({"memory": True}, TypeError, "memory"),
        ({"cpus": "1"}, TypeError, "cpus"),
        ({"cpus": float("inf")}, ValueError, "cpus"),
        ({"cpus": 0.001}, ValueError, "cpus"),
        ({"pids": 1.5}, TypeError, "pids"),
        ({"pids": 0}, ValueError, "pids"),
        ({"read_only": "yes"}, TypeError, "read_only"),
        ({"hostname": "h" * 65}, ValueError, "hostname"),
        ({"container_id": ""}, oci.StateError, "container id"),
        ({"cgroup_manager": "other"}, ValueError, "cgroup_manager"),
    ],
)
def test_what_cannot_be(bundle: oci.Bundle, state_root: Path, prefix: str, call: dict[str, Any], error: type, hint: str) -> None:
    options: dict[str, Any] = {"image": bundle, "args": ["true"], "state_root": state_root, "container_id": prefix, **call}
    with pytest.raises(error, match=hint):
        oci.run(options.pop("image"), options.pop("args"), **options)
    assert oci.Container.list(state_root=state_root) == []


def test_environment_directory_user_and_names(sh: Sh, bundle: oci.Bundle, tmp_path: Path) -> None:
    (bundle.path / "rootfs/etc/group").write_text("root:x:0:\nwheel:x:77:joe\nstaff:x:55:\n")
    (bundle.path / "rootfs/etc/passwd").unlink()
    (bundle.path / "rootfs/etc/passwd").write_text("root:x:0:0::/:\njoe:x:1000:1001::/:\n")
    for env in ({"A": "1", "TERM": None}, ["A=1", "TERM="]):
        assert sh("echo $A-$TERM-$PATH", env=env).stdout.startswith("1--/usr")
    assert sh("pwd", cwd="/etc").stdout == sh("pwd", cwd=Path("/etc")).stdout == "/etc\n"
    assert sh("hostname", hostname="other").stdout == "other\n"
    for user, expected in {
        "joe": "1000 1001 1001 77", "joe:staff": "1000 55 55", 1000: "1000 1001 1001 77", "5:6": "5 6 6", "7": "7 0 0",
        (8, 9): "8 9 9",
    }.items():  # fmt: skip
        assert sh("echo $(id -u) $(id -g) $(id -G)", user=user).stdout == expected + "\n", user


def test_mounts(sh: Sh, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("content\n")
    data = tmp_path / "data"
    assert sh("cat /data/file; echo new > /data/new", mounts=[f"{data}:/data"]).stdout == "content\n"
    assert (data / "new").read_text() == "new\n"
    assert sh("echo x > /data/new || cat /data/new", mounts=[f"{data}:/data:ro"]).stdout == "new\n"
    given = Mount(destination="/scratch", type="tmpfs", source="tmpfs", options=("size=1m",))
    assert sh("grep -c ' /scratch tmpfs ' /proc/mounts", mounts=[given]).stdout == "1\n"
    relative = os.path.relpath(data)
    assert sh("cat /data/file", mounts=[f"{relative}:/data"]).stdout == "content\n"


def test_limits(sh: Sh) -> None:
    result = sh("dd if=/dev/zero of=/dev/null bs=100M count=1; exit 9", memory="24M")
    assert (result.returncode, result.oom_killed) == (9, True)
    result = sh("exec dd if=/dev/zero of=/dev/null bs=100M count=1", memory=24 << 20)
    assert (result.signal, result.oom_killed) == (signal.SIGKILL, True)
    result = sh("for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait", pids=4)
    assert result.returncode == 2
    assert "fork" in result.stderr
    result = timed_out(lambda: sh("while :; do :; done", cpus=0.2, timeout=SLOWER))
    assert result.usage.total < 0.8 * result.duration


BRANCHES = "exec 2>&1; b() { if [ $1 -lt 9 ]; then b $(($1 + 1)) & b $(($1 + 1)) & fi; exec sleep 1000; }; b 0"
"""It starts 1,023 processes, or as many as it may."""


@pytest.mark.parametrize("kind", ["directory", "image", "extracted image", "open image"])
@needs["pids"]
def test_processes_of_an_image_are_limited(
    sh: Sh, busybox_rootfs: Path, busybox_sif: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("ociruntime.overrides._LEAST_PIDS", 50)
    monkeypatch.setattr("ociruntime.overrides._PIDS_FOR_EACH_CPU", 1)
    close_images()  # the limit is noted with the image
    options: dict[str, Any] = {"strategy": "extraction"} if kind == "extracted image" else {}
    try:
        with oci.Image.open(busybox_sif) as image:
            given = {"directory": busybox_rootfs, "open image": image}.get(kind, busybox_sif)
            assert "fork" in timed_out_with_output(lambda limit: sh(BRANCHES, image=given, timeout=limit, **options)).stdout
            for pids in 120, -1:
                assert sh("for i in $(seq 100); do sleep 5 & done", image=given, pids=pids, **options).returncode == 0
        assert sh("for i in $(seq 100); do sleep 5 & done").returncode == 0  # of a bundle, whose configuration says it all
    finally:
        close_images()


def test_processes_of_an_image_without_cgroups(sh: Sh, busybox_rootfs: Path) -> None:
    for pids in None, -1:
        assert sh("echo done", image=busybox_rootfs, cgroup_manager="disabled", pids=pids).stdout == "done\n"
    with pytest.raises(oci.UnsupportedError, match=r"pids\.limit: needs a cgroup"):
        sh("echo done", image=busybox_rootfs, cgroup_manager="disabled", pids=100)


@pytest.mark.parametrize("place", ["/dev", "/dev/shm"])
@needs["memory"]
def test_files_in_memory_count_as_memory(sh: Sh, place: str) -> None:
    result = sh(f"dd if=/dev/zero of={place}/x bs=1M count=48; echo $?", memory="24M")
    assert (result.stdout, result.oom_killed) == ("137\n", True)


def test_network_and_read_only(sh: Sh) -> None:
    ours = os.readlink("/proc/self/ns/net")
    for network, same in ((None, False), ("none", False), (False, False), ("host", True)):
        assert (sh("readlink /proc/self/ns/net", network=network).stdout.strip() == ours) is same
    assert sh("touch /x").returncode == 0
    assert sh("touch /y", read_only=True).returncode == 1


def test_check(sh: Sh) -> None:
    assert sh("true", check=True).returncode == 0
    with pytest.raises(oci.ProcessError, match="ended with 4: first\nlast words") as caught:
        sh("echo first >&2; echo last words >&2; exit 4", check=True)
    result = caught.value.result
    assert isinstance(result, oci.Result)
    assert result.stderr == "first\nlast words\n"


def test_a_timeout_kills_what_ignores_signals_and_keeps_the_output(sh: Sh) -> None:
    script = "trap '' TERM INT; echo early; sleep 1000 & sleep 1000"
    result = timed_out_with_output(lambda limit: sh(script, timeout=limit))
    assert (result.returncode, result.stdout) == (-9, "early\n")
    limit = 2 * SLOWER
    with pytest.raises(subprocess.TimeoutExpired, match=rf"took longer than {limit} s and was killed: early") as caught:
        sh(script, timeout=limit, check=True)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert isinstance(error, oci.OCIRuntimeError)
    assert (error.cmd, error.timeout, error.output, error.stderr) == (("sh", "-c", script), limit, "early\n", "")


def test_a_timeout_with_the_hosts_pid_namespace(make_bundle: MakeBundle, sh: Sh) -> None:
    spec = oci.RuntimeSpec.default().without_namespace(NamespaceType.PID).with_args(["true"])
    image = make_bundle(spec)
    result = timed_out_with_output(lambda limit: sh("echo early; sleep 1000 & sleep 1000", timeout=limit, image=image))
    assert (result.returncode, result.stdout) == (-9, "early\n")
    with within(60):
        assert sh("sleep 1000 & echo done", image=image).stdout == "done\n"  # what holds the pipe is killed at the end


def test_an_interrupt_kills_and_keeps_the_output(bundle: oci.Bundle, sh: Sh) -> None:
    more = 200_000  # than a pipe holds: the call reads when the file appears
    with interrupted_when((bundle.rootfs / "tmp/begun").exists, "the output") as caught:
        sh(f"echo early; head -c {more} /dev/zero; touch /tmp/begun; sleep 1000 & sleep 1000")
    result: oci.Result[str] = caught.value.result  # type: ignore[attr-defined]
    assert (result.returncode, result.stdout) == (-9, "early\n" + "\0" * more)


def test_a_plain_root_filesystem_stays_as_it_is(busybox_rootfs: Path, sh: Sh) -> None:
    def listing() -> list[tuple[str, int]]:
        return sorted((str(p), p.lstat().st_mtime_ns) for p in busybox_rootfs.rglob("*"))

    before = listing()
    assert not (busybox_rootfs / "proc").exists()
    result = sh("ls / | tr '\\n' ' '; echo changed > /etc/passwd; cat /etc/passwd", image=busybox_rootfs)
    assert result.stdout == "bin dev etc proc root sys tmp changed\n"
    assert listing() == before
    with pytest.raises(oci.BundleError, match="args"):
        oci.run(busybox_rootfs)


@pytest.mark.sif
def test_an_image(busybox_sif: Path, sh: Sh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "tmp"  # other tests run images in /tmp
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert sh("cat /etc/passwd; touch /new", image=busybox_sif).stdout.startswith("root:")
    assert sh("ls /new", image=str(busybox_sif)).returncode == 1
    assert os.listdir(place) == []
    with pytest.raises(oci.StepError, match="not found"):
        oci.run(busybox_sif, ["no-such-program"])
    (busybox_sif.parent / "not-a.sif").write_bytes(b"x" * 5000)
    with pytest.raises(oci.ImageError, match="not an image"):
        oci.run(busybox_sif.parent / "not-a.sif", ["true"])


def test_what_is_remembered_of_a_bundle_follows_its_config(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def run(args: list[str], **options: Any) -> str:
        return str(oci.run(bundle, args, stdout=PIPE, text=True, state_root=state_root, **options).stdout)

    for turn in range(12):
        assert run(["echo", str(turn)]) == f"{turn}\n"
        assert run(["sh", "-c", "echo $X"], env={"X": str(turn % 2)}) == f"{turn % 2}\n"
    for name in ("first", "second"):
        bundle.spec = bundle.spec.evolve(hostname=name)
        for _ in range(2):
            assert run(["hostname"]) == f"{name}\n"
    plans = [bundle.plan(container_id=f"{prefix}-{n}", gate=gate) for n in range(2) for gate in (True, False)]
    assert len(set(map(str, plans))) == 4


def test_another_process_deletes_it_meanwhile(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def delete() -> None:
        wait_until(lambda: any(c.status is oci.Status.RUNNING for c in oci.Container.list(state_root=state_root)), "the start")
        oci.Container.load(prefix, state_root=state_root).delete(force=True)

    thread = threading.Thread(target=delete)
    thread.start()
    result = oci.run(bundle, ["sleep", "1000"], state_root=state_root, container_id=prefix)
    thread.join()
    assert result.returncode == -9


def test_from_many_threads(bundle: oci.Bundle, state_root: Path) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(12):
            text = f"{number}-{turn}"
            result = oci.run(bundle, ["echo", text], capture_output=True, text=True, state_root=state_root)
            if (result.returncode, result.stdout) != (0, text + "\n"):
                failures.append(result)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert oci.Container.list(state_root=state_root) == []


def test_where_sigchld_is_ignored(bundle: oci.Bundle, state_root: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert oci.run(bundle, ["sh", "-c", "exit 3"], state_root=state_root).returncode == 3
    except ChildProcessError as error:
        assert "SIGCHLD" in str(error)  # noqa: PT017 - before Linux 6.15 only a parent that is told can know
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_no_descriptor_for_the_wait(bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs by then: it ends with the call, and the next call removes what could not be removed without a descriptor."""

    def no_epoll() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    oci.run(bundle, ["true"], state_root=state_root, container_id=prefix)
    with monkeypatch.context() as patched:
        patched.setattr(select, "epoll", no_epoll)
        with pytest.raises(oci.HostError, match=f"cannot run {bundle.path}: too many open files; close files"):
            oci.run(bundle, ["sleep", "1000"], state_root=state_root, container_id=prefix)
    (container,) = oci.Container.list(state_root=state_root) or [None]
    assert container is None or container.status is oci.Status.STOPPED
    assert oci.run(bundle, ["true"], state_root=state_root, container_id=prefix).returncode == 0
    assert_nothing_left(state_root, prefix)
