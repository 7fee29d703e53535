"""Notebooks are executed, and show values of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..support.waiting import SLOWER

nbclient = pytest.importorskip("nbclient", reason="no nbclient; run the session integrations")
nbformat = pytest.importorskip("nbformat", reason="no nbformat; run the session integrations")


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
