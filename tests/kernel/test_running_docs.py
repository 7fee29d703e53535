"""The examples of docs/running.md, docs/sandbox.md and docs/supervised.md run as they stand."""

from __future__ import annotations

import doctest
import os
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.waiting import SLOWER

pytestmark = pytest.mark.root


@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no shell starts here")
@pytest.mark.parametrize(("name", "least"), [("running", 20), ("sandbox", 18), ("supervised", 12)])
def test_examples(bundle: oci.Bundle, state_root: Path, prefix: str, name: str, least: int) -> None:
    page = Path(__file__).parents[2] / "docs" / f"{name}.md"
    if name == "running":
        (bundle.path / "config.json").unlink()  # the page makes its own
    text = page.read_text().replace("'NAME", f"'{prefix}")
    names = {"rootfs": bundle.path / "rootfs", "bundle": bundle, "state": state_root, "name": prefix}
    result = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, names, str(page), str(page), 0))
    assert result.attempted > least
    assert result.failed == 0
    assert oci.Container.list(state_root=state_root) == []
    assert set(os.listdir(state_root)) <= {".runs", ".seccomp"}
