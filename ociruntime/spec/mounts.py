"""The root filesystem and the mounts of ``config.json`` (config.md#root, config.md#mounts)."""

from typing import TYPE_CHECKING, Final

import attrs

from .base import split_option
from .linux import IDMapping
from .model import Model

if TYPE_CHECKING:
    from . import places as places

MOUNT_OPTIONS: Final = tuple(
    """
    acl async atime bind defaults dev diratime dirsync exec idmap iversion lazytime loud mand noacl noatime nodev nodiratime
    noexec noiversion nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime
    relatime remount rexec ridmap rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow ro
    rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent slave strictatime
    suid symfollow sync tmpcopyup unbindable
""".split()
)
"""The options that the text defines (config.md#linux-mount-options). Any other is passed to the filesystem."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Root(Model["places.RootAt"]):
    """The root filesystem (config.md#root)."""

    path: str
    """Directory of the root filesystem. A relative path is relative to the bundle."""
    readonly: bool | None = None
    """Whether the root is read-only in the container. Default: false."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Mount(Model["places.MountAt"]):
    """A mount in addition to the root. Mounts are made in their order (config.md#mounts)."""

    destination: str
    """Absolute path of the mount point in the container."""
    type: str | None = None
    """Filesystem type, as in /proc/filesystems. Ignored for a bind mount. Default: none."""
    source: str | None = None
    """Device, or for a bind mount the file or directory. A relative path is relative to the bundle. Default: none."""
    options: tuple[str, ...] | None = None
    """Options of mount(8). ``bind`` or ``rbind`` makes a bind mount; unknown ones are passed to the filesystem. Default: none."""
    uid_mappings: tuple[IDMapping, ...] | None = None
    """User id mappings of an id-mapped mount. Requires ``gid_mappings`` and the option ``idmap`` or ``ridmap``. Default: none."""
    gid_mappings: tuple[IDMapping, ...] | None = None
    """Group id mappings of an id-mapped mount. Requires ``uid_mappings``. Default: none."""

    @property
    def is_bind(self) -> bool:
        """Whether this is a bind mount."""
        return self.type == "bind" or any(
            word in ("bind", "rbind") for option in self.options or () for word in split_option(option)
        )
