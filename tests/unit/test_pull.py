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
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main
from ociruntime.image.sif import SifBuilder

from ..support.images import INDEX_TYPE, MANIFEST_TYPE, TAR_TYPE, OciImage, small_filesystem, tar_of
from ..support.waiting import TIME_LIMIT, wait_until

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
            self.released.wait(TIME_LIMIT)
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
    created = Registry()
    yield created
    created.released.set()
    created.server.shutdown()
    created.server.server_close()


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
            with pytest.raises(oci.HostError, match=r"cannot (build|pull) .*: no space left on device: ") as caught:
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


# ---- a registry of the distribution project ----


class Distribution:
    """The program docker-registry (Debian: docker-registry) on loopback."""

    def __init__(self, place: Path, *, htpasswd: str = "") -> None:
        place.mkdir()
        config: dict[str, Any] = {
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": str(place / "blobs")}},
            "http": {"addr": "127.0.0.1:0"},
        }
        if htpasswd:
            (place / "htpasswd").write_text(htpasswd)
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(place / "htpasswd")}}
        (place / "config.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = place / "log"
        command = ["docker-registry", "serve", str(place / "config.yml")]
        with self._log.open("wb") as log:  # without the environment, which has settings of a registry in REGISTRY_*
            self._process = subprocess.Popen(command, stderr=log, stdout=log, env={"PATH": os.environ["PATH"]})
        try:
            wait_until(lambda: "listening on 127.0.0.1:" in self._log.read_text(), "the registry listens")
        except BaseException:
            self.close()
            raise
        match = re.search(r"listening on (127\.0\.0\.1:\d+)", self._log.read_text())
        assert match is not None
        self.host = match[1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def push(self, layout: Path, name: str, *options: str) -> None:
        """Push an image of a layout with skopeo."""
        command = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", *options]
        command += [f"oci:{layout}", f"docker://{self.host}/{name}"]
        subprocess.run(command, check=True, capture_output=True)

    def push_artifact(self, image: OciImage, manifest: dict[str, Any], name: str, tag: str) -> None:
        """Push blobs and a manifest with the requests of the distribution spec."""
        for digest, content in image.blobs.items():
            with self._request("POST", f"/v2/{name}/blobs/uploads/", b"") as answer:
                location = answer.headers["Location"]
            self._request("PUT", f"{location}&digest={digest}", content, "application/octet-stream").close()
        self._request("PUT", f"/v2/{name}/manifests/{tag}", json.dumps(manifest).encode(), MANIFEST_TYPE).close()

    def _request(self, method: str, path: str, content: bytes, media_type: str = "") -> Any:
        url = path if path.startswith("http") else f"http://{self.host}{path}"
        headers = {"Content-Type": media_type} if media_type else {}
        return urllib.request.urlopen(urllib.request.Request(url, data=content, method=method, headers=headers), timeout=TIME_LIMIT)


needs_registry = pytest.mark.skipif(
    not (shutil.which("docker-registry") and shutil.which("skopeo")), reason="no docker-registry, or no skopeo"
)


@pytest.fixture
def distribution(tmp_path: Path) -> Iterator[Distribution]:
    created = Distribution(tmp_path / "registry")
    yield created
    created.close()


def message_of(path: Path) -> bytes:
    with oci.Image.open(path) as image:
        return image.read_bytes("/etc/motd")


def write_platforms(layout: Path) -> str:
    """Write a layout whose only entry is an index with an image for each of two platforms; return the digest of that for arm64."""
    image = OciImage()
    for architecture in ("amd64", "arm64"):
        image.add([(tar_of({"etc/motd": architecture.encode()}), TAR_TYPE)], architecture=architecture)
    digest: str = image.manifests[1]["digest"]
    document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": image.manifests}
    image.manifests = [image.document(document, INDEX_TYPE)]
    image.write_layout(layout)
    return digest


@needs_registry
@needs_a_program
def test_tags_digests_and_platforms(distribution: Distribution, tmp_path: Path) -> None:
    pytest.importorskip("PySquashfsImage")
    digest = write_platforms(tmp_path / "layout")
    distribution.push(tmp_path / "layout", "team/app:2", "--all")
    name = f"docker://{distribution.host}/team/app"
    for reference, platform, expected in (
        (f"{name}:2", "linux/amd64", b"amd64"),
        (f"{name}:2", "arm64", b"arm64"),
        (f"{name}@{digest}", "linux/arm64", b"arm64"),
    ):
        oci.pull(reference, tmp_path / "x.sif", platform=platform, insecure=True, overwrite=True)
        assert message_of(tmp_path / "x.sif") == expected
    missing: tuple[tuple[str, str | None, str], ...] = (
        (f"{name}:2", "linux/s390x", "cannot be pulled: .*s390x"),
        (f"{name}:3", None, "manifest unknown"),
        (f"{name}@sha256:{'0' * 64}", None, "manifest unknown"),
        (f"docker://{distribution.host}/other", None, "manifest unknown"),
    )
    for reference, other_platform, message in missing:
        with pytest.raises(oci.ImageError, match=message):
            oci.pull(reference, tmp_path / "y.sif", platform=other_platform, insecure=True)
    with pytest.raises(oci.ImageError, match="pass insecure=True for a registry without TLS"):
        oci.pull(f"{name}:2", tmp_path / "y.sif")
    assert sorted(os.listdir(tmp_path)) == ["layout", "registry", "x.sif"]


@needs_registry
def test_a_sif_file_as_an_artifact(distribution: Distribution, tmp_path: Path) -> None:
    builder = SifBuilder()
    builder.add_generic(os.urandom(3 << 20), name="it")
    builder.write(tmp_path / "source.sif")
    image = OciImage()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": image.blob(b"{}", "application/vnd.sylabs.sif.config.v1+json"),
        "layers": [image.blob((tmp_path / "source.sif").read_bytes(), "application/vnd.sylabs.sif.layer.v1.sif")],
    }
    distribution.push_artifact(image, manifest, "team/tool", "1")
    for transport in ("oras", "docker"):
        oci.pull(f"{transport}://{distribution.host}/team/tool:1", tmp_path / f"{transport}.sif", insecure=True)
        assert (tmp_path / f"{transport}.sif").read_bytes() == (tmp_path / "source.sif").read_bytes()


PASSWORD = "ociruntime:$2b$04$LwJxsPt5KWar7JdrSv3JJOZ0ugQ7BvzuNaLprRWVM29eQ1PKMuBIu\n"
"""The user ociruntime with the password «secret»."""


@needs_registry
@needs_a_program
def test_credentials(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none"))
    closed = Distribution(tmp_path / "registry", htpasswd=PASSWORD)
    try:
        image = OciImage()
        image.add([(tar_of({"etc/motd": b"private"}), TAR_TYPE)])
        closed.push(image.write_layout(tmp_path / "layout"), "app:1", "--dest-creds=ociruntime:secret")
        reference = f"docker://{closed.host}/app:1"
        with pytest.raises(oci.ImageError, match="log in with 'skopeo login REGISTRY', or pass auth_file="):
            oci.pull(reference, tmp_path / "x.sif", insecure=True)
        for password, status in (("wrong", 1), ("secret", 0)):
            auth = base64.b64encode(f"ociruntime:{password}".encode()).decode()
            (tmp_path / "auth.json").write_text(json.dumps({"auths": {closed.host: {"auth": auth}}}))
            command = ["pull", "-q", "--insecure", "--auth-file", str(tmp_path / "auth.json"), str(tmp_path / "x.sif"), reference]
            assert main(command) == status
        assert "log in with 'skopeo login REGISTRY'" in capfd.readouterr().err
        assert (tmp_path / "x.sif").exists()
    finally:
        closed.close()
