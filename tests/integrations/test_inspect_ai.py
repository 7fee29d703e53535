"""The sandbox environment of Inspect: Inspect's own checks of a provider, and an evaluation."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.fixture_types import Script

pytest.importorskip("inspect_ai", reason="no inspect_ai; run the session integrations")
from inspect_ai.util import ComposeConfig, OutputLimitExceededError, SandboxEnvironment, SandboxUnavailableError
from inspect_ai.util._sandbox.limits import override_max_exec_output_size
from inspect_ai.util._sandbox.self_check import *  # noqa: F403

from ociruntime.integrations.inspect_ai import OciSandbox, SandboxConfig, _services

pytestmark = [pytest.mark.root, pytest.mark.anyio]

ADD_USER = """#!/bin/sh
for name; do :; done
[ "$name" = --help ] || echo "$name:x:1234:1234::/:/bin/sh" >> /etc/passwd
"""
"""What adds a user in the image. The busybox of Debian has no adduser."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def image(busybox_rootfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root filesystem with users and the directories that the checks look at."""
    root = tmp_path_factory.mktemp("inspect") / "rootfs"
    shutil.copytree(busybox_rootfs, root, symlinks=True)
    for name in ("etc", "home", "usr/bin", "work"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/env").symlink_to("/bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nworker:x:1000:1000::/work:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nworker:x:1000:\n")
    (root / "etc/shadow").write_text("root:*:::::::\nworker:*:::::::\n")
    adduser = root / "bin/adduser"
    adduser.unlink(missing_ok=True)
    adduser.write_text(ADD_USER)
    adduser.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    shutil.chown(root / "work", 1000, 1000)
    return root


@pytest.fixture
def options(state_root: Path, prefix: str) -> dict[str, Any]:
    return {"state_root": str(state_root), "name": prefix}


async def start(config: Any) -> SandboxEnvironment:
    return (await OciSandbox.sample_init("task", config, {}))["default"]


@pytest.fixture
async def sandbox_env(image: Path, options: dict[str, Any], anyio_backend: str) -> AsyncIterator[SandboxEnvironment]:
    """A sandbox of a user: root may read and write the files that some checks expect to be refused."""
    environment = await start(SandboxConfig(image=str(image), options={"user": "worker", "cwd": "/work", **options}))
    yield environment
    await OciSandbox.sample_cleanup("task", None, {"default": environment}, False)


async def test_too_much_output_ends_the_program(sandbox_env: SandboxEnvironment) -> None:
    with override_max_exec_output_size(1000), pytest.raises(OutputLimitExceededError) as caught:
        await sandbox_env.exec(["yes"])
    assert caught.value.truncated_output == "y\n" * 500
    assert "yes" not in (await sandbox_env.exec(["ps"])).stdout.split()


async def test_output_that_is_not_text(sandbox_env: SandboxEnvironment) -> None:
    assert (await sandbox_env.exec(["printf", "a\\377b"])).stdout == "a\N{REPLACEMENT CHARACTER}b"
    await sandbox_env.write_file("file", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await sandbox_env.read_file("file")


async def test_a_program_that_does_not_exist(sandbox_env: SandboxEnvironment) -> None:
    result = await sandbox_env.exec(["missing"])
    assert (result.success, result.returncode) == (False, 127)
    assert "missing: executable file not found in $PATH" in result.stderr


async def test_a_directory_that_does_not_exist(sandbox_env: SandboxEnvironment) -> None:
    result = await sandbox_env.exec(["true"], cwd="/missing")
    assert (result.success, result.returncode) == (False, 126)
    assert "/missing" in result.stderr


async def test_a_sandbox_that_has_ended(image: Path, options: dict[str, Any]) -> None:
    environment = await start(SandboxConfig(image=str(image), options=options))
    await environment.as_type(OciSandbox).sandbox.close()
    with pytest.raises(SandboxUnavailableError):
        await environment.exec(["true"])
    with pytest.raises(ConnectionError):
        await environment.connection()


async def test_a_connection(image: Path, options: dict[str, Any]) -> None:
    environment = await start(SandboxConfig(image=str(image), options=options))
    try:
        connection = await environment.connection(user="worker")
    finally:
        await OciSandbox.sample_cleanup("task", None, {"default": environment}, False)
    words = [sys.executable, "-m", "ociruntime", "--root", options["state_root"], "exec", "--tty", "--user", "worker"]
    assert connection.command.split() == [*words, options["name"], "sh"]


async def test_a_service_that_cannot_start_leaves_no_other(image: Path, state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = {"first": (str(image), {"state_root": state_root}), "second": (f"{image}/missing.sif", {"state_root": state_root})}
    monkeypatch.setattr("ociruntime.integrations.inspect_ai._services", lambda _: services)
    with pytest.raises(OSError, match=r"missing\.sif"):
        await OciSandbox.sample_init("task", None, {})
    assert oci.Container.list(state_root=state_root) == []


COMPOSE = """
services:
  helper:
    image: helper.sif
  main:
    x-default: true
    image: images/main.sif
    command: tail -f /dev/null
    init: true
    working_dir: /work
    environment: [A=1]
    user: "1000"
    mem_limit: 512m
    cpus: 0.5
    network_mode: none
    volumes: ["./data:/data:ro", {type: bind, source: /srv, target: /srv}]
    x-ociruntime: {limits: if possible, disk: 1g}
    x-other: 1
"""


def test_a_compose_file(tmp_path: Path) -> None:
    path = tmp_path / "compose.yaml"
    path.write_text(COMPOSE)
    services = _services(str(path))
    assert list(services) == ["main", "helper"]
    assert services["helper"] == (f"{tmp_path}/helper.sif", {})
    image, options = services["main"]
    assert image == f"{tmp_path}/images/main.sif"
    assert options == {
        "cwd": "/work",
        "env": ["A=1"],
        "user": "1000",
        "memory": "512m",
        "cpus": 0.5,
        "network": "none",
        "mounts": [(f"{tmp_path}/data", "/data", "ro"), ("/srv", "/srv", "rw")],
        "limits": "if possible",
        "disk": "1g",
    }


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"privileged": True}, r"services\.a\.privileged: a sandbox does not have this; it takes image, working_dir, "),
        ({"network_mode": "bridge"}, r"services\.a\.network_mode: 'bridge' is not 'none' or 'host'"),
        ({"environment": ["A=1", "B"]}, r"services\.a\.environment: 'B' has no value"),
        ({"environment": {"B": None}}, r"services\.a\.environment: 'B' has no value"),
        ({"x-ociruntime": ["disk"]}, r"services\.a\.x-ociruntime: \['disk'\] is not a mapping of keywords"),
        ({"volumes": ["data:/data"]}, r"services\.a\.volumes: 'data' is not the path of a file or directory"),
        ({"image": None, "build": "."}, r"services\.a\.image: missing; name the path of an image"),
    ],
)
def test_what_a_sandbox_does_not_have(member: dict[str, Any], message: str) -> None:
    config = ComposeConfig.model_validate({"services": {"a": {"image": "image.sif", **member}}})
    with pytest.raises(ValueError, match=message):
        _services(config)


def test_a_file_that_is_not_named_as_a_compose_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tools\.yaml: not an image; a compose file is named compose\.yaml, "):
        _services(f"{tmp_path}/tools.yaml")
    (tmp_path / "tools-compose.yaml").write_text(COMPOSE)
    assert list(_services(f"{tmp_path}/tools-compose.yaml")) == ["main", "helper"]


def test_no_image() -> None:
    with pytest.raises(ValueError, match=r"^sandbox 'ociruntime': no image; give its path"):
        _services(None)


def test_the_configuration_of_a_log_is_read_again(image: Path) -> None:
    for config in (SandboxConfig(image=str(image), options={"memory": "64M"}), ComposeConfig.model_validate({"services": {}})):
        assert OciSandbox.config_deserialize(config.model_dump(exclude_none=True)) == config
        assert hash(config) == hash(config.model_copy())


def test_the_example_of_an_evaluation(image: Path, script: Script, tmp_path: Path) -> None:
    """In a process of its own: Inspect has threads and files that stay open."""
    example = Path(__file__).parents[2] / "examples/evaluation.py"
    text = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    assert script(text, example, image, tmp_path / "logs").stdout == "2 samples: accuracy 1.0\n"
