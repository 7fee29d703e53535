"""The steps of a plan that the calling process executes: one function for each operation (`ociruntime.plan.model.HOST_OPS`)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from ..host import map_by_helper
from . import cgroup
from .cgroup import devices
from .cgroup.tree import MAKE, MAKE_CPUSET, OPEN, WRITE

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


# ---- moving a network device into a container and back, with the messages of rtnetlink(7) that this takes ----

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_NLMSG_ERROR, _NLMSG_DONE, _OVERRUN = 2, 3, 4
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 18, 20, 22
_REQUEST, _ACK, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_IFNAME, _NET_NS_PID, _NET_NS_FD = 3, 19, 28
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_PRIORITY, _IFA_PROTO = 1, 2, 4, 8, 9, 11
_KEPT: Final = frozenset({_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_PRIORITY, _IFA_PROTO})
_PERMANENT, _NO_DAD = 0x80, 0x02
_UP: Final = 1
_INET6: Final = 10


class Link(NamedTuple):
    """A network device."""

    number: int
    name: str
    up: bool


class Address(NamedTuple):
    """A permanent address of global scope, with the attributes that are copied to another device."""

    family: int
    prefix: int
    flags: int
    attributes: tuple[tuple[int, bytes], ...]


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    while len(raw) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(raw)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, raw[_ATTRIBUTE.size : size]
        raw = raw[size + -size % 4 :]


class Netlink:
    """A netlink socket of one network namespace, the one in which it was created. Every method raises OSError."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sequence = 0

    @classmethod
    def of_thread(cls) -> Self:
        """Open a socket in the network namespace of this thread."""
        return cls(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Use a socket that was created in another namespace. The descriptor is duplicated."""
        return cls(socket.socket(fileno=os.dup(fd)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def _request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send a request. Return the types and contents of all answers."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            raw = self._socket.recv(1 << 20)
            while len(raw) >= _HEADER.size:
                size, answer, _, sequence, _ = _HEADER.unpack_from(raw)
                content, raw = raw[_HEADER.size : size], raw[size + -size % 4 :]
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", content)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return answers
                if answer == _NLMSG_DONE:
                    return answers
                answers.append((answer, content))

    def links(self) -> list[Link]:
        """Return all devices."""
        found = []
        for kind, content in self._request(_GET_LINK, _DUMP, _LINK.pack(0, 0, 0, 0, 0)):
            if kind == _NEW_LINK:
                _, _, index, flags, _ = _LINK.unpack_from(content)
                name = dict(_attributes(content[_LINK.size :])).get(_IFNAME, b"").rstrip(b"\0")
                found.append(Link(index, os.fsdecode(name), bool(flags & _UP)))
        return found

    def link(self, name: str) -> Link:
        """Return the device with this name. Raises OSError: ENODEV when there is none."""
        found = next((link for link in self.links() if link.name == name), None)
        if found is None:
            raise OSError(errno.ENODEV, "no such network device", name)
        return found

    def addresses(self, index: int) -> list[Address]:
        """Return the permanent addresses of global scope of a device."""
        found = []
        for kind, content in self._request(_GET_ADDRESS, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)):
            family, prefix, flags, scope, device = _ADDRESS.unpack_from(content)
            if kind != _NEW_ADDRESS or device != index or scope != 0:
                continue
            attributes = dict(_attributes(content[_ADDRESS.size :]))
            if _IFA_FLAGS in attributes:
                flags = struct.unpack("=I", attributes[_IFA_FLAGS])[0]
            if flags & _PERMANENT:
                kept = tuple((kind, value) for kind, value in attributes.items() if kind in _KEPT)
                found.append(Address(family, prefix, flags, kept))
        return found

    def add_address(self, index: int, address: Address) -> None:
        """Add an address to a device, without duplicate address detection (IPv6): it was checked in the other namespace."""
        flags = address.flags & ~_PERMANENT | (_NO_DAD if address.family == _INET6 else 0)
        body = _ADDRESS.pack(address.family, address.prefix, flags & 0xFF, 0, index)
        body += b"".join(_attribute(kind, value) for kind, value in address.attributes)
        self._request(_NEW_ADDRESS, _ACK | _CREATE | _EXCLUSIVE, body + _attribute(_IFA_FLAGS, struct.pack("=I", flags)))

    def set_up(self, index: int) -> None:
        """Bring a device up."""
        self._request(_NEW_LINK, _ACK, _LINK.pack(0, 0, index, _UP, _UP))

    def move(self, index: int, name: str, *, pid: int = 0, fd: int = -1) -> None:
        """Rename a device and move it to the network namespace of a process, or to that of the descriptor ``fd``."""
        target = _attribute(_NET_NS_FD, struct.pack("=I", fd)) if fd >= 0 else _attribute(_NET_NS_PID, struct.pack("=I", pid))
        # A device must be down to be renamed.
        self._request(_NEW_LINK, _ACK, _LINK.pack(0, 0, index, 0, _UP) + target + _attribute(_IFNAME, os.fsencode(name) + b"\0"))


def _netdev_move(init: Init | None, name: str, new: str) -> Callable[[], None]:
    """Move a device into the container with its permanent addresses of global scope, and bring it up.

    Returns:
        A function that moves it back.

    Raises:
        OSError: ENODEV when the host has no such device, EEXIST when a device of the container has the new name.
    """
    assert init is not None, "the init process runs"
    socket = init.files["socket"]
    with Netlink.of_thread() as host, Netlink.from_fd(socket) as container:
        link = host.link(name)
        addresses = host.addresses(link.number)
        before = container.links()
        if any(other.name == new for other in before):
            raise FileExistsError(errno.EEXIST, "the container has a network device of this name", new)
        host.move(link.number, new, pid=init.pid)
        moved = _find_moved(container, {other.number for other in before}, link.number, new)

        def move_back() -> None:
            _move_back(socket, moved, link, addresses)

        try:
            for address in addresses:
                container.add_address(moved.number, address)
            container.set_up(moved.number)
        except BaseException:
            move_back()
            raise
    return move_back


def _find_moved(container: Netlink, before: set[int], index: int, name: str) -> Link:
    """Return the device in the container: the kernel may have chosen its name from a template, and another index."""
    new = [link for link in container.links() if link.number not in before]
    found = [link for link in new if link.name == name] or [link for link in new if link.number == index] or new
    if not found:
        raise OSError(errno.ENODEV, "the network device has disappeared", name)
    return found[0]


def _move_back(socket: int, moved: Link, link: Link, addresses: list[Address]) -> None:
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink.from_fd(socket) as container, Netlink.of_thread() as host:
            container.move(moved.number, link.name, fd=namespace)
            here = host.link(link.name)
            for address in addresses:
                host.add_address(here.number, address)
            if link.up:
                host.set_up(here.number)
    finally:
        os.close(namespace)


# ---- the table ----

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


def _native_mkdir(path: str, cpuset: bool, given: Sequence[str]) -> list[str]:
    return [] if given else [f"{MAKE_CPUSET if cpuset else MAKE}{path}"]


def _native_write(path: str, file: str, value: str, member: str) -> list[str]:
    return [f"{OPEN}{path}/{file}", f"{WRITE}{value}"]


def _native_write_lines(path: str, file: str, lines: Sequence[str]) -> list[str]:
    return [f"{OPEN}{path}/{file}", *(f"{WRITE}{line}" for line in lines)]


_NATIVE: Final[dict[str, Callable[..., list[str]]]] = {
    "cgroup_mkdir": _native_mkdir,
    "cgroup_write": _native_write,
    "cgroup_write_lines": _native_write_lines,
}
"""The operations of `cgroup.batch` for a step; an empty list for one that takes more than that."""


def execute_together(steps: Iterable[Step]) -> int:
    """Execute the first steps in one native call.

    Returns:
        How many of them. The next one takes `execute_step`, which also knows why it cannot be carried out. It was not begun, or can
        be begun again.
    """
    operations: list[str] = []
    ends: list[int] = []
    for step in steps:
        native = _NATIVE[step.op](*step.values) if step.op in _NATIVE else []
        if not native:
            break
        operations += native
        ends.append(len(operations))
    return bisect_right(ends, cgroup.batch(operations))


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
