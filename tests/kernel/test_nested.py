"""A runtime in a container: its cgroups are a part of the host's, seen from a cgroup namespace or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime.plan.process import CAPABILITIES
from ociruntime.spec import Resources

from ..support.cgroups import on_v2, own_cgroups
from ..support.fixture_types import MakeBundle
from ..support.waiting import TIME_LIMIT

pytestmark = [pytest.mark.root, pytest.mark.vm]
PACKAGE = Path(oci.__file__).resolve().parents[1]
"""Where the package under test is installed."""
PACKAGES = Path(attrs.__file__).resolve().parents[1]
"""Where the dependencies are installed."""
INNER = """
import json, os, sys
import ociruntime as oci

name, path, root = sys.argv[1:]
bundle, told = oci.Bundle.load(path), {}
OWN = "/sys/fs/cgroup"
if os.path.exists(OWN + "/cgroup.procs"):
    # Of v2: we are in the way of limits below us, as the error says, until we go aside.
    try:
        oci.Container.run(name, bundle, state_root=root)
    except oci.StepError as error:
        told["refused"] = str(error)
    assert not oci.Container.list(state_root=root)
    os.mkdir(OWN + "/runtime")
    for pid in open(OWN + "/cgroup.procs").read().split():
        open(OWN + "/runtime/cgroup.procs", "w").write(pid)
with oci.Container.run(name, bundle, state_root=root) as container:
    with open(f"/proc/{container.pid}/cgroup") as lines:
        told["cgroups"] = sum(name in line for line in lines)
    told["exec"] = container.exec(["cat", "/proc/self/cgroup"], capture_output=True, text=True, check=True).stdout
    assert container.stats().pids.limit == 20
    container.update(pids=30)
    assert container.stats().pids.limit == 30
    assert container.stats().memory.usage > 0
    container.pause()
    assert container.status is oci.Status.PAUSED
    container.resume()
    told["processes"] = len(container.processes())
    container.kill("KILL", all=True)
    told["exit"] = container.wait(20)
told["left"] = [path for path, _, _ in os.walk(OWN) if name in path]
print(json.dumps(told))
"""


def outer(namespaced: bool, args: list[object], rootfs: Path, *paths: Path) -> oci.RuntimeSpec:
    """A container with all capabilities, writable cgroups, and what Python and the package need of the host."""
    document: dict[str, Any] = oci.RuntimeSpec.default(seccomp=False).to_dict()
    places = [Path(name) for name in ("/usr", "/bin", "/lib", "/lib64", "/etc", sys.prefix, sys.base_prefix)]
    caps = list(CAPABILITIES)
    document["process"] |= {
        "args": [str(word) for word in args],
        "env": ["PATH=/usr/bin:/bin", f"PYTHONPATH={PACKAGE}:{PACKAGES}", "PYTHONDONTWRITEBYTECODE=1"],
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), caps),
        "noNewPrivileges": False,
    }
    document["root"] = {"path": str(rootfs)}
    document["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
        *(
            {"destination": str(place), "type": "bind", "source": str(place), "options": ["rbind"]}
            for place in sorted({*places, PACKAGE, PACKAGES, *paths})
            if place.exists()
        ),
    ]
    document["linux"] |= {"resources": {"pids": {"limit": 500}}, "maskedPaths": [], "readonlyPaths": []}
    document["linux"]["namespaces"] += [{"type": "cgroup"}] if namespaced else []
    return oci.RuntimeSpec.load(document)


@pytest.mark.filterwarnings("ignore:.*cannot be granted")
@pytest.mark.parametrize("namespaced", [True, False])
def test_the_whole_life(make_bundle: MakeBundle, tmp_path: Path, state_root: Path, prefix: str, namespaced: bool) -> None:
    spec = oci.RuntimeSpec.default(seccomp=False).with_args(["sleep", "100"])
    assert spec.linux is not None
    limits = Resources.load({"pids": {"limit": 20}, "memory": {"limit": 64 << 20}})
    inner = make_bundle(spec.evolve(linux=spec.linux.evolve(resources=limits)))
    (tmp_path / "inner.py").write_text(INNER)
    (tmp_path / "empty").mkdir()
    args = [sys.executable, tmp_path / "inner.py", f"{prefix}-inner", inner.path, "/run/inner"]
    bundle = make_bundle(outer(namespaced, args, tmp_path / "empty", tmp_path))
    before = Path("/proc/self/cgroup").read_text()
    with oci.Container.run(prefix, bundle, state_root=state_root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as container:
        own = own_cgroups(container)
        assert container.stdout is not None
        assert container.stderr is not None
        assert container.wait(TIME_LIMIT) == 0, container.stderr.read().decode()
        report = json.loads(container.stdout.read())
        assert report["exit"] == -9
        assert report["processes"] == 1
        assert report["left"] == []
        assert report["exec"].count(f"/ociruntime-{prefix}-inner") == report["cgroups"] > 0
        assert ("EBUSY" in report.get("refused", "")) is on_v2("pids")
        if on_v2("pids"):
            assert "move the processes" in report["refused"]
    assert Path("/proc/self/cgroup").read_text() == before
    assert not [path for path in own if os.path.exists(path)]
