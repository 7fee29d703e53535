"""``config.json`` (config.md): `RuntimeSpec` and the objects at its top level."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import attrs

from ..errors import Problem, SpecError
from .base import FrozenMap, Json, Model
from .linux import IDMapping, Linux
from .process import Process


@attrs.frozen(kw_only=True, repr=False)
class Root(Model):
    """The root filesystem; a relative path counts from the bundle (config.md#root)."""

    path: str
    readonly: bool | None = None


@attrs.frozen(kw_only=True, repr=False)
class Mount(Model):
    """A mount beyond the root (config.md#mounts)."""

    destination: str
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] | None = None
    uid_mappings: tuple[IDMapping, ...] | None = None
    gid_mappings: tuple[IDMapping, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class Hook(Model):
    """A program to run at one moment of the lifecycle; ``timeout`` in seconds (config.md#posix-platform-hooks)."""

    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    timeout: int | None = None


@attrs.frozen(kw_only=True, repr=False)
class Hooks(Model):
    prestart: tuple[Hook, ...] | None = None
    create_runtime: tuple[Hook, ...] | None = None
    create_container: tuple[Hook, ...] | None = None
    start_container: tuple[Hook, ...] | None = None
    poststart: tuple[Hook, ...] | None = None
    poststop: tuple[Hook, ...] | None = None


@attrs.frozen(kw_only=True, repr=False)
class RuntimeSpec(Model):
    """A container's config.json. Objects of platforms other than Linux are kept as `extensions` keep them."""

    oci_version: str
    process: Process | None = None
    root: Root | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[Mount, ...] | None = None
    hooks: Hooks | None = None
    annotations: FrozenMap[str] | None = None
    linux: Linux | None = None

    @classmethod
    def load(cls, source: str | os.PathLike[str] | bytes | Mapping[str, Json]) -> Self:
        """Read a config from a path, from JSON text (a str that starts with ``{``, or bytes) or from a mapping.

        Raises:
            SpecError: with every problem and its JSON path.
            OSError: the file cannot be read.
        """
        from .codec import parse, structure

        name = "config"
        if isinstance(source, Mapping):
            document: object = dict(source)
        elif isinstance(source, bytes) or (isinstance(source, str) and source.lstrip()[:1] == "{"):
            document = parse(source, name)
        else:
            name = os.fspath(source)
            document = parse(Path(name).read_bytes(), name)
        return structure(cls, document, name)

    @classmethod
    def default(cls, *, seccomp: bool = True) -> Self:
        """The default config of a container that root runs (see `ociruntime.spec.defaults`)."""
        from .defaults import default_spec

        return default_spec(cls, seccomp=seccomp)

    def to_dict(self) -> dict[str, Json]:
        """The JSON document as Python values."""
        from .codec import unstructure

        document = unstructure(self)
        assert isinstance(document, dict)
        return document

    def to_json(self, indent: int | None = None) -> str:
        import json

        return json.dumps(self.to_dict(), indent=indent)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the config atomically."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(self.to_json(indent=2) + "\n")
        temporary.rename(target)

    def validate(self) -> None:
        """Check what types alone do not say. Raises SpecError with every problem."""
        from .rules import problems

        found: list[Problem] = problems(self)
        if found:
            raise SpecError(found)
