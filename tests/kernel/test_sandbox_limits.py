"""The limits of a `Sandbox` against programs that take as much of everything as they get."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime import aio
from ociruntime.spec import Mount, Rlimit, RlimitType

from ..support.cgroups import needs
from ..support.fixture_types import MakeBundle, MakeSandbox, Script
from ..support.users import run_tests_as_user
from ..support.waiting import TIME_LIMIT, run_async

ROOT = os.geteuid() == 0
ENOUGH = 100_000
"""More files than any limit here lets be made."""


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program ``attack`` of tests/support."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (Debian: gcc libc6-dev)")
    program = tmp_path_factory.mktemp("attack") / "attack"
    source = Path(__file__).parents[1] / "support/attack.c"
    subprocess.run([compiler, "-O1", "-static", "-o", program, source], check=True)
    return program.read_bytes()


def take(sandbox: oci.Sandbox, program: bytes, what: str, most: int, place: str = "/") -> tuple[int, str]:
    """Let the program take a resource, and return how much it got, and what it was told then."""
    sandbox.write_bytes("/attack", program, mode=0o755)
    out = sandbox.run(["/attack", what, str(most), place], text=True, check=True, timeout=4 * TIME_LIMIT).stdout
    number, _, reason = out.strip().partition(" ")
    return int(number), reason


def writable_places(sandbox: oci.Sandbox) -> Iterator[str]:
    """Return every directory where a new file can be made: one for each mount, and the others in the root filesystem."""
    lines = sandbox.run(["cat", "/proc/mounts"], text=True, check=True).stdout.splitlines()
    mounts = dict.fromkeys(line.split()[1] for line in lines)
    for place in (*mounts, "/tmp", "/var/tmp", "/run", "/root", "/etc"):
        if sandbox.shell(f"test -d {place} && touch {place}/probe && rm {place}/probe").returncode == 0:
            yield place


@pytest.mark.parametrize("kind", ["image", "contain", "host", "own mounts"])
def test_every_writable_place_is_limited(
    make_sandbox: MakeSandbox, attack: bytes, state_root: Path, prefix: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes and in files: an empty one takes memory of the kernel too."""
    monkeypatch.setenv("HOME", f"/home/{prefix}")
    options = {"disk": "16M", "shm": "4M", "limits": "if possible"}
    if kind == "host":
        sandbox = oci.Sandbox.host(state_root=state_root, **options)  # type: ignore[arg-type]
    else:
        more = {"preset": "contain"} if kind == "contain" else {}
        mounts = [Mount(destination="/mine", type="tmpfs", source="tmpfs")] if kind == "own mounts" else []
        sandbox = make_sandbox(**options, **more, mounts=mounts)
    with sandbox:
        places = list(writable_places(sandbox))
        expected = {"/tmp", "/dev/shm"} | ({f"/home/{prefix}", "/var/tmp"} if kind == "contain" else set())
        assert expected | ({"/mine"} if kind == "own mounts" else set()) <= set(places)
        for place in places:
            for what, most in (("disk", 64), ("file", 16384), ("link", 16384), ("symlink", 16384)):
                sandbox.reset()
                taken, reason = take(sandbox, attack, what, ENOUGH if what != "disk" else 200, place)
                assert taken <= most, (place, what)
                assert reason == "No space left on device" or place == "/dev/mqueue", (place, what, reason)
            if place not in ("/dev", "/dev/mqueue"):
                sandbox.reset()
                assert take(sandbox, attack, "disk", 200, place)[0] <= (4 if place == "/dev/shm" else 16), place
        sandbox.reset()
        assert sandbox.run(["true"]).returncode == 0


def test_a_full_disk_harms_its_sandbox_alone(make_sandbox: MakeSandbox, attack: bytes) -> None:
    full, other = make_sandbox(disk="2M", limits="if possible"), make_sandbox(disk="2M", limits="if possible")
    assert take(full, attack, "disk", 10)[1] == "No space left on device"
    assert take(full, attack, "file", ENOUGH, "/tmp")[1] == "No space left on device"
    assert full.run(["echo", "alive"]).stdout == b"alive\n"
    assert full.stat("/attack").size == len(attack)
    assert [change.path for change in full.changes()][:1] == ["/attack"]
    other.write_text("/tmp/file", "x")
    full.reset()
    full.write_text("/tmp/file", "x")


# ---- memory ----


@pytest.mark.root
@pytest.mark.parametrize("what", ["private", "shared", "memfd", "sysv", "queue", "disk"])
def test_memory_of_any_kind_is_limited(make_sandbox: MakeSandbox, attack: bytes, what: str) -> None:
    """By the cgroup: also what is shared, what outlives its process, what the kernel keeps, and what is on the disk in memory."""
    sandbox = make_sandbox(memory="48M", limits="required")
    sandbox.write_bytes("/attack", attack, mode=0o755)
    result = sandbox.run(["/attack", what, "20000" if what == "queue" else "200", "/"], text=True, timeout=4 * TIME_LIMIT)
    if what == "queue":
        assert result.oom_killed or result.stdout.split(maxsplit=1)[1] == "Cannot allocate memory\n"
    else:
        assert (result.oom_killed, result.signal) == (True, signal.SIGKILL)
    memory = sandbox.stats().memory
    assert memory.usage <= 48 << 20
    sandbox.reset()  # what has outlived its process is gone
    assert sandbox.run(["true"]).returncode == 0
    assert sandbox.stats().memory.usage < 24 << 20


@pytest.mark.root
def test_memory_is_not_swapped_out_instead(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(memory="48M")
    resources = sandbox.container.spec.at.linux.resources.get()
    assert resources is not None
    assert resources.memory is not None
    assert (resources.memory.limit, resources.memory.swap) == (48 << 20, 48 << 20)


@pytest.mark.skipif(ROOT, reason="root has cgroups")
def test_memory_without_cgroups(make_sandbox: MakeSandbox, attack: bytes) -> None:
    """The private memory of each process is limited, and shared memory is not, as the page about untrusted code says."""
    with pytest.warns(oci.OCIRuntimeWarning, match="memory is limited for each process alone"):
        sandbox = make_sandbox(memory="48M", limits="if possible")
    taken, reason = take(sandbox, attack, "private", 200)
    assert taken < 48
    assert reason == "Cannot allocate memory"
    assert take(sandbox, attack, "shared", 64) == (64, "enough")


# ---- processes, descriptors and core dumps ----


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_processes_are_limited(make_sandbox: MakeSandbox, attack: bytes) -> None:
    sandbox = make_sandbox(pids=50, limits="if possible")
    taken, reason = take(sandbox, attack, "process", 200)
    assert taken < 50
    assert reason == "Resource temporarily unavailable"
    assert len(sandbox.processes()) == taken
    sandbox.reset()
    assert sandbox.processes() == ()


@pytest.mark.root
@needs["pids"]
@pytest.mark.parametrize(("given", "enough"), [(None, 30), (100, 80)])
def test_a_bundle_keeps_its_own_limit_of_processes(
    make_sandbox: MakeSandbox, make_bundle: MakeBundle, attack: bytes, given: int | None, enough: int
) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().at.linux.resources.pids.evolve(limit=40))
    taken, reason = take(make_sandbox(bundle, pids=given), attack, "process", 200)
    assert enough < taken < (given or 40)
    assert reason == "Resource temporarily unavailable"


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_a_timeout_ends_a_fork_bomb(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox(pids=60, limits="if possible")
    for bomb in ("bomb() { bomb | bomb & }; bomb; sleep 1000", "while :; do (setsid sleep 1000 &) ; done"):
        with pytest.raises(oci.ProcessTimeout):  # of a program that needs no further process: a shell that cannot fork ends
            sandbox.shell(f"(exec 2> /dev/null; {bomb}) & exec sleep 1000", timeout=1)
        assert sandbox.processes() == ()
        assert sandbox.run(["echo", "alive"], timeout=TIME_LIMIT).stdout == b"alive\n"


def test_open_files_are_limited(make_sandbox: MakeSandbox, attack: bytes) -> None:
    taken, reason = take(make_sandbox(), attack, "descriptor", 5000)
    assert taken < 1024
    assert reason == "Too many open files"


def test_no_core_dumps(make_sandbox: MakeSandbox, make_bundle: MakeBundle, attack: bytes) -> None:
    """Of the caller's limit nothing is inherited; a configuration has the last word."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        sandbox = make_sandbox()
        sandbox.write_bytes("/attack", attack, mode=0o755)
        assert sandbox.run(["/attack", "core", "1", "/tmp"], timeout=TIME_LIMIT).signal == signal.SIGSEGV
        assert sandbox.listdir("/tmp") == []
        lines = sandbox.run(["cat", "/proc/self/limits"], text=True).stdout.splitlines()
        assert next(line.split()[4:6] for line in lines if line.startswith("Max core")) == ["1", "1"]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    spec = oci.RuntimeSpec.default(host=oci.Host.probe())
    own = spec.at.process.rlimits.set((Rlimit(type=RlimitType.CORE, soft=0, hard=0),))
    limits = make_sandbox(make_bundle(own)).run(["cat", "/proc/self/limits"], text=True).stdout
    assert next(line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")) == ["0", "0"]


# ---- output ----

READERS = """
import asyncio, resource, sys
import ociruntime as oci
from ociruntime import aio

image, root, how = sys.argv[1:]
line = "yes a long line of output & yes a long line of errors >&2"
options = {"max_output": "1M", "timeout": 2}


async def in_a_loop():
    async with aio.Sandbox(image, state_root=root) as sandbox:
        await sandbox.shell(line, **options)


with oci.Sandbox(image, state_root=root) as sandbox:
    sandbox.run(["true"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        if how == "loop":
            asyncio.run(in_a_loop())
        elif how == "no newline":
            sandbox.shell("cat /dev/zero & cat /dev/zero >&2", text=True, **options)
        else:
            sandbox.shell(line, text=how == "text", terminal=how == "terminal", **options)
    except oci.ProcessTimeout as error:
        result = error.result
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(result.truncated, len(result.stdout), how == "terminal" or len(result.stderr), used < 40 << 10)
"""


@pytest.mark.parametrize("how", ["bytes", "text", "no newline", "terminal", "loop"])
def test_endless_output(script: Script, busybox_rootfs: Path, state_root: Path, how: str) -> None:
    done = script(READERS, busybox_rootfs, state_root, how)
    assert done.stdout.split() == ["True", "1048576", "True" if how == "terminal" else "1048576", "True"], done.stderr


def test_large_files_do_not_fill_the_caller(make_sandbox: MakeSandbox, tmp_path: Path) -> None:
    """A sparse file of any size fits on the disk of a sandbox."""
    sandbox = make_sandbox(disk="4M")
    sandbox.shell("truncate -s 1024G /big", check=True)
    for call in (
        lambda: sandbox.read_bytes("/big", max_size=1000),
        lambda: sandbox.get("/big", tmp_path / "copy", max_size=1000),
        lambda: sandbox.diff_text("/big"),
    ):
        with pytest.raises(OSError, match=r"larger than max_size|more than 16 MiB"):
            call()
    assert not (tmp_path / "copy").exists()
    assert [change.path for change in sandbox.changes()] == ["/big"]


# ---- many at once ----


@pytest.mark.filterwarnings("ignore::ociruntime.OCIRuntimeWarning")
def test_many_attacks_at_once(busybox_rootfs: Path, state_root: Path, attack: bytes) -> None:
    def one(number: int) -> None:
        options = {"pids": 20, "disk": "4M", "shm": "1M", "limits": "if possible", "timeout": TIME_LIMIT}
        with oci.Sandbox(busybox_rootfs, state_root=state_root, **options) as sandbox:  # type: ignore[arg-type]
            what, place = (("disk", "/"), ("file", "/tmp"), ("disk", "/dev/shm"), ("process", "/"))[number % 4]
            assert take(sandbox, attack, what, ENOUGH, place)[1] != "enough"

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(one, range(48))) == [None] * 48
    assert oci.Container.list(state_root=state_root) == []
    assert os.listdir(state_root / ".runs") == []


def test_attacks_in_an_event_loop(busybox_rootfs: Path, state_root: Path, attack: bytes) -> None:
    async def one() -> None:
        async with aio.Sandbox(busybox_rootfs, state_root=state_root, disk="2M") as sandbox:
            await sandbox.write_bytes("/attack", attack, mode=0o755)
            result = await sandbox.run(["/attack", "disk", "10", "/"], text=True)
            assert result.stdout.endswith("No space left on device\n")

    async def main() -> None:
        await asyncio.gather(*(one() for _ in range(10)))

    run_async(main())


# ---- as a user ----


@pytest.mark.root
def test_as_a_user(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "kernel/test_sandbox_limits.py")
