"""The default devices and links in /dev, and those that the config asks for (config-linux.md, Devices, Default Devices)."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import Problem, SpecError
from ..spec.syntax import destination_in_root, is_below
from . import kernel as k
from .id_mappings import host_id, root_id
from .model import NO_SLOT, Builder
from .namespaces import DETACHED_TREES
from .ops import Target

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Device, IDMapping, Linux
    from .mounts import Mounts
    from .namespaces import Namespaces

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
_SECTION: Final = "config-linux.md#devices"
_TYPES: Final = {"c": k.S_IFCHR, "u": k.S_IFCHR, "b": k.S_IFBLK, "p": k.S_IFIFO}


class _Node(NamedTuple):
    """A device node to be: checked values of an entry of `linux.devices`, or of a default device."""

    path: str
    kind: int
    number: int
    mode: int
    uid: int
    gid: int
    text: str
    where: str = ""
    """Its place in the config; empty for a default device."""
    particular: bool = False
    """Whether the config says whose it is or who may use it."""

    @property
    def directory(self) -> str:
        return posixpath.dirname(self.path)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)


def _nodes(devices: tuple[Device, ...], uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> list[_Node]:
    nodes = []
    for index, device in enumerate(devices):
        kind = _TYPES[str(device.type)]
        where = f"$.linux.devices[{index}]"
        path = destination_in_root(device.path)
        for name, wanted, maps in (("uid", device.uid, uids), ("gid", device.gid, gids)):
            if wanted and maps and host_id(maps, wanted) is None:
                raise SpecError([Problem(f"{where}.{name}", f"{wanted} is not mapped in the user namespace", _SECTION)])
        major, minor = (0, 0) if kind == k.S_IFIFO else (device.major or 0, device.minor or 0)
        mode = 0o666 if device.file_mode is None else device.file_mode & 0o777
        shown = str(device.type) if kind == k.S_IFIFO else f"{device.type} {major}:{minor}"
        particular = any(value is not None for value in (device.file_mode, device.uid, device.gid))
        uid, gid = (wanted or (root_id(maps) if maps else 0) for wanted, maps in ((device.uid, uids), (device.gid, gids)))
        text = f"{path} {shown} {mode:04o}"
        nodes.append(_Node(path, kind, k.makedev(major, minor), mode, uid, gid, text, where, particular))
    return nodes


class Devices:
    """The devices of one container.

    They are made in its own /dev and in its root. No node works that is made in a user namespace, so those of the config are made
    outside of it and bound. The default ones, and all of them where we may make none ourselves, are the host's; where a /dev of
    the host is bound they must be there already.
    """

    def __init__(self, b: Builder, linux: Linux | None, mounts: Mounts, host: Host, spaces: Namespaces) -> None:
        """Read the config.

        Raises:
            SpecError: a device has an owner that is not mapped.
        """
        self.b = b
        self._mounts = mounts
        self._host = host
        self._bound = mounts.binds("/dev")
        mapped = linux if "user" in spaces.new else None
        self._uids, self._gids = (mapped.uid_mappings or (), mapped.gid_mappings or ()) if mapped else ((), ())
        nodes = [
            _Node(f"/dev/{name}", k.S_IFCHR, k.makedev(major, minor), 0o666, 0, 0, f"/dev/{name} c {major}:{minor} 0666")
            for name, major, minor in DEFAULT_DEVICES
        ]
        own = _nodes(tuple((linux.devices if linux else None) or ()), self._uids, self._gids)
        taken = {node.path for node in own}
        self._nodes = [*(() if self._bound else (node for node in nodes if node.path not in taken)), *own]
        here = [node for node in self._nodes if node.kind != k.S_IFIFO and not self._of_a_bound_dev(node)]
        # Only who maps the ids knows them outside: in a namespace that is joined the devices are the host's.
        outside = host.may_mknod and host.privileged and "user" in spaces.new and "mount" in spaces.new
        self._outside = [node for node in here if outside and node.where]
        self._borrowed = [node for node in here if (spaces.user or not host.may_mknod) and node not in self._outside]
        self._slots: dict[_Node, int] = {}
        for node in self._borrowed:
            if node.particular:
                b.warn(f"{node.where}: nobody may make devices here, so mode and owner are those of the host's {node.path}")

    def _of_a_bound_dev(self, node: _Node) -> bool:
        return self._bound and is_below(node.path, "/dev")

    def outside(self) -> None:
        """The steps that make nodes on a filesystem that is not the user namespace's, while the init is in the caller's."""
        if not self._outside:
            return
        b = self.b
        fs, top = b.slot(), b.slot()
        b.init("fsopen", "tmpfs", fs, text="tmpfs, for devices")
        b.init("fsconfig", fs, k.FSCONFIG_SET_STRING, "mode", "700", text="mode=700")
        b.init("fsconfig", fs, k.FSCONFIG_CMD_CREATE, "", "", text="create the tmpfs")
        b.init("fsmount", fs, k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC, top, text="tmpfs, not attached (nosuid,noexec)")
        hung = self._host.kernel < DETACHED_TREES
        if hung:
            # Only what hangs somewhere can be copied, so it hangs over the root of a mount namespace that nobody will see.
            b.init("unshare", k.CLONE_NEW["mount"], text="a mount namespace for it to hang in, before the container's")
            b.init("mount_setattr", NO_SLOT, 0, 0, 0, k.MS_PRIVATE, NO_SLOT, text="its root private: the host does not see it")
            b.init("move_mount", top, NO_SLOT, text="the tmpfs -> /, over the host's")
        for number, node in enumerate(self._outside):
            uid, gid = host_id(self._uids, node.uid), host_id(self._gids, node.gid)
            b.init("mknod", top, str(number), node.kind | node.mode, node.number, uid, gid, text=f"{node.text}, outside")
            slot = self._slots[node] = b.slot()
            b.init("open_tree", top, str(number), k.OPEN_TREE_CLONE, slot, text=f"what goes to {node.path}")
        if hung:
            b.init("detach", top, text="the tmpfs is off again, and the root is the host's")

    def sources(self) -> None:
        """The steps that copy the host's devices, while its tree is in sight."""
        for node in self._borrowed:
            slot = self._slots[node] = self.b.slot()
            self.b.init("open", NO_SLOT, node.path, k.O_PATH, 0, 0, slot, text=f"{node.path} of the host")
            self.b.init("prove_dev", slot, node.kind, node.number, text=node.text)
            self.b.init("open_tree", slot, "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH, slot, text=f"the host's {node.path}")

    def compile(self, root: int, attached: dict[str, int]) -> None:
        """The steps that make the nodes and links."""
        directories = {"/dev": attached["/dev"]} if "/dev" in attached else {}
        for node in self._nodes:
            if self._of_a_bound_dev(node):
                self._check(root, node)
                continue
            if node.directory not in directories:
                slot = directories[node.directory] = self.b.slot()
                text = f"{node.directory}, made where missing"
                self.b.init("target", root, node.directory, Target(0), 0o755, NO_SLOT, slot, text=text)
            directory = directories[node.directory]
            if node in self._slots:
                target = self._mounts.target(directory, node.name, Target.FILE | Target.NO_LINK, NO_SLOT, shown=node.path)
                whose = "the host's" if node in self._borrowed else "the"
                self.b.init("move_mount", self._slots[node], target, text=f"{whose} {node.path} -> {node.path}")
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
