"""The lifecycle on a real kernel (runtime.md, Lifecycle and Operations)."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.leftovers import assert_nothing_left
from ..support.waiting import TIME_LIMIT, timed_out_with_output, wait_until

pytestmark = [pytest.mark.root, pytest.mark.vm]


@contextmanager
def running(name: str, bundle: oci.Bundle, root: Path) -> Iterator[oci.Container]:
    with oci.Container.run(name, bundle, state_root=root) as container:
        yield container


def test_the_whole_life(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    container = oci.Container.create(prefix, bundle, state_root=state_root)
    state = container.state
    assert (state.id, state.status, state.bundle) == (prefix, oci.Status.CREATED, str(bundle.path))
    assert Path(f"/proc/{state.pid}/comm").read_text() == "oci-init\n"
    container.start()
    assert container.status is oci.Status.RUNNING
    assert container.pid == state.pid
    cmdline = Path(f"/proc/{state.pid}/cmdline")
    wait_until(lambda: cmdline.read_bytes() == b"sleep\x001000\x00", "the start of the program that the config names")
    result = container.exec(["sh", "-c", "cat; echo $X >&2; exit 7"], input="in", capture_output=True, text=True, env=["X=y"])
    assert (result.returncode, result.stdout, result.stderr) == (7, "in", "y\n")
    container.kill("KILL")
    assert container.wait(TIME_LIMIT) == -signal.SIGKILL
    assert container.wait(TIME_LIMIT) == -signal.SIGKILL
    state = container.state
    assert (state.status, state.pid, state.exit_code) == (oci.Status.STOPPED, 0, -9)
    container.delete()
    assert_nothing_left(state_root, prefix)
    with pytest.raises(oci.ContainerNotFound):
        oci.Container.load(prefix, state_root=state_root)
    with pytest.raises(oci.ContainerNotFound):
        _ = container.state


def test_two_instances_of_one_bundle(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with running(f"{prefix}-a", bundle, state_root) as one, running(f"{prefix}-b", bundle, state_root) as two:
        assert [c.id for c in oci.Container.list(state_root=state_root)] == [f"{prefix}-a", f"{prefix}-b"]
        assert one.pid != two.pid
        assert os.readlink(f"/proc/{one.pid}/ns/mnt") != os.readlink(f"/proc/{two.pid}/ns/mnt")
        with pytest.raises(oci.ContainerExists):
            oci.Container.create(f"{prefix}-a", bundle, state_root=state_root)
        one.delete(force=True)
        assert two.status is oci.Status.RUNNING
        assert two.exec(["true"]).returncode == 0
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize("code", [0, 1, 126, 255])
def test_run_gives_the_exit_code(bundle: oci.Bundle, state_root: Path, prefix: str, code: int) -> None:
    assert oci.run(bundle, ["sh", "-c", f"exit {code}"], state_root=state_root, container_id=prefix).returncode == code
    assert_nothing_left(state_root, prefix)


def test_a_signal_is_a_negative_code(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with running(prefix, bundle, state_root) as container:
        result = container.exec(["sh", "-c", "kill -TERM $$"])
        assert (result.returncode, result.signal) == (-15, 15)
        with pytest.raises(oci.ProcessError):
            container.exec(["false"], check=True)


def test_run_with_a_timeout_kills_everything(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    args = ["sh", "-c", "echo early; sleep 100 & sleep 100"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "state_root": state_root, "container_id": prefix}
    result = timed_out_with_output(lambda limit: oci.run(bundle, args, timeout=limit, **options))
    assert (result.returncode, result.stdout) == (-9, "early\n")
    assert_nothing_left(state_root, prefix)


@pytest.mark.parametrize(
    ("name", "code"),
    [("nothing-of-the-kind", errno.ENOENT), ("/nope/x", errno.ENOENT), ("/etc/passwd", errno.EACCES), ("/etc", errno.EACCES)],
)
def test_a_program_that_is_not_there(bundle: oci.Bundle, state_root: Path, prefix: str, name: str, code: int) -> None:
    for make in (oci.Container.create, oci.Container.run):
        with pytest.raises(oci.StepError) as caught:
            make(prefix, bundle.with_args([name]), state_root=state_root)
        assert (caught.value.op, caught.value.errno) == ("lookup", code)
        assert caught.value.step <= caught.value.total
        assert_nothing_left(state_root, prefix)
    with running(prefix, bundle, state_root) as container:
        with pytest.raises(oci.StepError) as caught:
            container.exec([name])
        assert (caught.value.op, caught.value.errno) == ("exec", code)


def test_an_exec_that_fails_behind_the_gate(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    (bundle.path / "rootfs/bin/garbage").write_bytes(b"\x01\x02\x03 no program")
    (bundle.path / "rootfs/bin/garbage").chmod(0o755)
    broken = bundle.with_args(["garbage"])
    with oci.Container.create(prefix, broken, state_root=state_root) as container:
        with pytest.raises(oci.StepError) as caught:
            container.start()
        assert (caught.value.op, caught.value.errno) == ("exec", errno.ENOEXEC)
        assert caught.value.step == caught.value.total
        assert container.status is oci.Status.STOPPED
        container.delete()
    with pytest.raises(oci.StepError, match="ENOEXEC"):
        oci.run(broken, state_root=state_root, container_id=prefix)
    assert_nothing_left(state_root, prefix)


def test_what_a_status_forbids(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        with pytest.raises(oci.WrongStatus, match=r"delete.*created.*stopped"):
            container.delete()  # runtime.md, Delete: it has no effect on what is not stopped
        forbidden: list[tuple[str, Callable[[], object]]] = [
            ("exec", lambda: container.exec(["true"])), ("pause", container.pause), ("resume", container.resume),
        ]  # fmt: skip
        for name, call in forbidden:
            with pytest.raises(oci.WrongStatus, match=f"{name}.*created"):
                call()
        container.start()
        for name, call in (("start", container.start), ("delete", container.delete), ("resume", container.resume)):
            with pytest.raises(oci.WrongStatus, match=f"{name}.*running"):
                call()
        container.pause()
        assert container.status is oci.Status.PAUSED
        for name, call in (("pause", container.pause), ("delete", container.delete), ("exec", lambda: container.exec(["true"]))):
            with pytest.raises(oci.WrongStatus, match=f"{name}.*paused"):
                call()
        container.resume()
        container.kill(9)
        container.wait(TIME_LIMIT)
        for name, call in (*forbidden, ("start", container.start), ("kill", container.kill)):
            with pytest.raises(oci.WrongStatus, match=f"{name}.*stopped"):
                call()
        with pytest.raises(ValueError, match="NONSENSE"):
            container.kill("NONSENSE")


def test_wait_times_out(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with running(prefix, bundle, state_root) as container, pytest.raises(TimeoutError):
        container.wait(0.05)


def test_start_from_another_process(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    with oci.Container.create(prefix, bundle.with_args(["sh", "-c", "exit 5"]), state_root=state_root) as container:
        script("import sys, ociruntime as oci\noci.Container.load(sys.argv[1], state_root=sys.argv[2]).start()", prefix, state_root)
        assert container.wait(TIME_LIMIT) == 5


def test_create_and_delete_by_different_processes(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    script(
        "import sys, ociruntime as oci\noci.Container.create(sys.argv[1], sys.argv[3], state_root=sys.argv[2])",
        prefix, state_root, bundle.path,
    )  # fmt: skip
    container = oci.Container.load(prefix, state_root=state_root)
    assert container.status is oci.Status.CREATED
    container.start()
    assert container.exec(["true"]).returncode == 0
    container.delete(force=True)
    assert_nothing_left(state_root, prefix)


def test_signal_0_asks_whether_one_could_be_sent(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    def said(*words: str) -> tuple[int, str]:
        done = subprocess.run(command("kill", *words), stderr=subprocess.PIPE, text=True, timeout=TIME_LIMIT, check=False)
        return done.returncode, done.stderr

    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        container.kill(0)
        assert said(prefix, "0") == said("--all", prefix, "0") == (0, "")
        assert container.status is oci.Status.RUNNING
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        assert said("--all", prefix, "0") == (0, "")
        status, message = said(prefix, "0")
        assert status == 1
        assert "container not running" in message
        with pytest.raises(ValueError, match="-1 is not a signal"):
            container.kill(-1)


@pytest.mark.parametrize("status", ["running", "paused"])
def test_kill_without_a_pid_namespace_reaches_every_process(
    make_bundle: MakeBundle, state_root: Path, prefix: str, status: str
) -> None:
    spec = oci.RuntimeSpec.default().without_namespace(oci.spec.NamespaceType.PID)
    with oci.Container.run(prefix, make_bundle(spec.with_args(["sleep", "1000"])), state_root=state_root) as container:
        other = container.popen(["sleep", "1000"])
        container.kill("CONT")
        assert len(container.processes()) == 2
        if status == "paused":
            container.pause()
        container.kill("KILL")
        assert other.wait(TIME_LIMIT) == -signal.SIGKILL
        assert container.wait(TIME_LIMIT) == -signal.SIGKILL
        with pytest.raises(oci.WrongStatus, match="container not running"):
            container.kill("KILL")


@pytest.mark.parametrize("status", ["created", "running", "paused", "stopped", "damaged"])
def test_delete_by_force(bundle: oci.Bundle, state_root: Path, prefix: str, status: str) -> None:
    container = oci.Container.create(prefix, bundle, state_root=state_root)
    if status not in ("created", "damaged"):
        container.start()
    if status == "paused":
        container.pause()
    elif status == "stopped":
        container.kill(9)
        container.wait(TIME_LIMIT)
    elif status == "damaged":
        container.delete(force=True)
        (state_root / prefix).mkdir()
        (state_root / prefix / "state.json").write_text("{")
        container = oci.Container.load(prefix, state_root=state_root)
        with pytest.raises(oci.StateError, match="damaged"):
            container.delete()
    container.delete(force=True)
    assert_nothing_left(state_root, prefix)


def test_a_config_without_a_process(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """It can be created and not started (runtime.md, Start); and what start refuses, it leaves as it was."""
    bundle = make_bundle(oci.RuntimeSpec.default().evolve(process=None))
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        for _ in range(2):
            with pytest.raises(oci.SpecError, match=r"\$\.process"):
                container.start()
            assert container.status is oci.Status.CREATED
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        container.delete()
    with pytest.raises(oci.SpecError, match=r"\$\.process"):
        oci.Container.run(prefix, bundle, state_root=state_root)
    assert_nothing_left(state_root, prefix)


def test_annotations_are_in_the_state(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(
        oci.RuntimeSpec.default().with_args(["sleep", "100"]).with_annotations({"com.example.b": "", "com.example.a": "x"})
    )
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        assert container.state.to_dict()["annotations"] == {"com.example.a": "x", "com.example.b": ""}
        assert container.state_document() == container.state.to_dict()


def test_the_pid_file(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root, pid_file=tmp_path / "pid") as container:
        assert int((tmp_path / "pid").read_text()) == container.pid


def test_the_config_is_the_one_of_create(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        before = container.spec
        bundle.spec = bundle.spec.evolve(hostname="changed")
        assert container.spec == before
        container.start()
        assert container.exec(["hostname"], capture_output=True, text=True).stdout == "ociruntime\n"


BAD = {
    "rootfs missing": ("open_tree", errno.ENOENT, lambda d: d["root"].update(path="nowhere")),
    "bind source missing": (
        "open_tree", errno.ENOENT, lambda d: d["mounts"].append({"destination": "/x", "source": "/no/such", "options": ["bind"]})),
    "filesystem unknown": ("fsopen", errno.ENODEV, lambda d: d["mounts"].append({"destination": "/x", "type": "nofs"})),
    "mount option unknown": (
        "fsconfig", errno.EINVAL, lambda d: d["mounts"].append({"destination": "/x", "type": "tmpfs", "options": ["bogus=1"]})),
    "mount on a file": ("target", errno.ENOTDIR, lambda d: d["mounts"].append({"destination": "/etc/passwd", "type": "tmpfs"})),
    "sysctl value": ("write", errno.EINVAL, lambda d: d["linux"].update(sysctl={"net.ipv4.ip_forward": "zzz"})),
    "more files than the kernel allows": (
        "rlimit", errno.EPERM, lambda d: d["process"].update(rlimits=[{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1 << 40}])),
    "cwd is a file": ("target", errno.ENOTDIR, lambda d: d["process"].update(cwd="/etc/passwd")),
    "cgroup value": ("cgroup_write", errno.EINVAL, lambda d: d["linux"]["resources"].update(cpu={"mems": "0-900"})),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_create_that_fails_leaves_nothing(make_bundle: MakeBundle, state_root: Path, prefix: str, name: str) -> None:
    op, code, change = BAD[name]
    document = oci.RuntimeSpec.default().to_dict()
    document["process"]["args"] = ["true"]  # type: ignore[index, call-overload]
    document["linux"]["cgroupsPath"] = f"/{prefix}-parent/deep/{prefix}"  # type: ignore[index, call-overload]
    change(document)  # type: ignore[no-untyped-call]
    broken = make_bundle(oci.RuntimeSpec.load(document))
    for make in (oci.Container.create, oci.Container.run):
        with pytest.raises(oci.StepError) as caught:
            make(prefix, broken, state_root=state_root)
        assert (caught.value.op, caught.value.errno) == (op, code), str(caught.value)
        assert broken.plan(container_id=prefix, gate=make == oci.Container.create).steps[caught.value.step - 1].op == op
        assert_nothing_left(state_root, prefix)


def test_a_pid_file_that_cannot_be_written_leaves_nothing(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        oci.Container.create(prefix, bundle, state_root=state_root, pid_file=tmp_path / "no/such/pid")
    assert_nothing_left(state_root, prefix)


def test_a_cgroup_in_use_is_refused_and_left_alone(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    document["process"]["args"] = ["sleep", "100"]  # type: ignore[index, call-overload]
    document["linux"]["cgroupsPath"] = f"/{prefix}-shared"  # type: ignore[index, call-overload]
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    with running(f"{prefix}-a", bundle, state_root) as container:
        with pytest.raises(FileExistsError):
            oci.Container.create(f"{prefix}-b", bundle, state_root=state_root)
        assert container.exec(["true"]).returncode == 0
        assert [c.id for c in oci.Container.list(state_root=state_root)] == [f"{prefix}-a"]


def test_another_config_than_the_bundles(bundle: oci.Bundle, tmp_path: Path, state_root: Path, prefix: str) -> None:
    other = tmp_path / "other.json"
    bundle.spec.with_args(["sh", "-c", "exit 3"]).save(other)
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), "run", "-b", str(bundle.path)]
    assert subprocess.run([*command, "--config", str(other), prefix], timeout=TIME_LIMIT).returncode == 3
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "none"), prefix], timeout=TIME_LIMIT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "none does not exist" in done.stderr


def test_a_log_that_cannot_be_written_is_said_first(bundle: oci.Bundle, tmp_path: Path, state_root: Path, prefix: str) -> None:
    command = [sys.executable, "-P", "-m", "ociruntime", "--root", str(state_root), "--log", str(tmp_path / "no/such.log")]
    done = subprocess.run([*command, "create", "-b", str(bundle.path), prefix], timeout=TIME_LIMIT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no/such.log" in done.stderr
    assert oci.Container.list(state_root=state_root) == []


def test_root_of_a_user_namespace_has_the_state_directory_of_a_user(tmp_path: Path) -> None:
    """As engines of users call it."""
    ask = [sys.executable, "-P", "-c", "import ociruntime.store as s; print(s.default_root())"]
    mapped = ["unshare", "--user", "--map-root-user", *ask]
    theirs = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    nobodys = {key: value for key, value in theirs.items() if key != "XDG_RUNTIME_DIR"}
    cases = [(ask, theirs, "/run"), (mapped, theirs, str(tmp_path)), (mapped, nobodys, "/run")]
    for command, environment, where in cases:
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        assert shown == f"{where}/ociruntime\n"


def test_the_end_of_the_interpreter_says_nothing(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = """
import sys
import ociruntime as oci
container = oci.Container.create(sys.argv[1], sys.argv[2], state_root=sys.argv[3])
"""
    assert script(text, prefix, bundle.path, state_root).stderr == ""
    oci.Container.load(prefix, state_root=state_root).delete(force=True)


def test_what_the_command_run_imports(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    spec = bundle.spec.at.process.args.set(("true",))
    spec.save(bundle.path / "config.json")
    text = "import sys\nfrom ociruntime.cli import main\nassert main(sys.argv[1:]) == 0\nprint(*sys.modules)"
    loaded = set(script(text, "--root", state_root, "run", "--bundle", bundle.path, prefix).stdout.split())
    assert "ociruntime.lifecycle.create" in loaded
    images = {name for name in loaded if name.startswith("ociruntime.image.")}
    assert images <= {"ociruntime.image.sif"}  # a package of lazy names
    assert not loaded & {"ociruntime.ephemeral", "ociruntime.cli.bundles", "jsonschema", "tarfile", "asyncio", "logging"}
    assert_nothing_left(state_root, prefix)
