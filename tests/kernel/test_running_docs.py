"""The examples of docs/running.md run as they stand."""

from __future__ import annotations

import doctest
import os
from pathlib import Path

import pytest

import ociruntime as oci

from ..conftest import SLOWER

pytestmark = pytest.mark.root


@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no shell starts here")
def test_examples(bundle: oci.Bundle, state_root: Path, prefix: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "running.md"
    (bundle.path / "config.json").unlink()  # the page makes its own
    text = page.read_text().replace("'NAME'", repr(prefix))
    test = doctest.DocTestParser().get_doctest(
        text, {"rootfs": bundle.path / "rootfs", "state": state_root, "name": prefix}, str(page), str(page), 0
    )
    result = doctest.DocTestRunner().run(test)
    assert result.attempted > 20
    assert result.failed == 0
    assert oci.Container.list(root=state_root) == []
    assert os.listdir(state_root) in ([], [".seccomp"])
