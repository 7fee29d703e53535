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
        mode = 0o666 if device.file_mode is None else device.file_mode & 0o7777
        shown = str(device.type) if kind == k.S_IFIFO else f"{device.type} {major}:{minor}"
        text = f"{path} {shown} {mode:04o}"
        nodes.append(_Node(path, kind, k.makedev(major, minor), mode, device.uid or 0, device.gid or 0, text))
    return nodes


class Devices:
    """The devices of one container: made in its own /dev; in a /dev that is the host's they must be there already.

    In a user namespace nobody may make any: those of the host are bound instead.
    """

    def __init__(self, b: Builder, devices: tuple[Device, ...], mounts: Mounts, *, user: bool) -> None:
        """Open what comes from the host. Raises SpecError."""
        self.b = b
        self._mounts = mounts
        self._bound = any(mount.destination == "/dev" and mount.fstype == "bind" for mount in mounts.prepared)
        nodes = [
            _Node(f"/dev/{name}", k.S_IFCHR, k.makedev(major, minor), 0o666, 0, 0, f"/dev/{name} c {major}:{minor} 0666")
            for name, major, minor in DEFAULT_DEVICES
        ]
        own = _nodes(devices)
        taken = {node.path for node in own}
        self._nodes = [*(() if self._bound else (node for node in nodes if node.path not in taken)), *own]
        self._from_host = {node.path: self._open(node) for node in self._nodes if user and self._is_bound(node)}

    def compile(self, root: int, attached: dict[str, int]) -> None:
        """The steps that make the nodes and links."""
        directories = {"/dev": attached["/dev"]} if "/dev" in attached else {}
        for node in self._nodes:
            if self._bound and below(node.path, "/dev"):
                self._check(root, node)
                continue
            if node.path in self._from_host:
                self._attach(root, node)
                continue
            if node.directory not in directories:
                slot = directories[node.directory] = self.b.slot()
                text = f"{node.directory}, made where missing"
                self.b.init("target", root, node.directory, Target(0), 0o755, NO_SLOT, slot, text=text)
            directory = directories[node.directory]
            self.b.init("mknod", directory, node.name, node.kind | node.mode, node.number, node.uid, node.gid, text=node.text)
        if not self._bound:
            if "/dev" not in directories:
                directories["/dev"] = self.b.slot()
                self.b.init("target", root, "/dev", Target(0), 0o755, NO_SLOT, directories["/dev"], text="/dev, made where missing")
            for name, target in DEFAULT_LINKS:
                self.b.init("symlink", directories["/dev"], name, target, text=f"/dev/{name} -> {target}")

    def _is_bound(self, node: _Node) -> bool:
        return node.kind != k.S_IFIFO and not (self._bound and below(node.path, "/dev"))

    def _open(self, node: _Node) -> int:
        slot = self.b.slot()
        self.b.init("open_tree", NO_SLOT, node.path, k.OPEN_TREE_CLONE, slot, text=f"{node.path} of the host")
        self.b.init("prove_dev", slot, node.kind, node.number, text=node.text)
        return slot

    def _attach(self, root: int, node: _Node) -> None:
        slot = self._from_host[node.path]
        target = self._mounts.target(root, node.path, Target.FILE, NO_SLOT)
        self.b.init("move_mount", slot, target, text=f"the host's {node.path} -> {node.path}")

    def _check(self, root: int, node: _Node) -> None:
        """Nothing is made in the host's /dev."""
        slot = self._mounts.scratch()
        in_root = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
        self.b.init("open", root, node.path, k.O_PATH, 0, in_root, slot, text=f"{node.path}, of the host")
        self.b.init("prove_dev", slot, node.kind, node.number, text=node.text)
