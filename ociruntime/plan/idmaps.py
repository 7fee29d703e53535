"""Id-mapped mounts: files of a mount belong to other ids than on the disk (config.md, ``idmap``, ``uidMappings``)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..errors import UnsupportedError
from . import kernel as k
from .model import NO_SLOT, Builder

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import IDMapping, Mount, RuntimeSpec
    from .mount_options import Options

Maps = tuple[str, str]


def map_text(maps: Sequence[IDMapping]) -> str:
    """A map as the kernel takes it (user_namespaces(7))."""
    return "".join(f"{entry.container_id} {entry.host_id} {entry.size}\n" for entry in maps)


class IdMaps:
    """The user namespaces that hold the maps of one container's mounts: one for each pair of maps."""

    def __init__(self, b: Builder, spec: RuntimeSpec, host: Host, own: Collection[str]) -> None:
        self._b, self._spec, self._host, self._own = b, spec, host, own
        self._slots: dict[object, int] = {}

    def refuse(self, mount: Mount, options: Options, where: str) -> None:
        """For a mount that is no bind mount. Raises UnsupportedError."""
        if options.idmap or mount.uid_mappings or mount.gid_mappings:
            raise UnsupportedError(f"{where}: only bind mounts can be id-mapped")

    def of(self, mount: Mount, options: Options, where: str) -> int:
        """The slot of the user namespace that maps a bind mount's ids; NO_SLOT for one whose ids stay. Raises as `Mounts`."""
        uids, gids = mount.uid_mappings or (), mount.gid_mappings or ()
        if not options.idmap and not uids and not gids:
            return NO_SLOT
        if self._host.euid != 0:
            raise UnsupportedError(f"{where}: an id-mapped mount needs root")
        if uids:
            return self._new(where, (map_text(uids), map_text(gids)))
        linux = self._spec.linux
        assert linux is not None, "the rules want a user namespace"
        path = next((space.path for space in linux.namespaces or () if space.type == "user"), None)
        if path:
            if path not in self._slots:
                self._slots[path] = self._b.input("namespace", where, path, k.CLONE_NEW["user"])
            return self._slots[path]
        return self._new(where, (map_text(linux.uid_mappings or ()), map_text(linux.gid_mappings or ())))

    def _new(self, where: str, maps: Maps) -> int:
        if maps not in self._slots:
            self._slots[maps] = self._b.input("userns", where, maps=maps)
        return self._slots[maps]
