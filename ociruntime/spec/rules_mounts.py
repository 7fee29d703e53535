"""Rules about mounts, and about maps of ids, which mounts and user namespaces have (config.md#mounts)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .places import below, destination_in_root, split

if TYPE_CHECKING:
    from .config import RuntimeSpec
    from .mounts import IDMapping, Mount
    from .rules import Report

MAX_MAPPINGS: Final = 340
_MOUNTS: Final = "config.md#mounts"
_POSIX: Final = "config.md#posix-platform-mounts"
_OPTIONS: Final = "config.md#linux-mount-options"
_LINKS: Final = ("copy-symlink", "src-nofollow", "dest-nofollow")
_PROPAGATION: Final = frozenset("private rprivate shared rshared slave rslave unbindable runbindable".split())


def mount_rules(report: Report, spec: RuntimeSpec, mount: Mount, path: str) -> None:
    """Everything about one mount."""
    for name, value in (("destination", mount.destination), ("source", mount.source), ("type", mount.type)):
        report.passable(f"{path}.{name}", value, _MOUNTS)
    report.passable(f"{path}.options", mount.options or (), _MOUNTS)
    if not mount.destination:
        report.error(f"{path}.destination", "is empty", _MOUNTS)
    elif spec.linux is not None and not mount.destination.startswith("/"):
        report.warn(f"{path}.destination", f"{mount.destination!r} is relative, which is deprecated; it counts from /", _MOUNTS)
    elif spec.linux is None and spec.windows is None:
        report.absolute(f"{path}.destination", mount.destination, _MOUNTS)
    if spec.windows is not None:
        return
    words = [word for option in mount.options or () for word in split(option)]
    _kind(report, mount, words, path)
    _ids(report, spec, mount, words, path)


def _kind(report: Report, mount: Mount, words: Sequence[str], path: str) -> None:
    bind, typeless, remount = mount.is_bind, mount.type in (None, "", "none"), "remount" in words
    change = remount or (typeless and words and _PROPAGATION.issuperset(words))
    if bind and not mount.source and not remount:
        report.error(f"{path}.source", "a bind mount needs the file or directory to bind", _MOUNTS)
    if typeless and not bind and not change:
        report.error(f"{path}.type", "is needed by a mount that is no bind mount", _POSIX)
    if "tmpcopyup" in words and (bind or mount.type != "tmpfs"):
        report.error(f"{path}.options", "tmpcopyup is for a tmpfs", _OPTIONS)
    links = [word for word in _LINKS if word in words]
    if links and (not bind or remount):
        report.error(f"{path}.options", f"{', '.join(links)}: for a bind mount", _OPTIONS)
    if "copy-symlink" in links and len(links) > 1:
        report.error(f"{path}.options", "copy-symlink mounts no link, so it excludes src-nofollow and dest-nofollow", _OPTIONS)
    # What is read below /proc must be the kernel's.
    destination = destination_in_root(mount.destination)
    if below(destination, "/proc") and not change and not bind:
        section = "config-linux.md#default-filesystems"
        if destination != "/proc":
            report.error(f"{path}.destination", "only single files may be bound below /proc", section)
        elif mount.type != "proc":
            report.error(f"{path}.destination", "only procfs may be mounted on /proc", section)


def _ids(report: Report, spec: RuntimeSpec, mount: Mount, words: Sequence[str], path: str) -> None:
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        report.error(path, "uidMappings and gidMappings come together", _POSIX)
    own = any(namespace.type == "user" for namespace in (spec.linux.namespaces if spec.linux else None) or ())
    idmapped = "idmap" in words or "ridmap" in words
    if mount.uid_mappings and not idmapped:
        report.warn(f"{path}.options", "idmap or ridmap belongs to uidMappings: older runtimes ignore these silently", _POSIX)
    if idmapped and not mount.uid_mappings and not own:
        report.error(f"{path}.options", "idmap needs uidMappings and gidMappings, or a user namespace", _OPTIONS)
    if any(word.startswith(("idmap=", "ridmap=")) for word in words):
        report.error(f"{path}.options", "idmap and ridmap take no value: write uidMappings and gidMappings", _OPTIONS)
    mappings(report, f"{path}.uidMappings", mount.uid_mappings, _POSIX)
    mappings(report, f"{path}.gidMappings", mount.gid_mappings, _POSIX)


def mappings(report: Report, path: str, ranges: Sequence[IDMapping] | None, section: str) -> None:
    """Errors for id mappings that the kernel refuses (user_namespaces(7))."""
    ranges = ranges or ()
    if len(ranges) > MAX_MAPPINGS:
        report.error(path, f"the kernel takes {MAX_MAPPINGS} ranges at most", section)
        return
    for index, mapping in enumerate(ranges):
        where = f"{path}[{index}]"
        if not mapping.size:
            report.error(f"{where}.size", "an empty range maps nothing", section)
        for name, first in (("containerID", mapping.container_id), ("hostID", mapping.host_id)):
            if first + mapping.size > 0xFFFFFFFF:
                report.error(f"{where}.{name}", f"{first} + {mapping.size} goes beyond the last id, 4294967294", section)
        for other, before in enumerate(ranges[:index]):
            if _overlap(mapping.container_id, before.container_id, mapping.size, before.size):
                report.error(where, f"ids in the container overlap those of [{other}]", section)
            if _overlap(mapping.host_id, before.host_id, mapping.size, before.size):
                report.error(where, f"ids on the host overlap those of [{other}]", section)


def _overlap(a: int, b: int, a_size: int, b_size: int) -> bool:
    return a < b + b_size and b < a + a_size
