"""Mounts on a real kernel (config.md, Mounts; config-linux.md, Rootfs Mount Propagation)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.plan.mount_options import KNOWN_OPTIONS, LINKS

from ..support.fixture_types import MakeBundle
from ..support.mounts import Runner, bind, parse, tmpfs

pytestmark = pytest.mark.root
ATTRIBUTES = {"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "relatime", "nosymfollow"}


# options -> the attributes that differ from a mount without any
OPTIONS = {
    (): "relatime",
    ("defaults",): "relatime",
    ("ro",): "ro relatime",
    ("ro", "rw"): "relatime",
    ("rw", "ro"): "ro relatime",
    ("nosuid",): "nosuid relatime",
    ("nosuid", "suid"): "relatime",
    ("nodev",): "nodev relatime",
    ("nodev", "dev"): "relatime",
    ("noexec",): "noexec relatime",
    ("noexec", "exec"): "relatime",
    ("noatime",): "noatime",
    ("noatime", "atime"): "relatime",
    ("strictatime",): "",
    ("strictatime", "nostrictatime"): "relatime",
    ("noatime", "relatime"): "relatime",
    ("relatime", "norelatime"): "relatime",
    ("nodiratime",): "nodiratime relatime",
    ("nodiratime", "diratime"): "relatime",
    ("nosymfollow",): "nosymfollow relatime",
    ("nosymfollow", "symfollow"): "relatime",
    ("ro,nosuid", "nodev"): "ro nosuid nodev relatime",
    ("silent", "loud", "iversion", "noiversion", "async", "nolazytime", "nomand"): "relatime",
    ("rro",): "ro relatime",
    ("rro", "rrw"): "relatime",
    ("rnosuid", "rnodev", "rnoexec"): "nosuid nodev noexec relatime",
    ("rnosuid", "rnodev", "rnoexec", "rsuid", "rdev", "rexec"): "relatime",
    ("rnoatime", "rnodiratime"): "noatime nodiratime",
    ("rnoatime", "ratime", "rnodiratime", "rdiratime"): "relatime",
    ("rstrictatime",): "",
    ("rstrictatime", "rnostrictatime"): "relatime",
    ("rrelatime", "rnorelatime"): "relatime",
    ("rnosymfollow",): "nosymfollow relatime",
    ("rnosymfollow", "rsymfollow"): "relatime",
    ("ro", "rrw"): "relatime",
}


def test_every_option_is_tried() -> None:
    tried = {word for words in OPTIONS for option in words for word in option.split(",")}
    others = {"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap", "sync", "dirsync", "lazytime", "mand"} | set(LINKS)
    propagation = {f"{r}{kind}" for r in ("", "r") for kind in ("private", "slave", "shared", "unbindable")}
    assert tried | others | propagation == set(KNOWN_OPTIONS)


def test_attributes(either: Runner, tree: Path) -> None:
    mounts = []
    for number, options in enumerate(OPTIONS):
        mounts += [tmpfs(f"/t{number}", *options), bind(tree, f"/b{number}", "bind", *options)]
    table = either.table(*mounts)
    for number, (options, expected) in enumerate(OPTIONS.items()):
        for kind in "tb":
            assert table[f"/{kind}{number}"].options & ATTRIBUTES == set(expected.split()), (options, kind)


def test_the_superblock_hears_of_it(either: Runner) -> None:
    script = "mount | grep -q ' /t type tmpfs (ro' && ! touch /t/x 2>/dev/null && cat /proc/self/mountinfo"
    line = parse(either(script, tmpfs("/t", "ro", "sync", "dirsync", "lazytime", "size=1m", "mode=711")))["/t"]
    assert {"sync", "dirsync", "lazytime", "size=1024k", "mode=711"} <= line.superblock
    assert "sync" not in either.table(tmpfs("/t", "sync", "async"))["/t"].superblock


def test_recursive_attributes_hold_below(either: Runner, mounted_tmpfs: Path) -> None:
    table = either.table(
        bind(mounted_tmpfs, "/plain", "bind", "ro"), bind(mounted_tmpfs, "/some", "rbind", "ro", "nodev"),
        bind(mounted_tmpfs, "/all", "rbind", "rro", "rnosuid"), bind(mounted_tmpfs, "/back", "rbind", "rro", "rw"),
    )  # fmt: skip
    assert "/plain/dir" not in table
    assert "ro" in table["/plain"].options
    assert {"ro", "nodev"} <= table["/some"].options
    assert not {"ro", "nodev"} & table["/some/dir"].options
    assert {"ro", "nosuid"} <= table["/all"].options & table["/all/dir"].options
    assert "ro" in table["/back/dir"].options


@pytest.mark.parametrize("where", ["/a/new/place", "relative/place", "/a/../b/./c", "/tmp"])
def test_targets_are_made(either: Runner, tree: Path, where: str) -> None:
    point = os.path.normpath(f"/{where}")
    assert either(f"cat {point}/dir/inner; test -d {point}", bind(tree, where, "bind")) == "inner\n"
    assert either(f"cat {point}/f; test -f {point}/f", bind(tree / "file", f"{where}/f", "bind")) == "host\n"


def test_sources(either: Runner, tree: Path) -> None:
    bundle = either.bundle(
        {"source": "beside", "destination": "/one", "options": ["bind"]},
        {"source": "rootfs/etc", "destination": "/two", "options": ["bind", "ro"]},
        {"source": str(tree / "link"), "destination": "/three", "type": "none", "options": ["rbind"]},
        {"source": str(tree / "file"), "destination": "/four", "type": "bind"},
    )
    (bundle.path / "beside").mkdir()
    (bundle.path / "beside/x").write_text("beside\n")
    script = "cat /one/x /three/inner /four; head -c 4 /two/passwd; ! touch /two/x 2>/dev/null"
    assert either(script, bundle=bundle) == "beside\ninner\nhost\nroot"


def test_symbolic_links_themselves(either: Runner, tree: Path) -> None:
    (tree / "dangling").symlink_to("/no/where")

    def prepare(d: dict[str, Any]) -> None:
        d["root"]["readonly"] = False

    bundle = either.bundle(
        bind(tree / "dangling", "/new/place", "bind", "copy-symlink"),
        bind(tree / "link", "/same", "bind", "copy-symlink"),
        bind(tree / "file", "/plain", "bind", "copy-symlink"),
        bind(tree / "dangling", "/over", "bind", "src-nofollow", "dest-nofollow"),
        bind(tree / "file", "/below", "bind", "dest-nofollow"),
        change=prepare,
    )
    (bundle.rootfs / "same").symlink_to("dir")
    for name in ("over", "below"):
        (bundle.rootfs / name).symlink_to("/etc/nothing")
    script = "for l in /new/place /same /over; do readlink $l; done; cat /plain /below; readlink /below || echo no link; ls /etc"
    assert either(script, bundle=bundle).split() == ["/no/where", "dir", "/no/where", "host", "host", "no", "link", "passwd"]
    inside = either.bundle(change=prepare)
    (inside.rootfs / "etc/link").symlink_to("target")
    (inside.rootfs / "over").write_text("")
    mount = bind(inside.rootfs / "etc/link", "/over", "bind", "src-nofollow")
    inside.spec = inside.spec.evolve(mounts=(*(inside.spec.mounts or ()), oci.spec.Mount.load(mount)))
    assert either("readlink /over", bundle=inside) == "target\n"

    for there in ("elsewhere", None):
        wrong = either.bundle(bind(tree / "link", "/same", "bind", "copy-symlink"), change=prepare)
        (wrong.rootfs / "same").symlink_to(there) if there else (wrong.rootfs / "same").write_text("")
        error = either.refused(bundle=wrong)
        assert (error.op, error.errno) == ("copy_link", errno.EEXIST)
    error = either.refused(bind(tree / "link", "/proc/self", "bind", "src-nofollow", "dest-nofollow"))
    assert (error.op, error.errno) == ("target", errno.EISDIR)


def test_a_label_without_selinux(run: Runner) -> None:
    with pytest.warns(oci.OCIRuntimeWarning, match=r"\$\.linux\.mountLabel: .*SELinux is not active"):
        assert run("echo on", change=lambda d: d["linux"].update(mountLabel="system_u:object_r:container_file_t:s0")) == "on\n"


def test_the_order_of_the_config_counts(either: Runner, tree: Path) -> None:
    below, above = tmpfs("/a/b/c"), tmpfs("/a")
    table = either.table(above, below)
    assert {"/a", "/a/b/c"} <= set(table)
    script = "cat /proc/self/mountinfo; ls /a"
    assert "/a/b/c" in parse(either(script, below, above))
    assert either("ls /a", below, above) == ""  # the later one hides the earlier
    assert either("cat /a/file", bind(tree, "/a", "bind"), tmpfs("/a"), bind(tree, "/a", "bind")) == "host\n"


def test_a_source_in_the_root_sees_earlier_mounts(either: Runner) -> None:
    bundle = either.bundle(tmpfs("/a", "mode=700"), {"source": "rootfs/a", "destination": "/b", "options": ["bind"]})
    assert either("touch /a/x; ls /b", bundle=bundle) == "x\n"


def test_copy_up(run: Runner) -> None:
    bundle = run.bundle(tmpfs("/etc", "tmpcopyup"), tmpfs("/new/one", "tmpcopyup"), tmpfs("/opt", "tmpcopyup", "mode=700"))
    etc = bundle.path / "rootfs/etc"
    (etc / "sub").mkdir(mode=0o750)
    (etc / "sub/file").write_text("deep\n")
    os.chmod(etc / "sub/file", 0o640)
    os.chown(etc / "sub/file", 12, 34)
    (etc / "link").symlink_to("sub/file")
    etc.chmod(0o711)
    script = "cat /etc/link; stat -c '%a %u %g' /etc/sub/file /etc/sub /etc /opt; readlink /etc/link; touch /etc/x; ls /new/one"
    assert run(script, bundle=bundle).split() == [
        "deep",
        "640",
        "12",
        "34",
        "750",
        "0",
        "0",
        "711",
        "0",
        "0",
        "700",
        "0",
        "0",
        "sub/file",
    ]
    assert not (etc / "x").exists()


def test_a_tmpfs_has_the_mode_of_what_it_hides(either: Runner) -> None:
    bundle = either.bundle(tmpfs("/tmp"), tmpfs("/root", "mode=1711"), tmpfs("/none/before"))
    (bundle.path / "rootfs/tmp").chmod(0o1777)
    assert either("stat -c %a /tmp /root /none/before", bundle=bundle).split() == ["1777", "1711", "1777"]
    assert (bundle.path / "rootfs/none/before").stat().st_mode & 0o7777 == 0o755


def test_remount(either: Runner, tree: Path) -> None:
    table = either.table(
        tmpfs("/t", "size=1m", "nosuid"), {"destination": "/t", "options": ["remount", "ro", "size=2m", "nodev"]},
        bind(tree, "/b", "bind", "nosuid"), {"destination": "/b", "type": "none", "options": ["bind", "remount", "ro"]},
        tmpfs("/s", "ro"), {"destination": "/s", "options": ["remount", "rw"]},
        {"destination": "/t", "options": ["shared"]},
    )  # fmt: skip
    assert {"ro", "nosuid", "nodev"} <= table["/t"].options
    assert {"ro", "size=2048k"} <= table["/t"].superblock
    assert table["/t"].propagation == {"shared"}
    assert {"ro", "nosuid"} <= table["/b"].options
    assert "rw" in table["/s"].options & table["/s"].superblock
    assert either.refused({"destination": "/etc", "options": ["remount", "ro"]}).errno == errno.EINVAL


def test_a_mount_on_the_root_replaces_it(run: Runner, make_bundle: MakeBundle) -> None:
    other = make_bundle().path / "rootfs"
    (other / "marker").write_text("other\n")

    def change(d: dict[str, Any]) -> None:
        d["mounts"].insert(0, bind(other, "/", "rbind"))

    assert run("cat /marker; grep -c . /proc/mounts >/dev/null && ls /dev/null", change=change) == "other\n/dev/null\n"


def test_other_filesystems(run: Runner, tmp_path: Path, tree: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    data = [f"lowerdir={tree}", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    overlay = {"type": "overlay", "source": "overlay", "destination": "/o", "options": data}
    assert run("cat /o/file; echo new >/o/file; cat /o/file", overlay) == "host\nnew\n"
    assert (tree / "file").read_text() == "host\n"
    assert (tmp_path / "upper/file").read_text() == "new\n"


@pytest.mark.vm
@pytest.mark.parametrize("options", [[], ["ro", "nosuid", "noatime"]])
@pytest.mark.parametrize("long", ["lowerdir", "upperdir"])
def test_options_of_any_length(run: Runner, tmp_path: Path, long: str, options: list[str]) -> None:
    """Many layers one by one where the kernel can, everything else by mount(2); nothing shows on the host meanwhile."""
    layers = [tmp_path / f"layer,:{number}" / ("x" * 30) for number in range(20)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"from{number}").write_text("")
    deep = tmp_path.joinpath(*(["y" * 100] * 3)) if long == "upperdir" else tmp_path
    for name in ("upper", "work"):
        (deep / name).mkdir(parents=True, exist_ok=True)
    lower = ":".join(
        str(layer).replace(",", "\\,").replace("layer\\,:", "layer\\,\\:") for layer in layers[: 20 if long == "lowerdir" else 2]
    )
    data = [f"lowerdir={lower}", f"upperdir={deep}/upper", f"workdir={deep}/work"]
    overlay = {"type": "overlay", "source": "overlay", "destination": "/o", "options": [*data, *options]}
    out = run("ls /o; touch /o/x 2>/dev/null; ls /proc/self/mountinfo; cat /proc/self/mountinfo", overlay)
    assert out.count("from") - out.count("from overlay") >= (20 if long == "lowerdir" else 2)
    line = parse(out)["/o"]
    assert line.fstype == "overlay"
    assert line.options & ATTRIBUTES == ({"ro", "nosuid", "noatime"} if options else {"relatime"})
    assert (deep / "upper/x").exists() is not bool(options)
    assert "/proc" in parse(out)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_a_disk(run: Runner, tmp_path: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 (Debian: e2fsprogs)")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(4 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    loop = subprocess.run(["losetup", "--find", "--show", disk], check=True, capture_output=True, text=True).stdout.strip()
    try:
        mount = {"type": "ext4", "source": loop, "destination": "/disk", "options": ["sync", "errors=remount-ro", "noexec"]}
        error = run.refused(mount)
        assert (error.op, error.errno) == ("fsconfig", errno.EPERM)
        assert "linux.resources.devices" in str(error)
        rule = {"allow": True, "type": "b", "major": 7, "minor": int(loop.removeprefix("/dev/loop")), "access": "rw"}

        def allow(d: dict[str, Any]) -> None:
            d["linux"]["resources"]["devices"].append(rule)

        out = run("echo x >/disk/file; cat /disk/file; ls -d /disk/lost+found; cat /proc/self/mountinfo", mount, change=allow)
        assert out.splitlines()[:2] == ["x", "/disk/lost+found"]
        line = parse(out)["/disk"]
        assert (line.fstype, line.source) == ("ext4", loop)
        assert "noexec" in line.options
        assert {"sync", "errors=remount-ro"} <= line.superblock
        assert run("cat /disk/file", mount | {"options": ["ro"]}, change=allow) == "x\n"
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


@pytest.mark.parametrize(
    ("mount", "op", "code"),
    [
        (tmpfs("/x", "bogus=1"), "fsconfig", errno.EINVAL),
        (tmpfs("/x", "bogus"), "fsconfig", errno.EINVAL),
        (tmpfs("/etc/passwd"), "target", errno.ENOTDIR),
        (tmpfs("/etc/passwd/x"), "target", errno.ENOTDIR),
        ({"type": "nofs", "destination": "/x"}, "fsopen", errno.ENODEV),
        (bind(Path("/no/such"), "/x", "bind"), "open_tree", errno.ENOENT),
        (bind(Path("/etc/hostname"), "/etc", "bind"), "target", errno.EISDIR),
        (bind(Path("/etc"), "/etc/passwd", "bind"), "target", errno.ENOTDIR),
    ],
)  # fmt: skip
def test_what_cannot_be_mounted(run: Runner, mount: dict[str, Any], op: str, code: int) -> None:
    error = run.refused(mount)
    assert (error.op, error.errno) == (op, code), str(error)


# rootfsPropagation -> what the root's line in mountinfo says
PROPAGATION = {None: set(), "private": set(), "rprivate": set(), "shared": {"shared"}, "rshared": {"shared"},
               "unbindable": {"unbindable"}, "runbindable": {"unbindable"}}  # fmt: skip


@pytest.mark.parametrize("name", PROPAGATION)
def test_rootfs_propagation(run: Runner, name: str | None) -> None:
    def change(d: dict[str, Any]) -> None:
        if name:
            d["linux"]["rootfsPropagation"] = name

    table = run.table(tmpfs("/t"), change=change)
    assert table["/"].propagation == PROPAGATION[name]
    assert table["/t"].propagation == (PROPAGATION[name] if (name or "")[:1] == "r" else set())


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A shared mount of the host."""
    path = tmp_path / "shared"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    subprocess.run(["mount", "--make-shared", path], check=True)
    (path / "in").mkdir()
    (path / "out").mkdir()
    yield path
    subprocess.run(["umount", "-R", "-l", path], check=True)


@pytest.mark.parametrize(
    ("root", "options", "comes_in", "goes_out"),
    [
        (None, ["rbind"], False, False),
        (None, ["rbind", "rslave"], True, False),
        (None, ["rbind", "rprivate"], False, False),
        ("slave", ["rbind", "rslave"], True, False),
        ("rslave", ["rbind"], True, False),
        ("slave", ["rbind", "private"], False, False),
        ("private", ["rbind", "rslave"], False, False),
        ("shared", ["rbind", "rshared"], True, True),
        ("rshared", ["rbind", "rslave"], True, False),
        ("shared", ["rbind"], False, False),
        ("slave", ["rbind", "rshared"], True, False),
        ("shared", ["rbind", "runbindable"], False, False),
    ],
)
def test_propagation_of_binds(
    run: Runner, state_root: Path, prefix: str, shared: Path, root: str | None, options: list[str], comes_in: bool, goes_out: bool
) -> None:
    def change(d: dict[str, Any]) -> None:
        d["process"]["args"] = ["sleep", "100"]
        for kind in ("bounding", "effective", "permitted"):
            d["process"]["capabilities"][kind].append("CAP_SYS_ADMIN")
        d["linux"].pop("seccomp")
        if root:
            d["linux"]["rootfsPropagation"] = root

    bundle = run.bundle(bind(shared, "/s", *options), change=change)
    with oci.Container.run(prefix, bundle, state_root=state_root) as container:
        subprocess.run(["mount", "-t", "tmpfs", "none", shared / "in"], check=True)
        (shared / "in/seen").touch()
        assert (container.exec(["test", "-e", "/s/in/seen"]).returncode == 0) is comes_in
        assert container.exec(["mount", "-t", "tmpfs", "none", "/s/out"]).returncode == 0
        assert container.exec(["touch", "/s/out/seen"]).returncode == 0
        assert (shared / "out/seen").exists() is goes_out


@pytest.mark.parametrize("readonly", [True, False])
def test_a_readonly_root(run: Runner, tree: Path, readonly: bool) -> None:
    script = "touch /x 2>/dev/null; echo $?; touch /t/x /dev/x && cat /proc/self/mountinfo"
    out = run(script, tmpfs("/t"), change=lambda d: d["root"].update(readonly=readonly))
    assert (out.splitlines()[0] == "0") is not readonly
    assert ("ro" in parse(out.partition("\n")[2])["/"].options) is readonly
