"""Mounts that need more than the mount: cgroups, mapped ids, devices; on a real kernel (config.md, Mounts)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.mounts import Change, Line, Runner, bind, parse, tmpfs

pytestmark = pytest.mark.root
CGROUP = {"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup"}
HIERARCHIES = oci.Host.probe().hierarchies
HYBRID = pytest.mark.skipif(oci.Host.probe().cgroup_mode != "hybrid", reason="needs v1 and v2 hierarchies")


def own(*kinds: str) -> Change:
    return lambda d: d["linux"]["namespaces"].extend({"type": kind} for kind in kinds)


def below(table: dict[str, Line], point: str) -> dict[str, Line]:
    return {
        name.removeprefix(point).lstrip("/"): line for name, line in table.items() if name == point or name.startswith(f"{point}/")
    }


def inner(hierarchy: oci.host.Hierarchy) -> str:
    """Where a hierarchy lies below the cgroup mount."""
    return "" if oci.Host.probe().cgroup_mode == "v2" else os.path.basename(hierarchy.mountpoint)


@pytest.mark.vm
@pytest.mark.parametrize("options", [[], ["ro"], ["rw"], ["ro", "nosuid", "noexec", "nodev", "relatime", "rprivate"]])
@pytest.mark.parametrize("namespaced", [True, False])
def test_cgroup_mounts(run: Runner, prefix: str, namespaced: bool, options: list[str]) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["cgroupsPath"] = f"/{prefix}/{prefix}"
        if namespaced:
            own("cgroup")(d)

    table = below(run.table({**CGROUP, "options": options}, change=change), "/sys/fs/cgroup")
    readonly = "ro" in options or (not namespaced and "rw" not in options)
    for hierarchy in HIERARCHIES:
        line = table[inner(hierarchy)]
        assert line.root == ("/" if namespaced else f"/{prefix}/{prefix}"), line
        assert line.fstype == ("cgroup2" if hierarchy.version == 2 else "cgroup")
        assert ("ro" in line.options) is readonly
        assert {"nosuid", "nodev", "noexec"} <= line.options
    if len(HIERARCHIES) > 1:
        assert ("ro" in table[""].options) is readonly


@pytest.mark.vm
def test_a_cgroup_mount_shows_the_containers_own(run: Runner) -> None:
    hierarchy = next(h for h in HIERARCHIES if "pids" in h.controllers)
    place = f"/sys/fs/cgroup/{inner(hierarchy)}"
    for kinds in ((), ("cgroup",)):
        script = f"cat {place}/pids.max; grep -c . {place}/cgroup.procs; ls -d {place}/../*/*{run.name}* 2>/dev/null; true"
        change = own(*kinds)

        def limited(d: dict[str, Any], change: Change = change) -> None:
            change(d)
            d["linux"]["resources"]["pids"] = {"limit": 77}

        lines = run(script, CGROUP, change=limited).split()
        assert lines[0] == "77"
        assert int(lines[1]) >= 1
        assert len(lines) == 2


@HYBRID
@pytest.mark.vm
@pytest.mark.parametrize("namespaced", [True, False])
def test_the_v2_hierarchy_alone(run: Runner, namespaced: bool) -> None:
    mount = {**CGROUP, "type": "cgroup2", "options": ["ro"]}
    table = below(run.table(mount, change=own("cgroup") if namespaced else None), "/sys/fs/cgroup")
    assert list(table) == [""]
    assert table[""].fstype == "cgroup2"
    assert (table[""].root == "/") is namespaced


@HYBRID
@pytest.mark.vm
def test_a_cgroup_namespace_begins_at_the_containers_cgroup(run: Runner) -> None:
    paths = {line.split(":", 2)[2] for line in run("cat /proc/self/cgroup", change=own("cgroup")).splitlines()}
    assert paths == {"/"}
    assert {"/"} < {line.split(":", 2)[2] for line in run("cat /proc/self/cgroup").splitlines()} | {"/"}


MAPS = [{"containerID": 0, "hostID": 100000, "size": 1000}]


def mapped(source: Path, destination: str, *options: str, maps: list[dict[str, int]] | None = None) -> dict[str, Any]:
    maps = maps or MAPS
    return {**bind(source, destination, *options), "uidMappings": maps, "gidMappings": maps}


def test_idmapped_mounts(run: Runner, tree: Path) -> None:
    os.chown(tree / "file", 7, 8)
    other = [{"containerID": 0, "hostID": 5000, "size": 5}, {"containerID": 7, "hostID": 70, "size": 2}]
    script = "stat -c '%u %g' /i/file /r/file /o/file /o /plain/file"
    shown = run(script, mapped(tree, "/i", "bind", "idmap"), mapped(tree, "/r", "rbind", "ridmap"),
                mapped(tree, "/o", "rbind", maps=other), bind(tree, "/plain", "bind"))  # fmt: skip
    assert shown.splitlines() == ["100007 100008", "100007 100008", "70 71", "5000 5000", "7 8"]


@pytest.mark.skipif(oci.Host.probe().kernel < (6, 3), reason="an idmapped tmpfs needs Linux 6.3")
def test_idmapped_mounts_below(run: Runner, mounted_tmpfs: Path) -> None:
    script = "stat -c %u /i/dir/below /r/dir/below"
    shown = run(script, mapped(mounted_tmpfs, "/i", "rbind", "idmap"), mapped(mounted_tmpfs, "/r", "rbind", "ridmap"))
    assert shown.split() == ["0", "100000"]


def test_what_is_in_the_image_can_be_idmapped(run: Runner) -> None:
    maps = {"uidMappings": MAPS, "gidMappings": MAPS}
    bundle = run.bundle({"source": "rootfs/etc", "destination": "/i", "options": ["bind", "idmap"], **maps},
                        {"source": "rootfs/out", "destination": "/o", "options": ["bind", "idmap"], **maps})  # fmt: skip
    (bundle.rootfs / "out").symlink_to("/etc")
    assert run("stat -c %u /i/passwd /o/passwd /etc/passwd", bundle=bundle).split() == ["100000", "100000", "0"]


def test_an_idmapped_mount_that_the_kernel_refuses(run: Runner) -> None:
    assert run.refused(mapped(Path("/proc/self"), "/i", "bind", "idmap")).op == "mount_setattr"
    overlap = [{"containerID": 0, "hostID": 0, "size": 5}, {"containerID": 3, "hostID": 9, "size": 5}]
    with pytest.raises(oci.SpecError, match=r"\$\.mounts\[6\]\.uidMappings\[1\]: ids in the container overlap"):
        run("true", mapped(Path("/etc"), "/i", "bind", "idmap", maps=overlap))


DEVICES = [
    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 11, "gid": 22},
    {"path": "/dev/deep/er/loop", "type": "b", "major": 7, "minor": 0},
    {"path": "/srv/pipe", "type": "p", "fileMode": 0o611},
    {"path": "/dev/unbuffered", "type": "u", "major": 1, "minor": 5, "fileMode": 0o755},
    {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 3},
]
SHOWN = """\
640 11 22 a e5 character special file
666 0 0 7 0 block special file
611 0 0 0 0 fifo
755 0 0 1 5 character special file
600 3 0 1 3 character special file
666 0 0 1 5 character special file
666 0 0 1 7 character special file
666 0 0 1 8 character special file
666 0 0 1 9 character special file
666 0 0 5 0 character special file
"""
STAT = "stat -c '%a %u %g %t %T %F' /dev/fuse /dev/deep/er/loop /srv/pipe /dev/unbuffered /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty"  # fmt: skip


@pytest.mark.parametrize("dev", ["tmpfs", "image", "prepared"])
def test_devices(run: Runner, dev: str) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["devices"] = DEVICES
        if dev != "tmpfs":
            d["mounts"] = [m for m in d["mounts"] if m["destination"] != "/dev"]

    bundle = run.bundle(change=change)
    if dev == "prepared":  # the right devices with other modes and owners, and links that are there already
        directory = bundle.rootfs / "dev"
        directory.mkdir()
        directory.chmod(0o2775)  # what is made in it gets its group
        os.chown(directory, 0, 44)
        os.mknod(directory / "null", stat.S_IFCHR | 0o444, os.makedev(1, 3))
        os.mknod(directory / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        os.chown(directory / "zero", 9, 9)
        (directory / "fd").symlink_to("elsewhere")
    assert run(STAT, bundle=bundle) == SHOWN
    links = run("cd /dev; for l in fd stdin stdout stderr ptmx; do readlink $l; done", bundle=bundle).split()
    assert links == ["elsewhere" if dev == "prepared" else "/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3)), "pts/ptmx"]


def test_the_hosts_dev_stays_as_it_is(run: Runner) -> None:
    host = sorted(os.listdir("/dev"))
    mount = {"destination": "/dev", "source": "/dev", "options": ["rbind", "ro"]}
    zero = {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600}

    def change(d: dict[str, Any], *devices: dict[str, Any]) -> None:
        d["linux"]["devices"] = devices
        d["mounts"] = [m for m in d["mounts"] if not m["destination"].startswith("/dev") or m["source"] == "/dev"]

    before = os.stat("/dev/zero")
    run("test -c /dev/zero", mount, change=lambda d: change(d, zero))
    assert os.stat("/dev/zero")[:6] == before[:6]
    assert sorted(os.listdir("/dev")) == host
    error = run.refused(mount, change=lambda d: change(d, {**zero, "minor": 7}))
    assert (error.op, error.errno) == ("prove_dev", errno.ENODEV)
    error = run.refused(mount, change=lambda d: change(d, {**zero, "path": f"/dev/{run.name}"}))
    assert (error.op, error.errno) == ("open", errno.ENOENT)


def test_a_root_that_cannot_be_written_to(run: Runner, tmp_path: Path) -> None:
    def change(d: dict[str, Any]) -> None:
        d["mounts"] = [m for m in d["mounts"] if not m["destination"].startswith("/dev")]
        d["linux"]["maskedPaths"] = []

    bundle = run.bundle(change=change)
    for name in ("proc", "sys", "dev"):
        (bundle.rootfs / name).mkdir()
    with run.readonly(bundle.rootfs):
        with pytest.raises(oci.StepError, match=r"read-only.*mount a tmpfs on /dev") as caught:
            run("true", bundle=bundle)
        assert caught.value.op == "mknod"
    for name, major, minor in (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)):
        os.mknod(bundle.rootfs / "dev" / name, stat.S_IFCHR, os.makedev(major, minor))
        (bundle.rootfs / "dev" / name).chmod(0o666)
    for name in ("fd", "stdin", "stdout", "stderr", "ptmx"):
        (bundle.rootfs / "dev" / name).symlink_to("x")
    with run.readonly(bundle.rootfs):
        assert run("echo fine >/dev/null && echo $?", bundle=bundle) == "0\n"


def test_hidden_paths(either: Runner) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["maskedPaths"] = ["/etc/passwd", "/tmp", "/no/such", "/etc/passwd/below", "/root", "/proc/kcore"]
        d["linux"]["readonlyPaths"] = ["/etc", "/no/such", "/rw", "/etc/passwd", "/t"]

    script = "cat /etc/passwd /proc/kcore; ls -A /tmp; ls -A /root; touch /tmp/x /etc/x /t/x 2>/dev/null; ls /t; cat /proc/self/mountinfo"
    bundle = either.bundle(tmpfs("/t", "nosuid", "mode=777"), change=change)
    (bundle.rootfs / "tmp/secret").touch()
    out = either(script, bundle=bundle)
    table = parse(out)
    assert " - " in out.split("\n", 1)[0], "something was shown"
    assert table["/tmp"].superblock == table["/root"].superblock
    for place in ("/etc", "/t", "/tmp", "/root"):
        assert "ro" in table[place].options, place
    assert "nosuid" in table["/t"].options
    assert {"nosuid", "nodev", "noexec"} <= table["/tmp"].options
