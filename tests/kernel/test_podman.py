"""podman with this runtime, as root and as a user: with cgroupfs, and with the systemd cgroup manager in the machine of tests/vm."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.clients import Client, criu_works, needs
from ..support.places import MiB
from ..support.users import UID
from ..support.waiting import wait_until

pytestmark = [pytest.mark.root, needs("podman", "conmon")]

CONFIGURATION = """
[containers]
default_ulimits = [{ulimits}]

[engine]
runtime = "ociruntime"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/tmp"

[engine.runtimes]
ociruntime = ["{runtime}"]
"""
STORAGE = """
[storage]
driver = "vfs"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
"""


class Podman:
    """podman with all its files in the directory of a client, and an image of busybox named as the prefix."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # podman asks for high limits, which need CAP_SYS_RESOURCE. As a user it asks for those that the user has.
        ulimits = "" if client.user else '"nofile=1024:1024", "nproc=1024:1024"'
        for name, text in (("CONTAINERS_CONF", CONFIGURATION), ("CONTAINERS_STORAGE_CONF", STORAGE)):
            path = client.path / f"{name}.conf"
            path.write_text(text.format(directory=client.path, runtime=client.runtime, ulimits=ulimits))
            client.env[name] = str(path)
        self("import", "-q", client.archive, client.prefix)

    def __call__(self, *words: object, code: int = 0, input: str = "") -> str:
        return self.client.run("podman", *words, code=code, input=input)

    def run(self, *words: object, code: int = 0, input: str = "") -> str:
        """Run a container without a network."""
        # The cgroup of conmon would stay, also in hierarchies that are not mounted.
        network = ("--network", "none", "--cgroups", "no-conmon", "--cgroup-parent", f"/{self.client.prefix}")
        return self("run", *(network if self.client.user == 0 else network[:2]), *words, code=code, input=input)

    def status(self, name: str) -> str:
        return self("inspect", "--format", "{{.State.Status}} {{.OCIRuntime}}", name)

    def close(self) -> None:
        """End the process that holds the namespaces of a user's containers."""
        if self.client.user:
            self("system", "migrate")


@pytest.fixture(params=["root", "user"])
def podman(client: Client, request: pytest.FixtureRequest) -> Iterator[Podman]:
    if request.param == "user":
        client.become(UID)
    podman = Podman(client)
    yield podman
    podman.close()


def test_containers_in_the_foreground(podman: Podman) -> None:
    """Exit codes, streams, terminals, errors and options of one container each."""
    image = podman.client.prefix
    assert podman.run("--rm", image, "sh", "-c", "id -u; exit 3", code=3) == "0"
    assert podman.run("--rm", "-i", image, "cat", input="text") == "text"
    assert podman.run("--rm", "-t", image, "tty").strip() == "/dev/pts/0"
    podman.run("--rm", image, "nope", code=127)
    podman.run("--rm", image, "/etc/passwd", code=126)
    podman.run("--rm", "--read-only", "--tmpfs", "/scratch", image, "sh", "-c", "echo > /scratch/a && ! echo > /b")
    assert podman.run("--rm", "--env", "A=b", "--workdir", "/tmp", image, "sh", "-c", "pwd; echo $A") == "/tmp\nb"
    podman.run("--rm", "--pid", "host", image, "true")
    assert podman("ps", "--all", "--quiet") == ""


def test_a_container_in_the_background(podman: Podman) -> None:
    """Start, exec, logs, stop, restart and commit."""
    image = name = podman.client.prefix
    program = "trap 'exit 5' TERM; echo started; while true; do sleep 0.1; done"
    podman.run("--detach", "--name", name, image, "sh", "-c", program)
    assert podman("exec", name, "sh", "-c", "echo out; exit 7", code=7) == "out"
    assert podman("exec", "-i", name, "cat", input="text") == "text"
    assert podman("exec", "-t", name, "tty").strip() == "/dev/pts/0"
    podman("exec", name, "nope", code=127)
    assert "while true" in podman("top", name, "args")
    podman("stop", "--time", "50", name)
    assert podman("logs", name) == "started"
    assert podman.status(name) == "exited ociruntime"
    assert podman("wait", name) == "5"
    podman("start", name)
    podman("exec", name, "touch", "/new")
    podman("commit", "--quiet", name, f"{name}-copy")
    podman("rm", "--force", "--time", "0", name)
    assert podman.run("--rm", f"{name}-copy", "ls", "/new") == "/new"


def test_an_image_is_built(podman: Podman) -> None:
    image, directory = podman.client.prefix, podman.client.path / "context"
    directory.mkdir()
    (directory / "Containerfile").write_text(f"FROM localhost/{image}\nRUN echo built > /built && id -u >> /built\n")
    podman("build", "--quiet", "--isolation", "oci", "--network", "none", "--tag", "built", directory)
    assert podman.run("--rm", "built", "cat", "/built") == "built\n0"


def test_limits(client: Client) -> None:
    podman, name = Podman(client), client.prefix
    podman.run("--detach", "--name", name, "--memory", "64m", "--pids-limit", "50", name, "sleep", "1000")
    assert podman.status(name) == "running ociruntime"
    [container] = oci.Container.list(state_root=client.state)
    assert (container.stats().memory.limit, container.stats().pids.limit) == (64 * MiB, 50)
    podman("pause", name)
    assert podman.status(name) == "paused ociruntime"
    podman("unpause", name)
    podman("update", "--memory", "80m", name)
    assert container.stats().memory.limit == 80 * MiB
    assert podman("stats", "--no-stream", "--format", "{{.PIDs}}", name) == "1"
    podman("kill", name)
    assert podman("wait", name) == "137"
    podman("rm", name)


USER = [
    "setpriv", "--reuid=tester", "--regid=tester", "--init-groups", "env", "HOME=/home/tester", "XDG_RUNTIME_DIR=/run/user/1000",
    "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus",
]  # fmt: skip


@pytest.mark.skipif("VMTEST" not in os.environ, reason="for the machine of tests/vm with podman")
@pytest.mark.parametrize("who", ["root", "user"])
def test_a_container_of_systemd(client: Client, who: str) -> None:
    """All that an engine does with one, by its own words."""
    # Not by as-user: the service that it is would end, and take along what podman leaves behind.
    prefix, whose = client.prefix, USER if who == "user" else []
    if whose:
        client.become(1000)
    subprocess.run(["systemctl", "start", "user@1000.service"], check=True)
    engine = ["podman", "--runtime", client.runtime, "--cgroup-manager", "systemd", "--events-backend", "file"]

    def podman(*words: str, code: int = 0) -> list[str]:
        done = subprocess.run([*whose, *engine, *words], capture_output=True, text=True, cwd="/", stdin=subprocess.DEVNULL)
        assert done.returncode == code, done.stderr
        return done.stdout.split("\n")[:-1]

    def units() -> str:
        command = [*whose, "systemctl", *(["--user"] if whose else []), "list-units", "--all", "--plain", "--no-legend", "libpod-*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    limits = ("--network", "none", "--memory", "64m", "--cpus", "0.5", "--pids-limit", "50")
    files = "cd /sys/fs/cgroup; cat /proc/self/cgroup memory.max cpu.max pids.max"
    podman("import", "-q", str(client.archive), prefix)
    assert podman("run", "--rm", *limits, prefix, "sh", "-c", f"{files}; exit 3", code=3) == [
        "0::/", f"{64 * MiB}", "50000 100000", "50"
    ]  # fmt: skip
    [created] = podman("run", "-d", "--name", prefix, *limits, prefix, "sleep", "1000")
    assert f"libpod-{created}.scope" in units()
    assert podman("exec", prefix, "cat", "/proc/self/cgroup") == ["0::/"]
    podman("exec", prefix, "sh", "-c", "exit 7", code=7)
    podman("update", "--memory", "80m", prefix)
    assert podman("exec", prefix, "cat", "/sys/fs/cgroup/memory.max") == [f"{80 * MiB}"]
    status = ("inspect", "--format", "{{.State.Status}}", prefix)
    podman("pause", prefix)
    assert podman(*status) == ["paused"]
    podman("unpause", prefix)
    assert "sleep 1000" in podman("top", prefix)[1]
    podman("stop", "-t", "0", prefix)
    assert podman(*status) == ["exited"]
    podman("start", prefix)
    assert podman(*status) == ["running"]
    podman("rm", "-f", "-t", "0", prefix)
    podman("rmi", prefix)
    assert units() == ""


needs_criu = pytest.mark.skipif(not criu_works(), reason="criu is missing, or does not support this kernel")


@pytest.mark.vm
@needs_criu
def test_an_exported_checkpoint(client: Client, tmp_path: Path) -> None:
    """A container that was exported and removed goes on as another one, with the files that it had changed."""
    podman, name = Podman(client), client.prefix
    program = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done"
    podman.run("--detach", "--name", name, name, "sh", "-c", program)
    wait_until(lambda: int(podman("exec", name, "cat", "/count") or 0) > 5, "the program to count")
    exported = str(tmp_path / "exported.tar.gz")
    podman("container", "checkpoint", "--export", exported, name)
    podman("rm", name)
    other = f"{name}-2"
    podman("container", "restore", "--import", exported, "--name", other)
    assert podman.status(other) == "running ociruntime"
    reached = int(podman("exec", other, "cat", "/count"))
    assert reached > 5
    wait_until(lambda: int(podman("exec", other, "cat", "/count") or 0) > reached, "the program to go on")
    podman("rm", "--force", "--time", "0", other)


@pytest.mark.vm
@needs_criu
def test_a_checkpoint(client: Client) -> None:
    """podman makes the network namespace, which the image refers to, and conmon adopts the restored process."""
    podman, name = Podman(client), client.prefix
    program = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.1; done"
    podman.run("--detach", "--name", name, name, "sh", "-c", program)

    def count() -> int:
        return int(podman("exec", name, "cat", "/count") or 0)

    wait_until(lambda: count() > 5, "the program to count")
    podman("container", "checkpoint", "--leave-running", name)
    assert podman.status(name) == "running ociruntime"
    podman("container", "checkpoint", name)
    assert podman.status(name) == "exited ociruntime"
    podman("container", "restore", name)
    assert podman.status(name) == "running ociruntime"
    reached = count()
    assert reached > 5
    wait_until(lambda: count() > reached, "the program to go on")
    assert count() < reached + 1000, "it has not begun again"
    podman("kill", name)
    assert podman("wait", name) == "137"
    podman("rm", name)


@pytest.mark.vm
@needs_criu
def test_a_checkpoint_with_a_terminal(client: Client) -> None:
    """conmon gets the master of the restored terminal, and logs what comes from it."""
    podman, name = Podman(client), client.prefix
    podman.run("--detach", "--tty", "--name", name, name, "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")

    def count() -> int:
        return max((int(line) for line in podman("logs", name).split()), default=0)

    wait_until(lambda: count() > 5, "the program to count")
    podman("container", "checkpoint", name)
    reached = count()
    podman("container", "restore", name)
    assert podman.status(name) == "running ociruntime"
    wait_until(lambda: count() > reached, "the program to go on")
    assert podman("exec", name, "readlink", "/proc/1/fd/1") == "/dev/pts/0"
    podman("rm", "-f", "-t", "0", name)
