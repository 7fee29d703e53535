"""Images as root filesystems on disk: all that is kept, and what a hostile image tries."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.images import TAR_TYPE, OciImage

Add = Callable[..., None]
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away and makes devices")


def member(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    created = tarfile.TarInfo(name)
    created.type, created.size = kind, len(content)
    for key, value in attributes.items():
        setattr(created, key, value)
    return created, content


def image_of(path: Path, *layers: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    """Write an OCI layout with layers of these members."""
    contents = []
    for members in layers:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for created, content in members:
                archive.addfile(created, io.BytesIO(content))
        contents.append((buffer.getvalue(), TAR_TYPE))
    image = OciImage()
    image.add(contents)
    return image.write_layout(path)


def unpack(layout: Path, to: Path, *, privileged: bool = False) -> Path:
    with oci.Image.open(layout) as image:
        image.unpack(to, privileged=privileged)
    return to


ATTRIBUTES = {
    "SCHILY.xattr.user.kept": "x",
    "SCHILY.xattr.trusted.kept": "y",
    "SCHILY.xattr.trusted.overlay.redirect": "/etc",
    "SCHILY.xattr.security.selinux": "system_u:object_r:init_exec_t:s0",
}
MEMBERS = [
    member("bin", tarfile.DIRTYPE, mode=0o555, mtime=1000),
    member("bin/su", content=b"su", mode=0o4755, uid=3, gid=4, mtime=2000, pax_headers=ATTRIBUTES),
    member("bin/same", tarfile.LNKTYPE, linkname="bin/su"),
    member("secret", content=b"s", mode=0),
    member("absolute", tarfile.SYMTYPE, linkname="/etc/passwd", uid=5),
    member("up", tarfile.SYMTYPE, linkname="../../../../etc/passwd"),
    member("fifo", tarfile.FIFOTYPE, mode=0o640),
    member("null", tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
    member("n" * 250, content=b"long"),
    member("/".join(["d" * 100] * 20) + "/deep", content=b"deep"),
    member("twice", content=b"one"),
    member("twice", content=b"two", pax_headers={"SCHILY.xattr.user.overlay.opaque": "y"}),
]


@pytest.mark.parametrize("privileged", [False, pytest.param(True, marks=root)])
def test_what_is_kept(tmp_path: Path, privileged: bool) -> None:
    created = unpack(image_of(tmp_path / "layout", MEMBERS), tmp_path / "to", privileged=privileged)
    su = (created / "bin/su").stat()
    assert (su.st_uid, su.st_gid) == ((3, 4) if privileged else (os.geteuid(), os.getegid()))
    assert stat.S_IMODE(su.st_mode) == (0o4755 if privileged else 0o755)
    assert (su.st_mtime, (created / "bin").stat().st_mtime) == (2000, 1000)
    assert stat.S_IMODE((created / "bin").stat().st_mode) == 0o555
    found = {name: os.getxattr(created / "bin/su", name) for name in os.listxattr(created / "bin/su")}
    assert found.pop("security.selinux", b"").find(b"init_exec_t") < 0  # a label is that of the host
    assert found == {"user.kept": b"x"} | ({"trusted.kept": b"y"} if privileged else {})
    assert (created / "bin/same").stat().st_ino == su.st_ino
    assert stat.S_IMODE((created / "secret").stat().st_mode) == 0
    assert os.readlink(created / "absolute") == "/etc/passwd"
    assert os.readlink(created / "up") == "../../../../etc/passwd"
    assert stat.S_ISFIFO((created / "fifo").lstat().st_mode)
    assert (created / "null").exists() == privileged
    assert (created / ("n" * 250)).read_text() == "long"
    assert (created / "/".join(["d" * 100] * 20) / "deep").read_text() == "deep"
    assert (created / "twice").read_text() == "two"
    assert os.listxattr(created / "twice") == []


HOSTILE = {
    "..": [member("../out", content=b"x")],
    ".. inside": [member("a/../../out", content=b"x")],
    "below a link": [member("link", tarfile.SYMTYPE, linkname=".."), member("link/out", content=b"x")],
    "below an absolute link": [member("link", tarfile.SYMTYPE, linkname="/tmp"), member("link/out", content=b"x")],
    "hard link": [member("out", tarfile.LNKTYPE, linkname="../layout/index.json")],
    "absolute hard link": [member("out", tarfile.LNKTYPE, linkname="/etc/passwd")],
    "hard link through a link": [
        member("link", tarfile.SYMTYPE, linkname="/etc"),
        member("out", tarfile.LNKTYPE, linkname="link/passwd"),
    ],
    "sparse bomb": [
        member(
            "bomb",
            pax_headers={
                "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "bomb", "GNU.sparse.size": str(1 << 50),
                "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,0",
            },
        )
    ],
    "too deep": [member("/".join(["d"] * 400), content=b"x")],
    "no target": [member("link", tarfile.SYMTYPE, linkname="")],
    "hides nothing": [member(".wh...", content=b"")],
}  # fmt: skip


@pytest.mark.parametrize("privileged", [False, pytest.param(True, marks=root)])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive(tmp_path: Path, kind: str, privileged: bool) -> None:
    layout = image_of(tmp_path / "layout", [member("first", content=b"x")], HOSTILE[kind])
    with pytest.raises(oci.ImageError, match=r"layout: "):
        unpack(layout, tmp_path / "to", privileged=privileged)
    assert sorted(os.listdir(tmp_path)) in (["layout"], ["layout", "to"])
    assert not [path for path in (tmp_path / "to").rglob("*") if path.name in ("out", "bomb")]


@root
@pytest.mark.parametrize(
    "made", [member("x", uid=1 << 33), member("x", gid=-5), member("x", tarfile.CHRTYPE, devmajor=1 << 20, devminor=1)]
)
def test_numbers_that_no_file_has(tmp_path: Path, made: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(oci.ImageError, match="layout: "):
        unpack(image_of(tmp_path / "layout", [made]), tmp_path / "to", privileged=True)


def test_a_member_with_an_absolute_path_stays_inside(tmp_path: Path) -> None:
    created = unpack(image_of(tmp_path / "layout", [member("/etc/inside", content=b"x")]), tmp_path / "to")
    assert (created / "etc/inside").read_bytes() == b"x"


def test_limits(tmp_path: Path) -> None:
    layout = image_of(tmp_path / "layout", [member(str(number), content=bytes(1000)) for number in range(50)])
    for limits in ({"max_files": 20}, {"max_bytes": 20_000}):
        with oci.Image.open(layout) as image, pytest.raises(oci.ImageError, match=f"than the limit {next(iter(limits))}="):
            image.unpack(tmp_path / "to", privileged=False, **limits)


def test_a_layer_that_is_truncated(tmp_path: Path) -> None:
    layout = image_of(tmp_path / "layout", [member("x", content=bytes(100_000))])
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    with oci.Image.open(layout) as image:
        os.truncate(blob, 50_000)
        with pytest.raises(oci.ImageError, match="the file became shorter while it was open"):
            image.unpack(tmp_path / "to", privileged=False)


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    with pytest.raises(FileExistsError):
        unpack(image_of(tmp_path / "layout", MEMBERS), tmp_path / "to")
    assert os.listdir(tmp_path / "to") == []
