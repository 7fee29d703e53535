"""What is read-only or hidden: options that forbid writing, ``readonlyPaths`` and ``maskedPaths``, on a real kernel."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Command, MakeBundle, Script, UserBundle
from ..support.leftovers import assert_nothing_left
from ..support.mounts import Change, Runner, bind, parse, tmpfs
from ..support.users import UID
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.root
TRY = 'for p in {}; do touch $p/new 2>/dev/null && echo "$p is writable"; done; true'


def hidden(*, masked: tuple[str, ...] = (), readonly: tuple[str, ...] = ()) -> Change:
    return lambda d: d["linux"].update(maskedPaths=[*masked], readonlyPaths=[*readonly])


# ---- options ----


@pytest.mark.parametrize("option", ["ro", "rro"])
@pytest.mark.parametrize("fstype", ["tmpfs", "ramfs"])
def test_mount_points_are_made_in_a_readonly_filesystem(any_tree: Runner, tree: Path, fstype: str, option: str) -> None:
    top = {**tmpfs("/t", option), "type": fstype}
    out = any_tree(
        f"cat /t/file; ls /t/deep/er /t/b; {TRY.format('/t /t/deep /t/deep/er /t/b')}",
        top, tmpfs("/t/deep/er"), bind(tree / "file", "/t/file", "bind"), tmpfs("/t/b", "ro"), bind(tree, "/t/b/c/d", "rbind"),
    )  # fmt: skip
    assert out.split("\n") == ["host", "/t/b:", "c", "", "/t/deep/er:", "/t/deep/er is writable", ""]


def test_a_readonly_dev(any_tree: Runner) -> None:
    """As podman asks for it with a read-only root: mount points, devices, links and the file for the terminal are made in it."""

    def change(d: dict[str, Any]) -> None:
        next(m for m in d["mounts"] if m["destination"] == "/dev")["options"].append("ro")
        d["root"]["readonly"] = True
        d["linux"]["devices"] = [{"path": "/dev/sub/pipe", "type": "p"}]

    script = f"test -p /dev/sub/pipe && ls -d /dev/pts /dev/shm /dev/null /dev/stdin && echo x >/dev/null; {TRY.format('/dev /dev/sub /dev/shm /')}"
    out = any_tree(script, change=change)
    assert out.split("\n") == ["/dev/null", "/dev/pts", "/dev/shm", "/dev/stdin", "/dev/shm is writable", ""]


def test_a_terminal_and_a_working_directory_in_what_is_readonly(any_tree: Runner, state_root: Path, prefix: str) -> None:
    def change(d: dict[str, Any]) -> None:
        next(m for m in d["mounts"] if m["destination"] == "/dev")["options"].append("ro")
        d["linux"]["readonlyPaths"] = ["/"]
        d["process"].update(terminal=True, cwd="/t/work/dir", args=["sh", "-c", "pwd; test -c /dev/console && echo console"])

    bundle = any_tree.bundle(tmpfs("/t", "ro"), change=change)
    with oci.Container.run(prefix, bundle, state_root=state_root, terminal=True) as container:
        assert container.terminal is not None
        assert [container.terminal.readline() for _ in range(2)] == [b"/t/work/dir\r\n", b"console\r\n"]
        assert container.wait(TIME_LIMIT) == 0


def test_the_last_entry_says_whether_it_is_readonly(any_tree: Runner) -> None:
    out = any_tree(
        f"ls /e /f; stat -f -c '%b %S' /f; {TRY.format('/a /b /c /d /e /f')}",
        tmpfs("/a", "ro"), {"destination": "/a", "options": ["remount", "rw"]},
        tmpfs("/b"), {"destination": "/b", "options": ["remount", "ro"]},
        tmpfs("/c", "ro"), tmpfs("/c"),
        tmpfs("/d", "ro"), {"destination": "/d", "options": ["remount", "bind", "rw", "nodev"]}, tmpfs("/d", "ro"),
        tmpfs("/e"), {"destination": "/e", "options": ["remount", "bind", "ro"]}, tmpfs("/e/below"),
        tmpfs("/f", "size=1m"), {"destination": "/f", "options": ["remount", "ro", "size=2m"]}, tmpfs("/f/below"),
    )  # fmt: skip
    assert out.split("\n") == [
        "/e:",
        "below",
        "",
        "/f:",
        "below",
        f"{(2 << 20) // os.sysconf('SC_PAGESIZE')} {os.sysconf('SC_PAGESIZE')}",
        "/a is writable",
        "/c is writable",
        "",
    ]


def remount(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "options": ["remount", *options]}


@pytest.mark.parametrize("more", [(), ("bind",)])
def test_a_recursive_remount_is_for_what_is_mounted_then(any_tree: Runner, tree: Path, more: tuple[str, ...]) -> None:
    """Mount points are made in it, and later mounts have their own options."""
    out = any_tree(
        f"ls -d /t/a/deep/er /w/in; {TRY.format('/t /t/a /t/a/deep/er /t/b /w /w/in /w/ro')}",
        tmpfs("/t"), tmpfs("/t/a"), remount("/t", "rro", *more), tmpfs("/t/b"), tmpfs("/t/a/deep/er"),
        tmpfs("/w", "ro"), tmpfs("/w/in", "ro"), remount("/w", "rrw", *more), bind(tree, "/w/ro", "bind", "ro"),
    )  # fmt: skip
    assert out.split("\n") == [
        *("/t/a/deep/er", "/w/in"),
        *(f"{path} is writable" for path in ("/t/a/deep/er", "/t/b", "/w", "/w/in")),
        "",
    ]


@pytest.mark.parametrize("more", [(), ("bind",)])
def test_a_remount_through_a_link(any_tree: Runner, more: tuple[str, ...]) -> None:
    """The last entry for a mount decides, whichever of its paths it names."""
    bundle = any_tree.bundle(
        tmpfs("/a", "ro"), remount("/links/a", "rw", *more), tmpfs("/a/in"),
        tmpfs("/b"), remount("/links/b", "ro", *more), tmpfs("/b/in"),
        tmpfs("/c"), remount("/links/c", "ro", *more), remount("/c", "rw", *more),
        tmpfs("/d", "ro"), remount("/links/d", "rw", *more), remount("/d", "ro", *more),
        tmpfs("/e"), remount("/links/e", "rro", *more), tmpfs("/e/in"),
    )  # fmt: skip
    (bundle.rootfs / "links").mkdir()
    for name in "abcde":
        (bundle.rootfs / "links" / name).symlink_to(f"/{name}")
    out = any_tree(TRY.format("/a /a/in /b /b/in /c /d /e /e/in"), bundle=bundle)
    assert out.split("\n") == [*(f"{path} is writable" for path in ("/a", "/a/in", "/b/in", "/c", "/e/in")), ""]


@pytest.mark.parametrize("option", ["ro", "rro"])
def test_a_mount_on_the_root_is_readonly_at_the_end(any_tree: Runner, make_bundle: MakeBundle, option: str) -> None:
    other = make_bundle().path / "rootfs"
    for directory, _, _ in os.walk(other):
        os.chown(directory, *((100000, 100000) if any_tree.user else (0, 0)))

    def change(d: dict[str, Any]) -> None:
        d["mounts"].insert(0, bind(other, "/", "rbind", option))

    out = any_tree(f"ls -d /new/place /dev/null; {TRY.format('/ /new /new/place')}", tmpfs("/new/place"), change=change)
    assert out.split("\n") == ["/dev/null", "/new/place", "/new/place is writable", ""]


@pytest.mark.parametrize("cgroup", [True, False])
def test_cgroup_mounts_are_readonly_at_the_end(any_tree: Runner, tree: Path, cgroup: bool) -> None:
    def change(d: dict[str, Any]) -> None:
        if cgroup:
            d["linux"]["namespaces"].append({"type": "cgroup"})

    mount = {"type": "cgroup", "source": "cgroup", "destination": "/sys/fs/cgroup", "options": ["ro", "nosuid"]}
    places = ["/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in ("cpu", "pids", "unified"))]
    attempts = f"for p in {' '.join(places)}; do mkdir $p/new 2>/dev/null && echo $p is writable; done"
    mounts = [mount] if oci.Host.probe().cgroup_mode == "v2" else [mount, bind(tree, "/sys/fs/cgroup/mine", "bind")]
    out = any_tree(f"ls /sys/fs/cgroup | grep -c .; cat /sys/fs/cgroup/mine/file; {attempts}; true", *mounts, change=change)
    assert "writable" not in out
    assert ("host" in out) is (len(mounts) == 2)


def test_a_missing_mount_point_in_a_readonly_bind_mount(any_tree: Runner, tree: Path) -> None:
    """The host's directory is not written to, although the runtime could."""
    before = sorted(os.listdir(tree))
    for option in ("ro", "rro"):
        error = any_tree.refused(bind(tree, "/b", "bind", option), tmpfs("/b/new"))
        assert (error.op, error.errno, error.location) == ("target", errno.EROFS, "$.mounts[7]")
        assert str(error).startswith("$.mounts[7]: mount point /b/new: it does not exist, and its filesystem is read-only; create")
    assert sorted(os.listdir(tree)) == before
    out = any_tree(TRY.format("/b /b/dir"), bind(tree, "/b", "rbind", "rro"), tmpfs("/b/dir"))
    assert out == "/b/dir is writable\n"


# ---- paths ----


@pytest.mark.parametrize("path", ["/", "/a/..", "/link"])
def test_the_root_as_a_readonly_path(any_tree: Runner, path: str) -> None:
    bundle = any_tree.bundle(tmpfs("/t"), change=hidden(readonly=(path,)))
    (bundle.rootfs / "link").symlink_to("/")
    assert any_tree(f"{TRY.format('/ /t /tmp /dev /dev/shm')}; echo x >/dev/null && echo done", bundle=bundle) == "done\n"


def test_a_readonly_path_is_readonly_with_everything_below(any_tree: Runner, tree: Path) -> None:
    paths = ("/a", "/a", "/link", "/t/in", "/proc", "/etc/passwd", "/none", "/etc/passwd/none", "/dangling", "/volume/dir")
    other = tmpfs("/other") if any_tree.shared else tmpfs("/other", "unbindable")
    bundle = any_tree.bundle(
        tmpfs("/a/b"), tmpfs("/t"), tmpfs("/t/in/deep"), other, bind(tree, "/volume", "bind"),
        change=hidden(readonly=(*paths, "/other")),
    )  # fmt: skip
    (bundle.rootfs / "real").mkdir()
    (bundle.rootfs / "link").symlink_to("real")
    (bundle.rootfs / "dangling").symlink_to("nowhere")
    script = f"""
    {TRY.format("/a /a/b /link /real /t/in /t/in/deep /other /volume/dir /t")}
    echo 5 2>/dev/null >/proc/self/oom_score_adj && echo proc is writable
    echo x 2>/dev/null >>/etc/passwd && echo passwd is writable; true
    """
    assert any_tree(script, bundle=bundle) == "/t is writable\n"


def test_masked_paths(any_tree: Runner, tree: Path) -> None:
    paths = ("/secret", "/secret/", "/link", "/t/in", "/etc/passwd", "/etc/passwd", "/none", "/etc/passwd/none", "/dangling",
             "/volume/file", "/volume/dir", "/sys", "/sys/kernel")  # fmt: skip
    bundle = any_tree.bundle(tmpfs("/t"), tmpfs("/t/in"), bind(tree, "/volume", "bind"), change=hidden(masked=paths))
    for name in ("secret", "real"):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name / "x").touch()
    (bundle.rootfs / "link").symlink_to("real")
    (bundle.rootfs / "dangling").symlink_to("nowhere")
    places = "/secret /link /real /t/in /volume/dir /sys"
    script = f"cat /etc/passwd /volume/file; for p in {places}; do ls -A $p; done; {TRY.format(places + ' /t')}"
    assert any_tree(script, bundle=bundle) == "/t is writable\n"


def test_a_path_that_is_masked_twice_gets_one_mount(either: Runner) -> None:
    paths = ("/secret", "/secret/", "//secret", "/etc/passwd", "/etc/../etc/passwd")
    bundle = either.bundle(change=hidden(masked=paths))
    (bundle.rootfs / "secret").mkdir()
    assert either("grep -c ' /secret ' /proc/mounts; grep -c ' /etc/passwd ' /proc/mounts", bundle=bundle) == "1\n1\n"


def test_proc_as_a_whole_can_be_hidden(any_tree: Runner) -> None:
    assert any_tree("ls -A /proc", change=hidden(masked=("/proc", "/proc/kcore"))) == ""


@pytest.mark.parametrize("member", ["maskedPaths", "readonlyPaths"])
@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("/loop", errno.ELOOP, "links are a loop"),
        ("/magic", errno.ELOOP, "the links of /proc"),
        ("/root-link", errno.EBUSY, "cannot be hidden; name the paths below it"),
    ],
)
def test_what_cannot_be_covered_is_an_error(any_tree: Runner, member: str, path: str, code: int, message: str) -> None:
    if member == "readonlyPaths" and code == errno.EBUSY:
        pytest.skip("the root can be read-only")
    bundle = any_tree.bundle(change=lambda d: d["linux"].update({member: ["/none", path]}))
    for link, target in (("loop", "loop"), ("magic", "/proc/self/root/etc"), ("root-link", "/etc/..")):
        (bundle.rootfs / link).symlink_to(target)
    error = any_tree.refused(bundle=bundle)
    assert (error.errno, error.location) == (code, f"$.linux.{member}[1]")
    assert message in str(error)


def test_flags_that_a_user_namespace_locks_stay(run: Runner, tree: Path) -> None:
    run.user = True
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec,mode=777", "none", tree / "dir"], check=True)
    try:
        (tree / "dir/sub").mkdir(mode=0o777)
        paths = hidden(readonly=("/v/dir/sub", "/w"), masked=("/w/sub",))
        out = run(
            f"{TRY.format('/v/dir/sub /w /w/sub /v/dir')}; cat /proc/self/mountinfo",
            bind(tree, "/v", "rbind"), bind(tree / "dir", "/w", "bind"), change=paths,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", tree / "dir"], check=True)
    assert out.split("\n")[0] == "/v/dir is writable"
    for point in ("/v/dir/sub", "/w"):
        assert {"ro", "nosuid", "nodev", "noexec"} <= parse(out)[point].options


def test_on_the_command_line(run: Runner, command: Command, state_root: Path, prefix: str) -> None:
    bundle = run.bundle(tmpfs("/t", "ro"), tmpfs("/t/in"), change=hidden(readonly=("/",), masked=("/etc",)))
    bundle.spec = bundle.spec.with_args(["sh", "-c", f"ls /etc /t; {TRY.format('/ /t /t/in')}"])
    done = subprocess.run(command("run", "--bundle", bundle.path, prefix), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["/etc:", "/t:", "in"]), done.stderr
    bundle.spec = bundle.spec.at.linux.masked_paths.set(("/",))
    done = subprocess.run(command("run", "--bundle", bundle.path, prefix), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "$.linux.maskedPaths[0]: the whole container cannot be hidden: name the paths below /" in done.stderr
    assert_nothing_left(state_root, prefix)


AS_A_USER = """
import sys
import ociruntime as oci
bundle, state_root, prefix, uid = sys.argv[1:5]
become(int(uid))
done = oci.run(bundle, capture_output=True, text=True, state_root=state_root, container_id=prefix)
print(done.stdout + done.stderr, end="")
sys.exit(done.returncode)
"""


def test_a_user_without_privileges(user_bundle: UserBundle, prefix: str, user_script: Script) -> None:
    document: dict[str, Any] = oci.RuntimeSpec.default(rootless=True, uid=UID, gid=UID).to_dict()
    next(m for m in document["mounts"] if m["destination"] == "/dev")["options"].append("ro")
    document["mounts"] += [tmpfs("/t", "ro"), tmpfs("/t/in"), tmpfs("/w"), tmpfs("/w/in")]
    hidden(masked=("/secret", "/etc/passwd"), readonly=("/w", "/bin"))(document)
    script = f"cat /etc/passwd; ls -A /secret /t | grep -v :; {TRY.format('/t /t/in /w /w/in /bin /dev /dev/shm')}"
    document["process"].update(args=["sh", "-c", script], cwd="/t/cwd")
    bundle, state_root = user_bundle(oci.RuntimeSpec.load(document))
    (bundle / "rootfs/secret").mkdir()
    (bundle / "rootfs/secret/x").touch()
    shown = user_script(AS_A_USER, bundle, state_root, prefix, UID).stdout
    assert shown.split("\n") == ["", "cwd", "in", "/t/in is writable", "/dev/shm is writable", ""]
    document["linux"]["readonlyPaths"] = ["/"]
    (bundle / "config.json").write_text(json.dumps(document))
    assert user_script(AS_A_USER, bundle, state_root, prefix, UID).stdout.split() == ["cwd", "in"]
