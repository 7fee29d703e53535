"""Supervised containers: who owns the streams, what is logged, what is known at the end, and what survives what."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = pytest.mark.root
Script = Callable[..., "subprocess.CompletedProcess[str]"]
Until = Callable[..., None]
Command = Callable[..., list[str]]


def supervisor(container: oci.Container) -> int:
    """The pid of the container's supervisor."""
    return int(json.loads((container._entry.path / "state.json").read_text())["supervisor"][0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def connect(path: str | Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect(str(path))
    return peer


def ask(container: oci.Container, **wanted: object) -> str:
    """What control.sock answers before it closes the connection."""
    with connect(container.state.control_socket) as peer:
        peer.sendall(json.dumps(wanted).encode())
        return peer.makefile().read()


@contextmanager
def supervised(name: str, bundle: oci.Bundle, root: Path, script: str, **more: object) -> Iterator[oci.Container]:
    with oci.Container.create(name, bundle.with_args(["sh", "-c", script]), root=root, supervise=True, **more) as container:  # type: ignore[arg-type]
        yield container


def read_all(peer: socket.socket) -> bytes:
    out = b""
    while data := peer.recv(65536):
        out += data
    return out


def test_the_whole_life(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "echo out; echo err >&2; cat; exit 3") as container:
        pid, state = supervisor(container), container.state
        assert (state.attach_socket, state.log_path) == (f"{state_root}/{prefix}/attach.sock", f"{state_root}/{prefix}/log")
        with connect(state.attach_socket) as peer:
            container.start()
            peer.sendall(b"typed\n")
            peer.shutdown(socket.SHUT_WR)
            assert sorted(read_all(peer).splitlines()) == [b"err", b"out", b"typed"]
        assert container.wait(10) == 3
        state = container.state
        assert (state.status, state.exit_code, state.exit_desc) == (oci.Status.STOPPED, 3, "exited with code 3")
        assert 0 < state.created_at < state.started_at < state.finished_at
        assert state.attach_socket == ""
        assert [line.split(" ", 1)[1] for line in sorted(Path(state.log_path).read_text().splitlines(), key=lambda x: x.split()[1:])] == [
            "stderr F err", "stdout F out", "stdout F typed",
        ]  # fmt: skip
    assert not alive(pid)
    assert not (state_root / prefix).exists()


def test_an_exit_code_is_known_to_everybody(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = "import sys, ociruntime as oci\noci.Container.create(sys.argv[1], sys.argv[3], root=sys.argv[2], supervise=True)"
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "kill -TERM $$; exit 7"]).spec.to_json())
    script(text, prefix, state_root, bundle.path)
    container = oci.Container.load(prefix, root=state_root)
    container.start()
    assert container.wait(10) == 7  # the first process of a pid namespace does not hear TERM
    container.delete()


def test_a_signal_in_the_state(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "sleep 100") as container:
        container.start()
        container.kill("KILL")
        assert container.wait(10) == -9
        shown = container.state.to_dict()
        assert (shown["exitCode"], shown["exitDesc"]) == (137, "killed by signal 9")


def test_the_supervisor_is_small_and_on_its_own(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "seq 100000; sleep 100") as container:
        pid = supervisor(container)
        with connect(container.state.attach_socket) as peer:
            container.start()
            seen = b""
            while not seen.endswith(b"100000\n"):
                seen += peer.recv(65536)
        pss = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        assert int(pss.split()[1]) <= 8 << 10
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(fields[1]) != os.getpid()
        assert int(fields[3]) != os.getsid(0)
        assert len(os.listdir(f"/proc/{pid}/fd")) < 20
        assert f"{container.pid}" in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_it_survives_its_parent_and_control_c(
    bundle: oci.Bundle, state_root: Path, prefix: str, session, command: Command, until: Until
) -> None:
    (bundle.path / "config.json").write_text(bundle.with_args(["sh", "-c", "cat; exit 4"]).spec.to_json())
    words = " ".join(command("create", "--supervise", "-b", bundle.path, prefix))
    tty = session("sh", "-c", f"trap 'exit 1' INT; {words} && echo created; while :; do sleep 0.1; done")
    tty.expect("created")
    container = oci.Container.load(prefix, root=state_root)
    pid = supervisor(container)
    tty.type("\x03")
    tty.wait()
    assert alive(pid)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(pid, number)
    with connect(container.state.attach_socket) as peer:
        container.start()
        peer.sendall(b"still here\n")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"still here\n"
    assert container.wait(10) == 4
    container.delete()


def test_a_killed_supervisor_leaves_what_can_be_deleted(bundle: oci.Bundle, state_root: Path, prefix: str, until: Until) -> None:
    with supervised(prefix, bundle, state_root, "sleep 100") as container:
        container.start()
        os.kill(supervisor(container), signal.SIGKILL)
        until(lambda: not alive(supervisor(container)), "the death of the supervisor")
        assert container.status is oci.Status.RUNNING
        assert container.exec(["true"]).returncode == 0
        container.kill("KILL")
        until(lambda: container.status is oci.Status.STOPPED, "the end")
        container.delete()
    assert not (state_root / prefix).exists()


def test_a_killed_creator_leaves_what_can_be_deleted(bundle: oci.Bundle, state_root: Path, prefix: str, script: Script) -> None:
    text = """import os, signal, sys, ociruntime as oci
from ociruntime.engine.perform import Performance
def die(self): os.kill(os.getpid(), signal.SIGKILL)
Performance.finish = die
oci.Container.create(sys.argv[1], sys.argv[3], root=sys.argv[2], supervise=True)"""
    assert script(text, prefix, state_root, bundle.path, check=False).returncode == -signal.SIGKILL
    container = oci.Container.load(prefix, root=state_root)
    container.delete(force=True)
    assert not alive(supervisor(container)) if (state_root / prefix).exists() else True
    assert oci.Container.list(root=state_root) == []


def test_a_create_that_fails_leaves_nothing(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with pytest.raises(oci.StepError):
        oci.Container.create(prefix, bundle.with_args(["nothing-of-the-kind"]), root=state_root, supervise=True)
    with pytest.raises(FileNotFoundError, match="no/such/log"):
        oci.Container.create(prefix, bundle, root=state_root, log_path=tmp_path / "no/such/log")
    with pytest.raises(ValueError, match="yaml"):
        oci.Container.create(prefix, bundle, root=state_root, log_format="yaml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="owns the streams"):
        oci.Container.create(prefix, bundle, root=state_root, supervise=True, stdout=subprocess.DEVNULL)
    assert oci.Container.list(root=state_root) == []
    found = subprocess.run(["pgrep", "-f", f"{state_root}/{prefix}"], capture_output=True, text=True, check=False)
    assert found.stdout == ""


# ---- clients ----


def test_a_client_that_does_not_read_is_cut_off(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    script = "head -c 4000000 /dev/zero | tr '\\0' x; echo; exit 5"
    with supervised(prefix, bundle, state_root, script, log_path=tmp_path / "log") as container:
        with connect(container.state.attach_socket) as slow:
            container.start()
            assert container.wait(20) == 5
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
        assert container.wait(10) == 0


def test_a_container_that_does_not_read(bundle: oci.Bundle, state_root: Path, prefix: str, until: Until) -> None:
    with supervised(prefix, bundle, state_root, "sleep 0.3; echo awake; wc -c") as container:
        with connect(container.state.attach_socket) as peer:
            container.start()
            peer.sendall(b"x" * 3_000_000)
            peer.shutdown(socket.SHUT_WR)
            assert read_all(peer) == b"awake\n3000000\n"
        assert container.wait(10) == 0


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
        assert container.wait(10) == 0
        assert Path(container.state.log_path).read_text().count("stdout F ") == 3


def test_what_is_written_last_is_not_lost(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with supervised(prefix, bundle, state_root, "seq 50000; printf end") as container:
        container.start()
        assert container.wait(20) == 0
        lines = Path(container.state.log_path).read_bytes().splitlines()
        assert len(lines) == 50001
        assert lines[-1].endswith(b" stdout F end")


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


@pytest.mark.parametrize("request_", [b"", b"{", b"[]", b"{}", b"1", b'{"nonsense": 1}', b'{"consoleSize": 3}', b"\xff" * 70000])
def test_nonsense_over_the_control_socket(bundle: oci.Bundle, state_root: Path, prefix: str, request_: bytes) -> None:
    with supervised(prefix, bundle, state_root, "exit 2") as container:
        with connect(container.state.control_socket) as peer:
            peer.sendall(request_)
            peer.shutdown(socket.SHUT_WR)
            try:
                answer = peer.makefile().read()
            except ConnectionResetError:
                answer = "error"  # it did not read all of it
            assert ("error" in answer) == bool(request_)
        container.start()
        assert container.wait(10) == 2


# ---- the state, to others ----


def test_the_sync_socket_hears_every_status(
    bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path, command: Command
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sync"))
        listener.listen()
        listener.settimeout(20)

        def heard() -> dict[str, object]:
            peer, _ = listener.accept()
            with peer:
                return dict(json.loads(read_all(peer)))

        with supervised(prefix, bundle, state_root, "sleep 100", sync_socket=tmp_path / "sync") as container:
            assert [heard()["status"], heard()["status"]] == ["creating", "created"]
            subprocess.run(command("state", "-s", tmp_path / "sync", prefix), timeout=30, check=True)
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


def test_a_sync_socket_that_nobody_listens_at(bundle: oci.Bundle, state_root: Path, prefix: str, tmp_path: Path) -> None:
    with supervised(prefix, bundle, state_root, "exit 6", sync_socket=tmp_path / "nobody") as container:
        container.start()
        assert container.wait(10) == 6
