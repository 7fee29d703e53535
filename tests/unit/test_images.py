"""`Image.open`: every kind is recognised by its content, and what is damaged or not an image is refused by a typed error."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.image import Image, ImageKind, LayerFormat, LayerRole
from ociruntime.image.oci import host_platform
from ociruntime.image.sif import Filesystem, PartitionKind, SifBuilder

from ..support.images import EXT3_TYPE, SQUASHFS_TYPE, TAR_TYPE, OciImage, tar_of

HOST = host_platform().architecture
FOREIGN = "s390x" if HOST != "s390x" else "amd64"
LAYER = tar_of({"etc/hostname": b"one\n"})
MEMORY_BOUND = 64 << 20


def squashfs(size: int = 4096) -> bytes:
    """The superblock of a squashfs 4.0 of a size, and zeros."""
    head = bytearray(size)
    head[:4] = b"hsqs"
    struct.pack_into("<HHQQ", head, 28, 4, 0, 0, size)
    return bytes(head)


def ext(size: int = 64 << 10, *, compatible: int = 4, incompatible: int = 2) -> bytes:
    """The superblock of an ext3 of 1 KiB blocks, and zeros."""
    head = bytearray(size)
    struct.pack_into("<I", head, 1024 + 4, size >> 10)
    head[1080:1082] = b"\x53\xef"
    struct.pack_into("<III", head, 1024 + 92, compatible, incompatible, 0)
    return bytes(head)


def erofs(size: int = 16 << 10) -> bytes:
    head = bytearray(size)
    head[1024:1028] = b"\xe2\xe1\xf5\xe0"
    head[1036] = 12
    struct.pack_into("<I", head, 1024 + 36, size >> 12)
    struct.pack_into("<I", head, 1024 + 80, 0x80)  # a feature without which it cannot be read
    return bytes(head)


def file_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path, **options: Any) -> str:
    """Return the message of the ImageError; memory and descriptors stay within bounds."""
    before = len(os.listdir("/proc/self/fd"))
    tracemalloc.start()
    try:
        with pytest.raises(oci.ImageError) as caught:
            Image.open(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BOUND
    assert len(os.listdir("/proc/self/fd")) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def two_layers() -> OciImage:
    image = OciImage()
    image.add(
        [(LAYER, TAR_TYPE), (gzip.compress(LAYER), f"{TAR_TYPE}+gzip")], name="first", architecture=HOST, config={"Cmd": ["sh"]}
    )
    return image


# ---- kinds ----


@pytest.mark.parametrize(
    ("content", "layer_format", "name"),
    [
        (squashfs(), LayerFormat.SQUASHFS, "squashfs"),
        (ext(), LayerFormat.EXT, "ext3"),
        (ext(compatible=0), LayerFormat.EXT, "ext2"),
        (ext(incompatible=0x42), LayerFormat.EXT, "ext4"),
        (erofs(), LayerFormat.EROFS, "erofs"),
    ],
)
def test_a_bare_filesystem(tmp_path: Path, content: bytes, layer_format: LayerFormat, name: str) -> None:
    with Image.open(file_of(tmp_path / "image", content)) as image:
        assert image.kind is ImageKind.FILESYSTEM
        (layer,) = image.layers
        assert (layer.format, layer.filesystem, layer.offset, layer.size) == (layer_format, name, 0, len(content))
        assert (image.architecture, image.config(), image.labels, image.definition) == ("", None, {}, None)
        assert image.reader(layer).read() == content


@pytest.mark.parametrize(
    ("program", "name"),
    [("mksquashfs", "squashfs"), ("mkfs.ext2", "ext2"), ("mkfs.ext3", "ext3"), ("mkfs.ext4", "ext4"), ("mkfs.erofs", "erofs")],
)
def test_filesystems_of_other_programs(tmp_path: Path, program: str, name: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    root, target = tmp_path / "root", tmp_path / "image"
    root.mkdir()
    (root / "file").write_text("x" * 10000)
    if program.startswith("mkfs.ext"):
        with target.open("wb") as file:
            file.truncate(8 << 20)
    arguments: dict[str, list[str | Path]] = {
        "mksquashfs": [root, target, "-quiet", "-no-progress"],
        "mkfs.erofs": [target, root],
    }
    command = [program, *arguments.get(program, ["-q", "-d", root, target])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Image.open(target) as image:
        assert image.layers[0].filesystem == name


def test_the_squashfs_of_an_old_singularity(tmp_path: Path) -> None:
    """Singularity before 2.4 put one line before the squashfs."""
    line = b"#!/usr/bin/env run-singularity\n"
    with Image.open(file_of(tmp_path / "old.img", line + squashfs())) as image:
        (layer,) = image.layers
        assert (layer.offset, image.reader(layer).read(4)) == (len(line), b"hsqs")


def sif_of(path: Path, *partitions: tuple[bytes, Filesystem, PartitionKind], config: bool = True) -> Path:
    builder = SifBuilder()
    for content, filesystem, kind in partitions:
        builder.add_partition(content, filesystem=filesystem, kind=kind)
    if config:
        builder.add_oci_config({"Cmd": ["sh"], "Labels": {"a": "config", "b": "config"}})
        builder.add_labels({"a": "object"})
        builder.add_definition("Bootstrap: scratch\n")
        builder.add_signature(b"signature", linked_group=1)
    builder.write(path)
    return path


def test_a_sif_of_several_partitions(tmp_path: Path) -> None:
    path = sif_of(
        tmp_path / "a.sif",
        (ext(), Filesystem.EXT3, PartitionKind.OVERLAY),
        (squashfs(), Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM),
        (erofs(), Filesystem.RAW, PartitionKind.DATA),
        (b"x" * 5000, Filesystem.RAW, PartitionKind.DATA),
        (squashfs(), Filesystem.SQUASHFS, PartitionKind.SYSTEM),
    )
    with Image.open(path) as image:
        assert (image.kind, image.architecture) == (ImageKind.SIF, HOST)
        assert [(layer.format, layer.filesystem, layer.object_id) for layer in image.layers] == [
            (LayerFormat.SQUASHFS, "squashfs", 2)
        ]
        assert [(layer.format, layer.filesystem, layer.role) for layer in image.overlays] == [
            (LayerFormat.EXT, "ext3", LayerRole.OVERLAY)
        ]
        assert [layer.filesystem or str(layer.format) for layer in image.data] == ["erofs", "other", "squashfs"]
        assert image.reader(image.layers[0]).read() == squashfs()
        config = image.config()
        assert config is not None
        assert config.cmd == ("sh",)
        assert image.labels == {"a": "object", "b": "config"}
        assert image.definition == "Bootstrap: scratch\n"
        assert len(image.signatures) == 1


def test_encrypted_partitions_are_named(tmp_path: Path) -> None:
    path = sif_of(tmp_path / "a.sif", (b"LUKS" + bytes(5000), Filesystem.ENCRYPTED_SQUASHFS, PartitionKind.PRIMARY_SYSTEM))
    with Image.open(path) as image:
        assert [layer.format for layer in image.layers] == [LayerFormat.ENCRYPTED]


def write_docker(image: OciImage, path: Path, *, tags: list[str] | None = None) -> Path:
    """Write the first image as ``docker save`` does."""
    manifest = json.loads(image.blobs[image.manifests[0]["digest"]])
    layers = {f"{index}/layer.tar": image.blobs[layer["digest"]] for index, layer in enumerate(manifest["layers"])}
    entry = {"Config": "config.json", "RepoTags": tags, "Layers": list(layers)}
    files = {"config.json": image.blobs[manifest["config"]["digest"]], "manifest.json": json.dumps([entry]).encode(), **layers}
    return file_of(path, tar_of(files))


WRITERS: dict[ImageKind, Callable[[OciImage, Path], Path]] = {
    ImageKind.OCI_LAYOUT: OciImage.write_layout,
    ImageKind.OCI_ARCHIVE: OciImage.write_archive,
    ImageKind.OCI_SIF: OciImage.write_sif,
    ImageKind.DOCKER_ARCHIVE: write_docker,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_oci_images(tmp_path: Path, kind: ImageKind) -> None:
    path = WRITERS[kind](two_layers(), tmp_path / "image")
    with Image.open(path) as image:
        assert (image.kind, image.architecture) == (kind, HOST)
        assert [layer.format for layer in image.layers] == [LayerFormat.TAR, LayerFormat.TAR_GZIP]
        assert gzip.decompress(image.reader(image.layers[1]).read()) == LAYER
        assert image.reader(image.layers[0]).read() == LAYER
        if kind is not ImageKind.DOCKER_ARCHIVE:
            assert image.layers[0].digest == f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
            assert image.references == ("first",)
        assert image.layers[0].diff_id == f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
        config = image.config()
        assert config is not None
        assert config.cmd == ("sh",)
        assert image.config_json is not None
        assert image.config_json["architecture"] == HOST


def test_an_oci_sif_of_squashfs_layers_and_an_overlay(tmp_path: Path) -> None:
    oci_image = OciImage()
    oci_image.add([(squashfs(), SQUASHFS_TYPE), (squashfs(8192), SQUASHFS_TYPE), (ext(), EXT3_TYPE)], architecture=HOST)
    with Image.open(oci_image.write_sif(tmp_path / "a.oci.sif")) as image:
        assert [(layer.filesystem, layer.size) for layer in image.layers] == [("squashfs", 4096), ("squashfs", 8192)]
        assert [layer.filesystem for layer in image.overlays] == ["ext3"]
        assert {layer.path for layer in image.layers} == {str(tmp_path / "a.oci.sif")}


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    with Image.open(tmp_path / "root") as image:
        assert image.kind is ImageKind.DIRECTORY
        assert [(layer.format, layer.path) for layer in image.layers] == [(LayerFormat.DIRECTORY, str(tmp_path / "root"))]
        with pytest.raises(ValueError, match="directory"):
            image.reader(image.layers[0])


def test_a_bundle_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(oci.BundleError, match="is a bundle"):
        Image.open(tmp_path)


# ---- choosing ----


def test_a_reference_chooses_an_image(tmp_path: Path) -> None:
    oci_image = OciImage()
    oci_image.add([(LAYER, TAR_TYPE)], name="one", architecture=HOST)
    second = oci_image.add([(LAYER, TAR_TYPE)], name="two", architecture=HOST, config={"Cmd": ["two"]})
    path = oci_image.write_layout(tmp_path / "layout")
    assert "2 images; choose one with reference=; there are: one, two" in refused(path)
    assert "no image is named 'three'; there are: one, two" in refused(path, reference="three")
    for reference in ("two", second["digest"]):
        with Image.open(path, reference=reference) as image:
            assert (image.references, image.digest) == (("two",), second["digest"])


@pytest.mark.parametrize("platform_in_index", [True, False])
def test_a_platform_chooses_an_image(tmp_path: Path, platform_in_index: bool) -> None:
    oci_image = OciImage()
    for architecture in (FOREIGN, HOST):
        oci_image.add([(LAYER, TAR_TYPE)], name="all", architecture=architecture, platform=platform_in_index)
    path = oci_image.write_archive(tmp_path / "archive")
    for platform, expected in ((None, HOST), (FOREIGN, FOREIGN), (f"linux/{HOST}", HOST)):
        with Image.open(path, platform=platform) as image:
            assert image.architecture == expected
    assert f"no image for linux/mips; there are: linux/{HOST}" in refused(path, platform="mips").replace(f"linux/{FOREIGN}, ", "")
    with pytest.raises(ValueError, match="platform='a/b/c/d' is not"):
        Image.open(path, platform="a/b/c/d")


def test_the_only_image_is_taken_whatever_its_platform(tmp_path: Path) -> None:
    oci_image = OciImage()
    oci_image.add([(LAYER, TAR_TYPE)], architecture=FOREIGN)
    with Image.open(oci_image.write_sif(tmp_path / "a.sif")) as image:
        assert image.architecture == FOREIGN


@pytest.mark.parametrize("kind", ImageKind)
def test_an_image_for_another_platform_is_refused(tmp_path: Path, kind: ImageKind) -> None:
    """The only image is not taken for a platform that was asked for and is not its own, or that it does not name."""
    path = tmp_path / "image"
    if kind is ImageKind.DIRECTORY:
        path.mkdir()
    elif kind is ImageKind.FILESYSTEM:
        file_of(path, squashfs())
    elif kind is ImageKind.SIF:
        sif_of(path, (squashfs(), Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM))
    else:
        WRITERS[kind](two_layers(), path)
    named = kind not in (ImageKind.DIRECTORY, ImageKind.FILESYSTEM)
    there = f"linux/{HOST}" if named else "the image does not name its platform"
    for requested in (f"linux/{FOREIGN}", f"freebsd/{HOST}", f"linux/{HOST}/v99", *([] if named else [HOST])):
        message = refused(path, platform=requested)
        assert "no image for " in message
        assert (requested in message, there in message) == (True, True) or f"linux/{requested}" in message
    if named:
        Image.open(path, platform=HOST).close()
    status = main(["image", "ls", "--platform", f"linux/{FOREIGN}", str(path)])
    assert status == 1


@pytest.mark.parametrize(("architecture", "variant"), [("arm64", "v8"), ("arm", "v7"), ("amd64", "v1")])
def test_the_variant_of_an_image_that_names_none(tmp_path: Path, architecture: str, variant: str) -> None:
    image = OciImage()
    image.add([(LAYER, TAR_TYPE)], architecture=architecture)
    path = image.write_layout(tmp_path / "layout")
    for platform in (architecture, f"linux/{architecture}/{variant}"):
        Image.open(path, platform=platform).close()
    assert f"no image for linux/{architecture}/v99" in refused(path, platform=f"linux/{architecture}/v99")


def test_attestations_and_signatures_are_not_images(tmp_path: Path) -> None:
    oci_image = two_layers()
    oci_image.add([(b"{}", "application/json")], name=f"sha256-{'0' * 64}.sig")
    attestation = oci_image.add([(LAYER, TAR_TYPE)])
    attestation["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    artifact = oci_image.add([(LAYER, TAR_TYPE)])
    artifact["artifactType"] = "application/spdx+json"
    with Image.open(oci_image.write_layout(tmp_path / "layout")) as image:
        assert image.references == ("first",)


def test_nested_indexes(tmp_path: Path) -> None:
    oci_image = two_layers()
    inner = json.dumps({"schemaVersion": 2, "manifests": oci_image.manifests}).encode()
    index_type = "application/vnd.oci.image.index.v1+json"
    oci_image.manifests = [oci_image.blob(inner, index_type, annotations={"org.opencontainers.image.ref.name": "outer"})]
    with Image.open(oci_image.write_layout(tmp_path / "layout")) as image:
        assert image.references == ("first",)
    for _ in range(4):
        inner = json.dumps({"schemaVersion": 2, "manifests": oci_image.manifests}).encode()
        oci_image.manifests = [oci_image.blob(inner, index_type)]
    assert "levels of indexes" in refused(oci_image.write_layout(tmp_path / "deep"))


def test_a_reference_of_an_image_without_any(tmp_path: Path) -> None:
    assert "a filesystem holds one" in refused(file_of(tmp_path / "a", squashfs()), reference="latest")


# ---- what is not an image ----


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "an empty file"),
        (b"\x7fELF" + bytes(100), "an ELF program"),
        (b"#!/bin/sh\necho\n", "a script ('#!/bin/sh')"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"Bootstrap: docker\n", "a definition file or Dockerfile"),
        (b"FROM busybox\n", "a definition file or Dockerfile"),
        (b'{"a": 1}', "a JSON document"),
        (b"hello\n", "a text file"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive"),
        (gzip.compress(LAYER), "compressed with gzip: decompress it first"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(10000)[:300], "zeros"),
        (bytes([200, 201, 202] * 100), "data of an unknown format"),
        (LAYER, "a tar archive without an OCI layout or docker manifest"),
        (bytes(0x8001) + b"CD001" + bytes(100), "an ISO 9660 image"),
    ],
)
def test_the_error_says_what_a_file_seems_to_be(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refused(file_of(tmp_path / "file", content))


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "a FIFO, not a regular file" in refused(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        Image.open(tmp_path / "absent")


@pytest.mark.parametrize("name", ["docker://alpine:3", "oras://example.org/alpine", "docker:/alpine"])
def test_an_image_of_a_registry_is_no_file(tmp_path: Path, name: str) -> None:
    for call in (Image.open, oci.run, lambda name: oci.Bundle.from_image(name, tmp_path / "bundle")):
        with pytest.raises(FileNotFoundError, match=r"it is in a registry and not a file; ociruntime\.pull makes"):
            call(name)


# ---- damage and hostile input ----


@pytest.mark.parametrize("content", [squashfs(8192)[:4096], ext()[:4096], erofs()[:4096]])
def test_truncated_filesystems(tmp_path: Path, content: bytes) -> None:
    assert "the file is truncated" in refused(file_of(tmp_path / "file", content))


def test_a_partition_of_another_filesystem(tmp_path: Path) -> None:
    path = sif_of(tmp_path / "a.sif", (ext(), Filesystem.SQUASHFS, PartitionKind.PRIMARY_SYSTEM))
    assert "the image calls it squashfs, but it is ext3" in refused(path)


def test_a_layer_of_another_filesystem(tmp_path: Path) -> None:
    oci_image = OciImage()
    oci_image.add([(LAYER, SQUASHFS_TYPE)])
    assert "the image calls it squashfs, but it is not a known filesystem" in refused(oci_image.write_sif(tmp_path / "a.sif"))


def test_an_overlay_below_another_layer(tmp_path: Path) -> None:
    oci_image = OciImage()
    oci_image.add([(ext(), EXT3_TYPE), (squashfs(), SQUASHFS_TYPE)])
    assert "not the last one" in refused(oci_image.write_sif(tmp_path / "a.sif"))


def change(image: OciImage, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest, with right digests."""
    old = image.manifests[0]
    manifest = json.loads(image.blobs.pop(old["digest"]))
    edit(manifest)
    image.manifests[0] = {**old, **image.document(manifest, old["mediaType"])}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda m: m["layers"][0].update(digest="sha256:" + "0" * 64), "is missing"),
        (lambda m: m["layers"][0].update(size=1), "bytes, not 1"),
        (lambda m: m["layers"][0].update(digest="md5:" + "0" * 32), "is not a digest"),
        (lambda m: m["layers"][0].update(digest="sha256:../../../etc/passwd"), "is not a digest"),
        (lambda m: m["layers"][0].update(mediaType="application/x-unknown"), "are not supported"),
        (lambda m: m["layers"].append(m["layers"][0]) or m["layers"].append(m["layers"][0]), "4 layers, but 2 diff_ids"),
        (lambda m: m.update(layers=m["layers"] * 300), "more than the limit of 500"),
        (lambda m: m.update(layers="many"), "$.layers: an array expected"),
        (lambda m: m.pop("config"), "$.config: is missing"),
    ],
)
def test_damaged_manifests(tmp_path: Path, edit: Callable[[dict[str, Any]], object], expected: str) -> None:
    oci_image = two_layers()
    change(oci_image, edit)
    for kind in (ImageKind.OCI_LAYOUT, ImageKind.OCI_ARCHIVE, ImageKind.OCI_SIF):
        assert expected in refused(WRITERS[kind](oci_image, tmp_path / str(kind)))


@pytest.mark.parametrize("kind", [ImageKind.OCI_LAYOUT, ImageKind.OCI_ARCHIVE, ImageKind.OCI_SIF])
def test_a_document_of_another_digest(tmp_path: Path, kind: ImageKind) -> None:
    oci_image = two_layers()
    digest = oci_image.manifests[0]["digest"]
    oci_image.blobs[digest] = oci_image.blobs[digest].replace(b"tar", b"raT")
    assert "the image is damaged" in refused(WRITERS[kind](oci_image, tmp_path / "image"))


@pytest.mark.parametrize("kind", [ImageKind.OCI_LAYOUT, ImageKind.OCI_ARCHIVE])
@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"schemaVersion": 2, "manifests": []}',
        b" " * (5 << 20),
        b'{"a": 1, "a": 2}',
    ],
)
def test_damaged_indexes(tmp_path: Path, kind: ImageKind, index: bytes) -> None:
    files = {**two_layers().files(), "index.json": index}
    path = tmp_path / "image"
    if kind is ImageKind.OCI_ARCHIVE:
        file_of(path, tar_of(files))
    else:
        path.mkdir()
        for name in ("oci-layout", "index.json"):
            (path / name).write_bytes(files[name])
    refused(path)


def test_links_in_a_layout_stay_inside(tmp_path: Path) -> None:
    oci_image = two_layers()
    path = oci_image.write_layout(tmp_path / "layout")
    digest = oci_image.manifests[0]["digest"].replace(":", "/")
    outside = tmp_path / "outside"
    shutil.move(path / "blobs" / digest, outside)
    (path / "blobs" / digest).symlink_to(outside)
    assert "is missing" in refused(path)
    (path / "blobs" / digest).unlink()
    os.mkfifo(path / "blobs" / digest)
    assert "a FIFO, not a regular file" in refused(path)


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    link = tarfile.TarInfo("manifest.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    circle = tarfile.TarInfo("a")
    circle.type, circle.linkname = tarfile.SYMTYPE, "a"
    assert "without an OCI layout or docker manifest" in refused(archive_of(tmp_path / "a.tar", (link, b""), (circle, b"")))
    manifest = json.dumps([{"Config": "../../../etc/passwd", "Layers": []}]).encode()
    assert "is missing" in refused(archive_of(tmp_path / "b.tar", (tarfile.TarInfo("manifest.json"), manifest)))


def test_members_of_one_name(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo("manifest.json"), b"[]"), (tarfile.TarInfo("./manifest.json"), b"{}")]
    assert "two members of the archive are named 'manifest.json'" in refused(archive_of(tmp_path / "a.tar", *members))


def test_links_to_the_layers_of_an_old_docker(tmp_path: Path) -> None:
    """``docker save`` of old versions writes a layer that two images share once, and a link."""
    oci_image = two_layers()
    link = tarfile.TarInfo("1/layer.tar")
    link.type, link.linkname = tarfile.SYMTYPE, "../0/layer.tar"
    manifest = json.loads(oci_image.blobs[oci_image.manifests[0]["digest"]])
    entry = {"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["0/layer.tar", "1/layer.tar"]}
    path = archive_of(
        tmp_path / "a.tar",
        (tarfile.TarInfo("0/layer.tar"), LAYER),
        (link, b""),
        (tarfile.TarInfo("c.json"), oci_image.blobs[manifest["config"]["digest"]]),
        (tarfile.TarInfo("manifest.json"), json.dumps([entry]).encode()),
    )
    with Image.open(path, reference="a:1") as image:
        assert [image.reader(layer).read() for layer in image.layers] == [LAYER, LAYER]


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    """Of an extended header tarfile reads as many bytes as it claims."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 33
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(member.tobuf(format=tarfile.GNU_FORMAT))
        file.truncate(1 << 34)
    refused(path)


def test_headers_in_a_row(tmp_path: Path) -> None:
    """The headers of one member are limited together; those of all members are not."""
    long = tarfile.TarInfo("long")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, (1 << 20) - 512
    rows = (long.tobuf(format=tarfile.GNU_FORMAT) + bytes(long.size)) * 100
    assert "a header is too large" in refused(file_of(tmp_path / "row.tar", rows))
    empty = [(tarfile.TarInfo(f"{number}"), b"") for number in range(3000)]
    assert "a header is too large" not in refused(archive_of(tmp_path / "many.tar", *empty))


def test_mutated_archives(tmp_path: Path) -> None:
    """Whatever the bytes are, an archive gives an image or an ImageError."""
    good = two_layers().write_archive(tmp_path / "good").read_bytes()
    chance = random.Random(1)
    for _ in range(300):
        content = bytearray(good[: chance.choice((len(good), chance.randrange(len(good))))])
        for _ in range(chance.randrange(1, 8)):
            if content:
                content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            Image.open(file_of(tmp_path / "mutated", bytes(content))).close()
        except oci.ImageError:
            continue


# ---- the value ----


def test_closing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for kind, write in WRITERS.items():
        image = Image.open(write(two_layers(), tmp_path / str(kind)))
        layer = image.layers[0]
        image.close()
        image.close()
        assert image.closed
        assert "closed" in repr(image)
        with pytest.raises(ValueError, match="closed image"):
            image.reader(layer)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unclosed_image_warns(tmp_path: Path) -> None:
    image = Image.open(file_of(tmp_path / "a", squashfs()))
    with pytest.warns(ResourceWarning, match="unclosed image"):
        del image


@pytest.mark.parametrize("kind", WRITERS)
def test_pickling(tmp_path: Path, kind: ImageKind) -> None:
    path = WRITERS[kind](two_layers(), tmp_path / "image")
    with Image.open(path, platform=HOST) as image, pickle.loads(pickle.dumps(image)) as other, copy.copy(image) as third:
        assert other.layers == image.layers == third.layers
        assert other.reader(other.layers[0]).read() == LAYER
        state = pickle.dumps(image)
    with pytest.raises(TypeError, match="closed"):
        pickle.dumps(image)
    if path.is_dir():
        shutil.move(path, tmp_path / "moved")
        two_layers().write_layout(path)
    else:
        os.utime(path, (1, 1))
    with pytest.raises(oci.ImageError, match="changed since it was pickled"):
        pickle.loads(state)


def test_showing(tmp_path: Path) -> None:
    with Image.open(two_layers().write_layout(tmp_path / "<b>layout")) as image:
        assert repr(image).startswith(f"<Image {tmp_path}/<b>layout: oci-layout, {HOST}, 2 layers of ")
        html = image._repr_html_()
        assert "<b>" not in html
        assert "&lt;b&gt;layout" in html
        assert image.layers[0].digest in html
        assert "0 labels" not in html
    labelled = OciImage()
    labelled.add([(LAYER, TAR_TYPE)], architecture=HOST, config={"Labels": {"version": "<1>"}})
    with Image.open(labelled.write_layout(tmp_path / "labelled")) as image:
        assert "<tr><th>version</th><td><code>&lt;1&gt;</code></td></tr>" in image._repr_html_()
    assert "version" not in image._repr_html_()
    damaged = OciImage()
    damaged.add([(LAYER, TAR_TYPE)], architecture=HOST, config={"Labels": ["version"]})
    with Image.open(damaged.write_layout(tmp_path / "damaged")) as image:
        assert "Labels" in image._repr_html_()
    (tmp_path / "tree").mkdir()
    with Image.open(tmp_path / "tree") as image:
        assert repr(image) == f"<Image {tmp_path}/tree: directory>"


# ---- what an image says of itself ----

METADATA = {
    "labels.json": b'{"version": "1"}',
    "Singularity": b"Bootstrap: scratch\n",
    "runscript": b"#!/bin/sh\nexec run\n",
    "startscript": b"#!/bin/sh\nexec start\n",
    "runscript.help": b"how to \x1b[31mrun it\n",
    "env/10-docker2singularity.sh": b"export A=1\n",
    "env/90-environment.sh": b"export B=2\n",
    "env/99-runtimevars.sh": b"the same everywhere\n",
}
FILES = {f".singularity.d/{name}": content for name, content in METADATA.items()} | {"scif/apps/tool/scif/runscript": b""}
SCRIPTS = {
    f"/.singularity.d/env/{name}": text for name, text in (("10-docker2singularity.sh", "A=1"), ("90-environment.sh", "B=2"))
}
FOUND = oci.image.ImageMetadata(
    labels={"version": "1"},
    definition="Bootstrap: scratch\n",
    runscript="#!/bin/sh\nexec run\n",
    startscript="#!/bin/sh\nexec start\n",
    help="how to \x1b[31mrun it\n",
    environment={path: f"export {text}\n" for path, text in SCRIPTS.items()},
    apps=("tool",),
)


def with_metadata(kind: str, place: Path) -> Path:
    image = OciImage()
    image.add([(tar_of(FILES), TAR_TYPE)], name="one", config={"Labels": {"name": "x"}})
    match kind:
        case "layout":
            return image.write_layout(place / "layout")
        case "docker":
            return image.write_docker_archive(place / "docker.tar", "x:1")
    for name, content in FILES.items():
        file = place / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return place / "tree"


@pytest.mark.parametrize("kind", ["directory", "layout", "docker"])
def test_metadata_in_files(kind: str, tmp_path: Path) -> None:
    with Image.open(with_metadata(kind, tmp_path)) as image:
        labels = {"version": "1"} if kind == "directory" else {"version": "1", "name": "x"}
        assert image.metadata() == attrs.evolve(FOUND, labels=labels)
    with pytest.raises(ValueError, match="closed"):
        image.metadata()


@pytest.mark.parametrize("change", ["nothing", "a file", "a link out of it", "invalid labels", "a large script"])
def test_metadata_that_is_missing_or_damaged(change: str, tmp_path: Path) -> None:
    path = with_metadata("directory", tmp_path)
    place = path / ".singularity.d"
    empty = attrs.evolve(oci.image.ImageMetadata(), apps=("tool",))
    match change:
        case "nothing":
            shutil.rmtree(place)
        case "a file":
            shutil.rmtree(place)
            place.write_text("x")
        case "a link out of it":
            (place / "runscript").unlink()
            (place / "runscript").symlink_to("/../../../../../../../etc/hostname")
        case "invalid labels":
            (place / "labels.json").write_text('{"a": 1}')
        case "a large script":
            (place / "runscript").write_bytes(bytes(2 << 20))
    with Image.open(path) as image:
        match change:
            case "a link out of it":
                assert image.metadata() == attrs.evolve(FOUND, runscript="")
            case "invalid labels":
                with pytest.raises(oci.ImageError, match=r"labels\.json: a: 1 is not a string"):
                    image.metadata()
            case "a large script":
                with pytest.raises(oci.ImageError, match="runscript"):
                    image.metadata()
            case _:
                assert image.metadata() == empty


def test_metadata_of_a_sif_file(tmp_path: Path) -> None:
    """The object that Apptainer writes is used, so that files which cannot be read without mounting need not be."""
    attributes = {
        "labels": {"a": "1", "b": "1"},
        "runscript": "run",
        "environment": {"/e.sh": "X=1"},
        "apps": {"two": {}, "one": {}},
    }
    for document, message in (
        ({"data": {"attributes": attributes}}, None),
        ({"data": {"attributes": {**attributes, "runscript": 5}}}, "inspect-metadata.json: runscript: 5 is not a string"),
        ({"data": []}, None),
        ({"data": "x"}, "inspect-metadata.json: data: 'x' is not an object"),
    ):
        builder = SifBuilder()
        builder.add_partition(erofs(), filesystem=Filesystem.RAW)
        builder.add_labels({"b": "2"})
        builder.add_json(document, name="inspect-metadata.json")  # type: ignore[arg-type]
        builder.write(tmp_path / "x.sif", overwrite=True)
        with Image.open(tmp_path / "x.sif") as image:
            if message is not None:
                with pytest.raises(oci.ImageError, match=message):
                    image.metadata()
            elif document["data"] == []:
                assert image.metadata() == oci.image.ImageMetadata(labels={"b": "2"})
            else:
                assert image.metadata() == oci.image.ImageMetadata(
                    labels={"a": "1", "b": "2"}, runscript="run", environment={"/e.sh": "X=1"}, apps=("one", "two")
                )
    builder = SifBuilder()
    builder.add_partition(erofs(), filesystem=Filesystem.RAW)
    builder.write(tmp_path / "x.sif", overwrite=True)
    with Image.open(tmp_path / "x.sif") as image, pytest.raises(oci.UnsupportedError, match="cannot be read without mounting it"):
        image.metadata()


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(with_metadata("directory", tmp_path))

    def inspect(*words: str) -> str:
        assert main(["inspect", *words]) == 0
        return capsys.readouterr().out

    assert inspect(path) == inspect("--labels", path) == "version: 1\n"
    assert inspect("-d", path) == "Bootstrap: scratch\n"
    assert inspect("-r", "-s", path) == "#!/bin/sh\nexec run\n#!/bin/sh\nexec start\n"
    assert inspect("-H", path) == "how to \\x1b[31mrun it\n"
    assert inspect("-t", path) == ""
    environment = [line for path, text in SCRIPTS.items() for line in (f"=== {path} ===", f"export {text}", "")]
    assert inspect("-e", path).splitlines() == environment
    assert inspect("--list-apps", path) == "tool\n"
    document = json.loads(inspect("--json", "-l", "-r", path))
    assert document == {
        "data": {"attributes": {"labels": {"version": "1"}, "runscript": "#!/bin/sh\nexec run\n"}},
        "type": "container",
    }
    everything = json.loads(inspect("--all", path))
    assert set(everything["data"]["attributes"]) == {
        "apps", "labels", "deffile", "runscript", "startscript", "test", "helpfile", "environment",
    }  # fmt: skip
    assert everything["image"]["kind"] == "directory"
    layout = str(with_metadata("layout", tmp_path))
    assert inspect("--reference", "one", layout) == "name: x\n"
    assert json.loads(inspect("--all", layout))["image"]["config"]["config"] == {"Labels": {"name": "x"}}
    file = str(file_of(tmp_path / "x.erofs", erofs()))
    assert main(["inspect", "-r", file]) == 1
    assert "cannot be read without mounting it" in capsys.readouterr().err
    assert main(["inspect", "--all", file]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["image"]["layers"][0]["format"] == "erofs"
    assert "runscript, startscript, test, helpfile, environment, apps: not read from the files of the image: " in shown.err


def test_inspect_without_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a SIF file has outside of its squashfs is shown, and the rest is named."""
    monkeypatch.setitem(sys.modules, "PySquashfsImage", None)
    monkeypatch.delitem(sys.modules, "ociruntime.image.squashfs", raising=False)
    builder = SifBuilder()
    builder.add_partition(squashfs(), filesystem=Filesystem.SQUASHFS)
    builder.write(tmp_path / "bare.sif")
    builder.add_definition("Bootstrap: scratch")
    builder.write(tmp_path / "x.sif")
    remedy = "not read from the files of the image: .*pip install 'ociruntime\\[images\\]'"

    def inspect(*words: str) -> tuple[int, str, str]:
        status = main(["inspect", *words])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    status, out, err = inspect("--deffile", "--runscript", str(tmp_path / "x.sif"))
    assert (status, out) == (0, "Bootstrap: scratch\n")
    assert re.search(f"runscript: {remedy}", err)
    assert inspect("--deffile", str(tmp_path / "x.sif")) == (0, "Bootstrap: scratch\n", "")
    status, out, err = inspect(str(tmp_path / "bare.sif"))
    assert (status, out) == (0, "")
    assert re.search(f"labels: {remedy}", err)
    for words in (("--runscript",), ("--list-apps",), ("--labels",)):
        status, out, err = inspect(*words, str(tmp_path / "bare.sif"))
        assert (status, out) == (1, "")
        assert "pip install 'ociruntime[images]'" in err
