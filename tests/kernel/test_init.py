"""The init: what it passes on, what it costs, and what it does with nonsense."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = pytest.mark.root
Script = Callable[..., "subprocess.CompletedProcess[str]"]

SIGNALS = """
import signal, sys, ociruntime as oci
for number in range(1, 65):
    if number not in (9, 19, 32, 33): signal.signal(number, signal.SIG_DFL if number == 17 else signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 65))
bundle = oci.Bundle.load(sys.argv[1])
args = ["grep", "-E", "^Sig(Blk|Ign|Cgt|Pnd)", "/proc/self/status"]
print(oci.run(bundle, args, capture_output=True, text=True, root=sys.argv[2], container_id=sys.argv[3]).stdout)
with oci.Container.run(sys.argv[3], bundle, root=sys.argv[2]) as container:
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
        result = oci.run(bundle, ["ls", "/proc/self/fd"], capture_output=True, text=True, root=state_root, container_id=prefix)
        assert result.stdout.split() == ["0", "1", "2", "3"]
        with oci.Container.run(prefix, bundle, root=state_root) as container:
            assert sorted(os.listdir(f"/proc/{container.pid}/fd")) == ["0", "1", "2"]
            assert container.exec(["ls", "/proc/self/fd"], capture_output=True, text=True).stdout.split() == ["0", "1", "2", "3"]
    finally:
        for fd in fds:
            os.close(fd)


def test_twenty_threads(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def one(number: int) -> str:
        args = ["echo", str(number)]
        result = oci.run(bundle, args, capture_output=True, text=True, root=state_root, container_id=f"{prefix}-{number}")
        assert isinstance(result.stdout, str)
        return result.stdout

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(40))) == [f"{n}\n" for n in range(40)]
    assert oci.Container.list(root=state_root) == []


def test_many_at_once(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    containers = [oci.Container.create(f"{prefix}-{n:02}", bundle, root=state_root) for n in range(25)]
    try:
        assert {c.status for c in oci.Container.list(root=state_root)} == {oci.Status.CREATED}
        for container in containers:
            container.start()
        assert len({container.pid for container in containers}) == 25
    finally:
        for container in containers:
            container.delete(force=True)


def test_a_waiting_init_holds_no_interpreter(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, bundle, root=state_root) as container:
        rollup = Path(f"/proc/{container.pid}/smaps_rollup").read_text()
        pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        assert 0 < pss < 1024, rollup  # a Python would have several times as much


KILLED = """
import os, random, signal, sys, time, ociruntime as oci
prefix, root, path, seed = sys.argv[1:]
rng = random.Random(int(seed))
bundle = oci.Bundle.load(path)
for _ in range(2):  # the first time everything is imported
    began = time.monotonic()
    oci.Container.create(f"{prefix}-w", bundle, root=root).delete(force=True)
    took = time.monotonic() - began
ends = []
for n in range(25):
    pid = os.fork()
    if pid == 0:
        oci.Container.create(f"{prefix}-{n}", bundle, root=root)
        os._exit(0)
    time.sleep(rng.uniform(0, took * 1.2))
    os.kill(pid, signal.SIGKILL)
    ends.append(os.WIFSIGNALED(os.waitpid(pid, 0)[1]))
assert any(ends), "nobody was killed in time"
"""


def _members(prefix: str) -> list[int]:
    """Processes in a cgroup of this test, in any hierarchy."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            state = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[0]
            if state not in (b"Z", b"X") and prefix in Path("/proc", name, "cgroup").read_text():
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_creator_leaves_what_delete_removes(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, seed: int
) -> None:
    script(KILLED, prefix, state_root, bundle.path, seed)
    for container in oci.Container.list(root=state_root):
        container.delete(force=True)
    assert [name for name in os.listdir(state_root) if not name.startswith(".")] == []
    assert _members(prefix) == []
    for entry in oci.Host.probe().hierarchies:
        assert [name for name in os.listdir(entry.mountpoint) if prefix in name] == []


FUZZ = """
import ctypes, os, random, signal, socket, struct, sys
from ociruntime.engine.launch import Init
from ociruntime.engine.clone import init_memfd
from ociruntime.plan.ops import NO_SLOT, Report
from ociruntime.plan.wire import encode
seed, rounds, here = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
init_memfd()
# As nobody, and in no namespace of its own: whatever a mutation turns into, it has no power over this machine.
os.chdir(here)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # dumpable again, or /proc/self/fd is closed to us
O_PATH = 0o10000000
STEPS = [
    ("open", (NO_SLOT, here, O_PATH, 0, 0, 1000)), ("target", (1000, "/a/b", 0, 0o755, NO_SLOT, 1001)),
    ("mkdir", (1000, "d", 0o755)), ("symlink", (1000, "l", "target")), ("write", (1000, "file", b"data")),
    ("mask", (1000, "/no/such", 1001)), ("readonly", (1000, "/no/such")), ("chdir", (here, 1)), ("setsid", ()),
    ("lookup", (1000, ("/x", "/y", "/" + "z" * 300))), ("umask", (18,)), ("handout", (1000,)), ("sync", (0,)),
    ("setgroups", (b"", 0)), ("affinity", (bytes([255] * 128),)), ("close", (1001,)),
    ("exec", (("/no/such/program",), ("a", "b"), ("A=1", "B=2"))),
]
rng = random.Random(seed)
def program():
    steps = [s for s in STEPS[:-1] if rng.random() < 0.5]
    rng.shuffle(steps)
    if rng.random() < 0.7: steps.insert(0, STEPS[0])
    if rng.random() < 0.7: steps.append(STEPS[-1])
    return bytearray(encode([(n, op, values) for n, (op, values) in enumerate(steps, 1)], 0))
def mutate(raw):
    for _ in range(rng.choice([0, 1, 1, 2, 5, 40])):
        kind, at = rng.randrange(6), rng.randrange(max(1, len(raw)))
        if not raw: break
        if kind == 0: raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1: raw[at] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2 and len(raw) >= 8:
            at &= ~3
            raw[at:at + 4] = struct.pack("=I", rng.choice([0, 1, len(raw), len(raw) + 1, 2**31, 2**32 - 1, rng.getrandbits(32)]))
        elif kind == 3:
            del raw[at:at + rng.randrange(1, 40)]
            if rng.random() < 0.7 and len(raw) >= 8: raw[4:8] = struct.pack("=I", len(raw))
        elif kind == 4:
            raw[at:at] = rng.randbytes(rng.randrange(1, 20)) + b"/" * rng.choice([0, 5000])
            if rng.random() < 0.7 and len(raw) >= 8: raw[4:8] = struct.pack("=I", len(raw))
        elif len(raw) >= 16: raw[12:16] = struct.pack("=I", rng.choice([0, 1, 1024, 1025, 2**32 - 1]))
    return bytes(raw)
null = os.open("/dev/null", os.O_RDWR)
seen = {}
for number in range(rounds):
    raw = mutate(program())
    where = f"seed {seed} round {number}: {raw.hex()}"
    try:
        init = Init.launch(raw, flags=0, stdio=[null] * 3)
    except OSError as error:
        raise SystemExit(f"{error} {where}")
    with socket.socket(fileno=os.dup(init.control)) as control:
        control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 10, 0))
    reports = []
    while True:
        try: message = init.receive()
        except ConnectionResetError: message = None  # it left with an answer of ours unread
        if message is None: break
        reports.append(message.kind)
        if message.kind is Report.FORKED: init.follow(message.fd if message.fd >= 0 else own_child(message.value))
        elif message.fd >= 0: os.close(message.fd)
        if message.kind in (Report.SYNC, Report.FORKED, Report.FD):
            try: init.go()
            except BrokenPipeError: pass
    info = os.waitid(os.P_PIDFD, init.pidfd, os.WEXITED)
    assert info.si_code == os.CLD_EXITED, (info, where)
    assert info.si_status in (0, 255), (info, where)
    init.close()
    if info.si_status == 255 and len(raw) >= 16: assert Report.ERROR in reports, (reports, where)
    seen[info.si_status] = seen.get(info.si_status, 0) + 1
assert set(seen) == {0, 255}, seen  # good programs and bad ones were among them
print(seen)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_no_program_kills_the_init(script: Script, tmp_path_factory: pytest.TempPathFactory, seed: int, prefix: str) -> None:
    import tempfile

    # below a directory that nobody may enter, which a test's own is not
    with tempfile.TemporaryDirectory(prefix=prefix) as here:
        os.chmod(here, 0o777)
        script(FUZZ, seed, 1000, here)
