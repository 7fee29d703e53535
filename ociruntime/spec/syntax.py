"""Values that have a syntax of their own: paths and options of mounts, lists of CPUs, names of kernel parameters."""

import posixpath
from typing import Final

# ---- mounts ----


def destination_in_root(path: str) -> str:
    """Return a mount destination as an absolute path without dots. A relative one is relative to ``/`` (config.md, Mounts)."""
    return posixpath.normpath("/" + path.lstrip("/"))


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies below it, by components. Both are absolute and without dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def split_option(option: str) -> list[str]:
    """Split an option at its commas, as mount(2) does with its data. A quoted or escaped comma does not count."""
    parts, start, quoted = [], 0, False
    for index, char in enumerate(option):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted and option[index - 1 : index] != "\\":
            parts.append(option[start:index])
            start = index + 1
    return [part for part in (*parts, option[start:]) if part]


# ---- lists of CPUs and memory nodes ----

_MAX_NUMBER: Final = 1 << 16


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Return the first and last number of each range in a list such as ``0-3,7``.

    Raises:
        ValueError: the text is not such a list, or has a number of 65536 or above.
    """
    found = []
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        last = last if dash else first
        if not all(word.isascii() and word.isdigit() for word in (first, last)) or not int(first) <= int(last) < _MAX_NUMBER:
            raise ValueError(f"{text!r} is not a list such as 0-3,7")
        found.append((int(first), int(last)))
    return found


# ---- kernel parameters (config-linux.md#sysctl) ----

_IPC: Final = "msgmax msgmnb msgmni msg_next_id sem sem_next_id shmall shmmax shmmni shm_next_id shm_rmid_forced"
_BY_NAME: Final = {f"kernel.{name}": "ipc" for name in _IPC.split()} | {"kernel.domainname": "uts", "kernel.hostname": "uts"}
_BY_PREFIX: Final = {"net.": "network", "fs.mqueue.": "ipc"}
_SWAP: Final = str.maketrans("./", "/.")


def sysctl_path(key: str) -> str:
    """Return the path of a parameter below /proc/sys. Its name has dots as in sysctl(8), or is a path already."""
    return key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)


def sysctl_namespace(key: str) -> str | None:
    """Return the type of the namespace that a parameter belongs to, or None if it belongs to the whole host."""
    name = sysctl_path(key).translate(_SWAP)
    return _BY_NAME.get(name) or next((kind for prefix, kind in _BY_PREFIX.items() if name.startswith(prefix)), None)
