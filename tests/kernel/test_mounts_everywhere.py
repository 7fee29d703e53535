"""Every mount option on every type of mount, with and without each namespace: it is carried out, or an error names its JSON path."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.plan.mount_options import KNOWN_OPTIONS

from ..support.fixture_types import MakeBundle, Script
from ..support.leftovers import cgroups_of, mounts_below
from ..support.users import FIRST_ID, UID

pytestmark = pytest.mark.root
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")
OPTIONS = (
    "",
    *(option for option in KNOWN_OPTIONS if option not in ("bind", "rbind", "remount")),
    "ro,nosuid",
    "rro,rnodev",
    "size=1m",
)
FEW = ("", "ro", "rro", "rw", "nosuid", "noatime", "rnoatime", "sync", "rprivate", "rshared", "size=1m")
"""Options for a container that lacks one namespace, and for a user without privileges."""
SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}
PLACES = {"proc": "/proc", "sysfs": "/sys", "cgroup": "/sys/fs/cgroup", "cgroup2": "/sys/fs/cgroup", "devpts": "/dev/pts",
          "mqueue": "/dev/mqueue", "tmpfs": "/m", "ramfs": "/m"}  # fmt: skip
KINDS = (*PLACES, "bind", "overlay", "remount", "propagation")
RUN = """
import json, sys, warnings
import ociruntime as oci
bundle, state_root, prefix, uid = sys.argv[1:5]
warnings.simplefilter("ignore", oci.OCIRuntimeWarning)
if int(uid):
    become(int(uid))
with open(f"{bundle}/documents") as documents:
    for number, line in enumerate(documents):
        with open(f"{bundle}/config.json", "w") as config:
            config.write(line)
        mount = json.loads(line)["mounts"][-1]
        path = f"$.mounts[{len(json.loads(line)['mounts']) - 1}]"
        try:
            done = oci.run(bundle, ["true"], capture_output=True, state_root=state_root, container_id=f"{prefix}-{number}")
            assert done.returncode == 0, (mount, done)
        except (oci.SpecError, oci.UnsupportedError, oci.StepError) as error:
            named = path in str(error) or "$.linux.namespaces: a user namespace needs a mount namespace" in str(error)
            assert named and not str(error).count("[Errno"), (mount, str(error))
            print(error)
        assert not oci.Container.list(state_root=state_root)
"""


def mounts_of(kind: str, option: str, tree: Path) -> list[dict[str, Any]]:
    """Return the mounts of a config, of which the last one is the one to try."""
    options = [option] if option else []
    if kind == "bind":
        return [{"destination": "/m", "source": str(tree), "options": ["rbind", *options]}]
    if kind == "overlay":
        return [{"destination": "/m", "type": "overlay", "source": "overlay", "options": [f"lowerdir={tree}:{tree}/dir", *options]}]
    if kind in ("remount", "propagation"):
        below = {"destination": "/m", "type": "tmpfs", "source": "tmpfs"}
        return [below, {"destination": "/m", "options": ["remount", *options] if kind == "remount" else [f"r{option}"]}]
    mount = {"destination": PLACES[kind], "type": kind, "source": kind, "options": options}
    return [SYS, mount] if kind.startswith("cgroup") else [mount]


def document(kind: str, option: str, missing: tuple[str, ...], tree: Path, uid: int) -> dict[str, Any]:
    mounts = mounts_of(kind, option, tree)
    if option in ("idmap", "ridmap"):
        ids = [{"containerID": 0, "hostID": 100000, "size": 1000}]
        mounts[-1].update(uidMappings=ids, gidMappings=ids)
    namespaces = [{"type": name} for name in NAMESPACES if name not in missing]
    linux: dict[str, Any] = {"namespaces": namespaces}
    if uid >= 0:
        ids = [{"containerID": 0, "hostID": uid or FIRST_ID, "size": 1 if uid else 65536}]
        namespaces.append({"type": "user"})
        linux.update(uidMappings=ids, gidMappings=ids)
    process = {"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
    mounts = [{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"}, *mounts]
    return {"ociVersion": "1.3.0", "root": {"path": "rootfs"}, "process": process, "mounts": mounts, "linux": linux}


@pytest.mark.skipif(oci.Host.probe().kernel < (6, 15), reason="a container without a mount namespace needs Linux 6.15")
@pytest.mark.parametrize(
    "missing", [(), *((name,) for name in NAMESPACES), NAMESPACES], ids=lambda names: "-".join(names) or "none"
)
@pytest.mark.parametrize("uid", [-1, 0, UID], ids=["root", "user-namespace", "unprivileged"])
def test_every_mount_is_carried_out_or_refused(
    make_bundle: MakeBundle, prefix: str, user_script: Script, uid: int, missing: tuple[str, ...]
) -> None:
    few = len(missing) == 1 or uid > 0 or (uid == 0 and "mount" in missing)
    # Elsewhere than tmp_path, to whose parent every beginning session of pytest bars others.
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as work:
        os.chmod(work, 0o755)
        bundle, state_root, tree = Path(shutil.move(make_bundle().path, work)), Path(work, "state"), Path(work, "tree")
        (tree / "dir").mkdir(parents=True)
        state_root.mkdir(mode=0o700)
        documents = [
            document(kind, option, missing, tree, uid)
            for kind in KINDS
            for option in (("private", "slave", "shared", "unbindable") if kind == "propagation" else FEW if few else OPTIONS)
        ]
        (bundle / "documents").write_text("".join(f"{json.dumps(each)}\n" for each in documents))
        owner = FIRST_ID if uid == 0 else max(uid, 0)
        for directory, _, _ in (*os.walk(bundle), *os.walk(tree)):
            os.chown(directory, owner, owner)
        for path in (state_root, bundle / "config.json"):
            os.chown(path, max(uid, 0), max(uid, 0))
        done = user_script(RUN, bundle, state_root, prefix, max(uid, 0), timeout=300)
        assert mounts_below(Path(work)) == []
        assert [name for name in os.listdir(state_root) if not name.startswith(".")] == []
        assert cgroups_of(prefix) == []
    refused = done.stdout.splitlines()
    # A user namespace without a mount namespace is refused as a whole.
    assert len(refused) == len(documents) if uid >= 0 and "mount" in missing else len(refused) < len(documents) / 2
