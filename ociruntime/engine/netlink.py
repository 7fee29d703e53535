"""Moving a network device of the host into a container and back, with the messages of rtnetlink(7) that this takes."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from .launch import Init

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


def move_device(init: Init, name: str, new: str) -> Callable[[], None]:
    """Move a device into the container with its permanent addresses of global scope, and bring it up.

    Returns:
        A function that moves it back.

    Raises:
        OSError: ENODEV when the host has no such device, EEXIST when a device of the container has the new name.
    """
    socket = init.files["netlink"]
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
