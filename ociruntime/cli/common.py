"""What several commands share: values of arguments, exit statuses, tables, forwarding of signals."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Self, TextIO, TypeVar

from ..arguments import parse_path, parse_seconds, shown
from ..files import absolute_path, connect_socket

if TYPE_CHECKING:
    from rich.console import Console

_AGES: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HALF: Final = 200
"""Characters that `shorten` keeps at each end."""
T = TypeVar("T")


OF_IMAGE: Final = frozenset({"keys", "platform", "reference", "strategy", "verify"})
"""Options about an image, by the names of their values."""
OF_NEW_CONTAINER: Final = OF_IMAGE | frozenset(
    "bind cleanenv compat contain containall cpus device env_file fakeroot gpus home hostname hpc memory net network no_home "
    "no_mount overlay pids_limit publish scratch workdir writable_tmpfs".split()
)
"""Options that a running container cannot follow."""


def flag(name: str) -> str:
    """Return an option as users write it, given the name of its value."""
    return f"--{'key' if name == 'keys' else name.replace('_', '-')}"


def refuse_options(options: Namespace, names: Iterable[str], why: str) -> None:
    """Raise ValueError if one of some options is given; the message ends with the reason."""
    for name in sorted(names):
        if getattr(options, name, None) not in (None, False, []):
            raise ValueError(f"{flag(name)} {why}")


class Interrupted(BaseException):
    """A signal ends the command.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def one_line(text: str) -> str:
    """Return a text on one line, with escapes for the characters that a terminal would interpret."""
    return "".join(c if c.isprintable() else " " if c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str) -> str:
    """Return a text without its middle part if it is too long for a message."""
    return text if len(text) <= 2 * _HALF else f"{text[:_HALF]}...{text[-_HALF:]}"


def parse_duration(text: str) -> float:
    """Return the seconds of ``5``, ``500ms`` or ``1m30s``. Raises ArgumentTypeError."""
    try:
        seconds = parse_seconds("the time", text)
    except ValueError:
        seconds = None
    if seconds is None:
        raise ArgumentTypeError(f"{text!r} is not a time such as 500ms, 5s or 1m30s")
    return seconds


def parse_interval(text: str) -> float:
    """Return the seconds of a time as `parse_duration`, longer than 0. Raises ArgumentTypeError."""
    seconds = parse_duration(text)
    if not seconds:
        raise ArgumentTypeError(f"{text!r} is not a time longer than 0")
    return seconds


def path(text: str) -> str:
    """Return a path of the host; ``-`` stands for a standard stream where a command allows it.

    Raises:
        ArgumentTypeError: it is empty or too long, or names an image in a registry.
        FileNotFoundError: it is relative, and the working directory was removed.
    """
    found = path_in_container(text)
    if message := explain_uri(text):
        raise ArgumentTypeError(message)
    if found != "-":
        absolute_path(found)
    return found


def path_in_container(text: str) -> str:
    """Return a path. Raises ArgumentTypeError: it is empty or too long."""
    try:
        return parse_path("the value", text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def absolute(text: str) -> str:
    """Return an absolute path in the container. Raises ArgumentTypeError."""
    if not path_in_container(text).startswith("/"):
        raise ArgumentTypeError(f"{shown(text)} is not an absolute path in the container")
    return text


def label(text: str) -> tuple[str, str]:
    """Return the key and the value of a label. Raises ArgumentTypeError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_env(values: Sequence[str]) -> list[str]:
    """Return the variables of ``NAME=VALUE,NAME=VALUE``. A comma without a name behind it belongs to the value.

    Raises:
        ValueError: a value is not NAME=VALUE.
    """
    for value in values:
        if value.find("=") < 1:
            raise ValueError(f"--env {shown(value)} is not NAME=VALUE")
    return [variable for value in values for variable in re.split(r",(?=[A-Za-z_][A-Za-z0-9_]*=)", value)]


def parse_env_file(path: str) -> list[str]:
    """Return the variables in a file, as a shell reads assignments: ``NAME=VALUE``, with quotes and comments. Nothing is expanded.

    Raises:
        ValueError: a line is not an assignment, or would have to be expanded.
        OSError: the file cannot be read.
    """
    import shlex  # imported here for its cost

    variables: list[str] = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            where = f"--env-file {shown(path)}: line {number}"
            try:
                words = shlex.split(line, comments=True)
            except ValueError as error:
                raise ValueError(f"{where}: {str(error).lower()}") from None
            words = words[1:] if words[:1] == ["export"] else words
            if not words:
                continue
            if len(words) != 1 or re.match(r"[A-Za-z_][A-Za-z0-9_]*=", words[0]) is None:
                raise ValueError(f"{where}: NAME=VALUE is needed, in quotes if the value has spaces")
            if re.search(r"[$`]", re.sub(r"'[^']*'|\\.", "", line)):
                raise ValueError(f"{where}: variables and commands are not expanded; write the value in single quotes")
            variables.append(words[0])
    return variables


def parse_user(text: str) -> str:
    """Return the user of the option ``--user``. Raises ArgumentTypeError: it is an image, as behind Apptainer's flag ``-u``."""
    if "/" in text or text.endswith(".sif"):
        raise ArgumentTypeError(
            f"{shown(text)} is not USER[:GROUP]; leave out Apptainer's flag -u: a user's container always has a user namespace"
        )
    return text


def parse_home(text: str) -> str:
    """Return ``SOURCE:DESTINATION`` for ``SOURCE[:DESTINATION]``, as Apptainer reads it. Raises ArgumentTypeError."""
    source, _, destination = text.partition(":")
    if not source or ":" in destination or not (destination or "/").startswith("/"):
        raise ArgumentTypeError(f"{shown(text)} is not SOURCE[:DESTINATION]; DESTINATION is an absolute path")
    source = absolute_path(path(source))
    return f"{source}:{destination or source}"


_BIND_OPTIONS: Final = ("ro", "rw")


def parse_binds(text: str) -> list[str]:
    """Return the mounts of ``SOURCE[:DESTINATION[:OPTIONS]],...``, as Apptainer reads them. Raises ArgumentTypeError."""
    mounts: list[str] = []
    for item in text.rstrip(",").split(","):
        if mounts and item in _BIND_OPTIONS and mounts[-1].count(":") == 2:
            mounts[-1] += f",{item}"
            continue
        source, _, rest = item.partition(":")
        destination, _, option = rest.partition(":")
        destination = path(destination) if destination else absolute_path(path(source))
        if not source or not destination.startswith("/") or (option and option not in _BIND_OPTIONS):
            raise ArgumentTypeError(f"{shown(item)} is not SOURCE[:DESTINATION[:ro]]; DESTINATION is an absolute path")
        mounts.append(f"{source}:{destination}:{option}".rstrip(":"))
    return mounts


def explain_uri(text: str) -> str:
    """Return why the name of an image in a registry is not that of a file, or an empty string for another text."""
    if not text.startswith(("docker://", "oras://", "library://", "shub://")):
        return ""
    remedy = f"'ociruntime pull {text}' makes a SIF file of it" if text.startswith(("docker:", "oras:")) else "fetch it first"
    return f"{shown(text)} is in a registry and not a file; {remedy}"


def is_image(word: str) -> bool:
    """Return whether a word that may be the id of a container names an image: it has a slash, ends in .sif, or names a file."""
    return "/" in word or word.endswith(".sif") or os.path.isfile(word)


def limit(parse: Callable[[Any], T], read: Callable[[str], object] = str) -> Callable[[str], T]:
    """Return the type of an argument that is a limit, as Python's calls take it.

    Args:
        parse: a function of `ociruntime.arguments`, such as `parse_size`.
        read: makes the text of the argument a value for it.
    """

    def convert(text: str) -> T:
        try:
            value = read(text)
        except ValueError:
            value = text
        try:
            return parse(value)
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"the value is {error}") from None

    return convert


def parse_time(text: str) -> int:
    """Return a time, RFC 3339 or an age as ``10m``, in nanoseconds since the epoch. Raises ArgumentTypeError."""
    try:
        if text[-1:] in _AGES and text[:-1].replace(".", "", 1).isdigit():
            return time.time_ns() - int(float(text[:-1]) * _AGES[text[-1]] * 10**9)
        from datetime import datetime  # imported here for its cost

        return round(datetime.fromisoformat(text).timestamp() * 1e6) * 1000
    except (ValueError, OverflowError):
        raise ArgumentTypeError(f"{text!r} is not a time: use RFC 3339, or an age such as 90s, 10m, 2h, 1d") from None


def shell_status(code: int) -> int:
    """Return the exit status with which a shell reports an exit code: 128+n for signal n."""
    return 128 - code if code < 0 else code


@contextmanager
def pidfd_socket(path: str | None) -> Iterator[Callable[[int], None]]:
    """Connect to the Unix socket that is to receive a pidfd, and give the function that sends one. Without a path it does nothing.

    Raises:
        OSError: the socket cannot be used.
    """
    if path is None:
        yield lambda fd: None
        return
    import socket

    with socket.socket(socket.AF_UNIX) as peer:
        connect_socket(peer, path)

        def send(fd: int) -> None:
            socket.send_fds(peer, [b"pidfd"], [fd])

        yield send


def format_time(nanoseconds: int) -> str:
    """Return a time since the epoch in RFC 3339, with all of its digits, as runc prints it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}".rstrip("0").rstrip(".") + "Z"


def terminal(stream: TextIO) -> Console | None:
    """Return the terminal that a stream is, for colours and tables, or None for plain text.

    Text is plain if the stream is not a terminal or the terminal can do no more, with ``NO_COLOR``, and without rich, which comes
    with the extra `cli`.
    """
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    return Console(file=stream, markup=False, emoji=False, highlight=False)


_STYLES: Final = {
    **dict.fromkeys(("running", "ok", "valid"), "green"),
    **dict.fromkeys(("created", "paused", "limited", "missing", "warning"), "yellow"),
    "error": "red",
    "stopped": "dim",
}
"""The styles of words that are a whole cell of a table, or begin a line before a colon."""


def print_lines(lines: Iterable[str]) -> None:
    """Print lines. On a terminal, the word before the first colon is set off."""
    console = terminal(sys.stdout)
    for line in lines:
        word, colon, rest = line.partition(":")
        if console is not None and colon:
            console.print(console.render_str(word, style=_STYLES.get(word, "bold")), end="", soft_wrap=True)
            word = ""
        print(f"{word}{colon}{rest}")


def print_json(document: object) -> None:
    """Print indented JSON, with colours on a terminal."""
    import json

    text = json.dumps(document, indent=2)
    if (console := terminal(sys.stdout)) is None:
        print(text)
    else:
        console.print_json(text, ensure_ascii=True)


def print_compact(document: object) -> None:
    """Print JSON on one line without spaces, as runc does; clients search such lines for text."""
    import json

    print(json.dumps(document, separators=(",", ":")), flush=True)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, the first of which has the titles, in columns. On a terminal, long cells are continued on further lines."""
    if (console := terminal(sys.stdout)) is not None:
        from rich.table import Table

        table = Table(*rows[0], box=None, header_style="bold", pad_edge=False)
        for column in table.columns:
            column.overflow = "fold"
        for row in rows[1:]:
            table.add_row(*(console.render_str(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(table)
        return
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


NOT_FORWARDED: Final = frozenset(
    {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH}
    | {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
    | {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS}
)
"""Signals about the command itself, and those of the job control of its shell."""

_TERMINATING: Final = frozenset({signal.SIGINT, signal.SIGTERM})


class SignalForwarding:
    """A context in which the signals that the command receives are forwarded to the container's process.

    A signal that is received before that process exists is forwarded as soon as it does; the same signal again ends the command
    then. A second INT or TERM always ends the command, as the process may ignore the first.

    Args:
        ending: signals that end the command instead.
    """

    def __init__(self, ending: Collection[int] = ()) -> None:
        self._pidfd = -1
        self._early: list[int] = []
        self._forwarded: set[int] = set()
        self._ending = ending

    def forward_to(self, pidfd: int) -> None:
        """Forward signals to this process from now on, and those that were received before."""
        self._pidfd = pidfd
        for number in self._early:
            self._handle(number, None)

    def stop(self) -> None:
        """Forward no further signal, so that only a signal that is received twice from now on interrupts the clean-up."""
        self._pidfd = -1
        self._early.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in self._ending:
            raise Interrupted(number)
        if self._pidfd < 0:
            if number in self._early:
                raise Interrupted(number)
            self._early.append(number)
            return
        if number in _TERMINATING and number in self._forwarded:
            raise Interrupted(number)
        self._forwarded.add(number)
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # the process has ended

    def __enter__(self) -> Self:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in signal.valid_signals() - NOT_FORWARDED
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
