"""Rules about mounts, and about the id mappings of mounts and user namespaces (config.md#mounts)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..syntax import destination_in_root, is_below, split_option

if TYPE_CHECKING:
    from ..config import RuntimeSpec
    from ..linux import IDMapping
    from ..mounts import Mount
    from .findings import Findings

MAX_MAPPINGS: Final = 340
_MOUNTS: Final = "config.md#mounts"
_POSIX: Final = "config.md#posix-platform-mounts"
_OPTIONS: Final = "config.md#linux-mount-options"
_LINKS: Final = ("copy-symlink", "src-nofollow", "dest-nofollow")
_PROPAGATION: Final = frozenset("private rprivate shared rshared slave rslave unbindable runbindable".split())


def check_mount(findings: Findings, spec: RuntimeSpec, mount: Mount, path: str) -> None:
    """Check one mount."""
    for name, value in (("destination", mount.destination), ("source", mount.source), ("type", mount.type)):
        findings.check_text(f"{path}.{name}", value, _MOUNTS)
    findings.check_text(f"{path}.options", mount.options or (), _MOUNTS)
    if not mount.destination:
        findings.error(f"{path}.destination", "is empty", _MOUNTS)
    elif spec.linux is not None and not mount.destination.startswith("/"):
        findings.warn(
            f"{path}.destination", f"{mount.destination!r} is relative, which is deprecated; it is taken as relative to /", _MOUNTS
        )
    elif spec.linux is None and spec.windows is None:
        findings.check_absolute(f"{path}.destination", mount.destination, _MOUNTS)
    if spec.windows is not None:
        return
    words = [word for option in mount.options or () for word in split_option(option)]
    _check_kind(findings, mount, words, path)
    _check_ids(findings, spec, mount, words, path)


def _check_kind(findings: Findings, mount: Mount, words: Sequence[str], path: str) -> None:
    bind, typeless, remount = mount.is_bind, mount.type in (None, "", "none"), "remount" in words
    change = remount or (typeless and words and _PROPAGATION.issuperset(words))
    if bind and not mount.source and not remount:
        findings.error(f"{path}.source", "a bind mount requires the file or directory to bind", _MOUNTS)
    if typeless and not bind and not change:
        findings.error(f"{path}.type", "is required unless the mount is a bind mount", _POSIX)
    if "tmpcopyup" in words and (bind or mount.type != "tmpfs"):
        findings.error(f"{path}.options", "tmpcopyup requires a tmpfs", _OPTIONS)
    links = [word for word in _LINKS if word in words]
    if links and (not bind or remount):
        findings.error(f"{path}.options", f"{', '.join(links)} requires a bind mount", _OPTIONS)
    if "copy-symlink" in links and len(links) > 1:
        findings.error(f"{path}.options", "copy-symlink conflicts with src-nofollow and dest-nofollow", _OPTIONS)
    # Programs rely on the files below /proc to be the kernel's.
    destination = destination_in_root(mount.destination)
    if is_below(destination, "/proc") and not change and not bind:
        section = "config-linux.md#default-filesystems"
        if destination != "/proc":
            findings.error(f"{path}.destination", "only single files may be bound below /proc", section)
        elif mount.type != "proc":
            findings.error(f"{path}.destination", "only procfs may be mounted on /proc", section)


def _check_ids(findings: Findings, spec: RuntimeSpec, mount: Mount, words: Sequence[str], path: str) -> None:
    if bool(mount.uid_mappings) != bool(mount.gid_mappings):
        findings.error(path, "uidMappings and gidMappings require each other", _POSIX)
    own = any(namespace.type == "user" for namespace in (spec.linux.namespaces if spec.linux else None) or ())
    idmapped = "idmap" in words or "ridmap" in words
    if mount.uid_mappings and not idmapped:
        findings.warn(f"{path}.options", "add idmap or ridmap: without it older runtimes ignore uidMappings", _POSIX)
    if idmapped and not mount.uid_mappings and not own:
        findings.error(f"{path}.options", "idmap requires uidMappings and gidMappings, or a user namespace", _OPTIONS)
    if any(word.startswith(("idmap=", "ridmap=")) for word in words):
        findings.error(f"{path}.options", "idmap and ridmap take no value: use uidMappings and gidMappings", _OPTIONS)
    check_mappings(findings, f"{path}.uidMappings", mount.uid_mappings, _POSIX)
    check_mappings(findings, f"{path}.gidMappings", mount.gid_mappings, _POSIX)


def check_mappings(findings: Findings, path: str, ranges: Sequence[IDMapping] | None, section: str) -> None:
    """Check id mappings as the kernel does (user_namespaces(7))."""
    ranges = ranges or ()
    if len(ranges) > MAX_MAPPINGS:
        findings.error(path, f"more than the {MAX_MAPPINGS} ranges that the kernel accepts", section)
        return
    for index, mapping in enumerate(ranges):
        where = f"{path}[{index}]"
        if not mapping.size:
            findings.error(f"{where}.size", "an empty range maps nothing", section)
        for name, first in (("containerID", mapping.container_id), ("hostID", mapping.host_id)):
            if first + mapping.size > 0xFFFFFFFF:
                findings.error(f"{where}.{name}", f"{first} + {mapping.size} exceeds the last id, 4294967294", section)
        for other, before in enumerate(ranges[:index]):
            if _overlap(mapping.container_id, before.container_id, mapping.size, before.size):
                findings.error(where, f"ids in the container overlap those of [{other}]", section)
            if _overlap(mapping.host_id, before.host_id, mapping.size, before.size):
                findings.error(where, f"ids on the host overlap those of [{other}]", section)


def _overlap(a: int, b: int, a_size: int, b_size: int) -> bool:
    return a < b + b_size and b < a + a_size
