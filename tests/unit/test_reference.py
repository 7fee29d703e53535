"""The generated descriptions of the command line: docs/commands.md and the man page."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from types import ModuleType

import pytest

from ociruntime.cli import build_parser
from ociruntime.cli.parser import EXAMPLES

from ..support.places import REPO

REGENERATE = "the command line has changed: run 'python packaging/reference.py'"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", REPO / "packaging/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_are_up_to_date(reference: ModuleType) -> None:
    assert (REPO / "docs/commands.md").read_text() == reference.markdown(), REGENERATE
    assert (REPO / "docs/ociruntime.1").read_text() == reference.man_page(), REGENERATE


def test_nothing_is_missing(reference: ModuleType) -> None:
    page, manual = reference.markdown(), reference.man_page()
    names = [command.prog.partition(" ")[2] for command in reference.commands(build_parser())]
    assert set(EXAMPLES) <= set(names)
    for name in names:
        assert page.count(f"\n### {name}\n") == 1
        assert manual.count(f"\n.SS {name}\n") == 1
    for lines in EXAMPLES.values():
        for line in lines:
            assert f"\n{line}\n" in page
    for option in ("--containall", "--systemd-cgroup", "--max-bytes"):
        assert option in page
        assert option.replace("-", r"\-") in manual


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff (Debian: groff-base)")
def test_the_man_page_is_well_formed(reference: ModuleType) -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", "-P-cbou"]
    created = subprocess.run(command, input=reference.man_page(), capture_output=True, text=True, check=True)
    assert created.stderr == ""
    assert "ociruntime list --format json" in created.stdout
    assert "     255" in created.stdout


def test_escapes(reference: ModuleType) -> None:
    assert reference.roff("'a' -b\\c") == r"\(aqa\(aq \-b\ec"
    assert reference.roff(".x\n.y") == "\\&.x\n\\&.y"
    assert reference._text("a|b 'c_d' e_f bundle's user's") == r"a\|b `c_d` e\_f bundle's user's"
