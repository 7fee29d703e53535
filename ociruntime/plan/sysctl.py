"""Kernel parameters of the container's namespaces (config-linux.md#sysctl)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..spec.sysctls import sysctl_namespace, sysctl_path
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec


def changed_namespaces(spec: RuntimeSpec) -> frozenset[str]:
    """The types of the namespaces that the config changes: one of the caller's must not be joined for them."""
    sysctl = (spec.linux.sysctl if spec.linux else None) or {}
    names = ("uts",) if spec.hostname or spec.domainname else ()
    return frozenset((*names, *(kind for key in sysctl if (kind := sysctl_namespace(key)))))


def compile_sysctl(b: Builder, linux: Linux | None, proc: int) -> None:
    """Write each parameter through the procfs in a slot."""
    for key, value in ((linux.sysctl if linux else None) or {}).items():
        path = sysctl_path(key)
        b.init("write", proc, "sys/" + path, value.encode(), text=f"{value} > {path.replace('/', '.')}")
