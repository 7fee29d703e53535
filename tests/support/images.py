"""Images of every kind, made without other programs than those that make a filesystem."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ociruntime.engine.trees import remove_tree
from ociruntime.image import Image
from ociruntime.image.sif import SifBuilder

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
TAR_TYPE = "application/vnd.oci.image.layer.v1.tar"
SQUASHFS_TYPE = "application/vnd.sylabs.image.layer.v1.squashfs"
EXT3_TYPE = "application/vnd.sylabs.image.layer.v1.ext3"


def make_busybox_tree(rootfs: Path) -> bool:
    """Make a root filesystem of busybox alone. Return whether the machine has one."""
    busybox = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(p)), None)
    if busybox is None:
        return False
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy(busybox, rootfs / "bin/busybox")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (rootfs / "bin" / applet).symlink_to("busybox")
    for name in ("etc", "tmp", "root"):
        (rootfs / name).mkdir()
    (rootfs / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    return True


@contextmanager
def small_filesystem(path: Path, size: str) -> Iterator[Path]:
    """Mount a filesystem with little space for the block. Needs root."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_of_tree(tree: Path, *, opaque: Sequence[str] = ()) -> bytes:
    """Return a tar archive of a directory, in which the whiteouts of an overlay are those of an OCI layer.

    Args:
        tree: the directory.
        opaque: the directories in it that hide those of the lower layers.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in (tree, *sorted(tree.rglob("*"))):
            name = path.relative_to(tree)
            info = path.lstat()
            if stat.S_ISCHR(info.st_mode) and info.st_rdev == 0:
                archive.addfile(tarfile.TarInfo(f"{name.parent}/.wh.{name.name}"))
                continue
            member = archive.gettarinfo(path, str(name))
            member.pax_headers = {
                f"SCHILY.xattr.{attribute}": os.getxattr(path, attribute, follow_symlinks=False).decode("utf-8", "surrogateescape")
                for attribute in os.listxattr(path, follow_symlinks=False)
            }
            with path.open("rb") if member.isreg() else nullcontext() as content:
                archive.addfile(member, content)
        for name_of_directory in opaque:
            archive.addfile(tarfile.TarInfo(f"{name_of_directory}/.wh..wh..opq"))
    return buffer.getvalue()


class OciImage:
    """The blobs of an OCI image, which grows with each `add`, and the files that hold them."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, content: bytes, media_type: str, **members: Any) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **members}

    def document(self, document: object, media_type: str, **members: Any) -> dict[str, Any]:
        return self.blob(json.dumps(document).encode(), media_type, **members)

    def add(
        self,
        layers: list[tuple[bytes, str]],
        *,
        name: str | None = None,
        architecture: str = "amd64",
        config: Mapping[str, Any] | None = None,
        platform: bool = True,
        diff_ids: list[str] | None = None,
    ) -> dict[str, Any]:
        """Add an image of layers, each its content and media type; return the descriptor of its manifest.

        Compressed layers need their ``diff_ids``, the digests of what is compressed.
        """
        configuration = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids or [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer, _ in layers],
            },
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.document(configuration, CONFIG_TYPE),
            "layers": [self.blob(*layer) for layer in layers],
        }
        members: dict[str, Any] = {}
        if platform:
            members["platform"] = {"architecture": architecture, "os": "linux"}
        if name is not None:
            members["annotations"] = {"org.opencontainers.image.ref.name": name}
        item = self.document(manifest, MANIFEST_TYPE, **members)
        self.manifests.append(item)
        return item

    @property
    def index(self) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.manifests}).encode()

    def files(self) -> dict[str, bytes]:
        """Return the files of an OCI image layout."""
        blobs = {f"blobs/{digest.replace(':', '/')}": content for digest, content in self.blobs.items()}
        return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": self.index, **blobs}

    def write_layout(self, path: Path) -> Path:
        for name, content in self.files().items():
            file = path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return path

    def write_archive(self, path: Path) -> Path:
        path.write_bytes(tar_of(self.files()))
        return path

    def write_docker_archive(self, path: Path, name: str) -> Path:
        """Write the only image as ``docker save`` does."""
        (item,) = self.manifests
        manifest = json.loads(self.blobs[item["digest"]])
        files = {f"{number}/layer.tar": self.blobs[layer["digest"]] for number, layer in enumerate(manifest["layers"])}
        entry = {"Config": "config.json", "RepoTags": [name], "Layers": list(files)}
        documents = {"config.json": self.blobs[manifest["config"]["digest"]], "manifest.json": json.dumps([entry]).encode()}
        path.write_bytes(tar_of(files | documents))
        return path

    def write_sif(self, path: Path) -> Path:
        """Write an OCI-SIF file."""
        builder = SifBuilder()
        for digest, content in self.blobs.items():
            builder.add_oci_blob(content, digest=digest)
        builder.add_oci_root_index(self.index, digest=f"sha256:{hashlib.sha256(self.index).hexdigest()}")
        builder.write(path)
        return path


def squashfs(path: Path, tree: Path, *options: str) -> Path:
    """Make a squashfs of a tree, and return its path."""
    command = ["mksquashfs", str(tree), str(path), "-noappend", "-quiet", "-no-progress", *options]
    subprocess.run(command, check=True, capture_output=True)
    return path


class Patched:
    """A squashfs whose metadata is not compressed, to be changed in places."""

    def __init__(self, path: Path, tree: Path, *options: str) -> None:
        squashfs(path, tree, "-noI", "-noX", "-b", "4096", "-all-root", *options)
        self.path = path
        self.bytes = bytearray(path.read_bytes())

    def inode(self, name: str) -> int:
        """Return where the inode of a file lies."""
        with Image.open(self.path) as image:
            view = image._files.view(1000, 1 << 20)
            block, offset = view.find(name, follow=False)[-1][1][0].location
        start: int = struct.unpack_from("<Q", self.bytes, 64)[0] + block
        assert struct.unpack_from("<H", self.bytes, start)[0] & 0x8000
        return start + 2 + int(offset)

    def open(self) -> Image:
        self.path.write_bytes(self.bytes)
        return Image.open(self.path)


HOSTILE = ("copies", "depth", "inodes", "loops", "overlong block", "overlong file")
"""The kinds of `hostile_sif`."""
COPIES = 16
COPY_SIZE = 2 << 20
LEVELS = 1100
"""More than Python's limit of recursion."""


def hostile_sif(kind: str, busybox_rootfs: Path, path: Path) -> Path:
    """Make a SIF file with a squashfs that tries to exhaust or mislead its readers. Return its path.

    Beside a shell, it has the directory ``/one`` with a file.

    Args:
        kind: ``copies`` is a file that is there many times and stored once, ``depth`` has nested directories, ``inodes`` says that it has
            2**32 - 1 files, ``loops`` has directories that are their own parents, and the others have a size that is too large.
    """
    tree = path.with_suffix(".tree")
    for name in ("bin", "one/below", "proc", "dev", "sys", "tmp", "etc"):
        (tree / name).mkdir(parents=True)
    shutil.copy(busybox_rootfs / "bin/busybox", tree / "bin")
    for name in ("sh", "find", "md5sum", "wc", "cat"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "one/file").write_bytes(b"x" * 9000)
    for number in range(COPIES if kind == "copies" else 0):
        (tree / f"one/{number}").write_bytes(b"x" * COPY_SIZE)
    if kind == "depth":
        for level in range(1, LEVELS + 1):
            os.mkdir(f"{tree}/one{'/d' * level}")
    patched = Patched(path.with_suffix(".squashfs"), tree, "-no-fragments")
    remove_tree(str(tree))
    file = patched.inode("one/file")
    if kind == "inodes":
        struct.pack_into("<I", patched.bytes, 4, 0xFFFFFFFF)
    elif kind == "loops":
        root, below = patched.inode("/"), patched.inode("one/below")
        patched.bytes[below + 16 : below + 28] = patched.bytes[root + 16 : root + 28]
    elif kind == "overlong block":
        struct.pack_into("<I", patched.bytes, file + 32, 0xFEFFFFFF)
    elif kind == "overlong file":
        struct.pack_into("<I", patched.bytes, file + 28, 0xFFFFFFFF)
    patched.path.write_bytes(patched.bytes)
    builder = SifBuilder()
    builder.add_partition(patched.path)
    builder.write(path)
    return path
