"""Moving a network device of the host into the container, and back when the rest of its creation fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from .launch import Init
from .rtnetlink import Address, Link, Netlink


def move(init: Init | None, name: str, new: str) -> Callable[[], None]:
    """Move a device with its permanent addresses of global scope and bring it up; gives what brings it back.

    Raises:
        OSError: ENODEV when the host has no such device, EEXIST when the container has the new name already.
    """
    assert init is not None, "a step behind the clone"
    socket = init.files["netlink"]
    with Netlink.here() as host, Netlink.of(socket) as inside:
        link = host.link(name)
        addresses = host.addresses(link.number)
        before = inside.links()
        if any(other.name == new for other in before):
            raise FileExistsError(errno.EEXIST, "the container has a network device of this name", new)
        host.move(link.number, new, pid=init.pid)
        moved = _arrived(inside, {other.number for other in before}, link.number, new)

        def back() -> None:
            _bring_back(socket, moved, link, addresses)

        try:
            for address in addresses:
                inside.add_address(moved.number, address)
            inside.set_up(moved.number)
        except BaseException:
            back()
            raise
    return back


def _arrived(inside: Netlink, before: set[int], index: int, name: str) -> Link:
    """The device where it is now: the kernel may have chosen its name from a template, and another number for it."""
    fresh = [link for link in inside.links() if link.number not in before]
    found = [link for link in fresh if link.name == name] or [link for link in fresh if link.number == index] or fresh
    if not found:
        raise OSError(errno.ENODEV, "the network device is gone", name)
    return found[0]


def _bring_back(socket: int, moved: Link, link: Link, addresses: list[Address]) -> None:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with Netlink.of(socket) as inside, Netlink.here() as host:
            inside.move(moved.number, link.name, fd=home)
            here = host.link(link.name)
            for address in addresses:
                host.add_address(here.number, address)
            if link.up:
                host.set_up(here.number)
    finally:
        os.close(home)
