"""Keep the figures of measured commits, and plot each figure over the commits.

    python benchmarks/plot_history.py --add figures.json   # of `bench_lifecycle.py --json`, measured at HEAD on an idle machine
    python benchmarks/plot_history.py                      # write history.svg again

`history/` has a JSON file for each measured commit. `history.svg` has one small plot for each figure, and needs nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

HISTORY = Path(__file__).resolve().parent / "history"
COLUMNS, WIDTH, HEIGHT, MARGIN = 3, 350, 110, 24
STYLE = """text{font:11px system-ui,sans-serif;fill:#222}.line{fill:none;stroke:#3b82c4;stroke-width:1.5}.point{fill:#3b82c4}
.axis{stroke:#8a8a8a}.back{fill:#fff}
@media (prefers-color-scheme:dark){text{fill:#ddd}.back{fill:#161616}}"""


def figures_of(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures of a benchmark by label. Times are in milliseconds."""
    found: dict[str, float] = {}
    for member, when in (("back_to_back_s", "back to back"), ("idle_s", "idle gaps")):
        found |= {f"{label} ({when}), ms": round(seconds * 1e3, 3) for label, seconds in record.get(member, {}).items()}
    for member, unit in (("containers_per_second", "containers/s"), ("pss_kib", "KiB")):
        found |= {f"{label}, {unit}": round(value, 1) for label, value in record.get(member, {}).items() if value is not None}
    found |= {row["what"]: round(row["figure"], 3) for row in record.get("budgets", ()) if row["unit"] == "x" and row["figure"]}
    return found


def add(path: Path) -> Path:
    """Add the figures of a benchmark as those of the commit that is checked out, and return the new file."""
    shown = subprocess.run(["git", "log", "-1", "--format=%h %cI"], cwd=HISTORY.parent, capture_output=True, text=True, check=True)
    commit, date = shown.stdout.split()
    HISTORY.mkdir(exist_ok=True)
    target = HISTORY / f"{date[:10]}-{commit}.json"
    document = {"commit": commit, "date": date, "figures": figures_of(json.loads(path.read_text()))}
    target.write_text(json.dumps(document, indent=1) + "\n")
    return target


def plot(records: Sequence[dict[str, Any]]) -> str:
    """Return an SVG with a plot for each figure, over the records in the order of their commits."""
    labels = sorted({label for record in records for label in record["figures"]})
    rows = -(-len(labels) // COLUMNS)
    size = f'width="{COLUMNS * WIDTH}" height="{max(rows, 1) * HEIGHT}"'
    cells = [_cell(label, records, index % COLUMNS * WIDTH, index // COLUMNS * HEIGHT) for index, label in enumerate(labels)]
    back = '<rect class="back" width="100%" height="100%"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{back}{"".join(cells)}</svg>\n'


def _cell(label: str, records: Sequence[dict[str, Any]], x: int, y: int) -> str:
    values = [(number, record) for number, record in enumerate(records) if label in record["figures"]]
    top = max(record["figures"][label] for _, record in values) or 1
    step = (WIDTH - 2 * MARGIN) / max(len(records) - 1, 1)
    base, height = y + HEIGHT - MARGIN, HEIGHT - 2 * MARGIN - 6
    points = []
    for number, record in values:
        value = record["figures"][label]
        points.append((x + MARGIN + number * step, base - height * value / top, f"{record['commit']}: {value:g}"))
    dots = "".join(
        f'<circle class="point" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{escape(name)}</title></circle>' for a, b, name in points
    )
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
    last = values[-1][1]
    return (
        f'<text x="{x + MARGIN}" y="{y + 16}">{escape(label)}</text>'
        f'<path class="axis" d="M{x + MARGIN} {base}H{x + WIDTH - MARGIN}"/><polyline class="line" points="{line}"/>{dots}'
        f'<text x="{x + MARGIN}" y="{base + 14}">{escape(last["commit"])}: {last["figures"][label]:g}, highest {top:g}</text>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Keep the figures of measured commits, and plot each figure over the commits.")
    parser.add_argument("--add", metavar="FILE", type=Path, help="add the figures of bench_lifecycle.py --json for this commit")
    options = parser.parse_args()
    if options.add:
        print(add(options.add))
    records = sorted((json.loads(path.read_text()) for path in HISTORY.glob("*.json")), key=lambda record: str(record["date"]))
    if not records:
        parser.error(f"{HISTORY}: no figures yet; add those of bench_lifecycle.py with --add FILE")
    (HISTORY / "history.svg").write_text(plot(records))


if __name__ == "__main__":
    main()
