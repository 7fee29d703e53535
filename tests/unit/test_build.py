"""Making a SIF file of an image of any kind."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.image.files import View, top_node
from ociruntime.image.sif import Filesystem, PartitionKind, Sbom, SbomFormat, SifBuilder

from ..support.fixture_types import Script
from ..support.images import TAR_TYPE, OciImage, small_filesystem, tar_of
from ..support.waiting import wait_until

PROGRAMS = [
    pytest.param(None, id="tar2sqfs", marks=pytest.mark.skipif(not shutil.which("tar2sqfs"), reason="no squashfs-tools-ng")),
    pytest.param("mksquashfs", marks=pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no squashfs-tools")),
]
needs_a_program = pytest.mark.skipif(
    not (shutil.which("tar2sqfs") or shutil.which("mksquashfs")), reason="neither squashfs-tools-ng nor squashfs-tools"
)
CONFIG = {"Entrypoint": ["/bin/hello"], "Env": ["A=b"], "WorkingDir": "/srv", "Labels": {"own": "1"}, "org.example": [1]}
LONG = "n" * 255
DEEP = "/".join(["d" * 200] * 10)


def member(name: str, kind: bytes = tarfile.REGTYPE, **values: Any) -> tarfile.TarInfo:
    created = tarfile.TarInfo(name)
    created.type, created.mtime, created.mode = kind, 1000, 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in values.items():
        setattr(created, key, value)
    return created


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for created, content in members:
            created.size = len(content)
            archive.addfile(created, io.BytesIO(content))
    return buffer.getvalue()


def image() -> OciImage:
    """Two layers with all that is difficult."""
    lower = layer(
        (member("./", tarfile.DIRTYPE, mode=0o751, uid=12, gid=13), b""),
        (member("bin", tarfile.DIRTYPE, uid=70000, gid=3000000, pax_headers={"SCHILY.xattr.user.d": "\0=\n"}), b""),
        (member("bin/setuid", mode=0o6755, uid=3, pax_headers={"SCHILY.xattr.security.capability": "\1\0\0\2" + "\0" * 16}), b"s"),
        (member("bin/linked", tarfile.LNKTYPE, linkname="bin/setuid"), b""),
        (member("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3), b""),
        (member("disk", tarfile.BLKTYPE, mode=0o660, devmajor=8, devminor=70000), b""),
        (member("fifo", tarfile.FIFOTYPE), b""),
        (member("absolute", tarfile.SYMTYPE, mode=0o777, linkname="/bin/" + LONG), b""),
        (member("relative", tarfile.SYMTYPE, mode=0o777, linkname="./../x"), b""),
        (member("overlay", tarfile.DIRTYPE, pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"}), b""),
        (member("labelled", pax_headers={"SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.user.kept": "y"}), b""),
        (member("removed"), b"x"),
        (member("covered", tarfile.DIRTYPE), b""),
        (member("covered/below"), b"x"),
        (member(LONG), b"long"),
        (member("new\nline ü \udcff"), b"odd"),
        (member(f"{DEEP}/file"), b"deep"),
        (member("zeros"), bytes(3 << 20) + b"end"),
        (member("empty", mtime=1 << 32), b""),
    )
    upper = layer(
        (member(".wh.removed"), b""),
        (member("covered", tarfile.DIRTYPE, mode=0o700), b""),
        (member("covered/.wh..wh..opq"), b""),
        (member("covered/above"), b"content"),
        (member("to-the-lower-layer", tarfile.LNKTYPE, linkname="zeros"), b""),
    )
    created = OciImage()
    digests = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (lower, upper)]
    created.add([(gzip.compress(lower), f"{TAR_TYPE}+gzip"), (upper, TAR_TYPE)], name="it", config=CONFIG, diff_ids=digests)
    return created


def write_docker_archive(path: Path) -> Path:
    source = image()
    layers = [source.blobs[item["digest"]] for item in json.loads(source.blobs[source.manifests[0]["digest"]])["layers"]]
    config = source.blobs[json.loads(source.blobs[source.manifests[0]["digest"]])["config"]["digest"]]
    manifest = [{"Config": "config.json", "RepoTags": ["it:1"], "Layers": ["0/layer.tar", "1/layer.tar"]}]
    parts = {
        "config.json": config,
        "manifest.json": json.dumps(manifest).encode(),
        "0/layer.tar": layers[0],
        "1/layer.tar": layers[1],
    }
    path.write_bytes(layer(*((member(name), content) for name, content in parts.items())))
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "oci-layout": lambda path: image().write_layout(path),
    "oci-archive": lambda path: image().write_archive(path),
    "docker-archive": write_docker_archive,
}


def view(opened: oci.Image) -> View:
    return opened._view(1000, 1 << 30)


def describe(path: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about the files of an image, without what is added for Apptainer."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[object, list[str]] = {}
    with oci.Image.open(path) as opened:
        for file in opened.files():
            node = top_node(view(opened).find(file.path, follow=False))
            if not node.is_directory:
                names.setdefault((id(node.tree), node.location), []).append(file.path)
            content = opened.read_bytes(file.path) if file.type == "file" else b""
            attributes = {k: v for k, v in node.tree.attributes(node).items() if "overlay" not in k and "selinux" not in k}
            found[file.path] = (file.type, oct(file.mode), file.uid, file.gid, file.target, file.device, content, attributes)
            found[file.path] += (min(file.mtime, 1_500_000_000) if file.path not in IMPLIED else 0,)
        for paths in names.values():
            for path_of in paths:
                found[path_of] += (tuple(paths),)
    return found


IMPLIED = {"/"}
"""Directories whose time ``mksquashfs`` does not store."""
ADDED = {"/.singularity.d", "/dev", "/environment", "/proc", "/singularity", "/sys", "/tmp"}
ADDED |= {"/.exec", "/.run", "/.shell", "/.test"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("kind", [*KINDS, "sif"])
def test_every_file_is_as_the_layers_say(kind: str, program: str | None, tmp_path: Path) -> None:
    pytest.importorskip("PySquashfsImage")
    source = KINDS["oci-layout" if kind == "sif" else kind](tmp_path / "source")
    expected = describe(source)
    if kind == "sif":
        oci.build(source, tmp_path / "first.sif", mksquashfs=program)
        source = tmp_path / "first.sif"
    assert oci.build(source, tmp_path / "x.sif", mksquashfs=program) == ()
    found = describe(tmp_path / "x.sif")
    assert {path: value for path, value in found.items() if not path.startswith(tuple(ADDED))} == expected
    assert "/removed" not in found
    assert "/covered/below" not in found
    with oci.Image.open(tmp_path / "x.sif") as built:
        overlay = top_node(view(built).find("/overlay"))
        labelled = top_node(view(built).find("/labelled"))
        assert overlay.tree.attributes(overlay) == {}
        assert labelled.tree.attributes(labelled) == {"user.kept": b"y"}
        assert built.config_json == CONFIG
        assert built.labels == {"own": "1"}
        assert built.architecture == "amd64"


@pytest.mark.parametrize("program", PROGRAMS)
def test_without_standard_streams(program: str | None, script: Script, tmp_path: Path) -> None:
    """The files that are opened get the numbers of the standard streams, which programs that are started have for themselves."""
    source = KINDS["oci-layout"](tmp_path / "source")
    text = """
import os, sys, traceback
import ociruntime as oci
os.closerange(0, 3)
try:
    oci.build(sys.argv[1], sys.argv[2], mksquashfs=sys.argv[3] or None)
    with oci.Image.open(sys.argv[2]) as image:
        image.unpack(sys.argv[4], privileged=False)
except BaseException:
    with open(sys.argv[5], "w") as file:
        traceback.print_exc(file=file)
    raise
"""
    failed = tmp_path / "failed"
    script(text, source, tmp_path / "x.sif", program or "", tmp_path / "root", failed, check=False)
    assert not failed.exists(), failed.read_text()
    found = describe(tmp_path / "x.sif")
    assert {path: value for path, value in found.items() if not path.startswith(tuple(ADDED))} == describe(source)
    assert (tmp_path / "root").is_dir()


def as_extracted(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything about the files in a directory, without what is added for Apptainer."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, list[str]] = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            shown, info = os.fsdecode(path).removeprefix(str(root)), os.lstat(path)
            if shown.startswith(tuple(ADDED)):
                continue
            kept = ("user.", "security.capability")
            known = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            attributes = {key: value for key, value in known.items() if key.startswith(kept) and "overlay" not in key}
            target = os.fsdecode(os.readlink(path)) if stat.S_ISLNK(info.st_mode) else ""
            content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(info.st_mode) else b""
            mtime = 0 if stat.S_ISDIR(info.st_mode) else min(int(info.st_mtime), 1_500_000_000)
            found[shown] = (oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev, mtime, target, content, attributes)
            names.setdefault(info.st_ino, []).append(shown)
    return {path: (*value, next(sorted(paths) for paths in names.values() if path in paths)) for path, value in found.items()}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root extracts owners and devices")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("other", ["tar", "umoci"])
def test_other_programs_extract_the_same_files(other: str, program: str | None, tmp_path: Path) -> None:
    """unsquashfs extracts from the new image what GNU tar does from its only layer, and umoci from the layout with whiteouts."""
    if not (shutil.which(other) and shutil.which("unsquashfs")):
        pytest.skip(f"no {other}, or no unsquashfs")
    source = image()
    if other == "tar":
        (digest, *_) = (item["digest"] for item in json.loads(source.blobs[source.manifests[0]["digest"]])["layers"])
        (tmp_path / "layer").write_bytes(gzip.decompress(source.blobs[digest]))
        source = OciImage()
        source.add([((tmp_path / "layer").read_bytes(), TAR_TYPE)], name="it")
        (tmp_path / "expected").mkdir()
        command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--same-owner", "-xpf", "layer", "-C", "expected"]
    else:
        command = ["umoci", "raw", "unpack", "--image", "layout:it", "expected"]
    source.write_layout(tmp_path / "layout")
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    oci.build(tmp_path / "layout", tmp_path / "x.sif", mksquashfs=program)
    with oci.Image.open(tmp_path / "x.sif") as built:
        command = ["unsquashfs", "-quiet", "-no-progress", "-o", str(built.layers[0].offset), "-d", "found", "x.sif"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found, expected = as_extracted(tmp_path / "found"), as_extracted(tmp_path / "expected")
    assert {"/bin/setuid", "/null", f"/{DEEP}/file", "/zeros"} <= found.keys()
    assert found.keys() == expected.keys()
    assert {path: (found[path], expected[path]) for path in found if found[path] != expected[path]} == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_layers_of_an_oci_sif_file(program: str | None, tmp_path: Path) -> None:
    pytest.importorskip("PySquashfsImage")
    source = image().write_layout(tmp_path / "layout")
    for name in ("x.sif", "y.sif"):
        oci.build(
            source,
            tmp_path / name,
            format="oci-sif",
            mksquashfs=program,
            labels={"more": "2"},
            deterministic=True,
            timestamp=1_500_000_000,
        )
    assert (tmp_path / "x.sif").read_bytes() == (tmp_path / "y.sif").read_bytes()
    expected = describe(source)
    oci.build(tmp_path / "x.sif", tmp_path / "merged.sif", mksquashfs=program)
    for name in ("x.sif", "merged.sif"):
        found = {path: value for path, value in describe(tmp_path / name).items() if not path.startswith(tuple(ADDED))}
        linked = ("/zeros", "/to-the-lower-layer")  # a hard link across layers is a copy
        assert {k: v for k, v in found.items() if k not in linked} == {k: v for k, v in expected.items() if k not in linked}
        assert [found[path][:-1] for path in linked] == [expected[path][:-1] for path in linked]
    with oci.Image.open(tmp_path / "x.sif") as built:
        assert (built.kind, built.architecture, len(built.layers)) == ("oci-sif", "amd64", 2)
        assert built.verify().digests == tuple(layer.digest for layer in built.layers)
        assert built.config_json is not None
        assert built.config_json["rootfs"] == {"type": "layers", "diff_ids": [layer.digest for layer in built.layers]}
        assert built.config_json["config"] == {**CONFIG, "Labels": {"own": "1", "more": "2"}}
        assert [layer.offset % 4096 for layer in built.layers] == [0, 0]
        upper = built._files.views(1000, 1 << 30)[1]
        files = {"/".join(name for name, _ in route): top_node(route) for route in upper.below(upper.find("/"))}
        assert set(files) == {"", "/removed", "/covered", "/covered/above", "/to-the-lower-layer"}
        assert (files["/removed"].type, files["/removed"].device) == ("character device", (0, 0))
        marks = files["/covered"].tree.attributes(files["/covered"])
        assert marks == {"trusted.overlay.opaque": b"y", "user.overlay.opaque": b"y"}
        assert (files[""].mode, files[""].uid) == (0o751, 12)  # of the lower layer: the upper one does not say it
        digests = [layer.digest for layer in built.layers]
    oci.build(tmp_path / "x.sif", tmp_path / "copy.sif", format="oci-sif")
    with oci.Image.open(tmp_path / "copy.sif") as copy:
        assert [layer.digest for layer in copy.layers] == digests


@needs_a_program
def test_an_opaque_root_and_one_layer_twice(tmp_path: Path) -> None:
    pytest.importorskip("PySquashfsImage")
    lower = layer((member("below"), b"x"), (member("both", tarfile.DIRTYPE), b""), (member("both/below"), b"x"))
    upper = layer((member(".wh..wh..opq"), b""), (member("both/above"), b"y"))
    source = OciImage()
    source.add([(lower, TAR_TYPE), (upper, TAR_TYPE), (upper, TAR_TYPE)])
    source.write_layout(tmp_path / "layout")
    oci.build(tmp_path / "layout", tmp_path / "x.sif", format="oci-sif", timestamp=5, deterministic=True)
    with oci.Image.open(tmp_path / "x.sif") as built:
        assert built.sif is not None
        views = built._files.views(1000, 1 << 30)
        names = [{name for name, _ in view.children(view.find("/")[-1][1]).items()} for view in views]
        assert names == [{"below", "both"}, {"below", "both"}, {"both"}]
        below, both = (top_node(views[1].find(name)) for name in ("below", "both"))
        assert below.whiteout
        assert both.opaque


@needs_a_program
def test_an_oci_sif_file_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/file").write_bytes(b"x")
    assert main(["build", "--oci", "--arch", "arm64", "-l", "a=b", str(tmp_path / "x.sif"), str(tmp_path / "root")]) == 0
    with oci.Image.open(tmp_path / "x.sif") as built:
        assert (built.kind, built.architecture, built.labels) == ("oci-sif", "arm64", {"a": "b"})
        assert [file.path for file in built.files()] == ["/", "/file"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_user_makes_the_same_bytes(program: str | None, tmp_path: Path, user_python: str) -> None:
    image().write_layout(tmp_path / "layout")
    oci.build(tmp_path / "layout", tmp_path / "root.sif", mksquashfs=program, deterministic=True, timestamp=5)
    place = Path("/tmp") / f"ociruntime-build-{os.getpid()}"
    shutil.copytree(tmp_path / "layout", place / "layout")
    try:
        place.chmod(0o777)
        text = "import ociruntime as oci, sys; oci.build('layout', 'user.sif', mksquashfs=sys.argv[1] or None, deterministic=True, timestamp=5)"
        done = subprocess.run(
            [user_python, "-c", text, program or ""],
            cwd=place,
            user=4321,
            group=4321,
            extra_groups=[],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert (place / "user.sif").read_bytes() == (tmp_path / "root.sif").read_bytes()
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("program", PROGRAMS)
def test_reproducible(program: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "500")
    image().write_layout(tmp_path / "layout")
    for number in (1, 2):
        oci.build(tmp_path / "layout", tmp_path / f"{number}.sif", processors=number, mksquashfs=program)
    assert (tmp_path / "1.sif").read_bytes() == (tmp_path / "2.sif").read_bytes()
    with oci.SifImage.open(tmp_path / "1.sif") as sif:
        assert sif.header.created_at == 500
        assert sif.header.uuid is None


@needs_a_program
def test_a_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True, mode=0o711)
    (root / "etc/a").write_bytes(b"a")
    os.link(root / "etc/a", root / "b")
    os.setxattr(root / "etc/a", "user.x", b"\0y")
    (root / "gone").mkdir()
    (root / "gone/file").touch()
    with open(root / "sparse", "wb") as file:
        file.truncate(10 << 20)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "s"))
    left_out = oci.build(root, tmp_path / "x.sif", exclude=["g*", "etc/z"], config={"Cmd": ["a"]}, labels={"k": "v"})
    assert [file.path for file in left_out] == ["/s"]
    with oci.Image.open(tmp_path / "x.sif") as built:
        files = {file.path: file for file in built.files()}
        assert "/gone" not in files
        assert files["/sparse"].size == 10 << 20
        assert files["/etc"].mode == 0o711
        nodes = [top_node(view(built).find(path)) for path in ("/etc/a", "/b")]
        assert nodes[0].location == nodes[1].location
        assert nodes[0].tree.attributes(nodes[0]) == {"user.x": b"\0y"}
        assert {file.uid for file in files.values()} == {0}
        config, labels = built.config(), built.labels
        assert config is not None
        assert (config.cmd, labels) == (("a",), {"k": "v"})
    assert (tmp_path / "x.sif").stat().st_size < 1 << 20


@needs_a_program
@pytest.mark.parametrize("format", ["sif", "oci-sif"])
def test_an_upper_directory(format: Any, tmp_path: Path) -> None:
    pytest.importorskip("PySquashfsImage")
    image().write_layout(tmp_path / "layout")
    upper = tmp_path / "overlay/upper"
    (upper / "covered").mkdir(parents=True)
    (upper / "covered/new").write_bytes(b"new")
    os.setxattr(upper / "covered", "user.overlay.opaque", b"y")
    os.setxattr(upper / "covered", "user.kept", b"y")
    (upper / "overlay").mkdir()
    (upper / "overlay/.wh..wh..opq").touch()  # as fuse-overlayfs does without privileges
    (upper / ".wh.zeros").touch()
    if os.geteuid() == 0:
        os.mknod(upper / "fifo", 0o20000, 0)
    else:
        (upper / ".wh.fifo").touch()
    (tmp_path / "overlay/work").mkdir()
    oci.build(tmp_path / "layout", tmp_path / "x.sif", upper=tmp_path / "overlay", format=format)
    before, after = describe(tmp_path / "layout"), describe(tmp_path / "x.sif")
    assert {path for path in before if path not in after} == {"/zeros", "/fifo", "/covered/above"}
    assert {path for path in after if path not in before and not path.startswith(tuple(ADDED))} == {"/covered/new"}
    assert after["/covered"][7] == {"user.kept": b"y"}
    with oci.Image.open(tmp_path / "x.sif") as built:
        assert len(built.layers) == (1 if format == "sif" else 3)
    os.setxattr(upper / "covered", "user.overlay.redirect", b"/x")
    with pytest.raises(oci.UnsupportedError, match=r"covered: the attribute user\.overlay\.redirect refers to a lower layer"):
        oci.build(tmp_path / "layout", tmp_path / "y.sif", upper=upper, format=format)


def test_an_upper_directory_with_paths_that_no_call_takes(tmp_path: Path) -> None:
    """A program of a container makes such directories one in the other."""
    image().write_layout(tmp_path / "layout")
    (tmp_path / "upper").mkdir()
    fd = os.open(tmp_path / "upper", os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 255, dir_fd=fd)
        inner = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(oci.ImageError, match=r"upper: /d{199}\.\.\. lies too deep in the image"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif", upper=tmp_path / "upper")
    assert sorted(os.listdir(tmp_path)) == ["layout", "upper"]


MKE2FS = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@needs_a_program
@pytest.mark.skipif(MKE2FS is None, reason="no e2fsprogs")
@pytest.mark.parametrize("kind", ["file", "partition"])
def test_an_ext_filesystem(kind: str, tmp_path: Path) -> None:
    """It is read without being mounted, by a user too."""
    pytest.importorskip("PySquashfsImage")
    assert MKE2FS is not None
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(os.urandom(300_000))
    (root / "bin/tool").chmod(0o6755)
    os.link(root / "bin/tool", root / "same")
    os.symlink("t" * 100, root / "link")
    if os.geteuid() == 0:
        os.chown(root / "bin", 70000, 3_000_000)
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    subprocess.run([MKE2FS, "-q", "-F", "-t", "ext4", "-d", root, tmp_path / "ext4", "8M"], check=True, capture_output=True)
    source = tmp_path / "ext4"
    if kind == "partition":
        builder = SifBuilder()
        builder.add_partition(source, filesystem=Filesystem.EXT3)
        source = tmp_path / "source.sif"
        builder.write(source)
    expected = describe(source)
    assert expected["/bin/tool"][1:4] == (oct(0o6755), os.geteuid(), os.getegid())
    oci.build(source, tmp_path / "x.sif")
    found = {path: value for path, value in describe(tmp_path / "x.sif").items() if not path.startswith(tuple(ADDED))}
    assert found == expected


@needs_a_program
def test_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "b/rootfs").mkdir(parents=True)
    process = {"args": ["a", "b"], "env": ["X=1"], "cwd": "/srv", "user": {"uid": 5, "gid": 6}}
    spec = oci.RuntimeSpec.load(json.dumps({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process}).encode())
    oci.Bundle.from_dir(tmp_path / "b", spec)
    with pytest.raises(oci.BundleError, match="rootfs is empty, because its containers mount the image"):
        oci.build(tmp_path / "b", tmp_path / "x.sif")
    (tmp_path / "b/rootfs/file").touch()
    assert main(["build", str(tmp_path / "x.sif"), str(tmp_path / "b")]) == 0
    with oci.Image.open(tmp_path / "x.sif") as built:
        assert built.config_json == {"Cmd": ["a", "b"], "Env": ["X=1"], "WorkingDir": "/srv", "User": "5:6"}
        assert [file.path for file in built.files("/file")] == ["/file"]


@needs_a_program
def test_what_apptainer_runs(tmp_path: Path) -> None:
    image().write_layout(tmp_path / "layout")
    oci.build(tmp_path / "layout", tmp_path / "x.sif", definition="From: x\n", labels={"more": "2", "own": "3"})
    with oci.Image.open(tmp_path / "x.sif") as built:
        for name in ("runscript", "startscript"):
            assert built.read_bytes(f"/.singularity.d/{name}") == b'#!/bin/sh\nexec /bin/hello "$@"\n'
        assert b"A=b" in built.read_bytes("/environment").join([built.read_bytes("/.singularity.d/env/10-docker2singularity.sh")])
        assert built.read_bytes("/singularity") == built.read_bytes("/.singularity.d/runscript")
        assert json.loads(built.read_bytes("/.singularity.d/labels.json")) == {"more": "2", "own": "3"}
        assert built.read_bytes("/.singularity.d/Singularity") == b"From: x\n"
        names = {file.path.removeprefix("/.singularity.d/env/") for file in built.files("/.singularity.d/env")}
        names.discard("/.singularity.d/env")
        assert sorted(names) == ["10-docker2singularity.sh", "90-environment.sh", "99-base.sh", "99-runtimevars.sh"]
        for action in ("exec", "run", "shell", "test"):
            assert built.read_bytes(f"/.{action}") == built.read_bytes(f"/.singularity.d/actions/{action}")
        assert [file.type for file in built.files("/.singularity.d/libs")] == ["directory"]
        modes = {file.path: file.mode for file in built.files("/.singularity.d/actions")}
        assert {os.path.basename(path) for path, mode in modes.items() if mode & 0o111} >= {"run", "exec", "shell", "start", "test"}
        assert (built.definition, built.labels) == ("From: x\n", {"more": "2", "own": "3"})


SBOMS = {
    SbomFormat.CYCLONEDX_JSON: '{"bomFormat": "CycloneDX"}',
    SbomFormat.CYCLONEDX_XML: '<?xml version="1.0"?><bom xmlns="http://cyclonedx.org/schema/bom/1.4"/>',
    SbomFormat.GITHUB_JSON: '{"version": 0, "job": {}, "detector": {}, "manifests": {}}',
    SbomFormat.SPDX_JSON: '{"spdxVersion": "SPDX-2.3"}',
    SbomFormat.SPDX_RDF: '<rdf:RDF xmlns:spdx="http://spdx.org/rdf/terms#"/>',
    SbomFormat.SPDX_TAG_VALUE: "SPDXVersion: SPDX-2.3\n",
    SbomFormat.SPDX_YAML: '---\nspdxVersion: "SPDX-2.3"\n',
    SbomFormat.SYFT_JSON: '{"artifacts": [], "descriptor": {}, "schema": {}}',
}


@needs_a_program
def test_sboms_and_what_a_sif_file_has(tmp_path: Path) -> None:
    paths = []
    for kind, text in SBOMS.items():
        paths.append(tmp_path / kind.name)
        paths[-1].write_text(text)
    (tmp_path / "root").mkdir()
    oci.build(tmp_path / "root", tmp_path / "1.sif", sboms=paths, definition="x", arch="arm64", labels={"a": "b"})
    oci.build(tmp_path / "1.sif", tmp_path / "2.sif")
    with oci.SifImage.open(tmp_path / "2.sif") as sif:
        found = [(item.metadata.format, sif.read(item).decode()) for item in sif if isinstance(item.metadata, Sbom)]
        assert found == list(SBOMS.items())
        assert (sif.definition, sif.labels, sif.header.architecture) == ("x", {"a": "b"}, "04")
    (tmp_path / "other").write_text("{}")
    with pytest.raises(oci.ImageError, match="other: not a software bill of materials"):
        oci.build(tmp_path / "root", tmp_path / "3.sif", sboms=[tmp_path / "other"])


@pytest.mark.parametrize(
    ("filesystem", "kind", "message"),
    [
        (Filesystem.ENCRYPTED_SQUASHFS, PartitionKind.PRIMARY_SYSTEM, "object 1 is an encrypted partition"),
        (Filesystem.GOCRYPTFS_SQUASHFS, PartitionKind.PRIMARY_SYSTEM, "object 1 is an encrypted partition"),
        (Filesystem.RAW, PartitionKind.OVERLAY, "object 1 is a writable overlay"),
    ],
)
def test_parts_that_cannot_be_read(filesystem: Filesystem, kind: PartitionKind, message: str, tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_partition(b"LUKS", kind=kind, filesystem=filesystem)
    builder.write(tmp_path / "a.sif")
    with pytest.raises(oci.UnsupportedError, match=message):
        oci.build(tmp_path / "a.sif", tmp_path / "x.sif")
    assert os.listdir(tmp_path) == ["a.sif"]


@needs_a_program
def test_progress(tmp_path: Path) -> None:
    image().write_layout(tmp_path / "layout")
    calls: list[tuple[int, int]] = []
    oci.build(tmp_path / "layout", tmp_path / "x.sif", progress=lambda done, total: calls.append((done, total)))
    assert calls[0][0] == 0
    assert calls == sorted(calls)
    assert 3 <= len(calls) < 20
    assert calls[-1][0] == calls[-1][1] == calls[0][1] > 3 << 20

    def fail(done: int, total: int) -> None:
        if done:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        oci.build(tmp_path / "layout", tmp_path / "y.sif", progress=fail)
    assert sorted(os.listdir(tmp_path)) == ["layout", "x.sif"]


@needs_a_program
def test_a_damaged_layer(tmp_path: Path) -> None:
    source = image()
    digest = json.loads(source.blobs[source.manifests[0]["digest"]])["layers"][1]["digest"]
    source.blobs[digest] = source.blobs[digest].replace(b"content", b"CONTENT")
    source.write_layout(tmp_path / "layout")
    (tmp_path / "x.sif").write_bytes(b"before")
    with pytest.raises(oci.ImageError, match="the image is damaged"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif", overwrite=True)
    assert (tmp_path / "x.sif").read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["layout", "x.sif"]
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a filesystem without space")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("size", "format"), [("1M", "sif"), ("1M", "oci-sif"), ("3M", "sif"), ("3M", "oci-sif")])
def test_a_full_disk(size: str, format: Any, program: str | None, tmp_path: Path) -> None:
    """In 3 MiB there is space for the squashfs, but not for the SIF file too."""
    source = OciImage()
    source.add([(tar_of({"file": os.urandom(2 << 20)}), TAR_TYPE)])
    source.write_layout(tmp_path / "layout")
    with small_filesystem(tmp_path / "small", size) as place:
        (place / "x.sif").write_bytes(b"before")
        descriptors = os.listdir("/proc/self/fd")
        with pytest.raises(oci.HostError, match=r"cannot build .*/x\.sif: no space left on device: .*; free space") as caught:
            oci.build(tmp_path / "layout", place / "x.sif", format=format, mksquashfs=program, overwrite=True)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place / "x.sif"))
        assert os.listdir(place) == ["x.sif"]
        assert (place / "x.sif").read_bytes() == b"before"
        assert os.listdir("/proc/self/fd") == descriptors


def test_limits(tmp_path: Path) -> None:
    image().write_layout(tmp_path / "layout")
    with pytest.raises(oci.ImageError, match="max_files=5"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif", max_files=5)
    with pytest.raises(oci.ImageError, match="max_bytes=1000"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif", max_bytes=1000)
    assert os.listdir(tmp_path) == ["layout"]


def test_attributes_that_take_too_much_memory(tmp_path: Path) -> None:
    large = {f"SCHILY.xattr.user.{number}": "x" * 100_000 for number in range(10)}
    source = OciImage()
    source.add([(layer(*((member(str(number), pax_headers=large), b"") for number in range(100))), TAR_TYPE)])
    source.write_layout(tmp_path / "layout")
    with pytest.raises(oci.ImageError, match="more files than the limit max_files=100000"):
        oci.build(tmp_path / "layout", tmp_path / "x.sif", max_files=100_000)
    assert os.listdir(tmp_path) == ["layout"]


def tool(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_programs_that_are_missing_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image().write_layout(tmp_path / "layout")
    arguments = (tmp_path / "layout", tmp_path / "x.sif")
    old = tool(tmp_path / "old", "echo 'mksquashfs: invalid option'; exit 1")
    with pytest.raises(oci.UnsupportedError, match=r"mksquashfs is older than 4\.5; install a later one, or squashfs-tools-ng"):
        oci.build(*arguments, mksquashfs=old)
    with pytest.raises(oci.ProcessError, match="hurried ended with status 0 too early: what"):
        oci.build(*arguments, mksquashfs=tool(tmp_path / "hurried", "exec 0<&-; echo what"))
    monkeypatch.setenv("PATH", str(tmp_path))
    tool(tmp_path / "unshare", "echo 'unshare: no user namespaces'; exit 1")
    with pytest.raises(oci.UnsupportedError, match=r"no user namespaces; .* install squashfs-tools-ng"):
        oci.build(*arguments, mksquashfs=old)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(oci.UnsupportedError, match="mksquashfs not found; install squashfs-tools, or squashfs-tools-ng"):
        oci.build(*arguments)
    assert not (tmp_path / "x.sif").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_nothing_is_left_after_sigkill(tmp_path: Path) -> None:
    image().write_layout(tmp_path / "layout")
    program, pid = tool(tmp_path / "mksquashfs", 'echo $$ > "$0.pid"; exec cat > /dev/null'), tmp_path / "mksquashfs.pid"
    (tmp_path / "out").mkdir()
    text = (
        "import os, sys, time, ociruntime as oci\n"
        "oci.build(*sys.argv[1:3], mksquashfs=sys.argv[3], progress=lambda done, total: time.sleep(1000 if done else 0))\n"
    )
    command = [sys.executable, "-P", "-c", text, str(tmp_path / "layout"), str(tmp_path / "out/x.sif"), str(program)]
    with subprocess.Popen(command) as process:
        wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), "the program runs")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path("/proc", pid.read_text().strip()).exists(), "the program ends")
    assert os.listdir(tmp_path / "out") == []


@needs_a_program
def test_an_open_image(tmp_path: Path) -> None:
    image().write_layout(tmp_path / "layout")
    with oci.Image.open(tmp_path / "layout") as opened:
        oci.build(opened, tmp_path / "x.sif")
        assert not opened.closed
        with pytest.raises(ValueError, match="source is an open image"):
            oci.build(opened, tmp_path / "y.sif", reference="it")
    with pytest.raises(oci.ImageError, match="no image is named 'other'"):
        oci.build(tmp_path / "layout", tmp_path / "y.sif", reference="other")
    with pytest.raises(ValueError, match="closed"):
        oci.build(opened, tmp_path / "y.sif")


@needs_a_program
def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image().write_layout(tmp_path / "lay:out")
    image().write_archive(tmp_path / "a.tar")
    write_docker_archive(tmp_path / "d.tar")
    (tmp_path / "config.json").write_text('{"Cmd": ["x"]}')
    for source in (
        "lay:out",
        "oci:lay:out",
        "oci:lay:out:it",
        "oci-archive:a.tar:it",
        "docker-archive:d.tar:it:1",
        "docker-archive:d.tar",
    ):
        assert main(["build", "-f", "-l", "a=b", "--config", "config.json", "x.sif", source]) == 0
        with oci.Image.open("x.sif") as built:
            config = built.config()
            assert config is not None
            assert (config.cmd, built.labels) == (("x",), {"own": "1", "a": "b"})
    assert capfd.readouterr() == ("", "")
    for arguments, message in {
        ("x.sif", "a.tar"): "file exists; pass overwrite=True to replace it",
        ("y.sif", "oci:a.tar"): "a.tar is of the kind oci-archive, not oci-layout",
        ("y.sif", "oci:lay:out:other"): "no image is named 'other'",
        ("y.sif", "--sbom", "config.json", "a.tar"): "config.json: not a software bill of materials",
        ("y.sif", "--reference", "x", "oci:lay:out:it"): "names an image already",
    }.items():
        assert main(["build", *arguments]) == 1
        assert message in capfd.readouterr().err
    assert not (tmp_path / "y.sif").exists()


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    wrong: Any
    for name, wrong, error in (
        ("labels", [], TypeError),
        ("config", 1, TypeError),
        ("definition", b"", TypeError),
        ("sboms", "x", TypeError),
        ("exclude", "x", TypeError),
        ("compression", "zip", ValueError),
        ("processors", 0, ValueError),
        ("progress", 1, TypeError),
        ("all_root", "yes", TypeError),
        ("overwrite", None, TypeError),
        ("max_files", "1", TypeError),
        ("mode", 0o10000, ValueError),
        ("arch", "vax", ValueError),
    ):
        with pytest.raises(error, match=name if name != "arch" else "vax"):
            oci.build(tmp_path / "root", tmp_path / "x.sif", **{name: wrong})
    with pytest.raises(oci.SifError, match="cannot be written into"):
        oci.build(tmp_path / "root", tmp_path / "root/x.sif")
    assert os.listdir(tmp_path) == ["root"]
