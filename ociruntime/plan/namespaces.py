"""Namespaces, and the names that belong to the uts namespace (config-linux.md#namespaces, config.md#hostname)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Problem, SpecError, UnsupportedError
from . import kernel as k
from .model import Builder

if TYPE_CHECKING:
    from ..spec import Linux, RuntimeSpec


def own_namespaces(linux: Linux | None) -> tuple[str, ...]:
    """The types of the namespaces that the container gets for itself. Raises SpecError, UnsupportedError."""
    own: list[str] = []
    for index, namespace in enumerate((linux.namespaces if linux else None) or ()):
        kind, where = str(namespace.type), f"$.linux.namespaces[{index}]"
        if kind not in k.CLONE_NEW:
            raise SpecError([Problem(f"{where}.type", f"{kind!r} is not a namespace of Linux", "config-linux.md#namespaces")])
        if kind in own:
            raise SpecError([Problem(where, f"{kind} comes twice", "config-linux.md#namespaces")])
        if namespace.path:
            raise UnsupportedError(f"{where}.path: joining a namespace is not supported yet")
        if kind in ("user", "time"):
            raise UnsupportedError(f"{where}: {kind} namespaces are not supported yet")
        own.append(kind)
    if "mount" not in own:
        raise UnsupportedError("$.linux.namespaces: a container without a mount namespace of its own is not supported")
    return tuple(own)


def compile_names(b: Builder, spec: RuntimeSpec, own: tuple[str, ...]) -> None:
    """The hostname and the domain name. Raises SpecError without a uts namespace."""
    for name, op in (("hostname", "sethostname"), ("domainname", "setdomainname")):
        value = getattr(spec, name)
        if not value:
            continue
        if "uts" not in own:
            raise SpecError([Problem(f"$.{name}", "needs a uts namespace of its own", f"config.md#{name}")])
        b.init(op, value, text=value)
