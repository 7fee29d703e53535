"""A host whose mounts are shared, as systemd leaves them: no container takes any of them away or adds one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

pytestmark = [pytest.mark.root, pytest.mark.vm]

RUN = """
import sys
import ociruntime as oci

def table():
    with open("/proc/self/mountinfo") as mounts:
        found = [line.split(" - ")[0].split()[3:5] for line in mounts]
    # Those of tests beside this one go when they remove the directories.
    return [entry for entry in found if not entry[1].startswith(sys.argv[4]) or entry[1].startswith(sys.argv[5])]

before = table()
done = oci.run(sys.argv[1], root=sys.argv[2], container_id=sys.argv[3])
after = table()
assert before == after, (before, after)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("name", [None, "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"])
def test_the_mounts_of_the_host_stay(
    make_bundle: Callable[..., oci.Bundle],
    state_root: Path,
    prefix: str,
    name: str | None,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    document = oci.RuntimeSpec.default().to_dict()
    document["process"]["args"] = ["true"]
    document["mounts"].append({"destination": "/host", "type": "bind", "source": "/proc", "options": ["rbind"]})
    if name:
        document["linux"]["rootfsPropagation"] = name
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", 'mount --make-rshared /; exec "$@"', "sh"]
    command += [sys.executable, "-P", "-c", RUN, str(bundle.path), str(state_root), prefix]
    command += [str(tmp_path_factory.getbasetemp().parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
