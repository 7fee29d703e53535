"""What a hostile image, or a hostile writer in a shared volume, must not reach: each with a control that shows that it works at all.

Names in test functions say the class: links and races in destinations (CVE-2021-30465, 2024-45310), devices (2026-41579), helper files
(2025-24965), fake procfs (2019-16884, 2019-19921, 2023-27561, 2023-28642, 2025-54867), redirected writes (2025-52881), masked paths
(2025-31133), stdio (2026-88265), read-only paths (2026-115521), cgroups (2022-0492, 2023-25809), prefixes of paths (2026-48785).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.mounts import Change, Runner, bind, parse, tmpfs
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
AT_FDCWD, RENAME_EXCHANGE = -100, 2
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host that no container is given. Anybody may write to it, so that only the runtime prevents that."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "file").write_text("untouched\n")
    for entry in (path, path / "file"):
        entry.chmod(0o777)
    return path


def snapshot(path: Path) -> list[tuple[str, os.stat_result | tuple[int, ...]]]:
    return sorted((name, tuple(os.lstat(path / name))[:7]) for name in ["", *os.listdir(path)])


def without_dev(document: dict[str, Any]) -> None:
    document["mounts"] = [m for m in document["mounts"] if not m["destination"].startswith("/dev")]


LINKS = ["{outside}", "../../../../../../../..{outside}", "/loop/../{outside}"]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", ["tmpfs", "file", "cwd"])
@pytest.mark.parametrize("hooks", [False, True])  # for hooks everything is mounted with the host's tree still in sight
def test_links_in_destinations_stay_in_the_root(
    either: Runner, outside: Path, tree: Path, link: str, kind: str, hooks: bool
) -> None:
    mount = {"tmpfs": [tmpfs("/esc/new/place")], "file": [bind(tree / "file", "/esc/new/place", "bind")], "cwd": []}[kind]

    def change(d: dict[str, Any]) -> None:
        if kind == "cwd":
            d["process"]["cwd"] = "/esc/new/place"
        if hooks:
            d["hooks"] = {"createContainer": [{"path": "/bin/true"}]}

    bundle = either.bundle(*mount, change=change)
    (bundle.rootfs / "esc").symlink_to(link.format(outside=outside))
    (bundle.rootfs / "loop").mkdir()
    os.chown(bundle.rootfs / "loop", *os.stat(bundle.rootfs)[4:6])
    before = snapshot(outside)
    assert either(f"test -e {outside}/new/place && echo inside", bundle=bundle) == "inside\n"
    assert snapshot(outside) == before


@pytest.mark.parametrize(
    ("link", "code"),
    [("/proc/self/root", errno.ELOOP), ("/proc/1/cwd", errno.ELOOP), ("esc", errno.ELOOP), ("/proc/1", errno.EXDEV), ("/proc", errno.EXDEV)],
)  # fmt: skip
@pytest.mark.parametrize("hooks", [False, True])
def test_links_that_lead_nowhere_good_are_refused(either: Runner, link: str, code: int, hooks: bool) -> None:
    given = {"createContainer": [{"path": "/bin/true"}]} if hooks else {}
    bundle = either.bundle(tmpfs("/esc"), change=lambda d: d.update(hooks=given))
    (bundle.rootfs / "esc").symlink_to(link)
    error = either.refused(bundle=bundle)
    assert (error.op, error.errno) == ("target", code)


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[list[int]]:
    """Exchange two names all the time."""
    stop, count = threading.Event(), [0]

    def swap() -> None:
        names = os.fsencode(one), os.fsencode(other)
        while not stop.is_set():
            assert LIBC.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0
            count[0] += 1

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(("place", "hooks"), [("image", False), ("image", True), ("volume", True)])
def test_races_in_destinations_stay_in_the_root(
    either: Runner, outside: Path, tree: Path, tmp_path: Path, place: str, hooks: bool
) -> None:
    """Thousands of paths, 81 in each container, each with parts to be made, while a part of it is exchanged for a link all the time."""
    rounds, each = 32, range(20)
    volume = tmp_path / "volume"
    volume.mkdir()
    top = "" if place == "image" else "/volume"

    def change(d: dict[str, Any]) -> None:
        d["linux"]["readonlyPaths"] += [f"{top}/a/x{n}" for n in each]
        d["linux"]["maskedPaths"] += [f"{top}/a/x{n}/y" for n in each]
        d["process"]["cwd"] = f"{top}/a/cwd"
        if hooks:
            d["hooks"] = {"createContainer": [{"path": "/bin/true"}]}

    mounts = [mount for n in each for mount in (tmpfs(f"{top}/a/x{n}/y"), bind(tree / "file", f"{top}/a/f{n}/g", "bind"))]
    bundle = either.bundle(bind(volume, "/volume", "bind"), *mounts, change=change)
    base = bundle.rootfs if place == "image" else volume
    (base / "a").mkdir()
    (base / "b").symlink_to(f"../../../../../../../../../..{outside}")
    for path in (volume, base / "a"):
        os.chown(path, *os.stat(bundle.rootfs)[4:6])
    before, failed = snapshot(outside), set()
    with swapping(base / "a", base / "b") as count:
        for _ in range(rounds):
            try:
                assert either("echo fine", bundle=bundle) == "fine\n"
            except oci.StepError as error:
                failed.add(error.op)
    assert failed <= {"target", "move_mount", "readonly", "mask", "chdir"}
    assert count[0] > rounds
    if (base / "a").is_symlink():
        (base / "a").rename(base / "c")
        (base / "b").rename(base / "a")
    assert either("echo fine", bundle=bundle) == "fine\n"  # it is the exchange that made the others fail
    assert snapshot(outside) == before


def test_dev_as_a_link_stays_in_the_root(either: Runner, outside: Path) -> None:
    bundle = either.bundle(change=without_dev)
    (bundle.rootfs / "dev").symlink_to(outside)
    before = snapshot(outside)
    assert either(f"echo x >/dev/null; stat -c %t:%T {outside}/null /dev/zero", bundle=bundle).split() == ["1:3", "1:5"]
    assert snapshot(outside) == before


@pytest.mark.parametrize("kind", ["link", "file", "other", "directory"])
def test_devices_that_the_image_has_faked_are_refused(either: Runner, outside: Path, kind: str) -> None:
    bundle = either.bundle(change=without_dev)
    dev = bundle.rootfs / "dev"
    dev.mkdir(mode=0o777)
    null = dev / "null"
    if kind == "link":
        null.symlink_to(outside / "file")
    elif kind == "file":
        null.write_text("collected\n")
    elif kind == "other":
        os.mknod(null, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    else:
        null.mkdir()
    os.chown(dev, *os.stat(bundle.rootfs)[4:6])
    before = snapshot(outside), snapshot(dev)[1:]
    if either.user and kind in ("file", "other"):  # the host's device comes to lie over it
        assert either("stat -c %t:%T /dev/null", bundle=bundle) == "1:3\n"
    else:
        error = either.refused(bundle=bundle)
        assert (error.op, error.errno) in {
            ("mknod", errno.EEXIST), ("target", errno.ELOOP), ("target", errno.EISDIR),
        }  # fmt: skip
    assert snapshot(outside) == before[0]
    assert [entry for entry in snapshot(dev) if entry[0] == "null"] == [entry for entry in before[1] if entry[0] == "null"]


def test_a_device_of_the_config_that_is_a_link_is_refused(either: Runner, outside: Path) -> None:
    device = {"path": "/srv/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666, "uid": 7}
    bundle = either.bundle(change=lambda d: d["linux"].update(devices=[device]))
    (bundle.rootfs / "srv").mkdir()
    os.chown(bundle.rootfs / "srv", *os.stat(bundle.rootfs)[4:6])
    assert either("stat -c %t:%T:%u /srv/fuse", bundle=bundle) == "a:e5:7\n"
    (bundle.rootfs / "srv/fuse").unlink()
    (bundle.rootfs / "srv/fuse").symlink_to(outside / "file")
    before = snapshot(outside)
    error = either.refused(bundle=bundle)
    assert (error.op, error.errno) == (("target", errno.ELOOP) if either.user else ("mknod", errno.EEXIST))
    assert snapshot(outside) == before


@pytest.mark.parametrize(("point", "fstype"), [("proc", "proc"), ("sys", "sysfs")])
@pytest.mark.parametrize(
    ("kind", "code"), [("link", errno.ELOOP), ("dangling", errno.ELOOP), ("file", errno.ENOTDIR), ("directory", 0)]
)
def test_procfs_goes_on_a_real_directory(either: Runner, point: str, fstype: str, kind: str, code: int) -> None:
    bundle = either.bundle()
    path = bundle.rootfs / point
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/tmp" if kind == "link" else "/nowhere/yet")
    if code:
        error = either.refused(bundle=bundle)
        assert (error.op, error.errno) == ("target", code)
        assert ("a symbolic link in the image: procfs and sysfs must be mounted" in str(error)) == (code == errno.ELOOP)
    else:
        assert parse(either("cat /proc/self/mountinfo", bundle=bundle))[f"/{point}"].fstype == fstype


FAKES = {
    "a directory": (bind(Path("/etc"), "/proc", "bind"), "prove_proc", errno.EXDEV),
    "a part of a procfs": (bind(Path("/proc/self"), "/proc", "rbind"), "prove_proc", errno.EXDEV),
    "another filesystem": (bind(Path("/sys"), "/proc", "rbind"), "prove_proc", errno.EXDEV),
    "a directory below": (bind(Path("/etc"), "/proc/sys", "bind"), "target", errno.EISDIR),
    "what is not there": (bind(Path("/etc/hostname"), "/proc/nothing", "bind"), "target", errno.ENOENT),
}


@pytest.mark.parametrize("name", FAKES)
def test_nothing_else_is_mounted_as_procfs(either: Runner, name: str) -> None:
    mount, op, code = FAKES[name]
    error = either.refused(mount)
    assert (error.op, error.errno) == (op, code)


def test_what_may_be_mounted_on_procfs(either: Runner, tree: Path) -> None:
    assert either("cat /proc/uptime", bind(tree / "file", "/proc/uptime", "bind")) == "host\n"
    script = "cat /proc/self/comm; ls -d /proc/sys/kernel/ostype; cat /proc/self/mountinfo"
    out = either(script, bind(Path("/proc"), "/proc", "rbind"))
    assert out.startswith("cat\n/proc/sys/kernel/ostype\n")


def sysctl(document: dict[str, Any]) -> None:
    document["linux"]["sysctl"] = {"kernel.msgmax": "4321", "net.ipv4.ip_forward": "1"}


def test_writes_reach_the_kernel_whatever_is_mounted(either: Runner, tree: Path) -> None:
    (tree / "file").chmod(0o666)
    fake = bind(tree / "file", "/proc/sys/kernel/msgmax", "bind")
    real = {"type": "proc", "source": "proc", "destination": "/real"}
    assert either("cat /proc/sys/kernel/msgmax /real/sys/kernel/msgmax", fake, real, change=sysctl) == "host\n4321\n"
    assert (tree / "file").read_text() == "host\n"

    def hidden(d: dict[str, Any]) -> None:
        sysctl(d)
        next(m for m in d["mounts"] if m["type"] == "proc")["options"].append("subset=pid")

    assert either("test -e /proc/sys || cat /real/sys/net/ipv4/ip_forward", real, change=hidden) == "1\n"


def test_sysctls_without_a_pid_namespace(either: Runner) -> None:
    def change(d: dict[str, Any]) -> None:
        sysctl(d)
        d["linux"]["namespaces"] = [n for n in d["linux"]["namespaces"] if n["type"] != "pid"]
        d["mounts"] = [m for m in d["mounts"] if m.get("type") != "proc"]
        d["linux"].update(maskedPaths=[], readonlyPaths=[])

    assert either("cat /proc/sys/kernel/msgmax", bind(Path("/proc"), "/proc", "rbind"), change=change) == "4321\n"


@pytest.mark.parametrize("fake", [True, False])
def test_masking_takes_the_null_device_only(either: Runner, tmp_path: Path, fake: bool) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    if fake:
        (dev / "null").touch()
    else:
        os.mknod(dev / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    bundle = either.bundle(
        bind(dev, "/dev", "bind"), change=lambda d: (without_dev(d), d["mounts"].append(bind(dev, "/dev", "bind")))
    )
    if fake:
        error = either.refused(bundle=bundle)
        assert (error.op, error.errno) == ("prove_dev", errno.ENODEV)
    else:
        assert either("cat /proc/interrupts | wc -c", bundle=bundle) == "0\n"


def test_masked_directories_are_empty_and_readonly(either: Runner) -> None:
    change: Change = lambda d: d["linux"]["maskedPaths"].extend(["/secret", "/secret2"])  # noqa: E731
    bundle = either.bundle(change=change)
    for name in ("secret", "secret2"):
        (bundle.rootfs / name).mkdir(mode=0o777)
        (bundle.rootfs / name / "x").touch()
    script = "ls -A /secret /secret2 | grep -v :; touch /secret/y /secret2/y 2>/dev/null; mount -o remount,rw /secret 2>/dev/null; ls -A /secret; true"
    assert either(script, bundle=bundle).strip() == ""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("owner", [0, 1000])
def test_stdio_that_is_no_pipe_keeps_its_owner(either: Runner, tmp_path: Path, pipe: tuple[int, int], owner: int) -> None:
    """A regular file, or another file called null, is never given to the user of the process; a pipe is, so that the process can open it."""
    bundle = either.bundle(
        change=lambda d: d["process"].update(user={"uid": owner, "gid": 0}, args=["sh", "-c", "echo x >/dev/stdout"])
    )
    reader, writer = pipe
    null = tmp_path / "null"
    null.touch()
    with open(null, "r+b") as file, open("/dev/null", "r+b") as real:
        before = os.fstat(file.fileno())[:6], os.stat("/dev/null")[:6]
        with oci.Container.run(
            either.name, bundle, state_root=tmp_path / "state", stdin=real, stdout=writer, stderr=file
        ) as container:
            assert os.read(reader, 10) == (b"x\n")
            container.wait(TIME_LIMIT)
        assert (os.fstat(file.fileno())[:6], os.stat("/dev/null")[:6]) == before


def test_readonly_paths_are_readonly_afterwards(either: Runner, tree: Path, outside: Path) -> None:
    def change(d: dict[str, Any]) -> None:
        d["linux"]["readonlyPaths"] = ["/link", "/volume/dir", "/proc/sys", "/volume/file"]

    bundle = either.bundle(bind(tree, "/volume", "bind"), tmpfs("/t"), change=change)
    (bundle.rootfs / "link").symlink_to(outside)
    target = bundle.rootfs / str(outside).lstrip("/")
    target.mkdir(parents=True)
    for path in (tree, tree / "dir", tree / "file", target):
        path.chmod(0o777)
    script = f"""
    for p in /link {outside} /volume/dir; do touch $p/new 2>/dev/null && echo $p is writable; done
    echo x 2>/dev/null >>/volume/file && echo the file is writable
    touch /volume/new /t/new && echo the rest is writable
    cat /proc/self/mountinfo
    """
    out = either(script, bundle=bundle)
    assert out.splitlines()[0] == "the rest is writable"
    table = parse(out)
    assert all("ro" in table[point].options for point in (str(outside), "/volume/dir", "/volume/file", "/proc/sys"))
    assert os.statvfs(outside).f_flag & os.ST_RDONLY == 0


@pytest.mark.vm
@pytest.mark.parametrize("namespaced", [True, False])
def test_cgroup_mounts_show_no_other_cgroup(either: Runner, namespaced: bool) -> None:
    def change(d: dict[str, Any]) -> None:
        if namespaced:
            d["linux"]["namespaces"].append({"type": "cgroup"})

    mount = {"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": ["nosuid"]}
    script = """
    find /sys/fs/cgroup -name release_agent
    find /sys/fs/cgroup -name cgroup.procs -o -name tasks | while read f; do grep -q . $f || echo $f shows nobody; done
    find /sys/fs/cgroup -name cgroup.procs | wc -l
    """
    if not namespaced:
        script += "for f in $(find /sys/fs/cgroup -name cgroup.procs); do echo 0 2>/dev/null >$f && echo $f is writable; done; true"
    lines = either(script, mount, change=change).split("\n")
    assert [line for line in lines if "/" in line] == []
    assert int(lines[0]) == len(oci.Host.probe().hierarchies)


def test_paths_are_compared_by_their_components(either: Runner) -> None:
    table = either.table(tmpfs("/procession"), tmpfs("/proc.d/x"), {"type": "sysfs", "destination": "/sysfs2", "options": ["ro"]})
    assert {"/procession", "/proc.d/x", "/sysfs2"} <= set(table)
    bundle = either.bundle({"source": "rootfs-other/file", "destination": "/got", "options": ["bind"]})
    (bundle.path / "rootfs-other").mkdir()
    (bundle.path / "rootfs-other/file").write_text("beside the image\n")
    assert either("cat /got", bundle=bundle) == "beside the image\n"


def test_sources_in_the_image_stay_in_the_image(either: Runner, outside: Path) -> None:
    bundle = either.bundle({"source": "rootfs/data", "destination": "/got", "options": ["rbind"]})
    (bundle.rootfs / "data").symlink_to(outside)
    error = either.refused(bundle=bundle)
    assert (error.op, error.errno) == ("open", errno.ENOENT)
    inside = bundle.rootfs / str(outside).lstrip("/")
    inside.mkdir(parents=True)
    (inside / "mine").touch()
    assert either("ls /got", bundle=bundle) == "mine\n"
