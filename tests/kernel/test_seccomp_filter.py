"""The kernel's own judgement of the compiled programs: each child loads a filter and reports what its system calls return.

No root needed: a process with no_new_privs may load a filter.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import signal
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from ociruntime.seccomp import Filter, compile_profile
from ociruntime.spec.seccomp import Seccomp, SeccompAction, SeccompOperator, Syscall, SyscallArg, default_profile

from ..support.waiting import TIME_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

pytest.importorskip("pyseccomp", reason="libseccomp is not installed")
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the system call numbers here are those of x86_64")

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

NR = {
    "sendmsg": 46,
    "getpid": 39,
    "socket": 41,
    "socketpair": 53,
    "clone": 56,
    "mkdir": 83,
    "personality": 135,
    "gettid": 186,
    "keyctl": 250,
    "unshare": 272,
    "getppid": 110,
    "userfaultfd": 323,
    "bpf": 321,
    "io_uring_setup": 425,
    "clone3": 435,
    "mseal": 462,
    "seccomp": 317,
    "mount": 165,
    "ptrace": 101,
}
PR_SET_NO_NEW_PRIVS, SET_MODE_FILTER, NEW_LISTENER = 38, 1, 8


class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def call(number: int, *args: int) -> int:
    """The return value, or minus errno."""
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(arg) for arg in args))
    return got if got != -1 else -ctypes.get_errno()


def load(made: Filter) -> int:
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    flags = made.flags | (NEW_LISTENER if made.needs_listener else 0)
    prog = Fprog(made.instructions, made.program)
    got = call(NR["seccomp"], SET_MODE_FILTER, flags, ctypes.addressof(prog))
    if got < 0:
        raise OSError(-got, os.strerror(-got))
    return got


def in_child(made: Filter, work: Callable[[], object]) -> tuple[object, int]:
    """What ``work`` returns under the filter, and the wait status of the child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            load(made)
            os.write(writer, json.dumps(work()).encode())
        except BaseException as error:
            os.write(writer, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        printed = file.read()
    _, status = os.waitpid(pid, 0)
    return (json.loads(printed) if printed else None), status


def profile(*calls: Syscall, default: str = "ALLOW", **more: object) -> Seccomp:
    return Seccomp(default_action=SeccompAction(f"SCMP_ACT_{default}"), syscalls=calls).evolve(**more)


def rule(action: str, name: str, errno_ret: int | None = None, *args: SyscallArg) -> Syscall:
    return Syscall(names=(name,), action=SeccompAction(f"SCMP_ACT_{action}"), errno_ret=errno_ret, args=args or None)


def test_errno_and_a_condition() -> None:
    eq = SyscallArg(index=0, value=5, op=SeccompOperator.EQ)
    created = compile_profile(profile(rule("ERRNO", "getpid", 77), rule("ERRNO", "personality", None, eq)))
    got, status = in_child(created, lambda: [call(NR["getpid"]), call(NR["personality"], 5), call(NR["personality"], 0xFFFFFFFF)])
    assert got == [-77, -errno.EPERM, 0]
    assert status == 0


@pytest.mark.parametrize("action", ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP"])
def test_what_kills_kills_with_sigsys(action: str) -> None:
    _, status = in_child(compile_profile(profile(rule(action, "getppid"))), lambda: call(NR["getppid"]))
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_log_lets_through_and_trace_without_a_tracer_is_enosys() -> None:
    created = compile_profile(profile(rule("LOG", "getppid"), rule("TRACE", "gettid")))
    got, _ = in_child(created, lambda: [call(NR["getppid"]), call(NR["gettid"])])
    assert got == [os.getpid(), -errno.ENOSYS]


def test_every_flag_is_taken_by_the_kernel() -> None:
    names = ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")
    created = compile_profile(profile(rule("ERRNO", "getppid", 9), flags=tuple(f"SECCOMP_FILTER_FLAG_{name}" for name in names)))
    assert created.flags == 7
    assert in_child(created, lambda: call(NR["getppid"])) == (-9, 0)


def test_a_notification_reaches_the_listener() -> None:
    flags = ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", "SECCOMP_FILTER_FLAG_TSYNC")
    created = compile_profile(profile(rule("NOTIFY", "mkdir"), listener_path="/unused", flags=flags))
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            listener = load(created)
            theirs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
            os._exit(-call(NR["mkdir"], 0, 0))
        finally:
            os._exit(255)
    theirs.close()
    with ours:
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    (listener,) = array.array("i", ancillary[0][2])
    try:
        request = bytearray(80)
        fcntl.ioctl(listener, 0xC0502100, request)  # SECCOMP_IOCTL_NOTIF_RECV
        cookie, who, _, number = struct.unpack_from("=QIIi", request)
        assert (who, number) == (pid, NR["mkdir"])
        fcntl.ioctl(listener, 0xC0182101, struct.pack("=QqiI", cookie, 0, -99, 0))  # SECCOMP_IOCTL_NOTIF_SEND
    finally:
        os.close(listener)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 99


def test_the_default_profile_in_the_kernel() -> None:
    def work() -> dict[str, int]:
        high = 1 << 32
        return {
            "af_alg": call(NR["socket"], 38, 5, 0),
            "af_alg with a high half": call(NR["socket"], high | 38, 5, 0),
            "af_vsock": call(NR["socket"], 40, 1, 0),
            "af_unix": min(call(NR["socket"], 1, 1, 0), 100),
            "af_unix with a high half": min(call(NR["socket"], high | 1, 1, 0), 100),
            "clone3": call(NR["clone3"], 0, 0),
            "newer": call(5000),
            "keyctl": call(NR["keyctl"], 0, 0),
            "io_uring": call(NR["io_uring_setup"], 1, 0),
            "userfaultfd": call(NR["userfaultfd"], 0),
            "bpf": call(NR["bpf"], 0, 0, 0),
            "mount": call(NR["mount"], 0, 0, 0, 0, 0),
            "user namespace": call(NR["unshare"], 0x10000000),
            "clone with a namespace": call(NR["clone"], 0x10000000 | 17, 0, 0, 0, 0),
            "own files": call(NR["unshare"], 0x400),
            "aslr": call(NR["personality"], 0x40000),
            "personality": call(NR["personality"], 0xFFFFFFFF),
        }

    got, status = in_child(compile_profile(default_profile()), work)
    assert status == 0
    assert isinstance(got, dict)
    assert got.pop("af_unix") > 2
    assert got.pop("af_unix with a high half") > 2
    assert got.pop("personality") == 0
    assert got.pop("own files") == 0
    assert got.pop("clone3") == got.pop("newer") == -errno.ENOSYS
    assert set(got.values()) == {-errno.EPERM}, got


def test_newer_calls_of_the_default_profile_reach_the_kernel() -> None:
    reached = call(NR["mseal"], 1, 0, 0)  # EINVAL for the address, or ENOSYS from a kernel without it
    assert in_child(compile_profile(default_profile()), lambda: call(NR["mseal"], 1, 0, 0)) == (reached, 0)


def test_programs_run_under_the_default_profile() -> None:
    def work() -> int:
        import subprocess
        import sys

        code = "import threading; t = threading.Thread(target=print, args=('ok',)); t.start(); t.join()"
        return subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=TIME_LIMIT).returncode

    assert in_child(compile_profile(default_profile()), work) == (0, 0)


# --- the other ways into an x86_64 kernel -------------------------------------------------------------------------------------


def int80(number: int, first: int) -> int:
    """A system call by the i386 ABI."""
    code = b"\x53\xbb" + struct.pack("<I", first) + b"\xb8" + struct.pack("<I", number) + b"\xcd\x80\x5b\xc3"
    area = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))())


@pytest.fixture(scope="module")
def _i386() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if int80(20, 0) == os.getpid() else 1)
    if os.waitpid(pid, 0)[1] != 0:
        pytest.skip("this kernel has no i386 ABI")


@pytest.mark.usefixtures("_i386")
def test_i386_is_closed_unless_asked_for_and_filtered_then() -> None:
    shut = compile_profile(profile(rule("ERRNO", "getpid", 7)))
    _, status = in_child(shut, lambda: int80(20, 0))
    assert os.WTERMSIG(status) == signal.SIGSYS
    created = compile_profile(profile(rule("ERRNO", "getpid", 7), architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86")))
    assert in_child(created, lambda: int80(20, 0)) == (-7, 0)


@pytest.mark.usefixtures("_i386")
def test_i386_makes_no_socket_by_socketcall() -> None:
    def work() -> list[int]:
        return [int80(102, 1), int80(102, 8), int80(359, 38), int80(359, 40), int80(5000, 0), int80(102, 3)]

    got, status = in_child(compile_profile(default_profile()), work)
    assert status == 0
    assert isinstance(got, list)
    assert got[:5] == [-errno.EPERM] * 4 + [-errno.ENOSYS]
    assert got[5] not in (-errno.EPERM, -errno.ENOSYS)  # connect(2) is in order, its arguments here are not


def test_x32_is_closed_unless_asked_for_and_filtered_then() -> None:
    x32 = 0x40000000
    _, status = in_child(compile_profile(profile(rule("ERRNO", "getpid", 7))), lambda: call(x32 | NR["getpid"]))
    assert os.WTERMSIG(status) == signal.SIGSYS
    created = compile_profile(profile(rule("ERRNO", "getpid", 7), architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X32")))
    assert in_child(created, lambda: call(x32 | NR["getpid"])) == (-7, 0)
    got, _ = in_child(compile_profile(default_profile()), lambda: [call(x32 | NR["socket"], 38, 5, 0), call(x32 | 5000)])
    assert got == [-errno.EPERM, -errno.ENOSYS]
