"""The steps of a plan that the calling process executes: one function for each operation (`ociruntime.plan.model.HOST_OPS`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError
from . import cgroup
from .cgroup import devices

if TYPE_CHECKING:
    from ..plan.model import Step
    from .launch import Init


def _cgroup_mkdir(init: Init | None, path: str, cpuset: bool, given: Sequence[str]) -> None:
    cgroup.make(path, cpuset, given)


def _cgroup_write(init: Init | None, path: str, file: str, value: str, member: str) -> None:
    cgroup.write(path, file, value, member=member)


def _cgroup_write_first(init: Init | None, path: str, choices: Sequence[tuple[str, str]], optional: bool, member: str) -> None:
    cgroup.write_first(path, choices, optional, member)


def _cgroup_write_lines(init: Init | None, path: str, file: str, lines: Sequence[str]) -> None:
    cgroup.write(path, file, *lines, member="devices")


def _cgroup_write_set(init: Init | None, path: str, values: Sequence[tuple[str, str, bool, str]]) -> None:
    cgroup.write_set(path, values)


def _cgroup_enable(init: Init | None, path: str, mountpoint: str, needed: Sequence[str], desired: Sequence[str]) -> None:
    cgroup.enable(path, mountpoint, needed, desired)


def _cgroup_check(init: Init | None, path: str, memory: int, swap: int) -> None:
    cgroup.check_memory(path, memory, swap)


def _cgroup_realtime(init: Init | None, path: str, mountpoint: str, runtime: int, period: int) -> None:
    cgroup.give_realtime(path, mountpoint, runtime, period)


def _cgroup_delegate(init: Init | None, path: str, uid: int) -> None:
    cgroup.delegate(path, uid)


def _cgroup_devices(init: Init | None, path: str, program: bytes) -> None:
    devices.attach(path, program)


def _systemd_scope(
    init: Init | None, unit: str, properties: Sequence[tuple[str, str, object]], path: str, directories: Sequence[str], user: bool
) -> None:
    from .systemd import start_scope

    assert init is not None, "the init process runs"
    start_scope(unit, properties, path, user=user, pid=init.pid)


def _systemd_attach(init: Init | None, unit: str, below: str, user: bool) -> None:
    from .systemd import attach

    assert init is not None, "the init process runs"
    attach(unit, below, init.pid, user=user)


def _systemd_set(init: Init | None, unit: str, properties: Sequence[tuple[str, str, object]], user: bool) -> None:
    from .systemd import set_properties

    set_properties(unit, properties, user=user)


def _proc_write(init: Init | None, file: str, text: str) -> None:
    assert init is not None, "the init process runs"
    with open(f"/proc/{init.pid}/{file}", "w", encoding="ascii") as opened:
        opened.write(text)


def _idmap(init: Init | None, file: str, text: str, helper: str) -> None:
    assert init is not None, "the init process runs"
    if helper:
        map_by_helper(helper, init.pid, text)
    else:
        _proc_write(init, file, text)


_HELPER_TIMEOUT: Final = 30.0
"""Seconds for a helper, which may query a directory service."""


def map_by_helper(helper: str, pid: int, text: str) -> None:
    """Write an id mapping by newuidmap or newgidmap (newuidmap(1)), for a user without privileges.

    Args:
        helper: the path of the helper.
        pid: the process, which waits for its mapping.
        text: the mapping, as in /proc/PID/uid_map.

    Raises:
        UnsupportedError: the helper failed; with its message.
    """
    import subprocess

    command = [helper, str(pid), *text.split()]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={},
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"{helper} took more than {_HELPER_TIMEOUT:.0f} s") from None
    if done.returncode != 0:
        raise UnsupportedError(f"{helper} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")


def _netdev_move(init: Init | None, name: str, new: str) -> Callable[[], None]:
    from .netlink import move_device

    assert init is not None, "the init process runs"
    return move_device(init, name, new)


# ---- groups of the resctrl filesystem (config-linux.md#intelrdt) ----


def _rdt_make(init: Init | None, group: str) -> None:
    """Create a group for the container. Raises FileExistsError; OSError: ENOSPC when the hardware has no more groups."""
    os.mkdir(group, 0o755)


def _rdt_schemata(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """Write lines to the schemata of a group. Raises OSError."""
    for line in lines:
        fd = os.open(f"{group}/schemata", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(fd, f"{line}\n".encode())
        finally:
            os.close(fd)


def _rdt_class(init: Init | None, group: str, lines: Sequence[str]) -> None:
    """Create a class of service, which outlives the container, or check the existing one.

    Args:
        lines: the schemata of a new class; an existing one must have them.

    Raises:
        FileNotFoundError: it does not exist, and lines to create it with are missing.
        FileExistsError: it has other schemata.
        OSError: the kernel refuses it.
    """
    if lines:
        try:
            os.mkdir(group, 0o755)
        except FileExistsError:
            _rdt_compare(group, lines)
        else:
            try:
                _rdt_schemata(init, group, lines)
            except BaseException:
                os.rmdir(group)
                raise
    elif not os.path.isdir(group):
        raise FileNotFoundError(errno.ENOENT, "the class of service does not exist; give schemata to create it with", group)


def _rdt_join(init: Init | None, group: str) -> None:
    """Move the init process into a group. Raises OSError."""
    assert init is not None, "the init process runs"
    fd = os.open(f"{group}/tasks", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, f"{init.pid}\n".encode())
    finally:
        os.close(fd)


def _rdt_line(line: str) -> tuple[str, dict[str, str]]:
    """Parse a line such as ``L3:0=f;1=0ff``: the resource, and values by domain without the leading zeros that the kernel adds."""
    resource, _, domains = line.strip().partition(":")
    pairs = (domain.partition("=") for domain in domains.split(";") if domain.strip())
    return resource.strip(), {key.strip(): value.strip().lower().lstrip("0") or "0" for key, _, value in pairs}


def _rdt_compare(group: str, lines: Sequence[str]) -> None:
    with open(f"{group}/schemata", encoding="ascii") as file:
        existing = dict(_rdt_line(line) for line in file if line.strip())
    for line in lines:
        resource, values = _rdt_line(line)
        if {domain: existing.get(resource, {}).get(domain) for domain in values} != values:
            raise FileExistsError(errno.EEXIST, f"the class of service exists and differs from {line!r}", group)


_FUNCTIONS: Final[dict[str, Callable[..., Callable[[], None] | None]]] = {
    "cgroup_mkdir": _cgroup_mkdir,
    "cgroup_write": _cgroup_write,
    "cgroup_write_first": _cgroup_write_first,
    "cgroup_write_lines": _cgroup_write_lines,
    "cgroup_write_set": _cgroup_write_set,
    "cgroup_enable": _cgroup_enable,
    "cgroup_check": _cgroup_check,
    "cgroup_realtime": _cgroup_realtime,
    "cgroup_delegate": _cgroup_delegate,
    "cgroup_devices": _cgroup_devices,
    "idmap": _idmap,
    "proc_write": _proc_write,
    "systemd_attach": _systemd_attach,
    "systemd_scope": _systemd_scope,
    "systemd_set": _systemd_set,
    "netdev_move": _netdev_move,
    "rdt_make": _rdt_make,
    "rdt_schemata": _rdt_schemata,
    "rdt_class": _rdt_class,
    "rdt_join": _rdt_join,
}


def execute_step(step: Step, init: Init | None) -> Callable[[], None] | None:
    """Execute one step.

    Args:
        init: the init process; None before the clone.

    Returns:
        A function that takes the step back, for a step that no undo record covers.

    Raises:
        OSError, UnsupportedError: the step failed.
    """
    return _FUNCTIONS[step.op](init, *step.values)
