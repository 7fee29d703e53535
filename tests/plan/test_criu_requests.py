"""The requests to criu and its replies, and the plan that runs it for a restore."""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs
import pytest

import ociruntime as oci
from ociruntime.errors import UnsupportedError
from ociruntime.files import MountInfo
from ociruntime.lifecycle.checkpoint import (
    Kind,
    Reply,
    _external_sources,
    cgroup_roots,
    decode_reply,
    dump_request,
    encode_request,
    restore_request,
)
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


def test_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    spec = RuntimeSpec.default().evolve(mounts=BINDS)
    options = CheckpointOptions(image_path="/i/image", work_path="/w", parent_path="/i/parent", file_locks=True)
    inside = mounts("/", "/tree", "/tree/below", "/tree/memory", "/tree/memory/below", "/file", "/proc")
    assert dump_request(RECORD, spec.at.process.terminal.set(False), inside, ["file[1:2]"], options) == {
        "pid": 7,
        "root": "/b/rootfs",
        "external": [*(f"mnt[{point}]:{point}" for point in ("/tree", "/tree/below", "/file")), "file[1:2]"],
        "parent_img": "../parent",
        "track_mem": True,
        "network_lock": 2,  # iptables is missing
        "file_locks": True,
        "manage_cgroups_mode": 3,
        "log_level": 4,
        "log_file": "dump.log",
        "evasive_devices": True,
        "link_remap": True,
    }


@pytest.mark.parametrize("pre_dump", [False, True])
def test_a_checkpoint_of_a_container_that_goes_on(pre_dump: bool) -> None:
    options = CheckpointOptions(image_path="/i", leave_running=True, pre_dump=pre_dump)
    request = dump_request(RECORD, RuntimeSpec.default(), mounts("/"), [], options)
    assert ("leave_running" in request, "track_mem" in request) == (not pre_dump, pre_dump)


def test_a_restore(tmp_path: Path) -> None:
    spec = RuntimeSpec.default().evolve(mounts=BINDS).at.process.terminal.set(False)
    bundle = oci.Bundle(tmp_path, config=spec.to_json().encode())
    names = ["pipe:[5]", "file[1a:2b]", "pipe:[5]"]
    options = RestoreOptions(image_path="/i", tcp_established=True, manage_cgroups_mode="full")
    sources = dict(_external_sources(bundle.spec, str(tmp_path), mounts("/", "/srv/tree/below")))
    request = restore_request(bundle, names, options, sources, [(None, "/c")])
    assert request == {
        "root": f"{tmp_path}/rootfs",
        "external": ["mnt[/tree]:/srv/tree", "mnt[/tree/below]:/srv/tree/below", f"mnt[/file]:{tmp_path}/data"],
        "inherit_fd": [("pipe:[5]", 0), ("file[1a:2b]", 1)],  # each once
        "join_ns": [],
        "cg_root": [(None, "/c")],
        "rst_sibling": True,
        "tcp_established": True,
        "manage_cgroups_mode": 4,
        "log_level": 4,
        "log_file": "restore.log",
        "evasive_devices": True,
        "link_remap": True,
    }
    unmanaged = RestoreOptions(image_path="/i", manage_cgroups_mode="ignore")
    assert restore_request(bundle, names, unmanaged, sources, [(None, "/c")])["cg_root"] == []


def test_a_terminal(tmp_path: Path) -> None:
    """criu notifies of its master, and of nothing else that would need an answer."""
    spec = RuntimeSpec.default().at.process.terminal.set(True)
    bundle = oci.Bundle(tmp_path, config=spec.to_json().encode())
    dumped = dump_request(RECORD, spec, mounts("/"), [], CheckpointOptions(image_path="/i"))
    assert (dumped["orphan_pts_master"], "notify_scripts" in dumped) == (True, False)
    restored = restore_request(bundle, [], RestoreOptions(image_path="/i"), {}, [])
    assert (restored["orphan_pts_master"], restored["notify_scripts"]) == (True, True)


def test_mount_points_that_look_like_an_argument(tmp_path: Path) -> None:
    """A container with CAP_SYS_ADMIN chooses the names of mount points; criu would mount the path behind the first "]:"."""
    spec = RuntimeSpec.default().evolve(mounts=(Mount(destination="/a", type="bind", source="/srv/a", options=("rbind",)),))
    options = CheckpointOptions(image_path="/i")
    with pytest.raises(UnsupportedError, match=r"^mount point '/a/b\]:/etc': criu cannot tell"):
        dump_request(RECORD, spec, mounts("/", "/a", "/a/b]:/etc"), [], options)
    bundle = oci.Bundle(tmp_path, config=spec.to_json().encode())
    sources = {"/a": "/srv/a", "/a/b]:/etc": "/srv/a/b]:/etc"}
    with pytest.raises(UnsupportedError, match=r"^mount point '/a/b\]:/etc': criu cannot tell"):
        restore_request(bundle, [], RestoreOptions(image_path="/i"), sources, [])
    assert dump_request(RECORD, spec, mounts("/", "/a", "/a/b]"), [], options)


# ---- messages ----


def test_a_request_is_a_protocol_buffer() -> None:
    """The bytes are those of another implementation."""
    request = encode_request(
        Kind.RESTORE,
        {
            "images_dir_fd": 300,
            "pid": 4194304,
            "notify_scripts": True,
            "root": "/r",
            "cg_root": [("cpu,cpuacct", "/p"), (None, "/q")],
            "inherit_fd": [("pipe:[5]", 0)],
            "external": ["file[1:2]", "mnt[/\udcff]:/b"],
            "join_ns": [("ipc", "/x")],
            "network_lock": 2,
        },
    )
    assert request == (
        b"\x08\x02\x12\x60\x08\xac\x02\x10\x80\x80\x80\x02\x60\x01\x6a\x02/r"
        b"\xca\x01\x11\x0a\x0bcpu,cpuacct\x12\x02/p\xca\x01\x04\x12\x02/q"
        b"\xda\x01\x0c\x0a\x08pipe:[5]\x10\x00\xaa\x02\x09file[1:2]\xaa\x02\x0amnt[/\xff]:/b"
        b"\xba\x02\x09\x0a\x03ipc\x12\x02/x\x80\x04\x02"
    )


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"\x08\x02\x10\x01\x22\x04\x08\x80\x80\x01", Reply(Kind.RESTORE, success=True, pid=16384)),
        (b"\x08\x06\x10\x01*\x15\n\x11orphan-pts-master\x10\x07", Reply(Kind.NOTIFY, success=True, event="orphan-pts-master")),
        (b"\x08\x01\x10\x00\x38\x16\x4a\x02no\x58" + b"\xff" * 9 + b"\x01", Reply(Kind.DUMP, success=False, reason="no")),
        (b"\x08\x01\x10\x01\xf9\x0712345678\xfd\x071234\xfa\x07\x01x", Reply(Kind.DUMP, success=True)),
    ],
    ids=["restored", "a notification", "a failure", "unknown fields"],
)
def test_replies(data: bytes, reply: Reply) -> None:
    assert decode_reply(data) == reply


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x08", "it ends within a number"),
        (b"\x08\x82", "it ends within a number"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\x08\x02", "it has no type or no result"),
        (b"\x0b\x02", "field 1 has the unknown type 3"),
        (b"\x0a\x09ab", "field 1 is longer than the message"),
        (b"\xfd\x07123", "field 127 is longer than the message"),
        (b"\x0a\x01x\x10\x01", "field 1 is not a number"),
        (b"\x08\x02\x10\x01\x20\x05", "field 4 is a number"),
        (b"\x08\x02\x10\x01\x22\x02\x08\xff", "it ends within a number"),
        (b"\x08\x02\x10\x01\x22\x03\x0a\x01x", "field 1 is not a number"),
    ],
)
def test_what_is_not_a_reply(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        decode_reply(data)


# ---- the plan ----


def test_the_plan_of_a_restore() -> None:
    plan = compile_restore(config(), PURE_V2, "/sbin/criu", bundle="/b", container_id="c1")
    exec = plan.steps[-1]
    assert exec.op == "exec"
    assert exec.values[:2] == (("/sbin/criu",), ("/sbin/criu", "swrk", "3"))
    [inherit] = [step for step in plan.steps if step.op == "inherit"]
    slot, number = inherit.values
    assert isinstance(slot, int)
    assert (plan.inputs[slot].kind, number) == ("peer", 3)
    assert plan.cgroups == (f"{FS}/ociruntime-c1",)
    ops = [step.op for step in plan.steps]
    assert ops.index("cgroup_mkdir") < ops.index("clone3") < ops.index("move_mount") < ops.index("sync") < ops.index("exec")


def test_cgroups_of_v1_have_their_controllers() -> None:
    assert cgroup_roots([f"{FS}/ociruntime-c1"], PURE_V2) == [(None, "/ociruntime-c1")]
    plan = compile_restore(config(), HYBRID, "/sbin/criu", bundle="/b", container_id="c1")
    roots = cgroup_roots(plan.cgroups, HYBRID)
    assert ("memory", "/ociruntime-c1") in roots
    assert (None, "/ociruntime-c1") in roots


def test_what_cannot_be_restored() -> None:
    with pytest.raises(UnsupportedError, match=r"\$\.hooks"):
        compile_restore(config(hooked("createRuntime")), PURE_V2, "/sbin/criu", bundle="/b")
    with pytest.raises(UnsupportedError, match="restored into cgroups"):
        compile_restore(config(), attrs.evolve(PURE_V2, hierarchies=()), "/sbin/criu", bundle="/b")


def test_joined_namespaces(tmp_path: Path) -> None:
    """criu inherits those that an image refers to, and joins the others itself."""
    kinds = (NamespaceType.IPC, NamespaceType.NETWORK)
    spaces = [Namespace(type=kind, path=f"/run/{kind}") for kind in kinds]
    spec = config().evolve(hostname=None).at.linux.namespaces.set((Namespace(type=NamespaceType.MOUNT), *spaces))
    plan = compile_restore(spec, PURE_V2, "/sbin/criu", bundle="/b")
    [_, inherit] = [step for step in plan.steps if step.op == "inherit"]
    slot, number = inherit.values
    assert isinstance(slot, int)
    assert (plan.inputs[slot].path, number) == ("/run/network", 4)
    bundle = oci.Bundle(tmp_path, config=spec.to_json().encode())
    request = restore_request(bundle, ["pipe:[5]"], RestoreOptions(image_path="/i"), {}, [])
    assert request["inherit_fd"] == [("pipe:[5]", 0), ("extRootNetNS", 4)]
    assert request["join_ns"] == [("ipc", "/run/ipc")]


def test_mount_points_of_a_restore() -> None:
    """They are made where they are missing, except in other mounts."""
    spec = RuntimeSpec.default().evolve(mounts=BINDS)
    plan = compile_restore(spec, PURE_V2, "/sbin/criu", bundle="/b", sources={"/tree": "/srv/tree", "/file": "/b/data"})
    targets = [step for step in plan.steps if step.op == "target"]
    assert [(step.values[1], step.location) for step in targets] == [("/tree", "$.mounts[0]"), ("/file", "$.mounts[2]")]
    assert all(step.arguments()["like"] != NO_SLOT for step in targets), "a file where the source is one"
