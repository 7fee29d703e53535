"""Every command with wrong words: one line on stderr that names what is wrong, in time, never a traceback and never success."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest

import ociruntime as oci
from ociruntime.cli import build_parser, main, script
from ociruntime.cli.common import one_line
from ociruntime.lifecycle import checkpoint

from ..support.fixture_types import Command, MakeBundle
from ..support.users import User
from ..support.waiting import TIME_LIMIT

pytestmark = pytest.mark.slow

LONG = "x" * 5000
BYTES = "\udcff"
"""What Python makes of an argument that is not UTF-8."""
IDS = ("", ".", "..", ".a", "../a", "a/b", "x" * 256, LONG, BYTES, "a\nb", "a b", "-x", "--x")
NUMBERS = ("", " ", "x", "nan", "²", "9" * 400 + "q", BYTES, "0x10", "1\n2")
WORDS = ("", LONG, BYTES, "a\nb", "no such")
PATHS = {"FILE", "DIR", "SOCKET", "SIF", "IMAGE", "BUNDLE", "TO", "SOURCE", "TARGET"}
"""Metavars of arguments that are paths of the host."""
COLUMNS = (["-o", "nothing"], ["-o", "args"], ["--bogus"], ["-o", LONG], ["-o", BYTES], ["-o", "a\nb"], [""])

SUCCEEDS = (
    r"delete --force .*",  # a container that does not exist is no error
    r".*--(pid-file|log-path)=missing",
    r".*--pid-file=(fifo|unreadable)",  # replaced
    r"(create|run) --sync-socket=.+",  # a listener may come later
    r"(mount BUNDLE|spec --bundle)=(missing|directory)|mount IMAGE=directory",
    r"(image|sif) extract --output=missing|sif add --name=.*",
    r"(image|sif) \w+ --(platform|max-files)=.*|(image (ls|extract)|inspect) (IMAGE=directory|PATH=)",  # a SIF file has one platform
    r"(create|run|shell) --hostname=.+",  # the kernel takes any bytes
    r"cp (SOURCE=directory|DESTINATION=.+)",  # any word is the name of a new file
    r"kernelspec install (IMAGE=directory|--prefix=.*|--hostname=.+|--(display-name|language)=(x+|no such))",
    r"commit (TARGET=missing|--image=directory)",
    r"build (TARGET=missing|SOURCE=directory|--upper=directory|--exclude=.+|--max-files=9+)",
    r"exec --(cgroup|apparmor|process-label)=|update --cpuset-(cpus|mems)=",  # the container's own
)
"""Cases that are right, as ``command argument=value``."""
WARNS = r"exec --cap=.*"
"""Cases that succeed with a warning, as the runtime spec demands."""
NAMES = {
    "target": "cannot be pulled",  # no registry runs here
    "detach_keys": "supervisor",  # without keys nothing detaches
    "l3_cache_schema": "$.linux.intelRdt",
    "mem_bw_schema": "$.linux.intelRdt",
    "process_label": "$.process.selinuxLabel",
    "image_path": "criu",  # which is missing in these tests
    "work_path": "criu",
    "parent_path": "criu",
    "pid_file": "criu",
    "path": "is a directory",  # the root directory of an image
    "ps_options": "ps : error",
}
"""How messages name an argument in another way."""
OF_THE_SHELL = r"shell ARGUMENT=.*"
"""Arguments that the shell in the container judges, with messages and exit statuses of its own."""
WAITS = r".*(--config|--process|--resources|--from-file|--key|--password-file|--definition|--sbom|--auth-file|--env-file)=fifo|sif add FILE=fifo"
"""A FIFO of a shell's ``<(...)``: reading waits for its writer."""


class TooLongError(BaseException):
    """A command did not end in time."""


def execute(*words: str) -> tuple[int, str]:
    """Execute a command in this process, and return its exit status and what it has written to stderr."""

    def too_long(*_: object) -> None:
        raise TooLongError

    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape") for _ in range(2))
    previous = signal.signal(signal.SIGALRM, too_long)
    try:
        with open(os.devnull, encoding="utf-8") as stdin, warnings.catch_warnings():
            sys.stdin, sys.stdout, sys.stderr = stdin, out, err
            signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT, 1)  # again, as the first signal may be deferred
            try:
                status = main(words)
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous)
        sys.stdin, sys.stdout, sys.stderr = streams
    err.flush()
    return status, err.buffer.getvalue().decode("utf-8", "surrogateescape")  # type: ignore[attr-defined]


def fault_of(status: int, err: str, *things: str) -> str:
    """Return what is wrong with the outcome of a wrong command line; empty if nothing is. It names one of the things."""
    lines = err.splitlines()
    if status in (1, 3) and lines[:1] and lines[0].startswith("usage: "):
        lines = lines[1:]
    if "Traceback" in err:
        return f"traceback: {err[-600:]}"
    if status == 0:
        return "it succeeds"
    errors = [line for line in lines if not line.startswith("ociruntime: warning: ")]
    if len(errors) != 1 or not errors[0].startswith("ociruntime"):
        return f"not one line: {err[:600]!r}"
    if len(err) > 9000:  # a path of PATH_MAX bytes, twice
        return "the message is too long"
    if "codec" in err or re.match(r"ociruntime: \[Errno \d+\] [^:]*$", errors[0]):
        return f"bare: {errors[0][:300]}"
    if not any(thing in errors[0] for thing in things if thing):
        return f"nothing of {[thing[:40] for thing in things]} is named: {errors[0][:300]}"
    return ""


def spellings(value: str) -> tuple[str, ...]:
    """Return how a value may look in a message, where it may be shortened."""
    return one_line(value)[:20], repr(value)[:20], repr(value).strip("'\"")[:20], os.path.basename(value)[:40]


def commands(parser: argparse.ArgumentParser, name: str = "") -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands of a parser by name, as ``image ls``."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        return {name.strip(): parser}
    return {
        path: created for choice, sub in groups[0].choices.items() for path, created in commands(sub, f"{name} {choice}").items()
    }


COMMANDS = commands(build_parser())


class World:
    """Valid arguments for every command."""

    def __init__(self, directory: Path, make_bundle: MakeBundle, image: Path, prefix: str) -> None:
        self.directory, self.image, self.prefix = directory, image, prefix
        self.root = directory / "state"
        self.bundle = make_bundle(name="short")
        self.bundle.spec = oci.RuntimeSpec.default(rootless=os.geteuid() != 0).with_args(["true"])
        self.running = oci.Container.run(f"{prefix}-0", self.bundle.with_args(["sleep", "1000"]).fresh(), state_root=self.root)
        self.here = directory / "here"
        self.here.mkdir()
        self.places = directory / "places"
        (self.places / "directory").mkdir(parents=True)
        os.mkfifo(self.places / "fifo")
        (self.places / "text").write_text("no JSON")
        os.close(os.open(self.places / "unreadable", os.O_CREAT, 0))
        (self.places / "locked").mkdir(0)
        self.count = 0

    def paths(self) -> dict[str, str]:
        """Return wrong paths by what is wrong with them."""
        names = ["missing", "missing/deep", "text/deep", "directory", "fifo"]
        if os.geteuid() != 0:
            names += ["unreadable", "locked", "locked/file"]
        return {
            **{name: f"{self.places}/{name}" for name in names},
            "": "",
            "long": LONG,
            "long name": f"{self.places}/{LONG[:300]}",
            "bytes": f"{self.places}/{BYTES}/a\nb",
        }

    def new_id(self) -> str:
        self.count += 1
        return f"{self.prefix}-{self.count}"

    def words(self, command: str, parser: argparse.ArgumentParser, given: argparse.Action, value: Sequence[str]) -> list[str]:
        """Return a command line in which one argument has a value, and all others that are needed have valid ones."""
        words = command.split()
        if command in ("create", "run", "restore", "plan", "validate", "spec") and given.dest != "bundle":
            words += ["--bundle", str(self.bundle.path)]
        if given.option_strings:
            words += [f"{given.option_strings[-1]}={value[0]}"]
        for action in parser._actions:
            if action.option_strings:
                words += [f"{action.option_strings[-1]}={self.places}/text"] if action.required and action is not given else []
                continue
            if action is given:
                words += value
            elif action.type is int:
                words.append("1")
            elif action.dest == "id":
                words.append(self.new_id() if command in ("create", "run", "restore") else self.running.id)
            elif action.nargs == argparse.REMAINDER:
                words += {"exec": ["true"], "kernelspec install": ["sh", "{connection_file}"]}.get(command, [])
            elif action.choices:
                words.append(next(iter(action.choices)))
            elif action.metavar == "PATH":
                words.append("/bin/busybox")
            elif action.nargs != "?":
                if command in ("sif add", "sif del") and action.metavar == "SIF":
                    words.append(str(shutil.copy(self.image, self.places / self.new_id())))
                    continue
                known = {
                    "FILE": f"{self.places}/text",
                    "URI": "docker://127.0.0.1:1/name:tag",
                    "SIF": str(self.image),
                    "IMAGE": str(self.image),
                    "SOURCE": f"{self.places}/directory",
                }
                if command == "cp":  # one of both is in a container
                    inside = f"{self.running.id}:/tmp"
                    known |= {"SOURCE": inside} if given.dest == "destination" else {"DESTINATION": inside}
                words.append(known.get(str(action.metavar), f"{self.places}/{self.new_id()}"))
        return words

    def clean(self) -> None:
        """Remove what a command that has succeeded has made."""
        for container in oci.Container.list(state_root=self.root):
            if container.id != self.running.id:
                container.delete(force=True)
        for path in self.places.iterdir():
            if os.access(path, os.X_OK) and (path / "rootfs").exists():
                oci.Bundle(path, config=None).umount(state_root=self.root)
        for path in (self.places / "missing", *self.here.iterdir()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for name in ("directory/config.json", "fifo", "unreadable"):
            (self.places / name).unlink(missing_ok=True)
        (self.places / "directory").mkdir(exist_ok=True)
        os.mkfifo(self.places / "fifo")
        os.close(os.open(self.places / "unreadable", os.O_CREAT, 0))


@pytest.fixture
def world(
    tmp_path: Path, make_bundle: MakeBundle, busybox_sif: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.setattr(checkpoint, "CRIU", "no-criu")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    created = World(tmp_path, make_bundle, busybox_sif, prefix)
    try:
        yield created
        created.clean()
    finally:
        created.running.delete(force=True)


def wrong_values(world: World, command: str, action: argparse.Action) -> Iterator[tuple[str, list[str]]]:
    """Yield wrong values of an argument, each with its name."""
    if action.dest == "id" and action.type is None:
        values = IDS if action.nargs is None else ()
    elif action.nargs == argparse.REMAINDER:
        columns = COLUMNS if command == "ps" else [[word] for word in (*WORDS, "no/such")]
        yield from ((words[-1][:20], words) for words in columns)
        return
    elif action.nargs == 0:
        values = ("x",) if action.option_strings else ()  # --force=x
    elif action.metavar in PATHS and action.dest != "cwd":
        yield from ((name, [path]) for name, path in world.paths().items())
        return
    elif action.choices is not None:
        values = WORDS
    elif action.type is not None:
        values = (*NUMBERS, "9" * 30, "9" * 5000) if action.type is int else NUMBERS
    else:
        values = WORDS
    yield from ((value[:20], [value]) for value in values)


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_arguments(world: World, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each argument of each command gets every wrong value, the others get valid ones."""
    monkeypatch.chdir(world.here)
    if command == "kernelspec install":
        pytest.importorskip("jupyter_client", reason="the extra 'notebook' is not installed")
        monkeypatch.setattr(
            logging.getLogger("traitlets"), "propagate", False
        )  # of paths that are not UTF-8, which xdist cannot send
    parser = COMMANDS[command]
    faults: list[str] = []
    tried = 0
    for action in parser._actions:
        if action.dest == "help":
            continue
        option = action.option_strings[-1] if action.option_strings else str(action.metavar)
        for name, value in wrong_values(world, command, action):
            case = f"{command} {option}={name}"
            if re.fullmatch(WAITS, case) or re.fullmatch(OF_THE_SHELL, case, re.DOTALL):
                continue
            tried += 1
            status, err = execute("--root", str(world.root), *world.words(command, parser, action, value))
            if status == 0:
                world.clean()
                if any(re.fullmatch(pattern, case, re.DOTALL) for pattern in SUCCEEDS):
                    continue
                if re.fullmatch(WARNS, case, re.DOTALL):
                    status, err = 1, err.replace("ociruntime: warning: ", "ociruntime: ")
            things = (*spellings(value[-1]), option, action.dest, NAMES.get(action.dest, ""))
            if fault := fault_of(status, err, *things):
                faults.append(f"{case!r}: {fault}")
    assert not faults, "\n".join(faults)
    assert tried or command in ("prune", "features")
    assert world.running.status == "running"


GLOBAL = {
    "--root": ("list", {"directory"}),  # no container
    "--log": ("list", {"missing"}),
    "--log-format": ("list", set[str]()),
    "--cgroup-manager": ("list", set[str]()),
}
"""Options before the command: a command to try them with, and the values that are right."""


def test_wrong_global_options(world: World) -> None:
    options = {action.option_strings[-1]: action for action in build_parser()._actions if action.option_strings}
    faults = []
    for option, given in options.items():
        if given.nargs == 0 or option == "--rootless":  # accepted for compatibility
            continue
        command, right = GLOBAL[option]
        for name, (value,) in wrong_values(world, "", given):
            root = () if option == "--root" else ("--root", str(world.root))
            status, err = execute(*root, f"{option}={value}", command)
            if name in right:
                assert status == 0, err
            elif fault := fault_of(status, err, *spellings(value), option):
                faults.append(f"{option}={name}: {fault}")
    for words in (*([word] for word in WORDS), ["--bogus", "list"], ["-Z", "list"], ["--rootles=x", "list"]):
        word = words[0]
        if fault := fault_of(*execute(*words), *spellings(word)):
            faults.append(f"{word[:20]!r}: {fault}")
    assert not faults, "\n".join(faults)


def test_a_log_that_fails_later_does_not_hide_the_error(world: World, tmp_path: Path) -> None:
    status, err = execute("--log", "/dev/full", "--root", str(world.root), "state", "nope")
    assert (status, len(err.splitlines())) == (1, 2)
    assert "'nope' does not exist" in err
    assert "warning: cannot write to --log /dev/full: no space left on device" in err
    reader = os.open(world.places / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        status, err = execute("--log", f"{world.places}/fifo", "--root", str(world.root), "state", "nope")
        assert (status, len(err.splitlines())) == (1, 1)
        assert b"'nope' does not exist" in os.read(reader, 4096)
    finally:
        os.close(reader)


@pytest.fixture
def removed_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the working directory be one that was removed."""
    directory = tmp_path / "removed"
    directory.mkdir()
    monkeypatch.chdir(directory)
    directory.rmdir()


NOTHING = argparse.Action([], "")
"""Stands for no argument, so that all have valid values."""


def valid_line(world: World, command: str) -> list[str]:
    """Return a command line without relative paths that ends by itself."""
    words = world.words(command, COMMANDS[command], NOTHING, ())
    if command == "events":
        words.append("--stats")
    if command in ("image extract", "sif extract"):
        words += ["--output", f"{world.places}/{world.new_id()}"]
    if command in ("checkpoint", "restore"):
        words += ["--image-path", f"{world.places}/{world.new_id()}"]
    if command == "pull":
        words.insert(1, f"{world.places}/{world.new_id()}")
    return words


@pytest.mark.usefixtures("removed_directory")
@pytest.mark.parametrize("command", COMMANDS)
def test_relative_paths_in_a_removed_working_directory(world: World, command: str) -> None:
    """Each argument that is a path says what is wrong with a relative one."""
    parser, faults = COMMANDS[command], []
    for action in parser._actions:
        if action.metavar in PATHS and action.dest != "cwd":
            words = world.words(command, parser, action, ["rel"])
            if command in ("image extract", "sif extract") and action.dest != "output":
                words += ["--output", f"{world.places}/{world.new_id()}"]
            status, err = execute("--root", str(world.root), *words)
            if (fault := fault_of(status, err, "rel")) or "working directory was removed" not in err:
                faults.append(f"{words}: {fault}: {err}")
            world.clean()
    assert not faults, "\n".join(faults)


@pytest.mark.usefixtures("removed_directory")
def test_defaults_in_a_removed_working_directory(world: World) -> None:
    """The working directory is the bundle by default, and options before the command may be relative too."""
    root, faults = ("--root", str(world.root)), []
    lines = {
        **{name: [*root, name] for name in ("plan", "validate", "spec")},
        **{name: [*root, name, world.new_id()] for name in ("create", "run")},
        "--root": ["--root", "rel", "list"],
        "--log": [*root, "--log", "rel", "list"],
        "image extract": ["image", "extract", str(world.image)],
    }
    for name, words in lines.items():
        status, err = execute(*words)
        if (fault := fault_of(status, err, "rel", ".: ", "busybox")) or "working directory was removed" not in err:
            faults.append(f"{name}: {fault}: {err}")
    assert not faults, "\n".join(faults)


def outcome(world: World, command: str, closed: Collection[int] = ()) -> tuple[int, str, str]:
    """Execute a valid command line as a process, with some of its standard streams closed.

    Returns:
        The exit status, and what was written to stdout and stderr, without the numbers of new containers and files.
    """
    words = valid_line(world, command)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if not pid:
            try:
                null = os.open(os.devnull, os.O_RDONLY)
                for fd, to in enumerate((null, out.fileno(), err.fileno())):
                    os.dup2(to, fd)
                for fd in closed:
                    os.close(fd)
                signal.alarm(TIME_LIMIT)
                sys.stdin = None if 0 in closed else os.fdopen(0, closefd=False)  # type: ignore[assignment]
                sys.argv = ["ociruntime", "--root", str(world.root), *words]
                script()
            except BaseException:
                os.write(err.fileno(), traceback.format_exc().encode())
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(re.sub(rf"{world.prefix}-[1-9]\d*", "NEW", file.read().decode("utf-8", "surrogateescape")))
    undo = {"mount": ["umount", words[-1]], "pause": ["resume", world.running.id]}
    if command in undo and status == 0:
        assert execute("--root", str(world.root), *undo[command]) == (0, "")
    world.clean()
    return status, texts[0], texts[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_without_a_directory_and_streams(world: World, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that needs neither does the same without its working directory, and with any of its standard streams closed."""
    monkeypatch.chdir(world.here)
    outcome(world, command)  # the first command that extracts an image warns about it, the others do not
    status, out, err = outcome(world, command)
    assert "Traceback" not in err
    faults = []
    for closed in ((0,), (1,), (2,), (0, 1, 2)):
        found, _, message = outcome(world, command, closed)
        requested, says = (1, "ociruntime: cannot write to stdout: bad file descriptor\n") if 1 in closed and out else (status, err)
        if (found, message) != (requested, "" if 2 in closed else says):
            faults.append(f"{closed}: {found}, {message!r}, expected {requested}, {says!r}")
    removed = world.directory / "removed"
    removed.mkdir()
    monkeypatch.chdir(removed)
    removed.rmdir()
    found, _, message = outcome(world, command)
    if (found, message) != (status, err):
        faults.append(f"without a directory: {found}, {message!r}, expected {status}, {err!r}")
    assert not faults, "\n".join(faults)


@pytest.mark.usefixtures("removed_directory")
def test_removed_working_directory_in_python(world: World) -> None:
    calls: list[Callable[[], object]] = [
        lambda: oci.Bundle.load("rel"),
        lambda: oci.Bundle.from_dir("rel"),
        lambda: oci.Bundle.from_sif(world.image, "rel"),
        lambda: oci.SifImage.open("rel"),
        lambda: oci.image.Image.open("rel"),
        lambda: oci.Container.list(state_root="rel"),
        lambda: oci.run(world.bundle, mounts=["rel:/mnt"], state_root=world.root),
        lambda: world.bundle.with_overrides(oci.overrides.Overrides(mounts=["rel:/mnt"])),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(FileNotFoundError, match=r"the working directory was removed; give an absolute path: 'rel'"):
            print(number, call())
    assert oci.run(world.bundle, ["true"], state_root=world.root).returncode == 0
    with oci.Container.run(world.new_id(), world.bundle, supervise=True, state_root=world.root) as container:
        assert container.wait() == 0


def test_a_bundle_that_is_a_fifo(world: World) -> None:
    bundle = world.directory / "bundle-of-fifo"
    bundle.mkdir()
    os.mkfifo(bundle / "config.json")
    for command in ("validate", "plan"):
        status, err = execute(command, "--bundle", str(bundle))
        assert (status, err) == (1, f"ociruntime: {bundle}/config.json: a FIFO, not a regular file\n")


def test_bundle_errors_name_the_bundle(world: World) -> None:
    long = "/" + "/".join(["x" * 200] * 20) + "/" + "y" * 70
    assert len(long) < 4096 < len(f"{long}/config.json")
    calls: list[Callable[[str], object]] = [oci.Bundle.from_dir, lambda path: oci.run(path, ["true"])]
    for call in calls:
        with pytest.raises(oci.BundleError, match=r"cannot use /xxx.*: file name too long"):
            call(long)


def test_the_longest_id(world: World) -> None:
    id = world.prefix.ljust(255, "x")
    assert execute("--root", str(world.root), "run", "--bundle", str(world.bundle.path), id) == (0, "")
    status, err = execute("--root", str(world.root), "run", "--bundle", str(world.bundle.path), f"{id}x")
    assert status == 1
    assert "is not a container id: use letters, digits and _+.- (no leading dot), at most 255 of them" in err


# ---- real processes ----


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(command: Command) -> Run:
    """Executes a command with redirections of the shell."""

    def run(words: Sequence[object], redirections: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", f'"$@" {redirections}', "sh", *command(*words)],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=TIME_LIMIT, check=False, encoding="utf-8", errors="surrogateescape",
            env={"PATH": os.environ["PATH"], **environment},
        )  # fmt: skip

    return run


def printing_commands(world: World) -> list[list[str]]:
    """Return command lines that print something."""
    id = world.running.id
    return [
        *(["--help"], ["--version"], ["features"], ["list"], ["list", "--quiet"]),
        *([command, "--help"] for command in ("exec", "logs")),
        *(["state", id], ["ps", id], ["ps", "--format=json", id], ["ps", id, "-ef"], ["events", "--stats", id]),
        *(["sif", str(world.image)], ["plan", "--bundle", str(world.bundle.path)]),
    ]


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "no space left on device"), (">&-", "bad file descriptor")], ids=["full", "closed"]
)
def test_stdout_that_cannot_be_written(world: World, shell: Run, redirection: str, reason: str) -> None:
    for words in printing_commands(world):
        done = shell(["--root", world.root, *words], redirection)
        assert (done.returncode, done.stderr) == (1, f"ociruntime: cannot write to stdout: {reason}\n"), words


def test_broken_pipe(world: World, shell: Run) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for words in printing_commands(world):
            done = subprocess.run(
                [sys.executable, "-P", "-m", "ociruntime", "--root", str(world.root), *words],
                stdout=writer, stderr=subprocess.PIPE, check=False, timeout=TIME_LIMIT,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (141, b""), words
    finally:
        os.close(writer)


@pytest.mark.parametrize("redirections", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_errors_that_cannot_be_written(world: World, shell: Run, redirections: str) -> None:
    for words in (["state", "nope"], ["state"], ["--bogus"], ["exec", world.running.id, "nope"]):
        done = shell(["--root", world.root, *words], redirections)
        assert done.returncode != 0, words
        assert (done.stdout, done.stderr) == ("", "")
    done = shell(["--root", world.root, "exec", world.running.id, "true"], redirections)
    assert (done.returncode, done.stderr) == (0, "")


def test_lost_output_of_logs(world: World, shell: Run) -> None:
    bundle = world.bundle.with_args(["sh", "-c", "echo out; echo err >&2"])
    container = oci.Container.run(world.new_id(), bundle, supervise=True, state_root=world.root)
    container.wait()
    for redirection, stream in ((">/dev/full", "stdout"), (">&-", "stdout")):
        done = shell(["--root", world.root, "logs", container.id], redirection)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (
            1, f"ociruntime: cannot write to {stream}: {'bad file descriptor' if '&' in redirection else 'no space left on device'}",
        )  # fmt: skip
    assert shell(["--root", world.root, "logs", container.id], "2>/dev/full").returncode == 1


def test_locales(world: World, shell: Run) -> None:
    """Without a home directory and in an ASCII locale, bytes of file names are printed as they are."""
    environment = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    place = world.directory / os.fsdecode("b\u00e9\udcff".encode("utf-8", "surrogateescape"))
    world.bundle.path.rename(place)
    id = world.new_id()
    assert shell(["--root", world.root, "create", "--bundle", place, id], ">/dev/null 2>&1", **environment).returncode == 0
    done = shell(["--root", world.root, "list"], "", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(place) in done.stdout
    for words in (["state", os.fsencode(BYTES)], ["validate", "-b", os.fsencode(BYTES)], ["kill", id, "\u00e9\udcff"]):
        done = shell(["--root", world.root, *map(os.fsdecode, map(os.fsencode, words))], "", **environment)
        assert fault_of(done.returncode, done.stderr, "udcff", "\\xff") == "", words


@pytest.mark.root
def test_as_a_user(user: User, tmp_path: Path) -> None:
    """Directories that a user may not enter, and state of others."""
    closed = user.work / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    inner = closed / "inner"
    unreadable = user.work / "unreadable"
    unreadable.write_text("{}")
    unreadable.chmod(0o600)
    cases: list[tuple[list[object], object]] = [
        *(([command, "--bundle", inner], inner) for command in ("plan", "validate", "spec")),
        *(([command, "--bundle", inner, "x"], inner) for command in ("create", "run")),
        (["create", "--bundle", user.bundle, "--config", unreadable, "x"], unreadable),
        (["mount", inner, user.work / "new"], inner),
        (["mount", user.bundle / "config.json", inner], "config.json"),
        (["umount", inner], inner),
        (["sif", unreadable], unreadable),
        (["--log", inner, "list"], inner),
        (["--root", closed, "list"], closed),
        (["--root", closed, "state", "x"], closed),
        (["--root", inner, "create", "--bundle", user.bundle, "x"], inner),
        (["create", "--bundle", user.bundle, "--pid-file", inner / "pid", "x"], inner),
        (["state", "--sync-socket", inner / "s", "x"], "'x' does not exist"),
    ]
    faults = []
    for words, thing in cases:
        done = user.command(*words)
        if fault := fault_of(done.returncode, done.stderr, str(thing)):
            faults.append(f"{words}: {fault}")
    assert not faults, "\n".join(faults)
    text = "import ociruntime as oci, sys\ntry: oci.run(sys.argv[1])\nexcept oci.BundleError as error: print(error)"
    assert user.script(text, inner) == f"cannot use {inner}: permission denied\n"
