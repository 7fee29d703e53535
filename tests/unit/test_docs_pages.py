"""The form of the documentation: code that fits the page, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..support.places import REPO

PAGES = sorted(path.relative_to(REPO) for path in (*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")))
WIDTH = 88


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_code_fits_the_page(page: Path) -> None:
    """No line of a code block is wider than 88 columns, which a page of the site shows without scrolling."""
    blocks = re.findall(r"^( *)```.*?\n(.*?)^\1```$", (REPO / page).read_text(), re.MULTILINE | re.DOTALL)
    assert [line for _indent, block in blocks for line in block.splitlines() if len(line) > WIDTH] == []


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
