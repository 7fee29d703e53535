"""A process that has nearly as many open files as it may have (RLIMIT_NOFILE)."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.leftovers import cgroups_of
from ..support.processes import few_descriptors

pytestmark = pytest.mark.root
ENOUGH = 60
"""File descriptors that suffice for any operation."""


def works(operation: Callable[[], object]) -> bool:
    """Return whether an operation works. If it does not, the error must say that there are too many open files."""
    try:
        operation()
    except (OSError, oci.OCIRuntimeError) as error:
        if getattr(error, "errno", None) != errno.EMFILE and "too many open files" not in str(error):
            raise
        return False
    return True


def sweep(operation: Callable[[], object], state_root: Path) -> None:
    """Try an operation with every number of free descriptors: until it works, the error says why, and no descriptor stays open.

    With fewer descriptors than a removal needs, a container whose creation failed is left to `prune`.
    """
    operation()
    before, outcomes = len(os.listdir("/proc/self/fd")), []
    for free in range(ENOUGH):
        with few_descriptors(free):
            outcomes.append(works(operation))
        assert len(os.listdir("/proc/self/fd")) == before, free
        oci.prune(state_root=state_root)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_exec(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        sweep(lambda: container.exec(["true"], capture_output=True), state_root)


@pytest.mark.slow
def test_run(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["true"]))
    sweep(lambda: oci.run(bundle, capture_output=True, state_root=state_root, container_id=prefix), state_root)
    assert cgroups_of(prefix) == []


@pytest.mark.slow
def test_supervised(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["true"]))

    def supervise() -> None:
        with oci.Container.run(prefix, bundle, supervise=True, state_root=state_root) as container:
            assert container.wait() == 0

    sweep(supervise, state_root)
    assert oci.Container.list(state_root=state_root) == []
    assert cgroups_of(prefix) == []
