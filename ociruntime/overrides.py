"""What a call may say of a container beside its config: environment, user, mounts and limits, in a caller's words."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
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
    """A command line. Raises TypeError for a string, which would be taken apart into letters, and ValueError for a NUL."""
    if isinstance(args, str | bytes):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}: write ['sh', '-c', ...] or use shlex.split()")
    if isinstance(args, Mapping | Set) or not isinstance(args, Iterable):
        raise TypeError(f"args is a sequence of str, not {type(args).__name__}")
    found = tuple(args)
    for number, word in enumerate(found):
        if not isinstance(word, str | bytes | os.PathLike):
            raise TypeError(f"args[{number}] is {word!r}: a str or a path is needed")
    return tuple(without_nul(f"args[{number}]", os.fsdecode(word)) for number, word in enumerate(found))


def without_nul(name: str, text: str) -> str:
    """The text. Raises ValueError for a NUL, at which the kernel would take it to end."""
    if "\0" in text:
        raise ValueError(f"{name} has a NUL in it: {text!r}")
    return text


def seconds(timeout: float | None) -> float | None:
    """A timeout. Raises TypeError, ValueError: it is none."""
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float)):
        raise TypeError(f"timeout is {timeout!r}: a number of seconds is needed, or None")
    if timeout is not None and math.isnan(timeout):
        raise ValueError("timeout is not a number")
    return timeout


def size(value: int | str) -> int:
    """Bytes from a number or from ``"512M"``, ``"1.5GiB"``, ``"64k"``: units are powers of 1024. Raises ValueError."""
    if isinstance(value, int):
        return value
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"memory: {value!r} is not a size: write bytes, or a number with K, M, G or T")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def listed(mounts: Iterable[MountLike] | None) -> tuple[MountLike, ...] | None:
    """Mounts as a value. Raises TypeError for a single one."""
    if isinstance(mounts, str | Mapping) or not isinstance(mounts, Iterable | None):
        raise TypeError(f"mounts is {mounts!r}: a sequence of mounts is needed")
    return None if mounts is None else tuple(mounts)


def mount(wanted: MountLike) -> Mount:
    """A mount from ``source:destination[:options]``: a recursive bind mount, ``ro`` for all of it. Raises ValueError."""
    from .spec import Mount

    if isinstance(wanted, Mount):
        return wanted
    if not isinstance(wanted, str):
        raise TypeError(f"mounts has {wanted!r}: 'source:/destination', 'source:/destination:ro' or a Mount is needed")
    source, colon, rest = wanted.partition(":")
    destination, _, text = rest.partition(":")
    if not (source and colon and destination.startswith("/")):
        raise ValueError(f"{wanted!r} is not a mount: write 'source:/destination' or 'source:/destination:ro', or give a Mount")
    given = [option for option in text.split(",") if option]
    from .plan.mount_options import KNOWN_OPTIONS

    if unknown := set(given) - set(KNOWN_OPTIONS):
        raise ValueError(f"{wanted!r}: {min(unknown)!r} is no option of a bind mount")
    options = ["rro" if option == "ro" else option for option in given]
    return Mount(destination=destination, type="bind", source=os.path.abspath(source), options=("rbind", *options))


def environment(process: Process, env: Env) -> Process:
    """A process with these variables set over its own. Raises ValueError for what is no ``NAME=value``."""
    if isinstance(env, str | bytes):
        raise TypeError(f"env is a mapping, or a sequence of 'NAME=value', not {type(env).__name__}")
    changes: dict[str, str | None] = {}
    if isinstance(env, Mapping):
        changes.update(env)
    else:
        for entry in env:
            name, equals, value = entry.partition("=") if isinstance(entry, str) else ("", "", "")
            if not equals:
                raise ValueError(f"env: {entry!r} is not NAME=value")
            changes[name] = value
    for name, wanted in changes.items():
        if not isinstance(name, str) or not isinstance(wanted, str | None):
            raise TypeError(f"env: {name!r}: {wanted!r} is not a str with a str, or with None to remove it")
        without_nul(f"env: {name}", f"{name}={wanted}")
    return process.with_env(changes)


def user(process: Process, wanted: UserLike, rootfs: Path) -> Process:
    """A process of another user; names and groups are looked up in ``rootfs``. Raises ValueError, BundleError."""
    from .spec import User

    if isinstance(wanted, User):
        return process.evolve(user=wanted)
    if isinstance(wanted, str | int) and not isinstance(wanted, bool):
        from .rootfs.users import resolve

        if not str(wanted):
            raise ValueError("user is empty: give a name, 'name:group', 'uid:gid' or numbers")
        found = resolve(str(wanted), rootfs)
    else:
        ids: Sequence[object] = () if isinstance(wanted, int | str) or not isinstance(wanted, Sequence) else wanted
        uid, gid = ids if len(ids) == 2 else (None, None)
        if type(uid) is not int or type(gid) is not int:
            raise TypeError(f"user is {wanted!r}: give a name, 'name:group', 'uid:gid', a uid or (uid, gid)")
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
    cwd: str | os.PathLike[str] | None = None
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

    def checked(self) -> Overrides:
        """The same, when every value is of a type and in a range that can be. Raises TypeError, ValueError, naming the argument."""
        for name, (kinds, what) in _KINDS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
                raise TypeError(f"{name} is {value!r}: {what} is needed")
        if self.cwd is not None and not os.fspath(self.cwd).startswith("/"):
            raise ValueError(f"cwd is {os.fspath(self.cwd)!r}: an absolute path in the container is needed")
        for name in ("cwd", "hostname", "apparmor_profile", "selinux_label"):
            without_nul(name, os.fspath(getattr(self, name) or ""))
        if self.hostname is not None and not 0 < len(os.fsencode(self.hostname)) <= _HOST_NAME_MAX:
            raise ValueError(f"hostname is {self.hostname!r}: 1 to {_HOST_NAME_MAX} bytes are needed")
        for name in ("memory", "pids"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1 and value != -1:
                raise ValueError(f"{name} is {value}: more than 0 is needed, or -1 for no limit")
        if self.cpus is not None and not _LEAST_CPUS <= self.cpus < 1 << 20:
            raise ValueError(f"cpus is {self.cpus}: the number of CPUs, at least {_LEAST_CPUS}")
        for group in self.groups or ():
            if type(group) is not int or not 0 <= group < 0xFFFFFFFF:
                raise ValueError(f"groups has {group!r}: ids are from 0 to 4294967294")
        return self if self.cwd is None else self._replace(cwd=os.fspath(self.cwd))

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
            changes["cpu"] = (resources.cpu or CPU()).evolve(quota=round(self.cpus * _PERIOD), period=_PERIOD)
        if self.pids is not None:
            changes["pids"] = (resources.pids or Pids()).evolve(limit=self.pids)
        return spec.evolve(linux=linux.evolve(resources=resources.evolve(**changes))) if changes else spec


_NOTHING: Final = Overrides()
_HOST_NAME_MAX: Final = 64
_LEAST_CPUS: Final = 0.01
"""The kernel's smallest quota, 1 ms, of a period of 100 ms."""
_KINDS: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "env": ((Mapping, Sequence), "a mapping or a sequence of 'NAME=value'"),
    "cwd": ((str, os.PathLike), "an absolute path in the container"),
    "mounts": ((tuple,), "a sequence of mounts"),
    "memory": ((int, str), "a number of bytes or a size such as '512M'"),
    "cpus": ((int, float), "a number of CPUs"),
    "pids": ((int,), "a number of processes"),
    "read_only": ((bool,), "True or False"),
    "hostname": ((str,), "a str"),
    "terminal": ((bool,), "True or False"),
    "groups": ((Sequence,), "a sequence of ids"),
    "no_new_privileges": ((bool,), "True or False"),
    "apparmor_profile": ((str,), "a str"),
    "selinux_label": ((str,), "a str"),
}
_MEMBERS: Final = ("cwd", "terminal", "no_new_privileges", "apparmor_profile", "selinux_label")
"""What goes into the process object as it is."""
