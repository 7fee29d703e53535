"""KeyboardInterrupt at any moment, told by a real SIGINT: nothing is left of the container, the program, the call."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.image.sif import SifBuilder
from ociruntime.interrupts import DeferredSignals, uninterruptible
from ociruntime.spec import Hook, Hooks

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.leftovers import assert_nothing_left
from ..support.processes import find_processes
from ..support.waiting import SLOWER, interrupted_when, wait_until, within

pytestmark = pytest.mark.root

SWEEP = """
import os, signal, sys, tempfile, threading, time, traceback
import ociruntime as oci
from ociruntime.lifecycle import prune as unmounting
from ociruntime.rootfs import bundles
from ociruntime.store import default_root

what, source, root, scratch, prefix, step, delay = sys.argv[1:]
tempfile.tempdir = scratch
step, delay = int(step), float(delay)
image = oci.Bundle.load(source).with_args(["sleep", "1000"]) if os.path.exists(source + "/config.json") else source
SYSTEM = {"posix", "fcntl", "_socket", "select", "_host", "_ociruntime", "_signal"}
SCRIPT = ["sh", "-c", "echo early; sleep 1000 & sleep 0.05"]

def run():
    oci.run(image, SCRIPT, capture_output=True, state_root=root, container_id=prefix + "-run")

def create():
    with oci.Container.create(prefix + "-run", image, state_root=root) as made:
        pass

def execute():
    try:
        container.exec(SCRIPT, capture_output=True, timeout=0.02)
    except oci.ProcessTimeout:
        pass

def popen():
    with container.popen(["sleep", "1000"], stdout=-1) as process:
        process.kill()

place = scratch + "/b"   # of a bundle
built = scratch + "/x.sif"
config = scratch + "/config.json"
unmounting._pids = lambda: [os.getpid()]   # as many calls on every machine

def mount():
    mounted.append(oci.Bundle.from_sif(source, place))

def block():
    with oci.Bundle.from_sif(source, place):
        pass

def umount():
    mounted[0].umount(force=True)
    mounted.clear()

def build():
    oci.build_sif(built, source)

def opening():
    with oci.SifImage.open(source):
        pass

def save():
    oci.RuntimeSpec.default().save(config)

def from_dir():
    oci.Bundle.from_dir(scratch)

def lines():
    return [line for line in open("/proc/self/mountinfo") if scratch in line]

def prepare():
    if what == "umount":
        mount()
    if what == "from_dir":
        os.mkdir(scratch + "/rootfs")

def tidy(interrupted):
    # What may be there is there as a whole: an operation that had not begun, or had ended.
    if what in ("mount", "umount"):
        assert len(lines()) == (2 if os.path.exists(place) else 0), (lines(), os.listdir(scratch))
        if interrupted and what == "mount":
            assert not os.path.exists(place), os.listdir(place)
        if os.path.exists(place):
            oci.Bundle.load(place).umount()
        mounted.clear()
    if os.path.exists(built):
        oci.SifImage.open(built).close()
        os.unlink(built)
    if what == "from_dir":
        os.rmdir(scratch + "/rootfs")
        assert not (interrupted and os.path.exists(config))
    if os.path.exists(config):
        oci.RuntimeSpec.load(config)
        os.unlink(config)

def books():
    numbers = [fd for fd in os.listdir("/proc/self/fd") if fd not in ("0", "1", "2") and os.path.lexists(f"/proc/self/fd/{fd}")]
    fds = sorted(os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in numbers)
    children = [pid for task in os.listdir("/proc/self/task") for pid in open(f"/proc/self/task/{task}/children").read().split()]
    return fds, sorted(children), threading.active_count(), [n for n in range(1, 32) if callable(signal.getsignal(n))]

def check(where):
    assert [c.id for c in oci.Container.list(state_root=root)] == kept, (where, oci.Container.list(state_root=root))
    cgroups = [n for h in oci.Host.probe().hierarchies for n in os.listdir(h.mountpoint) if prefix + "-run" in n]
    known = [bundles._read(f"{default_root()}/.bundles/{name}") for name in os.listdir(default_root() + "/.bundles")]
    records = [record for record in known if record and scratch in record[1]]
    left = (cgroups, lines(), records, os.listdir(scratch))
    assert left == ([], [], [], []), (where, left, trace)
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
work = {
    "run": run, "create": create, "exec": execute, "popen": popen, "mount": mount, "block": block, "umount": umount, "build": build,
    "open": opening, "save": save, "from_dir": from_dir,
}[what]
kept, mounted = [], []
os.makedirs(default_root() + "/.bundles", mode=0o700, exist_ok=True)
if what in ("exec", "popen"):
    container = oci.Container.run(prefix + "-kept", image, state_root=root)
    kept = [container.id]
prepare()
work()
tidy(False)
before = books()
interrupted = 0
number = 1
while True:
    prepare()
    count = 0
    caught = False
    trace = ""
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
        caught = True
        trace = traceback.format_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        if (what, last.name, last.lineno) == ("block", "__enter__", oci.Bundle.__enter__.__code__.co_firstlineno):
            # The call had returned, and no line of __enter__ had run: the block has not begun, and the bundle is mounted as a whole.
            assert len(lines()) == 2, (lines(), trace)
            oci.Bundle.load(place).umount()
        interrupted += 1
        if hasattr(error, "result"):
            assert error.result.returncode in (-9, 0), error.result
    tidy(caught and not delay)   # a timer may also go off between the call and the end of the round
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
def sources(bundle: oci.Bundle, busybox_rootfs: Path, busybox_sif: Path, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "small").mkdir()
    (tmp_path / "small/file").write_text("x")
    return {"bundle": bundle.path, "rootfs": busybox_rootfs, "sif": busybox_sif, "small": tmp_path / "small"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "source", "step", "at_least"),
    [
        ("run", "bundle", 7, 60),
        ("run", "rootfs", 17, 40),
        ("create", "bundle", 17, 20),
        ("exec", "bundle", 7, 30),
        ("popen", "bundle", 7, 30),
        ("mount", "sif", 1, 100),
        ("block", "sif", 2, 100),
        ("umount", "sif", 1, 100),
        ("build", "small", 1, 100),
        ("open", "sif", 1, 20),
        ("save", "small", 1, 20),
        ("from_dir", "small", 1, 20),
    ],
)
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
@pytest.mark.parametrize(
    ("what", "source", "rounds", "delay"),
    [
        ("run", "bundle", 25, 0.0015),
        ("exec", "bundle", 25, 0.0015),
        ("mount", "sif", 100, 0.0002),
        ("block", "sif", 100, 0.0002),
        ("umount", "sif", 100, 0.0002),
        ("build", "small", 50, 0.0004),
    ],
)
def test_at_any_time(
    sources: dict[str, Path],
    what: str,
    source: str,
    rounds: int,
    delay: float,
    state_root: Path,
    prefix: str,
    tmp_path: Path,
    script: Script,
) -> None:
    (tmp_path / "scratch").mkdir()
    done = script(SWEEP, what, sources[source], state_root, tmp_path / "scratch", prefix, rounds, delay, timeout=280)
    assert int(done.stdout) >= 3


@pytest.mark.parametrize("between", [False, True], ids=["during-the-wait", "just-before"])
def test_a_build_does_not_wait_for_mksquashfs(busybox_rootfs: Path, tmp_path: Path, between: bool) -> None:
    tool, pid = tmp_path / "mksquashfs", tmp_path / "pid"
    tool.write_text(f"#!/bin/sh\ntrap '' INT TERM\necho $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 1000\n")
    tool.chmod(0o755)
    (tmp_path / "out").mkdir()
    with within(50), interrupted_when(pid.exists, "the start of mksquashfs", between=between):
        oci.build_sif(tmp_path / "out/x.sif", busybox_rootfs, mksquashfs=tool)
    assert os.listdir(tmp_path / "out") == []
    assert not Path("/proc", pid.read_text().strip()).exists()


class Interrupting(io.BytesIO):
    """A stream that is interrupted while it is read or sought, and goes on if the handler does not run at once."""

    ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        self._interrupt()
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._interrupt()
        return super().seek(offset, whence)

    def _interrupt(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        self.ended = True


def test_streams_are_read_and_written_interruptibly(busybox_sif: Path, tmp_path: Path) -> None:
    stream = Interrupting(busybox_sif.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        oci.SifImage.open(stream)
    assert not stream.ended
    builder = SifBuilder()
    builder.add_generic(stream, name="x")
    with pytest.raises(KeyboardInterrupt):
        builder.write(tmp_path / "x.sif")
    assert not stream.ended
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["bundle", "container"])
def test_a_block_that_is_interrupted_at_its_begin(
    bundle: oci.Bundle,
    busybox_sif: Path,
    state_root: Path,
    prefix: str,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created: oci.Bundle | oci.Container
    if kind == "bundle":
        created, directory = oci.Bundle.from_sif(busybox_sif, tmp_path / "b"), tmp_path / "b"
    else:
        created, directory = oci.Container.create(prefix, bundle, state_root=state_root), state_root / prefix
    own, getpid = [os.getpid()], os.getpid

    def interrupted() -> int:
        if own:
            own.pop()
            raise KeyboardInterrupt
        return getpid()

    monkeypatch.setattr(os, "getpid", interrupted)
    with pytest.raises(KeyboardInterrupt), created:
        raise AssertionError("the block has begun")
    assert not directory.exists()


@pytest.mark.parametrize("how", ["run", "container", "start", "command"])
def test_a_poststart_hook_that_is_interrupted(
    make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path, command: Command, how: str
) -> None:
    """The hook and what it has started are killed. `run` leaves no container, and `start` leaves it running."""
    script = f"sleep 1000 & touch {tmp_path}/begun; sleep 1000"
    hook = Hook(path="/bin/busybox", args=("sh", "-c", script), env=(f"MARK={prefix}", "PATH=/bin"))
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["sleep", "1000"]).evolve(hooks=Hooks(poststart=(hook,))))
    begun = (tmp_path / "begun").exists
    with ExitStack() as stack:
        if how in ("start", "command"):
            container = stack.enter_context(oci.Container.create(prefix, bundle, state_root=state_root))
        if how == "command":
            process = subprocess.Popen(command("start", prefix))
            wait_until(begun, "the start of the hook")
            process.send_signal(signal.SIGINT)
            assert process.wait(20 * SLOWER) == 130
        else:
            with within(50), interrupted_when(begun, "the start of the hook"):
                if how == "run":
                    oci.run(bundle, state_root=state_root, container_id=prefix)
                elif how == "container":
                    oci.Container.run(prefix, bundle, state_root=state_root)
                else:
                    container.start()
        wait_until(lambda: not find_processes(f"MARK={prefix}", "environ"), "the end of the hook")
        if how in ("start", "command"):
            assert container.status is oci.Status.RUNNING
            assert container.exec(["true"]).returncode == 0
    assert_nothing_left(state_root, prefix)


def test_an_interruption_between_a_mount_and_its_block(busybox_sif: Path, state_root: Path, tmp_path: Path) -> None:
    """The signal arrives when `from_sif` has returned, and is handled where `__enter__` begins. The bundle is mounted as a whole."""
    interrupt = ctypes.pythonapi.PyErr_SetInterrupt  # called from C: no bytecode follows that would handle the signal at once
    interrupt.argtypes, interrupt.restype = [ctypes.py_object], None
    images = [type("Argument", (type(busybox_sif),), {})(busybox_sif)]
    going = weakref.ref(images[0], interrupt)  # the argument goes with the frame of from_sif
    with pytest.raises(KeyboardInterrupt), oci.Bundle.from_sif(images.pop(), tmp_path / "b"):
        raise AssertionError("the block has begun")
    assert going() is None
    oci.prune(state_root=state_root)  # which cannot know that it is not wanted
    assert (tmp_path / "b/rootfs/bin/sh").exists()
    oci.Bundle.load(tmp_path / "b").umount()
    assert not (tmp_path / "b").exists()


def test_an_undo_that_fails_does_not_replace_the_interruption() -> None:
    @uninterruptible(undo=lambda made: os.rmdir(f"/proc/{made}"))
    def make() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "self"

    with pytest.raises(KeyboardInterrupt) as caught:
        make()
    assert caught.value.__notes__ == [
        "what the interrupted call had made could not be removed: [Errno 20] Not a directory: '/proc/self'"
    ]


def test_handlers_wait_for_the_end_of_a_block() -> None:
    seen: list[str] = []

    def handler(number: int, frame: object) -> None:
        seen.append(signal.Signals(number).name)
        if number == signal.SIGUSR1:
            raise ZeroDivisionError

    before = {number: signal.signal(number, handler) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        with DeferredSignals() as signals:
            os.kill(os.getpid(), signal.SIGUSR2)
            with DeferredSignals():
                pass  # a block in a block is a part of it
            assert seen == []
            with signals.delivered():
                assert seen == ["SIGUSR2"]
                with pytest.raises(ZeroDivisionError):
                    os.kill(os.getpid(), signal.SIGUSR1)
            assert seen == ["SIGUSR2", "SIGUSR1"]
        undone: list[int] = []

        @uninterruptible(undo=undone.append)
        def make() -> int:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert len(seen) == 2
            return 7

        with pytest.raises(ZeroDivisionError):
            make()
        assert undone == [7]

        @uninterruptible(undo=undone.append)
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
            with DeferredSignals():
                return signal.getsignal(signal.SIGUSR1) is handler

        thread.start()
        thread.join()
        assert in_a_thread == [True]
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_a_child_of_another_thread_handles_its_signals() -> None:
    """It never leaves the block of the main thread, in which it was forked."""
    seen, codes = [], []

    def fork() -> None:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGUSR1)
            with DeferredSignals():
                os.kill(os.getpid(), signal.SIGUSR1)
                waits = len(seen) == 1
            os._exit(7 if waits and len(seen) == 2 else 1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with DeferredSignals():
            os.kill(os.getpid(), signal.SIGUSR1)
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()
            assert not seen
        assert (codes, len(seen)) == ([7], 1)
    finally:
        signal.signal(signal.SIGUSR1, before)
