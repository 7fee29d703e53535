"""Files of images, read without mounting: the merged view, contents, extraction, and images that are hostile."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.image import FileType, Image, ImageFile, ImageKind, SifBuilder
from ociruntime.image.files import image_file, top_node
from ociruntime.image.filesystems import ErofsTree, ExtTree
from ociruntime.image.sif import Filesystem, PartitionKind

from ..support.images import SQUASHFS_TYPE, TAR_TYPE, OciImage, Patched, squashfs
from ..support.waiting import SLOWER
from .test_images import WRITERS, write_docker

MEMORY_BOUND = 96 << 20
SECONDS = 20 * SLOWER
needs_mksquashfs = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="mksquashfs is not installed")


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    item = tarfile.TarInfo(name)
    item.type, item.size = kind, len(content)
    for key, value in fields.items():
        setattr(item, key, value)
    return item, content


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for item, content in members:
            archive.addfile(item, io.BytesIO(content))
    return buffer.getvalue()


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.DIRTYPE, mode=fields.pop("mode", 0o755), **fields)


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.SYMTYPE, linkname=target)


def hard(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, tarfile.LNKTYPE, linkname=target)


def layout(path: Path, *layers: bytes, media_type: str = TAR_TYPE) -> Path:
    created = OciImage()
    created.add([(layer, media_type) for layer in layers])
    return created.write_layout(path)


def tar_image(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Image:
    return Image.open(layout(path / "image", tar(*members)))


def names(files: Iterator[ImageFile]) -> list[str]:
    return [file.path for file in files]


LOWER = (
    folder("./"),
    folder("bin/", mode=0o1777, uid=1, gid=2, mtime=77),
    member("bin/sh", content=b"lower sh", mode=0o4755, uid=3, gid=4, mtime=1234),
    link("bin/bash", "sh"),
    hard("bin/ash", "bin/sh"),
    member("etc/motd", content=b"welcome\n"),
    member("etc/gone", content=b"x"),
    member("etc/dir/old", content=b"x"),
    member("opaque/old", content=b"x"),
    member("dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("dev/sda", tarfile.BLKTYPE, devmajor=8, devminor=0),
    member("dev/fifo", tarfile.FIFOTYPE),
    link("abs", "/bin/sh"),
    link("up", "../../../../etc/motd"),
    link("loop", "loop"),
    link("dangling", "nowhere/else"),
    member("was-a-dir/file", content=b"x"),
    member("was-a-file", content=b"x"),
    member("bin-later", content=b""),
)
UPPER = (
    member("etc/.wh.gone"),
    member("etc/.wh.dir"),
    member("opaque/.wh..wh..opq"),
    member("opaque/new", content=b"new"),
    hard("lower-link", "etc/motd"),
    member("was-a-dir", content=b"now a file"),
    member("was-a-file/inside", content=b"x"),
    member(".wh..wh.plnk"),
    member("etc/motd", content=b"upper\n"),
)
MERGED = (
    "/ /abs /bin /bin/ash /bin/bash /bin/sh /bin-later /dangling /dev /dev/fifo /dev/null /dev/sda /etc /etc/motd /loop /lower-link "
    "/opaque /opaque/new /up /was-a-dir /was-a-file /was-a-file/inside"
).split()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    with Image.open(layout(tmp_path / "image", tar(*LOWER), tar(*UPPER))) as opened:
        yield opened


# ---- the merged view ----


def test_the_view_of_archives(image: Image) -> None:
    files = {file.path: file for file in image.files()}
    assert list(files) == MERGED
    assert files["/bin/sh"] == ImageFile(path="/bin/sh", type=FileType.FILE, mode=0o4755, uid=3, gid=4, size=8, mtime=1234)
    assert (files["/bin"].mode, files["/bin"].uid, files["/bin"].gid, files["/bin"].mtime) == (0o1777, 1, 2, 77)
    assert (files["/bin/bash"].type, files["/bin/bash"].target) == (FileType.SYMLINK, "sh")
    assert (files["/dev/null"].type, files["/dev/null"].device) == (FileType.CHARACTER_DEVICE, (1, 3))
    assert (files["/dev/sda"].type, files["/dev/sda"].device) == (FileType.BLOCK_DEVICE, (8, 0))
    assert files["/dev/fifo"].type is FileType.FIFO
    assert files["/etc"].mode == 0o755
    assert str(files["/bin/sh"]) == "-rwsr-xr-x 3/4            8 /bin/sh"
    assert str(files["/bin/bash"]).endswith(" /bin/bash -> sh")
    contents = {path: image.read_bytes(path) for path, file in files.items() if file.type is FileType.FILE}
    assert contents["/bin/ash"] == b"lower sh"
    assert contents["/lower-link"] == b"welcome\n"  # a hard link to the file of the lower layer
    assert contents["/etc/motd"] == b"upper\n"


def test_parts_of_the_view(image: Image) -> None:
    assert names(image.files("/bin")) == ["/bin", "/bin/ash", "/bin/bash", "/bin/sh"]
    assert names(image.files("bin/../etc/./motd")) == ["/etc/motd"]
    assert names(image.files("/", recursive=False)) == [path for path in MERGED if path.count("/") == 1]
    assert names(image.files("abs")) == ["/bin/sh"]


@pytest.mark.parametrize("kind", ["layout", "archive", "sif", "docker"])
def test_kinds_with_archives(kind: str, tmp_path: Path) -> None:
    created = OciImage()
    created.add([(tar(*LOWER), TAR_TYPE), (tar(*UPPER), TAR_TYPE)])
    path = write_docker(created, tmp_path / "image") if kind == "docker" else getattr(created, f"write_{kind}")(tmp_path / "image")
    with Image.open(path) as image:
        assert names(image.files()) == MERGED
        assert image.read_bytes("/up") == b"upper\n"


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("suffix", "pack"), [("+gzip", gzip.compress), ("+zstd", zstd)])
def test_compressed_archives(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    created = OciImage()
    plain = tar(member("a", content=bytes(3 << 20)), member("b", content=b"b"))
    created.add([(pack(plain), TAR_TYPE + suffix)], diff_ids=[f"sha256:{hashlib.sha256(plain).hexdigest()}"])
    with Image.open(created.write_layout(tmp_path / "image")) as image:
        assert [(file.path, file.size) for file in image.files()] == [("/", 0), ("/a", 3 << 20), ("/b", 1)]
        assert image.read_bytes("b") == b"b"
        assert image.read_bytes("a") == bytes(3 << 20)


def test_sparse_members(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar")
    with open(tmp_path / "holes", "wb") as file:
        file.write(b"begin")
        file.seek(1 << 20)
        file.write(b"middle")
        file.truncate(3 << 20)
    for form in ("gnu", "posix"):
        archive = tmp_path / f"{form}.tar"
        subprocess.run(["tar", "-cSf", archive, f"--format={form}", "-C", tmp_path, "holes"], check=True)
        with Image.open(layout(tmp_path / form, archive.read_bytes())) as image:
            assert image.read_bytes("holes") == (tmp_path / "holes").read_bytes()
            image.extract("holes", tmp_path / f"{form}.copy")
        copy = tmp_path / f"{form}.copy"
        assert copy.read_bytes() == (tmp_path / "holes").read_bytes()
        assert copy.stat().st_blocks <= (tmp_path / "holes").stat().st_blocks + 8


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "small").write_bytes(b"small\n")
    os.link(top / "small", top / "same")
    (top / "large").write_bytes(random.Random(1).randbytes(400_000) + b"end")
    with open(top / "holes", "wb") as file:
        file.truncate(1 << 20)
    (top / "sub" / "deep" / "file").write_bytes(b"deep")
    (top / "link").symlink_to("/sub/deep/file")
    with open(os.fsencode(top) + b"/latin-\xe9", "wb"):
        pass
    (top / "small").chmod(0o2750)
    return top


@needs_mksquashfs
@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "none"])
def test_squashfs(compression: str, tree: Path, tmp_path: Path) -> None:
    if compression == "zstd":
        pytest.importorskip("zstandard")
    options = ("-noI", "-noD", "-noF", "-noX") if compression == "none" else ("-comp", compression)
    path = squashfs(tmp_path / "image.sqfs", tree, "-all-root", "-p", "null c 0666 0 0 1 3", *options)
    with Image.open(path) as image:
        files = {file.path: file for file in image.files()}
        for file in files.values():
            assert (file.uid, file.gid) == (0, 0)
            source = Path(os.fsdecode(os.fsencode(tree) + os.fsencode(file.path)))
            if file.path == "/null":
                assert (file.type, file.device, file.mode) == (FileType.CHARACTER_DEVICE, (1, 3), 0o666)
                continue
            info = source.lstat()
            assert (file.mode, file.mtime) == (stat.S_IMODE(info.st_mode), int(info.st_mtime))
            if file.type is FileType.FILE:
                assert image.read_bytes(file.path) == source.read_bytes()
                assert file.size == info.st_size
        assert list(files) == [
            "/",
            "/holes",
            "/large",
            "/latin-\udce9",
            "/link",
            "/null",
            "/same",
            "/small",
            "/sub",
            "/sub/deep",
            "/sub/deep/file",
        ]
        assert image.read_bytes("link") == b"deep"
        left_out = image.extract("/", tmp_path / "copy")
        assert [file.path for file in left_out] == ["/null"]
    assert os.readlink(tmp_path / "copy" / "link") == "sub/deep/file"
    assert (tmp_path / "copy" / "link").read_bytes() == b"deep"
    assert (tmp_path / "copy" / "same").samefile(tmp_path / "copy" / "small")
    assert (tmp_path / "copy" / "large").read_bytes() == (tree / "large").read_bytes()


@needs_mksquashfs
def test_squashfs_layers(tree: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "sub").mkdir(parents=True)
    (upper / "sub" / "new").write_bytes(b"new")
    try:
        os.setxattr(upper / "sub", "trusted.overlay.opaque" if os.geteuid() == 0 else "user.overlay.opaque", b"y")
    except OSError:
        pytest.skip("the filesystem of the tests has no extended attributes")
    lower = squashfs(tmp_path / "lower.sqfs", tree).read_bytes()
    second = squashfs(tmp_path / "upper.sqfs", upper, "-p", "large c 0000 0 0 0 0").read_bytes()
    created = OciImage()
    created.add([(lower, SQUASHFS_TYPE), (second, SQUASHFS_TYPE)])
    with Image.open(created.write_sif(tmp_path / "image.sif")) as image:
        assert names(image.files()) == ["/", "/holes", "/latin-\udce9", "/link", "/same", "/small", "/sub", "/sub/new"]
        assert image.read_bytes("sub/new") == b"new"


@needs_mksquashfs
def test_a_sif_file(tree: Path, tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_partition(squashfs(tmp_path / "s", tree), kind=PartitionKind.PRIMARY_SYSTEM)
    builder.write(tmp_path / "image.sif")
    with Image.open(tmp_path / "image.sif") as image:
        assert image.read_bytes("/sub/deep/file") == b"deep"


def test_a_directory(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"of the host")
    (tree / "escape").symlink_to("../outside")
    with Image.open(tree) as image:
        assert "/sub/deep/file" in names(image.files())
        assert image.read_bytes("link") == b"deep"
        with pytest.raises(oci.ImagePathNotFound):
            image.read_bytes("escape")
        image.extract("sub", tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "file").read_bytes() == b"deep"


# ---- contents ----


@pytest.mark.parametrize(
    ("path", "number", "kind"),
    [
        ("/nothing", errno.ENOENT, oci.ImagePathNotFound),
        ("dangling", errno.ENOENT, oci.ImagePathNotFound),
        ("/etc/gone", errno.ENOENT, oci.ImagePathNotFound),
        ("/etc", errno.EISDIR, oci.ImagePathError),
        ("/dev/null", errno.EINVAL, oci.ImagePathError),
        ("/dev/fifo", errno.EINVAL, oci.ImagePathError),
        ("/etc/motd/x", errno.ENOTDIR, oci.ImagePathError),
        ("/loop", errno.ELOOP, oci.ImagePathError),
        ("/bin/sh", errno.EFBIG, oci.ImagePathError),
    ],
)
def test_what_cannot_be_read(path: str, number: int, kind: type[oci.ImagePathError], image: Image) -> None:
    with pytest.raises(kind) as caught:
        image.read_bytes(path, limit=6)
    assert caught.value.errno == number
    assert caught.value.filename == path
    assert str(caught.value).startswith(f"{image.name}: {path}: ")
    assert isinstance(caught.value, OSError)


def test_a_closed_image(image: Image) -> None:
    image.close()
    for call in (image.files, lambda: image.read_bytes("x"), lambda: image.extract("/", "x")):
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("kind", ["directory", "tar", pytest.param("squashfs", marks=needs_mksquashfs)])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_an_image_that_is_closed_while_its_files_are_yielded(tmp_path: Path, tree: Path, kind: str, taken: int) -> None:
    """The error is that of a closed file, also where another file has got the descriptor."""
    path = tree
    if kind == "tar":
        path = layout(tmp_path / "layout", tar(*LOWER))
    elif kind == "squashfs":
        path = squashfs(tmp_path / "image.sqfs", tree)
    image = Image.open(path)
    files = image.files()
    for _ in range(taken):
        next(files)
    image.close()
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="I/O operation on closed image"):
            next(files)
    finally:
        os.close(other)


@needs_mksquashfs
def test_an_image_that_another_thread_closes(tmp_path: Path, tree: Path) -> None:
    """A reader of foreign data does not take the error of a closed file for damage."""
    image = Image.open(squashfs(tmp_path / "image.sqfs", tree))
    view = image._files.view(1000, 1 << 30)
    image.close()
    with pytest.raises(ValueError, match="I/O operation on closed image"):
        view.read("/large", 1 << 30)


# ---- extraction ----


def test_extraction(image: Image, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    left_out = image.extract("/", tmp_path / "to" / "copy")
    copy = tmp_path / "to" / "copy"
    assert [file.path for file in left_out] == ["/dev/fifo", "/dev/null", "/dev/sda", "/up"]
    assert os.listdir(tmp_path / "to") == ["copy"]
    info = (copy / "bin" / "sh").stat()
    assert (stat.S_IMODE(info.st_mode) & 0o7700, info.st_mtime, info.st_nlink) == (0o700, 1234, 2)
    assert (info.st_uid, info.st_gid) == (os.geteuid(), os.getegid())
    assert (copy / "bin" / "ash").samefile(copy / "bin" / "sh")
    assert stat.S_IMODE((copy / "bin").stat().st_mode) & 0o7000 == 0
    assert (copy / "bin").stat().st_mtime == 77
    assert os.readlink(copy / "abs") == "bin/sh"
    assert os.readlink(copy / "dangling") == "nowhere/else"
    assert (copy / "etc" / "motd").read_bytes() == b"upper\n"


def test_extraction_of_one_file(image: Image, tmp_path: Path) -> None:
    assert image.extract("abs", tmp_path / "sh") == ()
    assert (tmp_path / "sh").read_bytes() == b"lower sh"
    assert stat.S_IMODE((tmp_path / "sh").stat().st_mode) & 0o7000 == 0
    with pytest.raises(oci.ImagePathError, match="a character device, not a regular file or directory"):
        image.extract("dev/null", tmp_path / "null")
    assert sorted(os.listdir(tmp_path)) == ["image", "sh"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("x", "x"),
        ("./x//y/", "x/y"),
        ("../top", "../top"),
        ("..", ".."),
        ("/usr/share/x", "../x"),
        ("/usr/share", ".."),
        ("../..", None),
        ("/etc/passwd", None),
        ("/usr/share/../../etc/passwd", None),
        ("x/../../../etc", None),
        ("/", None),
        ("", None),
        ("/usr/shared", None),
    ],
)
def test_links_stay_in_the_copy(target: str, expected: str | None, tmp_path: Path) -> None:
    with tar_image(tmp_path, link("usr/share/sub/link", target)) as image:
        left_out = image.extract("usr/share", tmp_path / "copy")
    assert [file.path for file in left_out] == ([] if expected else ["/usr/share/sub/link"])
    if expected:
        assert os.readlink(tmp_path / "copy" / "sub" / "link") == expected


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_never_over_a_file(make: Callable[[Path], object], image: Image, tmp_path: Path) -> None:
    make(tmp_path / "copy")
    before = os.lstat(tmp_path / "copy")
    for path in ("/", "etc/motd"):
        with pytest.raises(FileExistsError):
            image.extract(path, tmp_path / "copy")
    assert os.lstat(tmp_path / "copy") == before
    assert sorted(os.listdir(tmp_path)) == ["copy", "image"]


@pytest.mark.parametrize("path", ["/", "bin/sh"])
@pytest.mark.parametrize("failing", ["open", "mkdir", "utime", "rename", "rmdir", "ftruncate"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space left on device")])
def test_nothing_is_left(
    path: str, failing: str, error: BaseException, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(image.files())  # what is read of the image is read before
    (tmp_path / "to").mkdir()
    real, calls = getattr(os, failing), 0

    def fail(*args: Any, **options: Any) -> Any:
        nonlocal calls
        created = real(*args, **options)
        calls += 1
        if calls == (2 if failing in ("mkdir", "open") else 1):
            if failing == "open":
                os.close(created)
            monkeypatch.setattr(os, failing, real)
            raise error
        return created

    monkeypatch.setattr(os, failing, fail)
    if failing == "mkdir" and path == "bin/sh":
        calls = 1
    with pytest.raises(type(error)):
        image.extract(path, tmp_path / "to" / "copy")
    assert os.listdir(tmp_path / "to") == []


def test_a_file_that_appears_meanwhile(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.utime

    def utime(*args: Any, **options: Any) -> None:
        (tmp_path / "copy").write_bytes(b"other")
        real(*args, **options)

    monkeypatch.setattr(os, "utime", utime)
    for path in ("bin/sh", "bin"):
        with pytest.raises(FileExistsError):
            image.extract(path, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"other"
        assert sorted(os.listdir(tmp_path)) == ["copy", "image"]
        (tmp_path / "copy").unlink()


# ---- hostile images ----


def refused(call: Callable[[], object], error: type[Exception] = oci.ImageError) -> str:
    """Return the message of the error; memory, time and descriptors stay within bounds."""
    before, start = len(os.listdir("/proc/self/fd")), time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(error) as caught:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BOUND
    assert time.monotonic() - start < SECONDS
    assert len(os.listdir("/proc/self/fd")) == before
    return str(caught.value)


def everything(image: Image, **options: Any) -> int:
    """List an image and read all files in it. Return the number of files."""
    count = 0
    for file in image.files(**options):
        count += 1
        if file.type is FileType.FILE and file.size <= 1 << 20:
            image.read_bytes(file.path)
    return count


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([member("../x")], "does not have the path of a file below the root"),
        ([member("a/../../x")], "does not have the path of a file below the root"),
        ([hard("x", "../../etc/passwd")], "does not have the path of a file below the root"),
        ([hard("x", "nothing")], "is a hard link to 'nothing', which is not there"),
        ([folder("d"), hard("x", "d")], "is a hard link to a directory"),
        ([link("usr", "/etc"), member("usr/passwd")], "lies below a symlink"),
        ([member("a" * 300)], "is too long"),
        ([member("/".join("a" * 3000))], "is too long"),
        ([member("a/.wh.")], "hides nothing"),
        ([member("a/.wh...")], "hides nothing"),
        ([member("x", b"V")], "unknown type"),
        ([link("x", "a" * 5000)], "a target that is too long"),
    ],
)
def test_hostile_members(members: list[tuple[tarfile.TarInfo, bytes]], words: str, tmp_path: Path) -> None:
    with tar_image(tmp_path, *members) as image:
        assert words in refused(lambda: everything(image))
        assert words in refused(lambda: image.extract("/", tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["image"]


def test_absolute_and_duplicate_members(tmp_path: Path) -> None:
    with tar_image(
        tmp_path, member("/etc/passwd", content=b"1"), member("etc//passwd", content=b"22"), folder("etc", mode=0o700)
    ) as image:
        assert names(image.files()) == ["/", "/etc", "/etc/passwd"]
        assert image.read_bytes("/etc/passwd") == b"22"
        image.extract("/", tmp_path / "copy")
    assert (tmp_path / "copy" / "etc" / "passwd").read_bytes() == b"22"


def test_a_file_in_place_of_a_directory_and_back(tmp_path: Path) -> None:
    lower = tar(member("d/low", content=b"x"))
    upper = tar(member("d"), folder("d"), member("d/high"))
    with Image.open(layout(tmp_path / "image", lower, upper)) as image:
        assert names(image.files()) == ["/", "/d", "/d/high"]


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, "+gzip"), (zstd, "+zstd")])
def test_a_truncated_or_damaged_archive(pack: Callable[[bytes], bytes], suffix: str, tmp_path: Path) -> None:
    whole = pack(tar(member("a", content=random.Random(2).randbytes(9000)), member("b", content=b"b" * 600)))
    for size in (0, 100, 600, 5000, len(whole) // 2, len(whole) - 11500 if not suffix else len(whole) - 8):
        created = OciImage()
        created.add([(whole[:size], TAR_TYPE + suffix)])
        with Image.open(created.write_layout(tmp_path / f"{size}")) as image:
            assert f"layer {image.layers[0].digest}" in refused(lambda opened=image: everything(opened))  # type: ignore[misc]
    damaged = bytearray(whole)
    damaged[-900 if not suffix else 12] ^= 0xFF
    layout(tmp_path / "digest", whole, media_type=TAR_TYPE + suffix)
    (blob,) = (path for path in (tmp_path / "digest" / "blobs" / "sha256").iterdir() if path.read_bytes() == whole)
    blob.write_bytes(damaged)
    with Image.open(tmp_path / "digest") as image:
        refused(lambda: everything(image))
        refused(lambda: image.extract("/", tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


def test_digests(tmp_path: Path) -> None:
    plain = tar(member("a", content=b"a"))
    created = OciImage()
    created.add([(gzip.compress(plain), TAR_TYPE + "+gzip")], diff_ids=["sha256:" + "0" * 64])
    with Image.open(created.write_layout(tmp_path / "image")) as image:
        assert "decompressed: the content has the digest" in refused(lambda: everything(image))


def test_a_layer_that_changes(tmp_path: Path) -> None:
    content = tar(member("a", content=b"good"))
    path = layout(tmp_path / "image", content)
    with Image.open(path) as image:
        assert names(image.files()) == ["/", "/a"]
        (blob,) = (path for path in (path / "blobs" / "sha256").iterdir() if path.read_bytes() == content)
        blob.write_bytes(content.replace(b"good", b"evil"))
        assert "the image is damaged" in refused(lambda: image.read_bytes("a"))
        assert "the image is damaged" in refused(lambda: image.extract("/", tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["image"]


def test_bombs_in_archives(tmp_path: Path) -> None:
    def gz(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
        created = OciImage()
        plain = tar(*members, form=form)
        created.add([(gzip.compress(plain), TAR_TYPE + "+gzip")], diff_ids=[f"sha256:{hashlib.sha256(plain).hexdigest()}"])
        return created.write_layout(tmp_path / f"{len(os.listdir(tmp_path))}")

    with Image.open(gz(member("zeros", content=bytes(32 << 20)))) as image:
        assert "max_bytes=16777216" in refused(lambda: list(image.files(max_bytes=16 << 20)))
        assert "more than the limit of 67108" in refused(lambda: image.read_bytes("zeros", limit=67108))
        assert "max_bytes=34000000" not in str(names(image.files()))
        before = set(os.listdir(tmp_path))
        assert "max_bytes=16777216" in refused(lambda: image.extract("/", tmp_path / "copy", max_bytes=16 << 20))
        assert set(os.listdir(tmp_path)) == before
    with Image.open(gz(*(member(f"d{number // 100}/{number}") for number in range(5000)))) as image:
        assert "max_files=1000" in refused(lambda: list(image.files(max_files=1000)))
        assert len(names(image.files())) == 5051
        assert "max_files=1000" in refused(lambda: list(image.files(max_files=1000)))
        assert "max_files=1000" in refused(lambda: image.extract("/", tmp_path / "copy", max_files=1000))
    with Image.open(gz(member("x", pax_headers={"comment": "c" * (5 << 20)}))) as image:
        assert "a header is too large" in refused(lambda: everything(image))
    huge, _ = member("x")
    huge.size = 1 << 60
    with Image.open(layout(tmp_path / "huge", huge.tobuf(tarfile.GNU_FORMAT) + bytes(2048))) as image:
        refused(lambda: everything(image))
    chain = b"".join(pax_header({"comment": "x"}) for _ in range(5000))
    with Image.open(layout(tmp_path / "chain", chain + tar(member("x")))) as image:
        refused(lambda: everything(image))


def pax_header(values: dict[str, str]) -> bytes:
    return tarfile.TarInfo._create_pax_generic_header(values, tarfile.XHDTYPE, "utf-8")  # type: ignore[attr-defined,no-any-return]


def test_random_archives(tmp_path: Path) -> None:
    generator = random.Random(3)
    whole = bytearray(tar(*LOWER)[: 512 * 40])
    for number in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        with Image.open(layout(tmp_path / f"{number}", bytes(damaged))) as image:
            try:
                everything(image)
            except oci.ImageError:
                pass


# ---- hostile squashfs ----


@pytest.fixture
def patched(tmp_path: Path) -> Patched:
    top = tmp_path / "tree"
    (top / "one").mkdir(parents=True)
    (top / "two").mkdir()
    (top / "one" / "file").write_bytes(b"x" * 9000)
    (top / "link").symlink_to("target")
    return Patched(tmp_path / "image.sqfs", top, "-no-fragments")


@needs_mksquashfs
def test_loops_of_directories(patched: Patched, tmp_path: Path) -> None:
    root, one, two = (patched.inode(name) for name in ("/", "one", "two"))
    listing = patched.bytes[root + 16 : root + 28]
    for place in (one, two):  # both are the root again: 2 ** 256 paths
        patched.bytes[place + 16 : place + 28] = listing
    with patched.open() as image:
        refused(lambda: list(image.files(max_files=20_000)))
        refused(lambda: image.extract("/", tmp_path / "copy", max_files=5_000))
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))


@needs_mksquashfs
def test_sizes_in_a_squashfs(patched: Patched, tmp_path: Path) -> None:
    original = bytes(patched.bytes)
    root, link_, file = patched.inode("/"), patched.inode("link"), patched.inode("one/file")
    for place, value in (
        (root + 24, b"\xff\xff"),  # the size of a directory
        (root + 16, b"\xff\xff\xff\x7f"),  # where its listing begins
        (link_ + 20, b"\xff\xff\xff\x7f"),  # the size of a link
        (file + 28, b"\xff\xff\xff\xff"),  # the size of a file
        (file + 16, b"\xff\xff\xff\xff"),  # where its blocks begin
        (file + 32, b"\xff\xff\xff\xfe"),  # the size of its first block
        (file, b"\x2a\x00"),  # its type
        (26, b"\xff\xff"),  # the number of ids
        (12, b"\xff\xff\xff\x7f"),  # the size of a block
        (20, b"\x09\x00"),  # the compression
        (64, b"\xff" * 7 + b"\x7f"),  # where the inodes begin
    ):
        patched.bytes[:] = original
        patched.bytes[place : place + len(value)] = value
        with patched.open() as image:
            call = (lambda opened: lambda: (everything(opened), opened.read_bytes("one/file", limit=1 << 40)))(image)
            assert str(patched.path) in refused(call)
            refused(lambda opened=image: opened.extract("/", tmp_path / "copy", max_bytes=1 << 20))  # type: ignore[misc]
    assert not list(tmp_path.glob("*copy*"))


@needs_mksquashfs
def test_names_in_a_squashfs(patched: Patched) -> None:
    for name in (b"../", b"a/b", b"a\0b", b"one"):
        changed = bytearray(patched.bytes)
        patched.bytes[:] = patched.bytes.replace(b"two", name)
        with patched.open() as image:
            assert "a directory has the entry" in refused(lambda opened=image: everything(opened))  # type: ignore[misc]
        patched.bytes[:] = changed


@needs_mksquashfs
def test_a_bomb_in_a_squashfs(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * 4096)
    for what in ("data", "metadata"):
        patched = Patched(tmp_path / f"{what}.sqfs", tmp_path / "tree", "-no-fragments", "-noD", "-b", "1M")
        bomb = zlib.compress(bytes((160 if what == "data" else 16) << 20))
        place = len(patched.bytes)
        patched.bytes += (b"" if what == "data" else struct.pack("<H", len(bomb))) + bomb
        if what == "data":
            file = patched.inode("file")
            struct.pack_into("<I", patched.bytes, file + 16, place)
            struct.pack_into("<I", patched.bytes, file + 32, len(bomb))
        else:
            struct.pack_into("<Q", patched.bytes, 72, place)  # where the directories begin
        patched.bytes += bytes(4096 - len(patched.bytes) % 4096)
        with patched.open() as image:
            assert "decompresses to more than" in refused(lambda opened=image: everything(opened))  # type: ignore[misc]


@needs_mksquashfs
def test_random_squashfs(tree: Path, tmp_path: Path) -> None:
    generator = random.Random(4)
    path = squashfs(tmp_path / "whole", tree)
    plain = Patched(tmp_path / "plain", tree)
    for number in range(200):
        content = bytearray(path.read_bytes() if number % 2 else plain.path.read_bytes())
        start = 0 if number % 3 else struct.unpack_from("<Q", content, 64)[0]
        for _ in range(generator.choice((1, 4, 30))):
            content[generator.randrange(start, len(content))] = generator.randrange(256)
        (tmp_path / "damaged").write_bytes(content)
        try:
            with Image.open(tmp_path / "damaged") as image:
                everything(image, max_files=10_000)
        except (oci.ImageError, oci.UnsupportedError):
            pass


@needs_mksquashfs
def test_a_squashfs_without_its_digest(tree: Path, tmp_path: Path) -> None:
    content = squashfs(tmp_path / "s", tree).read_bytes()
    created = OciImage()
    created.add([(content, SQUASHFS_TYPE)])
    path = created.write_layout(tmp_path / "image")
    (blob,) = (blob for blob in (path / "blobs" / "sha256").iterdir() if blob.read_bytes() == content)
    blob.write_bytes(content[:-1] + b"\x01")
    with Image.open(path) as image:
        assert "the image is damaged" in refused(lambda: everything(image))


# ---- ext2, ext3 and ext4 ----

MKE2FS = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_mke2fs = pytest.mark.skipif(MKE2FS is None, reason="mke2fs is not installed")


def make_ext(path: Path, tree: Path, *options: str) -> Path:
    assert MKE2FS is not None
    subprocess.run([MKE2FS, "-q", "-F", "-d", tree, *options, path, "16M"], check=True, capture_output=True)
    return path


@pytest.fixture
def wide(tree: Path) -> Path:
    """The tree with more of what a filesystem stores in different ways."""
    (tree / "many").mkdir()
    for number in range(700):
        (tree / "many" / f"{number}{'n' * 100}").write_bytes(b"%d" % number)
    with open(tree / "holes", "wb") as file:
        for offset in (0, 100_000, 6 << 20):  # in a list of blocks of each level, if the blocks are small
            file.seek(offset)
            file.write(b"here")
        file.truncate(9 << 20)
    (tree / "long").symlink_to("t" * 200)
    os.setxattr(tree / "small", "user.one", b"\0\n")
    os.setxattr(tree / "large", "user.two", b"x" * 500)
    os.mkfifo(tree / "fifo")
    if os.geteuid() == 0:
        os.chown(tree / "sub", 70000, 3_000_000)
        os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
        os.mknod(tree / "disk", 0o60660, os.makedev(8, 70_000))
        os.setxattr(tree / "sub", "trusted.three", b"3")
    return tree


def described(path: Path, **options: Any) -> dict[str, tuple[object, ...]]:
    """Return what an image tells about its files, except the time of the root, which mke2fs does not take over."""
    found: dict[str, tuple[object, ...]] = {}
    with Image.open(path) as image:
        view = image._view(100_000, 1 << 30)
        for route in view.below(view.find("/"), leave_out=lambda route: route[-1][0] == "lost+found"):
            file, node = image_file(route), top_node(route)
            pieces = (
                [piece for _, pieces in node.tree.contents([node], view.budget) for piece in pieces] if file.type == "file" else []
            )
            attributes = {name: value for name, value in node.tree.attributes(node).items() if "selinux" not in name}
            time_of = file.mtime if file.path != "/" else 0
            ids = (file.mode, file.uid, file.gid) if file.path != "/" else ()
            found[file.path] = (file.type, ids, time_of, file.target, file.device, file.size, b"".join(pieces), attributes)
    return found


EXT = {
    "ext2": ("-t", "ext2"),
    "ext2 of small blocks": ("-t", "ext2", "-b", "1024"),
    "ext3": ("-t", "ext3"),
    "ext4": ("-t", "ext4"),
    "ext4 of small blocks": ("-t", "ext4", "-b", "1024"),
    "ext4 of small inodes": ("-t", "ext4", "-I", "128", "-O", "^64bit,^metadata_csum"),
}


@needs_mke2fs
@pytest.mark.parametrize("kind", EXT)
def test_ext(kind: str, wide: Path, tmp_path: Path) -> None:
    expected = described(wide)
    assert described(make_ext(tmp_path / "ext", wide, *EXT[kind])) == expected
    builder = SifBuilder()
    builder.add_partition(tmp_path / "ext", kind=PartitionKind.PRIMARY_SYSTEM, filesystem=Filesystem.EXT3)
    builder.write(tmp_path / "image.sif")
    assert described(tmp_path / "image.sif") == expected
    with Image.open(tmp_path / "image.sif") as image:
        assert image.read_bytes("/link") == b"deep"
        image.extract("/sub", tmp_path / "copy")
    assert (tmp_path / "copy" / "deep" / "file").read_bytes() == b"deep"


@needs_mke2fs
@pytest.mark.parametrize("feature", ["inline_data", "meta_bg,^resize_inode", "bigalloc"])
def test_features_of_ext_that_cannot_be_read(feature: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with Image.open(make_ext(tmp_path / "ext", tmp_path / "tree", "-t", "ext4", "-O", feature)) as image:
        message = refused(lambda: everything(image), oci.UnsupportedError)
    assert f"with {feature.partition(',')[0]} cannot be read without mounting it" in message


class PatchedExt:
    """An ext filesystem, to be changed in places."""

    def __init__(self, path: Path, tree: Path, *options: str) -> None:
        self.path = make_ext(path, tree, *options)
        self.bytes = bytearray(path.read_bytes())

    def inode(self, name: str) -> int:
        """Return where the inode of a file lies."""
        with Image.open(self.path) as image:
            node = top_node(image._view(1000, 1 << 30).find(name, follow=False))
            assert isinstance(node.tree, ExtTree)
            return self.bytes.index(node.tree._inode(node.location).raw)

    def block(self, name: str) -> int:
        """Return where the first block of a file or directory lies."""
        with Image.open(self.path) as image:
            node = top_node(image._view(1000, 1 << 30).find(name, follow=False))
            assert isinstance(node.tree, ExtTree)
            _, start, _ = next(node.tree._runs(node.tree._inode(node.location)))
            return start * node.tree._block

    def open(self, *changes: tuple[int, bytes]) -> Image:
        changed = bytearray(self.bytes)
        for place, value in changes:
            changed[place : place + len(value)] = value
        self.path.write_bytes(changed)
        return Image.open(self.path)


@needs_mke2fs
def test_a_hostile_ext(tree: Path, tmp_path: Path) -> None:
    ext4 = PatchedExt(tmp_path / "ext4", tree, "-t", "ext4", "-b", "1024")
    root, large, holes, link_, sub = (ext4.inode(name) for name in ("/", "large", "holes", "link", "sub"))
    entries, data = ext4.block("/"), ext4.block("large")
    index = struct.pack("<HHHHI", 0xF30A, 4, 4, 1, 0) + struct.pack("<IIHH", 0, data // 1024, 0, 0) * 4
    loop = struct.pack("<HHHHI", 0xF30A, 4, 4, 2, 0) + struct.pack("<IIHH", 0, data // 1024, 0, 0) * 4
    cases: dict[str, list[tuple[int, bytes]]] = {
        "no inodes in a group": [(1024 + 40, bytes(4))],
        "large blocks": [(1024 + 24, b"\x1e")],
        "small inodes": [(1024 + 88, b"\1\0")],
        "large inodes": [(1024 + 88, b"\xff\xff")],
        "large descriptors": [(1024 + 254, b"\xff\xff")],
        "a table elsewhere": [(2048 + 8, b"\xff\xff\xff\xff")],
        "a root that is a file": [(root, b"\xed\x81")],
        "a root of an unknown type": [(root, b"\xed\xf1")],
        "a huge directory": [(root + 4, b"\xff\xff\xff\xff"), (root + 108, b"\xff\xff\xff\x7f")],
        "a short entry": [(entries + 4, b"\4\0")],
        "a long entry": [(entries + 4, b"\0\x80")],
        "an entry without an end": [(entries + 4, b"\0\0")],
        "an inode that is not there": [(entries + 24, b"\xff\xff\xff\x7f")],
        "extents without their mark": [(large + 40, b"\0\0")],
        "many extents": [(large + 42, b"\xff\xff")],
        "a deep tree of extents": [(large + 46, b"\xff\xff")],
        "an extent elsewhere": [(large + 60, b"\xff\xff\xff\x7f")],
        "a tree of extents that contains itself": [(large + 40, index), (data, index)],
        "a tree of extents that contains itself on all levels": [(large + 40, loop), (data, loop)],
        "extents that are not in order": [
            (holes + 40, struct.pack("<HHHHI", 0xF30A, 2, 4, 0, 0) + struct.pack("<IHHI", 5, 1, 0, 9) * 2)
        ],
        "a block of attributes elsewhere": [(sub + 104, b"\xff\xff\xff\x7f")],
        "a block of attributes without its mark": [(sub + 104, struct.pack("<I", data // 1024))],
        "a link that is too long": [(link_ + 4, b"\xff\xff\xff\x7f")],
    }

    def attempt(changes: list[tuple[int, bytes]], call: Callable[[Image], object]) -> None:
        with ext4.open(*changes) as image:
            call(image)

    for what, changes in cases.items():
        message = refused(partial(attempt, changes, described_of))
        assert str(ext4.path) in message, what
        if "attributes" not in what:  # which are not extracted
            refused(partial(attempt, changes, lambda image: image.extract("/", tmp_path / "copy")))
    assert not list(tmp_path.glob("*copy*"))


def described_of(image: Image) -> None:
    """Read everything about all files."""
    everything(image)
    view = image._view(10_000, 1 << 30)
    for route in view.below(view.find("/")):
        top_node(route).tree.attributes(top_node(route))
    for name in ("large", "holes"):
        image.read_bytes(name)


@needs_mke2fs
def test_sizes_and_loops_in_an_ext(tree: Path, tmp_path: Path) -> None:
    ext2 = PatchedExt(tmp_path / "ext2", tree, "-t", "ext2", "-b", "1024")
    large, sub, entries, data = ext2.inode("large"), ext2.inode("sub"), ext2.block("sub"), ext2.block("large")
    huge = [(large + 4, b"\xff\xff\xff\xff"), (large + 108, b"\xff\xff\xff\x0f")]
    with ext2.open(*huge) as image:
        refused(lambda: image.read_bytes("large"), oci.ImagePathError)
        assert "max_bytes=" in refused(lambda: image.extract("/", tmp_path / "copy"))
    lists = [
        (large + 4, struct.pack("<I", 40 << 20)),
        (large + 88, struct.pack("<3I", *[data // 1024] * 3)),
        (data, struct.pack("<I", data // 1024) * 256),
    ]
    with ext2.open(*lists) as image:  # lists of blocks that contain themselves: 40 MiB of the same block
        assert len(image.read_bytes("large")) == 40 << 20
    number = struct.unpack_from("<I", ext2.bytes, entries)[0]  # of «.», the directory itself
    with ext2.open((entries + 24, struct.pack("<I", number))) as image:  # the first name in it too
        assert "too deep" in refused(lambda: everything(image))
    with ext2.open((entries + 24, struct.pack("<I", 2))) as image:  # or the root
        refused(lambda: list(image.files(max_files=5000)))
    for name in (b"d/ep", b"d\0ep", b"\0\0\0\0"):
        with ext2.open((ext2.bytes.index(b"deep", entries), name)) as image:
            assert "a directory has the entry" in refused(lambda opened=image: everything(opened))  # type: ignore[misc]
    assert sub


@needs_mke2fs
@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_random_ext(kind: str, tree: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    whole = make_ext(tmp_path / "whole", tree, *EXT[kind]).read_bytes()
    used = [place for place in range(1024, len(whole), 64) if any(whole[place : place + 64])][:3000]
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(generator.choice((1, 10, 100))):
            content[generator.choice(used) + generator.randrange(64)] = generator.randrange(256)
        (tmp_path / "damaged").write_bytes(content)
        try:
            with Image.open(tmp_path / "damaged") as image:
                everything(image, max_files=10_000)
        except (oci.ImageError, oci.UnsupportedError):
            pass


# ---- erofs ----

MKFS_EROFS = shutil.which("mkfs.erofs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_mkfs_erofs = pytest.mark.skipif(MKFS_EROFS is None, reason="mkfs.erofs is not installed")
EROFS = {
    "plain": (),
    "one time for all files": ("-T1234567",),
    "large inodes": ("-Eforce-inode-extended",),
    "without inline data": ("-Enoinline_data",),
    "shared attributes": ("-x1",),
    "chunks": ("--chunksize=4096",),
    "chunks with indexes": ("--chunksize=8192", "-Eforce-chunk-indexes"),
    "lz4": ("-zlz4",),
    "lz4 with full indexes": ("-zlz4", "-Elegacy-compress"),
    "lz4 in large extents": ("-zlz4hc", "-C65536"),
    "lz4 in large extents with full indexes": ("-zlz4hc", "-C65536", "-Elegacy-compress"),
    "lz4 with tails": ("-zlz4", "-Eztailpacking"),
    "lz4 with tails in large extents": ("-zlz4", "-Eztailpacking", "-C16384"),
    "deduplicated": ("-zlz4", "-Ededupe"),
    "lzma": ("-zlzma", "-C65536"),
    "deflate": ("-zdeflate", "-C16384"),
    "zstd": ("-zzstd", "-C16384"),
    "two algorithms": ("-zlz4:lzma", "-C16384"),
    "small blocks": ("-b1024", "-zlz4"),
    "small blocks that are not compressed": ("-b512",),
}


def make_erofs(path: Path, tree: Path, *options: str) -> Path:
    """Make an erofs; skip the test if mkfs.erofs does not have an option."""
    assert MKFS_EROFS is not None
    done = subprocess.run([MKFS_EROFS, *options, path, tree], capture_output=True, text=True, errors="replace")
    if done.returncode:
        pytest.skip(f"mkfs.erofs does not have {' '.join(options)}: {done.stderr[-200:]}")
    return path


def add_compressible(tree: Path) -> None:
    """Add files of which compression makes extents of all kinds."""
    generator = random.Random(7)
    noise = generator.randbytes(300_000)
    (tree / "noise").write_bytes(noise)
    (tree / "words").write_bytes(b" ".join(b"%d" % generator.randrange(500) for _ in range(200_000)))
    (tree / "zeros").write_bytes(bytes(3 << 20))
    (tree / "mixed").write_bytes(b"".join(noise[k * 5000 : k * 5000 + 3000] + b"abc" * (k * 700) for k in range(40)) + b"end")
    (tree / "again").write_bytes(noise[4096:200_000] + b"x" * 5001 + noise[:100_000])
    for size in (1, 4095, 4096, 4097, 8191, 65536, 65537):
        (tree / f"size{size}").write_bytes((b"%d," * (size // 4 + 1) % tuple(range(size // 4 + 1)))[:size])


@needs_mkfs_erofs
@pytest.mark.parametrize("kind", EROFS)
def test_erofs(kind: str, wide: Path, tmp_path: Path) -> None:
    add_compressible(wide)
    if kind == "zstd":
        pytest.importorskip("zstandard")
    created = make_erofs(tmp_path / "erofs", wide, *EROFS[kind])
    expected = described(wide)
    found = described(created)
    assert found.keys() == expected.keys()
    if kind == "one time for all files":
        assert {file[2] for file in found.values()} == {1234567, 0}
        expected = {path: (*file[:2], found[path][2], *file[3:]) for path, file in expected.items()}
    for path, file in expected.items():
        assert found[path] == file, path


class PatchedErofs:
    """An erofs, to be changed in places."""

    def __init__(self, path: Path, tree: Path, *options: str) -> None:
        self.path = make_erofs(path, tree, *options)
        self.bytes = path.read_bytes()

    def inode(self, name: str) -> Any:
        with Image.open(self.path) as image:
            node = top_node(image._view(10_000, 1 << 30).find(name, follow=False))
            assert isinstance(node.tree, ErofsTree)
            return node.tree._inode(node.location)

    def open(self, *changes: tuple[int, bytes]) -> Image:
        changed = bytearray(self.bytes)
        for place, value in changes:
            changed[place : place + len(value)] = value
        self.path.write_bytes(changed)
        return Image.open(self.path)


@needs_mkfs_erofs
@pytest.mark.parametrize("feature", [0x40, 0x80, 0x100, 0x8000])
def test_features_of_erofs_that_cannot_be_read(feature: int, tree: Path, tmp_path: Path) -> None:
    created = PatchedErofs(tmp_path / "erofs", tree)
    names = {0x40: "xattr_prefixes", 0x80: "48bit", 0x100: "metabox", 0x8000: "0x8000"}
    for call in (everything, lambda image: oci.build(image, tmp_path / "x.sif")):
        with created.open((1024 + 80, struct.pack("<I", feature))) as image:
            message = refused(partial(call, image), oci.UnsupportedError)
        assert f"an erofs with {names[feature]} cannot be read without mounting it" in message
    with created.open((1024 + 86, b"\1")) as image:
        message = refused(lambda: everything(image), oci.UnsupportedError)
    assert "an erofs with data in other files cannot be read" in message


@needs_mkfs_erofs
def test_fragments_of_erofs(tree: Path, tmp_path: Path) -> None:
    add_compressible(tree)
    created = make_erofs(tmp_path / "erofs", tree, "-zlz4", "-Efragments")
    if not created.read_bytes()[1024 + 80] & 0x20:
        pytest.skip("mkfs.erofs makes no fragments")
    with Image.open(created) as image:
        assert len(list(image.files())) > 5
        message = refused(lambda: image.extract("/", tmp_path / "copy"), oci.UnsupportedError)
    assert "an erofs with fragments cannot be read without mounting it" in message
    assert not (tmp_path / "copy").exists()


@needs_mkfs_erofs
def test_a_hostile_erofs(tree: Path, tmp_path: Path) -> None:
    """Each change raises a typed error, within bounded time and memory."""
    add_compressible(tree)
    plain = PatchedErofs(tmp_path / "plain", tree, "-Eforce-inode-extended")
    chunks = PatchedErofs(tmp_path / "chunks", tree, "--chunksize=4096", "-Eforce-inode-extended")
    lz4 = PatchedErofs(tmp_path / "lz4", tree, "-zlz4", "-Elegacy-compress", "-Eforce-inode-extended")
    root, link_, large = (plain.inode(name).attributes - 64 for name in ("/", "link", "noise"))
    words, chunked = lz4.inode("words"), chunks.inode("noise").attributes - 64
    index = words.end + -words.end % 8
    block = struct.unpack_from("<I", lz4.bytes, index + 16 + 4)[0] * 4096
    cases: dict[str, tuple[PatchedErofs, list[tuple[int, bytes]]]] = {
        "a root elsewhere": (plain, [(1024 + 14, b"\xff\xff")]),
        "inodes elsewhere": (plain, [(1024 + 40, b"\xff\xff\xff\xff")]),
        "directories in large blocks": (plain, [(1024 + 90, b"\1")]),
        "a root that is a file": (plain, [(root + 4, b"\xed\x81")]),
        "a root of an unknown type": (plain, [(root + 4, b"\xed\xf1")]),
        "an unknown layout": (plain, [(root, b"\x0f")]),
        "a huge directory": (plain, [(root + 8, b"\xff" * 7)]),
        "a directory elsewhere": (plain, [(root + 8, struct.pack("<Q", 8192)), (root + 16, b"\xff\xff\xff\x7f")]),
        "a link that is too long": (plain, [(link_ + 8, b"\xff\xff")]),
        "many attributes": (plain, [(root + 2, b"\xff\xff")]),
        "a file elsewhere": (plain, [(large + 16, b"\xff\xff\xff\x7f")]),
        "a chunk elsewhere": (chunks, [(chunks.inode("noise").end, b"\xfe" * 8)]),
        "chunks without an index": (chunks, [(chunked + 8, b"\xff" * 6)]),
        "compressed without an index": (lz4, [(words.attributes - 64 + 8, b"\xff" * 6)]),
        "an extent elsewhere": (lz4, [(index + 16 + 4, b"\xff\xff\xff\x7f")]),
        "an unknown algorithm": (lz4, [(index + 6, b"\x0f")]),
        "another algorithm": (lz4, [(index + 6, b"\x01")]),
        "deflate": (lz4, [(index + 6, b"\x02")]),
        "no first extent": (lz4, [(index + 16, b"\2\0")]),
        "extents that begin in another one": (lz4, [(index + 16 + 2, b"\xff\xff")]),
        "zeros that are compressed": (lz4, [(block, bytes(4096))]),
        "ones that are compressed": (lz4, [(block, b"\xff" * 4096)]),
        "a distance of zero": (lz4, [(block, bytes(4000) + b"\x1fa\0\0" * 24)]),
        "a distance to what lies before": (lz4, [(block, bytes(4000) + b"\x1fa\x10\0" * 24)]),
    }

    def attempt(case: tuple[PatchedErofs, list[tuple[int, bytes]]]) -> None:
        with case[0].open(*case[1]) as image:
            everything(image)
            for name in ("link", "noise", "words"):
                image.read_bytes(name)
            view = image._view(10_000, 1 << 30)
            for route in view.below(view.find("/")):
                top_node(route).tree.attributes(top_node(route))

    for what, case in cases.items():
        message = refused(partial(attempt, case))
        assert str(case[0].path) in message, what
    chain = [(place, b"\2\0") for place in range(index + 24, index + 24 + 8 * 300, 8)]  # one extent of a megabyte in a block
    with lz4.open(*chain) as image:
        refused(lambda: image.read_bytes("words"))


@needs_mkfs_erofs
def test_loops_and_names_in_an_erofs(tree: Path, tmp_path: Path) -> None:
    created = PatchedErofs(tmp_path / "erofs", tree)
    sub = created.inode("sub")
    entries = sub.end if sub.layout == 2 else sub.value * 4096
    itself, deep = struct.unpack_from("<QH", created.bytes, entries), created.bytes.index(b"deep", entries)
    places = [
        place for place in range(entries, deep, 12) if struct.unpack_from("<H", created.bytes, place + 8)[0] == deep - entries
    ]
    with created.open((places[0], struct.pack("<Q", itself[0]))) as image:  # the directory contains itself
        assert "too deep" in refused(lambda: everything(image))
    for name in (b"d/ep", b"\0eep"):
        with created.open((deep, name)) as image:
            refused(lambda opened=image: everything(opened))  # type: ignore[misc]
    for start in (b"\0\0", b"\1\0", b"\xff\xff"):
        with created.open((entries + 8, start)) as image:
            refused(lambda opened=image: everything(opened))  # type: ignore[misc]


@needs_mkfs_erofs
@pytest.mark.parametrize("kind", ["plain", "chunks with indexes", "lz4 in large extents", "lz4 with tails", "lzma"])
def test_random_erofs(kind: str, tree: Path, tmp_path: Path) -> None:
    generator = random.Random(5)
    (tree / "words").write_bytes(b" ".join(b"%d" % generator.randrange(500) for _ in range(20_000)))
    whole = make_erofs(tmp_path / "whole", tree, *EROFS[kind]).read_bytes()
    used = [place for place in range(1024, len(whole), 64) if any(whole[place : place + 64])][:300]
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(generator.choice((1, 10, 100))):
            content[generator.choice(used) + generator.randrange(64)] = generator.randrange(256)
        (tmp_path / "damaged").write_bytes(content)
        with suppress(oci.ImageError, oci.UnsupportedError), Image.open(tmp_path / "damaged") as image:
            everything(image, max_files=10_000)
            image.extract("/", tmp_path / "copy", max_bytes=64 << 20)
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)


# ---- every kind ----


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


Hostile = tuple[Callable[[], bytes], Callable[[bytes], bytes], str, dict[str, Any]]
"""An archive, its compression, words of the error, and limits."""


def cut(pack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: pack(content)[:4096]


def zeros() -> bytes:
    return tar(member("zeros", content=bytes(40 << 20)))


def noise() -> bytes:
    return tar(member("x", content=random.Random(1).randbytes(9000)))


HOSTILE_LAYERS: dict[str, Hostile] = {
    "..": (lambda: tar(member("a/../../x")), bytes, "does not have the path of a file below the root", {}),
    "below a link": (lambda: tar(link("usr", "/etc"), member("usr/passwd")), bytes, "lies below a symlink", {}),
    "a hard link out": (lambda: tar(hard("x", "../../x")), bytes, "does not have the path of a file below the root", {}),
    "an absolute hard link": (lambda: tar(hard("x", "/etc/passwd")), gz, "which is not there", {}),
    "many members": (lambda: tar(*(member(f"{number}") for number in range(3000))), gz, "max_files=1000", {"max_files": 1000}),
    "large members": (zeros, bytes, "max_bytes=16777216", {"max_bytes": 16 << 20}),
    "gzip bomb": (zeros, gz, "max_bytes=16777216", {"max_bytes": 16 << 20}),
    "zstd bomb": (zeros, zstd, "max_bytes=16777216", {"max_bytes": 16 << 20}),
    "a large header": (lambda: tar(member("x", pax_headers={"comment": "c" * (5 << 20)})), gz, "a header is too large", {}),
    "truncated": (noise, cut(bytes), "", {}),
    "truncated gzip": (noise, cut(gz), "", {}),
    "truncated zstd": (noise, cut(zstd), "", {}),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("what", HOSTILE_LAYERS)
def test_a_hostile_layer_in_every_kind(kind: ImageKind, what: str, tmp_path: Path) -> None:
    """No way to read an image depends on its kind: all of them refuse, within bounds, and leave nothing."""
    write, pack, words, limits = HOSTILE_LAYERS[what]
    plain = write()
    layer = pack(plain)
    suffix = "+gzip" if layer[:2] == b"\x1f\x8b" else "+zstd" if layer[:4] == b"\x28\xb5\x2f\xfd" else ""
    created = OciImage()
    digest = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    created.add([(tar(member("first", content=b"x")), TAR_TYPE), (layer, TAR_TYPE + suffix)], diff_ids=[FIRST_DIGEST, digest])
    path = WRITERS[kind](created, tmp_path / "image")
    for call in (
        lambda image: list(image.files(**limits)),
        lambda image: image.read_bytes("first", **limits),
        lambda image: image.extract("/", tmp_path / "copy", **limits),
        lambda image: oci.build(image, tmp_path / "x.sif", **limits),
        lambda image: oci.build(image, tmp_path / "x.sif", format="oci-sif", **limits),
    ):
        with Image.open(path) as image:
            message = refused(lambda call=call, image=image: call(image))  # type: ignore[misc]
        assert words in message
        assert str(path) in message
        assert os.listdir(tmp_path) == ["image"]
    with Image.open(path) as image:
        assert words in refused(lambda: image.unpack(tmp_path / "root", privileged=os.geteuid() == 0, **limits))


FIRST_DIGEST = f"sha256:{hashlib.sha256(tar(member('first', content=b'x'))).hexdigest()}"
MEASURED = """
import json, resource, sys
import ociruntime as oci
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with oci.Image.open(sys.argv[1]) as image:
    count = sum(1 for _ in image.files())
    try:
        image.extract("/", sys.argv[2], max_bytes=64 << 20)
    except oci.ImageError:
        count = -count
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", [*WRITERS, "squashfs", "ext", pytest.param("erofs", marks=needs_mkfs_erofs)])
def test_the_memory_for_a_bomb(kind: str, tmp_path: Path) -> None:
    """A process reads an image that is 300 MiB of zeros, and is smaller than that by far."""
    if kind in WRITERS:
        zeros = io.BytesIO()
        item, _ = member("zeros")
        item.size = 300 << 20
        hashed = hashlib.sha256()
        with gzip.GzipFile(fileobj=zeros, mode="wb", compresslevel=1) as packed:
            for piece in (item.tobuf(tarfile.GNU_FORMAT), *[bytes(1 << 20)] * 300, bytes(1024)):
                packed.write(piece)
                hashed.update(piece)
        created = OciImage()
        created.add([(zeros.getvalue(), TAR_TYPE + "+gzip")], diff_ids=[f"sha256:{hashed.hexdigest()}"])
        path = WRITERS[ImageKind(kind)](created, tmp_path / "image")
    else:
        (tmp_path / "tree").mkdir()
        with open(tmp_path / "tree/zeros", "wb") as file:
            file.truncate(300 << 20)
        if shutil.which("mksquashfs") is None or MKE2FS is None:
            pytest.skip("no squashfs-tools or e2fsprogs")
        path = tmp_path / "image"
        if kind == "erofs":
            make_erofs(path, tmp_path / "tree", "-zlz4")
        elif kind == "squashfs":
            squashfs(path, tmp_path / "tree")
        else:
            make_ext(path, tmp_path / "tree")
    command = [sys.executable, "-P", "-c", MEASURED, str(path), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, kibibytes = map(int, done.stdout.split())
    assert count in (-2, -3)  # with lost+found; the extraction was refused
    assert kibibytes < 64 << 10
    assert sorted(os.listdir(tmp_path)) == sorted({"image", "tree"} & set(os.listdir(tmp_path)))


# ---- what is not supported ----


@needs_mksquashfs
def test_without_the_library(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PySquashfsImage", None)
    monkeypatch.delitem(sys.modules, "ociruntime.image.squashfs", raising=False)
    with (
        Image.open(squashfs(tmp_path / "s", tree)) as image,
        pytest.raises(oci.UnsupportedError, match=r"pip install 'ociruntime\[images\]'"),
    ):
        image.read_bytes("small")


# ---- the command line ----


def test_the_command(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tree / "out").symlink_to("../../etc/passwd")
    assert main(["image", "ls", "tree", "sub"]) == 0
    lines = capfdbinary.readouterr().out.decode().splitlines()
    assert [line.split()[-1] for line in lines] == ["/sub", "/sub/deep"]
    assert main(["image", "ls", "-R", "--json", "tree"]) == 0
    assert b'"path": "/sub/deep/file"' in capfdbinary.readouterr().out
    assert main(["image", "cat", "tree", "small"]) == 0
    assert capfdbinary.readouterr().out == b"small\n"
    assert main(["image", "cat", "--limit", "3", "tree", "small"]) == 1
    assert capfdbinary.readouterr().err == b"ociruntime: tree: small: 6 bytes are more than the limit of 3\n"
    assert main(["image", "extract", "tree", "-o", "copy"]) == 0
    assert capfdbinary.readouterr().err.endswith(b" are left out: /out\n")
    assert main(["image", "extract", "tree", "sub/deep", "--max-bytes", "-1"]) == 0
    assert (tmp_path / "deep" / "file").read_bytes() == (tmp_path / "copy" / "sub" / "deep" / "file").read_bytes()
    assert main(["image", "extract", "tree", "sub/deep"]) == 1
    assert b"deep: file exists" in capfdbinary.readouterr().err


def test_the_data_of_an_object(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    builder = SifBuilder()
    builder.add_definition("Bootstrap: scratch\n")
    builder.write(tmp_path / "image.sif")
    assert main(["sif", "dump", "1", str(tmp_path / "image.sif")]) == 0
    assert capfdbinary.readouterr().out == b"Bootstrap: scratch\n"
    assert main(["sif", "dump", "7", str(tmp_path / "image.sif")]) == 1
    assert b"has no object 7" in capfdbinary.readouterr().err
