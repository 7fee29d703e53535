"""Supervised containers: their streams, logs, exit codes, and what they survive."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine.processes import ended_within
from ociruntime.store import Entry, StateRecord
from ociruntime.supervisor.client import Supervisor

from ..support.fixture_types import Command, MakeBundle, Script
from ..support.leftovers import assert_nothing_left
from ..support.processes import find_processes, is_running, parent_process, proportional_set_size
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = pytest.mark.root


def connect(path: str | Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))
    peer.settimeout(TIME_LIMIT)
    return peer


def ask(container: oci.Container, **wanted: object) -> str:
    """What control.sock answers before it closes the connection."""
    with connect(container.state.control_socket) as peer:
        peer.sendall(json.dumps(wanted).encode())
        return peer.makefile().read()


@contextmanager
def supervised(name: str, bundle: oci.Bundle, root: Path, script: str, **more: object) -> Iterator[oci.Container]:
    with oci.Container.create(name, bundle.with_args(["sh", "-c", script]), state_root=root, supervise=True, **more) as container:  # type: ignore[arg-type]
        yield container


def read_all(peer: socket.socket) -> bytes:
    out = b""
    while data := peer.recv(65536):
        out += data
    return out


def test_the_whole_life(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "echo out; echo err >&2; cat; exit 3") as container:
        pid, state = parent_process(container.pid), container.state
        assert (state.attach_socket, state.log_path) == (f"{state_root}/{prefix}/attach.sock", f"{state_root}/{prefix}/log")
        with connect(state.attach_socket) as peer:
            container.start()
            peer.sendall(b"typed\n")
            peer.shutdown(socket.SHUT_WR)
            assert sorted(read_all(peer).splitlines()) == [b"err", b"out", b"typed"]
        assert container.wait(TIME_LIMIT) == 3
        state = container.state
        assert (state.status, state.exit_code, state.exit_desc) == (oci.Status.STOPPED, 3, "exited with code 3")
        assert 0 < state.created_at < state.started_at < state.finished_at
        assert state.attach_socket == ""
        assert [line.split(" ", 1)[1] for line in sorted(Path(state.log_path).read_text().splitlines(), key=lambda x: x.split()[1:])] == [
            "stderr F err", "stdout F out", "stdout F typed",
        ]  # fmt: skip
    assert not is_running(pid)
    assert not (state_root / prefix).exists()


def test_every_process_can_learn_the_exit_code(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = "import sys, ociruntime as oci\noci.Container.create(sys.argv[1], sys.argv[3], state_root=sys.argv[2], supervise=True)"
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "kill -TERM $$; exit 7"]).spec.to_json())
    script(text, prefix, state_root, bundle.path)
    container = oci.Container.load(prefix, state_root=state_root)
    container.start()
    assert container.wait(TIME_LIMIT) == 7  # the first process of a pid namespace does not hear TERM
    container.delete()


def test_a_signal_in_the_state(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "sleep 100") as container:
        container.start()
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9
        shown = container.state.to_dict()
        assert (shown["exitCode"], shown["exitDesc"]) == (137, "killed by signal 9")


def test_the_supervisor_is_small_and_on_its_own(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "seq 100000; sleep 100") as container:
        pid = parent_process(container.pid)
        with connect(container.state.attach_socket) as peer:
            container.start()
            seen = b""
            while not seen.endswith(b"100000\n"):
                seen += peer.recv(65536)
        assert proportional_set_size(pid) <= 8 << 10
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[1]) != os.getpid()
        assert int(fields[3]) != os.getsid(0)
        assert len(os.listdir(f"/proc/{pid}/fd")) < 20
        assert f"{container.pid}" in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_it_survives_its_parent_and_control_c(bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command) -> None:
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "cat; exit 4"]).spec.to_json())
    words = " ".join(command("create", "--supervise", "-b", bundle.path, prefix))
    tty = session("sh", "-c", f"trap 'exit 1' INT; {words} && echo created; while :; do sleep 0.1; done")
    tty.expect("created")
    container = oci.Container.load(prefix, state_root=state_root)
    pid = parent_process(container.pid)
    tty.type("\x03")
    tty.wait()
    assert is_running(pid)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    with connect(container.state.attach_socket) as peer:
        container.start()
        peer.sendall(b"still here\n")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"still here\n"
    assert container.wait(TIME_LIMIT) == 4
    container.delete()


def test_a_killed_creator_leaves_what_can_be_deleted(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = """import os, signal, sys, ociruntime as oci
from ociruntime.engine.execution import Execution
def die(self): os.kill(os.getpid(), signal.SIGKILL)
Execution.finish = die
oci.Container.create(sys.argv[1], sys.argv[3], state_root=sys.argv[2], supervise=True)"""
    assert script(text, prefix, state_root, bundle.path, check=False).returncode == -signal.SIGKILL
    container = oci.Container.load(prefix, state_root=state_root)
    pid = json.loads((state_root / prefix / "state.json").read_text())["supervisor"][0]  # what `delete` has to go by
    container.delete(force=True)
    assert not is_running(pid)
    assert oci.Container.list(state_root=state_root) == []


def test_a_create_that_fails_leaves_nothing(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with pytest.raises(oci.StepError):
        oci.Container.create(prefix, bundle.with_args(["nothing-of-the-kind"]), state_root=state_root, supervise=True)
    with pytest.raises(FileNotFoundError, match="no/such/log"):
        oci.Container.create(prefix, bundle, state_root=state_root, log_path=tmp_path / "no/such/log")
    with pytest.raises(ValueError, match="yaml"):
        oci.Container.create(prefix, bundle, state_root=state_root, log_format="yaml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="owns the streams"):
        oci.Container.create(prefix, bundle, state_root=state_root, supervise=True, stdout=subprocess.DEVNULL)
    assert oci.Container.list(state_root=state_root) == []
    assert find_processes(f"{state_root}/{prefix}") == []


def test_a_supervisor_that_cannot_be_recorded_is_killed(
    bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, pids = Entry.record, list[int]()

    def fail(entry: Entry, document: StateRecord) -> None:
        if "supervisor" in document:
            pids.append(document["supervisor"][0])
            raise oci.StateError("no space left")
        record(entry, document)

    monkeypatch.setattr(Entry, "record", fail)
    with pytest.raises(oci.StateError, match="no space left") as raised:
        oci.Container.create(prefix, bundle, state_root=state_root, supervise=True)
    assert not is_running(pids[0])
    assert raised.tb is not None  # it keeps the connection to the supervisor, which would end it too
    assert not (state_root / prefix).exists()


@pytest.mark.parametrize("after", ["hello", "answer"])
def test_a_supervisor_that_is_killed_before_it_is_told_something(
    bundle: oci.Bundle, state_root: Path, prefix: str, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    def killed(supervisor: Supervisor, *args: Any, **options: Any) -> Any:
        result = original(supervisor, *args, **options)
        signal.pidfd_send_signal(supervisor._pidfd, signal.SIGKILL)
        assert ended_within(supervisor._pidfd, TIME_LIMIT)
        return result

    if after == "hello":
        original = Supervisor.__init__
        monkeypatch.setattr(Supervisor, "__init__", killed)
    else:
        original = Supervisor.identity.fget
        monkeypatch.setattr(Supervisor, "identity", property(killed))
    with (
        pytest.raises(oci.StateError, match=f"^the supervisor of container '{prefix}' died$"),
        supervised(prefix, bundle, state_root, "true"),
    ):
        pass
    assert_nothing_left(state_root, prefix)


KILLED_CREATOR = """
import os, signal, sys
import ociruntime as oci
from ociruntime.supervisor.client import Supervisor

def killed(supervisor, *args, **options):
    signal.pidfd_send_signal(supervisor._pidfd, signal.SIGSTOP)
    if moment == "setup":
        send(supervisor, *args, **options)
    print(supervisor.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

container_id, bundle, root, sync_socket, moment = sys.argv[1:]
if moment == "setup":
    send, Supervisor._send = Supervisor._send, killed
else:
    Supervisor.identity = property(killed)
oci.Container.create(container_id, bundle, state_root=root, supervise=True, sync_socket=sync_socket)
"""


@pytest.mark.parametrize("moment", ["setup", "record"])
def test_a_supervisor_that_is_slower_than_the_next_container(
    bundle: oci.Bundle, state_root: Path, prefix: str, script: Script, tmp_path: Path, moment: str
) -> None:
    """Its creator was killed. It makes nothing in a directory that has the name of its container, and tells nothing of that one."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sync"))
        listener.listen()
        listener.setblocking(False)
        pid = int(script(KILLED_CREATOR, prefix, bundle.path, state_root, tmp_path / "sync", moment, check=False).stdout)
        oci.prune(state_root=state_root)
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            before = sorted(os.listdir(state_root / prefix))
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: not is_running(pid), "the end of the supervisor")
            assert sorted(os.listdir(state_root / prefix)) == before
            container.delete(force=True)
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told.append(json.loads(listener.accept()[0].recv(65536))["status"])
        assert told in ([], ["creating"])  # its own container was never created for it
    assert_nothing_left(state_root, prefix)


def test_a_killed_supervisor(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    """What is known without it is told, what is not is said."""
    with supervised(prefix, bundle, state_root, "echo printed; read x; sleep 100", sync_socket=state_root / "none") as container:
        container.start()
        wait_until(lambda: list(container.logs()), "output")
        pid = parent_process(container.pid)
        with container.attach() as attachment:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_running(pid), "the death of the supervisor")
            assert attachment.read(100) in (b"", b"printed\n")
        for operation in (container.attach, container.reopen_log):
            with pytest.raises(oci.StateError, match="its supervisor is gone"):
                operation()
        assert [record.text for record in container.logs(follow=True)] == ["printed"]  # there is no writer any more
        assert container.status is oci.Status.RUNNING
        container.pause()
        container.resume()
        with pytest.raises(TimeoutError):
            container.wait(0.1)
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) in (-signal.SIGKILL, None)  # before Linux 6.15 only a parent knows
        assert container.status is oci.Status.STOPPED
        assert [record.text for record in container.logs()] == ["printed"]
        with pytest.raises(oci.WrongStatus, match="stopped"):
            container.attach()
        container.delete()
    assert not (state_root / prefix).exists()


# ---- how it ended ----


def test_out_of_memory(bundle: oci.Bundle, state_root: Path, prefix: str, command: Command) -> None:
    limited = bundle.spec.evolve(
        linux=bundle.spec.linux.evolve(resources=oci.spec.Resources(memory=oci.spec.Memory(limit=16 << 20)))  # type: ignore[union-attr]
    )
    hungry = oci.Bundle.load(bundle.path)
    hungry.spec = limited
    for script, code in (("exec tail /dev/zero", 137), ("tail /dev/zero; exit 4", 4)):
        with supervised(prefix, hungry, state_root, script) as container:
            container.start()
            container.wait(TIME_LIMIT)
            shown = json.loads(subprocess.run(command("state", prefix), capture_output=True, timeout=TIME_LIMIT, check=True).stdout)
            assert (shown["exitCode"], shown["oomKilled"]) == (code, True)
            assert shown["exitDesc"].endswith(", out of memory")
            assert shown["createdAt"] < shown["startedAt"] < shown["finishedAt"]


def test_a_pid_namespace_that_is_joined(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """The process that counts is forked by the one that the supervisor launched."""
    with oci.Container.run(f"{prefix}-first", make_bundle(), state_root=state_root) as first:
        document = oci.RuntimeSpec.default().to_dict()
        for namespace in document["linux"]["namespaces"]:  # type: ignore[index, call-overload]
            if namespace["type"] == "pid":  # type: ignore[index, call-overload]
                namespace["path"] = f"/proc/{first.pid}/ns/pid"  # type: ignore[index, call-overload]
        joined = make_bundle(oci.RuntimeSpec.load(document))
        for _ in range(3):
            with supervised(prefix, joined, state_root, "echo $PPID; read x; exit $x") as container:
                container.start()
                with container.attach() as attachment:
                    attachment.write(b"7\n")
                    assert container.wait(TIME_LIMIT) == 7
                assert container.state.exit_code == 7
                assert [record.text for record in container.logs()] == ["0"]


def test_what_survives_the_first_process_is_not_waited_for(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = oci.RuntimeSpec.default().without_namespace(oci.spec.NamespaceType.PID)
    bundle = make_bundle(spec)
    for terminal in (False, True):
        with supervised(
            prefix, bundle, state_root, "trap '' HUP; yes & exit 3", terminal=terminal, log_path=os.devnull
        ) as container:
            pid = parent_process(container.pid)
            container.start()
            assert container.wait(TIME_LIMIT) == 3
            wait_until(lambda pid=pid: not is_running(pid), "the end of the supervisor")


# ---- clients ----


def test_a_client_that_does_not_read_is_cut_off(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    script = "head -c 4000000 /dev/zero | tr '\\0' x; echo; exit 5"
    with supervised(prefix, bundle, state_root, script, log_path=tmp_path / "log") as container:
        with connect(container.state.attach_socket) as slow:
            container.start()
            assert container.wait(TIME_LIMIT) == 5
            assert 0 < len(read_all(slow)) < 4_000_000
        assert sum(len(line.split(b" ", 3)[3]) for line in (tmp_path / "log").read_bytes().splitlines()) == 4_000_000


def test_many_clients_type_and_read(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "while read line; do echo got $line; done") as container:
        peers = [connect(container.state.attach_socket) for _ in range(5)]
        container.start()
        for number, peer in enumerate(peers):
            peer.sendall(f"{number}\n".encode())
            for other in peers[number:]:
                assert other.recv(100) == f"got {number}\n".encode()
            peer.close()  # detaching is not the end of the input
        with connect(container.state.attach_socket) as last:
            last.sendall(b"last\n")
            assert last.recv(100) == b"got last\n"
            last.shutdown(socket.SHUT_WR)
            assert read_all(last) == b""
        assert container.wait(TIME_LIMIT) == 0


def test_hundreds_of_clients(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = "read x; seq 100; head -c 1000000 /dev/zero; sleep 100"
    with supervised(prefix, bundle, state_root, script) as container, ExitStack() as stack:
        clients = [stack.enter_context(container.attach()) for _ in range(512)]
        with pytest.raises(oci.StateError, match="512 clients already"):
            container.attach()
        with connect(container.state.attach_socket) as refused:
            assert refused.recv(1) == b""
        container.start()
        clients[0].write(b"\n")
        for client in clients:
            assert client.read(2) == b"1\n"
        # What they leave unread is kept once for all, and not for long.
        assert proportional_set_size(parent_process(container.pid)) <= 10 << 10
        container.kill("KILL")
        assert container.wait(TIME_LIMIT) == -9


def test_a_supervisor_without_descriptors(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    def rests() -> bool:
        """Whether it does not run for a while: it does not look at its full table of descriptors all the time."""
        before = Path(f"/proc/{pid}/schedstat").read_text()
        time.sleep(0.1)
        return Path(f"/proc/{pid}/schedstat").read_text() == before

    with supervised(prefix, bundle, state_root, "read x; exit $x") as container, ExitStack() as stack:
        pid = parent_process(container.pid)
        fds = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (fds + 8, fds + 8))
        peers = [stack.enter_context(connect(container.state.attach_socket)) for _ in range(30)]
        assert peers[-1].recv(1) == b""
        with connect(container.state.control_socket) as peer:
            with suppress(BrokenPipeError):  # it is told before it asks
                peer.sendall(b'{"stateChanged": true}')
            assert b"too many open files" in peer.recv(1000)
        with pytest.raises(oci.StateError, match="too many open files"):
            container.attach()
        wait_until(rests, "the supervisor's rest")
        for peer in peers:
            peer.close()
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= fds, "the end of the clients")
        container.start()
        with container.attach() as attachment:
            attachment.write(b"5\n")
        assert container.wait(TIME_LIMIT) == 5


def test_what_was_typed_before_leaving_arrives(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    script = "read go; sleep 0.3; head -c 200000 /dev/zero; head -c 200005 | wc -c"  # less than disconnects a slow reader
    with supervised(prefix, bundle, state_root, script) as container:
        container.start()
        with container.attach() as attachment:
            attachment.write(b"go\n")
            attachment.write(b"x" * 200_000)  # more than the container's pipe and our buffer take
        with container.attach() as attachment:
            attachment.write(b"last\n")
            assert attachment.readall().lstrip(b"\0").strip() == b"200005"  # type: ignore[union-attr]


def test_a_container_that_does_not_read(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "sleep 0.3; echo awake; wc -c") as container:
        with connect(container.state.attach_socket) as peer:
            container.start()
            peer.sendall(b"x" * 3_000_000)
            peer.shutdown(socket.SHUT_WR)
            assert read_all(peer) == b"awake\n3000000\n"
        assert container.wait(TIME_LIMIT) == 0


def test_the_current_line_of_a_terminal(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(
        prefix, bundle, state_root, "echo before; printf 'name? '; read name; echo hello $name", terminal=True
    ) as container:
        with connect(container.state.attach_socket) as first:
            container.start()
            seen = b""
            while not seen.endswith(b"name? "):
                seen += first.recv(1000)
            with connect(container.state.attach_socket) as second:
                assert second.recv(100) == b"name? "
                second.sendall(b"me\r")
                assert read_all(second) == b"me\r\nhello me\r\n"
            assert read_all(first) == b"me\r\nhello me\r\n"
        assert container.wait(TIME_LIMIT) == 0
        assert Path(container.state.log_path).read_text().count("stdout F ") == 3


def test_what_is_written_last_is_not_lost(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "seq 50000; printf end") as container:
        container.start()
        assert container.wait(TIME_LIMIT) == 0
        lines = Path(container.state.log_path).read_bytes().splitlines()
        # A line that took its time is in parts, with P but for the last.
        parts = [line.split(b" ", 3)[2:] for line in lines]
        text = b"".join(part + (b"\n" if tag == b"F" else b"") for tag, part in parts)
        assert text == b"".join(b"%d\n" % number for number in range(1, 50001)) + b"end\n"


# ---- control.sock ----


def test_the_size_over_the_control_socket(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "read x; stty size", terminal=True) as container:
        assert ask(container, consoleSize={"height": 31, "width": 77}) == ""
        with connect(container.state.attach_socket) as peer:
            container.start()
            peer.sendall(b"\r")
            assert read_all(peer) == b"\r\n31 77\r\n"
    with supervised(f"{prefix}-b", bundle, state_root, "true") as container:
        assert "no terminal" in ask(container, consoleSize={"height": 31, "width": 77})


def test_operations_over_the_control_socket(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "sleep 100") as container:
        assert "resume" in ask(container, resume=True)
        assert ask(container, startContainer=True) == ""
        assert container.status is oci.Status.RUNNING
        assert ask(container, pause=True) == ""
        assert container.status is oci.Status.PAUSED
        assert ask(container, resume=True) == ""
        assert container.status is oci.Status.RUNNING
        assert "start" in ask(container, startContainer=True)


NONSENSE = [
    b"", b"{", b"[]", b"{}", b"1", b'{"nonsense": 1}', b'{"consoleSize": 3}', b"\xff" * 70000, b"[" * 60000, b'{"attach": true}',
    b'{"startContainer": "no"}', b'{"pause": 1}', b'{"pause": true, "resume": true}', b'{"consoleSize": {"height": 24}}',
    b'{"consoleSize": {"height": 65536, "width": 1}}', b'{"consoleSize": {"height": -1, "width": 1}}',
    b'{"consoleSize": {"height": 1e400, "width": 1}}', b'{"consoleSize": {"height": "24", "width": 1}}',
]  # fmt: skip


def test_nonsense_over_the_control_socket(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "exit 2", terminal=True) as container:
        for request in NONSENSE:
            with connect(container.state.control_socket) as peer:
                peer.sendall(request)
                peer.shutdown(socket.SHUT_WR)
                try:
                    answer = peer.makefile().read()
                except ConnectionResetError:
                    answer = "error"  # it did not read all of it
                assert ("error" in answer) == bool(request), (request[:60], answer)
        assert is_running(parent_process(container.pid))
        assert container.status is oci.Status.CREATED
        container.start()
        assert container.wait(TIME_LIMIT) == 2
        assert not (state_root / prefix / "supervisor.err").read_text()


def test_a_start_over_the_control_socket_of_what_ends_at_once(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    for _ in range(5):
        with supervised(prefix, bundle, state_root, "exit 3") as container:
            assert ask(container, startContainer=True) == ""
            assert container.wait(TIME_LIMIT) == 3


# ---- the state, to others ----


def test_the_sync_socket_hears_every_status(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, command: Command
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sync"))
        listener.listen()
        listener.settimeout(TIME_LIMIT)

        def heard() -> dict[str, object]:
            peer, _ = listener.accept()
            with peer:
                return dict(json.loads(read_all(peer)))

        with supervised(prefix, bundle, state_root, "sleep 100", sync_socket=tmp_path / "sync") as container:
            assert [heard()["status"], heard()["status"]] == ["creating", "created"]
            subprocess.run(command("state", "-s", tmp_path / "sync", prefix), timeout=TIME_LIMIT, check=True)
            assert heard()["status"] == "created"
            container.start()
            document = heard()
            assert (document["status"], document["pid"], document["id"]) == ("running", container.pid, prefix)
            container.pause()
            assert heard()["status"] == "paused"
            container.resume()
            assert heard()["status"] == "running"
            container.kill("KILL")
            document = heard()
            assert (document["status"], document["exitCode"]) == ("stopped", 137)


def test_a_sync_socket_without_a_listener(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with supervised(prefix, bundle, state_root, "exit 6", sync_socket=tmp_path / "nobody") as container:
        container.start()
        assert container.wait(TIME_LIMIT) == 6
