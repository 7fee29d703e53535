"""`Sandbox`: programs that run in one container, its limits, and what is left of it: nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import aio

from ..support.fixture_types import MakeBundle, MakeSandbox
from ..support.processes import find_processes, is_running
from ..support.users import run_tests_as_user
from ..support.waiting import TIME_LIMIT, run_async, wait_until

ROOT = os.geteuid() == 0


# ---- running programs ----


def test_output_is_captured_and_input_is_given(sandbox: oci.Sandbox) -> None:
    result = sandbox.run(["sh", "-c", "read x; echo got $x; echo oops >&2; exit 3"], input="in\n", text=True)
    assert (result.returncode, result.stdout, result.stderr) == (3, "got in\n", "oops\n")
    assert (result.timed_out, result.truncated, result.oom_killed, result.signal) == (False, False, False, None)
    assert sandbox.run(["cat"]).stdout == b""  # its stdin is empty, and not the caller's
    assert sandbox.shell("kill -9 $$").signal == signal.SIGKILL
    assert sandbox.run(["sh", "-c", "echo x >&2"], stderr=subprocess.STDOUT).stdout == b"x\n"
    assert sandbox.run(["tty"], terminal=True).stdout == b"/dev/pts/0\r\n"
    assert sandbox.run(["cat"], terminal=True, input=b"typed\n").stdout == b"typed\r\ntyped\r\n"
    with pytest.raises(oci.ProcessError, match="no luck"):
        sandbox.shell("echo no luck >&2; exit 1", check=True)
    with pytest.raises(oci.StepError) as caught:
        sandbox.run(["nothing-of-the-kind"])
    assert caught.value.errno == errno.ENOENT


def test_files_stay_between_runs(sandbox: oci.Sandbox, busybox_rootfs: Path) -> None:
    sandbox.shell("echo one > /tmp/file; mkdir /new", check=True)
    assert sandbox.shell("cat /tmp/file; ls -d /new", text=True).stdout == "one\n/new\n"
    assert not (busybox_rootfs / "new").exists()


def test_bundles_and_images(make_sandbox: MakeSandbox, make_bundle: MakeBundle, busybox_sif: Path) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default(host=oci.Host.probe()))
    for image in (bundle, bundle.path, *((busybox_sif,) if ROOT else ())):
        with make_sandbox(image) as sandbox:
            assert sandbox.shell("echo x > /written; cat /written").stdout == b"x\n"
        with make_sandbox(image, disk=-1) as sandbox:
            assert sandbox.shell("test -e /written || echo x > /written").returncode == 0
    assert not (bundle.rootfs / "written").exists()
    with pytest.raises(ValueError, match="reference, platform and strategy"):
        make_sandbox(bundle, platform="linux/amd64")


def test_settings_of_the_sandbox_and_of_a_run(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(env={"A": "1", "B": "2"}, cwd="/tmp", hostname="box")
    assert sandbox.shell("echo $A$B $PWD $(hostname)", text=True).stdout == "12 /tmp box\n"
    assert sandbox.shell("echo $A$B $PWD", env={"B": None, "A": "3"}, cwd="/etc", text=True).stdout == "3 /etc\n"
    assert sandbox.container.id == sandbox.name


def test_a_run_ends_with_its_program(sandbox: oci.Sandbox) -> None:
    """What it has left in the background has its pipes open, runs on, and is no part of the result."""
    result = sandbox.shell("echo before; (sleep 0.3; echo after; exec sleep 1000) & echo $!", timeout=TIME_LIMIT)
    assert result.stdout.startswith(b"before\n")
    assert b"after" not in result.stdout
    assert sandbox.processes()
    big = sandbox.shell("head -c 60000 /dev/zero; sleep 1000 &", timeout=TIME_LIMIT)
    assert len(big.stdout) == 60000


def test_a_timeout_ends_what_the_run_started_and_nothing_else(sandbox: oci.Sandbox) -> None:
    sandbox.shell("sleep 1001 > /dev/null 2>&1 &")
    other = sandbox.processes()
    began = time.monotonic()
    with pytest.raises(oci.ProcessTimeout) as caught:
        sandbox.shell("echo begun; setsid sh -c '(sleep 1002 &) & sleep 1003' & sleep 1004", timeout=0.5, text=True)
    assert time.monotonic() - began < TIME_LIMIT
    result = caught.value.result
    assert result is not None
    assert (result.stdout, result.timed_out, result.signal) == ("begun\n", True, signal.SIGKILL)
    assert sandbox.processes() == other
    assert sandbox.run(["true"]).returncode == 0


def test_the_timeout_of_the_sandbox(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(timeout=0.3)
    with pytest.raises(oci.ProcessTimeout):
        sandbox.run(["sleep", "1000"])
    assert sandbox.run(["sleep", "0.5"], timeout=TIME_LIMIT).returncode == 0


def test_output_above_the_limit_is_dropped(sandbox: oci.Sandbox) -> None:
    result = sandbox.shell("yes | head -c 5000000; echo x >&2", max_output=1000)
    assert (len(result.stdout), result.stderr, result.truncated, result.returncode) == (1000, b"x\n", True, 0)
    assert not sandbox.shell("yes | head -c 1000", max_output=1000).truncated
    assert sandbox.shell("yes | head -c 20000000", timeout=TIME_LIMIT).truncated  # by default
    assert len(sandbox.shell("yes | head -c 20000000", max_output=-1).stdout) == 20000000
    cut = sandbox.shell("printf 'ab\\303\\244\\303\\244'", max_output=5, text=True)
    assert (cut.stdout, cut.truncated) == ("abä", True)  # without the half of a character


def test_max_output_bounds_the_memory_of_the_caller(busybox_rootfs: Path, state_root: Path) -> None:
    script = """
import resource, sys
import ociruntime as oci
with oci.Sandbox(sys.argv[1], state_root=sys.argv[2]) as sandbox:
    sandbox.run(["true"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = sandbox.shell("yes | head -c 300000000", max_output="1M")
    print(result.truncated, len(result.stdout), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10)
"""
    words = [sys.executable, "-P", "-c", script, str(busybox_rootfs), str(state_root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=2 * TIME_LIMIT, check=True)
    assert done.stdout.split() == ["True", "1048576", "True"], done.stderr


def test_functions_get_output_as_it_comes(sandbox: oci.Sandbox) -> None:
    got: list[tuple[float, str]] = []
    errors: list[bytes] = []
    result = sandbox.shell(
        "for i in 1 2 3; do echo $i; sleep 0.2; done", text=True, on_stdout=lambda text: got.append((time.monotonic(), text))
    )
    assert [text for _, text in got] == ["1\n", "2\n", "3\n"]
    assert got[2][0] - got[0][0] > 0.3
    assert result.stdout == "1\n2\n3\n"
    sandbox.shell("yes | head -c 3000000 >&2", on_stderr=errors.append, max_output=10)
    assert sum(map(len, errors)) == 3000000  # all of it

    class Enough(Exception):
        pass

    def fail(data: bytes) -> None:
        raise Enough

    with pytest.raises(Enough):
        sandbox.shell("setsid sleep 1000 & yes", on_stdout=fail)
    assert sandbox.processes() == ()


def test_live_output_by_iteration(sandbox: oci.Sandbox) -> None:
    with sandbox.popen(["sh", "-c", "echo a; echo b >&2; read x; echo $x"], stdin=subprocess.PIPE, text=True) as process:
        lines = iter(process)
        assert [next(lines), next(lines)] == ["a\n", "b\n"]
        print("c", file=process.stdin, flush=True)
        assert next(lines) == "c\n"
    assert process.returncode == 0
    with sandbox.popen(["sh"], terminal=True) as process:
        assert process.terminal is not None
        process.kill(all=True)


def test_threads_share_a_sandbox(sandbox: oci.Sandbox) -> None:
    def work(number: int) -> int:
        return int(sandbox.shell(f"echo {number}").stdout)

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(work, range(128))) == list(range(128))


# ---- ending it ----


def test_stop_lets_programs_end(sandbox: oci.Sandbox) -> None:
    process = sandbox.popen(["sh", "-c", "trap 'echo ended; exit 0' TERM; echo up; while :; do sleep 0.01; done"], text=True)
    assert process.stdout.readline() == "up\n"
    began = time.monotonic()
    sandbox.stop(TIME_LIMIT)
    assert time.monotonic() - began < TIME_LIMIT
    assert process.communicate()[0].endswith("ended\n")
    with pytest.raises(oci.WrongStatus):
        sandbox.run(["true"])


def test_stop_kills_what_does_not_end(sandbox: oci.Sandbox) -> None:
    process = sandbox.popen(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"], text=True)
    assert process.stdout.readline() == "up\n"
    sandbox.stop(0.2)
    assert process.wait(TIME_LIMIT) == -signal.SIGKILL
    process.close()


def test_kill_ends_everything(sandbox: oci.Sandbox) -> None:
    process = sandbox.popen(["sleep", "1000"])
    sandbox.kill()
    assert process.wait(TIME_LIMIT) == -signal.SIGKILL
    process.close()
    sandbox.kill()
    assert sandbox.container.status is oci.Status.STOPPED


def test_reset_makes_it_new(sandbox: oci.Sandbox) -> None:
    sandbox.shell("echo x > /file; chmod 0 /etc; sleep 1000 > /dev/null 2>&1 &", check=True)
    sandbox.reset()
    assert sandbox.processes() == ()
    assert sandbox.shell("ls /file", stderr=subprocess.DEVNULL).returncode != 0
    sandbox.kill()
    sandbox.reset()
    assert sandbox.run(["true"]).returncode == 0


def test_after_close(make_sandbox: MakeSandbox, state_root: Path) -> None:
    sandbox = make_sandbox()
    process = sandbox.popen(["sleep", "1000"])
    pid = process.pid
    sandbox.close()
    sandbox.close()
    assert not is_running(pid)
    process.wait()
    process.close()
    for call in (lambda: sandbox.run(["true"]), sandbox.stats, sandbox.stop, sandbox.kill, sandbox.reset, sandbox.processes):
        with pytest.raises(oci.StateError, match=f"sandbox '{sandbox.name}' is closed"):
            call()
    assert sandbox.closed
    assert "closed" in repr(sandbox)
    assert {path.name for path in state_root.iterdir()} <= {".runs", ".seccomp"}


def test_a_sandbox_that_is_not_used_any_more_is_closed(make_sandbox: MakeSandbox, busybox_rootfs: Path, state_root: Path) -> None:
    created = oci.Sandbox(busybox_rootfs, state_root=state_root)
    assert len(oci.Container.list(state_root=state_root)) == 1
    del created
    assert oci.Container.list(state_root=state_root) == []


def test_a_name_is_taken(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    with pytest.raises(oci.ContainerExists):
        make_sandbox(name=sandbox.name)
    assert sandbox.run(["true"]).returncode == 0


CALLER = """
import os, sys, time
import ociruntime as oci
image, root, prefix = sys.argv[1:4]
sandbox = oci.Sandbox(image, state_root=root, name=prefix)
sandbox.shell("setsid sleep 1000 > /dev/null 2>&1 &")
how = sys.argv[4]
if how == "fork":
    pid = os.fork()
    if not pid:
        sys.exit()
    os.waitpid(pid, 0)
    pid = os.fork()
    if not pid:
        with sandbox:
            try:
                sandbox.close()
            finally:
                os._exit(0)
    os.waitpid(pid, 0)
    assert sandbox.run(["echo", "alive"]).stdout == b"alive\\n"
    print(len(sandbox.processes()))
elif how == "exit":
    print("up")
else:
    print(sandbox.container.pid, flush=True)
    time.sleep(1000)
"""


def call(how: str, busybox_rootfs: Path, state_root: Path, name: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-P", "-c", CALLER, str(busybox_rootfs), str(state_root), name, how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", ["fork", "exit"])
def test_forked_children_and_the_end_of_the_interpreter(busybox_rootfs: Path, state_root: Path, prefix: str, how: str) -> None:
    with call(how, busybox_rootfs, state_root, prefix) as caller:
        out, _ = caller.communicate(timeout=TIME_LIMIT)
    assert caller.returncode == 0
    assert out.split() == (["1"] if how == "fork" else ["up"])
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []


def test_it_dies_with_its_caller(make_sandbox: MakeSandbox, busybox_rootfs: Path, state_root: Path, prefix: str) -> None:
    with call("wait", busybox_rootfs, state_root, f"{prefix}-orphan") as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        members = oci.Container.load(f"{prefix}-orphan", state_root=state_root).processes()
        assert len(members) == 2
        caller.kill()
    wait_until(lambda: not any(map(is_running, (pid, *members))), "the end of the sandbox")
    make_sandbox().close()
    assert oci.Container.list(state_root=state_root) == []
    assert not find_processes(prefix)


# ---- limits ----


def test_default_limits(sandbox: oci.Sandbox) -> None:
    assert sandbox.limits["disk"] == "tmpfs"
    out = sandbox.shell("df -k / | tail -1; dd if=/dev/zero of=/big bs=1M count=1100 2>&1; df -k /dev/shm | tail -1", text=True)
    lines = out.stdout.splitlines()
    assert lines[0].split()[1] == str(1 << 20)
    assert lines[-1].split()[1] == str(64 << 10)
    assert "No space left on device" in out.stdout
    if ROOT:
        assert sandbox.limits["pids"] == "cgroup"
        assert sandbox.shell("cat /proc/self/cgroup").returncode == 0


def test_pids_are_limited(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(pids=20, limits="if possible") if ROOT else make_sandbox(limits="if possible")
    count = 40 if ROOT else 1100
    out = sandbox.shell(f"for i in $(seq {count}); do sleep 1000 > /dev/null & done", text=True, timeout=2 * TIME_LIMIT)
    assert out.returncode != 0
    assert "fork" in out.stderr
    assert len(sandbox.processes()) < count
    sandbox.reset()
    assert sandbox.run(["true"]).returncode == 0


@pytest.mark.parametrize("disk", ["8M", 8 << 20])
def test_disk_and_shm(make_sandbox: MakeSandbox, disk: int | str) -> None:
    sandbox = make_sandbox(disk=disk, shm="2M")
    line = "df -k / | tail -1; df -k /dev/shm | tail -1; mount | grep ' /dev/shm '"
    root, shm, mount = sandbox.shell(line, text=True).stdout.splitlines()
    assert (root.split()[1], shm.split()[1]) == (str(8 << 10), str(2 << 10))
    assert all(option in mount for option in ("nosuid", "nodev", "noexec"))
    unlimited = make_sandbox(disk=-1)
    assert unlimited.limits["disk"] == "none"
    assert unlimited.shell("echo x > /x; df / | tail -1", text=True).returncode == 0


def test_a_kept_overlay(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    sandbox = make_sandbox(overlay=tmp_path / "kept")
    sandbox.shell("echo x > /x", check=True)
    sandbox.reset()
    assert sandbox.run(["cat", "/x"]).stdout == b"x\n"
    with pytest.raises(ValueError, match="disk limits a temporary upper layer"):
        make_sandbox(overlay="tmpfs", disk="1M")


def test_read_only_layers(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """They have no upper layer, so the limit holds."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    sandbox = make_sandbox(overlay=[f"{tmp_path}/one:ro", f"{tmp_path}/two:ro"], disk="2M")
    assert sandbox.limits["disk"] == "tmpfs"
    assert sandbox.run(["cat", "/name"]).stdout == b"two"
    full = sandbox.run(["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=4"], check=False)
    assert b"No space left on device" in full.stderr
    sandbox.run(["sh", "-c", "rm /big; echo -n new >/name"])
    with sandbox.fork() as fork:
        assert fork.run(["cat", "/name"]).stdout == b"new"
    assert (tmp_path / "two/name").read_bytes() == b"two"


@pytest.mark.root
def test_memory_and_cpus(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(memory="32M", cpus=0.5, limits="required")
    assert dict(sandbox.limits) == {"memory": "cgroup", "cpus": "cgroup", "pids": "cgroup", "disk": "tmpfs"}
    result = sandbox.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"])
    assert (result.oom_killed, result.signal) == (True, signal.SIGKILL)
    assert sandbox.run(["true"]).returncode == 0  # the sandbox lives on
    assert not sandbox.run(["true"]).oom_killed
    assert sandbox.stats().memory.limit == 32 << 20
    assert any(event.kind == "oom" for event in _events(sandbox))


def _events(sandbox: oci.Sandbox) -> list[oci.Event]:
    found: list[oci.Event] = []

    def watch() -> None:
        for event in sandbox.events():
            found.append(event)

    thread = threading.Thread(target=watch)
    thread.start()
    time.sleep(0.2)
    sandbox.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"])
    wait_until(lambda: any(event.kind == "oom" for event in found), "the event of the OOM kill")
    sandbox.kill()
    thread.join(TIME_LIMIT)
    return found


@pytest.mark.skipif(ROOT, reason="root has cgroups")
def test_limits_without_cgroups(make_sandbox: MakeSandbox) -> None:
    for given, name in (
        ({"memory": "64M"}, "memory"),
        ({"cpus": 1.0}, "cpus"),
        ({"pids": 9}, "pids"),
        ({"limits": "required"}, "pids"),
    ):
        with pytest.raises(oci.UnsupportedError, match=f"{name}: cannot be limited for all processes .* limits='if possible'"):
            make_sandbox(**given)
    with pytest.warns(oci.OCIRuntimeWarning) as warned:
        sandbox = make_sandbox(memory="64M", cpus=1.0, pids=200, limits="if possible")
    assert [str(one.message).partition(":")[2].partition(":")[0] for one in warned] == [
        " memory is limited for each process alone",
        " cpus is not limited",
        " pids is limited for each user of the sandbox alone",
    ]
    assert dict(sandbox.limits) == {"memory": "rlimit", "cpus": "none", "pids": "rlimit", "disk": "tmpfs"}
    limits = sandbox.run(["cat", "/proc/self/limits"], text=True).stdout.splitlines()
    assert {" ".join(line.split()[1:5]) for line in limits} >= {f"data size {64 << 20} {64 << 20}", "processes 200 200 processes"}
    assert sandbox.run(["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"]).returncode != 0


@pytest.mark.root
def test_volumes_are_limited_too(busybox_rootfs: Path, make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    image = tmp_path / "image.sif"
    oci.build_sif(image, busybox_rootfs, oci_config={"Env": ["A=b"], "Volumes": {"/data": {}}})
    sandbox = make_sandbox(image, disk="4M")
    out = sandbox.shell("mkdir -p /data; df -k /data | tail -1; echo $A; dd if=/dev/zero of=/data/big bs=1M count=8", text=True)
    assert out.stdout.split()[1] == str(4 << 10)
    assert "b\n" in out.stdout
    assert out.returncode != 0


# ---- in an event loop ----


def test_in_an_event_loop(busybox_rootfs: Path, state_root: Path, prefix: str) -> None:
    async def main() -> None:
        async with aio.Sandbox(busybox_rootfs, state_root=state_root, name=prefix) as sandbox:
            assert sandbox.name == prefix
            for value, kind in ((sandbox, "sandbox"), (sandbox.container, "container")):
                assert f"<p>{kind} <code>{prefix}</code> " in str(value._repr_html_())
            result = await sandbox.shell("cat; echo err >&2; exit 3", input="in", text=True)
            assert (result.returncode, result.stdout, result.stderr) == (3, "in", "err\n")
            parts: list[str] = []
            await sandbox.run(["echo", "hi"], text=True, on_stdout=parts.append)
            assert parts == ["hi\n"]
            assert (await sandbox.shell("yes | head -c 20000000")).truncated
            assert (await sandbox.shell("sleep 1000 & echo up")).stdout == b"up\n"
            assert len(sandbox.processes()) == 1
            async with sandbox.popen(["sh", "-c", "echo a; echo b >&2"], text=True) as process:
                assert [line async for line in process] == ["a\n", "b\n"]
            with pytest.raises(oci.ProcessTimeout) as caught:
                await sandbox.shell("echo begun; setsid sleep 1000 & sleep 1000", timeout=0.5)
            assert caught.value.result is not None
            assert (caught.value.result.stdout, caught.value.result.timed_out) == (b"begun\n", True)

            class Enough(Exception):
                pass

            def fail(data: bytes) -> None:
                raise Enough

            with pytest.raises(Enough):
                await sandbox.shell("yes", on_stdout=fail, timeout=TIME_LIMIT)
            await sandbox.reset()
            assert sandbox.processes() == ()
            await sandbox.stop(0.2)
        assert aio.Sandbox(busybox_rootfs, state_root=state_root)._repr_html_() is None
        sandbox = await aio.Sandbox(busybox_rootfs, state_root=state_root)
        await sandbox.kill()
        await sandbox.close()
        assert sandbox.closed
        with pytest.raises(oci.StateError, match="has not begun"):
            await aio.Sandbox(busybox_rootfs, state_root=state_root).run(["true"])

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []


def test_a_cancelled_run_ends_and_the_sandbox_stays(busybox_rootfs: Path, state_root: Path) -> None:
    async def main() -> None:
        async with aio.Sandbox(busybox_rootfs, state_root=state_root) as sandbox:
            for delay in [*(0.002 * number for number in range(20)), 0.3]:
                task = asyncio.create_task(sandbox.shell("setsid sleep 1000 & sleep 1000"))
                await asyncio.sleep(delay)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert sandbox.processes() == ()
            assert (await sandbox.run(["echo", "alive"])).stdout == b"alive\n"

    run_async(main())


def test_cancelled_at_any_time_nothing_is_left(busybox_rootfs: Path, state_root: Path, prefix: str) -> None:
    async def use(name: str) -> None:
        async with aio.Sandbox(busybox_rootfs, state_root=state_root, name=name) as sandbox:
            await sandbox.shell("sleep 1000")

    async def main() -> None:
        for number in range(60):
            task = asyncio.create_task(use(f"{prefix}-{number}"))
            await asyncio.sleep(random.uniform(0, 0.06))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert oci.Container.list(state_root=state_root) == []

    run_async(main())
    assert os.listdir(state_root / ".runs") == []


def test_two_hundred_at_once(busybox_rootfs: Path, state_root: Path) -> None:
    async def one(number: int) -> int:
        async with aio.Sandbox(busybox_rootfs, disk="1M", state_root=state_root) as sandbox:
            both = sandbox.shell(f"echo {number}"), sandbox.shell(f"echo {number} > /file; cat /file")
            first, second = await asyncio.gather(*both)
            return int(first.stdout) + int(second.stdout)

    async def main() -> None:
        assert await asyncio.gather(*map(one, range(200))) == [2 * number for number in range(200)]

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []


# ---- ports ----


def test_ports(sandbox: oci.Sandbox) -> None:
    with pytest.raises(TimeoutError, match=r"port 8080 of sandbox .*: no program listens there after 0\.1 s"):
        sandbox.wait_for_port(8080, 0.1)
    with pytest.raises(ConnectionRefusedError, match="port 8080 of sandbox"):
        sandbox.connect(8080)
    open_files = os.listdir("/proc/self/fd")
    sandbox.shell(
        "echo hello > /tmp/index.html; (sleep 0.2; exec httpd -f -p 127.0.0.1:8080 -h /tmp) > /dev/null 2>&1 &", check=True
    )
    namespace = os.readlink("/proc/self/ns/net")
    sandbox.wait_for_port(8080, TIME_LIMIT)
    for _ in range(3):
        with sandbox.connect(8080, TIME_LIMIT) as peer, peer.makefile("rb") as answer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert answer.read().endswith(b"\r\n\r\nhello\n")
    assert os.readlink("/proc/self/ns/net") == namespace
    assert len(os.listdir("/proc/self/fd")) == len(open_files)
    sandbox.kill()
    for call in (lambda: sandbox.wait_for_port(8080), lambda: sandbox.connect(8080)):
        with pytest.raises(oci.WrongStatus):
            call()


def test_a_port_of_the_hosts_network(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(network="host")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sandbox.wait_for_port(port, TIME_LIMIT)
        sandbox.connect(port).close()


def test_ports_in_an_event_loop(busybox_rootfs: Path, state_root: Path) -> None:
    async def main() -> None:
        async with aio.Sandbox(busybox_rootfs, state_root=state_root) as sandbox:
            with pytest.raises(TimeoutError):
                await sandbox.wait_for_port(8080, 0.1)
            await sandbox.shell("echo hello > /tmp/index.html; (sleep 0.2; exec httpd -f -p 8080 -h /tmp) > /dev/null 2>&1 &")
            await sandbox.wait_for_port(8080, TIME_LIMIT)
            peer = await sandbox.connect(8080)
            peer.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=peer)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            assert (await reader.read()).endswith(b"hello\n")
            writer.close()
            waiting = asyncio.create_task(sandbox.wait_for_port(9, None))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run_async(main())


# ---- forks ----


def test_a_closed_fork_keeps_no_files(sandbox: oci.Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy that it began with is removed when it is closed, and not when the object is."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    sandbox.write_text("/file", "content")
    fork = sandbox.fork()
    assert fork.read_text("/file") == "content"
    assert list((tmp_path / "temporary").glob("*snapshot*"))
    fork.write_text("/file", "other")
    fork.reset()
    assert fork.read_text("/file") == "content"
    fork.close()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert fork.closed


# ---- a pool ----


def test_a_pool(busybox_rootfs: Path, state_root: Path) -> None:
    with oci.SandboxPool(busybox_rootfs, size=3, disk="8M", state_root=state_root) as pool:
        names = set()
        for _ in range(8):
            with pool.get(TIME_LIMIT) as sandbox:
                assert sandbox.shell("ls /used", stderr=subprocess.DEVNULL).returncode != 0
                sandbox.shell("echo x > /used", check=True)
                names.add(sandbox.name)
        assert len(names) == 8
        wait_until(lambda: pool.ready == 3, "a pool that is filled again")
        killed = next(iter(pool._stock.ready))
        killed.kill()
        with pool.get(TIME_LIMIT) as sandbox:  # another one
            assert sandbox.run(["true"]).returncode == 0
        kept = pool.get(TIME_LIMIT)
    assert kept.run(["true"]).returncode == 0  # it belongs to its user
    kept.close()
    with pytest.raises(oci.StateError, match="the pool is closed"):
        pool.get()
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []


def test_a_pool_that_cannot_be_filled(state_root: Path, tmp_path: Path) -> None:
    with oci.SandboxPool(tmp_path / "missing", state_root=state_root) as pool:
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                pool.get(TIME_LIMIT)
    with pytest.raises(ValueError, match="name is 'x'"):
        oci.SandboxPool(tmp_path, name="x", state_root=state_root)
    with pytest.raises(ValueError, match="cpus is 0"):
        oci.SandboxPool(tmp_path, cpus=0, state_root=state_root)


def test_a_pool_in_threads_and_forked_children(busybox_rootfs: Path, state_root: Path) -> None:
    with oci.SandboxPool(busybox_rootfs, size=2, state_root=state_root) as pool:

        def work(number: int) -> int:
            with pool.get() as sandbox:
                return int(sandbox.shell(f"echo {number}").stdout)

        with ThreadPoolExecutor(16) as threads:
            assert list(threads.map(work, range(32))) == list(range(32))
        pid = os.fork()
        if not pid:
            status = 1
            try:
                pool.close()
                pool.get()
            except oci.StateError:
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert work(1) == 1
    assert oci.Container.list(state_root=state_root) == []


def test_a_pool_in_an_event_loop(busybox_rootfs: Path, state_root: Path) -> None:
    async def main() -> None:
        async with aio.SandboxPool(busybox_rootfs, size=2, state_root=state_root) as pool:

            async def one(number: int) -> int:
                async with pool.get() as sandbox:
                    return int((await sandbox.shell(f"echo {number}")).stdout)

            assert await asyncio.gather(*map(one, range(20))) == list(range(20))
            for number in range(20):
                task = asyncio.create_task(one(number))
                await asyncio.sleep(random.uniform(0, 0.02))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    run_async(main())
    assert oci.Container.list(state_root=state_root) == []


# ---- the programs of the host ----


def test_programs_of_the_host(tmp_path: Path, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/key").write_text("private")
    (data / "out/secret").mkdir(parents=True)
    (data / "in").write_text("data\n")
    (data / "out/secret/x").write_text("private")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TOKEN", "private")
    hidden = data / "out/secret"
    with oci.Sandbox.host(read=[data], write=[data / "out"], hide=[hidden], state_root=state_root) as sandbox:
        line = f"id -u; echo $HOME $TOKEN; ls -A ~; cat {data}/in; ls {hidden}; echo new > {data}/out/new"
        result = sandbox.shell(line, text=True)
        assert result.stdout == f"{os.geteuid()}\n{home}\ndata\n"
        assert (data / "out/new").read_text() == "new\n"
        assert (data / "out/new").stat().st_uid == os.geteuid()
        for path in (f"{data}/file", f"/usr/{prefix}", f"/etc/{prefix}"):
            assert sandbox.shell(f"echo x > {path}").returncode != 0
            assert not os.path.exists(path)
        for path in (f"/tmp/{prefix}", f"/var/tmp/{prefix}", f"{home}/file", f"/run/{prefix}"):
            assert sandbox.shell(f"echo x > {path} && cat {path}").stdout == b"x\n"
            assert not os.path.exists(path)
        assert sandbox.shell(f"cat {home}/.ssh/key").returncode != 0
        assert sandbox.shell("cat /etc/shadow").stdout == b""
        assert sandbox.run(["sh", "-c", "command -v sh"]).returncode == 0
        place = sandbox.container.spec.root
        assert place is not None
        assert os.path.isdir(place.path)
        sandbox.reset()
        assert sandbox.shell(f"ls /tmp/{prefix}").returncode != 0
    assert not os.path.exists(os.path.dirname(place.path))
    with pytest.raises(oci.BundleError, match=r"read contains .*/none, which does not exist on the host"):
        oci.Sandbox.host(read=[tmp_path / "none"], state_root=state_root)
    with pytest.raises(ValueError, match="write contains '/'"):
        oci.Sandbox.host(write=["/"], state_root=state_root)
    with pytest.raises(TypeError, match="hide is '/x': a sequence of paths"):
        oci.Sandbox.host(hide="/x", state_root=state_root)


@pytest.mark.root
def test_secrets_of_the_host_are_hidden_from_root(state_root: Path, prefix: str) -> None:
    """Root can read every file of /etc, and is the user in the sandbox of root."""
    place = Path("/etc", prefix)
    try:
        (place / "private").mkdir(parents=True)
        for name, mode in (("key", 0o600), ("group-key", 0o640), ("public", 0o644), ("private/inner", 0o644)):
            (place / name).write_text(f"{name}\n")
            (place / name).chmod(mode)
        (place / "private").chmod(0o700)
        (place / "link").symlink_to("public")
        with oci.Sandbox.host(state_root=state_root) as sandbox:
            result = sandbox.shell(f"cd {place}; cat key group-key public link private/inner /etc/shadow", text=True)
            assert result.stdout == "public\npublic\n"
    finally:
        shutil.rmtree(place)


def test_programs_of_the_host_in_an_event_loop(state_root: Path) -> None:
    async def main() -> None:
        async with aio.Sandbox.host(state_root=state_root) as sandbox:
            assert (await sandbox.shell("echo hi")).stdout == b"hi\n"

    run_async(main())


# ---- as a user ----


@pytest.mark.root
def test_as_a_user(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "kernel/test_sandbox.py")
