"""Who owns a container's cgroup, and what root of a user namespace may not set (config-linux.md#cgroup-ownership)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine import cgroup

from ..support.cgroups import directory, pure_v2
from ..support.fixture_types import MakeBundle
from ..support.users import FIRST_ID, give, with_user_namespace
from ..support.waiting import TIME_LIMIT, wait_until

pytestmark = [pytest.mark.root, pytest.mark.vm]
USER = 3
INSIDE = """
set -e
cd /sys/fs/cgroup
mkdir inner
echo 0 > inner/cgroup.procs
echo +pids > cgroup.subtree_control
echo 7 > inner/pids.max
grep -q /inner$ /proc/self/cgroup
if echo max > pids.max; then exit 3; fi 2>/dev/null
if echo 1 > cgroup.kill; then exit 4; fi 2>/dev/null
exec sleep 100
"""


def delegated(*options: str, **process: Any) -> oci.RuntimeSpec:
    document = oci.RuntimeSpec.default().to_dict()
    document["process"] |= {"args": ["sh", "-c", INSIDE], **process}
    document["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": list(options)})
    document["linux"]["resources"] = {"pids": {"limit": 50}}
    document["linux"]["namespaces"].append({"type": "cgroup"})
    return with_user_namespace(oci.RuntimeSpec.load(document))


@pure_v2
@pytest.mark.parametrize("user", [0, USER])
def test_the_user_of_the_container_rules_below_it(make_bundle: MakeBundle, state_root: Path, prefix: str, user: int) -> None:
    bundle = give(make_bundle(delegated(user={"uid": user, "gid": user})), FIRST_ID)
    with oci.Container.create(prefix, bundle, state_root=state_root, stdout=subprocess.PIPE) as container:
        own = directory(container, "")  # before the process moves into a cgroup of its own
        container.start()
        listed = set(Path("/sys/kernel/cgroup/delegate").read_text().split())
        theirs = {entry.name for entry in os.scandir(own) if entry.is_file() and entry.stat().st_uid == FIRST_ID + user}
        assert theirs == listed & set(os.listdir(own))
        assert {"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} <= theirs
        assert own.stat().st_uid == FIRST_ID + user
        wait_until(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n", "its own script to end")
        assert (own / "inner/pids.max").read_text() == "7\n"
        assert (own / "pids.max").read_text() == "50\n"
        assert container.exec(["true"]).returncode == 0
        container.update(pids=60)
        pids = container.stats().pids
        assert (pids.current, pids.limit) == (1, 60)
    assert not own.exists()


@pure_v2
def test_the_owner_of_a_read_only_one_is_the_caller(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    with oci.Container.create(prefix, give(make_bundle(delegated("ro")), FIRST_ID), state_root=state_root) as container:
        assert directory(container, "").stat().st_uid == os.geteuid()


@pure_v2
def test_without_the_kernels_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    own = Path("/sys/fs/cgroup", prefix)
    own.mkdir()
    try:
        real = cgroup.tree.read

        def read(path: str, file: str) -> str:
            if file == "delegate":
                raise FileNotFoundError(file)
            return real(path, file)

        monkeypatch.setattr(cgroup.tree, "read", read)
        cgroup.delegate(str(own), 1)
        theirs = {entry.name for entry in os.scandir(own) if entry.stat().st_uid == 1}
        assert theirs == {"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}
    finally:
        own.rmdir()


IN_A_USER_NAMESPACE = """
import sys, warnings
import ociruntime as oci
warnings.simplefilter("error")
name, bundle, root = sys.argv[1:]
try:
    oci.Container.create(name, bundle, state_root=root)
except oci.OCIRuntimeWarning as warning:
    print(warning)
warnings.simplefilter("ignore")
with oci.Container.run(name, bundle, state_root=root) as container:
    with open(f"/proc/{container.pid}/cgroup") as theirs, open("/proc/self/cgroup") as ours:
        assert theirs.read() != ours.read()
    try:
        container.update({"devices": [{"allow": False, "access": "w"}]})
    except oci.UnsupportedError as error:
        print(error)
    container.update(pids=9)
    assert container.exec(["sh", "-c", "true > /dev/null"]).returncode == 0
"""


def test_root_of_a_user_namespace_has_no_device_rules_and_is_told_so(
    make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path
) -> None:
    spec = oci.RuntimeSpec.default(rootless=True, uid=0, gid=0)
    linux = {"resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 8}}, "cgroupsPath": f"/{prefix}"}
    document = spec.to_dict()
    document["linux"] |= linux
    document["process"]["args"] = ["sleep", "100"]
    bundle = make_bundle(oci.RuntimeSpec.load(document))
    (tmp_path / "script").write_text(IN_A_USER_NAMESPACE)
    program = [sys.executable, tmp_path / "script", prefix, bundle.path, state_root]
    waiting = ["unshare", "--user", "--mount", "sh", "-c", 'echo; read go; exec "$@"', "sh", *program]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as inside:
        assert inside.stdout is not None
        assert inside.stdout.readline() == "\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{inside.pid}/{name}").write_text("0 0 4294967295")
        report, errors = inside.communicate("\n", timeout=TIME_LIMIT)
    assert inside.returncode == 0, errors
    assert len(report.splitlines()) == 2
    for line in report.splitlines():
        assert line.startswith("$.linux.resources.devices: device rules need CAP_SYS_ADMIN in the initial user namespace")
