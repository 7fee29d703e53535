"""Which containers there are, what runs in them and happens to them, and which are over: list, ps, events, prune."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import ociruntime as oci

from ..errors import ContainerNotFound, UnsupportedError, WrongStatus
from ..events import Event
from .common import (
    Verb,
    container_argument,
    format_argument,
    table,
    when,
)
from .options import Options, Parser


def _list(sub: Parser) -> None:
    format_argument(sub)
    sub.add_argument("--quiet", "-q", action="store_true", help="ids only")


def list_(o: Options) -> None:
    states = []
    for container in oci.Container.list(root=o.root):
        try:
            states.append(container.state)
        except ContainerNotFound:
            continue  # deleted meanwhile
    if o.quiet:
        for entry in states:
            print(entry.id)
    elif o.format == "json":
        print(json.dumps([{**entry.to_dict(), "pid": entry.pid, "created": when(entry.created_at)} for entry in states]))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED")]
        rows += [(s.id, str(s.pid), str(s.status), s.bundle, when(s.created_at)) for s in states]
        table(rows)


def _ps(sub: Parser) -> None:
    container_argument(sub)
    format_argument(sub)
    sub.add_argument("options", nargs="...", metavar="OPTIONS", help="of the host's ps (Debian: procps), such as -ef")


def ps(o: Options) -> None:
    container = oci.Container.load(o.id, root=o.root)
    if not container.state.status.can_kill:
        raise WrongStatus(o.id, "list the processes of", container.status, "running")
    pids = container.processes()
    if o.format == "json":
        print(json.dumps(pids))
    elif o.options:
        _filtered(o.options[1:] if o.options[0] == "--" else o.options, pids)
    else:
        table([("UID", "PID", "PPID", "COMMAND"), *(row for pid in pids if (row := _process(pid)))])


def _process(pid: int) -> tuple[str, str, str, str] | None:
    """One process as a row; None when it ended meanwhile."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as text:
            status = dict(line.split(":", 1) for line in text)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    command = " ".join(words) if words != [""] else f"[{status['Name'].strip()}]"
    return status["Uid"].split()[0], str(pid), status["PPid"].strip(), command.replace("\n", " ")


def _filtered(options: list[str], pids: tuple[int, ...]) -> None:
    import subprocess

    try:
        done = subprocess.run(["ps", *options], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UnsupportedError(
            f"ps {' '.join(options)}: options are passed to the host's ps, which is not in $PATH; install it (Debian: procps), "
            "or leave the options out"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"ps {' '.join(options)}: {error.stderr.strip()}") from None
    title, *lines = done.stdout.splitlines()
    if "PID" not in title.split():
        raise ValueError(f"ps {' '.join(options)} prints no PID: use other options, as -ef")
    column = title.split().index("PID")
    print("\n".join([title, *(line for line in lines if int(line.split()[column]) in pids)]))


def _prune(sub: Parser) -> None:
    pass


def prune(o: Options) -> None:
    for name in oci.prune(root=o.root):
        print(name)


def _events(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("--stats", action="store_true", help="print the statistics once")
    sub.add_argument(
        "--interval", type=duration, default=5.0, metavar="TIME", help="between statistics, as 500ms, 5s or 1m (default: 5s)"
    )


def duration(text: str) -> float:
    """Seconds of ``5``, ``500ms``, ``1m30s``. Raises ValueError."""
    units = {"": 1.0, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|$)", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ValueError(f"{text!r} is not a time such as 500ms, 5s or 1m30s")
    return seconds


def events(o: Options) -> None:
    container = oci.Container.load(o.id, root=o.root)
    if o.stats:
        if not container.state.status.can_kill:
            raise WrongStatus(o.id, "measure", container.status, "running")
        print(json.dumps(Event("stats", 0, stats=container.stats()).to_dict(o.id)))
        return
    for event in container.events(o.interval):
        print(json.dumps(event.to_dict(o.id)), flush=True)


VERBS: Final = {
    "list": Verb(list_, "list containers", _list),
    "events": Verb(events, "print what happens to a container, and its statistics, as JSON lines", _events),
    "ps": Verb(ps, "list the processes of a container", _ps),
    "prune": Verb(prune, "remove stopped containers and orphans, and what crashes left; prints their ids", _prune),
}
