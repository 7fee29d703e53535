"""Command lines: how words are read, what is refused, and the help."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from ociruntime.cli import build_parser, main
from ociruntime.cli.parser import Parser, parse_args

COMMANDS = (
    "create start run state kill delete checkpoint restore list prune exec shell cp diff commit ps attach logs update pause resume events mount umount image inspect "
    "build pull sif verify sign plan spec validate features doctor devices kernelspec completion"
).split()


def parser(*, rest: bool) -> Parser:
    created = Parser(prog="cmd")
    created.add_argument("-f", "--file", metavar="FILE")
    created.add_argument("-a", "--all", action="store_true")
    created.add_argument("-t", "--tty", action="store_true")
    created.add_argument("-n", "--number", type=int, default=1)
    created.add_argument("--kind", choices=("a", "b"), default="a")
    created.add_argument("-e", "--env", action="append", default=[])
    created.add_argument("--same", action="store_const", const="b", dest="kind")
    created.add_argument("id", metavar="ID")
    if rest:
        created.add_argument("args", nargs=argparse.REMAINDER, metavar="ARG")
    else:
        created.add_argument("signal", nargs="?", metavar="SIGNAL")
    return created


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", {"id": "x", "file": None, "all": False, "number": 1, "kind": "a", "env": []}),
        ("--file y x", {"id": "x", "file": "y"}),
        ("--file=y x", {"id": "x", "file": "y"}),
        ("--file= x", {"id": "x", "file": ""}),
        ("-f y x", {"file": "y"}),
        ("-fy x", {"file": "y"}),
        ("-f=y x", {"file": "y"}),
        ("-f -a x", {"file": "-a", "all": False}),
        ("--file --all x", {"file": "--all", "all": False}),
        ("-atfy x", {"all": True, "tty": True, "file": "y"}),
        ("-atf -n x", {"all": True, "tty": True, "file": "-n", "number": 1}),
        ("-n -1 x", {"number": -1}),
        ("--number -1 x", {"number": -1}),
        ("--kind b x", {"kind": "b"}),
        ("--same x", {"kind": "b"}),
        ("-e A=1 -eB=2 --env=C= -e -x x", {"env": ["A=1", "B=2", "C=", "-x"]}),
        ("-", {"id": "-"}),
    ],
)
@pytest.mark.parametrize("rest", [False, True])
def test_options(line: str, expected: dict[str, object], rest: bool) -> None:
    given = parser(rest=rest).parse_args(line.split())
    assert {name: getattr(given, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x -a --file y", {"id": "x", "signal": None, "all": True, "file": "y"}),
        ("x -a KILL", {"id": "x", "signal": "KILL", "all": True}),
        ("x -f -9 KILL -a", {"id": "x", "signal": "KILL", "all": True, "file": "-9"}),
        ("-a -- -x -t", {"id": "-x", "signal": "-t", "all": True, "tty": False}),
        ("x -a -- -9", {"id": "x", "signal": "-9", "all": True}),
    ],
)
def test_options_between_positional_arguments(line: str, expected: dict[str, object]) -> None:
    given = parser(rest=False).parse_args(line.split())
    assert {name: getattr(given, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x", {"id": "x", "args": []}),
        ("x --file", {"file": None, "args": ["--file"]}),
        ("x -a --file y -- z", {"all": False, "args": ["-a", "--file", "y", "--", "z"]}),
        ("-a x y -a", {"id": "x", "all": True, "args": ["y", "-a"]}),
        ("-a -- -x -a", {"id": "-x", "all": True, "args": ["-a"]}),
    ],
)
def test_the_rest_is_not_options(line: str, expected: dict[str, object]) -> None:
    given = parser(rest=True).parse_args(line.split())
    assert {name: getattr(given, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: ID"),
        ("--bogus x", "unrecognized arguments: --bogus"),
        ("--fil=y x", "unrecognized arguments: --fil=y; did you mean '--file'?"),
        ("--al x", "unrecognized arguments: --al; did you mean '--all'?"),
        ("--root=/r x", "unrecognized arguments: --root=/r; --root stands before the command"),
        ("-z x", "unrecognized arguments: -z"),
        ("--file", "argument -f/--file: expected one argument"),
        ("--file -- x", "argument -f/--file: expected one argument"),
        ("--all=1 x", "argument -a/--all: ignored explicit argument '1'"),
        ("-n y x", "argument -n/--number: invalid int value: 'y'"),
        ("--kind c x", "argument --kind: invalid choice: 'c' (choose from 'a', 'b')"),
        ("--kind bb x", "argument --kind: invalid choice: 'bb' (choose from 'a', 'b'); did you mean 'b'?"),
        ("x y z", "unrecognized arguments: z"),
    ],
)
def test_what_is_refused(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parser(rest=False).parse_args(line.split())
    assert stop.value.code == 1
    assert capsys.readouterr() == ("", f"usage: cmd [OPTION ...] ID [SIGNAL]\ncmd: error: {message}\n")


def test_an_unknown_letter_after_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Older versions of argparse name the option, newer ones the letter."""
    with pytest.raises(SystemExit) as stop:
        parser(rest=False).parse_args(["-az", "x"])
    assert stop.value.code == 1
    message = capsys.readouterr().err.partition("cmd: error: ")[2]
    assert message in ("argument -a/--all: ignored explicit argument 'z'\n", "unrecognized arguments: -z\n")


def test_a_command_line() -> None:
    given = parse_args(["--root", "/r", "--systemd-cgroup", "kill", "--all", "c1", "9"])
    assert (given.root, given.cgroup_manager, given.id, given.signal, given.all) == ("/r", "systemd", "c1", "9", True)
    assert parse_args(["state", "create"]).cgroup_manager == "cgroupfs"
    assert parse_args(["--cgroup-manager", "disabled", "state", "x"]).cgroup_manager == "disabled"
    assert parse_args(["exec", "-e", "A=B", "c1", "ls", "-l"]).args == ["ls", "-l"]
    assert parse_args(["--root", "state", "kill", "delete"]).command == "kill"
    assert parse_args(["kill", "c1", "--all", "KILL"]).signal == "KILL"
    given = parse_args(["--log-format", "json", "create", "--log-format", "basic", "c1"])
    assert (given.log_format, given.container_log_format) == ("json", "basic")


@pytest.mark.parametrize(
    "line",
    [
        "--root /r kill --all c1 9",
        "exec --tty -e A=B c1 ls -l",
        "update -m 64m --cpu-share 5 c1",
        "events --interval 1m30s c1",
        "ps c1 -ef",
        "--rootless true spec --rootless -b /b",
    ],
)
def test_a_command_is_read_as_by_the_parser_of_all(line: str) -> None:
    one, every = vars(parse_args(line.split())), vars(build_parser().parse_args(line.split()))
    assert one.pop("run").args == every.pop("run").args
    assert one == every


@pytest.mark.parametrize("line", ["", "--root /x", "nothing x", "-- nothing", "--log"])
def test_no_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(line.split())
    assert stop.value.code == (3 if "nothing" in line else 1)
    assert "ociruntime: error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stat x", "'stat' is not a command; 'ociruntime --help' lists the commands; did you mean 'state'?"),
        (
            "instance start x y",
            (
                "'instance' is not a command; 'ociruntime --help' lists the commands; "
                "'run --bundle BUNDLE --detach ID' starts a container that stays, and 'list' shows them"
            ),
        ),
        ("version", "'version' is not a command; 'ociruntime --help' lists the commands; use --version"),
        ("frobnicate", "'frobnicate' is not a command; 'ociruntime --help' lists the commands"),
        ("image lss x", "'lss' is not a command; 'ociruntime image --help' lists the commands; did you mean 'ls'?"),
        ("help dlete", "No help topic for 'dlete'; 'ociruntime --help' lists the commands; did you mean 'delete'?"),
        ("list --fromat json", "unrecognized arguments: --fromat json; did you mean '--format'?"),
        ("exec --zzz 1 x y", "unrecognized arguments: --zzz"),
        (
            "run --writable x y",
            "unrecognized arguments: --writable; an image is not written to; use --overlay DIR to keep writes, or --writable-tmpfs",
        ),
        (
            "run -u image.sif sh",
            "argument -u/--user: 'image.sif' is not USER[:GROUP]; leave out Apptainer's flag -u: a user's container always has a user namespace",
        ),
        ("shell --app=a x", "unrecognized arguments: --app=a; give the program of the app, as /scif/apps/NAME/scif/runscript"),
        ("exec --nvccli x y", "unrecognized arguments: --nvccli; use --nv, or --gpus"),
        ("exec --containal x y", "unrecognized arguments: --containal; did you mean '--containall'?"),
        ("list --root /x", "unrecognized arguments: --root /x; --root stands before the command"),
    ],
)
def test_mistyped_words(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(line.split())
    assert capsys.readouterr().err.splitlines()[-1].partition(": error: ")[2] == message


def test_completion_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert capsys.readouterr() == ("", "ociruntime: completion needs shtab: pip install 'ociruntime[cli]'\n")


@pytest.mark.parametrize("line", ["--help", "-h", "-h state"])
def test_help(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(line.split())
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ociruntime [OPTION ...] COMMAND ...\n\n")
    headings = ["containers", "processes and output", "resources", "images and bundles", "configuration", "options"]
    assert [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")] == headings
    for name in COMMANDS:
        assert text.count(f"\n  {name} ") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args([name, "-h"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ociruntime {name} [OPTION ...]")


def test_everything_has_a_help_text_and_a_function() -> None:
    (commands,) = (action for action in build_parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    assert list(commands.choices) == COMMANDS
    verbs = {
        f"{name} {verb}": parser
        for name, command in commands.choices.items()
        for action in command._actions
        if isinstance(action, argparse._SubParsersAction)
        for verb, parser in action.choices.items()
    }
    files = ["ls", "cat", "extract"]
    changes = ["list", "header", "dump", "add", "del"]
    images = [f"image {verb}" for verb in files] + [f"sif {verb}" for verb in changes + files]
    assert list(verbs) == [*images, "kernelspec install"]
    for name, command in {**commands.choices, **verbs}.items():
        module, function = command.get_default("run").args
        assert callable(getattr(__import__(f"ociruntime.cli.{module}", fromlist=[function]), function)), name
        for action in command._actions:
            assert action.help, f"{name} {action.dest}"
            assert not action.help.endswith("."), f"{name} {action.dest}"


@pytest.mark.parametrize("columns", ["60", "132", "", "x"])
def test_help_is_as_wide_as_the_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    longest = max(map(len, build_parser().format_help().splitlines()))
    assert longest <= int(columns if columns.isdigit() else 80) - 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_args(["--version"])
    assert stop.value.code == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("ociruntime version ")
    assert (second, third[:9]) == ("spec: 1.3.0", "+SYSTEMD ")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("run docker://alpine:3", "'ociruntime pull docker://alpine:3' makes a SIF file of it"),
        ("exec docker://alpine:3 id", "'ociruntime pull docker://alpine:3' makes a SIF file of it"),
        ("shell oras://r.example/x", "'ociruntime pull oras://r.example/x' makes a SIF file of it"),
        ("mount docker://alpine bundle", "'ociruntime pull docker://alpine' makes a SIF file of it"),
        ("build x.sif docker://alpine", "'ociruntime pull docker://alpine' makes a SIF file of it"),
        ("inspect library://alpine", "fetch it first"),
    ],
)
def test_an_image_in_a_registry(line: str, remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    if line.startswith(("run", "exec")):
        assert main(line.split()) in (1, 255)
    else:
        with pytest.raises(SystemExit, match="1"):
            main(line.split())
    assert capsys.readouterr().err.endswith(f" is in a registry and not a file; {remedy}\n")


def test_an_image_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "typo.sif", "ls", "-l"]) == 1
    assert capsys.readouterr().err == f"ociruntime: {tmp_path}/typo.sif: no such file or directory\n"
    assert main(["run", "typo"]) == 1
    assert capsys.readouterr().err == (
        "ociruntime: 'typo' is not the name of an image file, and the working directory is not a bundle: it has no "
        "config.json; name the image, or the bundle with --bundle\n"
    )
