"""Dask tasks in containers on a cluster of this machine."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci

from ..support.places import REPO
from ..support.waiting import TIME_LIMIT, wait_until

pytest.importorskip("distributed", reason="no Dask; run the session integrations")
from distributed import Client, LocalCluster

from ociruntime.integrations import dask as containers

pytestmark = pytest.mark.root

HOST = [
    (path, path, "ro") for path in dict.fromkeys([sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64"]) if os.path.isdir(path)
]
"""Mounts with which busybox has the Python of the tests."""


@pytest.fixture
def dask() -> Iterator[Client]:
    """A client of a scheduler and a worker with two threads, in this process. It ends before descriptors are counted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
        with LocalCluster(**options) as cluster, Client(cluster) as client:
            yield client


@pytest.fixture
def options(state_root: Path) -> Any:
    return {"state_root": state_root}


def left(state_root: Path) -> list[str]:
    """Return what is left of containers."""
    runs = state_root / ".runs"
    return [
        *(container.id for container in oci.Container.list(state_root=state_root)),
        *(os.listdir(runs) if runs.exists() else ()),
    ]


def test_programs(dask: Client, busybox_rootfs: Path, options: Any, state_root: Path) -> None:
    futures = [
        dask.submit(containers.run, busybox_rootfs, ["echo", str(number)], capture_output=True, text=True, **options)
        for number in range(6)
    ]
    assert [result.stdout for result in dask.gather(futures)] == [f"{number}\n" for number in range(6)]
    assert left(state_root) == []


def test_the_recipe(dask: Client, busybox_rootfs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe of the documentation, with this cluster, and with programs that are there."""
    page = (REPO / "docs/fleets.md").read_text()
    (recipe,) = re.findall(r"^```python\nfrom dask.distributed import Client\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for shown, here in {
        '"/images/tool.sif", ["tool"': f'{str(busybox_rootfs)!r}, ["echo"',
        '"/images/python.sif"': f"{str(busybox_rootfs)!r}, python={sys.executable!r}, mounts={HOST!r}",
    }.items():
        assert shown in recipe
        recipe = recipe.replace(shown, here)
    exec(recipe, {"Client": lambda: dask, "__name__": "__main__"})
    assert capsys.readouterr().out == f"input\n\n{[number * number for number in range(8)]}\n"


def test_a_program_that_fails(dask: Client, busybox_rootfs: Path, options: Any) -> None:
    future = dask.submit(containers.run, busybox_rootfs, ["false"], check=True, **options)
    with pytest.raises(oci.ProcessError):
        future.result(timeout=TIME_LIMIT)


def test_a_cancelled_task_leaves_nothing(dask: Client, busybox_rootfs: Path, options: Any, state_root: Path) -> None:
    future = dask.submit(containers.run, busybox_rootfs, ["sleep", "1000"], pure=False, **options)
    wait_until(lambda: [c.status for c in oci.Container.list(state_root=state_root)] == [oci.Status.RUNNING], "the container")
    (container,) = oci.Container.list(state_root=state_root)
    pid = container.state.pid
    future.cancel()
    wait_until(lambda: not left(state_root), "the end of the container")
    assert not os.path.exists(f"/proc/{pid}")
    again = dask.submit(containers.run, busybox_rootfs, ["true"], pure=False, **options)  # the thread of the worker is free
    assert again.result(timeout=TIME_LIMIT).returncode == 0


def test_functions(dask: Client, busybox_rootfs: Path, options: Any, state_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    offset = 10

    @containers.in_container(busybox_rootfs, python=sys.executable, mounts=HOST, hostname="inside", **options)
    def add(number: int, *, twice: bool = False) -> tuple[int, str]:
        print("printed", number)
        return (number + offset) * (2 if twice else 1), os.uname().nodename

    assert dask.gather(dask.map(add, range(3))) == [(10, "inside"), (11, "inside"), (12, "inside")]
    assert dask.submit(add, 1, twice=True).result(timeout=TIME_LIMIT) == (22, "inside")
    assert "printed 2\n" in capfd.readouterr().err
    assert left(state_root) == []
    assert repr(add) == f"<add in a container of {busybox_rootfs}>"


def test_an_exception_of_a_function(dask: Client, busybox_rootfs: Path, options: Any) -> None:
    @containers.in_container(busybox_rootfs, python=sys.executable, mounts=HOST, **options)
    def divide(number: int) -> float:
        return 1 / number

    with pytest.raises(ZeroDivisionError) as caught:
        dask.submit(divide, 0).result(timeout=TIME_LIMIT)
    assert "in divide" in "".join(caught.value.__notes__)


def test_a_function_that_ends_its_process(busybox_rootfs: Path, options: Any) -> None:
    @containers.in_container(busybox_rootfs, python=sys.executable, mounts=HOST, **options)
    def leave() -> None:
        sys.exit("enough")

    with pytest.raises(oci.OCIRuntimeError, match=f"^leave in {busybox_rootfs}: (.|\n)*enough"):
        leave()


def test_another_python(busybox_rootfs: Path, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    @containers.in_container(busybox_rootfs, python=sys.executable, mounts=HOST, **options)
    def nothing() -> None: ...

    own = "{}.{}".format(*sys.version_info)
    monkeypatch.setattr("sys.version_info", (2, 7, 18, "final", 0))
    with pytest.raises(
        oci.OCIRuntimeError, match=rf"Python {own} in the image, 2\.7 of the worker: a function needs the same version"
    ):
        nothing()


def test_options_that_a_function_needs_itself() -> None:
    with pytest.raises(TypeError, match=r"^in_container\(\) got 'input': the function and its result take stdin and stdout$"):
        containers.in_container("image.sif", input=b"")
