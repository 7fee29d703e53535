"""What a container may use: update, pause, resume."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import ociruntime as oci

from .common import (
    Verb,
    container_argument,
)
from .options import Options, Parser

_UNITS: Final = {unit: 1024**power for power, units in enumerate(("b", "k", "m", "g", "t", "p")) for unit in units}


def size(text: str) -> int:
    """A number of bytes, as ``64m`` too. Raises ValueError."""
    found = re.fullmatch(r"(-1|\d+(?:\.\d+)?) ?([bkmgtp]?)(?:i?b)?", text.lower())
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 1048576, 64m or 1.5g")
    return int(float(found[1]) * _UNITS[found[2] or "b"]) if found[2] else int(float(found[1]))


_FLAGS: Final[dict[str, tuple[str, Callable[[str], object], str, str]]] = {
    "--memory": ("-m", size, "BYTES", "limit of memory; -1 for none, as 64m too"),
    "--memory-swap": ("", size, "BYTES", "limit of memory and swap together"),
    "--memory-reservation": ("", size, "BYTES", "soft limit of memory"),
    "--cpus": ("", float, "N", "CPU time in CPUs, as 1.5"),
    "--cpu-share": ("", int, "N", "weight against other containers, 1024 being usual"),
    "--cpu-quota": ("", int, "US", "CPU time in each period; -1 for no limit"),
    "--cpu-period": ("", int, "US", "microseconds"),
    "--cpu-burst": ("", int, "US", "unused quota that may be used later"),
    "--cpu-idle": ("", int, "0|1", "no more than what others leave"),
    "--cpu-rt-runtime": ("", int, "US", "CPU time of realtime tasks in each realtime period"),
    "--cpu-rt-period": ("", int, "US", "microseconds"),
    "--cpuset-cpus": ("", str, "LIST", "CPUs, as 0-3,7"),
    "--cpuset-mems": ("", str, "LIST", "memory nodes, as 0-3,7"),
    "--pids-limit": ("", int, "N", "number of tasks; -1 for no limit"),
    "--blkio-weight": ("", int, "N", "10 to 1000"),
    "--l3-cache-schema": ("", str, "LINE", "for the container's resctrl group, as L3:0=f"),
    "--mem-bw-schema": ("", str, "LINE", "for the container's resctrl group, as MB:0=20"),
}
_NAMES: Final = {
    "cpu_share": "cpu_shares",
    "cpu_rt_runtime": "cpu_realtime_runtime",
    "cpu_rt_period": "cpu_realtime_period",
    "pids_limit": "pids",
}


def _update(sub: Parser) -> None:
    container_argument(sub)
    for option in ("--resources", "--from-file"):
        sub.add_argument(option, option[1:3], dest="resources", metavar="FILE", help="linux.resources as JSON; - for stdin")
    for flag, (short, kind, metavar, text) in _FLAGS.items():
        sub.add_argument(flag, *filter(None, [short]), type=kind, metavar=metavar, help=text)


def update(o: Options) -> None:
    container = oci.Container.load(o.id, root=o.root)
    names = [flag[2:].replace("-", "_") for flag in _FLAGS]
    given = {_NAMES.get(name, name): getattr(o, name) for name in names if getattr(o, name) is not None}
    if o.resources is None:
        container.update(**given)
        return
    if given:
        raise ValueError("--resources and single limits exclude each other")
    text = sys.stdin.buffer.read() if o.resources == "-" else Path(o.resources).read_bytes()
    from ..spec import Resources

    container.update(Resources.loads(text))


def pause(o: Options) -> None:
    oci.Container.load(o.id, root=o.root).pause()


def resume(o: Options) -> None:
    oci.Container.load(o.id, root=o.root).resume()


VERBS: Final = {
    "update": Verb(update, "change limits of a container", _update),
    "pause": Verb(pause, "freeze every process", container_argument),
    "resume": Verb(resume, "thaw every process", container_argument),
}
