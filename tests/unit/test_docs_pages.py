"""The documentation: code that fits the page and is valid, pictures, and links that lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli.parser import parse_args

from ..support.places import REPO

PAGES = sorted(path.relative_to(REPO) for path in (*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")))
WIDTH = 88


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_fits_the_page(page: Path) -> None:
    """No line of a code block is wider than 88 columns, which a page of the site shows without scrolling."""
    blocks = re.findall(r"^( *)```.*?\n(.*?)^\1```$", (REPO / page).read_text(), re.MULTILINE | re.DOTALL)
    assert [line for _indent, block in blocks for line in block.splitlines() if len(line) > WIDTH] == []


def blocks_of(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", (REPO / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_is_valid(page: Path) -> None:
    """Code that no test runs, because it needs a GPU for example, compiles, and names what the package has."""
    for block in blocks_of(page, "python", "pycon", "py"):
        if ">>>" not in block and not block.startswith("%"):
            compile(block, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert {name for name in re.findall(r"\boci\.(\w+)", block) if not hasattr(oci, name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_valid(page: Path) -> None:
    """Commands have the options that they are shown with. They are parsed, with images as paths, and not executed."""
    for block in blocks_of(page, "sh", "console"):
        for line in re.sub(r"\\\n(> )? *", " ", block).splitlines():
            command = re.match(
                r"(?:\$ )?(?:sudo |srun (?:-n 2 )?|\w+=\S+ )*ociruntime (.*?)(?: (?:&&|[|;>&]|2>).*)?$", line.strip()
            )
            if command:
                parse_args(shlex.split(re.sub(r" (?=[\w.]+\.sif\b)", " ./", command[1]), comments=True))


def test_pictures_are_shown_and_small() -> None:
    """Pages load fast, and each picture that the script writes is shown by a page. Sphinx checks that those shown exist."""
    text = "".join((REPO / page).read_text() for page in PAGES)
    for picture in REPO.glob("docs/pictures/*"):
        assert picture.stat().st_size < 200_000
        assert f"pictures/{picture.name}\n" in text


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == Path()], ids=str)
def test_links_to_the_tree(page: Path) -> None:
    """The pages beside the site, which Sphinx does not check, link to files and headings that exist."""
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]+)(?:#([^)]+))?\)", (REPO / page).read_text()):
        assert (REPO / target).exists(), target
        headings = re.findall(r"^#+ (.*)$", (REPO / target).read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
