"""The command lines of criu, and the plan that runs it for a restore."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import attrs
import pytest

import ociruntime as oci
from ociruntime.errors import UnsupportedError
from ociruntime.files import MountInfo
from ociruntime.lifecycle.checkpoint import _external_sources, dump_command, restore_command
from ociruntime.options import CheckpointOptions, RestoreOptions
from ociruntime.plan.compile import compile_restore
from ociruntime.plan.ops import NO_SLOT
from ociruntime.spec import Mount, Namespace, NamespaceType, RuntimeSpec
from ociruntime.store import StateRecord

from ..support.plans import FS, HYBRID, PURE_V2, config, hooked

BINDS = (
    Mount(destination="/tree", type="bind", source="/srv/tree", options=("rbind",)),
    Mount(destination="/tree/memory", type="tmpfs", source="tmpfs"),
    Mount(destination="file", source="data", options=("bind", "ro")),
)
RECORD = StateRecord(id="c1", bundle="/b", status="running", pid=7, rootfs="/b/rootfs")


def mounts(*points: str) -> list[MountInfo]:
    return [MountInfo("1:1", "/", point, "ext4", "") for point in points]


def values(command: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(command) if word == option]


def test_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    spec = RuntimeSpec.default().evolve(mounts=BINDS)
    options = CheckpointOptions(image_path="/i/image", work_path="/w", parent_path="/i/parent", file_locks=True)
    inside = mounts("/", "/tree", "/tree/below", "/tree/memory", "/tree/memory/below", "/file", "/proc")
    command = dump_command("/sbin/criu", RECORD, spec, inside, options)
    assert command[:4] == ["/sbin/criu", "dump", "--tree", "7"]
    assert values(command, "--external") == [f"mnt[{point}]:{point}" for point in ("/tree", "/tree/below", "/file")]
    assert values(command, "--prev-images-dir") == ["../parent"]
    assert values(command, "--network-lock") == ["nftables"], "iptables is missing"
    assert {"--track-mem", "--file-locks", "--manage-cgroups=soft"} <= {*command}
    assert "--leave-running" not in command
    assert values(command, "--images-dir") == ["/i/image"]
    assert values(command, "--work-dir") == ["/w"]


@pytest.mark.parametrize("pre_dump", [False, True])
def test_a_checkpoint_of_a_container_that_goes_on(pre_dump: bool) -> None:
    options = CheckpointOptions(image_path="/i", leave_running=True, pre_dump=pre_dump)
    command = dump_command("/sbin/criu", RECORD, RuntimeSpec.default(), mounts("/"), options)
    assert command[1] == ("pre-dump" if pre_dump else "dump")
    assert ("--leave-running" in command, "--track-mem" in command) == (not pre_dump, pre_dump)


def test_a_restore(tmp_path: Path) -> None:
    bundle = oci.Bundle(tmp_path, config=RuntimeSpec.default().evolve(mounts=BINDS).to_json().encode())
    names = ["pipe:[5]", "file[1a:2b]", "pipe:[5]"]
    options = RestoreOptions(image_path="/i", tcp_established=True)
    sources = dict(_external_sources(bundle.spec, str(tmp_path), mounts("/", "/srv/tree/below")))
    command = restore_command("/sbin/criu", bundle, names, "/state/criu.pid", options, sources)
    assert values(command, "--external") == [
        "mnt[/tree]:/srv/tree",
        "mnt[/tree/below]:/srv/tree/below",
        f"mnt[/file]:{tmp_path}/data",
    ]
    assert values(command, "--inherit-fd") == ["fd[0]:pipe:[5]", "fd[1]:file[1a:2b]"], "each once"
    assert values(command, "--root") == [f"{tmp_path}/rootfs"]
    assert {"--restore-detached", "--restore-sibling", "--tcp-established"} <= {*command}


def test_mount_points_that_look_like_an_argument(tmp_path: Path) -> None:
    """A container with CAP_SYS_ADMIN chooses the names of mount points; criu would mount the path behind the first "]:"."""
    spec = RuntimeSpec.default().evolve(mounts=(Mount(destination="/a", type="bind", source="/srv/a", options=("rbind",)),))
    with pytest.raises(UnsupportedError, match=r"^mount point '/a/b\]:/etc': criu cannot tell"):
        dump_command("/sbin/criu", RECORD, spec, mounts("/", "/a", "/a/b]:/etc"), CheckpointOptions(image_path="/i"))
    bundle = oci.Bundle(tmp_path, config=spec.to_json().encode())
    with pytest.raises(UnsupportedError, match=r"^mount point '/a/b\]:/etc': criu cannot tell"):
        restore_command(
            "/sbin/criu", bundle, [], "/p", RestoreOptions(image_path="/i"), {"/a": "/srv/a", "/a/b]:/etc": "/srv/a/b]:/etc"}
        )
    assert dump_command("/sbin/criu", RECORD, spec, mounts("/", "/a", "/a/b]"), CheckpointOptions(image_path="/i"))


def test_the_plan_of_a_restore() -> None:
    plan = compile_restore(config(), PURE_V2, ["/sbin/criu", "restore"], bundle="/b", container_id="c1")
    exec = plan.steps[-1]
    assert exec.op == "exec"
    assert exec.values[:2] == (("/sbin/criu",), ("/sbin/criu", "restore", "--cgroup-root", "/ociruntime-c1"))
    assert plan.cgroups == (f"{FS}/ociruntime-c1",)
    ops = [step.op for step in plan.steps]
    assert ops.index("cgroup_mkdir") < ops.index("clone3") < ops.index("move_mount") < ops.index("sync") < ops.index("exec")


def test_cgroups_of_v1_have_their_controllers() -> None:
    plan = compile_restore(config(), HYBRID, ["/sbin/criu"], bundle="/b", container_id="c1")
    command = plan.steps[-1].arguments()["argv"]
    assert isinstance(command, tuple)
    assert "memory:/ociruntime-c1" in command
    without = compile_restore(config(), HYBRID, ["/sbin/criu"], bundle="/b", container_id="c1", places_cgroups=False)
    assert without.steps[-1].arguments()["argv"] == ("/sbin/criu",)


def test_what_cannot_be_restored() -> None:
    with pytest.raises(UnsupportedError, match=r"\$\.hooks"):
        compile_restore(config(hooked("createRuntime")), PURE_V2, ["/sbin/criu"], bundle="/b")
    with pytest.raises(UnsupportedError, match="restored into cgroups"):
        compile_restore(config(), attrs.evolve(PURE_V2, hierarchies=()), ["/sbin/criu"], bundle="/b")


def test_joined_namespaces() -> None:
    """criu inherits those that an image refers to, and joins the others itself."""
    kinds = (NamespaceType.IPC, NamespaceType.NETWORK)
    spaces = [Namespace(type=kind, path=f"/run/{kind}") for kind in kinds]
    spec = config().evolve(hostname=None).at.linux.namespaces.set((Namespace(type=NamespaceType.MOUNT), *spaces))
    plan = compile_restore(spec, PURE_V2, ["/sbin/criu"], bundle="/b", places_cgroups=False)
    [inherit] = [step for step in plan.steps if step.op == "inherit"]
    slot, number = inherit.values
    assert isinstance(slot, int)
    assert (plan.inputs[slot].path, number) == ("/run/network", 3)
    argv = plan.steps[-1].arguments()["argv"]
    assert argv == ("/sbin/criu", "--join-ns", "ipc:/run/ipc", "--inherit-fd", "fd[3]:extRootNetNS")


def test_mount_points_of_a_restore() -> None:
    """They are made where they are missing, except in other mounts."""
    spec = RuntimeSpec.default().evolve(mounts=BINDS)
    plan = compile_restore(spec, PURE_V2, ["/sbin/criu"], bundle="/b", sources={"/tree": "/srv/tree", "/file": "/b/data"})
    targets = [step for step in plan.steps if step.op == "target"]
    assert [(step.values[1], step.location) for step in targets] == [("/tree", "$.mounts[0]"), ("/file", "$.mounts[2]")]
    assert all(step.arguments()["like"] != NO_SLOT for step in targets), "a file where the source is one"
