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
done = oci.run(sys.argv[1], state_root=sys.argv[2], container_id=sys.argv[3])
after = table()
# No mount comes from outside this mount namespace; one goes without us when another program removes its mount point.
added = {number: point for number, point in after.items() if number not in before}
gone = {number: point for number, point in before.items() if number not in after and os.path.lexists(point)}
assert (added, gone) == ({}, {})
sys.exit(done.returncode)
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
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", 'mount --make-rshared /; exec "$@"', "sh"]
    command += [sys.executable, "-P", "-c", RUN, str(bundle.path), str(state_root), prefix]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120 * SLOWER)
    assert done.returncode == 0, done.stderr
