"""containerd with this runtime in the place of runc: ctr, and the shim io.containerd.runc.v2."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.clients import Client, needs
from ..support.images import TAR_TYPE, OciImage, tar_of_tree
from ..support.places import REPO, MiB
from ..support.waiting import wait_until

pytestmark = [pytest.mark.root, needs("containerd", "ctr", "containerd-shim-runc-v2")]

IMAGE = "localhost/busybox:latest"
CONFIGURATION = """
version = 2
root = "{directory}/root"
state = "{directory}/run"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]

[grpc]
address = "{directory}/socket"

[ttrpc]
address = "{directory}/socket.ttrpc"
"""


class Containerd:
    """A containerd with all its files in the directory of a client, and an image of busybox.

    Its namespace is the prefix, which is also the parent cgroup of the containers.
    """

    def __init__(self, client: Client, rootfs: Path) -> None:
        self.client = client
        configuration = client.path / "config.toml"
        configuration.write_text(CONFIGURATION.format(directory=client.path))
        client.daemon("containerd", "--config", configuration)
        self.address = client.path / "socket"
        wait_until(self.address.exists, "the start of containerd", 60)
        image = OciImage()
        image.add([(tar_of_tree(rootfs), TAR_TYPE)], name=IMAGE)
        self("image", "import", "--snapshotter", "native", image.write_archive(client.path / "oci.tar"))

    def __call__(self, *words: object, code: int = 0) -> str:
        return self.client.run("ctr", "--address", self.address, "--namespace", self.client.prefix, *words, code=code)

    def run(self, *words: object, code: int = 0) -> str:
        """Run a container. The options are those of ``ctr run``, then the id and the words of the program."""
        options = [word for word in words if str(word).startswith("--")]
        rest = [word for word in words if word not in options]
        runtime = ("--snapshotter", "native", "--runc-binary", self.client.runtime, "--runc-root", self.client.path)
        return self("run", *runtime, *options, IMAGE, *rest, code=code)

    def error(self, *words: object) -> str:
        """Run a container that cannot be created, and return what ctr prints about it."""
        with pytest.raises(AssertionError, match="exit code 1\n") as caught:
            self.run(*words)
        return str(caught.value)

    @property
    def container(self) -> oci.Container:
        """The only container, as the runtime knows it."""
        [container] = oci.Container.list(state_root=self.client.path / self.client.prefix)
        return container

    def task(self) -> str:
        """Return the status of the only task."""
        lines = self("task", "ls").splitlines()
        return lines[1].split()[2] if len(lines) > 1 else ""


@pytest.fixture
def containerd(client: Client, busybox_rootfs: Path) -> Iterator[Containerd]:
    yield Containerd(client, busybox_rootfs)
    # When a container cannot be created, the shim asks for its removal with the default --root, which is made by that.
    with suppress(FileNotFoundError):
        Path("/run/containerd/runc", client.prefix).rmdir()


def test_containers_in_the_foreground(containerd: Containerd) -> None:
    """Exit codes, output, errors and options of one container each."""
    assert containerd.run("--rm", "one", "sh", "-c", "id -u; exit 3", code=3) == "0"
    assert containerd.run("--rm", "--cwd=/tmp", "--env=A=b", "one", "sh", "-c", "pwd; echo $A") == "/tmp\nb"
    containerd.run("--rm", "--read-only", "one", "sh", "-c", "! echo > /file")
    containerd.run("--rm", "--no-pivot", "one", "true")
    containerd.run("--rm", "--privileged", "one", "true")
    ids = containerd.run("--rm", "--uidmap=0:100000:1000", "--gidmap=0:100000:1000", "one", "cat", "/proc/self/uid_map")
    assert ids.split() == ["0", "100000", "1000"]
    for program, problem in (("nope", "executable file not found in $PATH"), ("/etc/passwd", "permission denied")):
        # The shim takes the message from the log of the runtime, and ctr prints it.
        assert problem in containerd.error("--rm", "one", program)
    assert containerd("containers", "ls", "--quiet") == ""


def test_a_container_in_the_background(containerd: Containerd) -> None:
    """Exec, pause, processes, metrics, kill and delete."""
    containerd.run("--detach", "--memory-limit=67108864", "one", "sleep", "1000")
    assert containerd.task() == "RUNNING"
    assert containerd.container.stats().memory.limit == 64 * MiB
    pid = str(containerd.container.state.pid)
    assert containerd("task", "exec", "--exec-id", "first", "one", "sh", "-c", "echo out; exit 7", code=7) == "out"
    assert pid in containerd("task", "ps", "one")
    assert f"memory.limit_in_bytes    {64 * MiB}" in containerd("task", "metrics", "one")
    containerd("task", "pause", "one")
    assert containerd.task() == "PAUSED"
    containerd("task", "resume", "one")
    containerd("task", "kill", "--signal", "SIGKILL", "one")
    wait_until(lambda: containerd.task() == "STOPPED", "the end of the task")
    containerd("task", "rm", "one")
    containerd("containers", "rm", "one")
    assert oci.Container.list(state_root=containerd.client.path / containerd.client.prefix) == []


def test_the_configuration_for_kubernetes(client: Client) -> None:
    """containerd takes the handler that the documentation shows, and serves Kubernetes with it."""
    (text,) = re.findall(r"```toml\nversion = 2\n(.*?)```", (REPO / "docs/fleets.md").read_text(), re.DOTALL)
    places = CONFIGURATION.format(directory=client.path).replace('"io.containerd.grpc.v1.cri", ', "")
    configuration = client.path / "config.toml"
    configuration.write_text(places + text)
    dump = tomllib.loads(client.run("containerd", "--config", configuration, "config", "dump"))
    handlers = dump["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]
    assert handlers["ociruntime"]["runtime_type"] == "io.containerd.runc.v2"
    assert handlers["ociruntime"]["options"] == {"BinaryName": "/usr/bin/ociruntime", "SystemdCgroup": True}
    client.daemon("containerd", "--config", configuration)
    address = client.path / "socket"
    wait_until(address.exists, "the start of containerd", 60)
    plugins = {
        tuple(line.split()[:2]): line.split()[-1] for line in client.run("ctr", "--address", address, "plugins", "ls").splitlines()
    }
    assert plugins["io.containerd.grpc.v1", "cri"] == "ok"
