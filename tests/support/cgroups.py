"""Containers with limits, and the files of their cgroups, on v1 and v2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from .fixture_types import MakeBundle

V2 = next((h for h in oci.Host.probe().hierarchies if h.version == 2), None)


def has(controller: str) -> bool:
    return oci.Host.probe().has_controller(controller)


def on_v2(controller: str) -> bool:
    hierarchy = oci.Host.probe().hierarchy(controller)
    return hierarchy is not None and hierarchy.version == 2


needs = {name: pytest.mark.skipif(not has(name), reason=f"no {name} controller") for name in ("hugetlb", "memory", "pids", "rdma")}
pure_v2 = pytest.mark.skipif(not on_v2("pids"), reason="needs cgroup v2 alone")


def _paths_of(pid: int | str) -> dict[str, str]:
    """Return the cgroups of a process (cgroups(7)), by the mount points of their hierarchies."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    named = {frozenset(filter(None, names.split(","))): path for _, names, path in lines}
    found = {h.mountpoint: named.get(frozenset() if h.version == 2 else h.controllers) for h in oci.Host.probe().hierarchies}
    return {mountpoint: path for mountpoint, path in found.items() if path is not None}


def own_cgroups(container: oci.Container) -> list[Path]:
    """Return the cgroups of a container's init process in which this process is not."""
    here = _paths_of("self")
    return [Path(mountpoint + path) for mountpoint, path in _paths_of(container.pid).items() if path != here[mountpoint]]


def directory(container: oci.Container, controller: str) -> Path:
    """Return the container's cgroup that has a controller; ``""`` for the one of v2."""
    hierarchy = V2 if controller == "" else oci.Host.probe().hierarchy(controller)
    assert hierarchy is not None
    return next(path for path in own_cgroups(container) if path.is_relative_to(hierarchy.mountpoint))


def value(container: oci.Container, controller: str, file: str) -> str:
    return (directory(container, controller) / file).read_text().strip()


def config(args: list[str], resources: dict[str, Any], **linux: Any) -> oci.RuntimeSpec:
    document: dict[str, Any] = oci.RuntimeSpec.default().to_dict()
    document["process"]["args"] = args
    document["linux"].update(resources=resources, **linux)
    return oci.RuntimeSpec.load(document)


class Limited:
    """Makes containers with limits in one test's state directory."""

    def __init__(self, make_bundle: MakeBundle, root: Path, prefix: str) -> None:
        self.make_bundle, self.root, self.prefix, self.made = make_bundle, root, prefix, 0

    @contextlib.contextmanager
    def __call__(
        self,
        resources: dict[str, Any],
        args: list[str] | None = None,
        *,
        start: bool = False,
        linux: dict[str, Any] | None = None,
        **more: Any,
    ) -> Iterator[oci.Container]:
        self.made += 1
        spec = config(args or ["sleep", "100"], resources, **(linux or {}))
        make = oci.Container.run if start else oci.Container.create
        with make(f"{self.prefix}-{self.made}", self.make_bundle(spec), state_root=self.root, **more) as container:
            yield container


def block_device() -> tuple[int, int]:
    """Return the device number of a disk of this machine."""
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith(("loop", "ram", "zram", "dm-", "md")):
            major, minor = Path("/sys/block", name, "dev").read_text().split(":")
            return int(major), int(minor)
    pytest.skip("no disk")
