"""The process: its program, environment and limits (config.md, Process)."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Final

from ..spec.places import destination_in_root
from . import kernel as k
from .model import NO_SLOT, Builder
from .namespaces import own_files
from .ops import Sync, Target

if TYPE_CHECKING:
    from ..host import Host
    from ..spec import Process

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(process: Process) -> tuple[str, ...]:
    """The environment as execve gets it: of a name that comes twice, the last one counts."""
    last: dict[str, str] = {}
    for entry in process.env or ():
        last[entry.partition("=")[0]] = entry
    return tuple(last.values())


def candidates(process: Process) -> tuple[str, ...]:
    """Where args[0] is looked for, as execvpe does: in PATH unless it has a slash."""
    args = process.args
    assert args, "the rules want one"
    if "/" in args[0]:
        return (posixpath.join(process.cwd, args[0]),)
    path = next((e[5:] for e in reversed(process.env or ()) if e.startswith("PATH=")), DEFAULT_PATH)
    return tuple(posixpath.join(process.cwd, directory or ".", args[0]) for directory in path.split(":"))


def compile_limits(b: Builder, process: Process) -> None:
    """rlimits, as long as the init still has the capability to raise them."""
    for limit in process.rlimits or ():
        text = f"{limit.type} soft={limit.soft} hard={limit.hard}"
        b.init("rlimit", k.RLIMITS[limit.type], limit.soft, limit.hard, text=text)


def compile_keyring(b: Builder, host: Host) -> None:
    """A fresh session keyring: the caller's holds keys that are none of the container's business."""
    if host.keyrings:
        b.init("keyring", "", text="a session keyring of its own")


def make_cwd(b: Builder, process: Process, root: int) -> None:
    """Make the working directory where it is missing, before the root becomes read-only."""
    cwd = destination_in_root(process.cwd)
    b.init("target", root, cwd, Target(0), 0o755, NO_SLOT, NO_SLOT, text=f"{cwd}, the working directory, made where missing")


def compile_oom_score(b: Builder, process: Process, host: Host, *, early: bool = False) -> None:
    """oomScoreAdj, written by the caller, who may lower it.

    Args:
        early: before anything is joined: there a user without privileges does it, as the init must open itself to him.
    """
    if process.oom_score_adj is None or early == host.privileged:
        return
    value = str(process.oom_score_adj)
    with own_files(b, host, "let the caller write the score"):
        if early:
            b.init("sync", Sync.HOST, text="the caller writes the score")
        b.host("proc_write", "oom_score_adj", value, text=f"{value} > /proc/PID/oom_score_adj")


def compile_exec_step(b: Builder, process: Process) -> None:
    """The last step: the init becomes the program."""
    args = tuple(process.args or ())
    shown = " ".join(args)
    b.init("exec", candidates(process), args, environment(process), text=shown if len(shown) <= 80 else shown[:77] + "...")
