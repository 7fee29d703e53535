"""What a user without privileges, and without cgroups, is told: why something is not possible, and what helps on this host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.cgroups import Limited, on_v2, value
from ..support.fixture_types import MakeBundle
from ..support.users import User

pytestmark = [pytest.mark.root, pytest.mark.skipif("VMTEST" in os.environ, reason="the user there has cgroups, and systemd")]
Change = Callable[[dict[str, Any]], object]
no_systemd = pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd is one of the remedies")


@pytest.fixture
def running(user: User) -> User:
    user.command("create", "-b", user.bundle, "c", check=True)
    user.command("start", "c", check=True)
    return user


def delegate(user: User) -> str:
    return (
        f"user {user.uid} may not create cgroups; run as root, or let root delegate cgroups to user {user.uid} (docs/cgroups.md)\n"
    )


@no_systemd
@pytest.mark.parametrize(
    ("words", "start"),
    [
        (("update", "--memory", "64m", "c"), "memory: needs a cgroup"),
        (("update", "--pids-limit", "5", "c"), "pids: needs a cgroup"),
        (("update", "--cpuset-cpus", "0", "c"), "cpuset_cpus: needs a cgroup"),
        (("update", "--cpus", "0.5", "c"), "cpus: needs a cgroup"),
        (("pause", "c"), "cannot pause container 'c': it needs a cgroup"),
    ],
)
def test_a_container_without_cgroups(running: User, words: tuple[str, ...], start: str) -> None:
    done = running.command(*words)
    assert done.returncode == 1
    assert done.stderr == f"ociruntime: {start}: the container was created without one; {delegate(running)}"


def test_device_rules_of_a_container_without_cgroups(running: User) -> None:
    rules = running.work / "rules.json"
    rules.write_text(json.dumps({"devices": [{"allow": False}]}))
    rules.chmod(0o644)
    done = running.command("update", "-r", rules, "c")
    assert done.stderr == (
        "ociruntime: $.linux.resources.devices: device rules need CAP_SYS_ADMIN in the initial user namespace; run as root of the host\n"
    )


STATS = """
import sys, ociruntime as oci
stats = oci.Container.load("c", state_root=sys.argv[1]).stats()
print([stats.cpu, stats.memory, stats.pids, stats.io, stats.cpuset], [interface.name for interface in stats.interfaces])
"""


def test_what_nothing_counts_is_absent(running: User) -> None:
    document = json.loads(running.command("events", "--stats", "c", check=True).stdout)
    assert set(document["data"]) == {"hugetlb", "intel_rdt", "network_interfaces"}
    assert running.script(STATS, running.state) == "[None, None, None, None, None] ['lo']\n"


def resources(**members: object) -> Change:
    return lambda d: d["linux"].update(resources=members)


def process(**members: object) -> Change:
    return lambda d: d["process"].update(members)


def without_user_namespace(d: dict[str, Any]) -> None:
    d["linux"].update(namespaces=[e for e in d["linux"]["namespaces"] if e["type"] != "user"], uidMappings=[], gidMappings=[])


SYSTEMD, DISABLED = ("--systemd-cgroup",), ("--cgroup-manager", "disabled")
REFUSED: dict[str, tuple[tuple[str, ...], Change, str]] = {
    "limit": ((), resources(memory={"limit": 1 << 26}), "$.linux.resources.memory.limit: needs a cgroup: DELEGATE"),
    "huge pages": (
        (), resources(hugepageLimits=[{"pageSize": "2MB", "limit": 1 << 21}]), "$.linux.resources.hugepageLimits[0]: needs a cgroup: DELEGATE"),
    "unified": ((), resources(unified={"memory.high": "5"}), "$.linux.resources.unified['memory.high']: needs a cgroup: DELEGATE"),
    "no manager": (
        DISABLED, resources(pids={"limit": 9}), "$.linux.resources.pids.limit: needs a cgroup: the cgroup manager is disabled, and DELEGATE"),
    "systemd": (SYSTEMD, resources(), "systemd cgroup manager: systemd is not running; use --cgroup-manager cgroupfs\n"),
    "systemd and limits": (SYSTEMD, resources(pids={"limit": 9}), "systemd cgroup manager: systemd is not running; run as root, or let root "),
    "nice": ((), process(scheduler={"policy": "SCHED_OTHER", "nice": -5}),
             "scheduler SCHED_OTHER, nice -5, priority 0: needs CAP_SYS_NICE on the host; use a nice value that is not below the caller's"),
    "OOM score": ((), process(oomScoreAdj=-500),
                  "-500 > /proc/PID/oom_score_adj: only a privileged user may lower it; use a value that is not below the caller's (step"),
    "rdt": ((), lambda d: d["linux"].update(intelRdt={"closID": "x"}), ("$.linux.intelRdt: no resctrl filesystem is mounted; "
            "if the processor has resource control, let root run mount -t resctrl resctrl /sys/fs/resctrl\n")),
    "namespaces": ((), without_user_namespace, ("init process in new namespaces: pid, network, ipc, uts, mount: "
                   "this user may not create these namespaces; run as root, or add a user namespace (step 1/")),
}  # fmt: skip


@no_systemd
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_user_may_not_do(user: User, name: str) -> None:
    """One line, without warnings about what does not matter any more."""
    options, change, start = REFUSED[name]
    if name == "rdt" and oci.Host.probe().resctrl:
        pytest.skip("resctrl is mounted")
    user.configure(change)
    done = user.command(*options, "run", "-b", user.bundle, "x")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("ociruntime: " + start.replace("DELEGATE", delegate(user))), done.stderr


HOST = """
import sys
import ociruntime as oci
for options in {}, {"overlay": "tmpfs"}, {"read_only": True}:
    try:
        oci.run("/", ["true"], state_root=sys.argv[1], **options)
    except oci.StepError as error:
        print("a user cannot mount it without them; use Sandbox.host, which shows" in str(error))
try:
    oci.run("/", ["true"], state_root=sys.argv[1], cgroup_manager="systemd")
except oci.UnsupportedError as error:  # the default limit of processes is none that needs a cgroup
    print(str(error).endswith("; use --cgroup-manager cgroupfs"))
"""


@no_systemd
def test_the_root_directory_of_the_host(user: User) -> None:
    assert user.script(HOST, user.state) == "True\n" * 4


OTHER_USER = """
import sys, ociruntime as oci
with oci.Sandbox(sys.argv[1], state_root=sys.argv[2]) as sandbox:
    try:
        sandbox.run(["true"], user="12345:0")
    except oci.StepError as error:
        print(error)
"""


def test_a_user_that_is_not_mapped(user: User) -> None:
    """Whichever step finds it: the pipes of the output are given to the user first."""
    message = "standard streams that are pipes, for user 12345: the user is not mapped in the user namespace; use one that is mapped, or map it in"
    assert user.script(OTHER_USER, user.bundle, user.state).startswith(message)


LINKS = """
import sys, ociruntime as oci
try:
    oci.Sandbox(sys.argv[1], cwd="/loop", state_root=sys.argv[2])
except oci.StepError as error:
    print(error)
"""


def test_links_of_an_image_that_are_a_loop(user: User) -> None:
    (user.bundle / "rootfs/loop").symlink_to("loop")
    assert user.script(LINKS, user.bundle, user.state).startswith(
        "$.process.cwd: working directory /loop: its symbolic links are a loop"
    )


def test_device_rules_are_a_warning_with_the_real_reason(user: User) -> None:
    def change(d: dict[str, Any]) -> None:
        d["process"].update(args=["true"])
        d["linux"].update(resources={"devices": [{"allow": False, "access": "rwm"}]})

    user.configure(change)
    done = user.command("run", "-b", user.bundle, "x", check=True)
    assert done.stderr == (
        "ociruntime: warning: $.linux.resources.devices: device rules need CAP_SYS_ADMIN in the initial user namespace; "
        "without them the owners and modes of device files alone decide about access\n"
    )


BLOCKED = """
import os, sys
import ociruntime.engine.causes as causes, ociruntime as oci
place, path, state, value = sys.argv[1:]
causes._NO_USER_NAMESPACES = {place: value}
for number in (1, 28):
    print(causes.explain_clone(number, True))
print(causes.explain_clone(1, False))
"""


def test_user_namespaces_that_are_not_allowed(user: User) -> None:
    setting = user.work / "max_user_namespaces"
    setting.write_text("0\n")
    setting.chmod(0o644)
    blocked = f"user namespaces are not allowed: {str(setting).replace('/', '.')} is 0; run as root, or let root change it\n"
    alone = "this user may not create these namespaces; run as root"
    assert user.script(BLOCKED, setting, user.bundle, user.state, "0") == f"{blocked}{blocked}{alone}\n"
    assert user.script(BLOCKED, setting, user.bundle, user.state, "1") == (
        "this user may not create user namespaces here, as in a chroot or under a filter; run as root\n"
        "the limit of namespaces is reached; let root raise the limits in /proc/sys/user\n"
        f"{alone}, or add a user namespace\n"
    )


@pytest.mark.skipif(not (shutil.which("squashfuse") and shutil.which("mksquashfs")), reason="needs squashfuse and mksquashfs")
def test_a_filesystem_that_cannot_create_the_mount_point(
    make_bundle: MakeBundle, state_root: Path, prefix: str, tmp_path: Path
) -> None:
    """squashfuse answers mkdir(2) with ENOSYS, although the kernel has every system call."""
    bundle = make_bundle()
    (tmp_path / "content").mkdir()
    image = tmp_path / "content.squashfs"
    subprocess.run(["mksquashfs", tmp_path / "content", image, "-quiet", "-no-progress"], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(bundle.rootfs)
    bundle.rootfs.mkdir()
    subprocess.run(["squashfuse", image, bundle.rootfs], check=True)
    try:
        with pytest.raises(oci.StepError) as caught:
            oci.Container.create(prefix, bundle, state_root=state_root)
    finally:
        subprocess.run(["umount", bundle.rootfs], check=True)
    assert str(caught.value).startswith(
        "$.mounts[0]: mount point /proc: its filesystem does not support this, as some FUSE filesystems do not; add the mount point to the image"
    )


def test_a_warning_that_is_an_error_leaves_nothing(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    spec = oci.RuntimeSpec.default().at.process.capabilities.bounding.set(("CAP_KILL", "CAP_NEW"))
    bundle = make_bundle(spec).with_args(["sleep", "1000"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", oci.OCIRuntimeWarning)
        with pytest.raises(oci.OCIRuntimeWarning, match="CAP_NEW: unknown to this kernel"):
            oci.Container.run(prefix, bundle, state_root=state_root)
    assert oci.Container.list(state_root=state_root) == []


def test_an_update_enables_the_controller(make_bundle: MakeBundle, state_root: Path, prefix: str) -> None:
    """On v2 the files of a controller are missing until the parent enables it, whatever the kernel has."""
    if not on_v2("hugetlb"):
        pytest.skip("hugetlb is not on cgroup v2")
    with Limited(make_bundle, state_root, prefix)({}, linux={"cgroupsPath": f"/{prefix}-above/c"}) as container:
        container.update({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
        assert value(container, "hugetlb", "hugetlb.2MB.max") == str(4 << 20)
