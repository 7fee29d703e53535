"""Whatever ends us, and whenever: what is left is a container that list shows and delete removes, or nothing."""

from __future__ import annotations

import gc
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.lifecycle.delete import delete

from ..support.fixture_types import MakeBundle, Script
from ..support.processes import find_processes, start_lasting_thread
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root

SWEEP = """
import os, signal, sys, tempfile, time, traceback
import ociruntime as oci
from ociruntime.engine.launch import init_memfd

kind, source, root, scratch, prefix, step, when = sys.argv[1:]
tempfile.tempdir = scratch
image = oci.Bundle.load(source) if kind in ("bundle", "supervised") else source
SYSTEM = {"posix", "fcntl", "_socket", "select", "_host", "_ociruntime"}
count = 0

def live_supervised():
    with oci.Container.create(prefix, image, state_root=root, supervise=True) as container:
        with container.attach() as attachment:
            container.start()
            attachment.end_input()
            container.kill("KILL")
            assert attachment.read() == b""
        assert container.wait() == -9
    oci.Container.run(prefix, image, state_root=root, supervise=True).delete(force=True)

def supervisors():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found += [pid] if os.readlink(f"/proc/{pid}/fd/2").startswith(f"{root}/{prefix}/") else []
        except OSError:
            continue
    return found

def live():
    if kind == "supervised":
        live_supervised()
        return
    result = oci.run(image, ["sh", "-c", "echo $X"], capture_output=True, env={"X": "y"}, state_root=root, container_id=prefix)
    assert result.stdout == b"y\\n", result
    with oci.Container.create(prefix, oci.Bundle.load(source), state_root=root) if kind == "bundle" else open("/dev/null") as container:
        if kind == "bundle":
            container.start()
            container.exec(["true"])
            container.pause()
            container.resume()
            container.kill("KILL")
            container.wait()

def call(number):
    def hook(frame, event, function):
        global count
        if event == "c_call" and (getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__) in SYSTEM:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(hook)
    live()
    sys.setprofile(None)

def child(work):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)

def check(where):
    for _ in range(6000):
        oci.prune(state_root=root)
        if not any(container.status in (oci.Status.CREATING, oci.Status.STOPPED) for container in oci.Container.list(state_root=root)):
            break
        time.sleep(0.01)  # an init that was just cloned still has our lock, until it is executed, and one that is left ends by itself
    else:
        raise AssertionError((where, oci.Container.list(state_root=root)))
    for container in oci.Container.list(state_root=root):
        # Stopped it may be by now: what waits for a creator that was killed ends by itself, at this moment too.
        assert container.status is not oci.Status.CREATING, (where, container)
        container.delete(force=True)
    cgroups = [f"{h.mountpoint}/{n}" for h in oci.Host.probe().hierarchies for n in os.listdir(h.mountpoint) if prefix in n]
    mounts = [line for line in open("/proc/self/mountinfo") if scratch in line]
    assert (cgroups, mounts, os.listdir(scratch)) == ([], [], []), where
    assert set(os.listdir(root)) <= {".runs", ".seccomp"}, (where, os.listdir(root))

live()
killed = 0
if when == "nth call":
    number = 1
    while True:
        pid = child(lambda: call(number))
        status = os.waitpid(pid, 0)[1]
        check(number)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), status
        killed, number = killed + 1, number + int(step)
else:
    began = time.monotonic()
    assert os.waitpid(child(live), 0)[1] == 0
    took = time.monotonic() - began
    for turn in range(int(step)):
        pid = child(live)
        time.sleep(took * turn / int(step))
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        check(turn)
        killed += os.WIFSIGNALED(status)
for _ in range(6000):  # one whose creator was killed while it came up ends as soon as it is up
    if not supervisors():
        break
    time.sleep(0.01)
assert supervisors() == []
print(killed)
"""


@pytest.fixture
def source(request: pytest.FixtureRequest, kind: str) -> Path:
    fixture = {"bundle": "bundle", "supervised": "bundle", "rootfs": "busybox_rootfs", "sif": "busybox_sif"}[kind]
    created: oci.Bundle | Path = request.getfixturevalue(fixture)
    return created.path if isinstance(created, oci.Bundle) else created


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step", "at_least"),
    [("bundle", 5, 60), ("supervised", 7, 40), ("rootfs", 5, 30), pytest.param("sif", 7, 20, marks=pytest.mark.sif)],
)
def test_killed_at_every_nth_system_call(
    kind: str, source: Path, step: int, at_least: int, state_root: Path, prefix: str, tmp_path: Path, script: Script
) -> None:
    (tmp_path / "scratch").mkdir()
    done = script(SWEEP, kind, source, state_root, tmp_path / "scratch", prefix, step, "nth call", timeout=280)
    assert int(done.stdout) >= at_least


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundle", "supervised"])
def test_killed_at_any_time(kind: str, source: Path, state_root: Path, prefix: str, tmp_path: Path, script: Script) -> None:
    (tmp_path / "scratch").mkdir()
    done = script(SWEEP, kind, source, state_root, tmp_path / "scratch", prefix, 80, "any time", timeout=280)
    assert int(done.stdout) >= 5


PARENT = """
import sys, threading, time
import ociruntime as oci
bundle, root, prefix, gate = sys.argv[1:]

def make():
    if gate == "created":
        oci.Container.create(prefix, bundle, state_root=root, die_with_parent=True)
    elif gate == "started":
        oci.Container.create(prefix, bundle, state_root=root, die_with_parent=True).start()
    else:
        oci.Container.run(prefix, bundle, state_root=root, die_with_parent=True)
    print(oci.Container.load(prefix, state_root=root).pid, flush=True)

thread = threading.Thread(target=make)
thread.start()
thread.join()
time.sleep(1000)
"""


DYING = """
import os, sys, threading
import ociruntime as oci
bundle, root, prefix, thread = sys.argv[1:]

def work():
    print(flush=True)
    for turn in range(1000):
        oci.run(bundle, ["sh", "-c", "sleep 1000 & sleep 0.02"], state_root=root, container_id=f"{prefix}-{turn}", die_with_parent=True)

if thread == "thread":
    threading.Thread(target=work).start()
else:
    work()
"""


@pytest.mark.slow
@pytest.mark.parametrize("thread", ["main", "thread"])
def test_nothing_outlives_a_parent_killed_at_any_time(bundle: oci.Bundle, state_root: Path, prefix: str, thread: str) -> None:
    def pruned() -> bool:
        oci.prune(state_root=state_root)
        return oci.Container.list(state_root=state_root) == []

    command = [sys.executable, "-P", "-c", DYING, str(bundle.path), str(state_root), prefix, thread]
    for turn in range(15):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as parent:
            assert parent.stdout is not None
            parent.stdout.readline()
            time.sleep(0.08 * random.random() + (0.02 if turn % 2 else 0))
            parent.kill()
        wait_until(lambda: find_processes(prefix, "cgroup") == [], "the end of all processes")
        wait_until(pruned, "the end of all containers")


@pytest.mark.parametrize("how", ["created", "started", "run", "another user"])
def test_die_with_parent(bundle: oci.Bundle, state_root: Path, prefix: str, how: str) -> None:
    if how == "another user":
        bundle.spec = bundle.spec.evolve(process=bundle.spec.process.evolve(user=oci.spec.User(uid=1000, gid=1000)))  # type: ignore[union-attr]
    command = [sys.executable, "-P", "-c", PARENT, str(bundle.path), str(state_root), prefix, how]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    pidfd = os.pidfd_open(pid)
    try:
        container = oci.Container.load(prefix, state_root=state_root)
        # The thread that launched it is gone, and it lives.
        assert container.status is (oci.Status.CREATED if how == "created" else oci.Status.RUNNING)
        assert oci.prune(state_root=state_root) == ()
        parent.kill()
        parent.wait()
        assert container.wait(TIME_LIMIT) in (-9, None)
        assert container.status is oci.Status.STOPPED
        assert oci.prune(state_root=state_root) == (prefix,)
        assert oci.Container.list(state_root=state_root) == []
    finally:
        parent.stdout.close()
        os.close(pidfd)


def test_die_with_parent_where_it_cannot_be(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = oci.RuntimeSpec.default().with_args(["true"])
    shared = make_bundle(spec.without_namespace(oci.spec.NamespaceType.PID))
    assert spec.process is not None
    assert spec.process.capabilities is not None
    gains = make_bundle(
        spec.evolve(
            process=spec.process.evolve(
                no_new_privileges=False, capabilities=spec.process.capabilities.evolve(permitted=(), effective=())
            )
        )
    )
    for bundle, hint in ((shared, "pid namespace"), (gains, "capabilities")):
        with pytest.raises(oci.UnsupportedError, match=hint):
            oci.run(bundle, state_root=state_root, container_id=prefix, die_with_parent=True)
    assert oci.Container.list(state_root=state_root) == []


def test_prune(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    with (
        oci.Container.create(f"{prefix}-created", bundle, state_root=state_root) as created,
        oci.Container.run(f"{prefix}-running", bundle, state_root=state_root) as running,
    ):
        oci.Container.run(f"{prefix}-stopped", bundle.with_args(["true"]), state_root=state_root).wait(TIME_LIMIT)
        (state_root / f"{prefix}-empty").mkdir(0o700)
        (state_root / f"{prefix}-damaged").mkdir(0o700)
        (state_root / f"{prefix}-damaged/state.json").write_text("{")
        text = "import sys\nfrom ociruntime.cli import main\nsys.exit(main(sys.argv[1:]))"
        done = script(text, "--root", state_root, "prune")
        assert done.stdout.split() == [f"{prefix}-damaged", f"{prefix}-empty", f"{prefix}-stopped"]
        assert oci.prune(state_root=state_root) == ()
        assert [created.status, running.status] == [oci.Status.CREATED, oci.Status.RUNNING]
        with running._entry.locked():  # as another operation does
            running.kill("KILL")
            assert running.fileno()
            os.waitid(os.P_PIDFD, running.fileno(), os.WEXITED | os.WNOWAIT)
            assert oci.prune(state_root=state_root) == ()  # another operation holds its lock
        assert oci.prune(state_root=state_root) == (running.id,)
    assert oci.prune(state_root=state_root / "nowhere") == ()


def test_prune_meets_create(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """A directory that is taken away while its maker is about to lock it is made again."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                oci.prune(state_root=state_root)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for turn in range(40):
            container = oci.Container.create(f"{prefix}-{turn}", bundle, state_root=state_root)
            assert container.status is oci.Status.CREATED
            delete(container._entry, force=True)  # Container.delete() would accept that `prune` was first
            container._close()
    finally:
        stop.set()
        thread.join()
    assert failures == []


@pytest.mark.slow
def test_thousands_of_runs_leave_nothing(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def books() -> tuple[int, int, int]:
        gc.collect()
        children = sum(Path(f"/proc/self/task/{task}/children").read_text().count(" ") for task in os.listdir("/proc/self/task"))
        return len(os.listdir("/proc/self/fd")), threading.active_count(), children

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def runs(count: int) -> None:
        for _ in range(count):
            assert oci.run(bundle, ["true"], state_root=state_root).returncode == 0

    def settled() -> bool:
        oci.run(bundle, ["true"], state_root=state_root)  # what was abandoned is reaped with a launch
        return books() == before

    runs(250)
    start_lasting_thread(lambda: runs(1))
    before, memory = books(), resident()
    threads = [threading.Thread(target=runs, args=(250,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        for turn in range(300):
            if turn % 3:
                assert container.exec(["true"], capture_output=True).returncode == 0
            else:
                container.popen(["true"], stdout=subprocess.PIPE)
    for thread in threads:
        thread.join()
    with suppress(AssertionError):
        wait_until(settled, "the end of what was abandoned")
    assert books() == before
    assert resident() - memory < 16 << 20  # four threads have arenas of their own
    assert oci.Container.list(state_root=state_root) == []
    assert set(os.listdir(state_root)) <= {".runs", ".seccomp"}
    assert os.listdir(state_root / ".runs") == []
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
