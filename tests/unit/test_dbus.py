"""The conversation with systemd, against a peer that is busy, breaks off, refuses or keeps silent."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jeepney
import pytest

from ociruntime.engine import systemd
from ociruntime.errors import UnsupportedError

from ..support.waiting import TIME_LIMIT

UNIT = "x.scope"
ERROR = "org.freedesktop.DBus.Error."
SYSTEMD = "org.freedesktop.systemd1."
CLOSE = "close the connection"
JOB = "/org/freedesktop/systemd1/job/1"
Answer = Any
"""CLOSE, SILENCE, the name of an error, or signature and body of a reply."""
SILENCE = "say nothing"
STARTED: Answer = ("o", (JOB,))
NOTHING: Answer = ("", ())


class Peer(threading.Thread):
    """Answers calls one after the other with what it was told to; a call that was not foreseen fails the test."""

    def __init__(
        self, path: Path, script: list[tuple[str, Answer]], result: str = "done", greeting: bytes = b"OK 1234\r\n"
    ) -> None:
        super().__init__(daemon=True)
        self.script, self.result, self.greeting = script, result, greeting
        self.calls: list[str] = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        parser, head = jeepney.Parser(), b""
        while b"BEGIN\r\n" not in head:
            if not (data := connection.recv(4096)):
                return
            head += data
        assert head.startswith(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode())
        connection.sendall(self.greeting)
        while True:
            while (message := parser.get_next_message()) is None:
                try:
                    data = connection.recv(4096)
                except ConnectionResetError:
                    return
                if not data:
                    return
                parser.add_data(data)
            self.calls.append(message.header.fields[jeepney.HeaderFields.member])
            if not self.answer(connection, message):
                return

    def answer(self, connection: socket.socket, call: Any) -> bool:
        member, answer = self.script.pop(0) if self.script else ("nothing", "org.example.Unforeseen")
        if member != self.calls[-1]:
            answer = "org.example.Unforeseen"
        if answer == CLOSE:
            return False
        if answer == SILENCE:
            return True
        if isinstance(answer, str):
            reply = jeepney.new_error(call, answer, "s", ("because",))
        else:
            reply = jeepney.new_method_return(call, answer[0] or None, answer[1])
        connection.sendall(reply.serialise(serial=len(self.calls)))
        if answer is STARTED:
            manager = jeepney.DBusAddress("/org/freedesktop/systemd1", interface=f"{SYSTEMD}Manager")
            for job in ("/another", JOB):
                signal = jeepney.new_signal(manager, "JobRemoved", "uoss", (1, job, UNIT, self.result))
                connection.sendall(signal.serialise(serial=1000 + len(self.calls)))
        return True


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Peer]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "")
    (tmp_path / "systemd").mkdir()
    created: list[Peer] = []

    def make(*script: tuple[str, Answer], **more: Any) -> Peer:
        created.append(Peer(tmp_path / "systemd/private", list(script), **more))
        created[-1].start()
        return created[-1]

    yield make
    for entry in created:
        entry.listener.shutdown(socket.SHUT_RDWR)
        entry.listener.close()
        entry.join(TIME_LIMIT)
        assert entry.script == []


def own_cgroup() -> str:
    return next((line[3:].strip() for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), "")


def start(path: str = "") -> None:
    systemd.start_scope(UNIT, [("TasksMax", "t", 5)], path or own_cgroup(), user=True, pid=os.getpid())


START, GET, RESET, STOP = "StartTransientUnit", "Get", "ResetFailedUnit", "StopUnit"
GOOD = {
    "at once": [(START, STARTED)],
    "the connection breaks": [(START, CLOSE), (START, STARTED)],
    "it is busy": [(START, f"{ERROR}NoReply"), (START, f"{ERROR}LimitsExceeded"), (START, STARTED)],
    "our first attempt had come through": [(START, CLOSE), (START, f"{SYSTEMD}UnitExists")],
}


@pytest.mark.parametrize("name", GOOD)
def test_started(peer: Callable[..., Peer], name: str) -> None:
    created = peer(*GOOD[name])
    start()
    assert created.calls == [member for member, _ in GOOD[name]]


def test_a_unit_that_failed_is_cleared_away(peer: Callable[..., Peer]) -> None:
    exists, state = (START, f"{SYSTEMD}UnitExists"), (GET, ("v", (("s", "failed"),)))
    # The process is elsewhere, which shows in the end: nothing of it may stay.
    peer(exists, state, (RESET, NOTHING), (START, STARTED), (STOP, STARTED), (RESET, f"{SYSTEMD}NoSuchUnit"))
    with pytest.raises(OSError, match=r"systemd put x\.scope into .*, not into /elsewhere"):
        start("/elsewhere")


BAD: dict[str, tuple[list[tuple[str, Answer]], type[Exception], str]] = {
    "running": ([(START, f"{SYSTEMD}UnitExists"), (GET, ("v", (("s", "active"),)))], FileExistsError, "already, and it is active"),
    "unknown property": ([(START, f"{ERROR}PropertyReadOnly")], UnsupportedError, "because: this version of systemd lacks it"),
    "denied": ([(START, f"{ERROR}AccessDenied"), (STOP, f"{SYSTEMD}NoSuchUnit")], PermissionError, "because"),
    "bad value": ([(START, f"{ERROR}InvalidArgs"), (STOP, f"{SYSTEMD}NoSuchUnit")], OSError, "systemd says: because"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(peer: Callable[..., Peer], name: str) -> None:
    script, error, words = BAD[name]
    peer(*script)
    with pytest.raises(error, match=words):
        start("/elsewhere")


def test_a_job_that_fails(peer: Callable[..., Peer]) -> None:
    peer((START, STARTED), (STOP, STARTED), (RESET, NOTHING), result="failed")
    with pytest.raises(OSError, match=r"could not start x\.scope: its job ended as failed") as caught:
        start()
    assert caught.value.errno == errno.EIO


def test_silence_has_an_end(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "TIMEOUT", 0.3)
    peer((START, SILENCE), (STOP, SILENCE))
    with pytest.raises(TimeoutError, match="did not answer") as caught:
        start()
    assert caught.value.errno == errno.ETIMEDOUT
    assert "was not stopped" in caught.value.__notes__[0]


def test_breaking_off_for_ever_has_an_end(peer: Callable[..., Peer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "TIMEOUT", 0.3)
    created = peer(greeting=b"")
    created.listener.shutdown(socket.SHUT_RDWR)  # what is bound and not listened to refuses
    with pytest.raises(ConnectionRefusedError):
        systemd.stop(UNIT, user=True)


def test_a_peer_that_does_not_take_us(peer: Callable[..., Peer]) -> None:
    peer(greeting=b"REJECTED EXTERNAL\r\n")
    with pytest.raises(PermissionError, match="refuses uid"):
        systemd.stop(UNIT, user=True)


def test_no_bus_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"tcp:host=x;unix:path={tmp_path}/none,guid=1")
    with pytest.raises(UnsupportedError, match=r"has no socket in \$XDG_RUNTIME_DIR; set it"):
        start()


def test_properties_are_changed_until_the_unit_ends(peer: Callable[..., Peer]) -> None:
    created = peer(("SetUnitProperties", NOTHING))
    systemd.set_properties(UNIT, [("AllowedCPUs", "ay", (1, 2)), ("DeviceAllow", "a(ss)", (("/dev/null", "rw"),))], user=True)
    assert created.calls == ["SetUnitProperties"]
