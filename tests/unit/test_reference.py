"""The references: docs/commands.md and the man page, which are generated from the parser, and the pages of the library."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

import ociruntime as oci
from ociruntime import options, overrides
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
    assert reference._text("implies --rm-x, not a--b") == "implies `--rm-x`, not a--b"


def test_pages_of_the_library() -> None:
    """Every public name is on a page. The page of a module leaves out what has no docstring, and names of other values."""
    pages = "\n".join(path.read_text() for path in (REPO / "docs/reference").glob("*.md") if path.name != "types.md")
    listed = set(re.findall(r"^\.\. auto(?:class|function|data):: ([\w.]+)$", pages, re.MULTILINE))
    modules = set(re.findall(r"^\.\. automodule:: ([\w.]+)$", pages, re.MULTILINE))
    assert modules == {f"ociruntime.{name}" for name in ("aio", "errors", "image", "image.sif", "spec")}
    expected = set(oci.__all__) - {"__version__"}
    for name in modules:
        module = importlib.import_module(name)
        expected -= {name.rpartition(".")[2]}
        for member in module.__all__:
            value = getattr(module, member)
            if getattr(oci, member, None) is value and name != "ociruntime.aio":  # whose page leaves out what is not its own
                expected.discard(member)
            if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value)):
                expected.add(f"{name}.{member}")
            else:
                assert inspect.getdoc(value), f"{name}.{member}"
    assert listed == expected


def test_page_of_types() -> None:
    """Every type of an argument is on the page of types, below the module from which it can be imported."""
    page = (REPO / "docs/reference/types.md").read_text()
    listed = re.findall(r"^\.\. auto(?:class|data):: ([\w.]+)$", page, re.MULTILINE)
    for name in listed:
        module, _, member = name.rpartition(".")
        assert hasattr(importlib.import_module(module), member), name
    for keywords in (options.RunKeywords, options.SandboxKeywords, options.CreateKeywords):
        for annotation in inspect.get_annotations(keywords).values():
            aliases = set(re.findall(r"\w+", annotation.__forward_arg__)) & set(overrides.__all__)
            assert aliases <= {name.rpartition(".")[2] for name in listed}


def test_messages_of_the_troubleshooting_page() -> None:
    headings = re.findall(r"^### `(.*)`$", (REPO / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    source = "\n".join(path.read_text() for path in Path(oci.__file__).parent.rglob("*.py"))
    assert len(headings) > 10
    assert [heading for heading in headings if heading not in source] == []
