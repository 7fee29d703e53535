"""KeyboardInterrupt at any moment, told by a real SIGINT: nothing is left of the container, the program, the call."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.engine.interrupts import Held, whole

pytestmark = pytest.mark.root
Script = Callable[..., "subprocess.CompletedProcess[str]"]

SWEEP = """
import os, signal, sys, tempfile, threading, time
import ociruntime as oci

what, source, root, scratch, prefix, step, delay = sys.argv[1:]
tempfile.tempdir = scratch
step, delay = int(step), float(delay)
image = oci.Bundle.load(source).with_args(["sleep", "1000"]) if os.path.exists(source + "/config.json") else source
SYSTEM = {"posix", "fcntl", "_socket", "select", "_host", "_ociruntime", "_signal"}
SCRIPT = ["sh", "-c", "echo early; sleep 1000 & sleep 0.05"]

def run():
    oci.run(image, SCRIPT, capture_output=True, root=root, container_id=prefix + "-run")

def create():
    with oci.Container.create(prefix + "-run", image, root=root) as made:
        pass

def execute():
    container.exec(SCRIPT, capture_output=True, timeout=0.02)

def popen():
    with container.popen(["sleep", "1000"], stdout=-1) as process:
        process.kill()

def books():
    numbers = [fd for fd in os.listdir("/proc/self/fd") if fd not in ("0", "1", "2") and os.path.lexists(f"/proc/self/fd/{fd}")]
    fds = sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in numbers)
    children = [pid for task in os.listdir("/proc/self/task") for pid in open(f"/proc/self/task/{task}/children").read().split()]
    return fds, sorted(children), threading.active_count(), [n for n in range(1, 32) if callable(signal.getsignal(n))]

def check(where):
    assert [c.id for c in oci.Container.list(root=root)] == kept, (where, oci.Container.list(root=root))
    cgroups = [n for h in oci.Host.probe().hierarchies for n in os.listdir(h.mountpoint) if prefix + "-run" in n]
    mounts = [line for line in open("/proc/self/mountinfo") if scratch in line]
    assert (cgroups, mounts, os.listdir(scratch)) == ([], [], []), where
    deadline = time.monotonic() + 20
    while kept and container.processes() != (container.pid,):   # what was killed may take a moment to be gone
        assert time.monotonic() < deadline, (where, container.processes())
        time.sleep(0.01)
    now = books()
    assert now == before, (where, now, before)

def hook(frame, event, function):
    global count
    if event in ("c_call", "c_return") and (getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__) in SYSTEM:
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGALRM, signal.default_int_handler)
work = {"run": run, "create": create, "exec": execute, "popen": popen}[what]
kept = []
if what in ("exec", "popen"):
    container = oci.Container.run(prefix + "-kept", image, root=root)
    kept = [container.id]
work()
before = books()
interrupted = 0
number = 1
while True:
    count = 0
    try:
        if delay:
            signal.setitimer(signal.ITIMER_REAL, delay * number)
        else:
            sys.setprofile(hook)
        work()
        sys.setprofile(None)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as error:
        sys.setprofile(None)
        interrupted += 1
        if hasattr(error, "result"):
            assert error.result.returncode in (-9, 0), error.result
    if not delay and count < number:
        break
    check(number)
    number += 1 if delay else step
    if delay and number > step:
        break
if kept:
    container.delete(force=True)
print(interrupted)
"""


@pytest.fixture
def sources(bundle: oci.Bundle, busybox_rootfs: Path) -> dict[str, Path]:
    return {"bundle": bundle.path, "rootfs": busybox_rootfs}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "source", "step", "at_least"),
    [("run", "bundle", 7, 60), ("run", "rootfs", 17, 40), ("create", "bundle", 17, 20), ("exec", "bundle", 7, 30), ("popen", "bundle", 7, 30)],
)  # fmt: skip
def test_at_every_nth_system_call(
    sources: dict[str, Path],
    what: str,
    source: str,
    step: int,
    at_least: int,
    state_root: Path,
    prefix: str,
    tmp_path: Path,
    script: Script,
) -> None:
    (tmp_path / "scratch").mkdir()
    done = script(SWEEP, what, sources[source], state_root, tmp_path / "scratch", prefix, step, 0, timeout=280)
    assert int(done.stdout) >= at_least


@pytest.mark.slow
@pytest.mark.parametrize("what", ["run", "exec"])
def test_at_any_time(sources: dict[str, Path], what: str, state_root: Path, prefix: str, tmp_path: Path, script: Script) -> None:
    (tmp_path / "scratch").mkdir()
    done = script(SWEEP, what, sources["bundle"], state_root, tmp_path / "scratch", prefix, 25, 0.0015, timeout=280)
    assert int(done.stdout) >= 3


def test_handlers_wait_for_the_end_of_a_block() -> None:
    seen: list[str] = []

    def handler(number: int, frame: object) -> None:
        seen.append(signal.Signals(number).name)
        if number == signal.SIGUSR1:
            raise ZeroDivisionError

    before = {number: signal.signal(number, handler) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with Held() as held:
            os.kill(os.getpid(), signal.SIGUSR2)
            with Held():
                pass  # a block in a block is a part of it
            assert seen == []
            with held.opened():
                assert seen == ["SIGUSR2"]
                with pytest.raises(ZeroDivisionError):
                    os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == ["SIGUSR2", "SIGUSR1"]
        undone: list[int] = []

        @whole(undo=undone.append)
        def make() -> int:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert len(seen) == 2
            return 7

        with pytest.raises(ZeroDivisionError):
            make()
        assert undone == [7]

        @whole(undo=undone.append)
        def twice() -> int:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)  # the second one does not wait
            return 8

        with pytest.raises(ZeroDivisionError):
            twice()
        assert undone == [7]
        assert all(signal.getsignal(number) is handler for number in before)
        in_a_thread: list[bool] = []
        thread = threading.Thread(target=lambda: in_a_thread.append(make_in_thread()))

        def make_in_thread() -> bool:
            with Held():
                return signal.getsignal(signal.SIGUSR1) is handler

        thread.start()
        thread.join()
        assert in_a_thread == [True]
    finally:
        for number, old in before.items():
            signal.signal(number, old)
