"""The command line: runc's flags and the verbs of ``apptainer oci``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from .common import Verb
from .options import Options, Parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MODULES: Final = {
    "images": "mount umount plan sif",
    "model": "spec validate features",
    "lifecycle": "create start run state kill delete",
    "processes": "exec",
    "attached": "attach logs",
    "resources": "update pause resume",
    "listing": "list ps events prune",
}
_VERSION: Final = f"ociruntime version {__version__}\nspec: 1.3.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF"
"""The last line is in the words of crun, which programs look for."""
_HOMES: Final = {verb: module for module, verbs in _MODULES.items() for verb in verbs.split()}


def _verb(name: str) -> Verb:
    verbs: dict[str, Verb] = import_module(f"{__package__}.{_HOMES[name]}").VERBS
    return verbs[name]


def parse(words: Sequence[str]) -> Options:
    """What a command line says; its ``run`` carries it out. Only the module of the command is imported.

    Raises:
        SystemExit: it is wrong, which stderr says, or help was asked for.
    """
    top = Parser("ociruntime", "An OCI container runtime.", lambda: [(name, _verb(name).text) for name in _HOMES])
    top.add_argument("--version", "-v", action="version", const=_VERSION, help="print it")
    top.add_argument("--root", metavar="DIR", help="state directory (default: /run/ociruntime, or $XDG_RUNTIME_DIR/ociruntime)")
    top.add_argument("--log", metavar="FILE", help="write errors to this file too")
    top.add_argument("--log-format", choices=("text", "json"), default="text", help="format of errors (default: text)")
    top.add_argument("--debug", action="store_true", help="accepted for compatibility; errors always say all that is known")
    top.add_argument(
        "--rootless", metavar="WHEN", help="accepted for compatibility; what the user may do is found out as it is done"
    )
    top.add_argument("--cgroup-manager", choices=("cgroupfs", "systemd", "disabled"), default="cgroupfs", help="who makes cgroups")
    top.add_argument(
        "--systemd-cgroup", action="store_const", const="systemd", dest="cgroup_manager", help="same as --cgroup-manager systemd"
    )
    given, left = top.parse(words)
    if not left:
        top.fail("a command is required")
    name, *further = left
    if name not in _HOMES:
        top.fail(f"there is no command {name!r} (choose from {', '.join(_HOMES)})")
    verb = _verb(name)
    sub = Parser(f"ociruntime {name}", verb.text)
    verb.arguments(sub)
    sub.parse(further, given)
    given.run = verb.run
    return given
