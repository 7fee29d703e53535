"""What a call may say of a container beside its config: environment, user, mounts and limits, in a caller's words."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from .spec import Mount, Process, RuntimeSpec, User

__all__ = ["Args", "Env", "MountLike", "Overrides", "UserLike", "words"]

Args: TypeAlias = Sequence[str | os.PathLike[str]]
Env: TypeAlias = "Mapping[str, str | None] | Sequence[str]"
"""``NAME: value``, the value None to remove one, or ``NAME=value`` strings."""
UserLike: TypeAlias = "str | int | tuple[int, int] | User"
"""``"name"``, ``"name:group"``, ``"uid:gid"``, a uid, (uid, gid), or a `User`; names are looked up in the container's files."""
MountLike: TypeAlias = "str | Mount"
"""``"source:destination"`` or ``"source:destination:ro"``, or a `Mount`."""

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_PERIOD: Final = 100_000
"""Of the CPU quota, in microseconds: the kernel's own default."""


def words(args: Args) -> tuple[str, ...]:
    """A command line. Raises TypeError for a string, which would be taken apart into letters."""
    if isinstance(args, str | bytes):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
    return tuple(os.fsdecode(word) for word in args)


def size(value: int | str) -> int:
    """Bytes from a number or from ``"512M"``, ``"1.5GiB"``, ``"64k"``: units are powers of 1024. Raises ValueError."""
    if isinstance(value, int):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"{value!r} is not a size: write bytes, or a number with K, M, G or T")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def mount(wanted: MountLike) -> Mount:
    """A mount from ``source:destination[:options]``: a recursive bind mount, ``ro`` for all of it. Raises ValueError."""
    from .spec import Mount

    if isinstance(wanted, Mount):
        return wanted
    source, colon, rest = wanted.partition(":")
    destination, _, text = rest.partition(":")
    if not (source and colon and destination.startswith("/")):
        raise ValueError(f"{wanted!r} is not a mount: write 'source:/destination' or 'source:/destination:ro', or give a Mount")
    options = ["rro" if option == "ro" else option for option in text.split(",") if option]
    return Mount(destination=destination, type="bind", source=os.path.abspath(source), options=("rbind", *options))


def environment(process: Process, env: Env) -> Process:
    """A process with these variables set over its own. Raises ValueError for what is no ``NAME=value``."""
    if isinstance(env, str | bytes):
        raise TypeError(f"env is a mapping, or a sequence of 'NAME=value', not {type(env).__name__}")
    if isinstance(env, Mapping):
        return process.with_env(env)
    changes: dict[str, str | None] = {}
    for entry in env:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"{entry!r} is not NAME=value")
        changes[name] = value
    return process.with_env(changes)


def user(process: Process, wanted: UserLike, rootfs: Path) -> Process:
    """A process of another user; names and groups are looked up in ``rootfs``. Raises ValueError, BundleError."""
    from .spec import User

    if isinstance(wanted, User):
        return process.evolve(user=wanted)
    if isinstance(wanted, str | int):
        from .rootfs.users import resolve

        if not str(wanted):
            raise ValueError("user is empty: give a name, 'name:group', 'uid:gid' or numbers")
        found = resolve(str(wanted), rootfs)
    else:
        uid, gid = wanted
        if not all(0 <= number < 0xFFFFFFFF for number in (uid, gid)):
            raise ValueError(f"{wanted!r} is no user: ids are from 0 to 4294967294")
        found = User(uid=uid, gid=gid)
    if process.user is not None and process.user.umask is not None:
        found = found.evolve(umask=process.user.umask)
    return process.evolve(user=found)


class Overrides(NamedTuple):
    """What `run` changes of a config; None leaves a part as it is."""

    args: tuple[str, ...] = ()
    env: Env | None = None
    cwd: str | None = None
    user: UserLike | None = None
    mounts: tuple[MountLike, ...] | None = None
    memory: int | str | None = None
    cpus: float | None = None
    pids: int | None = None
    network: Literal["none", "host", False] | None = None
    read_only: bool | None = None
    hostname: str | None = None
    terminal: bool | None = None
    groups: Sequence[int] | None = None
    no_new_privileges: bool | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None

    def key(self) -> tuple[object, ...]:
        """A value that is equal for equal changes, and hashable when they are."""
        env = self.env
        return self._replace(env=None), tuple(env.items() if isinstance(env, Mapping) else env or ())

    def apply(self, spec: RuntimeSpec, rootfs: Path) -> RuntimeSpec:
        """The config with the changes. Raises ValueError, TypeError, BundleError: one of them cannot be."""
        if self == _NOTHING:
            return spec
        changes: dict[str, Any] = {"process": self._process(spec, rootfs)}
        if self.hostname is not None:
            changes["hostname"] = self.hostname
        if self.read_only is not None and spec.root is not None:
            changes["root"] = spec.root.evolve(readonly=self.read_only)
        changed = spec.evolve(**changes)
        for wanted in self.mounts or ():
            changed = changed.with_mount(mount(wanted))
        return self._limits(self._network(changed))

    def _process(self, spec: RuntimeSpec, rootfs: Path) -> Process:
        from .spec import Process, User

        process = spec.process or Process(cwd="/")
        changes: dict[str, Any] = {"args": self.args or None, **{name: getattr(self, name) for name in _MEMBERS}}
        given = {name: value for name, value in changes.items() if value is not None}
        if given:
            process = process.evolve(**given)
        if self.env:
            process = environment(process, self.env)
        if self.user is not None:
            process = user(process, self.user, rootfs)
        if self.groups is not None:
            process = process.evolve(user=(process.user or User(uid=0, gid=0)).evolve(additional_gids=tuple(self.groups)))
        return process

    def _network(self, spec: RuntimeSpec) -> RuntimeSpec:
        from .spec import NamespaceType

        if self.network is None:
            return spec
        if self.network not in ("none", "host", False):
            raise ValueError(f"network is {self.network!r}: 'none' (or False) for an empty network, 'host' for the host's")
        kind = NamespaceType.NETWORK
        if self.network != "host":
            return spec.with_namespace(kind)
        own = (spec.linux.namespaces if spec.linux else None) or ()
        return spec.without_namespace(kind) if any(namespace.type == kind for namespace in own) else spec

    def _limits(self, spec: RuntimeSpec) -> RuntimeSpec:
        from .spec import CPU, Linux, Memory, Pids, Resources

        linux = spec.linux or Linux()
        resources = linux.resources or Resources()
        changes: dict[str, Any] = {}
        if self.memory is not None:
            changes["memory"] = (resources.memory or Memory()).evolve(limit=size(self.memory))
        if self.cpus is not None:
            if not 0 < self.cpus < 1 << 20:
                raise ValueError(f"cpus is {self.cpus}: the number of CPUs, more than 0")
            changes["cpu"] = (resources.cpu or CPU()).evolve(quota=round(self.cpus * _PERIOD), period=_PERIOD)
        if self.pids is not None:
            changes["pids"] = (resources.pids or Pids()).evolve(limit=self.pids)
        return spec.evolve(linux=linux.evolve(resources=resources.evolve(**changes))) if changes else spec


_NOTHING: Final = Overrides()
_MEMBERS: Final = ("cwd", "terminal", "no_new_privileges", "apparmor_profile", "selinux_label")
"""What goes into the process object as it is."""
