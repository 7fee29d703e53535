"""What the features document claims, a container on this kernel has."""

from __future__ import annotations

from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.plan.mount_options import LINKS
from ociruntime.spec import Mount, NamespaceType

from ..support.fixture_types import MakeBundle
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
BASE = oci.RuntimeSpec.default(seccomp=False).with_args(["true"])
OPTIONS = [option for option in oci.features().mount_options or () if option not in ("remount", "idmap", "ridmap")]


def ends_well(bundle: oci.Bundle, name: str, root: Path) -> None:
    with oci.Container.run(name, bundle, state_root=root) as container:
        assert container.wait(TIME_LIMIT) == 0


@pytest.mark.parametrize("part", range(4))
def test_each_claimed_mount_option_is_taken(part: int, make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """Each on a mount of its own; the others of its kind that need a second mount or ids have tests of their own."""
    spec = BASE
    for number, option in enumerate(OPTIONS[part::4]):
        mount = Mount(destination=f"/m{number}", type="tmpfs", source="tmpfs", options=(option,))
        if option in ("bind", "rbind"):
            mount = mount.evolve(type="none", source="/etc")
        elif option in LINKS:
            mount = mount.evolve(type="none", source="/etc/passwd", options=("bind", option))
        spec = spec.with_mount(mount)
    ends_well(make_bundle(spec), prefix, state_root)


def test_the_claimed_namespaces_are_made(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    linux = oci.features().linux
    assert linux is not None
    spec = BASE
    for kind in linux.namespaces or ():
        if kind is not NamespaceType.USER:
            spec = spec.with_namespace(kind)
    ends_well(make_bundle(spec), prefix, state_root)
