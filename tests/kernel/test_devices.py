"""Devices in containers, by path and by CDI specs of made-up vendors over real device nodes: for root and for a user."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime import aio, cdi
from ociruntime.overrides import Overrides
from ociruntime.plan.cgroups.limits import rules_of

from ..support import users
from ..support.fixture_types import Command, MakeBundle
from ..support.private_users import UID, User, give, new_user
from ..support.users import FIRST_ID, with_user_namespace

pytestmark = pytest.mark.root
ZERO = os.makedev(1, 5)


def spec_of(state: object, node: object) -> dict[str, Any]:
    """Return a CDI spec whose edits are of every kind, over two device nodes and a hook that writes its state to a file."""
    copy = {"path": "/bin/sh", "args": ["sh", "-c", f"cat >> {state}"], "timeout": 20}
    return {
        "cdiVersion": "0.7.0",
        "kind": "nvidia.com/gpu",
        "containerEdits": {
            "env": ["VENDOR=all"],
            "hooks": [{**copy, "hookName": "createRuntime"}],
            "mounts": [{"hostPath": str(state), "containerPath": "/vendor/state", "options": ["ro", "nosuid", "bind"]}],
        },
        "devices": [
            {"name": "0", "containerEdits": {"env": ["CARD=0"], "deviceNodes": [{"path": "/dev/vendor0", "hostPath": str(node)}]}},
            {
                "name": "1",
                "containerEdits": {"env": ["CARD=1"], "deviceNodes": [{"path": "/dev/cards/1", "hostPath": "/dev/full"}]},
            },
        ],
    }


SHOW = "stat -c '%n %t:%T %a %u' /dev/vendor0; head -c 3 /dev/vendor0 | tr '\\0' z; echo; echo $VENDOR $CARD; ls /vendor"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A device node like /dev/zero."""
    path = tmp_path / "node"
    os.mknod(path, stat.S_IFCHR | 0o640, ZERO)
    path.chmod(0o640)
    return path


@pytest.fixture
def vendor(tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the only spec; the state that the hook gets is in ``vendor-state`` beside it."""
    directory = tmp_path / "cdi"
    directory.mkdir()
    (tmp_path / "vendor-state").touch()
    (directory / "vendor.json").write_text(json.dumps(spec_of(tmp_path / "vendor-state", node)))
    monkeypatch.setattr(cdi, "SYSTEM", (str(directory),))
    return directory


def run(image: object, script: str, **options: Any) -> list[str]:
    result = oci.run(image, ["sh", "-c", script], capture_output=True, text=True, check=True, **options)  # type: ignore[arg-type]
    return result.stdout.splitlines()


# ---- root ----


def test_edits_of_every_kind(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    shown = run(busybox_rootfs, SHOW, gpus="0", env={"CARD": "x"}, state_root=state_root)
    assert shown == ["/dev/vendor0 1:5 640 0", "zzz", "all 0", "state"]
    state = json.loads((vendor.parent / "vendor-state").read_text())
    assert state["status"] in ("creating", "created")


def test_all_gpus(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    assert run(busybox_rootfs, "ls /dev/vendor0 /dev/cards/1; echo $CARD", gpus="all", state_root=state_root) == [
        "/dev/cards/1",
        "/dev/vendor0",
        "1",
    ]
    assert (vendor.parent / "vendor-state").read_text().count("ociVersion") == 1, "the edits of the spec are made once"


def test_a_node_belongs_to_the_user_of_the_process(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    script = "stat -c '%u %g' /dev/vendor0; head -c 1 /dev/vendor0 | tr '\\0' z"
    assert run(busybox_rootfs, script, user="5:6", devices=["nvidia.com/gpu=0"], state_root=state_root) == ["5 6", "z"]


def test_additional_groups(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    whole = spec_of(vendor.parent / "vendor-state", "/dev/zero")
    whole["devices"][0]["containerEdits"]["additionalGids"] = [0, 4321]
    (vendor / "vendor.json").write_text(json.dumps(whole))
    assert "4321" in run(busybox_rootfs, "id -G", gpus=1, state_root=state_root)[0].split()


@pytest.mark.parametrize("which", ["sync", "aio"])
def test_paths(which: str, busybox_rootfs: Path, node: Path, state_root: Path) -> None:
    (link := node.with_name("link")).symlink_to(node)
    script = "stat -c '%n %t:%T' /dev/full /dev/other /dev/link; head -c 2 /dev/link | tr '\\0' z"
    options: dict[str, Any] = {"devices": ["/dev/full", f"{node}:/dev/other:r", f"{link}:/dev/link"], "state_root": state_root}
    if which == "sync":
        shown = run(busybox_rootfs, script, **options)
    else:
        args = ["sh", "-c", script]
        shown = asyncio.run(aio.run(busybox_rootfs, args, capture_output=True, text=True, **options)).stdout.splitlines()
    assert shown == ["/dev/full 1:7", "/dev/other 1:5", "/dev/link 1:5", "zz"]


def test_a_directory_of_devices(busybox_rootfs: Path, tmp_path: Path, state_root: Path) -> None:
    for name, number in (("a", 5), ("sub/b", 7)):
        path = tmp_path / "snd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, number))
    (tmp_path / "snd/file").touch()
    shown = run(
        busybox_rootfs, "cd /dev/snd; find . -type c | sort; ls", devices=[f"{tmp_path}/snd:/dev/snd"], state_root=state_root
    )
    assert shown == ["./a", "./sub/b", "a", "sub"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(oci.UnsupportedError, match="empty: the directory has no device nodes"):
        run(busybox_rootfs, "true", devices=[tmp_path / "empty"], state_root=state_root)


def test_access(busybox_rootfs: Path, tmp_path: Path, state_root: Path) -> None:
    """The device rules of the container allow what is requested of a device, and no more."""
    path = tmp_path / "unused"
    os.mknod(path, stat.S_IFBLK | 0o666, os.makedev(7, 0))
    bundle = oci.Bundle.from_dir(shutil.copytree(busybox_rootfs, tmp_path / "b/rootfs", symlinks=True).parent)
    plan = bundle.with_overrides(Overrides(devices=[f"{path}:/dev/disk:r"])).plan()
    if not any(
        step.op in ("cgroup_devices", "cgroup_rule") or "devices" in step.text for step in plan.steps if step.side == "host"
    ):
        pytest.skip("no device rules on this host")
    script = "(: < /dev/disk) 2>&1 && echo read; (: >> /dev/disk) 2>&1 && echo write; true"
    if not os.path.exists("/sys/block/loop0"):
        pytest.skip("no loop devices")
    assert run(busybox_rootfs, script, devices=[f"{path}:/dev/disk:rw"], state_root=state_root) == ["read", "write"]
    shown = run(busybox_rootfs, script, devices=[f"{path}:/dev/disk:r"], state_root=state_root)
    assert shown[0] == "read"
    assert "Operation not permitted" in shown[1]


def test_the_plan_shows_devices(make_bundle: MakeBundle, vendor: Path) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default())
    changed = bundle.with_overrides(Overrides(devices=["nvidia.com/gpu=0", "/dev/full"]))
    explained = changed.plan().explain()
    for words in ("device /dev/vendor0 c 1:5 0640", "device /dev/full c 1:7", "/vendor/state", "createRuntime /bin/sh"):
        assert words in explained, words
    rules = rules_of(changed.spec.at.linux.resources.devices.get() or ())
    assert {(rule.major, rule.minor) for rule in rules} >= {(1, 5), (1, 7)}
    assert (bundle.path / "config.json").read_text() == bundle.spec.to_json(2) + "\n", "config.json is not changed"


def test_a_changed_spec_counts_for_the_next_container(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    assert run(busybox_rootfs, "echo $CARD", gpus="0", state_root=state_root) == ["0"]
    path = vendor / "vendor.json"
    path.write_text(path.read_text().replace("CARD=0", "CARD=new"))
    assert run(busybox_rootfs, "echo $CARD", gpus="0", state_root=state_root) == ["new"]


def test_a_user_namespace_of_root(make_bundle: MakeBundle, vendor: Path, state_root: Path) -> None:
    bundle = users.give(make_bundle(with_user_namespace(oci.RuntimeSpec.default())), FIRST_ID)
    assert run(bundle, SHOW, gpus="0", state_root=state_root) == ["/dev/vendor0 1:5 640 0", "zzz", "all 0", "state"]


def test_a_mount_that_does_not_exist(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    (vendor.parent / "vendor-state").unlink()
    with pytest.raises(oci.StepError, match=r"mounts\[\d+\]") as error:
        run(busybox_rootfs, "true", gpus="0", state_root=state_root)
    assert f"{vendor.parent}/vendor-state" in str(error.value)


def test_a_hook_that_fails(busybox_rootfs: Path, vendor: Path, state_root: Path) -> None:
    path = vendor / "vendor.json"
    path.write_text(path.read_text().replace("cat >>", "echo no card >&2; exit 3; cat >>"))
    with pytest.raises(oci.HookError, match="no card"):
        run(busybox_rootfs, "true", gpus="0", state_root=state_root)


# ---- a user ----


@pytest.fixture(params=[False, True], ids=["own id", "subordinate ids"])
def user(request: pytest.FixtureRequest, user_python: str, busybox_rootfs: Path) -> Iterator[User]:
    """A user whose home has ``rootfs`` and, in ``config/cdi``, a spec over /dev/zero."""
    if request.param and shutil.which("newuidmap", path="/usr/bin") is None:
        pytest.skip("no newuidmap (Debian: uidmap)")
    with new_user(user_python, subordinate=request.param) as created:
        shutil.copytree(busybox_rootfs, created.home / "rootfs", symlinks=True)
        (created.home / "config/cdi").mkdir(parents=True)
        (created.home / "state").touch()
        (created.home / "config/cdi/vendor.json").write_text(json.dumps(spec_of(created.home / "state", "/dev/zero")))
        give(created.home)
        yield created


def test_the_nodes_of_a_user_are_those_of_the_host(user: User) -> None:
    text = f"""
import json, os, ociruntime as oci
from ociruntime.overrides import Overrides
def run(script, **options):
    print(*oci.run("rootfs", ["sh", "-c", script], capture_output=True, text=True, check=True, **options).stdout.split())
run({SHOW!r}, gpus="0")
run("id -u; head -c 1 /dev/vendor0 | tr '\\\\0' z; echo; echo $CARD", devices=["nvidia.com/gpu=0"], user="caller")
run("stat -c %t:%T /dev/full /dev/other", devices=["/dev/full", "/dev/null:/dev/other:rw"])
run("stat -c %t:%T /dev/full", devices=["/dev/zero:/dev/full"])
bundle = oci.Bundle.from_dir(os.path.abspath("."), oci.RuntimeSpec.default(host=oci.Host.probe()))
plan = bundle.with_overrides(Overrides(gpus=1)).plan()
print(*(word in plan.explain() for word in ("/dev/zero -> /dev/vendor0", "createRuntime /bin/sh")))
"""
    shown = user.run("-W", "error", "-c", text, XDG_CONFIG_HOME=f"{user.home}/config").stdout.splitlines()
    owner = os.stat("/dev/zero").st_mode & 0o777
    assert shown[0] == f"/dev/vendor0 1:5 {owner:o} 65534 zzz all 0 state"
    assert shown[1] == f"{UID} z 0"
    assert shown[2] == "1:7 1:3"
    assert shown[3] == "1:5"
    assert shown[4] == "True True"
    assert (user.home / "state").read_text().count("ociVersion") == 2
    assert user.leftovers() == []


def test_the_command_of_a_user(user: User) -> None:
    config = {"XDG_CONFIG_HOME": f"{user.home}/config"}
    place = f"{user.home}/config/cdi/vendor.json"
    rows = [line.split() for line in user.command("devices", **config).stdout.splitlines()]
    assert rows == [
        ["DEVICE", "NODES", "SPEC"],
        ["nvidia.com/gpu=0", "/dev/vendor0", place],
        ["nvidia.com/gpu=1", "/dev/cards/1", place],
    ]
    found = json.loads(user.command("devices", "--format", "json", **config).stdout)
    assert found[0] == {"name": "nvidia.com/gpu=0", "path": place, "nodes": ["/dev/vendor0"], "annotations": {}}
    for verb in (["run"], ["exec"]):
        command = [*verb, "--gpus", "0", "--device", "/dev/full", "--device", "nvidia.com/gpu=1", f"{user.home}/rootfs", "sh", "-c"]
        assert user.command(*command, "ls /dev/vendor0 /dev/full /dev/cards/1", **config).stdout.split() == [
            "/dev/cards/1",
            "/dev/full",
            "/dev/vendor0",
        ]
    shell = user.command("shell", "--gpus", "all", f"{user.home}/rootfs", stdin="ls /dev/vendor0\n", **config)
    assert shell.stdout == "/dev/vendor0\n"
    refused = user.command("run", "--gpus", "all", f"{user.home}/rootfs", "true", check=False)
    assert refused.returncode == 1
    for words in ("gpus: no CDI spec of a GPU in /etc/cdi, /var/run/cdi", "'nvidia-ctk cdi generate --output=", "Traceback"):
        assert (words in refused.stderr) == (words != "Traceback"), refused.stderr
    wrong = user.command("run", "--device", "card0", f"{user.home}/rootfs", "true", check=False)
    assert "devices contains 'card0': 'vendor.com/class=name' or" in wrong.stderr
    assert user.leftovers() == []


def test_a_running_container_gets_no_device(command: Command) -> None:
    for option in (["--device", "/dev/null"], ["--gpus", "all"]):
        done = subprocess.run(command("exec", *option, "nothing", "true"), capture_output=True, text=True, check=False)
        assert f"{option[0]} needs a new container" in done.stderr


def test_create_and_run_of_a_bundle(make_bundle: MakeBundle, command: Command, prefix: str) -> None:
    bundle = make_bundle(oci.RuntimeSpec.default().with_args(["stat", "-c", "%t:%T", "/dev/x"]))
    done = subprocess.run(
        command("run", "--device", "/dev/full:/dev/x", "-b", bundle.path, prefix), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "1:7\n"), done.stderr


def test_what_a_program_without_devices_costs(script: Callable[..., Any]) -> None:
    text = "import sys, ociruntime.overrides as o; o.Overrides(args=['x']); print('ociruntime.cdi' in sys.modules, 'yaml' in sys.modules)"
    assert script(text).stdout == "False False\n"
    assert sys.modules["ociruntime.cdi"] is cdi
