"""The examples of docs/sif.md and docs/images.md run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest


@pytest.mark.parametrize(("page", "examples"), [("sif.md", 30), ("images.md", 12)])
def test_examples(page: str, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    result = doctest.testfile(
        str(Path(__file__).parents[2] / "docs" / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > examples
    assert result.failed == 0
