"""Processes in a container: exec, ps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import ociruntime as oci

from ..errors import UnsupportedError
from .common import (
    Interrupted,
    Verb,
    container_argument,
    shell_status,
)
from .forwarding import Forwarding
from .options import Options, Parser


def _exec(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("args", nargs="...", metavar="COMMAND")
    sub.add_argument("--process", "-p", metavar="FILE", help="a process object as in config.json")
    sub.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE")
    sub.add_argument("--cwd", metavar="DIR")
    sub.add_argument("--user", "-u", metavar="USER[:GROUP]", help="names or numbers")
    sub.add_argument("--additional-gids", "-g", action="append", type=int, metavar="GID", help="a supplementary group")
    sub.add_argument("--cap", "-c", action="append", default=[], metavar="NAME", help="a further capability")
    sub.add_argument("--no-new-privs", action="store_true", help="no program gains privileges by its file")
    sub.add_argument("--apparmor", metavar="PROFILE")
    sub.add_argument("--process-label", metavar="LABEL", help="SELinux label")
    sub.add_argument("--detach", "-d", action="store_true", help="do not wait")
    sub.add_argument("--pid-file", metavar="FILE")
    sub.add_argument("--tty", "-t", action="store_true", help="with a terminal")
    sub.add_argument("--interactive", "-i", action="store_true", help="accepted for compatibility: our input is always passed on")
    sub.add_argument("--console-socket", metavar="SOCKET")
    sub.add_argument("--preserve-fds", type=int, default=0, metavar="N")
    sub.add_argument(
        "--cgroup",
        action="append",
        default=[],
        metavar="[CONTROLLER[,CONTROLLER]:]PATH",
        help="run it in this cgroup below the container's, which must exist",
    )


def cgroups(words: Sequence[str]) -> str | dict[str, str] | None:
    """What --cgroup asks for: one path for all controllers, or each with its own. Raises ValueError."""
    if len(words) == 1 and ":" not in words[0]:
        return words[0]
    found: dict[str, str] = {}
    for word in words:
        names, colon, path = word.partition(":")
        if not colon:
            raise ValueError(f"--cgroup {word}: one of several needs its controllers, as in memory,cpu:{word}")
        for name in names.split(","):
            if not name or name in found:
                raise ValueError(f"--cgroup {word}: {f'{name} is given twice' if name else 'a controller has no name'}")
            found[name] = path
    return found or None


def exec_(o: Options) -> int:
    args: Sequence[str] = o.args[1:] if o.args[:1] == ["--"] else o.args
    process = None
    if o.process:
        from ..spec import Process
        from ..spec.codec import parse, structure

        process = structure(Process, parse(Path(o.process).read_bytes(), o.process), o.process)
    elif not args:
        raise ValueError("exec needs a command, or --process")
    terminal = o.tty or bool(process and process.terminal)
    if terminal and o.detach and not o.console_socket:
        raise UnsupportedError("a detached process with a terminal needs --console-socket: nobody else takes the terminal")
    with Forwarding() as signals:
        child = oci.Container.load(o.id, root=o.root).popen(
            args,
            env=o.env,
            cwd=o.cwd,
            user=o.user,
            groups=o.additional_gids,
            capabilities=o.cap,
            no_new_privileges=o.no_new_privs or None,
            apparmor_profile=o.apparmor,
            selinux_label=o.process_label,
            process=process,
            terminal=terminal and not o.console_socket,
            console_socket=o.console_socket,
            pid_file=o.pid_file,
            preserve_fds=o.preserve_fds,
            cgroup=cgroups(o.cgroup),
            own_cgroup=False,  # nothing here kills more than the program
        )
        if o.detach:
            child.detach()
            return 0
        try:
            signals.to(child.fileno())
            if child.terminal is not None:
                child.sit()
            return shell_status(child.wait())
        except Interrupted:
            signals.stop()
            child.discard()
            raise


VERBS: Final = {
    "exec": Verb(exec_, "run a further program in a container", _exec),
}
