"""Network devices of the host that move into the container (config-linux.md#network-devices)."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux

_SECTION: Final = "config-linux.md#network-devices"
_MAX_NAME: Final = 15


def _checked(name: str, where: str, *, template: bool) -> str:
    plain = name.replace("%d", "", 1) if template else name
    if (
        not name
        or len(name.encode()) > _MAX_NAME
        or name in (".", "..")
        or any(c in "/:%" or c.isspace() or not c.isprintable() for c in plain)
    ):
        raise SpecError(
            [Problem(where, f"{name!r} is no name of a network device: 1 to {_MAX_NAME} bytes without / : %", _SECTION)]
        )
    return name


def compile_loopback(b: Builder, new: Container[str]) -> None:
    """Bring the loopback device of a new network namespace up, as the peers do: without it not even 127.0.0.1 is reached."""
    if "network" in new:
        b.init("link_up", "lo", text="lo: the loopback of the new network namespace")


def compile_net_devices(b: Builder, linux: Linux | None, own: Container[str]) -> None:
    """Move the devices, with their addresses; ``own`` are the namespaces that are not the host's.

    The init opens a netlink socket in the container's network namespace and hands it out: through it the caller finds, renames and
    configures what it moved, without entering the namespace.

    Raises:
        SpecError: a bad name, the same name twice, or no network namespace to move to.
    """
    devices = (linux.net_devices if linux else None) or {}
    if not devices:
        return
    if "network" not in own:
        raise SpecError([Problem("$.linux.netDevices", "needs a network namespace that is not the host's", _SECTION)])
    taken: set[str] = set()
    moves: list[tuple[str, str]] = []
    for name, device in devices.items():
        where = f"$.linux.netDevices[{name!r}]"
        new = _checked(device.name or name, f"{where}.name" if device.name else where, template=bool(device.name))
        if "%d" not in new and new in taken:
            raise SpecError([Problem(where, f"two devices cannot both be {new}", _SECTION)])
        taken.add(new)
        moves.append((_checked(name, where, template=False), new))
    b.init("netlink", text="a socket in the container's network namespace, for the caller")
    for name, new in moves:
        b.host("netdev_move", name, new, text=f"{name} -> the container" + (f", as {new}" if new != name else ""))
