"""Faults in the system calls of a process and of all that it starts: a seccomp filter asks this process about every call.

A `Traced` process is a child of this process. Each of its calls, and of those of its descendants, is answered by a function: it goes on, it
fails with an errno, or the process that makes it is killed.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyseccomp

CHANNEL: Final = 777
"""The descriptor over which a traced process tells what it does. Writing to it is the only call that is not asked about."""
KILL: Final = -1
"""The answer that kills the process."""
GO: Final = b"go\n"
_RECEIVE, _SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
_GO_ON: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_libc = ctypes.CDLL(None, use_errno=True)


def _number(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def name_of(number: int) -> str:
    """Return the name of a system call."""
    name = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, number)
    return name.decode() if isinstance(name, bytes) else str(name)


class Call(NamedTuple):
    """A system call that is about to be made."""

    position: int
    """0 for the first call of the operation."""
    name: str
    pid: int


Decide = Callable[[Call], int]
"""Answers a call: 0 lets it go on, an errno fails it, `KILL` kills its process."""


class Report(NamedTuple):
    """How a child ended."""

    status: int
    """Exit status; negative for a signal."""
    document: dict[str, Any]
    """What it told at its end; empty if it was killed."""
    seconds: float
    hung: bool
    """It took longer than the limit, and was killed."""


def _load_filter() -> int:
    """Load the filter. Return its listener. Raises OSError. No set-user-ID program loses its privileges by it: root loads it."""
    load, compare, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    program = [
        (load, 0, 0, 0),
        (compare, 0, 3, _number("write")),
        (load, 0, 0, 16),  # the first argument
        (compare, 0, 1, CHANNEL),
        (answer, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        (answer, 0, 0, 0x7FC00000),  # SECCOMP_RET_USER_NOTIF
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in program))
    whole = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    listener = _libc.syscall(_number("seccomp"), 1, 1 << 3, whole)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


def role_of(pid: int, caller: int) -> str:
    """Return what a process is for the library: ``caller``, ``init``, ``supervisor``, or the name of another program."""
    if pid == caller:
        return "caller"
    try:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    if int(status["Tgid"]) == caller:
        return "caller"
    if command == Path("/proc/self/cmdline").read_bytes() or status["Name"] in ("oci-init", "memfd:oci-init"):
        return "init"  # before it executes the init, it shares the memory of its caller
    return "supervisor" if b"supervisor" in command else status["Name"]


class Traced:
    """A child of this process, whose calls are answered by a function if it has one."""

    def __init__(self, body: Callable[[Callable[[], None]], object], decide: Decide | None = None) -> None:
        """Start the child. It runs ``body``, whose argument it calls when the operation begins."""
        self._decide = decide
        self._count, self._began, self._listener = 0, False, -1
        self._told = b""
        self._channel, far = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._channel)
            _run(body, far, filtered=decide is not None)
        os.close(far)
        self._pidfd = os.pidfd_open(self.pid)
        self._start = time.monotonic()

    def finish(self, limit: float) -> Report:
        """Serve until the child has ended; after ``limit`` seconds it is killed."""
        hung = not self.serve(self._pidfd, limit)
        if hung:
            os.kill(self.pid, signal.SIGKILL)
            self.serve(self._pidfd, 10)
        took = time.monotonic() - self._start
        _, status = os.waitpid(self.pid, 0)
        while select.select([self._channel], [], [], 0)[0] and (part := os.read(self._channel, 1 << 16)):
            self._told += part
        try:
            document = json.loads(self._told.rpartition(GO)[2])
        except ValueError:
            document = {}
        return Report(os.waitstatus_to_exitcode(status), document, took, hung)

    def serve(self, until: int, limit: float) -> bool:
        """Answer calls until a descriptor is readable (-1: none). Return whether it was within ``limit`` seconds."""
        deadline = time.monotonic() + limit
        poll = select.poll()
        for fd in {until, self._channel, self._listener} - {-1}:
            poll.register(fd, select.POLLIN)
        while time.monotonic() < deadline:
            events = dict(poll.poll(min(1.0, limit) * 1000))
            if self._channel in events:
                if not (part := os.read(self._channel, 1 << 16)):
                    poll.unregister(self._channel)
                elif self._hear(part):
                    poll.register(self._listener, select.POLLIN)
            if (event := events.get(self._listener)) and self._listener >= 0:
                if event & select.POLLIN:
                    self._answer()
                else:
                    poll.unregister(self._listener)  # no process has the filter any more
            if until in events:
                return True
        return False

    def _hear(self, part: bytes) -> bool:
        """Take what the child tells. Return whether that is its listener."""
        self._told += part
        self._began = GO in self._told
        if self._decide is None or self._listener >= 0 or len(self._told) < 4:
            return False
        (number,) = struct.unpack_from("=i", self._told)
        self._listener = _libc.syscall(_number("pidfd_getfd"), self._pidfd, number, 0)
        if self._listener < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return True

    def _answer(self) -> None:
        if not self._began and select.select([self._channel], [], [], 0)[0]:
            self._hear(os.read(self._channel, 1 << 16))  # it was written before the call
        request = bytearray(80)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request)
        except (FileNotFoundError, InterruptedError):
            return  # its process has ended
        identifier, pid, _, number = struct.unpack_from("=QIIi", request)
        answer = 0
        if self._began and self._decide is not None:
            answer = self._decide(Call(self._count, name_of(number), pid))
            self._count += 1
        if answer == KILL:
            os.kill(pid, signal.SIGKILL)
            answer = 0
        try:
            fcntl.ioctl(self._listener, _SEND, struct.pack("=QqiI", identifier, 0, -answer, 0 if answer else _GO_ON))
        except FileNotFoundError:
            pass  # its process has ended

    def fileno(self) -> int:
        """Return a pidfd of the child."""
        return self._pidfd

    def close(self) -> None:
        """Close everything. Calls of processes that still have the filter fail with ENOSYS from now on."""
        for fd in (self._channel, self._pidfd, self._listener):
            if fd >= 0:
                os.close(fd)


def _run(body: Callable[[Callable[[], None]], object], far: int, *, filtered: bool) -> None:
    """Run a body in a child, and end."""
    document: dict[str, Any] = {}
    status = 1
    try:
        os.dup2(far, CHANNEL, inheritable=False)
        os.close(far)
        if filtered:
            listener = _load_filter()
            os.write(CHANNEL, struct.pack("=i", listener))
            os.close(listener)
        document = {"done": body(_go)}
        status = 0
    except BaseException as error:
        document = describe(error)
    finally:
        os.write(CHANNEL, json.dumps(document).encode())
        os._exit(status)


def _go() -> None:
    os.write(CHANNEL, GO)


def describe(error: BaseException) -> dict[str, Any]:
    """Return what an error is, as a document."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    frame, places = error.__traceback__, list[str]()
    while frame is not None:
        places.append(f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}")
        frame = frame.tb_next
    return {"error": type(error).__name__, "kinds": kinds, "text": str(error), "at": places[-4:]}
