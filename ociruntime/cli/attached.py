"""The streams of supervised containers: attach, logs."""

from __future__ import annotations

import signal
import sys
import time
from datetime import datetime
from typing import Final

import ociruntime as oci

from ..terminal import DetachKeys, interact
from .common import Verb, container_argument, shell_status
from .forwarding import Forwarding
from .options import Options, Parser

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _attach(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument(
        "--detach-keys", default="ctrl-p,ctrl-q", metavar="KEYS", help="detach from a terminal (default: ctrl-p,ctrl-q)"
    )
    sub.add_argument("--no-stdin", action="store_true", help="only listen")


def _logs(sub: Parser) -> None:
    container_argument(sub)
    sub.add_argument("--follow", "-f", action="store_true", help="go on until the container has ended")
    sub.add_argument("--since", metavar="TIME", type=_time, help="RFC 3339, or how long ago: 90s, 10m, 2h, 1d")
    sub.add_argument("--tail", "-n", metavar="N", type=int, help="only the last lines")
    sub.add_argument("--stream", choices=("stdout", "stderr"), help="only this one")
    sub.add_argument("--timestamps", action="store_true", help="say when each line was printed")
    sub.add_argument(
        "--reopen", action="store_true", help="print nothing, but go on in a new file, as the old one has been renamed"
    )


def _time(text: str) -> int:
    if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdigit():
        return time.time_ns() - int(float(text[:-1]) * _UNITS[text[-1]] * 10**9)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000
    except ValueError:
        raise ValueError(f"{text!r} is no time: use RFC 3339, or 90s, 10m, 2h, 1d") from None


def attach(o: Options) -> int:
    keys = DetachKeys(o.detach_keys)
    container = oci.Container.load(o.id, root=o.root)
    with container.attach(stderr=True) as attachment:
        # A container that people attach to outlives their terminals.
        with Forwarding({signal.SIGHUP}) as signals:
            return follow(attachment, keys, signals, stdin=not o.no_stdin)


def follow(attachment: oci.Attachment, keys: DetachKeys, signals: Forwarding, *, stdin: bool = True) -> int:
    """Be attached until the container ends, and give its exit code for a shell; 0 when the keys detach, 129 at a hang-up."""

    def resize(rows: int, columns: int) -> None:
        try:
            attachment.resize(rows, columns)
        except oci.StateError:
            pass  # it is about to end, as the stream will tell

    signals.to(attachment.pidfd)
    end = interact(
        attachment.fileno(),
        resize if attachment.terminal else None,
        errors=attachment.stderr.fileno() if attachment.stderr is not None else -1,
        stdin=0 if stdin else -1,
        end_input=None if attachment.terminal else attachment.end_input,
        detach=keys if attachment.terminal else None,
    )
    codes = {"detached": 0, "hung up": 128 + signal.SIGHUP}
    return codes[end] if end in codes else shell_status(attachment.returncode())


def logs(o: Options) -> None:
    container = oci.Container.load(o.id, root=o.root)
    if o.reopen:
        container.reopen_log()
        return
    files = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    begun = {"stdout": False, "stderr": False}
    last = ""
    for record in container.logs(follow=o.follow, since=o.since, tail=o.tail, stream=o.stream):
        if last not in ("", record.stream):
            files[last].flush()  # both may be the same terminal
        last, file = record.stream, files[record.stream]
        if o.timestamps and not begun[record.stream]:
            file.write(f"{record.stamp} ".encode())
        file.write(record.text.encode("utf-8", "surrogateescape") + (b"" if record.partial else b"\n"))
        begun[record.stream] = record.partial
        if o.follow:
            file.flush()
    sys.stdout.flush()
    try:
        state = container.state
    except oci.ContainerNotFound:
        return  # it was deleted while we followed
    if any(state.log_lost):
        entries, size = state.log_lost
        print(f"ociruntime: {entries} entries ({size} bytes) of the log are lost: {state.log_error}", file=sys.stderr)


VERBS: Final = {
    "attach": Verb(attach, "connect to a supervised container's streams; exits with its exit code", _attach),
    "logs": Verb(logs, "print what a supervised container has printed", _logs),
}
