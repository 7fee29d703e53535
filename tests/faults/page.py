"""The page docs/reliability.md: the form of its tables, and the figures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from .operations import CALLERS

BEGIN: Final = "<!-- `./run faults` writes what follows. -->\n"
NONE: Final = "-"
"""The cell of a caller for which the operation does not exist."""


class Row(NamedTuple):
    """What became of an operation with a fault."""

    caller: str
    operation: str
    fault: str
    outcomes: Mapping[str, int]
    slowest: float
    """Seconds."""

    @property
    def cell(self) -> str:
        """The outcomes, the most frequent first, and the longest time."""
        counts = sorted(self.outcomes.items(), key=lambda entry: (-entry[1], entry[0]))
        return f"{', '.join(f'{count} {kind}' for kind, count in counts)}; {self.slowest:.1f} s"


Cells = dict[tuple[str, str, str], str]
"""What the tables say, by fault, operation and caller."""


def read_cells(text: str) -> Cells:
    """Return the cells of a page."""
    cells, fault = Cells(), ""
    for line in text.splitlines():
        if line.startswith("## "):
            fault = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith("| operation |"):
            operation, *of_callers = (part.strip() for part in line.strip("|").split("|"))
            cells.update({(fault, operation, caller): cell for caller, cell in zip(CALLERS, of_callers, strict=True)})
    return cells


def tables(cells: Cells, faults: Mapping[str, tuple[str, Iterable[str]]]) -> str:
    """Return a section for each fault, with a table of its operations.

    Args:
        faults: the description and the operations of each.
    """
    lines = []
    for fault, (text, operations) in faults.items():
        lines += ["", f"## {fault}", "", text, "", "| operation | as root | as a user |", "|---|---|---|"]
        for operation in operations:
            lines.append(f"| {operation} | {' | '.join(cells.get((fault, operation, caller), NONE) for caller in CALLERS)} |")
    return "\n".join(lines) + "\n"


def write_page(path: Path, rows: Iterable[Row], faults: Mapping[str, tuple[str, Iterable[str]]]) -> None:
    """Put the outcomes into the tables of a page; what was not tried keeps its figures."""
    text, mark, old = path.read_text().partition(BEGIN)
    if not mark:
        raise ValueError(f"{path}: no line {BEGIN.strip()}")
    cells = read_cells(old) | {(row.fault, row.operation, row.caller): row.cell for row in rows}
    path.write_text(text + BEGIN + tables(cells, faults))
