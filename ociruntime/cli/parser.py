"""The command line: runc's flags and the verbs of ``apptainer oci``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .. import __version__
from . import commands

Parser = argparse.ArgumentParser


class Verb(NamedTuple):
    """One command: what runs it, what it is for, and its own arguments."""

    run: Callable[[argparse.Namespace], int | None]
    text: str
    arguments: Callable[[Parser], None]


def _container(sub: Parser) -> None:
    sub.add_argument("id", metavar="ID")


def _bundle(sub: Parser) -> None:
    sub.add_argument("--bundle", "-b", default=".", metavar="DIR", help="bundle directory (default: this one)")


def _mount(sub: Parser) -> None:
    sub.add_argument("sif", metavar="SIF")
    sub.add_argument("bundle", metavar="BUNDLE")
    sub.add_argument("--read-only", action="store_true", help="no writable overlay over the image")


def _umount(sub: Parser) -> None:
    sub.add_argument("bundle", metavar="BUNDLE")


def _create(sub: Parser) -> None:
    _container(sub)
    _bundle(sub)
    sub.add_argument("--pid-file", metavar="FILE", help="gets the pid of the container's process")
    sub.add_argument("--console-socket", metavar="SOCKET", help="gets the master of the container's terminal")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="descriptors from 3 on that the process inherits")
    sub.add_argument("--no-pivot", action=commands.Refuse, nargs=0, help="refused: the root is always pivoted into")
    sub.add_argument("--no-new-keyring", action="store_true", help="accepted for compatibility")


def _run(sub: Parser) -> None:
    _create(sub)
    sub.add_argument("--detach", "-d", action="store_true", help="do not wait")
    sub.add_argument("--keep", action="store_true", help="do not delete the container at its end")


def _exec(sub: Parser) -> None:
    _container(sub)
    sub.add_argument("args", nargs=argparse.REMAINDER, metavar="COMMAND")
    sub.add_argument("--process", "-p", metavar="FILE", help="a process object as in config.json")
    sub.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE")
    sub.add_argument("--cwd", metavar="DIR")
    sub.add_argument("--user", "-u", metavar="UID[:GID]")
    sub.add_argument("--detach", "-d", action="store_true", help="do not wait")
    sub.add_argument("--pid-file", metavar="FILE")
    sub.add_argument("--tty", "-t", action="store_true", help="with a terminal (needs --console-socket)")
    sub.add_argument("--console-socket", metavar="SOCKET")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N")


def _kill(sub: Parser) -> None:
    _container(sub)
    sub.add_argument("signal", nargs="?", metavar="SIGNAL", help="name or number (default: TERM)")
    sub.add_argument("--signal", "-s", dest="named", metavar="SIGNAL")
    sub.add_argument("--all", "-a", action="store_true", help="to every process in the container")
    sub.add_argument("--force", "-f", action="store_true", help="KILL")
    sub.add_argument("--timeout", "-t", type=float, metavar="SECONDS", help="then KILL")


def _delete(sub: Parser) -> None:
    _container(sub)
    sub.add_argument("--force", "-f", action="store_true", help="kill it first; a container that does not exist is no error")


def _format(sub: Parser) -> None:
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")


def _list(sub: Parser) -> None:
    _format(sub)
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")


def _ps(sub: Parser) -> None:
    _container(sub)
    _format(sub)


def _plan(sub: Parser) -> None:
    _bundle(sub)
    sub.add_argument("--json", action="store_true")


def _sif(sub: Parser) -> None:
    sub.add_argument("file", metavar="SIF")
    sub.add_argument("--json", action="store_true")


VERBS: Final = {
    "mount": Verb(commands.mount, "make a bundle of a SIF image", _mount),
    "umount": Verb(commands.umount, "undo mount: unmount the image and remove the bundle", _umount),
    "create": Verb(commands.create, "create a container", _create),
    "start": Verb(commands.start, "run the process of a created container", _container),
    "run": Verb(commands.run, "create, start, wait and delete; exits with the process's exit code", _run),
    "state": Verb(commands.state, "print the state as JSON", _container),
    "exec": Verb(commands.exec_, "run a further program in a container", _exec),
    "kill": Verb(commands.kill, "send a signal to the container's process", _kill),
    "delete": Verb(commands.delete, "remove what create made", _delete),
    "pause": Verb(commands.pause, "freeze every process", _container),
    "resume": Verb(commands.resume, "thaw every process", _container),
    "list": Verb(commands.list_, "list containers", _list),
    "ps": Verb(commands.ps, "list the processes of a container", _ps),
    "spec": Verb(commands.spec, "write the default config.json", _bundle),
    "plan": Verb(commands.plan, "print what creating and starting a container takes, without doing it", _plan),
    "sif": Verb(commands.sif, "show what is in a SIF file", _sif),
}


def parser(argv: Sequence[str]) -> Parser:
    """The parser for these arguments: of the commands only those that stand in them, as making all takes longer than most run."""
    top = Parser(prog="ociruntime", description="An OCI container runtime.", allow_abbrev=False)
    top.add_argument("--version", "-v", action="version", version=f"ociruntime version {__version__}\nspec: 1.3.0")
    top.add_argument("--root", metavar="DIR", help="state directory (default: /run/ociruntime, or $XDG_RUNTIME_DIR/ociruntime)")
    top.add_argument("--log", metavar="FILE", help="write errors to this file too")
    top.add_argument("--log-format", choices=("text", "json"), default="text", help="format of errors (default: text)")
    top.add_argument("--debug", action="store_true", help="accepted for compatibility; errors always say all that is known")
    top.add_argument(
        "--rootless", metavar="WHEN", help="accepted for compatibility; what the user may do is found out as it is done"
    )
    top.add_argument("--systemd-cgroup", action=commands.Refuse, nargs=0, help="refused: cgroups are made through cgroupfs")
    top.add_argument("--cgroup-manager", choices=("cgroupfs",), default="cgroupfs", help="how cgroups are made")
    verbs = top.add_subparsers(title="commands", metavar="COMMAND", required=True, prog="ociruntime")
    named = [name for name in VERBS if name in argv]
    for name in named or VERBS:
        verb = VERBS[name]
        sub = verbs.add_parser(name, help=verb.text, description=verb.text, allow_abbrev=False)
        sub.set_defaults(run=verb.run)
        verb.arguments(sub)
    return top
