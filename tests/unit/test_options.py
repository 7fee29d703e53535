"""Command lines: which are understood, how, and what is said of the others."""

from __future__ import annotations

import pytest

from ociruntime.cli.options import Parser
from ociruntime.cli.parser import parse


def parser() -> Parser:
    made = Parser("cmd", "does it")
    made.add_argument("--file", "-f", metavar="FILE", help="a file")
    made.add_argument("--all", "-a", action="store_true")
    made.add_argument("--tty", "-t", action="store_true")
    made.add_argument("--number", "-n", type=int, default=1)
    made.add_argument("--kind", choices=("a", "b"), default="a")
    made.add_argument("--env", "-e", action="append", default=[])
    made.add_argument("--same", action="store_const", const="b", dest="kind")
    made.add_argument("--never", action="refuse", help="not here")
    made.add_argument("id", metavar="ID")
    made.add_argument("args", nargs="...", metavar="ARG", help="the rest")
    return made


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", {"id": "x", "file": None, "all": False, "number": 1, "kind": "a", "env": [], "args": []}),
        ("--file y x", {"id": "x", "file": "y"}),
        ("--file=y x", {"id": "x", "file": "y"}),
        ("--file= x", {"id": "x", "file": ""}),
        ("-f y x", {"file": "y"}),
        ("-fy x", {"file": "y"}),
        ("-f=y x", {"file": "y"}),
        ("-f -a x", {"file": "-a", "all": False}),
        ("-atfy x", {"all": True, "tty": True, "file": "y"}),
        ("-n -1 x", {"number": -1}),
        ("--kind b x", {"kind": "b"}),
        ("--same x", {"kind": "b"}),
        ("-e A=1 -eB=2 --env=C= x", {"env": ["A=1", "B=2", "C="]}),
        ("x -a --file y -- z", {"all": False, "args": ["-a", "--file", "y", "--", "z"]}),
        ("-a -- -x -a", {"id": "-x", "all": True, "args": ["-a"]}),
        ("-", {"id": "-"}),
    ],
)
def test_understood(line: str, expected: dict[str, object]) -> None:
    given, left = parser().parse(line.split())
    assert left == []
    assert {name: getattr(given, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "the following arguments are required: ID"),
        ("--bogus x", "unrecognized arguments: --bogus"),
        ("--fil y x", "unrecognized arguments: --fil"),
        ("-z x", "unrecognized arguments: -z"),
        ("-az x", "unrecognized arguments: -z"),
        ("x --file", None),
        ("--file", "argument --file/-f: expected one argument"),
        ("--all=1 x", "argument --all/-a: takes no value, not '1'"),
        ("-a=1 x", "argument --all/-a: takes no value, not '1'"),
        ("-n y x", "argument --number/-n: invalid int value: 'y'"),
        ("--kind c x", "argument --kind: invalid choice: 'c' (choose from 'a', 'b')"),
        ("--never x", "--never is not supported"),
    ],
)
def test_wrong(line: str, said: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if said is None:  # behind the first argument everything is an argument
        assert parser().parse(line.split())[0].args == line.split()[1:]
        return
    with pytest.raises(SystemExit) as stop:
        parser().parse(line.split())
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"usage: cmd [OPTIONS] ID [ARG ...]\ncmd: error: {said}\n")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser().parse(["x", "--help"][1:])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: cmd [OPTIONS] ID [ARG ...]\n\ndoes it\n\narguments:\n  [ARG ...]               the rest\n\noptions:\n"
    )
    assert "\n  --file, -f FILE         a file\n" in text
    assert "\n  --kind {a,b}\n" in text


def test_a_command_line() -> None:
    given = parse(["--root", "/r", "--systemd-cgroup", "kill", "--all", "c1", "9"])
    assert (given.root, given.cgroup_manager, given.id, given.signal, given.all) == ("/r", "systemd", "c1", "9", True)
    assert parse(["state", "create"]).cgroup_manager == "cgroupfs"
    assert parse(["exec", "-e", "A=B", "c1", "ls", "-l"]).args == ["ls", "-l"]


@pytest.mark.parametrize("line", ["", "--root /x", "nothing x"])
def test_no_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(line.split())
    assert stop.value.code == 2
    assert "ociruntime: error: " in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for name in ("create", "run", "exec", "logs", "prune", "mount", "update"):
        assert f"\n  {name} " in text
        with pytest.raises(SystemExit) as stop:
            parse([name, "-h"])
        assert stop.value.code == 0
