"""Further programs in a container: what they join and have, their streams, many at once, and containers that take none."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.spec import Capabilities

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.processes import is_running
from ..support.waiting import TIME_LIMIT, timed_out_with_output, wait_until, within

pytestmark = [pytest.mark.root, pytest.mark.vm]
PIPE, DEVNULL, STDOUT = subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT


@pytest.fixture
def container(bundle: oci.Bundle, state_root: Path, prefix: str) -> Iterator[oci.Container]:
    with oci.Container.run(prefix, bundle, state_root=state_root) as running:
        yield running


def said(container: oci.Container, script: str, **options: Any) -> str:
    result = container.exec(["sh", "-c", script], capture_output=True, text=True, check=True, **options)
    return str(result.stdout)


def test_what_it_joins(container: oci.Container) -> None:
    for name in ("mnt", "pid", "net", "ipc", "uts"):
        assert said(container, f"readlink /proc/self/ns/{name}").strip() == os.readlink(f"/proc/{container.pid}/ns/{name}")
    ours = sorted(line for line in Path(f"/proc/{container.pid}/cgroup").read_text().splitlines())
    found = sorted(said(container, "cat /proc/self/cgroup").splitlines())
    assert [re.sub("/ociruntime@exec-[0-9a-f]+$", "", line) or line for line in found] == ours
    own, theirs = (
        dict(line.split(":\t", 1) for line in text.splitlines())
        for text in (said(container, "cat /proc/self/status"), Path(f"/proc/{container.pid}/status").read_text())
    )
    for name in (
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Uid",
        "Gid",
        "Groups",
    ):
        assert own[name] == theirs[name], name
    assert said(container, "echo $PPID").strip() == "0"  # its parent is outside


def test_user_groups_directory_and_environment(container: oci.Container, bundle: oci.Bundle) -> None:
    (bundle.path / "rootfs/etc/group").write_text("root:x:0:\nwheel:x:77:joe\n")
    (bundle.path / "rootfs/etc/passwd").unlink()
    (bundle.path / "rootfs/etc/passwd").write_text("root:x:0:0::/:\njoe:x:1000:1001::/:\n")
    ids = "echo $(id -u) $(id -g) $(id -G)"
    assert said(container, ids, user="joe") == "1000 1001 1001 77\n"
    assert said(container, ids, user="joe:wheel") == "1000 77 77\n"
    assert said(container, ids, user=(3, 4), groups=[5, 6]) == "3 4 4 5 6\n"
    assert said(container, ids, groups=[9]) == "0 0 0 9\n"
    assert said(container, "pwd; echo $X-$TERM", cwd="/etc", env={"X": "y", "TERM": None}) == "/etc\ny-\n"
    with pytest.raises(oci.BundleError, match="nobody-here"):
        container.exec(["true"], user="nobody-here")


def test_capabilities_never_become_inheritable(container: oci.Container) -> None:
    status = "grep ^Cap /proc/self/status"
    admin = 1 << 21
    for user in (0, 1000):
        sets = {
            line.split(":\t")[0]: int(line.split(":\t")[1], 16)
            for line in said(container, status, capabilities=["sys_admin"], user=user).splitlines()
        }
        assert sets["CapBnd"] & admin
        assert sets["CapInh"] == sets["CapAmb"] == 0
        assert bool(sets["CapEff"] & admin) is (user == 0)


def test_capabilities_that_the_container_inherits_become_ambient(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    sets = {"bounding": ["CAP_SYSLOG"], "inheritable": ["CAP_SYSLOG"], "permitted": [], "effective": [], "ambient": []}
    spec = oci.RuntimeSpec.default().with_args(["sleep", "1000"]).merge({"process": {"capabilities": sets}})
    syslog, kill = 1 << 34, 1 << 5
    with oci.Container.run(prefix, make_bundle(spec), state_root=state_root) as container:
        for user in (0, 1000):
            status = said(container, "grep ^Cap /proc/self/status", capabilities=["syslog", "CAP_KILL"], user=user)
            found = {name: int(value, 16) for name, value in (line.split(":\t") for line in status.splitlines())}
            assert found["CapInh"] == found["CapAmb"] == syslog
            assert found["CapBnd"] == syslog | kill
            assert found["CapEff"] == (syslog if user else syslog | kill)


def test_a_process_object(container: oci.Container) -> None:
    assert container.spec.process is not None
    process = container.spec.process.evolve(
        args=("sh", "-c", "echo $A; pwd; id -u; grep CapEff /proc/self/status"),
        env=("A=b", "PATH=/bin"),
        cwd="/tmp",
        capabilities=Capabilities(),
        user=container.spec.process.user and container.spec.process.user.evolve(uid=12, gid=13),
    )
    expected = "b\n/tmp\n12\nCapEff:\t0000000000000000\n"
    for form in (process, process.to_dict()):
        assert container.exec(process=form, capture_output=True, text=True).stdout == expected
    assert container.exec(["echo", "other"], process=process, capture_output=True).stdout == b"other\n"
    with pytest.raises(oci.SpecError, match="cwd"):
        container.exec(process={"args": ["true"], "cwd": 3})


@pytest.mark.parametrize(
    ("call", "error", "hint"),
    [
        ({"args": []}, ValueError, "args is empty"),
        ({"args": "true"}, TypeError, "shlex.split"),
        ({"args": ["no-such-program"]}, oci.StepError, "not found"),
        ({"args": ["/etc/passwd"]}, oci.StepError, "EACCES"),
        ({"cwd": "/nowhere"}, oci.StepError, "/nowhere"),
        ({"groups": ["x"]}, ValueError, "groups"),
        ({"no_new_privileges": "x"}, TypeError, "no_new_privileges"),
        ({"timeout": "x"}, ValueError, "timeout"),
        ({"args": [], "process": {"args": ["true"], "cwd": "relative"}}, oci.SpecError, "cwd"),
        ({"args": [], "process": {"cwd": "/"}}, oci.SpecError, "args"),
    ],
)
def test_what_cannot_be(container: oci.Container, call: dict[str, Any], error: type, hint: str) -> None:
    with pytest.raises(error, match=hint):
        container.exec(**{"args": ["true"], **call})
    assert container.processes() == (container.pid,)


def test_containers_that_take_no_program(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        with pytest.raises(oci.WrongStatus, match="created"):
            container.exec(["true"])
        container.start()
        container.kill("KILL")
        container.wait(TIME_LIMIT)
        with pytest.raises(oci.WrongStatus, match="stopped"):
            container.popen(["true"], stdout=PIPE)
        state = state_root / prefix / "state.json"
        whole = state.read_text()
        state.write_text("{")
        with pytest.raises(oci.StateError, match="damaged"):
            container.exec(["true"])
        state.write_text(whole)
        container.delete(force=True)
        with pytest.raises(oci.ContainerNotFound):
            container.exec(["true"])


def test_a_hundred_process_objects_at_once(container: oci.Container) -> None:
    def one(number: int) -> oci.Result[str]:
        process = {"args": ["sh", "-c", f"cat; exit {number}"], "cwd": "/", "env": ["PATH=/bin"]}
        return container.exec(process=process, input=f"{number}" * 1000, capture_output=True, text=True)

    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(one, range(100)))
    assert [(r.returncode, r.stdout) for r in results] == [(n, f"{n}" * 1000) for n in range(100)]
    assert container.processes() == (container.pid,)
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_times_out_with_all_that_it_started(container: oci.Container) -> None:
    script = ["sh", "-c", "echo early; sleep 1000 & sleep 1000"]
    with within(60):  # no process holds the pipe open for 1000 s
        result = timed_out_with_output(lambda limit: container.exec(script, capture_output=True, timeout=limit))
    assert (result.returncode, result.stdout) == (-9, b"early\n")
    wait_until(lambda: container.processes() == (container.pid,), "the end of the others")
    assert container.status is oci.Status.RUNNING


def test_usage_and_memory(container: oci.Container) -> None:
    result = container.exec(["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"])
    assert result.usage.total > 0.001
    assert result.usage.peak_memory > 100_000
    assert not result.oom_killed
    container.update(memory=24 << 20)
    result = container.exec(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"], stderr=DEVNULL)
    assert (result.returncode, result.oom_killed) == (-9, True)
    assert not container.exec(["sh", "-c", "kill -9 $$"]).oom_killed


def test_lines_come_live(container: oci.Container) -> None:
    script = "for i in 1 2 3; do echo line $i; read answer; done; echo got $answer"
    with container.popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as process:
        lines = []
        for line in process:
            lines.append(line)
            if line.startswith("line"):
                process.stdin.write(f"answer to {line}")
    assert lines == ["line 1\n", "line 2\n", "line 3\n", "got answer to line 3\n"]
    assert process.returncode == 0


def test_a_process_like_popen(container: oci.Container) -> None:
    process = container.popen(["sh", "-c", "trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.05; done"], stdout=PIPE)
    assert process.stdout.readline() == b"ready\n"
    assert process.poll() is None
    assert os.path.exists(f"/proc/{process.pid}")
    with pytest.raises(TimeoutError):
        process.wait(0.05)
    process.terminate()
    assert (process.wait(TIME_LIMIT), process.poll(), process.returncode) == (4, 4, 4)
    process.kill()  # nothing any more
    assert process.communicate() == (b"term\n", None)
    process.close()
    killed = container.popen(["sleep", "1000"])
    killed.send_signal("INT")
    killed.kill()
    assert killed.wait(TIME_LIMIT) in (-9, -2)
    with pytest.raises(ValueError, match="terminal"):
        killed.resize(1, 1)
    with pytest.raises(ValueError, match="stdout=PIPE"):
        iter(killed)


def test_communicate_again_after_a_timeout(container: oci.Container) -> None:
    script = "mkfifo /tmp/go; read x; echo first $x; read y </tmp/go; cat"
    process = container.popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
    text = "in\n" + "rest\n" * 50_000
    with pytest.raises(TimeoutError):
        process.communicate(text, timeout=0.2)
    container.exec(["sh", "-c", "echo >/tmp/go"])
    assert process.communicate(timeout=TIME_LIMIT) == ("first " + text, "")
    assert process.returncode == 0
    process.close()


@pytest.mark.parametrize("text", [True, False])
def test_nothing_is_lost_between_reading_and_communicating(container: oci.Container, text: bool) -> None:
    process: oci.Process[Any] = container.popen(["seq", "1", "30000"], stdout=PIPE, text=text)
    first = process.stdout.readline()
    rest, _ = process.communicate(timeout=TIME_LIMIT)
    whole = first + rest
    assert (whole if text else whole.decode()) == "".join(f"{n}\n" for n in range(1, 30001))
    process.close()


def test_a_terminal(container: oci.Container) -> None:
    with container.popen(["sh", "-c", "tty; stty size; read x; stty size"], terminal=True) as process:
        assert process.terminal is not None
        process.resize(10, 20)
        process.terminal.write(b"\n")
        process.wait(TIME_LIMIT)
        out = b""
        while part := process.terminal.read(1000):
            out += part
    assert b"/dev/pts/" in out
    assert b"10 20" in out


def test_streams_of_a_created_container(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    created = oci.Container.create(
        prefix, bundle.with_args(["sh", "-c", "cat; echo err >&2"]), state_root=state_root, stdin=PIPE, stdout=PIPE, stderr=STDOUT
    )
    with created as container:
        container.stdin.write(b"in\n")
        container.stdin.close()
        container.start()
        assert container.stdout.read() == b"in\nerr\n"
        assert container.stderr is None
        assert container.wait(TIME_LIMIT) == 0


def test_many_at_once_from_many_threads(container: oci.Container) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        for turn in range(50):
            text = f"{number}-{turn}\n" * 100
            result = container.exec(["sh", "-c", "cat; exit 3"], input=text, capture_output=True, text=True)
            if (result.returncode, result.stdout, result.stderr) != (3, text, ""):
                failures.append(result)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert container.processes() == (container.pid,)


def test_a_process_waited_for_by_many_threads(container: oci.Container) -> None:
    process = container.popen(["sh", "-c", "sleep 0.3; exit 6"])
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(process.wait(TIME_LIMIT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [6] * 8
    process.close()


def test_a_container_that_ends_meanwhile(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """Every exec either runs or says that the container is stopped."""
    for turn in range(6):
        seen: list[object] = []
        with oci.Container.run(f"{prefix}-{turn}", bundle, state_root=state_root) as container:

            def work(container: oci.Container = container, seen: list[object] = seen) -> None:
                for _ in range(40):
                    try:
                        seen.append(container.exec(["true"]).returncode)
                    except oci.WrongStatus as error:
                        seen.append(error.status)
                        return
                    except BaseException as error:
                        seen.append(error)
                        return

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.02 * turn)
            container.kill("KILL")
            for thread in threads:
                thread.join()
        assert set(seen) <= {0, -signal.SIGKILL, "stopped"}, seen


def test_pause_waits_for_a_launch_and_exec_refuses(container: oci.Container) -> None:
    stop = threading.Event()
    seen: list[object] = []

    def work() -> None:
        while not stop.is_set():
            try:
                seen.append(container.exec(["true"], timeout=TIME_LIMIT).returncode)
            except oci.WrongStatus as error:
                seen.append(error.status)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        container.pause()
        with pytest.raises(oci.WrongStatus, match=r"exec in.*paused"):
            container.exec(["true"])
        container.resume()
    stop.set()
    for thread in threads:
        thread.join()
    assert set(seen) <= {0, "paused"}, seen


def test_abandoned_processes_leave_no_zombie(container: oci.Container) -> None:
    pids = []
    for _ in range(5):
        process = container.popen(["true"])
        pids.append(process.pid)
        wait_until(lambda pid=process.pid: not is_running(pid), "the end of the process")
        del process
    container.exec(["true"])
    assert [pid for pid in pids if os.path.exists(f"/proc/{pid}")] == []


def test_preserved_descriptors(container: oci.Container, bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """Those that are open and inheritable, and none of the runtime: no lock, memfd or pidfd."""
    (tmp_path / "file").write_text("content")
    args = ["sh", "-c", "cat <&40; for fd in /proc/self/fd/*; do readlink $fd; done"]
    with open(tmp_path / "file") as file, open(tmp_path / "file") as other:
        os.dup2(file.fileno(), 40, inheritable=True)
        os.dup2(other.fileno(), 41, inheritable=False)
        try:
            for run in (lambda: container.popen(args, stdout=PIPE, preserve_fds=60), None):
                if run is not None:
                    with run() as process:
                        printed = process.stdout.read().decode()
                else:
                    created = oci.Container.run(
                        f"{prefix}-2", bundle.with_args(args), state_root=state_root, stdout=PIPE, preserve_fds=60
                    )
                    with created:
                        printed = created.stdout.read().decode()
                assert printed.startswith("content")
                assert printed.count(str(tmp_path / "file")) == printed.count("content") == 1
                assert not [line for line in printed.splitlines() if "memfd" in line or "lock" in line or "pidfd" in line]
                os.lseek(40, 0, os.SEEK_SET)
        finally:
            os.close(40)
            os.close(41)
    for call in (lambda: container.exec(["true"], preserve_fds=-1), lambda: oci.Container.create("x", bundle, preserve_fds=-1)):
        with pytest.raises(ValueError, match="preserve_fds is -1"):
            call()


def test_home(container: oci.Container, bundle: oci.Bundle, state_root: Path) -> None:
    (bundle.path / "rootfs/etc/passwd").unlink()
    (bundle.path / "rootfs/etc/passwd").write_text("root:x:0:0::/root:\njoe:x:1000:1001::/home/joe:\nodd:x:7:7::relative:\n")
    for user, home in ((0, "/root"), ("joe", "/home/joe"), (7, "/"), ((12345, 1), "/")):
        assert said(container, "echo $HOME", user=user) == f"{home}\n"
        assert (
            oci.run(bundle, ["sh", "-c", "echo $HOME"], user=user, stdout=PIPE, state_root=state_root).stdout
            == f"{home}\n".encode()
        )
    assert said(container, "echo $HOME", env={"HOME": "/x"}) == "/x\n"
    (bundle.path / "rootfs/etc/passwd").unlink()
    os.mkfifo(bundle.path / "rootfs/etc/passwd")
    assert said(container, "echo $HOME") == "/\n"


def test_the_command_line(container: oci.Container, state_root: Path, script: Script, tmp_path: Path) -> None:
    def cli(*args: object) -> tuple[int, str]:
        text = "import sys\nfrom ociruntime.cli import main\nsys.exit(main(sys.argv[1:]))"
        done = script(text, "--root", state_root, "exec", *args, check=False)
        return done.returncode, done.stdout + done.stderr

    assert cli("--user", "root", "-g", 5, "--env", "A=b", "--cwd", "/etc", container.id, "sh", "-c", "id -G; echo $A; pwd") == (
        0, "0 5\nb\n/etc\n",
    )  # fmt: skip
    assert cli("--cap", "CAP_SYS_ADMIN", container.id, "grep", "CapInh", "/proc/self/status")[1].endswith("0000000000000000\n")
    assert cli(container.id, "sh", "-c", "exit 5")[0] == 5
    assert cli(container.id, "sh", "-c", "kill -TERM $$")[0] == 143
    assert cli(container.id, "no-such-program")[0] == 255
    assert cli("--user", "nobody-here", container.id, "true") == (
        255, "ociruntime: user 'nobody-here' is neither a number nor in the container's /etc/passwd\n",
    )  # fmt: skip
    (tmp_path / "process.json").write_text('{"args": ["sh", "-c", "echo $X"], "cwd": "/", "env": ["X=y", "PATH=/bin"]}')
    assert cli("--process", tmp_path / "process.json", container.id) == (0, "y\n")
    assert cli("--process", tmp_path / "process.json", "--pid-file", tmp_path / "pid", "--detach", container.id)[0] == 0
    assert (tmp_path / "pid").read_text().isdigit()


def test_the_end_of_a_detached_program_is_for_whoever_gets_it(
    container: oci.Container, command: Command, script: Script, tmp_path: Path
) -> None:
    """As containerd's shims take it: they are subreapers, and wait for the pid in the file."""
    text = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
subprocess.run(sys.argv[2:], check=True)
print(os.waitstatus_to_exitcode(os.waitpid(int(open(sys.argv[1]).read()), 0)[1]))
"""
    for program, code in (("exit 3", 3), ("kill -TERM $$", -15), ("sleep 0.2; exit 4", 4)):
        words = command("exec", "--detach", "--pid-file", tmp_path / "pid", container.id, "sh", "-c", program)
        assert script(text, tmp_path / "pid", *words).stdout == f"{code}\n"
