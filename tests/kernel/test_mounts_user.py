"""Mounts in a user namespace: flags that are locked, filesystems that need a namespace of their own, users without privileges."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Script, UserBundle
from ..support.mounts import Runner, bind, parse, tmpfs
from ..support.places import REPO
from ..support.users import UID

pytestmark = pytest.mark.root


@pytest.fixture
def user(run: Runner) -> Runner:
    run.user = True
    return run


@pytest.fixture
def locked(tree: Path) -> Iterator[Path]:
    """A mount of the host whose flags a user namespace may not take away."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=755", "none", tree / "dir"], check=True)
    (tree / "dir/below").write_text("below\n")
    yield tree
    subprocess.run(["umount", "-l", tree / "dir"], check=True)


def without(*kinds: str) -> Callable[[dict[str, Any]], None]:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["namespaces"] = [n for n in d["linux"]["namespaces"] if n["type"] not in kinds]
        if "ipc" in kinds:
            d["mounts"] = [m for m in d["mounts"] if m.get("type") != "mqueue"]
        if "pid" in kinds:
            d["mounts"] = [m for m in d["mounts"] if m.get("type") != "proc"]

    return change


def test_what_only_the_caller_may_open_can_be_bound(user: Runner, locked: Path) -> None:
    """Directories that other users may not enter, and a tree with mounts of which only the upper part is bound."""
    locked.chmod(0o700)
    assert os.stat(locked.parent).st_mode & 0o077 == 0
    table = parse(user("cat /b/below; cat /proc/self/mountinfo", bind(locked / "dir", "/b", "bind"), bind(locked, "/top", "bind")))
    assert "/top" in table
    assert "/top/dir" not in table


def test_readonly_keeps_the_other_flags(user: Runner, locked: Path) -> None:
    table = user.table(
        bind(locked / "dir", "/ro", "bind", "ro"), bind(locked, "/rro", "rbind", "rro"), bind(locked / "dir", "/plain", "bind")
    )
    for point in ("/ro", "/rro/dir", "/plain"):
        assert {"nosuid", "nodev", "noexec"} <= table[point].options, point
    assert "ro" in table["/ro"].options & table["/rro/dir"].options
    assert "ro" not in table["/plain"].options


def test_propagation_through_a_user_namespace(user: Runner, state_root: Path, prefix: str, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", shared], check=True)
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True)
        (shared / "in").mkdir()

        def change(d: dict[str, Any]) -> None:
            d["process"]["args"] = ["sleep", "100"]

        bundle = user.bundle(
            bind(shared, "/slave", "rbind", "rslave"), bind(shared, "/private", "rbind", "rprivate"), change=change
        )
        with oci.Container.run(prefix, bundle, state_root=state_root) as container:
            subprocess.run(["mount", "-t", "tmpfs", "none", shared / "in"], check=True)
            (shared / "in/seen").touch()
            shown = container.exec(["sh", "-c", "ls /slave/in /private/in | grep -v :"], capture_output=True, text=True)
            assert shown.stdout.split() == ["seen"]
    finally:
        subprocess.run(["umount", "-R", "-l", shared], check=True)


def test_the_ids_of_the_user_namespace_on_a_mount(user: Runner, tree: Path) -> None:
    os.chown(tree / "file", 7, 8)
    script = "stat -c '%u %g' /i/file /b/file; touch /i/new"
    assert user(script, bind(tree, "/i", "bind", "idmap"), bind(tree, "/b", "bind", "ro")).splitlines() == ["7 8", "65534 65534"]
    assert os.stat(tree / "new").st_uid == 0


def test_the_ids_of_a_user_namespace_that_is_joined_on_a_mount(user: Runner, tree: Path, state_root: Path, prefix: str) -> None:
    os.chown(tree / "file", 7, 8)
    with oci.Container.create(f"{prefix}-pod", user.bundle().with_args(["sleep", "100"]), state_root=state_root) as pod:
        pod.start()

        def join(d: dict[str, Any]) -> None:
            d["linux"]["namespaces"][-1]["path"] = f"/proc/{pod.pid}/ns/user"
            d["linux"].update(uidMappings=[], gidMappings=[])

        script = "stat -c '%u %g' /i/file /b/file; touch /i/new"
        shown = user(script, bind(tree, "/i", "bind", "idmap"), bind(tree, "/b", "bind", "ro"), change=join)
    assert shown.splitlines() == ["7 8", "65534 65534"]
    assert os.stat(tree / "new").st_uid == 0


def test_sysfs_of_a_network_namespace_that_is_not_owned(user: Runner) -> None:
    out = user("ls /sys/class/net >/dev/null && ls -A /sys/fs/cgroup && cat /proc/self/mountinfo", change=without("network"))
    table = parse(out)
    assert " - " in out.split("\n", 1)[0], "the host's cgroups are shown"
    below = [line for point, line in table.items() if point == "/sys" or point.startswith("/sys/")]
    assert len(below) > 1
    assert all("ro" in line.options for line in below)

    def writable(d: dict[str, Any]) -> None:
        without("network")(d)
        next(m for m in d["mounts"] if m["type"] == "sysfs")["options"].remove("ro")

    with pytest.raises(oci.UnsupportedError, match=r"\$\.mounts\[5\].*network namespace"):
        user("true", change=writable)


@pytest.mark.parametrize(("kind", "lost", "place"), [("mqueue", "ipc", "/dev/mqueue"), ("proc", "pid", "/proc")])
def test_filesystems_of_namespaces_that_are_not_owned(user: Runner, kind: str, lost: str, place: str) -> None:
    mount = {"type": kind, "source": kind, "destination": place}

    def change(d: dict[str, Any]) -> None:
        without(lost)(d)
        d["mounts"].append(mount)

    with pytest.raises(oci.UnsupportedError, match=rf"\$\.mounts\[5\]: {kind} .*{lost} namespace.*bind {place}"):
        user("true", change=change)


def test_ids_that_are_not_mapped_are_named(user: Runner) -> None:
    with pytest.raises(oci.SpecError, match=r"\$\.mounts\[6\]\.options: gid 70000 is not mapped"):
        user("true", tmpfs("/t", "gid=70000"))
    assert user("stat -c '%u %g' /t", tmpfs("/t", "uid=3", "gid=5", "mode=700")) == "3 5\n"


def test_a_filesystem_for_the_hosts_root_only(user: Runner) -> None:
    error = user.refused({"type": "ext4", "source": "/dev/vda", "destination": "/x"})
    assert error.errno == errno.EPERM


@pytest.mark.vm
def test_devices_have_the_mode_and_owner_of_the_config(user: Runner) -> None:
    """Also where the host has no such device: they are made outside of the user namespace, and nothing of that stays on the host."""
    devices = [
        {"path": "/dev/foo", "type": "b", "major": 1, "minor": 5, "fileMode": 0o157, "uid": 10, "gid": 11},
        {"path": "/srv/a/zero", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "gid": 65535},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o640, "uid": 1, "gid": 2},
    ]
    before = parse(Path("/proc/self/mountinfo").read_text())["/"]
    names = "/dev/foo /srv/a/zero /dev/null /dev/pipe /dev/zero"
    shown = user(
        f"stat -c '%n %t:%T %F %a %u:%g' {names}; head -c4 /srv/a/zero | od -An -x; echo x >/dev/null",
        change=lambda d: d["linux"].update(devices=devices),
    )
    assert shown.splitlines() == [
        "/dev/foo 1:5 block special file 157 10:11", "/srv/a/zero 1:5 character special file 666 0:0",
        "/dev/null 1:3 character special file 640 0:65535", "/dev/pipe 0:0 fifo 640 1:2",
        "/dev/zero 1:5 character special file 666 65534:65534", " 0000 0000",
    ]  # fmt: skip
    assert parse(Path("/proc/self/mountinfo").read_text())["/"] == before
    with pytest.raises(oci.SpecError, match=r"\$\.linux\.devices\[0\]\.uid: 70000 is not mapped"):
        user("true", change=lambda d: d["linux"].update(devices=[{**devices[0], "uid": 70000}]))


@pytest.mark.parametrize("in_namespace", [True, False])
def test_a_mount_over_a_default_device(run: Runner, in_namespace: bool) -> None:
    run.user = in_namespace
    assert (
        run("stat -c '%n %t:%T' /dev/full /dev/zero", bind("/dev/random", "/dev/full", "bind")) == "/dev/full 1:8\n/dev/zero 1:5\n"
    )


def test_devices_where_none_can_be_made(user: Runner, state_root: Path, prefix: str) -> None:
    """In a user namespace that exists already: the host's, after a proof that they are what the config says, with a warning."""
    fuse = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
    with oci.Container.create(
        f"{prefix}-pod", user.bundle().with_args(["sleep", "100"]), state_root=state_root.with_name("pods")
    ) as pod:
        pod.start()

        def join(*devices: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
            def change(d: dict[str, Any]) -> None:
                d["linux"]["namespaces"][-1]["path"] = f"/proc/{pod.pid}/ns/user"
                d["linux"].update(devices=devices, uidMappings=[], gidMappings=[])

            return change

        script = "stat -c '%t:%T %F %a %u:%g' /dev/fuse"
        mode = format(os.stat("/dev/fuse").st_mode & 0o777, "o")
        with pytest.warns(oci.OCIRuntimeWarning, match=r"\$\.linux\.devices\[0\].*those of the host's /dev/fuse"):
            shown = user(script, change=join({**fuse, "uid": 5}))
        assert shown == f"a:e5 character special file {mode} 65534:65534\n"
        error = user.refused(change=join({**fuse, "minor": 3}))
        assert (error.op, error.errno) == ("prove_dev", errno.ENODEV)
        error = user.refused(change=join({**fuse, "path": f"/dev/{user.name}"}))
        assert (error.op, error.errno) == ("open", errno.ENOENT)


NESTED = """
import os, sys, warnings
import ociruntime as oci
path, root, prefix = sys.argv[1:]
bundle = oci.Bundle.load(path)
host = oci.Host.probe()
assert (host.privileged, host.may_mknod, host.may_setgroups) == (True, False, False), host
args = ["sh", "-c", "stat -c '%t:%T %F' /dev/null /dev/fuse; cat /proc/self/uid_map; grep ^Groups /proc/self/status"]
for spec in (bundle.spec, bundle.spec.evolve(linux=bundle.spec.linux.evolve(namespaces=(*bundle.spec.linux.namespaces, oci.spec.Namespace(type="user"))))):
    bundle.spec = spec
    print(oci.run(bundle, args, capture_output=True, text=True, state_root=root, container_id=prefix, cgroup_manager="disabled", check=True).stdout)
bundle.spec = spec.evolve(process=spec.process.evolve(user=oci.spec.User(uid=0, gid=0, additional_gids=(0, 7))))
try:
    oci.run(bundle, state_root=root, container_id=prefix, cgroup_manager="disabled")
except oci.UnsupportedError as error:
    assert "additionalGids" in str(error), error
else:
    raise AssertionError("groups")
"""


@pytest.mark.vm
def test_the_root_of_a_user_namespace(run: Runner, state_root: Path, prefix: str, tmp_path: Path) -> None:
    """The runtime itself in a user namespace, as podman has it for users: devices are the host's, groups stay as they are."""

    def change(d: dict[str, Any]) -> None:
        d["linux"].update(devices=[{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}], resources={})
        next(m for m in d["mounts"] if m["type"] == "devpts")["options"].remove("gid=5")

    command = ["unshare", "-Urm", sys.executable, "-P", "-c", NESTED, run.bundle(change=change).path, state_root, prefix]
    done = subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines() if line] == [
        ["1:3", "character", "special", "file"], ["a:e5", "character", "special", "file"], ["0", "0", "1"], ["Groups:"],
    ] * 2  # fmt: skip


ROOTLESS = """
import os, sys
import ociruntime as oci
path, root, prefix, uid, locked = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5]
script = "cat /proc/self/mountinfo"
run = lambda bundle, root: oci.run(bundle, ["sh", "-c", script], capture_output=True, text=True, state_root=root, container_id=prefix, check=True).stdout
become(uid)
bundle = oci.Bundle.load(path)
print(run(bundle, root))
for options, kind in ((["rbind", "rdev"], oci.StepError), (["rbind", "noatime"], oci.StepError), (["rbind", "idmap"], oci.UnsupportedError),
                      (["bind", "ro"], oci.StepError)):
    mount = oci.spec.Mount(destination="/x", source=locked, options=tuple(options))
    changed = oci.Bundle.load(path)
    changed.spec = bundle.spec.evolve(mounts=(*bundle.spec.mounts, mount))
    try:
        run(changed, root)
    except kind as error:
        print("refused:", error)
    else:
        raise AssertionError(options)
    assert [name for name in os.listdir(root) if not name.startswith(".")] == []
"""


def test_a_user_without_privileges(user_bundle: UserBundle, user_script: Script, locked: Path, prefix: str) -> None:
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/var/tmp") as name:  # which the user can reach
        Path(name).chmod(0o755)
        subprocess.run(["mount", "--rbind", locked, name], check=True)
        try:
            spec = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID)
            mounts = (
                oci.spec.Mount(destination="/ro", source=f"{name}/dir", options=("bind", "ro")),
                oci.spec.Mount(destination="/all", source=name, options=("rbind", "rro")),
                oci.spec.Mount(destination="/cg", type="cgroup2", source="cgroup"),
            )
            bundle, state = user_bundle(spec.evolve(mounts=(*(spec.mounts or ()), *mounts)).with_namespace("cgroup"))
            done = user_script(ROOTLESS, bundle, state, prefix, UID, name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)
    table = parse(done.stdout)
    for point in ("/ro", "/all/dir"):
        assert {"ro", "nosuid", "nodev", "noexec"} <= table[point].options, point
    assert "ro" in table["/all"].options
    assert table["/cg"].fstype == "cgroup2"
    refused = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert ["locked" in line for line in refused] == [True, True, False, False]
    assert "needs root" in refused[2]
    assert "EINVAL" in refused[3]
    assert "rbind" in refused[3]
