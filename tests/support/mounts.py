"""Containers with further mounts, and their mount tables."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ociruntime as oci

from .fixture_types import MakeBundle
from .users import FIRST_ID, give, with_user_namespace

Change = Callable[[dict[str, Any]], None]


class Line(NamedTuple):
    """A line of mountinfo as the container sees it."""

    root: str
    point: str
    options: frozenset[str]
    propagation: frozenset[str]
    fstype: str
    source: str
    superblock: frozenset[str]


def parse(table: str) -> dict[str, Line]:
    """Of mounts on the same place the last, which is on top."""
    found = {}
    for line in table.split("\n"):
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        _, _, _, root, point, options, *tags = left.split(" ")
        fstype, source, superblock = right.split(" ", 2)
        tags = [tag.split(":")[0] for tag in tags]
        words = frozenset(options.split(","))
        found[point] = Line(root, point, words, frozenset(tags), fstype, source, frozenset(superblock.split(",")))
    return found


class Runner:
    """Runs a shell script in a container with further mounts, and gives what it printed."""

    def __init__(self, make_bundle: MakeBundle, root: Path, name: str) -> None:
        self._make, self._root, self.name, self._count = make_bundle, root, name, 0
        self.user = False
        """Whether the containers have a user namespace, whose root is user 100000 of the host."""
        self.shared = False
        """Whether the containers share all namespaces with the runtime."""

    def bundle(self, *mounts: dict[str, Any], change: Change | None = None) -> oci.Bundle:
        spec = oci.RuntimeSpec.default()
        document: dict[str, Any] = (with_user_namespace(spec) if self.user else spec).to_dict()
        document["mounts"] += mounts
        if self.shared:
            document["linux"]["namespaces"] = []
            document.pop("hostname", None)
        if change:
            change(document)
        bundle = self._make(oci.RuntimeSpec.load(document))
        return give(bundle, FIRST_ID) if self.user else bundle

    def __call__(self, script: str, *mounts: dict[str, Any], change: Change | None = None, bundle: oci.Bundle | None = None) -> str:
        bundle = bundle or self.bundle(*mounts, change=change)
        self._count += 1
        name = f"{self.name}-{self._count}"
        args = ["sh", "-c", script]
        result = oci.run(bundle, args, capture_output=True, text=True, state_root=self._root, container_id=name)
        assert isinstance(result.stdout, str)
        assert result.returncode == 0, (result.stdout, result.stderr)
        return result.stdout

    def table(self, *mounts: dict[str, Any], change: Change | None = None) -> dict[str, Line]:
        return parse(self("cat /proc/self/mountinfo", *mounts, change=change))

    def refused(self, *mounts: dict[str, Any], change: Change | None = None, bundle: oci.Bundle | None = None) -> oci.StepError:
        with pytest.raises(oci.StepError) as caught:
            self("true", *mounts, change=change, bundle=bundle)
        assert oci.Container.list(state_root=self._root) == []
        return caught.value

    @contextmanager
    def readonly(self, path: Path) -> Iterator[None]:
        subprocess.run(["mount", "--bind", path, path], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
            yield
        finally:
            subprocess.run(["umount", "-l", path], check=True)


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {"source": str(source), "destination": destination, "options": [*options]}


def tmpfs(destination: str, *options: str) -> dict[str, Any]:
    return {"type": "tmpfs", "source": "tmpfs", "destination": destination, "options": [*options]}
