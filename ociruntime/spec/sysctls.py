"""Names of kernel parameters, and the namespaces that they belong to (config-linux.md#sysctl)."""

from __future__ import annotations

from typing import Final

_IPC: Final = "msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced"
_BY_NAME: Final = {f"kernel.{name}": "ipc" for name in _IPC.split()} | {"kernel.domainname": "uts", "kernel.hostname": "uts"}
_BY_PREFIX: Final = {"net.": "network", "fs.mqueue.": "ipc"}
_SWAP: Final = str.maketrans("./", "/.")


def sysctl_path(key: str) -> str:
    """The path below /proc/sys: dotted as in sysctl(8), where a slash stands for a dot in a name, or a path already."""
    return key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)


def sysctl_namespace(key: str) -> str | None:
    """The type of the namespace whose parameter it is; None for one of the whole host."""
    name = sysctl_path(key).translate(_SWAP)
    return _BY_NAME.get(name) or next((kind for prefix, kind in _BY_PREFIX.items() if name.startswith(prefix)), None)
