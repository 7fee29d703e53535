"""The init: what it passes on, what it costs, and what it does with nonsense."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script
from ..support.processes import find_processes, proportional_set_size
from ..support.waiting import SLOWER

pytestmark = pytest.mark.root

SIGNALS = """
import signal, sys, ociruntime as oci
for number in range(1, 65):
    if number not in (9, 19, 32, 33): signal.signal(number, signal.SIG_DFL if number == 17 else signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
bundle = oci.Bundle.load(sys.argv[1])
args = ["grep", "-E", "^Sig(Blk|Ign|Cgt|Pnd)", "/proc/self/status"]
print(oci.run(bundle, args, capture_output=True, text=True, state_root=sys.argv[2], container_id=sys.argv[3]).stdout)
with oci.Container.run(sys.argv[3], bundle, state_root=sys.argv[2]) as container:
    print(container.exec(args, capture_output=True, text=True).stdout)
"""


def test_signals_are_reset(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    lines = script(SIGNALS, bundle.path, state_root, prefix).stdout.split("\n")
    shown = [line.split() for line in lines if line]
    assert len(shown) == 8
    assert {value for _, value in shown} == {"0" * 16}


def test_no_descriptor_is_inherited(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    fds = [os.open("/etc/hostname", os.O_RDONLY) for _ in range(30)]
    try:
        for fd in fds:
            os.set_inheritable(fd, True)
        # 3 is the directory that ls reads
        result = oci.run(
            bundle, ["ls", "/proc/self/fd"], capture_output=True, text=True, state_root=state_root, container_id=prefix
        )
        assert result.stdout.split() == ["0", "1", "2", "3"]
        with oci.Container.run(prefix, bundle, state_root=state_root) as container:
            assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2"]
            assert container.exec(["ls", "/proc/self/fd"], capture_output=True, text=True).stdout.split() == ["0", "1", "2", "3"]
    finally:
        for fd in fds:
            os.close(fd)


def test_twenty_threads(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def one(number: int) -> str:
        args = ["echo", str(number)]
        result = oci.run(bundle, args, capture_output=True, text=True, state_root=state_root, container_id=f"{prefix}-{number}")
        assert isinstance(result.stdout, str)
        return result.stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(40))) == [f"{n}\n" for n in range(40)]
    assert oci.Container.list(state_root=state_root) == []


def test_many_at_once(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    containers = [oci.Container.create(f"{prefix}-{n:02}", bundle, state_root=state_root) for n in range(25)]
    try:
        assert {c.status for c in oci.Container.list(state_root=state_root)} == {oci.Status.CREATED}
        for container in containers:
            container.start()
        assert len({container.pid for container in containers}) == 25
    finally:
        for container in containers:
            container.delete(force=True)


def test_a_waiting_init_holds_no_interpreter(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, state_root=state_root) as container:
        assert 0 < proportional_set_size(container.pid) < 1024  # an interpreter would have several times as much


KILLED = """
import os, random, signal, sys, time, ociruntime as oci
prefix, root, path, seed = sys.argv[1:]
rng = random.Random(int(seed))
bundle = oci.Bundle.load(path)
for _ in range(2):  # the first time everything is imported
    began = time.monotonic()
    oci.Container.create(f"{prefix}-w", bundle, state_root=root).delete(force=True)
    took = time.monotonic() - began
ends = []
for n in range(25):
    pid = os.fork()
    if pid == 0:
        oci.Container.create(f"{prefix}-{n}", bundle, state_root=root)
        os._exit(0)
    time.sleep(rng.uniform(0, took * 1.2))
    os.kill(pid, signal.SIGKILL)
    ends.append(os.WIFSIGNALED(os.waitpid(pid, 0)[1]))
assert any(ends), "nobody was killed in time"
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_creator_leaves_what_delete_removes(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, seed: int
) -> None:
    script(KILLED, prefix, state_root, bundle.path, seed)
    for container in oci.Container.list(state_root=state_root):
        container.delete(force=True)
    assert [name for name in os.listdir(state_root) if not name.startswith(".")] == []
    assert find_processes(prefix, "cgroup") == []
    for entry in oci.Host.probe().hierarchies:
        assert [name for name in os.listdir(entry.mountpoint) if prefix in name] == []


@pytest.mark.parametrize("seed", [1, 2])
def test_no_program_kills_the_init(seed: int) -> None:
    fuzzer = Path(__file__).parents[1] / "fuzz/fuzz_init.py"
    command = [sys.executable, str(fuzzer), str(120 * SLOWER), "--seed", str(seed), "--rounds", "1000"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
