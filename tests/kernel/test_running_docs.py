"""The examples of README.md, the tutorials and the pages about containers run as they stand."""

from __future__ import annotations

import doctest
import logging
import os
import shutil
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
def test_examples(
    bundle: oci.Bundle, state_root: Path, prefix: str, name: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("ociruntime")
    monkeypatch.setattr(logger, "handlers", logger.handlers[:])  # a page adds one
    page = DOCS / f"{name}.md"
    if name == "running":
        (bundle.path / "config.json").unlink()  # the page makes its own
    text = page.read_text().replace("'NAME", f"'{prefix}")
    names = {"rootfs": bundle.path / "rootfs", "bundle": bundle, "state": state_root, "name": prefix}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)  # long output is wrapped in the page
    result = runner.run(doctest.DocTestParser().get_doctest(text, names, str(page), str(page), 0))
    assert result.attempted > least
    assert result.failed == 0
    assert oci.Container.list(state_root=state_root) == []
    assert set(os.listdir(state_root)) <= {".runs", ".seccomp"}


PAGES = r"""
import doctest, os, re, subprocess, sys
from pathlib import Path

def shell(command):
    words = ["sh", "-ec", 'ociruntime() { "$PYTHON" -P -m ociruntime "$@"; }; ' + command]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ":".join(filter(None, sys.path))}
    print(subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout, end="")

def typed(command):  # what is typed in a shell, as an example of Python
    return ">>> shell(" + repr(command[1].replace("\n> ", "\n")) + ")\n"

def session(block):
    return re.sub(r"^\$ (.*\n(?:> .*\n)*)", typed, block[1], flags=re.MULTILINE) + "\n"

top = Path(sys.argv[2])
for number, pages in enumerate(sys.argv[1].split(";")):
    (top / str(number)).mkdir()
    os.chdir(top / str(number))
    for page in pages.split(":"):
        text = re.sub(r"^```console\n(.*?)^```$", session, Path(page).read_text(), flags=re.MULTILINE | re.DOTALL)
        examples = doctest.DocTestParser().get_doctest(text, {"shell": shell}, page, page, 0)
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples)
        print(Path(page).stem, result.attempted > 4, result.failed)
        if Path("busybox.sif").exists() and not Path("alpine.sif").exists():
            os.link("busybox.sif", "alpine.sif")  # README pulls it from a registry
"""
GROUPS = (
    ("quickstart", "coming-from", "how-to", "../README"),
    *((f"tutorials/{name}",) for name in ("first-container", "sif-on-a-cluster", "generated-code")),
)
"""Pages that make their own image. Those of a group share it."""


def _run_pages(script: Script, before: str, groups: tuple[tuple[str, ...], ...], directory: Path) -> None:
    pages = [[Path(shutil.copy(DOCS / f"{name}.md", directory)) for name in group] for group in groups]
    result = script(before + PAGES, ";".join(":".join(map(str, group)) for group in pages), directory, timeout=240)
    assert result.stdout == "".join(f"{page.stem} True 0\n" for group in pages for page in group)


@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no program starts here")
def test_tutorials(script: Script, tmp_path: Path) -> None:
    _run_pages(script, "", GROUPS, tmp_path)


@pytest.mark.root
@pytest.mark.skipif(SLOWER > 1, reason="an example has a timeout of 0.3 s, in which no program starts here")
def test_tutorials_of_a_user(user_script: Script) -> None:
    with tempfile.TemporaryDirectory() as directory:  # a user cannot reach pytest's own directories
        os.chmod(directory, 0o777)
        groups = ((*GROUPS[0], "devices"), *GROUPS[1:])  # CDI specs of a user are where a test may write them
        _run_pages(user_script, "become(65533)\n", groups, Path(directory))
