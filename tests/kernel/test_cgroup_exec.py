"""Which cgroups a further process runs in: the container's own, or one that the container has made below them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.cli import main

from ..support.cgroups import Limited, directory, on_v2, own_cgroups, pure_v2
from ..support.fixture_types import MakeBundle

pytestmark = [pytest.mark.root, pytest.mark.vm]
OWN = ["cat", "/proc/self/cgroup"]


@pytest.fixture
def container(make_bundle: MakeBundle, state_root: Path, prefix: str) -> Iterator[oci.Container]:
    with Limited(make_bundle, state_root, prefix)({}, start=True) as container:
        yield container


def cgroups_of_exec(container: oci.Container, **more: Any) -> dict[str, str]:
    """The cgroups of a further process, by the hierarchy's controllers; ``""`` is that of v2.

    The one that the runtime makes below them, to know what the process starts, is left out.
    """
    lines = container.exec(OWN, capture_output=True, text=True, check=True, **more).stdout.splitlines()
    return {names: re.sub("/ociruntime@exec-[0-9a-f]+$", "", path) for _, names, path in (line.split(":", 2) for line in lines)}


def make_everywhere(container: oci.Container, name: str) -> None:
    for path in own_cgroups(container):
        (path / name).mkdir()
        if (cpus := path / "cpuset.cpus").exists() and on_v2("cpuset") is False:
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / name / file).write_text((cpus.parent / file).read_text())


def test_one_path_for_all(container: oci.Container, state_root: Path) -> None:
    make_everywhere(container, "inner")
    top = cgroups_of_exec(container)
    for way in ("inner", "/inner", "./inner/", "//inner"):
        assert cgroups_of_exec(container, cgroup=way) == {
            names: f"{path}/inner" if path != "/" else path for names, path in top.items()
        }, way
    assert cgroups_of_exec(container, cgroup="/") == top
    assert len(container.processes()) == 1
    command = [
        "--root",
        str(state_root),
        "exec",
        "--cgroup",
        "inner",
        container.id,
        "sh",
        "-c",
        "grep -q /inner$ /proc/self/cgroup",
    ]
    assert main(command) == 0


def test_paths_by_controller(container: oci.Container) -> None:
    pids = directory(container, "pids")
    (pids / "some").mkdir()
    found, top = cgroups_of_exec(container, cgroup={"pids": "some"}), cgroups_of_exec(container)
    changed = {names for names in found if found[names] != top[names]}
    assert [found[names] for names in changed] == [f"{top[names]}/some" for names in changed]
    assert changed == {next(names for names in found if names.split(",") == ["pids"] or (on_v2("pids") and names == ""))}


@pytest.mark.parametrize(
    ("wanted", "error", "text"),
    [
        ("..", ValueError, "bad sub cgroup path: it leads out"),
        ("a/../../b", ValueError, "leads out"),
        ("nowhere", FileNotFoundError, "adding pid .*no such file or directory.*nowhere"),
        ({"pids": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"nothing": "a"}, ValueError, "unknown controller 'nothing'"),
        ({"pids": "../b"}, ValueError, "leads out"),
    ],
)
def test_what_is_refused(container: oci.Container, wanted: str | dict[str, str], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        container.exec(["true"], cgroup=wanted)
    assert len(container.processes()) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a", "b"], "one of several needs its controllers"),
        ([":a"], "a controller has no name"),
        (["pids,:a"], "a controller has no name"),
        (["pids,pids:a"], "pids is given twice"),
        (["pids:a", "memory,pids:b"], "pids is given twice"),
        (["pids:../a"], "leads out"),
        (["nowhere"], "no such file or directory; create it first"),
    ],
)
def test_what_the_command_refuses(
    container: oci.Container, state_root: Path, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for each in words for word in ("--cgroup", each)]
    assert main(["--root", str(state_root), "exec", *options, container.id, "true"]) == 255
    assert text in capsys.readouterr().err


def test_the_command_takes_paths_by_controller(container: oci.Container, state_root: Path) -> None:
    (directory(container, "pids") / "some").mkdir()
    command = [
        "--root",
        str(state_root),
        "exec",
        "--cgroup",
        "pids:some",
        container.id,
        "grep",
        "-q",
        "/some",
        "/proc/self/cgroup",
    ]
    assert main(command) == 0


@pure_v2
def test_where_the_container_hands_controllers_on(container: oci.Container) -> None:
    """As a systemd in a container does it on v2: its own cgroup takes no further process."""
    own = directory(container, "")
    (own / "init").mkdir()
    (own / "init/cgroup.procs").write_text(str(container.pid))
    (own / "cgroup.subtree_control").write_text("+pids")
    assert cgroups_of_exec(container)[""].endswith("/init")
    with pytest.raises(oci.StepError, match="enables controllers for its children") as caught:
        container.exec(["true"], cgroup="/")
    assert caught.value.errno == errno.EBUSY
    (own / "other").mkdir()
    assert cgroups_of_exec(container, cgroup="other")[""].endswith("/other")
    assert len(container.processes()) == 1


@pure_v2
def test_a_container_that_left_its_cgroup(container: oci.Container, prefix: str) -> None:
    """Who sees the host's cgroups, and may write there, can do so."""
    own = directory(container, "")
    elsewhere = own.parent / f"{prefix}-elsewhere"
    elsewhere.mkdir()
    try:
        (elsewhere / "cgroup.procs").write_text(str(container.pid))
        own.rmdir()
        with container.popen(["sleep", "1000"]) as process:  # which sees that cgroup as its root
            seen = Path(f"/proc/{process.pid}/cgroup").read_text()
            process.kill()
        assert seen.endswith(f"/{prefix}-elsewhere\n")
    finally:
        container.delete(force=True)
        os.rmdir(elsewhere)
