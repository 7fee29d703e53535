"""Values in notebooks: their HTML is well-formed, escapes everything that is foreign, and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import ociruntime as oci
from ociruntime.engine.cgroup.stats import CpuStats, InterfaceStats, IoEntry, IoStats, MemoryStats, PidsStats, Pressure, Stall
from ociruntime.integrations import html
from ociruntime.lifecycle.snapshots import ChangeKind
from ociruntime.plan.model import Side
from ociruntime.spec import Mount, Problems, diff

from ..support.fixture_types import Script

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e\udcff"
VOID = {"meta"}
TAGS = frozenset("b caption code details div i p pre style summary table tbody td th thead tr".split())
ATTRIBUTES = {"class", "title", "open", "style"}


class Page(HTMLParser):
    """Reads HTML, and checks that every element is closed where it must be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if self.open[-1] != "style" else ""


def shown(value: Any) -> Page:
    """Return the parsed representation of a value, in which nothing is foreign but text."""
    text = value._repr_html_()
    text.encode()
    page = Page(text)
    assert set(page.tags) <= TAGS
    assert page.attributes <= ATTRIBUTES
    assert not set(page.text) & set("\x1b\u202e\udcff")
    assert "url(" not in text
    assert len(text) < 200_000
    return page


def _plan() -> oci.Plan:
    step = oci.Step(Side.HOST, "cgroup_mkdir", ("/x", "", ""), HOSTILE, HOSTILE, HOSTILE)
    init = step._replace(side=Side.INIT, op="umask", values=(18,))
    return oci.Plan(HOSTILE, (step, init, init._replace(phase="Program")), (), 0, warnings=(HOSTILE,), notes=(HOSTILE,))


def _stats() -> oci.Stats:
    line = Pressure(1.0, 2.0, 3.0, 4)
    return oci.Stats(
        10**18,
        CpuStats(usage=2 * 10**9, user=10**9, system=10**9, throttled_periods=1, throttled_time=5, pressure=Stall(line, None)),
        MemoryStats(usage=1 << 20, limit=1 << 21, peak=1 << 20, failures=3, oom_kills=2, pressure=Stall(line, line)),
        PidsStats(3, 10),
        IoStats((IoEntry(8, 0, HOSTILE, 4096),), (IoEntry(8, 0, HOSTILE, 7),)),
        interfaces=(InterfaceStats(HOSTILE, 1, 2, 3, 4, 5, 6, 7, 8),),
    )


def values() -> Iterator[Any]:
    usage = oci.Usage(0.5, 0.25, 0.75, 1 << 20)
    yield oci.Result((HOSTILE,), 1, HOSTILE, HOSTILE * 10_000, 2.0, True, usage, truncated=True)
    yield oci.Result((HOSTILE,), -9, HOSTILE.encode("utf-8", "surrogateescape"), profile=oci.Profile(HOSTILE, ()))
    yield oci.State(
        id=HOSTILE, status=oci.Status.STOPPED, bundle=HOSTILE, annotations={HOSTILE: HOSTILE}, created_at=10**18, exit_code=-11,
        rootfs=HOSTILE, log_path=HOSTILE, log_lost=oci.LostOutput(1, 2), log_error=HOSTILE,
    )  # fmt: skip
    yield _plan()
    yield _stats()
    yield oci.Profile(HOSTILE, (oci.ProfileStep(1, "host", HOSTILE, HOSTILE, HOSTILE, 0, 5),))
    yield oci.Changes(oci.Change(path=HOSTILE, kind=kind, type="file", size=1) for kind in ChangeKind)  # type: ignore[arg-type]
    yield Problems((oci.Problem(HOSTILE, HOSTILE, HOSTILE), oci.Problem("$", HOSTILE, severity="warning")))
    yield diff(oci.RuntimeSpec.default(), oci.RuntimeSpec.default().evolve(hostname=HOSTILE, mounts=(Mount(destination=HOSTILE),)))
    yield oci.Diagnosis((oci.Finding(HOSTILE, oci.Availability.MISSING, HOSTILE, HOSTILE),))


@pytest.mark.parametrize("value", list(values()), ids=lambda value: type(value).__name__)
def test_foreign_text_is_escaped(value: Any) -> None:
    assert "alert(1)" in shown(value).text


def test_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    spec = oci.RuntimeSpec.default().with_args(["<b>", "x"])
    page = shown(oci.Bundle.from_dir(tmp_path, spec))
    assert "<b> x" in page.text
    assert "6 mounts" in page.text
    (tmp_path / "config.json").write_text('{"ociVersion": "1.3.0", "hostname": "<i>"}')
    assert "<i>" in shown(oci.Bundle.load(tmp_path)).text
    (tmp_path / "config.json").write_text("{")
    assert "invalid" in shown(oci.Bundle.load(tmp_path)).text


def test_an_image(tmp_path: Path) -> None:
    (tmp_path / "<u>").mkdir()
    with oci.Image.open(tmp_path / "<u>") as image:
        assert "<u>" in shown(image).text
    assert "closed" in shown(image).text


def test_output_is_folded_and_its_colours_are_left_out() -> None:
    short = shown(oci.Result(("ls",), 0, "a\n\tb\x1b[1;31mc\x1b[0m\n"))
    assert "exit code 0" in short.text
    assert "stdout, 2 lines" in short.text
    assert "a\n\tbc" in short.text
    assert "<details open>" in oci.Result(("ls",), 0, "a")._repr_html_()
    assert "<details>" in oci.Result(("ls",), 0, "a\n" * 50)._repr_html_()
    cut = shown(oci.Result(("ls",), 0, f"begin{'x' * 30_000}end"))
    assert "… 10008 characters …" in cut.text
    assert "begin" in cut.text
    assert "end" in cut.text
    assert "pre" not in shown(oci.Result(("ls",), 0, "", b"")).tags
    assert "timed out" in shown(oci.Result(("ls",), -9, timed_out=True)).text


def test_the_sides_of_a_plan_are_apart() -> None:
    page = shown(_plan())
    assert page.tags.count("details") == 2  # one for each phase
    assert page.tags.count("tr") == 3
    assert "1 by the calling process" in page.text
    assert "2 by the init process" in page.text


def test_long_tables_are_cut() -> None:
    changes = oci.Changes(oci.Change(path=f"/{n}", kind=ChangeKind.ADDED, type="file", size=0) for n in range(500))  # type: ignore[arg-type]
    page = shown(changes)
    assert page.tags.count("tr") == 201
    assert "and 300 more" in page.text


def test_problems_and_differences_are_tuples() -> None:
    spec = oci.RuntimeSpec.default()
    assert isinstance(spec.problems(), Problems)
    assert spec.validate() == ()
    assert isinstance(oci.RuntimeSpec.check(b"{"), Problems)
    assert "0 differences" in shown(diff(spec, spec)).text


def test_a_page() -> None:
    text = html.page(oci.Profile("t", ()), "<title>")
    assert text.startswith("<!DOCTYPE html>")
    assert "<title>&lt;title&gt;</title>" in text


def test_other_values_are_refused() -> None:
    with pytest.raises(TypeError, match="int has no representation"):
        html.render(5)


def test_it_is_imported_when_it_is_used(script: Script) -> None:
    text = "import sys, ociruntime as oci\nprofile = oci.Profile('', ())\nname = 'ociruntime.integrations.html'\n"
    assert script(text + "print(name in sys.modules); profile._repr_html_(); print(name in sys.modules)").stdout == "False\nTrue\n"


def test_columns_without_values_are_left_out() -> None:
    table = html._table(("name", "digest"), [("a", ""), ("b", "")])
    assert Page(table).text == "nameab"
    assert Page(html._table(("name", "digest"), [("a", ""), ("b", "c")])).text == "namedigestabc"
