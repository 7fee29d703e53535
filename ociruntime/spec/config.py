"""``config.json`` (config.md): the hooks, and `RuntimeSpec`."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Never, Self, cast

import attrs
from typing_extensions import override

from ..arguments import check_mapping, check_str, check_type, optional, parse_args
from .base import PositiveInt, Problem, Problems
from .defaults import apply_image_config, default_spec
from .linux import Linux, Mount, Namespace, NamespaceType, Root
from .model import Model, raise_errors
from .process import Capabilities, ProcessSpec, User
from .rules.config import config_problems
from .rules.host import host_problems

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import places as places
    from .base import Json
    from .platforms import VM, ZOS, FreeBSD, Solaris, Windows
    from .rules.host import HostLike


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Hook(Model["places.HookAt"]):
    """A program that runs at one point of the lifecycle, with the state on its stdin (config.md#posix-platform-hooks)."""

    path: str
    """Absolute path of the program."""
    args: tuple[str, ...] | None = None
    """Arguments, with the name of the program first. Default: the path alone."""
    env: tuple[str, ...] | None = None
    """Environment, as ``NAME=value``. Default: none."""
    timeout: PositiveInt | None = None
    """Time after which the hook is killed. Unit: seconds. Default: none."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class Hooks(Model["places.HooksAt"]):
    """Programs that run at points of the lifecycle, in their order (config.md#posix-platform-hooks)."""

    prestart: tuple[Hook, ...] | None = None
    """Deprecated. At create, before ``create_runtime``, in the runtime namespace. Default: none (config.md#prestart)."""
    create_runtime: tuple[Hook, ...] | None = None
    """At create, before the root is changed, in the runtime namespace. Default: none (config.md#createruntime-hooks)."""
    create_container: tuple[Hook, ...] | None = None
    """At create, before the root is changed, in the container namespaces. Default: none (config.md#createcontainer-hooks)."""
    start_container: tuple[Hook, ...] | None = None
    """At start, before the program is executed, in the container namespaces. Default: none (config.md#startcontainer-hooks)."""
    poststart: tuple[Hook, ...] | None = None
    """At start, after the program is executed, in the runtime namespace. Default: none (config.md#poststart)."""
    poststop: tuple[Hook, ...] | None = None
    """After the container is deleted, in the runtime namespace. Default: none (config.md#poststop)."""


@attrs.frozen(kw_only=True, slots=False, eq=False, repr=False)
class RuntimeSpec(Model["places.RuntimeSpecAt"]):
    """The config.json of a container, version 1.3.0 of the runtime spec (config.md#configuration)."""

    oci_version: str
    """Version of the runtime spec that the config follows (config.md#specification-version)."""
    process: ProcessSpec | None = None
    """Init process. Required at start (config.md#process)."""
    root: Root | None = None
    """Root filesystem. Required except on Windows with Hyper-V (config.md#root)."""
    hostname: str | None = None
    """Hostname in the container. Default: unchanged (config.md#hostname)."""
    domainname: str | None = None
    """NIS domain name in the container. Default: unchanged (config.md#domainname)."""
    mounts: tuple[Mount, ...] | None = None
    """Mounts in addition to the root, in their order. Default: none (config.md#mounts)."""
    hooks: Hooks | None = None
    """Programs that run at points of the lifecycle. Default: none (config.md#posix-platform-hooks)."""
    annotations: Mapping[str, str] | None = None
    """Metadata, by name in reverse domain notation. Default: none (config.md#annotations)."""
    linux: Linux | None = None
    """The Linux part. Default: none (config.md#platform-specific-configuration)."""
    solaris: "Solaris | None" = None
    """The Solaris part. Default: none (config.md#platform-specific-configuration)."""
    windows: "Windows | None" = None
    """The Windows part. Default: none (config.md#platform-specific-configuration)."""
    vm: "VM | None" = None
    """The virtual machine part. Default: none (config.md#platform-specific-configuration)."""
    zos: "ZOS | None" = None
    """The z/OS part. Default: none (config.md#platform-specific-configuration)."""
    freebsd: "FreeBSD | None" = None
    """The FreeBSD part. Default: none (config.md#platform-specific-configuration)."""

    @property
    @override
    def at(self) -> "places.RuntimeSpecAt[Self]":
        return cast("places.RuntimeSpecAt[Self]", super().at)

    # ---- making ----

    @classmethod
    def default(
        cls,
        *,
        rootless: bool = False,
        seccomp: bool = True,
        uid: int | None = None,
        gid: int | None = None,
        host: "HostLike | None" = None,
    ) -> Self:
        """Return the default config (see `ociruntime.spec.defaults`).

        Args:
            rootless: whether it is for a user without privileges: a user namespace whose root is ``uid``:``gid``, and no limits.
            seccomp: whether it has the default profile.
            uid: the user on the host, with ``rootless``. Default: the effective one.
            gid: the group on the host, with ``rootless``. Default: the effective one.
            host: return the config that this caller can run on a host. Without privileges it has a user namespace, as with
                ``rootless``, whose id mappings are chosen when a container is created: the subordinate ids of the caller where they
                can be mapped, otherwise the caller's own id alone.
        """
        return default_spec(cls, rootless=rootless, seccomp=seccomp, uid=uid, gid=gid, host=host)

    @classmethod
    def from_image_config(
        cls,
        source: "str | os.PathLike[str] | bytes | Mapping[str, Json]",
        base: Self | None = None,
        *,
        user: "User | Callable[[str], User] | None" = None,
        volumes: "Mapping[str, str] | Callable[[str], str] | None" = None,
        host: "HostLike | None" = None,
    ) -> Self:
        """Return the config that runs an image, from its OCI image config (image-spec, Conversion to OCI Runtime Configuration).

        Args:
            source: the image config, whole or only its ``config`` object: a path, JSON text or a mapping.
            base: the config to add the image's settings to. Its own env and cwd take precedence. Default: the default config,
                whose env does not.
            user: the user, or a function that returns it for the image's ``User``. Default: a numeric ``User``.
            volumes: the bind source of each volume of the image, by its path. Default: volumes are not mounted.
            host: the host of the default config, as for `default`. Not used with ``base``.

        Raises:
            SpecError: a member of the image config is of the wrong type, or its user is a name and ``user`` is not given.
            KeyError: ``volumes`` is a mapping that lacks one of the image's volumes.
        """
        optional(check_type, "base", base, cls, f"a {cls.__name__}")
        keep_env = base is not None
        return apply_image_config(source, base or cls.default(host=host), keep_env=keep_env, user=user, volumes=volumes)

    # ---- checking ----

    @classmethod
    @override
    def check(cls, source: "str | os.PathLike[str] | bytes | Mapping[str, Json]", host: "HostLike | None" = None) -> Problems:
        """Return every problem of a document that need not load, as `problems`. Raises OSError: the file cannot be read."""
        return cls._check(source, host)

    @override
    def problems(self, host: "HostLike | None" = None) -> Problems:
        """Return every problem of the config, errors and warnings: shape, rules and, with a host, what that host cannot do."""
        return self._problems(host)

    @override
    def validate(self, host: "HostLike | None" = None) -> Problems:
        """Check the config against the schema, the rules of the runtime spec and, with a host, the features of that host.

        Returns:
            The warnings.

        Raises:
            SpecError: with every error.
        """
        return raise_errors(self.problems(host))

    @override
    def _broken_rules(self, host: "HostLike | None") -> list[Problem]:
        return config_problems(self) + ([] if host is None else host_problems(self, host))

    # ---- changing ----

    def mount(self, destination: str) -> Mount | None:
        """Return the last mount at a destination, if any."""
        check_str("destination", destination)
        return next((mount for mount in reversed(self.mounts or ()) if mount.destination == destination), None)

    def with_mount(self, mount: Mount) -> Self:
        """Return a copy with a mount, in the place of the last one at its destination or at the end."""
        check_type("mount", mount, Mount, "a Mount")
        mounts = list(self.mounts or ())
        same = [index for index, old in enumerate(mounts) if old.destination == mount.destination]
        if same:
            mounts[same[-1]] = mount
        else:
            mounts.append(mount)
        return self.at.evolve(mounts=tuple(mounts))

    def without_mount(self, destination: str) -> Self:
        """Return a copy without the mounts at a destination. Raises KeyError: there is none."""
        check_str("destination", destination)
        others = tuple(mount for mount in self.mounts or () if mount.destination != destination)
        if len(others) == len(self.mounts or ()):
            raise KeyError(destination)
        return self.at.evolve(mounts=others)

    def with_args(self, args: Sequence[str | os.PathLike[str]], *more: Never) -> Self:
        """Return a copy that runs another program. A missing process is made, with the working directory ``/``.

        Raises:
            TypeError: ``args`` is not a sequence of str.
            ValueError: an argument contains a NUL.
        """
        if more:
            raise TypeError("args is one sequence of str: write with_args(['sh', '-c', ...])")
        command = parse_args(args)
        return self._with_process(lambda process: process.evolve(args=command))

    def with_env(self, changes: Mapping[str, str | None] | None = None, /, **names: str | None) -> Self:
        """Return a copy with environment variables set. None removes one. Raises ValueError: a name contains ``=``."""
        return self._with_process(lambda process: process.with_env(changes, **names))

    def with_caps(self, *names: str, ambient: bool = False) -> Self:
        """Return a copy with capabilities in the bounding, effective and permitted sets, and with ``ambient`` in all five."""
        return self._with_capabilities(lambda capabilities: capabilities.add(*names, ambient=ambient))

    def without_caps(self, *names: str) -> Self:
        """Return a copy without capabilities in any set. ``ALL`` removes every one."""
        return self._with_capabilities(lambda capabilities: capabilities.drop(*names))

    def with_namespace(self, kind: NamespaceType, path: str | None = None) -> Self:
        """Return a copy with a new namespace of a type, or the one at ``path``."""
        check_type("kind", kind, str, "a NamespaceType")
        linux = self.linux or Linux()
        added = Namespace(type=kind, path=path)
        namespaces = [added if namespace.type == kind else namespace for namespace in linux.namespaces or ()]
        if added not in namespaces:
            namespaces.append(added)
        return self.at.evolve(linux=linux.evolve(namespaces=tuple(namespaces)))

    def without_namespace(self, kind: NamespaceType) -> Self:
        """Return a copy with the runtime namespace of a type. Raises KeyError: the config has no namespace of this type."""
        check_type("kind", kind, str, "a NamespaceType")
        namespaces = (self.linux.namespaces if self.linux else None) or ()
        others = tuple(namespace for namespace in namespaces if namespace.type != kind)
        if self.linux is None or len(others) == len(namespaces):
            raise KeyError(str(kind))
        return self.at.evolve(linux=self.linux.evolve(namespaces=others))

    def with_annotations(self, changes: Mapping[str, str | None]) -> Self:
        """Return a copy with annotations set. None removes one."""
        check_mapping("changes", changes)
        merged = {**(self.annotations or {}), **changes}
        return self.at.evolve(annotations={key: value for key, value in merged.items() if value is not None})

    def _with_process(self, change: "Callable[[ProcessSpec], ProcessSpec]") -> Self:
        return self.at.evolve(process=change(self.process or ProcessSpec(cwd="/")))

    def _with_capabilities(self, change: "Callable[[Capabilities], Capabilities]") -> Self:
        return self._with_process(lambda process: process.evolve(capabilities=change(process.capabilities or Capabilities())))


def __getattr__(name: str) -> object:
    # The annotations of RuntimeSpec name these classes in quotes.
    if name in ("FreeBSD", "Solaris", "VM", "Windows", "ZOS"):
        from . import platforms

        return getattr(platforms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
