"""The state store: ids, atomic writes, locks, and what becomes of crashed processes and damaged files."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest

from ociruntime.errors import ContainerExists, ContainerNotFound, StateError
from ociruntime.files import start_time
from ociruntime.lifecycle.status import current, status_of
from ociruntime.state import LostOutput, State, state_of
from ociruntime.store import MAX_ID, StateRecord, StateStore, Status, oci_state, state_document

from ..support.waiting import TIME_LIMIT


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "state")


def document(**more: object) -> StateRecord:
    return {"id": "c", "bundle": "/b", "status": "running", **more}  # type: ignore[typeddict-item]


@pytest.mark.parametrize("name", ["a", "A-b_c+d.e", "0", "-x", "a" * 200])
def test_ids_that_are_good(store: StateStore, name: str) -> None:
    entry = store.create(name)
    assert entry.path == store.root / name
    assert [found.id for found in store.entries()] == [name]


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "/", "a b", "a\n", "ü", "a\0b", "a" * (MAX_ID + 1)])
def test_ids_that_are_not(store: StateStore, name: str) -> None:
    for operation in (store.create, store.entry):
        with pytest.raises(StateError, match="not a container id"):
            operation(name)
    assert not store.root.exists()


def test_an_id_is_a_string(store: StateStore) -> None:
    with pytest.raises(TypeError):
        store.create(b"a")  # type: ignore[arg-type]


def test_directories_are_private(store: StateStore) -> None:
    entry = store.create("c")
    entry.write(document())
    for path, mode in ((store.root, 0o700), (entry.path, 0o700), (entry.path / "state.json", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_taken_and_missing(store: StateStore) -> None:
    store.create("c")
    with pytest.raises(ContainerExists):
        store.create("c")
    with pytest.raises(ContainerNotFound):
        store.entry("d")
    store.entry("c").remove()
    with pytest.raises(ContainerNotFound):
        store.entry("c")
    assert store.entries() == []


def test_no_root_is_no_containers(store: StateStore) -> None:
    assert store.entries() == []


def test_write_read_update_leave_one_file(store: StateStore) -> None:
    entry = store.create("c")
    assert entry.read()["status"] == Status.CREATING
    entry.write(document(pid=7))
    assert entry.update(exit_code=3) == document(pid=7, exit_code=3) == entry.read()
    assert os.listdir(entry.path) == ["state.json"]


def test_a_reader_never_sees_half_a_document(store: StateStore) -> None:
    entry = store.create("c")
    entry.write(document())
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            entry.write(document(annotations={str(n): "x" * (number % 50) for n in range(number % 200)}))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            assert entry.read()["id"] == "c"
    finally:
        stop.set()
        writer.join()


RACE = """
import sys
from ociruntime.store import StateStore, ContainerExists
store = StateStore(sys.argv[1])
sys.stdin.readline()
won = []
for n in range(40):
    try:
        store.create(f"c{n}")
        won.append(n)
    except ContainerExists:
        pass
print(*won)
"""


def together(text: str, root: Path, count: int) -> list[str]:
    started = [
        subprocess.Popen([sys.executable, "-c", text, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=TIME_LIMIT)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return outputs


def test_of_several_processes_exactly_one_gets_an_id(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    winners = [int(n) for output in together(RACE, store.root, 3) for n in output.split()]
    assert sorted(winners) == list(range(40))


COUNT = """
import sys
from ociruntime.store import StateStore
entry = StateStore(sys.argv[1]).entry("c")
sys.stdin.readline()
for _ in range(60):
    with entry.locked():
        entry.update(pid=entry.read()["pid"] + 1)
"""


def test_the_lock_holds_over_processes(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    entry = store.create("c")
    entry.write(document(pid=0))
    together(COUNT, store.root, 3)
    assert entry.read()["pid"] == 180


def test_the_lock_of_a_container_that_went_away(store: StateStore) -> None:
    entry = store.create("c")
    entry.remove()
    with pytest.raises(ContainerNotFound), entry.locked():
        raise AssertionError("locked nothing")


def test_a_living_process(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = document(pid=os.getpid(), pid_start=start_time(os.getpid()))
    state = state_of(current(recorded))
    assert (state.status, state.pid) == (Status.RUNNING, os.getpid())
    monkeypatch.setattr("ociruntime.engine.cgroup.frozen", lambda cgroups: True)
    assert status_of(recorded) is Status.PAUSED


def test_a_pid_that_another_process_has_now() -> None:
    state = state_of(current(document(pid=os.getpid(), pid_start=start_time(os.getpid()) + 1, attach_socket="/a")))
    assert (state.status, state.pid, state.attach_socket) == (Status.STOPPED, 0, "")


def test_a_zombie_and_a_dead_process_are_stopped() -> None:
    process = subprocess.Popen(["sleep", "100"])
    recorded = document(pid=process.pid, pid_start=start_time(process.pid))
    assert status_of(recorded) is Status.RUNNING
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert status_of(recorded) is Status.STOPPED
    process.wait()
    assert status_of(recorded) is Status.STOPPED


def _missing(key: str) -> str:
    return json.dumps({k: v for k, v in document().items() if k != key})


MALFORMED: tuple[dict[str, object], ...] = ({"cgroups": "/x"}, {"cgroups": [1]}, {"cgroups": ["x"]}, {"undo": [1]}, {"undo": [[]]}, {"undo": [["cgroup", 1]]}, {"pid": "1"},
    {"pid": None}, {"hooks": None}, {"annotations": []})  # fmt: skip
"""What another program, or another version of this one, may have made of a document."""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "3", "{}", _missing("id"), _missing("status"), json.dumps(document(status="bogus")), "\xff"]
    + [json.dumps(document(**more)) for more in MALFORMED],
)
def test_damage_is_a_state_error(store: StateStore, text: str) -> None:
    entry = store.create("c")
    (entry.path / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StateError, match="damaged"):
        entry.read()


def test_the_document_of_a_state() -> None:
    state = state_of(document(status="stopped", exit_code=0, annotations={"b": "2", "a": "1"}, created_at=5))
    shown = json.loads(state.to_json())
    assert shown["ociVersion"]
    assert {k: shown[k] for k in ("id", "status", "bundle", "annotations", "exitCode")} == {
        "id": "c", "status": "stopped", "bundle": "/b", "annotations": {"a": "1", "b": "2"}, "exitCode": 0,
    }  # fmt: skip
    assert "pid" not in shown
    assert state.to_oci() == {name: shown[name] for name in ("ociVersion", "id", "status", "bundle", "annotations")}


RECORD = document(
    status="stopped", exit_code=-9, oom_killed=True, rootfs="/r", created_at=1, started_at=2, finished_at=3, annotations={"a": "1"},
    attach_socket="/a", control_socket="/c", log_path="/l", log_format="json", log_lost=[1, 20], log_error="full", undo=[["x"]],
)  # fmt: skip


def test_the_document_of_a_record_is_that_of_its_state() -> None:
    assert state_of(RECORD).to_dict() == state_document(RECORD)
    assert state_of(RECORD).to_oci() == oci_state(RECORD)
    shown = state_document(RECORD)
    assert (shown["exitCode"], shown["exitDesc"]) == (137, "killed by signal 9, out of memory")
    assert shown["logLost"] == {"entries": 1, "bytes": 20, "error": "full"}
    assert state_of(RECORD).log_lost == LostOutput(entries=1, bytes=20)
    assert not {"undo", "logFormat"} & shown.keys()


def test_a_state_is_an_immutable_value() -> None:
    state = state_of(RECORD)
    assert state == state_of(RECORD)
    assert {state: 1}[pickle.loads(pickle.dumps(state))] == 1
    assert attrs.evolve(state, exit_code=0, oom_killed=False).exit_desc == "exited with code 0"
    assert State(**attrs.asdict(state, recurse=False)) == state
    assert not isinstance(state, tuple)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        state.pid = 1  # type: ignore[misc]


def test_remove_takes_the_lock_last_and_the_state_before_it(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.create("c")
    entry.write(document())
    for name in ("config.json", "zzz", "lock"):
        (entry.path / name).touch()
    gone: list[str] = []
    real: Callable[[str], None] = os.unlink

    def unlink(path: str) -> None:
        gone.append(os.path.basename(path))
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    entry.remove()
    assert gone[-2:] == ["state.json", "lock"]
    assert len(gone) == 4
    entry.remove()


def test_only_directories_of_containers_count(tmp_path: Path) -> None:
    """A state root can be any directory, by mistake: the user's own directories in it are neither listed nor removed."""
    store = StateStore(tmp_path)
    created = store.create("made")  # with nothing in it yet, as a crash can leave it
    for name, mode in (("documents", 0o700), ("empty", 0o755)):
        (tmp_path / name).mkdir(mode=mode)
    (tmp_path / "documents/letter").write_text("dear")
    assert [entry.id for entry in store.entries()] == [created.id]
    with pytest.raises(StateError, match="not the state of a container"):
        store.entry("documents")


def test_a_root_whose_group_is_inherited(tmp_path: Path) -> None:
    """As directories of projects on clusters are: what is made in it has the set-group-ID bit too."""
    tmp_path.chmod(0o2700)
    store = StateStore(tmp_path)
    entry = store.create("c")
    assert entry.path.stat().st_mode & stat.S_ISGID
    assert [found.id for found in store.entries()] == ["c"]


@pytest.mark.parametrize("umask", [0o777, 0o100, 0o400])
def test_a_umask_that_denies_the_owner(tmp_path: Path, umask: int) -> None:
    """Nothing stays that its owner cannot even remove."""
    for root in (tmp_path, tmp_path / "new"):
        before = os.umask(umask)
        try:
            with pytest.raises(StateError, match="the umask of this process denies it to its owner; set another one"):
                StateStore(root).create("c")
        finally:
            os.umask(before)
    assert list(tmp_path.iterdir()) == []


def remove_while(store: StateStore, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[str], None]) -> None:
    """Remove a directory with a lock alone; at its last step another process does something."""
    entry, rmdir = store.create("c"), os.rmdir

    def late(path: str) -> None:
        monkeypatch.setattr(os, "rmdir", rmdir)
        meanwhile(path)
        rmdir(path)

    with entry.locked():
        monkeypatch.setattr(os, "rmdir", late)
        entry.remove()


def test_removal_leaves_a_new_container_alone(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that has just made the directory locks it at the last step of a removal that took it for the remains of a crash."""
    locks = ExitStack()

    def make(path: str) -> None:
        entry = next(iter(store.entries()))
        locks.enter_context(entry.locked())
        threading.Timer(0.05, lambda: entry.record(document())).start()

    remove_while(store, monkeypatch, make)
    assert next(iter(store.entries())).read()["status"] == "running"
    locks.close()


def test_removal_waits_for_a_lock_without_a_container(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(path: str) -> None:
        locks = ExitStack()
        locks.enter_context(next(iter(store.entries())).locked())
        threading.Timer(0.05, locks.close).start()

    remove_while(store, monkeypatch, look)
    assert list(store.entries()) == []
    assert os.listdir(store.root) == []
