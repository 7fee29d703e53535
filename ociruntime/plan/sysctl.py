"""Kernel parameters of the container's namespaces (config-linux.md#sysctl)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import Problem, SpecError
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec

_SYSCTL_NAMESPACE: Final = (
    # prefix of the sysctl, the namespace that must be the container's own
    ("kernel.msgmax", "ipc"),
    ("kernel.msgmnb", "ipc"),
    ("kernel.msgmni", "ipc"),
    ("kernel.sem", "ipc"),
    ("kernel.shmall", "ipc"),
    ("kernel.shmmax", "ipc"),
    ("kernel.shmmni", "ipc"),
    ("kernel.shm_rmid_forced", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("net.", "network"),
    ("kernel.domainname", "uts"),
)
_SWAP: Final = str.maketrans("./", "/.")


def _path(key: str) -> str:
    """The path below /proc/sys: dotted as in sysctl(8), where a slash stands for a dot in a name, or a path already."""
    return key if "/" in key.split(".", 1)[0] else key.translate(_SWAP)


def _namespace(key: str) -> str | None:
    """The namespace whose parameter this is."""
    name = _path(key).translate(_SWAP)
    return next(
        (ns for prefix, ns in _SYSCTL_NAMESPACE if name == prefix or (prefix.endswith(".") and name.startswith(prefix))), None
    )


def changed_namespaces(spec: RuntimeSpec) -> frozenset[str]:
    """The types of the namespaces that the config changes: one of the caller's must not be joined for them."""
    sysctl = (spec.linux.sysctl if spec.linux else None) or {}
    names = ("uts",) if spec.hostname or spec.domainname else ()
    return frozenset((*names, *(kind for key in sysctl if (kind := _namespace(key)))))


def compile_sysctl(b: Builder, linux: Linux | None, own: tuple[str, ...], proc: int) -> None:
    """Write each parameter through the procfs in a slot. Raises SpecError for one that would change the host."""
    for key, value in ((linux.sysctl if linux else None) or {}).items():
        where = f"$.linux.sysctl[{key!r}]"
        path = _path(key)
        if ".." in path.split("/") or path.startswith("/") or "\n" in key + value or "+" in key or not key:
            raise SpecError([Problem(where, "is not the name of a sysctl", "config-linux.md#sysctl")])
        namespace = _namespace(key)
        if namespace is None:
            raise SpecError([Problem(where, "belongs to no namespace, so it would change the host", "config-linux.md#sysctl")])
        if namespace not in own:
            raise SpecError([Problem(where, f"needs a {namespace} namespace of its own", "config-linux.md#sysctl")])
        b.init("write", proc, "sys/" + path, value.encode(), text=f"{value} > {path.translate(_SWAP)}")
