"""Images and bundles in place of a root filesystem: each is refused with what to do, and nothing is left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.image import SifBuilder

from ..support.images import TAR_TYPE, OciImage, tar_of


def layered() -> OciImage:
    image = OciImage()
    image.add([(tar_of({"etc/motd": b"hi"}), TAR_TYPE)], name="latest")
    return image


def write_docker_archive(path: Path) -> Path:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{64 * '0'}"]},
    }
    manifest = [{"Config": "config.json", "Layers": ["layer.tar"]}]
    documents = {"config.json": config, "manifest.json": manifest}
    path.write_bytes(
        tar_of({name: json.dumps(document).encode() for name, document in documents.items()} | {"layer.tar": tar_of({})})
    )
    return path


def write_layout(path: Path) -> Path:
    return layered().write_layout(path)


def write_archive(path: Path) -> Path:
    return layered().write_archive(path)


KINDS: dict[str, Callable[[Path], Path]] = {
    "oci-layout": write_layout,
    "oci-archive": write_archive,
    "docker-archive": write_docker_archive,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_must_be_converted(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path / "it")
    with pytest.raises(oci.UnsupportedError) as caught:
        oci.build_sif(tmp_path / "x.sif", path)
    assert str(caught.value) == f"{path} is an image of the kind {kind}, not a root filesystem: convert it with build()"
    assert os.listdir(tmp_path) == ["it"]


def test_a_bundle(tmp_path: Path) -> None:
    path = tmp_path / "it"
    (path / "rootfs").mkdir(parents=True)
    oci.Bundle.from_dir(path)
    for refused in (lambda: oci.build_sif(tmp_path / "x.sif", path), lambda: oci.Bundle.from_sif(path, tmp_path / "b")):
        with pytest.raises(oci.BundleError, match=f"{path} is a bundle, not an image: .* its rootfs directory"):
            refused()
    assert os.listdir(tmp_path) == ["it"]


def test_a_sif_file_is_not_a_root_filesystem(tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_generic(b"x", name="x")
    builder.write(tmp_path / "a.sif")
    with pytest.raises(
        oci.UnsupportedError, match=r"a\.sif is an image of the kind sif, not a root filesystem: convert it with build"
    ):
        oci.build_sif(tmp_path / "x.sif", tmp_path / "a.sif")
    assert os.listdir(tmp_path) == ["a.sif"]


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("#!/bin/sh\n")
    with pytest.raises(NotADirectoryError, match=str(path)):
        oci.build_sif(tmp_path / "x.sif", path)
    with pytest.raises(oci.ImageError, match="not an image: it seems to be a script"):
        oci.run(path, ["true"], state_root=tmp_path / "state")
