"""SCMP_ACT_NOTIFY: the listener of the filter reaches the agent before the program runs (config-linux.md#the-container-process-state)."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
RECEIVE, SEND = 0xC0502100, 0xC0182101
EXDEV = 18


class Agent:
    """Answers every notification with EXDEV; keeps what it was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: queue.Queue[dict[str, Any]] = queue.Queue()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.fds: list[int] = []
        self.stop, self.stopped = os.pipe2(os.O_CLOEXEC)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        poller = select.poll()
        for fd in (self.listener.fileno(), self.stop):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, event in poller.poll():
                if fd == self.stop:
                    return
                if fd == self.listener.fileno():
                    poller.register(self.welcome(), select.POLLIN)
                elif event & select.POLLIN:
                    self.answer(fd)
                else:
                    poller.unregister(fd)  # no process has the filter any more

    def welcome(self) -> int:
        with self.listener.accept()[0] as peer:
            data, fds, _, _ = socket.recv_fds(peer, 1 << 16, 4)
            while chunk := peer.recv(1 << 16):
                data += chunk
        assert len(fds) == 1
        self.states.put(json.loads(data))
        self.fds += fds
        return fds[0]

    def answer(self, fd: int) -> None:
        request = bytearray(80)
        try:
            fcntl.ioctl(fd, RECEIVE, request)
        except FileNotFoundError:
            return  # its process died meanwhile
        fcntl.ioctl(fd, SEND, struct.pack("=QqiI", struct.unpack_from("=Q", request)[0], 0, -EXDEV, 0))

    def close(self) -> None:
        os.close(self.stopped)
        self.thread.join()
        for fd in (*self.fds, self.stop):
            os.close(fd)
        self.listener.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    try:
        yield agent
    finally:
        agent.close()


@pytest.fixture
def notifying(make_bundle: MakeBundle) -> Callable[..., oci.Bundle]:
    """A bundle whose mkdir(2) is for the agent at a path."""

    def make(path: Path, *args: str) -> oci.Bundle:
        document = oci.RuntimeSpec.default().to_dict()
        document["process"]["args"] = list(args)  # type: ignore[index,call-overload]
        document["annotations"] = {"org.example": "x"}
        document["linux"]["seccomp"] = {  # type: ignore[index,call-overload]
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(path),
            "listenerMetadata": "m=1",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        }
        return make_bundle(oci.RuntimeSpec.load(document))

    return make


def checked(state: dict[str, Any], container_id: str, status: set[str]) -> int:
    assert set(state) == {"ociVersion", "fds", "pid", "metadata", "state"}
    assert (state["fds"], state["metadata"]) == (["seccompFd"], "m=1")
    inner = state["state"]
    assert set(inner) == {"ociVersion", "id", "status", "pid", "bundle", "annotations"}
    assert inner["id"] == container_id
    assert inner["status"] in status
    assert inner["annotations"] == {"org.example": "x"}
    pid = state["pid"]
    assert isinstance(pid, int)
    return pid


def test_run_start_and_exec(agent: Agent, notifying: Callable[..., oci.Bundle], state_root: Path, prefix: str) -> None:
    bundle = notifying(agent.path, "mkdir", "/new")
    result = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix)
    assert result.returncode == 1
    assert "Invalid cross-device link" in str(result.stderr)
    state = agent.states.get(timeout=TIME_LIMIT)
    assert checked(state, prefix, {"creating", "running"}) == state["state"]["pid"]

    with oci.Container.create(prefix, notifying(agent.path, "sleep", "100"), state_root=state_root) as container:
        assert agent.states.empty()
        container.start()
        state = agent.states.get(timeout=TIME_LIMIT)
        assert checked(state, prefix, {"created"}) == container.pid == state["state"]["pid"]
        child = container.exec(["mkdir", "/new"], capture_output=True, text=True)
        assert "Invalid cross-device link" in str(child.stderr)
        state = agent.states.get(timeout=TIME_LIMIT)
        assert checked(state, prefix, {"running"}) != container.pid == state["state"]["pid"]


NO_AGENT = r"^\$\.linux\.seccomp\.listenerPath: failed to connect with seccomp agent at .*: no such file or directory; start"


@pytest.mark.parametrize("gate", [False, True])
def test_without_an_agent_nothing_runs(
    notifying: Callable[..., oci.Bundle], tmp_path: Path, state_root: Path, prefix: str, gate: bool
) -> None:
    bundle = notifying(tmp_path / "nobody.sock", "touch", "/it-ran")
    if gate:
        with oci.Container.create(prefix, bundle, state_root=state_root) as container:
            with pytest.raises(oci.UnsupportedError, match=NO_AGENT):
                container.start()
            assert container.status is oci.Status.STOPPED
    else:
        with pytest.raises(oci.UnsupportedError, match=NO_AGENT):
            oci.run(bundle, state_root=state_root, container_id=prefix)
    assert oci.Container.list(state_root=state_root) == []
    assert not (bundle.rootfs / "it-ran").exists()


def test_a_listener_path_without_notifications_is_ignored(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    spec = bundle.spec.at.linux.seccomp.listener_path.set("/nowhere/agent.sock")
    bundle.spec = spec
    assert oci.run(bundle, ["true"], state_root=state_root, container_id=prefix).returncode == 0
