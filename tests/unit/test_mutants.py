"""The table of defences: it fits the sources and the tests, and the documentation shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..mutants.table import MUTANTS, THREATS, Mutant
from ..support.places import REPO

TESTS = REPO / "tests"
PAGE = REPO / "docs/security.md"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_each_removes_something_that_is_tested(mutant: Mutant) -> None:
    assert (REPO / "ociruntime" / mutant.file).read_text().count(mutant.fragment) == 1
    assert mutant.fragment != mutant.replacement
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name or 'test_'}", Path(TESTS, file).read_text(), re.MULTILINE), test


def test_names_are_unique_and_sorted_by_threat() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    rows = [mutant.row for mutant in MUTANTS]
    assert rows == sorted(rows)
    assert set(rows) <= set(THREATS)


def test_the_page_shows_every_threat_and_its_tests() -> None:
    text = PAGE.read_text()
    shown = set[str]()
    for number, threat in THREATS.items():
        (row,) = re.findall(rf"^\| {number} \| (.*) \|$", text, re.MULTILINE)
        said, _, tests = row.partition(" | ")
        assert said == threat
        named = re.findall(r"`([^`]+)`", tests)
        assert named, number
        for name in named:
            file, _, function = name.partition("::")
            assert re.search(rf"^def {function or 'test_'}", Path(TESTS, f"{file}.py").read_text(), re.MULTILINE), name
        shown |= set(named)
        needed = {test.partition(".py")[0] for mutant in MUTANTS if mutant.row == number for test in mutant.tests[:1]}
        assert needed <= {name.partition("::")[0] for name in named}, number
    for file in TESTS.glob("kernel/test_threats_*.py"):
        tests = {f"kernel/{file.stem}::{test}" for test in re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)}
        assert f"kernel/{file.stem}" in shown or tests <= shown, f"the page does not show {sorted(tests - shown)}"
