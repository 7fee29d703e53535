"""The changes to a config that people make most; methods of `RuntimeSpec`, `Process` and `Capabilities` lead here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .config import RuntimeSpec
from .process import Capabilities, Process

if TYPE_CHECKING:
    from .linux import NamespaceType
    from .mounts import Mount

S = TypeVar("S", bound=RuntimeSpec)
_SETS: Final = ("bounding", "effective", "permitted", "inheritable", "ambient")


def with_mount(spec: S, mount: Mount) -> S:
    """See `RuntimeSpec.with_mount`."""
    mounts = list(spec.mounts or ())
    places = [index for index, old in enumerate(mounts) if old.destination == mount.destination]
    if places:
        mounts[places[-1]] = mount
    else:
        mounts.append(mount)
    return spec.evolve(mounts=tuple(mounts))


def without_mount(spec: S, destination: str) -> S:
    """See `RuntimeSpec.without_mount`."""
    left = tuple(mount for mount in spec.mounts or () if mount.destination != destination)
    if len(left) == len(spec.mounts or ()):
        raise KeyError(destination)
    return spec.evolve(mounts=left)


def with_process(spec: S, change: Callable[[Process], Process]) -> S:
    """A config whose process is changed, or made with the working directory ``/``."""
    return spec.evolve(process=change(spec.process or Process(cwd="/")))


def with_env(process: Process, changes: Mapping[str, str | None]) -> Process:
    """See `Process.with_env`."""
    for name in changes:
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{name!r} is no name of an environment variable")
    left = dict(changes)
    env: list[str] = []
    for entry in process.env or ():
        name = entry.partition("=")[0]
        if name not in changes:
            env.append(entry)
            continue
        value = left.pop(name, None)
        if value is not None:
            env.append(f"{name}={value}")
    env += [f"{name}={value}" for name, value in left.items() if value is not None]
    return process.evolve(env=tuple(env))


def capability(name: str) -> str:
    """``net_admin`` -> ``CAP_NET_ADMIN``."""
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"


def with_caps(spec: S, change: Callable[[Capabilities], Capabilities]) -> S:
    """A config whose process has its capabilities changed."""
    return with_process(spec, lambda process: process.evolve(capabilities=change(process.capabilities or Capabilities())))


def caps_add(caps: Capabilities, names: tuple[str, ...], ambient: bool) -> Capabilities:
    """See `Capabilities.add`."""
    wanted = [capability(name) for name in names]
    changes: dict[str, Any] = {}
    for member in _SETS if ambient else _SETS[:3]:
        held: tuple[str, ...] = getattr(caps, member) or ()
        changes[member] = tuple(dict.fromkeys((*held, *wanted)))
    return caps.evolve(**changes)


def caps_drop(caps: Capabilities, names: tuple[str, ...]) -> Capabilities:
    """See `Capabilities.drop`."""
    wanted = {capability(name) for name in names}
    changes: dict[str, Any] = {}
    for member in _SETS:
        held: tuple[str, ...] | None = getattr(caps, member)
        if held is not None:
            changes[member] = () if "CAP_ALL" in wanted else tuple(name for name in held if name not in wanted)
    return caps.evolve(**changes)


def with_namespace(spec: S, kind: NamespaceType, path: str | None) -> S:
    """See `RuntimeSpec.with_namespace`."""
    from .linux import Linux, Namespace

    linux = spec.linux or Linux()
    wanted = Namespace(type=kind, path=path)
    namespaces = [wanted if namespace.type == kind else namespace for namespace in linux.namespaces or ()]
    if wanted not in namespaces:
        namespaces.append(wanted)
    return spec.evolve(linux=linux.evolve(namespaces=tuple(namespaces)))


def without_namespace(spec: S, kind: NamespaceType) -> S:
    """See `RuntimeSpec.without_namespace`."""
    namespaces = (spec.linux.namespaces if spec.linux else None) or ()
    left = tuple(namespace for namespace in namespaces if namespace.type != kind)
    if spec.linux is None or len(left) == len(namespaces):
        raise KeyError(str(kind))
    return spec.evolve(linux=spec.linux.evolve(namespaces=left))


def with_annotations(spec: S, changes: Mapping[str, str | None]) -> S:
    """See `RuntimeSpec.with_annotations`."""
    merged = {**(spec.annotations or {}), **changes}
    return spec.evolve(annotations={key: value for key, value in merged.items() if value is not None})
