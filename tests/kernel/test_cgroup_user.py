"""Cgroups that are delegated to a user without privileges: in the machine of tests/vm, as its user."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.plan.cgroups.limits import PIDS_IF_POSSIBLE

from ..support.cgroups import V2, own_cgroups
from ..support.fixture_types import MakeBundle
from ..support.places import MiB
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(os.geteuid() == 0 or V2 is None or V2.base is None, reason="for a user with a cgroup"),
]


@pytest.fixture
def make(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Callable[..., oci.Container]:
    def run(
        resources: dict[str, Any], path: str | None = None, annotations: dict[str, str] | None = None, **more: Any
    ) -> oci.Container:
        document: dict[str, Any] = {**oci.RuntimeSpec.default(rootless=True).to_dict(), "annotations": annotations or {}}
        document["process"]["args"] = ["sh", "-c", "sleep 100 & exec sleep 100"]
        document["linux"].update(resources=resources, **({"cgroupsPath": path} if path else {}))
        return oci.Container.run(prefix, make_bundle(oci.RuntimeSpec.load(document)), state_root=state_root, **more)

    return run


def test_the_whole_life_in_a_delegated_cgroup(make: Callable[..., oci.Container], prefix: str) -> None:
    assert V2 is not None
    assert V2.base not in (None, "/")
    with make({"memory": {"limit": 64 * MiB}, "pids": {"limit": 30}, "cpu": {"shares": 512}}) as container:
        own = Path(f"{V2.mountpoint}{V2.base}/ociruntime-{prefix}")
        assert own_cgroups(container) == [own]
        assert (own / "memory.max").read_text() == f"{64 * MiB}\n"
        assert (own / "cpu.weight").read_text() == "59\n"
        container.update(pids=40, memory=80 * MiB)
        assert (own / "pids.max").read_text() == "40\n"
        assert container.stats().memory.limit == 80 * MiB  # type: ignore[union-attr]
        container.pause()
        assert container.status is oci.Status.PAUSED
        container.resume()
        assert container.exec(["true"]).returncode == 0
        container.kill("KILL", all=True)
        assert container.wait(TIME_LIMIT) == -9
    assert not own.exists()


@pytest.mark.parametrize("resources", [{}, {"pids": {"limit": 5}}])
def test_a_path_that_is_not_delegated(make: Callable[..., oci.Container], resources: dict[str, Any], prefix: str) -> None:
    """Without limits the container stays in the cgroup of its creator; with limits that is refused."""
    if resources:
        with pytest.raises(oci.UnsupportedError, match=r"pids\.limit.*this user may create cgroups below"):
            make(resources, f"/{prefix}")
        return
    with make(resources, f"/{prefix}") as container:
        assert own_cgroups(container) == []
        assert Path(f"/proc/{container.pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
        assert len(container.processes()) >= 1


def test_a_relative_path_counts_from_what_is_delegated(make: Callable[..., oci.Container], prefix: str) -> None:
    assert V2 is not None
    with make({}, f"{prefix}/deep") as container:
        assert own_cgroups(container) == [Path(f"{V2.mountpoint}{V2.base}/{prefix}/deep")]
    assert not Path(f"{V2.mountpoint}{V2.base}/{prefix}").exists()


def test_a_default_limit_below_a_cgroup_with_processes(make: Callable[..., oci.Container], prefix: str) -> None:
    """The kernel does not enable the controller there: the default limit is left out, and one that was asked for is refused."""
    assert V2 is not None
    parent, resources = Path(f"{V2.mountpoint}{V2.base}/{prefix}"), {"pids": {"limit": 30}}
    parent.mkdir()
    with subprocess.Popen(["sleep", "1000"]) as other, ExitStack() as stack:
        stack.callback(parent.rmdir)
        stack.callback(wait_until, lambda: not (parent / "cgroup.procs").read_text(), "the end of the process")
        stack.callback(other.kill)
        (parent / "cgroup.procs").write_text(str(other.pid))
        with make(resources, f"{prefix}/deep", PIDS_IF_POSSIBLE) as container:
            assert own_cgroups(container) == [parent / "deep"]
            assert not (parent / "deep/pids.max").exists()
            assert container.exec(["true"]).returncode == 0
        with pytest.raises(oci.StepError, match="a parent cgroup has processes of its own, which forbids limits below it"):
            make(resources, f"{prefix}/deep")
        assert list(parent.glob("*/")) == []
    with make(resources, f"{prefix}/deep", PIDS_IF_POSSIBLE) as container:
        assert (parent / "deep/pids.max").read_text() == "30\n"
