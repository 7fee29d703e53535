"""The default devices and links in /dev, and the devices of the config (config-linux.md, Devices, Default Devices)."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import SpecError
from ..spec.base import Problem, destination_in_root, is_below
from . import ops
from .detached_mounts import IN_ROOT
from .model import NO_SLOT, PlanBuilder
from .namespaces import DETACHED_TREES, Mappings, host_id, root_id
from .ops import Target

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Device, Linux
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
_TYPES: Final = {"c": ops.S_IFCHR, "u": ops.S_IFCHR, "b": ops.S_IFBLK, "p": ops.S_IFIFO}


class _Node(NamedTuple):
    """A device node: the checked values of an entry of `linux.devices`, or of a default device."""

    path: str
    kind: int
    number: int
    mode: int
    uid: int
    gid: int
    text: str
    location: str = ""
    """Its JSON path; empty for a default device."""
    has_owner_or_mode: bool = False
    """Whether the config gives an owner or a mode."""

    @property
    def directory(self) -> str:
        """The directory of the node."""
        return posixpath.dirname(self.path)

    @property
    def name(self) -> str:
        """The name of the node in its directory."""
        return posixpath.basename(self.path)


def _default_nodes() -> list[_Node]:
    return [
        _Node(f"/dev/{name}", ops.S_IFCHR, ops.makedev(major, minor), 0o666, 0, 0, f"device /dev/{name} c {major}:{minor} 0666")
        for name, major, minor in DEFAULT_DEVICES
    ]


def _configured_nodes(devices: Sequence[Device], uids: Mappings, gids: Mappings) -> list[_Node]:
    nodes = []
    for index, device in enumerate(devices):
        kind = _TYPES[str(device.type)]
        location = f"$.linux.devices[{index}]"
        path = destination_in_root(device.path)
        for name, owner, mappings in (("uid", device.uid, uids), ("gid", device.gid, gids)):
            if owner and mappings and host_id(mappings, owner) is None:
                raise SpecError([Problem(f"{location}.{name}", f"{owner} is not mapped in the user namespace", _SECTION)])
        major, minor = (0, 0) if kind == ops.S_IFIFO else (device.major or 0, device.minor or 0)
        mode = 0o666 if device.file_mode is None else device.file_mode & 0o777
        uid = device.uid or (root_id(uids) if uids else 0)
        gid = device.gid or (root_id(gids) if gids else 0)
        description = str(device.type) if kind == ops.S_IFIFO else f"{device.type} {major}:{minor}"
        text = f"device {path} {description} {mode:04o}"
        has_owner_or_mode = any(value is not None for value in (device.file_mode, device.uid, device.gid))
        nodes.append(_Node(path, kind, ops.makedev(major, minor), mode, uid, gid, text, location, has_owner_or_mode))
    return nodes


def creates_nodes(host: Host, namespaces: Namespaces) -> bool:
    """Return whether the device nodes of a config are created. Otherwise they are the host's, bound."""
    if not namespaces.user:
        return host.may_mknod
    # The owners' ids on the host are known only if the runtime maps them; in a joined user namespace devices are the host's.
    return host.may_mknod and host.privileged and "user" in namespaces.new and "mount" in namespaces.new


class Devices:
    """The devices of one container.

    They are created in the container's /dev and root. A node that is created in a user namespace does not work, so the devices of
    the config are created outside of it and bound. The default devices are then the host's, as are all devices if the caller may
    not create any. Below a /dev that is bound from the host they must exist already.
    """

    def __init__(self, builder: PlanBuilder, linux: Linux | None, mounts: Mounts, host: Host, namespaces: Namespaces) -> None:
        """Read the config.

        Raises:
            SpecError: the owner of a device is not mapped.
        """
        self._builder, self._mounts, self._host = builder, mounts.detached, host
        self._dev_is_bound = mounts.binds("/dev")
        mapped = linux if "user" in namespaces.new else None
        self._uids, self._gids = (mapped.uid_mappings or (), mapped.gid_mappings or ()) if mapped else ((), ())
        configured = _configured_nodes((linux.devices if linux else None) or (), self._uids, self._gids)
        paths = {node.path for node in configured}
        default = [node for node in _default_nodes() if node.path not in paths and not mounts.binds(node.path)]
        default = [] if self._dev_is_bound else default
        self._nodes = [*default, *configured]
        created = [node for node in self._nodes if node.kind != ops.S_IFIFO and not self._must_exist(node)]
        creates = creates_nodes(host, namespaces)
        borrows = namespaces.user or not host.may_mknod
        self._created_outside = [node for node in created if creates and namespaces.user and node.location]
        self._borrowed = [node for node in created if borrows and node not in self._created_outside]
        self._slots: dict[_Node, int] = {}
        for node in self._borrowed:
            if node.has_owner_or_mode:
                builder.warn(
                    f"{node.location}: mode and owner stay those of the host's {node.path}, as this user may not create devices"
                )

    def _must_exist(self, node: _Node) -> bool:
        return self._dev_is_bound and is_below(node.path, "/dev")

    def create_outside(self) -> None:
        """Create nodes on a filesystem of the caller's user namespace, while the init is still in it."""
        if not self._created_outside:
            return
        builder = self._builder
        context, top = builder.new_slot(), builder.new_slot()
        attributes = ops.MOUNT_ATTR_NOSUID | ops.MOUNT_ATTR_NOEXEC
        builder.add("fsopen", "tmpfs", context, text="tmpfs for devices")
        builder.add("fsconfig", context, ops.FSCONFIG_SET_STRING, "mode", "700", text="mode=700 for devices")
        builder.add("fsconfig", context, ops.FSCONFIG_CMD_CREATE, "", "", text="create the tmpfs for devices")
        builder.add("fsmount", context, attributes, top, text="tmpfs for devices (nosuid,noexec)")
        must_attach = self._host.kernel < DETACHED_TREES
        if must_attach:
            # This kernel copies attached mounts only, so the tmpfs covers the root of a temporary mount namespace.
            builder.add("unshare", ops.CLONE_NEW["mount"], text="temporary mount namespace for the tmpfs")
            text = "private propagation for the temporary mount namespace"
            builder.add("mount_setattr", NO_SLOT, 0, 0, 0, ops.MS_PRIVATE, NO_SLOT, text=text)
            builder.add("move_mount", top, NO_SLOT, text="tmpfs for devices -> /, over the host's root")
        for number, node in enumerate(self._created_outside):
            uid, gid = host_id(self._uids, node.uid), host_id(self._gids, node.gid)
            text = f"{node.text}, outside of the user namespace"
            builder.add("mknod", top, str(number), node.kind | node.mode, node.number, uid, gid, text=text)
            slot = self._slots[node] = builder.new_slot()
            builder.add("open_tree", top, str(number), ops.OPEN_TREE_CLONE, slot, text=f"device {node.path}")
        if must_attach:
            builder.add("detach", top, text="tmpfs for devices, which uncovers the host's root")

    def clone_sources(self) -> None:
        """Copy the devices that are the host's, before its tree is out of reach."""
        for node in self._borrowed:
            builder, slot = self._builder, self._builder.new_slot()
            self._slots[node] = slot
            builder.add("open", NO_SLOT, node.path, ops.O_PATH, 0, 0, slot, text=f"the host's {node.path}")
            builder.add("prove_dev", slot, node.kind, node.number, text=node.text)
            flags = ops.OPEN_TREE_CLONE | ops.AT_EMPTY_PATH
            builder.add("open_tree", slot, "", flags, slot, text=f"the host's {node.path}")

    def create(self, root: int, attached: dict[str, int]) -> None:
        """Create the nodes and links in the container's root.

        Args:
            attached: the slots of the container's mounts by their destinations.
        """
        builder = self._builder
        directories = {"/dev": attached["/dev"]} if "/dev" in attached else {}
        for node in self._nodes:
            with builder.at(node.location):
                self._create_one(root, node, directories)
        if not self._dev_is_bound:
            for name, destination in DEFAULT_LINKS:
                text = f"symbolic link /dev/{name} -> {destination}"
                builder.add("symlink", directories["/dev"], name, destination, text=text)

    def _create_one(self, root: int, node: _Node, directories: dict[str, int]) -> None:
        builder = self._builder
        if self._must_exist(node):
            self._check(root, node)
            return
        if node.directory not in directories:
            slot = directories[node.directory] = builder.new_slot()
            text = f"directory {node.directory}"
            builder.add("target", root, node.directory, Target(0), 0o755, NO_SLOT, slot, text=text)
        directory = directories[node.directory]
        if node in self._slots:
            target = self._mounts.open_target(directory, node.name, Target.FILE | Target.NO_LINK, NO_SLOT, description=node.path)
            source = f"the host's {node.path}" if node in self._borrowed else "device"
            builder.add("move_mount", self._slots[node], target, text=f"{source} -> {node.path}")
        else:
            mode = node.kind | node.mode
            builder.add("mknod", directory, node.name, mode, node.number, node.uid, node.gid, text=node.text)

    def _check(self, root: int, node: _Node) -> None:
        """Check a node in the host's /dev, where nothing is created."""
        slot = self._mounts.scratch()
        self._builder.add("open", root, node.path, ops.O_PATH, 0, IN_ROOT, slot, text=f"the host's {node.path}")
        self._builder.add("prove_dev", slot, node.kind, node.number, text=node.text)
