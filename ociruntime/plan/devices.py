"""The default devices and links in /dev, and those that the config asks for (config-linux.md, Devices, Default Devices)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError
from . import kernel as k
from .model import NO_SLOT, Builder
from .mounts import destination_in_root

if TYPE_CHECKING:
    from ..spec import Device

DEFAULT_DEVICES: Final = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEFAULT_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_TYPES: Final = {"c": k.S_IFCHR, "u": k.S_IFCHR, "b": k.S_IFBLK, "p": k.S_IFIFO}


def compile_devices(b: Builder, devices: tuple[Device, ...], root: int) -> None:
    """Make the default devices and links in /dev, then the config's own below the root."""
    dev = b.slot()
    b.init("target", root, "/dev", 0, 0o755, NO_SLOT, dev, text="/dev")
    for name, major, minor in DEFAULT_DEVICES:
        b.init("mknod", dev, name, k.S_IFCHR | 0o666, k.makedev(major, minor), 0, 0, text=f"/dev/{name} c {major}:{minor} 0666")
    for name, target in DEFAULT_LINKS:
        b.init("symlink", dev, name, target, text=f"/dev/{name} -> {target}")
    for index, device in enumerate(devices):
        path = destination_in_root(device.path)
        kind = _TYPES.get(str(device.type))
        if kind is None:
            raise SpecError(
                [Problem(f"$.linux.devices[{index}].type", f"{device.type!r} is none of c, u, b, p", "config-linux.md#devices")]
            )
        number = k.makedev(device.major or 0, device.minor or 0)
        mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
        parent, name = posixpath.split(path)
        directory = b.slot()
        b.init("target", root, parent, 0, 0o755, NO_SLOT, directory, text=f"{parent}, made where missing")
        b.init(
            "mknod", directory, name, kind | mode, number, device.uid or 0, device.gid or 0,
            text=f"{path} {device.type} {device.major or 0}:{device.minor or 0} {mode:04o}",
        )  # fmt: skip
