"""``config.json`` (config.md): `RuntimeSpec`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from .bases import RuntimeSpecBase

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from ..errors import Problem
    from .base import Json
    from .check import HostLike
    from .freebsd import FreeBSD
    from .hooks import Hooks
    from .linux import Linux, NamespaceType
    from .mounts import Mount, Root
    from .process import Process, User
    from .solaris import Solaris
    from .vm import VM
    from .windows import Windows
    from .zos import ZOS


class RuntimeSpec(RuntimeSpecBase):
    """A container's config.json, of version 1.3.0 of the runtime spec (config.md)."""

    SECTION: ClassVar[str] = "config.md#configuration"

    oci_version: str
    """Version of the runtime spec that the config follows (config.md#specification-version)."""
    process: Process | None = None
    """The container's process; needed at start (config.md#process)."""
    root: Root | None = None
    """The root filesystem; needed but on Windows with Hyper-V (config.md#root)."""
    hostname: str | None = None
    """Hostname in the container. Default: unchanged (config.md#hostname)."""
    domainname: str | None = None
    """NIS domain name in the container. Default: unchanged (config.md#domainname)."""
    mounts: tuple[Mount, ...] | None = None
    """Mounts beyond the root, in their order. Default: none (config.md#mounts)."""
    hooks: Hooks | None = None
    """Programs to run in the course of the lifecycle. Default: none (config.md#posix-platform-hooks)."""
    annotations: Mapping[str, str] | None = None
    """Metadata, by names in reverse domain notation. Default: none (config.md#annotations)."""
    linux: Linux | None = None
    """The Linux part. Default: none (config.md#platform-specific-configuration)."""
    solaris: Solaris | None = None
    """The Solaris part. Default: none (config.md#platform-specific-configuration)."""
    windows: Windows | None = None
    """The Windows part. Default: none (config.md#platform-specific-configuration)."""
    vm: VM | None = None
    """The virtual machine. Default: none (config.md#platform-specific-configuration)."""
    zos: ZOS | None = None
    """The z/OS part. Default: none (config.md#platform-specific-configuration)."""
    freebsd: FreeBSD | None = None
    """The FreeBSD part. Default: none (config.md#platform-specific-configuration)."""

    # ---- making ----

    @classmethod
    def default(cls, *, rootless: bool = False, seccomp: bool = True, uid: int | None = None, gid: int | None = None) -> Self:
        """The default config (see `ociruntime.spec.defaults`).

        Args:
            rootless: for a user without privileges: a user namespace whose root is ``uid``:``gid``, and no limits.
            seccomp: whether it has the default profile.
            uid: the user on the host, for ``rootless``. Default: the effective one.
            gid: the group on the host, for ``rootless``. Default: the effective one.
        """
        from .defaults import default_spec

        return default_spec(cls, rootless=rootless, seccomp=seccomp, uid=uid, gid=gid)

    @classmethod
    def from_image_config(
        cls,
        source: str | os.PathLike[str] | bytes | Mapping[str, Json],
        base: Self | None = None,
        *,
        user: User | Callable[[str], User] | None = None,
        volumes: Mapping[str, str] | Callable[[str], str] | None = None,
    ) -> Self:
        """The config that runs an image, from its OCI image config (image-spec, Conversion to OCI Runtime Configuration).

        Args:
            source: the image config, whole or only its ``config`` object, from a path, from JSON text or from a mapping.
            base: what the image's settings go into; its own env and cwd stay. Default: the default config, whose env yields.
            user: who the process runs as, or what makes that of the image's ``User``: names need the image's files.
            volumes: the bind source of each of the image's volumes by its path; without it they are left to the caller.

        Raises:
            SpecError: a member of the image config is of the wrong type, or its user is a name and ``user`` is not given.
            KeyError: ``volumes`` is a mapping without one of the image's volumes.
        """
        from .image import from_image_config

        return from_image_config(cls, source, base, user=user, volumes=volumes)

    # ---- checking ----

    @classmethod
    def check(
        cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json], host: HostLike | None = None
    ) -> tuple[Problem, ...]:
        """Everything wrong with a document that may not even load: as `problems`. Raises OSError: the file cannot be read."""
        from .check import check

        return check(cls, source, host)

    def problems(self, host: HostLike | None = None) -> tuple[Problem, ...]:
        """Everything wrong with the config, errors and warnings: shape, rules and, with a host, what that one cannot do."""
        from .check import problems

        return problems(self, host)

    def validate(self, host: HostLike | None = None) -> tuple[Problem, ...]:
        """Check the config against the schema and the rules of the runtime spec and, with a host, against what that one can do.

        Returns:
            The warnings.

        Raises:
            SpecError: with every error.
        """
        from .check import refuse

        return refuse(self.problems(host))

    # ---- changing ----

    def mount(self, destination: str) -> Mount | None:
        """The last mount at a destination, if any."""
        return next((mount for mount in reversed(self.mounts or ()) if mount.destination == destination), None)

    def with_mount(self, mount: Mount) -> Self:
        """With a mount, in the place of the one that had its destination or at the end."""
        from .edit import with_mount

        return with_mount(self, mount)

    def without_mount(self, destination: str) -> Self:
        """Without the mounts at a destination. Raises KeyError: there is none."""
        from .edit import without_mount

        return without_mount(self, destination)

    def with_args(self, *args: str) -> Self:
        """With another program to run, or with a process at all."""
        from .edit import with_process

        return with_process(self, lambda process: process.evolve(args=args))

    def with_env(self, changes: Mapping[str, str | None] | None = None, /, **names: str | None) -> Self:
        """With these variables in the environment of the process; None removes one. Raises ValueError for a name with ``=``."""
        from .edit import with_process

        return with_process(self, lambda process: process.with_env(changes, **names))

    def with_caps(self, *names: str, ambient: bool = False) -> Self:
        """With these capabilities in the bounding, effective and permitted sets, and with ``ambient`` in all five."""
        from .edit import with_caps

        return with_caps(self, lambda caps: caps.add(*names, ambient=ambient))

    def without_caps(self, *names: str) -> Self:
        """Without these capabilities in any set; ``ALL`` drops every one."""
        from .edit import with_caps

        return with_caps(self, lambda caps: caps.drop(*names))

    def with_namespace(self, kind: NamespaceType, path: str | None = None) -> Self:
        """With a new namespace of this type, or the one at ``path``."""
        from .edit import with_namespace

        return with_namespace(self, kind, path)

    def without_namespace(self, kind: NamespaceType) -> Self:
        """With the runtime's own namespace of this type. Raises KeyError: it has that already."""
        from .edit import without_namespace

        return without_namespace(self, kind)

    def with_annotations(self, changes: Mapping[str, str | None]) -> Self:
        """With these annotations; None removes one."""
        from .edit import with_annotations

        return with_annotations(self, changes)
