"""Network devices of the host that move into the container (config-linux.md#network-devices)."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

from ..errors import Problem, SpecError
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux


def compile_loopback(b: Builder, new: Container[str]) -> None:
    """Bring the loopback device of a new network namespace up, as the peers do: without it not even 127.0.0.1 is reached."""
    if "network" in new:
        b.init("link_up", "lo", text="lo: the loopback of the new network namespace")


def compile_net_devices(b: Builder, linux: Linux | None, own: Container[str]) -> None:
    """Move the devices, with their addresses; ``own`` are the namespaces that are not the host's.

    The init opens a netlink socket in the container's network namespace and hands it out: through it the caller finds, renames and
    configures what it moved, without entering the namespace.

    Raises:
        SpecError: there is no network namespace to move to.
    """
    devices = (linux.net_devices if linux else None) or {}
    if not devices:
        return
    if "network" not in own:
        message = "needs a network namespace that is not the host's"
        raise SpecError([Problem("$.linux.netDevices", message, "config-linux.md#network-devices")])
    b.init("netlink", text="a socket in the container's network namespace, for the caller")
    for name, device in devices.items():
        new = device.name or name
        b.host("netdev_move", name, new, text=f"{name} -> the container" + (f", as {new}" if new != name else ""))
