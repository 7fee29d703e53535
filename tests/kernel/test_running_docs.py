"""The examples of docs/quickstart.md, docs/coming-from.md, docs/running.md, docs/sandbox.md, docs/supervised.md and docs/tracing.md run as they stand."""

from __future__ import annotations

import doctest
import os
import tempfile
from pathlib import Path

import pytest

import ociruntime as oci

from ..support.fixture_types import Script
from ..support.waiting import SLOWER

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.root
@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no shell starts here")
@pytest.mark.parametrize(("name", "least"), [("running", 20), ("sandbox", 18), ("supervised", 12), ("tracing", 12)])
def test_examples(bundle: oci.Bundle, state_root: Path, prefix: str, name: str, least: int) -> None:
    page = DOCS / f"{name}.md"
    if name == "running":
        (bundle.path / "config.json").unlink()  # the page makes its own
    text = page.read_text().replace("'NAME", f"'{prefix}")
    names = {"rootfs": bundle.path / "rootfs", "bundle": bundle, "state": state_root, "name": prefix}
    result = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, names, str(page), str(page), 0))
    assert result.attempted > least
    assert result.failed == 0
    assert oci.Container.list(state_root=state_root) == []
    assert set(os.listdir(state_root)) <= {".runs", ".seccomp"}


QUICKSTART = """
import doctest, os, sys
os.chdir(sys.argv[2])
text = "".join(open(page).read() for page in sys.argv[1].split(":"))
result = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(text, {}, "quickstart", "quickstart", 0))
print(result.attempted > 15, result.failed)
"""


@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no program starts here")
def test_quickstart(script: Script, tmp_path: Path) -> None:
    pages = f"{DOCS}/quickstart.md:{DOCS}/coming-from.md"  # which uses the image of the first
    assert script(QUICKSTART, pages, str(tmp_path)).stdout == "True 0\n"


@pytest.mark.root
@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no program starts here")
def test_quickstart_of_a_user(user_script: Script) -> None:
    with tempfile.TemporaryDirectory() as directory:  # a user cannot reach pytest's own directories
        page = Path(directory, "quickstart.md")
        page.write_text((DOCS / "quickstart.md").read_text() + (DOCS / "coming-from.md").read_text())
        os.chmod(directory, 0o777)
        assert user_script("become(65533)\n" + QUICKSTART, str(page), directory).stdout == "True 0\n"
