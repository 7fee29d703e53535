"""``hooks`` of config.json (config.md#posix-platform-hooks)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .bases import HookBase, HooksBase

if TYPE_CHECKING:
    from .scalars import PositiveInt


class Hook(HookBase):
    """A program to run at one moment of the lifecycle; it gets the state on stdin (config.md#posix-platform-hooks)."""

    SECTION: ClassVar[str] = "config.md#posix-platform-hooks"

    path: str
    """Absolute path of the program."""
    args: tuple[str, ...] | None = None
    """Its arguments, its own name first. Default: the path alone."""
    env: tuple[str, ...] | None = None
    """``NAME=value`` entries. Default: none."""
    timeout: PositiveInt | None = None
    """When to give up. Unit: seconds. Default: never."""


class Hooks(HooksBase):
    """Programs to run in the course of the lifecycle, in their order (config.md#posix-platform-hooks)."""

    SECTION: ClassVar[str] = "config.md#posix-platform-hooks"

    prestart: tuple[Hook, ...] | None = None
    """Deprecated: at create, before ``create_runtime``, in the runtime's namespaces. Default: none (config.md#prestart)."""
    create_runtime: tuple[Hook, ...] | None = None
    """At create, before the root is changed, in the runtime's namespaces. Default: none (config.md#createruntime-hooks)."""
    create_container: tuple[Hook, ...] | None = None
    """At create, before the root is changed, in the container's namespaces. Default: none (config.md#createcontainer-hooks)."""
    start_container: tuple[Hook, ...] | None = None
    """At start, before the process, in the container. Default: none (config.md#startcontainer-hooks)."""
    poststart: tuple[Hook, ...] | None = None
    """After the process has started, in the runtime's namespaces. Default: none (config.md#poststart)."""
    poststop: tuple[Hook, ...] | None = None
    """After the container is deleted, in the runtime's namespaces. Default: none (config.md#poststop)."""
