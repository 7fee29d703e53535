"""Cgroups of v1 that belong to a user without privileges."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Script, UserBundle
from ..support.users import UID

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(oci.Host.probe().cgroup_mode not in ("v1", "hybrid"), reason="needs cgroup v1"),
]
GIVEN = ("pids", "memory", "freezer")
AS_A_USER = """
import json, os, sys, warnings
import ociruntime as oci
path, root, prefix, uid, *given = sys.argv[1:]
for directory in given:
    open(directory + "/cgroup.procs", "w").write("0")
become(int(uid))
said = {}
bundle = oci.Bundle.load(path)
with oci.Container.run(prefix, bundle, state_root=root) as container:
    said["paths"] = open(f"/proc/{container.pid}/cgroup").read().split()
    assert container.exec(["true"]).returncode == 0
    try:
        container.exec(["sh", "-c", "setsid sleep 1007 & sleep 1007"], timeout=0.5, capture_output=True)
        raise AssertionError("not timed out")
    except oci.ProcessTimeout:
        pass
    said["left"] = [open(f"/proc/{pid}/cmdline").read() for pid in container.processes()]
    said["groups"] = [name for path in given for _, names, _ in os.walk(path) for name in names if name.startswith("ociruntime@exec-")]
    container.update(pids=9)
    stats = container.stats()
    said["limits"] = [stats.pids.limit, stats.memory.limit]
    container.pause()
    said["paused"] = container.status
    container.resume()
    container.kill("KILL", all=True)
    said["exit"] = container.wait(20)
for resources, place in (({"cpu": {"shares": 5}}, "cpu.shares"), ({"devices": [{"allow": False, "access": "rwm"}]}, "devices")):
    changed = oci.Bundle.load(path)
    linux = bundle.spec.linux.evolve(resources=type(bundle.spec.linux.resources).load(resources))
    changed.spec = bundle.spec.evolve(linux=linux)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            with oci.Container.create(prefix, changed, state_root=root):
                said[place] = [str(warning.message) for warning in seen]
        except oci.UnsupportedError as error:
            said[place] = str(error)
print(json.dumps(said))
"""


@pytest.fixture
def given(prefix: str) -> Iterator[list[Path]]:
    """Cgroups of a user in some hierarchies."""
    directories = []
    for name in GIVEN:
        hierarchy = oci.Host.probe().hierarchy(name)
        assert hierarchy is not None
        directories.append(Path(hierarchy.mountpoint, f"{prefix}-given"))
    try:
        for directory in directories:
            directory.mkdir()
            for path in (directory, directory / "cgroup.procs", directory / "tasks"):
                os.chown(path, UID, UID)
        yield directories
    finally:
        for directory in directories:
            if directory.exists():
                directory.rmdir()


def test_the_whole_life(user_bundle: UserBundle, prefix: str, given: list[Path], user_script: Script) -> None:
    document: dict[str, Any] = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).to_dict()
    document["linux"]["resources"] = {"pids": {"limit": 8}, "memory": {"limit": 64 << 20}}
    document["process"]["args"] = ["sleep", "100"]
    done = user_script(AS_A_USER, *user_bundle(oci.RuntimeSpec.load(document)), prefix, UID, *given)
    printed = json.loads(done.stdout)
    own = [line.split(":") for line in printed["paths"] if f"ociruntime-{prefix}" in line]
    assert {names: path for _, names, path in own} == dict.fromkeys(GIVEN, f"/{prefix}-given/ociruntime-{prefix}")
    assert (printed["limits"], printed["paused"], printed["exit"]) == ([9, 64 << 20], "paused", -9)
    assert printed["left"] == ["sleep\x00100\x00"]  # a group in a cgroup of v1
    assert printed["groups"] == []
    assert f"no cgroup of user {UID} has the controller cpu; if the kernel has it, let root delegate it" in printed["cpu.shares"]
    [warning] = printed["devices"]
    assert warning.startswith("$.linux.resources.devices: device rules need")
    assert not [path for directory in given for path in directory.iterdir() if path.is_dir()]
