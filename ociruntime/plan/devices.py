"""The default devices and links in /dev, and those that the config asks for (config-linux.md, Devices, Default Devices)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError
from . import kernel as k
from .model import NO_SLOT, Builder
from .ops import Target
from .paths import below, destination_in_root

if TYPE_CHECKING:
    from ..spec import Device
    from .mounts import Mounts

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


class _Node:
    """A device node to be: checked values of an entry of `linux.devices`, or of a default device."""

    def __init__(self, path: str, kind: int, number: int, mode: int, uid: int, gid: int, text: str) -> None:
        self.path, self.kind, self.number, self.mode, self.uid, self.gid, self.text = path, kind, number, mode, uid, gid, text
        self.directory, self.name = posixpath.split(path)


def _nodes(devices: tuple[Device, ...]) -> list[_Node]:
    nodes = []
    for index, device in enumerate(devices):
        kind = _TYPES.get(str(device.type))
        where, section = f"$.linux.devices[{index}]", "config-linux.md#devices"
        if kind is None:
            raise SpecError([Problem(f"{where}.type", f"{device.type!r} is none of c, u, b, p", section)])
        if kind != k.S_IFIFO and (device.major is None or device.minor is None):
            raise SpecError([Problem(where, f"a device of type {device.type} needs major and minor", section)])
        path = destination_in_root(device.path)
        if path == "/":
            raise SpecError([Problem(f"{where}.path", "is the root", section)])
        major, minor = (0, 0) if kind == k.S_IFIFO else (device.major or 0, device.minor or 0)
        mode = 0o666 if device.file_mode is None else device.file_mode & 0o777
        shown = str(device.type) if kind == k.S_IFIFO else f"{device.type} {major}:{minor}"
        text = f"{path} {shown} {mode:04o}"
        nodes.append(_Node(path, kind, k.makedev(major, minor), mode, device.uid or 0, device.gid or 0, text))
    return nodes


class Devices:
    """The devices of one container: made in its own /dev, or the host's where nobody may make any.

    In a /dev that is the host's they must be there already.
    """

    def __init__(self, b: Builder, devices: tuple[Device, ...], mounts: Mounts, *, borrow: bool) -> None:
        """Read the config.

        Args:
            borrow: bind the host's devices of the same path, as the kernel lets nobody make any in a user namespace.

        Raises:
            SpecError: a device is of no type, or lacks its number.
        """
        self.b = b
        self._mounts = mounts
        self._bound = mounts.binds("/dev")
        nodes = [
            _Node(f"/dev/{name}", k.S_IFCHR, k.makedev(major, minor), 0o666, 0, 0, f"/dev/{name} c {major}:{minor} 0666")
            for name, major, minor in DEFAULT_DEVICES
        ]
        own = _nodes(devices)
        taken = {node.path for node in own}
        self._nodes = [*(() if self._bound else (node for node in nodes if node.path not in taken)), *own]
        self._borrow = borrow
        self._borrowed: dict[str, int] = {}

    def sources(self) -> None:
        """The steps that copy the host's devices, while its tree is in sight."""
        for node in self._nodes if self._borrow else ():
            if node.kind != k.S_IFIFO and not (self._bound and below(node.path, "/dev")):
                slot = self._borrowed[node.path] = self.b.slot()
                self.b.init("open", NO_SLOT, node.path, k.O_PATH, 0, 0, slot, text=f"{node.path} of the host")
                self.b.init("prove_dev", slot, node.kind, node.number, text=node.text)
                self.b.init("open_tree", slot, "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH, slot, text=f"the host's {node.path}")

    def compile(self, root: int, attached: dict[str, int]) -> None:
        """The steps that make the nodes and links."""
        directories = {"/dev": attached["/dev"]} if "/dev" in attached else {}
        for node in self._nodes:
            if self._bound and below(node.path, "/dev"):
                self._check(root, node)
                continue
            if node.directory not in directories:
                slot = directories[node.directory] = self.b.slot()
                text = f"{node.directory}, made where missing"
                self.b.init("target", root, node.directory, Target(0), 0o755, NO_SLOT, slot, text=text)
            directory = directories[node.directory]
            if node.path in self._borrowed:
                target = self._mounts.target(directory, node.name, Target.FILE | Target.NO_LINK, NO_SLOT, shown=node.path)
                self.b.init("move_mount", self._borrowed[node.path], target, text=f"the host's {node.path} -> {node.path}")
            else:
                self.b.init("mknod", directory, node.name, node.kind | node.mode, node.number, node.uid, node.gid, text=node.text)
        if not self._bound:
            for name, leads in DEFAULT_LINKS:
                self.b.init("symlink", directories["/dev"], name, leads, text=f"/dev/{name} -> {leads}")

    def _check(self, root: int, node: _Node) -> None:
        """Nothing is made in the host's /dev."""
        slot = self._mounts.scratch()
        in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        self.b.init("open", root, node.path, k.O_PATH, 0, in_root, slot, text=f"{node.path}, of the host")
        self.b.init("prove_dev", slot, node.kind, node.number, text=node.text)
