"""Images from a registry on loopback."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.image.sif import SifBuilder

from ..support.images import INDEX_TYPE, MANIFEST_TYPE, TAR_TYPE, OciImage, small_filesystem, tar_of
from ..support.waiting import wait_until

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="no skopeo (Debian: skopeo)")
needs_a_program = pytest.mark.skipif(
    not (shutil.which("tar2sqfs") or shutil.which("mksquashfs")), reason="neither squashfs-tools-ng nor squashfs-tools"
)


class Registry:
    """The reading half of the distribution spec, over HTTP: any repository has the same image."""

    def __init__(self) -> None:
        self.image = OciImage()
        self.stop_at: str | None = None
        """A path at which it sends a signal to this process and waits."""
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_HEAD(self) -> None:
                self.do_GET(with_body=False)

            def do_GET(self, with_body: bool = True) -> None:
                registry.answer(self, with_body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    def answer(self, handler: http.server.BaseHTTPRequestHandler, with_body: bool) -> None:
        if self.stop_at is not None and self.stop_at in handler.path:
            os.kill(os.getpid(), signal.SIGINT)
            self.released.wait(60)
        content, media_type, status = (
            b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}',
            "application/json",
            404,
        )
        match = re.fullmatch(r"/v2/.+/(manifests|blobs)/(.+)", handler.path)
        if handler.path == "/v2/":
            content, status = b"{}", 200
        elif match is not None:
            digest = match[2]
            named = [item for item in self.image.manifests if digest in (item.get("annotations") or {}).values()]
            digest = named[0]["digest"] if named else digest
            if digest in self.image.blobs:
                content, status = self.image.blobs[digest], 200
                media_type = MANIFEST_TYPE if match[1] == "manifests" else "application/octet-stream"
        handler.send_response(status)
        handler.send_header("Content-Type", media_type)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        if with_body:
            handler.wfile.write(content)


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.released.set()
    made.server.shutdown()
    made.server.server_close()


@needs_skopeo
@needs_a_program
def test_an_image(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tar_of({"etc/motd": b"welcome\n"})
    registry.image.add([(layer, TAR_TYPE)], name="1", config={"Cmd": ["motd"]})
    calls: list[tuple[int, int]] = []
    oci.pull(f"docker://{registry.host}/team/app:1", tmp_path / "x.sif", insecure=True, progress=lambda *sizes: calls.append(sizes))
    oci.pull(f"docker://{registry.host}/team/app:1", tmp_path / "y.sif", insecure=True, format="oci-sif")
    monkeypatch.chdir(tmp_path)
    assert main(["pull", "--insecure", "-q", f"docker://{registry.host}/team/app:1"]) == 0
    for name, kind in {"x.sif": "sif", "y.sif": "oci-sif", "app_1.sif": "sif"}.items():
        with oci.Image.open(tmp_path / name) as image:
            config = image.config()
            assert config is not None
            assert (image.kind, config.cmd) == (kind, ("motd",))
    assert calls[-1][0] == calls[-1][1]
    assert sorted(os.listdir(tmp_path)) == ["app_1.sif", "x.sif", "y.sif"]


@needs_skopeo
def test_a_sif_file(registry: Registry, tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_generic(b"x", name="it")
    builder.write(tmp_path / "source.sif")
    image, content = registry.image, (tmp_path / "source.sif").read_bytes()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": image.blob(b"{}", "application/vnd.sylabs.sif.config.v1+json"),
        "layers": [image.blob(content, "application/vnd.sylabs.sif.layer.v1.sif")],
    }
    image.manifests.append(image.document(manifest, MANIFEST_TYPE, annotations={"org.opencontainers.image.ref.name": "1"}))
    reference = f"oras://{registry.host}/a:1"
    oci.pull(reference, tmp_path / "x.sif", insecure=True)
    assert (tmp_path / "x.sif").read_bytes() == content
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    image.blobs[digest] = content.replace(b"it", b"no")
    with pytest.raises(oci.ImageError, match=r"cannot be pulled: .*igest"):
        oci.pull(reference, tmp_path / "y.sif", insecure=True)
    image.blobs[digest] = b"not a SIF file" + bytes(len(content) - 14)
    manifest["layers"] = [image.blob(image.blobs[digest], "application/vnd.sylabs.sif.layer.v1.sif")]
    image.manifests[:] = [image.document(manifest, MANIFEST_TYPE, annotations={"org.opencontainers.image.ref.name": "1"})]
    with pytest.raises(oci.SifError, match="not a SIF file"):
        oci.pull(reference, tmp_path / "y.sif", insecure=True)
    assert sorted(os.listdir(tmp_path)) == ["source.sif", "x.sif"]


@needs_skopeo
def test_errors(registry: Registry, tmp_path: Path) -> None:
    for reference, insecure, message in (
        (f"docker://{registry.host}/a:none", True, "manifest unknown"),
        (f"docker://{registry.host}/a:none", False, "pass insecure=True"),
        ("docker://127.0.0.1:1/a", False, "connection refused; check that the registry runs"),
        ("docker://registry.invalid/a", False, "check the network, and the name of the registry"),
    ):
        with pytest.raises(oci.ImageError, match=f"{re.escape(reference)}: cannot be pulled: .*{re.escape(message)}"):
            oci.pull(reference, tmp_path / "x.sif", insecure=insecure)
    (tmp_path / "x.sif").write_bytes(b"before")
    with pytest.raises(FileExistsError):
        oci.pull("docker://127.0.0.1:1/a", tmp_path / "x.sif")
    assert os.listdir(tmp_path) == ["x.sif"]


@needs_skopeo
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a filesystem without space")
def test_a_full_disk(registry: Registry, tmp_path: Path) -> None:
    registry.image.add([(tar_of({"file": os.urandom(2 << 20)}), TAR_TYPE)], name="1")
    for size in ("1M", "3M"):  # for the blobs, and for the squashfs beside them
        with small_filesystem(tmp_path / size, size) as place:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
                oci.pull(f"docker://{registry.host}/a:1", place / "x.sif", insecure=True)
            assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(place / "x.sif"))
            assert os.listdir(place) == []


def test_wrong_arguments_and_no_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reference in ("alpine", "docker:alpine", "docker://", "http://x", "docker://-x", "docker://a b", "library://x"):
        with pytest.raises(ValueError, match=r"docker://NAME or oras://NAME is needed"):
            oci.pull(reference, tmp_path / "x.sif")
    with pytest.raises(ValueError, match="is not os/architecture"):
        oci.pull("docker://a", tmp_path / "x.sif", platform="a/b/c/d")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(oci.UnsupportedError, match="skopeo not found; install it"):
        oci.pull("docker://a", tmp_path / "x.sif")
    assert os.listdir(tmp_path) == []


@needs_skopeo
def test_an_interrupt_and_what_a_killed_process_left(registry: Registry, tmp_path: Path) -> None:
    left = tmp_path / ".ociruntime-pull-left"
    (left / "layout/blobs").mkdir(parents=True)
    registry.image.add([(tar_of({"a": b"a"}), TAR_TYPE)], name="1")
    registry.stop_at = json.loads(registry.image.blobs[registry.image.manifests[0]["digest"]])["layers"][0]["digest"]
    with pytest.raises(KeyboardInterrupt):
        oci.pull(f"docker://{registry.host}/a:1", tmp_path / "x.sif", insecure=True)
    assert os.listdir(tmp_path) == []
