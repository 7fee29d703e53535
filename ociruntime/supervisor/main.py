"""The supervisor's life: it is set up by who creates the container, launches the init, and stays until the container has ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..engine.clone import clone
from .attached import Attached
from .control import Control
from .log import Log
from .loop import IN, Loop
from .record import Record
from .streams import Streams
from .sync import Sync

MAX_FDS = 250
"""Descriptors in one message (the kernel's SCM_MAX_FD is 253)."""
IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE)
LINGER = 5.0
"""Seconds that clients have to read what is left when the container has ended."""
LAST_WORDS = 1.0
"""Seconds for the kernel to hand over what was written to a terminal before the end."""


class Supervisor:
    """One container's supervisor; ``setup`` is the first message of who creates it."""

    def __init__(self, creator: socket.socket, setup: dict[str, object]) -> None:
        self.creator = creator
        self.directory = str(setup["directory"])
        self.setup = setup
        self.loop = Loop()
        self.pidfd = self.first = -1
        self.record = Record(self.directory)
        self.log = Log(str(setup["log_path"]), str(setup["log_format"]), int(str(setup["log_limit"])))
        self.sync = Sync(str(setup["sync_socket"]), self.directory) if setup["sync_socket"] else None
        self.attached = Attached(self.loop, self._listen("attach.sock"))
        self.streams = Streams(self.loop, self._printed, self.attached.listen)
        self.attached.streams = self.streams
        self.control = Control(self.loop, self._listen("control.sock"), self._actions(), self._command)
        self.given: list[int] = []
        self.loop.watch(creator.fileno(), IN, self._from_creator)

    def _listen(self, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        os.chdir(self.directory)  # the whole path may be longer than an address
        listener.bind(name)
        os.chdir("/")
        listener.listen(128)
        return listener

    def _printed(self, stream: bytes, data: bytes) -> None:
        self.log.feed(stream, data)
        self.attached.send(stream, data)

    # ---- requests over control.sock ----

    def _actions(self) -> dict[str, Callable[[object, list[int]], None]]:
        return {"consoleSize": self._resize, "reopenLog": self._reopen, "stateChanged": self._changed, "attach": self._attach}

    def _resize(self, size: object, fds: list[int]) -> None:
        if not isinstance(size, dict):
            raise ValueError("consoleSize is an object with height and width")
        self.streams.resize(size["height"], size["width"])

    def _reopen(self, wanted: object, fds: list[int]) -> None:
        self.log.reopen()

    def _attach(self, wanted: object, fds: list[int]) -> None:
        if not fds:
            raise ValueError("attach needs one or two sockets, as SCM_RIGHTS")
        sockets = []
        try:
            while fds:
                sockets.append(socket.socket(fileno=fds[0]))
                del fds[0]
            self.attached.add(*sockets)
        except BaseException:
            for one in sockets:
                one.close()
            raise

    def _changed(self, wanted: object = True, fds: Sequence[int] = ()) -> None:
        if self.sync is not None:
            self.sync.changed()

    def _command(self, verb: str) -> list[str]:
        root, container_id = os.path.split(self.directory)
        code = f"import sys; sys.path[:] = {self.setup['sys_path']!r}; from ociruntime.cli import main; sys.exit(main())"
        return [sys.executable, "-I", "-c", code, "--root", root, verb, container_id]

    # ---- requests of who creates the container ----

    def _from_creator(self, events: int) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.creator, 65536, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            data, fds = b"", []  # it died with an answer of ours unread
        if not data:
            # Created; or its creator is gone, and the init, whose control socket ends with it, goes too.
            self.loop.forget(self.creator.fileno())
            self.creator.close()
            self._changed()
            return
        message = json.loads(data)
        self.given += fds
        if message["do"] == "launch":
            self._launch(message)
        elif message["do"] == "terminal":
            self.streams.open_terminal(self.given.pop())
        elif message["do"] == "adopt":
            self._adopt(self.given.pop())

    def _launch(self, message: dict[str, Any]) -> None:
        fds, self.given = self.given, []
        init, cgroup, *rest = fds if message["cgroup"] else (fds[0], -1, *fds[1:])
        if self.setup["terminal"]:
            theirs = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]  # until the init has its terminal
        else:
            theirs = self.streams.open_pipes(int(str(self.setup["owner"])))
        try:
            flags, preserve, kept = message["flags"], message["preserve"], message["kept"]
            pid, self.pidfd = clone(
                flags=flags, cgroup=cgroup, init=init, control=rest[0], preserve=preserve, kept=kept, fds=[*theirs, *rest]
            )
        except OSError as error:
            self.creator.send(json.dumps({"errno": error.errno}).encode())
        else:
            for fd in kept:
                os.close(fd)
            self.loop.watch(self.pidfd, IN, self._ended)
            socket.send_fds(self.creator, [json.dumps({"pid": pid}).encode()], [self.pidfd])
        finally:
            for fd in (*fds, *theirs):
                os.close(fd)

    def _adopt(self, pidfd: int) -> None:
        """Go on with the process that the init forked to become; the first one has ended by itself."""
        self.loop.forget(self.pidfd)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        os.close(self.pidfd)
        self.pidfd, self.over = pidfd, False
        self.loop.watch(pidfd, IN, self._ended)

    # ---- the end ----

    def _ended(self, events: int) -> None:
        self.loop.forget(self.pidfd)
        self.over = True

    over = False
    """Whether the first process has ended. As long as the creator is there it may have forked the one that counts."""

    def run(self) -> None:
        """Serve until the container has ended, and tell how it did."""
        while self.creator.fileno() >= 0 or (self.pidfd >= 0 and not self.over):
            waits = [self.control.due(), self.log.due(), self.sync.due() if self.sync else None]
            self.loop.turn(min([wait for wait in waits if wait is not None], default=None))
            self.control.expire()
            self.log.flush()
            if self._untold():
                self._tell_losses()
            if self.sync is not None:
                self.sync.send()
        if self.pidfd >= 0:
            self._finish()

    _told, _told_at = 0, 0.0

    def _untold(self) -> bool:
        """Whether losses are to be written down: at once at first, then once a second."""
        return self.log.lost_entries != self._told and time.monotonic() > self._told_at + 1

    def _tell_losses(self) -> None:
        self._told, self._told_at = self.log.lost_entries, time.monotonic()
        self.record.put(log_lost=[self.log.lost_entries, self.log.lost_bytes], log_error=self.log.error)

    def _finish(self) -> None:
        finished = time.time_ns()
        deadline = time.monotonic() + LAST_WORDS
        self.streams.drain()
        while self.setup["terminal"] and self.streams.open and time.monotonic() < deadline:
            self.loop.turn(deadline - time.monotonic())
        self.streams.close()
        self.log.flush(last=True)
        if self.log.lost_entries:
            self._tell_losses()
        info = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOWAIT)
        assert info is not None
        facts: dict[str, object] = {
            "exit_code": info.si_status if info.si_code == os.CLD_EXITED else -info.si_status,
            "finished_at": finished,
        }
        if self.attached.dropped:
            facts["clients_dropped"] = self.attached.dropped
        try:
            facts["oom_killed"] = bool(self._oom_kills())
        finally:
            self.record.put(**facts)
        os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        self.attached.stop()
        self.control.stop()
        self._changed()
        deadline = time.monotonic() + LINGER
        while (
            self.attached.waiting or self.control.connections or (self.sync and self.sync.due())
        ) and time.monotonic() < deadline:
            self.loop.turn(min(0.05, max(0.0, deadline - time.monotonic())))
            if self.sync is not None:
                self.sync.send()
        self.control.close()
        self.attached.close()

    def _wanted(self) -> bool:
        """Whether somebody is still to get something."""
        return bool(self.attached.waiting or self.control.connections or (self.sync and self.sync.due()))

    def _oom_kills(self) -> int:
        """How many processes of the container the kernel killed for want of memory, as its cgroups count them."""
        try:
            with open(f"{self.directory}/state.json", "rb") as file:
                cgroups = json.load(file).get("cgroups", [])
        except FileNotFoundError:
            return 0  # its creator gave up, or it is being deleted
        for path in cgroups:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(f"{path}/{name}", encoding="ascii") as file:
                        counts = dict(line.split() for line in file)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENODEV):
                        raise
                else:
                    return int(counts.get("oom_kill", 0))
        return 0


def main(fd: int) -> None:
    """Become the supervisor of who is at the other end of this socket."""
    if os.fork():
        os._exit(0)  # so that it has no parent that would have to wait for it
    creator = socket.socket(fileno=fd)
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > fd:
            try:
                os.close(int(name))  # what others did not mean to leave to us
            except OSError:
                continue  # the listing's own
    os.chdir("/")
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)  # it ends with its container
    try:
        supervisor = _set_up(creator)
    except ConnectionError:
        return  # who wanted it is gone
    if supervisor is not None:
        supervisor._changed()
        supervisor.run()


def _set_up(creator: socket.socket) -> Supervisor | None:
    """Say hello, and be told what to supervise. Raises ConnectionError when the creator is gone."""
    own = os.pidfd_open(os.getpid())
    socket.send_fds(creator, [json.dumps({"pid": os.getpid()}).encode()], [own])
    os.close(own)
    data = creator.recv(1 << 20)
    if not data:
        return None
    try:
        supervisor = Supervisor(creator, json.loads(data))
    except OSError as error:
        creator.send(json.dumps({"errno": error.errno, "path": error.filename}).encode())
        return None
    creator.send(b"{}")
    return supervisor
