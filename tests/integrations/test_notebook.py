"""Notebooks are executed, and show values of the package."""

from __future__ import annotations

import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ..support.places import REPO
from ..support.users import run_tests_as_user
from ..support.waiting import SLOWER

nbclient = pytest.importorskip("nbclient", reason="no nbclient; run the session integrations")
nbformat = pytest.importorskip("nbformat", reason="no nbformat; run the session integrations")


@pytest.fixture(autouse=True)
def own_directories(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the files of Jupyter and IPython out of the home directory."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))


def execute(directory: Path, *cells: str, kernel: str = "python3") -> list[list[Any]]:
    """Execute a notebook of these cells; return the outputs of each."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, kernel_name=kernel, timeout=60 * SLOWER, resources={"metadata": {"path": str(directory)}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_profile_is_shown(tmp_path: Path) -> None:
    ((), (output,)) = execute(tmp_path, "import ociruntime as oci", "oci.Profile('<b>', ())")
    assert "&lt;b&gt;: 0.000 ms" in output.data["text/html"]


def test_cells_run_in_containers(tmp_path: Path, busybox_sif: Path) -> None:
    image = shlex.quote(str(busybox_sif))
    _, cell, line, result, shown = execute(
        tmp_path,
        f"%load_ext ociruntime\n%container {image} true",  # the first use may warn that FUSE cannot be used
        f"%%container --env A=1 {image}\necho $A; hostname >&2",
        f"%container {image} echo 'two words'",
        f"%%container --result found {image} sh -s x\necho $1; exit 3",
        "found",
    )
    assert {output.name: output.text for output in cell} == {"stdout": "1\n", "stderr": "ociruntime\n"}
    assert line[0].text == "two words\n"
    assert result[0].text == "x\n"
    assert "exit code 3" in shown[0].data["text/html"]


@pytest.mark.parametrize(
    ("cell", "error", "message"),
    [
        ("%%container IMAGE\nexit 3", "ProcessError", "ended with 3"),
        ("%%container --bogus IMAGE\nls", "ValueError", "the arguments are wrong"),
        ("%%container --result 1 IMAGE\nls", "ValueError", "the name of a variable is needed"),
        ("%%container --detach IMAGE\nls", "ValueError", "--detach cannot be used with an image"),
        ("%%container -t IMAGE\nls", "ValueError", "not a terminal"),
        ("%%container --verify IMAGE\nls", "ValueError", "verified by its signatures"),
    ],
)
def test_wrong_cells_fail(tmp_path: Path, busybox_sif: Path, cell: str, error: str, message: str) -> None:
    with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
        execute(tmp_path, "%load_ext ociruntime\n" + "import ociruntime", cell.replace("IMAGE", shlex.quote(str(busybox_sif))))
    assert caught.value.ename == error
    assert message in caught.value.evalue
    assert "load_ipython_extension" not in caught.value.traceback  # at most the frame that raises the exception is shown


def test_progress_is_shown_in_the_cell(tmp_path: Path, busybox_rootfs: Path) -> None:
    code = f"""
    import time, ociruntime as oci
    with oci.progress_bar("<building>") as progress:
        oci.build({str(busybox_rootfs)!r}, "new.sif", progress=lambda *state: (time.sleep(0.15), progress(*state)))
    with oci.progress_bar(quiet=True) as progress:
        print(progress)
    """
    ((bar, quiet),) = execute(tmp_path, textwrap.dedent(code))
    assert "<progress max=" in bar.data["text/html"]
    assert "&lt;building> 100 % of " in bar.data["text/html"]
    assert quiet.text == "None\n"


def test_the_page_about_notebooks(tmp_path: Path, busybox_rootfs: Path, busybox_sif: Path) -> None:
    """Its cells run in order, and each but the loading of the extension shows something."""
    shutil.copytree(busybox_rootfs, tmp_path / "rootfs", symlinks=True)
    shutil.copy(busybox_sif, tmp_path / "busybox.sif")
    cells = re.findall(r"^```(?:python|text)\n(.*?)^```$", (REPO / "docs/notebook.md").read_text(), re.MULTILINE | re.DOTALL)
    outputs = execute(tmp_path, *cells)
    shown = {cell: [str(output.get("data") or output.text) for output in found] for cell, found in zip(cells, outputs, strict=True)}
    silent = [cell for cell, found in shown.items() if not found]
    assert [cell.split()[0] for cell in silent] == ["%load_ext"]
    text = "".join(output for found in shown.values() for output in found)
    for part in (
        "stdout, 100 lines",
        "On the host, before the clone",
        "/work/a",
        "1 difference",
        "hello from ociruntime",
        "building new.sif 100 %",
    ):
        assert part in text


@pytest.mark.root
def test_as_a_user(user_python: str, prefix: str) -> None:
    run_tests_as_user(user_python, prefix, "integrations/test_notebook.py", "-k", "cells_run or progress")
