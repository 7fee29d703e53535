#!/usr/bin/env python3
"""Measure the conversion of an OCI image into a SIF file beside tar2sqfs and mksquashfs alone.

The image is a copy of a directory of this machine in one uncompressed layer. All write a squashfs with gzip on all processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ociruntime as oci

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def write_layout(source: Path, layout: Path) -> Path:
    """Write an OCI image layout of a directory; return its layer."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    with tarfile.open(layout / "layer", "w") as archive:
        archive.add(source, ".")
    with open(layout / "layer", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    layer = (layout / "layer").rename(blobs / digest)

    def add(document: object, media_type: str) -> dict[str, object]:
        content = json.dumps(document).encode()
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(content)}

    config = add({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}, CONFIG)
    entry = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{digest}", "size": layer.stat().st_size}
    manifest = add({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [entry]}, MANIFEST)
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default=sysconfig.get_path("stdlib"), help="directory (default: that of Python)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        place = Path(folder)
        layer = write_layout(Path(options.source), place / "layout")
        size = layer.stat().st_size
        out = str(place / "out")
        jobs = str(len(os.sched_getaffinity(0)))

        def from_tar(*command: str) -> None:
            with open(layer, "rb") as file:
                subprocess.run(command, stdin=file, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def from_directory() -> None:
            command = ["mksquashfs", options.source, out, "-noappend", "-quiet", "-no-progress", "-comp", "gzip"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        cases: dict[str, Callable[[], object]] = {
            "oci.build, layout": lambda: oci.build(place / "layout", out, overwrite=True),
            "oci.build, directory": lambda: oci.build(options.source, out, overwrite=True),
        }
        if shutil.which("tar2sqfs"):
            cases["tar2sqfs of the layer"] = lambda: from_tar("tar2sqfs", "-q", "-f", "-c", "gzip", "-j", jobs, out)
        if shutil.which("mksquashfs"):
            cases["mksquashfs -tar of the layer"] = lambda: from_tar("mksquashfs", "-", out, "-tar", "-noappend", "-quiet")
            cases["mksquashfs of the directory"] = from_directory
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, case in cases.items():
                begin = time.perf_counter()
                case()
                times[name].append(time.perf_counter() - begin)
    rates = {name: size / 1e6 / statistics.median(found) for name, found in times.items()}
    alone = rates.get("mksquashfs of the directory")
    print(f"{size / 1e6:.0f} MB, {options.rounds} rounds{'' if alone else ', without mksquashfs, which is not installed'}")
    for name, rate in rates.items():
        print(f"{name:32} {rate:8.1f} MB/s {f'{rate / alone:6.2f} of mksquashfs' if alone else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
