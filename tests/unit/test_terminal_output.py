"""What commands print on a terminal, and that pipes and plain terminals get plain text."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli import build_parser, common, main
from ociruntime.image.sif import SifBuilder

from ..support.terminals import Session
from ..support.waiting import TIME_LIMIT

pytest.importorskip("rich", reason="no rich (pip install 'ociruntime[cli]')")
PLAIN = {"NO_COLOR": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}, "no type": {"TERM": ""}, "no rich": {}}
COMMANDS = (
    "doctor",
    "doctor --json",
    "list",
    "devices",
    "features",
    "inspect TREE",
    "inspect --all TREE",
    "validate -b BUNDLE --json",
    "validate -b BUNDLE",
)


@pytest.fixture
def words(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """A command line, with an image and a bundle."""
    (tmp_path / "tree/.singularity.d").mkdir(parents=True)
    (tmp_path / "tree/.singularity.d/labels.json").write_text('{"a": "b", "c": "[bold]d[/bold]"}')
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/config.json").write_text('{"ociVersion": "1.3.0", "x": 1, "process": {"cwd": "/", "args": []}}')
    line = request.param.replace("TREE", str(tmp_path / "tree")).replace("BUNDLE", str(tmp_path / "bundle"))
    return ["--root", str(tmp_path), *line.split()]


def on_terminal(words: list[str], before: str = "", **env: str) -> str:
    """Execute a command on a terminal, and return what it prints."""
    variables = {"TERM": "xterm", "NO_COLOR": "", "PYTHONPATH": ":".join(sys.path)} | env
    script = f"import sys\n{before}\nfrom ociruntime.cli import script\nscript()"
    given = [f"{name}={value}" for name, value in variables.items()]
    session = Session("env", "-u", "COLUMNS", *given, sys.executable, "-P", "-c", script, *words, size=(24, 200))
    try:
        session.wait(TIME_LIMIT)
        return session.seen.decode().replace("\r\n", "\n")
    finally:
        session.close()


def in_pipe(words: list[str]) -> str:
    command = [sys.executable, "-P", "-m", "ociruntime", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"TERM": "xterm"}).stdout


@pytest.mark.parametrize("words", COMMANDS, indirect=True)
def test_colours(words: list[str]) -> None:
    """The text on a terminal is that in a pipe, except for colours and the space between columns."""
    shown, plain = on_terminal(words), in_pipe(words)
    assert "\x1b[" in shown
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", shown).split() == plain.split()


@pytest.mark.parametrize("reason", PLAIN)
@pytest.mark.parametrize("words", ["doctor", "inspect TREE", "features"], indirect=True)
def test_plain_terminals(words: list[str], reason: str) -> None:
    before = "sys.modules['rich'] = sys.modules['rich.console'] = None" if reason == "no rich" else ""
    assert on_terminal(words, before, **PLAIN[reason]) == in_pipe(words)


def test_pipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "list"]) == 0
    assert capsys.readouterr().out == "ID  PID  STATUS  BUNDLE  CREATED  OWNER\n"
    common.print_table([("A", "LONG"), ("running", "x"), ("", "y")])
    common.print_lines(["error: x", "plain"])
    common.print_json({"a": [1, "\x1b"]})
    assert capsys.readouterr().out == (
        "A        LONG\nrunning  x\n         y\nerror: x\nplain\n" + '{\n  "a": [\n    1,\n    "\\u001b"\n  ]\n}\n'
    )


@pytest.mark.parametrize(
    "line", ["list", "state missing", "run missing", "ps missing", "doctor", "features", "--help", "run --help"]
)
def test_costs_in_a_pipe(line: str, tmp_path: Path) -> None:
    """Neither of the packages of the extra is imported, nor difflib, which only errors need."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "ociruntime", "--root", str(tmp_path), *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"TERM": "xterm"})
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert "ociruntime.cli.parser" in imported
    assert not {"rich", "shtab", "difflib"} & imported


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_progress(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with oci.progress_bar() as show:
        assert show is not None
        show(0, 4 << 20)
        clock[0] += 1
        show(1 << 20, 4 << 20)
        show(2 << 20, 4 << 20)  # too soon
    first, erased, end = stream.getvalue()[1:].split("\r")
    assert first.rstrip() == " 25% [########                      ] of 4.0 MiB, 3 s left"
    assert (erased, end) == (" " * len(first), "")


def test_progress_of_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not shutil.which("tar2sqfs") and not shutil.which("mksquashfs"):
        pytest.skip("neither tar2sqfs nor mksquashfs (Debian: squashfs-tools-ng, squashfs-tools)")
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    oci.build(tmp_path / "root", tmp_path / "quiet.sif", progress=False)
    assert stream.getvalue() == ""
    oci.build(tmp_path / "root", tmp_path / "new.sif", progress=True)
    assert stream.getvalue().split("\r")[1].rstrip() == "building new.sif"


def test_short_work_shows_no_progress(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with oci.progress_bar() as show:
        assert show is not None
        show(0, 0)
        show(5, 5)
    assert stream.getvalue() == ""


def test_what_is_shown_before_the_progress(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with oci.progress_bar("fetching docker://" + 99 * "x"):
        pass
    assert stream.getvalue() == f"\rfetching docker://{57 * 'x'}\r{75 * ' '}\r"


def test_no_progress_where_it_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with oci.progress_bar() as show:
        assert show is None  # a pipe
    monkeypatch.setattr(sys, "stderr", Terminal())
    with oci.progress_bar(quiet=True) as show:
        assert show is None


# ---- JSON ----

JSON_ALWAYS = {"state", "features", "events", "sif header"}
NO_DOCUMENT = set(
    (
        "create start run kill delete exec shell cp attach update pause resume checkpoint restore mount umount build commit pull spec "
        "completion"
    ).split()
) | {"image cat", "image extract", "sif cat", "sif extract", "sif dump", "sif del", "kernelspec install"}
"""They print nothing, or what a program or a file has written."""


def test_json_where_people_script() -> None:
    import argparse

    def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not nested:
            yield parser
        for action in nested:
            for command in action.choices.values():
                yield from commands(command)

    found = {command.prog.partition(" ")[2]: "--json" in command._option_string_actions for command in commands(build_parser())}
    assert {name for name, has in found.items() if not has} == JSON_ALWAYS | NO_DOCUMENT


def test_json_of_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"ociVersion": "1.3.0", "root": {}}')
    assert main(["validate", "--bundle", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {tuple(problem) for problem in found} == {("path", "message", "section", "severity")}
    assert "error" in {problem["severity"] for problem in found}
    (tmp_path / "state").mkdir()
    for words in ("list --json", "list --format json", "prune --json"):
        assert main(["--root", str(tmp_path / "state"), *words.split()]) == 0
        assert json.loads(capsys.readouterr().out) == []
    builder = SifBuilder()
    builder.add_generic(b"data", name="data")
    builder.write(tmp_path / "x.sif")
    assert main(["sif", "add", str(tmp_path / "x.sif"), str(tmp_path / "config.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [2]
