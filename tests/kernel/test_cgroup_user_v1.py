"""Cgroups of v1 that were given to a user without privileges: directories with his name on them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle, Script

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(oci.Host.probe().cgroup_mode not in ("v1", "hybrid"), reason="needs cgroup v1"),
]
GIVEN = ("pids", "memory", "freezer")
AS_A_USER = """
import json, os, sys
import ctypes, warnings
import ociruntime as oci, ociruntime.host
path, root, prefix, uid, *given = sys.argv[1:]
for directory in given:
    open(directory + "/cgroup.procs", "w").write("0")
uid = int(uid)
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
ociruntime.host._probe.cache_clear()
said = {}
bundle = oci.Bundle.load(path)
with oci.Container.run(prefix, bundle, state_root=root) as container:
    said["cgroups"] = container._entry.read()["cgroups"]
    assert container.exec(["true"]).returncode == 0
    try:
        container.exec(["sh", "-c", "setsid sleep 1007 & sleep 1007"], timeout=0.5, capture_output=True)
        raise AssertionError("not timed out")
    except oci.ProcessTimeout:
        pass
    said["left"] = [open(f"/proc/{pid}/cmdline").read() for pid in container.processes()]
    said["groups"] = [name for path in said["cgroups"] for name in os.listdir(path) if name.startswith("ociruntime@exec-")]
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
def given(prefix: str) -> Iterator[tuple[int, list[Path]]]:
    """A user, and his cgroups in some hierarchies."""
    uid = 40000 + os.getpid() % 20000
    directories = []
    for name in GIVEN:
        hierarchy = oci.Host.probe().hierarchy(name)
        assert hierarchy is not None
        directories.append(Path(hierarchy.mountpoint, f"{prefix}-given"))
    try:
        for directory in directories:
            directory.mkdir()
            for path in (directory, directory / "cgroup.procs", directory / "tasks"):
                os.chown(path, uid, uid)
        yield uid, directories
    finally:
        for directory in directories:
            if directory.exists():
                directory.rmdir()


def test_the_whole_life(
    make_bundle: MakeBundle,
    prefix: str,
    given: tuple[int, list[Path]],
    user_script: Script,
) -> None:
    uid, directories = given
    document: dict[str, Any] = oci.RuntimeSpec.default(rootless=True, uid=uid, gid=uid).to_dict()
    document["linux"]["resources"] = {"pids": {"limit": 8}, "memory": {"limit": 64 << 20}}
    document["process"]["args"] = ["sleep", "100"]
    spec = oci.RuntimeSpec.load(document)
    # Elsewhere than tmp_path, to whose parent every beginning session of pytest bars others.
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        bundle, state = Path(shutil.move(make_bundle(spec).path, work)), Path(work, "state")
        state.mkdir()
        for path in (state, bundle, bundle / "config.json", bundle / "rootfs", *(bundle / "rootfs").iterdir()):
            os.chown(path, uid, uid)
        done = user_script(AS_A_USER, bundle, state, prefix, uid, *directories)
    said = json.loads(done.stdout)
    assert sorted(said["cgroups"]) == sorted(str(directory / f"ociruntime-{prefix}") for directory in directories)
    assert (said["limits"], said["paused"], said["exit"]) == ([9, 64 << 20], "paused", -9)
    assert said["left"] == ["sleep\x00100\x00"]  # a group in a cgroup of v1
    assert said["groups"] == []
    assert f"no cgroup of user {uid} has the controller cpu; if the kernel has it, let root delegate it" in said["cpu.shares"]
    [warning] = said["devices"]
    assert warning.startswith("$.linux.resources.devices: device rules need")
    assert not [path for directory in directories for path in directory.iterdir() if path.is_dir()]
