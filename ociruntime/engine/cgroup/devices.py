"""The BPF program that decides which devices the processes of a v2 cgroup may use (bpf(2))."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..._native import check, ffi, lib
from ...errors import UnsupportedError

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
    """Open the program of ours on a cgroup, for the block; -1 if there is none. Raises OSError."""
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
    """Attach a program to a cgroup. It replaces an earlier one of ours atomically, so that no device is accessible meanwhile.

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
    """Return a descriptor of our program on a cgroup, which the caller closes; None if there is none. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _open_current(directory) as fd:
            return os.dup(fd) if fd >= 0 else None
    finally:
        os.close(directory)


def detach(path: str) -> None:
    """Detach our program from a cgroup. No effect if there is none. Raises OSError."""
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
