"""``root`` and ``mounts`` of config.json, and the id mappings that mounts and user namespaces share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from .base import FrozenMap
from .bases import IDMappingBase, MountBase, RootBase
from .places import split

if TYPE_CHECKING:
    from .scalars import Uint32

MOUNT_OPTIONS: Final = tuple(
    """
    acl async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noacl noatime nodev nodiratime
    noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime
    relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro
    rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime
    suid symfollow sync tmpcopyup unbindable
""".split()
)
"""The options that the text names (config.md#linux-mount-options); any other goes to the filesystem."""


class Root(RootBase):
    """The root filesystem (config.md#root)."""

    SECTION: ClassVar[str] = "config.md#root"

    path: str
    """Its directory; a relative path counts from the bundle."""
    readonly: bool | None = None
    """Whether it is read-only in the container. Default: false."""


class IDMapping(IDMappingBase):
    """A range of ids of the host that a range in the container stands for (config-linux.md#user-namespace-mappings)."""

    SECTION: ClassVar[str] = "config-linux.md#user-namespace-mappings"
    KEYS: ClassVar[FrozenMap[str]] = FrozenMap({"container_id": "containerID", "host_id": "hostID"})

    container_id: Uint32
    """First id in the container."""
    host_id: Uint32
    """First id on the host."""
    size: Uint32
    """Number of ids."""


class Mount(MountBase):
    """A mount beyond the root; mounts are made in their order (config.md#mounts)."""

    SECTION: ClassVar[str] = "config.md#mounts"

    destination: str
    """Where in the container, as an absolute path."""
    type: str | None = None
    """Filesystem, as in /proc/filesystems; ignored for a bind mount. Default: none."""
    source: str | None = None
    """Device, or for a bind mount the file or directory; a relative path counts from the bundle. Default: none."""
    options: tuple[str, ...] | None = None
    """Options of mount(8); ``bind`` or ``rbind`` makes a bind mount, what is unknown goes to the filesystem. Default: none."""
    uid_mappings: tuple[IDMapping, ...] | None = None
    """User ids of an id-mapped mount; comes with ``gid_mappings`` and the option ``idmap`` or ``ridmap``. Default: none."""
    gid_mappings: tuple[IDMapping, ...] | None = None
    """Group ids of an id-mapped mount; comes with ``uid_mappings``. Default: none."""

    @property
    def is_bind(self) -> bool:
        """Whether it is a bind mount."""
        return self.type == "bind" or any(word in ("bind", "rbind") for option in self.options or () for word in split(option))
