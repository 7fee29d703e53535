"""A host whose mounts are shared, as systemd leaves them: no container takes any of them away or adds one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import MakeBundle
from ..support.waiting import SLOWER

pytestmark = [pytest.mark.root, pytest.mark.vm]

RUN = """
import os, sys
import ociruntime as oci

def table():
    with open("/proc/self/mountinfo", newline="\\n") as mounts:
        return {fields[0]: fields[4].encode().decode("unicode_escape") for fields in (line.split(" ") for line in mounts)}

before = table()
code = 0
try:
    code = oci.run(sys.argv[1], state_root=sys.argv[2], container_id=sys.argv[3]).returncode
except oci.StepError as error:
    assert sys.argv[4] and sys.argv[4] in error.strerror, error
else:
    assert not sys.argv[4], "did not fail"
after = table()
# No mount comes from outside this mount namespace; one goes without us when another program removes its mount point.
added = {number: point for number, point in after.items() if number not in before}
gone = {number: point for number, point in before.items() if number not in after and os.path.lexists(point)}
assert (added, gone) == ({}, {})
sys.exit(code)
"""


@pytest.mark.parametrize("name", [None, "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"])
def test_the_mounts_of_the_host_stay(
    make_bundle: MakeBundle,
    state_root: Path,
    prefix: str,
    name: str | None,
) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    document["process"]["args"] = ["true"]
    document["mounts"].append({"destination": "/host", "type": "bind", "source": "/proc", "options": ["rbind"]})
    if name:
        document["linux"]["rootfsPropagation"] = name
    run_on_a_shared_host(make_bundle(oci.RuntimeSpec.load(document)), state_root, prefix)


@pytest.mark.skipif(oci.Host.probe().kernel < (6, 15), reason="a container without a mount namespace needs Linux 6.15")
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_mounts_of_the_host_stay_without_any_namespace(
    make_bundle: MakeBundle, state_root: Path, prefix: str, readonly: bool, fails: bool
) -> None:
    """As programs that assemble configs write it. Other runtimes leave their mounts on the host."""
    document = oci.RuntimeSpec.default().to_dict()
    del document["hostname"]
    document["linux"]["namespaces"] = []
    document["root"]["readonly"] = readonly
    document["process"]["args"] = ["sh", "-c", "! mkdir /sys/fs/cgroup/new /sys/fs/cgroup/*/new /t/x 2>/dev/null && test -d /t/in"]
    document["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]},
        {"destination": "/t/in", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
    ]
    if fails:
        document["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such/file"})
    run_on_a_shared_host(make_bundle(oci.RuntimeSpec.load(document)), state_root, prefix, "No such file" if fails else "")


def run_on_a_shared_host(bundle: oci.Bundle, state_root: Path, prefix: str, failure: str = "") -> None:
    """Run a container in a copy of the host's tree whose mounts are shared, and assert that it stays as it was."""
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", 'mount --make-rshared /; exec "$@"', "sh"]
    command += [sys.executable, "-P", "-c", RUN, str(bundle.path), str(state_root), prefix, failure]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120 * SLOWER)
    assert done.returncode == 0, done.stderr
