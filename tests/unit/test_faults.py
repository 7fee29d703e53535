"""The driver that tries operations with faults, and the page that it writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ..faults.driver import FAULTS, SECTIONS
from ..faults.operations import CALLERS, OPERATIONS
from ..faults.page import BEGIN, NONE, Row, tables, write_page
from ..support.places import REPO

PAGE = REPO / "docs/reliability.md"
CELL = re.compile(r"\d+ (?:works|killed|status -?\d+|[A-Z]\w+)(?:, \d+ (?:works|killed|status -?\d+|[A-Z]\w+))*; \d+\.\d s")
TYPED = {"works", "killed", "MemoryError"}
"""Outcomes that are no errors of the package."""


def test_the_page_is_of_the_current_operations_and_faults() -> None:
    same = "1 works; 0.0 s"
    cells = {
        (fault, name, caller): same
        for fault, (_, names) in SECTIONS.items()
        for name in names
        for caller in OPERATIONS[name].callers
    }
    _, mark, written = PAGE.read_text().partition(BEGIN)
    assert mark, "the page has no tables; ./run faults -- --page docs/reliability.md writes them"
    assert CELL.sub(same, written) == tables(cells, SECTIONS)


def test_every_error_of_the_page_is_one_of_the_package() -> None:
    import ociruntime as oci

    kinds = {kind for cell in CELL.findall(PAGE.read_text()) for kind in re.findall(r"\d+ ([a-zA-Z]\w+)", cell)}
    assert {"works", "killed", "HostError", "StepError"} <= kinds
    for kind in kinds - TYPED - {"status"}:
        assert issubclass(getattr(oci, kind), oci.OCIRuntimeError)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_tried_with_operations_that_exist(fault: str) -> None:
    assert FAULTS[fault].of <= set(OPERATIONS)
    assert {caller for name in FAULTS[fault].of for caller in OPERATIONS[name].callers} == set(CALLERS)


def test_figures_that_are_not_tried_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{BEGIN}")
    row = Row("user", "run", "SIGKILL", {"works": 2, "StepError": 11, "killed": 2}, 1.26)
    assert row.cell == "11 StepError, 2 killed, 2 works; 1.3 s"
    assert CELL.fullmatch(row.cell)
    sections = {"SIGKILL": ("Killed.", ["run", "exec"])}
    write_page(page, [row], sections)
    assert f"| run | {NONE} | {row.cell} |\n| exec | {NONE} | {NONE} |\n" in page.read_text()
    write_page(page, [row._replace(caller="root", outcomes={"works": 1})], sections)
    assert f"| run | 1 works; 1.3 s | {row.cell} |\n| exec | {NONE} | {NONE} |\n" in page.read_text()
