"""The command line: runc's flags and the verbs of ``apptainer oci``."""

from __future__ import annotations

import argparse

from .. import __version__
from . import commands


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ociruntime", description="An OCI container runtime.", allow_abbrev=False)
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

    def verb(name: str, run: object, text: str, *, container: bool = True, **more: object) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False, **more)  # type: ignore[arg-type]
        sub.set_defaults(run=run)
        if container:
            sub.add_argument("id", metavar="ID")
        return sub

    sub = verb("mount", commands.mount, "make a bundle of a SIF image", container=False)
    sub.add_argument("sif", metavar="SIF")
    sub.add_argument("bundle", metavar="BUNDLE")
    sub.add_argument("--read-only", action="store_true", help="no writable overlay over the image")
    sub = verb("umount", commands.umount, "undo mount: unmount the image and remove the bundle", container=False)
    sub.add_argument("bundle", metavar="BUNDLE")

    for name, run, text in (
        ("create", commands.create, "create a container"),
        ("run", commands.run, "create, start, wait and delete; exits with the process's exit code"),
    ):
        sub = verb(name, run, text)
        sub.add_argument("--bundle", "-b", default=".", metavar="DIR", help="bundle directory (default: this one)")
        sub.add_argument("--pid-file", metavar="FILE", help="gets the pid of the container's process")
        sub.add_argument("--console-socket", metavar="SOCKET", help="gets the master of the container's terminal")
        sub.add_argument("--preserve-fds", type=int, default=0, metavar="N", help="descriptors from 3 on that the process inherits")
        sub.add_argument("--no-pivot", action=commands.Refuse, nargs=0, help="refused: the root is always pivoted into")
        sub.add_argument("--no-new-keyring", action="store_true", help="accepted for compatibility")
        if name == "run":
            sub.add_argument("--detach", "-d", action="store_true", help="do not wait")
            sub.add_argument("--keep", action="store_true", help="do not delete the container at its end")

    verb("start", commands.start, "run the process of a created container")
    verb("state", commands.state, "print the state as JSON")
    sub = verb("exec", commands.exec_, "run a further program in a container")
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
    sub = verb("kill", commands.kill, "send a signal to the container's process")
    sub.add_argument("signal", nargs="?", metavar="SIGNAL", help="name or number (default: TERM)")
    sub.add_argument("--signal", "-s", dest="named", metavar="SIGNAL")
    sub.add_argument("--all", "-a", action="store_true", help="to every process in the container")
    sub.add_argument("--force", "-f", action="store_true", help="KILL")
    sub.add_argument("--timeout", "-t", type=float, metavar="SECONDS", help="then KILL")
    sub = verb("delete", commands.delete, "remove what create made")
    sub.add_argument("--force", "-f", action="store_true", help="kill it first; a container that does not exist is no error")
    verb("pause", commands.pause, "freeze every process")
    verb("resume", commands.resume, "thaw every process")
    sub = verb("list", commands.list_, "list containers", container=False)
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")
    sub = verb("ps", commands.ps, "list the processes of a container")
    sub.add_argument("--format", "-f", choices=("table", "json"), default="table")
    sub = verb("spec", commands.spec, "write the default config.json", container=False)
    sub.add_argument("--bundle", "-b", default=".", metavar="DIR")
    sub = verb("plan", commands.plan, "print what creating and starting a container takes, without doing it", container=False)
    sub.add_argument("--bundle", "-b", default=".", metavar="DIR")
    sub.add_argument("--json", action="store_true")
    sub = verb("sif", commands.sif, "show what is in a SIF file", container=False)
    sub.add_argument("file", metavar="SIF")
    sub.add_argument("--json", action="store_true")
    return top
