"""The BPF program that decides which devices the processes of a v2 cgroup may use (bpf(2))."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..._native import check, ffi, lib
from ...errors import UnsupportedError
from .tree import read, read_if_exists, write, write_set

if TYPE_CHECKING:
    from ...plan.model import Step


_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _GET_FD_BY_ID, _GET_INFO, _QUERY = 5, 8, 9, 13, 15, 16
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
NAME: Final = b"oci_devices"
"""Name of the program, which tells it from programs that others, such as systemd, attach to the same cgroup."""


def _bpf(command: int, layout: str, *values: object) -> tuple[int, bytes]:
    attr = ffi.new("char[]", struct.pack(layout, *values))
    size = struct.calcsize(layout)
    result: int = check(lib.oci_bpf(command, attr, size))
    return result, bytes(ffi.buffer(attr, size))


def load(program: bytes) -> int:
    """Load a program and return its descriptor.

    Raises:
        OSError: the verifier refuses it, or this process may not load programs.
        UnsupportedError: the kernel has no BPF for cgroups.
    """
    code = ffi.from_buffer(program)
    license = ffi.new("char[]", b"Apache-2.0")
    address = [int(ffi.cast("uintptr_t", pointer)) for pointer in (code, license)]
    count = len(program) // 8
    try:
        values = (_CGROUP_DEVICE_PROGRAM, count, address[0], address[1], 0, 0, 0, 0, 0, NAME, 0, _CGROUP_DEVICE)
        return _bpf(_PROG_LOAD, "=IIQQIIQII16sII", *values)[0]
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL) and not _has_bpf():
            raise UnsupportedError("device rules on cgroup v2 need a kernel with CONFIG_CGROUP_BPF") from error
        raise


def _has_bpf() -> bool:
    try:
        os.close(_bpf(_PROG_LOAD, "=IIQQ", 1, 0, 0, 0)[0])
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def attached(directory: int) -> list[int]:
    """Return the ids of the device programs that are attached to this cgroup itself. Raises OSError."""
    ids = ffi.new("uint32_t[]", 64)
    _, answer = _bpf(_QUERY, "=IIIIQI4x", directory, _CGROUP_DEVICE, 0, 0, int(ffi.cast("uintptr_t", ids)), 64)
    count = struct.unpack_from("=I", answer, 24)[0]
    return [ids[index] for index in range(count)]


@contextmanager
def _open_current(directory: int) -> Iterator[int]:
    """Open the program of this runtime on a cgroup, for the block; -1 if there is none. Raises OSError."""
    found = -1
    try:
        for number in attached(directory):
            fd = _bpf(_GET_FD_BY_ID, "=III", number, 0, 0)[0]
            if _name(fd) == NAME:
                found = fd
                break
            os.close(fd)
        yield found
    finally:
        if found >= 0:
            os.close(found)


def _name(fd: int) -> bytes:
    info = ffi.new("char[]", 80)
    _bpf(_GET_INFO, "=IIQ", fd, 80, int(ffi.cast("uintptr_t", info)))
    return bytes(ffi.buffer(info, 80))[64:80].rstrip(b"\0")


def attach(path: str, program: bytes) -> None:
    """Attach a program to a cgroup. It replaces an earlier one of this runtime atomically: no device is accessible in between.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN.
        UnsupportedError: the kernel has no BPF for cgroups.
    """
    fd = load(program)
    try:
        attach_fd(path, fd)
    finally:
        os.close(fd)


def current(path: str) -> int | None:
    """Return a descriptor of this runtime's program on a cgroup, for the caller to close; None without one. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_current(directory) as fd:
            return os.dup(fd) if fd >= 0 else None
    finally:
        os.close(directory)


def detach(path: str) -> None:
    """Detach this runtime's program from a cgroup. No effect if there is none. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_current(directory) as fd:
            if fd >= 0:
                _bpf(_PROG_DETACH, "=IIII", directory, fd, _CGROUP_DEVICE, 0)
    finally:
        os.close(directory)


def attach_fd(path: str, fd: int) -> None:
    """Attach a program that is loaded, as `attach` does. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_current(directory) as old:
            flags = _ALLOW_MULTI if old < 0 else _ALLOW_MULTI | _REPLACE
            _bpf(_PROG_ATTACH, "=IIIII", directory, fd, _CGROUP_DEVICE, flags, max(old, 0))
    finally:
        os.close(directory)


_BY_KEY: Final = {
    "io.max": "rbps=max wbps=max riops=max wiops=max",
    "io.weight": "default",
    "io.bfq.weight": "default",
    "blkio.weight_device": "default",
    "blkio.leaf_weight_device": "default",
    "blkio.bfq.weight_device": "default",
    "blkio.throttle.read_bps_device": "0",
    "blkio.throttle.write_bps_device": "0",
    "blkio.throttle.read_iops_device": "0",
    "blkio.throttle.write_iops_device": "0",
    "net_prio.ifpriomap": "0",
    "rdma.max": "hca_handle=max hca_object=max",
}
"""Files with a line for each device, and the value of a device that has no line."""


class Rollback:
    """Records the values that steps are about to change. `restore` writes them back, the last change first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._fds: list[int] = []

    def record(self, step: Step) -> None:
        """Record what a step of the host will change. Raises OSError."""
        if step.op == "cgroup_devices":
            self._undo.append(self._program(str(step.values[0])))
        elif step.op in _RECORDERS:
            self._undo.append(_RECORDERS[step.op](*step.values))

    def _program(self, path: str) -> Callable[[], None]:
        fd = current(path)
        if fd is None:
            return lambda: detach(path)
        self._fds.append(fd)
        return lambda: attach_fd(path, fd)

    def restore(self) -> list[OSError]:
        """Restore everything that was recorded. Return the errors of what could not be restored."""
        failures = []
        for undo in reversed(self._undo):
            try:
                undo()
            except OSError as error:
                failures.append(error)
        self._undo.clear()
        return failures

    def close(self) -> None:
        """Discard what was recorded."""
        for fd in self._fds:
            os.close(fd)
        self._undo, self._fds = [], []


def current_lines(path: str, file: str, value: str) -> list[str]:
    """Return the lines that restore the present content of a file after ``value`` has been written to it."""
    lines = list(filter(str.strip, read(path, file).splitlines()))
    if file == "memory.oom_control":
        return [line.split()[1] for line in lines if line.startswith("oom_kill_disable ")]
    key, _, rest = value.partition(" ")
    if file not in _BY_KEY:
        return lines or ["\n"]
    if not rest:
        return [line.split()[-1] for line in lines if line.startswith("default ") or " " not in line][:1]
    line = next((line for line in lines if line.startswith(key + " ")), None)
    return [line or f"{key} {_BY_KEY[file]}"]


def _one(path: str, file: str, value: str, member: str) -> Callable[[], None]:
    if not os.path.exists(f"{path}/{file}"):
        return lambda: None  # the step will report it
    lines = current_lines(path, file, value)
    inherited = read_if_exists(path, f"{file}.effective") if lines == ["\n"] else None

    def restore() -> None:
        try:
            write(path, file, *lines)
        except OSError as error:
            if error.errno != errno.ENOSPC or inherited is None:
                raise
            # A v2 cpuset with processes in it cannot be emptied: write what was in effect.
            write(path, file, inherited)

    return restore


def _first(path: str, choices: Iterable[tuple[str, str]], optional: bool, member: str) -> Callable[[], None]:
    return next((_one(path, file, value, member) for file, value in choices if os.path.exists(f"{path}/{file}")), lambda: None)


def _set(path: str, values: Iterable[tuple[str, str, bool, str]]) -> Callable[[], None]:
    there = [(file, member) for file, _, _, member in values if os.path.exists(f"{path}/{file}")]
    old = [(file, line, False, member) for file, member in there for line in current_lines(path, file, "")]
    return lambda: write_set(path, old)


def _lines(path: str, file: str, lines: Iterable[str]) -> Callable[[], None]:
    old = read(path, "devices.list").splitlines()

    def restore() -> None:
        write(path, "devices.deny", "a")
        write(path, "devices.allow", *("a" if line.startswith("a") else line for line in old))

    return restore


def _schemata(group: str, lines: Iterable[str]) -> Callable[[], None]:
    names = {line.partition(":")[0].strip() for line in lines}
    # The kernel pads the values with blanks, which it does not accept.
    there = ["".join(line.split()) for line in read(group, "schemata").splitlines()]
    old = [line for line in there if line.partition(":")[0] in names]
    return lambda: write(group, "schemata", *(f"{line}\n" for line in old))


_RECORDERS: Final[dict[str, Callable[..., Callable[[], None]]]] = {
    "cgroup_write": _one,
    "cgroup_write_first": _first,
    "cgroup_write_set": _set,
    "cgroup_write_lines": _lines,
    "rdt_schemata": _schemata,
}
