"""Kernels of Jupyter in containers: they run, are interrupted and restarted, and leave nothing behind however they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.kernels import build_kernel_image
from ..support.users import run_tests_as_user
from ..support.waiting import SLOWER, TIME_LIMIT, wait_until

jupyter_client = pytest.importorskip("jupyter_client", reason="no jupyter_client; run the session integrations")
nbclient = pytest.importorskip("nbclient", reason="no nbclient; run the session integrations")
nbformat = pytest.importorskip("nbformat", reason="no nbformat; run the session integrations")

IMAGE = "OCIRUNTIME_TEST_KERNEL_IMAGE"
"""The variable that names the image, in the tests that run as another user."""


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """A SIF file with ipykernel that every user may read."""
    if IMAGE in os.environ:
        yield os.environ[IMAGE]
        return
    if shutil.which("mksquashfs") is None:
        pytest.skip("no mksquashfs (Debian: squashfs-tools)")
    with tempfile.TemporaryDirectory(prefix="ociruntime-kernel-image-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        Path(directory, "root").mkdir()
        build_kernel_image(Path(directory, "python.sif"), Path(directory, "root"))
        os.chmod(f"{directory}/python.sif", 0o644)
        yield f"{directory}/python.sif"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A state directory with a path that is short enough for sockets, where kernel specs are too."""
    with tempfile.TemporaryDirectory(prefix="k", dir="/var/tmp") as directory:
        for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
            monkeypatch.setenv(name, f"{directory}/{name.lower()}")
        yield f"{directory}/s"


Install = Callable[..., str]


@pytest.fixture
def install(image: str, state: str) -> Install:
    """Installs a kernel spec by the command, and returns its name."""

    def run(*options: str, network: str = "none") -> str:
        name = f"k-{network}"
        command = [
            sys.executable,
            "-P",
            "-m",
            "ociruntime",
            "kernelspec",
            "install",
            "--name",
            name,
            "--network",
            network,
            *options,
            image,
        ]
        (place,) = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        file = Path(place, "kernel.json")
        document = json.loads(file.read_text())
        document["metadata"]["kernel_provisioner"]["config"]["options"]["state_root"] = state
        file.write_text(json.dumps(document))
        return name

    return run


class Kernel:
    """A running kernel and its client."""

    def __init__(self, name: str, state: str) -> None:
        self.manager = jupyter_client.KernelManager(kernel_name=name)
        self.state = state
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIME_LIMIT)

    def run(self, code: str) -> str:
        """Execute code, and return what it prints, or the name of the exception. An exception does not abort what follows."""
        printed: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                printed.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, output_hook=collect, stop_on_error=False, timeout=TIME_LIMIT)["content"]
        return "".join(printed).strip() if reply["status"] == "ok" else str(reply["ename"])

    def interrupt(self, code: str) -> str:
        """Interrupt code when it has printed, and return the name of the exception."""
        request = self.client.execute(code, stop_on_error=False)
        while self.client.get_iopub_msg(timeout=TIME_LIMIT)["msg_type"] != "stream":
            pass
        self.manager.interrupt_kernel()
        while (reply := self.client.get_shell_msg(timeout=TIME_LIMIT))["parent_header"].get("msg_id") != request:
            pass
        return str(reply["content"].get("ename"))

    @property
    def container(self) -> oci.Container:
        (container,) = oci.Container.list(state_root=self.state)
        return container

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()


@contextmanager
def started(name: str, state: str) -> Iterator[Kernel]:
    kernel = Kernel(name, state)
    try:
        yield kernel
    finally:
        kernel.close()
    assert oci.Container.list(state_root=state) == []
    assert os.listdir(f"{state}/.kernels") == []
    assert not os.path.exists(kernel.manager.connection_file)


def _networks() -> list[Any]:
    programs = shutil.which("pasta") or shutil.which("slirp4netns")
    no_private = pytest.mark.skipif(not programs or not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="no private networks")
    return ["none", "host", pytest.param("private", marks=no_private)]


@pytest.mark.parametrize("network", _networks())
def test_a_notebook_is_executed(install: Install, state: str, tmp_path: Path, network: str) -> None:
    code = "import os, json; print(os.getuid(), os.readlink('/proc/self/ns/pid'), json.load(open('/run/ociruntime-kernel.json'))['transport'])"
    cells = [
        nbformat.v4.new_code_cell(text)
        for text in (code, "import ociruntime", "!echo $((6 * 7))", "print(os.listdir('/sys/class/net'))")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name=install(network=network), timeout=TIME_LIMIT, allow_errors=True).execute()
    first, absent, shell, interfaces = (cell.outputs for cell in notebook.cells)
    uid, namespace, transport = first[0].text.split()
    assert int(uid) == os.getuid()
    assert namespace != os.readlink("/proc/self/ns/pid")
    assert transport == ("tcp" if network == "host" else "ipc")
    assert absent[0].ename == "ModuleNotFoundError"  # it is not the Python of the host
    assert shell[0].text.strip() == "42"
    assert (interfaces[0].text.strip() == str(os.listdir("/sys/class/net"))) is (network == "host")
    assert oci.Container.list(state_root=state) == []
    assert os.listdir(f"{state}/.kernels") == []


@pytest.mark.parametrize("network", ["none", "host"])
def test_a_kernel_is_interrupted_and_restarted(install: Install, state: str, network: str) -> None:
    with started(install(network=network), state) as kernel:
        assert kernel.interrupt("import time; print('begun', flush=True); time.sleep(1000)") == "KeyboardInterrupt"
        kernel.run("x = 5; open('/tmp/left', 'w').close()")
        assert (
            kernel.interrupt("import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '1000'])")
            == "KeyboardInterrupt"
        )
        assert kernel.run("print(x)") == "5"
        before = kernel.container
        kernel.manager.restart_kernel()
        kernel.client.wait_for_ready(timeout=TIME_LIMIT)
        assert kernel.run("print(x)") == "NameError"
        assert kernel.run("import os; print(os.path.exists('/tmp/left'))") == "False"
        assert kernel.container.id != before.id


def test_a_kernel_that_dies_is_restarted(install: Install, state: str) -> None:
    with started(install(), state) as kernel:
        kernel.run("import subprocess; subprocess.Popen(['sleep', '1000'])")
        kernel.client.execute("import os; os._exit(3)")
        wait_until(lambda: not kernel.manager.is_alive(), "the end of the kernel")
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=TIME_LIMIT)
        assert kernel.run("print(1)") == "1"


STARTER = """
import sys, time, jupyter_client
manager = jupyter_client.KernelManager(kernel_name=sys.argv[1])
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=float(sys.argv[2]))
print("ready", flush=True)
time.sleep(1000)
"""


def test_nothing_runs_on_after_jupyter_is_killed(install: Install, state: str) -> None:
    name = install()
    with subprocess.Popen(
        [sys.executable, "-P", "-c", STARTER, name, str(TIME_LIMIT)], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n"
        (container,) = oci.Container.list(state_root=state)
        pids = container.processes()
        assert len(pids) >= 2
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the end of the kernel")
    with started(name, state) as kernel:  # which removes what is left
        assert kernel.container.id != container.id
        assert len(os.listdir(f"{state}/.kernels")) == 1


def test_directories_and_variables(install: Install, state: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("from the host")
    name = install("--bind", f"{tmp_path}:/data:ro", "--env", "A=1", "--memory", "-1", "--hostname", "inside")
    with started(name, state) as kernel:
        assert kernel.run("print(open('/data/data').read())") == "from the host"
        assert kernel.run("import os, socket; print(os.environ['A'], socket.gethostname())") == "1 inside"
        assert kernel.run("open('/data/new', 'w')") == "OSError"
        assert kernel.run("from pathlib import Path; (Path.home() / 'new').write_text('x'); print('written')") == "written"


def test_the_home_directory_with_hpc(install: Install, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with started(install("--hpc", "--home", f"{tmp_path}:/home/me"), state) as kernel:
        kernel.run("from pathlib import Path; (Path.home() / 'made').write_text('x')")
    assert (tmp_path / "made").read_text() == "x"
    assert (tmp_path / "made").stat().st_uid == os.getuid()


def test_what_cannot_be_started(install: Install, state: str) -> None:
    name = install()
    file = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name, "kernel.json")
    document = json.loads(file.read_text())

    def start(**changes: Any) -> None:
        config = document["metadata"]["kernel_provisioner"]["config"]
        file.write_text(
            json.dumps(
                {
                    **document,
                    "metadata": {"kernel_provisioner": {"provisioner_name": "ociruntime", "config": {**config, **changes}}},
                }
            )
        )
        manager = jupyter_client.KernelManager(kernel_name=name)
        try:
            manager.start_kernel()
        finally:
            manager.cleanup_resources()

    with pytest.raises(FileNotFoundError):
        start(image="/nonexistent.sif")
    with pytest.raises(TypeError, match="did you mean 'memory'"):
        start(options={"memroy": 5})
    with pytest.raises(oci.UnsupportedError, match="too long for the path of a Unix socket"):
        start(options={"state_root": f"{state}/{'x' * 100}"})
    assert not os.path.exists(state) or (oci.Container.list(state_root=state) == [] and os.listdir(f"{state}/.kernels") == [])


def test_the_command_says_what_is_wrong(image: str, state: str) -> None:
    def fail(*words: str) -> str:
        command = [sys.executable, "-P", "-m", "ociruntime", "kernelspec", "install", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert not Path(os.environ["JUPYTER_DATA_DIR"]).exists()
        return done.stderr

    assert "{connection_file} is needed" in fail(image, "python3", "-m", "kernel")
    assert "no such file" in fail("/nonexistent.sif")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as empty:
        os.chmod(empty, 0o755)
        assert "cannot import ipykernel; install it in the image" in fail(empty)
    assert "needs --network private" in fail("--publish", "80:80", image)
    assert "a name of ASCII letters" in fail("--name", "a/b", image)
    assert "/nonexistent" in fail("--bind", "/nonexistent:/x", image)
    assert "not allowed with" in fail("--user", "--prefix", "/x", image)


@pytest.mark.root
@pytest.mark.skipif(SLOWER > 1, reason="kernels start slowly here")
def test_as_a_user(image: str, user_python: str, prefix: str) -> None:
    run_tests_as_user(
        user_python, prefix, "integrations/test_kernels.py", "-k", "notebook or interrupted or killed or hpc", env={IMAGE: image}
    )
